// SPDX-License-Identifier: Apache-2.0
// attend_pq with word products (attention_words.inl.h) for nbits <= 8; wider codes and ragged head
// dimensions use the f32 tables of attention_pq.inl.h. Centroids of both sides become signed bytes
// between the minimum and the maximum of their channel. [MILLION]
//
// Error: range / 254 / sqrt(12) RMS for each channel, 0.8 % of the standard deviation for 256
// normal centroids, in keys and in values. test_kernels_attention.cpp bounds the output at 2.5 %.
#pragma once

#include "kernels/cpu/attention_words.inl.h"

namespace million::MILLION_ISA {
namespace {

/// Lane by lane over the entries of one subspace: centroids [K][dsub] lie so that lane i of any
/// vector belongs to channel i % dsub, when dsub divides kLanes.
inline void channel_range(const float* centroids, int size, int dsub, float* low, float* high) {
  for (int j = 0; j < dsub; ++j) low[j] = INFINITY, high[j] = -INFINITY;
  int i = 0;
  if (kLanes % dsub == 0 && size >= kLanes) {
    F min = load(centroids), max = min;
    for (i = kLanes; i + kLanes <= size; i += kLanes)
      min = vmin(min, load(centroids + i)), max = vmax(max, load(centroids + i));
    float lanes[2 * kLanes];
    store(lanes, min), store(lanes + kLanes, max);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int j = lane % dsub;
      low[j] = lanes[lane] < low[j] ? lanes[lane] : low[j];
      high[j] = lanes[kLanes + lane] > high[j] ? lanes[kLanes + lane] : high[j];
    }
  }
  for (; i < size; ++i) {
    const int j = i % dsub;
    low[j] = centroids[i] < low[j] ? centroids[i] : low[j];
    high[j] = centroids[i] > high[j] ? centroids[i] : high[j];
  }
}

/// tables [M][K][dsub]: centroid = middle + scale * byte per channel.
WordSide pq_word_side(const PqSide& side, int head_dim, int8_t* tables, float* scale,
                      float* middle) {
  const int K = 1 << side.nbits, dsub = head_dim / side.M, size = K * dsub;
  for (int m = 0; m < side.M; ++m) {
    const float* centroids = side.centroids + static_cast<std::ptrdiff_t>(m) * size;
    int8_t* bytes = tables + static_cast<std::ptrdiff_t>(m) * size;
    float low[256], high[256], inverse[256];
    channel_range(centroids, size, dsub, low, high);
    for (int j = 0; j < dsub; ++j) {
      const float range = high[j] - low[j];
      middle[m * dsub + j] = low[j] + 0.5f * range;
      scale[m * dsub + j] = range / 254.0f;
      inverse[j] = range > 1e-30f ? 254.0f / range : 0.0f;
    }
    const float* mid = middle + m * dsub;
    int i = 0;
    if (kLanes % dsub == 0) {
      float lanes[2 * kLanes];
      for (int lane = 0; lane < kLanes; ++lane)
        lanes[lane] = mid[lane % dsub], lanes[kLanes + lane] = inverse[lane % dsub];
      const F centre = load(lanes), units = load(lanes + kLanes);
      for (; i + kLanes <= size; i += kLanes)
        store_signed(bytes + i, (load(centroids + i) - centre) * units);
    }
    for (; i < size; ++i)
      bytes[i] =
          static_cast<int8_t>(std::nearbyint((centroids[i] - mid[i % dsub]) * inverse[i % dsub]));
  }
  return {side.M, side.nbits, dsub, side.blocks, tables, scale};
}

/// Queries in units of the keys' steps as words; the middles' part is the bias.
void pq_word_queries(const PqAttendArgs& args, const WordScratch& s) {
  const int d = args.head_dim;
  const float *scale = s.k_axes, *middle = s.k_axes + d;
  for (int g = 0; g < args.n_group; ++g) {
    const float* q = args.q + g * d;
    for (int c = 0; c < d; ++c) s.row[c] = q[c] * scale[c];
    s.q_scale[g] = row_to_words(s.row, d, s.q + static_cast<std::ptrdiff_t>(g) * d);
    s.q_bias[g] = dot(q, middle, static_cast<std::size_t>(d));
  }
}

void attend_pq_words(const PqAttendArgs& args) {
  const bool fits = args.k.nbits <= 8 && args.v.nbits <= 8 && args.head_dim % 8 == 0 &&
                    args.head_dim / args.k.M <= 256 && args.head_dim / args.v.M <= 256;
  if (!fits) return attend_pq_tables(args);
  if (args.n_tokens <= 0) return;
  const WordScratch s(args);
  const int d = args.head_dim;
  const WordSide k = pq_word_side(args.k, d, s.k_tables, s.k_axes, s.k_axes + d);
  const WordSide v = pq_word_side(args.v, d, s.v_tables, s.v_axes, s.v_axes + d);
  pq_word_queries(args, s);
  const WordRun run{args.n_group, d,         args.n_tokens,
                    1 << 30,      0,         0,
                    nullptr,      k,         v,
                    s.v_axes + d, args.skip, args.floor,
                    args.state,   args.acc,  args.left_out};
  key_pass_words(run, s);
  value_pass_words(run, s);
}

}  // namespace
}  // namespace million::MILLION_ISA
