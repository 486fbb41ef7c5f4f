// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/haystack.h"

#include "lib/core/error.h"
#include "lib/model/pretokenizer.h"

#include <algorithm>
#include <cmath>

namespace million {

namespace {

/// Listings and tables have no sentence ends; without a bound one piece could fill a prompt.
constexpr size_t kLongestPiece = 400;

constexpr std::string_view kSpaces = " \t\n\r\v\f";
constexpr std::string_view kCjkEnds[] = {"。", "！", "？"};  // 3 bytes each, no space follows them
constexpr std::string_view kClosers[] = {"\"", "'", ")", "]", "}", "”", "’", "»"};
constexpr std::string_view kEnds[] = {".", "!", "?", "…", "。", "！", "？"};

template <class List>
size_t suffix_of(std::string_view word, const List& list) {
  for (const std::string_view s : list)
    if (word.ends_with(s)) return s.size();
  return 0;
}

bool ends_sentence(std::string_view word) {
  while (const size_t n = suffix_of(word, kClosers)) word.remove_suffix(n);
  return suffix_of(word, kEnds) > 0;
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

/// Collects words into pieces.
class Cutter {
 public:
  void word(std::string_view text, bool last_of_paragraph) {
    if (open_.size() + text.size() > kLongestPiece) close();
    for (size_t cut = inner_cut(text); cut < text.size(); cut = inner_cut(text)) {
      open_ += text.substr(0, cut);
      close();
      text.remove_prefix(cut);
    }
    open_ += text;
    open_ += ' ';
    if (last_of_paragraph || ends_sentence(text)) close();
  }

  std::vector<std::string> finish() {
    close();
    return std::move(pieces_);
  }

 private:
  void close() {
    if (!open_.empty()) pieces_.push_back(std::move(open_));
    open_.clear();
  }

  /// Where a word without spaces is cut first: behind a CJK full stop, or at the longest piece.
  static size_t inner_cut(std::string_view text) {
    size_t cut = text.size();
    for (const std::string_view end : kCjkEnds) {
      const size_t at = text.find(end);
      if (at != std::string_view::npos) cut = std::min(cut, at + end.size());
    }
    if (cut <= kLongestPiece) return cut;
    cut = kLongestPiece;
    while ((static_cast<unsigned char>(text[cut]) & 0xC0) == 0x80) --cut;  // whole code points
    return cut;
  }

  std::vector<std::string> pieces_;
  std::string open_;
};

}  // namespace

Haystack::Haystack(std::string_view text) : folded_(lower(text)) {
  const size_t valid = valid_utf8_prefix(text);
  MILLION_REQUIRE(valid == text.size(), ErrorCode::kBadInput,
                  "haystack text: byte {} is no UTF-8; convert the text, for example with iconv",
                  valid);
  Cutter cutter;
  size_t at = text.find_first_not_of(kSpaces);
  while (at != std::string_view::npos) {
    const size_t end = std::min(text.find_first_of(kSpaces, at), text.size());
    const size_t next = text.find_first_not_of(kSpaces, end);
    const std::string_view gap = text.substr(end, std::min(next, text.size()) - end);
    cutter.word(text.substr(at, end - at), std::count(gap.begin(), gap.end(), '\n') >= 2);
    at = next;
  }
  pieces_ = cutter.finish();
  MILLION_REQUIRE(!pieces_.empty(), ErrorCode::kBadInput,
                  "haystack text: {} bytes without a word; give a text, or none for the filler",
                  text.size());
}

const Haystack& Haystack::filler() {
  static const Haystack kFiller(
      "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.");
  return kFiller;
}

std::string Haystack::passage(int first, int n, std::span<const Needle> needles) const {
  std::string out;
  size_t next = 0;
  for (int i = 0; i <= n; ++i) {
    for (; next < needles.size() && needles[next].after == i; ++next) {
      if (!out.empty() && out.back() != ' ') out += ' ';
      out += needles[next].text;
      out += ' ';
    }
    if (i < n) out += piece(first + i);
  }
  MILLION_ASSERT(next == needles.size());
  out.resize(out.find_last_not_of(' ') + 1);
  return out;
}

size_t Haystack::bytes(int first, int k) const {
  size_t sum = 0;
  for (int i = 0; i < k; ++i) sum += piece(first + i).size();
  return sum;
}

int Haystack::boundary(int first, int n, double depth) const {
  const double wanted = depth * static_cast<double>(bytes(first, n));
  size_t before = 0;
  for (int k = 0; k < n; ++k) {
    const size_t size = piece(first + k).size();
    // The boundary after this piece is no nearer once the middle of the piece is passed.
    if (wanted <= static_cast<double>(before) + static_cast<double>(size) / 2.0) return k;
    before += size;
  }
  return n;
}

double Haystack::share(int first, int k, int n) const {
  return n == 0 ? 0.0 : static_cast<double>(bytes(first, k)) / static_cast<double>(bytes(first, n));
}

bool Haystack::contains(std::string_view part) const {
  return folded_.find(lower(part)) != std::string::npos;
}

}  // namespace million
