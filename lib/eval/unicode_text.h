// SPDX-License-Identifier: Apache-2.0
// Text as Python sees it: code points, their classes, their lower case. Metrics that a Python
// program defines (LongBench) give its numbers only with Python's idea of letters and spaces.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace million {

/// first to last, both included.
struct CodeRange {
  char32_t first, last;
};
/// Every step-th code point from first to last has the lower case `code point + delta`.
struct CaseRange {
  char32_t first, last;
  int32_t step, delta;
};

/// Ascending tables, unicode_tables.cpp.
std::span<const CodeRange> word_ranges();
std::span<const CodeRange> digit_ranges();
std::span<const CaseRange> lower_ranges();

bool is_word_char(char32_t c);   ///< str.isalnum: \w of re without the underscore
bool is_digit_char(char32_t c);  ///< str.isdecimal: \d of re
bool is_space_char(char32_t c);  ///< str.isspace, at which str.split() cuts

/// Code points of UTF-8. What is none becomes U+FFFD, one for each part that bytes.decode with
/// errors="replace" would replace: a start byte with the continuation bytes that fit it, or a byte.
std::u32string code_points(std::string_view text);
std::string utf8(std::u32string_view text);
/// utf8(code_points(text)): the text itself when it is valid.
std::string valid_utf8(std::string_view text);

/// str.lower. Differs: a capital sigma at the end of a word becomes the plain small one.
std::u32string lower_case(std::u32string_view text);

}  // namespace million
