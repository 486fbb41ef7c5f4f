// SPDX-License-Identifier: Apache-2.0
#include "lib/model/gradient_attention.h"

#include "kernels/ops.h"
#include "lib/core/parallel.h"
#include "lib/model/gemm.h"

#include <algorithm>
#include <cmath>

namespace million {
namespace {

/// One query head and one tile of its rows.
class Tile {
 public:
  Tile(const KvGeometry& g, const AttentionRows& rows, int head, int first)
      : rows_(rows),
        d_(g.head_dim),
        q_row_(g.n_heads * d_),
        kv_row_(g.row()),
        first_(first),
        n_(std::min(kGradientTile, rows.n - first)),
        keys_(first + n_),
        scale_(1.0f / std::sqrt(static_cast<float>(d_))),
        q_offset_(static_cast<int64_t>(first) * q_row_ + head * d_),
        kv_offset_(head / g.group() * d_) {}

  int64_t q_offset() const { return q_offset_; }

  /// scores [n][keys] <- softmax of the visible columns, 0 behind them.
  void probabilities(AlignedVector<float>& scores) const {
    scores.resize(static_cast<size_t>(kGradientTile) * keys_);
    sgemm('N', 'T', n_, keys_, d_, rows_.q + q_offset_, q_row_, rows_.k + kv_offset_, kv_row_, 0.0f,
          scores.data(), keys_);
    int begin[kGradientTile] = {}, end[kGradientTile];
    SoftmaxState state[kGradientTile];
    float unused[kGradientTile] = {};
    for (int i = 0; i < n_; ++i) end[i] = first_ + i + 1;
    ops().softmax_tile(scores.data(), n_, keys_, keys_, begin, end, scale_, state, unused, 1);
    for (int i = 0; i < n_; ++i) {
      const float inverse = 1.0f / state[i].sum;
      float* row = scores.data() + static_cast<int64_t>(i) * keys_;
      for (int j = 0; j < end[i]; ++j) row[j] *= inverse;
    }
  }

  /// out rows of this tile and head = p v.
  void values(const AlignedVector<float>& p, float* out) const {
    sgemm('N', 'N', n_, d_, keys_, p.data(), keys_, rows_.v + kv_offset_, kv_row_, 0.0f,
          out + q_offset_, q_row_);
  }

  /// ds <- P (dP - D) / sqrt(d), [n][keys].
  void score_derivative(const AlignedVector<float>& p, const float* dout,
                        AlignedVector<float>& ds) const {
    ds.resize(p.size());
    sgemm('N', 'T', n_, keys_, d_, dout + q_offset_, q_row_, rows_.v + kv_offset_, kv_row_, 0.0f,
          ds.data(), keys_);
    for (int i = 0; i < n_; ++i) {
      const float* pi = p.data() + static_cast<int64_t>(i) * keys_;
      float* di = ds.data() + static_cast<int64_t>(i) * keys_;
      const float mean = ops().dot(pi, di, keys_);
      for (int j = 0; j < keys_; ++j) di[j] = pi[j] * (di[j] - mean) * scale_;
    }
  }

  /// dq of this tile; dk and dv [n tokens][head_dim] of this query head are added to.
  void products(const AlignedVector<float>& p, const AlignedVector<float>& ds, const float* dout,
                float* dq, float* dk, float* dv) const {
    sgemm('N', 'N', n_, d_, keys_, ds.data(), keys_, rows_.k + kv_offset_, kv_row_, 0.0f,
          dq + q_offset_, q_row_);
    sgemm('T', 'N', keys_, d_, n_, ds.data(), keys_, rows_.q + q_offset_, q_row_, 1.0f, dk, d_);
    sgemm('T', 'N', keys_, d_, n_, p.data(), keys_, dout + q_offset_, q_row_, 1.0f, dv, d_);
  }

 private:
  const AttentionRows& rows_;
  const int d_, q_row_, kv_row_, first_, n_, keys_;
  const float scale_;
  const int64_t q_offset_, kv_offset_;
};

/// Adds the query heads of each group into [n][n_kv_heads][head_dim].
void add_group(const KvGeometry& g, int n, const AlignedVector<float>& by_head, float* out) {
  const int d = g.head_dim;
  parallel_ranges(n, 16, [&](int64_t begin, int64_t end) {
    std::fill(out + begin * g.row(), out + end * g.row(), 0.0f);
    for (int64_t t = begin; t < end; ++t)
      for (int h = 0; h < g.n_heads; ++h)
        ops().add(by_head.data() + (static_cast<int64_t>(h) * n + t) * d,
                  out + t * g.row() + h / g.group() * d, static_cast<size_t>(d));
  });
}

}  // namespace

void attention_forward(const KvGeometry& g, const AttentionRows& rows, float* out) {
  const int64_t tiles = (rows.n + kGradientTile - 1) / kGradientTile;
  // At least two jobs: a lone one would run outside a parallel region (see sgemm).
  parallel_for(std::max<int64_t>(2, tiles * g.n_heads), [&](int64_t job) {
    if (job >= tiles * g.n_heads) return;
    thread_local AlignedVector<float> p;
    const int64_t tile = tiles - 1 - job / g.n_heads;  // the longest first
    const Tile t(g, rows, static_cast<int>(job % g.n_heads),
                 static_cast<int>(tile) * kGradientTile);
    t.probabilities(p);
    t.values(p, out);
  });
}

void attention_backward(const KvGeometry& g, const AttentionRows& rows, const float* dout,
                        float* dq, float* dk, float* dv) {
  const int64_t head_values = static_cast<int64_t>(rows.n) * g.head_dim;
  AlignedVector<float> dk_head(static_cast<size_t>(head_values * g.n_heads), 0.0f);
  AlignedVector<float> dv_head(dk_head.size(), 0.0f);
  parallel_for(std::max(2, g.n_heads), [&](int64_t head) {
    if (head >= g.n_heads) return;
    thread_local AlignedVector<float> p, ds;
    for (int first = 0; first < rows.n; first += kGradientTile) {
      const Tile t(g, rows, static_cast<int>(head), first);
      t.probabilities(p);
      t.score_derivative(p, dout, ds);
      t.products(p, ds, dout, dq, dk_head.data() + head * head_values,
                 dv_head.data() + head * head_values);
    }
  });
  add_group(g, rows.n, dk_head, dk);
  add_group(g, rows.n, dv_head, dv);
}

}  // namespace million
