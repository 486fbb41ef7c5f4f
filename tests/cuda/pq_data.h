// SPDX-License-Identifier: Apache-2.0
// Codes and codebooks for the tests of PQ on a device.
#pragma once

#include "kernels/cuda/pq_strips.h"
#include "tests/cuda/harness.h"

#include <cmath>
#include <random>

namespace million::cuda::test::pq {

inline double half_value(uint16_t h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  const double m =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(mantissa + 1024, exponent - 25);
  return (h & 0x8000) != 0 ? -m : m;
}
/// Normal halves only, truncated: test data need not be rounded well.
inline uint16_t half_bits(double x) {
  int exponent = 0;
  const double m = std::frexp(std::fabs(x), &exponent);  // in [0.5, 1)
  if (x == 0.0 || exponent < -13) return 0;
  const int bits = (exponent + 14) << 10 | (static_cast<int>(m * 2048.0) & 1023);
  return static_cast<uint16_t>(bits | (x < 0 ? 0x8000 : 0));
}
inline std::vector<uint16_t> random_halves(size_t n, double deviation, std::mt19937& random) {
  std::normal_distribution<double> normal(0.0, deviation);
  std::vector<uint16_t> v(n);
  for (uint16_t& h : v) h = half_bits(normal(random));
  return v;
}
inline std::vector<uint32_t> pairs_of(const std::vector<uint16_t>& halves) {
  std::vector<uint32_t> v(halves.size() / 2);
  std::memcpy(v.data(), halves.data(), v.size() * 4);
  return v;
}

/// Codes of one kind: [batch * n_kv_heads][tokens][M].
struct Kind {
  int d = 0, M = 0, nbits = 0, lines = 0, tokens = 0, n_books = 1;
  bool key = false;
  std::vector<uint8_t> codes;
  std::vector<uint16_t> book;  ///< [n_books][K][d]

  int K() const { return 1 << nbits; }
  int strips() const { return (tokens + kStrip - 1) / kStrip; }
  uint8_t& code(int line, int t, int m) {
    return codes[(static_cast<size_t>(line) * tokens + t) * M + m];
  }
  uint8_t code(int line, int t, int m) const { return const_cast<Kind*>(this)->code(line, t, m); }
  double value(int line, int t, int channel) const {
    const size_t row = static_cast<size_t>(line % n_books) * K() + code(line, t, channel * M / d);
    return half_value(book[row * d + channel]);
  }
};
inline Kind random_kind(int d, int M, int nbits, int lines, int tokens, int n_books, bool key,
                        std::mt19937& random) {
  Kind k{d, M, nbits, lines, tokens, n_books, key, {}, {}};
  k.codes.resize(static_cast<size_t>(lines) * tokens * M);
  for (uint8_t& c : k.codes) c = static_cast<uint8_t>(random() % k.K());
  k.book = random_halves(static_cast<size_t>(n_books) * k.K() * d, 1.0, random);
  return k;
}
inline PqSlot slot_of(const Kind& k, int token, int m) {
  return k.key ? pq_key_slot(k.M, k.d / k.M, token, m) : pq_value_slot(k.M, token, m);
}
/// The codes in strips. Codes behind the tokens of a head are whatever was there: random ones.
inline std::vector<uint32_t> packed(const Kind& k, std::mt19937& random) {
  const PqRecords r = pq_records(k.key, k.M, k.nbits);
  const size_t words = pq_strip_words(k.M, k.nbits);
  std::vector<uint32_t> out(k.lines * k.strips() * words);
  for (int line = 0; line < k.lines; ++line) {
    for (int t = 0; t < k.strips() * kStrip; ++t) {
      for (int m = 0; m < k.M; ++m) {
        const uint32_t code = t < k.tokens ? k.code(line, t, m) : random() % k.K();
        const PqSlot slot = slot_of(k, t % kStrip, m);
        const CodePlace at = code_place(r.codes, k.nbits, slot.code);
        uint32_t* strip =
            out.data() + (static_cast<size_t>(line) * k.strips() + t / kStrip) * words;
        const bool planes = pq_stored_bits(k.nbits) == 6;
        strip[pq_word_at(r, slot.lane, at.word)] |= (planes ? code & 15 : code) << at.shift;
        if (planes) strip[pq_word_at(r, slot.lane, at.high_word)] |= (code >> 4) << at.high_shift;
      }
    }
  }
  return out;
}

inline PqCodesView view_of(const Kind& k, DeviceVector<uint32_t>& codes,
                           DeviceVector<uint32_t>& book) {
  return {k.M, k.nbits, codes.data(), k.strips(), book.data(), k.n_books > 1};
}

}  // namespace million::cuda::test::pq
