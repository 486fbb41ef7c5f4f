// SPDX-License-Identifier: Apache-2.0
// The tokens of a tokenizer by text, by kind and by what they mean; checked when built. The schemes
// of tokenizer_scheme.h work on it.
#pragma once

#include "lib/model/tokenizer.h"

#include <array>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace million {

enum TokenType : int32_t {
  kNormal = 1,
  kUnknownType = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

/// Byte of a "<0x1F>" token, or -1 when the text has not exactly this form.
int parse_byte_token(std::string_view text);

class Vocabulary {
 public:
  /// Error(kBadInput): see Tokenizer.
  explicit Vocabulary(TokenizerData data);

  const TokenizerData& data() const { return data_; }
  int32_t size() const { return static_cast<int32_t>(data_.tokens.size()); }
  std::string_view text(int32_t id) const { return data_.tokens[static_cast<std::size_t>(id)]; }
  int32_t type(int32_t id) const {
    return data_.types.empty() ? kNormal : data_.types[static_cast<std::size_t>(id)];
  }
  unsigned trims(int32_t id) const {
    return data_.trims.empty() ? 0 : data_.trims[static_cast<std::size_t>(id)];
  }
  bool is_end(int32_t id) const { return ends_[static_cast<std::size_t>(id)]; }
  /// True for tokens whose text stands for itself, outside of any scheme.
  bool is_special(int32_t id) const {
    const int32_t t = type(id);
    return t == kControl || t == kUserDefined || t == kUnknownType;
  }

  /// Id by exact text, or -1.
  int32_t find(std::string_view text) const {
    const auto it = ids_.find(text);
    return it == ids_.end() ? -1 : it->second;
  }
  /// The same among the tokens that plain text may become: text never forges a special token.
  int32_t find_plain(std::string_view text) const {
    const int32_t id = find(text);
    return id >= 0 && type(id) == kNormal ? id : -1;
  }
  /// The longest special token that `text` starts with, or -1. User-defined tokens always count,
  /// control tokens only with `control`.
  int32_t special_at(std::string_view text, bool control) const;

 private:
  void index_tokens();
  void index_special();

  TokenizerData data_;
  std::unordered_map<std::string_view, int32_t> ids_;       // views into data_.tokens
  std::array<std::vector<uint32_t>, 256> special_lengths_;  // by first byte, longest first
  std::vector<bool> ends_;
};

}  // namespace million
