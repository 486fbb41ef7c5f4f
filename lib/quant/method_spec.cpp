// SPDX-License-Identifier: Apache-2.0
// Text form of a cache method: codec options plus the cache's own `sinks` and `window`.
#include "lib/core/error.h"
#include "lib/quant/codec.h"
#include "lib/quant/codec_identity.h"

#include <charconv>
#include <optional>

namespace million {
namespace {

/// Bounds that catch slips of the keyboard; both are exact f16 rows, so memory grows with them.
constexpr int kMaxSinks = 4096;
constexpr int kMaxWindow = 1 << 20;

struct HalfSpec {
  std::string codec;  ///< canonical, without sinks and window
  std::optional<int> sinks, window;
};

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

std::optional<int> cache_option(std::string_view item, std::string_view key, int high,
                                const std::optional<int>& before) {
  const std::string_view digits = item.substr(std::min(item.size(), key.size() + 1));
  int value = -1;
  const auto [end, status] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  MILLION_REQUIRE(
      status == std::errc() && end == digits.data() + digits.size() && value >= 0 && value <= high,
      ErrorCode::kUsage, "method: '{}': expected {} as an integer from 0 to {} (tokens kept exact)",
      item, key, high);
  MILLION_REQUIRE(!before, ErrorCode::kUsage, "method: option '{}' is given twice", key);
  return value;
}

HalfSpec parse_half(std::string_view text) {
  const SpecParts parts = split_spec(trimmed(text));
  HalfSpec half;
  std::string codec_options;
  std::string_view rest = parts.options;
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    const std::string_view item = rest.substr(0, comma);
    rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
    const std::string_view key = item.substr(0, item.find('='));
    if (key == "sinks") {
      half.sinks = cache_option(item, key, kMaxSinks, half.sinks);
    } else if (key == "window") {
      half.window = cache_option(item, key, kMaxWindow, half.window);
    } else {
      codec_options += codec_options.empty() ? "" : ",";
      codec_options += item;
    }
  }
  const CodecInfo& info = find_codec(parts.name);
  half.codec = canonical_spec(info.name, Options(info.name, info.options, codec_options));
  return half;
}

int agreed(const char* key, const std::optional<int>& k, const std::optional<int>& v) {
  MILLION_REQUIRE(!k || !v || *k == *v, ErrorCode::kUsage,
                  "method: keys have {}={} and values {}={}; both share one cache, give one number",
                  key, k.value_or(0), key, v.value_or(0));
  return k ? *k : v.value_or(0);
}

std::string with_cache_options(const std::string& codec, int sinks, int window) {
  std::string text = codec;
  const auto add = [&](const char* key, int value) {
    if (value == 0) return;
    text += fmt::format("{}{}={}", text.find(':') == std::string::npos ? ':' : ',', key, value);
  };
  add("sinks", sinks);
  add("window", window);
  return text;
}

}  // namespace

MethodSpec MethodSpec::parse(std::string_view text) {
  const size_t bar = text.find(" | ");
  if (bar != std::string_view::npos) return parse(text.substr(0, bar), text.substr(bar + 3));
  return parse(text, text);
}

MethodSpec MethodSpec::parse(std::string_view key_text, std::string_view value_text) {
  const HalfSpec k = parse_half(key_text), v = parse_half(value_text);
  return {k.codec, v.codec, agreed("sinks", k.sinks, v.sinks),
          agreed("window", k.window, v.window)};
}

std::string MethodSpec::to_string() const {
  const std::string k = with_cache_options(key_codec, sinks, window);
  if (key_codec == value_codec) return k;
  return k + " | " + with_cache_options(value_codec, sinks, window);
}

}  // namespace million
