// SPDX-License-Identifier: Apache-2.0
// GGUF reader and model loader: good files of every type, and every hole that readers of this
// format are known to have had (overflows, counts beyond the file, wrong types, truncation), plus
// mutations.
#include "kernels/half.h"
#include "kernels/ops.h"
#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/core/rng.h"
#include "lib/model/gguf.h"
#include "lib/model/model.h"
#include "tests/tiny_model.h"

#include <catch2/catch.hpp>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>

using namespace million;
using Catch::Matchers::Contains;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size);

namespace {

constexpr uint64_t kHuge = std::numeric_limits<uint64_t>::max();
constexpr BlockType kAllTypes[] = {BlockType::kF32,  BlockType::kF16,  BlockType::kBF16,
                                   BlockType::kQ8_0, BlockType::kQ4_0, BlockType::kQ4_1,
                                   BlockType::kQ5_0, BlockType::kQ5_1, BlockType::kQ4_K,
                                   BlockType::kQ5_K, BlockType::kQ6_K};

std::string u64(uint64_t n) { return le_bytes(n); }
std::string u32(uint32_t n) { return le_bytes(n); }
std::string sized(const std::string& s) { return u64(s.size()) + s; }

/// The message with which the reader refuses the bytes; "" when it takes them.
std::string refusal(const std::string& bytes) {
  try {
    GgufFile::from_memory(bytes, "test.gguf");
    return "";
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kBadInput);
    return e.what();
  }
}

using Change = std::function<void(GgufBuilder&)>;

/// The same for a file that is good but for one change.
std::string refusal_of(const Change& change) {
  GgufBuilder out;
  out.string("general.architecture", "llama");
  change(out);
  return refusal(out.finish());
}

std::shared_ptr<const Model> load_bytes(const std::string& bytes) {
  return Model::from_gguf(GgufFile::from_memory(bytes, "test.gguf"));
}

std::string replaced(std::string bytes, const std::string& from, const std::string& to) {
  const auto at = bytes.find(from);
  REQUIRE(at != std::string::npos);
  return bytes.replace(at, from.size(), to);
}

/// A tiny model with the value of one u32 key changed.
std::string with_u32(const std::string& key, uint32_t from, uint32_t to) {
  return replaced(tiny_model_bytes({}), sized(key) + u32(4) + u32(from),
                  sized(key) + u32(4) + u32(to));
}

/// Value i of a row in ggml's layouts, written here once more as the reference.
float value_at(BlockType type, const std::byte* row, int i) {
  const auto block = [&]<class B>(B b) {
    std::memcpy(&b, row + static_cast<std::size_t>(i / 32) * sizeof b, sizeof b);
    return b;
  };
  const int j = i % 32;
  const auto nibble = [&](const uint8_t* q) { return j < 16 ? q[j] & 15 : q[j - 16] >> 4; };
  const auto fifth = [&](const uint8_t* h) { return (h[j / 8] >> (j % 8) & 1) << 4; };
  const auto d = [](const auto& b) { return half_to_float(b.d); };
  const auto m = [](const auto& b) { return half_to_float(b.m); };
  const auto plain = [&]<class T>(T x) {
    std::memcpy(&x, row + static_cast<std::size_t>(i) * sizeof x, sizeof x);
    return x;
  };
  switch (type) {
    case BlockType::kF32:
      return plain(0.0f);
    case BlockType::kF16:
      return half_to_float(plain(uint16_t{0}));
    case BlockType::kBF16:
      return bf16_to_float(plain(uint16_t{0}));
    case BlockType::kQ8_0: {
      const auto b = block(BlockQ8_0{});
      return d(b) * b.q[j];
    }
    case BlockType::kQ4_0: {
      const auto b = block(BlockQ4_0{});
      return d(b) * (nibble(b.q) - 8);
    }
    case BlockType::kQ4_1: {
      const auto b = block(BlockQ4_1{});
      return d(b) * nibble(b.q) + m(b);
    }
    case BlockType::kQ5_0: {
      const auto b = block(BlockQ5_0{});
      return d(b) * ((nibble(b.q) | fifth(b.high)) - 16);
    }
    case BlockType::kQ5_1: {
      const auto b = block(BlockQ5_1{});
      return d(b) * (nibble(b.q) | fifth(b.high)) + m(b);
    }
    case BlockType::kQ4_K:
    case BlockType::kQ5_K:
    case BlockType::kQ6_K: {  // against an independent program: test_kquants.cpp
      const std::size_t at = static_cast<std::size_t>(i / kSuperValues) * block_shape(type).bytes;
      float values[kSuperValues];
      ops().dequant_row(type, row + at, kSuperValues, values);
      return values[i % kSuperValues];
    }
  }
  return 0;
}

}  // namespace

TEST_CASE("a tiny model loads with every tensor type, and its weights are those of the f32 model") {
  const TinyModelSpec plain{.d_model = 256, .d_ff = 256};  // whole super-blocks
  const auto exact = load_bytes(tiny_model_bytes(plain));
  const float bound[] = {0,     4e-4f,  3e-3f, 6e-3f,  0.10f, 0.09f,
                         0.05f, 0.045f, 0.09f, 0.045f, 0.025f};  // relative RMS
  for (const BlockType type : kAllTypes) {
    CAPTURE(block_type_name(type));
    TinyModelSpec spec = plain;
    spec.type = spec.embedding_type = type;
    const auto model = load_bytes(tiny_model_bytes(spec));
    const WeightView &a = exact->layers[1].w_down, &b = model->layers[1].w_down;
    CHECK(b.type == type);
    REQUIRE((b.rows == 256 && b.cols == 256));
    double error = 0, power = 0;
    for (int r = 0; r < b.rows; ++r)
      for (int c = 0; c < b.cols; ++c) {
        const double x = value_at(BlockType::kF32, a.row(r), c);
        const double e = value_at(type, b.row(r), c) - x;
        error += e * e;
        power += x * x;
      }
    CHECK(std::sqrt(error / power) <= static_cast<double>(bound[static_cast<int>(type)]));
    CHECK((type == BlockType::kF32) == (error == 0));
  }
}

TEST_CASE("configuration, tying, biases, GQA and RoPE scalings are read") {
  const auto model = load_bytes(tiny_model_bytes({}));
  const ModelConfig& c = model->config;
  CHECK(c.arch == "llama");
  CHECK(c.n_layers == 2);
  CHECK(c.geometry().group() == 2);
  CHECK(c.head_dim == 64);
  CHECK(c.n_vocab == 280);
  CHECK(c.n_context == 512);
  CHECK(c.rope.n_rot == 64);
  CHECK(c.rope.pairs == RopePairs::kAdjacent);
  CHECK(model->output.data == model->token_embedding.data);
  CHECK(model->layers[0].bq.empty());
  CHECK(model->sha256.size() == 64);
  CHECK(model->weight_bytes > 100000);

  const auto other = load_bytes(tiny_model_bytes(
      {.n_heads = 3, .n_kv_heads = 1, .head_dim = 80, .tied = false, .biases = true}));
  CHECK(other->config.geometry().group() == 3);
  CHECK(other->output.data != other->token_embedding.data);
  CHECK(other->layers[1].bq.size() == 240);
  CHECK(other->layers[1].bk.size() == 80);

  CHECK(load_bytes(tiny_model_bytes({.rope_scaling = "linear"}))->config.rope.scaling ==
        RopeScaling::kLinear);
  const auto yarn = load_bytes(tiny_model_bytes({.rope_scaling = "yarn"}))->config.rope;
  CHECK(yarn.scaling == RopeScaling::kYarn);
  CHECK(yarn.factor == 4.0f);
  CHECK(yarn.original_context == 128);
  const auto llama3 = load_bytes(tiny_model_bytes({.rope_scaling = "llama3"}))->config.rope;
  REQUIRE(llama3.freq_factors.size() == 32);
  CHECK(llama3.freq_factors.back() == 8.0f);
}

TEST_CASE("the default model loads") {
  const char* path = std::getenv("MILLION_MODEL");
  const auto model =
      Model::load(path ? path : MILLION_SOURCE_DIR "/data/models/SmolLM2-135M-Instruct.Q4_1.gguf");
  const ModelConfig& c = model->config;
  CHECK(model->sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53");
  CHECK((c.n_layers == 30 && c.n_heads == 9 && c.n_kv_heads == 3 && c.head_dim == 64));
  CHECK((c.d_model == 576 && c.d_ff == 1536 && c.n_vocab == 49152 && c.n_context == 8192));
  CHECK(c.rope.base == 100000.0f);
  CHECK(model->layers[29].wq.type == BlockType::kQ4_1);
  CHECK(model->token_embedding.type == BlockType::kQ8_0);
}

TEST_CASE("missing, empty and foreign files are named") {
  const auto folder = std::filesystem::temp_directory_path() / "million_test_formats";
  std::filesystem::create_directories(folder);
  CHECK_THROWS_WITH(Model::load(folder / "none.gguf"), Contains("none.gguf: No such file"));
  CHECK_THROWS_WITH(Model::load(folder), Contains("has no config.json"));
  write_file_atomic(folder / "empty.gguf", "");
  CHECK_THROWS_WITH(Model::load(folder / "empty.gguf"), Contains("is empty"));
  const auto good = write_tiny_model({}, folder / "good.gguf");
  CHECK(Model::load(good)->sha256 == sha256_of_file(good));
  std::filesystem::remove_all(folder);
}

TEST_CASE("magic, version and byte order") {
  CHECK_THAT(refusal("GGML\1\0\0\0"), Contains("starts with \"GGML\""));
  CHECK_THAT(refusal(std::string("\0\1\2\3", 4)), Contains("\"\\x00\\x01\\x02\\x03\""));
  CHECK_THAT(refusal("GG"), Contains("2 are left"));
  CHECK_THAT(refusal_of([](auto& f) { f.magic = "FUGG"; }), Contains("big-endian"));
  CHECK_THAT(refusal_of([](auto& f) { f.version = 0x03000000; }), Contains("big-endian"));
  CHECK_THAT(refusal_of([](auto& f) { f.version = 1; }), Contains("version 1, supported: 2 and 3"));
  CHECK_THAT(refusal_of([](auto& f) { f.version = 4; }), Contains("version 4"));
  CHECK(refusal_of([](auto& f) { f.version = 2; }).empty());
}

TEST_CASE("counts beyond what the file can hold") {
  for (const int64_t n : {int64_t{1000}, int64_t{1} << 40, std::numeric_limits<int64_t>::min()}) {
    CHECK_THAT(refusal_of([n](auto& f) { f.extra_keys = n; }), Contains("metadata keys"));
    CHECK_THAT(refusal_of([n](auto& f) { f.extra_tensors = n; }), Contains("tensors are declared"));
  }
  // 2^64 - 1 keys or tensors.
  CHECK_THAT(refusal_of([](auto& f) { f.extra_keys = -2; }), Contains("metadata keys"));
  CHECK_THAT(refusal_of([](auto& f) { f.extra_tensors = -1; }), Contains("tensors are declared"));
  // One more than there are: the reader runs into the end of the file.
  CHECK_THAT(refusal_of([](auto& f) { f.extra_keys = 1; }), Contains("bytes"));
}

TEST_CASE("string and array lengths") {
  for (const uint64_t n : {uint64_t{100}, uint64_t{1} << 32, uint64_t{1} << 63, kHuge - 8, kHuge}) {
    CHECK_FALSE(refusal_of([n](auto& f) { f.raw("s", 8, u64(n) + "x"); }).empty());
    for (const uint32_t type : {0u, 4u, 8u, 10u})
      CHECK_THAT(refusal_of([&](auto& f) { f.raw("a", 9, u32(type) + u64(n) + "xx"); }),
                 Contains("elements of a"));
  }
  // One byte too long at the very end of the file.
  CHECK_THAT(refusal_of([](auto& f) { f.raw("s", 8, u64(2) + "x"); }), Contains("only 1 are left"));
  // count * element size wraps to a small number
  CHECK_THAT(refusal_of([](auto& f) { f.raw("a", 9, u32(10) + u64((uint64_t{1} << 61) + 1)); }),
             Contains("elements of a"));
  CHECK_THAT(refusal_of([](auto& f) { f.raw("a", 9, u32(9) + u64(0)); }),
             Contains("array of arrays"));
  CHECK_THAT(refusal_of([](auto& f) { f.raw("a", 9, u32(13) + u64(0)); }),
             Contains("unknown value type 13"));
  CHECK_THAT(refusal_of([](auto& f) { f.raw("a", 77, ""); }), Contains("unknown value type 77"));
  CHECK_THAT(refusal_of([](auto& f) { f.u32("", 1); }), Contains("empty metadata key"));
  CHECK_THAT(refusal_of([](auto& f) { f.u32(std::string(70000, 'k'), 1); }), Contains("70000"));
  CHECK_THAT(refusal_of([](auto& f) { f.u32("k", 1), f.u32("k", 2); }), Contains("k occurs twice"));
}

TEST_CASE("tensor shapes, types and offsets") {
  const std::string data(256, '\0');
  const auto raw = [](std::vector<uint64_t> dims, uint32_t type, uint64_t offset) {
    return refusal_of([=](GgufBuilder& f) {
      f.tensor("good", {64}, 0, std::string(256, '\0'));
      f.raw_tensor("bad", dims, type, offset);
    });
  };
  CHECK_THAT(raw({}, 0, 0), Contains("bad has 0 dimensions"));
  CHECK_THAT(raw({1, 1, 1, 1, 1}, 0, 0), Contains("bad has 5 dimensions"));
  CHECK_THAT(raw({4, 0}, 0, 0), Contains("size 0"));
  CHECK_THAT(raw({uint64_t{1} << 32, uint64_t{1} << 32}, 0, 0), Contains("overflows"));
  CHECK_THAT(raw({uint64_t{1} << 62}, 0, 0), Contains("overflows"));     // the bytes wrap
  CHECK_THAT(raw({uint64_t{1} << 61, 8}, 0, 0), Contains("overflows"));  // to 0
  CHECK_THAT(raw({4}, 0, kHuge - 31),
             Contains("bad ends at byte 18446744073709551600"));  // 2^64 - 32
  CHECK_THAT(raw({16}, 0, kHuge - 31), Contains("overflows"));    // offset + size wraps
  CHECK_THAT(raw({4}, 0, 1 << 20), Contains("bad ends at byte"));
  CHECK_THAT(raw({4}, 0, 8), Contains("multiple of 32"));
  CHECK_THAT(raw({4}, 0, 32), Contains("good and bad overlap"));
  CHECK_THAT(raw({33}, 3, 0), Contains("multiple of 32 for Q4_1"));
  CHECK_THAT(raw({256}, 11, 0), Contains("bad is Q3_K, supported: F32, F16, Q4_0"));
  CHECK_THAT(raw({256}, 4, 0), Contains("unknown tensor type 4"));
  CHECK_THAT(raw({256}, 0xFFFFFFFF, 0), Contains("unknown tensor type"));
  CHECK_THAT(
      refusal_of([&](auto& f) { f.tensor("t", {64}, 0, data), f.tensor("t", {64}, 0, data); }),
      Contains("t occurs twice"));
  CHECK_THAT(refusal_of([&](auto& f) { f.tensor("", {64}, 0, data); }),
             Contains("empty tensor name"));
  // Many sizes that each fit but wrap when summed cannot occur: each must lie inside the file and
  // none may overlap. Declared larger than the data (a heap read leak elsewhere):
  CHECK_THAT(refusal_of([&](auto& f) { f.tensor("t", {65}, 0, data); }),
             Contains("ends at byte 260 of the tensor data, which has 256"));
  CHECK(refusal_of([&](auto& f) { f.tensor("t", {64}, 0, data); }).empty());
}

TEST_CASE("alignment") {
  const auto with = [](uint32_t type, const std::string& value) {
    return refusal_of([&](auto& f) {
      f.raw("general.alignment", type, value);
      f.tensor("t", {8}, 0, std::string(32, '\0'));
    });
  };
  for (const uint32_t n : {0u, 1u, 4u, 24u, 33u, 1u << 21, 1u << 31, 0xFFFFFFFFu})
    CHECK_THAT(with(4, u32(n)), Contains("expected a power of two"));
  CHECK_THAT(with(10, u64(32)), Contains("is u64, expected u32"));
  CHECK_THAT(with(8, sized("32")), Contains("is string, expected u32"));
  CHECK(with(4, u32(32)).empty());
}

TEST_CASE("typed access refuses other types and keeps the value's range") {
  GgufBuilder out;
  out.raw("u8", 0, "\x07");
  out.raw("i32", 5, le_bytes<int32_t>(-1));
  out.raw("u64", 10, u64(kHuge));
  out.raw("f64", 12, le_bytes(0.5));
  out.raw("bool", 7, "\2");
  out.string("s", "text");
  out.raw("floats", 9, u32(6) + u64(1) + le_bytes(1.0f));
  out.raw("big", 9, u32(10) + u64(1) + u64(1) + "");
  out.raw("bigger", 9, u32(4) + u64(1) + u32(0x80000000u));
  const std::string bytes = out.finish();
  const auto f = GgufFile::from_memory(bytes, "t");
  CHECK(f->get_uint("u8") == 7);
  CHECK(f->get_uint("none", 5) == 5);
  CHECK(f->get_float("f64") == 0.5);
  CHECK(f->get_ints("big") == std::vector<int32_t>{1});
  CHECK_THROWS_WITH(f->get_uint("i32"), Contains("is -1, expected an integer"));
  CHECK_THROWS_WITH(f->get_uint("u64"), Contains("expected an integer"));
  CHECK_THROWS_WITH(f->get_uint("s", 5), Contains("is string"));
  CHECK_THROWS_WITH(f->get_uint("none"), Contains("key none (integer) is missing"));
  CHECK_THROWS_WITH(f->get_float("u8"), Contains("is u8, expected f32"));
  CHECK_THROWS_WITH(f->get_bool("bool"), Contains("is 2, expected 0 or 1"));
  CHECK_THROWS_WITH(f->get_string("u8"), Contains("expected string"));
  CHECK_THROWS_WITH(f->get_strings("s"), Contains("expected an array of strings"));
  CHECK_THROWS_WITH(f->get_ints("floats"), Contains("no 32-bit integer"));
  CHECK_THROWS_WITH(f->get_ints("bigger"), Contains("no 32-bit integer"));
  CHECK_THROWS_WITH(f->get_ints("s"), Contains("expected an array of i32"));
}

TEST_CASE("the loader names the key or tensor that does not fit") {
  const auto message = [](const std::string& bytes, const std::string& text) {
    CHECK_THROWS_WITH(load_bytes(bytes), Contains(text));
  };
  const std::string good = tiny_model_bytes({});
  message(replaced(good, sized("llama"), sized("gpt_x")), "gpt_x is not supported, known: llama");
  message(replaced(good, sized("gpt2"), sized("bert")), "bert is not supported, supported: gpt2");
  message(replaced(good, sized("smollm"), sized("smolly")), "\"smolly\" is not known");
  message(replaced(good, "llama.block_count", "llama.block_xxxxx"), "block_count");
  message(with_u32("llama.block_count", 2, 3), "tensor blk.2.attn_norm.weight is missing");
  message(with_u32("llama.block_count", 2, 1), "blk.1.attn_k.weight has no place");
  message(with_u32("llama.block_count", 2, 0xFFFFFFFF), "expected 1 to");
  message(with_u32("llama.embedding_length", 128, 96), "[128, 280], expected [96, 280]");
  message(with_u32("llama.feed_forward_length", 192, 191), "expected [128, 191]");
  message(with_u32("llama.attention.head_count_kv", 2, 3), "4 query heads are no multiple of 3");
  message(with_u32("llama.attention.head_count_kv", 2, 0), "head_count_kv is 0");
  message(with_u32("llama.attention.key_length", 64, 72), "head_dim is 72, supported: 64, 80, 96");
  message(with_u32("llama.attention.value_length", 64, 32), "must be equal");
  message(with_u32("llama.rope.dimension_count", 64, 65), "expected 2 to 64");
  message(with_u32("llama.rope.dimension_count", 64, 33), "expected an even number");
  message(with_u32("tokenizer.ggml.eos_token_id", 2, 280), "eos_token_id is 280");
  message(replaced(good, le_bytes(1e-5f), le_bytes(std::nanf(""))), "epsilon is nan");
  message(replaced(good, le_bytes(10000.0f), le_bytes(-1.0f)), "freq_base is -1");
  const std::string yarn = tiny_model_bytes({.rope_scaling = "yarn"});
  message(replaced(yarn, sized("yarn"), sized("abcd")), "scaling.type is abcd");
  message(replaced(yarn, le_bytes(4.0f), le_bytes(0.0f)), "factor is 0");
  message(tiny_model_bytes({.n_heads = 4, .n_kv_heads = 2, .head_dim = 48}), "head_dim is 48");
}

TEST_CASE("a file cut anywhere is refused") {
  const std::string good = tiny_model_bytes({.type = BlockType::kQ4_1});
  for (std::size_t i = 0; i < 16; ++i)
    CHECK_FALSE(refusal(good.substr(0, i * good.size() / 16)).empty());
  CHECK_FALSE(refusal(good.substr(0, good.size() - 1)).empty());
  CHECK(refusal(good).empty());
  for (std::size_t n = 0; n < 9000; n += 7) CHECK_FALSE(refusal(good.substr(0, n)).empty());
}

TEST_CASE("2000 mutations of tiny models load or are refused, nothing else") {
  const std::string seeds[] = {
      tiny_model_bytes({.n_layers = 1, .d_model = 32, .d_ff = 32, .type = BlockType::kQ4_0}),
      tiny_model_bytes(
          {.n_layers = 1, .d_model = 32, .d_ff = 32, .biases = true, .rope_scaling = "yarn"})};
  const uint64_t values[] = {0, 1, 0x7F, 0xFF, 0x80000000, 0xFFFFFFFF, uint64_t{1} << 61, kHuge};
  for (uint64_t i = 0; i < 2000; ++i) {
    Rng rng(i);
    std::string bytes = seeds[i % 2];
    const std::size_t head = std::min<std::size_t>(bytes.size(), 12000);  // keys and tensor table
    for (uint64_t n = 1 + rng.below(4); n > 0; --n) {
      const std::size_t at = rng.below(head - 8);
      const uint64_t kind = rng.below(5);
      const std::string word = u64(values[rng.below(std::size(values))]);
      if (kind == 0) bytes[at] = static_cast<char>(bytes[at] ^ (1 << rng.below(8)));
      if (kind == 1) bytes[at] = static_cast<char>(rng.below(256));
      if (kind == 2) bytes.replace(at, 8, word);
      if (kind == 3) bytes.replace(at, 4, word.substr(0, 4));
      if (kind == 4) bytes.erase(at, 1 + rng.below(16));
    }
    if (rng.below(20) == 0) bytes.resize(rng.below(bytes.size()));
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  }
  SUCCEED("no crash");
}
