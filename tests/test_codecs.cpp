// SPDX-License-Identifier: Apache-2.0
// What each method must do beyond the contract: facts of the papers (shared in lib/quant/README.md)
// and values computed by an independent script (tests/golden/make_quant_golden.py).
#include "tests/quant_data.h"

#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/quant/bitpack.h"
#include "lib/quant/codebook.h"
#include "lib/quant/nuq.h"
#include "lib/quant/outliers.h"

#include <spdlog/spdlog.h>
#include <catch2/catch.hpp>

#include <algorithm>
#include <cstring>
#include <numeric>

using namespace million;
using testdata::at;
using testdata::decode_all;

namespace {

[[maybe_unused]] const bool kQuiet = (spdlog::set_level(spdlog::level::err), true);

const CalibrationSet& data() {
  static const CalibrationSet set = testdata::calibration(testdata::geometry());
  return set;
}

std::unique_ptr<Codec> trained(const std::string& spec, KvKind kind) {
  auto codec = make_codec(spec, kind, data().geometry);
  codec->train(data(), 4);
  return codec;
}

std::vector<float> coded(const Codec& codec, const std::vector<float>& x, int layer = 1) {
  const auto store = codec.make_store(layer);
  store->append(x.data(), static_cast<int>(x.size()) / data().geometry.row(), 0);
  return decode_all(*store, data().geometry);
}

/// decoded [head][token][channel] at the same place as at(x, ...).
float decoded_at(const std::vector<float>& y, const KvGeometry& g, int h, int t, int c) {
  const int n = static_cast<int>(y.size()) / g.row();
  return y[(static_cast<size_t>(h) * n + t) * g.head_dim + c];
}

}  // namespace

TEST_CASE("calibration rows: frame, sinks, magnitude", "[calibration]") {
  const CalibrationSet& set = data();
  const KvGeometry& g = set.geometry;
  const auto raw = calibration_rows(set, KvKind::kKey, 1, 2, {KeyFrame::Type::kPreRope, 0}, 4);
  CHECK(raw.size() == static_cast<size_t>(2 * (512 - 4)) * 64);  // two windows
  const auto exact = [&](int64_t t, int c) {
    return half_to_float(set.k_pre[1][t * g.row() + 2 * 64 + c]);
  };
  for (int c = 0; c < 64; ++c) {
    CHECK(raw[c] == exact(4, c));
    CHECK(raw[508 * 64 + c] == exact(512 + 4, c));
  }
  const auto turned = calibration_rows(set, KvKind::kKey, 1, 2, {}, 4);
  const auto block = calibration_rows(set, KvKind::kKey, 1, 2, {KeyFrame::Type::kBlock, 64}, 4);
  std::vector<float> row(64), row_block(64);
  for (int c = 0; c < 64; ++c) row[c] = row_block[c] = exact(512 + 104, c);
  g.rope.rotate_to(row.data(), 1, 64, 104);
  g.rope.rotate_to(row_block.data(), 1, 64, 104 % 64);
  for (int c = 0; c < 64; ++c) {
    CHECK(turned[(508 + 100) * 64 + c] == row[c]);
    CHECK(block[(508 + 100) * 64 + c] == row_block[c]);
  }
  CalibrationSet yarn = set;
  RopeParams p = g.rope.params();
  p.scaling = RopeScaling::kYarn;
  p.factor = 4;
  p.original_context = 2048;
  yarn.geometry.rope = Rope(p);
  const auto scaled = calibration_rows(yarn, KvKind::kKey, 1, 2, {KeyFrame::Type::kPreRope, 0}, 4);
  CHECK(scaled[0] == Approx(raw[0] * yarn.geometry.rope.magnitude()));
  const auto values = calibration_rows(set, KvKind::kValue, 1, 2, {}, 0);
  CHECK(values[9 * 64 + 3] == half_to_float(set.v[1][9 * g.row() + 2 * 64 + 3]));
}

TEST_CASE("packed bits round-trip at every width", "[bits]") {
  Rng rng(1);
  for (int bits = 1; bits <= 8; ++bits)
    for (int n : {1, 2, 3, 7, 8, 9, 63, 64, 65}) {
      std::vector<uint8_t> codes(n), back(n), packed(packed_bytes(n, bits) + 1, 0xA5);
      for (uint8_t& c : codes) c = static_cast<uint8_t>(rng.below(uint64_t{1} << bits));
      pack_bits(codes.data(), n, bits, packed.data());
      CHECK(packed.back() == 0xA5);
      unpack_bits(packed.data(), n, bits, back.data());
      CHECK(back == codes);
    }
}

TEST_CASE("fp16: values are the nearest halves", "[fp16]") {
  const KvGeometry g = data().geometry;
  auto x = testdata::rows(g, 300);
  x[5] = 65504.0f, x[6] = 1e-7f, x[7] = -0.0f, x[8] = 70000.0f;
  const auto y = coded(*make_codec("fp16", KvKind::kKey, g), x);
  for (int h = 0; h < 3; ++h)
    for (int t = 0; t < 300; ++t)
      for (int c = 0; c < 64; ++c)
        REQUIRE(decoded_at(y, g, h, t, c) == half_to_float(float_to_half(at(x, g, h, t, c))));
}

TEST_CASE("golden: uniform and kvquant decode as the numpy script says", "[golden]") {
  const Json golden = Json::parse(read_file(MILLION_TEST_DIR "/golden/quant.json"));
  KvGeometry g = testdata::geometry(1);
  g.n_heads = g.n_kv_heads = golden["n_kv_heads"];
  g.head_dim = golden["head_dim"];
  RopeParams rope;
  rope.n_rot = g.head_dim;
  g.rope = Rope(rope);
  const int n = golden["n_tokens"];
  const auto x = golden["x"].get<std::vector<float>>();
  REQUIRE(x.size() == static_cast<size_t>(n) * g.row());
  const auto compare = [&](const Codec& codec, const std::vector<float>& expected) {
    const auto store = codec.make_store(0);
    store->append(x.data(), n, 0);
    const auto y = decode_all(*store, g);
    for (int h = 0; h < g.n_kv_heads; ++h)
      for (int t = 0; t < n; ++t)
        for (int c = 0; c < g.head_dim; ++c) {
          const float want = at(expected, g, h, t, c);
          REQUIRE(decoded_at(y, g, h, t, c) == Approx(want).epsilon(1e-6).margin(1e-6));
        }
  };
  CHECK(golden["uniform"].size() == 56);
  for (const Json& c : golden["uniform"]) {
    CAPTURE(c["spec"].get<std::string>());
    const auto codec = make_codec(c["spec"].get<std::string>(), KvKind::kValue, g);
    compare(*codec, c["decoded"].get<std::vector<float>>());
  }
  CalibrationSet set;  // only to make a valid file whose levels are then replaced
  set.geometry = g;
  set.context = set.n_tokens = 64;
  set.v.resize(1);
  for (int i = 0; i < 64 * g.row(); ++i)
    set.v[0].push_back(float_to_half(static_cast<float>(Rng(1, i).normal())));
  CHECK(golden["kvquant_values"].size() == 9);
  for (const Json& c : golden["kvquant_values"]) {
    CAPTURE(c["spec"].get<std::string>());
    const auto codec = make_codec(c["spec"].get<std::string>(), KvKind::kValue, g);
    codec->train(set, 0);
    TensorBag bag = codec->save();
    bag.tensors["L00.levels"].data = c["levels"].get<std::vector<float>>();
    bag.tensors["L00.decoded"].data = bag.tensors["L00.levels"].data;
    codec->load(bag);
    compare(*codec, c["decoded"].get<std::vector<float>>());
  }
}

TEST_CASE("uniform: scaling by a power of two scales the output", "[uniform]") {
  const KvGeometry g = data().geometry;
  const auto x = testdata::rows(g, 100);
  std::vector<float> scaled = x;
  for (float& v : scaled) v *= 4.0f;
  for (const char* spec : {"uniform:bits=3", "uniform:bits=5,group=16,symmetric=1",
                           "uniform:bits=2,axis=channel,group=20"}) {
    const auto codec = make_codec(spec, KvKind::kKey, g);
    const auto a = coded(*codec, x), b = coded(*codec, scaled);
    for (size_t i = 0; i < a.size(); ++i) REQUIRE(b[i] == 4.0f * a[i]);
  }
}

TEST_CASE("uniform and kvquant: a constant group survives", "[uniform][kvquant]") {
  const KvGeometry g = data().geometry;
  for (const float value : {0.0f, -3.25f, 0.01f, 70000.0f})
    for (const char* spec :
         {"uniform:bits=2", "uniform:bits=8,symmetric=1", "uniform:bits=2,axis=channel",
          "kvquant:bits=2", "kvquant:outliers=0"}) {
      CAPTURE(value, spec);
      const std::vector<float> x(static_cast<size_t>(90) * g.row(), value);
      const auto codec = trained(spec, KvKind::kValue);
      for (const float y : coded(*codec, x)) {
        // Above the largest half it is that half, a few scales of a symmetric group, or an infinite
        // outlier as in an fp16 cache.
        if (value > 65504.0f)
          REQUIRE(y >= 65504.0f);
        else
          REQUIRE(y == Approx(value).epsilon(1e-3));
      }
    }
}

TEST_CASE("pq: codes are nearest centroids, decoding gives the centroid, tables the score",
          "[pq]") {
  const KvGeometry g = data().geometry;
  const auto x = testdata::rows(g, 700, 11);
  for (int nbits = 1; nbits <= 12; ++nbits) {
    const int M = nbits % 2 == 0 ? 16 : 8, dsub = 64 / M, K = 1 << nbits;
    const std::string spec =
        fmt::format("pq:M={},nbits={},scope=model,frame=off,iters=1", M, nbits);
    CAPTURE(spec);
    const auto codec = trained(spec, KvKind::kValue);
    CHECK(codec->nominal_bits() == Approx(static_cast<double>(M) * nbits / 64));
    const std::vector<float> book = codec->save().tensors.at("model.codebook").data;
    const auto store = codec->make_store(0);
    store->append(x.data(), 700, 0);
    const auto y = decode_all(*store, g);
    Rng rng(2);
    for (int h = 0; h < 3; ++h) {
      AlignedVector<float> centroids;
      const PqSide side = store->pq_side(h, &centroids);
      REQUIRE(side.M == M);
      REQUIRE(side.nbits == nbits);
      REQUIRE(std::memcmp(side.centroids, book.data(), book.size() * sizeof(float)) == 0);
      for (int t = 0; t < 700; t += 13) {
        double table_score = 0, decoded_score = 0;
        for (int m = 0; m < M; ++m) {
          const uint8_t* run = side.blocks[t / kPqBlock] + m * pq_run_bytes(nbits);
          const uint32_t code = pq_get(run, nbits, t % kPqBlock);
          const auto distance = [&](uint32_t c) {
            double sum = 0;
            for (int i = 0; i < dsub; ++i)
              sum += std::pow(static_cast<double>(at(x, g, h, t, m * dsub + i)) -
                                  book[(static_cast<size_t>(m) * K + c) * dsub + i],
                              2);
            return sum;
          };
          double best = distance(0);
          for (int c = 1; c < K; ++c) best = std::min(best, distance(c));
          REQUIRE(distance(code) <= best * (1 + 1e-5) + 1e-12);
          for (int i = 0; i < dsub; ++i) {
            const float centroid = book[(static_cast<size_t>(m) * K + code) * dsub + i];
            const float decoded = decoded_at(y, g, h, t, m * dsub + i);
            REQUIRE(decoded == centroid);
            const float q = static_cast<float>(rng.normal());
            table_score += static_cast<double>(q) * centroid;
            decoded_score += static_cast<double>(q) * decoded;
          }
        }
        REQUIRE(table_score == Approx(decoded_score).epsilon(1e-9));
      }
    }
  }
}

TEST_CASE("pq: permuting heads permutes codes under a shared codebook", "[pq]") {
  const KvGeometry g = data().geometry;
  const auto x = testdata::rows(g, 600);
  std::vector<float> rotated(x.size());
  for (size_t i = 0; i < x.size(); i += g.row())
    for (int h = 0; h < 3; ++h)
      std::copy_n(x.data() + i + h * 64, 64, rotated.data() + i + (h + 1) % 3 * 64);
  const auto shared = trained("pq:M=16,nbits=6,scope=layer,frame=off,iters=2", KvKind::kKey);
  const auto a = coded(*shared, x), b = coded(*shared, rotated);
  const size_t head = static_cast<size_t>(600) * 64;
  for (int h = 0; h < 3; ++h)
    CHECK(std::equal(a.begin() + h * head, a.begin() + (h + 1) * head,
                     b.begin() + (h + 1) % 3 * head));
  const auto own = trained("pq:M=16,nbits=6,frame=off,iters=2", KvKind::kKey);
  CHECK(!std::equal(a.begin(), a.begin() + head, coded(*own, rotated).begin() + head));
}

TEST_CASE("pq: scopes share what they say, blocks and bytes are exact", "[pq]") {
  const KvGeometry g = data().geometry;
  CHECK(
      trained("pq:M=8,nbits=4,scope=head,frame=off,iters=1", KvKind::kKey)->save().tensors.size() ==
      6);
  CHECK(trained("pq:M=8,nbits=4,scope=layer,frame=off,iters=1", KvKind::kKey)
            ->save()
            .tensors.size() == 2);
  const auto codec = trained("pq:M=8,nbits=4,scope=model,frame=off,iters=1", KvKind::kKey);
  CHECK(codec->shared_bytes() == 16 * 64 * sizeof(uint16_t));
  const auto x = testdata::rows(g, 1025);
  const auto store = codec->make_store(0);
  const auto expected = [&](int blocks, int capacity) {
    return 3ull * (blocks * pq_block_bytes(8, 4) + capacity * (sizeof(AlignedVector<uint8_t>) + 8));
  };
  store->append(x.data(), 512, 0);
  CHECK(store->bytes().total() == expected(1, 1));
  store->append(x.data() + 512 * g.row(), 513, 512);
  CHECK(store->bytes().total() == expected(3, 4));
  CHECK(make_codec("fp16", KvKind::kKey, g)->make_store(0)->pq_side(0, nullptr).blocks == nullptr);
}

TEST_CASE("pq: more rows than asked for are sampled evenly, and k-means lowers the error", "[pq]") {
  const KvGeometry g = data().geometry;
  const auto x = testdata::rows(g, 500, 21);
  double before = 1e9;
  for (const int iters : {1, 3, 20}) {
    const auto codec =
        trained(fmt::format("pq:M=16,nbits=5,scope=model,frame=off,rows=2000,iters={}", iters),
                KvKind::kValue);
    const double error = testdata::nmse(x, coded(*codec, x), g);
    CHECK(error < before);
    before = error;
  }
  const auto a = trained("pq:M=16,nbits=5,scope=model,frame=off,rows=300", KvKind::kValue)->save();
  const auto b =
      trained("pq:M=16,nbits=5,scope=model,frame=off,rows=300,seed=5", KvKind::kValue)->save();
  CHECK(a.tensors.at("model.codebook").data != b.tensors.at("model.codebook").data);
  CHECK(b.attributes["seed"] == 5);
  CHECK(calibration_rows(data(), KvKind::kValue, 0, 0, {}, 4).size() / 64 > 300);
}

TEST_CASE("kvquant: outliers are exact halves, at most as many as asked", "[kvquant]") {
  const KvGeometry g = data().geometry;
  const auto x = testdata::rows(g, 200, 31);
  const auto values = trained("kvquant:bits=2,outliers=0.05", KvKind::kValue);
  const auto y = coded(*values, x);
  std::vector<int> order(g.row());
  for (int t = 0; t < 200; ++t) {
    const float* row = x.data() + t * g.row();
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int a, int b) { return row[a] < row[b]; });
    for (int i = 0; i < 5; ++i)  // round(0.05 * 192 / 2) at each end
      for (const int c : {order[i], order[g.row() - 1 - i]})
        REQUIRE(decoded_at(y, g, c / 64, t, c % 64) == half_to_float(float_to_half(row[c])));
  }
  const auto store = values->make_store(0);
  store->append(x.data(), 128, 0);
  CHECK(store->bytes().outliers >= 128 * (4 + 10 * 4));  // a row pointer and ten entries a token
  CHECK(values->nominal_bits() == Approx(2 + 32.0 / 192 + 32.0 / 192 + 320.0 / 192));

  const auto keys = trained("kvquant:bits=2,outliers=0.05", KvKind::kKey);
  const TensorBag bag = keys->save();
  const auto &zero = bag.tensors.at("L01.zero").data, &range = bag.tensors.at("L01.range").data;
  const auto k = coded(*keys, x);
  int outside = 0;
  for (int t = 0; t < 200; ++t)
    for (int c = 0; c < g.row(); ++c) {
      const float v = x[t * g.row() + c];
      if (std::abs(v - zero[c]) <= range[c]) continue;
      ++outside;
      REQUIRE(decoded_at(k, g, c / 64, t, c % 64) == half_to_float(float_to_half(v)));
    }
  CHECK(outside / (200.0 * g.row()) == Approx(0.05).margin(0.01));
}

TEST_CASE("kvquant: dense bits of the default model average 4.08", "[kvquant]") {
  const KvGeometry g = data().geometry;
  const double k = make_codec("kvquant:bits=4,outliers=0", KvKind::kKey, g)->nominal_bits();
  const double v = make_codec("kvquant:bits=4,outliers=0", KvKind::kValue, g)->nominal_bits();
  CHECK(k == 4.0);
  CHECK((k + v) / 2 == Approx(4.083).margin(0.001));
}

TEST_CASE("kvquant: ties do not change the number of outliers", "[kvquant]") {
  std::vector<int> scratch;
  std::vector<uint8_t> mark(8);
  const std::vector<float> x = {1, 1, 1, 1, 1, 1, 2, 2};
  mark_by_rank(x.data(), 8, 2, &scratch, mark.data());
  CHECK(mark == std::vector<uint8_t>{1, 1, 0, 0, 0, 0, 1, 1});
  const std::vector<float> same(8, 3.0f);
  mark_by_rank(same.data(), 8, 3, &scratch, mark.data());
  CHECK(mark == std::vector<uint8_t>{1, 1, 1, 0, 0, 1, 1, 1});
  std::vector<float> v = {4, 1, 3, 2};
  CHECK(quantile(v, 0.0) == 1);
  CHECK(quantile(v, 1.0) == 4);
  CHECK(quantile(v, 0.5) == 2.5f);
  CHECK(quantile(v, 0.9) == Approx(3.7));
}

TEST_CASE("kvquant: a one-signed key channel is not clipped", "[kvquant]") {
  CalibrationSet set = data();
  const KvGeometry& g = set.geometry;
  const int c = 70;  // head 1, channel 6: around 12, never negative
  for (int64_t t = 0; t < set.n_tokens; ++t)
    set.k_pre[1][t * g.row() + c] = float_to_half(12.0f + 0.001f * static_cast<float>(t % 1000));
  const auto codec = make_codec("kvquant:bits=4,outliers=0", KvKind::kKey, g);
  codec->train(set, 4);
  auto x = testdata::rows(g, 100);
  for (int t = 0; t < 100; ++t) x[t * g.row() + c] = 12.0f + 0.01f * static_cast<float>(t);
  const auto y = coded(*codec, x);
  for (int t = 0; t < 100; ++t)
    CHECK(std::abs(decoded_at(y, g, 1, t, 6) - x[t * g.row() + c]) < 0.25f);
}

TEST_CASE("kvquant: levels ascend; Q-Norm changes what codes mean, not which are chosen",
          "[kvquant]") {
  for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
    const TensorBag plain = trained("kvquant:bits=2,qnorm=0", kind)->save();
    const TensorBag normed = trained("kvquant:bits=2", kind)->save();
    for (const char* layer : {"L00.", "L01."}) {
      const auto& levels = plain.tensors.at(std::string(layer) + "levels").data;
      CHECK(levels.size() == 4);
      CHECK(std::is_sorted(levels.begin(), levels.end()));
      CHECK(levels.front() >= -1.0f);
      CHECK(levels.back() <= 1.0f);
      CHECK(normed.tensors.at(std::string(layer) + "levels").data == levels);
      CHECK(plain.tensors.at(std::string(layer) + "decoded").data == levels);
      const auto& decoded = normed.tensors.at(std::string(layer) + "decoded").data;
      CHECK(decoded != levels);
      CHECK(std::is_sorted(decoded.begin(), decoded.end()));
      CHECK(decoded.back() > levels.back());  // quantization narrows, Q-Norm widens again
    }
  }
}

TEST_CASE("nuq: the solver is optimal and Q-Norm keeps mean and deviation", "[kvquant]") {
  Rng rng(8);
  std::vector<std::pair<double, double>> points(60);  // value, weight
  for (auto& [u, w] : points)
    u = static_cast<float>(std::tanh(rng.normal())), w = 0.1 + rng.uniform();
  std::sort(points.begin(), points.end());
  NuqHistogram histogram;
  for (const auto& [u, w] : points) histogram.add(static_cast<float>(u), w);
  const auto cost = [&](int i, int j) {
    double weight = 0, sum = 0, square = 0;
    for (int k = i; k < j; ++k) {
      weight += points[k].second;
      sum += points[k].second * points[k].first;
      square += points[k].second * points[k].first * points[k].first;
    }
    return square - sum * sum / weight;
  };
  for (const int levels : {1, 4, 8, 16}) {
    std::vector<double> best(61, 1e9), next(61);
    best[0] = 0;
    for (int k = 0; k < levels; ++k) {
      std::fill(next.begin(), next.end(), 1e9);
      for (int j = 1; j <= 60; ++j)
        for (int i = 0; i < j; ++i) next[j] = std::min(next[j], best[i] + cost(i, j));
      best = next;
    }
    const NuqTable table = histogram.solve(levels, false);
    double got = 0;
    for (const auto& [u, w] : points) {
      const uint8_t code = table.nearest(static_cast<float>(u));
      for (int c = 0; c < levels; ++c)
        CHECK(std::abs(u - table.levels[code]) <= std::abs(u - table.levels[c]) + 1e-6);
      got += w * (u - table.levels[code]) * (u - table.levels[code]);
    }
    CHECK(got == Approx(best[60]).epsilon(1e-4).margin(1e-9));
  }
  const NuqTable table = histogram.solve(4, true);
  double m1 = 0, s1 = 0, m2 = 0, s2 = 0;
  for (const auto& [u, w] : points) {
    const double q = table.decoded[table.nearest(static_cast<float>(u))];
    m1 += u / 60, s1 += u * u / 60, m2 += q / 60, s2 += q * q / 60;
  }
  CHECK(m2 == Approx(m1).margin(1e-5));
  CHECK(s2 == Approx(s1).epsilon(1e-4));
  NuqHistogram constant;
  for (int i = 0; i < 10; ++i) constant.add(0.25f, 0.0);
  CHECK(constant.solve(16, true).decoded[3] == Approx(0.25));
}

TEST_CASE("kvquant: given gradients replace the substitute", "[kvquant]") {
  CalibrationSet set = data();
  const size_t n = static_cast<size_t>(set.n_tokens) * set.geometry.row();
  set.n_grad_tokens = set.n_tokens;
  // All weight on the first channel, whose levels then fit nothing else.
  for (auto* side : {&set.k_grad2, &set.v_grad2}) {
    side->assign(2, AlignedVector<float>(n, 0.0f));
    for (auto& layer : *side)
      for (size_t i = 0; i < n; i += set.geometry.row()) layer[i] = 1.0f;
  }
  for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
    const auto codec = make_codec("kvquant:bits=3", kind, set.geometry);
    codec->train(set, 4);
    CHECK(codec->save().tensors.at("L00.levels").data !=
          trained("kvquant:bits=3", kind)->save().tensors.at("L00.levels").data);
  }
  set.k_grad2[1][5 * 192 + 7] = NAN;
  const auto codec = make_codec("kvquant:bits=3", KvKind::kKey, set.geometry);
  CHECK_THROWS_WITH(codec->train(set, 4), Catch::Contains("layer 1, token 5, channel 7"));
}
