// SPDX-License-Identifier: Apache-2.0
// Puts the questions of tasks to a model with each cache method, as a user's request would go:
// prompt into the cache, greedy answer through it, score. One row per positions, method, task and
// length.
#pragma once

#include "lib/eval/grid.h"
#include "lib/eval/task.h"
#include "lib/model/chat.h"

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace million {

struct TaskRunPlan {
  std::vector<TaskInfo> tasks;
  TaskPlan samples;  ///< what questions are made from; length, overhead and tokenizer are filled in
  std::string haystack_name, haystack_sha256;  ///< empty: a repeated filler
  bool chat = true;                            ///< the model's chat template where it has one
  int limit = 0;  ///< of samples in a cell, 0 = none; the grid's rows are then marked
  std::filesystem::path samples_json;  ///< one line per sample is appended; empty: none
};

/// Runs what is not finished. An fp16 score at which the comparison says little (the model cannot
/// do the task, or every method is perfect) is warned about once and noted in the rows' reason.
/// Error(kUsage) on samples or depths out of range, Error(kBadInput) on a sample without right
/// answers; a task of several that cannot be made at a length, or whose file is not in the folder,
/// gives skipped rows instead. Error(kInterrupted) after finished cells are saved.
void run_tasks(Grid& grid, const TaskRunPlan& plan, GridRows& rows);

/// Which chat format a run uses: none without `chat` or where the model has no template.
std::optional<ChatFormat> task_chat(const Model& model, bool chat);
/// Tokens of a question up to where its answer starts.
std::vector<int32_t> task_prompt(const Model& model, const std::optional<ChatFormat>& format,
                                 const TaskSample& sample);
/// task_samples, or none and the reason when this task cannot be had at this length or from this
/// folder, which is none for leaving out the other tasks of a suite; `alone`: the error goes on.
std::vector<TaskSample> possible_samples(const TaskRunPlan& plan, const TaskInfo& task,
                                         const Model& model, int length, bool alone,
                                         std::string* reason);
/// The samples of a cell, with the plan's limit.
std::vector<TaskSample> task_samples(const TaskRunPlan& plan, const TaskInfo& task,
                                     const Model& model, int length);

/// Greedy continuation (lowest id of equal logits) behind a hidden state [d_model], by at most
/// max_new tokens; ends before an end token.
std::vector<int32_t> greedy_answer(Engine& engine, std::span<const float> hidden, int max_new);

/// Questions [begin, end) that start with the same `prefix` tokens, to be read once.
struct PromptGroup {
  size_t begin = 0, end = 0;
  int64_t prefix = 0;
};
/// Neighbours share when at least half of each prompt is common. `fork`: caches can be copied;
/// without, every question stands alone.
std::vector<PromptGroup> group_prompts(std::span<const std::vector<int32_t>> prompts, bool fork);

/// GitHub table of task rows.
std::string task_markdown(const std::vector<Json>& rows);

}  // namespace million
