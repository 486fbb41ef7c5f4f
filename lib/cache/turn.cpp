// SPDX-License-Identifier: Apache-2.0
#include "lib/cache/turn.h"

#include "kernels/ops.h"
#include "lib/core/error.h"

#include <array>

namespace million {

void turn_rows(const RopeTable& rope, float* rows, int n, int head_dim, int64_t by) {
  constexpr int kMaxPairs = 256;  // as in Rope
  if (by == 0) return;
  std::array<float, kMaxPairs> negative;
  const int n_pairs = rope.n_pairs();
  MILLION_ASSERT(n_pairs <= kMaxPairs && (by < 0 ? -by : by) < rope.n_positions());
  const float* sines = rope.sines(by < 0 ? -by : by);
  if (by < 0) {
    for (int p = 0; p < n_pairs; ++p) negative[p] = -sines[p];
    sines = negative.data();
  }
  for (int i = 0; i < n; ++i)
    ops().rope_row(rows + static_cast<int64_t>(i) * head_dim, rope.cosines(by < 0 ? -by : by),
                   sines, n_pairs, rope.adjacent());
}

}  // namespace million
