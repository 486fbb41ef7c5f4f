// SPDX-License-Identifier: Apache-2.0
// Checks that the methods' papers and code suggest, under their own names: splits of a sequence
// that get no token, and the residual whose flush comes with its last token and not one later.
#include "tests/cache_data.h"

#include "kernels/ops.h"

#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>

using namespace million;
using namespace million::testdata;

namespace {

constexpr int kDim = 64, kGroup = 3;

struct Attention {
  std::vector<SoftmaxState> state = std::vector<SoftmaxState>(kGroup);
  AlignedVector<float> acc = AlignedVector<float>(kGroup * kDim, 0.0f);
};

Attention attend(const AlignedVector<float>& q, const AlignedVector<float>& k,
                 const AlignedVector<float>& v, int begin, int end) {
  Attention a;
  if (begin < end)
    ops().attend_f32({kGroup, kDim, end - begin, q.data(), k.data() + begin * kDim,
                      v.data() + begin * kDim, a.state.data(), a.acc.data()});
  return a;
}

AlignedVector<float> normal(Rng& rng, int n) {
  AlignedVector<float> x(n);
  for (float& value : x) value = static_cast<float>(rng.normal());
  return x;
}

}  // namespace

TEST_CASE("splits, some of them without a token, merge to the output of one pass") {
  Rng rng(5);
  for (const int n : {1, 2, 63, 64, 65, 127, 128, 129, 257, 1000})
    for (const int splits : {1, 2, 4, 16, 32}) {
      INFO(n << " tokens in " << splits << " splits");
      const auto q = normal(rng, kGroup * kDim), k = normal(rng, n * kDim);
      const auto v = normal(rng, n * kDim);
      const Attention whole = attend(q, k, v, 0, n);
      // As in the release: splits of ceil(n / splits) tokens, the last of which may have none.
      const int size = (n + splits - 1) / splits;
      Attention merged;
      int empty = 0;
      for (int s = 0; s < splits; ++s) {
        const int begin = std::min(n, s * size), end = std::min(n, begin + size);
        const Attention part = attend(q, k, v, begin, end);
        empty += begin == end;
        for (int h = 0; h < kGroup; ++h) {
          const SoftmaxState before = merged.state[h];
          merge_softmax(merged.state[h], &merged.acc[h * kDim], part.state[h], &part.acc[h * kDim],
                        kDim);
          if (begin == end) {  // weight exactly 0
            CHECK(merged.state[h].max == before.max);
            CHECK(merged.state[h].sum == before.sum);
          }
        }
      }
      if (n == 129 && splits == 32) CHECK(empty > 0);
      for (int h = 0; h < kGroup; ++h)
        for (int c = 0; c < kDim; ++c) {
          const float got = merged.acc[h * kDim + c] / merged.state[h].sum;
          REQUIRE(std::isfinite(got));
          REQUIRE(got == Approx(whole.acc[h * kDim + c] / whole.state[h].sum).margin(1e-5));
        }
    }
}

TEST_CASE("a residual is flushed when it is full and not a token later") {
  const Rows rows(6, 400);
  const Method method = make_method("kivi:bits=2,group=32,residual=128", rows);
  KvCache cache(rows.g, method, Protocol::kDecodePath);
  const int64_t q_row = static_cast<int64_t>(rows.g.n_heads) * kDim, row = rows.g.row();
  AlignedVector<float> out(q_row);
  const uint64_t halves = static_cast<uint64_t>(row) * 2 * rows.g.n_layers;  // of one kind's token
  const auto feed = [&](int from, int to) {
    for (int t = from; t < to; ++t)
      for (int l = 0; l < rows.g.n_layers; ++l)
        cache.attend(l, &rows.q[l][t * q_row], &rows.k[l][t * row], &rows.v[l][t * row], 1,
                     out.data());
  };
  for (int round = 0; round < 2; ++round) {  // the second after clear()
    feed(0, 127);
    CHECK(cache.bytes().codes == 0);
    CHECK(cache.bytes().window >= 2 * 127 * halves);
    feed(127, 128);  // keys: all 128 are codes now; values: none is
    CHECK(cache.bytes().codes > 0);
    CHECK(cache.bytes().window == 128 * halves);
    const uint64_t keys = cache.bytes().codes;
    feed(128, 129);  // one value is coded, one key waits
    CHECK(cache.bytes().codes > keys);
    feed(129, 255);
    // 255 tokens: 127 keys wait, 128 values are exact.
    CHECK(cache.bytes().window >= (127 + 128) * halves);
    CHECK(cache.bytes().window <= (160 + 160) * halves);
    cache.clear();
    CHECK(cache.bytes().cache() == 0);
  }
  // A prompt that is shorter than the residual is exact.
  const Method fp16 = make_method("fp16", rows);
  KvCache exact(rows.g, fp16, Protocol::kDecodePath);
  const Rows brief(7, 100);
  CHECK(relative_difference(run(cache, brief, {100}), run(exact, brief, {100})) == 0.0);
}
