// SPDX-License-Identifier: Apache-2.0
// Vectors of attend_tile_bf16.inl.h with AVX512_BF16. Only isa_avx512_bf16.cpp includes it.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace million::avx512_bf16 {
namespace {

using T = __m512;       ///< 16 rows
using Pairs = __m512i;  ///< 16 pairs of bf16
constexpr int kTileLanes = 16;
constexpr int kTileVecs = 2;
constexpr int kTileKeys = 8;

inline T t_set1(float x) { return _mm512_set1_ps(x); }
inline T t_load(const float* p) { return _mm512_loadu_ps(p); }
inline T t_from_ints(const int* p) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(p)); }
inline void t_store(float* p, T x) { _mm512_storeu_ps(p, x); }
inline T t_max(T a, T b) { return _mm512_max_ps(a, b); }
/// x where low <= at < high, else -inf.
inline T t_where_between(T low, T at, T high, T x) {
  const __mmask16 seen =
      _mm512_cmp_ps_mask(low, at, _CMP_LE_OQ) & _mm512_cmp_ps_mask(at, high, _CMP_LT_OQ);
  return _mm512_mask_mov_ps(t_set1(-INFINITY), seen, x);
}
/// exp of x <= 0: relative error 4e-7, far below that of a bf16, and exp(0) = 1. The polynomial is
/// the series of e^(r ln 2) to the fifth power, |r| <= 1/2.
inline T t_exp(T y) {
  const T x = _mm512_max_ps(t_set1(-160.0f), y * t_set1(1.44269504f));
  const T n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT);
  const T r = x - n;
  T p = t_set1(1.33335581e-3f);
  p = _mm512_fmadd_ps(p, r, t_set1(9.61812911e-3f));
  p = _mm512_fmadd_ps(p, r, t_set1(5.55041087e-2f));
  p = _mm512_fmadd_ps(p, r, t_set1(2.40226507e-1f));
  p = _mm512_fmadd_ps(p, r, t_set1(6.93147181e-1f));
  p = _mm512_fmadd_ps(p, r, t_set1(1.0f));
  return _mm512_scalef_ps(p, n);
}

inline Pairs load_pairs(const uint32_t* p) { return _mm512_loadu_si512(p); }
inline void store_pairs(uint32_t* p, Pairs x) { _mm512_storeu_si512(p, x); }
inline Pairs set1_pair(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
/// (a[i], b[i]) rounded to bf16, a in the low half.
inline Pairs pair_up(T a, T b) {
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(b, a);
  alignas(64) static constexpr uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                      21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), both);
}
/// 16 numbers to 16 bf16 in order, as 8 pairs.
inline void store_bf16(uint32_t* p, const float* x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(t_load(x)));
}
/// acc + both products of each pair.
inline T dot_pairs(T acc, Pairs a, Pairs b) {
  return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
}

}  // namespace
}  // namespace million::avx512_bf16
