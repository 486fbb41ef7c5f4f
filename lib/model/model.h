// SPDX-License-Identifier: Apache-2.0
// A loaded model: configuration, weights (views into the mapped file), tokenizer.
#pragma once

#include "kernels/blocks.h"
#include "lib/core/rope.h"
#include "lib/core/tensor.h"
#include "lib/model/tokenizer.h"
#include "lib/quant/kv_types.h"

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace million {

class GgufFile;

struct ModelConfig {
  std::string arch;  ///< "llama", ... the key of the architecture table
  std::string name;
  int n_layers = 0, d_model = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0, d_ff = 0, n_vocab = 0;
  int n_context = 0;  ///< trained context length
  /// Tokens that attention was trained to see, 0: all. Full attention is equal up to there.
  int sliding_window = 0;
  float rms_eps = 1e-5f;
  RopeParams rope;
  SelfExtend self_extend;
  std::string positions = "plain";  ///< text of the PositionSpec that was applied
  KvGeometry geometry() const;
};

/// A weight matrix y = W x as it lies in the file: `rows` outputs of `cols` inputs.
struct WeightView {
  BlockType type = BlockType::kF32;
  const void* data = nullptr;
  int rows = 0, cols = 0;
  std::size_t row_bytes() const {
    const BlockShape s = block_shape(type);
    return static_cast<std::size_t>(cols) / s.values * s.bytes;
  }
  const std::byte* row(int r) const {
    return static_cast<const std::byte*>(data) + static_cast<std::size_t>(r) * row_bytes();
  }
};

/// One transformer block. Norms and biases are f32 copies; an empty bias is absent.
struct LayerWeights {
  AlignedVector<float> attn_norm, ffn_norm;
  WeightView wq, wk, wv, wo, w_gate, w_up, w_down;
  AlignedVector<float> bq, bk, bv;
};

/// Owns the mappings of its files; views stay valid as long as the Model lives.
class Model {
 public:
  /// Loads what a user calls a model: a GGUF file, a folder, a name in the Hugging Face cache or
  /// random:SHAPE (model_files.h). Error(kBadInput) with file, tensor or key, got and expected.
  static std::shared_ptr<const Model> load(const std::filesystem::path& argument);
  /// From a parsed file, which the Model then shares.
  static std::shared_ptr<const Model> from_gguf(std::shared_ptr<const GgufFile> file);
  /// From config.json, tokenizer.json and *.safetensors of a folder; `name` for records.
  static std::shared_ptr<const Model> from_folder(const std::filesystem::path& folder,
                                                  const std::string& name);

  ModelConfig config;
  WeightView token_embedding;  ///< [n_vocab][d_model]
  WeightView output;           ///< the same view when the head is tied
  AlignedVector<float> output_norm;
  std::vector<LayerWeights> layers;
  Tokenizer tokenizer;
  std::string chat_template;  ///< Jinja text from the file, may be empty
  std::filesystem::path path;
  std::string sha256;                   ///< of the file; of a folder: folder_sha256
  uint64_t weight_bytes = 0;            ///< bytes of all tensors as stored
  std::shared_ptr<const void> storage;  ///< what the views point into
};

/// Error(kBadInput) for an id outside the vocabulary, naming it and its place.
void require_tokens(std::span<const int32_t> tokens, int n_vocab);

/// Warns when a run takes more tokens than the model was trained for, and names the ways out.
/// SelfExtend cannot go beyond its reach: Error(kUsage) with the formula.
void warn_beyond_training(const ModelConfig& config, int64_t n_tokens);

}  // namespace million
