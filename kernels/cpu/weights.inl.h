// SPDX-License-Identifier: Apache-2.0
// Quantized weights: dequantization, int8 activations, and matrix-vector products of both. Formats
// are ggml's (blocks.h). Dequantized values have the same bits on every level (no fused multiply).
#pragma once

#include "kernels/cpu/elementwise.inl.h"
#include "kernels/cpu/six_bits.inl.h"

namespace million::MILLION_ISA {
namespace {

template <class Block>
inline float block_minimum(const Block& b) {
  if constexpr (requires { b.m; }) return half_to_float(b.m);
  return 0.0f;
}

/// Values of one nibble format; kOffset is what the stored code of 0 stands for.
template <class Block, int kOffset>
void dequant_nibbles(const void* row, int n, float* __restrict y) {
  const auto* blocks = static_cast<const Block*>(row);
  for (int i = 0; i < n / kBlockValues; ++i, y += kBlockValues) {
    const Block& b = blocks[i];
    const float d = half_to_float(b.d), m = block_minimum(b);
    if constexpr (!requires { b.high; }) {
      for (int shift = 0; shift <= 4; shift += 4)
        for (int j = 0; j < 16; j += kLanes)
          store(y + 4 * shift + j,
                set1(d) * (load_nibbles(b.q + j, shift) - set1(kOffset)) + set1(m));
      continue;
    }
    int code[kBlockValues];
    for (int j = 0; j < 16; ++j) code[j] = b.q[j] & 15, code[j + 16] = b.q[j] >> 4;
    if constexpr (requires { b.high; }) {
      uint32_t high;
      __builtin_memcpy(&high, b.high, 4);
      for (int j = 0; j < kBlockValues; ++j) code[j] |= static_cast<int>((high >> j) & 1u) << 4;
    }
    for (int j = 0; j < kBlockValues; ++j) y[j] = d * static_cast<float>(code[j] - kOffset) + m;
  }
}

void dequant_q8(const void* row, int n, float* __restrict y) {
  const auto* blocks = static_cast<const BlockQ8_0*>(row);
  for (int i = 0; i < n / kBlockValues; ++i, y += kBlockValues) {
    const float d = half_to_float(blocks[i].d);
    for (int j = 0; j < kBlockValues; ++j) y[j] = d * static_cast<float>(blocks[i].q[j]);
  }
}

void dequant_row(BlockType type, const void* row, int n, float* y) {
  switch (type) {
    case BlockType::kF32:
      __builtin_memcpy(y, row, sizeof(float) * static_cast<std::size_t>(n));
      return;
    case BlockType::kF16:
      f16_to_f32(static_cast<const uint16_t*>(row), y, static_cast<std::size_t>(n));
      return;
    case BlockType::kBF16:
      bf16_to_f32(static_cast<const uint16_t*>(row), y, static_cast<std::size_t>(n));
      return;
    case BlockType::kQ8_0:
      dequant_q8(row, n, y);
      return;
    case BlockType::kQ4_0:
      dequant_nibbles<BlockQ4_0, 8>(row, n, y);
      return;
    case BlockType::kQ4_1:
      dequant_nibbles<BlockQ4_1, 0>(row, n, y);
      return;
    case BlockType::kQ5_0:
      dequant_nibbles<BlockQ5_0, 16>(row, n, y);
      return;
    case BlockType::kQ5_1:
      dequant_nibbles<BlockQ5_1, 0>(row, n, y);
      return;
    case BlockType::kQ4_K:
      dequant_affine<BlockQ4_K>(row, n, y);
      return;
    case BlockType::kQ5_K:
      dequant_affine<BlockQ5_K>(row, n, y);
      return;
    case BlockType::kQ6_K:
      dequant_q6_k(row, n, y);
      return;
  }
}

/// d = max|x| / 127; blocks below 1e-30 become zero (127 / max would overflow soon after).
void quantize_a8(const float* x, int n, BlockA8* y) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest even integer
  for (int block = 0; block < n / kBlockValues; ++block, x += kBlockValues) {
    F top = zero();
    for (int j = 0; j < kBlockValues; j += kLanes) top = vmax(top, vabs(load(x + j)));
    const float max = reduce_max(top);
    const bool empty = !(max > 1e-30f);
    const float scale = empty ? 0.0f : 127.0f / max;
    BlockA8& out = y[block];
    int sum = 0;
    for (int j = 0; j < kBlockValues; ++j) {
      const int q = static_cast<int>((x[j] * scale + kRound) - kRound);
      out.q[j] = static_cast<int8_t>(q);
      sum += q;
    }
    out.d = empty ? 0.0f : max / 127.0f;
    out.sum = out.d * static_cast<float>(sum);
  }
}

constexpr BlockA8 kZeroActivations = {};

/// Activation blocks that a group of a type meets: a super-block is a group of its own.
template <BlockType kType>
constexpr int kGroupOf = is_super_block(kType) ? kSuperValues / kBlockValues : kGroupBlocks;
template <BlockType kType>
constexpr std::size_t kGroupBytesOf = block_shape(kType).bytes*(is_super_block(kType)
                                                                    ? 1
                                                                    : kGroupBlocks);

/// acc[r] += one group of kRows rows that begin `row_bytes` apart.
template <BlockType kType, int kRows>
MILLION_INLINE void gemv_group(const uint8_t* w, std::size_t row_bytes, const BlockA8* const* x,
                               F* acc) {
  const A8Group<kType> group(x);  // prepared once for all rows
  for (int r = 0; r < kRows; ++r)
    acc[r] = group_dot<kType>(w + static_cast<std::size_t>(r) * row_bytes, group, acc[r]);
}

/// The last `rest` blocks of rows that are no multiple of a group. Long rows read their last group
/// again, against zeros where it was counted before; short ones are copied and padded.
template <BlockType kType, int kRows>
inline void gemv_rest(const uint8_t* rows, std::size_t row_bytes, int n_blocks, int rest,
                      const BlockA8* x, F* acc) {
  constexpr std::size_t kBytes = block_shape(kType).bytes;
  const bool padded = n_blocks < kGroupBlocks;
  const BlockA8* part[kGroupBlocks];
  for (int i = 0; i < kGroupBlocks; ++i) {
    const int block = padded ? i : n_blocks - kGroupBlocks + i;
    part[i] = block >= n_blocks - rest && block < n_blocks ? x + block : &kZeroActivations;
  }
  if (!padded) {
    const std::size_t skipped = static_cast<std::size_t>(n_blocks - kGroupBlocks);
    return gemv_group<kType, kRows>(rows + skipped * kBytes, row_bytes, part, acc);
  }
  for (int r = 0; r < kRows; ++r) {
    uint8_t copy[kGroupBlocks * kBytes] = {};
    __builtin_memcpy(copy, rows + static_cast<std::size_t>(r) * row_bytes,
                     static_cast<std::size_t>(rest) * kBytes);
    gemv_group<kType, 1>(copy, 0, part, acc + r);
  }
}

template <BlockType kType, int kRows>
MILLION_INLINE void gemv_rows(const uint8_t* rows, std::size_t row_bytes, int n_blocks,
                              const BlockA8* x, float* y) {
  constexpr std::size_t kGroupBytes = kGroupBytesOf<kType>;
  constexpr int kGroup = kGroupOf<kType>;
  F acc[kRows < 4 ? 4 : kRows];
  for (F& sum : acc) sum = zero();
  const int n_full = n_blocks / kGroup, rest = n_blocks % kGroup;
  // Rows are read side by side, which no hardware prefetcher takes for a stream: the lines 8 KB on
  // are asked for in the order of memory (22 -> 30-35 GB/s). Beyond the matrix this does nothing.
  const uint8_t* ahead = rows + 8192;
  const auto prefetch = [&ahead] {
    for (std::size_t line = 0; line < kRows * kGroupBytes; line += 64)
      __builtin_prefetch(ahead + line, 0, 3);
    ahead += kRows * kGroupBytes;
  };
  for (int i = 0; i < n_full; ++i) {
    prefetch();
    const BlockA8* group[kGroup];
    for (int b = 0; b < kGroup; ++b) group[b] = x + i * kGroup + b;
    gemv_group<kType, kRows>(rows + static_cast<std::size_t>(i) * kGroupBytes, row_bytes, group,
                             acc);
  }
  if constexpr (!is_super_block(kType)) {
    if (rest > 0) prefetch();
    if (rest > 0) gemv_rest<kType, kRows>(rows, row_bytes, n_blocks, rest, x, acc);
  }
  // One reduction for every row, so that a row's bits do not depend on the rows around it.
  float sums[kRows < 4 ? 4 : kRows];
  for (int r = 0; r < kRows; r += 4)
    reduce_add4(sums + r, acc[r], acc[r + 1], acc[r + 2], acc[r + 3]);
  for (int r = 0; r < kRows; ++r) y[r] = sums[r];
}

template <BlockType kType>
void gemv_type(const uint8_t* rows, std::size_t row_bytes, int n_rows, int n, const BlockA8* x,
               float* y) {
  const int n_blocks = n / kBlockValues;
  int r = 0;
  for (; r + kGemvRows <= n_rows; r += kGemvRows)
    gemv_rows<kType, kGemvRows>(rows + static_cast<std::size_t>(r) * row_bytes, row_bytes, n_blocks,
                                x, y + r);
  for (; r < n_rows; ++r)
    gemv_rows<kType, 1>(rows + static_cast<std::size_t>(r) * row_bytes, row_bytes, n_blocks, x,
                        y + r);
}

void gemv_a8(BlockType type, const void* rows, std::size_t row_bytes, int n_rows, int n,
             const BlockA8* x, float* y) {
  const auto* w = static_cast<const uint8_t*>(rows);
  switch (type) {
    case BlockType::kQ8_0:
      gemv_type<BlockType::kQ8_0>(w, row_bytes, n_rows, n, x, y);
      return;
    case BlockType::kQ4_0:
      gemv_type<BlockType::kQ4_0>(w, row_bytes, n_rows, n, x, y);
      return;
    case BlockType::kQ4_1:
      gemv_type<BlockType::kQ4_1>(w, row_bytes, n_rows, n, x, y);
      return;
    case BlockType::kQ5_0:
      gemv_type<BlockType::kQ5_0>(w, row_bytes, n_rows, n, x, y);
      return;
    case BlockType::kQ5_1:
      gemv_type<BlockType::kQ5_1>(w, row_bytes, n_rows, n, x, y);
      return;
    case BlockType::kQ4_K:
      gemv_type<BlockType::kQ4_K>(w, row_bytes, n_rows, n, x, y);
      return;
    case BlockType::kQ5_K:
      gemv_type<BlockType::kQ5_K>(w, row_bytes, n_rows, n, x, y);
      return;
    case BlockType::kQ6_K:
      gemv_type<BlockType::kQ6_K>(w, row_bytes, n_rows, n, x, y);
      return;
    case BlockType::kF32:
    case BlockType::kF16:
    case BlockType::kBF16:
      return;  // not block types: the caller multiplies those in floats
  }
}

}  // namespace
}  // namespace million::MILLION_ISA
