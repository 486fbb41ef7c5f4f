// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/method_factory.h"

#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/model/position_map.h"
#include "lib/quant/codec_identity.h"
#include "lib/results/tensor_file.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>

namespace million {
namespace {

/// Raised when training changes, so that codebook files of older builds are trained again.
constexpr int kCodebookVersion = 3;

/// The name of a file holds a hash of the model, but files are copied and renamed; codebooks of
/// another model of the same shape would load and only score badly.
void require_model(const TensorBag& bag, const Model& model, const std::filesystem::path& path) {
  const std::string got = calibration_info(bag).model_sha256;
  MILLION_REQUIRE(got == model.sha256, ErrorCode::kBadInput,
                  "{}: codebooks of the model with SHA-256 {}, expected {}; delete the file to "
                  "train again",
                  path.string(), got, model.sha256);
}

}  // namespace

Method exact_method(const KvGeometry& geometry) {
  Method method;
  method.key_codec = make_codec("fp16", KvKind::kKey, geometry);
  method.value_codec = make_codec("fp16", KvKind::kValue, geometry);
  return method;
}

MethodFactory::MethodFactory(std::shared_ptr<const Model> model, CalibrationPlan plan,
                             std::filesystem::path codebooks)
    : model_(std::move(model)),
      plain_(without_self_extend(model_)),
      plan_(plan),
      codebooks_(std::move(codebooks)) {
  MILLION_REQUIRE(plan_.grad_windows >= 0 && plan_.positions >= 0, ErrorCode::kUsage,
                  "calibration: got {} gradient windows and {} positions, expected 0 (none) or "
                  "more; see --calib-grad-windows and --calib-positions",
                  plan_.grad_windows, plan_.positions);
}

const CalibrationSet& MethodFactory::calibration(bool gradients) {
  MILLION_REQUIRE(plan_.text, ErrorCode::kUsage,
                  "this method is calibrated: give a text with --calib-text");
  // Calibration data larger than memory go to the codebooks, which have a disk's size; /tmp need
  // not. TMPDIR wins.
  if (!codebooks_.empty() && !std::getenv("TMPDIR")) {
    std::filesystem::create_directories(codebooks_);
    plan_.spill = codebooks_;
  }
  if (!calibration_) calibration_ = capture_calibration(plain_, plan_);
  if (gradients && calibration_->n_grad_tokens == 0)
    capture_gradients(plain_, plan_, *calibration_);
  return *calibration_;
}

std::filesystem::path MethodFactory::file_of(const Codec& codec, KvKind kind, int sinks) const {
  const std::string spec = codec.spec();
  std::string id = fmt::format("{}|{}|{}|{}|{}|{}|{}|{}|{}", kCodebookVersion, spec,
                               kind_name(kind), sinks, model_->sha256, plan_.text->sha256,
                               plan_.context, plan_.n_tokens, plan_.covered());
  // Other frequencies, other keys; SelfExtend leaves the frequencies as they are.
  if (plain_->config.positions != "plain") id += "|" + plain_->config.rope.to_string();
  if (codec.wants_gradients())
    id += fmt::format("|{}|{}", plan_.n_grad_windows(), labels_name(plan_.labels));
  std::string name = spec.substr(0, spec.find(':'));
  return codebooks_ /
         fmt::format("{}-{}-{}.h5", name, kind_name(kind), sha256_of(id).substr(0, 16));
}

std::shared_ptr<const Codec> MethodFactory::codec(const MethodSpec& method, KvKind kind) {
  const std::string& spec = kind == KvKind::kKey ? method.key_codec : method.value_codec;
  const int sinks = method.sinks;
  std::shared_ptr<Codec> codec = make_codec(spec, kind, model_->config.geometry());
  codec->expect_window(method.window);
  if (!codec->needs_training()) return codec;
  if (!plan_.text) calibration(false);  // says what is missing
  const bool keep = !codebooks_.empty();
  const auto path = keep ? file_of(*codec, kind, sinks) : std::filesystem::path();
  if (keep && std::filesystem::exists(path)) {
    const TensorBag bag = load_tensors(path);
    codec->load(bag);
    require_model(bag, *model_, path);
    return codec;
  }
  const CalibrationSet& data = calibration(codec->wants_gradients());
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
  method.key_codec = codec(spec, KvKind::kKey);
  method.value_codec = codec(spec, KvKind::kValue);
  const bool key_trained = method.key_codec->needs_training();
  if (key_trained || method.value_codec->needs_training())
    method.calibration = calibration_of(*method.key_codec, *method.value_codec);
  use_context /= model_->config.self_extend.group;
  if (key_trained && use_context > plan_.covered() &&
      method.key_codec->frame().type == KeyFrame::Type::kPostRope)
    spdlog::warn(
        "{}: keys after RoPE were calibrated up to position {} and are used at context {}; "
        "positions beyond it fall outside the codebooks (use --calib-context {}, "
        "--calib-positions {}, or keys in another frame: frame=64 or rope=pre)",
        spec.key_codec, plan_.covered(), use_context, use_context, use_context);
  return method;
}

CalibrationInfo MethodFactory::calibration_of(const Codec& key, const Codec& value) const {
  return describe_calibration(*model_, plan_, key.wants_gradients() || value.wants_gradients());
}

Json to_json(const CalibrationInfo& info) {
  if (info.n_tokens == 0) return nullptr;
  Json json = {{"text", info.text_name},
               {"text_sha256", info.text_sha256},
               {"context", info.context},
               {"tokens", info.n_tokens},
               {"positions", info.positions}};
  if (info.grad_windows >= 0) json["grad_windows"] = info.grad_windows;
  if (info.grad_windows > 0) json["labels"] = info.grad_labels;
  return json;
}

Json calibration_json(const Model& model, const CalibrationPlan& plan, const MethodSpec& spec) {
  const KvGeometry geometry = model.config.geometry();
  const auto key = make_codec(spec.key_codec, KvKind::kKey, geometry);
  const auto value = make_codec(spec.value_codec, KvKind::kValue, geometry);
  key->expect_window(spec.window);
  value->expect_window(spec.window);
  if (!plan.text || !(key->needs_training() || value->needs_training())) return nullptr;
  return to_json(
      describe_calibration(model, plan, key->wants_gradients() || value->wants_gradients()));
}

}  // namespace million
