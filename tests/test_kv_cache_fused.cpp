// SPDX-License-Identifier: Apache-2.0
// Single queries through the fused kernel of codes in a basis against the same cache read in one
// chunk, which decodes: frames, windows, units, a mean key, what is left out.
#include "tests/cache_data.h"

#include "lib/cache/fused_attention.h"
#include "lib/cache/group_attention.h"

#include <catch2/catch.hpp>

using namespace million;
using namespace million::testdata;

namespace {

constexpr int kTokens = 2300;  // more than one part of 2048 tokens
constexpr int kSteps = 70;     // more than one frame of 64

/// Rows whose keys have a mean before RoPE.
const Rows& centred_rows() {
  static const Rows rows = [] {
    Rows r(21, kTokens);
    for (int l = 0; l < r.g.n_layers; ++l)
      for (int t = 0; t < r.n; ++t) {
        float* pre = r.k_pre[l].data() + static_cast<int64_t>(t) * r.g.row();
        float* post = r.k[l].data() + static_cast<int64_t>(t) * r.g.row();
        for (int c = 0; c < r.g.row(); ++c) pre[c] += c % 5 == 0 ? 1.5f : -0.3f;
        std::copy_n(pre, r.g.row(), post);
        r.g.rope.rotate_to(post, r.g.n_kv_heads, r.g.head_dim, t);
      }
    return r;
  }();
  return rows;
}

/// Outputs of the last kSteps tokens, which come one by one.
AlignedVector<float> steps(KvCache& cache, const Rows& rows) {
  std::vector<int> pieces = {kTokens - kSteps};
  pieces.insert(pieces.end(), kSteps, 1);
  const AlignedVector<float> out = run(cache, rows, pieces);
  return {out.end() - kSteps * rows.g.n_heads * rows.g.head_dim, out.end()};
}

/// Difference of the last kSteps outputs, one query at a time, from those of one chunk.
double single_query_error(const char* text, const Rows& rows) {
  const Method method = make_method(text, rows);
  KvCache whole(rows.g, method, Protocol::kDecodePath);
  KvCache single(rows.g, method, Protocol::kDecodePath);
  const AlignedVector<float> out = run(whole, rows, {kTokens});
  const AlignedVector<float> got = steps(single, rows);
  return relative_difference(got, {out.end() - got.size(), out.end()});
}

}  // namespace

TEST_CASE("fused single queries give what decoding gives") {
  const Rows& rows = centred_rows();
  for (const char* text :
       {"pq:M=16,nbits=8,metric=q,sinks=4", "pq:M=32,nbits=8,metric=none,frame=128,window=40",
        "pq:M=16,nbits=6,metric=none,span=1,sinks=3", "pq:M=8,nbits=8,metric=q,centre=0",
        "pq:M=16,nbits=7,metric=q,sinks=4 | pq:M=32,nbits=5,metric=none,sinks=4"}) {
    INFO(text);
    const double error = single_query_error(text, rows);
    CHECK(error < 0.03);
    CHECK(error > 1e-5);  // float sums agree better
  }
}

TEST_CASE("fused single queries on scalar codes give what decoding gives") {
  const Rows& rows = centred_rows();
  for (const char* text :
       {"kivi:bits=2,group=32,residual=128", "kivi:bits=4,group=64,residual=0,window=50",
        "uniform:bits=4,group=32,sinks=4", "uniform:bits=3,symmetric=1,window=40",
        "uniform:bits=5,axis=channel | uniform:bits=6", "q8_0:rotate=1", "q4_0", "q4_1:rotate=0",
        "q8_0:rotate=0 | q4_0"}) {
    INFO(text);
    CHECK(single_query_error(text, rows) < 2e-5);
  }
}

TEST_CASE("values left out change the output by little") {
  Rows rows = centred_rows();
  for (auto& layer : rows.q)
    for (float& x : layer) x *= 4.0f;  // a few tokens have most of the weight
  const Method method = make_method("pq:M=16,nbits=8,metric=q,sinks=4", rows);
  KvCache all(rows.g, method, Protocol::kDecodePath), some(rows.g, method, Protocol::kDecodePath);
  some.set_skip_share(1e-3f);
  const auto expected = steps(all, rows);
  const double error = relative_difference(steps(some, rows), expected);
  const AttendStats stats = some.stats().kernels;
  CHECK(stats.groups > 0);
  CHECK(stats.groups_left_out > stats.groups / 10);
  CHECK(stats.groups_left_out < stats.groups);
  CHECK(stats.mass_left_out > 0.0);
  CHECK(error > 0.0);
  CHECK(error < 0.05);  // 36 groups of a head, each at most .1 % of its weight
}
