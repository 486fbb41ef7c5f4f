// SPDX-License-Identifier: Apache-2.0
// What the families of the Llama form share: settings from either format, and the weights of
// RMSNorm - attention - RMSNorm - SwiGLU blocks. A family is a recipe for them.
#pragma once

#include "lib/model/arch_registry.h"

#include <string>

namespace million {

// Upper bounds far above any real model; they keep every product of two of them inside 64 bits and
// every single one inside int.
inline constexpr int kMaxLayers = 1 << 12, kMaxWidth = 1 << 22, kMaxHeads = 1 << 14;
inline constexpr int kMaxContext = 1 << 30;

/// The context that a RoPE scaling by `factor` reaches from `trained` tokens, at most kMaxContext.
int scaled_context(int trained, float factor);
/// Error(kBadInput) unless KV heads divide heads and the attention kernels have this head_dim.
void require_heads(const ModelConfig& config, const std::string& file);

enum class Bias { kNone, kOptional, kRequired };

/// What differs between the families.
struct DenseRecipe {
  /// How GGUF files of the family order the rows of Q and K; Hugging Face folders have halves.
  RopePairs gguf_pairs = RopePairs::kHalves;
  Bias gguf_qkv_bias = Bias::kOptional;
  Bias hf_qkv_bias = Bias::kNone;
};

/// Settings and weights of one model.
void load_dense(const ConfigSource& from, const DenseRecipe& recipe, TensorSource& tensors,
                Model& model);

}  // namespace million
