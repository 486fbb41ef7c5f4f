// SPDX-License-Identifier: Apache-2.0
#include "lib/model/pretokenizer.h"
#include "lib/model/tokenizer_scheme.h"

#include <array>

namespace million {
namespace {

/// Code points of the 256 bytes in GPT-2's map.
std::array<uint16_t, 256> byte_codes() {
  std::array<uint16_t, 256> map{};
  uint16_t next = 0x100;
  for (int b = 0; b < 256; ++b) {
    const bool stays = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    map[static_cast<std::size_t>(b)] = stays ? static_cast<uint16_t>(b) : next++;
  }
  return map;
}

class ByteLevel final : public TokenizerScheme {
 public:
  explicit ByteLevel(const Vocabulary& vocabulary)
      : vocabulary_(vocabulary),
        pre_(vocabulary.data().splits
                 ? PreTokenizer(*vocabulary.data().splits, vocabulary.data().whole_words)
                 : PreTokenizer(vocabulary.data().pre)),
        merges_(vocabulary.data().merges, [&](std::string_view s) { return vocabulary.find(s); }) {
    bytes_.fill(-1);
    const auto codes = byte_codes();
    for (std::size_t b = 0; b < 256; ++b) {
      bytes_[codes[b]] = static_cast<int16_t>(b);
      byte_ids_[b] = vocabulary.find(characters_[b]);
    }
  }

  void encode(std::string_view piece, TextStart start, MergeWord& word,
              std::vector<int32_t>& out) const override {
    std::string spaced;
    if (vocabulary_.data().space_prefix == SpacePrefix::kEachUnlessPresent &&
        start != TextStart::kContinued && piece[0] != ' ')
      piece = spaced.append(" ").append(piece);
    for (const std::string_view part : pre_.split(piece)) encode_word(part, word, out);
  }

  void append_bytes(int32_t id, std::string& out) const override;

 private:
  void encode_word(std::string_view text, MergeWord& word, std::vector<int32_t>& out) const;

  const Vocabulary& vocabulary_;
  PreTokenizer pre_;
  RankedMerges merges_;
  std::array<std::string, 256> characters_ = byte_characters();
  std::array<int16_t, 0x200> bytes_{};   // byte of a character, -1 for none
  std::array<int32_t, 256> byte_ids_{};  // token of a byte, -1 for none
};

/// Appends the tokens of one word. Some vocabularies have no token for rare control bytes, which
/// are left out: in a vocabulary named by `pre` such a byte blocks merges across it (llama.cpp), in
/// one with rules its neighbours meet (tokenizers).
void ByteLevel::encode_word(std::string_view text, MergeWord& word,
                            std::vector<int32_t>& out) const {
  if (pre_.whole_words()) {
    std::string mapped;
    for (const char c : text) mapped += characters_[static_cast<unsigned char>(c)];
    const int32_t id = vocabulary_.find_plain(mapped);
    if (id >= 0) return out.push_back(id);
  }
  word.clear();
  const bool blocks = !vocabulary_.data().splits;
  for (const char c : text) {
    const int32_t id = byte_ids_[static_cast<unsigned char>(c)];
    if (id >= 0 || blocks) word.add(id, 1);
  }
  word.merge(merges_);
  word.for_each([&](const MergeSymbol& s) {
    if (s.id >= 0) out.push_back(s.id);
  });
}

void ByteLevel::append_bytes(int32_t id, std::string& out) const {
  const std::string_view text = vocabulary_.text(id);
  if (vocabulary_.type(id) == kByte)
    return out.push_back(static_cast<char>(parse_byte_token(text)));
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto a = static_cast<unsigned char>(text[i]);
    const bool two = (a & 0xE0) == 0xC0 && i + 1 < text.size();
    const unsigned c =
        two ? (a & 0x1Fu) << 6 | (static_cast<unsigned char>(text[i + 1]) & 0x3Fu) : a;
    const int byte = (two || a < 0x80) && c < bytes_.size() ? bytes_[c] : -1;
    if (byte < 0) {  // not a character of the map: the text itself
      out.push_back(text[i]);
      continue;
    }
    out.push_back(static_cast<char>(byte));
    i += two ? 1 : 0;
  }
}

}  // namespace

std::array<std::string, 256> byte_characters() {
  std::array<std::string, 256> out;
  const auto codes = byte_codes();
  for (std::size_t b = 0; b < out.size(); ++b) append_utf8(codes[b], out[b]);
  return out;
}

std::unique_ptr<TokenizerScheme> make_byte_level(const Vocabulary& vocabulary) {
  return std::make_unique<ByteLevel>(vocabulary);
}

}  // namespace million
