// SPDX-License-Identifier: Apache-2.0
// How the attention on codes with word products (cpu/attention_words.inl.h) divides its scratch
// memory. Internal linkage: files of several instruction sets include it.
#pragma once

#include "kernels/ops.h"

namespace million {
namespace {

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
  float* k_axes;       ///< [2][4 quads] steps and middles
  float* v_axes;       ///< [2][4 quads]
  float* row;          ///< [kRows][4 quads] queries on their way
  float* scores;       ///< [n_heads][stride]
  float* group_max;    ///< [n_heads][stride / 64]
  float* group_sum;    ///< [stride / 64]
  uint8_t* needed;     ///< [batches of heads][stride / 64] groups whose values some head needs
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
    stride = (tokens + kWeights - 1) / kWeights * kWeights;
    quads = (rank + 3) / 4;
    const std::size_t axes = 4 * static_cast<std::size_t>(quads);
    floats = 0;
    take(&q, base, queries * axes);
    take(&q_scale, base, queries);
    take(&q_bias, base, queries);
    take(&q_mean, base, queries * static_cast<std::size_t>(n_places));
    take(&k_tables, base, k_bytes);
    take(&v_tables, base, v_bytes);
    take(&k_axes, base, 2 * axes);
    take(&v_axes, base, 2 * axes);
    take(&row, base, kRows * axes);
    take(&scores, base, heads * stride);
    take(&group_max, base, heads * (stride / 64));
    take(&group_sum, base, stride / 64);
    take(&needed, base, heads * (stride / 64));
    take(&codes, base, kWeights);
    take(&tile, base, axes * kTile + 64);
    take(&values, base, 4 * kWeights);
    take(&weights, base, 4 * heads * kWeights);
  }
  explicit WordScratch(const CodedAttendArgs& a)
      : WordScratch(a.scratch, a.n_heads, a.rank, a.n_tokens, coded_frames(a), a.n_places,
                    static_cast<std::size_t>(a.rank) << a.k.nbits,
                    static_cast<std::size_t>(a.rank) << a.v.nbits) {}
  explicit WordScratch(const PqAttendArgs& a)
      : WordScratch(a.scratch, a.n_group, a.head_dim, a.n_tokens, 1, 0,
                    static_cast<std::size_t>(a.head_dim) << a.k.nbits,
                    static_cast<std::size_t>(a.head_dim) << a.v.nbits) {}

 private:
  template <class T>
  void take(T** at, float* base, std::size_t count) {
    *at = reinterpret_cast<T*>(base + floats);
    floats += (count * sizeof(T) + 63) / 64 * 16;
  }
};

}  // namespace
}  // namespace million
