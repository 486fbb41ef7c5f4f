// SPDX-License-Identifier: Apache-2.0
// The cache against plain double-precision attention over rows that the test keeps itself, and its
// promises: any split of a sequence gives one result, background encoding changes nothing, a token
// is in exactly one of sinks, codes and window.
#include "tests/cache_data.h"

#include "kernels/ops.h"
#include "lib/cache/encoder.h"
#include "lib/cache/kind_cache.h"
#include "lib/core/error.h"
#include "lib/core/parallel.h"

#include <catch2/catch.hpp>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <thread>

using namespace million;
using namespace million::testdata;

namespace {

constexpr int kTokens = kCacheTokens;

/// Plain causal attention of the last layer in double over f16-rounded rows.
AlignedVector<float> plain_attention(const Rows& rows, int n) {
  const KvGeometry& g = rows.g;
  const int l = g.n_layers - 1;
  AlignedVector<float> out(static_cast<size_t>(n) * g.n_heads * g.head_dim);
  std::vector<double> p(n);
  for (int i = 0; i < n; ++i)
    for (int h = 0; h < g.n_heads; ++h) {
      const int64_t kv = (h / g.group()) * g.head_dim;
      const float* q = rows.q[l].data() + (static_cast<int64_t>(i) * g.n_heads + h) * g.head_dim;
      double top = -1e300, sum = 0.0;
      for (int t = 0; t <= i; ++t) {
        p[t] = 0.0;
        for (int c = 0; c < g.head_dim; ++c)
          p[t] += q[c] * half_to_float(float_to_half(rows.k[l][t * g.row() + kv + c])) / 8.0;
        top = std::max(top, p[t]);
      }
      for (int t = 0; t <= i; ++t) sum += p[t] = std::exp(p[t] - top);
      for (int c = 0; c < g.head_dim; ++c) {
        double o = 0.0;
        for (int t = 0; t <= i; ++t)
          o += p[t] / sum * half_to_float(float_to_half(rows.v[l][t * g.row() + kv + c]));
        out[(static_cast<int64_t>(i) * g.n_heads + h) * g.head_dim + c] = static_cast<float>(o);
      }
    }
  return out;
}

/// Methods whose stores work in every way a store can: exact, row by row, in groups of tokens,
/// before RoPE, with outliers, keys and values apart.
const std::vector<std::string> kMethods = {"pq:M=32,nbits=4,frame=off,sinks=4",
                                           "pq:M=16,nbits=4,frame=pre,sinks=4,window=32",
                                           "pq:M=16,nbits=4,metric=q,sinks=4",
                                           "uniform:bits=4,axis=token,group=64",
                                           "uniform:bits=4,axis=channel,group=32,window=16",
                                           "kvquant:bits=3,outliers=0.01,sinks=1"};

}  // namespace

TEST_CASE("the fp16 cache is plain attention over f16 rows, chunked and one by one") {
  const Rows rows(1);
  const AlignedVector<float> expected = plain_attention(rows, kTokens);
  const Method method = make_method("fp16", rows);
  for (const auto& pieces :
       {std::vector<int>{kTokens}, std::vector<int>{300, 1, 399}, ones(kTokens)})
    for (Protocol protocol : {Protocol::kDecodePath, Protocol::kAllDistorted}) {
      KvCache cache(rows.g, method, protocol);
      CHECK(relative_difference(run(cache, rows, pieces), expected) < 1e-5);
      CHECK(cache.n_tokens() == kTokens);
      CHECK(cache.bytes().window >= static_cast<uint64_t>(kTokens) * rows.g.row() * 2 * 2 * 2);
    }
}

TEST_CASE("outputs do not depend on how a sequence is cut") {
  const Rows rows(2);
  for (const std::string& text : kMethods) {
    INFO(text);
    const Method method = make_method(text, rows);
    KvCache whole(rows.g, method, Protocol::kDecodePath),
        parts(rows.g, method, Protocol::kDecodePath), single(rows.g, method, Protocol::kDecodePath);
    const AlignedVector<float> expected = run(whole, rows, {kTokens});
    const AlignedVector<float> chunked = run(parts, rows, {64, 3, 200, 129, 304});
    CHECK(std::memcmp(chunked.data(), expected.data(), expected.size() * sizeof(float)) == 0);
    // Single steps sum in another order, and fused kernels may use 8-bit tables
    // (kernels/README.md).
    CHECK(relative_difference(run(single, rows, ones(kTokens)), expected) < 0.02);
    CHECK(whole.bytes().codes == single.bytes().codes);
    CHECK(whole.bytes().scales == single.bytes().scales);
    CHECK(whole.bytes().outliers == single.bytes().outliers);
  }
}

TEST_CASE("bf16 products change chunks by little, and no row depends on its chunk") {
  if (attend_tile_bf16() == nullptr) return;  // this CPU or level has none
  const Rows rows(14);
  for (const std::string text : {"fp16", "pq:M=32,nbits=4,frame=off,sinks=4"}) {
    INFO(text);
    const Method method = make_method(text, rows);
    KvCache exact(rows.g, method, Protocol::kDecodePath),
        whole(rows.g, method, Protocol::kDecodePath), parts(rows.g, method, Protocol::kDecodePath);
    whole.set_bf16_products(true);
    parts.set_bf16_products(true);
    const AlignedVector<float> expected = run(exact, rows, {kTokens});
    const AlignedVector<float> got = run(whole, rows, {kTokens});
    const double difference = relative_difference(got, expected);
    CHECK(difference > 1e-5);
    CHECK(difference < 0.01);
    const AlignedVector<float> chunked = run(parts, rows, {64, 3, 200, 129, 304});
    CHECK(std::memcmp(chunked.data(), got.data(), got.size() * sizeof(float)) == 0);
  }
}

TEST_CASE("decoding through codes is near the exact output and not equal to it") {
  const Rows rows(3);
  const AlignedVector<float> exact = plain_attention(rows, kTokens);
  for (const std::string& text : kMethods)
    for (Protocol protocol : {Protocol::kDecodePath, Protocol::kAllDistorted}) {
      INFO(text << " " << protocol_name(protocol));
      KvCache cache(rows.g, make_method(text, rows), protocol);
      const double error = relative_difference(run(cache, rows, {kTokens}), exact);
      CHECK(error > 1e-3);
      CHECK(error < 1.0);  // random rows are hard: no structure to learn
    }
}

TEST_CASE("every token but the sinks and the window is coded, also those that came one at a time") {
  const Rows rows(4);
  const Method method = make_method("uniform:bits=8,axis=token,group=64,sinks=5,window=32", rows);
  KvCache cache(rows.g, method, Protocol::kDecodePath);
  run(cache, rows, ones(kTokens));
  // Window 32, lag 8, blocks of 64: sealed = floor((700 - 5 - 32 - 8) / 64) * 64 = 640 tokens, so
  // 55 exact ones behind them, in segments of 64 that start where the codes end.
  const uint64_t token = static_cast<uint64_t>(rows.g.row()) * 2 * 2 * rows.g.n_layers;
  CHECK(cache.bytes().sinks == 5 * token);
  CHECK(cache.bytes().window == 64 * token);
  CHECK(cache.bytes().codes >= 640 * token / 2);
  CHECK(cache.bytes().codes <= (640 + kPqBlock) * token / 2);
}

TEST_CASE("sinks and window are exact: with all tokens inside them the output is the exact one") {
  const Rows rows(5);
  const AlignedVector<float> exact = plain_attention(rows, kTokens);
  for (const char* keep : {"sinks=700", "window=700", "sinks=300,window=400"})
    for (Protocol protocol : {Protocol::kDecodePath, Protocol::kAllDistorted}) {
      INFO(keep << " " << protocol_name(protocol));
      const std::string text = std::string("uniform:bits=2,axis=token,group=64,") + keep;
      KvCache cache(rows.g, make_method(text, rows), protocol);
      CHECK(relative_difference(run(cache, rows, {kTokens}), exact) < 1e-5);
    }
}

TEST_CASE("encoding in the background gives the bits of synchronous encoding") {
  const Rows rows(6);
  for (const std::string& text : kMethods) {
    INFO(text);
    const Method method = make_method(text, rows);
    KvCache sync(rows.g, method, Protocol::kDecodePath, false);
    KvCache async(rows.g, method, Protocol::kDecodePath, true);
    std::vector<int> pieces = {200};
    for (int i = 0; i < 500; ++i) pieces.push_back(1);
    const AlignedVector<float> a = run(sync, rows, pieces), b = run(async, rows, pieces);
    CHECK(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
  }
}

TEST_CASE("chunks decode codes while the worker appends later ones") {
  const Rows rows(16);
  for (const char* text : {"kvquant:bits=4,outliers=0.01", "pq:M=32,nbits=8,frame=off,sinks=4"}) {
    INFO(text);
    const Method method = make_method(text, rows);
    const std::vector<int> pieces(rows.n / 35, 35);
    KvCache sync(rows.g, method, Protocol::kDecodePath, false);
    const AlignedVector<float> expected = run(sync, rows, pieces);
    for (int round = 0; round < 5; ++round) {
      KvCache async(rows.g, method, Protocol::kDecodePath, true);
      const AlignedVector<float> got = run(async, rows, pieces);
      CHECK(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("a cleared cache is a new one") {
  const Rows rows(7);
  for (bool async : {false, true}) {
    KvCache cache(rows.g, make_method(kMethods[0], rows), Protocol::kDecodePath, async);
    const AlignedVector<float> first = run(cache, rows, {500, 1, 1});
    cache.clear();
    CHECK(cache.n_tokens() == 0);
    const AlignedVector<float> second = run(cache, rows, {500, 1, 1});
    CHECK(std::memcmp(first.data(), second.data(), first.size() * sizeof(float)) == 0);
  }
}

TEST_CASE("all-distorted with groups of tokens or a window refuses a second call") {
  const Rows rows(8);
  for (const char* text :
       {"uniform:bits=4,axis=channel,group=32", "uniform:bits=4,axis=token,group=64,window=16"}) {
    KvCache cache(rows.g, make_method(text, rows), Protocol::kAllDistorted);
    CHECK_THROWS_WITH(run(cache, rows, {100, 100}), Catch::Contains("one call"));
  }
  KvCache row_wise(rows.g, make_method("uniform:bits=4,axis=token,group=64", rows),
                   Protocol::kAllDistorted);
  KvCache whole(rows.g, make_method("uniform:bits=4,axis=token,group=64", rows),
                Protocol::kAllDistorted);
  CHECK(relative_difference(run(row_wise, rows, {100, 100, 500}), run(whole, rows, {700})) < 1e-5);
}

TEST_CASE("results do not depend on the number of threads") {
  const Rows rows(9);
  const Method method = make_method(kMethods[0], rows);
  const int before = threads();
  std::vector<AlignedVector<float>> results;
  for (int n : {1, 2, 4}) {
    set_threads(n);
    KvCache cache(rows.g, method, Protocol::kDecodePath);
    results.push_back(run(cache, rows, {300, 1, 1, 398}));
  }
  set_threads(before);
  for (const auto& r : results)
    CHECK(std::memcmp(r.data(), results[0].data(), r.size() * sizeof(float)) == 0);
}

TEST_CASE("measured bits come from allocated bytes and fall with the bits of the codes") {
  const Rows rows(10);
  double before = 17.0;
  for (int bits : {8, 4, 2}) {
    const std::string text = "uniform:axis=token,group=64,bits=" + std::to_string(bits);
    KvCache cache(rows.g, make_method(text, rows), Protocol::kAllDistorted);
    run(cache, rows, {kTokens});
    CHECK(cache.measured_bits(false) >= bits + 0.5);  // scale and minimum of 64 values
    CHECK(cache.measured_bits(false) < before);
    before = cache.measured_bits(false);
  }
}

TEST_CASE("a job that fails in the background is reported by the next wait") {
  BlockEncoder encoder(true);
  std::atomic<int> ran{0};
  const auto job = [&](bool fails) {
    EncodeJob j;
    j.run = [&ran, fails](EncodeJob&) {
      ++ran;
      if (fails) fail(ErrorCode::kFailed, "job broke");
    };
    return j;
  };
  encoder.submit(job(false));
  const int64_t ticket = encoder.submit(job(true));
  CHECK_THROWS_WITH(encoder.wait(ticket), Catch::Contains("job broke"));
  CHECK(ran == 2);
  const int64_t last = encoder.submit(job(false));  // and the encoder works on
  encoder.wait(last);
  CHECK(ran == 3);
}

TEST_CASE("queued jobs start when they are allowed or waited for, not before") {
  BlockEncoder encoder(true);
  std::atomic<int> ran{0};
  const auto submit = [&] {
    EncodeJob job;
    job.run = [&ran](EncodeJob&) { ++ran; };
    return encoder.submit(std::move(job));
  };
  const int64_t first = submit(), second = submit();
  submit();
  CHECK(ran == 0);  // nothing may start it, so this cannot race
  encoder.allow(1);
  encoder.wait(first);
  CHECK(ran == 1);
  encoder.wait(second);
  CHECK(ran == 2);
  encoder.allow(100);
  const int64_t last = submit();
  CHECK(last == 4);
  encoder.wait(last);
  CHECK(ran == 4);
}

TEST_CASE(
    "a step waits for the block whose codes it sees, not for the one it has just handed over") {
  const Rows rows(6);
  const Method method = make_method("uniform:bits=4,group=64,sinks=4", rows);
  KindCache kind(rows.g, {Protocol::kDecodePath, false, 4, 0, kSealTokens, {}}, KeyFrame{},
                 method.key_codec->make_store(0));
  BlockEncoder encoder(true);
  kind.append_exact(rows.k[0].data(), 4 + 3 * kSealTokens);
  kind.start_encoding(kSealTokens, encoder);
  kind.start_encoding(3 * kSealTokens, encoder);
  CHECK(kind.ticket(kSealTokens) == 1);
  CHECK(kind.ticket(kSealTokens + 1) == 2);
  CHECK(kind.last_ticket() == 2);
  encoder.wait(1);
  kind.drop(kSealTokens);
  CHECK(kind.ticket(kSealTokens) == 1);  // a method's own rule drops rows before it waits
  encoder.wait(kind.ticket(3 * kSealTokens));
  kind.drop(3 * kSealTokens);
  CHECK(kind.store().n_tokens() == 3 * kSealTokens);
}
