// SPDX-License-Identifier: Apache-2.0
#include "lib/device/native_device.h"

#include "lib/core/error.h"

#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <mutex>
#include <unordered_map>

namespace million {
namespace {

void check_cuda(cudaError_t status, const char* call) {
  MILLION_REQUIRE(status == cudaSuccess, ErrorCode::kFailed, "{}: {}", call,
                  cudaGetErrorString(status));
}
void check_cublas(cublasStatus_t status, const char* call) {
  MILLION_REQUIRE(status == CUBLAS_STATUS_SUCCESS, ErrorCode::kFailed, "{}: {}", call,
                  cublasGetStatusString(status));
}

struct NativeGraph final : DeviceGraph {
  ~NativeGraph() override {
    if (exec) cudaGraphExecDestroy(exec);
  }
  cudaGraphExec_t exec = nullptr;
};

class NativeDevice final : public Device {
 public:
  NativeDevice() {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    MILLION_REQUIRE(status == cudaSuccess && count > 0, ErrorCode::kNoResources,
                    "--backend cuda: no CUDA device ({}); use --backend cpu",
                    status == cudaSuccess ? "the driver shows none" : cudaGetErrorString(status));
    check_cuda(cudaSetDevice(0), "cudaSetDevice");
    cudaDeviceProp p{};
    check_cuda(cudaGetDeviceProperties(&p, 0), "cudaGetDeviceProperties");
    info_ = {p.name,
             p.major,
             p.minor,
             p.multiProcessorCount,
             p.sharedMemPerBlockOptin,
             static_cast<uint64_t>(p.totalGlobalMem)};
    require_supported(info_);
    check_cublas(cublasCreate(&cublas_), "cublasCreate");
    // A workspace of its own: products of a captured step may allocate nothing.
    check_cuda(cudaMalloc(&workspace_, kWorkspaceBytes), "cudaMalloc of cuBLAS' workspace");
  }
  ~NativeDevice() override {
    cublasDestroy(cublas_);
    cudaFree(workspace_);
  }

  Backend backend() const override { return Backend::kCuda; }
  const DeviceInfo& info() const override { return info_; }
  const cuda::DeviceOps& ops() const override { return cuda::native_ops(); }

  void* allocate(std::size_t bytes) override {
    void* p = nullptr;
    const cudaError_t status = cudaMalloc(&p, bytes);
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // the error is told here, not by the next launch
      fail(ErrorCode::kNoResources,
           "device memory: {} bytes asked for, {} of {} are free; use a shorter context or fewer "
           "bits, or --backend cpu",
           bytes, free_bytes(), info_.memory_bytes);
    }
    check_cuda(status, "cudaMalloc");
    std::lock_guard lock(mutex_);
    sizes_[p] = bytes;
    used_ += bytes;
    return p;
  }
  void release(void* p) noexcept override {
    {
      std::lock_guard lock(mutex_);
      used_ -= sizes_[p];
      sizes_.erase(p);
    }
    cudaFree(p);
  }
  uint64_t free_bytes() override {
    std::size_t free = 0, total = 0;
    check_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    return free;
  }
  uint64_t used_bytes() const override {
    std::lock_guard lock(mutex_);
    return used_;
  }

  Stream create_stream() override {
    cudaStream_t s = nullptr;
    check_cuda(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), "cudaStreamCreate");
    return s;
  }
  void destroy_stream(Stream s) noexcept override { cudaStreamDestroy(of(s)); }
  void synchronize(Stream s) override {
    check_cuda(cudaStreamSynchronize(of(s)), "cudaStreamSynchronize");
  }
  Event create_event() override {
    cudaEvent_t e = nullptr;
    check_cuda(cudaEventCreateWithFlags(&e, cudaEventDisableTiming), "cudaEventCreate");
    return e;
  }
  void destroy_event(Event e) noexcept override { cudaEventDestroy(static_cast<cudaEvent_t>(e)); }
  void record(Event e, Stream s) override {
    check_cuda(cudaEventRecord(static_cast<cudaEvent_t>(e), of(s)), "cudaEventRecord");
  }
  void wait(Stream s, Event e) override {
    check_cuda(cudaStreamWaitEvent(of(s), static_cast<cudaEvent_t>(e), 0), "cudaStreamWaitEvent");
  }

  void copy_in(Stream s, void* to, const void* from, std::size_t bytes) override {
    // From pageable memory the call returns when the source has been read.
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, of(s)), "copy to device");
  }
  void copy_out(Stream s, void* to, const void* from, std::size_t bytes) override {
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, of(s)), "copy to host");
    synchronize(s);
  }

  /// Row-major y = x w^T is column-major y^T = w x^T.
  void gemm(Stream s, const DeviceGemm& g) override {
    const float one = 1.0f, beta = g.accumulate ? 1.0f : 0.0f;
    std::lock_guard lock(cublas_mutex_);
    check_cublas(cublasSetStream(cublas_, of(s)), "cublasSetStream");
    check_cublas(cublasSetWorkspace(cublas_, workspace_, kWorkspaceBytes), "cublasSetWorkspace");
    check_cublas(cublasGemmEx(cublas_, CUBLAS_OP_T, CUBLAS_OP_N, g.m, g.n, g.k, &one, g.w,
                              CUDA_R_16F, g.k, g.x, CUDA_R_16F, g.k, &beta, g.y, CUDA_R_32F, g.m,
                              CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                 "cublasGemmEx");
  }

  void begin_capture(Stream s) override {
    check_cuda(cudaStreamBeginCapture(of(s), cudaStreamCaptureModeThreadLocal),
               "cudaStreamBeginCapture");
  }
  std::unique_ptr<DeviceGraph> end_capture(Stream s) override {
    cudaGraph_t graph = nullptr;
    check_cuda(cudaStreamEndCapture(of(s), &graph), "cudaStreamEndCapture");
    auto result = std::make_unique<NativeGraph>();
    const cudaError_t status = cudaGraphInstantiate(&result->exec, graph, 0);
    cudaGraphDestroy(graph);
    check_cuda(status, "cudaGraphInstantiate");
    return result;
  }
  void launch(const DeviceGraph& graph, Stream s) override {
    check_cuda(cudaGraphLaunch(static_cast<const NativeGraph&>(graph).exec, of(s)),
               "cudaGraphLaunch");
  }

  void check(int status, const char* operation) override {
    check_cuda(static_cast<cudaError_t>(status), operation);
  }

 private:
  static constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;
  static cudaStream_t of(Stream s) { return static_cast<cudaStream_t>(s); }

  DeviceInfo info_;
  cublasHandle_t cublas_ = nullptr;
  void* workspace_ = nullptr;
  std::mutex cublas_mutex_;
  mutable std::mutex mutex_;
  std::unordered_map<void*, std::size_t> sizes_;
  uint64_t used_ = 0;
};

}  // namespace

std::shared_ptr<Device> make_native_device() { return std::make_shared<NativeDevice>(); }

}  // namespace million
