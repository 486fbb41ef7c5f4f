// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/growth.h"

#include "lib/core/error.h"
#include "lib/core/progress.h"
#include "lib/eval/session.h"
#include "lib/model/sampler.h"

#include <algorithm>
#include <cmath>

namespace million {
namespace {

/// Blocks of the error of a part, which is shorter than a window of text.
constexpr int kPartBlock = 64;

/// Tokens that `engine` writes behind a hidden state. End tokens are never taken: the length is
/// what is measured.
std::vector<int32_t> continue_text(Engine& engine, std::span<const float> hidden, int n,
                                   const SamplerOptions& options) {
  const Model& model = engine.model();
  std::vector<int32_t> ends;
  for (int32_t id = 0; id < model.tokenizer.n_vocab() && id < model.output.rows; ++id)
    if (model.tokenizer.is_end(id)) ends.push_back(id);
  Sampler sampler(options);
  AlignedVector<float> logits(model.output.rows);
  std::vector<int32_t> ids;
  while (static_cast<int>(ids.size()) < n) {
    check_interrupted();
    engine.logits(hidden.data(), 1, logits.data());
    for (const int32_t id : ends) logits[id] = -INFINITY;
    ids.push_back(sampler.sample(logits));
    hidden = engine.forward({&ids.back(), 1});
  }
  return ids;
}

class CellRun {
 public:
  CellRun(const Grid& grid, const GrowthPlan& plan, GridCell cell)
      : grid_(grid), plan_(plan), cell_(std::move(cell)), n_rows_(cell_.records.size()) {
    exact_ = cell_.exact();
    scores_.resize(cell_.methods.size());
  }

  /// One prompt, tokens [first, first + length) of the text.
  void run(int64_t first, uint64_t seed) {
    const auto prompt = std::span(plan_.text->tokens).subspan(first, cell_.length);
    const EngineOptions options = grid_.engine_options(cell_.length + plan_.generate);
    SharedPrefill caches(cell_.model, cell_.methods, options, grid_.plan().prefill);
    caches.read(prompt.first(prompt.size() - 1));
    const std::vector<int32_t> text = write(caches, prompt, options, seed);
    std::vector<int32_t> inputs = {prompt.back()};
    inputs.insert(inputs.end(), text.begin(), text.end() - 1);
    feed(caches, exact_, inputs, text);
    for (int m = 0; m < static_cast<int>(scores_.size()); ++m)
      if (m != exact_) feed(caches, m, inputs, text);
  }

  void finish(GridRows& rows) {
    for (size_t m = 0; m < n_rows_; ++m) {
      RunRecord& record = cell_.records[m];
      add_token_scores(record, scores_[m]);
      add_parts(record, scores_[m]);
      rows.add(record);
    }
  }

 private:
  /// What fp16 says behind the prompt; the caches stay as they are.
  std::vector<int32_t> write(SharedPrefill& caches, std::span<const int32_t> prompt,
                             const EngineOptions& options, uint64_t seed) {
    std::unique_ptr<Engine> writer;
    if (options.backend == Backend::kCpu) {
      writer = caches.engine(exact_).fork();
    } else {
      writer = make_engine(cell_.model, cell_.methods[exact_], options);
      writer->forward(prompt.first(prompt.size() - 1));
    }
    SamplerOptions sampler;
    sampler.temperature = plan_.greedy ? 0.0f : 1.0f;
    sampler.seed = seed;
    return continue_text(*writer, writer->forward(prompt.last(1)), plan_.generate, sampler);
  }

  void feed(SharedPrefill& caches, int m, std::span<const int32_t> inputs,
            std::span<const int32_t> next) {
    const size_t d = cell_.model->config.d_model;
    Engine& engine = caches.engine(m);
    if (m == exact_) exact_hidden_.clear();
    for (size_t at = 0; at < inputs.size();) {
      check_interrupted();
      size_t n = std::min<size_t>(plan_.chunk, inputs.size() - at);
      if (inputs.size() - at == n + 1 && n > 1) ++n;  // a lone token has another arithmetic
      const auto hidden = engine.forward(inputs.subspan(at, n));
      if (m == exact_) exact_hidden_.insert(exact_hidden_.end(), hidden.begin(), hidden.end());
      scores_[m].append(score_hidden(engine, hidden.data(), exact_hidden_.data() + at * d,
                                     static_cast<int>(n), next.data() + at));
      at += n;
    }
    if (m < static_cast<int>(n_rows_)) add_bits(cell_.records[m], cell_.methods[m], engine);
  }

  void add_parts(RunRecord& record, const TokenScores& scores) const {
    const int n = plan_.generate, part = n / kGrowthParts;
    record.series["kl_by_position"] = part_means(scores.kl, n);
    record.series["nll_by_position"] = part_means(scores.nll, n);
    Json ends = Json::array();
    for (int p = 1; p <= kGrowthParts; ++p)
      ends.push_back(cell_.length + static_cast<int64_t>(n) * p / kGrowthParts);
    record.series["position_end"] = ends;
    std::vector<double> first, last;
    for (size_t begin = 0; begin < scores.kl.size(); begin += n) {
      const auto at = scores.kl.begin() + static_cast<int64_t>(begin);
      first.insert(first.end(), at, at + part);
      last.insert(last.end(), at + n - part, at + n);
    }
    const MeanError a = block_mean(first, kPartBlock), b = block_mean(last, kPartBlock);
    record.metric("kl_first", a.mean, a.se, a.n);
    record.metric("kl_last", b.mean, b.se, b.n);
    // fp16 beside itself differs by rounding; a ratio of that is no growth.
    if (&scores != &scores_[exact_] && a.mean > 0.0) record.metric("kl_growth", b.mean / a.mean);
  }

  const Grid& grid_;
  const GrowthPlan& plan_;
  GridCell cell_;
  size_t n_rows_ = 0;
  int exact_ = 0;
  std::vector<TokenScores> scores_;
  std::vector<float> exact_hidden_;
};

void require_plan(const Grid& grid, const GrowthPlan& plan) {
  MILLION_REQUIRE(plan.generate >= 4 * kGrowthParts && plan.generate <= (1 << 20),
                  ErrorCode::kUsage, "--generate: got {}, expected {} to {} tokens", plan.generate,
                  4 * kGrowthParts, 1 << 20);
  MILLION_REQUIRE(plan.chunk >= 1 && plan.windows >= 1, ErrorCode::kUsage,
                  "--chunk {} --windows {}: expected at least 1 of each", plan.chunk, plan.windows);
  const auto available = static_cast<int64_t>(plan.text->tokens.size());
  const int64_t needed = static_cast<int64_t>(grid.longest()) * plan.windows;
  MILLION_REQUIRE(available >= needed, ErrorCode::kBadInput,
                  "text {} has {} tokens, {} prompts of {} need {}; use a longer text, fewer "
                  "--windows or shorter --lengths",
                  plan.text->name, available, plan.windows, grid.longest(), needed);
}

}  // namespace

std::vector<double> part_means(std::span<const double> values, int n) {
  std::vector<double> sum(kGrowthParts, 0.0), count(kGrowthParts, 0.0);
  for (size_t i = 0; i < values.size(); ++i) {
    const auto part = static_cast<int64_t>(i % n) * kGrowthParts / n;
    sum[part] += values[i];
    count[part] += 1.0;
  }
  for (int p = 0; p < kGrowthParts; ++p) sum[p] /= std::max(1.0, count[p]);
  return sum;
}

void run_growth(Grid& grid, const GrowthPlan& plan, GridRows& rows) {
  require_plan(grid, plan);
  for (const PositionSpec& positions : grid.plan().positions)
    for (const int length : grid.plan().lengths) {
      check_interrupted();
      GridCell cell = grid.open(positions, length + plan.generate, length, rows, [&](RunRecord& r) {
        r.config["task"] = "growth";
        r.config["generate"] = plan.generate;
        r.config["greedy"] = plan.greedy;
        if (!plan.greedy) r.config["seed"] = grid.plan().seed;
        r.config["windows"] = plan.windows;
        if (plan.chunk == 1) r.config["chunk"] = 1;
        r.inputs["text"] = plan.text->name;
        r.inputs["text_sha256"] = plan.text->sha256;
      });
      if (cell.records.empty()) continue;
      warn_beyond_training(cell.model->config, length + plan.generate);
      Progress progress(fmt::format("growth from {}, {}", length, cell.positions), plan.windows);
      grid.train(cell);
      CellRun run(grid, plan, std::move(cell));
      const auto stride = static_cast<int64_t>(plan.text->tokens.size()) / plan.windows;
      for (int w = 0; w < plan.windows; ++w) {
        run.run(w * stride, grid.plan().seed + static_cast<uint64_t>(w));
        progress.step();
      }
      run.finish(rows);
    }
  require_any_row(rows);
}

std::string growth_markdown(const std::vector<Json>& rows) {
  return rows_markdown(rows, {{"method"},
                              {"config.positions", "positions"},
                              {"config.length", "prompt"},
                              {"config.generate", "generated"},
                              {"metrics.kl", "KL"},
                              {"metrics.kl_first", "KL first part"},
                              {"metrics.kl_last", "KL last part"},
                              {"metrics.kl_growth", "growth", 3},
                              {"metrics.same_top_percent", "same top %"},
                              {"bits.cache", "bits", 4},
                              {"config.prefill", "prefill"}});
}

}  // namespace million
