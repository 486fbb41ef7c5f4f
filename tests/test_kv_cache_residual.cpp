// SPDX-License-Identifier: Apache-2.0
// Methods that keep recent tokens by a rule of their own (ResidualRule): which tokens a query sees
// as codes, against plain double attention over rows that this file puts together from the papers'
// rules and the bare stores; any split of a sequence, background encoding, bytes.
#include "tests/cache_data.h"

#include "lib/core/error.h"

#include <catch2/catch.hpp>

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>

using namespace million;
using namespace million::testdata;

namespace {

constexpr int kN = 300;

/// Coded tokens that the query at index i (behind the sinks) sees.
using Seen = std::function<int(int i)>;
Seen flush(int r) {
  return [r](int i) { return i < 0 ? 0 : i / r * r; };
}
Seen slide(int r) {
  return [r](int i) { return std::max(0, i - r); };
}
/// The cache's own rule without a window (lib/cache/README.md).
Seen sealed(int block) {
  return [block](int i) { return std::max(0, i + 1 - 16) / block * block; };
}
Seen everything() {
  return [](int i) { return i + 1; };
}

/// Rows of one kind of the last layer as queries see them: f16 before the sinks' end and behind the
/// codes, decoded in between. What a store decodes depends on how many tokens it holds where
/// appending rewrites codes.
class SeenRows {
 public:
  SeenRows(const Rows& rows, bool keys, const Codec& codec, int sinks)
      : g_(rows.g), keys_(keys), codec_(codec), n_tokens_(rows.n), sinks_(sinks) {
    const AlignedVector<float>& x = keys ? rows.k.back() : rows.v.back();
    for (float value : x) exact_.push_back(half_to_float(float_to_half(value)));
  }

  float at(int token, int column, int n_coded) {
    if (token < sinks_ || token >= sinks_ + n_coded) return exact_[token * g_.row() + column];
    const int held = codec_.rewrites_codes() ? n_coded : n_tokens_ - sinks_;
    std::vector<float>& rows = decoded_[held];
    if (rows.empty()) rows = decode(held);
    return rows[(token - sinks_) * g_.row() + column];
  }

 private:
  std::vector<float> decode(int n) const {
    const int row = g_.row(), d = g_.head_dim;
    std::vector<float> x(exact_.begin() + sinks_ * row, exact_.begin() + (sinks_ + n) * row);
    const auto turn = [&](int sign) {
      for (int t = 0; keys_ && t < n; ++t)
        g_.rope.move(x.data() + t * row, g_.n_kv_heads, d,
                     sign * (sinks_ + t - codec_.frame().position(sinks_ + t)));
    };
    turn(-1);
    const auto store = codec_.make_store(g_.n_layers - 1);
    store->append(x.data(), n, sinks_);
    std::vector<float> head(static_cast<size_t>(n) * d);
    for (int h = 0; h < g_.n_kv_heads; ++h) {
      store->decode(h, 0, n, head.data());
      for (int t = 0; t < n; ++t) std::copy_n(&head[t * d], d, &x[t * row + h * d]);
    }
    turn(1);
    return x;
  }

  KvGeometry g_;
  bool keys_;
  const Codec& codec_;
  int n_tokens_, sinks_;
  std::vector<float> exact_;
  std::map<int, std::vector<float>> decoded_;
};

/// Plain causal attention of the last layer in double over the rows that the rules say.
AlignedVector<float> plain_attention(const Rows& rows, const Method& m, const Seen& seen_k,
                                     const Seen& seen_v) {
  const KvGeometry& g = rows.g;
  const int d = g.head_dim, sinks = m.spec.sinks;
  SeenRows k(rows, true, *m.key_codec, sinks), v(rows, false, *m.value_codec, sinks);
  AlignedVector<float> out(static_cast<size_t>(rows.n) * g.n_heads * d);
  std::vector<double> p(rows.n);
  for (int i = 0; i < rows.n; ++i) {
    const int n_k = i < sinks ? 0 : seen_k(i - sinks), n_v = i < sinks ? 0 : seen_v(i - sinks);
    for (int h = 0; h < g.n_heads; ++h) {
      const int column = (h / g.group()) * d;
      const float* q = rows.q.back().data() + (static_cast<int64_t>(i) * g.n_heads + h) * d;
      double top = -1e300, sum = 0.0;
      for (int t = 0; t <= i; ++t) {
        p[t] = 0.0;
        for (int c = 0; c < d; ++c) p[t] += q[c] * k.at(t, column + c, n_k) / 8.0;
        top = std::max(top, p[t]);
      }
      for (int t = 0; t <= i; ++t) sum += p[t] = std::exp(p[t] - top);
      for (int c = 0; c < d; ++c) {
        double o = 0.0;
        for (int t = 0; t <= i; ++t) o += p[t] / sum * v.at(t, column + c, n_v);
        out[(static_cast<int64_t>(i) * g.n_heads + h) * d + c] = static_cast<float>(o);
      }
    }
  }
  return out;
}

/// Every query's outputs; one token more or less from codes moves a 2-bit row by more than 1e-3.
void check_rows(const AlignedVector<float>& got, const AlignedVector<float>& expected, int n) {
  REQUIRE(got.size() == expected.size());
  const size_t row = got.size() / n;
  double worst = 0.0;
  int at = 0;
  for (int i = 0; i < n; ++i) {
    double error = 0.0, norm = 0.0;
    for (size_t c = i * row; c < (i + 1) * row; ++c) {
      error += (got[c] - expected[c]) * (got[c] - expected[c]);
      norm += expected[c] * expected[c];
    }
    if (std::sqrt(error / norm) <= worst) continue;
    worst = std::sqrt(error / norm);
    at = i;
  }
  CAPTURE(at);
  CHECK(worst < 1e-5);
}

bool same_bits(const AlignedVector<float>& a, const AlignedVector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct Case {
  std::string text;
  Seen seen_k, seen_v;
};

/// Rules of one kind or both, beside methods without one: row by row, in groups, before RoPE,
/// exact.
std::vector<Case> decode_cases() {
  return {
      {"kivi:bits=2,group=32,residual=64", flush(64), slide(64)},
      {"kivi:bits=2,group=16,residual=48,sinks=5", flush(48), slide(48)},
      {"kivi:bits=4,group=64,residual=0,sinks=1", sealed(64), sealed(64)},
      {"quanto:bits=4,group=64,residual=64,sinks=3", flush(64), flush(64)},
      {"quanto:bits=8,group=16,residual=40,requant=0", flush(40), flush(40)},
      {"kivi:bits=2,group=32,residual=64 | quanto:bits=2,group=32,residual=50", flush(64),
       flush(50)},
      {"kivi:bits=2,group=32,residual=64 | uniform:bits=3,axis=token,group=32", flush(64),
       sealed(64)},
      {"uniform:bits=2,axis=channel,group=48,sinks=4 | kivi:bits=2,group=32,residual=32",
       sealed(192), slide(32)},
      {"quanto:bits=2,residual=32 | uniform:bits=2,axis=channel,group=50", flush(32), sealed(1600)},
      {"pq:M=32,nbits=4,frame=pre,sinks=2 | kivi:bits=2,group=32,residual=64", sealed(64),
       slide(64)},
      {"fp16 | kivi:bits=2,group=32,residual=64", sealed(64), slide(64)},
  };
}

}  // namespace

TEST_CASE("a query sees the codes that the residual rule says, in any split", "[residual]") {
  const Rows rows(21, kN);
  for (const Case& c : decode_cases()) {
    INFO(c.text);
    const Method method = make_method(c.text, rows);
    const auto expected = plain_attention(rows, method, c.seen_k, c.seen_v);
    const auto output = [&](const std::vector<int>& pieces) {
      KvCache cache(rows.g, method, Protocol::kDecodePath);
      return run(cache, rows, pieces);
    };
    const auto whole = output({kN});
    check_rows(whole, expected, kN);
    check_rows(output(ones(kN)), expected, kN);
    // Tokens that come one by one are coded too, whatever the prompt was.
    std::vector<int> decoding = {63, 1, 1, 2, 61};
    while (decoding.size() < 5 + kN - 128) decoding.push_back(1);
    check_rows(output(decoding), expected, kN);
    CHECK(same_bits(output({64, 3, 100, 90, 43}), whole));
    CHECK(same_bits(output({50, 14, 2, 62, 40, 132}), whole));
  }
}

TEST_CASE("all-distorted follows the residual rule of each kind", "[residual]") {
  const Rows rows(22, kN);
  const std::vector<Case> cases = {
      {"kivi:bits=2,group=32,residual=64,sinks=4", flush(64), slide(64)},
      {"quanto:bits=4,group=64,residual=64", flush(64), flush(64)},
      {"kivi:bits=2,group=32,residual=64 | uniform:bits=3,axis=token,group=32", flush(64),
       everything()},
      {"uniform:bits=2,axis=token,group=32,sinks=3 | quanto:bits=2,group=32,residual=32",
       everything(), flush(32)},
  };
  for (const Case& c : cases) {
    INFO(c.text);
    const Method method = make_method(c.text, rows);
    const auto expected = plain_attention(rows, method, c.seen_k, c.seen_v);
    for (const auto& pieces : {std::vector<int>{kN}, std::vector<int>{100, 29, 171}, ones(kN)}) {
      KvCache cache(rows.g, method, Protocol::kAllDistorted);
      check_rows(run(cache, rows, pieces), expected, kN);
    }
  }
  // Groups of tokens without a rule must come at once; beside a rule that cuts runs they may.
  const Method groups = make_method(
      "uniform:bits=2,axis=channel,group=50 | quanto:bits=2,group=32,residual=32", rows);
  KvCache once(rows.g, groups, Protocol::kAllDistorted),
      twice(rows.g, groups, Protocol::kAllDistorted);
  check_rows(run(once, rows, {kN}),
             plain_attention(
                 rows, groups, [](int i) { return i + 1; }, flush(32)),
             kN);
  CHECK_THROWS_WITH(run(twice, rows, {100, 200}), Catch::Contains("one call"));
}

TEST_CASE("background encoding under residual rules gives the bits of synchronous encoding",
          "[residual]") {
  const Rows rows(23, kN);
  std::vector<int> pieces = {70};
  while (pieces.size() < 1 + kN - 70) pieces.push_back(1);
  for (const Case& c : decode_cases()) {
    INFO(c.text);
    const Method method = make_method(c.text, rows);
    KvCache sync(rows.g, method, Protocol::kDecodePath, false);
    KvCache async(rows.g, method, Protocol::kDecodePath, true);
    CHECK(same_bits(run(sync, rows, pieces), run(async, rows, pieces)));
    sync.clear();
    async.clear();
    CHECK(same_bits(run(sync, rows, {kN}), run(async, rows, {100, 200})));
  }
}

TEST_CASE("exact rows are held as long as the rule of their kind needs", "[residual]") {
  constexpr int kR = 64, kSegment = 32;
  const Rows rows(24, kN);
  const Method method = make_method("kivi:bits=2,group=32,residual=64", rows);
  const KvGeometry& g = rows.g;
  const uint64_t row = static_cast<uint64_t>(g.row()) * 2 * g.n_layers;  // one kind, all layers
  const auto segments = [](int first, int end) {
    return first == end ? 0 : (end + kSegment - 1) / kSegment - first / kSegment;
  };
  for (const int n : {1, kR - 1, kR, kR + 1, 2 * kR, 2 * kR + 1, kN}) {
    CAPTURE(n);
    KvCache single(g, method, Protocol::kDecodePath), whole(g, method, Protocol::kDecodePath);
    run(single, rows, ones(n));
    run(whole, rows, {n});
    const int key_codes = n / kR * kR, value_codes = std::max(0, n - kR);
    const uint64_t expected = (segments(key_codes, n) + segments(value_codes, n)) * kSegment * row;
    CHECK(single.bytes().window == expected);
    CHECK(whole.bytes().window == expected);
    CHECK(single.bytes().codes == whole.bytes().codes);
    CHECK(single.bytes().scales == whole.bytes().scales);
    CHECK((single.bytes().codes > 0) == (n >= kR));
    // 2 bits of at least the coded tokens, of whole blocks of 128 at most, and the list of blocks.
    const uint64_t coded = (key_codes + value_codes) * row / 8;
    CHECK(single.bytes().codes >= coded);
    CHECK(single.bytes().codes <= coded + 2 * 128 * row / 8 + 512);
  }
}

TEST_CASE("a window beside a residual rule is refused", "[residual]") {
  const Rows rows(25, 64);
  const auto make = [&](const std::string& text) {
    KvCache cache(rows.g, make_method(text, rows), Protocol::kDecodePath);
  };
  for (const char* text : {"kivi:window=32", "quanto:window=1", "uniform:window=8 | kivi",
                           "kivi | uniform:axis=token,window=8"}) {
    try {
      make(text);
      FAIL("accepted " << text);
    } catch (const Error& e) {
      CHECK(e.code() == ErrorCode::kUsage);
      CHECK_THAT(e.what(), Catch::Contains("residual=0"));
      CHECK(std::string(e.what()).find('\n') == std::string::npos);
    }
  }
  make("kivi:residual=0,window=32");
  make("quanto:residual=0,window=32");
  make("kivi:window=0");
}
