// SPDX-License-Identifier: Apache-2.0
// Tokenizer files that are broken, hostile or of a kind we do not read: one clear message each.
#include "lib/core/error.h"
#include "lib/core/rng.h"
#include "lib/model/split_pattern.h"
#include "tests/tiny_model.h"
#include "tests/tokenizer_data.h"

#include <catch2/catch.hpp>

#include <algorithm>

using namespace million;
using Catch::Matchers::Contains;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size);

namespace {

/// The message with which a changed file is refused.
std::string refusal(const std::string& base, const std::function<void(SortedJson&)>& change) {
  SortedJson file = golden_file(base);
  change(file);
  try {
    const Tokenizer t(read(file.dump()));
    return "";
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kBadInput);
    return e.what();
  }
}

std::string text_refusal(const std::string& file) {
  try {
    const Tokenizer t(read(file));
    return "";
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kBadInput);
    return e.what();
  }
}

}  // namespace

TEST_CASE("kinds of tokenizer.json that we do not read are named") {
  const auto message = [](auto change, const char* text, const char* base = "gpt2") {
    CHECK_THAT(refusal(base, change), Contains(text));
  };
  using J = SortedJson;
  message(
      [](J& f) {
        f["model"]["type"] = "Unigram", f["model"]["vocab"] = J::array({J::array({"a", -1.5})});
      },
      "tokenizer.json: the tokenizer is of type Unigram, supported: BPE");
  message([](J& f) { f["model"]["type"] = "WordPiece"; }, "of type WordPiece");
  message([](J& f) { f.erase("model"); }, "key model is missing");
  message([](J& f) { f["model"]["dropout"] = 0.1; }, "model.dropout is set");
  message([](J& f) { f["model"]["end_of_word_suffix"] = "</w>"; }, "end_of_word_suffix is set");
  message([](J& f) { f["normalizer"] = {{"type", "Lowercase"}}; }, "normalizer Lowercase");
  message([](J& f) { f["pre_tokenizer"] = {{"type", "Whitespace"}}; }, "pre_tokenizer Whitespace");
  message([](J& f) { f["pre_tokenizer"] = nullptr; }, "neither byte level");
  message(
      [](J& f) {
        f["pre_tokenizer"] = golden_file("first")["pre_tokenizer"],
        f["pre_tokenizer"]["split"] = true;
      },
      "Metaspace with split");
  message([](J& f) { f["added_tokens"][0]["single_word"] = true; }, "marked single_word");
  const auto split = [](const char* pattern, const char* behavior) {
    return [=](J& f) {
      f["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {{"Regex", pattern}};
      f["pre_tokenizer"]["pretokenizers"][0]["behavior"] = behavior;
    };
  };
  message(split("a", "MergedWithNext"), "a Split of behavior MergedWithNext", "llama3");
  message(split("(a)\\1", "Isolated"), "uses \\1 at byte 3", "llama3");
  message(split("(a", "Isolated"), "is broken at byte 2", "llama3");
  message(split("\\p{Nonsense}", "Isolated"), "is broken at byte", "llama3");
  message([](J& f) { f["pre_tokenizer"]["pretokenizers"][0]["pattern"] = 3; }, "no pattern",
          "llama3");
}

TEST_CASE("hostile tokenizer.json files are refused") {
  const auto message = [](auto change, const char* text, const char* base = "gpt2") {
    CHECK_THAT(refusal(base, change), Contains(text));
  };
  using J = SortedJson;
  message([](J& f) { f["model"]["vocab"]["zzz"] = 2000000000; }, "token id 2000000000 in a file");
  message([](J& f) { f["model"]["vocab"]["zzz"] = 4000000000u; }, "an id beyond 2^31 at \"zzz\"");
  message([](J& f) { f["model"]["vocab"]["zzz"] = -1; }, "something else than an id");
  message([](J& f) { f["model"]["vocab"]["zzz"] = "1"; }, "something else than an id");
  message([](J& f) { f["model"]["vocab"]["zzz"] = J::array(); }, "model.vocab has a list");
  message([](J& f) { f["model"]["vocab"]["zzz"] = 65; }, "token 65 is");
  message([](J& f) { f["model"]["vocab"][""] = 1000; }, "token 1000 is empty");
  message([](J& f) { f["model"]["merges"].push_back(7); },
          "something else than a text at entry 150");
  message([](J& f) { f["model"]["merges"].push_back({"a"}); }, "fewer than two tokens");
  message([](J& f) { f["model"]["merges"].push_back({"a", "b", "c"}); }, "more than two tokens");
  message([](J& f) { f["model"]["merges"].push_back({"a", "b c"}); }, "one with a space");
  message([](J& f) { f["model"]["merges"].push_back("ab"); }, "expected \"left right\"");
  message([](J& f) { f["model"]["merges"].push_back({"qqq", "zzz"}); }, "is no token");
  message([](J& f) { f["model"]["merges"].push_back(f["model"]["merges"][3]); },
          "merge 150 is the same as merge 3");
  message([](J& f) { f["added_tokens"][0].erase("id"); }, "no valid id");
  message([](J& f) { f["added_tokens"][0]["id"] = -4; }, "no valid id");
  message([](J& f) { f["added_tokens"][0]["id"] = 3; }, "token 3 is");
  message([](J& f) { f["added_tokens"][0]["content"] = "a"; }, "are both \"a\"");
  message([](J& f) { f["added_tokens"][0]["content"] = 1; }, "expected a text");
  message([](J& f) { f["added_tokens"][0]["special"] = "yes"; }, "expected true or false");
  message([](J& f) { f["added_tokens"] = 4; }, "expected a list");
  message([](J& f) { f["added_tokens"][0] = 4; }, "no valid id");
  message([](J& f) { f["model"] = 4; }, "model is missing or no object");
  message([](J& f) { f["post_processor"]["single"][0]["SpecialToken"]["id"] = "<n>"; },
          "puts \"<n>\" first, which is no token", "llama2");

  CHECK_THAT(text_refusal(""), Contains("not JSON at byte"));
  CHECK_THAT(text_refusal("{\"a\": \xFF}"), Contains("not JSON at byte"));
  CHECK_THAT(text_refusal("{\"a\": \"\\ud800\"}"), Contains("not JSON at byte"));
  CHECK_THAT(text_refusal("[1]"), Contains("no object"));
  CHECK_THAT(text_refusal("{\"a\": 1, \"a\": 2}"), Contains("\"a\" stands twice"));
  CHECK_THAT(text_refusal(R"({"model": {"vocab": {}, "vocab": {}}})"), Contains("stands twice"));
  CHECK_THAT(text_refusal(R"({"model": {"type": "BPE", "vocab": {"a": 0, "a": 1}},
                              "pre_tokenizer": {"type": "ByteLevel"}})"),
             Contains("are both \"a\""));
  CHECK_THAT(text_refusal(std::string(100000, '[')), Contains("nested deeper than 64"));
  std::string wide = "{\"a\": [0";
  for (int i = 0; i < 1000000; ++i) wide += ",0";
  CHECK_THAT(text_refusal(wide + "]}"), Contains("more than 1000000 values"));
}

TEST_CASE("hostile GGUF vocabularies of pieces are refused") {
  const std::vector<std::string> tokens{"<unk>", "<s>", "</s>", "a", "<0x41>"};
  const std::vector<int32_t> types{2, 3, 3, 1, 6};
  const auto raw_array = [](uint32_t type, uint64_t n, const std::string& bytes) {
    return le_bytes(type) + le_bytes(n) + bytes;
  };
  const auto vocabulary = [&](const std::vector<std::string>& t, const std::vector<int32_t>& kinds,
                              const std::string& scores) {
    GgufBuilder out;
    out.string("tokenizer.ggml.model", "llama");
    out.strings("tokenizer.ggml.tokens", t);
    if (!kinds.empty()) out.i32s("tokenizer.ggml.token_type", kinds);
    if (!scores.empty()) out.raw("tokenizer.ggml.scores", 9, scores);
    return out;
  };
  const std::string good = raw_array(6, 5, std::string(20, '\0'));
  const auto message = [](const GgufBuilder& b, const char* text) {
    CHECK_THROWS_WITH(Tokenizer(read_gguf(b.finish())), Contains(text));
  };
  CHECK_NOTHROW(Tokenizer(read_gguf(vocabulary(tokens, types, good).finish())));
  message(vocabulary(tokens, types, ""), "tokenizer.ggml.scores is missing");
  message(vocabulary(tokens, {}, good), "tokenizer.ggml.token_type");
  message(vocabulary(tokens, types, raw_array(0, 20, std::string(20, '\0'))),
          "of type u8, expected an array of f32");
  message(vocabulary(tokens, types, raw_array(5, 5, std::string(20, '\0'))), "of type i32");
  message(vocabulary(tokens, types, raw_array(6, 4, std::string(16, '\0'))),
          "4 values for 5 tokens");
  message(vocabulary(tokens, types, raw_array(6, 5, std::string(20, '\xFF'))),
          "score of token 0 is not a number");
  message(vocabulary(tokens, {2, 3, 3, 1}, good), "4 token types for 5 tokens");
  auto with = tokens;
  for (const char* name : {"<0x-1>", "<0x1>", "<0x041>", "<0xG1>", "0x41", "<0x4a>"}) {
    with[4] = name;
    message(vocabulary(with, types, good), "expected the form <0x1F>");
  }
  with[4] = "a";
  message(vocabulary(with, {2, 3, 3, 1, 1}, good), "are both \"a\"");
  GgufBuilder bos = vocabulary(tokens, types, good);
  bos.u32("tokenizer.ggml.bos_token_id", 5);
  message(bos, "bos_token_id is 5, but the vocabulary has 5 tokens");
  GgufBuilder none = vocabulary(tokens, types, good);
  none.u32("tokenizer.ggml.bos_token_id", 0xFFFFFFFF);
  none.boolean("tokenizer.ggml.add_bos_token", true);
  message(none, "there is no bos_token_id");
}

TEST_CASE("expressions are translated or refused") {
  CHECK(translate_pattern("\\d+(?i:x){,3}{2,4}[^\\d\\-]") ==
        "\\p{Nd}+(?i:x){0,3}{2,4}[^\\p{Nd}\\-]");
  CHECK(translate_pattern("a{b}\\u00e9\\x41") == "a\\{b}\\x{00e9}\\x{41}");
  CHECK(quote_pattern("a.b c") == "a\\.b\\ c");
  const std::pair<const char*, const char*> cases[] = {
      {"\\h", "\\h at byte 0"},     {"a\\b", "\\b at byte 1"},
      {"[a[b]]", "a set in a set"}, {"[a&&b]", "an intersection"},
      {"[ab", "without its end"},   {"[]", "an empty set"},
      {"(?i)a", "a kind of group"}, {"(?<n>a)", "a kind of group"},
      {"a{2}+", "a sign behind"},   {"\\p{a b}", "\\p{name}"},
      {"\\pL", "\\p without"},      {"\\u12", "a broken code point"},
      {"a\\", "a backslash"},       {"[\\W]", "\\W in a set"},
      {"(*UCP)a", "a verb"},        {"a(*COMMIT)b", "a verb at byte 1"}};
  for (const auto& [pattern, text] : cases)
    CHECK_THROWS_WITH(translate_pattern(pattern), Contains(text));
  // An expression that would take exponential time ends with a message.
  const std::vector<SplitRule> slow{{"(?:a|a)*[^a]"}};
  const PreTokenizer pre(slow, false);
  CHECK_THROWS_WITH(pre.split(std::string(60, 'a')), Contains("cannot split the text"));
  const std::vector<SplitRule> reset{{"a\\Kb"}};
  CHECK_THROWS_WITH(PreTokenizer(reset, false), Contains("uses \\K"));
}

TEST_CASE("2000 mutations of tokenizer files load or are refused, nothing else") {
  const std::string seeds[] = {golden_file("llama3").dump(), golden_file("llama2").dump(),
                               golden_file("punctuation").dump(), golden_gguf("bytes")};
  const char* words[] = {"null",     "-1",   "4294967296", "\"\"",   "[]",    "{}",   "\\ud800",
                         "\"type\"", "\xFF", "1e999",      "<0x-1>", "\",\"", "[[[[", "true"};
  for (uint64_t i = 0; i < 2000; ++i) {
    Rng rng(i);
    std::string bytes = seeds[i % 4];
    for (uint64_t n = 1 + rng.below(4); n > 0; --n) {
      // The settings stand at both ends, the vocabulary in between.
      const std::size_t span = std::min<std::size_t>(rng.below(2) ? 1500 : 1 << 20, bytes.size());
      const std::size_t at = rng.below(2) ? rng.below(span) : bytes.size() - 1 - rng.below(span);
      const uint64_t kind = rng.below(4);
      if (kind == 0) bytes[at] = static_cast<char>(rng.below(256));
      if (kind == 1) bytes.insert(at, words[rng.below(std::size(words))]);
      if (kind == 2) bytes.erase(at, 1 + rng.below(30));
      if (kind == 3) bytes.insert(at, bytes.substr(rng.below(bytes.size()), rng.below(40)));
    }
    if (rng.below(20) == 0) bytes.resize(rng.below(bytes.size()));
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  }
  SUCCEED("no crash");
}

namespace {

/// A value somewhere in the tree: a random way down that may end early.
SortedJson& random_node(SortedJson& tree, Rng& rng) {
  SortedJson* at = &tree;
  while (at->is_structured() && !at->empty() && (at == &tree || rng.below(6) != 0)) {
    auto child = at->begin();
    std::advance(child, static_cast<std::ptrdiff_t>(rng.below(at->size())));
    at = &*child;
  }
  return *at;
}

}  // namespace

TEST_CASE("1000 changes of values in tokenizer.json load or are refused, nothing else") {
  const SortedJson seeds[] = {golden_file("llama3"), golden_file("mistral3"),
                              golden_file("punctuation"), golden_file("trimmed")};
  const SortedJson values[] = {nullptr,
                               true,
                               -1,
                               0,
                               5,
                               1e300,
                               INT32_MAX,
                               UINT64_MAX,
                               "",
                               "<0x-1>",
                               "x",
                               "[(",
                               "\\",
                               " ",
                               "\u2581",
                               SortedJson::array(),
                               SortedJson::object(),
                               SortedJson::array({1, 2, 3})};
  std::size_t loaded = 0;
  for (uint64_t i = 0; i < 1000; ++i) {
    Rng rng(i);
    SortedJson file = seeds[i % 4];
    for (uint64_t n = 1 + rng.below(3); n > 0; --n) {
      const SortedJson other = random_node(file, rng);
      random_node(file, rng) = rng.below(3) ? values[rng.below(std::size(values))] : other;
    }
    const std::string bytes = file.dump();
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
    loaded += text_refusal(bytes).empty();
  }
  CHECK(loaded > 100);  // changes that reach beyond the reader
  CHECK(loaded < 900);
}
