// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/task.h"

#include "lib/core/error.h"

namespace million {

std::vector<TaskInfo> task_table() {
  std::vector<TaskInfo> table;
  for (const auto tasks : {needle_tasks(), ruler_tasks(), longbench_tasks()})
    table.insert(table.end(), tasks.begin(), tasks.end());
  return table;
}

TaskInfo find_task(std::string_view name) {
  std::string known;
  for (TaskInfo& task : task_table()) {
    if (task.name == name) return std::move(task);
    known += (known.empty() ? "" : ", ") + task.name;
  }
  fail(ErrorCode::kUsage,
       "--task: got '{}', expected needle, ruler, longbench, context, growth, "
       "perplexity or one of {}",
       name, known);
}

}  // namespace million
