// SPDX-License-Identifier: Apache-2.0
// Attention over the parts of a cached sequence. A chunk of queries is matrix work on tiles
// of fixed shape that start at position 0, so a row's result does not depend on which chunk it is
// in; a single query goes through the fused kernels.
#pragma once

#include "lib/core/rope.h"
#include "lib/core/tensor.h"
#include "lib/quant/kv_types.h"

#include <cstdint>
#include <functional>

namespace million {

inline constexpr int kKeyTile = 256;  ///< keys per tile; f32 K and V are padded to a multiple
inline constexpr int kQueryTile =
    64;  ///< query positions per tile (times the group's heads = rows)

/// f32 rows of all KV heads for positions [0, padded): [n_kv_heads][padded][head_dim], zero where
/// nothing was written.
class TileRows {
 public:
  void reset(int n_kv_heads, int head_dim, int64_t n_positions);
  float* at(int head, int64_t position) {
    return data_.data() + (head * padded_ + position) * head_dim_;
  }
  const float* at(int head, int64_t position) const {
    return data_.data() + (head * padded_ + position) * head_dim_;
  }
  bool empty() const { return data_.empty(); }

 private:
  int head_dim_ = 0;
  int64_t padded_ = 0;
  AlignedVector<float> data_;
};

/// What a chunk of queries sees. Query at position i (first <= i < first + n) sees the keys of
/// positions [0, key_boundary(i)) in coded_k, [key_boundary(i), i] in exact_k, and values likewise;
/// boundaries never fall. The sinks are exact wherever they are read. With SelfExtend it meets
/// positions [0, far_end(i)) as a far query, exact ones in far_k; a boundary beyond far_end(i)
/// counts as far_end(i).
struct ChunkView {
  const TileRows* exact_k;
  const TileRows* exact_v;
  const TileRows* far_k;    ///< exact keys at their grouped positions; exact_k without SelfExtend
  const TileRows* coded_k;  ///< keys after RoPE; the sinks among them exact
  const TileRows* coded_v;
  const RopeTable* rope;  ///< turns queries to where they meet far keys
  int64_t first;
  int n;
  bool any_coded;  ///< false: no query sees codes, and the sinks are in the exact rows
  std::function<int64_t(int64_t)> key_boundary, value_boundary;  ///< min(sinks, i + 1) .. i + 1
  bool bf16_products = false;  ///< attend_tile_bf16 where this CPU has it
};

/// Causal attention of a chunk: q, out [n][n_heads][head_dim], q after RoPE.
void attend_chunk(const KvGeometry& geometry, const ChunkView& view, const float* q, float* out);

}  // namespace million
