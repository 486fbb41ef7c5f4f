// SPDX-License-Identifier: Apache-2.0
#include "lib/device/device.h"

#include "lib/core/error.h"
#include "lib/device/native_device.h"

#include <mutex>

namespace million {

const char* backend_name(Backend backend) {
  switch (backend) {
    case Backend::kCpu:
      return "cpu";
    case Backend::kCuda:
      return "cuda";
    case Backend::kCudaEmulated:
      return "cuda-emulated";
  }
  return "?";
}

Backend parse_backend(std::string_view text) {
  for (Backend b : {Backend::kCpu, Backend::kCuda, Backend::kCudaEmulated})
    if (text == backend_name(b)) return b;
  fail(ErrorCode::kUsage, "--backend: got '{}', expected cpu, cuda or cuda-emulated", text);
}

void require_supported(const DeviceInfo& info) {
  constexpr int kOldestMajor = 8;  // products of halves with f32 sums, asynchronous copies
  constexpr std::size_t kSharedBytes = 96 * 1024;  // tiles of attention_rows.cu at head_dim 128
  MILLION_REQUIRE(info.compute_major >= kOldestMajor, ErrorCode::kNoResources,
                  "{} has compute capability {}.{}, at least {}.0 is needed; use --backend cpu",
                  info.name, info.compute_major, info.compute_minor, kOldestMajor);
  MILLION_REQUIRE(info.shared_per_block >= kSharedBytes, ErrorCode::kNoResources,
                  "{} has {} KiB of shared memory a block, {} are needed; use --backend cpu",
                  info.name, info.shared_per_block / 1024, kSharedBytes / 1024);
}

std::shared_ptr<Device> shared_device(Backend backend) {
  static std::mutex mutex;
  static std::weak_ptr<Device> devices[3];
  std::lock_guard lock(mutex);
  MILLION_ASSERT(backend != Backend::kCpu);
  std::weak_ptr<Device>& slot = devices[static_cast<int>(backend)];
  std::shared_ptr<Device> device = slot.lock();
  if (!device) {
    device = backend == Backend::kCuda ? make_native_device() : make_emulated_device();
    slot = device;
  }
  return device;
}

#ifdef MILLION_CUDA
bool built_with_cuda() { return true; }
#else
bool built_with_cuda() { return false; }

std::shared_ptr<Device> make_native_device() {
  fail(ErrorCode::kNoResources,
       "--backend cuda: this program was built without CUDA; build with the preset cuda where the "
       "CUDA Toolkit is, or use --backend cpu");
}
#endif

}  // namespace million
