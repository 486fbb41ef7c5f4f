// SPDX-License-Identifier: Apache-2.0
// Reader of GGUF v2 and v3 model files over a read-only mapping. The file is taken to be hostile:
// every count, length and offset is checked against the bytes that are really there before it is
// used, and nothing is allocated beyond a small multiple of the file's own size.
// Source: the GGUF specification (ggml/docs/gguf.md).
#pragma once

#include "kernels/blocks.h"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace million {

/// Types of metadata values, with the numbers the file uses.
enum class GgufType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64
};
/// "u32", "string", ...
const char* gguf_type_name(GgufType type);

/// One metadata value, as views into the file.
struct GgufValue {
  GgufType type = GgufType::kU8;
  GgufType element = GgufType::kU8;       ///< of an array
  uint64_t count = 1;                     ///< elements of an array
  std::string_view bytes;                 ///< little-endian values, or the text of a string
  std::vector<std::string_view> strings;  ///< of an array of strings
};

/// One tensor. dims[0] is the contiguous dimension, as in ggml: a matrix y = W x of `rows` outputs
/// and `cols` inputs has dims {cols, rows}.
struct GgufTensor {
  std::string_view name;
  BlockType type = BlockType::kF32;
  std::vector<uint64_t> dims;  ///< 1 to 4 sizes, each > 0
  uint64_t offset = 0;         ///< from the start of the tensor data
  uint64_t bytes = 0;
  const std::byte* data = nullptr;
};

/// A parsed file. Immutable; views and pointers live as long as the object.
class GgufFile {
 public:
  /// Maps and parses a file. Error(kBadInput): what is wrong, with key or tensor, got and expected.
  static std::shared_ptr<const GgufFile> open(const std::filesystem::path& path);
  /// Parses bytes and keeps them; `name` stands for the path in messages.
  static std::shared_ptr<const GgufFile> from_memory(std::string bytes, std::string name);

  const std::string& name() const { return name_; }
  uint32_t version() const { return version_; }
  std::string_view bytes() const { return bytes_; }  ///< the whole file
  uint64_t tensor_bytes() const { return tensor_bytes_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const std::map<std::string_view, GgufValue>& values() const { return values_; }

  const GgufTensor* find_tensor(std::string_view name) const;
  const GgufValue* find(std::string_view key) const;

  /// Typed access. A missing key gives `missing` or, without it, Error(kBadInput); a value of
  /// another type is always an Error. Integers of any width are taken when not negative, floats f32
  /// and f64.
  uint64_t get_uint(std::string_view key, std::optional<uint64_t> missing = {}) const;
  double get_float(std::string_view key, std::optional<double> missing = {}) const;
  bool get_bool(std::string_view key, std::optional<bool> missing = {}) const;
  std::string_view get_string(std::string_view key,
                              std::optional<std::string_view> missing = {}) const;
  /// Arrays; a missing key is an Error. Integers must fit int32.
  const std::vector<std::string_view>& get_strings(std::string_view key) const;
  std::vector<int32_t> get_ints(std::string_view key) const;

 private:
  friend class GgufParser;
  const GgufValue& require(std::string_view key, const char* expected) const;

  std::string name_;
  std::string_view bytes_;
  std::shared_ptr<const void> mapping_;
  uint32_t version_ = 0;
  uint64_t tensor_bytes_ = 0;
  std::map<std::string_view, GgufValue> values_;
  std::vector<GgufTensor> tensors_;
  std::map<std::string_view, std::size_t> tensor_index_;
};

/// "F32", "Q4_1", ... of a type we read; and the list of all of them.
const char* block_type_name(BlockType type);
std::string supported_block_types();

}  // namespace million
