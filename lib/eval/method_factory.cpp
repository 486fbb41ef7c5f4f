// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/method_factory.h"

#include "kernels/ops.h"
#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/core/progress.h"
#include "lib/results/tensor_file.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>

namespace million {
namespace {

/// Raised when training changes, so that codebook files of older builds are trained again.
constexpr int kCodebookVersion = 1;

/// Copies what passes through the cache into a CalibrationSet.
class CalibrationProbe : public Probe {
 public:
  CalibrationProbe(CalibrationSet& set) : set_(set) {}
  void set_window(int64_t first_row) { first_row_ = first_row; }

  void on_layer(int layer, int64_t first, int n, const float* q_pre, const float*,
                const float* k_pre, const float*, const float* v) override {
    const KvGeometry& g = set_.geometry;
    const int64_t row = g.row(), to = (first_row_ + first) * row;
    ops().f32_to_f16(k_pre, set_.k_pre[layer].data() + to, n * row);
    ops().f32_to_f16(v, set_.v[layer].data() + to, n * row);
    // RoPE keeps the sum over a pair, so queries before RoPE serve every frame.
    std::vector<float>& moment = set_.q_second_moment[layer];
    const double weight = 1.0 / (static_cast<double>(set_.n_tokens) * g.group());
    std::vector<double> sums(moment.size(), 0.0);
    for (int64_t i = 0; i < n; ++i)
      for (int h = 0; h < g.n_heads; ++h) {
        const float* q = q_pre + (i * g.n_heads + h) * g.head_dim;
        double* sum = sums.data() + h / g.group() * g.head_dim;
        for (int c = 0; c < g.head_dim; ++c) sum[c] += static_cast<double>(q[c]) * q[c];
      }
    for (size_t i = 0; i < sums.size(); ++i) moment[i] += static_cast<float>(sums[i] * weight);
  }

 private:
  CalibrationSet& set_;
  int64_t first_row_ = 0;
};

}  // namespace

Method exact_method(const KvGeometry& geometry) {
  Method method;
  method.key_codec = make_codec("fp16", KvKind::kKey, geometry);
  method.value_codec = make_codec("fp16", KvKind::kValue, geometry);
  return method;
}

CalibrationSet capture_calibration(std::shared_ptr<const Model> model, const TokenText& text,
                                   int context, int n_tokens) {
  const int count = std::max(1, n_tokens / context);
  const Windows windows = cut_windows(text, context, count);
  MILLION_REQUIRE(windows.count == count, ErrorCode::kBadInput,
                  "calibration text {} has {} tokens, {} windows of {} need {}; use a longer text "
                  "or a smaller --calib-tokens",
                  text.name, text.tokens.size(), count, context, count * context);
  CalibrationSet set;
  set.geometry = model->config.geometry();
  set.model_sha256 = model->sha256;
  set.text_sha256 = text.sha256;
  set.text_name = text.name;
  set.context = context;
  set.n_tokens = count * context;
  const size_t values = static_cast<size_t>(set.n_tokens) * set.geometry.row();
  for (int l = 0; l < set.geometry.n_layers; ++l) {
    set.k_pre.emplace_back(values);
    set.v.emplace_back(values);
    set.q_second_moment.emplace_back(set.geometry.row(), 0.0f);
  }
  Decoder decoder(model, {});
  KvCache cache(set.geometry, exact_method(set.geometry), Protocol::kDecodePath);
  CalibrationProbe probe(set);
  Progress progress("calibration", count);
  for (int w = 0; w < count; ++w) {
    cache.clear();
    probe.set_window(static_cast<int64_t>(w) * context);
    decoder.forward(windows.window(w), cache, &probe);
    progress.step();
  }
  return set;
}

MethodFactory::MethodFactory(std::shared_ptr<const Model> model, CalibrationPlan plan,
                             std::filesystem::path codebooks)
    : model_(std::move(model)), plan_(plan), codebooks_(std::move(codebooks)) {}

const CalibrationSet& MethodFactory::calibration() {
  MILLION_REQUIRE(plan_.text, ErrorCode::kUsage,
                  "this method is calibrated: give a text with --calib-text");
  if (!calibration_)
    calibration_ = capture_calibration(model_, *plan_.text, plan_.context, plan_.n_tokens);
  return *calibration_;
}

std::filesystem::path MethodFactory::file_of(const std::string& spec, KvKind kind,
                                             int sinks) const {
  const std::string id =
      fmt::format("{}|{}|{}|{}|{}|{}|{}|{}", kCodebookVersion, spec, kind_name(kind), sinks,
                  model_->sha256, plan_.text->sha256, plan_.context, plan_.n_tokens);
  std::string name = spec.substr(0, spec.find(':'));
  return codebooks_ /
         fmt::format("{}-{}-{}.h5", name, kind_name(kind), sha256_of(id).substr(0, 16));
}

std::shared_ptr<const Codec> MethodFactory::codec(const std::string& spec, KvKind kind, int sinks) {
  std::shared_ptr<Codec> codec = make_codec(spec, kind, model_->config.geometry());
  if (!codec->needs_training()) return codec;
  if (!plan_.text) calibration();  // says what is missing
  const bool keep = !codebooks_.empty();
  const auto path = keep ? file_of(codec->spec(), kind, sinks) : std::filesystem::path();
  if (keep && std::filesystem::exists(path)) {
    codec->load(load_tensors(path));
    return codec;
  }
  const CalibrationSet& data = calibration();
  const auto start = std::chrono::steady_clock::now();
  spdlog::info("training {} for {} on {} tokens of {} at context {}", codec->spec(),
               kind == KvKind::kKey ? "keys" : "values", data.n_tokens, data.text_name,
               data.context);
  codec->train(data, sinks);
  trained_seconds_ +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (keep) {
    std::filesystem::create_directories(codebooks_);
    save_tensors(path, codec->save());
  }
  return codec;
}

Method MethodFactory::make(const MethodSpec& spec, int use_context) {
  trained_seconds_ = 0.0;
  Method method;
  method.spec = spec;
  method.key_codec = codec(spec.key_codec, KvKind::kKey, spec.sinks);
  method.value_codec = codec(spec.value_codec, KvKind::kValue, spec.sinks);
  const bool key_trained = method.key_codec->needs_training();
  if (key_trained || method.value_codec->needs_training())
    method.calibration = {model_->sha256, plan_.text->sha256, plan_.text->name, plan_.context,
                          std::max(1, plan_.n_tokens / plan_.context) * plan_.context};
  if (key_trained && use_context > plan_.context &&
      method.key_codec->frame().type == KeyFrame::Type::kPostRope)
    spdlog::warn(
        "{}: keys after RoPE were calibrated at context {} and are used at {}; positions "
        "beyond it fall outside the codebooks (use --calib-context {} or rope=pre)",
        spec.key_codec, plan_.context, use_context, use_context);
  return method;
}

Json to_json(const CalibrationInfo& info) {
  if (info.n_tokens == 0) return nullptr;
  return {{"text", info.text_name},
          {"text_sha256", info.text_sha256},
          {"context", info.context},
          {"tokens", info.n_tokens}};
}

}  // namespace million
