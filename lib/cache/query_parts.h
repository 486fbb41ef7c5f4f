// SPDX-License-Identifier: Apache-2.0
// How the tokens behind the sinks are cut into work items for one query: a function of what is
// coded alone, so that the order of merging does not depend on the number of threads.
#pragma once

#include "kernels/layout.h"
#include "lib/cache/kind_cache.h"

#include <algorithm>
#include <cstdint>

namespace million {

struct QueryParts {
  QueryParts(const KindCache& k, const KindCache& v)
      : low(std::min(k.sealed(), v.sealed())),
        high(std::max(k.sealed(), v.sealed())),
        end(k.sealed() + k.window().size()),
        coded_size(size_of(high)),
        exact_size(size_of(end - high)),
        both(count(low, coded_size)),
        one(count(high - low, coded_size)),
        exact(std::max<int64_t>(1, count(end - high, exact_size))) {}

  int64_t total() const { return both + one + exact; }

  int64_t low, high, end;  ///< tokens [0, low) are coded, [low, high) half coded, [high, end) exact
  int64_t coded_size, exact_size;  ///< tokens of a part, multiples of kPqBlock
  int64_t both, one, exact;        ///< parts of each

 private:
  /// An eighth: threads share the work evenly, and long parts pay for what a call costs.
  static int64_t size_of(int64_t tokens) {
    constexpr int64_t kLongest = 16 * kPqBlock;
    const int64_t eighth = (tokens / 8 + kPqBlock - 1) / kPqBlock * kPqBlock;
    return std::clamp<int64_t>(eighth, kPqBlock, kLongest);
  }
  static int64_t count(int64_t tokens, int64_t size) { return (tokens + size - 1) / size; }
};

}  // namespace million
