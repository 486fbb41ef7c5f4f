// SPDX-License-Identifier: Apache-2.0
// key=value options of a codec, checked against the list of keys that its table line declares.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace million {

/// One declared option of a codec.
struct OptionInfo {
  const char* key;
  const char* fallback;  ///< default, as text
  const char* values;    ///< what is allowed, for help and error texts: "1..12", "model|layer|head"
  const char* help;
  bool shown = false;  ///< part of the canonical text even at its default
};

/// Option values of one codec in declared order. Every key has a value (default or given).
class Options {
 public:
  Options() = default;
  /// Parses "a=1,b=x". Numbers are brought to their shortest text, so that 0.010 and 0.01 name one
  /// method. Error(kUsage) on an unknown or repeated key, naming the known ones.
  Options(std::string_view owner, std::span<const OptionInfo> known, std::string_view text);

  int integer(std::string_view key, int low,
              int high) const;  ///< Error(kUsage) outside [low, high]
  double real(std::string_view key, double low, double high) const;
  /// One of the words in `allowed` ("a|b|c").
  std::string word(std::string_view key, std::string_view allowed) const;
  const std::string& text(std::string_view key) const;

  /// "key=value,..." of every `shown` key and of everything that differs from its default, in
  /// declared order; may be empty.
  std::string to_string() const;

 private:
  struct Entry {
    const OptionInfo* info = nullptr;
    std::string value;
  };
  const Entry& entry(std::string_view key) const;

  std::string owner_;
  std::vector<Entry> entries_;
};

}  // namespace million
