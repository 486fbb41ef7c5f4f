// SPDX-License-Identifier: Apache-2.0
// PQ codes on a device: their order, encode and decode.
#include "tests/cuda/pq_data.h"

#include <catch2/catch.hpp>

#include <algorithm>
#include <set>

namespace million::cuda::test::pq {
namespace {

TEST_CASE("pq strips: slots and words are one to one, gathers never share a bank") {
  for (int d : {64, 128})
    for (int dsub : {1, 2, 4, 8})
      for (int nbits : {4, 6, 8})
        for (bool key : {false, true}) {
          const int M = d / dsub;
          const PqRecords r = pq_records(key, M, nbits);
          CAPTURE(d, dsub, nbits, key);
          std::set<std::pair<int, int>> slots, bits;
          for (int t = 0; t < kStrip; ++t)
            for (int m = 0; m < M; ++m) {
              const PqSlot s = key ? pq_key_slot(M, dsub, t, m) : pq_value_slot(M, t, m);
              const PqCode back =
                  key ? pq_key_code(M, dsub, s.lane, s.code) : pq_value_code(M, s.lane, s.code);
              REQUIRE((back.token == t && back.subspace == m));
              REQUIRE((s.lane < r.count && s.code < r.codes));
              REQUIRE(slots.insert({s.lane, s.code}).second);
              const CodePlace at = code_place(r.codes, nbits, s.code);
              const int word = pq_word_at(r, s.lane, at.word);
              const PqWord of = pq_word_of(r, word);
              REQUIRE((of.lane == s.lane && of.word == at.word));
              REQUIRE(word < pq_strip_words(M, nbits));
              REQUIRE(bits.insert({word, at.shift}).second);
              if (nbits != 6) continue;
              const int high = pq_word_at(r, s.lane, at.high_word);
              REQUIRE(high < pq_strip_words(M, nbits));
              REQUIRE(bits.insert({high, at.high_shift}).second);
            }
        }
  for (int d : {64, 128})
    for (int dsub : {2, 4}) {
      const int M = d / dsub, at_once = 64 / dsub;  // lanes that a load serves in a wavefront
      for (int u = 0; u < M / 4; ++u)
        for (int first = 0; first < 32; first += at_once) {
          std::set<int> banks;
          for (int lane = first; lane < first + at_once; ++lane)
            banks.insert(pq_key_code(M, dsub, lane, u).subspace * dsub / 2 % 32);
          REQUIRE(static_cast<int>(banks.size()) == at_once);
        }
    }
}

/// Codes read back from strips.
std::vector<uint8_t> unpacked(const Kind& k, const std::vector<uint32_t>& strips) {
  const PqRecords r = pq_records(k.key, k.M, k.nbits);
  const size_t words = pq_strip_words(k.M, k.nbits);
  std::vector<uint8_t> codes;
  for (int line = 0; line < k.lines; ++line)
    for (int t = 0; t < k.tokens; ++t)
      for (int m = 0; m < k.M; ++m) {
        const PqSlot slot = slot_of(k, t % kStrip, m);
        const CodePlace at = code_place(r.codes, k.nbits, slot.code);
        const uint32_t* strip =
            strips.data() + (static_cast<size_t>(line) * k.strips() + t / kStrip) * words;
        codes.push_back(
            static_cast<uint8_t>(pq_code_of(at, k.nbits, strip[pq_word_at(r, slot.lane, at.word)],
                                            strip[pq_word_at(r, slot.lane, at.high_word)])));
      }
  return codes;
}

struct EncodeCase {
  int d, dsub, nbits, begin, n;
  bool key, book_per_head;
};
constexpr int kBatch = 2, kHeads = 2, kRing = 128, kSinks = 5;
constexpr int kLines = kBatch * kHeads;

/// Subvector m of token t behind the sinks.
const uint16_t* subvector(const EncodeCase& c, const std::vector<uint16_t>& ring, int line, int t,
                          int m) {
  return ring.data() + (static_cast<size_t>(line) * kRing + (kSinks + t) % kRing) * c.d +
         m * c.dsub;
}

/// Codes are those of nearest centroids, 0 behind the tokens; other strips are as they were.
void check_encoded(const EncodeCase& c, const Kind& k, const std::vector<uint16_t>& ring,
                   const std::vector<uint32_t>& strips) {
  const int tokens = c.begin + c.n, first = c.begin / kStrip;
  const int last = (tokens + kStrip - 1) / kStrip;
  const size_t words = pq_strip_words(k.M, c.nbits);
  for (int line = 0; line < kLines; ++line) {
    for (int s = 0; s < k.strips(); ++s) {
      if (s >= first && s < last) continue;
      const uint32_t* p = strips.data() + (static_cast<size_t>(line) * k.strips() + s) * words;
      REQUIRE(std::all_of(p, p + words, [](uint32_t w) { return w == 0xFFFFFFFFu; }));
    }
    const uint16_t* book = k.book.data() + static_cast<size_t>(line % k.n_books) * k.K() * c.d;
    for (int t = c.begin; t < last * kStrip; ++t) {
      for (int m = 0; m < k.M; ++m) {
        const int code = k.code(line, t, m);
        if (t >= tokens) {
          REQUIRE(code == 0);
          continue;
        }
        const uint16_t* x = subvector(c, ring, line, t, m);
        const auto distance = [&](int centroid) {
          double sum = 0.0;
          for (int e = 0; e < c.dsub; ++e) {
            const double y = half_value(book[centroid * c.d + m * c.dsub + e]);
            sum += (half_value(x[e]) - y) * (half_value(x[e]) - y);
          }
          return sum;
        };
        double least = distance(0);
        for (int i = 1; i < k.K(); ++i) least = std::min(least, distance(i));
        REQUIRE(code < k.K() / 2);                      // the copy in the upper half is as near
        REQUIRE(distance(code) <= least * (1 + 1e-6));  // f32 sums of up to 8 squares
      }
    }
  }
}

/// Decodes tokens [begin + 3, begin + n): decode may start anywhere.
void check_decoded(const EncodeCase& c, const Kind& k, const PqCodesView& view) {
  const int skip = std::min(3, c.n), first = c.begin + skip;
  DeviceVector<uint16_t> rows(static_cast<size_t>(kLines) * k.tokens * c.d);
  PqDecodeArgs a;
  a.to = {kBatch, kHeads, c.d, first, c.n - skip, rows.data(), k.tokens};
  a.key = c.key;
  a.codes = view;
  REQUIRE(ops().pq_decode(nullptr, a) == 0);
  const std::vector<uint16_t> got = rows.get();
  for (int line = 0; line < kLines; ++line)
    for (int t = 0; t < k.tokens; ++t)
      for (int i = 0; i < c.d; ++i) {
        const uint16_t half = got[(static_cast<size_t>(line) * k.tokens + t) * c.d + i];
        if (t < first || t >= c.begin + c.n)
          REQUIRE(half == 0xFFFF);
        else
          REQUIRE(half_value(half) == k.value(line, t, i));
      }
}

/// Encodes rows of a ring that wraps, with a book full of ties, then decodes.
void check_codes(const EncodeCase& c) {
  CAPTURE(c.d, c.dsub, c.nbits, c.begin, c.n, c.key);
  std::mt19937 random(static_cast<unsigned>(c.d + c.dsub + c.nbits + c.n));
  const int M = c.d / c.dsub, capacity = (c.begin + c.n + 2 * kStrip) / kStrip * kStrip;
  const int n_books = c.book_per_head ? kHeads : 1;
  Kind k = random_kind(c.d, M, c.nbits, kLines, capacity, n_books, c.key, random);
  const int half = k.K() / 2 * c.d;
  for (int i = 0; i < n_books; ++i)  // the upper half of the centroids repeats the lower one
    std::copy_n(k.book.begin() + 2 * i * half, half, k.book.begin() + (2 * i + 1) * half);
  const std::vector<uint16_t> ring =
      random_halves(static_cast<size_t>(kLines) * kRing * c.d, 1.0, random);

  DeviceVector<uint16_t> device_ring(ring);
  DeviceVector<uint32_t> book(pairs_of(k.book));
  DeviceVector<uint32_t> codes(static_cast<size_t>(kLines) * k.strips() *
                               pq_strip_words(M, c.nbits));
  PqEncodeArgs a;
  a.batch = kBatch, a.n_kv_heads = kHeads, a.head_dim = c.d;
  a.ring = device_ring.data(), a.ring_rows = kRing;
  a.n_sinks = kSinks, a.begin = c.begin, a.n = c.n, a.key = c.key;
  a.codes = view_of(k, codes, book);
  REQUIRE(ops().pq_encode(nullptr, a) == 0);
  const std::vector<uint32_t> strips = codes.get();
  k.codes = unpacked(k, strips);
  check_encoded(c, k, ring, strips);
  check_decoded(c, k, a.codes);
}

TEST_CASE("pq_encode takes the nearest centroid, pq_decode gives it back") {
  for (bool key : {true, false}) {
    for (int nbits : {4, 6, 8}) {
      check_codes({128, 2, nbits, 0, 33, key, false});
      check_codes({64, 4, nbits, 64, 32, key, true});
      if (harness_is_slow()) continue;
      check_codes({128, 4, nbits, 96, 50, key, true});
      check_codes({64, 2, nbits, 32, 1, key, false});
    }
    check_codes({128, 8, 6, 0, 40, key, false});
    check_codes({64, 8, 6, 0, 40, key, false});
    check_codes({64, 1, 5, 32, 20, key, true});
    check_codes({128, 1, 3, 0, 7, key, false});
    check_codes({64, 2, 7, 0, 0, key, false});
  }
}

}  // namespace
}  // namespace million::cuda::test::pq
