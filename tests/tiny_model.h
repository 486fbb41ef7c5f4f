// SPDX-License-Identifier: Apache-2.0
// A seeded Llama model of a few hundred kilobytes, written as GGUF, for the tests of every layer;
// and the writer it is made with, which can also write broken files.
#pragma once

#include "kernels/blocks.h"
#include "lib/model/tokenizer.h"

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace million {

/// Writes GGUF v3. Nothing is checked: tests write what they want, right or wrong.
class GgufBuilder {
 public:
  void u32(const std::string& key, uint32_t value);
  void f32(const std::string& key, float value);
  void boolean(const std::string& key, bool value);
  void string(const std::string& key, std::string_view value);
  void strings(const std::string& key, std::span<const std::string> values);
  void i32s(const std::string& key, std::span<const int32_t> values);
  /// A key with any type number and any bytes behind it.
  void raw(const std::string& key, uint32_t type, std::string_view bytes);
  /// Appends a tensor; its offset is the next multiple of the alignment (32).
  void tensor(const std::string& name, std::vector<uint64_t> dims, uint32_t ggml_type,
              std::string_view data);
  /// A tensor entry with its own offset and no data.
  void raw_tensor(const std::string& name, std::vector<uint64_t> dims, uint32_t ggml_type,
                  uint64_t offset);

  std::string finish() const;

  uint32_t version = 3;
  std::string magic = "GGUF";
  int64_t extra_keys = 0, extra_tensors = 0;  ///< added to the counts in the header

 private:
  std::string keys_, tensors_, data_;
  uint64_t n_keys_ = 0, n_tensors_ = 0;
};

/// Little-endian bytes of a number, for GgufBuilder::raw.
template <class T>
std::string le_bytes(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

struct TinyModelSpec {
  uint64_t seed = 1;
  int n_layers = 2, n_heads = 4, n_kv_heads = 2, head_dim = 64, d_model = 128, d_ff = 192;
  int n_context = 512;
  BlockType type = BlockType::kF32;            ///< of all matrices of the layers
  BlockType embedding_type = BlockType::kF32;  ///< of the embedding and of an untied head
  bool tied = true;
  bool biases = false;            ///< of the Q, K and V projections
  std::string rope_scaling = "";  ///< "", "linear", "yarn" (factor 4), "llama3" (factor tensor)
  bool as_floats = false;  ///< matrices are F32 and hold the values of `type`, `embedding_type`
};

/// 4 control tokens (<|endoftext|>, <|im_start|>, <|im_end|>, <|pad|>; ids 0-3), the 256 bytes and
/// 20 merges of common English pairs: 280 tokens, pre-tokenizer "smollm".
TokenizerData tiny_vocabulary();

/// The model as the bytes of a GGUF file; equal for equal specs.
std::string tiny_model_bytes(const TinyModelSpec& spec);
/// The same written to `path`, which is returned.
std::filesystem::path write_tiny_model(const TinyModelSpec& spec,
                                       const std::filesystem::path& path);

/// `n` normal values of standard deviation `scale`, and their bytes in a block format. The
/// quantizers are the plain ones (nearest level of the block's range), good enough for weights of
/// tests.
std::vector<float> normal_values(uint64_t seed, std::size_t n, float scale);
std::string quantize_blocks(BlockType type, std::span<const float> values);
uint32_t ggml_type_id(BlockType type);

}  // namespace million
