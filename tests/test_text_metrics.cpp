// SPDX-License-Identifier: Apache-2.0
// Text metrics against cases worked out by hand, and against the programs that LongBench calls
// (golden/longbench.json, made by golden/make_longbench_golden.py): characters, case, words, LCS
// ties, difflib's blocks, rounding.
#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/core/json.h"
#include "lib/eval/text_metrics.h"
#include "lib/eval/unicode_text.h"

#include <catch2/catch.hpp>

#include <algorithm>

using namespace million;

namespace {

const Json& golden() {
  static const Json json = Json::parse(read_file(MILLION_TEST_DIR "/golden/longbench.json"));
  return json;
}

/// The same double operations in the same order: equal but for the printing of a number.
auto near(double value) { return Catch::Matchers::WithinAbs(value, 1e-14); }

/// ROUGE-L's own 1e-8 in the denominator moves hand-worked values by less than this.
auto about(double value) { return Catch::Matchers::WithinAbs(value, 2e-8); }

/// Every [prediction, reference, score] of a golden list; at least 12.
template <class Score>
void check_pairs(const char* list, Score score) {
  REQUIRE(golden().at(list).size() >= 12);
  for (const Json& row : golden().at(list)) {
    const auto prediction = row[0].get<std::string>(), reference = row[1].get<std::string>();
    INFO(list << ": \"" << prediction << "\" against \"" << reference << "\"");
    CHECK_THAT(score(prediction, reference), near(row[2].get<double>()));
  }
}

double retrieval(std::string_view prediction, std::string_view reference, const char* marker) {
  return number_match(prediction, paragraph_number(reference, marker).value());
}

}  // namespace

TEST_CASE("characters are Python's: classes and case of every code point") {
  uint64_t digest = 0xcbf29ce484222325u;
  for (char32_t c = 0; c < 0x110000; ++c) {
    const std::u32string lower = lower_case(std::u32string(1, c));
    const char32_t l = lower.size() == 1 ? lower[0] : 0xffffffff;
    const unsigned classes = unsigned{is_word_char(c)} | unsigned{is_digit_char(c)} << 1 |
                             unsigned{is_space_char(c)} << 2;
    for (const uint32_t byte : {classes, l & 0xff, (l >> 8) & 0xff, (l >> 16) & 0xff, l >> 24})
      digest = (digest ^ byte) * 0x100000001b3u;
  }
  CHECK(fmt::format("{:016x}", digest) == golden().at("unicode_fnv").get<std::string>());
}

TEST_CASE("bytes that are no UTF-8 become the replacement character as in Python") {
  REQUIRE(golden().at("bad_utf8").size() >= 11);
  for (const Json& row : golden().at("bad_utf8")) {
    std::string bytes;
    for (const Json& b : row[0]) bytes.push_back(static_cast<char>(b.get<int>()));
    CHECK(valid_utf8(bytes) == row[1].get<std::string>());
  }
}

TEST_CASE("token F1 by hand") {
  // words quick brown fox | quick red fox: 2 common of 3 and 3: 2/3
  CHECK_THAT(token_f1("The quick brown fox", "a quick red fox"), near(2.0 / 3));
  // yes counts once, no once: p = 2/4, r = 2/3, f = 2 * 1/3 / (7/6) = 4/7
  CHECK_THAT(token_f1("yes yes yes no", "yes no no"), near(4.0 / 7));
  // it is 1000 | 1000: p = 1/3, r = 1, f = (2/3) / (4/3) = 1/2
  CHECK_THAT(token_f1("It is 1,000.", "1000"), near(0.5));
  // dr who | who: p = 1/2, r = 1, f = 1 / (3/2) = 2/3
  CHECK_THAT(token_f1("Dr. Who", "who"), near(2.0 / 3));
  // in house of king | kings house: p = 1/4, r = 1/2, f = (1/4) / (3/4) = 1/3
  CHECK_THAT(token_f1("in the house of the king", "king's house"), near(1.0 / 3));
  // xray | x ray: nothing common; articles alone leave no words
  CHECK(token_f1("x-ray", "x ray") == 0);
  CHECK(token_f1("the", "the") == 0);
  CHECK(token_f1("", "word") == 0);
}

TEST_CASE("ROUGE-L by hand") {
  CHECK_THAT(rouge_l("a b c", "a b c"), about(1.0));
  // subsequence the sat on the = set {the sat on}: 3 of 5 and 5 different words: 0.6
  CHECK_THAT(rouge_l("the cat sat on the mat", "the dog sat on the log"), about(0.6));
  // both predicted sentences lie in the one of the reference: {a b} and {c d}, 4 of 4 and 4
  CHECK_THAT(rouge_l("a b. c d", "a b c d"), about(1.0));
  // one word is common in order; from the end (a, d) the walk shortens the prediction to "a":
  // {a}, 1 of 4 and 4
  CHECK_THAT(rouge_l("a b c d", "d c b a"), about(0.25));
  // the blank behind the stop is a sentence with the empty word: {hello} of 1 and 2 different
  // words, p = 1, r = 1/2, f = 1 / (3/2)
  CHECK_THAT(rouge_l("hello.", "hello. "), about(2.0 / 3));
  // repeated words count once: {a b} of 2 and 2
  CHECK_THAT(rouge_l("a a a b", "a b b b"), about(1.0));
  // case and punctuation other than "." stay: {b} of {A, "b,"} and {a, b}: nothing
  CHECK(rouge_l("A b,", "a b") == 0);
  // a tie: reference "a b c", prediction "c a b d" has a b (2 words): 2 of 4 and 3:
  // p = 1/2, r = 2/3, f = (2/3) / (7/6) = 4/7
  CHECK_THAT(rouge_l("c a b d", "a b c"), about(4.0 / 7));
  CHECK(rouge_l("...", "a") == 0);
  CHECK(rouge_l("", "a") == 0);
}

TEST_CASE("classification by hand") {
  const std::vector<std::string> labels = {"Number", "Other number", "Date", "City"};
  CHECK(classification_match("Date", "Date", labels) == 1);
  CHECK(classification_match("It is a Date.", "Date", labels) == 1);
  // found Number and Other number: 1/2
  CHECK(classification_match("Number, or Other number", "Number", labels) == 0.5);
  // found Number, Date, City: 1/3
  CHECK_THAT(classification_match("City Date Number", "Date", labels), near(1.0 / 3));
  CHECK(classification_match("date", "Date", labels) == 0);
  CHECK(classification_match("Number", "Date", labels) == 0);
  // a and b lie in abc; a is erased and b, now in its place, passed over: abc and b stay
  const std::vector<std::string> nested = {"a", "b", "abc"};
  CHECK(classification_match("a b abc", "abc", nested) == 0.5);
  // in this order b is erased, abc passed over, a erased
  const std::vector<std::string> turned = {"b", "abc", "a"};
  CHECK(classification_match("a b abc", "abc", turned) == 1);
}

TEST_CASE("retrieval by hand") {
  CHECK(paragraph_number("Paragraph 12", "Paragraph ") == "12");
  CHECK(paragraph_number("Paragraph x, Paragraph 3, Paragraph 4", "Paragraph ") == "3");
  CHECK_FALSE(paragraph_number("paragraph 12", "Paragraph "));
  CHECK(retrieval("Paragraph 12", "Paragraph 12", "Paragraph ") == 1);
  CHECK(retrieval("12", "Paragraph 12", "Paragraph ") == 1);
  CHECK(retrieval("Paragraph 1 or 12", "Paragraph 12", "Paragraph ") == 0.5);  // 1 of 1, 12
  // 12, 12, 3: two of three
  CHECK_THAT(retrieval("12, yes 12, not 3", "Paragraph 12", "Paragraph "), near(2.0 / 3));
  CHECK(retrieval("Paragraph 112", "Paragraph 12", "Paragraph ") == 0);  // numbers are whole
  CHECK(retrieval("Paragraph 012", "Paragraph 12", "Paragraph ") == 0);  // and text
  CHECK(retrieval("the twelfth", "Paragraph 12", "Paragraph ") == 0);
  CHECK(retrieval("段落2", "答案：段落2", "段落") == 1);
  CHECK(retrieval("段落2和段落3", "段落2", "段落") == 0.5);  // 2 of 2, 3
}

TEST_CASE("count by hand") {
  CHECK(number_match("5", "5") == 1);
  CHECK(number_match("There are 5.", "5") == 1);
  CHECK(number_match("5 of 10", "5") == 0.5);    // 1 of 5, 10
  CHECK(number_match("1 2 3 4 5", "5") == 0.2);  // 1 of five numbers
  CHECK(number_match("5.5", "5") == 1);          // 5 and 5
  CHECK(number_match("15", "5") == 0);           // whole numbers only
  CHECK(number_match("05", "5") == 0);           // as text
  CHECK(number_match("five", "5") == 0);
  CHECK(number_match("", "5") == 0);
}

TEST_CASE("edit similarity by hand") {
  using enum EditRatio;
  CHECK(code_similarity("\n\nfoo()\nbar()", "foo()") == 1);
  // abc | abd: ab is common, 2 * 2 / 6 = 66.7 percent
  CHECK(code_similarity("abc", "abd") == 0.67);
  // the comment is passed over; "x = " is common: 2 * 4 / 10
  CHECK(code_similarity("# first\nx = 1", "x = 2") == 0.8);
  CHECK(code_similarity("a / b // half\n`x`\n", "x") ==
        0);  // no line without a mark is left but ""
  // ababab | aaaaab: difflib takes ab (0 | 4), with nothing of either side left: 2 * 2 / 12 = 33.3;
  // the longest common subsequence is aaab: 2 * 4 / 12 = 66.7
  CHECK(code_similarity("ababab", "aaaaab", kDifflib) == 0.33);
  CHECK(code_similarity("ababab", "aaaaab", kIndel) == 0.67);
  // 2 * 1 / 16 = 12.5 and 2 * 3 / 16 = 37.5 percent: halves go to the even number
  CHECK(edit_ratio_percent("abbbbbbb", "accccccc", kDifflib) == 12);
  CHECK(edit_ratio_percent("aaabbbbb", "aaaccccc", kDifflib) == 38);
  // a line of three blanks is a line: one blank is common, 2 * 1 / 11 = 18.2
  CHECK(code_similarity("   \nreturn x", "return x") == 0.18);
  CHECK(code_similarity("", "x") == 0);
  CHECK(code_similarity("", "") == 1);
  // characters, not bytes: 2 * 1 / 4
  CHECK(code_similarity("变a", "变b") == 0.5);
}

TEST_CASE("first line by hand") {
  CHECK(first_line("\n\nDate\nQuestion: x") == "Date");
  CHECK(first_line("Date") == "Date");
  CHECK(first_line("\n\n").empty());
  CHECK(first_line(" \nDate") == " ");
  for (const Json& row : golden().at("first_line"))
    CHECK(first_line(row[0].get<std::string>()) == row[1].get<std::string>());
}

TEST_CASE("metrics against the programs that LongBench calls") {
  check_pairs("token_f1", token_f1);
  check_pairs("rouge_l", rouge_l);
  check_pairs("count", number_match);
  check_pairs("retrieval", [](const std::string& p, const std::string& r) {
    return retrieval(p, r, "Paragraph ");
  });
  check_pairs("retrieval_zh",
              [](const std::string& p, const std::string& r) { return retrieval(p, r, "段落"); });
  check_pairs("code_difflib", [](const std::string& p, const std::string& r) {
    return code_similarity(p, r, EditRatio::kDifflib);
  });
  check_pairs("code_indel", [](const std::string& p, const std::string& r) {
    return code_similarity(p, r, EditRatio::kIndel);
  });
  REQUIRE(golden().at("classification").size() >= 12);
  for (const Json& row : golden().at("classification")) {
    const auto classes = row[2].get<std::vector<std::string>>();
    INFO(row.dump());
    CHECK_THAT(classification_match(row[0].get<std::string>(), row[1].get<std::string>(), classes),
               near(row[3].get<double>()));
  }
}

TEST_CASE("the two edit ratios are told apart by the golden cases") {
  const Json &difflib = golden().at("code_difflib"), &indel = golden().at("code_indel");
  int differ = 0;
  for (std::size_t i = 0; i < difflib.size(); ++i) differ += difflib[i][2] != indel[i][2];
  CHECK(differ >= 5);
}

TEST_CASE("ROUGE-L of sentences longer than the original's recursion goes") {
  // 4000 words without a full stop, 900 different ones; the last 900 are new in the prediction:
  // common are 900 of its 1800 and of the reference's 900: p = 1/2, r = 1, f = 2/3.
  std::string reference;
  for (int i = 0; i < 4000; ++i) reference += fmt::format("w{} ", i % 900);
  std::string prediction = reference;
  for (int i = 0; i < 900; ++i) prediction += fmt::format("v{} ", i);
  CHECK_THAT(rouge_l(prediction, reference), about(2.0 / 3));
}

TEST_CASE("ROUGE-L refuses sentences that no memory holds") {
  std::string text;
  for (int i = 0; i < 93000; ++i) text += "a ";  // 93,000^2 cells are just above 2^33
  CHECK_THROWS_AS(rouge_l(text, text), Error);
}
