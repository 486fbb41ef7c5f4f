// SPDX-License-Identifier: Apache-2.0
// Flash-decode attention on scalar codes: uniform, KIVI and llama.cpp's q8_0, q4_0, q4_1. Codes are
// turned to floats in registers, x = code * scale + zero, and used for all query heads of the
// group at once (kGroupHeads; further heads decode again). [KIVI], [llama.cpp]
#pragma once

#include "kernels/cpu/attention_dense.inl.h"

namespace million::MILLION_ISA {
namespace {

constexpr int kGroupHeads = kLanes == 16 ? 4 : 3;
constexpr int kRunVecs = kLanes == 16 ? 2 : 4;  ///< vectors of tokens of one channel, at most 32

/// Scales and zeros of a tile as floats: of token t and group g at [2 (t * groups + g)]; channels
/// instead of groups for GroupSide::kChannels, with t the group of tokens.
struct TileScales {
  alignas(64) float at[2 * kTile * kMaxRowGroups];
};

/// Rows of packed codes.
template <int kBits>
struct PackedRows {
  const GroupSide& side;
  const float* scales;
  int groups;  ///< of a row
  struct Row {
    const uint8_t* codes;
    const float* scales;
  };
  Row row(int t) const { return {side.codes + t * side.code_step, scales + 2 * t * groups}; }
  F get(const Row& row, int i) const {
    const float* s = row.scales + 2 * (i / side.group);
    return vfma(load_codes<kBits>(row.codes, i), set1(s[0]), set1(s[1]));
  }
};

/// Rows of ggml's blocks.
template <BlockType kType>
struct BlockRows {
  static constexpr int kBytes = static_cast<int>(block_shape(kType).bytes);
  static constexpr int kHead = kType == BlockType::kQ4_1 ? 4 : 2;
  const GroupSide& side;
  const float* scales;
  int groups;
  struct Row {
    const uint8_t* codes;
    const float* scales;
  };
  Row row(int t) const { return {side.codes + t * side.code_step, scales + 2 * t * groups}; }
  F get(const Row& row, int i) const {
    const uint8_t* block = row.codes + i / kBlockValues * kBytes + kHead;
    const float* s = row.scales + 2 * (i / kBlockValues);
    const int j = i % kBlockValues;
    if constexpr (kType == BlockType::kQ8_0) return load_s8(block + j) * set1(s[0]);
    return vfma(load_nibbles(block + j % 16, j / 16 * 4), set1(s[0]), set1(s[1]));
  }
};

/// Pairs of halves (or single ones) to (scale, zero - offset * scale).
inline void expand_scales(const GroupSide& side, const uint16_t* halves, int n, float* out) {
  for (int i = 0; i < n; ++i) {
    const float scale = half_value(halves[side.zeros ? 2 * i : i]);
    out[2 * i] = scale;
    out[2 * i + 1] = (side.zeros ? half_value(halves[2 * i + 1]) : 0.0f) -
                     scale * static_cast<float>(side.offset);
  }
}

/// Scales of n tokens of rows.
inline void row_scales(const GroupSide& side, int head_dim, int n, float* out) {
  if (side.layout == GroupSide::Layout::kTokens) {
    const int groups = head_dim / side.group;
    for (int t = 0; t < n; ++t, out += 2 * groups)
      expand_scales(side, side.scales + t * side.scale_step, groups, out);
    return;
  }
  const std::size_t bytes = block_shape(side.type).bytes;
  for (int t = 0; t < n; ++t)
    for (int b = 0; b < head_dim / kBlockValues; ++b, out += 2) {
      uint16_t half[2];
      __builtin_memcpy(half, side.codes + t * side.code_step + static_cast<std::size_t>(b) * bytes,
                       sizeof half);
      out[0] = half_value(half[0]);
      out[1] = side.type == BlockType::kQ4_1   ? half_value(half[1])
               : side.type == BlockType::kQ4_0 ? -8.0f * out[0]
                                               : 0.0f;
    }
}

/// Calls f with the rows of a side that is not kChannels.
template <class Use>
MILLION_INLINE void with_rows(const GroupSide& side, int head_dim, const float* scales,
                              const Use& use) {
  if (side.layout == GroupSide::Layout::kBlocks) {
    const int groups = head_dim / kBlockValues;
    if (side.type == BlockType::kQ8_0)
      use(BlockRows<BlockType::kQ8_0>{side, scales, groups});
    else if (side.type == BlockType::kQ4_0)
      use(BlockRows<BlockType::kQ4_0>{side, scales, groups});
    else
      use(BlockRows<BlockType::kQ4_1>{side, scales, groups});
    return;
  }
  const int groups = head_dim / side.group;
  switch (side.bits) {
    case 1:
      return use(PackedRows<1>{side, scales, groups});
    case 2:
      return use(PackedRows<2>{side, scales, groups});
    case 3:
      return use(PackedRows<3>{side, scales, groups});
    case 4:
      return use(PackedRows<4>{side, scales, groups});
    case 5:
      return use(PackedRows<5>{side, scales, groups});
    case 6:
      return use(PackedRows<6>{side, scales, groups});
    case 7:
      return use(PackedRows<7>{side, scales, groups});
    default:
      return use(PackedRows<8>{side, scales, groups});
  }
}

/// s [kHeads][kTile] of n tokens; four tokens at a time.
template <int kHeads, class Rows>
MILLION_INLINE void row_scores(const Rows& rows, int head_dim, int n, const float* q, float* s) {
  for (int t = 0; t < n; t += 4) {
    typename Rows::Row row[4];
    for (int j = 0; j < 4; ++j) row[j] = rows.row(t + j < n ? t + j : n - 1);
    F acc[kHeads][4];
    for (int h = 0; h < kHeads; ++h)
      for (int j = 0; j < 4; ++j) acc[h][j] = zero();
    for (int i = 0; i < head_dim; i += kLanes)
      for (int j = 0; j < 4; ++j) {
        const F key = rows.get(row[j], i);
        for (int h = 0; h < kHeads; ++h)
          acc[h][j] = vfma(key, load(q + h * head_dim + i), acc[h][j]);
      }
    for (int h = 0; h < kHeads; ++h)
      reduce_add4(s + h * kTile + t, acc[h][0], acc[h][1], acc[h][2], acc[h][3]);
  }
}

/// acc [kHeads][head_dim] += weights s [kHeads][kTile] times rows.
template <int kHeads, class Rows>
MILLION_INLINE void row_values(const Rows& rows, int head_dim, int n, const float* s, float* acc) {
  constexpr int kVecs = 32 / kLanes < kColumnVecs ? 32 / kLanes : kColumnVecs;
  for (int i = 0; i < head_dim; i += kVecs * kLanes) {
    F sum[kHeads][kVecs];
    for (int h = 0; h < kHeads; ++h)
      for (int c = 0; c < kVecs; ++c) sum[h][c] = load(acc + h * head_dim + i + c * kLanes);
    for (int t = 0; t < n; ++t) {
      const auto row = rows.row(t);
      for (int c = 0; c < kVecs; ++c) {
        const F value = rows.get(row, i + c * kLanes);
        for (int h = 0; h < kHeads; ++h) sum[h][c] = vfma(value, set1(s[h * kTile + t]), sum[h][c]);
      }
    }
    for (int h = 0; h < kHeads; ++h)
      for (int c = 0; c < kVecs; ++c) store(acc + h * head_dim + i + c * kLanes, sum[h][c]);
  }
}

/// row_scores over channels [head_dim][packed tokens]; `first` is the place of the tile's first
/// token in its group, 32 tokens of one group at a time.
template <int kHeads, int kBits>
MILLION_INLINE void channel_scores(const GroupSide& side, const float* scales, int head_dim,
                                   int first, int n, const float* q, float* s) {
  const int run_bytes = (side.group * kBits + 7) / 8;
  for (int t = 0; t < n; t += kRunVecs * kLanes) {
    const int group = (first + t) / side.group, place = (first + t) % side.group;
    const uint8_t* run = side.codes + group * side.code_step;
    const float* scale =
        scales + 2 * static_cast<std::ptrdiff_t>(group - first / side.group) * head_dim;
    F acc[kHeads][kRunVecs];
    for (int h = 0; h < kHeads; ++h)
      for (int v = 0; v < kRunVecs; ++v) acc[h][v] = zero();
    for (int c = 0; c < head_dim; ++c, run += run_bytes, scale += 2) {
      const F step = set1(scale[0]), zero_point = set1(scale[1]);
      for (int v = 0; v < kRunVecs; ++v) {
        const F key = vfma(load_codes<kBits>(run, place + v * kLanes), step, zero_point);
        for (int h = 0; h < kHeads; ++h)
          acc[h][v] = vfma(key, set1(q[h * head_dim + c]), acc[h][v]);
      }
    }
    for (int h = 0; h < kHeads; ++h)
      for (int v = 0; v < kRunVecs; ++v) store(s + h * kTile + t + v * kLanes, acc[h][v]);
  }
}

template <int kHeads>
void channel_scores(const GroupSide& side, const float* scales, int head_dim, int first, int n,
                    const float* q, float* s) {
  switch (side.bits) {
    case 1:
      return channel_scores<kHeads, 1>(side, scales, head_dim, first, n, q, s);
    case 2:
      return channel_scores<kHeads, 2>(side, scales, head_dim, first, n, q, s);
    case 3:
      return channel_scores<kHeads, 3>(side, scales, head_dim, first, n, q, s);
    case 4:
      return channel_scores<kHeads, 4>(side, scales, head_dim, first, n, q, s);
    case 5:
      return channel_scores<kHeads, 5>(side, scales, head_dim, first, n, q, s);
    case 6:
      return channel_scores<kHeads, 6>(side, scales, head_dim, first, n, q, s);
    case 7:
      return channel_scores<kHeads, 7>(side, scales, head_dim, first, n, q, s);
    default:
      return channel_scores<kHeads, 8>(side, scales, head_dim, first, n, q, s);
  }
}

/// A tile of both sides and its scales.
struct GroupTile {
  GroupSide k, v;
  int head_dim, first, n;  ///< first: place of token 0 in its group of tokens, for kChannels
  const float *k_scales, *v_scales;
};

template <int kHeads>
void attend_group_tile(const GroupTile& tile, const float* q, SoftmaxState* state, float* acc) {
  alignas(64) float s[kHeads * kTile];
  const int d = tile.head_dim, n = tile.n;
  if (tile.k.layout == GroupSide::Layout::kChannels)
    channel_scores<kHeads>(tile.k, tile.k_scales, d, tile.first, n, q, s);
  else
    with_rows(tile.k, d, tile.k_scales,
              [&](const auto& rows) { row_scores<kHeads>(rows, d, n, q, s); });
  for (int h = 0; h < kHeads; ++h)
    scale_row(acc + h * d, row_weights(s + h * kTile, n, 1.0f, state[h]), d);
  with_rows(tile.v, d, tile.v_scales,
            [&](const auto& rows) { row_values<kHeads>(rows, d, n, s, acc); });
}

template <int kHeads>
inline void attend_group_heads(int n_heads, const GroupTile& tile, const float* q,
                               SoftmaxState* state, float* acc) {
  if (n_heads >= kHeads) {
    attend_group_tile<kHeads>(tile, q, state, acc);
  } else if constexpr (kHeads > 1) {
    attend_group_heads<kHeads - 1>(n_heads, tile, q, state, acc);
  }
}

void attend_groups(const GroupAttendArgs& args) {
  TileScales k_scales, v_scales;
  const int d = args.head_dim;
  for (int t = 0; t < args.n_tokens; t += kTile) {
    GroupTile tile{
        args.k,      args.v,     d, 0, args.n_tokens - t < kTile ? args.n_tokens - t : kTile,
        k_scales.at, v_scales.at};
    if (tile.k.layout == GroupSide::Layout::kChannels) {
      const int group = t / tile.k.group, last = (t + tile.n - 1) / tile.k.group;
      tile.first = t % tile.k.group;
      tile.k.codes += group * tile.k.code_step;
      for (int g = group; g <= last; ++g)
        expand_scales(tile.k, tile.k.scales + g * tile.k.scale_step, d,
                      k_scales.at + 2 * (g - group) * d);
    } else {
      tile.k.codes += t * tile.k.code_step;
      if (tile.k.scales) tile.k.scales += t * tile.k.scale_step;
      row_scales(tile.k, d, tile.n, k_scales.at);
    }
    tile.v.codes += t * tile.v.code_step;
    if (tile.v.scales) tile.v.scales += t * tile.v.scale_step;
    row_scales(tile.v, d, tile.n, v_scales.at);
    for (int h = 0; h < args.n_group; h += kGroupHeads)
      attend_group_heads<kGroupHeads>(args.n_group - h, tile, args.q + h * d, args.state + h,
                                      args.acc + h * d);
  }
}

}  // namespace
}  // namespace million::MILLION_ISA
