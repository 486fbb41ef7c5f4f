// SPDX-License-Identifier: Apache-2.0
// Statistics and distortion against values worked out by hand or by a plain second formula.
#include "lib/analysis/channel_stats.h"
#include "lib/analysis/distortion.h"
#include "lib/analysis/dump_analysis.h"
#include "lib/core/error.h"
#include "lib/core/rng.h"

#include <catch2/catch.hpp>

#include <unistd.h>
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>

using namespace million;

namespace {

std::vector<float> random_rows(int n, int d, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> rows(static_cast<std::size_t>(n) * static_cast<std::size_t>(d));
  for (float& x : rows) x = static_cast<float>(rng.normal());
  return rows;
}

}  // namespace

TEST_CASE("moments of a hand-computed set", "[stats]") {
  // 1, 2, 3, 4, 10: mean 4, deviations -3 -2 -1 0 6; m2 = 50 / 5, m4 = (81 + 16 + 1 + 1296) / 5
  Moments m;
  for (double x : {1.0, 2.0, 3.0, 4.0, 10.0}) m.add(x);
  CHECK(m.mean() == Approx(4.0));
  CHECK(m.sd() == Approx(std::sqrt(10.0)));
  CHECK(m.kurtosis() == Approx(278.8 / 100.0));
  CHECK(m.energy() == Approx(26.0));
  CHECK(m.min() == 1.0);
  CHECK(m.max() == 10.0);
  Moments constant;
  for (int i = 0; i < 5; ++i) constant.add(3.0);
  CHECK(constant.sd() == 0.0);
  CHECK(constant.kurtosis() == 0.0);
}

TEST_CASE("merged moments equal the moments of everything", "[stats]") {
  const auto x = random_rows(1000, 1, 5);
  for (int cut : {0, 1, 7, 500, 999, 1000}) {
    Moments whole, a, b;
    for (int i = 0; i < 1000; ++i) {
      const double value = 100.0 + x[static_cast<std::size_t>(i)];
      whole.add(value);
      (i < cut ? a : b).add(value);
    }
    a += b;
    CHECK(a.count() == 1000);
    CHECK(a.mean() == Approx(whole.mean()).epsilon(1e-13));
    CHECK(a.sd() == Approx(whole.sd()).epsilon(1e-11));
    CHECK(a.kurtosis() == Approx(whole.kurtosis()).epsilon(1e-9));
    CHECK(a.min() == whole.min());
    CHECK(a.max() == whole.max());
  }
}

TEST_CASE("statistics of a small head", "[stats]") {
  // Two channels, four tokens: channel 0 is 1 -1 1 -1, channel 1 is 10 20 30 40.
  const std::vector<float> rows = {1, 10, -1, 20, 1, 30, -1, 40};
  StatsOptions o;
  o.sigmas = {1.0, 1.3};
  o.top = 1;
  o.context = 2;
  const HeadStats s = head_stats(rows, 2, o);
  CHECK(s.channels[0].moments.mean() == 0.0);
  CHECK(s.channels[0].moments.sd() == 1.0);
  CHECK(s.channels[0].moments.kurtosis() == 1.0);
  CHECK(s.channels[1].moments.mean() == 25.0);
  CHECK(s.channels[1].moments.sd() == Approx(std::sqrt(125.0)));
  CHECK(s.channels[1].moments.kurtosis() == Approx(1.64));  // (2*15^4 + 2*5^4) / 4 / 125^2
  CHECK(s.channels[1].median_abs == 25.0);
  CHECK(s.all.median_abs == Approx(5.5));  // of 1 1 1 1 10 20 30 40
  CHECK(s.all.mean_abs == Approx(13.0));
  // 27.5 is 5 times the median: 30 and 40 lie beyond, 2 of 4 in channel 1, 2 of 8 in all
  CHECK(s.channels[1].beyond_median == 0.5);
  CHECK(s.all.beyond_median == 0.25);
  // |x - 25| is 15 5 5 15 and sd 11.18: two beyond 1 sd, two beyond 1.3 sd (14.5)
  CHECK(s.channels[1].beyond_sigma == std::vector<double>{0.5, 0.5});
  CHECK(s.channels[0].beyond_sigma == std::vector<double>{0.0, 0.0});
  CHECK(s.top_channels == std::vector<int>{1});
  CHECK(s.top_energy == Approx(3000.0 / 3004.0));
  CHECK(s.shard_stability == 1.0);
  CHECK(s.outlier_channels == 0);  // mean |x| = 25 is below 27.5
  CHECK(s.mean_to_sd == Approx(0.5 * 25.0 / std::sqrt(125.0)));
  // windows of two: position 0 holds tokens 0 and 2, position 1 tokens 1 and 3
  REQUIRE(s.norm_by_bin.size() == 2);
  CHECK(s.norm_by_bin[0] == Approx(0.5 * (std::sqrt(101.0) + std::sqrt(901.0))));
  CHECK(s.norm_by_bin[1] == Approx(0.5 * (std::sqrt(401.0) + std::sqrt(1601.0))));
}

TEST_CASE("spectrum", "[stats]") {
  // Rank one: both channels move together; then independent channels with variances 4 : 1.
  std::vector<float> rows;
  for (int i = 0; i < 50; ++i) rows.insert(rows.end(), {static_cast<float>(i), 2.0f * i + 3.0f});
  HeadStats s = head_stats(rows, 2, {});
  CHECK(s.spectrum[0] == Approx(1.0));
  CHECK(s.effective_rank == Approx(1.0).margin(1e-6));
  CHECK(s.components_for(0.99) == 1);
  rows.clear();
  for (int i = 0; i < 4; ++i) rows.insert(rows.end(), {i % 2 ? 2.0f : -2.0f, i / 2 ? 1.0f : -1.0f});
  s = head_stats(rows, 2, {});
  CHECK(s.spectrum[0] == Approx(0.8));
  CHECK(s.components_for(0.8 - 1e-9) == 1);
  CHECK(s.components_for(0.99) == 2);
  CHECK(head_stats(std::vector<float>(8, 1.0f), 2, {}).spectrum == std::vector<double>{0.0, 0.0});
}

TEST_CASE("a planted outlier channel is found and its instability seen", "[stats]") {
  auto rows = random_rows(400, 16, 9);
  StatsOptions o;
  o.top = 1;
  for (std::size_t t = 0; t < 400; ++t) rows[t * 16 + 5] = 20.0f;
  HeadStats s = head_stats(rows, 16, o);
  CHECK(s.top_channels[0] == 5);
  CHECK(s.outlier_channels == 1);
  CHECK(s.shard_stability == 1.0);
  for (std::size_t t = 200; t < 400; ++t) std::swap(rows[t * 16 + 5], rows[t * 16 + 6]);
  CHECK(head_stats(rows, 16, o).shard_stability == 0.0);
  rows[33 * 16 + 2] = std::numeric_limits<float>::infinity();
  CHECK_THROWS_WITH(head_stats(rows, 16, o), Catch::Contains("token 33 channel 2"));
}

TEST_CASE("small helpers", "[stats]") {
  CHECK(norm_bins(20) == std::vector<int>{0, 1, 2, 3, 4, 8, 16, 20});
  CHECK(norm_bins(1) == std::vector<int>{0, 1});
  CHECK(jaccard({1, 2, 3}, {3, 2, 9}) == 0.5);
  CHECK(jaccard({}, {}) == 1.0);
}

TEST_CASE("squared error", "[distortion]") {
  const std::vector<float> x = {3, 4}, y = {3, 3.5f};
  const SquaredError e = squared_error(x, y);
  CHECK(e.nmse() == Approx(0.01));
  CHECK(e.sqnr_db() == Approx(20.0));
  CHECK(e.relative() == Approx(0.1));
  CHECK(squared_error(x, x).nmse() == 0.0);
  CHECK(std::isinf(squared_error(x, x).sqnr_db()));
  CHECK(std::isinf(squared_error(std::vector<float>{0.0f}, std::vector<float>{1.0f}).nmse()));
}

TEST_CASE("attention error", "[distortion]") {
  constexpr int n = 40, d = 8;
  const auto k = random_rows(n, d, 1), v = random_rows(n, d, 2), q = random_rows(3, d, 3);
  const std::vector<int> positions = {0, 17, 39};
  AttentionErrorArgs args{n,        d,        3,        q.data(), positions.data(),
                          k.data(), v.data(), k.data(), v.data(), 8};
  SECTION("zero for equal inputs") {
    const AttentionError e = attention_error(args);
    CHECK(e.attn_error() == 0.0);
    CHECK(e.score_error() == 0.0);
    CHECK(e.top_overlap() == 1.0);
    CHECK(e.n_queries == 3);
    CHECK(e.n_scores == 1 + 18 + 40);
  }
  SECTION("keys moved by one common vector change no output") {
    auto moved = k;
    for (std::size_t i = 0; i < moved.size(); ++i) moved[i] += 0.5f * static_cast<float>(i % d);
    args.k = moved.data();
    const AttentionError e = attention_error(args);
    CHECK(e.attn_error() < 1e-5);
    CHECK(e.score_error() < 1e-5);
    CHECK(e.top_overlap() == 1.0);
  }
  SECTION("doubled values double the output") {
    auto twice = v;
    for (float& x : twice) x *= 2.0f;
    args.v = twice.data();
    CHECK(attention_error(args).attn_error() == Approx(1.0));
    CHECK(attention_error(args).score_error() == 0.0);
  }
  SECTION("tokens behind the query do not count") {
    auto later = k;
    for (std::size_t i = 18 * d; i < later.size(); ++i) later[i] = 100.0f;
    args.k = later.data();
    args.n_queries = 2;
    CHECK(attention_error(args).attn_error() == 0.0);
    args.n_queries = 3;
    CHECK(attention_error(args).attn_error() > 0.1);
  }
  SECTION("two tokens by hand") {
    // d = 1: scores q k = 0 and ln 3, weights 1/4 and 3/4; decoded keys equal: weights 1/2.
    const std::vector<float> q1 = {1}, k1 = {0, std::log(3.0f)}, k2 = {0, 0}, v1 = {0, 4};
    const std::vector<int> at = {1};
    const AttentionError e = attention_error(
        {2, 1, 1, q1.data(), at.data(), k1.data(), v1.data(), k2.data(), v1.data(), 1});
    CHECK(e.attn_error() == Approx(1.0 / 3.0));  // 3 became 2
    CHECK(e.score_error() == Approx(0.5 * std::log(3.0)));
    CHECK(e.top_overlap() == 0.0);  // the tie goes to token 0
  }
}

namespace {

/// A dump of one layer whose keys are `scale` in channel `loud` and noise elsewhere.
std::filesystem::path write_dump(const std::string& name, int loud, const std::string& model) {
  DumpMeta meta;
  meta.geometry = {1, 2, 2, 8, Rope()};
  meta.model_sha256 = model;
  meta.context = 16;
  meta.n_tokens = 32;
  meta.tensors = {DumpTensor::kKey};
  meta.layers = {0};
  meta.kv_heads = {0, 1};
  auto rows = random_rows(32 * 2, 8, 4);
  for (std::size_t i = 0; i < 64; ++i) rows[i * 8 + static_cast<std::size_t>(loud)] = 30.0f;
  const auto path = std::filesystem::temp_directory_path() /
                    ("million-analysis-" + std::to_string(getpid()) + name);
  DumpWriter writer(path, meta);
  writer.add(0, DumpTensor::kKey, 0, 32, rows.data());
  writer.finish();
  return path;
}

}  // namespace

TEST_CASE("whole dumps", "[dumps]") {
  const auto a = write_dump("a.h5", 3, "m"), b = write_dump("b.h5", 5, "m"),
             c = write_dump("c.h5", 3, "other");
  StatsOptions o;
  o.top = 1;
  std::vector<DumpReader> dumps;
  dumps.emplace_back(a);
  dumps.emplace_back(b);
  const DumpAnalysis analysis =
      analyze_dumps(dumps, {DumpTensor::kKey, DumpTensor::kValue}, {0}, o);
  REQUIRE(analysis.heads.size() == 4);  // two dumps, two heads; values are not there
  CHECK(analysis.heads[0].stats.top_channels[0] == 3);
  CHECK(analysis.heads[0].text_stability == 0.0);          // channel 5 in the other text
  CHECK(analysis.heads[0].stats.norm_by_bin.size() == 6);  // windows of 16: 0 1 2 3 4 8 | 16
  const Json json = to_json(analysis);
  CHECK(json["summary"]["k"]["outlier_channels"] == 1.0);
  CHECK(json["summary"]["k"]["outlier_layers"] == 1);
  CHECK(json["summary"]["k"]["stability_texts"] == 0.0);
  CHECK(json["heads"][1]["channels"]["max"][3] == 30.0);
  CHECK(json["dumps"][1]["context"] == 16);
  const std::string csv = to_csv(analysis);
  CHECK(std::count(csv.begin(), csv.end(), '\n') == 1 + 4 * (1 + 8));
  CHECK(to_markdown(analysis).find("| k | 1 of 1 |") != std::string::npos);

  const Json surface = surface_json(dumps[0], 0, 1, 10);  // 32 tokens in runs of 4
  CHECK(surface["tokens"].size() == 8);
  CHECK(surface["k"][7][3] == 30.0);
  CHECK_FALSE(surface.contains("v"));

  dumps.emplace_back(c);
  CHECK_THROWS_WITH(analyze_dumps(dumps, {DumpTensor::kKey}, {0}, o),
                    Catch::Contains("different models"));
  for (const auto& path : {a, b, c}) std::filesystem::remove(path);
}
