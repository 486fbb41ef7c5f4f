// SPDX-License-Identifier: Apache-2.0
// Software prefetch that keeps pace with the work.
#pragma once

#include <cstddef>
#include <cstdint>

namespace million::MILLION_ISA {
namespace {

/// Brings the bytes that come next towards the core while others are worked on, a few lines per
/// step: blocks and tiles lie apart, which no hardware prefetcher follows. kLevel 3: into L1, 2:
/// L2.
template <int kLevel = 2>
struct PrefetchAhead {
  const uint8_t *at, *end;
  int lines_per_step = 0;
  PrefetchAhead(const void* from, std::size_t bytes, int n_steps)
      : at(static_cast<const uint8_t*>(from)), end(from ? at + bytes : at) {
    if (n_steps > 0) lines_per_step = static_cast<int>((bytes + 63) / 64) / n_steps + 1;
  }
  void step() {
    if (at >= end) return;
    for (int i = 0; i < lines_per_step; ++i, at += 64) __builtin_prefetch(at, 0, kLevel);
  }
};

}  // namespace
}  // namespace million::MILLION_ISA
