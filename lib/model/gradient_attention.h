// SPDX-License-Identifier: Apache-2.0
// Exact causal attention of one window in f32 and its derivative, by tiles of query rows: a tile
// holds [kGradientTile][keys it sees] scores, never [n][n].
#pragma once

#include "lib/core/tensor.h"
#include "lib/quant/kv_types.h"

#include <cstdint>

namespace million {

inline constexpr int kGradientTile = 128;  ///< query rows of a tile

/// Rows of one window, q [n][n_heads][head_dim], k and v [n][n_kv_heads][head_dim], q and k after
/// RoPE.
struct AttentionRows {
  int n;
  const float *q, *k, *v;
};

/// out [n][n_heads][head_dim] = softmax(q k^T / sqrt(head_dim)) v, query i sees keys 0 to i.
void attention_forward(const KvGeometry& geometry, const AttentionRows& rows, float* out);

/// Derivatives of a loss from that of the output, `dout` [n][n_heads][head_dim]: dq as q, dk and dv
/// as k and v. With P the softmax, dP = dout v^T and D_i = sum_j P_ij dP_ij:
///   dv = P^T dout,  dS = P (dP - D) / sqrt(head_dim),  dq = dS k,  dk = dS^T q.
/// P is computed again (as in FlashAttention, arXiv 2205.14135, section 3.1). Bit-equal for every
/// number of threads: each query head sums its tiles in order, a group's heads are added in order.
void attention_backward(const KvGeometry& geometry, const AttentionRows& rows, const float* dout,
                        float* dq, float* dk, float* dv);

}  // namespace million
