// SPDX-License-Identifier: Apache-2.0
// What generated tasks are made of: scores by worked cases, intervals against scipy, haystacks, and
// fitting a prompt to a length.
#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/eval/haystack.h"
#include "lib/eval/interval.h"
#include "lib/eval/prompt_fit.h"
#include "lib/eval/string_match.h"
#include "tests/task_data.h"

#include <catch2/catch.hpp>

#include <cmath>

using namespace million;
using Catch::Matchers::Contains;

TEST_CASE("first integer of an answer") {
  CHECK(first_integer(" 12345. Remember it.") == "12345");
  CHECK(first_integer("The pass key is 777") == "777");
  CHECK(first_integer("no number here") == "");
  CHECK(first_integer("") == "");
  CHECK(first_integer("00042 and 7") == "42");
  CHECK(first_integer("000") == "0");
  CHECK(first_integer("1,234,567") == "1");
  CHECK(first_integer("-98") == "98");

  CHECK(first_integer_match(" 12345. Remember", "12345") == 1.0);
  CHECK(first_integer_match("key: 012345", "12345") == 1.0);  // equal as a number
  CHECK(first_integer_match("123456", "12345") == 0.0);       // inside a longer number
  CHECK(first_integer_match("54321 12345", "12345") == 0.0);  // only the first counts
  CHECK(first_integer_match("I do not know", "12345") == 0.0);
  CHECK(first_integer_match("", "12345") == 0.0);
  CHECK(first_integer_match("12345", "12345") == 1.0);
  CHECK(first_integer_match("1 2345", "12345") == 0.0);
}

TEST_CASE("string match: fraction of the references, and any") {
  const std::vector<std::string> three = {"Alpha", "beta", "777"};
  CHECK(string_match_all("alpha, BETA and 777", three) == 1.0);
  CHECK(string_match_all("Alpha only", three) == Approx(1.0 / 3));
  CHECK(string_match_all("", three) == 0.0);
  CHECK(string_match_all("none of them", three) == 0.0);
  CHECK(string_match_all("17770", three) == Approx(1.0 / 3));  // parts count, as published
  CHECK(string_match_all("\x01 alpha\tbeta\x1f", three) == Approx(2.0 / 3));
  CHECK(string_match_all("al\npha", three) == 0.0);
  CHECK(string_match_all("é alphaß", three) == Approx(1.0 / 3));

  CHECK(string_match_part("alpha, BETA and 777", three) == 1.0);
  CHECK(string_match_part("only Beta", three) == 1.0);
  CHECK(string_match_part("", three) == 0.0);
  CHECK(string_match_part("alph", three) == 0.0);
  CHECK(string_match_part("17770", three) == 1.0);
  CHECK(string_match_part("7 77", three) == 0.0);
}

TEST_CASE("intervals equal scipy and numpy") {
  const Json golden = Json::parse(read_file(MILLION_TEST_DIR "/golden/intervals.json", 1 << 20));
  REQUIRE(golden["wilson"].size() == 11);
  for (const Json& c : golden["wilson"]) {
    const Interval w = wilson_interval(c["hits"].get<int64_t>(), c["n"].get<int64_t>());
    CHECK(w.low == Approx(c["low"].get<double>()).margin(1e-12));
    CHECK(w.high == Approx(c["high"].get<double>()).margin(1e-12));
    CHECK((w.low >= 0.0 && w.high <= 1.0));
  }
  for (const Json& c : golden["means"])
    CHECK(mean_stderr(c["values"].get<std::vector<double>>()) ==
          Approx(c["stderr"].get<double>()).margin(1e-12));
  CHECK(wilson_interval(0, 0).low == 0.0);
  CHECK(wilson_interval(0, 0).high == 1.0);
  CHECK(std::isnan(mean_stderr({})));
  CHECK(std::isnan(mean_stderr(std::vector<double>{0.5})));
}

TEST_CASE("bootstrap of a mean: seeded, inside the values, near the normal interval") {
  std::vector<double> scores;
  Rng rng(5);
  for (int i = 0; i < 200; ++i) scores.push_back(rng.uniform());
  const Interval a = bootstrap_interval(scores, 1), b = bootstrap_interval(scores, 1);
  CHECK(a.low == b.low);
  CHECK(a.high == b.high);
  double mean = 0.0;
  for (const double s : scores) mean += s / 200.0;
  const double half = kZ95 * mean_stderr(scores);
  // 2000 draws put an end within about 0.05 half-widths x 3.
  CHECK(a.low == Approx(mean - half).margin(0.15 * half));
  CHECK(a.high == Approx(mean + half).margin(0.15 * half));
  const Interval same = bootstrap_interval(std::vector<double>(5, 0.25), 1);
  CHECK(same.low == 0.25);
  CHECK(same.high == 0.25);
  CHECK(std::isnan(bootstrap_interval({}, 1).low));
}

TEST_CASE("a haystack is cut at sentence ends") {
  const auto pieces = [](const Haystack& h) {
    std::vector<std::string> out;
    for (int i = 0; i < h.size(); ++i) out.push_back(h.passage(i, 1));
    return out;
  };
  using List = std::vector<std::string>;
  CHECK(pieces(Haystack("One two. Three\n four! \"Five?\" six")) ==
        List{"One two.", "Three four!", "\"Five?\"", "six"});
  CHECK(pieces(Haystack("A heading\n\nThe text (see there.) Next\r\n \r\nend")) ==
        List{"A heading", "The text (see there.)", "Next", "end"});
  CHECK(pieces(Haystack("Version 1.2 of x.y is out. Ok")) ==
        List{"Version 1.2 of x.y is out.", "Ok"});
  CHECK(pieces(Haystack("你好。再见！行吗？好")) == List{"你好。", "再见！", "行吗？", "好"});
  CHECK(Haystack::filler().size() == 5);

  const std::string no_ends = std::string(350, 'a') + " " + std::string(100, 'b') + " c";
  CHECK(pieces(Haystack(no_ends)) == List{std::string(350, 'a'), std::string(100, 'b') + " c"});
  std::string umlauts;  // 2 bytes each: the cut at 400 bytes must not split one
  for (int i = 0; i < 301; ++i) umlauts += "ü";
  const auto cut = pieces(Haystack("x" + umlauts));
  REQUIRE(cut.size() == 2);
  CHECK(cut[0] == "x" + umlauts.substr(0, 398));
  CHECK(cut[1] == umlauts.substr(398));
}

TEST_CASE("passages go round and take needles at boundaries") {
  const Haystack h("A a. Bbb b. C c.");
  CHECK(h.passage(0, 3) == "A a. Bbb b. C c.");
  CHECK(h.passage(2, 5) == "C c. A a. Bbb b. C c. A a.");
  const std::vector<Needle> needles = {{0, "N0."}, {2, "N1."}, {2, "N2."}, {3, "N3."}};
  CHECK(h.passage(1, 3, needles) == "N0. Bbb b. C c. N1. N2. A a. N3.");
  CHECK(h.passage(0, 0) == "");
  // Bytes with the spaces: 5, 7, 5. The nearest boundary wins.
  CHECK(h.boundary(0, 3, 0.0) == 0);
  CHECK(h.boundary(0, 3, 0.14) == 0);
  CHECK(h.boundary(0, 3, 0.16) == 1);
  CHECK(h.boundary(0, 3, 0.49) == 1);
  CHECK(h.boundary(0, 3, 0.51) == 2);
  CHECK(h.boundary(0, 3, 1.0) == 3);
  CHECK(h.share(0, 1, 3) == Approx(5.0 / 17));
  CHECK(h.contains("BBB B"));
  CHECK_FALSE(h.contains("bbbb"));
  // Text without spaces gets them around a needle only.
  const Needle middle{1, "N."};
  CHECK(Haystack("你好。再见。").passage(0, 2, {&middle, 1}) == "你好。 N. 再见。");
}

TEST_CASE("a haystack that is no text is refused") {
  CHECK_THROWS_WITH(Haystack("good\xff bad"), Contains("byte 4 is no UTF-8"));
  CHECK_THROWS_WITH(Haystack("cut off \xe4\xbd"), Contains("byte 8 is no UTF-8"));
  CHECK_THROWS_WITH(Haystack(" \n\t "), Contains("4 bytes without a word"));
}

TEST_CASE("prompts are fitted with few readings") {
  TaskPlan plan = plan_of(20000);
  const TaskInfo task = named_task(needle_tasks(), "passkey");
  int drafts = 0;
  const Draft draft = [&](int size, Rng) {
    ++drafts;
    TaskSample s;
    s.prompt = std::string(300, '#');
    for (int i = 0; i < size; ++i) s.prompt += "Line of text. ";
    return s;
  };
  const FittedSample cold = fit_sample(task, plan, "a", {}, draft);
  check_length(plan, cold.sample, 0.995);
  CHECK(drafts <= 6);
  drafts = 0;
  const FittedSample warm = fit_sample(task, plan, "a", {.guess = cold.size}, draft);
  CHECK(warm.size == cold.size);
  CHECK(drafts == 2);  // the least size and the guess
  // A guess that is too large still ends at the largest that fits.
  const FittedSample high = fit_sample(task, plan, "a", {.guess = 10 * cold.size}, draft);
  check_length(plan, high.sample, 0.995);
  CHECK(fit_sample(task, plan, "a", {.most = 7}, draft).size == 7);
}
