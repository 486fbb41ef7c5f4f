// SPDX-License-Identifier: Apache-2.0
#include "lib/cache/coded_attention.h"

#include "kernels/ops.h"

#include <algorithm>
#include <vector>

namespace million {
namespace {

/// Tokens decoded at once: the tables are expanded for each piece, the rows should stay in the
/// cache.
constexpr int64_t kPieceTokens = 512;
/// Frames shorter than this would turn the query more often than it is used.
constexpr int kShortestFrame = 16;

/// Tokens from t on (behind the sinks) that have the distance of t to their frame, at most `end`.
int64_t run_end(const KeyFrame& frame, int64_t t, int64_t end, int64_t sinks) {
  if (frame.type == KeyFrame::Type::kPostRope) return end;
  const int64_t position = sinks + t;
  return std::min(end, (position / frame.block + 1) * frame.block - sinks);
}

/// Buffers of one thread.
struct Work {
  AlignedVector<float> rows_k, rows_v, turned, query, sum;
  std::vector<int64_t> ends;
};

/// Runs of tokens [begin, end): their ends, and the group's queries for each in the coordinates of
/// the codes, [run][group][rank].
void turn_queries(const KvGeometry& g, const KindCache& k, int head, int64_t begin, int64_t end,
                  const float* q, Work* w) {
  const int64_t sinks = k.sinks().size(), size = static_cast<int64_t>(g.group()) * g.head_dim;
  w->ends.clear();
  w->turned.clear();
  for (int64_t t = begin; t < end; t = w->ends.back()) {
    w->ends.push_back(run_end(k.frame(), t, end, sinks));
    w->turned.insert(w->turned.end(), q, q + size);
    g.rope.move(w->turned.data() + w->turned.size() - size, g.group(), g.head_dim,
                -k.frame().rest(sinks + t));
  }
  const int n = static_cast<int>(w->ends.size()) * g.group();
  w->query.resize(static_cast<size_t>(n) * k.store().coded_rank());
  k.store().to_coded(head, w->turned.data(), n, w->query.data());
}

}  // namespace

bool can_attend_coded(const KindCache& k, const KindCache& v) {
  const KeyFrame& frame = k.frame();
  const bool runs = frame.type == KeyFrame::Type::kPostRope ||
                    (frame.type == KeyFrame::Type::kBlock && frame.block >= kShortestFrame);
  const int rank = k.store().coded_rank();
  return runs && rank > 0 && rank == v.store().coded_rank();
}

void attend_coded(const KvGeometry& g, const KindCache& k, const KindCache& v, int head,
                  int64_t begin, int64_t end, const float* q, SoftmaxState* state, float* acc) {
  const int group = g.group(), d = g.head_dim, rank = k.store().coded_rank();
  thread_local Work w;
  std::vector<SoftmaxState> own(group);
  w.rows_k.resize(static_cast<size_t>(kPieceTokens) * rank);
  w.rows_v.resize(w.rows_k.size());
  w.sum.assign(static_cast<size_t>(group) * rank, 0.0f);
  for (int64_t piece = begin; piece < end; piece += kPieceTokens) {
    const int64_t stop = std::min(end, piece + kPieceTokens);
    k.store().decode_coded(head, static_cast<int>(piece), static_cast<int>(stop), w.rows_k.data());
    v.store().decode_coded(head, static_cast<int>(piece), static_cast<int>(stop), w.rows_v.data());
    turn_queries(g, k, head, piece, stop, q, &w);
    int64_t t = piece;
    for (size_t run = 0; run < w.ends.size(); t = w.ends[run++])
      ops().attend_f32({group, rank, static_cast<int>(w.ends[run] - t),
                        w.query.data() + run * group * rank, w.rows_k.data() + (t - piece) * rank,
                        w.rows_v.data() + (t - piece) * rank, own.data(), w.sum.data()});
  }
  w.turned.resize(static_cast<size_t>(group) * d);
  v.store().from_coded(head, w.sum.data(), group, w.turned.data());
  for (int h = 0; h < group; ++h)
    merge_softmax(state[h], acc + static_cast<int64_t>(h) * d, own[h],
                  w.turned.data() + static_cast<int64_t>(h) * d, d);
}

}  // namespace million
