// SPDX-License-Identifier: Apache-2.0
// Flags of kv-eval beyond perplexity: tasks, positions, perplexity by context, growth.
#pragma once

#include "apps/eval_flags.h"
#include "lib/eval/context_curve.h"
#include "lib/eval/growth.h"
#include "lib/eval/task_run.h"

#include <string>
#include <vector>

namespace million {

struct TaskFlags {
  std::string tasks = "perplexity", prefill = "exact", decode_compute = "int8x2";
  std::string haystack, data, samples_json;
  std::vector<std::string> positions;
  std::vector<int> lengths = {4096};
  std::vector<double> depths = {0.0, 0.25, 0.5, 0.75, 1.0};
  int samples = 10, score_last = 1024, generate = 2048;
  bool skip_bad_lines = false, no_chat_template = false, greedy = false, sync_encode = false;

  void add_to(CLI::App& app);
  /// --positions, plain when there are none. Error(kUsage) as PositionSpec::parse.
  std::vector<PositionSpec> position_specs() const;
};

/// What --task asks for.
struct TaskChoice {
  bool perplexity = false, context = false, growth = false;
  std::vector<TaskInfo> tasks;
  bool grid() const { return context || growth || !tasks.empty(); }
};
/// Names and suites, comma-separated. Error(kUsage) listing what is known.
TaskChoice choose_tasks(const std::string& names);
/// Every task with summary, metric and source, for --list.
std::string task_list();

/// Plans of the flags. `chunk`: of --chunk, 0 where it was not given.
GridPlan grid_plan(const EvalFlags& eval, const TaskFlags& flags, const EvalInputs& inputs,
                   std::vector<MethodSpec> methods, uint64_t seed);
/// Reads --haystack. Error(kBadInput) when it is the calibration text.
TaskRunPlan task_plan(const EvalFlags& eval, const TaskFlags& flags, const EvalInputs& inputs,
                      const TaskChoice& choice, uint64_t seed);
ContextPlan context_plan(const EvalFlags& eval, const TaskFlags& flags, const EvalInputs& inputs);
GrowthPlan growth_plan(const EvalFlags& eval, const TaskFlags& flags, const EvalInputs& inputs,
                       int chunk);

}  // namespace million
