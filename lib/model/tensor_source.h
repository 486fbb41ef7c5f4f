// SPDX-License-Identifier: Apache-2.0
// Tensors of a model by name, from either format. A family names its weights once, as GGUF does
// ("blk.0.attn_q.weight"); for safetensors the name is translated
// ("model.layers.0.self_attn.q_proj.weight").
#pragma once

#include "kernels/blocks.h"
#include "lib/core/tensor.h"
#include "lib/model/model.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace million {

class GgufFile;
class SafetensorsFolder;

/// Hugging Face's name of a tensor, empty where there is none (rope_freqs.weight).
std::string hf_tensor_name(std::string_view gguf_name);

/// Takes tensors out of a model by name, checks their shapes, and remembers which were taken, so
/// that a tensor nobody asked for (a part of the network we would silently leave out) is an error.
class TensorSource {
 public:
  explicit TensorSource(const GgufFile& file);
  explicit TensorSource(const SafetensorsFolder& folder);

  const std::string& name() const { return name_; }  ///< of the file or folder, for messages
  bool has(std::string_view name) const { return find(name) != nullptr; }
  /// First size of a tensor; Error(kBadInput) when it is missing.
  uint64_t rows(const std::string& name) const;
  /// A matrix [rows][cols]. A view into the file, or into copies() when the values are not aligned
  /// there: kernels read them by their type.
  WeightView matrix(const std::string& name, int rows, int cols);
  /// A vector of n values (F32, F16 or BF16) as f32.
  AlignedVector<float> vector(const std::string& name, int n);
  /// The same; empty when the model has no such tensor.
  AlignedVector<float> optional_vector(const std::string& name, int n);
  /// Marks a tensor that may be there and is not needed.
  void ignore(std::string_view name);
  /// Error(kBadInput) when a tensor was not taken, except tables of RoPE, which are computed anew.
  void finish() const;

  /// Weights that had to be copied; they belong to the Model.
  std::vector<AlignedVector<std::byte>> copies;

 private:
  struct Stored {
    std::string_view dtype;         // "F16", for messages
    std::optional<BlockType> type;  // empty: no weight of ours has this type
    std::vector<uint64_t> shape;    // outermost first: [rows][cols]
    const std::byte* data = nullptr;
    uint64_t bytes = 0;
    bool taken = false;
  };
  Stored* find(std::string_view name);
  const Stored* find(std::string_view name) const;
  Stored& take(const std::string& name, const std::vector<uint64_t>& shape);
  std::string stored_name(std::string_view name) const;

  std::string name_;
  bool gguf_ = true;
  std::map<std::string, Stored, std::less<>> tensors_;  // by the names of the file
};

}  // namespace million
