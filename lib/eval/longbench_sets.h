// SPDX-License-Identifier: Apache-2.0
// What defines the 21 data sets of LongBench v1 beside their files: prompt, answer length, metric
// and the two rules by name (no chat template, first line only).
//
// Source: THUDM/LongBench, LongBench/config/dataset2prompt.json, dataset2maxlen.json, pred.py,
// eval.py (MIT licence, Copyright (c) 2023 THU-KEG & Zhipu AI); Bai et al., arXiv 2308.14508.
// A prompt is part of the benchmark's definition and stands letter for letter, the word
// "asconcisely" of narrativeqa included.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace million {

enum class LongBenchMetric {
  kTokenF1,
  kRougeL,
  kClassification,
  kRetrieval,         ///< "Paragraph 12"
  kRetrievalChinese,  ///< "段落12"
  kCount,
  kCode,
  kTokenF1Chinese,  ///< of words cut by jieba: not here
  kRougeLChinese,   ///< the same
};

struct LongBenchSet {
  std::string_view name;
  std::string_view kind;  ///< for --list
  LongBenchMetric metric;
  int max_new_tokens;
  bool chat;                ///< chat template allowed (pred.py leaves it out for six of them)
  bool first_line;          ///< only the first line of the answer counts (eval.py)
  bool extended;            ///< is in LongBench-E, file NAME_e.jsonl
  std::string_view prompt;  ///< with {context} and {input}
};

std::span<const LongBenchSet> longbench_sets();

/// Puts the fields into a prompt as Python's str.format does: {context}, {input}, {{ and }}.
/// Error(kBadInput) naming `where` on any other brace.
std::string fill_prompt(std::string_view prompt, std::string_view context, std::string_view input,
                        std::string_view where);

}  // namespace million
