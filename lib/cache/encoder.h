// SPDX-License-Identifier: Apache-2.0
// Runs encoding jobs in order: at once in the caller, or on one background thread while decoding
// goes on.
#pragma once

#include "lib/core/tensor.h"

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

namespace million {

/// Rows x [n][n_kv_heads][head_dim] copied out of the window, so that the job shares nothing with
/// it.
struct EncodeJob {
  AlignedVector<float> x;
  int n = 0;
  int64_t first_token = 0;
  std::function<void(EncodeJob&)> run;
};

class BlockEncoder {
 public:
  explicit BlockEncoder(bool async);
  ~BlockEncoder();
  BlockEncoder(const BlockEncoder&) = delete;
  BlockEncoder& operator=(const BlockEncoder&) = delete;

  bool async() const { return thread_.joinable(); }
  /// Runs the job now (synchronous) or queues it until allow() or wait() lets it start; the
  /// returned ticket is for wait().
  int64_t submit(EncodeJob job);
  /// Lets n more queued jobs start. A block's jobs at once would take a core from one decoding
  /// step; the caller spreads them over the steps until their codes are needed.
  void allow(int64_t n);
  /// Lets the job of `ticket` and all before it start and returns when they are done; rethrows the
  /// first exception of a job. Ticket 0 is always done.
  void wait(int64_t ticket);
  /// Time of all jobs so far.
  double run_ms() const { return 1e-6 * static_cast<double>(run_ns_.load()); }

 private:
  void loop();
  void run(EncodeJob& job);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<EncodeJob> queue_;
  int64_t submitted_ = 0, allowed_ = 0, started_ = 0, done_ = 0;
  std::atomic<int64_t> run_ns_{0};
  bool stop_ = false;
  std::exception_ptr error_;
  std::thread thread_;
};

}  // namespace million
