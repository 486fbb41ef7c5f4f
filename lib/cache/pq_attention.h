// SPDX-License-Identifier: Apache-2.0
// One query over product codes of keys after RoPE with the fused kernel attend_pq (kernels/ops.h).
#pragma once

#include "kernels/online_softmax.h"
#include "lib/cache/fused_attention.h"
#include "lib/cache/kind_cache.h"

#include <cstdint>

namespace million {

/// The queries of one KV head's group.
struct HeadQuery {
  int head;        ///< KV head
  int64_t number;  ///< of the query and layer, from next_query_number()
  const float* q;  ///< [group][head_dim], scaled and after RoPE
};

/// A number that no other query of the process has.
int64_t next_query_number();

/// True when both kinds keep codes that the kernel reads.
bool can_attend_pq(const KindCache& k, const KindCache& v);

/// Tokens [begin, end) behind the sinks, coded in both kinds; merged into state [group] and acc
/// [group][head_dim]. A thread keeps the tables of its last query for the next part of the same
/// head. `stats` is added to.
void attend_pq_codes(const KvGeometry& geometry, const KindCache& k, const KindCache& v,
                     const HeadQuery& query, int64_t begin, int64_t end, const SkipRule& skip,
                     SoftmaxState* state, float* acc, AttendStats* stats);

}  // namespace million
