// SPDX-License-Identifier: Apache-2.0
// The order of PQ codes on the device: shared by the encoder, the kernels, and the tests.
//
// Codes of one KV head lie in strips of 32 tokens (4 tiles of 8). A lane of the reading warp owns
// the same number of codes of every strip (its record), in the order in which it uses them, so that
// the gathers of a warp never meet in a bank of shared memory, whatever the codes are:
//
//   keys    lane 4 n + j keeps token n of each tile; its code u of tile i belongs to subspace
//           ((u + n - 2 i) % R + R * (u / R)) * 4 + j. R = 16 / dsub subspaces (at most M / 4) of
//           four lanes fill the 32 banks; the skew by n spreads the eight tokens over them, the
//           skew by 2 i the scores of a strip over the lanes (attention_pq.cuh)
//   values  lane keeps subspaces lane + 32 h (M < 32: there are M records, and lanes of equal
//           lane % M share one); code 8 h + t of a tile is token t
//
// A record's codes (c = tile * codes_per_tile + code) lie as bytes, as nibbles, or as a plane of
// nibbles and then a plane of bit pairs: codes of up to 8, 4, or 6 bits. Words of a strip lie as
// [words / V][record][V], V = the widest of 4, 2, 1 that divides words: a warp's loads are
// contiguous.
#pragma once

#include "kernels/hd.h"

#include <cstddef>
#include <cstdint>

namespace million::cuda {

inline constexpr int kStrip = 32;              ///< tokens of a strip
inline constexpr int kTile = 8;                ///< tokens of a tile
inline constexpr int kTiles = kStrip / kTile;  ///< tiles of a strip

/// Bits that a code of `nbits` bits takes: 4, 6 or 8.
MILLION_HD constexpr int pq_stored_bits(int nbits) { return nbits <= 4 ? 4 : nbits <= 6 ? 6 : 8; }

/// Words of `n_codes` codes.
MILLION_HD constexpr int pq_record_words(int n_codes, int nbits) {
  const int bits = pq_stored_bits(nbits);
  if (bits == 8) return (n_codes + 3) / 4;
  return (n_codes + 7) / 8 + (bits == 6 ? (n_codes + 15) / 16 : 0);
}

/// Words of a strip, keys or values: M codes of 4, 6 or 8 bits for each of 32 tokens. (Only records
/// of 8 codes of 6 bits, M = 8, are not full.)
MILLION_HD constexpr int pq_strip_words(int M, int nbits) { return 32 * pq_record_words(M, nbits); }

/// The records of a strip of one kind.
struct PqRecords {
  int count, codes, words;  ///< records of a strip; codes and words of each
  int vector;               ///< words that lie together
};
MILLION_HD constexpr PqRecords pq_records(bool key, int M, int nbits) {
  const int count = key || M >= 32 ? 32 : M, codes = M * kStrip / count;
  const int words = pq_record_words(codes, nbits);
  return {count, codes, words, words % 4 == 0 ? 4 : words % 2 == 0 ? 2 : 1};
}

/// Where word `word` of record `lane` lies in its strip, and back.
MILLION_HD constexpr int pq_word_at(const PqRecords& r, int lane, int word) {
  return (word / r.vector * r.count + lane) * r.vector + word % r.vector;
}
struct PqWord {
  int lane, word;
};
MILLION_HD constexpr PqWord pq_word_of(const PqRecords& r, int at) {
  const int line = at / r.vector;
  return {line % r.count, line / r.count * r.vector + at % r.vector};
}

/// A code by what it stands for (token of the strip, subspace) and by where it is kept.
struct PqCode {
  int token, subspace;
};
struct PqSlot {
  int lane, code;  ///< of the record
};

/// Subspaces of keys whose gathers take turns.
MILLION_HD constexpr int pq_key_turns(int M, int dsub) {
  return M / 4 < 16 / dsub ? M / 4 : 16 / dsub;
}
/// The skew of token n in tile i, n - 2 i, but never negative: R divides 16.
MILLION_HD constexpr int pq_key_skew(int n, int tile) { return n + 14 * tile; }
MILLION_HD constexpr PqCode pq_key_code(int M, int dsub, int lane, int c) {
  const int R = pq_key_turns(M, dsub), n = lane / 4, j = lane % 4, u = c % (M / 4);
  const int tile = c / (M / 4);
  return {tile * kTile + n, ((u + pq_key_skew(n, tile)) % R + u / R * R) * 4 + j};
}
MILLION_HD constexpr PqSlot pq_key_slot(int M, int dsub, int token, int subspace) {
  const int R = pq_key_turns(M, dsub), n = token % kTile, tile = token / kTile;
  const int row = subspace / 4, u = (row % R + 64 - pq_key_skew(n, tile)) % R + row / R * R;
  return {4 * n + subspace % 4, tile * (M / 4) + u};
}
MILLION_HD constexpr PqCode pq_value_code(int M, int lane, int c) {
  const int per_tile = M < 32 ? kTile : kTile * M / 32, h = c % per_tile / kTile;
  return {c / per_tile * kTile + c % kTile, lane + 32 * h};
}
MILLION_HD constexpr PqSlot pq_value_slot(int M, int token, int subspace) {
  const int per_tile = M < 32 ? kTile : kTile * M / 32;
  return {subspace % 32, token / kTile * per_tile + subspace / 32 * kTile + token % kTile};
}

/// Where code c of a record lies: its bits at `shift` of word `word`; where 6 bits are stored, the
/// low four there, and the high two at `high_shift` of `high_word`.
struct CodePlace {
  int word, shift, high_word, high_shift;
};
MILLION_HD constexpr CodePlace code_place(int n_codes, int nbits, int c) {
  const int bits = pq_stored_bits(nbits);
  if (bits == 8) return {c / 4, c % 4 * 8, 0, 0};
  const int nibble = c % 4 * 8 + c / 4 % 2 * 4;
  if (bits == 4) return {c / 8, nibble, 0, 0};
  return {c / 8, nibble, (n_codes + 7) / 8 + c / 16, c % 4 * 8 + c / 4 % 4 * 2};
}

/// The code at a place whose words are `low` and `high`.
MILLION_HD constexpr uint32_t pq_code_of(const CodePlace& p, int nbits, uint32_t low,
                                         uint32_t high) {
  const int bits = pq_stored_bits(nbits);
  const uint32_t value = low >> p.shift & (bits == 8 ? 255u : 15u);
  return bits == 6 ? value | (high >> p.high_shift & 3) << 4 : value;
}

/// Word `word` of a record whose code c is code(c).
template <class Code>
MILLION_HD constexpr uint32_t pq_pack_word(int n_codes, int nbits, int word, const Code& code) {
  const int bits = pq_stored_bits(nbits), low_words = (n_codes + 7) / 8;
  const bool high = bits == 6 && word >= low_words;
  const int per_word = bits == 8 ? 4 : high ? 16 : 8;
  const int first = (high ? word - low_words : word) * per_word;
  uint32_t packed = 0;
  for (int c = first; c < first + per_word && c < n_codes; ++c) {
    const CodePlace p = code_place(n_codes, nbits, c);
    const uint32_t value = static_cast<uint32_t>(code(c));
    if (bits == 8)
      packed |= value << p.shift;
    else if (high)
      packed |= (value >> 4) << p.high_shift;
    else
      packed |= (value & 15) << p.shift;
  }
  return packed;
}

}  // namespace million::cuda
