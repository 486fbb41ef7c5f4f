// SPDX-License-Identifier: Apache-2.0
// attend_tile (attend_tile.inl.h) with products of bf16 pairs: pairs of channels for the scores,
// pairs of keys for the values. Keys and values of a run are rounded once for all rows.
#pragma once

#include "kernels/hd.h"
#include "kernels/ops.h"

#include <cfloat>

namespace million::MILLION_ISA {
namespace {

static_assert(kTileVecs * kTileLanes == kPanelRows);
constexpr int kTileRun = 64;  ///< keys that are rounded at once
constexpr int kMaxHeadDim = 256;

/// A run of keys: k [kTileRun][d / 2] pairs of channels, v [kTileRun / 2][d] pairs of keys.
struct RoundedRun {
  alignas(64) uint32_t k[kTileRun * kMaxHeadDim / 2], v[kTileRun / 2 * kMaxHeadDim];
  void load(const float* keys, const float* values, int n, int d) {
    for (int i = 0; i < n * d; i += 16) store_bf16(k + i / 2, keys + i);
    for (int i = 0; i < n; i += 2, values += 2 * d)
      for (int c = 0; c < d; c += kTileLanes)
        store_pairs(v + i / 2 * d + c, pair_up(t_load(values + c), t_load(values + d + c)));
  }
};

/// s [kKeys][kPanelRows] = products of queries q [d / 2][kPanelRows] with kKeys keys.
template <int kKeys>
MILLION_INLINE void score_keys(const uint32_t* q, const uint32_t* k, int half, float* s) {
  T acc[kKeys][kTileVecs];
  for (int i = 0; i < kKeys; ++i)
    for (int v = 0; v < kTileVecs; ++v) acc[i][v] = t_set1(0.0f);
  for (int c = 0; c < half; ++c) {
    Pairs query[kTileVecs];
    for (int v = 0; v < kTileVecs; ++v) query[v] = load_pairs(q + c * kPanelRows + v * kTileLanes);
    for (int i = 0; i < kKeys; ++i) {
      const Pairs key = set1_pair(k[i * half + c]);
      for (int v = 0; v < kTileVecs; ++v) acc[i][v] = dot_pairs(acc[i][v], key, query[v]);
    }
  }
  for (int i = 0; i < kKeys; ++i)
    for (int v = 0; v < kTileVecs; ++v) t_store(s + i * kPanelRows + v * kTileLanes, acc[i][v]);
}

/// acc [kTileKeys columns][kPanelRows] <- acc * factor + weights p [n / 2][kPanelRows] times pairs.
MILLION_INLINE void add_columns(const uint32_t* p, int n, const uint32_t* values, int d,
                                const T* factor, float* acc) {
  T sum[kTileKeys][kTileVecs];
  for (int i = 0; i < kTileKeys; ++i)
    for (int v = 0; v < kTileVecs; ++v)
      sum[i][v] = t_load(acc + i * kPanelRows + v * kTileLanes) * factor[v];
  for (int key = 0; key < n; key += 2, p += kPanelRows, values += d) {
    Pairs weight[kTileVecs];
    for (int v = 0; v < kTileVecs; ++v) weight[v] = load_pairs(p + v * kTileLanes);
    for (int i = 0; i < kTileKeys; ++i) {
      const Pairs value = set1_pair(values[i]);
      for (int v = 0; v < kTileVecs; ++v) sum[i][v] = dot_pairs(sum[i][v], value, weight[v]);
    }
  }
  for (int i = 0; i < kTileKeys; ++i)
    for (int v = 0; v < kTileVecs; ++v) t_store(acc + i * kPanelRows + v * kTileLanes, sum[i][v]);
}

/// What the rows of a panel see of a tile: the keys that any of them sees, and those that all see.
struct PanelView {
  int first = 1 << 30, last = 0, all_first = 0, all_last = 1 << 30;
  PanelView(const int* from, const int* to) {
    for (int r = 0; r < kPanelRows; ++r) {
      if (from[r] < to[r]) {
        first = from[r] < first ? from[r] : first;
        last = to[r] > last ? to[r] : last;
      }
      all_first = from[r] > all_first ? from[r] : all_first;
      all_last = to[r] < all_last ? to[r] : all_last;
    }
  }
};

/// Scores s [n][kPanelRows] of keys first, first + 1, ... of the tile to pairs of weights
/// p [n / 2][kPanelRows], 0 where a key is not visible.
inline void panel_weights(float* s, int first, int n, const int* begin, const int* end, bool masked,
                          float* max, float* sum, T* factor, uint32_t* p) {
  for (int v = 0; v < kTileVecs; ++v, s += kTileLanes, p += kTileLanes) {
    const T old = t_load(max + v * kTileLanes);
    T top = old;
    if (masked) {
      const T low = t_from_ints(begin + v * kTileLanes), high = t_from_ints(end + v * kTileLanes);
      for (int i = 0; i < n; ++i) {
        const T at = t_set1(static_cast<float>(first + i));
        const T score = t_where_between(low, at, high, t_load(s + i * kPanelRows));
        t_store(s + i * kPanelRows, score);
        top = t_max(top, score);
      }
    } else {
      for (int i = 0; i < n; ++i) top = t_max(top, t_load(s + i * kPanelRows));
    }
    t_store(max + v * kTileLanes, top);
    // A row that has seen nothing keeps -inf; its weights are exp(-inf - base) = 0.
    const T base = t_max(top, t_set1(-FLT_MAX));
    factor[v] = t_exp(old - base);
    T total = t_load(sum + v * kTileLanes) * factor[v];
    for (int i = 0; i < n; i += 2) {
      const T a = t_exp(t_load(s + i * kPanelRows) - base);
      const T b = t_exp(t_load(s + (i + 1) * kPanelRows) - base);
      total = total + (a + b);
      store_pairs(p + i / 2 * kPanelRows, pair_up(a, b));
    }
    t_store(sum + v * kTileLanes, total);
  }
}

inline void attend_panel(const TileAttendArgs& a, const RoundedRun& run, int first, int n,
                         std::ptrdiff_t row) {
  const int d = a.head_dim;
  const PanelView view(a.begin + row, a.end + row);
  if (view.first >= first + n || view.last <= first) return;
  const bool masked = first < view.all_first || first + n > view.all_last;
  const float* queries = a.q + row * d;
  float* acc = a.acc + row * d;
  alignas(64) uint32_t q[kMaxHeadDim / 2 * kPanelRows], p[kTileRun / 2 * kPanelRows];
  alignas(64) float s[kTileRun * kPanelRows];
  for (int c = 0; c < d; c += 2, queries += 2 * kPanelRows)
    for (int r = 0; r < kPanelRows; r += kTileLanes)
      store_pairs(q + c / 2 * kPanelRows + r,
                  pair_up(t_load(queries + r), t_load(queries + kPanelRows + r)));
  for (int i = 0; i < n; i += kTileKeys)
    score_keys<kTileKeys>(q, run.k + i * (d / 2), d / 2, s + i * kPanelRows);
  T factor[kTileVecs];
  panel_weights(s, first, n, a.begin + row, a.end + row, masked, a.max + row, a.sum + row, factor,
                p);
  for (int c = 0; c < d; c += kTileKeys)
    add_columns(p, n, run.v + c, d, factor, acc + c * kPanelRows);
}

}  // namespace

void attend_tile(const TileAttendArgs& a);
void attend_tile(const TileAttendArgs& a) {
  RoundedRun run;
  for (int first = 0; first < a.n_keys; first += kTileRun) {
    const int n = a.n_keys - first < kTileRun ? a.n_keys - first : kTileRun;
    const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(first) * a.head_dim;
    run.load(a.k + at, a.v + at, n, a.head_dim);
    for (int row = 0; row < a.rows; row += kPanelRows) attend_panel(a, run, first, n, row);
  }
}

}  // namespace million::MILLION_ISA
