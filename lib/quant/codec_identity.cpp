// SPDX-License-Identifier: Apache-2.0
#include "lib/quant/codec_identity.h"

#include "lib/core/error.h"

#include <fmt/ranges.h>

#include <cmath>

namespace million {
namespace {

Json geometry_json(const KvGeometry& g) {
  return {{"n_layers", g.n_layers},
          {"n_heads", g.n_heads},
          {"n_kv_heads", g.n_kv_heads},
          {"head_dim", g.head_dim},
          {"rope", g.rope.params().to_string()}};
}

template <class T>
T attribute(const Json& object, const char* key) {
  const auto it = object.find(key);
  MILLION_REQUIRE(it != object.end(), ErrorCode::kBadInput,
                  "codebook: attribute '{}' is missing; train the codebooks again", key);
  try {
    return it->get<T>();
  } catch (const Json::exception&) {
    fail(ErrorCode::kBadInput,
         "codebook: attribute '{}' is {}, of the wrong type; train the "
         "codebooks again",
         key, it->dump());
  }
}

}  // namespace

void CodecIdentity::trained_on(const CalibrationSet& data, int sinks, bool gradients) {
  const Json expected = geometry_json(geometry_), got = geometry_json(data.geometry);
  MILLION_REQUIRE(got == expected, ErrorCode::kBadInput,
                  "{}: calibration data has shape {}, expected {}; calibrate with the same model",
                  spec_, got.dump(), expected.dump());
  MILLION_REQUIRE(data.context > 0 && data.n_tokens > 0, ErrorCode::kBadInput,
                  "{}: calibration has {} tokens in windows of {}; expected at least one token",
                  spec_, data.n_tokens, data.context);
  sinks_ = sinks;
  info_ = {data.model_sha256, data.text_sha256, data.text_name,
           data.context,      data.n_tokens,    data.covered()};
  if (!gradients) return;
  info_.grad_windows = data.n_grad_tokens / data.context;
  info_.grad_labels = data.grad_labels;
}

Json CodecIdentity::attributes() const {
  Json calibration = {{"model_sha256", info_.model_sha256}, {"text_sha256", info_.text_sha256},
                      {"text_name", info_.text_name},       {"context", info_.context},
                      {"n_tokens", info_.n_tokens},         {"positions", info_.positions}};
  if (info_.grad_windows >= 0) calibration["grad_windows"] = info_.grad_windows;
  if (info_.grad_windows > 0) calibration["labels"] = info_.grad_labels;
  return {{"spec", spec_},
          {"kind", kind_name(kind_)},
          {"geometry", geometry_json(geometry_)},
          {"sinks", sinks_},
          {"calibration", calibration}};
}

void CodecIdentity::loaded_from(const TensorBag& bag) {
  const auto check = [&](const char* what, const Json& got, const Json& expected) {
    MILLION_REQUIRE(got == expected, ErrorCode::kBadInput,
                    "codebook for {}: its {} is {}, expected {}; load the matching file or train "
                    "again",
                    spec_, what, got.dump(), expected.dump());
  };
  check("codec", attribute<Json>(bag.attributes, "spec"), spec_);
  check("kind", attribute<Json>(bag.attributes, "kind"), kind_name(kind_));
  check("cache shape", attribute<Json>(bag.attributes, "geometry"), geometry_json(geometry_));
  info_ = calibration_info(bag);
  sinks_ = attribute<int>(bag.attributes, "sinks");
}

CalibrationInfo calibration_info(const TensorBag& bag) {
  const Json c = attribute<Json>(bag.attributes, "calibration");
  CalibrationInfo info = {attribute<std::string>(c, "model_sha256"),
                          attribute<std::string>(c, "text_sha256"),
                          attribute<std::string>(c, "text_name"),
                          attribute<int>(c, "context"),
                          attribute<int>(c, "n_tokens"),
                          attribute<int64_t>(c, "positions")};
  if (c.contains("grad_windows")) info.grad_windows = attribute<int>(c, "grad_windows");
  if (info.grad_windows > 0) info.grad_labels = attribute<std::string>(c, "labels");
  return info;
}

const NamedTensor& require_tensor(const TensorBag& bag, const std::string& name,
                                  const std::vector<std::size_t>& shape) {
  const auto it = bag.tensors.find(name);
  MILLION_REQUIRE(it != bag.tensors.end(), ErrorCode::kBadInput,
                  "codebook: tensor '{}' is missing; train the codebooks again", name);
  std::size_t n = 1;
  for (const std::size_t extent : shape) n *= extent;
  MILLION_REQUIRE(it->second.shape == shape && it->second.data.size() == n, ErrorCode::kBadInput,
                  "codebook: tensor '{}' has shape [{}] and {} values, expected [{}]; train the "
                  "codebooks again",
                  name, fmt::join(it->second.shape, ", "), it->second.data.size(),
                  fmt::join(shape, ", "));
  for (const float x : it->second.data)
    MILLION_REQUIRE(std::isfinite(x), ErrorCode::kBadInput,
                    "codebook: tensor '{}' holds {}; expected finite values: train again", name, x);
  return it->second;
}

}  // namespace million
