// SPDX-License-Identifier: Apache-2.0
// LongBench the whole way on small files of our own (tests/data/longbench): file, prompt, cut in
// the middle, score; prompts equal to the published ones; and what a damaged file does.
#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/core/json.h"
#include "lib/core/rng.h"
#include "lib/eval/longbench.h"
#include "lib/eval/longbench_reader.h"
#include "lib/eval/longbench_sets.h"
#include "lib/eval/task.h"
#include "lib/eval/unicode_text.h"
#include "tests/scratch.h"
#include "tests/tiny_model.h"

#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>
#include <catch2/catch.hpp>

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>

using namespace million;

namespace {

const std::filesystem::path kData = MILLION_TEST_DIR "/data/longbench";

const Tokenizer& tokenizer() {
  static const Tokenizer t{tiny_vocabulary()};
  return t;
}

TaskPlan plan_of(const std::filesystem::path& data, int length = 1 << 20) {
  TaskPlan plan;
  plan.length = length;
  plan.samples = 0;
  plan.data = data;
  plan.tokenizer = &tokenizer();
  return plan;
}

const TaskInfo& task(const std::string& name) {
  for (const TaskInfo& t : longbench_tasks())
    if (t.name == "longbench:" + name) return t;
  throw std::out_of_range(name);
}

std::vector<TaskSample> make(const std::string& name, const TaskPlan& plan) {
  return task(name).make(task(name), plan);
}

double score(const std::string& name, std::string_view prediction, const TaskSample& sample) {
  return task(name).score(task(name), prediction, sample);
}

/// The error of making the task's samples; "" when there is none.
std::string error_of(const std::string& name, const TaskPlan& plan,
                     ErrorCode code = ErrorCode::kBadInput) {
  try {
    make(name, plan);
  } catch (const Error& e) {
    CHECK(e.code() == code);
    CHECK(std::string(e.what()).find('\n') == std::string::npos);
    return e.what();
  }
  return "";
}

bool has(const std::string& text, const std::string& part) {
  INFO(text);
  const bool found = text.find(part) != std::string::npos;
  CHECK(found);
  return found;
}

void put(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

std::string line_of(const std::string& answers, const std::string& more = "") {
  return R"({"input": "q", "context": "c", "answers": )" + answers + more + "}";
}

/// Warnings of a piece of code, which are otherwise silent in this program.
template <class Run>
std::string warnings(Run run) {
  std::ostringstream out;
  const auto before = spdlog::default_logger();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>(
      "test", std::make_shared<spdlog::sinks::ostream_sink_st>(out)));
  run();
  spdlog::set_default_logger(before);
  return out.str();
}

}  // namespace

TEST_CASE("21 data sets and 13 with even lengths, prompts and answer lengths as published") {
  CHECK(longbench_sets().size() == 21);
  CHECK(longbench_tasks().size() == 34);
  std::set<std::string> names;
  for (const TaskInfo& t : longbench_tasks()) {
    names.insert(t.name);
    CHECK(t.from_file);
    CHECK_FALSE(t.binary);
    CHECK_FALSE(t.summary.empty());
    CHECK(t.source.find("2308.14508") != std::string::npos);
  }
  CHECK(names.size() == 34);
  const Json published =
      Json::parse(read_file(MILLION_TEST_DIR "/golden/longbench.json")).at("published");
  CHECK(published.size() == 21);
  const std::set<std::string_view> bare = {"trec", "triviaqa", "samsum",
                                           "lsht", "lcc",      "repobench-p"};
  const std::set<std::string_view> lines = {"trec", "triviaqa", "samsum", "lsht"};
  for (const LongBenchSet& set : longbench_sets()) {
    INFO(set.name);
    const Json& row = published.at(std::string(set.name));
    CHECK(sha256_of(set.prompt) == row[0].get<std::string>());
    CHECK(set.max_new_tokens == row[1].get<int>());
    CHECK(set.chat == (bare.count(set.name) == 0));
    CHECK(set.first_line == (lines.count(set.name) == 1));
  }
}

TEST_CASE("question answering the whole way") {
  const auto samples = make("qasper", plan_of(kData));
  REQUIRE(samples.size() == 3);
  const TaskSample& first = samples[0];
  CHECK(first.prompt.rfind("You are given a scientific article and a question. ", 0) == 0);
  CHECK(first.prompt.find("\n\nArticle: Section 1. The tower clock of Lindau") !=
        std::string::npos);
  const std::string end = "\n\nQuestion: Which colour has the northern face?\n\nAnswer:";
  CHECK(first.prompt.substr(first.prompt.size() - end.size()) == end);
  CHECK(first.references == std::vector<std::string>{"green", "painted green"});
  CHECK(first.max_new_tokens == 128);
  CHECK(first.chat);
  CHECK(first.facts["id"] == "own-qasper-0");
  CHECK(first.facts["index"] == 0);
  CHECK(first.facts["truncated"] == false);
  CHECK(first.facts["tokens"] == plan_of(kData).count(first.prompt));
  // "It was green": it was green | green: p = 1/3, r = 1: 1/2; | painted green: p = 1/3, r = 1/2:
  // 2/5. The better one counts.
  CHECK(score("qasper", "It was green", first) == Approx(0.5));
  CHECK(score("qasper", "Painted green.", first) == 1);
  CHECK(score("qasper", "white", first) == 0);
  // Bytes of half a character at the end of an answer are one word of their own: p = 1/2, r = 1.
  CHECK(score("qasper", "green \xe4\xb8", first) == Approx(2.0 / 3));
  // Not a task of the first-line rule: later lines count. green is 1 of 2 words.
  CHECK(score("qasper", "white\ngreen", first) == Approx(2.0 / 3));

  TaskPlan two = plan_of(kData);
  two.samples = 2;
  CHECK(make("qasper", two).size() == 2);
  CHECK(make("qasper_e", plan_of(kData)).at(0).references.at(0) == "four");
}

TEST_CASE("summaries, classes, numbers and code the whole way") {
  const TaskPlan plan = plan_of(kData);
  const TaskSample report = make("gov_report", plan).at(0);
  CHECK(report.prompt.find("Report:\nThe bridge office") != std::string::npos);
  CHECK(score("gov_report", report.references[0], report) == Approx(1).margin(1e-7));
  // One sentence {Six of 40 bridges are closed} of the reference's two (12 words, all different):
  // p = 1, r = 6/12, f = 1 / 1.5
  CHECK(score("gov_report", "Six of 40 bridges are closed.", report) == Approx(2.0 / 3));

  const auto questions = make("trec", plan);
  REQUIRE(questions.size() == 2);
  CHECK_FALSE(questions[0].chat);
  CHECK(questions[0].classes.size() == 4);
  // The next example that a model goes on with does not count.
  CHECK(score("trec", "\n Colour\nQuestion: x\nType: Date", questions[0]) == 1);
  CHECK(score("trec", "Colour or Date", questions[0]) == 0.5);
  CHECK(score("trec", "none\nColour", questions[0]) == 0);
  CHECK(score("trec", "Other number", questions[1]) == 1);

  const TaskSample dialogue = make("samsum", plan).at(0);
  CHECK(score("samsum", "Ben takes the train at noon.\nDialogue: Ann: No.", dialogue) ==
        Approx(1).margin(1e-7));
  const TaskSample news = make("lsht", plan).at(0);
  CHECK(news.prompt.rfind("请判断给定新闻的类别", 0) == 0);
  CHECK(score("lsht", "农业", news) == 1);
  CHECK(score("lsht", "农业、体育", news) == 0.5);

  const TaskSample count = make("passage_count", plan).at(0);
  CHECK(count.prompt.substr(count.prompt.size() - 21) == "The final answer is: ");
  CHECK(score("passage_count", "2", count) == 1);
  CHECK(score("passage_count", "2 of 3", count) == 0.5);
  const TaskSample english = make("passage_retrieval_en", plan).at(0);
  CHECK(score("passage_retrieval_en", "Paragraph 2", english) == 1);
  CHECK(score("passage_retrieval_en", "Paragraph 2 or 3", english) == 0.5);
  const TaskSample chinese = make("passage_retrieval_zh", plan).at(0);
  CHECK(score("passage_retrieval_zh", "段落2", chinese) == 1);

  const TaskSample code = make("lcc", plan).at(0);
  CHECK(code.prompt ==
        "Please complete the code given below. \ndef area(w, h):\n    size = w * h\n"
        "Next line of code:\n");
  CHECK(score("lcc", "    return size\nprint(1)", code) == 1);
  CHECK(score("lcc", "# the size\n    return size", code) == 1);
  // "    return sum" of 14, "    return size" of 15: common "    return s" of 12: 24/29 = 82.8
  CHECK(score("lcc", "    return sum", code) == Approx(0.83));
  const TaskSample repository = make("repobench-p", plan).at(0);
  CHECK(repository.prompt.find("return w; } }\nclass Use {\n") != std::string::npos);
}

TEST_CASE("a long prompt loses its middle: first half and last half of the tokens") {
  const TaskPlan whole = plan_of(kData);
  const std::string prompt = make("qasper", whole)[0].prompt;
  const std::vector<int32_t> ids = tokenizer().encode(prompt);
  // 128 to generate and 64 around: 300 tokens for the prompt, so 150 of each end.
  const auto cut = make("qasper", plan_of(kData, 300 + 128 + 64))[0];
  REQUIRE(ids.size() > 300);
  const std::span<const int32_t> all(ids);
  CHECK(cut.prompt == tokenizer().decode(all.first(150)) + tokenizer().decode(all.last(150)));
  CHECK(cut.facts["truncated"] == true);
  CHECK(cut.facts["tokens_before"] == ids.size());
  CHECK(cut.facts["tokens"] == whole.count(cut.prompt));
  CHECK(cut.prompt.substr(0, 30) == prompt.substr(0, 30));
  CHECK(cut.prompt.substr(cut.prompt.size() - 40) == prompt.substr(prompt.size() - 40));

  // As long as the prompt: untouched. One token less: cut.
  const int n = static_cast<int>(ids.size());
  CHECK(make("qasper", plan_of(kData, n + 128 + 64))[0].prompt == prompt);
  CHECK(make("qasper", plan_of(kData, n - 1 + 128 + 64))[0].facts["truncated"] == true);
  has(error_of("qasper", plan_of(kData, 200), ErrorCode::kUsage),
      "200 tokens leave 8 for the prompt (128 are generated, 64 stand around it)");
}

TEST_CASE("a cut through a character leaves replacement characters and fits the limit") {
  // Three bytes and tokens each; the cut after 4 and before the last 4 tokens halves characters.
  const std::string text = "煤煤煤煤煤煤";
  REQUIRE(tokenizer().encode(text).size() == 18);
  // Both halves hold one whole character; the broken ones are one U+FFFD (煤's first byte alone)
  // and one (its last byte alone): each 3 tokens again, so 12, above 8. Then 3 of each end.
  const CutPrompt cut = cut_middle(tokenizer(), text, 8);
  CHECK(cut.text == "煤煤");
  CHECK(cut.tokens == 6);
  CHECK(cut.tokens_before == 18);
  // 5 tokens of each end: one whole and two bytes: 煤 + U+FFFD | U+FFFD U+FFFD + 煤: 15 tokens,
  // again too many for 10; then 3 of each end.
  CHECK(cut_middle(tokenizer(), text, 10).text == "煤煤");
  for (int limit = 6; limit < 20; ++limit) {
    const CutPrompt c = cut_middle(tokenizer(), text, limit);
    CHECK(c.tokens <= limit);
    CHECK(c.truncated == (limit < 18));
    CHECK(valid_utf8(c.text) == c.text);
  }
}

TEST_CASE("Chinese words are not approximated") {
  for (const char* name : {"multifieldqa_zh", "dureader", "vcsum"}) {
    has(error_of(name, plan_of(kData), ErrorCode::kUsage), "jieba");
    CHECK_THROWS_AS(score(name, "x", TaskSample{}), Error);
    CHECK(task(name).metric.find("not available") != std::string::npos);
  }
}

TEST_CASE("prompts and answer lengths of the data folder go first") {
  const Scratch folder;
  std::filesystem::create_directories(folder / "data");
  std::filesystem::create_directories(folder / "config");
  put(folder / "data/qasper.jsonl", line_of(R"(["a"])") + "\n");
  CHECK(make("qasper", plan_of(folder.path()))[0].max_new_tokens == 128);
  CHECK(longbench_files(task("qasper"), folder.path()).size() == 1);
  CHECK(longbench_files(task("trec"), folder.path()).empty());
  put(folder / "config/dataset2prompt.json", R"({"qasper": "{{{input}}} of {context}."})");
  put(folder / "config/dataset2maxlen.json", R"({"qasper": 7, "trec": "x"})");
  const auto sample = make("qasper", plan_of(folder.path()))[0];
  CHECK(sample.prompt == "{q} of c.");
  CHECK(sample.max_new_tokens == 7);
  const std::vector<std::filesystem::path> files = {folder / "data/qasper.jsonl",
                                                    folder / "config/dataset2prompt.json",
                                                    folder / "config/dataset2maxlen.json"};
  CHECK(longbench_files(task("qasper"), folder.path()) == files);

  const auto refused = [&](const char* file, const char* text) {
    put(folder / file, text);
    return error_of("qasper", plan_of(folder.path()));
  };
  // Line ends quoted twice, as lm-evaluation-harness had them for months.
  has(refused("config/dataset2prompt.json", R"({"qasper": "{context}\\n\\n{input}"})"),
      "a backslash and an n");
  has(refused("config/dataset2prompt.json", R"({"qasper": "{answers}"})"), "brace at byte 1");
  has(refused("config/dataset2prompt.json", R"({"qasper": 1})"), "not a prompt");
  has(refused("config/dataset2prompt.json", R"({"qasper")"), "no valid JSON");
  has(refused("config/dataset2prompt.json", "[]"), "expected an object");
  put(folder / "config/dataset2prompt.json", "{}");  // nothing of this set: the table's
  for (const char* bad : {"0", "-1", "1.5", "\"9\"", "1e9", "99999999999999999999"})
    has(refused("config/dataset2maxlen.json", fmt::format("{{\"qasper\": {}}}", bad).c_str()),
        "not a number of tokens");
}

TEST_CASE("a missing file is named, with the way to get it") {
  const Scratch folder;
  const std::string text = error_of("trec", plan_of(folder.path()));
  has(text, (folder / "trec.jsonl").string());
  has(text, (folder / "data/trec.jsonl").string());
  has(text, "THUDM/LongBench");
  has(error_of("trec", plan_of(""), ErrorCode::kUsage), "--data FOLDER");
  std::filesystem::create_directories(folder / "trec.jsonl");
  has(error_of("trec", plan_of(folder.path())), "cannot read");
}

TEST_CASE("broken lines are named by file, line and byte") {
  const Scratch folder;
  const auto refused = [&](const std::string& line) {
    put(folder / "qasper.jsonl", line_of(R"(["a"])") + "\n\n" + line);
    const std::string text = error_of("qasper", plan_of(folder.path()));
    has(text, "qasper.jsonl:3: ");
    has(text, "--skip-bad-lines");
    return text;
  };
  has(refused(R"({"input": "q", )"), "no valid JSON from byte 1");
  has(refused("[1]"), "a JSON array");
  has(refused("{}"), "\"input\" is missing");
  has(refused(R"({"input": 1, "context": "c", "answers": ["a"]})"), "\"input\" is a number");
  has(refused(R"({"input": "q", "answers": ["a"]})"), "\"context\" is missing");
  has(refused(R"({"input": "q", "context": "c"})"), "\"answers\" is missing");
  has(refused(line_of("[]")), "no text");
  has(refused(line_of(R"(["", " \n"])")), "no text");
  has(refused(line_of("\"a\"")), "not a list");
  has(refused(line_of("[7]")), "answers[0] is a number");
  has(refused(line_of(R"(["a"])", R"(, "all_classes": 3)")), "not a list");
  has(refused(line_of(R"(["\ud800"])")), "no valid JSON");
  has(refused(R"({"length": 1e999})"), "number overflow");
  // The whole line before this one and a newline twice come before: offset of the file.
  const std::string bytes = refused(line_of("[\"caf\xe9\"]"));
  has(bytes, "byte 48 of the line");
  has(bytes, fmt::format("offset {} of the file", 47 + line_of(R"(["a"])").size() + 2));
  const std::string deep = std::string(100000, '[') + std::string(100000, ']');
  has(refused(line_of(R"(["a"])", ", \"x\": " + deep)), "more than 16 brackets");
}

TEST_CASE("brackets in texts are no nesting") {
  const std::string text = "[[[[[[[[[[[[[[[[[[[[ \\\" {{{{{{{{{{{{{{{{{{{{ \\\\";
  const LongBenchRecord record = parse_longbench_line(
      R"({"input": ")" + text + R"(", "context": "c", "answers": ["a"]})", "x:1");
  CHECK(record.input == "[[[[[[[[[[[[[[[[[[[[ \" {{{{{{{{{{{{{{{{{{{{ \\");
}

TEST_CASE("records that the metric cannot score are refused") {
  const Scratch folder;
  put(folder / "passage_retrieval_en.jsonl", line_of(R"(["Para 3"])"));
  has(error_of("passage_retrieval_en", plan_of(folder.path())),
      "the answer \"Para 3\" names no paragraph");
  put(folder / "trec.jsonl", line_of(R"(["a"])", R"(, "all_classes": null)"));
  has(error_of("trec", plan_of(folder.path())), "trec.jsonl:1: trec is a classification task");
}

TEST_CASE("broken lines are skipped with a flag and one warning") {
  const Scratch folder;
  std::string bytes = "\xef\xbb\xbf" + line_of(R"(["one"])", R"(, "dataset": "trec")") + "\r\n";
  bytes += "{broken\n" + line_of("[]") + "\n" + line_of("[\"\xff\"]") + "\n";
  bytes += line_of(R"(["two"])", R"(, "_id": 17, "length": 4)");
  put(folder / "qasper.jsonl", bytes);
  warnings([&] { has(error_of("qasper", plan_of(folder.path())), "qasper.jsonl:2: "); });
  TaskPlan plan = plan_of(folder.path());
  plan.skip_bad_lines = true;
  std::vector<TaskSample> samples;
  const std::string said = warnings([&] { samples = make("qasper", plan); });
  REQUIRE(samples.size() == 2);
  CHECK(samples[1].references[0] == "two");
  CHECK(samples[1].facts["id"] == "17");
  CHECK(samples[1].facts["line"] == 5);
  CHECK(samples[1].facts["index"] == 1);
  CHECK(samples[1].facts["data_length"] == 4);
  has(said, "3 broken lines skipped; the first: ");
  has(said, "qasper.jsonl:2: ");
  has(said, "says data set \"trec\"");
  CHECK(std::count(said.begin(), said.end(), '\n') == 2);

  put(folder / "qasper.jsonl", "{broken\n");
  const std::string none = warnings([&] { has(error_of("qasper", plan), "no usable record"); });
  has(none, "1 broken line skipped");
  put(folder / "qasper.jsonl", "");
  has(error_of("qasper", plan_of(folder.path())), "no usable record");
}

TEST_CASE("a line without end is refused before it fills the memory") {
  const Scratch folder;
  {
    std::ofstream out(folder / "qasper.jsonl", std::ios::binary);
    const std::string block(1 << 20, 'x');
    for (uint64_t i = 0; i <= LongBenchReader::kMaxLineBytes >> 20; ++i) out << block;
    out << "\n" << line_of(R"(["a"])") << "\n";
  }
  has(error_of("qasper", plan_of(folder.path())), "qasper.jsonl:1: longer than 64 MiB");
  TaskPlan plan = plan_of(folder.path());
  plan.skip_bad_lines = true;
  warnings([&] { CHECK(make("qasper", plan).size() == 1); });
}

TEST_CASE("a line cut at any byte is an error or a record, never a crash") {
  const std::string line = read_file(kData / "trec.jsonl");
  const std::string whole = line.substr(0, line.find('\n'));
  for (std::size_t n = 0; n < whole.size(); ++n)
    CHECK_THROWS_AS(parse_longbench_line(whole.substr(0, n), "x:1"), Error);
  CHECK(parse_longbench_line(whole, "x:1").classes.size() == 4);
  Rng rng(5);
  for (int i = 0; i < 3000; ++i) {
    std::string bytes = whole;
    for (int k = 0; k < 3; ++k) bytes[rng.below(bytes.size())] = static_cast<char>(rng.below(256));
    try {
      parse_longbench_line(bytes, "x:1");
    } catch (const Error& e) {
      CHECK(e.code() == ErrorCode::kBadInput);
    }
  }
}
