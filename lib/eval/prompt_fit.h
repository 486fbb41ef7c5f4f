// SPDX-License-Identifier: Apache-2.0
// What all generated tasks share: checks of the plan, seeds of the samples, and making a prompt as
// long as the plan allows without tokenizing it hundreds of times.
#pragma once

#include "lib/core/rng.h"
#include "lib/eval/task.h"

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace million {

/// Error(kUsage): no tokenizer, samples < 1, length < 1, and for tasks with depths an empty list or
/// a depth outside [0, 1].
void check_plan(const TaskInfo& task, const TaskPlan& plan);

/// Random numbers of one sample. They depend on the seed and the label alone, so a sample is the
/// same whichever others are made, and the same key is asked for at every length.
Rng sample_rng(const TaskPlan& plan, std::string_view label);

/// Makes the sample whose haystack has `size` units (sentences, lines, words): prompt, answer_head,
/// references, max_new_tokens and the task's own facts. Equal arguments give equal bytes.
using Draft = std::function<TaskSample(int size, Rng rng)>;

/// Sizes to choose from.
struct UnitRange {
  int least = 1, most = 1 << 24;
  int guess = 0;  ///< tried first; 0: none
};

struct FittedSample {
  TaskSample sample;  ///< facts: id, seed, length, tokens, then the draft's own
  int size = 0;
};

/// The draft of the largest size whose prompt and answer_head fit in
/// plan.length - plan.overhead_tokens - max_new_tokens tokens; the search stops early at 99.5 % of
/// that. Prompts must grow about linearly with size: then a good guess costs one reading of the
/// prompt by the tokenizer, none costs about five.
/// Error(kUsage) when the least size does not fit; the message names the length that would do.
FittedSample fit_sample(const TaskInfo& task, const TaskPlan& plan, std::string_view label,
                        UnitRange range, const Draft& draft);

/// Tokens of prompt and answer_head, read apart as a chat template reads them.
int prompt_tokens(const TaskPlan& plan, const TaskSample& sample);

/// Fisher-Yates, and an integer in [low, high].
template <class T>
void shuffle(std::vector<T>& items, Rng& rng) {
  for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[rng.below(i)]);
}
inline int64_t random_between(Rng& rng, int64_t low, int64_t high) {
  return low + static_cast<int64_t>(rng.below(static_cast<uint64_t>(high - low + 1)));
}
/// `count` different integers of [0, n) in rising order; count <= n.
std::vector<int> random_places(Rng& rng, int n, int count);

}  // namespace million
