// SPDX-License-Identifier: Apache-2.0
// LongBench v1 as tasks: prompts from the user's copy of the data, cut in the middle, scored by the
// original metrics. task.h's longbench_tasks() is the way in; this is what callers need beside.
//
// Source: THUDM/LongBench, LongBench/pred.py and eval.py (Bai et al., arXiv 2308.14508). Greedy,
// one answer a record, best score over the references. Differs: pred.py ends samsum's generation at
// a newline (but not as the first token); here it goes on and the first line counts, which eval.py
// applies to samsum as well. A prompt's tokens are counted without BOS.
#pragma once

#include "lib/eval/task.h"
#include "lib/model/tokenizer.h"

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace million {

struct CutPrompt {
  std::string text;
  int tokens_before = 0;
  int tokens = 0;  ///< of `text`, at most the limit
  bool truncated = false;
};

/// A prompt of more than `limit` tokens loses its middle: the first and the last limit / 2 tokens
/// are decoded (half a character at the cut becomes U+FFFD) and joined. Words may be cut in two, so
/// that the joined text has more tokens than both halves; then the halves shrink until it fits.
CutPrompt cut_middle(const Tokenizer& tokenizer, std::string_view prompt, int limit);

/// The files that a task's samples come from, for a row's input hashes: its records (FOLDER or
/// FOLDER/data) and, where they are there, dataset2prompt.json and dataset2maxlen.json (FOLDER,
/// FOLDER/config or FOLDER/data). Missing ones are left out.
std::vector<std::filesystem::path> longbench_files(const TaskInfo& task,
                                                   const std::filesystem::path& folder);

}  // namespace million
