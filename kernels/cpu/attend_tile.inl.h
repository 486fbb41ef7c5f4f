// SPDX-License-Identifier: Apache-2.0
// Prefill attention on one tile of keys, in the manner of flash attention [FA2] but with rows in
// the lanes: queries and sums lie transposed, keys and values enter as broadcast numbers of their
// rows, so that maxima and sums of the softmax need no reduction and a row never meets another one.
// A panel of kPanelRows rows is worked on in strips of kTileVecs vectors: scores and weights of
// all keys of a strip, then the sums.
#pragma once

#include "kernels/ops.h"

#include <cfloat>

namespace million::MILLION_ISA {
namespace {

constexpr int kStripRows = kTileVecs * kTileLanes;

/// s [kKeys][kStripRows] = products of the strip's queries with kKeys keys.
template <int kKeys>
MILLION_INLINE void score_keys(const float* q, const float* k, int d, float* s) {
  T acc[kKeys][kTileVecs];
  for (int i = 0; i < kKeys; ++i)
    for (int v = 0; v < kTileVecs; ++v) acc[i][v] = t_set1(0.0f);
  for (int c = 0; c < d; ++c) {
    T query[kTileVecs];
    for (int v = 0; v < kTileVecs; ++v) query[v] = t_load(q + c * kPanelRows + v * kTileLanes);
    for (int i = 0; i < kKeys; ++i) {
      const T key = t_set1(k[static_cast<std::ptrdiff_t>(i) * d + c]);
      for (int v = 0; v < kTileVecs; ++v) acc[i][v] = t_fma(key, query[v], acc[i][v]);
    }
  }
  for (int i = 0; i < kKeys; ++i)
    for (int v = 0; v < kTileVecs; ++v) t_store(s + i * kStripRows + v * kTileLanes, acc[i][v]);
}
template <int kKeys>
void score_rest(int n, const float* q, const float* k, int d, float* s) {
  if (n == kKeys) return score_keys<kKeys>(q, k, d, s);
  if constexpr (kKeys > 1) score_rest<kKeys - 1>(n, q, k, d, s);
}

/// acc [kColumns][kPanelRows] <- acc * factor + weights p [n][kStripRows] times kColumns columns of
/// v.
template <int kColumns>
MILLION_INLINE void add_columns(const float* p, int n, const float* values, int d, const T* factor,
                                float* acc) {
  T sum[kColumns][kTileVecs];
  for (int i = 0; i < kColumns; ++i)
    for (int v = 0; v < kTileVecs; ++v)
      sum[i][v] = t_load(acc + i * kPanelRows + v * kTileLanes) * factor[v];
  for (int key = 0; key < n; ++key, p += kStripRows, values += d) {
    T weight[kTileVecs];
    for (int v = 0; v < kTileVecs; ++v) weight[v] = t_load(p + v * kTileLanes);
    for (int i = 0; i < kColumns; ++i) {
      const T value = t_set1(values[i]);
      for (int v = 0; v < kTileVecs; ++v) sum[i][v] = t_fma(value, weight[v], sum[i][v]);
    }
  }
  for (int i = 0; i < kColumns; ++i)
    for (int v = 0; v < kTileVecs; ++v) t_store(acc + i * kPanelRows + v * kTileLanes, sum[i][v]);
}
template <int kColumns>
void add_rest(int columns, const float* p, int n, const float* values, int d, const T* factor,
              float* acc) {
  if (columns == kColumns) return add_columns<kColumns>(p, n, values, d, factor, acc);
  if constexpr (kColumns > 1) add_rest<kColumns - 1>(columns, p, n, values, d, factor, acc);
}

/// What the rows of a strip see: the keys that any of them sees, and those that all see.
struct StripView {
  int first = 1 << 30, last = 0, all_first = 0, all_last = 1 << 30;
  float begin[kStripRows], end[kStripRows];
  StripView(const int* from, const int* to) {
    for (int r = 0; r < kStripRows; ++r) {
      begin[r] = static_cast<float>(from[r]), end[r] = static_cast<float>(to[r]);
      if (from[r] < to[r]) {
        first = from[r] < first ? from[r] : first;
        last = to[r] > last ? to[r] : last;
      }
      all_first = from[r] > all_first ? from[r] : all_first;
      all_last = to[r] < all_last ? to[r] : all_last;
    }
  }
};

/// Scores of keys [first, first + n) to weights: s [n][kStripRows] <- exp(s - new maximum), 0 where
/// a key is not visible; factor[v] is what sums of the old maximum are multiplied with.
inline void strip_weights(float* s, const StripView& view, int n, float* max, float* sum,
                          T* factor) {
  const bool masked = view.first < view.all_first || view.last > view.all_last;
  for (int v = 0; v < kTileVecs; ++v, s += kTileLanes) {
    const T old = t_load(max + v * kTileLanes);
    T top = old;
    if (masked) {
      const T low = t_load(view.begin + v * kTileLanes);
      const T high = t_load(view.end + v * kTileLanes);
      for (int i = 0; i < n; ++i) {
        const T at = t_set1(static_cast<float>(view.first + i));
        const T score = t_where_between(low, at, high, t_load(s + i * kStripRows));
        t_store(s + i * kStripRows, score);
        top = t_max(top, score);
      }
    } else {
      for (int i = 0; i < n; ++i) top = t_max(top, t_load(s + i * kStripRows));
    }
    t_store(max + v * kTileLanes, top);
    // A row that has seen nothing keeps -inf; its weights are exp(-inf - base) = 0.
    const T base = t_max(top, t_set1(-FLT_MAX));
    factor[v] = t_exp(old - base);
    T total = t_load(sum + v * kTileLanes) * factor[v];
    for (int i = 0; i < n; ++i) {
      const T weight = t_exp(t_load(s + i * kStripRows) - base);
      t_store(s + i * kStripRows, weight);
      total = total + weight;
    }
    t_store(sum + v * kTileLanes, total);
  }
}

inline void attend_strip(const TileAttendArgs& a, std::ptrdiff_t row, const float* q, float* acc) {
  const int d = a.head_dim;
  const StripView view(a.begin + row, a.end + row);
  const int n = view.last - view.first;
  if (n <= 0) return;
  const float* k = a.k + static_cast<std::ptrdiff_t>(view.first) * d;
  const float* values = a.v + static_cast<std::ptrdiff_t>(view.first) * d;
  alignas(64) float s[kMaxTileKeys * kStripRows];
  int i = 0;
  for (; i + kTileKeys <= n; i += kTileKeys, k += kTileKeys * d)
    score_keys<kTileKeys>(q, k, d, s + i * kStripRows);
  if (i < n) score_rest<kTileKeys - 1>(n - i, q, k, d, s + i * kStripRows);
  T factor[kTileVecs];
  strip_weights(s, view, n, a.max + row, a.sum + row, factor);
  int c = 0;
  for (; c + kTileKeys <= d; c += kTileKeys)
    add_columns<kTileKeys>(s, n, values + c, d, factor, acc + c * kPanelRows);
  if (c < d) add_rest<kTileKeys - 1>(d - c, s, n, values + c, d, factor, acc + c * kPanelRows);
}

void attend_tile(const TileAttendArgs& a) {
  const std::ptrdiff_t panel = static_cast<std::ptrdiff_t>(a.head_dim) * kPanelRows;
  for (int row = 0; row < a.rows; row += kStripRows) {
    const std::ptrdiff_t at = row / kPanelRows * panel + row % kPanelRows;
    attend_strip(a, row, a.q + at, a.acc + at);
  }
}

}  // namespace
}  // namespace million::MILLION_ISA
