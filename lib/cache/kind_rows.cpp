// SPDX-License-Identifier: Apache-2.0
#include "lib/cache/kind_rows.h"

#include "lib/cache/turn.h"
#include "lib/core/parallel.h"

#include <algorithm>
#include <shared_mutex>

namespace million {
namespace {

/// Tokens decoded at once for tiles: a store expands its tables once for them.
constexpr int kTileTokens = 1024;

}  // namespace

void read_coded(const KindCache& kind, const RopeTable& rope, int head, int64_t begin, int64_t end,
                float* out) {
  kind.store().decode(head, static_cast<int>(begin), static_cast<int>(end), out);
  const KeyFrame& frame = kind.frame();
  if (frame.type == KeyFrame::Type::kPostRope) return;
  const int64_t first = kind.sinks().size() + begin;
  for (int64_t t = 0; t < end - begin; ++t)
    turn_rows(rope, out + t * kind.head_dim(), 1, kind.head_dim(), frame.rest(first + t));
}

void read_far(const KindCache& kind, const ExactRun& run, int64_t first, const RopeTable& rope,
              int head, int64_t begin, int64_t end, float* out) {
  run.read(head, begin, end, out);
  const int group = kind.frame().group;
  if (group == 1) return;
  for (int64_t t = begin; t < end; ++t)
    turn_rows(rope, out + (t - begin) * kind.head_dim(), 1, kind.head_dim(),
              (first + t) / group - (first + t));
}

void read_kind(const KindCache& kind, const RopeTable& rope, int head, int64_t begin, int64_t end,
               float* out) {
  const int64_t sealed = kind.sealed();
  if (begin < sealed) return read_coded(kind, rope, head, begin, end, out);
  read_far(kind, kind.window(), kind.sinks().size() + sealed, rope, head, begin - sealed,
           end - sealed, out);
}

struct ChunkRows::Side {
  const KindCache& kind;
  TileRows &exact, &coded;
  int64_t n_coded;
  TileRows* far;  ///< nullptr: far rows are no others
};

/// Sinks, and the rows behind the codes.
void ChunkRows::fill_exact(const KvGeometry& g, const RopeTable& rope, const Side& s, int head,
                           int64_t n_after) {
  const ExactRun& sinks = s.kind.sinks();
  const int64_t n_sinks = sinks.size(), behind = n_sinks + s.kind.sealed();
  const int64_t n = n_after - behind;
  if (any_coded_) read_far(s.kind, sinks, 0, rope, head, 0, n_sinks, s.coded.at(head, 0));
  if (!any_coded_ || g.self_extend.on()) sinks.read(head, 0, n_sinks, s.exact.at(head, 0));
  if (n > 0) s.kind.window().read(head, 0, n, s.exact.at(head, behind));
  if (!s.far) return;
  read_far(s.kind, sinks, 0, rope, head, 0, n_sinks, s.far->at(head, 0));
  const int64_t n_far = std::min(n, g.self_extend.far_end(n_after - 1) - behind);
  if (n_far > 0)
    read_far(s.kind, s.kind.window(), behind, rope, head, 0, n_far, s.far->at(head, behind));
}

void ChunkRows::fill(const KvGeometry& g, const RopeTable& rope, const KindCache& k,
                     const KindCache& v, int64_t n_coded_k, int64_t n_coded_v, int64_t n_after) {
  const bool far = g.self_extend.far_end(n_after - 1) > 0;
  const Side sides[] = {{k, exact_k, coded_k, n_coded_k, far ? &far_k : nullptr},
                        {v, exact_v, coded_v, n_coded_v, nullptr}};
  any_coded_ = n_coded_k > 0 || n_coded_v > 0;
  for (const Side& s : sides) {
    s.exact.reset(g.n_kv_heads, g.head_dim, n_after);
    if (any_coded_) s.coded.reset(g.n_kv_heads, g.head_dim, n_after);
    if (s.far) s.far->reset(g.n_kv_heads, g.head_dim, n_after);
  }
  const int64_t parts = (std::max(n_coded_k, n_coded_v) + kTileTokens - 1) / kTileTokens;
  parallel_for(g.n_kv_heads * (parts + 1), [&](int64_t job) {
    const int head = static_cast<int>(job % g.n_kv_heads);
    const int64_t part = job / g.n_kv_heads;
    for (const Side& s : sides) {
      if (part == parts) {
        fill_exact(g, rope, s, head, n_after);
        continue;
      }
      const int64_t begin = part * kTileTokens, end = std::min(s.n_coded, begin + kTileTokens);
      if (begin >= end) continue;
      std::shared_lock lock(s.kind.mutex());  // the worker may append later tokens' codes
      read_coded(s.kind, rope, head, begin, end, s.coded.at(head, s.kind.sinks().size() + begin));
    }
  });
}

}  // namespace million
