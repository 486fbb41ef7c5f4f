// SPDX-License-Identifier: Apache-2.0
// Stand-ins for published models: their shape, random weights. For rows of speed and memory where
// the weights themselves are not at hand; what such a model writes has no meaning, and its name
// says "random" in every record.
#pragma once

#include "lib/model/model.h"

#include <memory>
#include <span>
#include <string_view>

namespace million {

/// One published shape, from the model's config.json.
struct ModelShape {
  std::string_view name, arch;
  int n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff, n_vocab, n_context;
  float rms_eps, rope_base;
  bool tied = false, biases = false;
  RopeScaling scaling = RopeScaling::kNone;
  float factor = 1.0f;
  int original_context = 0;
};

std::span<const ModelShape> model_shapes();

/// `text`: NAME[,layers=N][,type=q4_0|q8_0|f16][,seed=N]. Error(kUsage) on an unknown shape or
/// option, naming the known ones; Error(kNoResources) when the weights need more memory than is
/// available, naming what would fit. Equal texts give equal weights. The vocabulary is the 256
/// bytes and unused tokens.
std::shared_ptr<const Model> random_model(std::string_view text);

}  // namespace million
