// SPDX-License-Identifier: Apache-2.0
// Dot products of super-blocks (Q4_K, Q5_K, Q6_K) with int8 activations: a group is one
// super-block. Sums of 4 or 8 products stay below 2^15, so that two registers of sums become words
// of one (vpackssdw), which meet their integer scales in one vpmaddwd. Only isa_avx512.cpp includes
// it.
#pragma once

#include "kernels/cpu/vec_avx512.h"

namespace million::avx512 {
namespace {

/// How the 16 bytes d, dmin, scales[12] become words of scales and 32-bit lanes of minima. A value
/// is assembled from a low byte, of which `mask` is kept after `shift`, and the top two bits of a
/// high byte (0x80: none).
struct SixBitIndex {
  alignas(64) uint8_t scale[64];  ///< words: lane L has sub-block 2 L four times, then 2 L + 1
  alignas(64) uint16_t scale_mask[32];
  alignas(64) uint8_t minimum[64];  ///< lanes: sub-block i / 2 in lane i
  alignas(64) uint32_t minimum_mask[16];
  alignas(64) uint32_t minimum_shift[16];
};
constexpr SixBitIndex make_six_bit_index() {
  SixBitIndex index{};
  for (int i = 0; i < 32; ++i) {
    const int s = i / 4;  // header byte 4 + k is scales[k]
    index.scale[2 * i] = static_cast<uint8_t>(s < 4 ? 4 + s : 8 + s);
    index.scale[2 * i + 1] = static_cast<uint8_t>(s < 4 ? 0x80 : s);
    index.scale_mask[i] = s < 4 ? 63 : 15;
  }
  for (int i = 0; i < 16; ++i) {
    const int s = i / 2;
    index.minimum[4 * i] = static_cast<uint8_t>(8 + s);
    index.minimum[4 * i + 1] = static_cast<uint8_t>(s < 4 ? 0x80 : 4 + s);
    index.minimum[4 * i + 2] = index.minimum[4 * i + 3] = 0x80;
    index.minimum_mask[i] = s < 4 ? 63 : 15;
    index.minimum_shift[i] = s < 4 ? 0 : 4;
  }
  return index;
}
constexpr SixBitIndex kSixBitIndex = make_six_bit_index();

/// low | (high & 0x30) in every byte.
inline __m512i join_high(__m512i low, __m512i high) {
  return _mm512_ternarylogic_epi64(low, high, _mm512_set1_epi8(0x30), 0xF8);
}
inline __m512i six_bit_scales(__m512i header) {
  const __m512i v = _mm512_shuffle_epi8(header, load64(kSixBitIndex.scale));
  return _mm512_ternarylogic_epi64(_mm512_and_si512(v, load64(kSixBitIndex.scale_mask)),
                                   _mm512_srli_epi16(v, 10), _mm512_set1_epi16(0x30), 0xF8);
}
inline F six_bit_minima(__m512i header) {
  const __m512i v = _mm512_shuffle_epi8(header, load64(kSixBitIndex.minimum));
  const __m512i low = _mm512_and_si512(_mm512_srlv_epi32(v, load64(kSixBitIndex.minimum_shift)),
                                       load64(kSixBitIndex.minimum_mask));
  return _mm512_cvtepi32_ps(
      _mm512_ternarylogic_epi64(low, _mm512_srli_epi32(v, 10), _mm512_set1_epi32(0x30), 0xF8));
}
inline F half_at(const uint8_t* p) {
  uint16_t bits;
  __builtin_memcpy(&bits, p, 2);
  return set1(half_value(bits));
}
/// Each of eight values twice.
inline F set_pairs(float a, float b, float c, float d, float e, float f, float g, float h) {
  return _mm512_setr_ps(a, a, b, b, c, c, d, d, e, e, f, f, g, g, h, h);
}

/// Activations of a super-block of nibbles: 16 bytes of each even sub-block, of each odd one.
struct AffineGroup {
  __m512i even_low, even_high, odd_low, odd_high;
  F d, half_sum;
  explicit AffineGroup(const BlockA8* const* x) {
    const BlockA8* const even[4] = {x[0], x[2], x[4], x[6]};
    const BlockA8* const odd[4] = {x[1], x[3], x[5], x[7]};
    even_low = load16x4(even, 0), even_high = load16x4(even, 16);
    odd_low = load16x4(odd, 0), odd_high = load16x4(odd, 16);
    d = set_pairs(x[0]->d, x[1]->d, x[2]->d, x[3]->d, x[4]->d, x[5]->d, x[6]->d, x[7]->d);
    // Each of the two lanes of a sub-block adds half of minimum * sum.
    half_sum = set1(0.5f) * set_pairs(x[0]->sum, x[1]->sum, x[2]->sum, x[3]->sum, x[4]->sum,
                                      x[5]->sum, x[6]->sum, x[7]->sum);
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

/// Bit 2 L (+ 1 for odd sub-blocks) of a byte in 128-bit lane L.
inline __m512i sub_block_bits(bool odd) {
  const auto bytes = [odd](int lane) {
    return static_cast<int64_t>(0x0101010101010101ULL << (2 * lane + (odd ? 1 : 0)));
  };
  return _mm512_setr_epi64(bytes(0), bytes(0), bytes(1), bytes(1), bytes(2), bytes(2), bytes(3),
                           bytes(3));
}
inline __m512i add_fifth(__m512i codes, __m512i bits, bool odd) {
  const __mmask64 set = _mm512_test_epi8_mask(bits, sub_block_bits(odd));
  return _mm512_mask_add_epi8(codes, set, codes, _mm512_set1_epi8(16));
}

template <bool kFifth>
inline F affine_dot(const uint8_t* w, const AffineGroup& x, F acc) {
  const __m512i header = _mm512_broadcast_i32x4(load16(w));
  const uint8_t* codes = w + (kFifth ? 48 : 16);
  const __m512i a = load64(codes), b = load64(codes + 64);
  const __m512i first_half = _mm512_shuffle_i64x2(a, b, 0x88);  // values 0-15 of each sub-block
  const __m512i second_half = _mm512_shuffle_i64x2(a, b, 0xDD);
  const __m512i nibble = _mm512_set1_epi8(15), none = _mm512_setzero_si512();
  __m512i even_low = _mm512_and_si512(first_half, nibble);
  __m512i even_high = _mm512_and_si512(second_half, nibble);
  __m512i odd_low = _mm512_and_si512(_mm512_srli_epi16(first_half, 4), nibble);
  __m512i odd_high = _mm512_and_si512(_mm512_srli_epi16(second_half, 4), nibble);
  if constexpr (kFifth) {
    const __m512i low = _mm512_broadcast_i32x4(load16(w + 16));
    const __m512i high = _mm512_broadcast_i32x4(load16(w + 32));
    even_low = add_fifth(even_low, low, false), even_high = add_fifth(even_high, high, false);
    odd_low = add_fifth(odd_low, low, true), odd_high = add_fifth(odd_high, high, true);
  }
  const __m512i even =
      _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(none, even_low, x.even_low), even_high, x.even_high);
  const __m512i odd =
      _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(none, odd_low, x.odd_low), odd_high, x.odd_high);
  const __m512i sum = _mm512_madd_epi16(_mm512_packs_epi32(even, odd), six_bit_scales(header));
  acc = vfma(_mm512_cvtepi32_ps(sum) * x.d, half_at(w), acc);
  return _mm512_fnmadd_ps(six_bit_minima(header) * x.half_sum, half_at(w + 2), acc);
}

template <>
inline F group_dot<BlockType::kQ4_K>(const uint8_t* w, const A8Group<BlockType::kQ4_K>& x, F acc) {
  return affine_dot<false>(w, x, acc);
}
template <>
inline F group_dot<BlockType::kQ5_K>(const uint8_t* w, const A8Group<BlockType::kQ5_K>& x, F acc) {
  return affine_dot<true>(w, x, acc);
}

/// Activations of a super-block in order, 64 a register. `start` takes back the offset 32, exactly.
template <>
struct A8Group<BlockType::kQ6_K> {
  __m512i q[4], start[4];
  F d[2];
  explicit A8Group(const BlockA8* const* x) {
    const __m512i offset = _mm512_set1_epi8(32), none = _mm512_setzero_si512();
    for (int i = 0; i < 4; ++i) {
      q[i] = load32x2(x[2 * i]->q, x[2 * i + 1]->q);
      start[i] = _mm512_sub_epi32(none, _mm512_dpbusd_epi32(none, offset, q[i]));
    }
    for (int i = 0; i < 2; ++i, x += 4)
      d[i] = set_pairs(x[0]->d, x[2]->d, x[0]->d, x[2]->d, x[1]->d, x[3]->d, x[1]->d, x[3]->d);
  }
};

/// Words of the scales of packed sums: lane L has scale L + 8 `half` four times, then the fourth
/// after it.
template <int kHalf>
inline __m512i q6_scales(__m512i words) {
  constexpr int64_t kWord = 0x0001000100010001;
  const auto at = [](int i) { return (8 * kHalf + i) * kWord; };
  return _mm512_permutexvar_epi16(
      _mm512_setr_epi64(at(0), at(4), at(1), at(5), at(2), at(6), at(3), at(7)), words);
}

template <>
inline F group_dot<BlockType::kQ6_K>(const uint8_t* w, const A8Group<BlockType::kQ6_K>& x, F acc) {
  const __m512i nibble = _mm512_set1_epi8(15);
  const __m512i left = _mm512_setr_epi64(4, 4, 4, 4, 2, 2, 2, 2);
  const __m512i right = _mm512_setr_epi64(0, 0, 0, 0, 2, 2, 2, 2);
  const __m512i words = _mm512_castsi256_si512(_mm256_cvtepi8_epi16(load16(w + 192)));
  const __m512i scales[2] = {q6_scales<0>(words), q6_scales<1>(words)};
  F total = zero();
  for (int half = 0; half < 2; ++half) {
    const __m512i packed = load64(w + 64 * half);
    const __m512i bits = _mm512_broadcast_i64x4(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 128 + 32 * half)));
    const __m512i low = join_high(_mm512_and_si512(packed, nibble), _mm512_sllv_epi64(bits, left));
    const __m512i high = join_high(_mm512_and_si512(_mm512_srli_epi16(packed, 4), nibble),
                                   _mm512_srlv_epi64(bits, right));
    const __m512i a = _mm512_dpbusd_epi32(x.start[2 * half], low, x.q[2 * half]);
    const __m512i b = _mm512_dpbusd_epi32(x.start[2 * half + 1], high, x.q[2 * half + 1]);
    const __m512i sum = _mm512_madd_epi16(_mm512_packs_epi32(a, b), scales[half]);
    total = vfma(_mm512_cvtepi32_ps(sum), x.d[half], total);
  }
  return vfma(total, half_at(w + 208), acc);
}

}  // namespace
}  // namespace million::avx512
