// SPDX-License-Identifier: Apache-2.0
// Scores to softmax weights, one row at a time, on the running state of online_softmax.h.
#pragma once

namespace million::MILLION_ISA {
namespace {

inline void scale_row(float* x, float factor, int n) {
  if (factor == 1.0f) return;
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, load(x + i) * set1(factor));
  if (i < n) store_part(x + i, load_part(x + i, n - i) * set1(factor), n - i);
}

inline float max_scaled(const float* s, int n, F scale) {
  F top = set1(-INFINITY);
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) top = vmax(top, load(s + i) * scale);
  if (i < n) {
    // The lanes beyond n repeat s[i]: a product with -inf could be NaN when scale is 0.
    top = vmax(top, load_part(s + i, n - i, s[i]) * scale);
  }
  return reduce_max(top);
}

/// s[0, n) <- exp(scale s - new max); returns the factor that the row's accumulator needs.
inline float row_weights(float* s, int n, float scale, SoftmaxState& state) {
  const F scales = set1(scale);
  const float factor = state.rescale(max_scaled(s, n, scales));
  if (state.max == -INFINITY) {  // nothing visible with a finite score
    for (int i = 0; i < n; ++i) s[i] = 0.0f;
    return factor;
  }
  const F shift = set1(-state.max);
  F even = zero(), odd = zero();
  int i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const F a = vexp(vfma(load(s + i), scales, shift));
    const F b = vexp(vfma(load(s + i + kLanes), scales, shift));
    store(s + i, a);
    store(s + i + kLanes, b);
    even = even + a;
    odd = odd + b;
  }
  for (; i + kLanes <= n; i += kLanes) {
    const F a = vexp(vfma(load(s + i), scales, shift));
    store(s + i, a);
    even = even + a;
  }
  state.sum += reduce_add(even + odd);
  if (i < n) {
    float tail[kLanes] = {};
    store(tail, vexp(vfma(load_part(s + i, n - i), scales, shift)));
    store_part(s + i, load(tail), n - i);
    state.sum += reduce_add(load_part(tail, n - i));
  }
  return factor;
}

void softmax_tile(float* s, int rows, int cols, int ld, const int* begin, const int* end,
                  float scale, SoftmaxState* state, float* acc, int head_dim) {
  for (int r = 0; r < rows; ++r, s += ld, acc += head_dim) {
    const int from = begin[r] < end[r] ? begin[r] : 0;
    const int to = begin[r] < end[r] ? end[r] : 0;
    for (int i = 0; i < from; ++i) s[i] = 0.0f;
    for (int i = to; i < cols; ++i) s[i] = 0.0f;
    if (from == to) continue;
    scale_row(acc, row_weights(s + from, to - from, scale, state[r]), head_dim);
  }
}

}  // namespace
}  // namespace million::MILLION_ISA
