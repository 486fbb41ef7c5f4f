// SPDX-License-Identifier: Apache-2.0
#include "lib/model/pretokenizer.h"

#include "lib/core/error.h"
#include "lib/core/printable.h"
#include "lib/model/split_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>

namespace million {
namespace {

#define WS MILLION_WHITE_SPACE
#define TAIL "[" WS "]+(?![^" WS "])|[" WS "]+"  // \s+(?!\S)|\s+

constexpr const char* kDigit = "\\p{N}";
constexpr const char* kGpt2 =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" WS "\\p{L}\\p{N}]+|" TAIL;
#define LLAMA3(DIGITS)                                                           \
  "'(?i:[sdmt]|re|ve|ll)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}" DIGITS "| ?[^" WS \
  "\\p{L}\\p{N}]+[\\r\\n]*|[" WS "]*[\\r\\n]+|" TAIL
constexpr const char* kLlama3 = LLAMA3("{1,3}");
constexpr const char* kQwen2 = LLAMA3("");
constexpr const char* kPunctuation = "[\\p{P}$+<=>^~|]+";

struct Entry {
  std::string_view name;
  std::array<const char*, 4> stages;  // applied one after the other, each inside the former's parts
  bool whole_words = false;
};

constexpr Entry kTable[] = {
    {"smollm", {kDigit, kGpt2}},
    {"starcoder", {kDigit, kGpt2}},
    {"gpt-2", {kGpt2}},
    {"llama-bpe", {kLlama3}, true},
    {"llama3", {kLlama3}, true},
    {"qwen2", {kQwen2}},
    {"default", {kPunctuation, kGpt2, "\\p{N}+", "[0-9][0-9][0-9]"}},
};

#undef WS
#undef TAIL
#undef LLAMA3

template <auto free>
struct Free {
  template <class T>
  void operator()(T* p) const {
    free(p);
  }
};
using Code = std::unique_ptr<pcre2_code, Free<pcre2_code_free>>;

std::string pcre_message(int code) {
  PCRE2_UCHAR text[128] = {};
  pcre2_get_error_message(code, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

constexpr std::size_t kMaxPattern = 4096;

Code compile(std::string_view pattern) {
  int error = 0;
  PCRE2_SIZE at = 0;
  Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                          PCRE2_UTF | PCRE2_UCP, &error, &at, nullptr));
  MILLION_REQUIRE(code, ErrorCode::kBadInput, "the pattern \"{}\" is broken at byte {}: {}",
                  printable(pattern), at, pcre_message(error));
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);  // without a JIT pcre2_match interprets
  return code;
}

/// The same for a pattern of a file.
Code compile_foreign(std::string_view pattern) {
  MILLION_REQUIRE(pattern.size() <= kMaxPattern, ErrorCode::kBadInput,
                  "a pattern is {} bytes long, at most {} are allowed", pattern.size(),
                  kMaxPattern);
  MILLION_REQUIRE(pattern.find("\\K") == std::string_view::npos, ErrorCode::kBadInput,
                  "the pattern \"{}\" uses \\K, which is not supported", printable(pattern));
  Code code = compile(pattern);
  uint32_t back_references = 0;
  pcre2_pattern_info(code.get(), PCRE2_INFO_BACKREFMAX, &back_references);
  MILLION_REQUIRE(back_references == 0, ErrorCode::kBadInput,
                  "the pattern \"{}\" refers back to what it has matched, which is not supported",
                  printable(pattern));
  return code;
}

/// What one thread needs while it matches.
struct Scratch {
  std::unique_ptr<pcre2_match_context, Free<pcre2_match_context_free>> context{
      pcre2_match_context_create(nullptr)};
  std::unique_ptr<pcre2_match_data, Free<pcre2_match_data_free>> data{
      pcre2_match_data_create(1, nullptr)};
  std::unique_ptr<pcre2_jit_stack, Free<pcre2_jit_stack_free>> stack{
      pcre2_jit_stack_create(32 << 10, 16 << 20, nullptr)};
  Scratch() {
    MILLION_REQUIRE(context && data, ErrorCode::kNoResources, "no memory to split a text");
    if (stack) pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
    pcre2_set_match_limit(context.get(), 10'000'000);
    pcre2_set_depth_limit(context.get(), 1'000'000);
  }
};

/// Appends the matches in `part` (valid UTF-8) and, unless they are dropped, the gaps between them.
/// A match of nothing is a boundary, but not where a match has just ended.
void split_part(const pcre2_code* code, bool drop_gaps, Scratch& scratch, std::string_view part,
                std::vector<std::string_view>& out) {
  std::size_t taken = 0, search = 0, last_end = std::string_view::npos;
  const auto take_gap = [&](std::size_t end) {
    if (end > taken && !drop_gaps) out.push_back(part.substr(taken, end - taken));
  };
  while (search < part.size()) {
    const int n = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(part.data()), part.size(), search,
                              PCRE2_NO_UTF_CHECK, scratch.data.get(), scratch.context.get());
    if (n == PCRE2_ERROR_NOMATCH) break;
    MILLION_REQUIRE(n >= 0, ErrorCode::kFailed,
                    "cannot split the text into words: {}; cut it into shorter lines",
                    pcre_message(n));
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(scratch.data.get());
    MILLION_ASSERT(range[1] >= range[0] && range[0] >= search);  // patterns have no \K
    if (range[1] == range[0] && range[1] == last_end) {
      search += utf8_length(part.substr(search));
      continue;
    }
    take_gap(range[0]);
    if (range[1] > range[0]) out.push_back(part.substr(range[0], range[1] - range[0]));
    taken = search = last_end = range[1];
  }
  take_gap(part.size());
}

}  // namespace

std::size_t utf8_length(std::string_view s) {
  const auto byte = [&](std::size_t i) {
    return i < s.size() ? static_cast<unsigned char>(s[i]) : 0u;
  };
  const auto tail = [&](std::size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const unsigned a = byte(0), b = byte(1);
  if (a < 0x80) return 1;
  if (a >= 0xC2 && a <= 0xDF) return tail(1) ? 2 : 0;
  if (a >= 0xE0 && a <= 0xEF) {
    const bool overlong = a == 0xE0 && b < 0xA0, surrogate = a == 0xED && b > 0x9F;
    return tail(1) && tail(2) && !overlong && !surrogate ? 3 : 0;
  }
  if (a >= 0xF0 && a <= 0xF4) {
    const bool overlong = a == 0xF0 && b < 0x90, beyond = a == 0xF4 && b > 0x8F;
    return tail(1) && tail(2) && tail(3) && !overlong && !beyond ? 4 : 0;
  }
  return 0;
}

struct PreTokenizer::Stage {
  Code code;
  bool drop_gaps = false;
};

SplitRule gpt2_rule() { return {kGpt2}; }

PreTokenizer::PreTokenizer(std::string_view name) {
  for (const Entry& e : kTable) {
    if (e.name != name) continue;
    whole_words_ = e.whole_words;
    for (const char* pattern : e.stages)
      if (pattern != nullptr) stages_.push_back({compile(pattern)});
    return;
  }
  fail(ErrorCode::kBadInput, "pre-tokenizer \"{}\" is not known, known: {}", printable(name),
       known_names());
}

PreTokenizer::PreTokenizer(std::span<const SplitRule> rules, bool whole_words)
    : whole_words_(whole_words) {
  for (const SplitRule& rule : rules)
    stages_.push_back({compile_foreign(rule.pattern), rule.drop_gaps});
}

PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer::~PreTokenizer() = default;

std::vector<std::string_view> PreTokenizer::split(std::string_view text) const {
  std::vector<std::string_view> parts, next;
  Scratch scratch;
  while (!text.empty()) {
    if (const std::size_t good = valid_utf8_prefix(text); good > 0) {
      std::vector<std::string_view> run{text.substr(0, good)};
      for (const Stage& stage : stages_) {
        next.clear();
        for (const std::string_view part : run)
          split_part(stage.code.get(), stage.drop_gaps, scratch, part, next);
        run.swap(next);
      }
      parts.insert(parts.end(), run.begin(), run.end());
      text.remove_prefix(good);
    }
    std::size_t bad = 0;
    while (bad < text.size() && utf8_length(text.substr(bad)) == 0) ++bad;
    if (bad > 0) parts.push_back(text.substr(0, bad));
    text.remove_prefix(bad);
  }
  return parts;
}

std::string PreTokenizer::known_names() {
  std::string text;
  for (const Entry& e : kTable) text += (text.empty() ? "" : ", ") + std::string(e.name);
  return text;
}

std::size_t valid_utf8_prefix(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const std::size_t n = utf8_length(text.substr(at));
    if (n == 0) break;
    at += n;
  }
  return at;
}

void append_utf8(uint32_t c, std::string& out) {
  const auto byte = [&](uint32_t b) { out.push_back(static_cast<char>(b)); };
  if (c < 0x80) return byte(c);
  if (c < 0x800) {
    byte(0xC0 | c >> 6);
  } else if (c < 0x10000) {
    byte(0xE0 | c >> 12);
    byte(0x80 | (c >> 6 & 0x3F));
  } else {
    byte(0xF0 | c >> 18);
    byte(0x80 | (c >> 12 & 0x3F));
    byte(0x80 | (c >> 6 & 0x3F));
  }
  byte(0x80 | (c & 0x3F));
}

}  // namespace million
