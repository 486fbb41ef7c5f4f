// SPDX-License-Identifier: Apache-2.0
// The backward pass against central differences of the forward pass, on small models of every kind;
// its loss against the decoder's; and what it promises: equal bits for every number of threads.
#include "lib/core/parallel.h"
#include "lib/core/rng.h"
#include "lib/eval/perplexity.h"
#include "lib/model/gradients.h"
#include "tests/scratch.h"
#include "tests/tiny_model.h"

#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>

using namespace million;

namespace {

constexpr int kTokens = 150;  ///< more than one query tile and one row tile

std::shared_ptr<const Model> tiny(const TinyModelSpec& spec) {
  const Scratch folder;
  return Model::load(write_tiny_model(spec, folder / "tiny.gguf"));
}

std::vector<int32_t> tokens(int n, uint64_t seed) {
  Rng rng(seed);
  std::vector<int32_t> ids;
  for (int i = 0; i < n; ++i) ids.push_back(static_cast<int32_t>(rng.below(280)));
  return ids;
}

/// Keeps the derivatives; adds `step * direction` to one layer's keys or values.
struct TestProbe : GradientProbe {
  void on_gradients(int layer, int n, const float* dk, const float* dv) override {
    order.push_back(layer);
    const size_t size = static_cast<size_t>(n) * row;
    keys[layer].assign(dk, dk + size);
    values[layer].assign(dv, dv + size);
  }
  void edit(int layer, int, float* k, float* v) override {
    if (layer != edited) return;
    float* rows = edit_keys ? k : v;
    for (size_t i = 0; i < direction.size(); ++i)
      rows[i] += static_cast<float>(step) * direction[i];
  }

  int row = 0, edited = -1;
  bool edit_keys = true;
  double step = 0.0;
  std::vector<float> direction;
  std::vector<int> order;
  std::map<int, std::vector<float>> keys, values;
};

TestProbe gradients(const std::shared_ptr<const Model>& model, const std::vector<int32_t>& ids,
                    const GradientOptions& options = {}, GradientLoss* loss = nullptr) {
  TestProbe probe;
  probe.row = model->config.geometry().row();
  const GradientLoss got = GradientPass(model).run(ids, options, probe);
  if (loss) *loss = got;
  return probe;
}

double dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

/// A unit direction in tokens [begin, end) of one head: part noise, part gradient (so that the
/// derivative is not lost in the rounding of the loss).
std::vector<float> direction(const std::vector<float>& gradient, int row, int head, int begin,
                             int end, uint64_t seed) {
  std::vector<float> noise(gradient.size(), 0.0f), part(gradient.size(), 0.0f);
  Rng rng(seed);
  for (int t = begin; t < end; ++t)
    for (int c = head * 64; c < head * 64 + 64; ++c) {
      const size_t i = static_cast<size_t>(t) * row + c;
      noise[i] = static_cast<float>(rng.normal());
      part[i] = gradient[i];
    }
  const double a = std::sqrt(dot(noise, noise)), b = std::sqrt(dot(part, part));
  REQUIRE(b > 0);
  std::vector<float> sum(gradient.size());
  for (size_t i = 0; i < sum.size(); ++i)
    sum[i] = static_cast<float>(noise[i] / a + part[i] / b) / 1.4142f;
  return sum;
}

/// Central differences at two steps against gradient . direction.
void check_direction(GradientPass& pass, const std::vector<int32_t>& ids,
                     const std::vector<int32_t>& labels, TestProbe& probe, double expected) {
  const auto slope = [&](double step) {
    double loss[2];
    for (const int side : {0, 1}) {
      probe.step = side == 0 ? step : -step;
      loss[side] = pass.loss(ids, labels, probe).sum();
    }
    return (loss[0] - loss[1]) / (2 * step);
  };
  const double wide = slope(0.1), narrow = slope(0.05);
  INFO("slopes " << wide << " and " << narrow << ", gradient " << expected);
  // The error of a central difference falls by four when the step is halved; what is left is
  // rounding of the loss, about 3e-5 in sum over a step of 0.1.
  const double extrapolated = (4 * narrow - wide) / 3;
  CHECK(std::abs(wide - narrow) < 0.03 * std::abs(expected) + 2e-3);
  CHECK(std::abs(extrapolated - expected) < 0.005 * std::abs(expected) + 2e-3);
}

void check_model(const TinyModelSpec& spec, GradientLabels kind = GradientLabels::kText) {
  const auto model = tiny(spec);
  const auto ids = tokens(kTokens, 11);
  GradientLoss loss;
  const TestProbe got = gradients(model, ids, {kind, 5}, &loss);
  CHECK(got.order == std::vector<int>{1, 0});
  GradientPass pass(model);
  struct Place {
    int head, begin, end;
  };
  for (const int layer : {0, 1})
    for (const bool keys : {true, false})
      for (const Place& p :
           {Place{0, 0, 1}, Place{1, 5, 6}, Place{0, 100, 140}, Place{1, 0, 150}}) {
        INFO("layer " << layer << (keys ? " keys" : " values") << " head " << p.head << " tokens "
                      << p.begin << " to " << p.end);
        const auto& gradient = (keys ? got.keys : got.values).at(layer);
        TestProbe probe;
        probe.edited = layer;
        probe.edit_keys = keys;
        probe.direction = direction(gradient, got.row, p.head, p.begin, p.end, 7 * layer + p.end);
        check_direction(pass, ids, loss.labels, probe, dot(gradient, probe.direction));
      }
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// Summed cross entropy of the text in the decoder, through the fp16 cache.
double decoder_loss(const std::shared_ptr<const Model>& model, const std::vector<int32_t>& ids) {
  const KvGeometry g = model->config.geometry();
  const int n = static_cast<int>(ids.size());
  Decoder decoder(model, {PrefillCompute::kF32, DecodeCompute::kExact, n});
  Method method;
  method.key_codec = make_codec("fp16", KvKind::kKey, g);
  method.value_codec = make_codec("fp16", KvKind::kValue, g);
  KvCache cache(g, method, Protocol::kDecodePath);
  const auto hidden = decoder.forward(ids, cache);
  const TokenScores scores = score_hidden(decoder, hidden.data(), nullptr, n - 1, ids.data() + 1);
  double sum = 0.0;
  for (const double x : scores.nll) sum += x;
  return sum;
}

}  // namespace

TEST_CASE("gradients equal central differences", "[gradients]") {
  SECTION("plain, tied head") { check_model({}); }
  SECTION("biases, untied head") {
    TinyModelSpec spec;
    spec.biases = true;
    spec.tied = false;
    check_model(spec);
  }
  SECTION("yarn") {
    TinyModelSpec spec;
    spec.rope_scaling = "yarn";
    check_model(spec);
  }
  SECTION("llama3") {
    TinyModelSpec spec;
    spec.rope_scaling = "llama3";
    check_model(spec);
  }
  SECTION("block-quantized weights, a query head for each KV head") {
    TinyModelSpec spec;
    spec.type = BlockType::kQ8_0;
    spec.n_heads = 2;
    check_model(spec);
  }
  SECTION("sampled labels") { check_model({}, GradientLabels::kSampled); }
}

TEST_CASE("the loss is the decoder's", "[gradients]") {
  for (const char* scaling : {"", "yarn"}) {
    TinyModelSpec spec;
    spec.rope_scaling = scaling;
    spec.biases = true;
    const auto model = tiny(spec);
    const auto ids = tokens(kTokens, 3);
    GradientLoss loss;
    gradients(model, ids, {}, &loss);
    CHECK(loss.sum() == Approx(decoder_loss(model, ids)).epsilon(1e-5));
    CHECK(loss.labels == std::vector<int32_t>(ids.begin() + 1, ids.end()));
  }
}

TEST_CASE("a real vocabulary: the decoder's loss, the same bits, sampled labels", "[gradients]") {
  const char* path = std::getenv("MILLION_MODEL");
  const auto model =
      Model::load(path ? path : MILLION_SOURCE_DIR "/data/models/SmolLM2-135M-Instruct.Q4_1.gguf");
  const auto ids = model->tokenizer.encode(
      "The cache of a language model keeps a key and a value of every "
      "token in every layer, so that no token is computed twice.");
  const int before = threads(), last = model->config.n_layers - 1;
  GradientLoss text, one, two;
  gradients(model, ids, {}, &text);
  // The decoder rounds keys and values to f16.
  CHECK(text.sum() == Approx(decoder_loss(model, ids)).epsilon(1e-3));
  set_threads(1);
  const TestProbe a = gradients(model, ids, {GradientLabels::kSampled, 4}, &one);
  set_threads(2);
  const TestProbe b = gradients(model, ids, {GradientLabels::kSampled, 4}, &two);
  set_threads(before);
  for (const int layer : {0, last}) {
    CHECK(same_bits(a.keys.at(layer), b.keys.at(layer)));
    CHECK(same_bits(a.values.at(layer), b.values.at(layer)));
  }
  CHECK(one.labels == two.labels);
  CHECK(one.labels != text.labels);
  // A label of the model's own costs about its entropy, far below that of a uniform draw.
  CHECK(one.sum() < 0.6 * std::log(49152.0) * static_cast<double>(one.nll.size()));
}

TEST_CASE("gradients have the same bits for every number of threads", "[gradients]") {
  const auto model = tiny({});
  const int before = threads();
  for (const int n : {2, 40, 128, 300}) {
    const auto ids = tokens(n, 9);
    set_threads(1);
    GradientLoss one_loss, loss;
    const TestProbe one = gradients(model, ids, {GradientLabels::kSampled, 4}, &one_loss);
    for (const int count : {2, 3}) {
      INFO(n << " tokens, " << count << " threads");
      set_threads(count);
      const TestProbe got = gradients(model, ids, {GradientLabels::kSampled, 4}, &loss);
      for (const int layer : {0, 1}) {
        CHECK(same_bits(got.keys.at(layer), one.keys.at(layer)));
        CHECK(same_bits(got.values.at(layer), one.values.at(layer)));
      }
      CHECK(loss.nll == one_loss.nll);
    }
  }
  set_threads(before);
}

TEST_CASE("sampled labels follow seed and distribution", "[gradients]") {
  const auto model = tiny({});
  const auto ids = tokens(300, 2);
  GradientLoss a, b, other, text;
  gradients(model, ids, {GradientLabels::kSampled, 1}, &a);
  gradients(model, ids, {GradientLabels::kSampled, 1}, &b);
  gradients(model, ids, {GradientLabels::kSampled, 2}, &other);
  gradients(model, ids, {}, &text);
  CHECK(a.labels == b.labels);
  CHECK(a.labels != other.labels);
  CHECK(a.labels != text.labels);
  // Labels of the model itself cost its entropy, those of a random text much more.
  CHECK(a.sum() < text.sum());
  for (const double x : a.nll) CHECK(x >= 0);
}

TEST_CASE("the last token's key predicts nothing; bad windows are refused", "[gradients]") {
  const auto model = tiny({});
  const auto ids = tokens(20, 2);
  const TestProbe got = gradients(model, ids);
  const auto& keys = got.keys.at(1);
  CHECK(std::all_of(keys.end() - got.row, keys.end(), [](float x) { return x == 0.0f; }));
  CHECK(std::any_of(keys.begin(), keys.begin() + got.row, [](float x) { return x != 0.0f; }));
  CHECK_THROWS_WITH(gradients(model, {7}), Catch::Contains("1 tokens"));
  CHECK_THROWS_WITH(gradients(model, {7, 280}), Catch::Contains("280"));
}
