// SPDX-License-Identifier: Apache-2.0
#include "lib/model/hf_steps.h"

#include "lib/core/error.h"
#include "lib/core/printable.h"
#include "lib/model/split_pattern.h"
#include "lib/model/tokenizer_scheme.h"

#include <algorithm>
#include <vector>

namespace million {
namespace {

/// The steps under `key`: none, one, or those of a Sequence, which may hold further ones.
void flatten(const SortedJson& step, const char* items, const std::string& name,
             std::vector<const SortedJson*>& out) {
  if (step.is_null()) return;
  MILLION_REQUIRE(step.is_object(), ErrorCode::kBadInput, "{}: a step of {} is no object", name,
                  items);
  if (text_of(step, "type", name) != "Sequence") return out.push_back(&step);
  static const SortedJson none = SortedJson::array();
  for (const SortedJson& part : list_of(step, items, none, name)) flatten(part, items, name, out);
}

std::vector<const SortedJson*> steps_of(const SortedJson& file, const char* key, const char* items,
                                        const std::string& name) {
  std::vector<const SortedJson*> out;
  if (const auto it = file.find(key); it != file.end()) flatten(*it, items, name, out);
  return out;
}

std::string type_of(const SortedJson& step, const std::string& name) {
  return text_of(step, "type", name).value_or("");
}

[[noreturn]] void refuse(const std::string& name, const char* kind, const std::string& what) {
  fail(ErrorCode::kBadInput, "{}: {} {} is not supported", name, kind, printable(what));
}

/// The text or expression of a Split or Replace.
std::string pattern_of(const SortedJson& step, const std::string& name) {
  const auto it = step.find("pattern");
  if (it != step.end() && it->is_object()) {
    if (const auto text = text_of(*it, "String", name)) return quote_pattern(*text);
    if (const auto text = text_of(*it, "Regex", name)) {
      try {
        return translate_pattern(*text);
      } catch (const Error& e) {
        throw Error(e.code(), name + ": " + e.what());
      }
    }
  }
  fail(ErrorCode::kBadInput, "{}: a step has no pattern with a String or Regex", name);
}

SplitRule split_rule(const SortedJson& step, const std::string& name) {
  const std::string behavior = text_of(step, "behavior", name).value_or("");
  const bool invert = flag_of(step, "invert", false, name);
  // Inverted, the matches are the words and Removed drops what lies between them.
  if (behavior == "Isolated") return {pattern_of(step, name)};
  if (behavior == "Removed" && invert) return {pattern_of(step, name), true};
  refuse(name, "a Split of behavior", behavior + (invert ? ", inverted" : ""));
}

SplitRule punctuation_rule(const SortedJson& step, const std::string& name) {
  const std::string behavior = text_of(step, "behavior", name).value_or("Isolated");
  const std::string one = "[\\p{P}$+<=>^`|~]";
  if (behavior == "Isolated") return {one};
  if (behavior == "Contiguous") return {one + "+"};
  refuse(name, "Punctuation of behavior", behavior);
}

void read_byte_level(const std::vector<const SortedJson*>& steps, const std::string& name,
                     TokenizerData& data) {
  data.scheme = TokenizerData::Scheme::kByteLevel;
  data.splits.emplace();
  for (const SortedJson* step : steps) {
    const std::string type = type_of(*step, name);
    if (type == "Split") {
      data.splits->push_back(split_rule(*step, name));
    } else if (type == "Digits") {
      const bool each = flag_of(*step, "individual_digits", false, name);
      data.splits->push_back({each ? "\\p{N}" : "\\p{N}+"});
    } else if (type == "Punctuation") {
      data.splits->push_back(punctuation_rule(*step, name));
    } else if (type == "ByteLevel") {
      MILLION_REQUIRE(step == steps.back(), ErrorCode::kBadInput,
                      "{}: ByteLevel is not the last pre_tokenizer, which is not supported", name);
      if (flag_of(*step, "add_prefix_space", false, name)) {
        if (steps.size() > 1) refuse(name, "pre_tokenizer", "add_prefix_space after a split");
        data.space_prefix = SpacePrefix::kEachUnlessPresent;
      }
      if (flag_of(*step, "use_regex", true, name)) data.splits->push_back(gpt2_rule());
    } else {
      refuse(name, "pre_tokenizer", type);
    }
  }
}

void read_metaspace(const SortedJson& step, const std::string& name, TokenizerData& data) {
  if (text_of(step, "replacement", name) != kSpaceMark)
    refuse(name, "Metaspace with", "another mark");
  if (flag_of(step, "split", true, name)) refuse(name, "Metaspace with", "split");
  const bool old_form = flag_of(step, "add_prefix_space", true, name);
  const std::string scheme =
      text_of(step, "prepend_scheme", name).value_or(old_form ? "always" : "never");
  if (scheme == "always")
    data.space_prefix = SpacePrefix::kEachUnlessPresent;
  else if (scheme == "first")
    data.space_prefix = SpacePrefix::kFirstUnlessPresent;
  else if (scheme != "never")
    refuse(name, "Metaspace with prepend_scheme", scheme);
}

/// Reads the normalizer; true when it turns spaces into marks.
bool read_normalizer(const SortedJson& file, const std::string& name, TokenizerData& data) {
  bool marks = false;
  for (const SortedJson* step : steps_of(file, "normalizer", "normalizers", name)) {
    const std::string type = type_of(*step, name);
    if (type == "NFC") {
      data.nfc = true;
    } else if (type == "Prepend" && text_of(*step, "prepend", name) == kSpaceMark) {
      data.space_prefix = SpacePrefix::kEach;
    } else if (type == "Replace" && pattern_of(*step, name) == quote_pattern(" ") &&
               text_of(*step, "content", name) == kSpaceMark) {
      marks = true;
    } else {
      refuse(name, "normalizer", type);
    }
  }
  return marks;
}

void read_sentencepiece(const std::vector<const SortedJson*>& steps, bool marks,
                        const std::string& name, TokenizerData& data) {
  data.scheme = TokenizerData::Scheme::kRanks;
  for (const SortedJson* step : steps) {
    const std::string type = type_of(*step, name);
    if (type == "Metaspace") {
      read_metaspace(*step, name, data);
      marks = true;
      continue;
    }
    // Where all spaces are marks already, a split at spaces does nothing (Gemma).
    const bool idle = marks && type == "Split" && pattern_of(*step, name) == quote_pattern(" ");
    if (!idle) refuse(name, "pre_tokenizer", type);
  }
  MILLION_REQUIRE(marks, ErrorCode::kBadInput,
                  "{}: the tokenizer is neither byte level (a ByteLevel pre_tokenizer) nor "
                  "SentencePiece (spaces replaced by U+2581)",
                  name);
}

}  // namespace

std::optional<std::string> text_of(const SortedJson& object, const char* key,
                                   const std::string& name) {
  const auto it = object.find(key);
  if (it == object.end() || it->is_null()) return std::nullopt;
  MILLION_REQUIRE(it->is_string(), ErrorCode::kBadInput, "{}: key {} is {}, expected a text", name,
                  key, it->type_name());
  return it->get<std::string>();
}

bool flag_of(const SortedJson& object, const char* key, bool missing, const std::string& name) {
  const auto it = object.find(key);
  if (it == object.end() || it->is_null()) return missing;
  MILLION_REQUIRE(it->is_boolean(), ErrorCode::kBadInput,
                  "{}: key {} is {}, expected true or false", name, key, it->type_name());
  return it->get<bool>();
}

const SortedJson& list_of(const SortedJson& object, const char* key, const SortedJson& missing,
                          const std::string& name) {
  const auto it = object.find(key);
  if (it == object.end() || it->is_null()) return missing;
  MILLION_REQUIRE(it->is_array(), ErrorCode::kBadInput, "{}: key {} is {}, expected a list", name,
                  key, it->type_name());
  return *it;
}

void read_steps(const SortedJson& file, const std::string& name, TokenizerData& data) {
  const bool marks = read_normalizer(file, name, data);
  const auto steps = steps_of(file, "pre_tokenizer", "pretokenizers", name);
  const bool bytes = std::any_of(steps.begin(), steps.end(), [&](const SortedJson* step) {
    return type_of(*step, name) == "ByteLevel";
  });
  if (!bytes) return read_sentencepiece(steps, marks, name, data);
  if (marks || data.space_prefix != SpacePrefix::kNone)
    refuse(name, "normalizer", "Prepend or Replace before ByteLevel");
  read_byte_level(steps, name, data);
}

std::optional<std::string> first_of_template(const SortedJson& file, const std::string& name) {
  static const SortedJson none = SortedJson::array();
  for (const SortedJson* step : steps_of(file, "post_processor", "processors", name)) {
    if (type_of(*step, name) != "TemplateProcessing") continue;
    const SortedJson& single = list_of(*step, "single", none, name);
    if (single.empty() || !single[0].is_object()) return std::nullopt;
    const auto it = single[0].find("SpecialToken");
    if (it == single[0].end() || !it->is_object()) return std::nullopt;
    return text_of(*it, "id", name);
  }
  return std::nullopt;
}

}  // namespace million
