// SPDX-License-Identifier: Apache-2.0
#include "lib/model/sampler.h"

#include "lib/core/error.h"

#include <algorithm>
#include <cmath>

namespace million {

int32_t greedy_token(std::span<const float> logits) {
  MILLION_ASSERT(!logits.empty());
  std::size_t best = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    MILLION_REQUIRE(!std::isnan(logits[i]) && logits[i] != INFINITY, ErrorCode::kFailed,
                    "logit of token {} is {}; the model's arithmetic overflowed or its file is "
                    "damaged, check its SHA-256",
                    i, logits[i]);
    if (logits[i] > logits[best]) best = i;
  }
  MILLION_REQUIRE(logits[best] != -INFINITY, ErrorCode::kFailed,
                  "all {} logits are -infinity; the model's arithmetic overflowed or its file is "
                  "damaged, check its SHA-256",
                  logits.size());
  return static_cast<int32_t>(best);
}

Sampler::Sampler(const SamplerOptions& options) : options_(options), rng_(options.seed) {
  const SamplerOptions& o = options_;
  MILLION_REQUIRE(std::isfinite(o.temperature) && o.temperature >= 0, ErrorCode::kUsage,
                  "temperature is {}, expected 0 (greedy) or more", o.temperature);
  MILLION_REQUIRE(o.top_k >= 0, ErrorCode::kUsage, "top-k is {}, expected 0 (all) or more",
                  o.top_k);
  MILLION_REQUIRE(o.top_p > 0 && o.top_p <= 1, ErrorCode::kUsage,
                  "top-p is {}, expected more than 0 and at most 1", o.top_p);
}

int32_t Sampler::sample(std::span<const float> logits) {
  const int32_t best = greedy_token(logits);
  if (options_.temperature == 0.0f) return best;
  order_.clear();
  for (std::size_t i = 0; i < logits.size(); ++i)
    order_.emplace_back(logits[i], static_cast<int32_t>(i));
  const auto likelier = [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  };
  if (options_.top_k > 0 && static_cast<std::size_t>(options_.top_k) < order_.size()) {
    std::nth_element(order_.begin(), order_.begin() + options_.top_k, order_.end(), likelier);
    order_.resize(static_cast<std::size_t>(options_.top_k));
  }
  const bool all = options_.top_k == 0 && options_.top_p == 1.0f;
  if (!all) std::sort(order_.begin(), order_.end(), likelier);
  const double top = static_cast<double>(logits[static_cast<std::size_t>(best)]);
  weights_.clear();
  double sum = 0;
  for (const auto& [logit, id] : order_) {
    weights_.push_back(std::exp((static_cast<double>(logit) - top) / options_.temperature));
    sum += weights_.back();
  }
  std::size_t kept = 0;
  double mass = 0;
  const double wanted = static_cast<double>(options_.top_p) * sum;
  while (kept < weights_.size() && (kept == 0 || mass < wanted)) mass += weights_[kept++];
  double draw = rng_.uniform() * mass;
  for (std::size_t i = 0; i < kept; ++i) {
    if (draw < weights_[i]) return order_[i].second;
    draw -= weights_[i];
  }
  return best;  // rounding left a rest
}

}  // namespace million
