// SPDX-License-Identifier: Apache-2.0
// One query over exact rows: sinks, window, or a whole fp16 cache.
#pragma once

#include "kernels/online_softmax.h"
#include "lib/cache/exact_run.h"
#include "lib/quant/kv_types.h"

#include <cstdint>

namespace million {

/// n tokens of one KV head from rows k_at and v_at on against the group's queries q
/// [group][head_dim], scaled and after RoPE; merged into state [group] and acc [group][head_dim].
/// Works in pieces without a gap on either side.
void attend_exact(const KvGeometry& geometry, const ExactRun& k, int64_t k_at, const ExactRun& v,
                  int64_t v_at, int64_t n, int head, const float* q, SoftmaxState* state,
                  float* acc);

}  // namespace million
