// SPDX-License-Identifier: Apache-2.0
// The table of architectures. To add a family: write arch_foo.cpp with one function `load_foo`,
// declare it below, add one line to the table in arch_registry.cpp.
#pragma once

#include "lib/model/model.h"
#include "lib/model/tensor_source.h"

#include <span>
#include <string_view>

namespace million {

class GgufFile;
class HfConfig;

/// Where a model's settings stand: exactly one of both formats.
struct ConfigSource {
  const GgufFile* gguf = nullptr;
  const HfConfig* hf = nullptr;
};

/// A family. `load` fills config, weights and layers of a Model whose tokenizer is already read.
/// Error(kBadInput) with file, key or tensor, got and expected.
struct Architecture {
  std::string_view name;     ///< general.architecture of GGUF, model_type of Hugging Face
  std::string_view hf_name;  ///< entry of `architectures` in config.json
  void (*load)(const ConfigSource& from, TensorSource& tensors, Model& model);
};

std::span<const Architecture> architectures();
/// The entry for a file's general.architecture; Error(kBadInput) lists the known names.
const Architecture& find_architecture(const GgufFile& file);
/// The entry for the first of `architectures` in config.json, or for model_type without that key.
const Architecture& find_architecture(const HfConfig& config);

void load_llama(const ConfigSource& from, TensorSource& tensors, Model& model);
void load_mistral(const ConfigSource& from, TensorSource& tensors, Model& model);
void load_qwen2(const ConfigSource& from, TensorSource& tensors, Model& model);

}  // namespace million
