// SPDX-License-Identifier: Apache-2.0
// The whole decoder on the emulated device against the CPU's: logits of a tiny model for fp16 and
// fused methods, prompts in chunks and single tokens through window flushes, a replayed step.
#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/core/json.h"
#include "lib/core/rng.h"
#include "lib/eval/method_factory.h"
#include "lib/model/generator.h"
#include "tests/scratch.h"
#include "tests/tiny_model.h"

#include <spdlog/spdlog.h>
#include <catch2/catch.hpp>

#include <cmath>
#include <cstdlib>

using namespace million;

namespace {

[[maybe_unused]] const bool kQuiet = (spdlog::set_level(spdlog::level::err), true);

std::shared_ptr<const Model> tiny(const TinyModelSpec& spec = {}) {
  const Scratch folder;
  return Model::load(write_tiny_model(spec, folder / "tiny.gguf"));
}

std::shared_ptr<const Model> default_model() {
  const char* path = std::getenv("MILLION_MODEL");
  return Model::load(path ? path
                          : MILLION_SOURCE_DIR "/data/models/SmolLM2-135M-Instruct.Q4_1.gguf");
}

std::vector<int32_t> random_ids(int n, int n_vocab, uint64_t seed) {
  Rng rng(seed);
  std::vector<int32_t> ids;
  for (int i = 0; i < n; ++i) ids.push_back(static_cast<int32_t>(rng.below(n_vocab)));
  return ids;
}

Method make_method(const std::shared_ptr<const Model>& model, const std::string& text) {
  const TokenText calibration{"random", "hash", random_ids(4096, model->config.n_vocab, 3)};
  MethodFactory factory(model, {&calibration, 512, 4096}, {});
  return factory.make(MethodSpec::parse(text), 512);
}

EngineOptions options(Backend backend, int chunk, int64_t capacity) {
  EngineOptions o;
  o.backend = backend;
  o.decoder = {PrefillCompute::kF32, DecodeCompute::kExact, chunk};
  o.async_encode = true;
  o.capacity = capacity;
  return o;
}

/// Logits of every token: a prompt, then one by one.
std::vector<float> logits(Engine& engine, std::span<const int32_t> ids, int prompt) {
  const int vocab = engine.model().config.n_vocab, d = engine.model().config.d_model;
  std::vector<float> out(ids.size() * vocab);
  std::vector<float> hidden;
  const auto take = [&](std::span<const float> h) {
    hidden.insert(hidden.end(), h.begin(), h.end());
  };
  take(engine.forward(ids.first(prompt)));
  for (size_t i = prompt; i < ids.size(); ++i) take(engine.forward(ids.subspan(i, 1)));
  engine.logits(hidden.data(), static_cast<int>(hidden.size() / d), out.data());
  return out;
}

/// Root mean square of the difference over that of the logits around their mean.
double deviation(const std::vector<float>& got, const std::vector<float>& want) {
  double mean = 0.0, error = 0.0, square = 0.0;
  for (const float x : want) mean += x / static_cast<double>(want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    error += (got[i] - want[i]) * (got[i] - want[i]);
    square += (want[i] - mean) * (want[i] - mean);
  }
  return std::sqrt(error / square);
}

/// Halves in the products and the cache's queries: 2e-3 for two layers. Codes that fall to another
/// centroid, because keys differ by a rounding, add to it.
constexpr double kExactBound = 3e-3, kCodedBound = 4e-2;

}  // namespace

TEST_CASE("device engine: logits of a tiny model as on the CPU", "[device]") {
  const auto ids = random_ids(230, 280, 5);
  for (const TinyModelSpec& spec :
       {TinyModelSpec{},
        TinyModelSpec{.seed = 2, .n_heads = 6, .type = BlockType::kQ8_0, .biases = true},
        TinyModelSpec{.seed = 3,
        .n_heads = 2,
        .n_kv_heads = 2,
        .head_dim = 128,
        .tied = false,
        .rope_scaling = "yarn"}}) {
    const auto model = tiny(spec);
    for (const char* text :
         {"fp16", "pq:M=32,nbits=8,frame=off,sinks=4", "pq:M=16,nbits=8,sinks=4,span=1",
          "kivi:bits=4,group=32,residual=64", "kvquant:bits=4,outliers=0.01"}) {
      const Method method = make_method(model, text);
      const auto run = [&](Backend backend, int prompt) {
        return logits(*make_engine(model, method, options(backend, 48, 240)), ids, prompt);
      };
      const auto want = run(Backend::kCpu, 230);
      const double error = deviation(run(Backend::kCudaEmulated, 100), want);
      INFO(text << " head_dim " << spec.head_dim << ": " << error);
      std::printf("device engine, head_dim %d, %-40s %.1e\n", spec.head_dim, text, error);
      CHECK(error < (std::string(text) == "fp16" ? kExactBound : kCodedBound));
    }
  }
}

TEST_CASE("device engine: the default model's logits as on the CPU", "[device][model]") {
  const auto model = default_model();
  const auto ids = model->tokenizer.encode(
      "The key-value cache of a transformer holds one key and one value for each token, layer and "
      "head. Its size grows with the length of the text, and every step of decoding reads it all.");
  for (const char* text : {"fp16", "kivi:bits=4,group=32,residual=32"}) {
    const Method method = make_method(model, text);
    const int n = static_cast<int>(ids.size());
    const auto want = logits(*make_engine(model, method, options(Backend::kCpu, 512, 64)), ids, n);
    const auto got =
        logits(*make_engine(model, method, options(Backend::kCudaEmulated, 512, 64)), ids, n - 4);
    const double error = deviation(got, want);
    std::printf("device engine, default model, %-40s %.1e\n", text, error);
    CHECK(error < (std::string(text) == "fp16" ? 5e-3 : kCodedBound));
  }
}

TEST_CASE("device engine: greedy text of the default model is the golden one", "[device][model]") {
  const Json golden = Json::parse(read_file(MILLION_TEST_DIR "/golden/logits.json"))["greedy"];
  const auto model = default_model();
  Generator generator(model, options(Backend::kCudaEmulated, 512, 128),
                      exact_method(model->config.geometry()), SamplerOptions{});
  const auto expected = golden["generated_ids"].get<std::vector<int32_t>>();
  const Generation g = generator.run(golden["prompt_ids"].get<std::vector<int32_t>>(),
                                     static_cast<int>(expected.size()), false,
                                     [](std::string_view) { return true; });
  CHECK(g.ids == expected);
}

TEST_CASE("device engine: a cleared engine repeats itself, a bad token is named", "[device]") {
  const auto model = tiny();
  const auto engine = make_engine(model, make_method(model, "kivi:bits=4,group=32,residual=32"),
                                  options(Backend::kCudaEmulated, 32, 100));
  const auto ids = random_ids(80, 280, 9);
  const auto first = logits(*engine, ids, 40);
  engine->clear();
  CHECK(logits(*engine, ids, 40) == first);
  const int32_t bad = 280;
  CHECK_THROWS_WITH(engine->forward({&bad, 1}), Catch::Contains("token id 280"));
}

TEST_CASE("device engine: shapes and options without kernels name the CPU", "[device]") {
  const auto odd = tiny({.head_dim = 80});
  CHECK_THROWS_WITH(make_engine(odd, exact_method(odd->config.geometry()),
                                options(Backend::kCudaEmulated, 8, 16)),
                    Catch::Contains("head_dim 80") && Catch::Contains("--backend cpu"));
  const auto model = tiny();
  EngineOptions o = options(Backend::kCudaEmulated, 8, 16);
  o.skip_share = 1e-3f;
  CHECK_THROWS_WITH(make_engine(model, exact_method(model->config.geometry()), o),
                    Catch::Contains("--skip-mass"));
#ifndef MILLION_CUDA
  CHECK_THROWS_WITH(
      make_engine(model, exact_method(model->config.geometry()), options(Backend::kCuda, 8, 16)),
      Catch::Contains("--backend cpu"));
#endif
}

TEST_CASE("device engine: an overflow of halves is an error, not a number", "[device]") {
  const auto model = std::const_pointer_cast<Model>(tiny());
  model->layers[1].attn_norm[3] = INFINITY;
  const auto engine = make_engine(model, exact_method(model->config.geometry()),
                                  options(Backend::kCudaEmulated, 8, 16));
  const auto ids = random_ids(4, 280, 1);
  CHECK_THROWS_WITH(engine->forward(ids), Catch::Contains("hidden state at position 0"));
}

TEST_CASE("device engine: any allocation may fail, and nothing stays behind", "[device][faults]") {
  const auto model = tiny({.n_layers = 1});
  const Method method = exact_method(model->config.geometry());
  int failures = 0;
  for (int fault = 0;; ++fault) {
    const auto device = make_emulated_device({.fail_allocation = fault});
    bool failed = false;
    try {
      make_device_engine(device, model, method, options(Backend::kCudaEmulated, 8, 16));
    } catch (const Error& e) {
      failed = true;
      CHECK(e.code() == ErrorCode::kNoResources);
    }
    CHECK(device->used_bytes() == 0);
    if (!failed) break;
    ++failures;
  }
  CHECK(failures > 15);
}
