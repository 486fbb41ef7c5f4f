// SPDX-License-Identifier: Apache-2.0
// The table of RULER's tasks. Of the published thirteen, qa_1 and qa_2 are not here: they need the
// questions of SQuAD and HotpotQA, which cannot be generated.
#include "lib/eval/ruler.h"
#include "lib/eval/string_match.h"

#include <array>

namespace million {

namespace {

constexpr const char* kSource =
    "RULER, Hsieh et al., arXiv 2404.06654, NVIDIA/RULER; own random numbers and word lists";

TaskInfo ruler_task(const char* name, const char* summary, bool binary,
                    decltype(TaskInfo::make) make) {
  return {.name = name,
          .summary = summary,
          .source = kSource,
          .metric = "string match (all)",
          .binary = binary,
          .make = make,
          .score = score_all};
}

}  // namespace

std::span<const TaskInfo> ruler_tasks() {
  static const std::array<TaskInfo, 11> kTasks = {
      ruler_task("niah_single_1", "a word key with a 7-digit number in repeated noise lines", true,
                 make_niah),
      ruler_task("niah_single_2",
                 "a word key with a 7-digit number in the haystack text, from its start and "
                 "repeated when short (filler without one)",
                 true, make_niah),
      ruler_task("niah_single_3", "a word key with a uuid in the haystack text", true, make_niah),
      ruler_task("niah_multikey_1", "one of four keyed numbers in the haystack text is asked for",
                 true, make_niah),
      ruler_task("niah_multikey_2",
                 "one keyed number is asked for in a text of nothing but such needles", true,
                 make_niah),
      ruler_task("niah_multikey_3",
                 "one uuid with a uuid key in a text of nothing but such needles", true, make_niah),
      ruler_task("niah_multivalue", "all four numbers of one key in the haystack text", false,
                 make_niah),
      ruler_task("niah_multiquery", "the numbers of four keys in the haystack text", false,
                 make_niah),
      ruler_task("vt",
                 "variable tracking: all five variables that get one value through a chain of four "
                 "assignments in noise, after a solved example",
                 false, make_variable_tracking),
      ruler_task("cwe",
                 "common words: the ten words that stand 30 times in a numbered list where others "
                 "stand 3 times (6 and 1 below 4096 tokens), after a solved example; pairs of "
                 "words where 949 are not enough",
                 false, make_common_words),
      ruler_task("fwe",
                 "frequent words: the three most frequent made-up words of a text with zeta(2) "
                 "frequencies; dots come first and do not count",
                 false, make_frequent_words)};
  return kTasks;
}

}  // namespace million
