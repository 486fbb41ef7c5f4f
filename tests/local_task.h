// SPDX-License-Identifier: Apache-2.0
// A task of the tests' own: questions behind a common filler, whose scores stand in their facts.
#pragma once

#include "lib/eval/task_run.h"

#include <string>
#include <string_view>
#include <vector>

namespace million {

inline int g_made = 0;  ///< calls of make_local()

/// Two questions of each depth behind one filler; what they score stands in their facts.
inline std::vector<TaskSample> make_local(const TaskInfo&, const TaskPlan& plan) {
  ++g_made;
  std::string filler;
  while (plan.count(filler) < plan.length / 2) filler += "the grass is green, the sky is blue. ";
  std::vector<TaskSample> samples;
  for (const double depth : plan.depths)
    for (int i = 0; i < plan.samples; ++i) {
      TaskSample s;
      s.prompt = filler + "Question " + std::to_string(samples.size()) + ":";
      s.answer_head = " it is";
      s.references = {"right"};
      s.max_new_tokens = 6;
      s.facts = {{"depth", depth}, {"score", depth > 0.5 ? 1.0 : 0.0}};
      samples.push_back(s);
    }
  return samples;
}

inline std::vector<TaskSample> make_unanswerable(const TaskInfo& task, const TaskPlan& plan) {
  auto samples = make_local(task, plan);
  samples.back().references.clear();
  return samples;
}

inline double score_local(const TaskInfo&, std::string_view, const TaskSample& sample) {
  return sample.facts.at("score").get<double>();
}

inline TaskInfo local_task() {
  return {"local", "a test's own", "this test", "given",    true,
          true,    false,          make_local,  score_local};
}

inline TaskRunPlan local_plan() {
  TaskRunPlan plan;
  plan.tasks = {local_task()};
  plan.samples.samples = 2;
  plan.samples.depths = {0.0, 1.0};
  plan.chat = false;
  return plan;
}

}  // namespace million
