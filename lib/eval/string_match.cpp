// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/string_match.h"

#include "lib/core/error.h"

#include <algorithm>

namespace million {

namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

/// What the published evaluator compares: control characters replaced, ASCII in lower case. Its
/// strip() cannot change whether a reference is contained: no reference starts or ends with a
/// space.
std::string comparable(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 0x20) c = '\n';
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return out;
}

int found(std::string_view answer, const std::vector<std::string>& references) {
  MILLION_ASSERT(!references.empty());
  const std::string text = comparable(answer);
  int count = 0;
  for (const std::string& reference : references)
    count += text.find(comparable(reference)) != std::string::npos;
  return count;
}

}  // namespace

std::string first_integer(std::string_view text) {
  const auto first = std::find_if(text.begin(), text.end(), is_digit);
  const auto last = std::find_if_not(first, text.end(), is_digit);
  if (first == last) return "";
  const auto significant = std::find_if(first, last, [](char c) { return c != '0'; });
  return significant == last ? "0" : std::string(significant, last);
}

double first_integer_match(std::string_view answer, std::string_view key) {
  const std::string number = first_integer(answer);
  return !number.empty() && number == first_integer(key) ? 1.0 : 0.0;
}

double string_match_all(std::string_view answer, const std::vector<std::string>& references) {
  return found(answer, references) / static_cast<double>(references.size());
}

double string_match_part(std::string_view answer, const std::vector<std::string>& references) {
  return found(answer, references) > 0 ? 1.0 : 0.0;
}

double score_all(const TaskInfo& /*task*/, std::string_view prediction, const TaskSample& sample) {
  return string_match_all(prediction, sample.references);
}

}  // namespace million
