// SPDX-License-Identifier: Apache-2.0
// The vector interface of the bodies (*.inl.h) with one lane: plain C++ for any CPU, and the list
// of what vec_avx2.h and vec_avx512.h must provide.
#pragma once

#include "kernels/blocks.h"
#include "kernels/half.h"
#include "kernels/layout.h"
#include "kernels/online_softmax.h"

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace million::scalar {
namespace {

// --- a vector of kLanes floats; + - * / work on it ---
using F = float;
constexpr int kLanes = 1;
constexpr int kColumnVecs = 4;  ///< vectors of output columns that attention keeps in registers
constexpr int kHeadBatch = 2;   ///< query heads that share one pass over a tile

inline F zero() { return 0.0f; }
inline F set1(float x) { return x; }
inline F load(const float* p) { return *p; }
inline void store(float* p, F x) { *p = x; }
/// The first n lanes (0 <= n < kLanes); the others become `fill`. Reads only the n values.
inline F load_part(const float*, int, float fill = 0.0f) { return fill; }
inline void store_part(float*, F, int) {}
inline F load_f16(const uint16_t* p) { return half_to_float(*p); }
inline F load_f16_part(const uint16_t*, int) { return 0.0f; }
inline void store_f16(uint16_t* p, F x) { *p = float_to_half(x); }
inline float half_value(uint16_t h) { return half_to_float(h); }
/// a * b + c (one rounding where the hardware has it).
inline F vfma(F a, F b, F c) { return a * b + c; }
inline F vmax(F a, F b) { return b > a ? b : a; }
inline F vmin(F a, F b) { return b < a ? b : a; }
inline F vabs(F a) { return std::fabs(a); }
/// exp with relative error < 2e-7; 0 for -inf, inf on overflow, NaN kept.
inline F vexp(F x) { return std::exp(x); }
inline float reduce_add(F x) { return x; }
inline float reduce_max(F x) { return x; }
/// out[i] = sum of the lanes of the i-th vector.
inline void reduce_add4(float* out, F a, F b, F c, F d) {
  out[0] = a, out[1] = b, out[2] = c, out[3] = d;
}
/// table[index[i] * stride] for each lane.
inline F gather(const float* table, const uint16_t* index, int stride) {
  return table[index[0] * stride];
}
/// Splits 2 * kLanes values x0 y0 x1 y1 ... into x and y.
inline void deinterleave(F a, F b, F* x, F* y) { *x = a, *y = b; }

/// Codes i, i + 1, ... of kBits bits, packed as lib/quant/bitpack.h says; i is a multiple of 8 or
/// of kLanes. Reads only bytes that hold these codes (AVX2, AVX-512: of a multiple of 8 codes).
template <int kBits>
inline F load_codes(const uint8_t* row, int i) {
  const int bit = i * kBits;
  unsigned word = row[bit / 8];
  if (bit % 8 + kBits > 8) word |= static_cast<unsigned>(row[bit / 8 + 1]) << 8;
  return static_cast<float>((word >> bit % 8) & ((1u << kBits) - 1u));
}
/// Signed bytes.
inline F load_s8(const uint8_t* p) { return static_cast<float>(static_cast<int8_t>(*p)); }
/// Low (shift 0) or high (shift 4) halves of bytes.
inline F load_nibbles(const uint8_t* p, int shift) {
  return static_cast<float>((*p >> shift) & 15);
}

/// Sum of lanes in double.
struct DoubleSum {
  double sum = 0.0;
  void add(F x) { sum += x; }
  double total() const { return sum; }
};

/// Running minimum with the index it was seen at; lowest index on ties, index 0 if all are NaN.
struct ArgMin {
  float best = INFINITY;
  int index = 0;
  /// d holds the values of indices base, base + 1, ... Call with rising base.
  void update(F d, int base) {
    if (d < best) best = d, index = base;
  }
  int result() const { return index; }
};

// --- prefill tiles: a vector T of kTileLanes rows; compilers have four lanes on any CPU ---
using T = float __attribute__((vector_size(16)));
constexpr int kTileLanes = 4;
constexpr int kTileVecs = 2;  ///< vectors of rows, and
constexpr int kTileKeys = 4;  ///< keys or columns, whose products are kept in registers
inline T t_set1(float x) { return T{x, x, x, x}; }
inline T t_load(const float* p) {
  T x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
inline void t_store(float* p, T x) { __builtin_memcpy(p, &x, sizeof x); }
inline T t_fma(T a, T b, T c) { return a * b + c; }
inline T t_max(T a, T b) { return b > a ? b : a; }
inline T t_exp(T x) { return T{std::exp(x[0]), std::exp(x[1]), std::exp(x[2]), std::exp(x[3])}; }
/// x where low <= at < high, else -inf.
inline T t_where_between(T low, T at, T high, T x) {
  return low <= at ? (at < high ? x : t_set1(-INFINITY)) : t_set1(-INFINITY);
}

// --- int8 dot products of weight blocks; groups of kGroupBlocks blocks ---
constexpr int kGroupBlocks = 1;
constexpr int kGemvRows = 4;  ///< rows that share the activations in registers

template <BlockType kType>
struct A8Group {
  const BlockA8* x;
  explicit A8Group(const BlockA8* const* blocks) : x(blocks[0]) {}
};

template <bool kFifth>
inline int dot_nibbles(const uint8_t* q, const uint8_t* high, int offset, const int8_t* x) {
  uint32_t bits = 0;
  if (kFifth) __builtin_memcpy(&bits, high, 4);
  int sum = 0;
  for (int j = 0; j < 16; ++j) {
    const int low = static_cast<int>((q[j] & 15u) | ((bits >> j) & 1u) << 4);
    const int top = static_cast<int>((q[j] >> 4) | ((bits >> (j + 16)) & 1u) << 4);
    sum += (low - offset) * x[j] + (top - offset) * x[j + 16];
  }
  return sum;
}

/// acc + partial sums of (weights at w) . x over one group.
template <BlockType kType>
inline F group_dot(const uint8_t* w, const A8Group<kType>& group, F acc) {
  const BlockA8& x = *group.x;
  uint16_t d_bits, m_bits = 0;
  __builtin_memcpy(&d_bits, w, 2);
  if (kType == BlockType::kQ4_1 || kType == BlockType::kQ5_1) __builtin_memcpy(&m_bits, w + 2, 2);
  const float scale = half_to_float(d_bits) * x.d;
  if constexpr (kType == BlockType::kQ8_0) {
    int sum = 0;
    for (int j = 0; j < 32; ++j) sum += static_cast<int8_t>(w[2 + j]) * x.q[j];
    return acc + scale * static_cast<float>(sum);
  } else if constexpr (kType == BlockType::kQ4_0) {
    return acc + scale * static_cast<float>(dot_nibbles<false>(w + 2, nullptr, 8, x.q));
  } else if constexpr (kType == BlockType::kQ5_0) {
    return acc + scale * static_cast<float>(dot_nibbles<true>(w + 6, w + 2, 16, x.q));
  } else {
    const bool fifth = kType == BlockType::kQ5_1;
    const int sum = dot_nibbles<fifth>(w + (fifth ? 8 : 4), w + 4, 0, x.q);
    return acc + (scale * static_cast<float>(sum) + half_to_float(m_bits) * x.sum);
  }
}

}  // namespace
}  // namespace million::scalar
