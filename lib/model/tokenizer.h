// SPDX-License-Identifier: Apache-2.0
// Text to token ids and back. Three schemes share one merge engine (bpe.h):
//   byte level (GPT-2 family): a regex cuts the text into words, bytes become printable characters,
//     pairs merge by rank inside words;
//   SentencePiece by score (GGUF "llama"): spaces become U+2581, characters merge into the token of
//     the best score, what is no token becomes bytes;
//   SentencePiece by rank: the same from a tokenizer.json, whose merges are listed.
#pragma once

#include "lib/model/pretokenizer.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace million {

/// Before which pieces of a text SentencePiece puts a space. A piece is what lies between special
/// tokens.
enum class SpacePrefix {
  kNone,
  kEach,                ///< before each piece (llama.cpp, the Prepend normalizer)
  kEachUnlessPresent,   ///< ... that does not begin with one (Metaspace "always")
  kFirstUnlessPresent,  ///< only where the text begins (Metaspace "first")
};

/// What a tokenizer is built from; filled by the readers of tokenizer_files.h.
struct TokenizerData {
  enum class Scheme { kByteLevel, kScores, kRanks };
  Scheme scheme = Scheme::kByteLevel;

  std::string pre;  ///< byte level: name of the pre-tokenizer, e.g. "smollm", "llama-bpe", "gpt-2"
  std::optional<std::vector<SplitRule>> splits;  ///< byte level: instead of the name
  bool whole_words = false;  ///< with `splits`: a word that is a token is taken before any merge
  bool nfc = false;          ///< the text is first brought to Unicode's composed form

  SpacePrefix space_prefix = SpacePrefix::kNone;
  bool fuse_unknown = true;  ///< SentencePiece: a run of unknown characters gives one `unknown`

  std::vector<std::string> tokens;
  /// GGUF token types: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte. Empty: all
  /// are normal.
  std::vector<int32_t> types;
  std::vector<float> scores;        ///< kScores: of each token, higher merges first
  std::vector<std::string> merges;  ///< kByteLevel, kRanks: "left right" by rank
  /// White space that a special token takes with it: bit 0 before it, bit 1 after it. Empty: none.
  std::vector<uint8_t> trims;

  int32_t bos = -1, eos = -1, eot = -1, unknown = -1;  ///< -1: none
  bool add_bos = false;
};

/// What stands before a text that is encoded or after which ids are decoded: SentencePiece puts a
/// space before a text and takes it away again.
enum class TextStart {
  kText,          ///< nothing, or the beginning-of-sequence token that the caller adds
  kAfterSpecial,  ///< a control token, as in a chat
  kContinued,     ///< text: no space is added or taken away
};

class Tokenizer {
 public:
  Tokenizer();
  /// Error(kBadInput) on an unknown pre-tokenizer name (lists the known ones), ids out of range,
  /// repeated tokens or merges, merges of no token, scores that do not fit.
  explicit Tokenizer(TokenizerData data);

  /// Ids of a UTF-8 text (invalid bytes are kept as bytes). With parse_special, the text of control
  /// tokens becomes the token; without, it is plain text. No BOS is added. n log n in the bytes of
  /// a word (SentencePiece: of what lies between spaces), linear in the number of words.
  std::vector<int32_t> encode(std::string_view text, bool parse_special = false,
                              TextStart start = TextStart::kText) const;
  /// Bytes of the tokens; control tokens print only with show_special. A stream that is decoded
  /// token by token passes kContinued, else SentencePiece loses the space of each.
  std::string decode(std::span<const int32_t> ids, bool show_special = false,
                     TextStart start = TextStart::kText) const;

  int32_t n_vocab() const;
  int32_t bos() const;
  int32_t eos() const;
  bool add_bos() const;
  /// Id of a token by its exact text, or -1.
  int32_t find(std::string_view token) const;
  /// True for control tokens: chat marks are text in the vocabularies where they are none.
  bool is_control(int32_t id) const;
  /// True for end-of-sequence and end-of-turn tokens: generation stops there.
  bool is_end(int32_t id) const;

 private:
  struct Impl;
  std::shared_ptr<const Impl> impl_;  ///< never changes, so copies share it
};

}  // namespace million
