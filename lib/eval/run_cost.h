// SPDX-License-Identifier: Apache-2.0
// What a grid will cost, from a second of measurement: for --dry-run.
#pragma once

#include "lib/eval/context_curve.h"
#include "lib/eval/growth.h"
#include "lib/eval/task_run.h"

#include <cstdint>
#include <string>

namespace million {

/// Times of the exact cache; coded caches are taken to cost as much.
struct RunCost {
  double token_s = 0.0;  ///< of a prompt's token, without attention to those before it
  double pair_s = 0.0;   ///< of attention from one token to one before it, all layers
  double step_s = 0.0;   ///< of an answer's token behind a short prompt
  double prompt_s(double n) const { return n * token_s + 0.5 * n * n * pair_s; }
  double steps_s(double n, double depth) const { return n * (step_s + depth * pair_s); }
};

/// Runs a few hundred tokens through the model.
RunCost measure_cost(std::shared_ptr<const Model> model, const EngineOptions& options);

/// Lines "what, how often, tokens, minutes" for each cell and one with the sum: upper bounds,
/// because neighbouring questions share the reading of a common start. Error as the generators.
std::string estimate_tasks(const Grid& grid, const TaskRunPlan& plan, const RunCost& cost);
std::string estimate_context(const Grid& grid, const ContextPlan& plan, const RunCost& cost);
std::string estimate_growth(const Grid& grid, const GrowthPlan& plan, const RunCost& cost);
/// Bytes of all methods' caches at the longest length, and of a copy of them.
std::string estimate_memory(const Grid& grid);

}  // namespace million
