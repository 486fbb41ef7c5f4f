// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/unicode_text.h"

#include <algorithm>

namespace million {

namespace {

constexpr char32_t kReplacement = 0xfffd;

/// The range of an ascending table that could hold c, or null.
template <class Range>
const Range* range_of(std::span<const Range> table, char32_t c) {
  const auto it = std::lower_bound(table.begin(), table.end(), c,
                                   [](const Range& r, char32_t value) { return r.last < value; });
  return it != table.end() && it->first <= c ? &*it : nullptr;
}

/// Continuation bytes that a start byte asks for, and the range of the first of them, which keeps
/// out overlong forms, surrogates and code points above U+10FFFF (Unicode 14, table 3-7).
struct Start {
  int more;
  unsigned char low, high;
};

Start start_of(unsigned char b) {
  if (b < 0x80) return {0, 0, 0};
  if (b >= 0xc2 && b <= 0xdf) return {1, 0x80, 0xbf};
  if (b == 0xe0) return {2, 0xa0, 0xbf};
  if (b == 0xed) return {2, 0x80, 0x9f};
  if (b >= 0xe1 && b <= 0xef) return {2, 0x80, 0xbf};
  if (b == 0xf0) return {3, 0x90, 0xbf};
  if (b >= 0xf1 && b <= 0xf3) return {3, 0x80, 0xbf};
  if (b == 0xf4) return {3, 0x80, 0x8f};
  return {-1, 0, 0};
}

/// Takes one code point, or one ill-formed part, from text[at...].
char32_t next_code_point(std::string_view text, std::size_t& at) {
  const auto first = static_cast<unsigned char>(text[at++]);
  const Start start = start_of(first);
  if (start.more <= 0) return start.more == 0 ? first : kReplacement;
  char32_t c = first & (0x3fu >> start.more);
  unsigned char low = start.low, high = start.high;
  for (int i = 0; i < start.more; ++i) {
    if (at >= text.size()) return kReplacement;
    const auto b = static_cast<unsigned char>(text[at]);
    if (b < low || b > high) return kReplacement;
    c = (c << 6) | (b & 0x3fu);
    low = 0x80, high = 0xbf;
    ++at;
  }
  return c;
}

}  // namespace

bool is_word_char(char32_t c) { return range_of(word_ranges(), c) != nullptr; }
bool is_digit_char(char32_t c) { return range_of(digit_ranges(), c) != nullptr; }

bool is_space_char(char32_t c) {
  return (c >= 0x9 && c <= 0xd) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
         c == 0x205f || c == 0x3000;
}

std::u32string code_points(std::string_view text) {
  std::u32string out;
  out.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) out.push_back(next_code_point(text, at));
  return out;
}

std::string utf8(std::u32string_view text) {
  std::string out;
  out.reserve(text.size());
  const auto put = [&out](char32_t bits) { out.push_back(static_cast<char>(bits)); };
  for (const char32_t c : text) {
    if (c < 0x80) {
      put(c);
    } else if (c < 0x800) {
      put(0xc0 | (c >> 6)), put(0x80 | (c & 0x3f));
    } else if (c < 0x10000) {
      put(0xe0 | (c >> 12)), put(0x80 | ((c >> 6) & 0x3f)), put(0x80 | (c & 0x3f));
    } else {
      put(0xf0 | (c >> 18)), put(0x80 | ((c >> 12) & 0x3f));
      put(0x80 | ((c >> 6) & 0x3f)), put(0x80 | (c & 0x3f));
    }
  }
  return out;
}

std::string valid_utf8(std::string_view text) { return utf8(code_points(text)); }

std::u32string lower_case(std::u32string_view text) {
  std::u32string out;
  out.reserve(text.size());
  for (const char32_t c : text) {
    if (c == 0x130) {  // the one capital whose lower case is two code points
      out += U"i\u0307";
      continue;
    }
    const CaseRange* r = range_of(lower_ranges(), c);
    const bool has_lower = r != nullptr && (c - r->first) % static_cast<char32_t>(r->step) == 0;
    out.push_back(has_lower ? static_cast<char32_t>(static_cast<int32_t>(c) + r->delta) : c);
  }
  return out;
}

}  // namespace million
