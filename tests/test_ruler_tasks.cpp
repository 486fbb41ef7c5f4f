// SPDX-License-Identifier: Apache-2.0
// RULER-style tasks: every answer is found again by reading the prompt with code of the test's own
// (needles by pattern, chains by following them, words by counting).
#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/eval/ruler.h"
#include "lib/eval/task.h"
#include "lib/model/model.h"
#include "tests/task_data.h"

#include <catch2/catch.hpp>

#include <cmath>
#include <cstdlib>
#include <map>
#include <regex>
#include <set>

using namespace million;
using Catch::Matchers::Contains;

namespace {

using List = std::vector<std::string>;

const std::string kNoise =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

TaskInfo task_named(std::string_view name) { return named_task(ruler_tasks(), name); }

std::vector<TaskSample> samples_of(std::string_view name, const TaskPlan& plan) {
  const TaskInfo task = task_named(name);
  return task.make(task, plan);
}

struct Found {
  std::string type, key, value;
  size_t at, size;
};
std::vector<Found> needles_in(const std::string& text) {
  static const std::regex kNeedle("One of the special magic (\\w+) for (\\S+) is: (\\S+)\\.");
  std::vector<Found> found;
  for (std::sregex_iterator it(text.begin(), text.end(), kNeedle), end; it != end; ++it)
    found.push_back({it->str(1), it->str(2), it->str(3), static_cast<size_t>(it->position()),
                     static_cast<size_t>(it->length())});
  return found;
}

struct NiahCase {
  const char* name;
  bool uuid_key, uuid_value, essay, distractors;
  int keys, values, queries;
};
constexpr NiahCase kNiah[] = {{"niah_single_1", false, false, false, false, 1, 1, 1},
                              {"niah_single_2", false, false, true, false, 1, 1, 1},
                              {"niah_single_3", false, true, true, false, 1, 1, 1},
                              {"niah_multikey_1", false, false, true, false, 4, 1, 1},
                              {"niah_multikey_2", false, false, false, true, 1, 1, 1},
                              {"niah_multikey_3", true, true, false, true, 1, 1, 1},
                              {"niah_multivalue", false, false, true, false, 1, 4, 1},
                              {"niah_multiquery", false, false, true, false, 4, 1, 4}};

/// The context of a needle task, its queries; the templates are written out once more here.
std::string niah_context(const NiahCase& c, const TaskSample& s, List& queries) {
  const std::string one = c.uuid_value ? "uuid" : "number";
  const bool single = c.values * c.queries == 1;
  const std::string start =
      single ? "A special magic " + one +
                   " is hidden within the following text. Make sure to memorize it. I will quiz "
                   "you about the " +
                   one + " afterwards.\n"
             : "Some special magic " + one +
                   "s are hidden within the following text. Make sure to memorize it. I will quiz "
                   "you about the " +
                   one + "s afterwards.\n";
  const std::string ask = single ? "\nWhat is the special magic " + one + " for "
                                 : "\nWhat are all the special magic " + one + "s for ";
  const size_t question = s.prompt.rfind(ask);
  REQUIRE(question != std::string::npos);
  const std::string query =
      middle(s.prompt.substr(question), ask, " mentioned in the provided text?");
  CHECK(s.answer_head == (single ? " The special magic " + one + " for " + query +
                                       " mentioned in the provided text is"
                                 : " The special magic " + one + "s for " + query +
                                       " mentioned in the provided text are"));
  queries.clear();
  for (std::string part : split(query, ' ')) {
    if (part == "and") continue;
    if (part.ends_with(',')) part.pop_back();
    queries.push_back(part);
  }
  if (queries.size() == 4) CHECK(query.find(", and " + queries[3]) != std::string::npos);
  return middle(s.prompt.substr(0, question), start, "");
}

/// Variable -> what it is assigned, from the lines of a text.
std::map<std::string, std::string> assignments(const std::string& text, int& noise_lines) {
  std::map<std::string, std::string> out;
  static const std::regex kLine("VAR ([A-Z]+) = (VAR [A-Z]+|\\d+)");
  for (const std::string& line : split(text, '\n')) {
    std::smatch m;
    if (line == kNoise) {
      ++noise_lines;
    } else {
      INFO(line);
      REQUIRE(std::regex_match(line, m, kLine));
      CHECK(out.emplace(m.str(1), m.str(2)).second);
    }
  }
  return out;
}

/// Variables that reach `value`, in any order.
std::set<std::string> with_value(const std::map<std::string, std::string>& vars,
                                 const std::string& value) {
  std::set<std::string> out;
  for (const auto& [name, first] : vars) {
    std::string is = first;
    for (int hops = 0; hops < 100 && is.starts_with("VAR "); ++hops) is = vars.at(is.substr(4));
    if (is == value) out.insert(name);
  }
  return out;
}

std::map<std::string, int> count_list(const std::string& context) {
  static const std::regex kItem("(\\d+)\\. ([a-z-]+)(?: |$)");
  std::map<std::string, int> counts;
  int next = 1;
  size_t read = 0;
  for (std::sregex_iterator it(context.begin(), context.end(), kItem), end; it != end; ++it) {
    CHECK(std::stoi(it->str(1)) == next++);
    ++counts[it->str(2)];
    read += static_cast<size_t>(it->length());
  }
  CHECK(read == context.size());
  return counts;
}

/// The words that stand `times` times; every other stands `rest` times.
std::set<std::string> words_with(const std::map<std::string, int>& counts, int times, int rest) {
  std::set<std::string> out;
  for (const auto& [word, n] : counts) {
    if (n == times) {
      out.insert(word);
    } else {
      CHECK(n == rest);
    }
  }
  return out;
}

std::set<std::string> as_set(const List& list) { return {list.begin(), list.end()}; }

}  // namespace

TEST_CASE("the table of RULER tasks has the published names") {
  List names;
  for (const TaskInfo& task : ruler_tasks()) {
    names.push_back(task.name);
    CHECK(task.summary.size() > 20);
    CHECK_THAT(task.source, Contains("2404.06654"));
    CHECK(occurrences(task.summary + task.source, "\n") == 0);
    CHECK_FALSE(task.has_depth);
    REQUIRE(task.make);
    REQUIRE(task.score);
  }
  CHECK(names == List{"niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1",
                      "niah_multikey_2", "niah_multikey_3", "niah_multivalue", "niah_multiquery",
                      "vt", "cwe", "fwe"});
}

TEST_CASE("RULER words: none is a part of another") {
  const auto& words = ruler_words();
  CHECK(ruler_adjectives().size() == 342);
  CHECK(ruler_nouns().size() == 411);
  CHECK(words.size() == 949);
  CHECK(ruler_pair_count() == 342 * 411);
  for (const auto a : words) {
    CHECK((a.size() >= 4 && a.size() <= 9));
    CHECK(a.find_first_not_of("abcdefghijklmnopqrstuvwxyz") == std::string_view::npos);
    for (const auto b : words)
      if (a.data() != b.data() && b.find(a) != std::string_view::npos) FAIL(a << " is in " << b);
  }
  std::set<std::string> pairs;
  for (int i = 0; i < ruler_pair_count(); i += 97) CHECK(pairs.insert(ruler_pair(i)).second);
  CHECK(ruler_pair(0) == std::string(ruler_adjectives()[0]) + "-" + std::string(ruler_nouns()[0]));
}

TEST_CASE("niah: needles, keys and answers by reading the prompt") {
  for (const NiahCase& c : kNiah) {
    CAPTURE(c.name);
    CHECK(task_named(c.name).binary == (c.values * c.queries == 1));
    TaskPlan plan = plan_of(4096);
    plan.haystack = numbered_text(60);  // shorter than the prompt
    for (const TaskSample& s : samples_of(c.name, plan)) {
      List queries;
      const std::string context = niah_context(c, s, queries);
      CHECK(static_cast<int>(queries.size()) == c.queries);
      CHECK(s.max_new_tokens == 128);
      const auto found = needles_in(context);
      if (c.distractors) {
        CHECK(found.size() > 10);
      } else {
        CHECK(static_cast<int>(found.size()) == c.keys * c.values);
      }
      std::set<std::string> keys, values, answers;
      const std::regex uuid("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}");
      for (const Found& n : found) {
        CHECK(n.type == (c.uuid_value ? "uuids" : "numbers"));
        CHECK(std::regex_match(n.value, c.uuid_value ? uuid : std::regex("[1-9]\\d{6}")));
        CHECK(std::regex_match(n.key, c.uuid_key ? uuid : std::regex("[a-z]+-[a-z]+")));
        keys.insert(n.key);
        CHECK(values.insert(n.value).second);
        if (as_set(queries).contains(n.key)) answers.insert(n.value);
      }
      CHECK(keys.size() == found.size() / static_cast<size_t>(c.values));
      CHECK(answers == as_set(s.references));
      CHECK(static_cast<int>(s.references.size()) == c.values * c.queries);
      for (const std::string& r : s.references) CHECK(occurrences(s.prompt, r) == 1);
      check_length(plan, s, 0.96);  // a line of two uuids is 3 % of this prompt
    }
  }
}

TEST_CASE("niah: what is around the needles") {
  for (const NiahCase& c : kNiah) {
    CAPTURE(c.name);
    TaskPlan plan = plan_of(4096);
    plan.haystack = numbered_text(60);
    const std::string ring = plan.haystack + plan.haystack + plan.haystack;
    for (const TaskSample& s : samples_of(c.name, plan)) {
      List queries;
      const std::string context = niah_context(c, s, queries);
      if (!c.essay) {
        int noise = 0, needles = 0;
        for (const std::string& line : split(context, '\n')) {
          noise += line == kNoise;
          needles += needles_in(line).size() == 1 && needles_in(line)[0].size == line.size();
        }
        const int lines = static_cast<int>(split(context, '\n').size());
        CHECK(noise == (c.distractors ? 0 : lines - 1));
        CHECK(needles == (c.distractors ? lines : 1));
        CHECK_FALSE(s.facts.contains("haystack"));
        continue;
      }
      // The essay without its needles is the text from its start; needles stand at sentence ends.
      std::string rest;
      size_t at = 0;
      for (const Found& n : needles_in(context)) {
        rest += context.substr(at, n.at - at);
        CHECK((rest.empty() || rest.ends_with(". ")));
        at = std::min(n.at + n.size + 1, context.size());
      }
      rest += context.substr(at);
      while (rest.ends_with(' ')) rest.pop_back();
      CHECK(ring.substr(0, rest.size()) == rest);
      CHECK(s.facts["haystack"] == "text");
      CHECK(s.facts["haystack_repeats"].get<double>() > 1.0);
    }
  }
}

TEST_CASE("niah: the facts tell where the answers lie") {
  TaskPlan plan = plan_of(8192, 8);
  plan.haystack = numbered_text(400);
  std::set<std::string> places;
  for (const TaskSample& s : samples_of("niah_multivalue", plan)) {
    const auto found = needles_in(s.prompt);
    REQUIRE(s.facts["depths"].size() == 4);
    for (size_t i = 0; i < 4; ++i) {
      const auto at = static_cast<double>(s.prompt.find(s.references[i]));
      CHECK(s.facts["depths"][i].get<double>() ==
            Approx(at / static_cast<double>(s.prompt.size())).margin(0.04));
    }
    places.insert(s.facts["depths"].dump());
  }
  CHECK(places.size() == 8);
  plan.haystack.clear();
  const TaskSample filler = samples_of("niah_single_2", plan)[0];
  CHECK(filler.facts["haystack"] == "filler");
  CHECK(occurrences(filler.prompt, kNoise) > 10);
}

TEST_CASE("vt: the chain is found by following the assignments") {
  const std::string start =
      "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n";
  const TaskPlan plan = plan_of(6000, 5);
  std::set<std::string> values;
  for (const TaskSample& s : samples_of("vt", plan)) {
    // The solved example first.
    const size_t main = s.prompt.find(start, 1);
    REQUIRE(main != std::string::npos);
    const std::string example = middle(s.prompt.substr(0, main), start, "\n\n");
    const std::string question = "\nQuestion: Find all variables that are assigned the value ";
    const size_t asked = example.rfind(question);
    REQUIRE(asked != std::string::npos);
    std::smatch m;
    const std::string tail = example.substr(asked + question.size());
    REQUIRE(std::regex_match(
        tail, m,
        std::regex("(\\d{5}) in the text above\\. Answer: According to the chain\\(s\\) of "
                   "variable assignment in the text above, 5 variables are assigned the value "
                   "(\\d{5}), they are: ([A-Z ]+)")));
    int noise = 0;
    const auto shown = assignments(example.substr(0, asked), noise);
    CHECK(m.str(1) == m.str(2));
    CHECK(with_value(shown, m.str(1)) == as_set(split(m.str(3), ' ')));
    CHECK(shown.size() == 5);
    CHECK(noise >= 6);
    // The question itself.
    const std::string value = s.facts["value"];
    const std::string context =
        middle(s.prompt.substr(main), start, question + value + " in the text above.");
    noise = 0;
    const auto vars = assignments(context, noise);
    CHECK(vars.size() == 5);
    CHECK(noise > 10);
    CHECK(with_value(vars, value) == as_set(s.references));
    CHECK(with_value(vars, m.str(1)).empty());
    for (const auto& [name, is] : vars) CHECK(name.size() == 5);
    for (size_t i = 1; i < 5; ++i) {  // references in the order of the text
      CHECK(vars.at(s.references[i]) == "VAR " + s.references[i - 1]);
      CHECK(context.find("VAR " + s.references[i] + " =") >
            context.find("VAR " + s.references[i - 1] + " ="));
    }
    CHECK(s.answer_head ==
          " Answer: According to the chain(s) of variable assignment in the text above, 5 "
          "variables are assigned the value " +
              value + ", they are:");
    CHECK(s.max_new_tokens == 30);
    check_length(plan, s);
    CHECK(values.insert(value).second);
  }
}

TEST_CASE("cwe: the ten common words by counting") {
  const std::string start =
      "Below is a numbered list of words. In these words, some appear more often than others. "
      "Memorize the ones that appear most often.\n";
  const std::string end = "\nQuestion: What are the 10 most common words in the above list?";
  const std::string head = " Answer: The top 10 words that appear most often in the list are:";
  struct Case {
    int length, shown_common, shown_rare, shown_words, common, rare;
    const char* words;
  };
  for (const Case& c :
       {Case{3000, 3, 1, 20, 6, 1, "single words"}, Case{16000, 10, 3, 40, 30, 3, "single words"},
        Case{80000, 10, 3, 40, 30, 3, "adjective-noun pairs"}}) {
    CAPTURE(c.length);
    const TaskPlan plan = plan_of(c.length, 2);
    for (const TaskSample& s : samples_of("cwe", plan)) {
      const size_t main = s.prompt.rfind(start);
      REQUIRE(main > 0);
      const std::string example = s.prompt.substr(0, main);
      const size_t answered = example.find(end + head + " ");
      REQUIRE(answered != std::string::npos);
      const auto shown = count_list(middle(example.substr(0, answered), start, ""));
      CHECK(static_cast<int>(shown.size()) == c.shown_words);
      std::set<std::string> told;
      for (const auto& [word, n] :
           count_list(middle(example.substr(answered), end + head + " ", "\n")))
        told.insert(word);
      CHECK(told == words_with(shown, c.shown_common, c.shown_rare));
      CHECK(told.size() == 10);

      const auto counts = count_list(middle(s.prompt.substr(main), start, end));
      CHECK(counts.size() > 20);
      CHECK(words_with(counts, c.common, c.rare) == as_set(s.references));
      CHECK(s.references.size() == 10);
      CHECK(s.facts["words"] == c.words);
      CHECK(s.facts["n_words"] == counts.size());
      CHECK(s.answer_head == head);
      CHECK(s.max_new_tokens == 120);
      check_length(plan, s);
    }
  }
}

TEST_CASE("fwe: the three frequent words by counting") {
  const TaskPlan plan = plan_of(4096, 4);
  std::set<std::string> first;
  for (const TaskSample& s : samples_of("fwe", plan)) {
    const std::string context = middle(
        s.prompt,
        "Read the following coded text and track the frequency of each coded word. Find the three "
        "most frequently appeared coded words. ",
        "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the "
        "three most frequently appeared words in the above coded text?");
    std::map<std::string, int> counts;
    for (const std::string& word : split(context, ' ')) ++counts[word];
    std::vector<std::pair<int, std::string>> order;
    for (const auto& [word, n] : counts) {
      order.emplace_back(n, word);
      if (word != "...") CHECK(std::regex_match(word, std::regex("[a-z]{6}")));
    }
    std::sort(order.rbegin(), order.rend());
    REQUIRE(order.size() > 5);
    CHECK(order[0].second == "...");
    CHECK(s.references == List{order[1].second, order[2].second, order[3].second});
    for (int i = 0; i < 4; ++i) CHECK(order[i].first > order[i + 1].first);
    // Zeta(2): the k-th word is k^2 times rarer than the first.
    for (int k = 1; k <= 4; ++k)
      CHECK(order[k - 1].first == Approx(order[0].first / double(k * k)).margin(1.0));
    CHECK(s.facts["counts"] ==
          Json({order[1].first, order[2].first, order[3].first, order[4].first}));
    CHECK(s.answer_head ==
          " Answer: According to the coded text above, the three most frequently appeared words "
          "are:");
    CHECK(s.max_new_tokens == 50);
    check_length(plan, s);
    CHECK(first.insert(s.references[0]).second);
  }
}

TEST_CASE("RULER scores: the fraction of the references") {
  const TaskInfo vt = task_named("vt");
  TaskSample s;
  s.references = {"WAVOH", "UCUFB", "HYQTR", "VJMBA", "JEJIF"};
  CHECK(vt.score(vt, " WAVOH UCUFB HYQTR VJMBA JEJIF", s) == 1.0);
  CHECK(vt.score(vt, "wavoh, ucufb", s) == Approx(0.4));
  CHECK(vt.score(vt, "VAR WAVOH = VAR JEJIF and WAVOH again", s) == Approx(0.4));
  CHECK(vt.score(vt, "", s) == 0.0);
  CHECK(vt.score(vt, "the grass is green", s) == 0.0);
  CHECK(vt.score(vt, "XWAVOHX", s) == Approx(0.2));  // parts count, as published
}

TEST_CASE("RULER samples depend on seed and place alone") {
  for (const TaskInfo& task : ruler_tasks()) {
    CAPTURE(task.name);
    TaskPlan plan = plan_of(8192);
    plan.haystack = numbered_text(300);
    const auto a = task.make(task, plan), b = task.make(task, plan);
    REQUIRE(a.size() == 3);
    for (size_t i = 0; i < a.size(); ++i) CHECK(a[i].prompt == b[i].prompt);
    CHECK(a[0].prompt != a[1].prompt);
    plan.samples = 1;
    CHECK(task.make(task, plan)[0].prompt == a[0].prompt);
    CHECK(a[1].facts["id"] == task.name + "-8192-s1");
    plan.seed = 2;
    CHECK(task.make(task, plan)[0].prompt != a[0].prompt);
  }
}

TEST_CASE("RULER prompts are the same bytes on every machine") {
  // A change here changes every published number of these tasks: say so in CHANGELOG.md.
  const std::map<std::string, std::string> golden = {{"niah_single_1", "6fca2febf082dc49"},
                                                     {"niah_single_2", "57f1b6d22c55f4fc"},
                                                     {"niah_single_3", "ea62f33b8cca2506"},
                                                     {"niah_multikey_1", "0195d31f600d7b07"},
                                                     {"niah_multikey_2", "1ab8b49daf0b3917"},
                                                     {"niah_multikey_3", "98fa471b49c15e30"},
                                                     {"niah_multivalue", "2560acda747ab78c"},
                                                     {"niah_multiquery", "96aea8f2df02fc57"},
                                                     {"vt", "090df89ddb089335"},
                                                     {"cwe", "c0cb541f33f78f2b"},
                                                     {"fwe", "b1006baa997d320f"}};
  TaskPlan plan = plan_of(3000, 2);
  plan.haystack = numbered_text(40);
  for (const TaskInfo& task : ruler_tasks()) {
    CAPTURE(task.name);
    std::string all;
    for (const TaskSample& s : task.make(task, plan)) {
      all += s.prompt + s.answer_head;
      for (const std::string& r : s.references) all += r;
    }
    CHECK(sha256_of(all).substr(0, 16) == golden.at(task.name));
  }
}

TEST_CASE("RULER plans that cannot be made are refused") {
  for (const TaskInfo& task : ruler_tasks()) {
    CAPTURE(task.name);
    TaskPlan plan = plan_of(8192);
    plan.tokenizer = nullptr;
    CHECK_THROWS_WITH(task.make(task, plan), Contains("no tokenizer"));
    plan = plan_of(200);
    CHECK_THROWS_WITH(task.make(task, plan), Contains("length 200 is too short"));
    plan = plan_of(8192, -1);
    CHECK_THROWS_WITH(task.make(task, plan), Contains("-1 samples"));
    plan = plan_of(0);
    CHECK_THROWS_WITH(task.make(task, plan), Contains("expected at least 1 token"));
    plan = plan_of(8192);
    plan.haystack = "Text. \xed\xa0\x80";  // a surrogate
    if (!task.summary.empty() && task.summary.find("haystack text") != std::string::npos)
      CHECK_THROWS_WITH(task.make(task, plan), Contains("byte 6 is no UTF-8"));
  }
}

TEST_CASE("with the default model's tokenizer prompts fill 97 % of 4K and 32K") {
  const char* path = std::getenv("MILLION_MODEL");
  const auto model =
      Model::load(path ? path : MILLION_SOURCE_DIR "/data/models/SmolLM2-135M-Instruct.Q4_1.gguf");
  for (const int length : {4096, 32768})
    for (const TaskInfo& task : ruler_tasks()) {
      CAPTURE(task.name, length);
      TaskPlan plan = plan_of(length, 2);
      plan.tokenizer = &model->tokenizer;
      for (const TaskSample& s : task.make(task, plan)) check_length(plan, s);
    }
}
