// SPDX-License-Identifier: Apache-2.0
// The table of architectures, and what their loaders share. To add a family: write arch_foo.cpp
// with one function `load_foo`, declare it below, add one line to the table in arch_registry.cpp.
#pragma once

#include "lib/model/gguf.h"
#include "lib/model/model.h"

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace million {

/// Fills config, weights and layers of a Model whose tokenizer is already read.
/// `general.architecture` equals `name`. Error(kBadInput) with file, key or tensor, got and
/// expected.
struct Architecture {
  std::string_view name;
  void (*load)(const GgufFile& file, Model& model);
};

std::span<const Architecture> architectures();
/// The entry for general.architecture of a file; Error(kBadInput) lists the known names.
const Architecture& find_architecture(const GgufFile& file);

void load_llama(const GgufFile& file, Model& model);

/// Takes tensors out of a file by name, checks their shapes, and remembers which were taken, so
/// that a tensor nobody asked for (a part of the network we would silently leave out) is an error.
class TensorSource {
 public:
  explicit TensorSource(const GgufFile& file) : file_(file), taken_(file.tensors().size(), false) {}

  bool has(std::string_view name) const { return file_.find_tensor(name) != nullptr; }
  /// A matrix [rows][cols].
  WeightView matrix(const std::string& name, int rows, int cols);
  /// A vector of n values (F32, F16 or BF16) as f32.
  AlignedVector<float> vector(const std::string& name, int n);
  /// The same; empty when the file has no such tensor.
  AlignedVector<float> optional_vector(const std::string& name, int n);
  /// Error(kBadInput) when a tensor was not taken, except names that end in one of `ignored`.
  void finish(std::span<const std::string_view> ignored) const;

 private:
  const GgufTensor& take(const std::string& name, const std::vector<uint64_t>& dims);
  const GgufFile& file_;
  std::vector<bool> taken_;
};

/// Integer key of [low, high] as int; `missing` as in GgufFile::get_uint.
int get_size(const GgufFile& file, const std::string& key, int low, int high,
             std::optional<uint64_t> missing = {});
/// Finite float key in (low, high].
float get_real(const GgufFile& file, const std::string& key, double low, double high,
               std::optional<double> missing = {});

}  // namespace million
