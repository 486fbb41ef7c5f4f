// SPDX-License-Identifier: Apache-2.0
// How a piece of text between special tokens becomes tokens: byte level or SentencePiece.
#pragma once

#include "lib/model/bpe.h"
#include "lib/model/vocabulary.h"

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace million {

/// Immutable; the vocabulary outlives it.
class TokenizerScheme {
 public:
  virtual ~TokenizerScheme() = default;
  /// Appends the tokens of `piece`, which is not empty.
  virtual void encode(std::string_view piece, TextStart start, MergeWord& word,
                      std::vector<int32_t>& out) const = 0;
  /// Appends the bytes of a token that is not special.
  virtual void append_bytes(int32_t id, std::string& out) const = 0;
  /// True when a text begins with a space that encode() has put there.
  virtual bool adds_space() const { return false; }
};

/// What stands for a space in SentencePiece's tokens, U+2581.
inline constexpr std::string_view kSpaceMark = "\xE2\x96\x81";

/// GPT-2's characters of the 256 bytes in UTF-8: printable Latin-1 stays, the rest is counted up
/// from U+0100 in byte order.
std::array<std::string, 256> byte_characters();

/// Source: Radford et al. 2019 (byte-level BPE), llama.cpp src/llama-vocab.cpp.
std::unique_ptr<TokenizerScheme> make_byte_level(const Vocabulary& vocabulary);
/// Source: Kudo and Richardson 2018, sentencepiece src/bpe_model.cc; the ranked form: tokenizers
/// (Hugging Face), models/bpe and pre_tokenizers/metaspace.
std::unique_ptr<TokenizerScheme> make_sentencepiece(const Vocabulary& vocabulary);

}  // namespace million
