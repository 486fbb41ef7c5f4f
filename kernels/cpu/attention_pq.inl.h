// SPDX-License-Identifier: Apache-2.0
// Decode attention on PQ codes with f32 tables: any nbits 1..12, M, head_dim and group. Per block
// of kPqBlock tokens: scores are sums of table entries q . centroid, then online softmax, then
// values gathered from the centroids; neither keys nor values are decoded to memory. [MILLION]
#pragma once

#include "kernels/cpu/elementwise.inl.h"
#include "kernels/cpu/softmax_tile.inl.h"
#include "kernels/ops.h"

namespace million::MILLION_ISA {
namespace {

/// Codes [0, n) of a run; n is rounded up to a multiple of 8, which a run always holds.
template <int kBits>
void unpack_bits(const uint8_t* run, int n, uint16_t* codes) {
  constexpr unsigned kMask = (1u << kBits) - 1u;
  for (int i = 0; i < n; i += 8, run += kBits, codes += 8) {
    uint64_t low = 0, high = 0;  // 8 codes are kBits bytes
    __builtin_memcpy(&low, run, kBits < 8 ? kBits : 8);
    if constexpr (kBits > 8) __builtin_memcpy(&high, run + 8, kBits - 8);
    for (int j = 0; j < 8; ++j) {
      const int bit = j * kBits;
      uint64_t word = bit < 64 ? low >> bit : high >> (bit - 64);
      if (bit < 64 && bit + kBits > 64) word |= high << (64 - bit);
      codes[j] = static_cast<uint16_t>(word & kMask);
    }
  }
}

void unpack_codes(const uint8_t* run, int nbits, int n, uint16_t* codes) {
  switch (nbits) {
    case 1:
      unpack_bits<1>(run, n, codes);
      return;
    case 2:
      unpack_bits<2>(run, n, codes);
      return;
    case 3:
      unpack_bits<3>(run, n, codes);
      return;
    case 4:  // plain enough for the compiler to vectorize
      for (int i = 0; i < n; i += 8)
        for (int j = 0; j < 4; ++j) {
          codes[i + 2 * j] = run[i / 2 + j] & 15;
          codes[i + 2 * j + 1] = run[i / 2 + j] >> 4;
        }
      return;
    case 5:
      unpack_bits<5>(run, n, codes);
      return;
    case 6:
      unpack_bits<6>(run, n, codes);
      return;
    case 7:
      unpack_bits<7>(run, n, codes);
      return;
    case 8:
      for (int i = 0; i < n; ++i) codes[i] = run[i];
      return;
    case 9:
      unpack_bits<9>(run, n, codes);
      return;
    case 10:
      unpack_bits<10>(run, n, codes);
      return;
    case 11:
      unpack_bits<11>(run, n, codes);
      return;
    case 12:
      unpack_bits<12>(run, n, codes);
      return;
    default:
      for (int i = 0; i < n; ++i) codes[i] = static_cast<uint16_t>(pq_get(run, nbits, i));
  }
}

/// Splits kCount vectors of interleaved rows (kCount values a row) into columns, column j at
/// out[j].
template <int kCount>
MILLION_INLINE void split_columns(const F* in, F* out, int out_step) {
  if constexpr (kCount == 1) {
    out[0] = in[0];
  } else {
    F even[kCount / 2], odd[kCount / 2];
    for (int i = 0; i < kCount / 2; ++i) deinterleave(in[2 * i], in[2 * i + 1], &even[i], &odd[i]);
    split_columns<kCount / 2>(even, out, 2 * out_step);
    split_columns<kCount / 2>(odd, out + out_step, 2 * out_step);
  }
}

/// table[g][c] = q[g] . centroid c for one subspace; K % kLanes == 0.
template <int kDsub>
MILLION_INLINE void table_columns(const PqAttendArgs& args, const float* q, const float* centroids,
                                  int K, float* table, std::size_t table_stride) {
  for (int c = 0; c < K; c += kLanes) {
    F rows[kDsub], column[kDsub];
    for (int j = 0; j < kDsub; ++j)
      rows[j] = load(centroids + static_cast<std::ptrdiff_t>(c) * kDsub + j * kLanes);
    split_columns<kDsub>(rows, column, 1);
    for (int g = 0; g < args.n_group; ++g) {
      const float* query = q + g * args.head_dim;
      F sum = set1(query[0]) * column[0];
      for (int j = 1; j < kDsub; ++j) sum = vfma(set1(query[j]), column[j], sum);
      store(table + static_cast<std::size_t>(g) * table_stride + c, sum);
    }
  }
}

/// tables [n_group][M][K] of q . centroid.
void build_tables(const PqAttendArgs& args, float* tables) {
  const int K = 1 << args.k.nbits, M = args.k.M, dsub = args.head_dim / M;
  const std::size_t stride = static_cast<std::size_t>(M) << args.k.nbits;
  for (int m = 0; m < M; ++m) {
    const float* q = args.q + m * dsub;
    const float* centroids = args.k.centroids + (static_cast<std::size_t>(m) << args.k.nbits) *
                                                    static_cast<std::size_t>(dsub);
    float* table = tables + (static_cast<std::size_t>(m) << args.k.nbits);
    const bool whole = K % kLanes == 0;
    if (whole && dsub == 1) {
      table_columns<1>(args, q, centroids, K, table, stride);
    } else if (whole && dsub == 2) {
      table_columns<2>(args, q, centroids, K, table, stride);
    } else if (whole && dsub == 4) {
      table_columns<4>(args, q, centroids, K, table, stride);
    } else if (whole && dsub == 8) {
      table_columns<8>(args, q, centroids, K, table, stride);
    } else {
      for (int g = 0; g < args.n_group; ++g)
        for (int c = 0; c < K; ++c)
          table[static_cast<std::size_t>(g) * stride + static_cast<std::size_t>(c)] =
              dot(q + g * args.head_dim, centroids + static_cast<std::ptrdiff_t>(c) * dsub,
                  static_cast<std::size_t>(dsub));
    }
  }
}

/// n rounded up to whole vectors: codes and scores up to there exist and are harmless.
inline int padded(int n) { return (n + 15) / 16 * 16; }

/// s[g][t] = sum_m tables[g][m][code(t, m)] for one block; s [n_group][kPqBlock].
void table_scores(const PqAttendArgs& args, const uint8_t* block, int n, const float* tables,
                  uint16_t* codes, float* s) {
  const int end = padded(n);
  for (int m = 0; m < args.k.M; ++m) {
    unpack_codes(block + static_cast<std::size_t>(m) * pq_run_bytes(args.k.nbits), args.k.nbits,
                 end, codes);
    for (int g = 0; g < args.n_group; ++g) {
      const float* table = tables + (static_cast<std::size_t>(g * args.k.M + m) << args.k.nbits);
      float* score = s + g * kPqBlock;
      if (m == 0) {
        for (int t = 0; t < end; t += kLanes) store(score + t, gather(table, codes + t, 1));
      } else {
        for (int t = 0; t < end; t += kLanes)
          store(score + t, load(score + t) + gather(table, codes + t, 1));
      }
    }
  }
}

/// acc[h][i] += sum_t p[h][t] centroid[code(t)][i] for one subspace and kHeads heads.
template <int kHeads>
MILLION_INLINE void gather_values(const float* centroids, int dsub, const uint16_t* codes, int n,
                                  const float* p, float* acc, int head_dim) {
  for (int j = 0; j < dsub; ++j) {
    F sum[kHeads];
    for (int h = 0; h < kHeads; ++h) sum[h] = zero();
    for (int t = 0; t < n; t += kLanes) {
      const F value = gather(centroids + j, codes + t, dsub);
      for (int h = 0; h < kHeads; ++h) sum[h] = vfma(load(p + h * kPqBlock + t), value, sum[h]);
    }
    for (int h = 0; h < kHeads; ++h) acc[h * head_dim + j] += reduce_add(sum[h]);
  }
}

/// Adds the values of one block; p [n_group][kPqBlock] weights, zero in [n, padded(n)).
void table_values(const PqAttendArgs& args, const uint8_t* block, int n, const float* p,
                  uint16_t* codes) {
  const int end = padded(n), d = args.head_dim, dsub = d / args.v.M;
  for (int m = 0; m < args.v.M; ++m) {
    unpack_codes(block + static_cast<std::size_t>(m) * pq_run_bytes(args.v.nbits), args.v.nbits,
                 end, codes);
    const float* centroids = args.v.centroids + (static_cast<std::size_t>(m) << args.v.nbits) *
                                                    static_cast<std::size_t>(dsub);
    float* acc = args.acc + m * dsub;
    int g = 0;
    for (; g + 4 <= args.n_group; g += 4)
      gather_values<4>(centroids, dsub, codes, end, p + g * kPqBlock, acc + g * d, d);
    const int rest = args.n_group - g;
    const float* weights = p + g * kPqBlock;
    if (rest == 3) gather_values<3>(centroids, dsub, codes, end, weights, acc + g * d, d);
    if (rest == 2) gather_values<2>(centroids, dsub, codes, end, weights, acc + g * d, d);
    if (rest == 1) gather_values<1>(centroids, dsub, codes, end, weights, acc + g * d, d);
  }
}

/// Parts of PqAttendArgs::scratch that the f32 tables use; pq_scratch_floats covers them.
struct PqScratch {
  float* scores;    ///< [n_group][kPqBlock]
  uint16_t* codes;  ///< [kPqBlock]
  float* tables;    ///< [n_group][M][K] of the keys
  float* rest;
  explicit PqScratch(const PqAttendArgs& args)
      : scores(args.scratch),
        codes(reinterpret_cast<uint16_t*>(scores + args.n_group * kPqBlock)),
        tables(scores + (args.n_group + 1) * kPqBlock),
        rest(tables + (static_cast<std::size_t>(args.n_group * args.k.M) << args.k.nbits)) {}
};

/// Weights of one block's scores in place; accumulators follow the new maxima.
inline void block_weights(const PqAttendArgs& args, int n, float* s) {
  for (int g = 0; g < args.n_group; ++g) {
    float* score = s + g * kPqBlock;
    scale_row(args.acc + g * args.head_dim, row_weights(score, n, 1.0f, args.state[g]),
              args.head_dim);
    for (int t = n; t < padded(n); ++t) score[t] = 0.0f;
  }
}

void attend_pq_tables(const PqAttendArgs& args) {
  if (args.n_tokens <= 0) return;
  const PqScratch scratch(args);
  build_tables(args, scratch.tables);
  for (int t = 0; t < args.n_tokens; t += kPqBlock) {
    const int n = args.n_tokens - t < kPqBlock ? args.n_tokens - t : kPqBlock;
    table_scores(args, args.k.blocks[t / kPqBlock], n, scratch.tables, scratch.codes,
                 scratch.scores);
    block_weights(args, n, scratch.scores);
    table_values(args, args.v.blocks[t / kPqBlock], n, scratch.scores, scratch.codes);
  }
}

}  // namespace
}  // namespace million::MILLION_ISA
