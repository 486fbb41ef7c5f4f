// SPDX-License-Identifier: Apache-2.0
#include "lib/quant/options.h"

#include "lib/core/error.h"

#include <charconv>
#include <cmath>
#include <cstdint>

namespace million {
namespace {

template <class T>
bool parse_number(std::string_view text, T* value) {
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return status == std::errc() && end == text.data() + text.size();
}

/// One text per number: "04" -> "4", "0.010" -> "0.01"; anything else stays as it is.
std::string shortest(std::string_view text) {
  int64_t whole = 0;
  if (parse_number(text, &whole)) return fmt::format("{}", whole);
  double real = 0;
  if (!parse_number(text, &real) || !std::isfinite(real)) return std::string(text);
  if (real == std::floor(real) && std::abs(real) < 1e15)
    return fmt::format("{}", static_cast<int64_t>(real));
  return fmt::format("{}", real);
}

std::string known_keys(std::span<const OptionInfo> known) {
  if (known.empty()) return "none";
  std::string text;
  for (const OptionInfo& o : known)
    text += fmt::format("{}{} ({})", text.empty() ? "" : ", ", o.key, o.values);
  return text;
}

}  // namespace

Options::Options(std::string_view owner, std::span<const OptionInfo> known, std::string_view text)
    : owner_(owner) {
  for (const OptionInfo& info : known) entries_.push_back({&info, info.fallback});
  std::vector<bool> given(entries_.size(), false);
  while (!text.empty()) {
    const size_t comma = text.find(',');
    const std::string_view item = text.substr(0, comma);
    text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
    const size_t equals = item.find('=');
    const std::string_view key = item.substr(0, equals);
    size_t i = 0;
    while (i < entries_.size() && key != entries_[i].info->key) ++i;
    MILLION_REQUIRE(i < entries_.size(), ErrorCode::kUsage,
                    "codec {}: unknown option '{}'; known options: {}", owner_, key,
                    known_keys(known));
    MILLION_REQUIRE(equals != std::string_view::npos && equals + 1 < item.size(), ErrorCode::kUsage,
                    "codec {}: option '{}' has no value; write {}=VALUE ({})", owner_, key, key,
                    entries_[i].info->values);
    MILLION_REQUIRE(!given[i], ErrorCode::kUsage,
                    "codec {}: option '{}' is given twice; known options: {}", owner_, key,
                    known_keys(known));
    given[i] = true;
    entries_[i].value = shortest(item.substr(equals + 1));
  }
}

const Options::Entry& Options::entry(std::string_view key) const {
  for (const Entry& e : entries_)
    if (key == e.info->key) return e;
  MILLION_ASSERT(!"option not declared in the codec's table");
  return entries_.front();
}

int Options::integer(std::string_view key, int low, int high) const {
  const Entry& e = entry(key);
  int value = 0;
  MILLION_REQUIRE(parse_number(std::string_view(e.value), &value) && value >= low && value <= high,
                  ErrorCode::kUsage, "codec {}: {}={}: expected an integer from {} to {} ({})",
                  owner_, key, e.value, low, high, e.info->help);
  return value;
}

double Options::real(std::string_view key, double low, double high) const {
  const Entry& e = entry(key);
  double value = 0;
  // The comparison is written so that NaN fails it.
  MILLION_REQUIRE(parse_number(std::string_view(e.value), &value) && value >= low && value <= high,
                  ErrorCode::kUsage, "codec {}: {}={}: expected a number from {} to {} ({})",
                  owner_, key, e.value, low, high, e.info->help);
  return value;
}

std::string Options::word(std::string_view key, std::string_view allowed) const {
  const Entry& e = entry(key);
  std::string_view rest = allowed;
  while (!rest.empty()) {
    const size_t bar = rest.find('|');
    if (rest.substr(0, bar) == e.value) return e.value;
    rest = bar == std::string_view::npos ? std::string_view() : rest.substr(bar + 1);
  }
  fail(ErrorCode::kUsage, "codec {}: {}={}: expected one of {} ({})", owner_, key, e.value, allowed,
       e.info->help);
}

const std::string& Options::text(std::string_view key) const { return entry(key).value; }

std::string Options::to_string() const {
  std::string text;
  for (const Entry& e : entries_)
    if (e.info->shown || e.value != e.info->fallback)
      text += fmt::format("{}{}={}", text.empty() ? "" : ",", e.info->key, e.value);
  return text;
}

}  // namespace million
