// SPDX-License-Identifier: Apache-2.0
// The vector interface (listed in vec_scalar.h) with AVX2, FMA and F16C. Only isa_avx2.cpp includes
// it.
#pragma once

#include "kernels/blocks.h"
#include "kernels/cpu/vec_codes8.h"
#include "kernels/half.h"
#include "kernels/layout.h"
#include "kernels/online_softmax.h"

#include <immintrin.h>

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace million::avx2 {
namespace {

using F = __m256;
constexpr int kLanes = 8;
constexpr int kColumnVecs = 4;
constexpr int kHeadBatch = 2;

/// Sign bits set in the first n of 8 lanes.
inline __m256i first(int n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
}

inline F zero() { return _mm256_setzero_ps(); }
inline F set1(float x) { return _mm256_set1_ps(x); }
inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, F x) { _mm256_storeu_ps(p, x); }
inline F load_part(const float* p, int n, float fill = 0.0f) {
  const __m256i mask = first(n);
  return _mm256_blendv_ps(set1(fill), _mm256_maskload_ps(p, mask), _mm256_castsi256_ps(mask));
}
inline void store_part(float* p, F x, int n) { _mm256_maskstore_ps(p, first(n), x); }
inline F load_f16(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline F load_f16_part(const uint16_t* p, int n) {
  uint16_t copy[kLanes] = {};
  __builtin_memcpy(copy, p, sizeof(uint16_t) * static_cast<std::size_t>(n));
  return load_f16(copy);
}
inline void store_f16(uint16_t* p, F x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline float half_value(uint16_t h) { return _cvtsh_ss(h); }
inline F vfma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F vmax(F a, F b) { return _mm256_max_ps(a, b); }
inline F vmin(F a, F b) { return _mm256_min_ps(a, b); }
inline F vabs(F a) { return _mm256_andnot_ps(set1(-0.0f), a); }

/// exp: x = n ln2 + r, polynomial of degree 7 (Cephes expf). 2^n is applied in two factors, so that
/// results below the normal range and the step to infinity come out right.
inline F vexp(F x) {
  // The operand order keeps NaN. Beyond the bounds the result is 0 or inf anyway.
  x = _mm256_min_ps(set1(90.0f), _mm256_max_ps(set1(-110.0f), x));
  const F n = _mm256_round_ps(x * set1(1.44269504f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  F r = _mm256_fnmadd_ps(n, set1(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, set1(-2.12194440e-4f), r);
  F p = set1(1.9875691500e-4f);
  p = vfma(p, r, set1(1.3981999507e-3f));
  p = vfma(p, r, set1(8.3334519073e-3f));
  p = vfma(p, r, set1(4.1665795894e-2f));
  p = vfma(p, r, set1(1.6666665459e-1f));
  p = vfma(p, r, set1(5.0000001201e-1f));
  p = vfma(p, r * r, r) + set1(1.0f);
  const __m256i power = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(power, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const F low = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  const F high = _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(power, half), bias), 23));
  return p * low * high;
}

inline float reduce_add(__m128 x) {
  x = x + _mm_movehl_ps(x, x);
  return _mm_cvtss_f32(x) + _mm_cvtss_f32(_mm_movehdup_ps(x));
}
inline float reduce_add(F x) {
  return reduce_add(_mm256_castps256_ps128(x) + _mm256_extractf128_ps(x, 1));
}
inline float reduce_max(F x) {
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}
inline void reduce_add4(float* out, F a, F b, F c, F d) {
  const F sum = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  _mm_storeu_ps(out, _mm256_castps256_ps128(sum) + _mm256_extractf128_ps(sum, 1));
}
inline F gather(const float* table, const uint16_t* index, int stride) {
  __m256i i = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(index)));
  if (stride != 1) i = _mm256_mullo_epi32(i, _mm256_set1_epi32(stride));
  return _mm256_i32gather_ps(table, i, 4);
}
inline void deinterleave(F a, F b, F* x, F* y) {
  const F even = _mm256_shuffle_ps(a, b, 0x88), odd = _mm256_shuffle_ps(a, b, 0xDD);
  *x = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(even), 0xD8));
  *y = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(odd), 0xD8));
}

template <int kBits>
inline F load_codes(const uint8_t* row, int i) {
  if constexpr (kBits == 8)
    return _mm256_cvtepi32_ps(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(row + i))));
  else
    return _mm256_cvtepi32_ps(codes8<kBits>(row + i / 8 * kBits));
}
inline F load_s8(const uint8_t* p) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline F load_nibbles(const uint8_t* p, int shift) {
  const __m256i x = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  return _mm256_cvtepi32_ps(
      _mm256_and_si256(_mm256_srl_epi32(x, _mm_cvtsi32_si128(shift)), _mm256_set1_epi32(15)));
}

struct DoubleSum {
  __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
  void add(F x) {
    low = low + _mm256_cvtps_pd(_mm256_castps256_ps128(x));
    high = high + _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
  }
  double total() const {
    const __m256d four = low + high;
    const __m128d two = _mm256_castpd256_pd128(four) + _mm256_extractf128_pd(four, 1);
    return _mm_cvtsd_f64(two) + _mm_cvtsd_f64(_mm_unpackhi_pd(two, two));
  }
};

struct ArgMin {
  F best = set1(INFINITY);
  __m256i base_of_best = _mm256_setzero_si256();
  void update(F d, int base) {
    const F less = _mm256_cmp_ps(d, best, _CMP_LT_OQ);
    best = _mm256_blendv_ps(best, d, less);
    base_of_best =
        _mm256_blendv_epi8(base_of_best, _mm256_set1_epi32(base), _mm256_castps_si256(less));
  }
  int result() const {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    F low = _mm256_min_ps(best, _mm256_permute2f128_ps(best, best, 1));
    low = _mm256_min_ps(low, _mm256_shuffle_ps(low, low, 0x4E));
    low = _mm256_min_ps(low, _mm256_shuffle_ps(low, low, 0xB1));
    const __m256i at = _mm256_castps_si256(_mm256_cmp_ps(best, low, _CMP_EQ_OQ));
    const __m256i index =
        _mm256_blendv_epi8(_mm256_set1_epi32(INT32_MAX), _mm256_add_epi32(base_of_best, lane), at);
    __m128i min = _mm_min_epi32(_mm256_castsi256_si128(index), _mm256_extracti128_si256(index, 1));
    min = _mm_min_epi32(min, _mm_shuffle_epi32(min, 0x4E));
    return _mm_cvtsi128_si32(_mm_min_epi32(min, _mm_shuffle_epi32(min, 0xB1)));
  }
};

// --- prefill tiles ---
using T = F;
constexpr int kTileLanes = kLanes;
constexpr int kTileVecs = 2;
constexpr int kTileKeys = 6;
inline T t_set1(float x) { return set1(x); }
inline T t_load(const float* p) { return load(p); }
inline void t_store(float* p, T x) { store(p, x); }
inline T t_fma(T a, T b, T c) { return vfma(a, b, c); }
inline T t_max(T a, T b) { return vmax(a, b); }
inline T t_exp(T x) { return vexp(x); }
inline T t_where_between(T low, T at, T high, T x) {
  const F seen =
      _mm256_and_ps(_mm256_cmp_ps(low, at, _CMP_LE_OQ), _mm256_cmp_ps(at, high, _CMP_LT_OQ));
  return _mm256_blendv_ps(set1(-INFINITY), x, seen);
}

// --- int8 dot products: one block of 32 values fills a register ---
constexpr int kGroupBlocks = 1;
constexpr int kGemvRows = 4;

constexpr int code_offset(BlockType t) {
  return t == BlockType::kQ4_0 ? 8 : t == BlockType::kQ5_0 ? 16 : 0;
}
constexpr bool has_minimum(BlockType t) { return t == BlockType::kQ4_1 || t == BlockType::kQ5_1; }

/// Sums of four products u8 * s8; no saturation, since u8 <= 128 and |s8| <= 127.
inline __m256i dot4(__m256i u8, __m256i s8) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(u8, s8), _mm256_set1_epi16(1));
}

/// Activations of a block. `start` takes back the offset that makes the weights unsigned, exactly.
template <BlockType kType>
struct A8Group {
  __m256i q, start = _mm256_setzero_si256();
  F d, eighth_sum = zero();
  explicit A8Group(const BlockA8* const* x)
      : q(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x[0]->q))), d(set1(x[0]->d)) {
    if constexpr (code_offset(kType) != 0)
      start = _mm256_sub_epi32(start, dot4(_mm256_set1_epi8(code_offset(kType)), q));
    if constexpr (has_minimum(kType)) eighth_sum = set1(x[0]->sum * 0.125f);
  }
};

inline F half_at(const uint8_t* p) {
  uint16_t bits;
  __builtin_memcpy(&bits, p, 2);
  return _mm256_cvtph_ps(_mm_set1_epi16(static_cast<int16_t>(bits)));
}
inline __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m256i nibbles(const uint8_t* p) {
  const __m128i packed = load16(p);
  const __m256i both =
      _mm256_inserti128_si256(_mm256_castsi128_si256(packed), _mm_srli_epi16(packed, 4), 1);
  return _mm256_and_si256(both, _mm256_set1_epi8(15));
}
/// 16 in byte j where bit j of the 32 bits at p is set.
inline __m256i fifth_bits(const uint8_t* p) {
  int bits;
  __builtin_memcpy(&bits, p, 4);
  const __m256i byte =
      _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201ULL));
  const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), byte);
  const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
  return _mm256_and_si256(set, _mm256_set1_epi8(16));
}

template <BlockType kType>
inline F group_dot(const uint8_t* w, const A8Group<kType>& x, F acc) {
  __m256i sum;
  if constexpr (kType == BlockType::kQ8_0) {
    const __m256i q = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 2));
    sum = dot4(_mm256_abs_epi8(q), _mm256_sign_epi8(x.q, q));
  } else {
    constexpr bool kFifth = kType == BlockType::kQ5_0 || kType == BlockType::kQ5_1;
    constexpr int kHigh = has_minimum(kType) ? 4 : 2;
    __m256i q = nibbles(w + kHigh + (kFifth ? 4 : 0));
    if constexpr (kFifth) q = _mm256_or_si256(q, fifth_bits(w + kHigh));
    sum = _mm256_add_epi32(x.start, dot4(q, x.q));
  }
  acc = vfma(_mm256_cvtepi32_ps(sum), half_at(w) * x.d, acc);
  if constexpr (has_minimum(kType)) acc = vfma(half_at(w + 2), x.eighth_sum, acc);
  return acc;
}

}  // namespace
}  // namespace million::avx2
