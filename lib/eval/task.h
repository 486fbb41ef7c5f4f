// SPDX-License-Identifier: Apache-2.0
// Tasks with right and wrong answers: what a task is, and the table of all of them. A generator
// (needle_tasks.cpp, ruler_tasks.cpp, longbench.cpp) makes samples from a seed or reads them from
// files; task_run.h puts them to a model.
#pragma once

#include "lib/core/json.h"
#include "lib/model/tokenizer.h"

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace million {

/// One question. Neighbouring samples whose prompts start alike share the reading of that start, so
/// a generator keeps questions to one haystack together.
struct TaskSample {
  std::string prompt;  ///< all that the model reads, without chat marks
  std::string
      answer_head;  ///< text at which the answer starts, behind the chat marks; may be empty
  std::vector<std::string> references;  ///< right answers; see TaskInfo::score
  std::vector<std::string> classes;     ///< labels of a classification task
  int max_new_tokens = 32;
  bool chat = true;             ///< wrapped in the model's chat template where it has one
  Json facts = Json::object();  ///< for the sample's line: id, length, depth (0 to 1), seed ...
};

/// What samples are made from.
struct TaskPlan {
  int length = 4096;  ///< tokens of prompt, chat marks and answer together, at most
  std::vector<double> depths = {0.0, 0.25, 0.5, 0.75, 1.0};  ///< where needles lie, needle tasks
  int samples = 10;  ///< of each cell (length, depth); of a file task at most this many, 0 = all
  uint64_t seed = 1;
  std::string haystack;        ///< text to hide needles in; empty: a repeated filler
  std::filesystem::path data;  ///< folder of task files (LongBench)
  bool skip_bad_lines = false;
  int overhead_tokens = 64;  ///< chat marks and system message around a prompt
  const Tokenizer* tokenizer = nullptr;

  int count(std::string_view text) const {
    return static_cast<int>(tokenizer->encode(text).size());
  }
};

/// One line of the task table.
struct TaskInfo {
  std::string name;        ///< "passkey", "niah_multikey", "longbench:qasper"
  std::string summary;     ///< one line for --list
  std::string source;      ///< paper or repository that defines it
  std::string metric;      ///< what score() computes: "exact match", "token F1", "ROUGE-L" ...
  bool binary = false;     ///< scores are 0 or 1: Wilson intervals
  bool has_depth = false;  ///< samples of every depth of the plan
  bool from_file = false;  ///< lengths are the data's; the plan's length is where prompts are cut
  std::vector<TaskSample> (*make)(const TaskInfo& task, const TaskPlan& plan) = nullptr;
  /// 0 to 1.
  double (*score)(const TaskInfo& task, std::string_view prediction,
                  const TaskSample& sample) = nullptr;
};

std::span<const TaskInfo> needle_tasks();     ///< needle_tasks.cpp
std::span<const TaskInfo> ruler_tasks();      ///< ruler_tasks.cpp
std::span<const TaskInfo> longbench_tasks();  ///< longbench.cpp

/// The table: all of the above in order.
std::vector<TaskInfo> task_table();
/// Error(kUsage) listing the known names.
TaskInfo find_task(std::string_view name);

}  // namespace million
