// SPDX-License-Identifier: Apache-2.0
// 64-byte registers for attention on PQ codes: unpacking, table lookups inside registers (VBMI) and
// byte dot products (VNNI). Only isa_avx512.cpp includes it, after vec_avx512.h.
#pragma once

#include "kernels/cpu/vec_avx512.h"

namespace million::avx512 {
namespace {

using Bytes = __m512i;  ///< 64 tokens of one subspace
constexpr int kByteLanes = 64;
// Accumulators carry their lane type: GCC copies registers around loops whose variables change
// between __m512i and the type of the instruction.
using Words = unsigned short __attribute__((vector_size(64)));
using Ints = int __attribute__((vector_size(64)));

inline Bytes no_bytes() { return _mm512_setzero_si512(); }
inline Bytes load_bytes(const uint8_t* p) { return load64(p); }
inline Bytes set_bytes(char x) { return _mm512_set1_epi8(x); }
/// 16 bytes, zeros above.
inline Bytes load16_bytes(const void* p) {
  return _mm512_zextsi128_si512(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}

/// Bits [0, n) set, 0 <= n <= 64.
inline __mmask64 first64(int n) { return n < 64 ? (uint64_t{1} << n) - 1 : ~uint64_t{0}; }

/// Loads 64 codes of a run as bytes. Packed codes: 8 codes are nbits bytes; they are spread to one
/// 64-bit lane and each code is picked at its bit offset. Chunks whose 64-byte load would leave the
/// run are taken from its last 64 bytes.
template <bool kPacked>
struct CodeReader {
  static constexpr int kChunks = kPqBlock / kByteLanes;
  alignas(64) uint8_t spread[kPacked ? kChunks : 1][64];
  int start[kChunks];
  Bytes shifts, mask;
  explicit CodeReader(int nbits) : mask(_mm512_set1_epi8(static_cast<char>((1 << nbits) - 1))) {
    if (!kPacked || nbits > 7) return;
    alignas(64) uint8_t shift[64];
    for (int i = 0; i < 64; ++i) shift[i] = static_cast<uint8_t>(i % 8 * nbits);
    shifts = load64(shift);
    for (int c = 0; c < kChunks; ++c) {
      const int chunk_at = 8 * nbits * c, last = 8 * nbits * kChunks - 64;
      start[c] = chunk_at < last ? chunk_at : last;
      for (int i = 0; i < 64; ++i)
        spread[c][i] =
            static_cast<uint8_t>(chunk_at - start[c] + i / 8 * nbits + (i % 8 < nbits ? i % 8 : 0));
    }
  }
  Bytes load(const uint8_t* run, int chunk) const {
    if constexpr (!kPacked) return load64(run + kByteLanes * chunk);
    const Bytes lanes = _mm512_permutexvar_epi8(load64(spread[chunk]), load64(run + start[chunk]));
    return _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, lanes), mask);
  }
};

/// A table of up to 64 * kRegs bytes held in registers; codes must be below that.
template <int kRegs>
struct ByteTable {
  Bytes t[kRegs];
  ByteTable(const void* p, int size) {
    const auto* from = static_cast<const uint8_t*>(p);
    for (int i = 0; i < kRegs; ++i)
      t[i] = kRegs == 1 ? _mm512_maskz_loadu_epi8(first64(size), from) : load64(from + 64 * i);
  }
  Bytes look_up(Bytes codes) const { return look_up(t, codes); }
  static Bytes look_up(const Bytes* t, Bytes codes) {
    if constexpr (kRegs == 1) {
      return _mm512_permutexvar_epi8(codes, t[0]);
    } else if constexpr (kRegs == 2) {
      return _mm512_permutex2var_epi8(t[0], codes, t[1]);
    } else {
      const Bytes low = _mm512_permutex2var_epi8(t[0], codes, t[1]);
      const Bytes high = _mm512_permutex2var_epi8(t[2], codes, t[3]);
      return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high);
    }
  }
};

/// Which codes point into the upper half of a table of 256 bytes.
template <int kRegs>
inline __mmask64 upper_half(Bytes codes) {
  return kRegs == 4 ? _mm512_movepi8_mask(codes) : 0;
}
/// ByteTable::look_up with that known, for several tables.
template <int kRegs>
inline Bytes look_up_halves(const Bytes* t, Bytes codes, __mmask64 upper) {
  if constexpr (kRegs != 4) {
    return ByteTable<kRegs>::look_up(t, codes);
  } else {
    const Bytes low = _mm512_permutex2var_epi8(t[0], codes, t[1]);
    const Bytes high = _mm512_permutex2var_epi8(t[2], codes, t[3]);
    return _mm512_mask_blend_epi8(upper, low, high);
  }
}

/// Sums of bytes for 64 tokens in 16 bits. `all` sums the words (even + 256 odd, mod 2^16), which
/// saves a mask for each byte vector; the even tokens follow at the end.
struct TokenSums {
  Words all = {}, odd = {};
  void add(Bytes x) {
    all += reinterpret_cast<Words>(x);
    odd += reinterpret_cast<Words>(_mm512_srli_epi16(x, 8));
  }
  void shift_left(int bits) {
    const __m128i count = _mm_cvtsi32_si128(bits);
    all = reinterpret_cast<Words>(_mm512_sll_epi16(reinterpret_cast<Bytes>(all), count));
    odd = reinterpret_cast<Words>(_mm512_sll_epi16(reinterpret_cast<Bytes>(odd), count));
  }
  /// s[t] = bias + scale * sum of token t.
  void store(float* s, float scale, float bias) const {
    const Bytes odd_words = reinterpret_cast<Bytes>(odd);
    const Bytes even =
        _mm512_sub_epi16(reinterpret_cast<Bytes>(all), _mm512_slli_epi16(odd_words, 8));
    const Bytes low = _mm512_unpacklo_epi16(even, odd_words),
                high = _mm512_unpackhi_epi16(even, odd_words);
    const Bytes first_half =
        _mm512_permutex2var_epi64(low, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high);
    const Bytes second_half =
        _mm512_permutex2var_epi64(low, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), high);
    store16(s, _mm512_castsi512_si256(first_half), scale, bias);
    store16(s + 16, _mm512_extracti64x4_epi64(first_half, 1), scale, bias);
    store16(s + 32, _mm512_castsi512_si256(second_half), scale, bias);
    store16(s + 48, _mm512_extracti64x4_epi64(second_half, 1), scale, bias);
  }

 private:
  static void store16(float* s, __m256i words, float scale, float bias) {
    const F x = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(words));
    avx512::store(s, vfma(x, set1(scale), set1(bias)));
  }
};

/// acc + sums of four products of unsigned weights and signed values, per 32-bit lane.
inline Ints dot_bytes(Ints acc, Bytes weights, Bytes values) {
  return reinterpret_cast<Ints>(_mm512_dpbusd_epi32(reinterpret_cast<Bytes>(acc), weights, values));
}

/// Order of 64 codes in which interleave4() yields tokens 0..15, 16..31, ... one register each.
struct TokenOrder {
  Bytes index;
  TokenOrder() {
    alignas(64) uint8_t order[64];
    for (int i = 0; i < 64; ++i)
      order[i] = static_cast<uint8_t>(16 * (i % 16 / 4) + 4 * (i / 16) + i % 4);
    index = load64(order);
  }
  Bytes apply(Bytes codes) const { return _mm512_permutexvar_epi8(index, codes); }
};
/// Bytes of four axes, 64 tokens each in TokenOrder, to 16 tokens of four bytes a register.
inline void interleave4(const Bytes* axis, Bytes* out) {
  const Bytes low01 = _mm512_unpacklo_epi8(axis[0], axis[1]);
  const Bytes high01 = _mm512_unpackhi_epi8(axis[0], axis[1]);
  const Bytes low23 = _mm512_unpacklo_epi8(axis[2], axis[3]);
  const Bytes high23 = _mm512_unpackhi_epi8(axis[2], axis[3]);
  out[0] = _mm512_unpacklo_epi16(low01, low23);
  out[1] = _mm512_unpackhi_epi16(low01, low23);
  out[2] = _mm512_unpacklo_epi16(high01, high23);
  out[3] = _mm512_unpackhi_epi16(high01, high23);
}
/// Signed bytes + 128.
inline Bytes make_unsigned(Bytes x) {
  return _mm512_xor_si512(x, _mm512_set1_epi8(static_cast<char>(128)));
}
/// 16 signed bytes as floats.
inline F load_signed(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16(p)));
}
/// Four floats, each four times.
inline F repeat_each4(const float* p) {
  return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
                               _mm512_castps128_ps512(_mm_loadu_ps(p)));
}
/// out[i] = sum of the lanes i, i + 4, i + 8, i + 12.
inline void reduce_strided4(float* out, F x) {
  const __m256 half = _mm512_castps512_ps256(x) + _mm512_extractf32x8_ps(x, 1);
  _mm_storeu_ps(out, _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1));
}
inline void store_bytes(void* p, Bytes x) { _mm512_storeu_si512(p, x); }
/// Four bytes at p in every lane.
inline Bytes splat4(const void* p) {
  int x;
  __builtin_memcpy(&x, p, 4);
  return _mm512_set1_epi32(x);
}
inline Ints load_ints(const int32_t* p) { return reinterpret_cast<Ints>(load64(p)); }
inline void store_ints(int32_t* p, Ints x) { _mm512_storeu_si512(p, reinterpret_cast<Bytes>(x)); }
/// Lanes [begin, end) of x; both are clamped to the register.
inline void store_between(float* p, F x, int begin, int end) {
  if (begin <= 0 && end >= kLanes) {
    store(p, x);
  } else if (begin < kLanes && end > 0) {
    const auto from = static_cast<__mmask16>(begin > 0 ? ~first(begin) : ~0u);
    _mm512_mask_storeu_ps(p, from & first(end < kLanes ? end : kLanes), x);
  }
}
inline Ints set_ints(int x) { return reinterpret_cast<Ints>(_mm512_set1_epi32(x)); }
inline F to_floats(Ints x) { return _mm512_cvtepi32_ps(reinterpret_cast<Bytes>(x)); }
/// Nearest integers as 16 bytes; `offset` is added first.
inline void store_rounded(void* p, F x, int offset) {
  const __m512i i = _mm512_cvtps_epi32(x);
  _mm_storeu_si128(static_cast<__m128i*>(p),
                   _mm512_cvtepi32_epi8(_mm512_add_epi32(i, _mm512_set1_epi32(offset))));
}

/// Four registers of 16 integers as 64 bytes in their order, saturated to 0..255.
inline Bytes pack_u8(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i words = _mm512_packus_epi32(a, b), more = _mm512_packus_epi32(c, d);
  return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(words, more));
}
/// The same saturated to -128..127.
inline Bytes pack_s8(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i words = _mm512_packs_epi32(a, b), more = _mm512_packs_epi32(c, d);
  return _mm512_permutexvar_epi32(order, _mm512_packs_epi16(words, more));
}
inline float reduce_min(F x) { return _mm512_reduce_min_ps(x); }
inline float first_lane(F x) { return _mm512_cvtss_f32(x); }
inline __m512i to_ints(F x) { return _mm512_cvtps_epi32(x); }
/// 2^x to 4e-5, for weights that become bytes: 0 from -126 down, NaN kept.
inline F vexp2_rough(F x) {
  x = _mm512_max_ps(set1(-126.0f), x);
  const F n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const F r = x - n;
  F p = vfma(set1(9.61812911e-3f), r, set1(5.55041087e-2f));
  p = vfma(p, r, set1(2.40226507e-1f));
  p = vfma(p, r, set1(6.93147181e-1f));
  p = vfma(p, r, set1(1.0f));
  return _mm512_scalef_ps(p, n);
}
inline float sum_u8(Bytes x) {
  return static_cast<float>(_mm512_reduce_add_epi64(_mm512_sad_epu8(x, no_bytes())));
}
/// Largest of 64 floats.
inline float max64(const float* p) {
  return reduce_max(vmax(vmax(load(p), load(p + 16)), vmax(load(p + 32), load(p + 48))));
}

inline F vfloor(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
inline void store16(uint8_t* p, __m128i x, int n) {
  if (n == kLanes) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), x);
  } else {
    _mm_mask_storeu_epi8(p, first(n), x);
  }
}
/// Nearest integers of the first n lanes, saturated to 0..255.
inline void store_u8(uint8_t* p, F x, int n) {
  const __m512i i = _mm512_max_epi32(_mm512_cvtps_epi32(x), _mm512_setzero_si512());
  store16(p, _mm512_cvtusepi32_epi8(i), n);
}
inline void store_s8(uint8_t* p, F x, int n) {
  store16(p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x)), n);
}
inline float sum_int(__m512i x) { return static_cast<float>(_mm512_reduce_add_epi32(x)); }

}  // namespace
}  // namespace million::avx512
