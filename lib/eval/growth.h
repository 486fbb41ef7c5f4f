// SPDX-License-Identifier: Apache-2.0
// Does the error of a coded cache grow over a long generation? fp16 continues a prompt; every
// method is then fed the same tokens through its own decode-path cache, and its distance from fp16
// is taken token by token.
#pragma once

#include "lib/eval/grid.h"
#include "lib/eval/perplexity.h"
#include "lib/eval/text.h"

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace million {

struct GrowthPlan {
  const TokenText* text = nullptr;
  int windows = 1;      ///< prompts, spread over the text
  int generate = 2048;  ///< tokens that fp16 writes behind each prompt
  bool greedy = false;  ///< else drawn at temperature 1, seeded: greedy text soon repeats itself
  int chunk = 64;       ///< tokens fed at once; 1: the kernels of decoding
};

/// Parts of the generation in series of rows.
inline constexpr int kGrowthParts = 16;

/// Means of kGrowthParts equal parts of runs of `n` values that lie one behind the other.
std::vector<double> part_means(std::span<const double> values, int n);

/// A row per positions, method and length (of the prompt): metrics kl, kl_first, kl_last (means of
/// the first and last part) and kl_growth, their ratio; series kl_by_position, nll_by_position and
/// position_end. Error(kBadInput) when the text is too short, Error(kUsage) on wrong sizes.
void run_growth(Grid& grid, const GrowthPlan& plan, GridRows& rows);

/// GitHub table of its rows.
std::string growth_markdown(const std::vector<Json>& rows);

}  // namespace million
