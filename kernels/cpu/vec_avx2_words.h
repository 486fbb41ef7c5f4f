// SPDX-License-Identifier: Apache-2.0
// The word registers listed in vec_scalar_words.h with AVX2.
#pragma once

#include "kernels/cpu/vec_avx2.h"

namespace million::avx2 {
namespace {

using Words = __m256i;
using Ints = __m256i;
inline Ints no_ints() { return _mm256_setzero_si256(); }
inline Words load_quads(const int8_t* p) { return _mm256_cvtepi8_epi16(load16(p)); }
inline Words load_token_pairs(const int8_t* p) {
  const __m128i order = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
  return _mm256_cvtepi8_epi16(_mm_shuffle_epi8(load16(p), order));
}
inline Words load_words(const int16_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline Words splat_quad(const int16_t* p) {
  long long x;
  __builtin_memcpy(&x, p, 8);
  return _mm256_set1_epi64x(x);
}
inline Ints madd(Ints acc, Words a, Words b) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b));
}
inline void store_pairs(float* out, Ints a, Ints b) {
  const __m256i sums = _mm256_permute4x64_epi64(_mm256_hadd_epi32(a, b), 0xD8);
  store(out, _mm256_cvtepi32_ps(sums));
}
inline void add_axes(float* acc, Ints sum, const float* scale, float factor) {
  const __m128i axes = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  const __m128 step = _mm_loadu_ps(scale) * _mm_set1_ps(factor);
  _mm_storeu_ps(acc, _mm_fmadd_ps(_mm_cvtepi32_ps(axes), step, _mm_loadu_ps(acc)));
}
inline __m128i rounded_words(const float* x, float factor) {
  const __m256i i = _mm256_cvtps_epi32(load(x) * set1(factor));
  return _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
}
inline void round_words(int16_t* out, const float* x, float factor) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), rounded_words(x, factor));
}
inline void round_weights(int16_t* out, const float* x, float factor) {
  const __m256i w = _mm256_castsi128_si256(rounded_words(x, factor));
  auto* to = reinterpret_cast<__m256i*>(out);
  const __m256i first = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
  _mm256_storeu_si256(to, _mm256_permutevar8x32_epi32(w, first));
  _mm256_storeu_si256(
      to + 1, _mm256_permutevar8x32_epi32(w, _mm256_add_epi32(first, _mm256_set1_epi32(2))));
}
inline void store_fields(uint64_t* out, const float* const* x, const float* low,
                         const float* scale) {
  __m256i i[4];
  for (int h = 0; h < 4; ++h)
    i[h] = _mm256_cvtps_epi32((load(x[h]) - set1(low[h])) * set1(scale[h]));
  const __m256i ab = _mm256_packus_epi32(i[0], i[1]), cd = _mm256_packus_epi32(i[2], i[3]);
  const __m256i ac = _mm256_unpacklo_epi16(ab, cd), bd = _mm256_unpackhi_epi16(ab, cd);
  const __m256i even = _mm256_unpacklo_epi16(ac, bd), odd = _mm256_unpackhi_epi16(ac, bd);
  auto* to = reinterpret_cast<__m256i*>(out);
  _mm256_storeu_si256(to, _mm256_permute2x128_si256(even, odd, 0x20));
  _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(even, odd, 0x31));
}

}  // namespace
}  // namespace million::avx2
