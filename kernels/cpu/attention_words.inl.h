// SPDX-License-Identifier: Apache-2.0
// Attention on codes for levels without in-register tables (scalar, AVX2): codes are decoded to
// tiles of signed bytes with one load and one store a subvector, which all query heads share, and
// multiplied as words. attention_coded_words.inl.h prepares queries and tables. Needs the registers
// listed in vec_scalar_words.h.
//
// Queries are words (13 bits and a sign) and weights words in units of 1/32767 of the largest in
// their 256 tokens, so what is lost is what 8-bit centroids lose.
#pragma once

#include "kernels/cpu/attention_pq.inl.h"
#include "kernels/cpu/phase_clock.inl.h"
#include "kernels/cpu/prefetch.inl.h"
#include "kernels/word_scratch.h"

namespace million::MILLION_ISA {
namespace {

constexpr int kWordQuery = 8191;    ///< largest word of a query: sums of 2048 products fit 31 bits
constexpr int kWordWeight = 32767;  ///< 256 tokens: sums fit 30 bits
constexpr int kWordHeads = WordScratch::kRows;  ///< heads x 16 columns in registers
constexpr int kColumns = 16;
constexpr int kValueHeads = 5;  ///< heads that share a quad of values in registers
constexpr int kWordGroup = 64;  ///< tokens whose values are left out together

/// One side: codes, and centroids as bytes in the order of the codes.
struct WordSide {
  int M, nbits, dsub;
  const uint8_t* const* blocks;
  const int8_t* tables;  ///< [M][K][dsub] in steps of scale
  const float* scale;    ///< [4 quads]
};

/// A run with its queries prepared; the rest is in CodedAttendArgs.
struct WordRun {
  int n_heads, rank, n_tokens, frame, first;
  int n_places;
  const float* places;
  WordSide k, v;
  float skip;
  const float* floor;
  SoftmaxState* state;
  float* acc;
  AttendStats* stats;
};

/// Copies entries of kBytes by code.
template <int kBytes, class Code>
MILLION_INLINE void copy_entries(const Code* codes, int n, const int8_t* table, int step,
                                 int8_t* out) {
  for (int t = 0; t < n; t += 8)
    for (int i = 0; i < 8; ++i)
      __builtin_memcpy(out + 4 * (t + i), table + static_cast<std::ptrdiff_t>(codes[t + i]) * step,
                       kBytes);
}

/// Four axes of one quad for codes at `codes_of(m)`: out [n][4]; n is rounded up to 8.
template <class CodesOf>
MILLION_INLINE void decode_axes(const WordSide& side, int rank, int quad, int n,
                                const CodesOf& codes_of, int8_t* out) {
  const int K = 1 << side.nbits, dsub = side.dsub;
  const auto table = [&](int m) { return side.tables + static_cast<std::ptrdiff_t>(m) * K * dsub; };
  const int axis = 4 * quad;
  if (dsub % 4 == 0) {
    copy_entries<4>(codes_of(axis / dsub), n, table(axis / dsub) + axis % dsub, dsub, out);
  } else if (dsub == 2) {
    for (int i = 0; i < 2; ++i)
      copy_entries<2>(codes_of(axis / 2 + i), n, table(axis / 2 + i), 2, out + 2 * i);
  } else {
    for (int j = axis; j < axis + 4 && j < rank; ++j)
      copy_entries<1>(codes_of(j / dsub), n, table(j / dsub) + j % dsub, dsub, out + j - axis);
  }
}

/// Tokens [begin, begin + n) of a block, begin a multiple of 8.
inline void decode_quad(const WordSide& side, int rank, int quad, const uint8_t* block, int begin,
                        int n, uint16_t* codes, int8_t* out) {
  const std::size_t run_bytes = pq_run_bytes(side.nbits);
  if (side.nbits == 8)
    return decode_axes(
        side, rank, quad, n, [&](int m) { return block + m * run_bytes + begin; }, out);
  decode_axes(
      side, rank, quad, n,
      [&](int m) {
        unpack_codes(block + m * run_bytes + begin / 8 * side.nbits, side.nbits, n, codes);
        return codes;
      },
      out);
}

/// sums [kHeads][16]: products of 16 columns of a tile [quads][stride][4] with kHeads queries.
template <int kHeads>
MILLION_INLINE void dot_columns(const int8_t* tile, std::ptrdiff_t stride, int quads,
                                const int16_t* const* q, float* sums) {
  Ints acc[kHeads][4];
  for (int h = 0; h < kHeads; ++h)
    for (int r = 0; r < 4; ++r) acc[h][r] = no_ints();
  for (int j = 0; j < quads; ++j, tile += 4 * stride) {
    Words query[kHeads];
    for (int h = 0; h < kHeads; ++h) query[h] = splat_quad(q[h] + 4 * j);
    for (int r = 0; r < 4; ++r) {
      const Words columns = load_quads(tile + 16 * r);
      for (int h = 0; h < kHeads; ++h) acc[h][r] = madd(acc[h][r], columns, query[h]);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    store_pairs(sums + kColumns * h, acc[h][0], acc[h][1]);
    store_pairs(sums + kColumns * h + 8, acc[h][2], acc[h][3]);
  }
}

/// dot_columns for n <= kWordHeads queries.
inline void dot_some(int n, const int8_t* tile, std::ptrdiff_t stride, int quads,
                     const int16_t* const* q, float* sums) {
  if (n == 3) return dot_columns<3>(tile, stride, quads, q, sums);
  if (n == 2) return dot_columns<2>(tile, stride, quads, q, sums);
  dot_columns<1>(tile, stride, quads, q, sums);
}

/// A row as words; returns the step.
inline float row_to_words(const float* x, int n, int16_t* words) {
  float top = 0.0f;
  for (int i = 0; i < n; ++i) top = std::fabs(x[i]) > top ? std::fabs(x[i]) : top;
  const float inverse = top > 1e-30f ? kWordQuery / top : 0.0f;
  int i = 0;
  for (; i + 8 <= n; i += 8) round_words(words + i, x + i, inverse);
  if (i < n) {
    float tail[8] = {};
    int16_t out[8];
    for (int j = i; j < n; ++j) tail[j - i] = x[j];
    round_words(out, tail, inverse);
    for (int j = i; j < n; ++j) words[j] = out[j - i];
  }
  return top / kWordQuery;
}

/// Scores of n <= 16 tokens from their sums: scale, bias and the mean key's part.
inline void finish_scores(const WordRun& a, const WordScratch& s, std::size_t query, int place,
                          int n, const float* sums, float* scores) {
  const float* mean = s.q_mean + query * static_cast<std::size_t>(a.n_places);
  const F scale = set1(s.q_scale[query]), bias = set1(s.q_bias[query]);
  for (int c = 0; c < n; c += kLanes) {
    const int lanes = n - c < kLanes ? n - c : kLanes;
    const float* place_at = a.places + place + c;
    F x = vfma(load(sums + c), scale, bias);
    if (lanes == kLanes) {
      F odd = zero();
      for (int k = 0; k < a.n_places; k += 2, place_at += 2 * a.frame) {
        x = vfma(set1(mean[k]), load(place_at), x);
        odd = vfma(set1(mean[k + 1]), load(place_at + a.frame), odd);
      }
      store(scores + c, x + odd);
    } else {
      for (int k = 0; k < a.n_places; ++k, place_at += a.frame)
        x = vfma(set1(mean[k]), load_part(place_at, lanes), x);
      store_part(scores + c, x, lanes);
    }
  }
}

/// Scores of n tokens of one decoded tile; `token` is the first.
void score_tile_words(const WordRun& a, const WordScratch& s, int token, int n) {
  alignas(64) float sums[kWordHeads * kColumns];
  for (int t = 0; t < n;) {
    const int at = a.first + token + t, place = at % a.frame;
    const int left = n - t < a.frame - place ? n - t : a.frame - place;
    const int count = left < kColumns ? left : kColumns;
    const std::size_t query = static_cast<std::size_t>(at / a.frame * a.n_heads);
    for (int h = 0; h < a.n_heads; h += kWordHeads) {
      const int heads = a.n_heads - h < kWordHeads ? a.n_heads - h : kWordHeads;
      const int16_t* q[kWordHeads];
      for (int i = 0; i < heads; ++i)
        q[i] =
            s.q + (query + static_cast<std::size_t>(h + i)) * static_cast<std::size_t>(4 * s.quads);
      dot_some(heads, s.tile + 4 * t, WordScratch::kTile, s.quads, q, sums);
      for (int i = 0; i < heads; ++i)
        finish_scores(a, s, query + static_cast<std::size_t>(h + i), place, count,
                      sums + kColumns * i,
                      s.scores + static_cast<std::size_t>(h + i) * s.stride + token + t);
    }
    t += count;
  }
}

void key_pass_words(const WordRun& a, const WordScratch& s) {
  for (int token = 0; token < a.n_tokens; token += WordScratch::kTile) {
    const int n = a.n_tokens - token < WordScratch::kTile ? a.n_tokens - token : WordScratch::kTile;
    const bool last = token / kPqBlock * kPqBlock + kPqBlock >= a.n_tokens;
    const std::size_t quarter = pq_block_bytes(a.k.M, a.k.nbits) / (kPqBlock / WordScratch::kTile);
    PrefetchAhead<> next(
        last ? nullptr
             : a.k.blocks[token / kPqBlock + 1] + token % kPqBlock / WordScratch::kTile * quarter,
        quarter, s.quads);
    for (int quad = 0; quad < s.quads; ++quad) {
      next.step();
      decode_quad(a.k, a.rank, quad, a.k.blocks[token / kPqBlock], token % kPqBlock, n, s.codes,
                  s.tile + static_cast<std::ptrdiff_t>(quad) * 4 * WordScratch::kTile);
    }
    score_tile_words(a, s, token, n);
  }
}

/// Heads [begin, end) of batch b: batches of nearly equal size share the values in registers; where
/// values may be left out, every head by its own weights.
struct HeadBatches {
  int n_heads, n;
  explicit HeadBatches(const WordRun& a)
      : n_heads(a.n_heads),
        n(a.skip > 0.0f ? a.n_heads : (a.n_heads + kValueHeads - 1) / kValueHeads) {}
  int begin(int b) const { return n_heads * b / n; }
  int end(int b) const { return begin(b + 1); }
};

/// Scores of one head's run to weights relative to the run's largest, in place; marks the groups
/// that it needs. Merges the state's maximum and scales the accumulator; returns the weights' unit
/// in the state's.
float run_weights_words(const WordRun& a, const WordScratch& s, int h, uint8_t* needed) {
  float* score = s.scores + static_cast<std::size_t>(h) * s.stride;
  float* group_max = s.group_max + static_cast<std::size_t>(h) * (s.stride / kWordGroup);
  const int n_groups = (a.n_tokens + kWordGroup - 1) / kWordGroup;
  const auto size = [&](int g) {
    return a.n_tokens - g * kWordGroup < kWordGroup ? a.n_tokens - g * kWordGroup : kWordGroup;
  };
  float max = -INFINITY, total = 0.0f;
  for (int g = 0; g < n_groups; ++g) {
    group_max[g] = max_scaled(score + g * kWordGroup, size(g), set1(1.0f));
    max = group_max[g] > max ? group_max[g] : max;
  }
  for (int g = 0; g < n_groups; ++g) {
    SoftmaxState own;
    own.max = max;
    row_weights(score + g * kWordGroup, size(g), 1.0f, own);
    s.group_sum[g] = own.sum;
    group_max[g] = std::exp(group_max[g] - max);
    total += own.sum;
  }
  for (std::size_t t = static_cast<std::size_t>(a.n_tokens); t < s.stride; ++t) score[t] = 0.0f;
  const float own = max + std::log(total);
  const float bound = a.floor && a.floor[h] > own ? a.floor[h] : own;
  const float least = a.skip * std::exp(bound - max);
  float lost = 0.0f;
  for (int g = 0; g < n_groups; ++g) {
    const bool counts = s.group_sum[g] > least;
    needed[g] |= counts;
    if (!counts) lost += s.group_sum[g];
  }
  if (a.stats) a.stats->mass_left_out += lost * std::exp(max - bound);
  SoftmaxState& state = a.state[h];
  scale_row(a.acc + static_cast<std::ptrdiff_t>(h) * a.rank, state.rescale(max), a.rank);
  return std::exp(max - state.max);
}

/// Adds what the needed groups weigh to the state.
void add_kept(const WordRun& a, const WordScratch& s, int h, const uint8_t* needed, float factor) {
  const float* weight = s.scores + static_cast<std::size_t>(h) * s.stride;
  F sum = zero();
  for (std::size_t g = 0; g < s.stride / kWordGroup; ++g)
    for (std::size_t t = 0; needed[g] && t < kWordGroup; t += kLanes)
      sum = sum + load(weight + g * kWordGroup + t);
  a.state[h].sum += factor * reduce_add(sum);
}

/// Groups of 256 tokens that count, as places of their first tokens.
struct TileGroups {
  int n = 0, at[WordScratch::kWeights / kWordGroup];
  void take(const uint8_t* needed) {
    n = 0;
    for (int g = 0; g < WordScratch::kWeights / kWordGroup; ++g)
      if (needed[g]) at[n++] = g * kWordGroup;
  }
};

/// Weights of one head for 256 tokens from `token` on as words; returns their unit.
float tile_weights(const WordScratch& s, const TileGroups& groups, int token, int h) {
  const float* weight = s.scores + static_cast<std::size_t>(h) * s.stride + token;
  const float* top =
      s.group_max + static_cast<std::size_t>(h) * (s.stride / kWordGroup) + token / kWordGroup;
  float max = 1e-30f;
  for (int i = 0; i < groups.n; ++i)
    max = top[groups.at[i] / kWordGroup] > max ? top[groups.at[i] / kWordGroup] : max;
  int16_t* words = s.weights + static_cast<std::size_t>(h) * 4 * WordScratch::kWeights;
  for (int i = 0; i < groups.n; ++i)
    for (int t = groups.at[i]; t < groups.at[i] + kWordGroup; t += 8)
      round_weights(words + 4 * t, weight + t, kWordWeight / max);
  return max / kWordWeight;
}

/// acc [kHeads] += weighted sums of one quad over the groups, for heads from `head` on.
template <int kHeads>
MILLION_INLINE void sum_quad(const WordRun& a, const WordScratch& s, const TileGroups& groups,
                             int head, int quad, const float* unit) {
  Ints sum[kHeads];
  const int16_t* weights[kHeads];
  for (int h = 0; h < kHeads; ++h) {
    sum[h] = no_ints();
    weights[h] = s.weights + static_cast<std::size_t>(head + h) * 4 * WordScratch::kWeights;
  }
  for (int i = 0; i < groups.n; ++i)
    for (int t = groups.at[i]; t < groups.at[i] + kWordGroup; t += 4) {
      const Words value = load_token_pairs(s.values + 4 * t);
      for (int h = 0; h < kHeads; ++h) sum[h] = madd(sum[h], value, load_words(weights[h] + 4 * t));
    }
  for (int h = 0; h < kHeads; ++h)
    add_axes(a.acc + static_cast<std::ptrdiff_t>(head + h) * a.rank + 4 * quad, sum[h],
             a.v.scale + 4 * quad, unit[head + h]);
}

/// sum_quad with n heads.
template <int kHeads>
inline void sum_some(int n, const WordRun& a, const WordScratch& s, const TileGroups& groups,
                     int head, int quad, const float* unit) {
  if (n >= kHeads) {
    sum_quad<kHeads>(a, s, groups, head, quad, unit);
  } else if constexpr (kHeads > 1) {
    sum_some<kHeads - 1>(n, a, s, groups, head, quad, unit);
  }
}

/// Values of 256 tokens from `token` on. needed [batches][stride / 64]; factor [n_heads].
void value_tile_words(const WordRun& a, const WordScratch& s, int token, const float* factor) {
  const HeadBatches batches(a);
  const std::size_t slots = s.stride / kWordGroup;
  uint8_t any[WordScratch::kWeights / kWordGroup] = {};
  TileGroups groups[kMaxCodedHeads], all;
  float unit[kMaxCodedHeads];
  for (int b = 0; b < batches.n; ++b) {
    const uint8_t* needed = s.needed + static_cast<std::size_t>(b) * slots + token / kWordGroup;
    groups[b].take(needed);
    for (int g = 0; g < WordScratch::kWeights / kWordGroup; ++g) any[g] |= needed[g];
    for (int h = batches.begin(b); h < batches.end(b); ++h)
      unit[h] = factor[h] * tile_weights(s, groups[b], token, h);
  }
  all.take(any);
  const uint8_t* block = a.v.blocks[token / kPqBlock];
  const bool last = token / kPqBlock * kPqBlock + kPqBlock >= a.n_tokens;
  const std::size_t half = pq_block_bytes(a.v.M, a.v.nbits) / 2;
  PrefetchAhead<> next(
      last ? nullptr : a.v.blocks[token / kPqBlock + 1] + (token % kPqBlock ? half : 0), half,
      s.quads);
  for (int quad = 0; quad < s.quads; ++quad) {
    next.step();
    for (int i = 0; i < all.n; ++i)
      decode_quad(a.v, a.rank, quad, block, token % kPqBlock + all.at[i], kWordGroup, s.codes,
                  s.values + 4 * all.at[i]);
    for (int b = 0; b < batches.n; ++b)
      sum_some<kValueHeads>(batches.end(b) - batches.begin(b), a, s, groups[b], batches.begin(b),
                            quad, unit);
  }
}

/// Weights of the scores and the value pass.
void value_pass_words(const WordRun& a, const WordScratch& s) {
  const HeadBatches batches(a);
  const std::size_t slots = s.stride / kWordGroup;
  const int n_groups = (a.n_tokens + kWordGroup - 1) / kWordGroup;
  float factor[kMaxCodedHeads];
  PhaseClock clock(a.stats);
  for (std::size_t i = 0; i < static_cast<std::size_t>(batches.n) * slots; ++i) s.needed[i] = 0;
  for (int b = 0; b < batches.n; ++b) {
    uint8_t* needed = s.needed + static_cast<std::size_t>(b) * slots;
    for (int h = batches.begin(b); h < batches.end(b); ++h)
      factor[h] = run_weights_words(a, s, h, needed);
    int kept = 0;
    for (int g = 0; g < n_groups; ++g) kept += needed[g];
    for (int h = batches.begin(b); h < batches.end(b); ++h) add_kept(a, s, h, needed, factor[h]);
    if (a.stats) {
      const int heads = batches.end(b) - batches.begin(b);
      a.stats->groups_left_out += static_cast<int64_t>(heads) * (n_groups - kept);
      a.stats->groups += static_cast<int64_t>(heads) * n_groups;
    }
  }
  clock.end(&AttendStats::weights);
  for (int token = 0; token < a.n_tokens; token += WordScratch::kWeights)
    value_tile_words(a, s, token, factor);
  clock.end(&AttendStats::values);
}

}  // namespace
}  // namespace million::MILLION_ISA
