// SPDX-License-Identifier: Apache-2.0
// Byte-level BPE (GPT-2 family): the text is cut by the pre-tokenizer's regex (PCRE2), bytes become
// printable characters, merges are applied by rank.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace million {

/// What a tokenizer is built from; filled by the model reader.
struct TokenizerData {
  std::string pre;  ///< name of the pre-tokenizer, e.g. "smollm", "llama-bpe", "gpt-2"
  std::vector<std::string> tokens;
  std::vector<int32_t> types;  ///< GGUF token types: 1 normal, 3 control, 4 user defined, 6 byte
  std::vector<std::string> merges;                     ///< "left right" by rank
  int32_t bos = -1, eos = -1, eot = -1, unknown = -1;  ///< -1: none
  bool add_bos = false;
};

class Tokenizer {
 public:
  Tokenizer();
  /// Error(kBadInput) on an unknown pre-tokenizer name (lists the known ones) or ids out of range.
  explicit Tokenizer(TokenizerData data);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  /// Ids of a UTF-8 text (invalid bytes are kept as bytes). With parse_special, the text of control
  /// tokens becomes the token; without, it is plain text. No BOS is added.
  std::vector<int32_t> encode(std::string_view text, bool parse_special = false) const;
  /// Bytes of the tokens; control tokens print only with show_special.
  std::string decode(std::span<const int32_t> ids, bool show_special = false) const;

  int32_t n_vocab() const;
  int32_t bos() const;
  int32_t eos() const;
  bool add_bos() const;
  /// Id of a token by its exact text, or -1.
  int32_t find(std::string_view token) const;
  /// True for end-of-sequence and end-of-turn tokens: generation stops there.
  bool is_end(int32_t id) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace million
