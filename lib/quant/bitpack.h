// SPDX-License-Identifier: Apache-2.0
// Codes of 1 to 8 bits in bytes, little-endian bit order: code i lies at bits [i * bits, (i + 1) *
// bits) of the row. Rows start at a byte.
#pragma once

#include <cstdint>

namespace million {

inline int64_t packed_bytes(int64_t n, int bits) { return (n * bits + 7) / 8; }

/// codes [n] -> out [packed_bytes(n, bits)]; unused bits of the last byte are 0.
inline void pack_bits(const uint8_t* codes, int n, int bits, uint8_t* out) {
  uint32_t word = 0;
  int have = 0;
  for (int i = 0; i < n; ++i) {
    word |= static_cast<uint32_t>(codes[i]) << have;
    have += bits;
    if (have >= 8) {
      *out++ = static_cast<uint8_t>(word);
      word >>= 8;
      have -= 8;
    }
  }
  if (have > 0) *out = static_cast<uint8_t>(word);
}

inline void unpack_bits(const uint8_t* in, int n, int bits, uint8_t* codes) {
  const uint32_t mask = (1u << bits) - 1u;
  uint32_t word = 0;
  int have = 0;
  for (int i = 0; i < n; ++i) {
    if (have < bits) {
      word |= static_cast<uint32_t>(*in++) << have;
      have += 8;
    }
    codes[i] = static_cast<uint8_t>(word & mask);
    word >>= bits;
    have -= bits;
  }
}

}  // namespace million
