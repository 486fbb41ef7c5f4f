// SPDX-License-Identifier: Apache-2.0
// Decode attention on PQ codes with 8-bit tables in registers, for nbits <= 8; a side with wider
// codes uses the f32 tables of attention_pq.inl.h. [MILLION]
//
// Keys: the table of a subspace is cut into steps of 2^k * unit, k by its own range, and summed in
// 16 bits, coarse subspaces first (sums are shifted when k falls). A subspace whose steps are too
// coarse gets a second table with the residual, until the score error is at most kScoreError (RMS,
// natural-log units) or the 16 bits are used up: steps of 1/65000 of the whole score range.
// Values: centroids as int8 between the minimum and maximum of their channel, then the value pass
// of attention_values.inl.h over the whole run.
//
// Error: a score error of e (RMS) changes each weight by the factor exp(e), so for random values
// the output by at most e of its norm; int8 centroids add range / 254 / sqrt(12) RMS, 0.8 % of the
// standard deviation for 256 normal centroids. test_kernels_attention.cpp bounds the sum at 2.5 %.
#pragma once

#include "kernels/cpu/attention_pq.inl.h"
#include "kernels/cpu/attention_values_few.inl.h"
#include "kernels/cpu/prefetch.inl.h"

namespace million::MILLION_ISA {
namespace {

constexpr float kScoreError = 0.015f;
constexpr int kMaxSubspaces = 256;
constexpr int kMaxQueryHeads = 16;
/// Runs below this use the f32 tables: byte tables cost 7 us to build, f32 lookups 0.06 us a token
/// (M = 32, 3 heads, AMD Zen 5).
constexpr int kShortRun = 96;
constexpr int kMaxClass = 8;  ///< range <= 65000 units = 255 * 2^8 units, nearly

/// One lookup per token: where its table lies behind the head's first, where its codes lie in a
/// block, and how far to shift the sums before it is added.
struct BytePass {
  uint32_t table, run, shift;
};
struct HeadPlan {
  float scale, bias;  ///< score = bias + scale * sum
  int n_passes;
};

inline void table_range(const float* table, int K, float* low, float* high) {
  F min[4], max[4];  // independent, so that they overlap
  for (int i = 0; i < 4; ++i) min[i] = set1(INFINITY), max[i] = set1(-INFINITY);
  int c = 0;
  for (; c + 4 * kLanes <= K; c += 4 * kLanes)
    for (int i = 0; i < 4; ++i) {
      const F x = load(table + c + i * kLanes);
      min[i] = vmin(min[i], x), max[i] = vmax(max[i], x);
    }
  for (; c < K; c += kLanes) {
    const int n = K - c < kLanes ? K - c : kLanes;
    min[0] = vmin(min[0], load_part(table + c, n, INFINITY));
    max[0] = vmax(max[0], load_part(table + c, n, -INFINITY));
  }
  *low = reduce_min(vmin(vmin(min[0], min[1]), vmin(min[2], min[3])));
  *high = reduce_max(vmax(vmax(max[0], max[1]), vmax(max[2], max[3])));
}

/// Bytes of 64 floats at x: nearest integers of factor * x + add, saturated.
template <bool kSigned>
MILLION_INLINE Bytes bytes64(const float* x, F factor, F add) {
  const auto at = [&](int i) { return to_ints(vfma(load(x + i * kLanes), factor, add)); };
  return kSigned ? pack_s8(at(0), at(1), at(2), at(3)) : pack_u8(at(0), at(1), at(2), at(3));
}

/// Replaces the f32 table by K bytes of steps and, with a residual, K bytes of it behind them.
inline void table_to_bytes(float* table, int K, float low, float unit, int k, bool residual) {
  alignas(64) uint8_t bytes[2 * 256];
  const F steps = set1(1.0f / (unit * static_cast<float>(1 << k)));
  const F units = set1(1.0f / unit), shift = set1(-static_cast<float>(1 << k));
  int c = 0;
  for (; !residual && c + kByteLanes <= K; c += kByteLanes)
    store_bytes(bytes + c, bytes64<false>(table + c, steps, set1(-low) * steps));
  for (; c < K; c += kLanes) {
    const int n = K - c < kLanes ? K - c : kLanes;
    const F x = (n < kLanes ? load_part(table + c, n) : load(table + c)) - set1(low);
    if (residual) {
      const F coarse = vmin(vfloor(x * steps), set1(255.0f));
      store_u8(bytes + c, coarse, n);
      store_u8(bytes + K + c, vfma(coarse, shift, x * units), n);
    } else {
      store_u8(bytes + c, x * steps, n);
    }
  }
  __builtin_memcpy(table, bytes, static_cast<std::size_t>(residual ? 2 * K : K));
}

/// Smallest k >= 0 with x <= 2^k, at most kMaxClass.
inline int power_above(float x) {
  if (!(x > 1.0f)) return 0;
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const int k = static_cast<int>((bits + 0x7fffff) >> 23) - 127;
  return k < kMaxClass ? k : kMaxClass;
}

/// Ranges of one head's tables and the class of each.
struct TableClasses {
  float low[kMaxSubspaces], range[kMaxSubspaces];
  uint8_t class_of[kMaxSubspaces];
  bool residual[kMaxSubspaces];
  uint8_t order[kMaxSubspaces];  ///< subspaces by falling class
};

/// Sorts the subspaces by class and marks those that get a residual table.
inline void choose_residuals(TableClasses& t, int M, float allowed) {
  int count[kMaxClass + 1] = {}, at[kMaxClass + 1];
  float variance = 0.0f;  // of a score, in units^2 / 12
  for (int m = 0; m < M; ++m) {
    ++count[t.class_of[m]];
    variance += static_cast<float>(1 << (2 * t.class_of[m]));
    t.residual[m] = false;
  }
  for (int k = kMaxClass, next = 0; k >= 0; --k) at[k] = next, next += count[k];
  for (int m = 0; m < M; ++m) t.order[at[t.class_of[m]]++] = static_cast<uint8_t>(m);
  for (int i = 0; i < M && variance > allowed; ++i) {
    const int m = t.order[i], k = t.class_of[m];
    if (k == 0) break;
    t.residual[m] = true;
    variance -= static_cast<float>((1 << (2 * k)) - 1);
  }
}

/// Chooses steps and residuals of one head's tables [M][K] and turns them into bytes in place.
HeadPlan plan_head(float* tables, int M, int nbits, BytePass* passes) {
  const int K = 1 << nbits;
  TableClasses t;
  float total = 0.0f, bias = 0.0f;
  for (int m = 0; m < M; ++m) {
    float high;
    table_range(tables + m * K, K, &t.low[m], &high);
    t.range[m] = high - t.low[m];
    total += t.range[m];
    bias += t.low[m];
  }
  const float unit = (total > 1e-30f ? total : 1e-30f) / 65000.0f;
  const float inverse = 1.0f / (255.0f * unit);
  for (int m = 0; m < M; ++m)
    t.class_of[m] = static_cast<uint8_t>(power_above(t.range[m] * inverse));
  choose_residuals(t, M, 12.0f * (kScoreError / unit) * (kScoreError / unit));
  int n = 0, last = kMaxClass;
  const auto add = [&](int m, int residual, int k) {
    passes[n] = {static_cast<uint32_t>(4 * m * K + residual * K),
                 static_cast<uint32_t>(m) * static_cast<uint32_t>(pq_run_bytes(nbits)),
                 static_cast<uint32_t>(n == 0 ? 0 : last - k)};
    last = k;
    ++n;
  };
  for (int i = 0; i < M; ++i) add(t.order[i], 0, t.class_of[t.order[i]]);
  for (int m = 0; m < M; ++m) {
    table_to_bytes(tables + m * K, K, t.low[m], unit, t.class_of[m], t.residual[m]);
    if (t.residual[m]) add(m, 1, 0);
  }
  return {unit * static_cast<float>(1 << last), bias, n};
}

/// The key block that follows and the values of this one.
struct PrefetchBoth {
  PrefetchAhead<> keys, values;
  void step() {
    keys.step();
    values.step();
  }
};

/// Scores of kChunks * 64 tokens from `chunk` on, one head.
template <int kRegs, int kChunks>
MILLION_INLINE void byte_scores(const PqAttendArgs& args, const uint8_t* block, int chunk,
                                const CodeReader<kRegs != 4>& reader, const float* tables,
                                const BytePass* passes, const HeadPlan& plan, float* s,
                                PrefetchBoth& next) {
  const int K = 1 << args.k.nbits;
  const auto* bytes = reinterpret_cast<const uint8_t*>(tables);
  const BytePass* const end = passes + plan.n_passes;
  TokenSums sums[kChunks];
  while (passes < end) {
    const auto shift = static_cast<int>(passes->shift);
    if (shift != 0)
      for (int c = 0; c < kChunks; ++c) sums[c].shift_left(shift);
    do {  // all passes of one step size: the sums stay where they are
      next.step();
      const ByteTable<kRegs> table(bytes + passes->table, K);
      const uint8_t* run = block + passes->run;
      for (int c = 0; c < kChunks; ++c) sums[c].add(table.look_up(reader.load(run, chunk + c)));
    } while (++passes < end && passes->shift == 0);
  }
  for (int c = 0; c < kChunks; ++c) sums[c].store(s + kByteLanes * c, plan.scale, plan.bias);
}

/// Copies channel columns [dsub][K] out of centroids [K][dsub].
template <int kDsub>
MILLION_INLINE void copy_columns(const float* centroids, int K, float* columns) {
  for (int c = 0; c < K; c += kLanes) {
    F rows[kDsub], column[kDsub];
    for (int j = 0; j < kDsub; ++j) rows[j] = load(centroids + c * kDsub + j * kLanes);
    split_columns<kDsub>(rows, column, 1);
    for (int j = 0; j < kDsub; ++j) store(columns + j * K + c, column[j]);
  }
}

/// int8 tables [head_dim][K] of the value centroids: value = middle + step * byte per channel.
void build_value_bytes(const PqSide& v, int head_dim, uint8_t* tables, float* middle, float* step) {
  const int K = 1 << v.nbits, dsub = head_dim / v.M;
  alignas(64) float columns[4 * 256];
  for (int i = 0; i < head_dim; ++i) {
    const int m = i / dsub, j = i % dsub;
    const float* centroids =
        v.centroids + static_cast<std::size_t>(m) * static_cast<std::size_t>(K * dsub);
    const float* column = columns;
    if (K % kLanes == 0 && (dsub == 1 || dsub == 2 || dsub == 4)) {
      if (j == 0 && dsub == 1) copy_columns<1>(centroids, K, columns);
      if (j == 0 && dsub == 2) copy_columns<2>(centroids, K, columns);
      if (j == 0 && dsub == 4) copy_columns<4>(centroids, K, columns);
      column = columns + j * K;
    } else {
      for (int c = 0; c < K; ++c) columns[c] = centroids[c * dsub + j];
    }
    float low, high;
    table_range(column, K, &low, &high);
    middle[i] = 0.5f * (low + high);
    step[i] = (high - low) / 254.0f;
    const F center = set1(middle[i]), inverse = set1(step[i] > 1e-30f ? 1.0f / step[i] : 0.0f);
    int c = 0;
    for (; c + kByteLanes <= K; c += kByteLanes)
      store_bytes(tables + i * K + c,
                  bytes64<true>(column + c, inverse, zero() - center * inverse));
    for (; c < K; c += kLanes) {
      const int n = K - c < kLanes ? K - c : kLanes;
      const F x = n < kLanes ? load_part(column + c, n) : load(column + c);
      store_s8(tables + i * K + c, (x - center) * inverse, n);
    }
  }
}

/// What byte tables a scratch holds, for the next call with the same query.
struct HeldTables {
  bool whole;
  int n_passes;
  HeadPlan plans[kMaxQueryHeads];
};

/// Everything behind PqScratch that the byte tables use. Only `run` depends on n_tokens.
struct ByteScratch {
  static constexpr int kHeldFloats = (sizeof(HeldTables) + 3) / 4;
  HeldTables* held;
  uint8_t* value_tables;  ///< [head_dim][K]
  float *middle, *step;   ///< [head_dim]
  BytePass* passes;       ///< [n_group][2 M]
  float* run;             ///< of the value pass
  ByteScratch(const PqAttendArgs& args, float* rest)
      : held(reinterpret_cast<HeldTables*>(rest)),
        value_tables(reinterpret_cast<uint8_t*>(rest + kHeldFloats)),
        middle(rest + kHeldFloats + 64 * args.head_dim),
        step(middle + args.head_dim),
        passes(reinterpret_cast<BytePass*>(step + args.head_dim)),
        run(step + args.head_dim + 6 * args.n_group * args.k.M + 16) {
    run += (16 - reinterpret_cast<std::uintptr_t>(run) / sizeof(float) % 16) % 16;
  }
};

/// Scores [n_group][stride] of a block, written in whole groups of 128 tokens.
template <int kRegs>
void block_scores(const PqAttendArgs& args, const uint8_t* block, int n, const PqScratch& scratch,
                  const BytePass* passes, const HeadPlan* plans, float* scores, std::size_t stride,
                  PrefetchBoth& next) {
  constexpr int kAll = kPqBlock / kByteLanes;
  const CodeReader<kRegs != 4> reader(args.k.nbits);
  const int M = args.k.M;
  for (int g = 0; g < args.n_group; ++g) {
    const float* tables = scratch.tables + (static_cast<std::size_t>(g * M) << args.k.nbits);
    const BytePass* pass = passes + 2 * g * M;
    float* s = scores + static_cast<std::size_t>(g) * stride;
    if (n > kPqBlock / 2) {
      byte_scores<kRegs, kAll>(args, block, 0, reader, tables, pass, plans[g], s, next);
    } else {
      for (int c = 0; c * kByteLanes < n; c += 2)
        byte_scores<kRegs, 2>(args, block, c, reader, tables, pass, plans[g], s + c * kByteLanes,
                              next);
    }
  }
}

inline void score_block(const PqAttendArgs& args, const uint8_t* block, int n,
                        const PqScratch& scratch, const BytePass* passes, const HeadPlan* plans,
                        float* scores, std::size_t stride, PrefetchBoth& next) {
  if (args.k.nbits == 8) {
    block_scores<4>(args, block, n, scratch, passes, plans, scores, stride, next);
  } else if (args.k.nbits == 7) {
    block_scores<2>(args, block, n, scratch, passes, plans, scores, stride, next);
  } else {
    block_scores<1>(args, block, n, scratch, passes, plans, scores, stride, next);
  }
}

/// The byte tables of both sides, where they are bytes.
inline void build_byte_tables(const PqAttendArgs& args, const PqScratch& scratch,
                              const ByteScratch& bytes, bool k_bytes, bool v_bytes) {
  HeldTables& held = *bytes.held;
  held.n_passes = 0;
  build_tables(args, scratch.tables);
  for (int g = 0; k_bytes && g < args.n_group; ++g) {
    float* tables = scratch.tables + (static_cast<std::size_t>(g * args.k.M) << args.k.nbits);
    held.plans[g] = plan_head(tables, args.k.M, args.k.nbits, bytes.passes + 2 * g * args.k.M);
    held.n_passes += held.plans[g].n_passes;
  }
  if (v_bytes)
    build_value_bytes(args.v, args.head_dim, bytes.value_tables, bytes.middle, bytes.step);
  held.whole = true;
}

/// The value pass of args; few heads: over one block, to shape its scratch.
inline CodedAttendArgs value_run(const PqAttendArgs& args, const ByteScratch& bytes) {
  CodedAttendArgs run = pq_value_run(args);
  run.scratch = bytes.run;
  run.v.blocks = args.v.blocks;
  run.v.tables = reinterpret_cast<const int8_t*>(bytes.value_tables);
  run.v.scale = bytes.step;
  run.skip = args.skip;
  run.floor = args.floor;
  run.stats = args.stats;
  run.state = args.state;
  run.acc = args.acc;
  return run;
}

/// Scores [n_group][stride] of the block at token t, by bytes or (wide codes) f32 tables.
inline void scores_at(const PqAttendArgs& args, const PqScratch& scratch, const ByteScratch& bytes,
                      bool k_bytes, int t, float* scores, std::size_t stride,
                      PrefetchBoth next) {
  const int n = args.n_tokens - t < kPqBlock ? args.n_tokens - t : kPqBlock;
  const uint8_t* block = args.k.blocks[t / kPqBlock];
  if (k_bytes)
    return score_block(args, block, n, scratch, bytes.passes, bytes.held->plans, scores, stride,
                       next);
  table_scores(args, block, n, scratch.tables, scratch.codes, scratch.scores);
  for (int g = 0; g < args.n_group; ++g)
    __builtin_memcpy(scores + static_cast<std::size_t>(g) * stride, scratch.scores + g * kPqBlock,
                     static_cast<std::size_t>(n) * 4);
}

/// The key block behind token t's, and `values`, in the steps of one block.
inline PrefetchBoth fetch_behind(const PqAttendArgs& args, const ByteScratch& bytes, int t,
                                 const uint8_t* values) {
  const bool last = t + kPqBlock >= args.n_tokens;
  const int steps = bytes.held->n_passes;
  return {{last ? args.next_k : args.k.blocks[t / kPqBlock + 1],
           pq_block_bytes(args.k.M, args.k.nbits), steps},
          {values, pq_block_bytes(args.v.M, args.v.nbits), steps}};
}

/// Few heads: scores, weights and values block by block.
void attend_blocks(const PqAttendArgs& args, const PqScratch& scratch, const ByteScratch& bytes,
                   bool k_bytes, PhaseClock& clock) {
  CodedAttendArgs run = value_run(args, bytes);
  const CodedScratch s(run);
  run.n_tokens = args.n_tokens;
  FewHead heads[CodedScratch::kFewHeads];
  few_begin(run, s);
  for (int t = 0; t < args.n_tokens; t += kPqBlock) {
    const int n = args.n_tokens - t < kPqBlock ? args.n_tokens - t : kPqBlock;
    scores_at(args, scratch, bytes, k_bytes, t, s.scores, s.stride,
              fetch_behind(args, bytes, t, t == 0 ? args.v.blocks[0] : nullptr));
    clock.end(&AttendStats::scores);
    few_block_any(run, s, t / kPqBlock, n, heads, clock);
  }
  few_end(run, s, heads, bytes.middle);
}

/// Many heads: scores of the whole run, then the value pass, which decodes once for all of them.
void attend_run(const PqAttendArgs& args, const PqScratch& scratch, const ByteScratch& bytes,
                bool k_bytes, PhaseClock& clock) {
  const CodedAttendArgs run = value_run(args, bytes);
  const CodedScratch s(run);
  for (int t = 0; t < args.n_tokens; t += kPqBlock)
    scores_at(args, scratch, bytes, k_bytes, t, s.scores + t, s.stride,
              fetch_behind(args, bytes, t, args.v.blocks[t / kPqBlock]));
  clock.end(&AttendStats::scores);
  value_pass(run, s, bytes.middle);
}

/// Byte tables of the keys, f32 values.
void attend_wide_values(const PqAttendArgs& args, const PqScratch& scratch,
                        const ByteScratch& bytes) {
  for (int t = 0; t < args.n_tokens; t += kPqBlock) {
    const int n = args.n_tokens - t < kPqBlock ? args.n_tokens - t : kPqBlock;
    scores_at(args, scratch, bytes, true, t, scratch.scores, kPqBlock,
              fetch_behind(args, bytes, t, nullptr));
    block_weights(args, n, scratch.scores);
    table_values(args, args.v.blocks[t / kPqBlock], n, scratch.scores, scratch.codes);
  }
}

void attend_pq_bytes(const PqAttendArgs& args) {
  const bool k_bytes = args.k.nbits <= 8 && args.k.M <= kMaxSubspaces;
  const bool v_bytes = args.v.nbits <= 8 && args.head_dim % 4 == 0;
  const PqScratch scratch(args);
  const ByteScratch bytes(args, scratch.rest);
  if (args.n_tokens < kShortRun || (!k_bytes && !v_bytes)) {
    bytes.held->whole = false;
    return attend_pq_tables(args);
  }
  PhaseClock clock(args.stats);
  if (!args.same_query || !bytes.held->whole)
    build_byte_tables(args, scratch, bytes, k_bytes, v_bytes);
  clock.end(&AttendStats::tables);
  if (!v_bytes)
    attend_wide_values(args, scratch, bytes);
  else if (args.n_group <= CodedScratch::kFewHeads)
    attend_blocks(args, scratch, bytes, k_bytes, clock);
  else
    attend_run(args, scratch, bytes, k_bytes, clock);
}

}  // namespace
}  // namespace million::MILLION_ISA
