// SPDX-License-Identifier: Apache-2.0
#include "lib/model/vocabulary.h"

#include "lib/core/error.h"
#include "lib/core/printable.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace million {
namespace {

constexpr std::size_t kMaxTokens = std::numeric_limits<int32_t>::max();

constexpr std::size_t kMaxSpecial = 1024;  // bounds the search for them at each position

// Tokens that end a turn or a text in the families we read, by name as llama.cpp does it.
constexpr std::string_view kEndNames[] = {"<|endoftext|>", "<|im_end|>", "<|eot_id|>",
                                          "<|eom_id|>",    "<|end|>",    "<|end_of_text|>",
                                          "<end_of_turn>", "</s>"};

void check_sizes(const TokenizerData& data) {
  const std::size_t n = data.tokens.size();
  MILLION_REQUIRE(n > 0 && n <= kMaxTokens, ErrorCode::kBadInput,
                  "the vocabulary has {} tokens, expected 1 to {}", n, kMaxTokens);
  MILLION_REQUIRE(data.types.empty() || data.types.size() == n, ErrorCode::kBadInput,
                  "{} token types for {} tokens", data.types.size(), n);
  MILLION_REQUIRE(data.trims.empty() || data.trims.size() == n, ErrorCode::kBadInput,
                  "{} trim flags for {} tokens", data.trims.size(), n);
  for (const int32_t id : {data.bos, data.eos, data.eot, data.unknown})
    MILLION_REQUIRE(id >= -1 && id < static_cast<int64_t>(n), ErrorCode::kBadInput,
                    "special token id {} lies outside the vocabulary of {} tokens", id, n);
  if (data.scheme != TokenizerData::Scheme::kScores) return;
  MILLION_REQUIRE(data.scores.size() == n, ErrorCode::kBadInput, "{} token scores for {} tokens",
                  data.scores.size(), n);
  for (std::size_t i = 0; i < n; ++i)
    MILLION_REQUIRE(!std::isnan(data.scores[i]), ErrorCode::kBadInput,
                    "the score of token {} is not a number", i);
}

}  // namespace

int parse_byte_token(std::string_view text) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return -1;
  const auto high = kDigits.find(text[3]), low = kDigits.find(text[4]);
  if (high == std::string_view::npos || low == std::string_view::npos) return -1;
  return static_cast<int>(16 * high + low);
}

Vocabulary::Vocabulary(TokenizerData data) : data_(std::move(data)) {
  check_sizes(data_);
  index_tokens();
  index_special();
}

void Vocabulary::index_tokens() {
  ids_.reserve(data_.tokens.size());
  for (int32_t id = 0; id < size(); ++id) {
    if (type(id) == kByte)
      MILLION_REQUIRE(parse_byte_token(text(id)) >= 0, ErrorCode::kBadInput,
                      "byte token {} is \"{}\", expected the form <0x1F>", id, printable(text(id)));
    if (text(id).empty()) continue;  // a placeholder: never produced, decodes to nothing
    const auto [first, fresh] = ids_.emplace(text(id), id);
    MILLION_REQUIRE(fresh, ErrorCode::kBadInput, "tokens {} and {} are both \"{}\"", first->second,
                    id, printable(text(id)));
  }
}

void Vocabulary::index_special() {
  for (int32_t id = 0; id < size(); ++id) {
    const std::string_view s = text(id);
    if (s.empty() || !is_special(id)) continue;
    MILLION_REQUIRE(s.size() <= kMaxSpecial, ErrorCode::kBadInput,
                    "special token {} is {} bytes long, at most {} are allowed", id, s.size(),
                    kMaxSpecial);
    special_lengths_[static_cast<unsigned char>(s[0])].push_back(static_cast<uint32_t>(s.size()));
  }
  for (auto& lengths : special_lengths_) {
    std::sort(lengths.begin(), lengths.end(), std::greater<>());
    lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
  }
  ends_.assign(data_.tokens.size(), false);
  for (const int32_t id : {data_.eos, data_.eot})
    if (id >= 0) ends_[static_cast<std::size_t>(id)] = true;
  for (const auto name : kEndNames) {
    const int32_t id = find(name);
    if (id >= 0 && type(id) == kControl) ends_[static_cast<std::size_t>(id)] = true;
  }
}

int32_t Vocabulary::special_at(std::string_view text, bool control) const {
  for (const uint32_t length : special_lengths_[static_cast<unsigned char>(text[0])]) {
    if (length > text.size()) continue;
    const int32_t id = find(text.substr(0, length));
    if (id < 0) continue;
    const int32_t kind = type(id);
    if (kind == kUserDefined || (control && (kind == kControl || kind == kUnknownType))) return id;
  }
  return -1;
}

}  // namespace million
