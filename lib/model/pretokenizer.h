// SPDX-License-Identifier: Apache-2.0
// The first step of byte-level BPE: regular expressions cut a text into words, inside which merges
// happen. Each family of models has its own expressions, named by tokenizer.ggml.pre.
// Source: llama.cpp src/llama-vocab.cpp (names and expressions), tests/golden/tokens.json.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace million {

/// Immutable after construction; split() may be called from several threads.
class PreTokenizer {
 public:
  /// Error(kBadInput) on an unknown name, listing the known ones.
  explicit PreTokenizer(std::string_view name);
  ~PreTokenizer();

  /// Consecutive parts of `text`, none empty, which together are the text. Bytes that are no UTF-8
  /// become parts of their own. Linear in the length for all expressions of the table.
  std::vector<std::string_view> split(std::string_view text) const;
  /// True when a word that is a token as a whole is taken before any merge (Llama 3).
  bool whole_words() const { return whole_words_; }

  static std::string known_names();

 private:
  struct Stages;
  std::unique_ptr<Stages> stages_;
  bool whole_words_ = false;
};

/// Length of the longest prefix of `text` that is valid UTF-8 (no surrogates, no overlong forms).
std::size_t valid_utf8_prefix(std::string_view text);

}  // namespace million
