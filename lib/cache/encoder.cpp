// SPDX-License-Identifier: Apache-2.0
#include "lib/cache/encoder.h"

#include "lib/core/parallel.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace million {

BlockEncoder::BlockEncoder(bool async) {
  if (async) thread_ = std::thread([this] { loop(); });
}

BlockEncoder::~BlockEncoder() {
  if (!thread_.joinable()) return;
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

int64_t BlockEncoder::submit(EncodeJob job) {
  if (!async()) {
    run(job);
    return 0;
  }
  std::lock_guard lock(mutex_);
  queue_.push_back(std::move(job));
  return ++submitted_;
}

void BlockEncoder::allow(int64_t n) {
  if (!async()) return;
  {
    std::lock_guard lock(mutex_);
    if (allowed_ == submitted_) return;
    allowed_ = std::min(submitted_, allowed_ + n);
  }
  changed_.notify_all();
}

void BlockEncoder::wait(int64_t ticket) {
  std::unique_lock lock(mutex_);
  if (ticket > allowed_) {
    allowed_ = ticket;
    changed_.notify_all();
  }
  changed_.wait(lock, [&] { return done_ >= ticket; });
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void BlockEncoder::run(EncodeJob& job) {
  const auto start = std::chrono::steady_clock::now();
  job.run(job);
  run_ns_ += std::chrono::nanoseconds(std::chrono::steady_clock::now() - start).count();
}

void BlockEncoder::loop() {
  set_threads(1);  // a second OpenMP team would fight with the decoder's over the cores
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stop_ || started_ < allowed_; });
    if (stop_) return;
    ++started_;
    EncodeJob job = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    std::exception_ptr error;
    try {
      run(job);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    if (error && !error_) error_ = error;
    ++done_;
    changed_.notify_all();
  }
}

}  // namespace million
