// SPDX-License-Identifier: Apache-2.0
#include "lib/cache/attention.h"

#include "kernels/ops.h"
#include "lib/cache/turn.h"
#include "lib/core/error.h"
#include "lib/core/parallel.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace million {
namespace {

/// Buffers of one thread for one (KV head, query tile).
struct Work {
  AlignedVector<float> rows, q, far_q, acc;  ///< rows [row][head_dim], the others panels
  std::vector<float> max, sum;               ///< of the softmax per row
  std::vector<int> begin, end;
  std::vector<int64_t> key_boundary, value_boundary;  ///< per query position of the tile
};

static_assert(kKeyTile <= kMaxTileKeys && kQueryTile % kPanelRows == 0);

/// Rows [n][d] times `scale` to panels (TileAttendArgs); n is a multiple of kPanelRows.
void to_panels(const AlignedVector<float>& rows, int n, int d, float scale,
               AlignedVector<float>& panels) {
  panels.resize(static_cast<size_t>(n) * d);
  for (int r = 0; r < n; r += kPanelRows) {
    const float* from = rows.data() + static_cast<int64_t>(r) * d;
    float* to = panels.data() + static_cast<int64_t>(r) * d;
    for (int c = 0; c < d; ++c, to += kPanelRows)
      for (int i = 0; i < kPanelRows; ++i) to[i] = from[static_cast<int64_t>(i) * d + c] * scale;
  }
}

/// One query tile of one KV head: kQueryTile positions times the group's query heads, as rows
/// (position, head of the group). Rows outside the chunk see nothing and are not written.
class TileJob {
 public:
  TileJob(const KvGeometry& g, const ChunkView& view, const float* q, float* out, Work& work,
          int head, int64_t tile)
      : g_(g),
        view_(view),
        q_(q),
        out_(out),
        w_(work),
        head_(head),
        tile_first_(tile * kQueryTile),
        rows_(kQueryTile * g.group()),
        first_(std::max(tile_first_, view.first)),
        last_(std::min(tile_first_ + kQueryTile, view.first + view.n) - 1) {
    if (view.bf16_products && g.head_dim % 16 == 0 && attend_tile_bf16())
      attend_tile_ = attend_tile_bf16();
  }

  void run() {
    load();
    const bool extended = g_.self_extend.on();
    const auto far = [&](int64_t i) { return extended ? g_.self_extend.far_end(i) : i + 1; };
    const auto low = [&](int64_t i) { return std::min({key(i), value(i), far(i)}); };
    const auto high = [&](int64_t i) { return std::min(std::max(key(i), value(i)), far(i)); };
    const auto near = [&](int64_t i) { return extended ? far(i) : high(i); };
    // Without codes in the chunk the sinks still go apart: a row must not depend on its chunk.
    const TileRows* low_k = view_.any_coded ? view_.coded_k : view_.far_k;
    const TileRows* low_v = view_.any_coded ? view_.coded_v : view_.exact_v;
    for (int64_t k0 = 0; k0 <= last_; k0 += kKeyTile) {
      const auto attend = [&](const AlignedVector<float>& q, const TileRows* k, const TileRows* v,
                              auto from, auto to) {
        if (set_visible(k0, from, to))
          attend_tile_({rows_, g_.head_dim, kKeyTile, q.data(), k->at(head_, k0), v->at(head_, k0),
                        w_.begin.data(), w_.end.data(), w_.max.data(), w_.sum.data(),
                        w_.acc.data()});
      };
      const AlignedVector<float>& far_q = extended ? w_.far_q : w_.q;
      attend(
          far_q, low_k, low_v, [](int64_t) { return int64_t{0}; }, low);
      if (split_) {  // tokens of which only one side is coded
        attend(
            far_q, view_.far_k, view_.coded_v, [&](int64_t i) { return key(i); }, high);
        attend(
            far_q, view_.coded_k, view_.exact_v, [&](int64_t i) { return value(i); }, high);
      }
      if (extended) attend(far_q, view_.far_k, view_.exact_v, high, far);
      attend(w_.q, view_.exact_k, view_.exact_v, near, [](int64_t i) { return i + 1; });
    }
    store();
  }

 private:
  int64_t key(int64_t position) const { return w_.key_boundary[position - first_]; }
  int64_t value(int64_t position) const { return w_.value_boundary[position - first_]; }
  int64_t row_of(int64_t position) const { return (position - tile_first_) * g_.group(); }
  int64_t query_of(int64_t position) const {
    return ((position - view_.first) * g_.n_heads + static_cast<int64_t>(head_) * g_.group()) *
           g_.head_dim;
  }

  /// Sets the visible columns of the tile at k0 to [from(i), to(i)) of each query position i; false
  /// when no row sees any.
  template <class From, class To>
  bool set_visible(int64_t k0, From from, To to) {
    bool any = false;
    for (int64_t i = first_; i <= last_; ++i) {
      const int begin = static_cast<int>(std::clamp<int64_t>(from(i) - k0, 0, kKeyTile));
      const int end = static_cast<int>(std::clamp<int64_t>(to(i) - k0, begin, kKeyTile));
      any |= begin < end;
      std::fill_n(w_.begin.begin() + row_of(i), g_.group(), begin);
      std::fill_n(w_.end.begin() + row_of(i), g_.group(), end);
    }
    return any;
  }

  void load() {
    const int64_t run = static_cast<int64_t>(g_.group()) * g_.head_dim;
    const bool extended = g_.self_extend.on();
    const float scale = 1.0f / std::sqrt(static_cast<float>(g_.head_dim));
    w_.rows.assign(static_cast<size_t>(rows_) * g_.head_dim, 0.0f);
    w_.acc.assign(w_.rows.size(), 0.0f);
    w_.max.assign(rows_, -INFINITY);
    w_.sum.assign(rows_, 0.0f);
    w_.begin.assign(rows_, 0);
    w_.end.assign(rows_, 0);
    w_.key_boundary.clear();
    w_.value_boundary.clear();
    for (int64_t i = first_; i <= last_; ++i) {
      std::copy_n(q_ + query_of(i), run, w_.rows.data() + row_of(i) * g_.head_dim);
      w_.key_boundary.push_back(view_.key_boundary(i));
      w_.value_boundary.push_back(view_.value_boundary(i));
      split_ |= w_.key_boundary.back() != w_.value_boundary.back();
    }
    to_panels(w_.rows, rows_, g_.head_dim, scale, w_.q);
    if (!extended) return;
    for (int64_t i = std::max<int64_t>(first_, g_.self_extend.window); i <= last_; ++i)
      turn_rows(*view_.rope, w_.rows.data() + row_of(i) * g_.head_dim, g_.group(), g_.head_dim,
                g_.self_extend.far_query(i) - i);
    to_panels(w_.rows, rows_, g_.head_dim, scale, w_.far_q);
  }

  void store() {
    for (int64_t i = first_; i <= last_; ++i)
      for (int h = 0; h < g_.group(); ++h) {
        const int64_t row = row_of(i) + h;
        const float inverse = 1.0f / w_.sum[row];
        const float* acc =
            w_.acc.data() + row / kPanelRows * kPanelRows * g_.head_dim + row % kPanelRows;
        float* o = out_ + query_of(i) + static_cast<int64_t>(h) * g_.head_dim;
        for (int c = 0; c < g_.head_dim; ++c) o[c] = acc[c * kPanelRows] * inverse;
      }
  }

  const KvGeometry& g_;
  const ChunkView& view_;
  const float* q_;
  float* out_;
  Work& w_;
  const int head_;
  const int64_t tile_first_;
  const int rows_;
  const int64_t first_, last_;
  TileAttend attend_tile_ = ops().attend_tile;
  bool split_ = false;  ///< keys and values end their codes at different tokens somewhere
};

}  // namespace

void TileRows::reset(int n_kv_heads, int head_dim, int64_t n_positions) {
  head_dim_ = head_dim;
  padded_ = (n_positions + kKeyTile - 1) / kKeyTile * kKeyTile;
  // Zeros matter: masked columns are multiplied with weight 0, and 0 * NaN would not vanish.
  data_.assign(static_cast<size_t>(n_kv_heads) * padded_ * head_dim, 0.0f);
}

void attend_chunk(const KvGeometry& geometry, const ChunkView& view, const float* q, float* out) {
  const int64_t first_tile = view.first / kQueryTile;
  const int64_t n_tiles = (view.first + view.n - 1) / kQueryTile - first_tile + 1;
  parallel_for(n_tiles * geometry.n_kv_heads, [&](int64_t job) {
    thread_local Work work;
    const int head = static_cast<int>(job % geometry.n_kv_heads);
    // Late tiles see the most keys; starting with them balances the threads.
    const int64_t tile = first_tile + n_tiles - 1 - job / geometry.n_kv_heads;
    TileJob(geometry, view, q, out, work, head, tile).run();
  });
}

}  // namespace million
