// SPDX-License-Identifier: Apache-2.0
// Baselines: llama.cpp's types, small floats, TurboQuant, CommVQ-style codes, and the rotations and
// levels they stand on. Golden values by an independent script,
// tests/golden/make_baseline_golden.py.
#include "tests/quant_data.h"

#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/quant/lloyd_max.h"
#include "lib/quant/rotation.h"

#include <spdlog/spdlog.h>
#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>

using namespace million;
using testdata::decode_all;

namespace {

[[maybe_unused]] const bool kQuiet = (spdlog::set_level(spdlog::level::err), true);

KvGeometry geometry_of(int n_heads, int head_dim) {
  RopeParams rope;
  rope.n_rot = head_dim;
  return {1, n_heads, n_heads, head_dim, Rope(rope)};
}

/// Rows x [n][head_dim] of one head through a codec that needs no training.
std::vector<float> through(const std::string& spec, const std::vector<float>& x, int head_dim) {
  const KvGeometry g = geometry_of(1, head_dim);
  const auto store = make_codec(spec, KvKind::kValue, g)->make_store(0);
  store->append(x.data(), static_cast<int>(x.size()) / head_dim, 0);
  return decode_all(*store, g);
}

std::vector<float> normal_rows(int n, int head_dim, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> x(static_cast<size_t>(n) * head_dim);
  for (float& value : x) value = static_cast<float>(rng.normal());
  return x;
}

double dot(const std::vector<float>& a, const std::vector<float>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

double relative_error(const std::vector<float>& x, const std::vector<float>& y) {
  double error = 0.0;
  for (size_t i = 0; i < x.size(); ++i) error += (x[i] - y[i]) * static_cast<double>(x[i] - y[i]);
  return error / dot(x, x);
}

/// d times the mean squared error of a coordinate of a random unit vector coded with `levels`.
double sphere_error(int d, const std::vector<double>& levels) {
  constexpr int kPoints = 100000;
  double error = 0.0, mass = 0.0;
  for (int i = 0; i < kPoints; ++i) {
    const double x = (2.0 * i + 1.0) / kPoints - 1.0, f = std::pow(1.0 - x * x, 0.5 * (d - 3));
    double nearest = 4.0;
    for (const double level : levels) nearest = std::min(nearest, (x - level) * (x - level));
    error += f * nearest;
    mass += f;
  }
  return d * error / mass;
}

/// A codec made ready with the parameters that a golden case carries.
std::unique_ptr<Codec> golden_codec(const Json& c, const KvGeometry& g) {
  auto codec = make_codec(c["spec"].get<std::string>(), KvKind::kValue, g);
  if (!codec->needs_training()) return codec;
  CalibrationSet set;  // only to make a valid file whose parameters are then replaced
  set.geometry = g;
  set.context = set.n_tokens = 128;
  set.v.resize(1);
  for (int i = 0; i < set.n_tokens * g.row(); ++i)
    set.v[0].push_back(float_to_half(static_cast<float>(Rng(1, i).normal())));
  codec->train(set, 0);
  TensorBag bag = codec->save();
  if (c.contains("channel_order"))
    bag.tensors.at("channel_order").data = c["channel_order"].get<std::vector<float>>();
  Rng rng(7);
  for (auto& [name, tensor] : bag.tensors) {
    if (!c.contains("books")) break;
    const size_t stage_size = tensor.data.size() / tensor.shape[0];
    for (size_t i = 0; i < tensor.data.size(); ++i)
      tensor.data[i] = static_cast<float>((rng.uniform() - 0.5) * 0.4 *
                                          std::pow(0.9, static_cast<double>(i / stage_size)));
  }
  codec->load(bag);
  return codec;
}

}  // namespace

TEST_CASE("golden: baselines decode as the numpy script says", "[golden]") {
  const Json golden = Json::parse(read_file(MILLION_TEST_DIR "/golden/baselines.json"));
  const KvGeometry g = geometry_of(golden["n_kv_heads"], golden["head_dim"]);
  const int n = golden["n_tokens"];
  const auto x = golden["x"].get<std::vector<float>>();
  REQUIRE(x.size() == static_cast<size_t>(n) * g.row());
  CHECK(golden["cases"].size() == 30);
  for (const Json& c : golden["cases"]) {
    CAPTURE(c["spec"].get<std::string>());
    const auto want = c["decoded"].get<std::vector<float>>();
    const auto store = golden_codec(c, g)->make_store(0);
    store->append(x.data(), n, 0);
    const auto y = decode_all(*store, g);
    for (int h = 0; h < g.n_kv_heads; ++h)
      for (int t = 0; t < n; ++t)
        for (int i = 0; i < g.head_dim; ++i) {
          CAPTURE(h, t, i);
          // Rotations sum 64 products in f32 here and in double there; rows reach 100.
          REQUIRE(y[(static_cast<size_t>(h) * n + t) * g.head_dim + i] ==
                  Approx(testdata::at(want, g, h, t, i)).epsilon(1e-5).margin(2e-5));
        }
  }
  for (const Json& c : golden["sphere_levels"]) {
    const auto levels = sphere_levels(c["d"], c["bits"]);
    const auto want = c["levels"].get<std::vector<double>>();
    REQUIRE(levels.size() == want.size());
    for (size_t i = 0; i < want.size(); ++i) CHECK(levels[i] == Approx(want[i]).margin(1e-9));
  }
}

TEST_CASE("ggml: block bytes and bits per value of llama.cpp's table", "[ggml]") {
  const std::pair<const char*, int> kTable[] = {{"q8_0", 34}, {"q4_0", 18}, {"q4_1", 20},
                                                {"q5_0", 22}, {"q5_1", 24}, {"iq4_nl", 18}};
  const KvGeometry g = testdata::geometry(1);
  const auto x = testdata::rows(g, 256);
  for (const auto& [name, block_bytes] : kTable) {
    CAPTURE(name);
    const auto codec = make_codec(name, KvKind::kKey, g);
    CHECK(codec->nominal_bits() == Approx(block_bytes * 8 / 32.0));
    const auto store = codec->make_store(0);
    store->append(x.data(), 256, 0);
    const auto bytes = static_cast<int64_t>(store->bytes().total());
    CHECK(bytes - 256 * g.row() / 32 * block_bytes >= 0);
    CHECK(bytes - 256 * g.row() / 32 * block_bytes <= 64);  // the list of two blocks
    CHECK(store->bytes().scales > 0);
  }
}

TEST_CASE("ggml: the sign of the largest value, zeros, values beyond a half", "[ggml]") {
  std::vector<float> x(32);
  std::iota(x.begin(), x.end(), 0.0f);
  for (float& value : x) value = std::fmod(value, 16.0f) - 8.0f;  // -8 .. 7
  CHECK(through("q4_0:rotate=0", x, 32) == x);                    // d = 1: every value is a code
  for (float& value : x) value = -value;
  CHECK(through("q4_0:rotate=0", x, 32) == x);  // d = -1
  x[0] = 8.0f, x[16] = -8.0f;                   // equal magnitudes: the first decides
  CHECK(through("q4_0:rotate=0", x, 32)[0] == 8.0f);
  CHECK(through("q4_0:rotate=0", x, 32)[16] == -7.0f);
  for (const char* name : {"q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"}) {
    CAPTURE(name);
    const std::string spec = std::string(name) + ":rotate=0";
    const std::vector<float> zeros(32, 0.0f);
    CHECK(through(spec, zeros, 32) == zeros);
    for (const float extreme : {1e-42f, 1e-30f, 1e30f, 3e38f}) {
      std::vector<float> y(32, 0.25f * extreme);
      y[5] = -extreme;
      for (const float value : through(spec, y, 32)) CHECK(std::isfinite(value));
    }
  }
}

TEST_CASE("ggml: rotate=1 is the transform around rotate=0", "[ggml]") {
  const auto x = normal_rows(20, 128, 4);
  std::vector<float> turned = x;
  walsh_hadamard(turned.data(), static_cast<int>(turned.size()), 64);
  auto expected = through("q5_1:rotate=0", turned, 128);
  walsh_hadamard(expected.data(), static_cast<int>(expected.size()), 64);
  CHECK(through("q5_1:rotate=1", x, 128) == expected);
  CHECK(through("q5_1", x, 128) == expected);  // auto
  std::vector<float> outlier = x;              // one wide channel is what the rotation is for
  for (int t = 0; t < 20; ++t) outlier[t * 128 + 7] *= 40.0f;
  const auto without_wide = [&](const std::string& spec) {
    auto y = through(spec, outlier, 128);
    for (int t = 0; t < 20; ++t) y[t * 128 + 7] = outlier[t * 128 + 7];
    return relative_error(outlier, y);
  };
  CHECK(without_wide("q4_0:rotate=1") < without_wide("q4_0:rotate=0"));
  CHECK(make_codec("q4_0", KvKind::kKey, geometry_of(1, 96))->spec() == "q4_0:rotate=auto");
  const auto y = normal_rows(3, 96, 5);
  CHECK(through("q4_0", y, 96) == through("q4_0:rotate=0", y, 96));
  CHECK_THROWS_WITH(make_codec("q4_0:rotate=1", KvKind::kKey, geometry_of(1, 96)),
                    Catch::Contains("head_dim 96") && Catch::Contains("rotate=0"));
  CHECK_THROWS_WITH(make_codec("q8_0", KvKind::kKey, geometry_of(1, 80)),
                    Catch::Contains("multiple of 32"));
}

TEST_CASE("rotation: Walsh-Hadamard and random orthogonal matrices", "[rotation]") {
  std::vector<float> x{1, 2, 3, 4, 0, 0, 8, 0};
  walsh_hadamard(x.data(), 8, 4);
  CHECK(x == std::vector<float>{5, -1, -2, 0, 4, 4, -4, -4});
  walsh_hadamard(x.data(), 8, 4);
  CHECK(x == std::vector<float>{1, 2, 3, 4, 0, 0, 8, 0});
  for (const int d : {4, 24, 64}) {
    const auto q = random_orthogonal(d, 9);
    CHECK(q == random_orthogonal(d, 9));
    CHECK(q != random_orthogonal(d, 10));
    CHECK(q != random_orthogonal(d, 9, 1));
    for (int i = 0; i < d; ++i)
      for (int j = 0; j < d; ++j) {
        double sum = 0.0;
        for (int k = 0; k < d; ++k) sum += q[i * d + k] * static_cast<double>(q[j * d + k]);
        REQUIRE(sum == Approx(i == j ? 1.0 : 0.0).margin(1e-6));
      }
    for (const auto type : {Rotation::Type::kQr, Rotation::Type::kHadamard}) {
      const Rotation rotation(type, d, 3, 0);
      const auto row = normal_rows(1, d, 8);
      std::vector<float> turned(d), back(d);
      rotation.forward(row.data(), turned.data());
      rotation.inverse(turned.data(), back.data());
      CHECK(relative_error(row, back) < 1e-12);
      CHECK(relative_error(row, turned) > 0.1);
      CHECK(dot(turned, turned) == Approx(dot(row, row)).epsilon(1e-5));
    }
  }
  // Uniform over all rotations: entries have mean 0 and variance 1/d. Householder's Q without the
  // signs of R has a first column of one sign.
  constexpr int kDraws = 400, kD = 8;
  double mean = 0.0, square = 0.0;
  for (int seed = 0; seed < kDraws; ++seed) {
    const double value = random_orthogonal(kD, seed)[0];
    mean += value / kDraws;
    square += value * value / kDraws;
  }
  CHECK(std::abs(mean) < 4.0 / std::sqrt(kD * kDraws));
  CHECK(square == Approx(1.0 / kD).epsilon(0.3));
}

TEST_CASE("turboquant: Lloyd-Max levels and their error", "[turboquant]") {
  const double kError[] = {0.36, 0.117, 0.03, 0.009};  // as the paper rounds them
  for (int bits = 1; bits <= 4; ++bits) {
    CAPTURE(bits);
    CHECK(sphere_error(1024, sphere_levels(1024, bits)) ==
          Approx(kError[bits - 1]).epsilon(bits > 2 ? 0.16 : 0.01));
  }
  CHECK(sphere_levels(1024, 1)[1] * 32.0 == Approx(0.798).margin(0.001));
  CHECK(sphere_levels(1024, 2)[2] * 32.0 == Approx(0.453).margin(0.001));
  CHECK(sphere_levels(1024, 2)[3] * 32.0 == Approx(1.51).margin(0.001));
  CHECK(sphere_levels(3 + 1, 0) == std::vector<double>{0.0});
  for (const int d : {4, 5, 40, 64, 1024})
    for (int bits = 1; bits <= 8; ++bits) {
      CAPTURE(d, bits);
      const auto levels = sphere_levels(d, bits);
      REQUIRE(static_cast<int>(levels.size()) == 1 << bits);
      CHECK(std::is_sorted(levels.begin(), levels.end()));
      CHECK(levels.back() < 1.0);
      CHECK(levels.front() == -levels.back());
      if (bits > 4) continue;  // a small change in either direction is worse
      for (const double factor : {0.98, 1.02}) {
        auto other = levels;
        for (double& level : other) level *= factor;
        CHECK(sphere_error(d, other) > sphere_error(d, levels));
      }
    }
}

TEST_CASE("turboquant: rows of any direction meet the error of the levels", "[turboquant]") {
  std::vector<float> x(300 * 64,
                       0.0f);  // each row has a single channel: the worst without rotation
  for (int t = 0; t < 300; ++t) x[t * 64 + t % 64] = t % 2 == 0 ? 3.0f : -0.01f;
  const auto y = normal_rows(300, 64, 2);
  for (int bits = 1; bits <= 5; ++bits) {
    CAPTURE(bits);
    const double expected = sphere_error(64, sphere_levels(64, bits));
    const std::string spec = fmt::format("turboquant:bits={}", bits);
    CHECK(relative_error(y, through(spec, y, 64)) == Approx(expected).epsilon(0.05));
    CHECK(relative_error(x, through(spec, x, 64)) == Approx(expected).epsilon(0.2));
    CHECK(relative_error(y, through(spec + ",rotation=hadamard", y, 64)) ==
          Approx(expected).epsilon(0.05));
  }
  CHECK_THROWS_WITH(make_codec("turboquant:bits=2.3", KvKind::kKey, geometry_of(1, 64)),
                    Catch::Contains("multiple of 0.5"));
  CHECK_THROWS_WITH(make_codec("turboquant:bits=2.5", KvKind::kKey, geometry_of(1, 6)),
                    Catch::Contains("head_dim 6"));
}

TEST_CASE("turboquant: qjl=1 is right on average, without it scores shrink", "[turboquant]") {
  constexpr int kD = 32, kSeeds = 1000;
  const auto x = normal_rows(1, kD, 21), q = normal_rows(1, kD, 22);
  const auto mean_of = [&](const std::string& spec) {
    std::vector<float> mean(kD, 0.0f);
    for (int seed = 0; seed < kSeeds; ++seed) {
      const auto y = through(fmt::format("{},seed={}", spec, seed), x, kD);
      for (int i = 0; i < kD; ++i) mean[i] += y[i] / kSeeds;
    }
    return mean;
  };
  // A score has variance pi/2 / d |q|^2 |rest|^2; |rest|^2 is 0.36 |x|^2 after one bit.
  const double bound = 4.0 * std::sqrt(1.571 / kD * 0.36 * dot(q, q) * dot(x, x) / kSeeds);
  const auto qjl = mean_of("turboquant:bits=2,qjl=1");
  CHECK(std::abs(dot(q, qjl) - dot(q, x)) < bound);
  CHECK(dot(x, qjl) / dot(x, x) == Approx(1.0).margin(0.02));
  const auto plain = mean_of("turboquant:bits=1");
  CHECK(dot(x, plain) / dot(x, x) == Approx(1.0 - 0.354).margin(0.02));
  const auto signs_only = mean_of("turboquant:bits=1,qjl=1");
  CHECK(dot(x, signs_only) / dot(x, x) == Approx(1.0).margin(0.04));
}

TEST_CASE("turboquant: half steps give wide channels the bit more", "[turboquant]") {
  const KvGeometry g = testdata::geometry(2);
  CalibrationSet set = testdata::calibration(g, 512);
  for (auto& layer : set.v)  // odd channels wide
    for (int64_t i = 0; i < static_cast<int64_t>(layer.size()); ++i)
      layer[i] = float_to_half(static_cast<float>((i % 2 == 1 ? 4.0 : 1.0) * Rng(6, i).normal()));
  const auto codec = make_codec("turboquant:bits=2.5", KvKind::kValue, g);
  codec->train(set, 4);
  TensorBag bag = codec->save();
  std::vector<float>& order = bag.tensors.at("channel_order").data;
  for (size_t i = 0; i < order.size(); ++i)
    REQUIRE(order[i] == static_cast<float>(i % 64 < 32 ? 2 * (i % 64) + 1 : 2 * (i % 64) - 64));
  CHECK(codec->nominal_bits() == 2.5);
  order[3] = order[4];
  CHECK_THROWS_WITH(codec->load(bag), Catch::Contains("channel_order"));
  const auto store = make_codec("turboquant:bits=3", KvKind::kValue, g)->make_store(0);
  const auto x = testdata::rows(g, 128);
  store->append(x.data(), 128, 0);
  CHECK(store->bytes().codes - 128 * 3 * 24 <= 64);  // 64 codes of 3 bits and the list of blocks
  CHECK(store->bytes().scales - 128 * 3 * 2 <= 64);  // one half a row
}

TEST_CASE("fp8 and fp4: rounding, saturation, scales", "[lowfloat]") {
  const auto fp8 = [](const char* format, float x) {
    return through(fmt::format("fp8:format={},scale=none", format), {x, 0.0f}, 2)[0];
  };
  const std::pair<float, float> kE4m3[] = {
      {448.0f, 448.0f},   {464.0f, 448.0f}, {1e30f, 448.0f},    {-1000.0f, -448.0f},
      {17.0f, 16.0f},     {19.0f, 20.0f},   {17.1f, 18.0f},     {-17.0f, -16.0f},
      {0x1p-9f, 0x1p-9f}, {0x1p-10f, 0.0f}, {0x3p-10f, 0x1p-8f}};  // the last two: ties between
                                                                   // subnormals go to the even code
  for (const auto& [x, y] : kE4m3) CHECK(fp8("e4m3", x) == y);
  const std::pair<float, float> kE5m2[] = {{57344.0f, 57344.0f}, {70000.0f, 57344.0f},
                                           {9.0f, 8.0f},         {11.0f, 12.0f},
                                           {0x1p-16f, 0x1p-16f}, {0x1p-17f, 0.0f}};
  for (const auto& [x, y] : kE5m2) CHECK(fp8("e5m2", x) == y);

  std::vector<float> x(32, 0.0f);
  for (int i = 0; i < 8; ++i) x[i] = std::vector<float>{0.5f, 1, 1.5f, 2, 3, 4, 6, -6}[i];
  CHECK(through("fp4", x, 32) == x);
  x[8] = 5.0f, x[9] = 2.5f, x[10] = 3.5f;  // ties: 4 and 6, 2 and 3, 3 and 4
  const auto y = through("fp4", x, 32);
  CHECK((y[8] == 4.0f && y[9] == 2.0f && y[10] == 4.0f));
  x[0] = 7.9f;  // the group's exponent comes from its largest value, which may saturate
  CHECK(through("fp4", x, 32)[0] == 6.0f);
  x[0] = 8.0f;
  CHECK(through("fp4", x, 32)[0] == 8.0f);
  CHECK(through("fp4:scale=f16", x, 32)[0] == Approx(8.0f).epsilon(1e-3));
  for (const char* spec : {"nf4:group=32", "fp8", "fp8:format=e5m2", "fp4", "fp4:scale=f16"}) {
    CAPTURE(spec);
    const std::vector<float> zeros(32, 0.0f);
    CHECK(through(spec, zeros, 32) == zeros);
    for (const float factor : {1e-3f, 1.0f, 1e4f}) {
      auto rows = normal_rows(40, 32, 1);
      for (float& value : rows) value *= factor;
      CHECK(relative_error(rows, through(spec, rows, 32)) <
            (std::string(spec).rfind("fp8", 0) == 0 ? 0.004 : 0.02));
    }
    std::vector<float> bad(32, 1.0f);
    bad[3] = NAN, bad[4] = INFINITY, bad[5] = -3e38f;
    for (const float value : through(spec, bad, 32)) CHECK(std::isfinite(value));
  }
  CHECK_THROWS_WITH(make_codec("nf4", KvKind::kKey, geometry_of(1, 80)),
                    Catch::Contains("group=64") && Catch::Contains("head_dim 80"));
}

TEST_CASE("commvq: rows are norms times sums of centroids", "[commvq]") {
  const KvGeometry g = testdata::geometry(1);
  const CalibrationSet set = testdata::calibration(g, 256);
  const auto codec = make_codec("commvq:bits=1,rows=200,iters=1", KvKind::kKey, g);
  codec->train(set, 4);
  CHECK(codec->frame().type == KeyFrame::Type::kPreRope);
  CHECK(codec->nominal_bits() == Approx(66.0 / 64.0));  // 11 stages of 6 bits
  CHECK(codec->shared_bytes() == 3u * 11 * 64 * 64 * sizeof(float));
  TensorBag bag = codec->save();
  CHECK(bag.tensors.size() == 3);
  const auto random = random_orthogonal(64, 5);  // 64 centroids at right angles
  for (auto& [name, tensor] : bag.tensors) {     // stages after the second hold zeros
    std::fill(tensor.data.begin(), tensor.data.end(), 0.0f);
    for (int i = 0; i < 64 * 64; ++i) {
      tensor.data[i] = random[i];
      tensor.data[64 * 64 + i] = -0.25f * random[i];
    }
  }
  codec->load(bag);
  std::vector<float> x(g.row());
  const float norm = 3.0f * std::sqrt(1.0f + 0.25f * 0.25f);
  for (int h = 0; h < 3; ++h)
    for (int i = 0; i < 64; ++i)
      x[h * 64 + i] = 3.0f * (random[(7 + h) * 64 + i] - 0.25f * random[(40 + h) * 64 + i]);
  // The sum is norm * (c0 + c1) / |c0 + c1| with |c0 + c1| = norm / 3.
  const auto store = codec->make_store(0);
  store->append(x.data(), 1, 0);
  const auto y = decode_all(*store, g);
  for (int i = 0; i < g.row(); ++i)
    CHECK(y[i] == Approx(x[i] * norm / 3.0f).epsilon(2e-3).margin(1e-4));
  CHECK(store->bytes().codes >= 128u * 3 * 9);  // 66 bits in 9 bytes
}
