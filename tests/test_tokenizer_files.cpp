// SPDX-License-Identifier: Apache-2.0
// Tokenizers from files: ids equal to those of the reference libraries for every kind of
// tokenizer.json and GGUF vocabulary we read, both directions; chats; time.
#include "lib/core/error.h"
#include "lib/core/rng.h"
#include "lib/model/chat.h"
#include "lib/model/nfc.h"
#include "lib/model/split_pattern.h"
#include "tests/tokenizer_data.h"

#include <catch2/catch.hpp>

using namespace million;
using Catch::Matchers::Contains;

namespace {

using Ids = std::vector<int32_t>;

Ids ids_of(const SortedJson& c, const char* key) { return c[c.contains(key) ? key : "ids"]; }

/// Ids as the model sees them: what the tokenizer puts first is the caller's to add.
Ids with_bos(const Tokenizer& t, const std::string& text) {
  Ids ids = t.encode(text, true);
  if (t.add_bos()) ids.insert(ids.begin(), t.bos());
  return ids;
}

void check_cases(const std::string& name) {
  const Tokenizer t(read(golden_file(name).dump()));
  const SortedJson& texts = golden()["texts"];
  const SortedJson& cases = golden()["files"][name]["cases"];
  REQUIRE(cases.size() == texts.size());
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const auto text = texts[i].get<std::string>();
    CAPTURE(name, i, text);
    const SortedJson& c = cases[i];
    CHECK(t.encode(text, true) == ids_of(c, "ids"));
    CHECK(t.encode(text, false) == ids_of(c, "plain"));
    CHECK(with_bos(t, text) == ids_of(c, "with_bos"));
    CHECK(t.decode(ids_of(c, "ids"), true) == c.value("decoded", text));
  }
}

std::string random_bytes(uint64_t seed, std::size_t n) {
  Rng rng(seed);
  std::string text;
  for (std::size_t i = 0; i < n; ++i) text.push_back(static_cast<char>(rng.below(256)));
  return text;
}

}  // namespace

TEST_CASE("ids of every kind of tokenizer.json equal the reference, and decode to its text") {
  std::size_t n = 0;
  for (const auto& [name, entry] : golden()["files"].items()) {
    check_cases(name);
    n += entry["cases"].size();
  }
  CHECK(n >= 18 * 60);
}

TEST_CASE("ids of a GGUF vocabulary of pieces equal SentencePiece's") {
  const SortedJson& texts = golden()["texts"];
  for (const char* name : {"bytes", "unknown"}) {
    const Tokenizer t(read_gguf(golden_gguf(name)));
    CHECK(t.add_bos());
    CHECK(t.bos() == 1);
    CHECK(t.is_end(2));
    const SortedJson& cases = golden()["pieces"][name]["cases"];
    REQUIRE(cases.size() == texts.size());
    for (std::size_t i = 0; i < texts.size(); ++i) {
      const auto text = texts[i].get<std::string>();
      CAPTURE(name, i, text);
      CHECK(t.encode(text) == ids_of(cases[i], "ids"));
      if (name == std::string("bytes"))
        CHECK(t.decode(t.encode(text)) == cases[i].value("decoded", text));
    }
  }
}

TEST_CASE("merges may be pairs or texts") {
  SortedJson file = golden_file("llama2");
  REQUIRE(file["model"]["merges"][0].is_array());
  const Ids ids = Tokenizer(read(file.dump())).encode("The quick brown fox");
  for (SortedJson& merge : file["model"]["merges"])
    merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  CHECK(Tokenizer(read(file.dump())).encode("The quick brown fox") == ids);
}

TEST_CASE("any bytes come back from a vocabulary with byte tokens") {
  const Tokenizer tokenizers[] = {
      Tokenizer(read_gguf(golden_gguf("bytes"))), Tokenizer(read(golden_file("llama2").dump())),
      Tokenizer(read(golden_file("gemma").dump())), Tokenizer(read(golden_file("llama3").dump()))};
  for (const Tokenizer& t : tokenizers) {
    for (uint64_t seed = 0; seed < 30; ++seed) {
      const std::string text = random_bytes(seed, 1 + 37 * seed);
      CHECK(t.decode(t.encode(text)) == text);
    }
    const std::string mixed = "caf\xC3\xA9 \xC3(\xED\xA0\x80) \xF0\x9F\x98 end";
    CHECK(t.decode(t.encode(mixed)) == mixed);
  }
  const Ids ids = tokenizers[0].encode("\xFF");
  REQUIRE(ids.size() == 2);  // the space in front, the byte
  CHECK(ids[1] == tokenizers[0].find("<0xFF>"));
}

TEST_CASE("expressions cut a text as the reference does") {
  const auto text = golden()["splits"]["text"].get<std::string>();
  for (const SortedJson& cut : golden()["splits"]["cuts"]) {
    CAPTURE(cut[0].get<std::string>());
    const std::vector<SplitRule> rules{{translate_pattern(cut[0].get<std::string>())}};
    std::vector<std::size_t> lengths;
    for (const auto part : PreTokenizer(rules, false).split(text)) lengths.push_back(part.size());
    CHECK(lengths == cut[1].get<std::vector<std::size_t>>());
  }
}

TEST_CASE("where a text begins decides on the space in front") {
  const Tokenizer each(read(golden_file("llama2").dump()));
  const Tokenizer first(read(golden_file("first").dump()));
  const auto begins_with_space = [](const Tokenizer& t, TextStart start) {
    return t.decode(t.encode("x", false, start), false, TextStart::kContinued) == " x";
  };
  CHECK(begins_with_space(each, TextStart::kText));
  CHECK(begins_with_space(each, TextStart::kAfterSpecial));
  CHECK_FALSE(begins_with_space(each, TextStart::kContinued));
  CHECK(begins_with_space(first, TextStart::kText));
  CHECK_FALSE(begins_with_space(first, TextStart::kAfterSpecial));
  CHECK_FALSE(begins_with_space(first, TextStart::kContinued));
  // A stream of single tokens keeps its spaces.
  std::string streamed;
  for (const int32_t id : each.encode("to be or"))
    streamed += each.decode(std::span(&id, 1), false, TextStart::kContinued);
  CHECK(streamed == " to be or");
}

TEST_CASE("composition equals Unicode's") {
  for (const SortedJson& pair : golden()["nfc"]) {
    CAPTURE(pair[0].get<std::string>());
    CHECK(to_nfc(pair[0].get<std::string>()) == pair[1].get<std::string>());
  }
  CHECK(to_nfc("e\xCC\x81") == "\xC3\xA9");
  CHECK(to_nfc("e\xFF\xCC\x81\xCC") == "e\xFF\xCC\x81\xCC");  // not across a byte that is no text
  std::string marks = "e";
  for (int i = 0; i < 200000; ++i) marks += i % 2 ? "\xCC\x81" : "\xCC\xA3";
  CHECK(seconds([&] { CHECK(to_nfc(marks).size() > 300000); }) < 5);
}

TEST_CASE("what begins and ends a text is taken from all files that say so") {
  const std::string llama3 = golden_file("llama3").dump(), gpt2 = golden_file("gpt2").dump();
  const Tokenizer by_template(read(llama3));
  CHECK(by_template.add_bos());
  CHECK(by_template.bos() == by_template.find("<|begin_of_text|>"));
  CHECK(by_template.is_end(by_template.find("<|eot_id|>")));
  CHECK_FALSE(Tokenizer(read(llama3, R"({"add_bos_token": false})")).add_bos());

  const Tokenizer by_config(read(gpt2, R"({"bos_token": {"content": "<|endoftext|>"},
                                           "eos_token": "<|endoftext|>"})"));
  CHECK_FALSE(by_config.add_bos());
  CHECK(by_config.bos() == by_config.find("<|endoftext|>"));
  CHECK(by_config.eos() == by_config.bos());
  CHECK_THROWS_WITH(read(gpt2, R"({"add_bos_token": true})"), Contains("no token begins a text"));
  CHECK_THROWS_WITH(read(gpt2, R"({"bos_token": 5})"), Contains("expected a text"));
  CHECK_THROWS_WITH(read(gpt2, "[]"), Contains("tokenizer_config.json: holds JSON array"));

  const Scratch folder;
  write(folder / "tokenizer.json", gpt2);
  write(folder / "config.json", R"({"bos_token_id": 3, "eos_token_id": [7, 8]})");
  const Tokenizer by_model(read_hf_tokenizer(folder.path(), nullptr));
  CHECK(by_model.bos() == 3);
  CHECK(by_model.is_end(7));
  CHECK(by_model.is_end(8));
  write(folder / "config.json", R"({"eos_token_id": 100000})");
  CHECK_THROWS_WITH(read_hf_tokenizer(folder.path(), nullptr),
                    Contains("eos_token_id is 100000, but the vocabulary has"));
  CHECK_THROWS_WITH(read_hf_tokenizer(folder / "none", nullptr), Contains("no tokenizer.json"));
}

TEST_CASE("the chat template is a field, a named one, or a file of its own") {
  const std::string file = golden_file("gpt2").dump();
  std::string text = "old";
  read(file, "{}", &text);
  CHECK(text.empty());
  read(file, R"({"chat_template": "A"})", &text);
  CHECK(text == "A");
  read(file, R"({"chat_template": [{"name": "tools", "template": "T"},
                                   {"name": "default", "template": "D"}]})",
       &text);
  CHECK(text == "D");
  const Scratch folder;
  write(folder / "tokenizer.json", file);
  write(folder / "tokenizer_config.json", R"({"chat_template": "A"})");
  write(folder / "chat_template.jinja", "J");
  read_hf_tokenizer(folder.path(), &text);
  CHECK(text == "J");
}

TEST_CASE("chats equal the rendered templates") {
  for (const SortedJson& c : golden()["chats"]) {
    const auto file = c["file"].get<std::string>(), text = c["text"].get<std::string>();
    const bool llama3 = file == "llama3";
    const Tokenizer t(read(golden_file(file).dump(), llama3 ? "{}" : R"({"eos_token": "</s>"})"));
    std::vector<ChatMessage> messages;
    for (const SortedJson& m : c["messages"])
      messages.push_back({m["role"].get<std::string>(), m["content"].get<std::string>()});
    const ChatFormat format = detect_chat_format(c["template"].get<std::string>());
    Ids expected = ids_of(c, "ids");
    // Zephyr's template has no beginning of the sequence; the tokenizer adds it.
    if (format.style == ChatFormat::Style::kZephyr) expected.insert(expected.begin(), t.bos());
    CAPTURE(file, text);
    CHECK(encode_chat(t, format, messages) == expected);
  }
}

TEST_CASE("a vocabulary grows to the rows of the embedding") {
  TokenizerData data = read(golden_file("llama3").dump());
  const std::size_t n = data.tokens.size();
  pad_vocabulary(data, n + 100, "x");
  CHECK_THROWS_WITH(pad_vocabulary(data, n, "m/config.json"),
                    Contains("m/config.json: the tokenizer has") && Contains("different models"));
  const Tokenizer t(std::move(data));
  CHECK(t.n_vocab() == static_cast<int32_t>(n) + 100);
  CHECK(t.decode(Ids{static_cast<int32_t>(n) + 5}).empty());
}

TEST_CASE("megabytes are encoded in linear time") {
  const Tokenizer t(read_gguf(golden_gguf("bytes")));
  for (const char* unit : {"The quick brown fox. ", " ", "a", "\xE4\xB8\xAD", "\n"}) {
    CAPTURE(unit);
    std::string text;
    while (text.size() < (2 << 20)) text += unit;
    const auto run = [&](std::size_t n) {
      const std::string part = text.substr(0, n);
      return seconds([&] { CHECK(t.decode(t.encode(part)) == part); });
    };
    const double part = run(text.size() / 8), all = run(text.size());
    // Linear is 8; quadratic is 64. The heap's logarithm, caches and a busy machine lie between.
    CHECK(all < 30 * part + 0.5);
  }
}

TEST_CASE("a tokenizer.json of 20 MB is read in a second or two") {
  // As many tokens and merges as the largest vocabularies in use have.
  constexpr int kStems = 125000;
  const std::string tail = "_with_a_very_long_tail_of_letters";
  std::string vocab = "\"" + tail + "\": 0", merges;
  for (int i = 0; i < kStems; ++i) {
    const std::string stem = "stem" + std::to_string(i);
    vocab += ",\n      \"" + stem + "\": " + std::to_string(2 * i + 1);
    vocab += ",\n      \"" + stem + tail + "\": " + std::to_string(2 * i + 2);
    merges += (i > 0 ? ",\n      [\n        \"" : "[\n        \"") + stem + "\",\n        \"" +
              tail + "\"\n      ]";
  }
  const std::string text = R"({"model": {"type": "BPE", "vocab": {)" + vocab + "}, \"merges\": [" +
                           merges + R"(]}, "pre_tokenizer": {"type": "ByteLevel"}})";
  CHECK(text.size() > 20'000'000);
  const double took = seconds([&] { CHECK(Tokenizer(read(text)).n_vocab() == 2 * kStems + 1); });
  INFO(took << " s");
  CHECK(took < 10);
}
