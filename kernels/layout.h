// SPDX-License-Identifier: Apache-2.0
// The one place that says where a PQ code lies. Codes of one (layer, KV head, kind) are kept in
// blocks of kPqBlock tokens; inside a block each subspace is one contiguous run:
//
//   block [M][kPqBlock] codes of nbits bits, little-endian bit order inside the run
//
// so the table of one subspace stays in registers while the run streams past. 64 tokens of one
// subspace take 8 * nbits bytes; nbits = 8 is one byte per token.
#pragma once

#include "kernels/hd.h"

#include <cstddef>
#include <cstdint>

namespace million {

inline constexpr int kPqBlock = 512;  ///< tokens per block of codes; a multiple of 64

/// Bytes of one subspace run inside a block.
MILLION_HD inline std::size_t pq_run_bytes(int nbits) {
  return static_cast<std::size_t>(kPqBlock) / 8 * static_cast<std::size_t>(nbits);
}
/// Bytes of one block of M subspaces.
MILLION_HD inline std::size_t pq_block_bytes(int M, int nbits) {
  return static_cast<std::size_t>(M) * pq_run_bytes(nbits);
}

/// Reads code `i` of a run packed at `nbits` (1..16) bits. May read only bytes of the run.
MILLION_HD inline uint32_t pq_get(const uint8_t* run, int nbits, int i) {
  const std::size_t bit = static_cast<std::size_t>(i) * static_cast<std::size_t>(nbits);
  std::size_t byte = bit / 8;
  uint32_t word = run[byte];
  for (int have = 8 - static_cast<int>(bit % 8), n = 1; have < nbits; have += 8, ++n)
    word |= static_cast<uint32_t>(run[byte + n]) << (8 * n);
  return (word >> (bit % 8)) & ((1u << nbits) - 1u);
}

/// Writes code `i` of a run; the bits of other codes are kept.
MILLION_HD inline void pq_set(uint8_t* run, int nbits, int i, uint32_t code) {
  const std::size_t bit = static_cast<std::size_t>(i) * static_cast<std::size_t>(nbits);
  for (int b = 0; b < nbits; ++b) {
    const std::size_t at = bit + static_cast<std::size_t>(b);
    const uint8_t mask = static_cast<uint8_t>(1u << (at % 8));
    if ((code >> b) & 1u)
      run[at / 8] |= mask;
    else
      run[at / 8] &= static_cast<uint8_t>(~mask);
  }
}

}  // namespace million
