// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/run_cost.h"

#include "lib/core/error.h"
#include "lib/core/rng.h"

#include <algorithm>
#include <chrono>
#include <vector>

namespace million {
namespace {

/// Tokens of a measured chunk, and of the cache behind which the second is read.
constexpr int kChunk = 256, kDepth = 2048;

double seconds(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Prompts are read once in exact prefill, by each method in the other.
double readers(const Grid& grid) {
  return grid.plan().prefill == Prefill::kExact ? 1.0
                                                : static_cast<double>(grid.plan().methods.size());
}

std::string minutes(double s) { return fmt::format("about {:.1f} min", s / 60.0); }

}  // namespace

RunCost measure_cost(std::shared_ptr<const Model> model, const EngineOptions& options) {
  EngineOptions o = options;
  o.capacity = kDepth + 3 * kChunk;
  const KvGeometry g = model->config.geometry();
  const auto engine = make_engine(model, exact_method(g), o);
  std::vector<int32_t> tokens(kChunk);
  Rng rng(1);
  for (int32_t& t : tokens) t = static_cast<int32_t>(rng.below(model->config.n_vocab));
  engine->forward(tokens);  // buffers and products are made ready
  engine->clear();
  const double shallow = seconds([&] { engine->forward(tokens); });
  AlignedVector<float> rows(static_cast<size_t>(kDepth) * g.row());
  for (float& x : rows) x = static_cast<float>(rng.normal());
  for (int l = 0; l < g.n_layers; ++l) engine->append_only(l, rows.data(), rows.data(), kDepth);
  const double deep = seconds([&] { engine->forward(tokens); });
  AlignedVector<float> logits(model->output.rows);
  const double step = seconds([&] {
    const auto hidden = engine->forward(std::span(tokens).first(1));
    engine->logits(hidden.data(), 1, logits.data());
  });
  RunCost cost;
  cost.pair_s = std::max(0.0, deep - shallow) / kChunk / kDepth;
  cost.token_s = std::max(0.0, shallow / kChunk - 0.5 * kChunk * cost.pair_s);
  cost.step_s = step;
  return cost;
}

std::string estimate_tasks(const Grid& grid, const TaskRunPlan& plan, const RunCost& cost) {
  std::string text;
  double total = 0.0;
  const Model& model = *grid.plan().model;
  const auto format = task_chat(model, plan.chat);
  const auto n_methods = static_cast<double>(grid.plan().methods.size());
  for (const TaskInfo& task : plan.tasks)
    for (const int length : grid.plan().lengths) {
      TaskRunPlan few = plan;
      if (!task.from_file) few.limit = 1;
      std::string reason;
      const bool alone = plan.tasks.size() * grid.plan().lengths.size() == 1;
      const auto samples = possible_samples(few, task, model, length, alone, &reason);
      if (!reason.empty()) {
        text += fmt::format("{} at {}: skipped, {}\n", task.name, length, reason);
        continue;
      }
      double n = static_cast<double>(samples.size()), tokens = 0.0, answer = 0.0;
      for (const TaskSample& s : samples) {
        tokens += static_cast<double>(task_prompt(model, format, s).size()) / n;
        answer += static_cast<double>(s.max_new_tokens) / n;
      }
      if (!task.from_file)
        n *= plan.limit > 0 ? std::min(plan.limit, plan.samples.samples) : plan.samples.samples;
      const double cell =
          n * (readers(grid) * cost.prompt_s(tokens) + n_methods * cost.steps_s(answer, tokens));
      total += cell * static_cast<double>(grid.plan().positions.size());
      text += fmt::format(
          "{} at {}: {:.0f} questions of about {:.0f} tokens, at most {:.0f} to "
          "answer, {} for each positions\n",
          task.name, length, n, tokens, answer, minutes(cell));
    }
  return text +
         fmt::format("tasks: {} cells of {} methods, {} at most, training not counted\n",
                     plan.tasks.size() * grid.plan().lengths.size() * grid.plan().positions.size(),
                     grid.plan().methods.size(), minutes(total));
}

std::string estimate_context(const Grid& grid, const ContextPlan& plan, const RunCost& cost) {
  end_points(plan, grid.longest());
  const auto n_methods = static_cast<double>(grid.plan().methods.size());
  double total = 0.0;
  for (const int length : grid.plan().lengths) {
    const double context = length - plan.score_last, scored = plan.score_last;
    total +=
        plan.windows * (readers(grid) * cost.prompt_s(context) +
                        (1.0 + n_methods) * scored * (2.0 * cost.token_s + length * cost.pair_s));
  }
  total *= static_cast<double>(grid.plan().positions.size());
  return fmt::format("context: {} end points, {} scored tokens each, {}\n", plan.windows,
                     plan.score_last, minutes(total));
}

std::string estimate_growth(const Grid& grid, const GrowthPlan& plan, const RunCost& cost) {
  const auto n_methods = static_cast<double>(grid.plan().methods.size());
  double total = 0.0;
  for (const int length : grid.plan().lengths)
    total += plan.windows *
             (readers(grid) * cost.prompt_s(length) + cost.steps_s(plan.generate, length) +
              (1.0 + n_methods) * plan.generate * (2.0 * cost.token_s + length * cost.pair_s));
  total *= static_cast<double>(grid.plan().positions.size());
  return fmt::format("growth: {} prompts, {} tokens written behind each, {}\n", plan.windows,
                     plan.generate, minutes(total));
}

std::string estimate_memory(const Grid& grid) {
  const KvGeometry g = grid.plan().model->config.geometry();
  const double values = 2.0 * g.n_layers * g.row() * grid.longest();
  double bits = grid.plan().prefill == Prefill::kExact ? 16.0 : 0.0;
  for (const MethodSpec& m : grid.plan().methods)
    if (!(m == MethodSpec{}) || bits == 0.0)
      bits += 0.5 * (make_codec(m.key_codec, KvKind::kKey, g)->nominal_bits() +
                     make_codec(m.value_codec, KvKind::kValue, g)->nominal_bits());
  return fmt::format(
      "caches of all methods at {} tokens: {:.0f} MiB, twice that where questions "
      "share a start\n",
      grid.longest(), values * bits / 8.0 / 1048576.0);
}

}  // namespace million
