// SPDX-License-Identifier: Apache-2.0
// How the attention on codes with word products (cpu/attention_words.inl.h) divides its scratch
// memory. Internal linkage: files of several instruction sets include it.
#pragma once

#include "kernels/ops.h"

namespace million {
namespace {

/// Takes `count` values of T at `base` + `floats`, in whole cache lines.
template <class T>
void take_scratch(T** at, float* base, std::size_t count, std::size_t* floats) {
  *at = reinterpret_cast<T*>(base + *floats);
  *floats += (count * sizeof(T) + 63) / 64 * 16;
}

struct WordScratch {
  static constexpr int kRows = 3;       ///< queries turned at once
  static constexpr int kTile = 128;     ///< tokens of decoded keys
  static constexpr int kWeights = 256;  ///< tokens of weights and of decoded values

  std::size_t stride;  ///< tokens of a row of scores
  int quads;           ///< groups of four axes
  int16_t* q;          ///< [frames][n_heads][4 quads] queries in steps of q_scale
  float* q_scale;      ///< [frames][n_heads]
  float* q_bias;       ///< [frames][n_heads]
  float* q_mean;       ///< [frames][n_heads][n_places]
  int8_t* k_tables;    ///< [M][K][dsub]
  int8_t* v_tables;    ///< [M][K][dsub]
  float* row;          ///< [kRows][4 quads] queries on their way
  float* scores;       ///< [n_heads][stride]
  float* group_max;    ///< [n_heads][stride / 64]
  float* group_sum;    ///< [stride / 64]
  uint8_t* needed;     ///< [at least 5][stride / 64] groups whose values some head needs
  uint16_t* codes;     ///< [kWeights] unpacked
  int8_t* tile;        ///< [quads][kTile][4] keys
  int8_t* values;      ///< [kWeights][4] of one quad
  int16_t* weights;    ///< [n_heads][kWeights / 4][16]
  std::size_t floats;  ///< all of it

  WordScratch(float* base, int n_heads, int rank, int n_tokens, int n_frames, int n_places,
              std::size_t k_bytes, std::size_t v_bytes) {
    const auto tokens = static_cast<std::size_t>(n_tokens < 0 ? 0 : n_tokens);
    const auto heads = static_cast<std::size_t>(n_heads);
    const std::size_t queries = heads * static_cast<std::size_t>(n_frames);
    stride = (tokens + kPqBlock - 1) / kPqBlock * kPqBlock;
    quads = (rank + 3) / 4;
    const std::size_t axes = 4 * static_cast<std::size_t>(quads);
    floats = 0;
    take_scratch(&q, base, queries * axes, &floats);
    take_scratch(&q_scale, base, queries, &floats);
    take_scratch(&q_bias, base, queries, &floats);
    take_scratch(&q_mean, base, queries * static_cast<std::size_t>(n_places), &floats);
    take_scratch(&k_tables, base, k_bytes, &floats);
    take_scratch(&v_tables, base, v_bytes, &floats);
    take_scratch(&row, base, kRows * axes, &floats);
    take_scratch(&scores, base, heads * stride, &floats);
    take_scratch(&group_max, base, heads * (stride / 64), &floats);
    take_scratch(&group_sum, base, stride / 64, &floats);
    take_scratch(&needed, base, (heads < 5 ? 5 : heads) * (stride / 64), &floats);
    take_scratch(&codes, base, kWeights, &floats);
    take_scratch(&tile, base, axes * kTile + 64, &floats);
    take_scratch(&values, base, 4 * kWeights, &floats);
    take_scratch(&weights, base, 4 * heads * kWeights, &floats);
  }
  explicit WordScratch(const CodedAttendArgs& a)
      : WordScratch(a.scratch, a.n_heads, a.rank, a.n_tokens, coded_frames(a), a.n_places,
                    static_cast<std::size_t>(a.rank) << a.k.nbits,
                    static_cast<std::size_t>(a.rank) << a.v.nbits) {}
};

/// The same for attend_pq by sums of weights (cpu/attention_pq_sums.inl.h).
struct PqSumScratch {
  static constexpr int kFields = 4, kChunk = 8, kShared = 2;
  using Four = float __attribute__((vector_size(16)));  ///< a number for each of kFields heads

  /// Score of a head = bias + unit * field.
  struct FieldScale {
    float unit[kFields], bias[kFields];
    bool held;  ///< entries and scale are those of the query's first kFields heads
  };

  FieldScale* scale;
  float* tables;       ///< [kFields][M][K] of the keys
  uint64_t* entries;   ///< [M][K] the same as fields
  WordScratch run;     ///< scores, and what weighs them; from here on sizes depend on n_tokens
  Four* sums;          ///< [kShared][K] weights of the values' codes
  uint64_t* totals;    ///< [kPqBlock]
  Four* weights;       ///< [run.stride]
  uint16_t* codes;     ///< [kChunk][kPqBlock] unpacked
  std::size_t floats;  ///< all of it

  explicit PqSumScratch(const PqAttendArgs& a)
      : run(a.scratch + take_tables(a), a.n_group, a.head_dim, a.n_tokens, 0, 0, 0, 0),
        floats(take_tables(a) + run.floats) {
    take_scratch(&sums, a.scratch, std::size_t{kShared} << a.v.nbits, &floats);
    take_scratch(&totals, a.scratch, kPqBlock, &floats);
    take_scratch(&weights, a.scratch, run.stride, &floats);
    take_scratch(&codes, a.scratch, kChunk * kPqBlock, &floats);
  }

 private:
  std::size_t take_tables(const PqAttendArgs& a) {
    const std::size_t k_codes = static_cast<std::size_t>(a.k.M) << a.k.nbits;
    std::size_t n = 0;
    take_scratch(&scale, a.scratch, 1, &n);
    take_scratch(&tables, a.scratch, kFields * k_codes, &n);
    take_scratch(&entries, a.scratch, k_codes, &n);
    return n;
  }
};

}  // namespace
}  // namespace million
