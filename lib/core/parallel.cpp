// SPDX-License-Identifier: Apache-2.0
#include "lib/core/parallel.h"

#include "lib/core/error.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>
#include <vector>

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

#if defined(__SANITIZE_THREAD__)
// GCC's OpenMP runtime is not instrumented: its barriers look like races. Under ThreadSanitizer the
// same bodies run on plain threads, so that races between them are found.
thread_local bool t_in_team = false;
bool in_team() { return t_in_team; }

template <class F>
void run_team(int n_threads, const F& body) {
  std::vector<std::thread> team;
  for (int i = 0; i < n_threads; ++i)
    team.emplace_back([&body, i] {
      t_in_team = true;
      body(i);
    });
  for (std::thread& t : team) t.join();
}
#else
bool in_team() { return omp_in_parallel(); }

template <class F>
void run_team(int n_threads, const F& body) {
#pragma omp parallel for schedule(static, 1) num_threads(n_threads)
  for (int i = 0; i < n_threads; ++i) body(i);
}
#endif

}  // namespace

void set_threads(int n) {
  MILLION_REQUIRE(n >= 1 && n <= 1024, ErrorCode::kUsage, "--threads: got {}, expected 1 to 1024",
                  n);
  omp_set_num_threads(n);
  omp_set_max_active_levels(1);
}

int threads() { return omp_get_max_threads(); }

void parallel_for(int64_t n, const std::function<void(int64_t)>& body) {
  if (n <= 1 || in_team() || threads() == 1) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
  FirstError first;
  std::atomic<int64_t> next{0};
  run_team(threads(), [&](int) {  // always the whole team: OpenMP keeps its threads
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;)
      first.run([&] { body(i); });
  });
  first.rethrow();
}

void parallel_runs(int64_t n, const std::function<void(int64_t)>& body) {
  if (n <= 1 || in_team() || threads() == 1) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
  struct alignas(64) Share {  // own cache lines
    std::atomic<int64_t> next;
    int64_t end;
  };
  const int parts = threads();
  std::vector<Share> shares(static_cast<size_t>(parts));
  for (int p = 0; p < parts; ++p) {
    shares[static_cast<size_t>(p)].next = n * p / parts;
    shares[static_cast<size_t>(p)].end = n * (p + 1) / parts;
  }
  FirstError first;
  run_team(parts, [&](int own) {
    for (int p = 0; p < parts; ++p) {
      Share& share = shares[static_cast<size_t>((own + p) % parts)];
      for (int64_t i; (i = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;)
        first.run([&] { body(i); });
    }
  });
  first.rethrow();
}

void parallel_ranges(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  const int64_t parts = in_team() ? 1 : threads();
  const int64_t units = (n + grain - 1) / grain;
  if (parts == 1 || units <= 1) {
    if (n > 0) body(0, n);
    return;
  }
  FirstError first;
  run_team(static_cast<int>(parts), [&](int p) {
    const int64_t begin = std::min(n, units * p / parts * grain);
    const int64_t end = std::min(n, units * (p + 1) / parts * grain);
    if (begin < end) first.run([&] { body(begin, end); });
  });
  first.rethrow();
}

}  // namespace million
