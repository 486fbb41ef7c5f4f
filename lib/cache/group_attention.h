// SPDX-License-Identifier: Apache-2.0
// One query over scalar codes (uniform, KIVI, llama.cpp's types) with the fused kernel
// attend_groups (kernels/ops.h), run by run of tokens whose codes lie together.
#pragma once

#include "kernels/online_softmax.h"
#include "lib/cache/kind_cache.h"

#include <cstdint>

namespace million {

/// True when both kinds keep codes that the kernel reads and keys lie after RoPE.
bool can_attend_groups(const KvGeometry& geometry, const KindCache& k, const KindCache& v);

/// As attend_coded (coded_attention.h).
void attend_groups(const KvGeometry& geometry, const KindCache& k, const KindCache& v, int head,
                   int64_t begin, int64_t end, const float* q, SoftmaxState* state, float* acc);

}  // namespace million
