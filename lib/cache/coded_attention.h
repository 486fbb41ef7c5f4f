// SPDX-License-Identifier: Apache-2.0
// One query over codes in a basis (lib/quant/pq_basis.h): scores and sums stay in the coordinates
// of the codes. The query is turned to the frame and into the basis once for each run of tokens
// with one distance to their frame (a block of the frame), the sum of values is turned back once.
#pragma once

#include "kernels/online_softmax.h"
#include "lib/cache/kind_cache.h"

#include <cstdint>

namespace million {

/// True when both kinds can be attended to this way with runs long enough to pay.
bool can_attend_coded(const KindCache& k, const KindCache& v);

/// Tokens [begin, end) behind the sinks, coded in both kinds, of one KV head against its group's
/// queries q [group][head_dim], scaled and after RoPE; merged into state [group] and acc
/// [group][head_dim].
void attend_coded(const KvGeometry& geometry, const KindCache& k, const KindCache& v, int head,
                  int64_t begin, int64_t end, const float* q, SoftmaxState* state, float* acc);

}  // namespace million
