// SPDX-License-Identifier: Apache-2.0
// Block formats of quantized weights as GGUF stores them (ggml's layouts), and the int8 activation
// block they are multiplied with. 32 values a block; scales are IEEE half, bit patterns in uint16.
#pragma once

#include <cstddef>
#include <cstdint>

namespace million {

enum class BlockType : uint8_t { kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ4_1, kQ5_0, kQ5_1 };

inline constexpr int kBlockValues = 32;

#pragma pack(push, 1)
struct BlockQ8_0 {
  uint16_t d;
  int8_t q[32];
};  ///< x = d q
struct BlockQ4_0 {
  uint16_t d;
  uint8_t q[16];
};  ///< x = d (q - 8); low nibble j, high j+16
struct BlockQ4_1 {
  uint16_t d, m;
  uint8_t q[16];
};  ///< x = d q + m
struct BlockQ5_0 {
  uint16_t d;
  uint8_t high[4];
  uint8_t q[16];
};  ///< x = d (q - 16); fifth bits in `high`
struct BlockQ5_1 {
  uint16_t d, m;
  uint8_t high[4];
  uint8_t q[16];
};  ///< x = d q + m
#pragma pack(pop)

/// Activations of one block: x ~ d q, sum = d * sum(q) (for formats with a minimum).
struct alignas(8) BlockA8 {
  float d, sum;
  int8_t q[32];
};

/// Values and bytes of one block of a type (1 value for the plain float types).
struct BlockShape {
  int values;
  std::size_t bytes;
};
constexpr BlockShape block_shape(BlockType t) {
  switch (t) {
    case BlockType::kF32:
      return {1, 4};
    case BlockType::kF16:
      return {1, 2};
    case BlockType::kBF16:
      return {1, 2};
    case BlockType::kQ8_0:
      return {32, sizeof(BlockQ8_0)};
    case BlockType::kQ4_0:
      return {32, sizeof(BlockQ4_0)};
    case BlockType::kQ4_1:
      return {32, sizeof(BlockQ4_1)};
    case BlockType::kQ5_0:
      return {32, sizeof(BlockQ5_0)};
    case BlockType::kQ5_1:
      return {32, sizeof(BlockQ5_1)};
  }
  return {0, 0};
}

}  // namespace million
