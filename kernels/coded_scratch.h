// SPDX-License-Identifier: Apache-2.0
// How attend_coded divides its scratch memory. Internal linkage: files of several instruction sets
// include it.
#pragma once

#include "kernels/ops.h"

namespace million {
namespace {

struct CodedScratch {
  static constexpr int kTiles = kPqBlock / 64 + 1;  ///< of 64 places, that a block may touch
  static constexpr int kTileStride = 80;  ///< places: a register may hang over on either side
  static constexpr int kRows = 4;         ///< queries turned at once
  static constexpr int kFewHeads = 4;     ///< whose value pass keeps values in registers

  int n_frames;
  std::size_t stride;    ///< tokens of a row below
  int8_t* q8;            ///< [n_frames][n_heads][rank] queries in steps of q_scale
  float* q_scale;        ///< [n_frames][n_heads]
  float* q_bias;         ///< [n_frames][n_heads] takes back the offset that makes keys unsigned
  float* q_mean;         ///< [n_frames][n_heads][n_places]
  float* scores;         ///< [n_heads][stride]
  uint8_t* quads;        ///< [kTiles][rank / 4][kTileStride][4] keys of a block, 64 bytes before
  uint8_t* weights;      ///< [n_heads][stride]
  uint8_t* needed;       ///< [n_heads + 1][stride / 64] 64-token groups that some heads need
  float* group_sums;     ///< [stride / 64] weights of one head's groups
  float* block_max;      ///< [stride / kPqBlock] largest scores of one head
  float* block_units;    ///< [n_heads][stride / kPqBlock] of the weights
  float* lane_sums;      ///< [n_heads][rank][16] sums of values, few heads
  float* turned;         ///< [kRows][rank]
  float* column;         ///< [rank] scale of D^T times scale of the keys
  int32_t* offset;       ///< [rank] -128 times the column sums of D^T
  std::size_t floats;    ///< all of it

  explicit CodedScratch(const CodedAttendArgs& a) {
    n_frames = coded_frames(a);
    const auto tokens = static_cast<std::size_t>(a.n_tokens < 0 ? 0 : a.n_tokens);
    stride = (tokens + kPqBlock - 1) / kPqBlock * kPqBlock + 64;
    const std::size_t heads = static_cast<std::size_t>(a.n_heads);
    const std::size_t rank = static_cast<std::size_t>(a.rank);
    const std::size_t queries = static_cast<std::size_t>(n_frames) * heads;
    floats = 0;
    take(&q8, a.scratch, queries * rank);
    take(&q_scale, a.scratch, queries);
    take(&q_bias, a.scratch, queries);
    take(&q_mean, a.scratch, queries * static_cast<std::size_t>(a.n_places));
    take(&scores, a.scratch, heads * stride);
    take(&quads, a.scratch, kTiles * rank * kTileStride + 128);
    quads += 64;
    take(&weights, a.scratch, heads * stride);
    take(&needed, a.scratch, (heads + 1) * (stride / 64));
    take(&group_sums, a.scratch, stride / 64);
    take(&block_max, a.scratch, stride / kPqBlock);
    take(&block_units, a.scratch, heads * (stride / kPqBlock));
    if (a.n_heads <= kFewHeads) take(&lane_sums, a.scratch, heads * rank * 16);
    take(&turned, a.scratch, kRows * rank);
    take(&column, a.scratch, rank);
    take(&offset, a.scratch, rank);
  }

 private:
  template <class T>
  void take(T** at, float* base, std::size_t count) {
    *at = reinterpret_cast<T*>(base + floats);
    floats += (count * sizeof(T) + 63) / 64 * 16;
  }
};

/// Shape of the value pass over a PQ-coded run, for its scratch: few heads take it block by block.
/// Blocks and tables are left out.
inline CodedAttendArgs pq_value_run(const PqAttendArgs& args) {
  CodedAttendArgs run{};
  run.n_heads = args.n_group;
  run.span = 1;
  run.head_dim = run.rank = args.head_dim;
  const bool by_block = args.n_group <= CodedScratch::kFewHeads && args.n_tokens > kPqBlock;
  run.n_tokens = by_block ? kPqBlock : args.n_tokens;
  run.frame = 1 << 30;
  run.v.M = args.v.M;
  run.v.nbits = args.v.nbits;
  return run;
}

}  // namespace
}  // namespace million
