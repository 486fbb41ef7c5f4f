// SPDX-License-Identifier: Apache-2.0
// config.json of a Hugging Face folder -> ModelConfig, for decoders of the Llama form.
#pragma once

#include "lib/model/json_file.h"
#include "lib/model/model.h"

#include <filesystem>
#include <optional>
#include <string>

namespace million {

/// Typed access to config.json or a section of it. A key that is absent or null gives `missing` or,
/// without it, Error(kBadInput); a value of another type or outside the range is always an Error.
class HfConfig {
 public:
  static HfConfig read(const std::filesystem::path& folder);
  /// `name` stands for the file in messages.
  HfConfig(SortedJson json, std::string name) : json_(std::move(json)), name_(std::move(name)) {}

  const std::string& name() const { return name_; }
  bool has(const std::string& key) const { return find(key) != nullptr; }
  int get_size(const std::string& key, int low, int high, std::optional<int> missing = {}) const;
  /// Finite, in (low, high].
  float get_real(const std::string& key, double low, double high,
                 std::optional<double> missing = {}) const;
  bool get_bool(const std::string& key, bool missing) const;
  std::string get_string(const std::string& key, std::optional<std::string> missing = {}) const;
  /// An object inside; empty when the key is absent or null.
  std::optional<HfConfig> section(const std::string& key) const;
  /// First entry of `architectures`; "" without that key.
  std::string architecture() const;
  /// True when some entry of the list `key` is a string other than `text`.
  bool any_other(const std::string& key, std::string_view text) const;

 private:
  const SortedJson* find(const std::string& key) const;
  const SortedJson& require(const std::string& key) const;

  SortedJson json_;
  std::string name_;
};

/// Fills everything but n_vocab; RoPE pairs are the halves of a head. Error(kBadInput) naming the
/// key, also for what is not supported: experts, other activations, quantized weights, unknown RoPE
/// scalings. The scaling "dynamic" is read as plain positions and named in a warning.
void read_hf_config(const HfConfig& json, ModelConfig& config);

}  // namespace million
