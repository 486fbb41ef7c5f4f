// SPDX-License-Identifier: Apache-2.0
// Kernels on the first GPU. MILLION_GPU_SLOW: small shapes only, for compute-sanitizer.
// MILLION_GPU_UNFILLED: allocations are not filled, so that its initcheck sees what nobody wrote.
#include "kernels/cuda/attention_pq.h"
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

std::size_t shared_limit() {
  static const std::size_t limit = [] {
    int bytes = 0;
    check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0),
          "cudaDeviceGetAttribute");
    return static_cast<std::size_t>(bytes);
  }();
  return limit;
}

/// As the decoder has it where a block cannot hold both codebooks (99 KB: sm_86, 89, 120).
int attend_pq_within_limit(StreamHandle stream, const PqAttendArgs& args) {
  PqAttendArgs a = args;
  if (a.two_pass || !pq_has_kernel(a) || pq_shared_bytes(a) <= shared_limit())
    return native_ops().attend_pq(stream, a);
  a.two_pass = true;
  DeviceVector<uint8_t> scratch(pq_scratch_bytes(a));
  a.scratch = scratch.data();
  return native_ops().attend_pq(stream, a);
}
int attend_coded_within_limit(StreamHandle stream, const CodedAttendArgs& args) {
  CodedAttendArgs a = args;
  const auto limit = static_cast<int>(shared_limit());
  if (a.shared_limit > limit) a.shared_limit = limit;
  return native_ops().attend_coded(stream, a);
}

}  // namespace

const DeviceOps& ops() {
  static const DeviceOps table = [] {
    DeviceOps t = native_ops();
    t.attend_pq = attend_pq_within_limit, t.attend_coded = attend_coded_within_limit;
    return t;
  }();
  return table;
}
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
