// SPDX-License-Identifier: Apache-2.0
// The first step of byte-level BPE: regular expressions cut a text into words, inside which merges
// happen. Each family of models has its own expressions, named by tokenizer.ggml.pre or written in
// a tokenizer.json.
// Source: llama.cpp src/llama-vocab.cpp (names and expressions), tests/golden/tokens.json.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace million {

/// One step of a pre-tokenizer from a file.
struct SplitRule {
  std::string pattern;     ///< in PCRE2's syntax; see split_pattern.h for the translation
  bool drop_gaps = false;  ///< text between the matches is left out, else it is a part of its own
};
/// GPT-2's expression, which the ByteLevel step of a tokenizer.json stands for.
SplitRule gpt2_rule();

/// Immutable after construction; split() may be called from several threads.
class PreTokenizer {
 public:
  /// Error(kBadInput) on an unknown name, listing the known ones.
  explicit PreTokenizer(std::string_view name);
  /// From a file's rules, each applied inside the parts of the one before; none: a text is one
  /// part. Error(kBadInput) on a pattern that does not compile, that refers back to what it has
  /// matched or that is longer than 4096 bytes.
  PreTokenizer(std::span<const SplitRule> rules, bool whole_words);
  PreTokenizer(PreTokenizer&&) noexcept;
  ~PreTokenizer();

  /// Consecutive parts of `text`, none empty, which together are the text (but for gaps that a rule
  /// drops). Bytes that are no UTF-8 become parts of their own. Linear in the length for all
  /// expressions of the table; a foreign one that takes too many steps gives Error(kFailed).
  std::vector<std::string_view> split(std::string_view text) const;
  /// True when a word that is a token as a whole is taken before any merge (Llama 3).
  bool whole_words() const { return whole_words_; }

  static std::string known_names();

 private:
  struct Stage;
  std::vector<Stage> stages_;
  bool whole_words_ = false;
};

/// Bytes of the UTF-8 character at the start of `text`, 0 when it is invalid (no surrogates, no
/// overlong forms; Unicode table 3-7).
std::size_t utf8_length(std::string_view text);
/// Length of the longest prefix of `text` that is valid UTF-8.
std::size_t valid_utf8_prefix(std::string_view text);
/// Appends the UTF-8 form of a code point below 0x110000.
void append_utf8(uint32_t c, std::string& out);

}  // namespace million
