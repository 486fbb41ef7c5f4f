// SPDX-License-Identifier: Apache-2.0
// safetensors reader and model folders: a file of the format's own library, every hole that readers
// are known to have had (header length, duplicate keys, overlaps, holes, sizes that wrap, unknown
// types), shards, mutations, and where folders are found.
#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/core/json.h"
#include "lib/core/rng.h"
#include "lib/model/model.h"
#include "lib/model/model_files.h"
#include "lib/model/safetensors.h"
#include "tests/family_model.h"
#include "tests/scratch.h"
#include "tests/tiny_model.h"

#include <catch2/catch.hpp>

#include <cstdlib>
#include <cstring>
#include <functional>

using namespace million;
using Catch::Matchers::Contains;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size);

namespace {

/// The message with which the reader refuses the bytes; "" when it takes them.
std::string refusal(const std::string& bytes) {
  try {
    SafetensorsFile::from_memory(bytes, "test.safetensors");
    return "";
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kBadInput);
    CHECK(std::string(e.what()).find('\n') == std::string::npos);
    return e.what();
  }
}

std::string header_refusal(const std::string& header, size_t n_data = 16) {
  return refusal(SafetensorsBuilder::file(header, std::string(n_data, 'x')));
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& range) {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":[)" + shape +
         R"(],"data_offsets":[)" + range + "]}";
}

const Json& golden() {
  static const Json json = Json::parse(read_file(MILLION_TEST_DIR "/golden/families.json"));
  return json;
}

Json llama_config() { return golden()["cases"]["llama-3"]["config"]; }

std::string decode_base64(const std::string& text) {
  const std::string digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  unsigned bits = 0, n = 0;
  for (const char c : text) {
    if (c == '=') break;
    bits = bits << 6 | static_cast<unsigned>(digits.find(c));
    if ((n += 6) >= 8) out += static_cast<char>(bits >> (n -= 8) & 255);
  }
  return out;
}

/// Loads a folder that is good but for one change; the message of the refusal.
std::string folder_refusal(const std::function<void(const std::filesystem::path&)>& change,
                           const FolderSpec& spec = {}) {
  Scratch scratch;
  write_family_folder(llama_config(), spec, scratch.path());
  change(scratch.path());
  try {
    Model::load(scratch.path());
    return "";
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kBadInput);
    CHECK(std::string(e.what()).find('\n') == std::string::npos);
    return e.what();
  }
}

void replace_in(const std::filesystem::path& file, const std::string& from, const std::string& to) {
  std::string text = read_file(file);
  const auto at = text.find(from);
  REQUIRE(at != std::string::npos);
  write_file_atomic(file, text.replace(at, from.size(), to));
}

/// Sets a variable for the life of the object.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old, had_ = true;
    value ? setenv(name, value, 1) : unsetenv(name);
  }
  ~Variable() { had_ ? setenv(name_, old_.c_str(), 1) : unsetenv(name_); }

 private:
  const char* name_;
  std::string old_;
  bool had_ = false;
};

}  // namespace

TEST_CASE("a file of the safetensors library is read with its values") {
  const Json& oracle = golden()["oracle"];
  const auto file = SafetensorsFile::from_memory(decode_base64(oracle["base64"]), "oracle");
  CHECK(file->tensors().size() == oracle["tensors"].size());
  for (const auto& [name, expected] : oracle["tensors"].items()) {
    INFO(name);
    const SafeTensor* t = file->find(name);
    REQUIRE(t);
    CHECK(t->shape == expected["shape"].get<std::vector<uint64_t>>());
    for (size_t i = 0; i < expected["values"].size(); ++i) {
      const double value = expected["values"][i];
      std::string bytes;
      if (t->dtype == "I64") bytes = le_bytes(static_cast<int64_t>(value));
      const auto x = static_cast<float>(value);
      if (t->dtype == "F32") bytes = quantize_blocks(BlockType::kF32, {&x, 1});
      if (t->dtype == "F16") bytes = quantize_blocks(BlockType::kF16, {&x, 1});
      if (t->dtype == "BF16") bytes = quantize_blocks(BlockType::kBF16, {&x, 1});
      REQUIRE(!bytes.empty());
      CHECK(std::memcmp(t->data + i * bytes.size(), bytes.data(), bytes.size()) == 0);
    }
  }
  CHECK(file->find("none") == nullptr);
}

TEST_CASE("the header's length and form") {
  CHECK_THAT(refusal("1234567"), Contains("starts with a length of 8"));
  CHECK_THAT(refusal(le_bytes<uint64_t>(1) + ""), Contains("at most 0 are possible"));
  CHECK_THAT(refusal(le_bytes<uint64_t>(100'000'001) + "{}"), Contains("100000001 bytes"));
  CHECK_THAT(refusal(le_bytes<uint64_t>(~uint64_t{0}) + "{}"), Contains("at most 2 are possible"));
  CHECK_THAT(refusal(le_bytes<uint64_t>(~uint64_t{7}) + "{}"), Contains("at most 2 are possible"));
  CHECK_THAT(refusal(le_bytes<uint64_t>(0)), Contains("no safetensors file"));
  CHECK_THAT(header_refusal(" {}"), Contains("expected a JSON object"));
  CHECK_THAT(header_refusal("[]"), Contains("expected a JSON object"));
  CHECK_THAT(header_refusal("{"), Contains("no valid JSON at byte"));
  CHECK_THAT(header_refusal("{\"a\xFF\":{}}"), Contains("no valid JSON"));
  CHECK_THAT(header_refusal("{}"), Contains("16 bytes of data lie behind"));
  CHECK_THAT(header_refusal("{}x"), Contains("no valid JSON"));
  CHECK(header_refusal("{}   ", 0).empty());
  CHECK(header_refusal(R"({"__metadata__":{"format":"pt"}})", 0).empty());
  CHECK_THAT(header_refusal(R"({"__metadata__":{"format":1}})", 0), Contains("a number at format"));
  // 100 MB at most even when the file is larger; the file is sparse.
  Scratch scratch;
  const auto big = scratch / "big.safetensors";
  write_file_atomic(big, le_bytes<uint64_t>(100'000'001) + "{}");
  std::filesystem::resize_file(big, 100'000'100);
  CHECK_THROWS_WITH(SafetensorsFile::open(big), Contains("at most 100000000 are possible"));
}

TEST_CASE("nesting, stray values and fields of the header are refused") {
  CHECK_THAT(header_refusal("{\"a\":" + std::string(100'000, '[')), Contains("an array at a"));
  CHECK_THAT(header_refusal("{\"a\":{\"shape\":" + std::string(100'000, '[')),
             Contains("an array at shape"));
  CHECK_THAT(header_refusal("{\"a\":{\"dtype\":{\"dtype\":{"), Contains("an object at dtype"));
  CHECK_THAT(header_refusal(R"({"a":1})"), Contains("a number at a"));
  CHECK_THAT(header_refusal(R"({"a":null})"), Contains("null at a"));
  CHECK_THAT(header_refusal("{" + entry("", "F32", "4", "0,16") + "}"), Contains("empty name"));
  CHECK_THAT(header_refusal(R"({"a":{"dtype":true}})"), Contains("a boolean at dtype"));
  CHECK_THAT(header_refusal(R"({"a":{"shape":"x"}})"), Contains("a string at shape"));
  CHECK_THAT(header_refusal(R"({"a":{"foo":1}})"), Contains("a has the unknown field foo"));
  CHECK_THAT(header_refusal("{\"" + std::string(5000, 'n') + "\":{}}"), Contains("5000 bytes"));
  CHECK_THAT(header_refusal("{" + entry("a", "F32", "1,1,1,1,1,1,1,1,4", "0,16") + "}"),
             Contains("more than 8 dimensions"));
  CHECK_THAT(header_refusal(R"({"a":{"dtype":"F32","shape":[4]}})"), Contains("two data_offsets"));
  CHECK_THAT(header_refusal("{" + entry("a", "F32", "4", "0") + "}"), Contains("two data_offsets"));
  CHECK_THAT(header_refusal("{" + entry("a", "F32", "4", "0,8,16") + "}"),
             Contains("more than two data_offsets"));
}

TEST_CASE("duplicate keys are refused") {
  const std::string a = entry("a", "F32", "4", "0,16");
  CHECK_THAT(header_refusal("{" + a + "," + a + "}"), Contains("a occurs twice"));
  CHECK_THAT(header_refusal(R"({"a":{"dtype":"F32","dtype":"F16"}})"),
             Contains("dtype occurs twice"));
  CHECK_THAT(header_refusal(R"({"__metadata__":{"x":"1","x":"2"}})"), Contains("x occurs twice"));
  CHECK_THAT(header_refusal(R"({"__metadata__":{},"__metadata__":{}})"),
             Contains("__metadata__ occurs twice"));
}

TEST_CASE("ranges fit shape and type, follow each other and cover the data") {
  const auto one = [](const std::string& dtype, const std::string& shape,
                      const std::string& range) {
    return header_refusal("{" + entry("a", dtype, shape, range) + "}");
  };
  CHECK(one("F32", "4", "0,16").empty());
  CHECK(one("F16", "2,2,2", "0,16").empty());
  CHECK(one("F4", "32", "0,16").empty());
  CHECK_THAT(one("F32", "5", "0,16"), Contains("takes 160 bits"));
  CHECK_THAT(one("F32", "-4", "0,16"), Contains("a negative number"));
  CHECK_THAT(one("F32", "4.0", "0,16"), Contains("a fraction"));
  CHECK_THAT(one("F32", "4", "16,0"), Contains("16 to 0"));
  CHECK_THAT(one("F32", "4", "0,18446744073709551615"), Contains("takes 128 bits"));
  CHECK_THAT(one("F32", "4", "0,18446744073709551616"), Contains("a fraction"));  // 2^64
  CHECK_THAT(one("F32", "4294967296,4294967296", "0,16"), Contains("overflows"));
  CHECK_THAT(one("F32", "4611686018427387904", "0,0"), Contains("overflows"));  // wraps to 0 bytes
  CHECK_THAT(one("F4", "31", "0,16"), Contains("takes 124 bits"));
  // An unknown type must not skip the checks of size.
  CHECK_THAT(one("F128", "1", "0,16"), Contains("unknown dtype F128"));
  CHECK_THAT(one("f32", "4", "0,16"), Contains("unknown dtype f32"));
  CHECK_THAT(one("F32", "8", "0,32"), Contains("ends at byte 32 of the data, which has 16"));
  CHECK_THAT(one("F32", "3", "4,16"), Contains("begins at byte 4 of the data, expected 0"));
  CHECK_THAT(one("F32", "3", "0,12"), Contains("4 bytes of data lie behind"));
  const auto two = [](const std::string& first, const std::string& second) {
    return header_refusal("{" + entry("b", "F32", "2", first) + "," +
                          entry("c", "F32", "2", second) + "}");
  };
  CHECK(two("8,16", "0,8").empty());  // any order of names
  CHECK_THAT(two("0,8", "0,8"), Contains("begins at byte 0 of the data, expected 8"));
  CHECK_THAT(two("0,8", "4,12"), Contains("begins at byte 4 of the data, expected 8"));
  CHECK_THAT(two("0,8", "12,20"), Contains("begins at byte 12 of the data, expected 8"));
  // Empty tensors take no place but must lie at a border.
  CHECK(header_refusal("{" + entry("e", "F32", "0,3", "16,16") + "," +
                       entry("f", "F32", "4", "0,16") + "}")
            .empty());
  CHECK_FALSE(header_refusal("{" + entry("e", "F32", "0", "8,8") + "," +
                             entry("f", "F32", "4", "0,16") + "}")
                  .empty());
}

TEST_CASE("3000 mutations of headers parse or are refused, a cut file is refused") {
  SafetensorsBuilder out;
  for (int i = 0; i < 6; ++i)
    out.tensor(fmt::format("layer.{}.weight", i), i % 2 ? "BF16" : "F32", {2, 3},
               std::string(i % 2 ? 12 : 24, 'x'));
  out.raw(R"("__metadata__":{"format":"pt"})");
  const std::string good = out.finish();
  CHECK(refusal(good).empty());
  for (size_t n = 0; n < good.size(); ++n) CHECK_FALSE(refusal(good.substr(0, n)).empty());
  CHECK_FALSE(refusal(good + "x").empty());
  const std::string words[] = {"18446744073709551615", "-1", "[", "{", "\"", "4294967296", "null"};
  for (uint64_t i = 0; i < 3000; ++i) {
    Rng rng(i);
    std::string bytes = good;
    for (uint64_t n = 1 + rng.below(3); n > 0; --n) {
      const size_t at = rng.below(bytes.size());
      const uint64_t kind = rng.below(4);
      if (kind == 0) bytes[at] = static_cast<char>(bytes[at] ^ (1 << rng.below(8)));
      if (kind == 1) bytes[at] = static_cast<char>('0' + rng.below(10));
      if (kind == 2) bytes.insert(at, words[rng.below(std::size(words))]);
      if (kind == 3) bytes.erase(at, 1 + rng.below(8));
    }
    // Most changes of length would be seen at once; half of the files get a fitting one.
    const size_t header = std::min(bytes.size(), good.size()) - 8 - 108;
    if (i % 2 == 0 && bytes.size() >= 8) bytes.replace(0, 8, le_bytes<uint64_t>(header));
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  }
}

TEST_CASE("folders: one file, shards, types and alignments give the same weights") {
  Scratch scratch;
  write_family_folder(llama_config(), {}, scratch / "plain");
  const auto plain = Model::load(scratch / "plain");
  CHECK(plain->config.name == "plain");
  CHECK(plain->config.arch == "llama");
  CHECK(plain->weight_bytes > 100'000);
  const size_t bytes = plain->layers[1].w_down.row_bytes() * 96;
  for (const FolderSpec spec : {FolderSpec{.n_shards = 3}, FolderSpec{.padding = 1},
                                FolderSpec{.n_shards = 2, .padding = 3}}) {
    const auto folder = scratch.path() / fmt::format("f{}-{}", spec.n_shards, spec.padding);
    write_family_folder(llama_config(), spec, folder);
    const auto model = Model::load(folder);
    const WeightView &a = plain->layers[1].w_down, &b = model->layers[1].w_down;
    CHECK(reinterpret_cast<uintptr_t>(b.data) % 4 == 0);
    CHECK(std::memcmp(a.data, b.data, bytes) == 0);
    CHECK(model->sha256 != plain->sha256);
    CHECK(model->weight_bytes == plain->weight_bytes);
  }
  for (const BlockType type : {BlockType::kF16, BlockType::kBF16}) {
    write_family_folder(llama_config(), {.type = type, .padding = 1}, scratch / "half");
    const auto model = Model::load(scratch / "half");
    CHECK(model->layers[0].wq.type == type);
    CHECK(reinterpret_cast<uintptr_t>(model->layers[0].wq.data) % 2 == 0);
    CHECK(model->layers[0].attn_norm == plain->layers[0].attn_norm);  // exact in all types
  }
}

TEST_CASE("the hash of a folder is the documented one") {
  Scratch scratch;
  write_family_folder(llama_config(), {.n_shards = 2}, scratch.path());
  const auto line = [&](const char* name) {
    return sha256_of_file(scratch / name) + "  " + name + "\n";
  };
  const std::string expected =
      sha256_of(line("config.json") + line("model-00001-of-00002.safetensors") +
                line("model-00002-of-00002.safetensors") + line("tokenizer.json"));
  CHECK(Model::load(scratch.path())->sha256 == expected);
}

TEST_CASE("folders: what is missing or contradicts is named") {
  const FolderSpec two{.n_shards = 2};
  const char* kSecond = "model-00002-of-00002.safetensors";
  const char* kIndex = "model.safetensors.index.json";
  const auto remove = [](const char* name) {
    return [name](const auto& folder) { std::filesystem::remove(folder / name); };
  };
  CHECK(folder_refusal([](const auto&) {}, two).empty());
  CHECK_THAT(folder_refusal(remove("config.json")),
             Contains("has no config.json; expected a GGUF"));
  CHECK_THAT(folder_refusal(remove("tokenizer.json")), Contains("tokenizer.json"));
  CHECK_THAT(folder_refusal(remove("model.safetensors")), Contains("holds neither"));
  CHECK_THAT(folder_refusal(remove(kSecond), two),
             Contains("the shard " + std::string(kSecond) + " is missing"));
  CHECK_THAT(folder_refusal(remove(kIndex), two),
             Contains("holds 2 *.safetensors files and no model.safetensors.index.json"));
  const auto index = [&](const std::string& from, const std::string& to) {
    return folder_refusal([&](const auto& f) { replace_in(f / kIndex, from, to); }, two);
  };
  CHECK_THAT(index("model.norm.weight", "model.morn.weight"), Contains("does not name"));
  CHECK_THAT(index("\"model.norm.weight\":\"model-00002", "\"model.norm.weight\":\"model-00001"),
             Contains("00001-of-00002.safetensors: lacks the tensor model.norm.weight"));
  CHECK_THAT(
      index("embed_tokens.weight\":\"model-00001", "embed_tokens.weight\":\"model-00002"),
      Contains("holds the tensor model.embed_tokens.weight") && Contains("places in model-"));
  CHECK_THAT(index(kSecond, "../model-00002.safetensors"), Contains("expected the name of a"));
  const std::string longest = std::string(256 - 12, 'n') + ".safetensors";
  CHECK_THAT(index(kSecond, longest), Contains("expected the name of a *.safetensors"));
  CHECK_THAT(index("weight_map", "weight_maps"), Contains("weight_map is missing"));
  CHECK_THAT(index("{", "{\"weight_map\":{},"), Contains("weight_map occurs twice"));
  CHECK_THAT(index("\"metadata\":{}", "\"metadata\":" + std::string(40, '[')),
             Contains("nested deeper than 16"));
  CHECK_THAT(folder_refusal([](const auto& f) {
               write_file_atomic(f / "a.gguf", "");
               std::filesystem::remove(f / "config.json");
             }),
             Contains("a.gguf"));
}

TEST_CASE("folders: what the file system refuses is one line") {
  // A link to itself cannot even be asked for.
  CHECK_THAT(folder_refusal([](const auto& f) {
               std::filesystem::create_symlink("model.safetensors.index.json",
                                               f / "model.safetensors.index.json");
             }),
             Contains(": model.safetensors.index.json: Too many levels of symbolic links"));
}

TEST_CASE("folders: tensors and settings that do not fit are named") {
  const auto config = [](const char* key, const Json& value) {
    return folder_refusal([&](const auto& f) {
      Json json = llama_config();
      json[key] = value;
      write_file_atomic(f / "config.json", json.dump());
    });
  };
  CHECK_THAT(config("intermediate_size", 161),
             Contains("model.layers.0.mlp.gate_proj.weight has the shape [160, 96], expected [161, "
                      "96]"));
  CHECK_THAT(config("num_hidden_layers", 3), Contains("model.layers.2.input_layernorm.weight is"));
  CHECK_THAT(config("num_hidden_layers", 1), Contains("has no place in this architecture"));
  CHECK_THAT(config("vocab_size", 281),
             Contains("vocab_size is 281, but the embedding has 280 rows"));
  CHECK_THAT(config("hidden_size", 97), Contains("has the shape [280, 96], expected [280, 97]"));
  CHECK_THAT(config("tie_word_embeddings", false), Contains("lm_head.weight is missing"));
  CHECK_THAT(config("attention_bias", true),
             Contains("attention_bias is true, supported for llama: false"));
  CHECK_THAT(config("architectures", {"GPTNeoXForCausalLM"}),
             Contains("architecture GPTNeoXForCausalLM is not supported, known: LlamaForCausalLM"));
  CHECK_THAT(config("architectures", {"Qwen2ForCausalLM"}), Contains("q_proj.bias is missing"));
  const auto integer_weights = [](const auto& f) {
    replace_in(f / "model.safetensors", R"("dtype":"F32")", R"("dtype":"I32")");
  };
  CHECK_THAT(folder_refusal(integer_weights),
             Contains("embed_tokens.weight is I32, supported in safetensors: F32, F16, BF16"));
}

TEST_CASE("tables of RoPE in a file are passed over, other unknown tensors are not") {
  const auto with_tensor = [](const std::string& name) {
    return folder_refusal(
        [&](const auto& f) {
          SafetensorsBuilder extra;
          extra.tensor(name, "F32", {2}, std::string(8, '\0'));
          write_file_atomic(f / "more.safetensors", extra.finish());
          replace_in(f / "model.safetensors.index.json", "\"weight_map\":{",
                     "\"weight_map\":{\"" + name + "\":\"more.safetensors\",");
        },
        {.n_shards = 2});
  };
  CHECK(with_tensor("model.layers.0.self_attn.rotary_emb.inv_freq").empty());
  CHECK(with_tensor("lm_head.weight").empty());  // saved by some beside a tied embedding
  CHECK_THAT(with_tensor("model.layers.0.self_attn.o_proj.bias"),
             Contains("o_proj.bias has no place in this architecture"));
}

TEST_CASE("what a model argument may be") {
  Scratch scratch;
  CHECK(find_model("random:llama-2-7b,layers=2").kind == ModelFiles::Kind::kRandom);
  CHECK(find_model((scratch / "none.gguf").string()).kind == ModelFiles::Kind::kGguf);
  write_file_atomic(scratch / "w.safetensors", "x");
  CHECK_THROWS_WITH(find_model((scratch / "w.safetensors").string()),
                    Contains("weights alone are no model"));
}

TEST_CASE("models are found in the Hugging Face cache, or the place looked at is named") {
  Scratch scratch;
  const Variable home("HOME", scratch.path().c_str()), hf_home("HF_HOME", nullptr),
      cache("HF_HUB_CACHE", nullptr);
  const auto hub = scratch.path() / ".cache/huggingface/hub";
  CHECK_THROWS_WITH(Model::load("org/tiny"),
                    Contains(hub.string() + "/models--org--tiny, by HOME") &&
                        Contains("huggingface-cli download org/tiny"));
  const std::string commit(40, 'a'), other(40, 'b');
  const auto repository = hub / "models--org--tiny";
  write_family_folder(llama_config(), {}, repository / "blobs");
  const auto snapshot = repository / "snapshots" / commit;
  std::filesystem::create_directories(snapshot);
  for (const char* name : {"config.json", "tokenizer.json", "model.safetensors"})
    std::filesystem::create_symlink(std::filesystem::path("../../blobs") / name, snapshot / name);
  CHECK_THROWS_WITH(Model::load("org/tiny"), Contains("revision main"));
  std::filesystem::create_directories(repository / "refs");
  write_file_atomic(repository / "refs" / "main", commit + "\n");
  CHECK(Model::load("org/tiny")->config.name == "org/tiny");
  CHECK(Model::load("org/tiny@" + commit)->config.name == "org/tiny");
  CHECK(Model::load(snapshot)->config.name == "org/tiny");
  CHECK_THROWS_WITH(Model::load("org/tiny@" + other), Contains("snapshots/" + other));
  write_file_atomic(repository / "refs" / "main", "../../etc");
  CHECK_THROWS_WITH(Model::load("org/tiny"), Contains("expected a commit"));
  CHECK_THROWS_WITH(Model::load("org/../tiny"), Contains("No such file"));

  const Variable moved("HF_HOME", (scratch.path() / "elsewhere").c_str());
  CHECK_THROWS_WITH(Model::load("org/tiny"),
                    Contains("elsewhere/hub/models--org--tiny, by HF_HOME"));
  const Variable explicit_cache("HF_HUB_CACHE", hub.c_str());
  write_file_atomic(repository / "refs" / "main", commit);
  CHECK(Model::load("org/tiny")->config.n_layers == 2);
  std::filesystem::remove(repository / "blobs" / "model.safetensors");
  CHECK_THROWS_WITH(Model::load("org/tiny"), Contains("model.safetensors"));
}
