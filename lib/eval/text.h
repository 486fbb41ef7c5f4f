// SPDX-License-Identifier: Apache-2.0
// Texts as token ids, and how they are cut into windows.
#pragma once

#include "lib/model/tokenizer.h"

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace million {

struct TokenText {
  std::string name;    ///< file name without folder
  std::string sha256;  ///< of the text file
  std::vector<int32_t> tokens;
};

/// Reads and tokenizes a whole text file (special-token text stays text); the text begins with BOS
/// where the model's tokenizer adds one. Error(kBadInput) when the file is missing or empty.
TokenText load_text(const Tokenizer& tokenizer, const std::filesystem::path& path);

/// Non-overlapping windows of `context` tokens; the last partial one is dropped.
struct Windows {
  const TokenText* text;
  int context;
  int count;
  std::span<const int32_t> window(int i) const {
    return std::span(text->tokens).subspan(static_cast<size_t>(i) * context, context);
  }
};

/// At most `limit` windows (0 = all). Error(kBadInput) when the text is shorter than one window,
/// naming both lengths.
Windows cut_windows(const TokenText& text, int context, int limit);

/// Error(kBadInput) when both texts are the same file content: a score on calibration text is no
/// held-out score. `allowed` (the paper's protocol) turns the check off.
void require_disjoint(const TokenText& calibration, const TokenText& evaluation, bool allowed);

}  // namespace million
