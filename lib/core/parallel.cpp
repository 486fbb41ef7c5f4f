// SPDX-License-Identifier: Apache-2.0
#include "lib/core/parallel.h"

#include "lib/core/error.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <exception>

namespace million {
namespace {

/// Keeps the first exception of a parallel region; exceptions must not leave an OpenMP thread.
class FirstError {
 public:
  template <class F>
  void run(const F& f) {
    if (failed_.load(std::memory_order_relaxed)) return;
    try {
      f();
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
  }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;
};

}  // namespace

void set_threads(int n) {
  MILLION_REQUIRE(n >= 1 && n <= 1024, ErrorCode::kUsage, "--threads: got {}, expected 1 to 1024",
                  n);
  omp_set_num_threads(n);
  omp_set_max_active_levels(1);
}

int threads() { return omp_get_max_threads(); }

void parallel_for(int64_t n, const std::function<void(int64_t)>& body) {
  if (n <= 1 || omp_in_parallel() || threads() == 1) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
  FirstError first;
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t i = 0; i < n; ++i) first.run([&] { body(i); });
  first.rethrow();
}

void parallel_ranges(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  const int64_t parts = omp_in_parallel() ? 1 : threads();
  const int64_t units = (n + grain - 1) / grain;
  if (parts == 1 || units <= 1) {
    if (n > 0) body(0, n);
    return;
  }
  FirstError first;
#pragma omp parallel for schedule(static, 1)
  for (int64_t p = 0; p < parts; ++p) {
    const int64_t begin = std::min(n, units * p / parts * grain);
    const int64_t end = std::min(n, units * (p + 1) / parts * grain);
    if (begin < end) first.run([&] { body(begin, end); });
  }
  first.rethrow();
}

}  // namespace million
