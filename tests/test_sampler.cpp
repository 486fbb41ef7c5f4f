// SPDX-License-Identifier: Apache-2.0
// Sampler: worked examples of each filter, order of equal logits, refusal of what is no number.
#include "lib/core/error.h"
#include "lib/model/sampler.h"

#include <catch2/catch.hpp>

#include <cmath>
#include <limits>
#include <map>

using namespace million;
using Catch::Matchers::Contains;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> logs(std::vector<double> probabilities) {
  std::vector<float> out;
  for (const double p : probabilities) out.push_back(static_cast<float>(std::log(p)));
  return out;
}

/// Share of each token in n draws.
std::map<int32_t, double> shares(const SamplerOptions& options, const std::vector<float>& logits,
                                 int n = 20000) {
  Sampler sampler(options);
  std::map<int32_t, double> out;
  for (int i = 0; i < n; ++i) out[sampler.sample(logits)] += 1.0 / n;
  return out;
}

}  // namespace

TEST_CASE("greedy takes the greatest logit, the lowest id of equals") {
  Sampler greedy({});
  CHECK(greedy.sample(std::vector<float>{0, 3, 1, 3}) == 1);
  CHECK(greedy.sample(std::vector<float>{-kInf, -5, -kInf}) == 1);
  CHECK(greedy.sample(std::vector<float>{7}) == 0);
}

TEST_CASE("without filters the shares are the softmax") {
  // 20 000 draws: the standard deviation of a share is at most 0.0036; 0.015 is four of them.
  const auto got = shares({.temperature = 1, .seed = 3}, logs({0.5, 0.3, 0.2}));
  CHECK(got.at(0) == Approx(0.5).margin(0.015));
  CHECK(got.at(1) == Approx(0.3).margin(0.015));
  CHECK(got.at(2) == Approx(0.2).margin(0.015));
}

TEST_CASE("temperature raises probabilities to its inverse") {
  // 0.8 : 0.2 at temperature 2 is sqrt(0.8) : sqrt(0.2) = 2 : 1.
  const auto got = shares({.temperature = 2, .seed = 4}, logs({0.8, 0.2}));
  CHECK(got.at(0) == Approx(2.0 / 3).margin(0.015));
  CHECK(shares({.temperature = 1e-30f, .seed = 4}, logs({0.2, 0.8}), 100).size() == 1);
}

TEST_CASE("top-k keeps k tokens and the rest keeps its proportions") {
  const auto got = shares({.temperature = 1, .top_k = 2, .seed = 5}, logs({0.2, 0.5, 0.3}));
  CHECK(got.size() == 2);
  CHECK(got.at(1) == Approx(0.625).margin(0.015));
  // Of equal logits the lowest ids stay.
  const auto equal = shares({.temperature = 1, .top_k = 2, .seed = 5}, {1, 1, 1, 1}, 500);
  CHECK(equal.size() == 2);
  CHECK(equal.count(0) == 1);
  CHECK(equal.count(1) == 1);
  CHECK(shares({.temperature = 1, .top_k = 99, .seed = 5}, logs({0.4, 0.6}), 500).size() == 2);
}

TEST_CASE("top-p keeps the token that crosses the mass, and at least one") {
  const auto p = logs({0.1, 0.5, 0.15, 0.25});
  CHECK(shares({.temperature = 1, .top_p = 0.4f}, p, 500).size() == 1);
  const auto got = shares({.temperature = 1, .top_p = 0.6f, .seed = 6}, p);
  CHECK(got.size() == 2);
  CHECK(got.at(1) == Approx(0.5 / 0.75).margin(0.015));
  CHECK(got.at(3) == Approx(0.25 / 0.75).margin(0.015));
  CHECK(shares({.temperature = 1, .top_p = 1e-9f}, p, 100).size() == 1);
  // After top-k 2 the two are 2/3 and 1/3: a mass of 0.6 keeps one of them.
  CHECK(shares({.temperature = 1, .top_k = 2, .top_p = 0.6f}, p, 500).size() == 1);
}

TEST_CASE("equal seeds draw equal tokens, other seeds others") {
  const std::vector<float> logits(1000, 0.0f);
  const auto draw = [&](uint64_t seed) {
    Sampler s({.temperature = 1, .seed = seed});
    std::vector<int32_t> out;
    for (int i = 0; i < 20; ++i) out.push_back(s.sample(logits));
    return out;
  };
  CHECK(draw(1) == draw(1));
  CHECK(draw(1) != draw(2));
}

TEST_CASE("what is no probability is refused") {
  for (const float temperature : {0.0f, 1.0f}) {
    Sampler s({.temperature = temperature});
    CHECK_THROWS_WITH(s.sample(std::vector<float>{0, kNan, 1}),
                      Contains("logit of token 1 is nan"));
    CHECK_THROWS_WITH(s.sample(std::vector<float>{0, kInf}), Contains("logit of token 1 is inf"));
    CHECK_THROWS_WITH(s.sample(std::vector<float>{-kInf, -kInf}), Contains("all 2 logits"));
  }
  CHECK_THROWS_AS(Sampler({.temperature = -1}), Error);
  CHECK_THROWS_AS(Sampler({.temperature = kNan}), Error);
  CHECK_THROWS_AS(Sampler({.top_k = -1}), Error);
  CHECK_THROWS_AS(Sampler({.top_p = 0}), Error);
  CHECK_THROWS_AS(Sampler({.top_p = 1.5f}), Error);
}
