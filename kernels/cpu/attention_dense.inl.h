// SPDX-License-Identifier: Apache-2.0
// Flash-decode attention of one KV head's query group over exact rows (f16 or f32): 64-token tiles,
// scores, online softmax, values. Every row comes from memory once; heads are taken kHeadBatch at a
// time so that their accumulators stay in registers, and later batches find the tile in L1. [FA2]
#pragma once

#include "kernels/cpu/prefetch.inl.h"
#include "kernels/cpu/softmax_tile.inl.h"
#include "kernels/ops.h"

namespace million::MILLION_ISA {
namespace {

constexpr int kTile = 64;
constexpr int kMaxGroup = 16;

struct F16Rows {
  using Value = uint16_t;
  static F get(const uint16_t* p) { return load_f16(p); }
  static F get_part(const uint16_t* p, int n) { return load_f16_part(p, n); }
};
struct F32Rows {
  using Value = float;
  static F get(const float* p) { return load(p); }
  static F get_part(const float* p, int n) { return load_part(p, n); }
};

/// s[h][t] = q[h] . k[t] for n <= kTile tokens; s [kHeads][kTile], lanes beyond n may be written.
template <class Rows, int kHeads>
MILLION_INLINE void score_tile(const typename Rows::Value* k, int head_dim, int n, const float* q,
                               float* s, PrefetchAhead<3>& next) {
  for (int t = 0; t < n; t += 4) {
    next.step();
    const typename Rows::Value* row[4];
    for (int j = 0; j < 4; ++j)
      row[j] = k + static_cast<std::ptrdiff_t>(t + j < n ? t + j : n - 1) * head_dim;
    F acc[kHeads][4];
    for (int h = 0; h < kHeads; ++h)
      for (int j = 0; j < 4; ++j) acc[h][j] = zero();
    int i = 0;
    for (; i + kLanes <= head_dim; i += kLanes) {
      F key[4];
      for (int j = 0; j < 4; ++j) key[j] = Rows::get(row[j] + i);
      for (int h = 0; h < kHeads; ++h) {
        const F query = load(q + h * head_dim + i);
        for (int j = 0; j < 4; ++j) acc[h][j] = vfma(key[j], query, acc[h][j]);
      }
    }
    if (i < head_dim) {
      for (int h = 0; h < kHeads; ++h) {
        const F query = load_part(q + h * head_dim + i, head_dim - i);
        for (int j = 0; j < 4; ++j)
          acc[h][j] = vfma(Rows::get_part(row[j] + i, head_dim - i), query, acc[h][j]);
      }
    }
    for (int h = 0; h < kHeads; ++h)
      reduce_add4(s + h * kTile + t, acc[h][0], acc[h][1], acc[h][2], acc[h][3]);
  }
}

/// acc[h][column...] += sum_t p[h][t] v[t][column...] for kColumns vectors of columns.
template <class Rows, int kHeads, int kColumns>
MILLION_INLINE void value_columns(const typename Rows::Value* v, int head_dim, int n,
                                  const float* p, float* acc, PrefetchAhead<3>& next) {
  F sum[kHeads][kColumns];
  for (int h = 0; h < kHeads; ++h)
    for (int c = 0; c < kColumns; ++c) sum[h][c] = load(acc + h * head_dim + c * kLanes);
  for (int t = 0; t < n; ++t, v += head_dim) {
    if (t % 4 == 0) next.step();
    F value[kColumns];
    for (int c = 0; c < kColumns; ++c) value[c] = Rows::get(v + c * kLanes);
    for (int h = 0; h < kHeads; ++h) {
      const F weight = set1(p[h * kTile + t]);
      for (int c = 0; c < kColumns; ++c) sum[h][c] = vfma(weight, value[c], sum[h][c]);
    }
  }
  for (int h = 0; h < kHeads; ++h)
    for (int c = 0; c < kColumns; ++c) store(acc + h * head_dim + c * kLanes, sum[h][c]);
}

template <class Rows, int kHeads>
inline void value_tail(const typename Rows::Value* v, int head_dim, int n, int width,
                       const float* p, float* acc) {
  for (int h = 0; h < kHeads; ++h) {
    F sum = load_part(acc + h * head_dim, width);
    for (int t = 0; t < n; ++t)
      sum = vfma(set1(p[h * kTile + t]),
                 Rows::get_part(v + static_cast<std::ptrdiff_t>(t) * head_dim, width), sum);
    store_part(acc + h * head_dim, sum, width);
  }
}

template <class Rows, int kHeads>
inline void value_tile(const typename Rows::Value* v, int head_dim, int n, const float* p,
                       float* acc, PrefetchAhead<3>& next) {
  int i = 0;
  for (; i + kColumnVecs * kLanes <= head_dim; i += kColumnVecs * kLanes)
    value_columns<Rows, kHeads, kColumnVecs>(v + i, head_dim, n, p, acc + i, next);
  for (; i + 2 * kLanes <= head_dim; i += 2 * kLanes)
    value_columns<Rows, kHeads, 2>(v + i, head_dim, n, p, acc + i, next);
  for (; i + kLanes <= head_dim; i += kLanes)
    value_columns<Rows, kHeads, 1>(v + i, head_dim, n, p, acc + i, next);
  if (i < head_dim) value_tail<Rows, kHeads>(v + i, head_dim, n, head_dim - i, p, acc + i);
}

/// One tile of rows for all heads of a group, kHeadBatch at a time.
template <class Value>
struct DenseTile {
  const Value *k, *v;
  int head_dim, n;
  const Value *soon_v, *soon_k;  ///< values one tile ahead, keys two; to fetch, may be nullptr
};

/// One tile of kHeads heads: scores, weights, values. Meanwhile the rows of later tiles are
/// fetched.
template <class Rows, int kHeads>
void attend_tile(const DenseTile<typename Rows::Value>& tile, const float* q, SoftmaxState* state,
                 float* acc) {
  alignas(64) float s[kHeads * kTile];
  const int d = tile.head_dim, n = tile.n, steps = (n + 3) / 4;
  const std::size_t bytes = static_cast<std::size_t>(n * d) * sizeof(*tile.k);
  PrefetchAhead<3> values(tile.soon_v, bytes, steps), keys(tile.soon_k, bytes, steps);
  score_tile<Rows, kHeads>(tile.k, d, n, q, s, values);
  for (int h = 0; h < kHeads; ++h)
    scale_row(acc + h * d, row_weights(s + h * kTile, n, 1.0f, state[h]), d);
  value_tile<Rows, kHeads>(tile.v, d, n, s, acc, keys);
}

template <class Rows, int kHeads>
inline void attend_heads(int n_heads, const DenseTile<typename Rows::Value>& tile, const float* q,
                         SoftmaxState* state, float* acc) {
  if (n_heads >= kHeads) {
    attend_tile<Rows, kHeads>(tile, q, state, acc);
  } else if constexpr (kHeads > 1) {
    attend_heads<Rows, kHeads - 1>(n_heads, tile, q, state, acc);
  }
}

template <class Rows, class Args>
inline void attend_rows(const Args& args) {
  const int d = args.head_dim;
  /// Rows `tiles` tiles behind token t, in this call's rows or the next one's.
  const auto ahead = [&](const auto* rows, const auto* next, int t, int tiles) {
    const std::ptrdiff_t at = t + tiles * kTile, beyond = at - args.n_tokens;
    if (beyond < 0) return rows + at * d;
    return next ? next + beyond / kTile * kTile * d : nullptr;
  };
  for (int t = 0; t < args.n_tokens; t += kTile) {
    const int n = args.n_tokens - t < kTile ? args.n_tokens - t : kTile;
    const DenseTile<typename Rows::Value> tile{args.k + static_cast<std::ptrdiff_t>(t) * d,
                                               args.v + static_cast<std::ptrdiff_t>(t) * d,
                                               d,
                                               n,
                                               ahead(args.v, args.next_v, t, 1),
                                               ahead(args.k, args.next_k, t, 2)};
    for (int g = 0; g < args.n_group; g += kHeadBatch)
      attend_heads<Rows, kHeadBatch>(args.n_group - g, tile, args.q + g * d, args.state + g,
                                     args.acc + g * d);
  }
}

void attend_f16(const DenseAttendArgs& args) { attend_rows<F16Rows>(args); }
void attend_f32(const DenseAttendF32Args& args) { attend_rows<F32Rows>(args); }

}  // namespace
}  // namespace million::MILLION_ISA
