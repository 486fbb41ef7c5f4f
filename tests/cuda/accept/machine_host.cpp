// SPDX-License-Identifier: Apache-2.0
#include "tests/cuda/accept/machine.h"

#include <algorithm>
#include <chrono>
#include <cstring>

namespace million::cuda::bench {

bool find_machine(Machine& m, std::string&) {
  m.name = "emulated on the host", m.compute_major = 9;
  m.n_multiprocessors = 4, m.shared_per_block = 227 * 1024;
  m.memory_bytes = m.free_bytes = std::size_t{128} << 20;
  return true;
}

void repeat(void* p, std::size_t have, std::size_t bytes) {
  auto* to = static_cast<unsigned char*>(p);
  for (; have < bytes; have += std::min(have, bytes - have))
    std::memcpy(to + have, to, std::min(have, bytes - have));
}

/// Every call once.
Time time_calls(int n_calls, const Call& call) {
  const auto begin = std::chrono::steady_clock::now();
  Time time;
  for (int i = 0; i < n_calls; ++i)
    if (const int status = call(nullptr, i); status != 0) time.error = "launch failed";
  const std::chrono::duration<double, std::micro> us = std::chrono::steady_clock::now() - begin;
  if (time.error.empty()) time.us = time.least_us = us.count() / n_calls;
  return time;
}

double read_gb_s(const void* p, std::size_t bytes) {
  const auto* from = static_cast<const unsigned char*>(p);
  volatile unsigned sum = 0;
  const auto begin = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < bytes; i += 64) sum = sum + from[i];
  const std::chrono::duration<double> s = std::chrono::steady_clock::now() - begin;
  return static_cast<double>(bytes) / 1e9 / s.count();
}

}  // namespace million::cuda::bench
