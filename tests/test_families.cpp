// SPDX-License-Identifier: Apache-2.0
// Every family in both formats against logits of an independent numpy forward pass (checked once
// more by mlx-lm, tests/golden/make_family_golden.py), and the settings that config.json may hold.
#include "kernels/ops.h"
#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/eval/method_factory.h"
#include "lib/model/arch_registry.h"
#include "lib/model/decoder.h"
#include "lib/model/engine.h"
#include "lib/model/generator.h"
#include "lib/model/gguf.h"
#include "lib/model/gradients.h"
#include "lib/model/hf_config.h"
#include "lib/model/random_model.h"
#include "tests/family_model.h"
#include "tests/scratch.h"

#include <spdlog/spdlog.h>
#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <set>

using namespace million;
using Catch::Matchers::Contains;

namespace {

[[maybe_unused]] const bool kQuiet = (spdlog::set_level(spdlog::level::err), true);

const Json& golden() {
  static const Json json = Json::parse(read_file(MILLION_TEST_DIR "/golden/families.json"));
  return json;
}

const Json& config_of(const char* name) { return golden()["cases"][name]["config"]; }

std::shared_ptr<const Model> from_folder(const Json& config, const FolderSpec& spec = {}) {
  Scratch scratch;  // mappings live on when the files go
  write_family_folder(config, spec, scratch.path());
  return Model::load(scratch.path());
}

std::shared_ptr<const Model> from_gguf(const Json& config, BlockType type = BlockType::kF32) {
  return Model::from_gguf(GgufFile::from_memory(family_gguf(config, type), "family.gguf"));
}

/// Logits [token][n_vocab] of the golden ids, as one matrix or token by token.
std::vector<float> logits_of(std::shared_ptr<const Model> model, bool one_by_one = false) {
  const auto ids = golden()["ids"].get<std::vector<int32_t>>();
  const ModelConfig& c = model->config;
  Decoder decoder(model, {PrefillCompute::kF32, DecodeCompute::kExact, 512});
  const KvGeometry g = c.geometry();
  KvCache cache(g, exact_method(g), Protocol::kDecodePath);
  std::vector<float> out;
  std::vector<float> row(static_cast<size_t>(c.n_vocab));
  const auto take = [&](std::span<const float> hidden) {
    for (size_t i = 0; i < hidden.size(); i += static_cast<size_t>(c.d_model)) {
      decoder.logits(hidden.data() + i, 1, row.data());
      out.insert(out.end(), row.begin(), row.end());
    }
  };
  if (one_by_one)
    for (const int32_t& id : ids) take(decoder.forward({&id, 1}, cache));
  else
    take(decoder.forward(ids, cache));
  return out;
}

/// Largest difference to the golden logits of a case.
double deviation(const std::string& name, const std::vector<float>& logits) {
  double worst = 0;
  for (const auto& [position, row] : golden()["cases"][name]["logits"].items())
    for (size_t i = 0; i < row.size(); ++i) {
      const double x = static_cast<double>(logits[std::stoul(position) * row.size() + i]);
      worst = std::max(worst, std::abs(x - row[i].get<double>()));
      if (!std::isfinite(x)) return INFINITY;
    }
  return worst;
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i)
    worst = std::max(worst, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  return worst;
}

// The cache holds K and V as halves, which moves logits (spread 1.4 to 2) by some thousandths.
constexpr double kTolerance = 0.01;

}  // namespace

TEST_CASE("every family gives the golden logits from both formats") {
  for (const auto& [name, unused] : golden()["cases"].items()) {
    INFO(name);
    const Json& config = config_of(name.c_str());
    const auto folder = from_folder(config);
    const auto logits = logits_of(folder);
    CHECK(deviation(name, logits) < kTolerance);
    CHECK(deviation(name, logits_of(folder, true)) < kTolerance);
    const auto gguf = from_gguf(config);
    CHECK(deviation(name, logits_of(gguf)) < kTolerance);
    // The same weights in another order of channels, which sums in another order: last bits of f32,
    // and now and then of a half in the cache.
    CHECK(largest_difference(logits_of(gguf), logits) < 1e-3);
  }
}

TEST_CASE("the golden logits notice wrong pairs, missing biases and missing scalings") {
  const auto changed = [](const char* name, auto&& change) {
    auto model = std::make_shared<Model>(*from_folder(config_of(name)));
    change(*model);
    return deviation(name, logits_of(model));
  };
  const double seen = 20 * kTolerance;
  CHECK(changed("mistral", [](Model& m) { m.config.rope.pairs = RopePairs::kAdjacent; }) > seen);
  CHECK(changed("qwen2", [](Model& m) { m.layers[1].bk.clear(); }) > seen);
  CHECK(changed("qwen2-new", [](Model& m) { m.config.rope.base = 10000.0f; }) > seen);
  for (const char* name : {"llama-3", "llama-linear", "llama-yarn"})
    CHECK(changed(name, [](Model& m) { m.config.rope.scaling = RopeScaling::kNone; }) > seen);
}

TEST_CASE("weights of every type, from one file, shards and unaligned bytes, give the same bits") {
  for (const char* name : {"llama-3", "qwen2"}) {
    INFO(name);
    const auto expected = logits_of(from_folder(config_of(name)));
    for (const BlockType type : {BlockType::kF32, BlockType::kF16, BlockType::kBF16})
      for (const int padding : {0, 1, 2})
        CHECK(logits_of(from_folder(config_of(name), {type, 1 + padding, padding})) == expected);
  }
}

TEST_CASE("GGUF files of a family with halves and quantized matrices stay near the golden logits") {
  CHECK(deviation("qwen2", logits_of(from_gguf(config_of("qwen2"), BlockType::kF16))) < kTolerance);
  CHECK(deviation("qwen2", logits_of(from_gguf(config_of("qwen2"), BlockType::kQ8_0))) < 0.2);
}

TEST_CASE("gradients and the emulated device take a folder's weights") {
  const auto ids = golden()["ids"].get<std::vector<int32_t>>();
  const auto model = from_folder(config_of("qwen2"), {.type = BlockType::kBF16, .padding = 1});
  const auto logits = logits_of(model);
  const auto vocab = static_cast<size_t>(model->config.n_vocab);
  double nll = 0;
  for (size_t i = 0; i + 1 < ids.size(); ++i) {
    double sum = 0;
    for (size_t t = 0; t < vocab; ++t) sum += std::exp(static_cast<double>(logits[i * vocab + t]));
    nll += std::log(sum) - static_cast<double>(logits[i * vocab + static_cast<size_t>(ids[i + 1])]);
  }
  struct : GradientProbe {
    void on_gradients(int, int n, const float* dk, const float*) override {
      for (int i = 0; i < n * 64; ++i) largest = std::max(largest, std::abs(dk[i]));
    }
    float largest = 0;
  } probe;
  CHECK(GradientPass(model).run(ids, {}, probe).sum() == Approx(nll).epsilon(1e-3));
  CHECK((std::isfinite(probe.largest) && probe.largest > 1e-4f));

  EngineOptions options;
  options.backend = Backend::kCudaEmulated;
  options.decoder = {PrefillCompute::kF32, DecodeCompute::kExact, 16};
  options.capacity = 64;
  const auto engine = make_engine(model, exact_method(model->config.geometry()), options);
  const auto hidden = engine->forward(ids);
  std::vector<float> got(logits.size());
  engine->logits(hidden.data(), static_cast<int>(ids.size()), got.data());
  CHECK(largest_difference(got, logits) < 0.05);  // halves into every product
}

TEST_CASE("names of tensors are those of the gguf package") {
  for (const auto& [gguf, hf] : golden()["names"].items()) CHECK(hf_tensor_name(gguf) == hf);
  for (const char* name : {"rope_freqs.weight", "blk.0", "blk.0.attn_q", "blk..weight", "blk.", ""})
    CHECK(hf_tensor_name(name).empty());
}

TEST_CASE("every family of the table has a golden case") {
  std::set<std::string_view> covered;
  for (const auto& [name, c] : golden()["cases"].items())
    covered.insert(c["config"]["model_type"].get_ref<const std::string&>());
  for (const Architecture& a : architectures()) CHECK(covered.count(a.name) == 1);
}

namespace {

/// Settings of a golden case with keys replaced (null removes one).
ModelConfig read_config(const char* name, const Json& changes = Json::object()) {
  Json json = config_of(name);
  for (const auto& [key, value] : changes.items()) json[key] = value;
  ModelConfig c;
  read_hf_config(HfConfig(SortedJson::parse(json.dump()), "config.json"), c);
  return c;
}

std::string config_refusal(const Json& changes) {
  try {
    read_config("mistral", changes);
    return "";
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kBadInput);
    return e.what();
  }
}

}  // namespace

TEST_CASE("settings of config.json, their defaults and the context they reach") {
  const ModelConfig old = read_config("llama");
  CHECK((old.n_kv_heads == 2 && old.head_dim == 64 && old.rope.base == 10000.0f));
  CHECK((old.rope.pairs == RopePairs::kHalves && old.n_context == 512));
  CHECK(read_config("llama-linear").n_context == 2048);
  CHECK(read_config("llama-yarn").n_context == 512);
  const Json short_yarn = {{"type", "yarn"}, {"factor", 4.0}};
  CHECK(read_config("llama", {{"rope_scaling", short_yarn}}).n_context == 2048);
  CHECK(read_config("llama", {{"rope_scaling", short_yarn}}).rope.original_context == 512);
  const ModelConfig dynamic = read_config("llama-dynamic");
  CHECK((dynamic.n_context == 512 && dynamic.rope.scaling == RopeScaling::kNone));
  const RopeParams llama3 = read_config("llama-3").rope;
  CHECK(
      (llama3.factor == 8.0f && llama3.low_freq_factor == 1.0f && llama3.high_freq_factor == 4.0f));
  CHECK((llama3.original_context == 64 && llama3.base == 500000.0f));
  CHECK(read_config("llama", {{"rope_scaling", nullptr}}).rope.scaling == RopeScaling::kNone);
  CHECK(read_config("llama", {{"rope_scaling", {{"rope_type", "default"}}}}).rope.factor == 1.0f);

  CHECK(from_folder(config_of("mistral"))->config.sliding_window == 64);
  CHECK(from_folder(config_of("qwen2"))->config.sliding_window == 0);
  Json windowed = config_of("qwen2");
  windowed["use_sliding_window"] = true;
  CHECK(from_folder(windowed)->config.sliding_window == 32);
}

TEST_CASE("a scaled context is the same in both formats") {
  const auto both = [](const Json& scaling) {
    Json json = config_of("llama");
    json["rope_scaling"] = scaling;
    const int folder = from_folder(json)->config.n_context;
    CHECK(from_gguf(json)->config.n_context == folder);
    return folder;
  };
  const auto linear = [](double factor) { return Json{{"type", "linear"}, {"factor", factor}}; };
  const auto yarn = [](double factor, int original) {
    return Json{
        {"type", "yarn"}, {"factor", factor}, {"original_max_position_embeddings", original}};
  };
  CHECK(both(Json::object()) == 512);
  CHECK(both(linear(2.5)) == 1280);
  CHECK(both(linear(1e-6)) == 1);
  CHECK(both(linear(1e6)) == 512'000'000);
  CHECK(both(yarn(4, 512)) == 2048);
  CHECK(both(yarn(4, 64)) == 512);  // the file names the context behind scaling
  CHECK(both(yarn(1e6, 1 << 20)) == 1 << 30);
}

TEST_CASE("the first space of a continued text is kept, that of an answer is the scheme's") {
  auto model = std::make_shared<Model>(*from_folder(config_of("llama")));
  TokenizerData words;
  words.scheme = TokenizerData::Scheme::kRanks;
  words.space_prefix = SpacePrefix::kEach;
  for (int i = 0; i < model->config.n_vocab; ++i)
    words.tokens.push_back(fmt::format("\xE2\x96\x81w{}", i));
  model->tokenizer = Tokenizer(std::move(words));
  const auto text = [&](TextStart start) {
    Generator generator(model, {}, exact_method(model->config.geometry()), {});
    std::string out;
    const std::vector<int32_t> prompt{1, 2, 3};
    const auto take = [&](std::string_view piece) { return out += piece, true; };
    generator.run(prompt, 3, true, take, start);
    return out;
  };
  const std::string continued = text(TextStart::kContinued);
  CHECK(continued.starts_with(" w"));
  CHECK(continued == " " + text(TextStart::kText));
}

TEST_CASE("settings that this decoder does not compute are named") {
  CHECK(config_refusal(Json::object()).empty());
  CHECK_THAT(config_refusal({{"hidden_act", "gelu"}}), Contains("hidden_act is gelu, supported"));
  CHECK_THAT(config_refusal({{"num_local_experts", 8}}), Contains("num_local_experts is 8; only"));
  CHECK_THAT(config_refusal({{"quantization_config", {{"quant_method", "gptq"}}}}),
             Contains("quantized by gptq"));
  CHECK_THAT(config_refusal({{"partial_rotary_factor", 0.5}}), Contains("supported: 1"));
  CHECK_THAT(config_refusal({{"head_dim", 72}}), Contains("head_dim is 72, supported: 64"));
  CHECK_THAT(config_refusal({{"num_key_value_heads", 3}}), Contains("no multiple of 3 KV heads"));
  CHECK_THAT(config_refusal({{"num_hidden_layers", -1}}), Contains("is -1, expected an integer"));
  CHECK_THAT(config_refusal({{"num_hidden_layers", 2.0}}), Contains("is 2.0, expected an integer"));
  CHECK_THAT(config_refusal({{"hidden_size", 1ull << 63}}), Contains("expected an integer from 1"));
  CHECK_THAT(config_refusal({{"hidden_size", nullptr}}), Contains("hidden_size is missing"));
  CHECK_THAT(config_refusal({{"rms_norm_eps", "small"}}), Contains("expected a number above 0"));
  CHECK_THAT(config_refusal({{"rope_theta", 0}}), Contains("rope_theta is 0"));
  CHECK_THAT(config_refusal({{"rope_scaling", 2}}), Contains("rope_scaling is 2, expected an obj"));
  const auto scaling = [](const Json& s) { return config_refusal({{"rope_scaling", s}}); };
  CHECK_THAT(scaling({{"type", "longrope"}}), Contains("type longrope is not supported, known:"));
  CHECK_THAT(scaling({{"type", "linear"}}), Contains("rope_scaling: factor is missing"));
  CHECK_THAT(scaling({{"type", "linear"}, {"factor", 0}}), Contains("factor is 0"));
  CHECK_THAT(scaling({{"type", "yarn"}, {"factor", 4}, {"mscale", 1}}), Contains("mscale is not"));
  CHECK_THAT(scaling({{"rope_type", "llama3"}, {"factor", 8}}), Contains("low_freq_factor is"));
  CHECK_THAT(scaling({{"rope_type", "llama3"},
                      {"factor", 8},
                      {"low_freq_factor", 4},
                      {"high_freq_factor", 4}}),
             Contains("is not below high_freq_factor"));
}

TEST_CASE("a qwen2 GGUF without biases is refused") {
  std::string bytes = family_gguf(config_of("qwen2"));
  for (size_t at; (at = bytes.find("attn_k.bias")) != std::string::npos;)
    bytes.replace(at, 11, "attn_x.bias");
  CHECK_THROWS_WITH(Model::from_gguf(GgufFile::from_memory(bytes, "q.gguf")),
                    Contains("tensor blk.0.attn_k.bias is missing"));
}

TEST_CASE("random stand-ins: shape, name, spread, memory") {
  const auto model = Model::load("random:smollm2-135m,layers=2");
  const ModelConfig& c = model->config;
  CHECK(c.name == "random smollm2-135m of 2 layers");
  CHECK((c.n_layers == 2 && c.d_model == 576 && c.n_vocab == 49152 && c.n_context == 8192));
  CHECK(model->layers[0].wq.type == BlockType::kQ4_0);
  CHECK(model->path == "random:smollm2-135m,layers=2,type=q4_0");
  const auto ids = model->tokenizer.encode("speed \xC3\xA9");
  CHECK(ids.size() == 8);  // one token a byte
  CHECK(model->tokenizer.decode(ids) == "speed \xC3\xA9");
  const auto logits = logits_of(model);
  CHECK(std::all_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); }));
  for (const char* type : {"q8_0", "f16"}) {
    const auto other = Model::load(fmt::format("random:smollm2-135m,layers=1,type={}", type));
    const WeightView& w = other->layers[0].w_up;
    AlignedVector<float> row(static_cast<size_t>(w.cols));
    double square = 0;
    for (int r = 0; r < w.rows; ++r) {
      ops().dequant_row(w.type, w.row(r), w.cols, row.data());
      for (const float x : row) square += static_cast<double>(x) * static_cast<double>(x);
    }
    CHECK(square / w.rows == Approx(1.0).epsilon(0.05));  // variance 1 / cols
    CHECK(other->sha256 != model->sha256);
  }
  CHECK(logits_of(Model::load("random:qwen2.5-0.5b,layers=1"))[0] ==
        logits_of(Model::load("random:qwen2.5-0.5b,layers=1,seed=1"))[0]);
  CHECK_THROWS_WITH(Model::load("random:gpt-5"), Contains("unknown shape, known: llama-2-7b"));
  CHECK_THROWS_WITH(Model::load("random:llama-2-7b,heads=2"), Contains("heads"));
  CHECK_THROWS_WITH(Model::load("random:llama-2-7b,type=q2"), Contains("q4_0|q8_0|f16"));
  CHECK_THROWS_WITH(Model::load("random:qwen2.5-7b,layers=100000"), Contains("layers"));
  CHECK_THROWS_WITH(Model::load("random:llama-2-13b,layers=4096,type=f16"),
                    Contains("GiB are available; use at most layers="));
  for (const ModelShape& s : model_shapes()) {
    CHECK(s.n_heads % s.n_kv_heads == 0);
    CHECK(s.d_model % 32 == 0);
    CHECK(s.d_ff % 32 == 0);
  }
}
