// SPDX-License-Identifier: Apache-2.0
#include "lib/model/split_pattern.h"

#include "lib/core/error.h"
#include "lib/core/printable.h"

#include <cstddef>

namespace million {
namespace {

// Oniguruma's \w: what is alphabetic in Unicode's sense, marks, digits, connectors; outside of sets
// also some numbers of Latin-1. Compared with the library over all of Unicode 14.
#define WORD_SET                                         \
  "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24B6}-\\x{24E9}" \
  "\\x{1F130}-\\x{1F149}\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}"
#define LATIN_NUMBERS "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}"

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_hex(char c) { return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

class Translator {
 public:
  explicit Translator(std::string_view pattern) : all_(pattern), rest_(pattern) {}

  std::string run() {
    while (!rest_.empty()) {
      const char c = rest_[0];
      if (c == '\\')
        escape(false);
      else if (c == '[')
        set();
      else if (c == '(')
        group();
      else if (c == '{')
        repeat();
      else if (c == '.')
        take(1, "[^\\n]");
      else if (c == '^' || c == '$')  // at every line, as in Ruby
        take(1, c == '^' ? "(?m:^)" : "(?m:$)");
      else
        copy(1);
    }
    return std::move(out_);
  }

 private:
  void take(std::size_t n, std::string_view text) {
    rest_.remove_prefix(n);
    out_ += text;
  }
  void copy(std::size_t n) { take(n, rest_.substr(0, n)); }
  char at(std::size_t i) const { return i < rest_.size() ? rest_[i] : '\0'; }

  [[noreturn]] void refuse(std::string_view what) const {
    fail(ErrorCode::kBadInput, "the pattern \"{}\" uses {} at byte {}, which is not supported",
         printable(all_), what, all_.size() - rest_.size());
  }

  void escape(bool in_set);
  bool escape_class(char c, bool in_set);
  void escape_property();
  void escape_code();
  void set();
  void group();
  void repeat();

  std::string_view all_, rest_;
  std::string out_;
};

/// \s, \w, \d and their opposites, \v; false for another letter.
bool Translator::escape_class(char c, bool in_set) {
  switch (c) {
    case 's':
      take(2, in_set ? MILLION_WHITE_SPACE : "[" MILLION_WHITE_SPACE "]");
      return true;
    case 'S':
      take(2, in_set ? "\\S\\x{180E}" : "[^" MILLION_WHITE_SPACE "]");
      return true;
    case 'w':
      take(2, in_set ? WORD_SET : "[" WORD_SET LATIN_NUMBERS "]");
      return true;
    case 'W':
      if (in_set) refuse("\\W in a set");
      take(2, "[^" WORD_SET LATIN_NUMBERS "]");
      return true;
    case 'd':
      take(2, "\\p{Nd}");
      return true;
    case 'D':
      take(2, "\\P{Nd}");
      return true;
    case 'v':
      take(2, "\\x{0B}");
      return true;  // PCRE2's \v is a class
    default:
      return false;
  }
}

void Translator::escape(bool in_set) {
  const char c = at(1);
  if (rest_.size() < 2) refuse("a backslash at the end");
  if (escape_class(c, in_set)) return;
  if (c == 'p' || c == 'P') return escape_property();
  if (c == 'x' || c == 'u') return escape_code();
  if (c == 'n' || c == 'r' || c == 't' || c == 'f') return copy(2);
  if (is_digit(c) || is_letter(c)) refuse("\\" + std::string(1, c));
  copy(2);  // punctuation, or the first byte of a character that stands for itself
}

void Translator::escape_property() {
  const auto end = rest_.find('}');
  if (at(2) != '{' || end == std::string_view::npos) refuse("\\p without {name}");
  for (std::size_t i = 3; i < end; ++i)
    if (!is_letter(at(i)) && at(i) != '_' && !(at(i) == '^' && i == 3)) refuse("\\p{name}");
  copy(end + 1);
}

/// \xHH, \x{H...} and \uHHHH.
void Translator::escape_code() {
  const bool braces = at(1) == 'x' && at(2) == '{';
  const std::size_t first = braces ? 3 : 2;
  const std::size_t most = braces ? 6 : at(1) == 'x' ? 2 : 4;
  std::size_t n = 0;
  while (n < most && is_hex(at(first + n))) ++n;
  const bool whole = braces ? n > 0 && at(first + n) == '}' : n == most;
  if (!whole) refuse("a broken code point");
  const std::string digits(rest_.substr(first, n));
  take(first + n + (braces ? 1 : 0), "\\x{" + digits + "}");
}

void Translator::set() {
  copy(at(1) == '^' ? 2 : 1);
  if (at(0) == ']') refuse("an empty set");
  while (at(0) != ']') {
    if (rest_.empty()) refuse("a set without its end");
    if (at(0) == '[') refuse("a set in a set");
    if (at(0) == '&' && at(1) == '&') refuse("an intersection of sets");
    if (at(0) == '\\')
      escape(true);
    else
      copy(1);
  }
  copy(1);
}

void Translator::group() {
  if (at(1) == '*') refuse("a verb");  // of PCRE2; it could change the whole expression
  if (at(1) != '?') return copy(1);
  for (const std::string_view head : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?-i:"})
    if (rest_.starts_with(head)) return copy(head.size());
  refuse("a kind of group");
}

/// {n}, {n,}, {n,m} and {,m}; any other brace stands for itself.
void Translator::repeat() {
  std::size_t i = 1;
  const std::size_t low = i;
  while (is_digit(at(i))) ++i;
  const bool has_low = i > low, comma = at(i) == ',';
  const std::size_t high = comma ? i + 1 : i;
  std::size_t end = high;
  while (comma && is_digit(at(end))) ++end;
  if (at(end) != '}' || (!has_low && end == high)) return take(1, "\\{");
  if (at(end + 1) == '+' || at(end + 1) == '?') refuse("a sign behind a counted repeat");
  if (!has_low) return take(end + 1, "{0," + std::string(rest_.substr(high, end - high)) + "}");
  copy(end + 1);
}

}  // namespace

#undef WORD_SET
#undef LATIN_NUMBERS

std::string translate_pattern(std::string_view oniguruma) { return Translator(oniguruma).run(); }

std::string quote_pattern(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const bool plain = is_digit(c) || is_letter(c) || static_cast<unsigned char>(c) >= 0x80;
    if (!plain) out.push_back('\\');
    out.push_back(c);
  }
  return out;
}

}  // namespace million
