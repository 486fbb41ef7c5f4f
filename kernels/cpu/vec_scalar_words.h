// SPDX-License-Identifier: Apache-2.0
// What attention_words.inl.h needs beside the vector interface: registers of 16 words (four tokens
// of four axes) and their pairwise products, in plain C++; vec_avx2_words.h is the fast one.
#pragma once

#include "kernels/cpu/vec_scalar.h"

namespace million::scalar {
namespace {

struct Words {
  int16_t x[16];
};
struct Ints {
  int x[8];
};
inline Ints no_ints() { return {}; }
/// 16 signed bytes.
inline Words load_quads(const int8_t* p) {
  Words w;
  for (int i = 0; i < 16; ++i) w.x[i] = p[i];
  return w;
}
/// 16 signed bytes [token][axis] with the tokens 2i and 2i + 1 of an axis side by side.
inline Words load_token_pairs(const int8_t* p) {
  Words w;
  for (int pair = 0; pair < 2; ++pair)
    for (int i = 0; i < 8; ++i) w.x[8 * pair + i] = p[8 * pair + 4 * (i % 2) + i / 2];
  return w;
}
inline Words load_words(const int16_t* p) {
  Words w;
  __builtin_memcpy(w.x, p, sizeof w.x);
  return w;
}
/// Four words, each four times as a whole.
inline Words splat_quad(const int16_t* p) {
  Words w;
  for (int i = 0; i < 16; ++i) w.x[i] = p[i % 4];
  return w;
}
/// acc + sums of two products.
inline Ints madd(Ints acc, Words a, Words b) {
  for (int i = 0; i < 8; ++i) acc.x[i] += a.x[2 * i] * b.x[2 * i] + a.x[2 * i + 1] * b.x[2 * i + 1];
  return acc;
}
/// out[0..8) = sums of neighbours of a, then of b.
inline void store_pairs(float* out, Ints a, Ints b) {
  for (int i = 0; i < 4; ++i) {
    out[i] = static_cast<float>(a.x[2 * i] + a.x[2 * i + 1]);
    out[4 + i] = static_cast<float>(b.x[2 * i] + b.x[2 * i + 1]);
  }
}
/// acc[i] += scale[i] * factor * (sum.x[i] + sum.x[i + 4]).
inline void add_axes(float* acc, Ints sum, const float* scale, float factor) {
  for (int i = 0; i < 4; ++i)
    acc[i] += scale[i] * factor * static_cast<float>(sum.x[i] + sum.x[i + 4]);
}
/// Nearest words of 8 floats times `factor`.
inline void round_words(int16_t* out, const float* x, float factor) {
  for (int i = 0; i < 8; ++i) out[i] = static_cast<int16_t>(std::nearbyint(x[i] * factor));
}
/// round_words as load_token_pairs wants its partner: the two words of tokens 2i and 2i + 1 four
/// times, 32 words in all.
inline void round_weights(int16_t* out, const float* x, float factor) {
  int16_t w[8];
  round_words(w, x, factor);
  for (int i = 0; i < 32; ++i) out[i] = w[i / 8 * 2 + i % 2];
}

/// out[i] = nearest integers of (x[h][i] - low[h]) * scale[h], h = 0..3, as 16-bit fields, i < 8.
inline void store_fields(uint64_t* out, const float* const* x, const float* low,
                         const float* scale) {
  for (int i = 0; i < 8; ++i) {
    out[i] = 0;
    for (int h = 0; h < 4; ++h)
      out[i] |= static_cast<uint64_t>(std::nearbyint((x[h][i] - low[h]) * scale[h])) << (16 * h);
  }
}

}  // namespace
}  // namespace million::scalar
