// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/prompt_fit.h"

#include "lib/core/error.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace million {

void check_plan(const TaskInfo& task, const TaskPlan& plan) {
  MILLION_REQUIRE(plan.tokenizer != nullptr, ErrorCode::kUsage,
                  "task {}: no tokenizer; lengths are counted in tokens of a model", task.name);
  MILLION_REQUIRE(plan.length >= 1, ErrorCode::kUsage,
                  "task {}: length {}, expected at least 1 token", task.name, plan.length);
  MILLION_REQUIRE(plan.samples >= 1, ErrorCode::kUsage,
                  "task {}: {} samples, expected at least 1 (its samples are made, so there is no "
                  "\"all\")",
                  task.name, plan.samples);
  if (!task.has_depth) return;
  MILLION_REQUIRE(!plan.depths.empty(), ErrorCode::kUsage,
                  "task {}: no depth; give depths from 0 (start) to 1 (end)", task.name);
  for (const double depth : plan.depths)
    MILLION_REQUIRE(depth >= 0.0 && depth <= 1.0, ErrorCode::kUsage,
                    "task {}: depth {}, expected 0 (start of the text) to 1 (end)", task.name,
                    depth);
}

Rng sample_rng(const TaskPlan& plan, std::string_view label) {
  uint64_t hash = 0xCBF29CE484222325ull;  // FNV-1a
  for (const char c : label) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3ull;
  return Rng(plan.seed, hash);
}

int prompt_tokens(const TaskPlan& plan, const TaskSample& sample) {
  return plan.count(sample.prompt) + plan.count(sample.answer_head);
}

namespace {

/// The search of fit_sample: [lo, hi) brackets the largest size that fits.
class Fit {
 public:
  Fit(const TaskInfo& task, const TaskPlan& plan, std::string_view label, UnitRange range,
      const Draft& draft)
      : plan_(plan), rng_(sample_rng(plan, fmt::format("{}:{}", task.name, label))), draft_(draft) {
    best_.size = lo_ = range.least;
    hi_ = range.most + 1;
    best_.sample = draft_(lo_, rng_);
    lo_tokens_ = prompt_tokens(plan_, best_.sample);
    budget_ = plan.length - plan.overhead_tokens - best_.sample.max_new_tokens;
    MILLION_REQUIRE(lo_tokens_ <= budget_, ErrorCode::kUsage,
                    "task {}: length {} is too short, {} tokens are needed at least ({} prompt, {} "
                    "answer, {} chat marks)",
                    task.name, plan.length,
                    lo_tokens_ + best_.sample.max_new_tokens + plan.overhead_tokens, lo_tokens_,
                    best_.sample.max_new_tokens, plan.overhead_tokens);
    // Until two sizes are known: the fixed part of the prompt counts as units, so the first step
    // is short rather than long.
    per_unit_ = std::max(1.0, static_cast<double>(lo_tokens_) / std::max(1, lo_));
  }

  FittedSample run(int guess) {
    if (guess > lo_ && guess < hi_) step(guess);
    for (int steps = 0; hi_ - lo_ > 1 && lo_tokens_ < budget_ - budget_ / 200; ++steps) {
      const double room = (budget_ - lo_tokens_) / per_unit_;
      int64_t next = lo_ + std::max<int64_t>(1, static_cast<int64_t>(room));
      if (steps >= kMaxSecants) next = lo_ + (int64_t{hi_} - lo_) / 2;
      step(static_cast<int>(std::min<int64_t>(next, hi_ - 1)));
    }
    return std::move(best_);
  }

 private:
  static constexpr int kMaxSecants = 8;

  void step(int size) {
    TaskSample sample = draft_(size, rng_);
    const int tokens = prompt_tokens(plan_, sample);
    if (tokens > lo_tokens_)
      per_unit_ = static_cast<double>(tokens - lo_tokens_) / static_cast<double>(size - lo_);
    if (tokens > budget_) {
      hi_ = size;
      return;
    }
    lo_ = size;
    lo_tokens_ = tokens;
    best_ = {std::move(sample), size};
  }

  const TaskPlan& plan_;
  Rng rng_;
  const Draft& draft_;
  FittedSample best_;
  int lo_ = 0, hi_ = 0, lo_tokens_ = 0, budget_ = 0;
  double per_unit_ = 1.0;

 public:
  int tokens() const { return lo_tokens_; }
};

}  // namespace

FittedSample fit_sample(const TaskInfo& task, const TaskPlan& plan, std::string_view label,
                        UnitRange range, const Draft& draft) {
  Fit fit(task, plan, label, range, draft);
  FittedSample fitted = fit.run(range.guess);
  Json facts = Json::object();
  facts["id"] = fmt::format("{}-{}-{}", task.name, plan.length, label);
  facts["seed"] = plan.seed;
  facts["length"] = plan.length;
  facts["tokens"] = fit.tokens();
  facts.update(fitted.sample.facts);
  fitted.sample.facts = std::move(facts);
  return fitted;
}

std::vector<int> random_places(Rng& rng, int n, int count) {
  MILLION_ASSERT(count <= n);
  // Floyd's sampling: one draw per place, no list of n.
  std::vector<int> places;
  for (int i = n - count; i < n; ++i) {
    const int pick = static_cast<int>(rng.below(static_cast<uint64_t>(i) + 1));
    const bool taken = std::find(places.begin(), places.end(), pick) != places.end();
    places.push_back(taken ? i : pick);
  }
  std::sort(places.begin(), places.end());
  return places;
}

}  // namespace million
