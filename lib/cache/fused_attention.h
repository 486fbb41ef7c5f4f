// SPDX-License-Identifier: Apache-2.0
// One query over codes in a basis with the fused kernel (kernels/ops.h, attend_coded): all query
// heads of a unit of KV heads at once, sums in the coordinates of the codes.
#pragma once

#include "kernels/online_softmax.h"
#include "lib/cache/kind_cache.h"
#include "lib/core/rope.h"

#include <cstdint>

namespace million {

/// Units of KV heads of a layer that the kernel can serve; 0: it cannot (instruction set, shape,
/// frame).
int fused_units(const KvGeometry& geometry, const KindCache& k, const KindCache& v);

/// Axes of a unit's sums, when there are fused units.
int fused_rank(const KindCache& v);

/// What the value pass may leave out, and what it left out.
struct SkipRule {
  float share = 0.0f;            ///< 64 tokens of a head with less than this share of the weight
  const float* floor = nullptr;  ///< [n_heads] lower bounds of log(sum of exp(score)), or nullptr
};

/// Tokens [begin, end) behind the sinks, coded in both kinds, against the query heads of one unit;
/// q [n_heads][head_dim] of the whole layer, scaled and after RoPE. Merged into state [heads of the
/// unit] and sums [heads of the unit][rank]. `stats` is added to. The caller holds both
/// mutexes shared; the other functions here take them.
void attend_fused(const KvGeometry& geometry, const RopeTable& rope, const KindCache& k,
                  const KindCache& v, int unit, int64_t begin, int64_t end, const float* q,
                  const SkipRule& skip, SoftmaxState* state, float* sums, AttendStats* stats);

/// Sums of values [heads of the unit][rank] back to channels: rows [heads of the unit][head_dim].
void fused_value_rows(const KvGeometry& geometry, const KindCache& v, int unit, float* sums,
                      float* rows);

}  // namespace million
