// SPDX-License-Identifier: Apache-2.0
#include "tests/cuda/accept/machine.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <vector>

namespace million::cuda::bench {
namespace {

/// Oldest device that the kernels run on, as in lib/device/native_device.cpp.
constexpr int kOldestMajor = 8;
constexpr int kRepeats = 7;

/// Reads n vectors; the sum is stored where it cannot be, so that no load is left out.
__global__ void read_kernel(const uint4* p, std::size_t n, uint32_t* never) {
  uint32_t sum = 0;
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  const std::size_t first = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
#pragma unroll 8
  for (std::size_t i = first; i < n; i += step) {
    const uint4 v = __ldcs(p + i);
    sum ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  if (n == 0) *never = sum;
}

/// A call's status as a text; empty: none failed.
struct Status {
  std::string error;
  bool operator()(cudaError_t status, const char* call) {
    if (status != cudaSuccess && error.empty())
      error = std::string(call) + ": " + cudaGetErrorString(status);
    return error.empty();
  }
};

/// n_calls calls as a graph; nullptr when something failed.
cudaGraphExec_t capture(cudaStream_t stream, int n_calls, const Call& call, Status& ok) {
  ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin of capture");
  for (int i = 0; i < n_calls; ++i) ok(static_cast<cudaError_t>(call(stream, i)), "launch");
  cudaGraph_t graph = nullptr;
  ok(cudaStreamEndCapture(stream, &graph), "end of capture");
  cudaGraphExec_t exec = nullptr;
  if (graph && ok.error.empty()) ok(cudaGraphInstantiate(&exec, graph, 0), "instantiation");
  if (graph) cudaGraphDestroy(graph);
  return exec;
}

}  // namespace

bool find_machine(Machine& m, std::string& why) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    why = status == cudaSuccess ? "the driver shows none" : cudaGetErrorString(status);
    return false;
  }
  cudaDeviceProp p{};
  Status ok;
  ok(cudaGetDeviceProperties(&p, 0), "cudaGetDeviceProperties");
  ok(cudaSetDevice(0), "cudaSetDevice");
  ok(cudaDriverGetVersion(&m.driver), "cudaDriverGetVersion");
  std::size_t total = 0;
  ok(cudaMemGetInfo(&m.free_bytes, &total), "cudaMemGetInfo");
  m.name = p.name, m.compute_major = p.major, m.compute_minor = p.minor;
  m.n_multiprocessors = p.multiProcessorCount, m.shared_per_block = p.sharedMemPerBlockOptin;
  m.l2_bytes = static_cast<std::size_t>(p.l2CacheSize), m.memory_bytes = p.totalGlobalMem;
  why = ok.error;
  if (why.empty() && p.major < kOldestMajor)
    why = m.name + " has compute capability " + std::to_string(p.major) + "." +
          std::to_string(p.minor) + ", at least 8.0 is needed";
  return why.empty();
}

void repeat(void* p, std::size_t have, std::size_t bytes) {
  auto* to = static_cast<unsigned char*>(p);
  while (have < bytes) {
    const std::size_t n = std::min(have, bytes - have);
    cudaMemcpy(to + have, to, n, cudaMemcpyDeviceToDevice);
    have += n;
  }
  cudaDeviceSynchronize();
}

Time time_calls(int n_calls, const Call& call) {
  Time time;
  Status ok;
  cudaStream_t stream = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;
  ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  ok(cudaEventCreate(&begin), "cudaEventCreate");
  ok(cudaEventCreate(&end), "cudaEventCreate");
  const cudaGraphExec_t exec = capture(stream, n_calls, call, ok);
  std::vector<double> us;
  for (int r = -2; r < kRepeats && ok.error.empty(); ++r) {  // two to warm up
    float ms = 0.0f;
    ok(cudaEventRecord(begin, stream), "cudaEventRecord");
    ok(cudaGraphLaunch(exec, stream), "cudaGraphLaunch");
    ok(cudaEventRecord(end, stream), "cudaEventRecord");
    ok(cudaStreamSynchronize(stream), "kernels");
    ok(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
    if (r >= 0) us.push_back(1e3 * ms / n_calls);
  }
  if (exec) cudaGraphExecDestroy(exec);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaStreamDestroy(stream);
  time.error = ok.error;
  if (!time.error.empty()) return time;
  std::sort(us.begin(), us.end());
  time.us = us[us.size() / 2], time.least_us = us.front();
  return time;
}

double read_gb_s(const void* p, std::size_t bytes) {
  int blocks = 0;
  cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, 0);
  const Time time = time_calls(4, [&](StreamHandle s, int) {
    read_kernel<<<blocks * 8, 512, 0, static_cast<cudaStream_t>(s)>>>(static_cast<const uint4*>(p),
                                                                      bytes / 16, nullptr);
    return static_cast<int>(cudaGetLastError());
  });
  return static_cast<double>(bytes) / 1e3 / time.us;
}

}  // namespace million::cuda::bench
