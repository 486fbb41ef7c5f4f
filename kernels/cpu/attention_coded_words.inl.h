// SPDX-License-Identifier: Apache-2.0
// attend_coded with word products (attention_words.inl.h): queries are turned into the basis by the
// same products that make the scores, with the axes of D^T in the place of tokens.
#pragma once

#include "kernels/cpu/attention_words.inl.h"

namespace million::MILLION_ISA {
namespace {

/// out [M][K][dsub] of tables [M][dsub][K]; kDsub 0: any.
template <int kDsub>
void order_by_code(const int8_t* tables, int M, int K, int any_dsub, int8_t* out) {
  const int dsub = kDsub > 0 ? kDsub : any_dsub;
  for (int m = 0; m < M; ++m, tables += K * dsub, out += K * dsub)
    for (int c = 0; c < K; ++c)
      for (int j = 0; j < dsub; ++j) out[c * dsub + j] = tables[j * K + c];
}

inline WordSide coded_side(const CodedSide& side, int rank, int8_t* tables) {
  const int dsub = rank / side.M, K = 1 << side.nbits;
  if (dsub == 4)
    order_by_code<4>(side.tables, side.M, K, 4, tables);
  else if (dsub == 2)
    order_by_code<2>(side.tables, side.M, K, 2, tables);
  else
    order_by_code<0>(side.tables, side.M, K, dsub, tables);
  return {side.M, side.nbits, dsub, side.blocks, tables, side.scale};
}

/// Products of queries `row` [n] (numbered frame by frame) of one KV head with the mean's
/// functions.
inline void turn_mean_words(const CodedAttendArgs& a, const WordScratch& s, int kv,
                            std::size_t row) {
  const float* q = a.q + row * static_cast<std::size_t>(a.head_dim);
  const float* mean = a.mean + static_cast<std::ptrdiff_t>(kv) * a.head_dim * a.n_places;
  float* out = s.q_mean + row * static_cast<std::size_t>(a.n_places);
  for (int k = 0; k < a.n_places; k += 2 * kLanes) {
    F first = zero(), second = zero();
    for (int c = 0; c < a.head_dim; ++c) {
      const F query = set1(q[c]);
      first = vfma(query, load(mean + c * a.n_places + k), first);
      second = vfma(query, load(mean + c * a.n_places + k + kLanes), second);
    }
    store(out + k, first), store(out + k + kLanes, second);
  }
}

/// Queries row[0..n) of one KV head, n <= kWordHeads, as words in the basis.
void turn_rows_words(const CodedAttendArgs& a, const WordScratch& s, int kv, int n,
                     const std::size_t* row) {
  alignas(64) int16_t words[kWordHeads][256];
  const int16_t* q[kWordHeads];
  alignas(64) float sums[kWordHeads * kColumns];
  float step[kWordHeads];
  const std::size_t axes = static_cast<std::size_t>(a.rank);
  float* turned = s.row;
  for (int i = 0; i < n; ++i) {
    step[i] =
        row_to_words(a.q + row[i] * static_cast<std::size_t>(a.head_dim), a.head_dim, words[i]);
    q[i] = words[i];
  }
  const int8_t* panel = a.basis + static_cast<std::ptrdiff_t>(kv) * a.head_dim * a.rank;
  const float* k_scale = a.k.scale;
  for (int j = 0; j < a.rank; j += kColumns) {
    dot_some(n, panel + 4 * j, a.rank, a.head_dim / 4, q, sums);
    for (int i = 0; i < n; ++i)
      for (int c = 0; c < kColumns; c += kLanes)
        store(turned + static_cast<std::size_t>(i) * axes + j + c,
              load(sums + kColumns * i + c) * load(a.basis_scale + j + c) * load(k_scale + j + c));
  }
  for (int i = 0; i < n; ++i) {
    s.q_scale[row[i]] = step[i] * row_to_words(turned + static_cast<std::size_t>(i) * axes, a.rank,
                                               s.q + row[i] * axes);
    s.q_bias[row[i]] = 0.0f;
    turn_mean_words(a, s, kv, row[i]);
  }
}

void turn_queries_words(const CodedAttendArgs& a, const WordScratch& s) {
  const int group = a.n_heads / a.span, n = coded_frames(a) * group;
  for (int kv = 0; kv < a.span; ++kv)
    for (int i = 0; i < n; i += kWordHeads) {
      const int count = n - i < kWordHeads ? n - i : kWordHeads;
      std::size_t row[kWordHeads];
      for (int r = 0; r < count; ++r)
        row[r] =
            static_cast<std::size_t>((i + r) / group * a.n_heads + kv * group + (i + r) % group);
      turn_rows_words(a, s, kv, count, row);
    }
}

void attend_coded_words(const CodedAttendArgs& a) {
  if (a.n_tokens <= 0) return;
  const WordScratch s(a);
  PhaseClock clock(a.stats);
  turn_queries_words(a, s);
  clock.end(&AttendStats::tables);
  const WordRun run{a.n_heads,
                    a.rank,
                    a.n_tokens,
                    a.frame,
                    a.first,
                    a.n_places,
                    a.places,
                    coded_side(a.k, a.rank, s.k_tables),
                    coded_side(a.v, a.rank, s.v_tables),
                    a.skip,
                    a.floor,
                    a.state,
                    a.acc,
                    a.stats};
  key_pass_words(run, s);
  clock.end(&AttendStats::scores);
  value_pass_words(run, s);
}

/// rows[c] = sum over axes of D [c][axis] y [axis].
void coded_rows_words(const CodedAttendArgs& a, float* rows) {
  const int group = a.n_heads / a.span;
  for (int h = 0; h < a.n_heads; ++h) {
    const int8_t* basis = a.basis + static_cast<std::ptrdiff_t>(h / group) * a.head_dim * a.rank;
    const float* y = a.acc + static_cast<std::ptrdiff_t>(h) * a.rank;
    for (int c = 0; c < a.head_dim; c += 4, basis += 4 * a.rank) {
      float sum[4] = {};
      for (int j = 0; j < a.rank; ++j)
        for (int i = 0; i < 4; ++i)
          sum[i] += static_cast<float>(basis[4 * j + i]) * (a.basis_scale[j] * y[j]);
      for (int i = 0; i < 4; ++i) rows[h * a.head_dim + c + i] = sum[i];
    }
  }
}

}  // namespace
}  // namespace million::MILLION_ISA
