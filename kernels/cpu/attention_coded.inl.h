// SPDX-License-Identifier: Apache-2.0
// Decode attention on codes in a basis that the KV heads of a layer share (the default method of
// lib/quant): keys and values are decoded to signed bytes inside registers, 64 tokens a lookup, and
// multiplied with byte queries and byte weights; no row of a head is made. Needs the registers
// of vec_avx512_bytes.h.
//
// Once a call: queries are turned into the basis, frame by frame (int8 x int8). Per block of codes:
// keys decoded to tiles of 64 places, integer dots with the queries of the tile's frame, then scale
// and the mean key's part, which depends on the place only and is a sum of few functions of it.
// Once a call: weights relative to the call's maximum, and the value pass, which leaves out
// 64-token groups of a head whose weight is surely below a bound.
//
// Error: three roundings to 8 bits (the query before and after it is turned, D^T is stored so) move
// a score by about 1 % of its deviation; weights are rounded to 1/255 to 1/64 of the largest in
// their 64-token group. test_kernels_coded.cpp bounds the output at 4 % on random data.
#pragma once

#include "kernels/cpu/attention_values.inl.h"
#include "kernels/cpu/prefetch.inl.h"

namespace million::MILLION_ISA {
namespace {

constexpr int kTileGroups = 4;  ///< registers of 16 places in a tile
constexpr int kTileHeads =
    5;  ///< query heads at once: 20 accumulators (9 heads x 2 registers: slower)

inline float largest_magnitude(const float* x, int n) {
  F top = zero();
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) top = vmax(top, vabs(load(x + i)));
  if (i < n) top = vmax(top, vabs(load_part(x + i, n - i)));
  return reduce_max(top);
}

/// Signed bytes of n floats times `factor`, rounded; a multiple of 16.
MILLION_INLINE void floats_to_bytes(const float* x, int n, F factor, int8_t* bytes) {
  const auto at = [&](int i) { return to_ints(load(x + i) * factor); };
  int i = 0;
  for (; i + kByteLanes <= n; i += kByteLanes)
    store_bytes(bytes + i, pack_s8(at(i), at(i + kLanes), at(i + 2 * kLanes), at(i + 3 * kLanes)));
  for (; i < n; i += kLanes) store_rounded(bytes + i, load(x + i) * factor, 0);
}

/// Sum of n signed bytes, a multiple of 16.
MILLION_INLINE float sum_bytes(const int8_t* bytes, int n) {
  const Bytes ones = set_bytes(1);
  Ints sum = set_ints(0);
  int i = 0;
  for (; i + kByteLanes <= n; i += kByteLanes)
    sum = dot_bytes(sum, ones, load_bytes(reinterpret_cast<const uint8_t*>(bytes + i)));
  for (; i < n; i += kLanes) sum = dot_bytes(sum, ones, load16_bytes(bytes + i));
  return sum_int(reinterpret_cast<Bytes>(sum));
}

/// A query row as unsigned bytes (128 = 0); returns the step.
inline float row_to_bytes(const float* x, int n, uint8_t* bytes) {
  const float top = largest_magnitude(x, n), step = top / 127.0f;
  const F inverse = set1(top > 1e-30f ? 127.0f / top : 0.0f);
  const auto at = [&](int i) { return to_ints(load(x + i) * inverse); };
  int i = 0;
  for (; i + kByteLanes <= n; i += kByteLanes)
    store_bytes(bytes + i, make_unsigned(pack_s8(at(i), at(i + kLanes), at(i + 2 * kLanes),
                                                 at(i + 3 * kLanes))));
  for (; i < n; i += kLanes)
    store_rounded(bytes + i, (i + kLanes <= n ? load(x + i) : load_part(x + i, n - i)) * inverse,
                  128);
  return step;
}

/// Columns [at, at + 16 kRegs) of kRows turned queries: s.turned [kRows][rank] in units of the
/// keys' steps and of each row's own step; `top` follows the largest magnitudes.
template <int kRows, int kRegs>
MILLION_INLINE void turn_columns(const CodedAttendArgs& a, const CodedScratch& s,
                                 const int8_t* panel, const uint8_t (*x)[256], int at, F* top) {
  Ints sum[kRows][kRegs];
  for (int z = 0; z < kRegs; ++z) {
    const Ints start = load_ints(s.offset + at + kLanes * z);
    for (int r = 0; r < kRows; ++r) sum[r][z] = start;
  }
  const auto* columns = reinterpret_cast<const uint8_t*>(panel) + 4 * at;
  for (int c = 0; c < a.head_dim; c += 4, columns += 4 * a.rank) {
    Bytes d[kRegs];
    for (int z = 0; z < kRegs; ++z) d[z] = load_bytes(columns + kByteLanes * z);
    for (int r = 0; r < kRows; ++r) {
      const Bytes query = splat4(x[r] + c);
      for (int z = 0; z < kRegs; ++z) sum[r][z] = dot_bytes(sum[r][z], query, d[z]);
    }
  }
  for (int z = 0; z < kRegs; ++z) {
    const F scale = load(s.column + at + kLanes * z);
    for (int r = 0; r < kRows; ++r) {
      const F y = to_floats(sum[r][z]) * scale;
      top[r] = vmax(top[r], vabs(y));
      store(s.turned + r * a.rank + at + kLanes * z, y);
    }
  }
}

/// q_mean of kRows queries: their products with the mean's functions, 16 of them at a time. Two
/// sums a row, so that the additions overlap.
template <int kRows>
MILLION_INLINE void turn_mean(const CodedAttendArgs& a, const CodedScratch& s, int kv,
                              const std::ptrdiff_t* row) {
  for (int k = 0; k < a.n_places; k += kLanes) {
    const float* mean = a.mean + static_cast<std::ptrdiff_t>(kv) * a.head_dim * a.n_places + k;
    F even[kRows], odd[kRows];
    for (int r = 0; r < kRows; ++r) even[r] = odd[r] = zero();
    for (int c = 0; c < a.head_dim; c += 2, mean += 2 * a.n_places) {
      const F m0 = load(mean), m1 = load(mean + a.n_places);
      for (int r = 0; r < kRows; ++r) {
        const float* q = a.q + row[r] * a.head_dim + c;
        even[r] = vfma(set1(q[0]), m0, even[r]);
        odd[r] = vfma(set1(q[1]), m1, odd[r]);
      }
    }
    for (int r = 0; r < kRows; ++r) store(s.q_mean + row[r] * a.n_places + k, even[r] + odd[r]);
  }
}

/// Queries row[0..kRows) (numbered frame by frame) of one KV head: bytes in the basis, and their
/// products with the mean's functions.
template <int kRows>
void turn_rows(const CodedAttendArgs& a, const CodedScratch& s, int kv, const std::ptrdiff_t* row) {
  alignas(64) uint8_t x[kRows][256];
  float step[kRows];
  F top[kRows];
  for (int r = 0; r < kRows; ++r) {
    step[r] = row_to_bytes(a.q + row[r] * a.head_dim, a.head_dim, x[r]);
    top[r] = zero();
  }
  const int8_t* panel = a.basis + static_cast<std::ptrdiff_t>(kv) * a.head_dim * a.rank;
  int at = 0;
  for (; at + 4 * kLanes <= a.rank; at += 4 * kLanes)
    turn_columns<kRows, 4>(a, s, panel, x, at, top);
  for (; at < a.rank; at += kLanes) turn_columns<kRows, 1>(a, s, panel, x, at, top);
  for (int r = 0; r < kRows; ++r) {
    const float* y = s.turned + r * a.rank;
    const float largest = reduce_max(top[r]);
    const F inverse = set1(largest > 1e-30f ? 127.0f / largest : 0.0f);
    int8_t* q8 = s.q8 + row[r] * a.rank;
    floats_to_bytes(y, a.rank, inverse, q8);
    s.q_scale[row[r]] = step[r] * largest / 127.0f;
    s.q_bias[row[r]] = -128.0f * sum_bytes(q8, a.rank) * s.q_scale[row[r]];
  }
  turn_mean<kRows>(a, s, kv, row);
}

void turn_queries(const CodedAttendArgs& a, const CodedScratch& s) {
  for (int j = 0; j < a.rank; ++j) s.column[j] = a.basis_scale[j] * a.k.scale[j];
  const int group = a.n_heads / a.span, n = s.n_frames * group;
  for (int kv = 0; kv < a.span; ++kv) {
    const int8_t* panel = a.basis + static_cast<std::ptrdiff_t>(kv) * a.head_dim * a.rank;
    const Bytes all_128 = make_unsigned(no_bytes());
    for (int j = 0; j < a.rank; j += kLanes) {
      Ints sum = set_ints(0);
      for (int c = 0; c < a.head_dim; c += 4)
        sum = dot_bytes(sum, all_128,
                        load_bytes(reinterpret_cast<const uint8_t*>(panel) + c * a.rank + 4 * j));
      store_ints(s.offset + j, set_ints(0) - sum);
    }
    for (int i = 0; i < n; i += CodedScratch::kRows) {
      std::ptrdiff_t row[CodedScratch::kRows];
      for (int r = 0; r < CodedScratch::kRows; ++r) {
        const int at = i + r < n ? i + r : n - 1;  // the last one again: same result
        row[r] = static_cast<std::ptrdiff_t>(at / group) * a.n_heads + kv * group + at % group;
      }
      turn_rows<CodedScratch::kRows>(a, s, kv, row);
    }
  }
}

/// One tile of decoded keys: 64 places of one frame, of which [begin, end) are tokens of the run.
struct KeyTile {
  const uint8_t* quads;  ///< [rank / 4][kTileStride] places of 4 bytes
  std::ptrdiff_t frame;  ///< number of the frame
  int place;             ///< of the tile's first column in its frame
  int begin, end;
  float* scores;  ///< of head 0 at the tile's first column; head h is `stride` floats further
};

/// Scores of kHeads heads from `head` on for the first 16 kGroups columns of a tile.
template <int kHeads, int kGroups>
void score_tile(const CodedAttendArgs& a, const CodedScratch& s, const KeyTile& tile, int head) {
  const std::ptrdiff_t query = tile.frame * a.n_heads + head;
  const int8_t* q8 = s.q8 + query * a.rank;
  Ints sum[kHeads][kGroups];
  for (int h = 0; h < kHeads; ++h)
    for (int g = 0; g < kGroups; ++g) sum[h][g] = set_ints(0);
  const uint8_t* quads = tile.quads;
  for (int j = 0; j < a.rank; j += 4, quads += 4 * CodedScratch::kTileStride) {
    Bytes keys[kGroups];
    for (int g = 0; g < kGroups; ++g) keys[g] = load_bytes(quads + kByteLanes * g);
    for (int h = 0; h < kHeads; ++h) {
      const Bytes bytes = splat4(q8 + h * a.rank + j);
      for (int g = 0; g < kGroups; ++g) sum[h][g] = dot_bytes(sum[h][g], keys[g], bytes);
    }
  }
  F x[kHeads][kGroups];
  for (int h = 0; h < kHeads; ++h)
    for (int g = 0; g < kGroups; ++g)
      x[h][g] = vfma(to_floats(sum[h][g]), set1(s.q_scale[query + h]), set1(s.q_bias[query + h]));
  const float* mean = s.q_mean + query * a.n_places;
  const float* places = a.places + tile.place;
  for (int k = 0; k < a.n_places; ++k, places += a.frame) {
    F function[kGroups];
    for (int g = 0; g < kGroups; ++g) function[g] = load(places + kLanes * g);
    for (int h = 0; h < kHeads; ++h) {
      const F weight = set1(mean[h * a.n_places + k]);
      for (int g = 0; g < kGroups; ++g) x[h][g] = vfma(weight, function[g], x[h][g]);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    float* to = tile.scores + static_cast<std::size_t>(head + h) * s.stride;
    for (int g = 0; g < kGroups; ++g) {
      const int column = kLanes * g;
      store_between(to + column, x[h][g], tile.begin - column, tile.end - column);
    }
  }
}

/// score_tile with `heads` heads.
template <int kHeads, int kGroups>
void score_some(const CodedAttendArgs& a, const CodedScratch& s, const KeyTile& tile, int head,
                int heads) {
  if (heads >= kHeads) {
    score_tile<kHeads, kGroups>(a, s, tile, head);
  } else if constexpr (kHeads > 1) {
    score_some<kHeads - 1, kGroups>(a, s, tile, head, heads);
  }
}

void score_heads(const CodedAttendArgs& a, const CodedScratch& s, const KeyTile& tile) {
  const int n = a.n_heads, batches = (n + kTileHeads - 1) / kTileHeads;
  for (int batch = 0, head = 0; batch < batches; ++batch) {
    const int heads = (n - head + batches - batch - 1) / (batches - batch);
    if (tile.end <= kLanes)
      score_some<kTileHeads, 1>(a, s, tile, head, heads);
    else
      score_some<kTileHeads, kTileGroups>(a, s, tile, head, heads);
    head += heads;
  }
}

/// Decodes one quad of a block's keys to the tiles. A register of 16 tokens that crosses from one
/// tile to the next is stored to both; what hangs over lies between the rows.
template <int kRegs>
MILLION_INLINE void key_quad(const CodedAttendArgs& a, const CodedScratch& s,
                             const CodeReader<kRegs != 4>& reader, int begin, int n_groups,
                             int quad) {
  const int shift = (a.first + begin) % kByteLanes;
  const std::ptrdiff_t row = 4 * CodedScratch::kTileStride, tile = a.rank / 4 * row;
  uint8_t* out = s.quads + quad * row + 4 * shift;
  decode_quad<kRegs, true>(
      a.k, a.rank, quad, reader, n_groups, [&](int i) { return begin / kByteLanes + i; },
      [&](int i, int, const Bytes* axis) {
        Bytes tokens[kTileGroups];
        interleave4(axis, tokens);
        uint8_t* at = out + i * tile;
        for (int g = 0; g < kTileGroups; ++g) {
          const int column = shift + kLanes * g;
          if (column < kByteLanes) store_bytes(at + kByteLanes * g, tokens[g]);
          if (column > kByteLanes - kLanes)
            store_bytes(at + tile - 4 * kByteLanes + kByteLanes * g, tokens[g]);
        }
      });
}

template <int kRegs>
void key_block(const CodedAttendArgs& a, const CodedScratch& s,
               const CodeReader<kRegs != 4>& reader, int begin) {
  const int n = a.n_tokens - begin < kPqBlock ? a.n_tokens - begin : kPqBlock;
  const int n_groups = (n + kByteLanes - 1) / kByteLanes, n_quads = a.rank / 4;
  const bool last = begin + kPqBlock >= a.n_tokens;
  PrefetchAhead<> next(last ? a.next_k : a.k.blocks[begin / kPqBlock + 1],
                       pq_block_bytes(a.k.M, a.k.nbits), n_quads);
  for (int quad = 0; quad < n_quads; ++quad) {
    next.step();
    key_quad<kRegs>(a, s, reader, begin, n_groups, quad);
  }
  const int shift = (a.first + begin) % kByteLanes;
  for (int i = 0; i * kByteLanes < shift + n; ++i) {
    const int at = begin - shift + i * kByteLanes;  // token of column 0
    KeyTile tile;
    tile.quads = s.quads + static_cast<std::ptrdiff_t>(i) * a.rank * CodedScratch::kTileStride;
    tile.frame = (a.first + at) / a.frame;
    tile.place = (a.first + at) % a.frame;
    tile.begin = at < begin ? shift : 0;
    tile.end = begin + n - at < kByteLanes ? begin + n - at : kByteLanes;
    tile.scores = s.scores + at;
    score_heads(a, s, tile);
  }
}

/// rows [n][head_dim] of KV head `kv` from sums y [n][rank], for kHeads query heads.
template <int kHeads>
MILLION_INLINE void sums_to_rows(const CodedAttendArgs& a, int kv, const float* y, float* rows) {
  const int8_t* basis = a.basis + static_cast<std::ptrdiff_t>(kv) * a.head_dim * a.rank;
  for (int c = 0; c < a.head_dim; c += 4, basis += 4 * a.rank) {
    F sum[kHeads];
    for (int h = 0; h < kHeads; ++h) sum[h] = zero();
    for (int j = 0; j < a.rank; j += 4) {
      const F d = load_signed(basis + 4 * j) * repeat_each4(a.basis_scale + j);
      for (int h = 0; h < kHeads; ++h) sum[h] = vfma(d, repeat_each4(y + h * a.rank + j), sum[h]);
    }
    for (int h = 0; h < kHeads; ++h) reduce_strided4(rows + h * a.head_dim + c, sum[h]);
  }
}

void coded_rows(const CodedAttendArgs& a, float* rows) {
  const int group = a.n_heads / a.span;
  for (int kv = 0; kv < a.span; ++kv)
    for (int h = 0; h < group;) {
      const std::ptrdiff_t at = kv * group + h;
      if (group - h >= 3) {
        sums_to_rows<3>(a, kv, a.acc + at * a.rank, rows + at * a.head_dim);
        h += 3;
      } else {
        sums_to_rows<1>(a, kv, a.acc + at * a.rank, rows + at * a.head_dim);
        h += 1;
      }
    }
}

template <int kRegs>
void key_pass(const CodedAttendArgs& a, const CodedScratch& s,
              const CodeReader<kRegs != 4>& reader) {
  for (int t = 0; t < a.n_tokens; t += kPqBlock) key_block<kRegs>(a, s, reader, t);
}

void attend_coded(const CodedAttendArgs& a) {
  if (a.n_tokens <= 0) return;
  const CodedScratch s(a);
  const CodeReader<false> whole(8);
  PhaseClock clock(a.stats);
  turn_queries(a, s);
  clock.end(&AttendStats::tables);
  if (a.k.nbits == 8)
    key_pass<4>(a, s, whole);
  else if (a.k.nbits == 7)
    key_pass<2>(a, s, CodeReader<true>(a.k.nbits));
  else
    key_pass<1>(a, s, CodeReader<true>(a.k.nbits));
  clock.end(&AttendStats::scores);
  value_pass(a, s, nullptr);
}

}  // namespace
}  // namespace million::MILLION_ISA
