// SPDX-License-Identifier: Apache-2.0
// Merges run on a linked list of symbols with a heap of candidate pairs: n log n in the length of a
// word, so a file without spaces costs no more than prose.
#include "lib/model/tokenizer.h"

#include "lib/core/error.h"
#include "lib/model/gguf.h"
#include "lib/model/pretokenizer.h"

#include <algorithm>
#include <array>
#include <limits>
#include <unordered_map>

namespace million {
namespace {

enum TokenType : int32_t { kUnknownType = 2, kControl = 3, kUserDefined = 4, kByte = 6 };

constexpr std::size_t kMaxText = std::numeric_limits<int32_t>::max();

constexpr std::size_t kMaxSpecial = 1024;  // bounds the search for them at each position

// Tokens that end a turn or a text in the families we read, by name as llama.cpp does it.
constexpr std::string_view kEndNames[] = {"<|endoftext|>", "<|im_end|>", "<|eot_id|>",
                                          "<|eom_id|>",    "<|end|>",    "<|end_of_text|>",
                                          "<end_of_turn>", "</s>"};

/// GPT-2's map of bytes to printable characters: printable Latin-1 stays, the rest is counted up
/// from U+0100 in byte order.
std::array<uint16_t, 256> byte_characters() {
  std::array<uint16_t, 256> map{};
  uint16_t next = 0x100;
  for (int b = 0; b < 256; ++b) {
    const bool stays = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    map[static_cast<std::size_t>(b)] = stays ? static_cast<uint16_t>(b) : next++;
  }
  return map;
}

std::string utf8_of(uint16_t c) {  // c < 0x800
  if (c < 0x80) return std::string(1, static_cast<char>(c));
  return {static_cast<char>(0xC0 | (c >> 6)), static_cast<char>(0x80 | (c & 0x3F))};
}

/// Byte of a "<0x1F>" token, or -1 when the text has not exactly this form.
int parse_byte_token(std::string_view text) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return -1;
  const auto high = kDigits.find(text[3]), low = kDigits.find(text[4]);
  if (high == std::string_view::npos || low == std::string_view::npos) return -1;
  return static_cast<int>(16 * high + low);
}

struct Merge {
  int32_t rank, result;
};

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

constexpr int32_t kMergedAway = -2;  // differs from -1, a byte without a token

struct Symbol {
  int32_t id, previous, next;
};

struct Candidate {
  int32_t rank, at, left, right, result;  // ids as they were when the pair was seen
  /// For a max-heap that gives the lowest rank first, then the leftmost pair.
  bool operator<(const Candidate& o) const { return rank != o.rank ? rank > o.rank : at > o.at; }
};

/// Buffers that one encode() reuses for all words.
struct Workspace {
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;
};

}  // namespace

struct Tokenizer::Impl {
  explicit Impl(TokenizerData d);

  void index_tokens();
  void index_merges();
  void index_special();
  void encode_plain(std::string_view text, Workspace& work, std::vector<int32_t>& out) const;
  void encode_word(std::string_view word, Workspace& work, std::vector<int32_t>& out) const;
  void merge_symbols(Workspace& work) const;
  int32_t special_at(std::string_view text, bool control) const;
  void append_bytes(int32_t id, std::string& out) const;
  int32_t type(int32_t id) const {
    return data.types.empty() ? 1 : data.types[static_cast<std::size_t>(id)];
  }

  TokenizerData data;
  PreTokenizer pre;
  std::unordered_map<std::string_view, int32_t> ids;  // views into data.tokens
  std::unordered_map<uint64_t, Merge> merges;
  std::array<uint16_t, 256> characters = byte_characters();
  std::array<int16_t, 0x200> bytes{};                      // byte of a character, -1 for none
  std::array<int32_t, 256> byte_ids{};                     // token of a byte, -1 for none
  std::array<std::vector<uint32_t>, 256> special_lengths;  // by first byte, longest first
  std::vector<bool> ends;
};

Tokenizer::Impl::Impl(TokenizerData d) : data(std::move(d)), pre(data.pre) {
  const std::size_t n = data.tokens.size();
  MILLION_REQUIRE(n > 0 && n <= kMaxText, ErrorCode::kBadInput,
                  "the vocabulary has {} tokens, expected 1 to {}", n, kMaxText);
  MILLION_REQUIRE(data.types.empty() || data.types.size() == n, ErrorCode::kBadInput,
                  "{} token types for {} tokens", data.types.size(), n);
  for (const int32_t id : {data.bos, data.eos, data.eot, data.unknown})
    MILLION_REQUIRE(id >= -1 && id < static_cast<int64_t>(n), ErrorCode::kBadInput,
                    "special token id {} lies outside the vocabulary of {} tokens", id, n);
  index_tokens();
  index_merges();
  index_special();
}

void Tokenizer::Impl::index_tokens() {
  ids.reserve(data.tokens.size());
  for (std::size_t i = 0; i < data.tokens.size(); ++i) {
    const std::string& text = data.tokens[i];
    const auto id = static_cast<int32_t>(i);
    if (type(id) == kByte)
      MILLION_REQUIRE(parse_byte_token(text) >= 0, ErrorCode::kBadInput,
                      "byte token {} is \"{}\", expected the form <0x1F>", id, printable(text));
    if (text.empty()) continue;  // a placeholder: never produced, decodes to nothing
    const auto [first, fresh] = ids.emplace(text, id);
    MILLION_REQUIRE(fresh, ErrorCode::kBadInput, "tokens {} and {} are both \"{}\"", first->second,
                    id, printable(text));
  }
  bytes.fill(-1);
  for (std::size_t b = 0; b < 256; ++b) {
    bytes[characters[b]] = static_cast<int16_t>(b);
    const auto it = ids.find(utf8_of(characters[b]));
    byte_ids[b] = it == ids.end() ? -1 : it->second;
  }
}

void Tokenizer::Impl::index_merges() {
  merges.reserve(data.merges.size());
  const auto id_of = [&](std::string_view text, std::size_t rank) {
    const auto it = ids.find(text);
    MILLION_REQUIRE(it != ids.end(), ErrorCode::kBadInput,
                    "merge {} is \"{}\", but \"{}\" is no token of the vocabulary", rank,
                    printable(data.merges[rank]), printable(text));
    return it->second;
  };
  for (std::size_t rank = 0; rank < data.merges.size(); ++rank) {
    const std::string_view text = data.merges[rank];
    const auto space = text.find(' ');
    MILLION_REQUIRE(space != std::string_view::npos && space > 0 && space + 1 < text.size() &&
                        text.find(' ', space + 1) == std::string_view::npos,
                    ErrorCode::kBadInput, "merge {} is \"{}\", expected \"left right\"", rank,
                    printable(text));
    const std::string_view left = text.substr(0, space), right = text.substr(space + 1);
    const std::string joined = std::string(left) + std::string(right);
    const Merge merge{static_cast<int32_t>(rank), id_of(joined, rank)};
    merges.emplace(pair_key(id_of(left, rank), id_of(right, rank)), merge);
  }
}

void Tokenizer::Impl::index_special() {
  const auto n = static_cast<int32_t>(data.tokens.size());
  for (int32_t id = 0; id < n; ++id) {
    const std::string& text = data.tokens[static_cast<std::size_t>(id)];
    const int32_t kind = type(id);
    if (text.empty() || (kind != kControl && kind != kUserDefined && kind != kUnknownType))
      continue;
    MILLION_REQUIRE(text.size() <= kMaxSpecial, ErrorCode::kBadInput,
                    "special token {} is {} bytes long, at most {} are allowed", id, text.size(),
                    kMaxSpecial);
    special_lengths[static_cast<unsigned char>(text[0])].push_back(
        static_cast<uint32_t>(text.size()));
  }
  for (auto& lengths : special_lengths) {
    std::sort(lengths.begin(), lengths.end(), std::greater<>());
    lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
  }
  ends.assign(data.tokens.size(), false);
  for (const int32_t id : {data.eos, data.eot})
    if (id >= 0) ends[static_cast<std::size_t>(id)] = true;
  for (const auto name : kEndNames) {
    const auto it = ids.find(name);
    if (it != ids.end() && type(it->second) == kControl)
      ends[static_cast<std::size_t>(it->second)] = true;
  }
}

/// Appends the tokens of one word. A byte without a token blocks merges across it and is then left
/// out, as in llama.cpp: some vocabularies have no token for rare control bytes.
void Tokenizer::Impl::encode_word(std::string_view word, Workspace& work,
                                  std::vector<int32_t>& out) const {
  if (pre.whole_words()) {
    std::string mapped;
    for (const char c : word) mapped += utf8_of(characters[static_cast<unsigned char>(c)]);
    const auto it = ids.find(mapped);
    if (it != ids.end()) return out.push_back(it->second);
  }
  work.symbols.clear();
  for (const char c : word) {
    const auto i = static_cast<int32_t>(work.symbols.size());
    work.symbols.push_back({byte_ids[static_cast<unsigned char>(c)], i - 1, i + 1});
  }
  work.symbols.back().next = -1;
  merge_symbols(work);
  for (int32_t i = 0; i >= 0; i = work.symbols[static_cast<std::size_t>(i)].next) {
    const int32_t id = work.symbols[static_cast<std::size_t>(i)].id;
    if (id >= 0) out.push_back(id);
  }
}

/// Applies merges by rank, equal ranks from left to right, until none is left.
void Tokenizer::Impl::merge_symbols(Workspace& work) const {
  const auto symbol = [&](int32_t i) -> Symbol& {
    return work.symbols[static_cast<std::size_t>(i)];
  };
  std::vector<Candidate>& heap = work.heap;
  heap.clear();
  const auto offer = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) return;
    const auto it = merges.find(pair_key(symbol(left).id, symbol(right).id));
    if (it == merges.end()) return;
    heap.push_back({it->second.rank, left, symbol(left).id, symbol(right).id, it->second.result});
    std::push_heap(heap.begin(), heap.end());
  };
  for (int32_t i = 0; i >= 0; i = symbol(i).next) offer(i, symbol(i).next);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    const Candidate c = heap.back();
    heap.pop_back();
    Symbol& left = symbol(c.at);
    const int32_t right = left.next;
    // A pair seen earlier may be gone: one of its sides was merged away or has grown.
    if (left.id != c.left || right < 0 || symbol(right).id != c.right) continue;
    left.id = c.result;
    left.next = symbol(right).next;
    symbol(right).id = kMergedAway;
    if (left.next >= 0) symbol(left.next).previous = c.at;
    offer(left.previous, c.at);
    offer(c.at, left.next);
  }
}

void Tokenizer::Impl::encode_plain(std::string_view text, Workspace& work,
                                   std::vector<int32_t>& out) const {
  if (text.empty()) return;
  for (const std::string_view word : pre.split(text)) encode_word(word, work, out);
}

/// The longest special token that `text` starts with, or -1. User-defined tokens always count,
/// control tokens only with `control`.
int32_t Tokenizer::Impl::special_at(std::string_view text, bool control) const {
  for (const uint32_t length : special_lengths[static_cast<unsigned char>(text[0])]) {
    if (length > text.size()) continue;
    const auto it = ids.find(text.substr(0, length));
    if (it == ids.end()) continue;
    const int32_t kind = type(it->second);
    if (kind == kUserDefined || (control && (kind == kControl || kind == kUnknownType)))
      return it->second;
  }
  return -1;
}

void Tokenizer::Impl::append_bytes(int32_t id, std::string& out) const {
  const std::string_view text = data.tokens[static_cast<std::size_t>(id)];
  const int32_t kind = type(id);
  if (kind == kByte) return out.push_back(static_cast<char>(parse_byte_token(text)));
  if (kind == kControl || kind == kUserDefined || kind == kUnknownType) {
    out.append(text);
    return;
  }
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto a = static_cast<unsigned char>(text[i]);
    const bool two = (a & 0xE0) == 0xC0 && i + 1 < text.size();
    const unsigned c =
        two ? (a & 0x1Fu) << 6 | (static_cast<unsigned char>(text[i + 1]) & 0x3Fu) : a;
    const int byte = (two || a < 0x80) && c < bytes.size() ? bytes[c] : -1;
    if (byte < 0) {  // not a character of the map: the text itself
      out.push_back(text[i]);
      continue;
    }
    out.push_back(static_cast<char>(byte));
    i += two ? 1 : 0;
  }
}

Tokenizer::Tokenizer() = default;
Tokenizer::Tokenizer(TokenizerData data) : impl_(std::make_unique<Impl>(std::move(data))) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool parse_special) const {
  MILLION_ASSERT(impl_ != nullptr);
  MILLION_REQUIRE(text.size() <= kMaxText, ErrorCode::kBadInput,
                  "a text of {} bytes is too long to encode at once, at most {}", text.size(),
                  kMaxText);
  std::vector<int32_t> out;
  Workspace work;
  std::size_t plain = 0, at = 0;
  while (at < text.size()) {
    const int32_t id = impl_->special_at(text.substr(at), parse_special);
    if (id < 0) {
      ++at;
      continue;
    }
    impl_->encode_plain(text.substr(plain, at - plain), work, out);
    out.push_back(id);
    at += impl_->data.tokens[static_cast<std::size_t>(id)].size();
    plain = at;
  }
  impl_->encode_plain(text.substr(plain), work, out);
  return out;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool show_special) const {
  std::string out;
  for (const int32_t id : ids) {
    MILLION_REQUIRE(id >= 0 && id < n_vocab(), ErrorCode::kBadInput,
                    "token {} lies outside the vocabulary of {} tokens", id, n_vocab());
    if (impl_->type(id) != kControl || show_special) impl_->append_bytes(id, out);
  }
  return out;
}

int32_t Tokenizer::n_vocab() const {
  return impl_ ? static_cast<int32_t>(impl_->data.tokens.size()) : 0;
}
int32_t Tokenizer::bos() const { return impl_ ? impl_->data.bos : -1; }
int32_t Tokenizer::eos() const { return impl_ ? impl_->data.eos : -1; }
bool Tokenizer::add_bos() const { return impl_ && impl_->data.add_bos; }

int32_t Tokenizer::find(std::string_view token) const {
  if (!impl_) return -1;
  const auto it = impl_->ids.find(token);
  return it == impl_->ids.end() ? -1 : it->second;
}

bool Tokenizer::is_end(int32_t id) const {
  return id >= 0 && id < n_vocab() && impl_->ends[static_cast<std::size_t>(id)];
}

}  // namespace million
