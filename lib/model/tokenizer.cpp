// SPDX-License-Identifier: Apache-2.0
#include "lib/model/tokenizer.h"

#include "lib/core/error.h"
#include "lib/model/nfc.h"
#include "lib/model/tokenizer_scheme.h"

#include <limits>

namespace million {
namespace {

constexpr std::size_t kMaxText = std::numeric_limits<int32_t>::max() / 4;  // U+2581 is 3 bytes

enum : unsigned { kTrimBefore = 1, kTrimAfter = 2 };

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

}  // namespace

struct Tokenizer::Impl {
  explicit Impl(TokenizerData data)
      : vocabulary(std::move(data)),
        scheme(vocabulary.data().scheme == TokenizerData::Scheme::kByteLevel
                   ? make_byte_level(vocabulary)
                   : make_sentencepiece(vocabulary)) {}

  Vocabulary vocabulary;
  std::unique_ptr<TokenizerScheme> scheme;
};

Tokenizer::Tokenizer() = default;
Tokenizer::Tokenizer(TokenizerData data) : impl_(std::make_shared<Impl>(std::move(data))) {}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool parse_special,
                                       TextStart start) const {
  MILLION_ASSERT(impl_ != nullptr);
  MILLION_REQUIRE(text.size() <= kMaxText, ErrorCode::kBadInput,
                  "a text of {} bytes is too long to encode at once, at most {}", text.size(),
                  kMaxText);
  const Vocabulary& vocabulary = impl_->vocabulary;
  std::vector<int32_t> out;
  MergeWord word;
  const auto encode_piece = [&](std::size_t from, std::size_t to) {
    if (to == from) return;
    const std::string_view piece = text.substr(from, to - from);
    if (vocabulary.data().nfc)
      impl_->scheme->encode(to_nfc(piece), start, word, out);
    else
      impl_->scheme->encode(piece, start, word, out);
  };
  std::size_t plain = 0, at = 0;
  while (at < text.size()) {
    const int32_t id = vocabulary.special_at(text.substr(at), parse_special);
    if (id < 0) {
      ++at;
      continue;
    }
    std::size_t end = at, next = at + vocabulary.text(id).size();
    if (vocabulary.trims(id) & kTrimBefore)
      while (end > plain && is_space(text[end - 1])) --end;
    if (vocabulary.trims(id) & kTrimAfter)
      while (next < text.size() && is_space(text[next])) ++next;
    encode_piece(plain, end);
    out.push_back(id);
    start = TextStart::kAfterSpecial;
    plain = at = next;
  }
  encode_piece(plain, text.size());
  return out;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool show_special,
                              TextStart start) const {
  std::string out;
  for (const int32_t id : ids) {
    MILLION_REQUIRE(id >= 0 && id < n_vocab(), ErrorCode::kBadInput,
                    "token {} lies outside the vocabulary of {} tokens", id, n_vocab());
    const Vocabulary& vocabulary = impl_->vocabulary;
    if (!vocabulary.is_special(id))
      impl_->scheme->append_bytes(id, out);
    else if (vocabulary.type(id) != kControl || show_special)
      out += vocabulary.text(id);
  }
  const bool added = impl_ && start != TextStart::kContinued && impl_->scheme->adds_space();
  if (added && out.starts_with(' ')) out.erase(0, 1);
  return out;
}

int32_t Tokenizer::n_vocab() const { return impl_ ? impl_->vocabulary.size() : 0; }
int32_t Tokenizer::bos() const { return impl_ ? impl_->vocabulary.data().bos : -1; }
int32_t Tokenizer::eos() const { return impl_ ? impl_->vocabulary.data().eos : -1; }
bool Tokenizer::add_bos() const { return impl_ && impl_->vocabulary.data().add_bos; }

int32_t Tokenizer::find(std::string_view token) const {
  return impl_ ? impl_->vocabulary.find(token) : -1;
}

bool Tokenizer::is_control(int32_t id) const {
  return id >= 0 && id < n_vocab() && impl_->vocabulary.type(id) == kControl;
}

bool Tokenizer::is_end(int32_t id) const {
  return id >= 0 && id < n_vocab() && impl_->vocabulary.is_end(id);
}

}  // namespace million
