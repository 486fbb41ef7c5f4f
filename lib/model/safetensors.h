// SPDX-License-Identifier: Apache-2.0
// Reader of safetensors files over a read-only mapping: u64 length of the header, the header (one
// JSON object: name -> dtype, shape, byte range), then the data. The file is taken to be hostile;
// the header may be at most 100 MB, every range is checked against the bytes that are really there,
// and ranges must cover the data without overlap and without holes, as the format demands.
// Source: the format description of the safetensors library (README, "Format").
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace million {

struct SafeTensor {
  std::string name;
  std::string_view dtype;           ///< "F32", "BF16", ...: one of the format's names
  std::vector<uint64_t> shape;      ///< outermost first; empty for a scalar
  uint64_t begin = 0, bytes = 0;    ///< range in the data
  const std::byte* data = nullptr;  ///< not aligned: the header may have any length
};

/// A parsed file. Immutable; data pointers live as long as the object.
class SafetensorsFile {
 public:
  /// Maps and parses a file. Error(kBadInput): what is wrong, with tensor, got and expected.
  static std::shared_ptr<const SafetensorsFile> open(const std::filesystem::path& path);
  /// Parses bytes and keeps them; `name` stands for the path in messages.
  static std::shared_ptr<const SafetensorsFile> from_memory(std::string bytes, std::string name);

  const std::string& name() const { return name_; }
  std::string_view bytes() const { return bytes_; }  ///< the whole file
  const std::vector<SafeTensor>& tensors() const { return tensors_; }
  const SafeTensor* find(std::string_view name) const;

 private:
  void parse();
  void read_header(std::string_view header);
  void place(std::string_view data);

  std::string name_;
  std::string_view bytes_;
  std::shared_ptr<const void> mapping_;
  std::vector<SafeTensor> tensors_;
  std::unordered_map<std::string_view, std::size_t> index_;  // views into tensors_
};

/// All files of a model folder: the shards that model.safetensors.index.json names, or
/// model.safetensors, or the only *.safetensors.
class SafetensorsFolder {
 public:
  /// Error(kBadInput): a shard is missing, a tensor is not in the shard that the index says, not in
  /// the index at all, or in two shards.
  static std::shared_ptr<const SafetensorsFolder> open(const std::filesystem::path& folder);

  const std::string& name() const { return name_; }  ///< the folder
  /// In order of their names.
  const std::vector<std::shared_ptr<const SafetensorsFile>>& shards() const { return shards_; }
  const std::vector<const SafeTensor*>& tensors() const { return tensors_; }

 private:
  std::string name_;
  std::vector<std::shared_ptr<const SafetensorsFile>> shards_;
  std::vector<const SafeTensor*> tensors_;
};

}  // namespace million
