// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/allocation.h"

#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/core/progress.h"
#include "lib/eval/perplexity.h"
#include "lib/quant/exact_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

namespace million {
namespace {

constexpr int kWindowTokens = 1024;

/// A trained codec in one layer, exact halves in all others.
class OneLayerCodec final : public Codec {
 public:
  OneLayerCodec(std::shared_ptr<const Codec> codec, const KvGeometry& geometry, int layer)
      : codec_(std::move(codec)), geometry_(geometry), layer_(layer) {}

  std::string spec() const override { return codec_->spec(); }
  KeyFrame frame() const override { return codec_->frame(); }
  int block_tokens() const override { return codec_->block_tokens(); }
  void train(const CalibrationSet&, int) override { MILLION_ASSERT(!"already trained"); }
  void load(const TensorBag&) override { MILLION_ASSERT(!"already trained"); }
  double nominal_bits() const override { return codec_->nominal_bits(); }
  std::unique_ptr<CodeStore> make_store(int layer) const override {
    return layer == layer_ ? codec_->make_store(layer) : make_exact_store(geometry_);
  }

 private:
  std::shared_ptr<const Codec> codec_;
  KvGeometry geometry_;
  int layer_;
};

/// One PQ shape of a head's row.
struct Shape {
  int M, nbits;
  double bits;
};

/// Shapes by rising bits.
std::vector<Shape> candidate_shapes(int head_dim) {
  std::vector<Shape> shapes;
  for (const auto& [part, nbits] :
       {std::pair{8, 6}, {8, 8}, {4, 6}, {4, 7}, {4, 8}, {2, 5}, {2, 6}, {2, 7}, {2, 8}})
    if (head_dim % part == 0)
      shapes.push_back(
          {head_dim / part, nbits, static_cast<double>(head_dim / part) * nbits / head_dim});
  return shapes;
}

/// Predicted divergence of a share at other bits than it was measured at.
double predicted_kl(const LayerShare& share, double base_bits, double bits) {
  return share.kl * std::exp2(2.0 * (base_bits - bits));
}

/// Index of each share's shape: the upgrade that saves most per bit, as long as one fits.
std::vector<size_t> choose_shapes(const std::vector<LayerShare>& shares,
                                  const std::vector<Shape>& shapes, double base_bits,
                                  double budget) {
  std::vector<size_t> chosen(shares.size(), 0);
  double left = (budget - shapes[0].bits) * static_cast<double>(shares.size()) + 1e-9;
  for (;;) {
    std::optional<size_t> best;
    size_t best_to = 0;
    double best_gain = 0.0;
    for (size_t i = 0; i < shares.size(); ++i)
      for (size_t to = chosen[i] + 1; to < shapes.size(); ++to) {
        const double more = shapes[to].bits - shapes[chosen[i]].bits;
        const double gain = (predicted_kl(shares[i], base_bits, shapes[chosen[i]].bits) -
                             predicted_kl(shares[i], base_bits, shapes[to].bits)) /
                            more;
        if (more > left || gain <= best_gain) continue;
        best = i;
        best_to = to;
        best_gain = gain;
      }
    if (!best) return chosen;
    left -= shapes[best_to].bits - shapes[chosen[*best]].bits;
    chosen[*best] = best_to;
  }
}

/// "16x8*28+32x6*2"
std::string layers_text(const std::vector<Shape>& layers) {
  std::string text;
  for (size_t i = 0; i < layers.size();) {
    size_t end = i;
    while (end < layers.size() && layers[end].bits == layers[i].bits) ++end;
    text +=
        fmt::format("{}{}x{}*{}", text.empty() ? "" : "+", layers[i].M, layers[i].nbits, end - i);
    i = end;
  }
  return text;
}

/// The codec text with its option `layers`; M and nbits no longer matter and stay.
std::string with_layers(const std::string& codec, const std::string& layers) {
  return fmt::format("{},layers={}", codec, layers);
}

/// KL of each layer's keys, then values, alone through the base method.
std::vector<double> measure_layers(std::shared_ptr<const Model> model, const Method& method,
                                   const CalibrationPlan& calibration,
                                   const DecoderOptions& decoder) {
  const KvGeometry g = model->config.geometry();
  EvaluationPlan plan;
  plan.windows = cut_windows(*calibration.text, std::min(kWindowTokens, calibration.context), 1);
  plan.decoder = decoder;
  Reference reference;
  evaluate(model, exact_method(g), plan, nullptr, &reference);
  std::vector<double> kl;
  Progress progress("sensitivity of layers", 2 * g.n_layers);
  for (int i = 0; i < 2 * g.n_layers; ++i) {
    Method one = exact_method(g);
    one.spec = method.spec;
    one.spec.window = 0;
    const bool keys = i < g.n_layers;
    (keys ? one.key_codec : one.value_codec) = std::make_shared<OneLayerCodec>(
        keys ? method.key_codec : method.value_codec, g, i % g.n_layers);
    kl.push_back(block_mean(evaluate(model, one, plan, &reference).scores.kl).mean);
    progress.step();
  }
  return kl;
}

/// measure_layers, or what an earlier run kept of it. A damaged file is measured again.
std::vector<double> sensitivity(std::shared_ptr<const Model> model, const Method& method,
                                const CalibrationPlan& calibration, const DecoderOptions& decoder,
                                const std::filesystem::path& folder) {
  const Json id = {{"version", 1},
                   {"method", method.spec.to_string()},
                   {"calibration", to_json(method.calibration)},
                   {"model_sha256", model->sha256}};
  const auto path = folder / fmt::format("sensitivity-{}.json", sha256_of(id.dump()).substr(0, 16));
  if (!folder.empty() && std::filesystem::exists(path)) {
    const Json kept = Json::parse(read_file(path), nullptr, false);
    const Json kl =
        kept.is_object() && kept.value("id", Json()) == id ? kept.value("kl", Json()) : Json();
    if (kl.is_array() && kl.size() == static_cast<size_t>(2 * model->config.n_layers) &&
        std::all_of(kl.begin(), kl.end(), [](const Json& x) { return x.is_number(); }))
      return kl.get<std::vector<double>>();
  }
  const std::vector<double> kl = measure_layers(model, method, calibration, decoder);
  if (!folder.empty()) {
    std::filesystem::create_directories(folder);
    write_file_atomic(path, Json{{"id", id}, {"kl", kl}}.dump());
  }
  return kl;
}

}  // namespace

std::string Allocation::to_text() const {
  const size_t n = shares.size() / 2;
  std::string text = fmt::format(
      "{:.3f} bits on average; KL of each layer's keys or values alone, and the bits they got\n"
      "layer   keys KL   bits   values KL   bits\n",
      bits);
  for (size_t l = 0; l < n; ++l)
    text += fmt::format("{:>5}  {:.2e}   {:.2f}    {:.2e}   {:.2f}\n", l, shares[l].kl,
                        shares[l].bits, shares[n + l].kl, shares[n + l].bits);
  return text + spec.to_string() + "\n";
}

Allocation allocate_bits(std::shared_ptr<const Model> model, MethodFactory& factory,
                         const CalibrationPlan& calibration, const DecoderOptions& decoder,
                         const MethodSpec& base, double budget,
                         const std::filesystem::path& folder) {
  for (const std::string& codec : {base.key_codec, base.value_codec})
    MILLION_REQUIRE(codec.rfind("pq:", 0) == 0 && codec.find("layers=") == std::string::npos,
                    ErrorCode::kUsage,
                    "--budget-bits: the base method is '{}', expected pq without layers=", codec);
  const std::vector<Shape> shapes = candidate_shapes(model->config.head_dim);
  MILLION_REQUIRE(!shapes.empty() && budget >= shapes[0].bits, ErrorCode::kUsage,
                  "--budget-bits {}: the smallest shape has {} bits", budget,
                  shapes.empty() ? 0.0 : shapes[0].bits);
  const Method method = factory.make(base, calibration.context);
  const std::vector<double> kl = sensitivity(model, method, calibration, decoder, folder);
  Allocation result;
  const int n_layers = model->config.n_layers;
  for (int i = 0; i < 2 * n_layers; ++i)
    result.shares.push_back(
        {i < n_layers ? KvKind::kKey : KvKind::kValue, i % n_layers, kl[i], 0.0});
  const std::vector<size_t> chosen =
      choose_shapes(result.shares, shapes, method.nominal_bits(), budget);
  std::vector<Shape> keys, values;
  for (size_t i = 0; i < chosen.size(); ++i) {
    result.shares[i].bits = shapes[chosen[i]].bits;
    result.bits += shapes[chosen[i]].bits / static_cast<double>(chosen.size());
    (result.shares[i].kind == KvKind::kKey ? keys : values).push_back(shapes[chosen[i]]);
  }
  result.spec = base;
  result.spec.key_codec = with_layers(base.key_codec, layers_text(keys));
  result.spec.value_codec = with_layers(base.value_codec, layers_text(values));
  result.spec = MethodSpec::parse(result.spec.to_string());  // options in canonical order
  return result;
}

}  // namespace million
