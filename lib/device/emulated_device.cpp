// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/simt/simt.h"
#include "kernels/ops.h"
#include "lib/core/error.h"
#include "lib/core/tensor.h"
#include "lib/device/device.h"

#include <oneapi/dnnl/dnnl.h>

#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>

namespace million {
namespace {

using WorkList = std::vector<std::function<void()>>;

/// A stream: a thread that runs what it is given, in order; while captured, a list, which streams
/// that wait for a captured event share. The thread is woken when something waits for it, not for
/// every launch.
class EmulatedStream final : public simt::Queue {
 public:
  EmulatedStream() : thread_([this] { run(); }) {}
  ~EmulatedStream() override {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  void enqueue(std::function<void()> work) override {
    if (capture_) {
      capture_->push_back(std::move(work));
      return;
    }
    std::lock_guard lock(mutex_);
    queue_.push_back(std::move(work));
  }

  /// Lets the thread run what is there.
  void start() {
    {
      std::lock_guard lock(mutex_);
      started_ = true;
    }
    changed_.notify_all();
  }
  void synchronize() {
    start();
    std::unique_lock lock(mutex_);
    idle_.wait(lock, [this] { return !started_; });
  }

  void capture_into(std::shared_ptr<WorkList> list) { capture_ = std::move(list); }
  const std::shared_ptr<WorkList>& capture() const { return capture_; }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return stop_ || started_; });
      while (!queue_.empty()) {
        std::function<void()> work = std::move(queue_.front());
        queue_.pop_front();
        lock.unlock();
        work();
        work = nullptr;
        lock.lock();
      }
      started_ = false;
      idle_.notify_all();
      if (stop_) return;
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_, idle_;
  std::deque<std::function<void()>> queue_;
  std::shared_ptr<WorkList> capture_;  ///< the host's thread alone uses it
  bool stop_ = false, started_ = false;
  std::thread thread_;  // last member: it uses the others
};

/// Counts how often it was recorded and how often a stream came past.
struct EmulatedEvent {
  std::mutex mutex;
  std::condition_variable changed;
  int64_t recorded = 0, reached = 0;
  std::shared_ptr<WorkList> capture;  ///< that it was last recorded in
};

struct EmulatedGraph final : DeviceGraph {
  std::shared_ptr<const WorkList> work;
};

class EmulatedDevice final : public Device {
 public:
  explicit EmulatedDevice(const EmulatedDeviceOptions& o) : options_(o) {
    info_ = {"emulated on the host", o.compute_major,    o.compute_minor,
             kMultiprocessors,       o.shared_per_block, o.memory_bytes};
    require_supported(info_);
  }
  ~EmulatedDevice() override { MILLION_ASSERT(sizes_.empty()); }

  Backend backend() const override { return Backend::kCudaEmulated; }
  const DeviceInfo& info() const override { return info_; }
  const cuda::DeviceOps& ops() const override { return cuda::emulated_ops(); }

  void* allocate(std::size_t bytes) override {
    std::lock_guard lock(mutex_);
    const bool fault = n_allocations_++ == options_.fail_allocation;
    MILLION_REQUIRE(!fault && used_ + bytes <= options_.memory_bytes, ErrorCode::kNoResources,
                    "device memory: {} bytes asked for, {} of {} are free; use a shorter context "
                    "or fewer bits, or --backend cpu",
                    bytes, options_.memory_bytes - used_, options_.memory_bytes);
    void* p = std::malloc(bytes);
    MILLION_REQUIRE(p, ErrorCode::kNoResources, "no memory for {} bytes of the emulated device",
                    bytes);
    std::memset(p, 0xFF, bytes);  // NaN, so that what nobody wrote shows
    sizes_[p] = bytes;
    used_ += bytes;
    return p;
  }
  /// As cudaFree: waits for what the streams have to do.
  void release(void* p) noexcept override {
    std::lock_guard lock(mutex_);
    for (EmulatedStream* s : streams_) s->synchronize();
    const auto found = sizes_.find(p);
    MILLION_ASSERT(found != sizes_.end());
    used_ -= found->second;
    sizes_.erase(found);
    std::free(p);
  }
  uint64_t free_bytes() override {
    std::lock_guard lock(mutex_);
    return options_.memory_bytes - used_;
  }
  uint64_t used_bytes() const override {
    std::lock_guard lock(mutex_);
    return used_;
  }

  Stream create_stream() override {
    auto* s = new EmulatedStream;
    std::lock_guard lock(mutex_);
    streams_.insert(s);
    return static_cast<simt::Queue*>(s);
  }
  void destroy_stream(Stream s) noexcept override {
    {
      std::lock_guard lock(mutex_);
      streams_.erase(of(s));
    }
    delete of(s);
  }
  void synchronize(Stream s) override { of(s)->synchronize(); }
  Event create_event() override { return new EmulatedEvent; }
  void destroy_event(Event e) noexcept override { delete static_cast<EmulatedEvent*>(e); }

  void record(Event handle, Stream s) override {
    auto* e = static_cast<EmulatedEvent*>(handle);
    e->capture = of(s)->capture();
    if (e->capture) return;  // the list is in order already
    int64_t number = 0;
    {
      std::lock_guard lock(e->mutex);
      number = ++e->recorded;
    }
    of(s)->enqueue([e, number] {
      std::lock_guard lock(e->mutex);
      e->reached = number;
      e->changed.notify_all();
    });
    of(s)->start();
  }
  void wait(Stream s, Event handle) override {
    auto* e = static_cast<EmulatedEvent*>(handle);
    if (e->capture) {
      of(s)->capture_into(e->capture);
      return;
    }
    int64_t number = 0;
    {
      std::lock_guard lock(e->mutex);
      number = e->recorded;
    }
    of(s)->enqueue([e, number] {
      std::unique_lock lock(e->mutex);
      e->changed.wait(lock, [&] { return e->reached >= number; });
    });
  }

  void copy_in(Stream s, void* to, const void* from, std::size_t bytes) override {
    const auto* p = static_cast<const std::byte*>(from);
    of(s)->enqueue([to, copy = std::vector<std::byte>(p, p + bytes)] {
      if (!copy.empty()) std::memcpy(to, copy.data(), copy.size());
    });
  }
  void copy_out(Stream s, void* to, const void* from, std::size_t bytes) override {
    of(s)->synchronize();
    if (bytes) std::memcpy(to, from, bytes);
  }

  void gemm(Stream s, const DeviceGemm& g) override {
    of(s)->enqueue([g] { multiply(g); });
  }

  void begin_capture(Stream s) override { of(s)->capture_into(std::make_shared<WorkList>()); }
  std::unique_ptr<DeviceGraph> end_capture(Stream s) override {
    auto graph = std::make_unique<EmulatedGraph>();
    const std::shared_ptr<WorkList> list = of(s)->capture();
    graph->work = list;
    std::lock_guard lock(mutex_);
    for (EmulatedStream* stream : streams_)
      if (stream->capture() == list) stream->capture_into(nullptr);
    return graph;
  }
  void launch(const DeviceGraph& graph, Stream s) override {
    const auto work = static_cast<const EmulatedGraph&>(graph).work;
    of(s)->enqueue([work] {
      for (const auto& step : *work) step();
    });
  }

  void check(int status, const char* operation) override {
    MILLION_REQUIRE(status == 0, ErrorCode::kFailed, "{}: emulated launch failed with {}",
                    operation, status);
  }

 private:
  static constexpr int kMultiprocessors = 4;  ///< few parts: each costs the host a block of fibers
  /// Rows of w that are turned to f32 at once.
  static constexpr int kRows = 512;

  static EmulatedStream* of(Stream s) {
    return static_cast<EmulatedStream*>(static_cast<simt::Queue*>(s));
  }

  static void multiply(const DeviceGemm& g) {
    thread_local AlignedVector<float> x, w;
    x.resize(static_cast<size_t>(g.n) * g.k);
    w.resize(static_cast<size_t>(kRows) * g.k);
    million::ops().f16_to_f32(g.x, x.data(), x.size());
    for (int first = 0; first < g.m; first += kRows) {
      const int rows = g.m - first < kRows ? g.m - first : kRows;
      million::ops().f16_to_f32(g.w + static_cast<size_t>(first) * g.k, w.data(),
                                static_cast<size_t>(rows) * g.k);
      const float beta = g.accumulate ? 1.0f : 0.0f;
      const dnnl_status_t status = dnnl_sgemm('N', 'T', g.n, rows, g.k, 1.0f, x.data(), g.k,
                                              w.data(), g.k, beta, g.y + first, g.m);
      MILLION_ASSERT(status == dnnl_success);
    }
  }

  EmulatedDeviceOptions options_;
  DeviceInfo info_;
  mutable std::mutex mutex_;
  std::unordered_map<void*, std::size_t> sizes_;
  std::set<EmulatedStream*> streams_;
  uint64_t used_ = 0;
  int64_t n_allocations_ = 0;
};

}  // namespace

std::shared_ptr<Device> make_emulated_device(const EmulatedDeviceOptions& options) {
  return std::make_shared<EmulatedDevice>(options);
}

}  // namespace million
