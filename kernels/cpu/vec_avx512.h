// SPDX-License-Identifier: Apache-2.0
// The vector interface (listed in vec_scalar.h) with AVX-512 F, BW, DQ, VL, VBMI and VNNI. Only
// isa_avx512.cpp includes it.
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

namespace million::avx512 {
namespace {

using F = __m512;
constexpr int kLanes = 16;
constexpr int kColumnVecs = 4;
constexpr int kHeadBatch = 4;

inline __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

inline F zero() { return _mm512_setzero_ps(); }
inline F set1(float x) { return _mm512_set1_ps(x); }
inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F x) { _mm512_storeu_ps(p, x); }
inline F load_part(const float* p, int n, float fill = 0.0f) {
  return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), first(n), p);
}
inline void store_part(float* p, F x, int n) { _mm512_mask_storeu_ps(p, first(n), x); }
inline F load_f16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline F load_f16_part(const uint16_t* p, int n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p));
}
inline void store_f16(uint16_t* p, F x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline float half_value(uint16_t h) { return _cvtsh_ss(h); }
inline F vfma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F vmax(F a, F b) { return _mm512_max_ps(a, b); }
inline F vmin(F a, F b) { return _mm512_min_ps(a, b); }
inline F vabs(F a) { return _mm512_abs_ps(a); }

/// exp: x = n ln2 + r, polynomial of degree 7 (Cephes expf), scale by 2^n with gradual underflow.
inline F vexp(F x) {
  // The operand order keeps NaN. Beyond the bounds the result is 0 or inf anyway.
  x = _mm512_min_ps(set1(90.0f), _mm512_max_ps(set1(-110.0f), x));
  const F n = _mm512_roundscale_ps(x * set1(1.44269504f), _MM_FROUND_TO_NEAREST_INT);
  F r = _mm512_fnmadd_ps(n, set1(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, set1(-2.12194440e-4f), r);
  F p = set1(1.9875691500e-4f);
  p = vfma(p, r, set1(1.3981999507e-3f));
  p = vfma(p, r, set1(8.3334519073e-3f));
  p = vfma(p, r, set1(4.1665795894e-2f));
  p = vfma(p, r, set1(1.6666665459e-1f));
  p = vfma(p, r, set1(5.0000001201e-1f));
  p = vfma(p, r * r, r) + set1(1.0f);
  return _mm512_scalef_ps(p, n);
}

inline float reduce_add(F x) { return _mm512_reduce_add_ps(x); }
inline float reduce_max(F x) { return _mm512_reduce_max_ps(x); }
inline void reduce_add4(float* out, F a, F b, F c, F d) {
  const F ab = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
  const F cd = _mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d);
  const __m512d lo = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512d hi = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const F sum = _mm512_castpd_ps(lo) + _mm512_castpd_ps(hi);  // a b c d in each 128-bit lane
  const __m256 half = _mm512_castps512_ps256(sum) + _mm512_extractf32x8_ps(sum, 1);
  _mm_storeu_ps(out, _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1));
}
inline F gather(const float* table, const uint16_t* index, int stride) {
  __m512i i = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)));
  if (stride != 1) i = _mm512_mullo_epi32(i, _mm512_set1_epi32(stride));
  return _mm512_i32gather_ps(i, table, 4);
}
inline void deinterleave(F a, F b, F* x, F* y) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  *x = _mm512_permutex2var_ps(a, even, b);
  *y = _mm512_permutex2var_ps(a, _mm512_or_si512(even, _mm512_set1_epi32(1)), b);
}

template <int kBits>
inline F load_codes(const uint8_t* row, int i) {
  if constexpr (kBits == 8) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i))));
  } else {
    const uint8_t* p = row + i / 8 * kBits;
    return _mm512_cvtepi32_ps(
        _mm512_inserti64x4(_mm512_castsi256_si512(codes8<kBits>(p)), codes8<kBits>(p + kBits), 1));
  }
}
inline F load_s8(const uint8_t* p) {
  return _mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline F load_nibbles(const uint8_t* p, int shift) {
  const __m512i x = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm512_cvtepi32_ps(
      _mm512_and_si512(_mm512_srl_epi32(x, _mm_cvtsi32_si128(shift)), _mm512_set1_epi32(15)));
}

struct DoubleSum {
  __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
  void add(F x) {
    low = low + _mm512_cvtps_pd(_mm512_castps512_ps256(x));
    high = high + _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
  }
  double total() const { return _mm512_reduce_add_pd(low + high); }
};

struct ArgMin {
  F best = set1(INFINITY);
  __m512i base_of_best = _mm512_setzero_si512();
  void update(F d, int base) {
    const __mmask16 less = _mm512_cmp_ps_mask(d, best, _CMP_LT_OQ);
    best = _mm512_mask_mov_ps(best, less, d);
    base_of_best = _mm512_mask_mov_epi32(base_of_best, less, _mm512_set1_epi32(base));
  }
  int result() const {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const float min = _mm512_reduce_min_ps(best);
    const __mmask16 at = _mm512_cmp_ps_mask(best, set1(min), _CMP_EQ_OQ);
    return _mm512_mask_reduce_min_epi32(at, _mm512_add_epi32(base_of_best, lane));
  }
};

// --- prefill tiles ---
using T = F;
constexpr int kTileLanes = kLanes;
constexpr int kTileVecs = 2;
constexpr int kTileKeys = 8;
inline T t_set1(float x) { return set1(x); }
inline T t_load(const float* p) { return load(p); }
inline void t_store(float* p, T x) { store(p, x); }
inline T t_fma(T a, T b, T c) { return vfma(a, b, c); }
inline T t_max(T a, T b) { return vmax(a, b); }
inline T t_exp(T x) { return vexp(x); }
inline T t_where_between(T low, T at, T high, T x) {
  const __mmask16 seen =
      _mm512_cmp_ps_mask(low, at, _CMP_LE_OQ) & _mm512_cmp_ps_mask(at, high, _CMP_LT_OQ);
  return _mm512_mask_mov_ps(set1(-INFINITY), seen, x);
}

// --- int8 dot products: groups of four blocks. Nibble formats hold one block per 128-bit lane,
// Q8_0 one per 256-bit half of two registers. ---
constexpr int kGroupBlocks = 4;
constexpr int kGemvRows = 8;

/// Byte offsets inside a block of a nibble format; -1 where the format has no such field.
struct NibbleLayout {
  int bytes, minimum, high, codes, offset;
};
constexpr NibbleLayout nibble_layout(BlockType t) {
  if (t == BlockType::kQ4_0) return {18, -1, -1, 2, 8};
  if (t == BlockType::kQ4_1) return {20, 2, -1, 4, 0};
  if (t == BlockType::kQ5_0) return {22, -1, 2, 6, 16};
  return {24, 2, 4, 8, 0};  // Q5_1
}

/// A group is 64 to 128 bytes: it is read as bytes [0, 64) and its last 64 bytes, and these tables
/// pick from the pair.
struct GroupIndex {
  alignas(64) uint8_t codes[64];    ///< packed nibbles, 16 a block
  alignas(64) uint16_t scales[32];  ///< d four times a block, then the minimum four times a block
  alignas(64) uint16_t high[32];    ///< words of fifth bits: of values 0-15 per block, then 16-31
};
constexpr GroupIndex make_group_index(NibbleLayout l) {
  GroupIndex index{};
  const int second = 4 * l.bytes - 64;
  const auto byte_at = [second](int at) { return at < 64 ? at : 64 + at - second; };
  for (int i = 0; i < 64; ++i)
    index.codes[i] = static_cast<uint8_t>(byte_at(i / 16 * l.bytes + l.codes + i % 16));
  for (int i = 0; i < 16; ++i) {
    index.scales[i] = static_cast<uint16_t>(byte_at(i / 4 * l.bytes) / 2);
    if (l.minimum >= 0)
      index.scales[16 + i] = static_cast<uint16_t>(byte_at(i / 4 * l.bytes + l.minimum) / 2);
  }
  for (int i = 0; i < 8 && l.high >= 0; ++i)
    index.high[i] = static_cast<uint16_t>(byte_at(i % 4 * l.bytes + l.high + i / 4 * 2) / 2);
  return index;
}
template <BlockType kType>
constexpr GroupIndex kGroupIndex = make_group_index(nibble_layout(kType));

inline __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m512i load64(const void* p) { return _mm512_loadu_si512(p); }
/// 32 bytes at p and 32 at q.
inline __m512i load32x2(const void* p, const void* q) {
  return _mm512_inserti64x4(
      _mm512_castsi256_si512(_mm256_loadu_si256(static_cast<const __m256i*>(p))),
      _mm256_loadu_si256(static_cast<const __m256i*>(q)), 1);
}
/// 16 bytes at byte `at` of each of four blocks.
inline __m512i load16x4(const BlockA8* const* x, int at) {
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(x[0]->q + at)),
                                              load16(x[1]->q + at), 1);
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(x[2]->q + at)),
                                               load16(x[3]->q + at), 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
inline F set_quads(float a, float b, float c, float d) {
  return _mm512_setr_ps(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d);
}
inline F set_octets(float a, float b) { return _mm512_insertf32x8(set1(a), _mm256_set1_ps(b), 1); }

/// Activations of a group. `start` is where the integer sums begin: it takes back the offset that
/// makes the weights unsigned, exactly.
template <BlockType kType>
struct A8Group {
  static constexpr bool kMinimum = nibble_layout(kType).minimum >= 0;
  __m512i low, high, start = _mm512_setzero_si512();
  F d, quarter_sum = zero();
  explicit A8Group(const BlockA8* const* x)
      : low(load16x4(x, 0)),
        high(load16x4(x, 16)),
        d(set_quads(x[0]->d, x[1]->d, x[2]->d, x[3]->d)) {
    constexpr int kOffset = nibble_layout(kType).offset;
    if constexpr (kOffset != 0) {
      const __m512i ones = _mm512_set1_epi8(kOffset);
      start = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(start, ones, low), ones, high);
      start = _mm512_sub_epi32(_mm512_setzero_si512(), start);
    }
    // Each of the four lanes of a block adds a quarter of minimum * sum.
    if constexpr (kMinimum)
      quarter_sum = set_quads(x[0]->sum, x[1]->sum, x[2]->sum, x[3]->sum) * set1(0.25f);
  }
};
template <>
struct A8Group<BlockType::kQ8_0> {
  __m512i low, high, start_low, start_high;
  F d_low, d_high;
  explicit A8Group(const BlockA8* const* x)
      : low(load32x2(x[0]->q, x[1]->q)),
        high(load32x2(x[2]->q, x[3]->q)),
        d_low(set_octets(x[0]->d, x[1]->d)),
        d_high(set_octets(x[2]->d, x[3]->d)) {
    const __m512i offset = _mm512_set1_epi8(static_cast<char>(128));
    const __m512i none = _mm512_setzero_si512();
    start_low = _mm512_sub_epi32(none, _mm512_dpbusd_epi32(none, offset, low));
    start_high = _mm512_sub_epi32(none, _mm512_dpbusd_epi32(none, offset, high));
  }
};

template <BlockType kType>
inline F group_dot(const uint8_t* w, const A8Group<kType>& x, F acc) {
  constexpr NibbleLayout kLayout = nibble_layout(kType);
  const GroupIndex& index = kGroupIndex<kType>;
  const __m512i a = load64(w), b = load64(w + 4 * kLayout.bytes - 64);
  const __m512i packed = _mm512_permutex2var_epi8(a, load64(index.codes), b);
  const __m512i nibble = _mm512_set1_epi8(15);
  __m512i low = _mm512_and_si512(packed, nibble);
  __m512i high = _mm512_and_si512(_mm512_srli_epi16(packed, 4), nibble);
  if constexpr (kLayout.high >= 0) {
    const __m128i bits =
        _mm512_castsi512_si128(_mm512_permutex2var_epi16(a, load64(index.high), b));
    const __m512i fifth = _mm512_set1_epi8(16);
    low = _mm512_mask_add_epi8(low, static_cast<__mmask64>(_mm_cvtsi128_si64(bits)), low, fifth);
    high =
        _mm512_mask_add_epi8(high, static_cast<__mmask64>(_mm_extract_epi64(bits, 1)), high, fifth);
  }
  const __m512i sum = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(x.start, low, x.low), high, x.high);
  const __m512i scales = _mm512_permutex2var_epi16(a, load64(index.scales), b);
  const F d = _mm512_cvtph_ps(_mm512_castsi512_si256(scales));
  acc = vfma(_mm512_cvtepi32_ps(sum), d * x.d, acc);
  if constexpr (A8Group<kType>::kMinimum)
    acc = vfma(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(scales, 1)), x.quarter_sum, acc);
  return acc;
}

template <>
inline F group_dot<BlockType::kQ8_0>(const uint8_t* w, const A8Group<BlockType::kQ8_0>& x, F acc) {
  constexpr int kBytes = sizeof(BlockQ8_0);
  const __m512i offset = _mm512_set1_epi8(static_cast<char>(128));
  const __m512i low = _mm512_xor_si512(load32x2(w + 2, w + kBytes + 2), offset);
  const __m512i high = _mm512_xor_si512(load32x2(w + 2 * kBytes + 2, w + 3 * kBytes + 2), offset);
  const __m512i index =  // words of d: bytes 0, 34, 68, 102
      _mm512_inserti64x4(
          _mm512_inserti64x4(_mm512_setzero_si512(),
                             _mm256_setr_epi64x(0, 0, 0x0011001100110011, 0x0011001100110011), 0),
          _mm256_setr_epi64x(0x0022002200220022, 0x0022002200220022, 0x0033003300330033,
                             0x0033003300330033),
          1);
  const __m512i scales = _mm512_permutex2var_epi16(load64(w), index, load64(w + 64));
  const F d_low = _mm512_cvtph_ps(_mm512_castsi512_si256(scales));
  const F d_high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(scales, 1));
  const F sum_low = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(x.start_low, low, x.low));
  const F sum_high = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(x.start_high, high, x.high));
  return vfma(sum_high, d_high * x.d_high, vfma(sum_low, d_low * x.d_low, acc));
}

}  // namespace
}  // namespace million::avx512
