// SPDX-License-Identifier: Apache-2.0
// Passkey and needle tasks: the prompts are read back by code of the test's own.
#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/eval/task.h"
#include "tests/task_data.h"

#include <catch2/catch.hpp>

#include <cmath>
#include <regex>
#include <set>

using namespace million;
using Catch::Matchers::Contains;

namespace {

TaskInfo task_named(std::string_view name) { return named_task(needle_tasks(), name); }

std::vector<TaskSample> samples_of(std::string_view name, const TaskPlan& plan) {
  const TaskInfo task = task_named(name);
  return task.make(task, plan);
}

/// The passage of a three-line prompt without its needle, and the needle's depth in bytes.
struct Taken {
  std::string rest, needle;
  double depth = 0.0;
};
Taken take_needle(const std::string& passage, const std::regex& needle) {
  std::smatch found;
  REQUIRE(std::regex_search(passage, found, needle));
  const std::string before = found.prefix(), after = found.suffix();
  // The space behind it belongs to the needle.
  Taken taken{before + (after.empty() ? "" : after.substr(1)), found.str(), 0.0};
  taken.depth = static_cast<double>(before.size()) / static_cast<double>(taken.rest.size());
  CHECK((before.empty() || before.ends_with(". ")));  // at a sentence end
  return taken;
}

std::string one_line(std::string_view text) {
  return std::regex_replace(std::string(text), std::regex("\\s+"), " ");
}

}  // namespace

TEST_CASE("the table of needle tasks") {
  std::set<std::string> names;
  for (const TaskInfo& task : needle_tasks()) {
    CAPTURE(task.name);
    CHECK(names.insert(task.name).second);
    CHECK(task.summary.size() > 20);
    CHECK(task.source.size() > 10);
    CHECK(occurrences(task.summary + task.source, "\n") == 0);
    CHECK_FALSE(task.from_file);
    CHECK(task.binary == task.has_depth);
    REQUIRE(task.make);
    REQUIRE(task.score);
  }
  CHECK(names == std::set<std::string>{"passkey", "needle_text", "needle_grid", "multi_needle"});
}

TEST_CASE("passkey: the published prompt, the key at its depth") {
  TaskPlan plan = plan_of(4096, 3);
  plan.haystack = "This text is never used. Passkeys hide in the filler.";
  const auto samples = samples_of("passkey", plan);
  REQUIRE(samples.size() == 15);
  const std::string filler =
      "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ";
  std::set<std::string> keys;
  for (size_t i = 0; i < samples.size(); ++i) {
    const TaskSample& s = samples[i];
    const double depth = plan.depths[i / 3];
    auto lines = split(s.prompt, '\n');
    CHECK(lines.front() ==
          "There is an important info hidden inside a lot of irrelevant text. Find it and memorize "
          "them. I will quiz you about the important information there.");
    CHECK(lines.back() == "What is the pass key?");
    CHECK(s.answer_head == " The pass key is");
    CHECK(s.max_new_tokens == 10);
    const std::string key = s.references.at(0);
    CHECK((std::stoi(key) >= 1 && std::stoi(key) <= 50000));
    const auto at =
        std::find(lines.begin(), lines.end(),
                  fmt::format("The pass key is {}. Remember it. {} is the pass key.", key, key));
    REQUIRE(at != lines.end());
    const std::string before = at == lines.begin() + 1 ? "" : lines[1];
    const std::string after = at + 2 == lines.end() ? "" : *(at + 1);
    CHECK(lines.size() == 3u + (before.empty() ? 0u : 1u) + (after.empty() ? 0u : 1u));
    const auto total = static_cast<double>(before.size() + after.size());
    CHECK(std::abs(static_cast<double>(before.size()) - depth * total) <= 20.0);
    for (const std::string& part : {before, after}) {  // each starts with the grass again
      std::string repeated;
      while (repeated.size() < part.size()) repeated += filler;
      CHECK(repeated.substr(0, part.size()) == part);
      CHECK((part.empty() || part.ends_with('.')));
    }
    CHECK(s.facts["depth"] == depth);
    CHECK(s.facts["seed"] == 1);
    CHECK(s.facts["key"] == key);
    check_length(plan, s, 0.97);
    keys.insert(key);
    CHECK(keys.size() == i + 1);
  }
}

TEST_CASE("needle: the text goes on around the key, from a start of its own per sample") {
  TaskPlan plan = plan_of(3000, 3);
  plan.haystack = numbered_text(40);  // shorter than the prompt: it repeats
  const std::string line = one_line(plan.haystack);
  const std::string ring = line + line + line + line;
  const auto samples = samples_of("needle_text", plan);
  REQUIRE(samples.size() == 15);
  std::set<std::string> starts;
  for (size_t i = 0; i < samples.size(); ++i) {
    const TaskSample& s = samples[i];
    const double depth = plan.depths[i % 5];
    const auto lines = split(s.prompt, '\n');
    REQUIRE(lines.size() == 3);
    CHECK(lines[2] == "What is the pass key?");
    CHECK(s.answer_head == " The pass key is");
    const std::string key = s.references.at(0);
    CHECK(std::regex_match(key, std::regex("[1-9]\\d{6}")));
    CHECK(occurrences(s.prompt, key) == 2);
    const Taken taken = take_needle(
        lines[1],
        std::regex("The pass key is " + key + "\\. Remember it\\. " + key + " is the pass key\\."));
    CHECK(ring.find(taken.rest) != std::string::npos);
    CHECK(std::abs(taken.depth - depth) <= 40.0 / static_cast<double>(taken.rest.size()));
    CHECK(s.facts["depth"] == depth);
    CHECK(s.facts["depth_reached"].get<double>() == Approx(taken.depth).margin(0.001));
    CHECK(s.facts["haystack"] == "text");
    CHECK(s.facts["haystack_repeats"].get<double>() ==
          Approx(occurrences(taken.rest, "Sentence") / 40.0));
    CHECK(s.facts["haystack_repeats"].get<double>() > 1.0);
    check_length(plan, s, 0.97);
    starts.insert(taken.rest.substr(0, 30));
    CHECK(starts.size() == i / 5 + 1);  // all depths of a sample start alike, samples differ
  }
}

TEST_CASE("needle without a text lies in the filler") {
  const auto samples = samples_of("needle_text", plan_of(2000, 1));
  for (const TaskSample& s : samples) {
    CHECK(s.facts["haystack"] == "filler");
    CHECK(occurrences(s.prompt, "The grass is green.") > 5);
  }
}

TEST_CASE("needle grid: one haystack for all depths of a seed") {
  TaskPlan plan = plan_of(4096, 2);
  plan.depths = {1.0, 0.0, 0.1, 0.5, 0.5};
  plan.haystack = numbered_text(300);
  const auto samples = samples_of("needle_grid", plan);
  REQUIRE(samples.size() == 10);
  const std::regex needle("The special magic (\\w+) number is: (\\d{7})\\. ?");
  for (size_t i = 0; i < samples.size(); ++i) {
    const TaskSample& s = samples[i];
    const std::string first = samples[i / 5 * 5].prompt;
    CHECK(s.prompt.substr(0, s.prompt.rfind('\n')) == first.substr(0, first.rfind('\n')));
    const auto lines = split(s.prompt, '\n');
    REQUIRE(lines.size() == 3);
    std::smatch asked;
    REQUIRE(std::regex_match(lines[2], asked,
                             std::regex("What is the special magic (\\w+) number\\?")));
    CHECK(s.answer_head == fmt::format(" The special magic {} number is:", asked.str(1)));
    // All needles, their values, and how much text is before each.
    size_t before = 0, needles = 0, total = std::regex_replace(lines[1], needle, "").size();
    std::set<std::string> cities;
    for (std::sregex_iterator it(lines[1].begin(), lines[1].end(), needle), end; it != end; ++it) {
      before += static_cast<size_t>(it->prefix().length());
      ++needles;
      cities.insert(it->str(1));
      if (it->str(1) != asked.str(1)) continue;
      CHECK(s.references == std::vector<std::string>{it->str(2)});
      CHECK(std::abs(static_cast<double>(before) - plan.depths[i % 5] * total) <= 40.0);
    }
    CHECK(needles == 5);
    CHECK(cities.size() == 5);
    CHECK(occurrences(s.prompt, s.references[0]) == 1);
    CHECK(s.facts["depth"] == plan.depths[i % 5]);
    check_length(plan, s, 0.96);  // needles of one haystack: room for the longest question
  }
  CHECK(samples[0].prompt != samples[5].prompt);
}

TEST_CASE("multi needle: five ingredients, evenly spread") {
  TaskPlan plan = plan_of(4096, 4);
  plan.haystack = numbered_text(300) + "Saffron is named here.";
  for (const TaskSample& s : samples_of("multi_needle", plan)) {
    const auto lines = split(s.prompt, '\n');
    REQUIRE(lines.size() == 3);
    CHECK(lines[2] == "What are the secret ingredients needed to build the perfect pizza?");
    REQUIRE(s.references.size() == 5);
    const auto total = static_cast<double>(lines[1].size());
    for (size_t i = 0; i < 5; ++i) {
      const std::string needle = s.references[i] +
                                 " is one of the secret ingredients needed to build the perfect "
                                 "pizza.";
      CHECK(occurrences(s.prompt, s.references[i]) == 1);
      CHECK(s.references[i] != "Saffron");
      const size_t at = lines[1].find(needle);
      REQUIRE(at != std::string::npos);
      CHECK(std::abs(static_cast<double>(at) / total - (i + 0.5) / 5) < 0.06);
    }
    check_length(plan, s, 0.97);
    CHECK(task_named("multi_needle").score({}, "tofu, " + s.references[2], s) >= 0.2);
  }
  std::string all = "Prosciutto, goat cheese, fennel, saffron, horseradish, tahini, rhubarb, ";
  plan.haystack = all + "cardamom, lavender, tofu, sauerkraut, marzipan.";
  CHECK_THROWS_WITH(samples_of("multi_needle", plan), Contains("all but 4 of the 16"));
}

TEST_CASE("a key that the text holds already is not hidden in it") {
  TaskPlan plan = plan_of(2000, 1);
  plan.depths = {0.5};
  plan.haystack = numbered_text(30);
  for (const char* name : {"needle_text", "needle_grid"}) {
    TaskPlan other = plan;
    const std::string key = samples_of(name, plan).at(0).references.at(0);
    other.haystack += "Order " + key + " was paid. ";
    const std::string next = samples_of(name, other).at(0).references.at(0);
    CHECK(next != key);
    CHECK(other.haystack.find(next) == std::string::npos);
  }
}

TEST_CASE("scores go through the table") {
  const TaskInfo task = task_named("needle_grid");
  TaskSample s;
  s.references = {"1234567"};
  CHECK(task.score(task, " 1234567.", s) == 1.0);
  CHECK(task.score(task, " 7654321, then 1234567", s) == 0.0);
  CHECK(task.score(task, "", s) == 0.0);
}

TEST_CASE("needle samples depend on seed and place alone") {
  TaskPlan plan = plan_of(2048, 3);
  plan.haystack = numbered_text(200);
  for (const TaskInfo& task : needle_tasks()) {
    CAPTURE(task.name);
    const auto a = task.make(task, plan), b = task.make(task, plan);
    REQUIRE(a.size() == b.size());
    for (size_t i = 0; i < a.size(); ++i) CHECK(a[i].prompt == b[i].prompt);
    std::set<std::string> prompts, ids;
    for (const TaskSample& s : a) {
      prompts.insert(s.prompt);
      ids.insert(s.facts["id"]);
    }
    CHECK(prompts.size() == a.size());
    CHECK(ids.size() == a.size());
    TaskPlan other = plan;
    other.seed = 2;
    CHECK(task.make(task, other)[0].prompt != a[0].prompt);
    // A sample is the same whichever others are asked for.
    TaskPlan fewer = plan;
    fewer.samples = 1;
    if (task.name != "needle_grid") fewer.depths = {0.5};
    const auto alone = task.make(task, fewer)[0];
    const auto same = std::find_if(a.begin(), a.end(), [&](const TaskSample& s) {
      return s.facts["id"] == alone.facts["id"];
    });
    REQUIRE(same != a.end());
    CHECK(same->prompt == alone.prompt);
  }
}

TEST_CASE("needle prompts are the same bytes on every machine") {
  TaskPlan plan = plan_of(2048, 2);
  plan.haystack = numbered_text(100);
  // A change here changes every published number of these tasks: say so in CHANGELOG.md.
  const std::map<std::string, std::string> golden = {{"passkey", "f64d70077804bb67"},
                                                     {"needle_text", "7acb8f19a6bd15e9"},
                                                     {"needle_grid", "c6bc050f3c107b1f"},
                                                     {"multi_needle", "cb570bd040a61d03"}};
  for (const TaskInfo& task : needle_tasks()) {
    CAPTURE(task.name);
    std::string all;
    for (const TaskSample& s : task.make(task, plan))
      all += s.prompt + s.answer_head + s.references.at(0);
    CHECK(sha256_of(all).substr(0, 16) == golden.at(task.name));
  }
}

TEST_CASE("needle plans that cannot be made are refused") {
  for (const TaskInfo& task : needle_tasks()) {
    CAPTURE(task.name);
    TaskPlan plan = plan_of(1024);
    plan.tokenizer = nullptr;
    CHECK_THROWS_WITH(task.make(task, plan), Contains("no tokenizer"));
    plan = plan_of(100);
    CHECK_THROWS_WITH(task.make(task, plan), Contains("length 100 is too short"));
    plan = plan_of(1024, 0);
    CHECK_THROWS_WITH(task.make(task, plan), Contains("0 samples"));
    plan = plan_of(1024);
    plan.haystack = "bad \x80 byte. Second sentence.";
    if (task.name != "passkey")
      CHECK_THROWS_WITH(task.make(task, plan), Contains("byte 4 is no UTF-8"));
    if (!task.has_depth) continue;
    for (const double depth : {-0.1, 1.01, std::nan("")}) {
      plan = plan_of(1024);
      plan.depths = {0.5, depth};
      CHECK_THROWS_WITH(task.make(task, plan), Contains("expected 0 (start of the text) to 1"));
    }
    plan.depths = {};
    CHECK_THROWS_WITH(task.make(task, plan), Contains("no depth"));
  }
  TaskPlan plan = plan_of(65536);
  plan.depths.assign(49, 0.5);
  CHECK_THROWS_WITH(samples_of("needle_grid", plan), Contains("49 depths, at most 48"));
}

TEST_CASE("the length that a refusal names is enough") {
  const TaskInfo task = task_named("passkey");
  try {
    task.make(task, plan_of(100));
    FAIL("not refused");
  } catch (const Error& e) {
    std::smatch m;
    const std::string text = e.what();
    REQUIRE(std::regex_search(text, m, std::regex("(\\d+) tokens are needed at least")));
    const int enough = std::stoi(m.str(1));
    CHECK_THROWS_AS(task.make(task, plan_of(enough - 1)), Error);
    TaskPlan plan = plan_of(enough + 1, 1);  // keys differ by a digit
    CHECK(task.make(task, plan).size() == 5);
  }
}
