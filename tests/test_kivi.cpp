// SPDX-License-Identifier: Apache-2.0
// KIVI's and quanto's codecs beyond the contract: golden values of an independent script
// (tests/golden/make_kivi_golden.py), their residual rules, and what they refuse. The cache's side
// of the rules is tested in test_kv_cache_residual.cpp.
#include "tests/quant_data.h"

#include "lib/core/error.h"
#include "lib/core/files.h"

#include <catch2/catch.hpp>

#include <cstring>

using namespace million;
using testdata::at;
using testdata::decode_all;

namespace {

struct Golden {
  Json json = Json::parse(read_file(MILLION_TEST_DIR "/golden/kivi.json"));
  KvGeometry g = testdata::geometry(1);
  int n = json["n_tokens"];
  std::vector<float> x = json["x"].get<std::vector<float>>();

  Golden() {
    g.n_heads = g.n_kv_heads = json["n_kv_heads"];
    g.head_dim = json["head_dim"];
    RopeParams rope;
    rope.n_rot = g.head_dim;
    g.rope = Rope(rope);
    REQUIRE(x.size() == static_cast<size_t>(n) * g.row());
  }

  /// Decoded [head][token][channel] of all tokens, appended in pieces.
  std::vector<float> decoded(const std::string& spec, KvKind kind, int piece) const {
    const auto store = make_codec(spec, kind, g)->make_store(0);
    for (int t = 0; t < n; t += piece)
      store->append(x.data() + static_cast<int64_t>(t) * g.row(), std::min(piece, n - t), t);
    return decode_all(*store, g);
  }

  void check(const std::vector<float>& got, const std::vector<float>& expected) const {
    REQUIRE(got.size() == expected.size());
    for (int h = 0; h < g.n_kv_heads; ++h)
      for (int t = 0; t < n; ++t)
        for (int c = 0; c < g.head_dim; ++c) {
          CAPTURE(t, c);
          // q s + z is exact up to the last bit of a fused multiply-add.
          const float want = at(expected, g, h, t, c);
          REQUIRE(got[(static_cast<size_t>(h) * n + t) * g.head_dim + c] ==
                  Approx(want).epsilon(1e-6).margin(1e-6));
        }
  }
};

std::string refusal(const std::string& spec, KvKind kind) {
  try {
    make_codec(spec, kind, testdata::geometry());
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kUsage);
    return e.what();
  }
  return "accepted";
}

}  // namespace

TEST_CASE("kivi: keys and values decode as the numpy script says", "[kivi][golden]") {
  const Golden golden;
  CHECK(golden.json["kivi"].size() == 16);  // 1, 2, 4, 8 bits, groups 8 and 32, keys and values
  for (const Json& c : golden.json["kivi"]) {
    const auto spec = c["spec"].get<std::string>();
    const KvKind kind = c["kind"] == "key" ? KvKind::kKey : KvKind::kValue;
    CAPTURE(spec, kind_name(kind));
    golden.check(golden.decoded(spec, kind, golden.n), c["decoded"].get<std::vector<float>>());
  }
}

TEST_CASE("quanto: a flush quantizes older tokens again, as the numpy script says",
          "[quanto][golden]") {
  const Golden golden;
  REQUIRE(golden.json["quanto"].size() == 4);
  for (const Json& c : golden.json["quanto"]) {
    const auto spec = c["spec"].get<std::string>();
    const auto expected = c["decoded"].get<std::vector<float>>();
    for (const int piece : {golden.n, 1, 7, 10}) {
      CAPTURE(spec, piece);
      golden.check(golden.decoded(spec, KvKind::kKey, piece), expected);
      golden.check(golden.decoded(spec, KvKind::kValue, piece), expected);
    }
  }
  // The input was made so that it matters.
  const auto decoded = [&](int i) { return golden.json["quanto"][i]["decoded"]; };
  for (const int pair : {0, 2}) CHECK((decoded(pair) != decoded(pair + 1)));
}

TEST_CASE("quanto: without a flush nothing is quantized again", "[quanto]") {
  const Golden golden;
  const auto once = golden.decoded("quanto:bits=8,group=8,requant=0", KvKind::kKey, golden.n);
  const auto decoded = [&](const char* rest) {
    return golden.decoded(std::string("quanto:bits=8,group=8,") + rest, KvKind::kKey, 1);
  };
  CHECK((decoded("residual=36") == once));  // one flush, nothing older
  CHECK((decoded("residual=0") == once));
  CHECK((decoded("residual=35") == once));
  CHECK((decoded("residual=18") != once));
}

TEST_CASE("kivi and quanto: residual rules and bits", "[kivi][quanto]") {
  const KvGeometry g = testdata::geometry();
  const auto rule = [&](const char* spec, KvKind kind) {
    return make_codec(spec, kind, g)->residual();
  };
  using Type = ResidualRule::Type;
  CHECK(rule("kivi", KvKind::kKey).type == Type::kFlush);
  CHECK(rule("kivi", KvKind::kKey).length == 128);
  CHECK(rule("kivi:residual=64", KvKind::kValue).type == Type::kSlide);
  CHECK(rule("kivi:residual=64", KvKind::kValue).length == 64);
  CHECK(rule("kivi:residual=0", KvKind::kKey).type == Type::kNone);
  CHECK(rule("kivi:residual=0", KvKind::kValue).type == Type::kNone);
  for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
    CHECK(rule("quanto:residual=50", kind).type == Type::kFlush);
    CHECK(rule("quanto:residual=0", kind).type == Type::kNone);
    CHECK(make_codec("quanto", kind, g)->rewrites_codes());
    CHECK(!make_codec("quanto:requant=0", kind, g)->rewrites_codes());
    CHECK(!make_codec("quanto:residual=0", kind, g)->rewrites_codes());
    CHECK(make_codec("kivi:bits=2,group=32", kind, g)->nominal_bits() == 3.0);
    CHECK(make_codec("kivi:bits=4,group=64", kind, g)->nominal_bits() == 4.5);
    CHECK(make_codec("quanto", kind, g)->nominal_bits() == 4.5);
  }
  CHECK(make_codec("kivi", KvKind::kKey, g)->block_tokens() == 32);
  CHECK(make_codec("kivi", KvKind::kValue, g)->block_tokens() == 1);
  CHECK(make_codec("kivi", KvKind::kKey, g)->spec() == "kivi:bits=2,group=32,residual=128");
  CHECK(make_codec("quanto", KvKind::kKey, g)->spec() ==
        "quanto:bits=4,group=64,residual=128,requant=1");
}

TEST_CASE("kivi: no group of keys straddles a flush", "[kivi]") {
  const KvGeometry g = testdata::geometry();
  const auto x = testdata::rows(g, 256);
  // What lies behind a flush of 64 tokens must not move what was coded before it.
  for (const char* spec : {"kivi:group=32,residual=64", "kivi:group=64,residual=64"}) {
    const auto codec = make_codec(spec, KvKind::kKey, g);
    REQUIRE(codec->residual().length % codec->block_tokens() == 0);
    for (const int flushed : {64, 128, 192}) {
      auto other = x;
      for (size_t i = static_cast<size_t>(flushed) * g.row(); i < other.size(); ++i) other[i] *= 50;
      const auto a = codec->make_store(0), b = codec->make_store(0);
      a->append(x.data(), 256, 0);
      b->append(other.data(), 256, 0);
      for (int h = 0; h < g.n_kv_heads; ++h) {
        std::vector<float> before(static_cast<size_t>(flushed) * g.head_dim), after(before.size());
        a->decode(h, 0, flushed, before.data());
        b->decode(h, 0, flushed, after.data());
        CHECK(before == after);
      }
    }
  }
}

TEST_CASE("kivi and quanto: wrong options are named", "[kivi][quanto]") {
  using Catch::Contains;
  CHECK_THAT(refusal("kivi:group=32,residual=100", KvKind::kKey), Contains("multiple"));
  CHECK_THAT(refusal("kivi:group=48,residual=96", KvKind::kValue), Contains("does not divide"));
  CHECK(refusal("kivi:group=48,residual=96", KvKind::kKey) == "accepted");
  CHECK_THAT(refusal("quanto:group=48", KvKind::kKey), Contains("does not divide"));
  CHECK_THAT(refusal("kivi:bits=9", KvKind::kKey), Contains("1 to 8"));
  CHECK_THAT(refusal("quanto:bits=0", KvKind::kKey), Contains("1 to 8"));
  CHECK_THAT(refusal("uniform:bits=1,symmetric=1", KvKind::kKey), Contains("bits=2"));
  CHECK(refusal("uniform:bits=1", KvKind::kKey) == "accepted");
}
