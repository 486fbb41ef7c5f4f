// SPDX-License-Identifier: Apache-2.0
// Unpacking of eight codes with AVX2, for the vector types that have it.
#pragma once

#include <immintrin.h>

namespace million::MILLION_ISA {
namespace {

/// Codes [0, 8) of kBits <= 7 bits, which are kBits bytes.
template <int kBits>
inline __m256i codes8(const uint8_t* p) {
  unsigned long long x = 0;
  __builtin_memcpy(&x, p, kBits);
  __m256i both = _mm256_set1_epi32(static_cast<int>(x));
  __m256i shift =
      _mm256_setr_epi32(0, kBits, 2 * kBits, 3 * kBits, 4 * kBits, 5 * kBits, 6 * kBits, 7 * kBits);
  if constexpr (kBits > 4) {
    const __m128i high = _mm_set1_epi32(static_cast<int>(x >> (4 * kBits)));
    both = _mm256_inserti128_si256(both, high, 1);
    shift = _mm256_setr_epi32(0, kBits, 2 * kBits, 3 * kBits, 0, kBits, 2 * kBits, 3 * kBits);
  }
  return _mm256_and_si256(_mm256_srlv_epi32(both, shift), _mm256_set1_epi32((1 << kBits) - 1));
}

}  // namespace
}  // namespace million::MILLION_ISA
