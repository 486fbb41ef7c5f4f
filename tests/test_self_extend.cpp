// SPDX-License-Identifier: Apache-2.0
// SelfExtend against its definition in double (two rotations of each key, one softmax), for exact
// and for coded caches, in chunks and token by token.
#include "tests/cache_data.h"

#include "lib/core/error.h"
#include "lib/model/position_map.h"

#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>

using namespace million;
using namespace million::testdata;

namespace {

/// Attention of the last layer by the definition: key j at j for neighbours, else at j / group, the
/// query at i or at i / group + window - window / group. Rows before RoPE are those of the test;
/// what the cache rounds to halves is rounded here. With `ones` all values are 1.
AlignedVector<float> self_extend_attention(const Rows& rows, const SelfExtend& s) {
  const KvGeometry& g = rows.g;
  const int l = g.n_layers - 1, d = g.head_dim, n = rows.n;
  AlignedVector<float> out(static_cast<size_t>(n) * g.n_heads * d);
  std::vector<double> p(n);
  std::vector<float> q(d), k(d);
  const auto at = [&](const float* row, int64_t move, std::vector<float>* to) {
    to->assign(row, row + d);
    g.rope.move(to->data(), 1, d, move);
  };
  for (int i = 0; i < n; ++i)
    for (int h = 0; h < g.n_heads; ++h) {
      const int64_t kv = static_cast<int64_t>(h / g.group()) * d;
      const float* query = rows.q[l].data() + (static_cast<int64_t>(i) * g.n_heads + h) * d;
      double top = -1e300, sum = 0.0;
      for (int t = 0; t <= i; ++t) {
        const bool near = i - t < s.window;
        at(query, near ? 0 : i / s.group + s.window - s.window / s.group - i, &q);
        at(rows.k[l].data() + static_cast<int64_t>(t) * g.row() + kv, near ? 0 : t / s.group - t,
           &k);
        p[t] = 0.0;
        for (int c = 0; c < d; ++c) p[t] += static_cast<double>(q[c]) * k[c] / 8.0;
        top = std::max(top, p[t]);
      }
      for (int t = 0; t <= i; ++t) sum += p[t] = std::exp(p[t] - top);
      for (int c = 0; c < d; ++c) {
        double o = 0.0;
        for (int t = 0; t <= i; ++t) o += p[t] / sum * rows.v[l][t * g.row() + kv + c];
        out[(static_cast<int64_t>(i) * g.n_heads + h) * d + c] = static_cast<float>(o);
      }
    }
  return out;
}

Rows extended(uint64_t seed, const SelfExtend& s, int n = kCacheTokens) {
  Rows rows(seed, n);
  rows.g.self_extend = s;
  return rows;
}

bool equal(const AlignedVector<float>& a, const AlignedVector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// Every kind of store: plain PQ, codes in a basis (fused frame, short frame, before RoPE), scalar
/// groups, a residual rule, outliers, block types.
const std::vector<std::string> kMethods = {"pq:M=32,nbits=8,frame=off,sinks=4",
                                           "pq:M=32,nbits=8,metric=q,sinks=4",
                                           "pq:M=32,nbits=8,frame=32,metric=q,sinks=4",
                                           "pq:M=32,nbits=8,frame=pre,metric=q,sinks=3,window=200",
                                           "pq:M=64,nbits=8,layers=fp16*1+64x8*1,metric=q",
                                           "uniform:bits=8,axis=token,group=64",
                                           "uniform:bits=8,axis=channel,group=32,rope=pre,sinks=4",
                                           "kivi:bits=8,group=32",
                                           "quanto:bits=8",
                                           "kvquant:bits=8,outliers=0.01,sinks=1",
                                           "turboquant:bits=8",
                                           "q8_0"};

}  // namespace

TEST_CASE("the fp16 cache with SelfExtend is its definition, in chunks and one by one") {
  for (const SelfExtend s : {SelfExtend{8, 64}, SelfExtend{3, 96}, SelfExtend{16, 16}}) {
    INFO("group " << s.group << " window " << s.window);
    const Rows rows = extended(11, s);
    const AlignedVector<float> expected = self_extend_attention(rows, s);
    const Method method = make_method("fp16", rows);
    for (const auto& pieces :
         {std::vector<int>{kCacheTokens}, std::vector<int>{300, 1, 399}, ones(kCacheTokens)})
      for (const Protocol protocol : {Protocol::kDecodePath, Protocol::kAllDistorted}) {
        if (protocol == Protocol::kAllDistorted && pieces.size() > 1) continue;
        KvCache cache(rows.g, method, protocol);
        CHECK(relative_difference(run(cache, rows, pieces), expected) < 5e-4);  // halves
      }
    // The same rows without SelfExtend are something else.
    KvCache plain(Rows(11).g, method, Protocol::kDecodePath);
    CHECK(relative_difference(run(plain, rows, {kCacheTokens}), expected) > 0.05);
  }
}

TEST_CASE(
    "sequences within the neighbour window and groups of one are plain attention, bit by bit") {
  const Rows plain_rows(12);
  const Method fp16 = make_method("fp16", plain_rows);
  for (const auto& pieces :
       {std::vector<int>{kCacheTokens}, std::vector<int>{64, 3, 633}, ones(kCacheTokens)}) {
    KvCache plain(plain_rows.g, fp16, Protocol::kDecodePath);
    const AlignedVector<float> expected = run(plain, plain_rows, pieces);
    const Rows wide = extended(12, {4, 704}), single = extended(12, {1, 64});
    KvCache within(wide.g, fp16, Protocol::kDecodePath);
    CHECK(equal(run(within, wide, pieces), expected));
    KvCache ungrouped(single.g, fp16, Protocol::kDecodePath);
    CHECK(equal(run(ungrouped, single, pieces), expected));
    // A coded method codes nothing inside the window: it is plain fp16 attention too.
    const Method pq = make_method("pq:M=32,nbits=4,frame=off", wide);
    KvCache coded(wide.g, pq, Protocol::kDecodePath);
    CHECK(equal(run(coded, wide, pieces), expected));
  }
  for (const std::string& text : kMethods) {
    INFO(text);
    const Rows single = extended(12, {1, 64});
    const Method method = make_method(text, plain_rows);
    KvCache plain(plain_rows.g, method, Protocol::kDecodePath);
    KvCache ungrouped(single.g, method, Protocol::kDecodePath);
    CHECK(equal(run(ungrouped, single, {300, 1, 399}), run(plain, plain_rows, {300, 1, 399})));
  }
}

TEST_CASE("both regions are covered by one softmax") {
  const SelfExtend s{8, 64};
  Rows rows = extended(13, s);
  for (auto& v : rows.v) std::fill(v.begin(), v.end(), 1.0f);
  for (const char* text : {"fp16", "uniform:bits=8,axis=token,group=64,sinks=4"})
    for (const auto& pieces : {std::vector<int>{kCacheTokens}, ones(kCacheTokens)}) {
      KvCache cache(rows.g, make_method(text, rows), Protocol::kDecodePath);
      const AlignedVector<float> out = run(cache, rows, pieces);
      for (const float x : out) REQUIRE(x == Approx(1.0).margin(1e-3));
    }
}

TEST_CASE("a key changes region when it is exactly `window` tokens old") {
  // One key far larger than the others at position 100, met by every query at its own angle.
  const SelfExtend s{8, 64};
  Rows rows = extended(14, s, 300);
  const int l = rows.g.n_layers - 1, row = rows.g.row();
  for (int c = 0; c < row; ++c) rows.k[l][100 * row + c] *= 4.0f;
  const AlignedVector<float> expected = self_extend_attention(rows, s);
  KvCache cache(rows.g, make_method("fp16", rows), Protocol::kDecodePath);
  const AlignedVector<float> out = run(cache, rows, ones(300));
  const int64_t q_row = static_cast<int64_t>(rows.g.n_heads) * rows.g.head_dim;
  for (const int i : {100, 162, 163, 164, 165, 172, 244, 299})
    for (int64_t c = i * q_row; c < (i + 1) * q_row; ++c)
      REQUIRE(out[c] == Approx(expected[c]).margin(5e-3));
}

TEST_CASE("every method attends to far codes at their grouped positions") {
  const SelfExtend s{8, 64};
  const Rows rows = extended(15, s);
  const AlignedVector<float> expected = self_extend_attention(rows, s);
  for (const std::string& text : kMethods) {
    INFO(text);
    const Method method = make_method(text, rows);
    KvCache whole(rows.g, method, Protocol::kDecodePath),
        parts(rows.g, method, Protocol::kDecodePath), single(rows.g, method, Protocol::kDecodePath);
    const AlignedVector<float> out = run(whole, rows, {kCacheTokens});
    CHECK(whole.bytes().codes > 0);
    // 8-bit codes of random rows; PQ learns them nearly by heart (700 rows, 256 centroids).
    CHECK(relative_difference(out, expected) < (text.starts_with("pq") ? 0.25 : 0.05));
    CHECK(equal(run(parts, rows, {64, 3, 200, 129, 304}), out));
    CHECK(relative_difference(run(single, rows, ones(kCacheTokens)), out) < 0.02);
    CHECK(whole.bytes().codes == single.bytes().codes);
    KvCache async(rows.g, method, Protocol::kDecodePath, true);
    KvCache sync(rows.g, method, Protocol::kDecodePath, false);
    CHECK(equal(run(async, rows, ones(kCacheTokens)), run(sync, rows, ones(kCacheTokens))));
  }
}

TEST_CASE("a fork goes on alone and leaves the first as it was") {
  const SelfExtend extend{8, 64};
  for (const SelfExtend s : {SelfExtend{}, extend})
    for (const std::string& text : kMethods) {
      INFO(text << " group " << s.group);
      const Rows rows = extended(16, s), other = extended(17, s);
      const Method method = make_method(text, rows);
      KvCache cache(rows.g, method, Protocol::kDecodePath, true);
      KvCache alone(rows.g, method, Protocol::kDecodePath, true);
      const auto feed = [](KvCache& to, const Rows& from, int begin, int n) {
        const int64_t q_row = static_cast<int64_t>(from.g.n_heads) * 64, row = from.g.row();
        AlignedVector<float> out(static_cast<size_t>(n) * q_row);
        for (int l = 0; l < from.g.n_layers; ++l)
          to.attend(l, &from.q[l][begin * q_row], &from.k[l][begin * row], &from.v[l][begin * row],
                    n, out.data());
        return out;
      };
      feed(cache, rows, 0, 450);
      feed(alone, rows, 0, 450);
      KvCache fork = cache.fork();
      feed(fork, other, 450, 200);
      feed(fork, other, 650, 1);
      CHECK(fork.n_tokens() == 651);
      CHECK(equal(feed(cache, rows, 450, 250), feed(alone, rows, 450, 250)));
      CHECK(cache.bytes().codes == alone.bytes().codes);
    }
}

TEST_CASE("a group that does not divide a block frame, and wrong position texts, are refused") {
  const Rows rows = extended(18, {12, 96});
  CHECK_THROWS_WITH(make_method("pq:M=32,nbits=8,metric=q", rows),
                    Catch::Contains("frame=64 is no multiple of SelfExtend's group=12"));
  CHECK_THROWS_WITH(PositionSpec::parse("selfextend:group=6,window=1024"),
                    Catch::Contains("window=1024 is no multiple of group=6; use window=1026"));
  CHECK_THROWS_WITH(PositionSpec::parse("rope"), Catch::Contains("expected one of plain, "));
  for (const char* text : {"plain", "selfextend:group=16,window=1024", "linear:factor=8",
                           "ntk:factor=2.5", "dynamic", "yarn:factor=8"})
    CHECK(PositionSpec::parse(text).to_string() == text);
}
