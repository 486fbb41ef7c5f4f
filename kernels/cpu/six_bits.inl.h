// SPDX-License-Identifier: Apache-2.0
// The 6-bit scales and minima of Q4_K and Q5_K (blocks.h), and those formats' values in plain C++.
#pragma once

#include "kernels/blocks.h"
#include "kernels/half.h"

#include <cstdint>

namespace million::MILLION_ISA {
namespace {

/// Of the 8 sub-blocks of 32 values.
struct SixBits {
  uint8_t scale[8], minimum[8];
};

/// The first four scales and minima are the low six bits of bytes 0-3 and 4-7; the other four have
/// their low nibbles in bytes 8-11 and their top two bits above the first ones.
inline SixBits six_bits(const uint8_t* p) {
  SixBits out;
  for (int j = 0; j < 4; ++j) {
    out.scale[j] = p[j] & 63;
    out.minimum[j] = p[4 + j] & 63;
    out.scale[4 + j] = static_cast<uint8_t>((p[8 + j] & 15) | (p[j] >> 6) << 4);
    out.minimum[4 + j] = static_cast<uint8_t>(p[8 + j] >> 4 | (p[4 + j] >> 6) << 4);
  }
  return out;
}

/// y [32] = d q + m of the sub-block whose nibbles are shifted by `shift` (0 or 4).
inline void affine_part(const uint8_t* q, int shift, float d, float m, float* __restrict y) {
  for (int j = 0; j < 32; j += kLanes) store(y + j, set1(d) * load_nibbles(q + j, shift) - set1(m));
}
/// The same with bit `bit` of high[j] as the fifth bit.
inline void affine_part(const uint8_t* q, int shift, const uint8_t* high, int bit, float d, float m,
                        float* __restrict y) {
  for (int j = 0; j < 32; ++j) {
    const int code = ((q[j] >> shift) & 15) | ((high[j] >> bit) & 1) << 4;
    y[j] = d * static_cast<float>(code) - m;
  }
}

template <class Block>
void dequant_affine(const void* row, int n, float* __restrict y) {
  const auto* blocks = static_cast<const Block*>(row);
  for (int i = 0; i < n / kSuperValues; ++i) {
    const Block& b = blocks[i];
    const float d = half_to_float(b.d), dmin = half_to_float(b.dmin);
    const SixBits bits = six_bits(b.scales);
    for (int s = 0; s < 8; ++s, y += 32) {
      const float scale = d * static_cast<float>(bits.scale[s]);
      const float minimum = dmin * static_cast<float>(bits.minimum[s]);
      const uint8_t* q = b.q + s / 2 * 32;
      if constexpr (requires { b.high; })
        affine_part(q, s % 2 * 4, b.high, s, scale, minimum, y);
      else
        affine_part(q, s % 2 * 4, scale, minimum, y);
    }
  }
}

inline uint8_t q6_code(uint8_t low, int shift, uint8_t high, int bit) {
  return static_cast<uint8_t>(((low >> shift) & 15) | ((high >> bit) & 3) << 4);
}

inline void dequant_q6_k(const void* row, int n, float* __restrict y) {
  const auto* blocks = static_cast<const BlockQ6_K*>(row);
  for (int i = 0; i < n / kSuperValues; ++i) {
    const BlockQ6_K& b = blocks[i];
    const float d = half_to_float(b.d);
    for (int part = 0; part < 8; ++part, y += 32) {  // four parts a half
      const uint8_t* q = b.q + part / 4 * 64 + part % 2 * 32;
      const uint8_t* high = b.high + part / 4 * 32;
      const int shift = part % 4 / 2 * 4, bit = part % 4 * 2;
      uint8_t code[32];  // a loop of its own: bytes of four registers at once
      for (int j = 0; j < 32; ++j) code[j] = q6_code(q[j], shift, high[j], bit);
      const float first = d * static_cast<float>(b.scales[2 * part]);
      const float second = d * static_cast<float>(b.scales[2 * part + 1]);
      for (int j = 0; j < 16; ++j) y[j] = first * static_cast<float>(code[j] - 32);
      for (int j = 16; j < 32; ++j) y[j] = second * static_cast<float>(code[j] - 32);
    }
  }
}

}  // namespace
}  // namespace million::MILLION_ISA
