// SPDX-License-Identifier: Apache-2.0
// The only definition of the online softmax: a running maximum and sum, and how two parts of the
// same row merge [FA2]. The unnormalised output that belongs to a state is
//   acc[i] = sum_j exp(s_j - max) v_j[i],   so   out[i] = acc[i] / sum.
#pragma once

#include "kernels/hd.h"

#include <cmath>

namespace million {

struct SoftmaxState {
  float max = -INFINITY;
  float sum = 0.0f;

  /// Raises the maximum to include `score_max`; returns the factor that acc and sum were scaled by
  /// (the caller scales acc). 1 for an empty part, 0 when the state was empty.
  MILLION_HD float rescale(float score_max) {
    if (score_max <= max) return 1.0f;
    const float factor = max == -INFINITY ? 0.0f : std::exp(max - score_max);
    max = score_max;
    sum *= factor;
    return factor;
  }
};

/// (a, acc_a) <- merge of both parts; an empty part (max = -inf, sum = 0) changes nothing.
MILLION_HD inline void merge_softmax(SoftmaxState& a, float* acc_a, const SoftmaxState& b,
                                     const float* acc_b, int n) {
  if (b.sum == 0.0f) return;
  const float factor_a = a.rescale(b.max);
  const float factor_b = std::exp(b.max - a.max);
  a.sum += b.sum * factor_b;
  for (int i = 0; i < n; ++i) acc_a[i] = acc_a[i] * factor_a + acc_b[i] * factor_b;
}

}  // namespace million
