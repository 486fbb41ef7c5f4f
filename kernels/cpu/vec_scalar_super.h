// SPDX-License-Identifier: Apache-2.0
// Dot products of super-blocks (Q4_K, Q5_K, Q6_K) with int8 activations in plain C++, and what
// vec_avx2_super.h and vec_avx512_super.h must provide: group_dot of these types, where a group is
// one super-block and the eight activation blocks lie one after the other.
#pragma once

#include "kernels/cpu/vec_scalar.h"

#include "kernels/cpu/six_bits.inl.h"

namespace million::scalar {
namespace {

template <class Block>
inline F affine_dot(const uint8_t* w, const BlockA8* x, F acc) {
  Block b;
  __builtin_memcpy(&b, w, sizeof b);
  const SixBits bits = six_bits(b.scales);
  float sum = 0.0f, minima = 0.0f;
  for (int s = 0; s < 8; ++s, ++x) {
    const uint8_t* q = b.q + s / 2 * 32;
    int dot = 0;
    for (int j = 0; j < 32; ++j) {
      int code = (q[j] >> (s % 2 * 4)) & 15;
      if constexpr (requires { b.high; }) code |= ((b.high[j] >> s) & 1) << 4;
      dot += code * x->q[j];
    }
    sum += x->d * static_cast<float>(dot * bits.scale[s]);
    minima += x->sum * static_cast<float>(bits.minimum[s]);
  }
  return acc + (half_to_float(b.d) * sum - half_to_float(b.dmin) * minima);
}

template <>
inline F group_dot<BlockType::kQ4_K>(const uint8_t* w, const A8Group<BlockType::kQ4_K>& group,
                                     F acc) {
  return affine_dot<BlockQ4_K>(w, group.x, acc);
}
template <>
inline F group_dot<BlockType::kQ5_K>(const uint8_t* w, const A8Group<BlockType::kQ5_K>& group,
                                     F acc) {
  return affine_dot<BlockQ5_K>(w, group.x, acc);
}
template <>
inline F group_dot<BlockType::kQ6_K>(const uint8_t* w, const A8Group<BlockType::kQ6_K>& group,
                                     F acc) {
  BlockQ6_K b;
  __builtin_memcpy(&b, w, sizeof b);
  const BlockA8* x = group.x;
  float sum = 0.0f;
  for (int part = 0; part < 8; ++part, ++x) {
    const uint8_t* q = b.q + part / 4 * 64 + part % 2 * 32;
    const uint8_t* high = b.high + part / 4 * 32;
    const int shift = part % 4 / 2 * 4, bit = part % 4 * 2;
    int dot[2] = {};
    int8_t code[32];
    for (int j = 0; j < 32; ++j)
      code[j] = static_cast<int8_t>(q6_code(q[j], shift, high[j], bit) - 32);
    for (int j = 0; j < 16; ++j) dot[0] += code[j] * x->q[j];
    for (int j = 16; j < 32; ++j) dot[1] += code[j] * x->q[j];
    sum += x->d * static_cast<float>(dot[0] * b.scales[2 * part] + dot[1] * b.scales[2 * part + 1]);
  }
  return acc + half_to_float(b.d) * sum;
}

}  // namespace
}  // namespace million::scalar
