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

#include "kernels/coded_scratch.h"
#include "kernels/cpu/attention_pq_bytes.inl.h"

namespace million::MILLION_ISA {
namespace {

constexpr int kTileGroups = 4;  ///< registers of 16 places in a tile
constexpr int kTileHeads =
    5;  ///< query heads at once: 20 accumulators (9 heads x 2 registers: slower)

/// Weights are bytes in units of 4^-c / 255 of the run's largest; a group of 64 tokens has the
/// class c of its own largest weight, so that a byte always has at least 6 significant bits.
constexpr int kWeightClasses = 12;
constexpr float kLogFour = 1.38629436f;
constexpr float kClassUnit[kWeightClasses] = {
    1 / 255.0f,         1 / 255.0f / 4,      1 / 255.0f / 16,      1 / 255.0f / 64,
    1 / 255.0f / 256,   1 / 255.0f / 1024,   1 / 255.0f / 4096,    1 / 255.0f / 16384,
    1 / 255.0f / 65536, 1 / 255.0f / 262144, 1 / 255.0f / 1048576, 1 / 255.0f / 4194304,
};

inline float largest_magnitude(const float* x, int n) {
  F top = zero();
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) top = vmax(top, vabs(load(x + i)));
  if (i < n) top = vmax(top, vabs(load_part(x + i, n - i)));
  return reduce_max(top);
}

/// A query row as unsigned bytes (128 = 0); returns the step.
inline float row_to_bytes(const float* x, int n, uint8_t* bytes) {
  const float top = largest_magnitude(x, n), step = top / 127.0f;
  const F inverse = set1(top > 1e-30f ? 127.0f / top : 0.0f);
  for (int i = 0; i < n; i += kLanes)
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
    auto sum = no_bytes();
    for (int j = 0; j < a.rank; j += kLanes)
      sum = add_int(sum, store_rounded(s.q8 + row[r] * a.rank + j, load(y + j) * inverse, 0));
    s.q_scale[row[r]] = step[r] * largest / 127.0f;
    s.q_bias[row[r]] = -128.0f * sum_int(sum) * s.q_scale[row[r]];
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

/// Four axes of a side for some 64-token groups; `take` gets the four registers of each.
template <int kRegs, bool kUnsigned, class GroupAt, class Take>
MILLION_INLINE void decode_quad(const CodedSide& side, int rank, int quad,
                                const CodeReader<kRegs != 4>& reader, int n_groups,
                                const GroupAt& group_at, const Take& take) {
  const int K = 1 << side.nbits, dsub = rank / side.M;
  Bytes t[4][kRegs];
  int m[4];
  for (int j = 0; j < 4; ++j) {
    const ByteTable<kRegs> table(side.tables + static_cast<std::ptrdiff_t>(4 * quad + j) * K, K);
    for (int i = 0; i < kRegs; ++i) t[j][i] = kUnsigned ? make_unsigned(table.t[i]) : table.t[i];
    m[j] = (4 * quad + j) / dsub;
  }
  for (int i = 0; i < n_groups; ++i) {
    const int group = group_at(i), chunk = group % (kPqBlock / kByteLanes);
    const uint8_t* block = side.blocks[group / (kPqBlock / kByteLanes)];
    Bytes axis[4], codes = no_bytes();
    CodeQuarters<kRegs> quarters(codes);
    const TokenOrder order;
    for (int j = 0; j < 4; ++j) {
      if (j == 0 || m[j] != m[j - 1]) {
        codes =
            reader.load(block + static_cast<std::size_t>(m[j]) * pq_run_bytes(side.nbits), chunk);
        if (kUnsigned) codes = order.apply(codes);
        quarters = CodeQuarters<kRegs>(codes);
      }
      axis[j] = look_up_quarters<kRegs>(t[j], codes, quarters);
    }
    take(i, group, axis);
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
  PrefetchAhead<> next(last ? nullptr : a.k.blocks[begin / kPqBlock + 1],
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

/// What one head's value pass needs.
struct HeadWeights {
  float factor;                ///< of the sums in units of the run's largest weight
  int n;                       ///< groups that count
  int n_classes;               ///< those that have groups
  int end[kWeightClasses];     ///< of each class in s.groups [h]
  float unit[kWeightClasses];  ///< of its bytes
};

/// Class of a group whose largest score is `below` under the largest of all.
inline int weight_class(float below) {
  const float c = below * (1.0f / kLogFour);
  return c < static_cast<float>(kWeightClasses) ? static_cast<int>(c) : kWeightClasses;
}

/// Weights of one group as bytes in units of 4^-c / 255 of the run's maximum; returns their sum.
inline float group_weights(const float* score, int n, float max, int c, uint8_t* bytes) {
  const F shift = set1(static_cast<float>(c) * kLogFour - max), units = set1(255.0f);
  auto sum = no_bytes();
  for (int t = 0; t < kByteLanes; t += kLanes) {
    F w = zero();
    if (t + kLanes <= n)
      w = vexp(load(score + t) + shift);
    else if (t < n)
      w = vexp(load_part(score + t, n - t, -INFINITY) + shift);
    sum = add_int(sum, store_rounded(bytes + t, w * units, 0));
  }
  return sum_int(sum);
}

/// Weights of one head's run, and the groups that count, by class. Merges the state and scales the
/// head's accumulator.
void run_weights(const CodedAttendArgs& a, const CodedScratch& s, int h, HeadWeights* result) {
  const float* score = s.scores + static_cast<std::size_t>(h) * s.stride;
  uint8_t* weights = s.weights + static_cast<std::size_t>(h) * s.stride;
  const int n_groups = (a.n_tokens + kByteLanes - 1) / kByteLanes;
  float max = -INFINITY, total = 0.0f;
  const auto size = [&](int g) {
    return a.n_tokens - g * kByteLanes < kByteLanes ? a.n_tokens - g * kByteLanes : kByteLanes;
  };
  for (int g = 0; g < n_groups; ++g) {
    const float top = max_scaled(score + g * kByteLanes, size(g), set1(1.0f));
    s.group_max[g] = top;
    if (top > max) max = top;
  }
  int count[kWeightClasses + 1] = {};
  for (int g = 0; g < n_groups; ++g) {
    const int c = weight_class(max - s.group_max[g]);
    s.group_class[g] = static_cast<uint8_t>(c);
    s.group_sums[g] = 0.0f;
    if (c == kWeightClasses) continue;  // below 4^-12 of the maximum
    s.group_sums[g] = kClassUnit[c] * group_weights(score + g * kByteLanes, size(g), max, c,
                                                    weights + g * kByteLanes);
    total += s.group_sums[g];
  }
  const float own = max + std::log(total);
  const float bound = a.floor && a.floor[h] > own ? a.floor[h] : own;
  const float least = a.skip * std::exp(bound - max);
  float kept = 0.0f;
  for (int g = 0; g < n_groups; ++g) {
    if (!(s.group_sums[g] > least)) s.group_class[g] = kWeightClasses;
    if (s.group_class[g] == kWeightClasses) continue;
    kept += s.group_sums[g];
    ++count[s.group_class[g]];
  }
  int at[kWeightClasses], n = 0;
  result->n_classes = 0;
  for (int c = 0; c < kWeightClasses; ++c) {
    at[c] = n;
    n += count[c];
    if (count[c] == 0) continue;
    result->end[result->n_classes] = n;
    result->unit[result->n_classes++] = kClassUnit[c];
  }
  result->n = n;
  uint16_t* groups = s.groups + static_cast<std::size_t>(h) * (s.stride / kByteLanes);
  for (int g = 0; g < n_groups; ++g)
    if (s.group_class[g] < kWeightClasses)
      groups[at[s.group_class[g]]++] = static_cast<uint16_t>(g);
  if (a.left_out) {
    a.left_out[0] += n_groups - n;
    a.left_out[1] += n_groups;
  }
  if (n == 0) return;
  SoftmaxState& state = a.state[h];
  scale_row(a.acc + static_cast<std::ptrdiff_t>(h) * a.rank, state.rescale(max), a.rank);
  result->factor = std::exp(max - state.max);
  state.sum += result->factor * kept;
}

/// Adds weighted integer sums of four axes over one group.
MILLION_INLINE void sum_group(const uint8_t* values, const uint8_t* weights, uint16_t group,
                              Ints* sum) {
  const Bytes weight = load_bytes(weights + kByteLanes * std::size_t{group});
  const uint8_t* value = values + 4 * kByteLanes * std::size_t{group};
  for (int j = 0; j < 4; ++j)
    sum[j] = dot_bytes(sum[j], weight, load_bytes(value + kByteLanes * j));
}

/// total [4] = weighted sums of four axes over one head's groups, class by class; in two chains of
/// sums, because one waits for its own results.
MILLION_INLINE void sum_groups(const uint8_t* values, const uint8_t* weights,
                               const uint16_t* groups, const HeadWeights& head, float* total) {
  F sum[4] = {zero(), zero(), zero(), zero()};
  for (int c = 0, i = 0; c < head.n_classes; ++c) {
    const int end = head.end[c];
    Ints even[4] = {}, odd[4] = {};
    for (; i + 2 <= end; i += 2) {
      sum_group(values, weights, groups[i], even);
      sum_group(values, weights, groups[i + 1], odd);
    }
    for (; i < end; ++i) sum_group(values, weights, groups[i], even);
    const F unit = set1(head.unit[c]);
    for (int j = 0; j < 4; ++j) sum[j] = vfma(to_floats(even[j] + odd[j]), unit, sum[j]);
  }
  reduce_add4(total, sum[0], sum[1], sum[2], sum[3]);
}

/// Groups that some head needs, ascending.
inline int join_groups(const CodedAttendArgs& a, const CodedScratch& s, const HeadWeights* heads) {
  const std::size_t slots = s.stride / kByteLanes;
  uint8_t* needed = s.quads;  // free by now
  for (std::size_t g = 0; g < slots; ++g) needed[g] = 0;
  for (int h = 0; h < a.n_heads; ++h) {
    const uint16_t* groups = s.groups + static_cast<std::size_t>(h) * slots;
    for (int i = 0; i < heads[h].n; ++i) needed[groups[i]] = 1;
  }
  int n = 0;
  for (std::size_t g = 0; g < slots; ++g)
    if (needed[g]) s.any_group[n++] = static_cast<uint16_t>(g);
  return n;
}

template <int kRegs>
void value_pass(const CodedAttendArgs& a, const CodedScratch& s,
                const CodeReader<kRegs != 4>& reader) {
  HeadWeights heads[kMaxCodedHeads];
  for (int h = 0; h < a.n_heads; ++h) run_weights(a, s, h, &heads[h]);
  const int n_groups = join_groups(a, s, heads);
  const std::size_t slots = s.stride / kByteLanes;
  const int dsub = a.rank / a.v.M;
  for (int quad = 0; quad < a.rank / 4 && n_groups > 0; ++quad) {
    const int next = (4 * quad + 4) / dsub;
    decode_quad<kRegs, false>(
        a.v, a.rank, quad, reader, n_groups, [&](int i) { return int{s.any_group[i]}; },
        [&](int, int group, const Bytes* axis) {
          uint8_t* value = s.values + 4 * kByteLanes * static_cast<std::size_t>(group);
          for (int j = 0; j < 4; ++j) store_bytes(value + kByteLanes * j, axis[j]);
          if (next < a.v.M)
            __builtin_prefetch(a.v.blocks[group / (kPqBlock / kByteLanes)] +
                                   static_cast<std::size_t>(next) * pq_run_bytes(a.v.nbits) +
                                   group % (kPqBlock / kByteLanes) * 8 * a.v.nbits,
                               0, 3);
        });
    const F scale = load_part(a.v.scale + 4 * quad, 4);
    for (int h = 0; h < a.n_heads; ++h) {
      if (heads[h].n == 0) continue;
      alignas(64) float sum[kLanes] = {};
      sum_groups(s.values, s.weights + static_cast<std::size_t>(h) * s.stride,
                 s.groups + static_cast<std::size_t>(h) * slots, heads[h], sum);
      float* acc = a.acc + static_cast<std::ptrdiff_t>(h) * a.rank + 4 * quad;
      store_part(acc, vfma(load_part(sum, 4), scale * set1(heads[h].factor), load_part(acc, 4)), 4);
    }
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
  turn_queries(a, s);
  if (a.k.nbits == 8)
    key_pass<4>(a, s, whole);
  else if (a.k.nbits == 7)
    key_pass<2>(a, s, CodeReader<true>(a.k.nbits));
  else
    key_pass<1>(a, s, CodeReader<true>(a.k.nbits));
  if (a.v.nbits == 8)
    value_pass<4>(a, s, whole);
  else if (a.v.nbits == 7)
    value_pass<2>(a, s, CodeReader<true>(a.v.nbits));
  else
    value_pass<1>(a, s, CodeReader<true>(a.v.nbits));
}

}  // namespace
}  // namespace million::MILLION_ISA
