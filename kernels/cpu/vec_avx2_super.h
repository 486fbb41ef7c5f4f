// SPDX-License-Identifier: Apache-2.0
// Dot products of super-blocks (Q4_K, Q5_K, Q6_K) with int8 activations: a group is one
// super-block. Pairs of products are words (vpmaddubsw), which meet their integer scale in
// vpmaddwd. Only isa_avx2.cpp includes it.
#pragma once

#include "kernels/cpu/vec_avx2.h"

namespace million::avx2 {
namespace {

inline __m256i load32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m256i twice(__m128i x) { return _mm256_broadcastsi128_si256(x); }

/// Activations of a super-block of nibbles; the codes stay in memory.
struct AffineGroup {
  const BlockA8* x;
  F sums;
  explicit AffineGroup(const BlockA8* const* blocks) : x(blocks[0]) {
    sums = _mm256_setr_ps(x[0].sum, x[1].sum, x[2].sum, x[3].sum, x[4].sum, x[5].sum, x[6].sum,
                          x[7].sum);
  }
};
template <>
struct A8Group<BlockType::kQ4_K> : AffineGroup {
  using AffineGroup::AffineGroup;
};
template <>
struct A8Group<BlockType::kQ5_K> : AffineGroup {
  using AffineGroup::AffineGroup;
};

/// Words of the eight scales (first = 4) or minima (first = 8) of a header d, dmin, scales[12]:
/// blocks.h tells where their bits are.
template <int kFirst>
inline __m128i six_bit_words(__m128i header) {
  const __m128i index = _mm_setr_epi8(kFirst, -1, kFirst + 1, -1, kFirst + 2, -1, kFirst + 3, -1,
                                      12, kFirst, 13, kFirst + 1, 14, kFirst + 2, 15, kFirst + 3);
  const __m128i v = _mm_shuffle_epi8(header, index);
  const __m128i nibble = _mm_set1_epi16(15);
  const __m128i low =
      kFirst == 4 ? _mm_and_si128(v, nibble) : _mm_and_si128(_mm_srli_epi16(v, 4), nibble);
  const __m128i high = _mm_and_si128(_mm_srli_epi16(v, 10), _mm_set1_epi16(0x30));
  return _mm_blend_epi16(_mm_and_si128(v, _mm_set1_epi16(63)), _mm_or_si128(low, high), 0xF0);
}
/// Word s of both lanes in every word.
inline __m256i spread_word(__m256i words, int s) {
  return _mm256_shuffle_epi8(words, _mm256_set1_epi16(static_cast<int16_t>(0x0100 + 0x0202 * s)));
}

template <bool kFifth>
inline F affine_dot(const uint8_t* w, const AffineGroup& group, F acc) {
  const BlockA8* x = group.x;
  const __m128i header = load16(w);
  const __m256i scales = twice(six_bit_words<4>(header));
  const __m256i nibble = _mm256_set1_epi8(15), fifth = _mm256_set1_epi8(16);
  const uint8_t* codes = w + (kFifth ? 48 : 16);
  __m256i bits = kFifth ? load32(w + 16) : _mm256_setzero_si256();
  F sum = zero(), odd_sum = zero();
  for (int s = 0; s < 8; s += 2, codes += 32) {
    const __m256i packed = load32(codes);
    __m256i even = _mm256_and_si256(packed, nibble);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi16(packed, 4), nibble);
    if constexpr (kFifth) {  // bits 0 and 1 are those of this pair of sub-blocks
      even = _mm256_or_si256(even, _mm256_and_si256(_mm256_slli_epi16(bits, 4), fifth));
      odd = _mm256_or_si256(odd, _mm256_and_si256(_mm256_slli_epi16(bits, 3), fifth));
      bits = _mm256_srli_epi16(bits, 2);
    }
    const __m256i a =
        _mm256_madd_epi16(_mm256_maddubs_epi16(even, load32(x[s].q)), spread_word(scales, s));
    const __m256i b = _mm256_madd_epi16(_mm256_maddubs_epi16(odd, load32(x[s + 1].q)),
                                        spread_word(scales, s + 1));
    sum = vfma(_mm256_cvtepi32_ps(a), set1(x[s].d), sum);
    odd_sum = vfma(_mm256_cvtepi32_ps(b), set1(x[s + 1].d), odd_sum);
  }
  const F minima = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(six_bit_words<8>(header)));
  acc = vfma(sum + odd_sum, half_at(w), acc);
  return _mm256_fnmadd_ps(minima * group.sums, half_at(w + 2), acc);
}

template <>
inline F group_dot<BlockType::kQ4_K>(const uint8_t* w, const A8Group<BlockType::kQ4_K>& x, F acc) {
  return affine_dot<false>(w, x, acc);
}
template <>
inline F group_dot<BlockType::kQ5_K>(const uint8_t* w, const A8Group<BlockType::kQ5_K>& x, F acc) {
  return affine_dot<true>(w, x, acc);
}

/// `start` takes back the offset 32 in the words of pairs, exactly.
template <>
struct A8Group<BlockType::kQ6_K> {
  const BlockA8* x;
  __m256i start[8];
  explicit A8Group(const BlockA8* const* blocks) : x(blocks[0]) {
    for (int s = 0; s < 8; ++s)
      start[s] = _mm256_maddubs_epi16(_mm256_set1_epi8(32), load32(x[s].q));
  }
};

/// Word 2 s in the low half, word 2 s + 1 in the high one; both lanes of `words` are alike.
inline __m256i spread_pair(__m256i words, int s) {
  const __m128i low = _mm_set1_epi16(static_cast<int16_t>(0x0100 + 0x0404 * s));
  const __m128i high = _mm_set1_epi16(static_cast<int16_t>(0x0302 + 0x0404 * s));
  return _mm256_shuffle_epi8(words, _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
}

template <>
inline F group_dot<BlockType::kQ6_K>(const uint8_t* w, const A8Group<BlockType::kQ6_K>& group,
                                     F acc) {
  const __m256i nibble = _mm256_set1_epi8(15), top = _mm256_set1_epi8(0x30);
  const __m128i scales = load16(w + 192);
  F sum = zero();
  for (int half = 0; half < 2; ++half) {
    const __m256i words =
        twice(_mm_cvtepi8_epi16(half == 0 ? scales : _mm_unpackhi_epi64(scales, scales)));
    const __m256i a = load32(w + 64 * half), b = load32(w + 64 * half + 32);
    const __m256i bits = load32(w + 128 + 32 * half);
    const __m256i codes[4] = {_mm256_or_si256(_mm256_and_si256(a, nibble),
                                              _mm256_and_si256(_mm256_slli_epi16(bits, 4), top)),
                              _mm256_or_si256(_mm256_and_si256(b, nibble),
                                              _mm256_and_si256(_mm256_slli_epi16(bits, 2), top)),
                              _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(a, 4), nibble),
                                              _mm256_and_si256(bits, top)),
                              _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(b, 4), nibble),
                                              _mm256_and_si256(_mm256_srli_epi16(bits, 2), top))};
    for (int i = 0; i < 4; ++i) {
      const int s = 4 * half + i;
      const __m256i pairs =
          _mm256_sub_epi16(_mm256_maddubs_epi16(codes[i], load32(group.x[s].q)), group.start[s]);
      const __m256i dot = _mm256_madd_epi16(pairs, spread_pair(words, i));
      sum = vfma(_mm256_cvtepi32_ps(dot), set1(group.x[s].d), sum);
    }
  }
  return vfma(sum, half_at(w + 208), acc);
}

}  // namespace
}  // namespace million::avx2
