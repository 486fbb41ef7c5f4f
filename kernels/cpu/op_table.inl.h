// SPDX-License-Identifier: Apache-2.0
// The table of one instruction set; last of the bodies. MILLION_ATTEND_PQ
// and MILLION_ATTEND_CODED, MILLION_CODED_ROWS name the attention on codes.
#pragma once

#include "kernels/cpu/attend_tile.inl.h"
#include "kernels/cpu/attention_dense.inl.h"
#include "kernels/cpu/attention_groups.inl.h"
#include "kernels/cpu/attention_pq.inl.h"
#include "kernels/cpu/elementwise.inl.h"
#include "kernels/cpu/pq_encode.inl.h"
#include "kernels/cpu/softmax_tile.inl.h"
#include "kernels/cpu/weights.inl.h"
#include "kernels/ops.h"

namespace million::MILLION_ISA {

extern const Ops kOps;
const Ops kOps = {
    MILLION_ISA_NAME,
    f16_to_f32,
    f32_to_f16,
    bf16_to_f32,
    f32_to_bf16,
    dot,
    multiply_rows,
    add,
    swiglu,
    rmsnorm,
    rope_row,
    logsumexp,
    dequant_row,
    quantize_a8,
    gemv_a8,
    attend_f16,
    attend_f32,
    MILLION_ATTEND_PQ,
    MILLION_ATTEND_CODED,
    attend_groups,
    MILLION_CODED_ROWS,
    softmax_tile,
    attend_tile,
    pq_encode,
};

}  // namespace million::MILLION_ISA
