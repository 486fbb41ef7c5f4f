// SPDX-License-Identifier: Apache-2.0
// One query over exact rows: sinks, window, or a whole fp16 cache.
#pragma once

#include "kernels/online_softmax.h"
#include "lib/cache/exact_run.h"
#include "lib/cache/kind_cache.h"
#include "lib/quant/kv_types.h"

#include <cstdint>

namespace million {

/// n tokens of one KV head from rows k_at and v_at on against the group's queries q
/// [group][head_dim], scaled and after RoPE; merged into state [group] and acc [group][head_dim].
/// Works in pieces without a gap on either side.
void attend_exact(const KvGeometry& geometry, const ExactRun& k, int64_t k_at, const ExactRun& v,
                  int64_t v_at, int64_t n, int head, const float* q, SoftmaxState* state,
                  float* acc);

/// Whether the stores of both kinds keep halves that lie where a query meets them. The caller holds
/// both mutexes, here and below.
bool can_attend_halves(const KindCache& k, const KindCache& v);
/// attend_exact over tokens [begin, end) of such stores.
void attend_halves(const KvGeometry& geometry, const KindCache& k, const KindCache& v, int head,
                   int64_t begin, int64_t end, const float* q, SoftmaxState* state, float* acc);

}  // namespace million
