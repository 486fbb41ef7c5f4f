// SPDX-License-Identifier: Apache-2.0
// Kernels on the first GPU. MILLION_GPU_SLOW: small shapes only, for compute-sanitizer.
// MILLION_GPU_UNFILLED: allocations are not filled, so that its initcheck sees what nobody wrote.
#include "tests/cuda/harness.h"

#include <cuda_runtime.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace million::cuda::test {
namespace {

void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status));
}

}  // namespace

const DeviceOps& ops() { return native_ops(); }
const char* harness_name() { return "gpu"; }
bool harness_is_slow() { return std::getenv("MILLION_GPU_SLOW") != nullptr; }

void* device_alloc(std::size_t bytes) {
  void* p = nullptr;
  check(cudaMalloc(&p, bytes ? bytes : 1), "cudaMalloc");
  if (!std::getenv("MILLION_GPU_UNFILLED")) check(cudaMemset(p, 0xFF, bytes), "cudaMemset");
  return p;
}
void device_free(void* p) { cudaFree(p); }  // an error shows at the next call that checks
void to_device(void* to, const void* from, std::size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "cudaMemcpy to the device");
}
void from_device(void* to, const void* from, std::size_t bytes) {
  check(cudaDeviceSynchronize(), "kernels");
  check(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy to the host");
}

}  // namespace million::cuda::test
