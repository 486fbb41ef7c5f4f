// SPDX-License-Identifier: Apache-2.0
// Plans and text for the tests of generated tasks.
#pragma once

#include "lib/eval/task.h"
#include "tests/tiny_model.h"

#include <fmt/format.h>
#include <catch2/catch.hpp>

#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace million {

inline const Tokenizer& tiny_tokenizer() {
  static const Tokenizer kTokenizer(tiny_vocabulary());
  return kTokenizer;
}

inline TaskPlan plan_of(int length, int samples = 3) {
  TaskPlan plan;
  plan.length = length;
  plan.samples = samples;
  plan.tokenizer = &tiny_tokenizer();
  return plan;
}

/// Numbered sentences of different lengths, so that every place in a passage can be recognised.
inline std::string numbered_text(int n) {
  std::string text;
  for (int i = 0; i < n; ++i)
    text += fmt::format("Sentence {} of the story{} ends here. ", i,
                        std::string(static_cast<size_t>(i % 7), 'x'));
  return text;
}

inline TaskInfo named_task(std::span<const TaskInfo> tasks, std::string_view name) {
  for (const TaskInfo& task : tasks)
    if (task.name == name) return task;
  throw std::runtime_error("no such task");
}

inline int occurrences(std::string_view text, std::string_view part) {
  int n = 0;
  for (size_t at = text.find(part); at != std::string_view::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

inline std::vector<std::string> split(std::string_view text, char at) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == at) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

/// What stands between a text's fixed start and end; REQUIREs both.
inline std::string middle(const std::string& text, const std::string& start,
                          const std::string& end) {
  INFO(text.substr(0, 300));
  REQUIRE(text.starts_with(start));
  REQUIRE(text.ends_with(end));
  REQUIRE(text.size() >= start.size() + end.size());
  return text.substr(start.size(), text.size() - start.size() - end.size());
}

/// Prompt, head and answer fit in the plan and fill `least` of it.
inline void check_length(const TaskPlan& plan, const TaskSample& sample, double least = 0.97) {
  const int budget = plan.length - plan.overhead_tokens - sample.max_new_tokens;
  const int tokens = plan.count(sample.prompt) + plan.count(sample.answer_head);
  CHECK(tokens <= budget);
  CHECK(tokens >= least * budget);
  CHECK(sample.facts["length"] == plan.length);
  // Of a grid of questions, the longest one's.
  CHECK(sample.facts["tokens"].get<int>() >= tokens);
  CHECK(sample.facts["tokens"].get<int>() <= budget);
}

}  // namespace million
