// SPDX-License-Identifier: Apache-2.0
// attend_pq for levels without in-register tables (scalar, AVX2), nbits <= 8, four query heads at a
// time; wider codes use the f32 tables of attention_pq.inl.h. [MILLION]
//
// Keys: the table entries of four heads are 16-bit fields of one word, so that one load and one
// addition a code serve four heads. A head's steps are 1/65000 of its whole score range: fields do
// not overflow, and M roundings move a score by sqrt(M / 12) steps (RMS): 0.0025 for M = 32 and a
// range of 100, which changes the output by as much of its norm.
// Values: weights of tokens with the same code are summed first, four heads in one vector, and the
// sums meet the centroids once a call: no value is decoded, nothing is rounded.
#pragma once

#include "kernels/cpu/attention_words.inl.h"

namespace million::MILLION_ISA {
namespace {

constexpr int kFields = PqSumScratch::kFields;
constexpr int kChunk = PqSumScratch::kChunk;    ///< subspaces whose tables stay in the L1 cache
constexpr int kShared = PqSumScratch::kShared;  ///< subspaces that share a load of the weights
using Four = PqSumScratch::Four;

using FieldScale = PqSumScratch::FieldScale;

/// entries [M][K] of the tables [n][M][K] of n <= 4 heads; fields of missing heads are 0.
FieldScale pack_tables(const float* tables, int n, int M, int K, uint64_t* entries) {
  FieldScale scale{};
  float inverse[kFields] = {};
  const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(M) * K;
  for (int h = 0; h < n; ++h) {
    float total = 0.0f;
    for (int m = 0; m < M; ++m) {
      const float* table = tables + h * size + m * K;
      const float high = max_scaled(table, K, set1(1.0f));
      const float low = -max_scaled(table, K, set1(-1.0f));
      total += high - low;
      scale.bias[h] += low;
    }
    scale.unit[h] = (total > 1e-30f ? total : 1e-30f) / 65000.0f;
    inverse[h] = 1.0f / scale.unit[h];
  }
  for (int m = 0; m < M; ++m, tables += K, entries += K) {
    float low[kFields] = {};
    const float* rows[kFields] = {tables, tables, tables, tables};
    for (int h = 0; h < n; ++h) {
      rows[h] = tables + h * size;
      low[h] = -max_scaled(rows[h], K, set1(-1.0f));
    }
    int c = 0;
    for (; c + 8 <= K; c += 8) {
      const float* at[kFields] = {rows[0] + c, rows[1] + c, rows[2] + c, rows[3] + c};
      store_fields(entries + c, at, low, inverse);
    }
    for (; c < K; ++c) {
      entries[c] = 0;
      for (int h = 0; h < n; ++h)
        entries[c] |= static_cast<uint64_t>(std::nearbyint((rows[h][c] - low[h]) * inverse[h]))
                      << (16 * h);
    }
  }
  return scale;
}

/// totals[t] += entries of kCount subspaces for n codes of each, `step` codes apart; n is rounded
/// up to 4.
template <int kCount, class Code>
MILLION_INLINE void add_entries(const Code* codes, std::ptrdiff_t step, int n,
                                const uint64_t* entries, int K, uint64_t* totals) {
  for (int t = 0; t < n; t += 4) {
    uint64_t sum[4];
    for (int i = 0; i < 4; ++i) sum[i] = totals[t + i];
    for (int m = 0; m < kCount; ++m)
      for (int i = 0; i < 4; ++i) sum[i] += entries[m * K + codes[m * step + t + i]];
    for (int i = 0; i < 4; ++i) totals[t + i] = sum[i];
  }
}

/// Calls use(codes, step) with the first n codes of `count` subspaces from m on, `step` codes
/// apart.
template <class Use>
MILLION_INLINE void with_codes(const PqSide& side, const uint8_t* block, int m, int count, int n,
                               uint16_t* unpacked, const Use& use) {
  const std::size_t run_bytes = pq_run_bytes(side.nbits);
  const uint8_t* run = block + static_cast<std::size_t>(m) * run_bytes;
  if (side.nbits == 8) return use(run, std::ptrdiff_t{kPqBlock});
  for (int i = 0; i < count; ++i)
    unpack_codes(run + static_cast<std::size_t>(i) * run_bytes, side.nbits, n,
                 unpacked + i * kPqBlock);
  use(static_cast<const uint16_t*>(unpacked), std::ptrdiff_t{kPqBlock});
}

/// Scores of heads [head, head + n) for the whole run.
void field_scores(const PqAttendArgs& args, const PqSumScratch& s, int head, int n,
                  PhaseClock& clock) {
  const int M = args.k.M, K = 1 << args.k.nbits;
  if (!(args.same_query && args.n_group <= kFields && s.scale->held)) {
    PqAttendArgs some = args;
    some.n_group = n;
    some.q = args.q + head * args.head_dim;
    build_tables(some, s.tables);
    *s.scale = pack_tables(s.tables, n, M, K, s.entries);
    s.scale->held = head == 0;
  }
  clock.end(&AttendStats::tables);
  const FieldScale& scale = *s.scale;
  for (int token = 0; token < args.n_tokens; token += kPqBlock) {
    const int count = args.n_tokens - token < kPqBlock ? args.n_tokens - token : kPqBlock;
    const uint8_t* block = args.k.blocks[token / kPqBlock];
    const bool last = token + kPqBlock >= args.n_tokens;
    PrefetchAhead<> next(last ? nullptr : args.k.blocks[token / kPqBlock + 1],
                         pq_block_bytes(M, args.k.nbits), M);
    for (int t = 0; t < kPqBlock; ++t) s.totals[t] = 0;
    for (int m = 0; m < M;) {
      const int subspaces = M - m >= kChunk ? kChunk : 1;
      for (int i = 0; i < subspaces; ++i) next.step();
      const uint64_t* entries = s.entries + static_cast<std::ptrdiff_t>(m) * K;
      with_codes(args.k, block, m, subspaces, count, s.codes,
                 [&](const auto* codes, std::ptrdiff_t step) {
                   if (subspaces == kChunk)
                     add_entries<kChunk>(codes, step, count, entries, K, s.totals);
                   else
                     add_entries<1>(codes, step, count, entries, K, s.totals);
                 });
      m += subspaces;
    }
    for (int h = 0; h < n; ++h) {
      float* score = s.run.scores + static_cast<std::size_t>(head + h) * s.run.stride + token;
      for (int t = 0; t < count; ++t)
        score[t] =
            scale.bias[h] +
            scale.unit[h] * static_cast<float>(static_cast<int>(s.totals[t] >> (16 * h) & 0xffff));
    }
  }
}

/// sums [kCount][K] += weights by code, for the tokens of the groups of one block.
template <int kCount, class Code>
MILLION_INLINE void add_weights(const Code* codes, std::ptrdiff_t step, const uint8_t* needed,
                                const Four* weights, int K, Four* sums) {
  for (int g = 0; g < kPqBlock / kWordGroup; ++g) {
    if (!needed[g]) continue;
    for (int t = g * kWordGroup; t < (g + 1) * kWordGroup; ++t) {
      const Four w = weights[t];
      for (int m = 0; m < kCount; ++m) sums[m * K + codes[m * step + t]] += w;
    }
  }
}

/// total [dsub] = sum over codes of sums [K] times centroids [K][dsub]; kDsub 0: any.
template <int kDsub>
MILLION_INLINE void meet_centroids(const Four* sums, const float* centroids, int K, int any_dsub,
                                   Four* total) {
  const int dsub = kDsub > 0 ? kDsub : any_dsub;
  constexpr int kMost = kDsub > 0 ? kDsub : 256;
  Four even[kMost] = {}, odd[kMost] = {};
  for (int c = 0; c < K; c += 2, centroids += 2 * dsub)
    for (int j = 0; j < dsub; ++j) {
      even[j] += sums[c] * centroids[j];
      odd[j] += sums[c + 1] * centroids[dsub + j];
    }
  for (int j = 0; j < dsub; ++j) total[j] = even[j] + odd[j];
}

/// acc of heads [head, head + n) += factor * values of subspace m, from its sums.
void add_subspace(const PqAttendArgs& args, const Four* sums, int m, int head, int n,
                  const float* factor) {
  const int K = 1 << args.v.nbits, dsub = args.head_dim / args.v.M;
  const float* centroids = args.v.centroids + static_cast<std::ptrdiff_t>(m) * K * dsub;
  Four total[256];
  if (dsub == 1)
    meet_centroids<1>(sums, centroids, K, 1, total);
  else if (dsub == 2)
    meet_centroids<2>(sums, centroids, K, 2, total);
  else if (dsub == 4)
    meet_centroids<4>(sums, centroids, K, 4, total);
  else
    meet_centroids<0>(sums, centroids, K, dsub, total);
  for (int h = 0; h < n; ++h)
    for (int j = 0; j < dsub; ++j)
      args.acc[(head + h) * args.head_dim + m * dsub + j] += factor[h] * total[j][h];
}

/// Weights of n heads side by side, 0 where a head leaves a group out; any [stride / 64]: groups
/// that some head needs.
void join_weights(const PqSumScratch& s, int head, int n, uint8_t* any) {
  const std::size_t slots = s.run.stride / kWordGroup;
  for (std::size_t g = 0; g < slots; ++g) {
    any[g] = 0;
    Four* out = s.weights + g * kWordGroup;
    for (int h = 0; h < n; ++h) {
      const bool needed = s.run.needed[static_cast<std::size_t>(h) * slots + g] != 0;
      any[g] |= needed;
      const float* weight =
          s.run.scores + static_cast<std::size_t>(head + h) * s.run.stride + g * kWordGroup;
      for (int t = 0; t < kWordGroup; ++t) out[t][h] = needed ? weight[t] : 0.0f;
    }
  }
}

/// Values of heads [head, head + n) of the whole run, a few subspaces at a time.
void summed_values(const PqAttendArgs& args, const PqSumScratch& s, int head, int n,
                   const float* factor) {
  const int M = args.v.M, K = 1 << args.v.nbits;
  uint8_t* any = s.run.needed + static_cast<std::size_t>(kFields) * (s.run.stride / kWordGroup);
  join_weights(s, head, n, any);
  const std::size_t run_bytes = pq_run_bytes(args.v.nbits);
  for (int m = 0; m < M;) {
    const int subspaces = M - m >= kShared ? kShared : 1;
    for (int c = 0; c < subspaces * K; ++c) s.sums[c] = Four{};
    for (int token = 0; token < args.n_tokens; token += kPqBlock) {
      const uint8_t* block = args.v.blocks[token / kPqBlock];
      if (m + subspaces < M)
        for (std::size_t at = 0; at < kShared * run_bytes; at += 64)
          __builtin_prefetch(block + static_cast<std::size_t>(m + subspaces) * run_bytes + at, 0,
                             2);
      with_codes(args.v, block, m, subspaces, kPqBlock, s.codes,
                 [&](const auto* codes, std::ptrdiff_t step) {
                   const uint8_t* needed = any + token / kWordGroup;
                   if (subspaces == kShared)
                     add_weights<kShared>(codes, step, needed, s.weights + token, K, s.sums);
                   else
                     add_weights<1>(codes, step, needed, s.weights + token, K, s.sums);
                 });
    }
    for (int i = 0; i < subspaces; ++i)
      add_subspace(args, s.sums + static_cast<std::ptrdiff_t>(i) * K, m + i, head, n, factor);
    m += subspaces;
  }
}

void attend_pq_sums(const PqAttendArgs& args) {
  const bool fits = args.k.nbits <= 8 && args.v.nbits <= 8 && args.head_dim / args.v.M <= 256;
  if (!fits) return attend_pq_tables(args);
  if (args.n_tokens <= 0) return;
  const PqSumScratch s(args);
  WordRun run{};
  run.n_heads = args.n_group;
  run.rank = args.head_dim;
  run.n_tokens = args.n_tokens;
  run.skip = args.skip;
  run.floor = args.floor;
  run.state = args.state;
  run.acc = args.acc;
  run.stats = args.stats;
  const std::size_t slots = s.run.stride / kWordGroup;
  const int n_groups = (args.n_tokens + kWordGroup - 1) / kWordGroup;
  PhaseClock clock(args.stats);
  for (int head = 0; head < args.n_group; head += kFields) {
    const int n = args.n_group - head < kFields ? args.n_group - head : kFields;
    field_scores(args, s, head, n, clock);
    clock.end(&AttendStats::scores);
    float factor[kFields];
    for (int h = 0; h < n; ++h) {
      uint8_t* needed = s.run.needed + static_cast<std::size_t>(h) * slots;
      for (std::size_t g = 0; g < slots; ++g) needed[g] = 0;
      factor[h] = run_weights_words(run, s.run, head + h, needed);
      add_kept(run, s.run, head + h, needed, factor[h]);
      for (int g = 0; args.stats && g < n_groups; ++g)
        args.stats->groups_left_out += needed[g] == 0, ++args.stats->groups;
    }
    clock.end(&AttendStats::weights);
    summed_values(args, s, head, n, factor);
    clock.end(&AttendStats::values);
  }
}

}  // namespace
}  // namespace million::MILLION_ISA
