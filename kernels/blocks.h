// SPDX-License-Identifier: Apache-2.0
// Block formats of quantized weights as GGUF stores them (ggml's layouts), and the int8 activation
// block they are multiplied with. 32 values a block, 256 a super-block (the _K types: 8 or 16
// sub-blocks with integer scales under one or two halves); scales are IEEE half, bit patterns in
// uint16.
#pragma once

#include <cstddef>
#include <cstdint>

namespace million {

enum class BlockType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ4_K,
  kQ5_K,
  kQ6_K
};

inline constexpr int kBlockValues = 32;   ///< of a weight block, and of an activation block
inline constexpr int kSuperValues = 256;  ///< of a super-block

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

/// 8 sub-blocks s of 32 values: x = (d scale_s) q - (dmin minimum_s). Codes of sub-blocks 2 i and
/// 2 i + 1 are the low and high nibbles of q[32 i, 32 i + 32). Scales and minima have 6 bits: for
/// s < 4 those of scales[s] and scales[4 + s]; else the low nibbles are the low and high nibble of
/// scales[4 + s], and the upper bits are bits 6 and 7 of scales[s - 4] and scales[s].
struct BlockQ4_K {
  uint16_t d, dmin;
  uint8_t scales[12];
  uint8_t q[128];
};
/// The same with a fifth bit: bit s of high[j] for value j of sub-block s.
struct BlockQ5_K {
  uint16_t d, dmin;
  uint8_t scales[12];
  uint8_t high[32];
  uint8_t q[128];
};
/// x = (d scales[j / 16]) (code - 32). For j % 128 = 64 a + b the low nibble of the code is nibble
/// a of q[j / 128 * 64 + b], its upper bits are bits j / 32 % 4 * 2 and + 1 of high[j / 128 * 32 +
/// j % 32].
struct BlockQ6_K {
  uint8_t q[128];
  uint8_t high[64];
  int8_t scales[16];
  uint16_t d;
};
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
    case BlockType::kQ4_K:
      return {kSuperValues, sizeof(BlockQ4_K)};
    case BlockType::kQ5_K:
      return {kSuperValues, sizeof(BlockQ5_K)};
    case BlockType::kQ6_K:
      return {kSuperValues, sizeof(BlockQ6_K)};
  }
  return {0, 0};
}
/// Types that are multiplied with int8 activations; the others are plain floats.
constexpr bool is_quantized(BlockType t) { return block_shape(t).values > 1; }
constexpr bool is_super_block(BlockType t) { return block_shape(t).values == kSuperValues; }

}  // namespace million
