// SPDX-License-Identifier: Apache-2.0
// RULER (Hsieh et al., arXiv 2404.06654; github.com/NVIDIA/RULER), generated here. Templates,
// counts and scores are the published ones (scripts/data/synthetic/constants.py, synthetic.yaml);
// random numbers, the essay text and the word lists are our own, so samples are not the published
// ones bit for bit.
#pragma once

#include "lib/core/rng.h"
#include "lib/eval/task.h"

#include <string>
#include <string_view>
#include <vector>

namespace million {

// ruler_words.cpp
/// 342 adjectives, 411 nouns and all 949 words with the verbs, four to nine letters a-z; none is
/// part of another, because the score looks for parts. RULER takes its words from the package
/// wonderwords.
const std::vector<std::string_view>& ruler_adjectives();
const std::vector<std::string_view>& ruler_nouns();
const std::vector<std::string_view>& ruler_words();
/// "adjective-noun", RULER's keys; number `i` of ruler_pair_count().
std::string ruler_pair(int i);
int ruler_pair_count();

// ruler_niah.cpp: niah_single_1 ... niah_multiquery, by the task's name.
std::vector<TaskSample> make_niah(const TaskInfo& task, const TaskPlan& plan);

// ruler_lists.cpp
std::vector<TaskSample> make_variable_tracking(const TaskInfo& task, const TaskPlan& plan);
std::vector<TaskSample> make_common_words(const TaskInfo& task, const TaskPlan& plan);
std::vector<TaskSample> make_frequent_words(const TaskInfo& task, const TaskPlan& plan);

}  // namespace million
