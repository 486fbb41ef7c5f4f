// SPDX-License-Identifier: Apache-2.0
// A device as the cache and the decoder see it: memory, streams, events, captured steps, matrix
// products, and the table of kernels. Two kinds: a CUDA device, and its twin on the host, which
// runs the same kernels through kernels/cuda/simt and streams as threads.
#pragma once

#include "kernels/cuda/device_ops.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace million {

/// Where a decoder runs.
enum class Backend { kCpu, kCuda, kCudaEmulated };
const char* backend_name(Backend backend);  ///< "cpu", "cuda", "cuda-emulated"
/// Error(kUsage) with the names otherwise.
Backend parse_backend(std::string_view text);

struct DeviceInfo {
  std::string name;
  int compute_major = 0, compute_minor = 0;
  int n_multiprocessors = 0;
  std::size_t shared_per_block = 0;  ///< bytes of dynamic shared memory that a block can have
  uint64_t memory_bytes = 0;
};

/// y [n][m] f32 = (accumulate ? y : 0) + x [n][k] w^T, x and w [m][k] halves, sums in f32.
struct DeviceGemm {
  const uint16_t* x;
  const uint16_t* w;
  float* y;
  int n, m, k;
  bool accumulate;
};

/// A recorded sequence of launches.
class DeviceGraph {
 public:
  virtual ~DeviceGraph() = default;
};

/// All functions throw Error: kNoResources when memory is short (with what was asked and what there
/// is), kFailed with the name of the call when the device fails.
class Device {
 public:
  using Stream = cuda::StreamHandle;
  using Event = void*;

  virtual ~Device() = default;
  virtual Backend backend() const = 0;
  virtual const DeviceInfo& info() const = 0;
  virtual const cuda::DeviceOps& ops() const = 0;

  virtual void* allocate(std::size_t bytes) = 0;
  virtual void release(void* p) noexcept = 0;
  virtual uint64_t free_bytes() = 0;
  /// Of allocate() less release().
  virtual uint64_t used_bytes() const = 0;

  virtual Stream create_stream() = 0;
  virtual void destroy_stream(Stream s) noexcept = 0;
  virtual void synchronize(Stream s) = 0;
  virtual Event create_event() = 0;
  virtual void destroy_event(Event e) noexcept = 0;
  virtual void record(Event e, Stream s) = 0;
  /// What is put into `s` from now on waits for what was recorded last.
  virtual void wait(Stream s, Event e) = 0;

  /// Host memory may be used again when copy_in returns; copy_out has waited for the data.
  virtual void copy_in(Stream s, void* to, const void* from, std::size_t bytes) = 0;
  virtual void copy_out(Stream s, void* to, const void* from, std::size_t bytes) = 0;
  virtual void gemm(Stream s, const DeviceGemm& g) = 0;

  virtual void begin_capture(Stream s) = 0;
  virtual std::unique_ptr<DeviceGraph> end_capture(Stream s) = 0;
  virtual void launch(const DeviceGraph& graph, Stream s) = 0;

  /// Throws for the status of a launch, naming the operation.
  virtual void check(int status, const char* operation) = 0;
};

/// Error(kNoResources) for a device without the instructions or the shared memory that the kernels
/// need: what it has, what is needed, and the CPU as the way out.
void require_supported(const DeviceInfo& info);

/// Limits and faults that tests give the emulated device.
struct EmulatedDeviceOptions {
  std::size_t shared_per_block = 227 * 1024;
  int compute_major = 9, compute_minor = 0;
  uint64_t memory_bytes = uint64_t{16} << 30;
  int64_t fail_allocation = -1;  ///< this allocation, counted from 0, fails
};
std::shared_ptr<Device> make_emulated_device(const EmulatedDeviceOptions& options = {});

/// The device of a backend, made at the first call. kCuda: Error(kNoResources) without a driver or
/// device, or in a build without CUDA, naming the CPU as the alternative.
std::shared_ptr<Device> shared_device(Backend backend);

/// Memory on a device.
template <class T>
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(std::shared_ptr<Device> device, std::size_t n)
      : device_(std::move(device)),
        n_(n),
        p_(n ? static_cast<T*>(device_->allocate(n * sizeof(T))) : nullptr) {}
  /// With the contents of `v`.
  DeviceBuffer(std::shared_ptr<Device> device, Device::Stream s, const std::vector<T>& v)
      : DeviceBuffer(std::move(device), v.size()) {
    if (n_) device_->copy_in(s, p_, v.data(), n_ * sizeof(T));
  }
  DeviceBuffer(DeviceBuffer&& x) noexcept { swap(x); }
  DeviceBuffer& operator=(DeviceBuffer&& x) noexcept {
    swap(x);
    return *this;
  }
  ~DeviceBuffer() {
    if (p_) device_->release(p_);
  }
  T* data() const { return p_; }
  std::size_t size() const { return n_; }
  uint64_t bytes() const { return n_ * sizeof(T); }

 private:
  void swap(DeviceBuffer& x) noexcept {
    std::swap(device_, x.device_);
    std::swap(n_, x.n_);
    std::swap(p_, x.p_);
  }
  std::shared_ptr<Device> device_;
  std::size_t n_ = 0;
  T* p_ = nullptr;
};

/// A stream and an event that go with their owner.
class DeviceStream {
 public:
  explicit DeviceStream(std::shared_ptr<Device> device)
      : device_(std::move(device)), stream_(device_->create_stream()) {}
  ~DeviceStream() { device_->destroy_stream(stream_); }
  DeviceStream(const DeviceStream&) = delete;
  DeviceStream& operator=(const DeviceStream&) = delete;
  Device::Stream get() const { return stream_; }

 private:
  std::shared_ptr<Device> device_;
  Device::Stream stream_;
};

class DeviceEvent {
 public:
  explicit DeviceEvent(std::shared_ptr<Device> device)
      : device_(std::move(device)), event_(device_->create_event()) {}
  ~DeviceEvent() { device_->destroy_event(event_); }
  DeviceEvent(const DeviceEvent&) = delete;
  DeviceEvent& operator=(const DeviceEvent&) = delete;
  Device::Event get() const { return event_; }

 private:
  std::shared_ptr<Device> device_;
  Device::Event event_;
};

}  // namespace million
