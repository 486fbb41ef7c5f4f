// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/context_curve.h"

#include "lib/core/error.h"
#include "lib/core/progress.h"
#include "lib/eval/perplexity.h"
#include "lib/eval/session.h"

#include <algorithm>
#include <chrono>

namespace million {
namespace {

/// What one method did in a cell.
struct Lane {
  TokenScores scores;
  double seconds = 0.0;
};

class CellRun {
 public:
  CellRun(const Grid& grid, const ContextPlan& plan, GridCell cell)
      : grid_(grid), plan_(plan), cell_(std::move(cell)), n_rows_(cell_.records.size()) {
    exact_ = cell_.exact();
    lanes_.resize(cell_.methods.size());
  }

  void run(int64_t end) {
    const std::span tokens(plan_.text->tokens);
    const auto start = std::chrono::steady_clock::now();
    SharedPrefill caches(cell_.model, cell_.methods, grid_.engine_options(cell_.length),
                         grid_.plan().prefill);
    const int64_t scored = end - plan_.score_last;
    caches.read(tokens.subspan(end - cell_.length, cell_.length - plan_.score_last));
    prefill_s_ += seconds_since(start);
    score(caches, exact_, scored);
    for (int m = 0; m < static_cast<int>(lanes_.size()); ++m)
      if (m != exact_) score(caches, m, scored);
  }

  void finish(GridRows& rows) {
    for (size_t m = 0; m < n_rows_; ++m) {
      RunRecord& record = cell_.records[m];
      add_token_scores(record, lanes_[m].scores);
      record.timing["prefill_s"] = prefill_s_;
      record.timing["score_s"] = lanes_[m].seconds;
      rows.add(record);
    }
  }

 private:
  void score(SharedPrefill& caches, int m, int64_t first) {
    const auto start = std::chrono::steady_clock::now();
    const std::span tokens(plan_.text->tokens);
    Engine& engine = caches.engine(m);
    const auto hidden = engine.forward(tokens.subspan(first, plan_.score_last));
    if (m == exact_) exact_hidden_.assign(hidden.begin(), hidden.end());
    lanes_[m].scores.append(score_hidden(engine, hidden.data(), exact_hidden_.data(),
                                         plan_.score_last, tokens.data() + first + 1));
    if (m < static_cast<int>(n_rows_)) add_bits(cell_.records[m], cell_.methods[m], engine);
    lanes_[m].seconds += seconds_since(start);
  }

  const Grid& grid_;
  const ContextPlan& plan_;
  GridCell cell_;
  size_t n_rows_ = 0;
  int exact_ = 0;
  std::vector<Lane> lanes_;
  std::vector<float> exact_hidden_;
  double prefill_s_ = 0.0;
};

}  // namespace

std::vector<int64_t> end_points(const ContextPlan& plan, int longest) {
  MILLION_REQUIRE(plan.score_last >= 2 && plan.score_last <= longest, ErrorCode::kUsage,
                  "--score-last: got {}, expected 2 to the longest of --lengths, {}",
                  plan.score_last, longest);
  MILLION_REQUIRE(plan.windows >= 1, ErrorCode::kUsage, "--windows: got {}, expected at least 1",
                  plan.windows);
  const int64_t last = static_cast<int64_t>(plan.text->tokens.size()) - 1;
  const int64_t needed = longest + static_cast<int64_t>(plan.windows - 1) * plan.score_last;
  MILLION_REQUIRE(last >= needed, ErrorCode::kBadInput,
                  "text {} has {} tokens, {} end points of {} scored tokens behind {} tokens need "
                  "{}; use a longer text, fewer --windows or shorter --lengths",
                  plan.text->name, last + 1, plan.windows, plan.score_last, longest, needed + 1);
  std::vector<int64_t> ends;
  for (int w = 0; w < plan.windows; ++w)
    ends.push_back(last - (last - longest) * w / std::max(1, plan.windows - 1));
  std::reverse(ends.begin(), ends.end());
  return ends;
}

void run_context(Grid& grid, const ContextPlan& plan, GridRows& rows) {
  const std::vector<int64_t> ends = end_points(plan, grid.longest());
  for (const int length : grid.plan().lengths)
    MILLION_REQUIRE(length >= plan.score_last, ErrorCode::kUsage,
                    "--lengths: got {}, expected at least the {} tokens of --score-last", length,
                    plan.score_last);
  for (const PositionSpec& positions : grid.plan().positions)
    for (const int length : grid.plan().lengths) {
      check_interrupted();
      GridCell cell = grid.open(positions, length, length, rows, [&](RunRecord& record) {
        record.config["task"] = "context";
        record.config["score_last"] = plan.score_last;
        record.config["ends"] = ends;
        record.inputs["text"] = plan.text->name;
        record.inputs["text_sha256"] = plan.text->sha256;
      });
      if (cell.records.empty()) continue;
      warn_beyond_training(cell.model->config, length);
      Progress progress(fmt::format("context {}, {}", length, cell.positions), plan.windows);
      grid.train(cell);
      CellRun run(grid, plan, std::move(cell));
      for (const int64_t end : ends) {
        run.run(end);
        progress.step();
      }
      run.finish(rows);
    }
  require_any_row(rows);
}

std::string context_markdown(const std::vector<Json>& rows) {
  return rows_markdown(rows, {{"method"},
                              {"config.positions", "positions"},
                              {"config.length", "length"},
                              {"metrics.ppl", "ppl"},
                              {"metrics.ppl_increase_percent", "ppl +%"},
                              {"metrics.kl", "KL"},
                              {"metrics.same_top_percent", "same top %"},
                              {"bits.cache", "bits", 4},
                              {"config.prefill", "prefill"},
                              {"metrics.ppl.n", "tokens"}});
}

}  // namespace million
