// SPDX-License-Identifier: Apache-2.0
// Perplexity by length of context, on the same tokens at every length: what a longer context, other
// positions and a coded cache each do to the loss.
#pragma once

#include "lib/eval/grid.h"
#include "lib/eval/text.h"

#include <cstdint>
#include <string>
#include <vector>

namespace million {

struct ContextPlan {
  const TokenText* text = nullptr;
  int windows = 4;        ///< end points, spread over the text
  int score_last = 1024;  ///< tokens scored before each end point
};

/// End points e: a window of length N is tokens [e - N, e), of which the last `score_last` are
/// inputs of predictions of tokens [e - score_last + 1, e]. Equal for all lengths up to `longest`.
/// Error(kBadInput) when the text is too short for end points whose scored tokens do not overlap.
std::vector<int64_t> end_points(const ContextPlan& plan, int longest);

/// A row per positions, method and length, with KL against fp16 at the same positions and length.
/// prefill exact: the tokens before the scored ones are read by fp16 once for all methods; the
/// scored ones always go through each method's own cache.
void run_context(Grid& grid, const ContextPlan& plan, GridRows& rows);

/// GitHub table of its rows.
std::string context_markdown(const std::vector<Json>& rows);

}  // namespace million
