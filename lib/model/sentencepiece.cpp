// SPDX-License-Identifier: Apache-2.0
#include "lib/model/tokenizer_scheme.h"

#include <algorithm>
#include <array>
#include <functional>
#include <numeric>
#include <optional>

namespace million {
namespace {

std::string byte_token(unsigned byte) {
  constexpr char kDigits[] = "0123456789ABCDEF";
  return {'<', '0', 'x', kDigits[byte >> 4], kDigits[byte & 15], '>'};
}

/// Bytes of the character at the start of `s`; a byte that starts none is a character of its own.
std::size_t character_length(std::string_view s) {
  return std::max<std::size_t>(1, utf8_length(s));
}

class SentencePiece final : public TokenizerScheme {
 public:
  explicit SentencePiece(const Vocabulary& vocabulary);
  void encode(std::string_view piece, TextStart start, MergeWord& word,
              std::vector<int32_t>& out) const override;
  void append_bytes(int32_t id, std::string& out) const override;
  bool adds_space() const override { return vocabulary_.data().space_prefix != SpacePrefix::kNone; }

 private:
  void rank_scores();
  bool words_are_independent() const;
  std::string with_spaces_marked(std::string_view piece, TextStart start) const;
  void encode_word(std::string_view text, MergeWord& word, std::vector<int32_t>& out) const;
  void add_character(std::string_view c, MergeWord& word) const;
  bool append_as_bytes(std::string_view bytes, std::vector<int32_t>& out) const;
  Merge merge_of(std::string_view text) const;

  const Vocabulary& vocabulary_;
  std::optional<RankedMerges> merges_;  // kRanks
  std::vector<int32_t> ranks_;          // kScores: [n_vocab], 0 for the best score
  std::size_t longest_ = 0;             // bytes of the longest token that merges can give
  std::array<int32_t, 256> byte_ids_{};
  bool cut_ = false;
};

SentencePiece::SentencePiece(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {
  const TokenizerData& data = vocabulary.data();
  for (unsigned b = 0; b < 256; ++b) {
    const int32_t id = vocabulary.find(byte_token(b));
    byte_ids_[b] = id >= 0 && vocabulary.type(id) == kByte ? id : kNoToken;
  }
  for (int32_t id = 0; id < vocabulary.size(); ++id)
    if (vocabulary.type(id) == kNormal) longest_ = std::max(longest_, vocabulary.text(id).size());
  if (data.scheme == TokenizerData::Scheme::kScores)
    rank_scores();
  else
    merges_.emplace(data.merges, [&](std::string_view s) { return vocabulary.find(s); });
  cut_ = !data.whole_words && words_are_independent();
}

/// Equal scores get equal ranks: the leftmost pair of those merges first.
void SentencePiece::rank_scores() {
  const std::vector<float>& scores = vocabulary_.data().scores;
  std::vector<float> sorted = scores;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
  ranks_.resize(scores.size());
  for (std::size_t i = 0; i < scores.size(); ++i)
    ranks_[i] = static_cast<int32_t>(
        std::lower_bound(sorted.begin(), sorted.end(), scores[i], std::greater<>()) -
        sorted.begin());
}

/// True when no merge joins a mark of a space to what stands before it. Then the text may be cut
/// before such marks with the same result, and short words are faster than one long text.
bool SentencePiece::words_are_independent() const {
  if (vocabulary_.find_plain(kSpaceMark) < 0) return false;
  for (int32_t id = 0; id < vocabulary_.size(); ++id) {
    const std::string_view text = vocabulary_.text(id);
    std::size_t leading = 0;
    while (text.substr(leading).starts_with(kSpaceMark)) leading += kSpaceMark.size();
    if (text.find(kSpaceMark, leading) != std::string_view::npos) return false;
  }
  return true;
}

std::string SentencePiece::with_spaces_marked(std::string_view piece, TextStart start) const {
  const bool present = piece[0] == ' ' || piece.starts_with(kSpaceMark);
  bool prefix = false;
  switch (vocabulary_.data().space_prefix) {
    case SpacePrefix::kNone:
      break;
    case SpacePrefix::kEach:
      prefix = start != TextStart::kContinued;
      break;
    case SpacePrefix::kEachUnlessPresent:
      prefix = start != TextStart::kContinued && !present;
      break;
    case SpacePrefix::kFirstUnlessPresent:
      prefix = start == TextStart::kText && !present;
      break;
  }
  std::string text;
  text.reserve(piece.size() + piece.size() / 2 + kSpaceMark.size());
  if (prefix) text += kSpaceMark;
  for (const char c : piece) {
    if (c == ' ')
      text += kSpaceMark;
    else
      text.push_back(c);
  }
  return text;
}

void SentencePiece::encode(std::string_view piece, TextStart start, MergeWord& word,
                           std::vector<int32_t>& out) const {
  const std::string marked = with_spaces_marked(piece, start);
  std::string_view text = marked;
  if (vocabulary_.data().whole_words) {
    const int32_t id = vocabulary_.find_plain(text);
    if (id >= 0) return out.push_back(id);
  }
  while (cut_ && !text.empty()) {
    std::size_t end = 0;
    while (text.substr(end).starts_with(kSpaceMark)) end += kSpaceMark.size();
    end = std::min(text.find(kSpaceMark, end), text.size());
    encode_word(text.substr(0, end), word, out);
    text.remove_prefix(end);
  }
  if (!text.empty()) encode_word(text, word, out);
}

/// The token that `text` is, as the result of a merge by score.
Merge SentencePiece::merge_of(std::string_view text) const {
  if (text.size() > longest_) return {};
  const int32_t id = vocabulary_.find_plain(text);
  return id < 0 ? Merge{} : Merge{ranks_[static_cast<std::size_t>(id)], id};
}

/// By rank, characters without a token become bytes before the merges, by score after them. Without
/// an unknown token those that have no bytes either are lost, and their neighbours meet.
void SentencePiece::add_character(std::string_view c, MergeWord& word) const {
  const int32_t id = vocabulary_.find_plain(c);
  const auto byte_id = [&](char b) { return byte_ids_[static_cast<unsigned char>(b)]; };
  const bool bytes =
      id < 0 && merges_ && std::all_of(c.begin(), c.end(), [&](char b) { return byte_id(b) >= 0; });
  const bool lost = id < 0 && merges_ && vocabulary_.data().unknown < 0;
  if (!bytes && !lost) word.add(id, c.size());
  if (!bytes) return;
  for (const char b : c) word.add(byte_id(b), 1);
}

void SentencePiece::encode_word(std::string_view text, MergeWord& word,
                                std::vector<int32_t>& out) const {
  word.clear();
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t n = character_length(text.substr(at));
    add_character(text.substr(at, n), word);
    at += n;
  }
  if (merges_)
    word.merge(*merges_);
  else
    word.merge([&](const MergeSymbol& left, const MergeSymbol& right) {
      return merge_of(text.substr(left.at, left.bytes + right.bytes));
    });
  const int32_t unknown = vocabulary_.data().unknown;
  bool in_run = false;  // of unknown characters
  word.for_each([&](const MergeSymbol& s) {
    const bool is_unknown = s.id < 0 && !append_as_bytes(text.substr(s.at, s.bytes), out);
    if (s.id >= 0) out.push_back(s.id);
    if (is_unknown && unknown >= 0 && !(in_run && vocabulary_.data().fuse_unknown))
      out.push_back(unknown);
    in_run = is_unknown;
  });
}

/// Appends the tokens of the bytes; false, and nothing is appended, when one has none.
bool SentencePiece::append_as_bytes(std::string_view bytes, std::vector<int32_t>& out) const {
  const auto id_of = [&](char b) { return byte_ids_[static_cast<unsigned char>(b)]; };
  if (!std::all_of(bytes.begin(), bytes.end(), [&](char b) { return id_of(b) >= 0; })) return false;
  for (const char b : bytes) out.push_back(id_of(b));
  return true;
}

void SentencePiece::append_bytes(int32_t id, std::string& out) const {
  std::string_view text = vocabulary_.text(id);
  if (vocabulary_.type(id) == kByte)
    return out.push_back(static_cast<char>(parse_byte_token(text)));
  for (auto at = text.find(kSpaceMark); at != std::string_view::npos; at = text.find(kSpaceMark)) {
    out.append(text.substr(0, at)).push_back(' ');
    text.remove_prefix(at + kSpaceMark.size());
  }
  out.append(text);
}

}  // namespace

std::unique_ptr<TokenizerScheme> make_sentencepiece(const Vocabulary& vocabulary) {
  return std::make_unique<SentencePiece>(vocabulary);
}

}  // namespace million
