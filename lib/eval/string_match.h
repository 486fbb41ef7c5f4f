// SPDX-License-Identifier: Apache-2.0
// Scores of generated tasks: does the answer hold what was hidden.
#pragma once

#include "lib/eval/task.h"

#include <string>
#include <string_view>
#include <vector>

namespace million {

/// The first run of digits in `text` without its leading zeros ("0" for zeros alone), or "" when
/// there is none. Signs, points and commas end a run, so "1,234" gives "1".
std::string first_integer(std::string_view text);

/// 1 when the first integer of the answer equals `key` as a number, else 0.
/// Source: Landmark Attention llama/run_test.py: int(re.search(r'\d+', answer).group()).
double first_integer_match(std::string_view answer, std::string_view key);

/// RULER's two scores of one answer, 0 to 1: the fraction of the references contained in it, and
/// whether any is. ASCII case is ignored, control characters are line breaks, and a reference
/// inside a longer word or number counts, as published. `references` is not empty.
/// Source: NVIDIA/RULER scripts/eval/synthetic/constants.py, scripts/eval/evaluate.py.
double string_match_all(std::string_view answer, const std::vector<std::string>& references);
double string_match_part(std::string_view answer, const std::vector<std::string>& references);

/// TaskInfo::score of tasks whose references must all be named: string_match_all.
double score_all(const TaskInfo& task, std::string_view prediction, const TaskSample& sample);

}  // namespace million
