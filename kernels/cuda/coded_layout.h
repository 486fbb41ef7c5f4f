// SPDX-License-Identifier: Apache-2.0
// The order of codes in a basis on the device, and of the queries that meet them: shared by the
// encoder, the kernels, and the tests.
//
// Codes of a unit lie in strips of 32 positions, so that no strip straddles two frames: token
// n_sinks + i lies at slot n_sinks % 32 + i. A strip has M bytes for each lane of the warp that
// reads it, in the order in which the lane uses them:
//
//   keys    lane 4 n + j has token n of each of the strip's four tiles of 8: byte t of word
//           m / 4 is tile t, subspace m with m % 4 = j. A centroid of 4 bytes is half of what a
//           lane gives to one product of bytes.
//   values  lane 4 n + j has tokens 2j, 2j+1, 2j+8, 2j+9 of each half of 16 (a word) for subspaces
//           m with m % 8 = n. Words follow a lane's turns: at turn u it reads subspace group
//           u ^ (j & turn_mask), so that 32 lanes read different subspaces, in different banks.
//
// A lane's M / 4 words lie as [M / 16][lane][4]: a warp's loads are contiguous.
//
// Turned queries of a head and frame lie as [M / 8][4][4] words: those of [g][j] are the high and
// the low bytes for subspace 8 g + j, then those for 8 g + 4 + j.
#pragma once

#include "kernels/hd.h"

#include <cstddef>
#include <cstdint>

namespace million::cuda {

inline constexpr int kCodedStrip = 32;  ///< positions of a strip

MILLION_HD constexpr int coded_strip_words(int M) { return 8 * M; }
/// Slot of token n_sinks + i.
MILLION_HD constexpr int coded_slot(int n_sinks, int i) { return n_sinks % kCodedStrip + i; }
/// Strips that n tokens behind the sinks touch.
MILLION_HD constexpr int coded_strips(int n_sinks, int n) {
  return n <= 0 ? 0 : (coded_slot(n_sinks, n) + kCodedStrip - 1) / kCodedStrip;
}

/// Groups of 8 subspaces that a lane's turns are mixed with: four, and two at the end of an odd
/// number of pairs (M is a multiple of 16).
MILLION_HD constexpr int coded_turn_mask(int M, int group) { return group < M / 32 * 4 ? 3 : 1; }

/// Word `word` of a lane's record, in words of the strip.
MILLION_HD constexpr int coded_word_at(int lane, int word) {
  return (word / 4 * 32 + lane) * 4 + word % 4;
}
/// Byte of a strip that holds the code of its slot t in subspace m.
MILLION_HD constexpr int coded_key_byte(int t, int m) {
  return coded_word_at(t % 8 * 4 + m % 4, m / 4) * 4 + t / 8;
}
MILLION_HD constexpr int coded_value_byte(int M, int t, int m) {
  const int j = t % 8 / 2, turn = m / 8 ^ (j & coded_turn_mask(M, m / 8));
  return coded_word_at(m % 8 * 4 + j, t / 16 * (M / 8) + turn) * 4 + t % 16 / 8 * 2 + t % 2;
}

}  // namespace million::cuda
