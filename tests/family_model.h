// SPDX-License-Identifier: Apache-2.0
// Tiny models of every family in both formats, with weights that tests/golden/make_family_golden.py
// makes, too: from the Hugging Face names of their tensors. And the writer of safetensors files,
// right or wrong.
#pragma once

#include "kernels/blocks.h"
#include "lib/core/json.h"

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace million {

/// Writes safetensors. Nothing is checked: tests write what they want.
class SafetensorsBuilder {
 public:
  /// Appends a tensor behind the last one.
  void tensor(const std::string& name, const std::string& dtype, std::vector<uint64_t> shape,
              std::string_view data);
  /// A header entry as it stands, e.g. R"("t":{"dtype":"F32"})".
  void raw(const std::string& entry);
  /// A file with this header text and data.
  static std::string file(std::string_view header, std::string_view data = "");

  std::string finish() const { return file("{" + header_ + "}" + padding, data_); }
  std::string padding;  ///< spaces behind the header, as the library writes them to align the data

 private:
  std::string header_, data_;
};

struct FamilyTensor {
  std::string name;  ///< Hugging Face's
  std::vector<uint64_t> shape;
  std::vector<float> values;
};

/// All tensors of a config.json of the golden file.
std::vector<FamilyTensor> family_tensors(const Json& config);

struct FolderSpec {
  BlockType type = BlockType::kF32;  ///< F32, F16 or BF16
  int n_shards = 1;                  ///< more than one with an index
  int padding = 0;                   ///< bytes behind each header
};

/// config.json, tokenizer.json (tiny_vocabulary) and weights.
void write_family_folder(const Json& config, const FolderSpec& spec,
                         const std::filesystem::path& folder);

/// The same model as llama.cpp's conversion would write it: Q and K permuted for Llama and Mistral,
/// Llama-3's scaling as rope_freqs.weight.
std::string family_gguf(const Json& config, BlockType type = BlockType::kF32);

}  // namespace million
