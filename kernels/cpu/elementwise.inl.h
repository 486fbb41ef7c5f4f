// SPDX-License-Identifier: Apache-2.0
// Bodies of the element-wise ops over the vector type of one instruction set (namespace
// MILLION_ISA, see vec_scalar.h). Reductions have a fixed order that depends on n alone, never on
// alignment.
#pragma once

namespace million::MILLION_ISA {
namespace {

void f16_to_f32(const uint16_t* x, float* y, std::size_t n) {
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load_f16(x + i));
  for (; i < n; ++i) y[i] = half_to_float(x[i]);
}

void f32_to_f16(const float* x, uint16_t* y, std::size_t n) {
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_f16(y + i, load(x + i));
  for (; i < n; ++i) y[i] = float_to_half(x[i]);
}

void bf16_to_f32(const uint16_t* __restrict x, float* __restrict y, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) y[i] = bf16_to_float(x[i]);
}

void f32_to_bf16(const float* __restrict x, uint16_t* __restrict y, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) y[i] = float_to_bf16(x[i]);
}

float dot(const float* x, const float* y, std::size_t n) {
  F a = zero(), b = zero(), c = zero(), d = zero();
  std::size_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {  // four chains hide the latency of the FMA
    a = vfma(load(x + i), load(y + i), a);
    b = vfma(load(x + i + kLanes), load(y + i + kLanes), b);
    c = vfma(load(x + i + 2 * kLanes), load(y + i + 2 * kLanes), c);
    d = vfma(load(x + i + 3 * kLanes), load(y + i + 3 * kLanes), d);
  }
  for (; i + kLanes <= n; i += kLanes) a = vfma(load(x + i), load(y + i), a);
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    b = vfma(load_part(x + i, rest), load_part(y + i, rest), b);
  }
  return reduce_add((a + b) + (c + d));
}

/// y [kRows][stride] = kRows rows of x times kColumns rows of m, each sum in one chain of lanes, so
/// that a sum does not depend on its neighbours.
template <int kRows, int kColumns>
MILLION_INLINE void multiply_block(const float* x, int w, const float* m, float* y, int stride) {
  F sum[kRows][4];
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < 4; ++c) sum[r][c] = zero();
  int i = 0;
  for (; i + kLanes <= w; i += kLanes) {
    F column[kColumns];
    for (int c = 0; c < kColumns; ++c) column[c] = load(m + c * w + i);
    for (int r = 0; r < kRows; ++r) {
      const F row = load(x + r * w + i);
      for (int c = 0; c < kColumns; ++c) sum[r][c] = vfma(row, column[c], sum[r][c]);
    }
  }
  for (int r = 0; i < w && r < kRows; ++r)
    for (int c = 0; c < kColumns; ++c)
      sum[r][c] = vfma(load_part(x + r * w + i, w - i), load_part(m + c * w + i, w - i), sum[r][c]);
  for (int r = 0; r < kRows; ++r) {
    float four[4];
    reduce_add4(four, sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
    for (int c = 0; c < kColumns; ++c) y[r * stride + c] = four[c];
  }
}

void multiply_rows(const float* x, int n, int w, int columns, const float* m, float* y) {
  constexpr int kRows = 3;
  for (int c = 0; c < columns; c += columns - c >= 4 ? 4 : 1) {
    const float* panel = m + static_cast<std::ptrdiff_t>(c) * w;
    const bool four = columns - c >= 4;
    for (int r = 0; r < n;) {
      const float* row = x + static_cast<std::ptrdiff_t>(r) * w;
      float* to = y + static_cast<std::ptrdiff_t>(r) * columns + c;
      if (n - r >= kRows) {
        four ? multiply_block<kRows, 4>(row, w, panel, to, columns)
             : multiply_block<kRows, 1>(row, w, panel, to, columns);
        r += kRows;
      } else {
        four ? multiply_block<1, 4>(row, w, panel, to, columns)
             : multiply_block<1, 1>(row, w, panel, to, columns);
        r += 1;
      }
    }
  }
}

void add(const float* __restrict x, float* __restrict y, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) y[i] += x[i];
}

void swiglu(const float* gate, const float* up, float* y, std::size_t n) {
  const F one = set1(1.0f);
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const F g = load(gate + i);
    store(y + i, g / (one + vexp(zero() - g)) * load(up + i));
  }
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    const F g = load_part(gate + i, rest);
    store_part(y + i, g / (one + vexp(zero() - g)) * load_part(up + i, rest), rest);
  }
}

void rmsnorm(const float* x, const float* w, float eps, int n, float* y) {
  const float square = dot(x, x, static_cast<std::size_t>(n));
  const F scale = set1(1.0f / std::sqrt(square / static_cast<float>(n) + eps));
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(x + i) * scale * load(w + i));
  if (i < n) store_part(y + i, load_part(x + i, n - i) * scale * load_part(w + i, n - i), n - i);
}

void rope_row(float* x, const float* cosines, const float* sines, int n_pairs, bool adjacent) {
  const float* __restrict c = cosines;
  const float* __restrict s = sines;
  if (adjacent) {
    float* __restrict pair = x;
    for (int i = 0; i < n_pairs; ++i) {
      const float a = pair[2 * i], b = pair[2 * i + 1];
      pair[2 * i] = a * c[i] - b * s[i];
      pair[2 * i + 1] = a * s[i] + b * c[i];
    }
    return;
  }
  float* __restrict low = x;
  float* __restrict high = x + n_pairs;
  for (int i = 0; i < n_pairs; ++i) {
    const float a = low[i], b = high[i];
    low[i] = a * c[i] - b * s[i];
    high[i] = a * s[i] + b * c[i];
  }
}

double logsumexp(const float* x, std::size_t n) {
  F top = set1(-INFINITY);
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) top = vmax(top, load(x + i));
  if (i < n) top = vmax(top, load_part(x + i, static_cast<int>(n - i), -INFINITY));
  const float max = reduce_max(top);
  if (max == INFINITY) return max;
  // A row of -inf alone sums to 0, whose log is -inf; the shift must then be finite.
  const F shift = set1(max == -INFINITY ? 0.0f : max);
  DoubleSum even, odd;
  for (i = 0; i + 2 * kLanes <= n; i += 2 * kLanes) {
    even.add(vexp(load(x + i) - shift));
    odd.add(vexp(load(x + i + kLanes) - shift));
  }
  for (; i + kLanes <= n; i += kLanes) even.add(vexp(load(x + i) - shift));
  if (i < n) odd.add(vexp(load_part(x + i, static_cast<int>(n - i), -INFINITY) - shift));
  const double sum = even.total() + odd.total();
  return (max == -INFINITY ? 0.0 : static_cast<double>(max)) + std::log(sum);
}

}  // namespace
}  // namespace million::MILLION_ISA
