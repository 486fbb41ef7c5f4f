// SPDX-License-Identifier: Apache-2.0
// Seeded cache data that looks like a model's: Gaussian channels with means of their own, a few
// channels eight times wider, and low-norm sinks at the first positions of each window.
#pragma once

#include "kernels/half.h"
#include "lib/core/rng.h"
#include "lib/quant/codec.h"

#include <cmath>
#include <string>
#include <vector>

namespace million::testdata {

inline KvGeometry geometry(int n_layers = 2, float base = 100000.0f) {
  RopeParams rope;
  rope.n_rot = 64;
  rope.base = base;
  return {n_layers, 9, 3, 64, Rope(rope)};
}

/// One row of a layer; every channel has a mean and a width drawn from its number.
inline void fill_row(int row, uint64_t seed, int64_t token, float* out) {
  Rng rng(seed, static_cast<uint64_t>(token) + 1);
  for (int c = 0; c < row; ++c) {
    Rng channel(77, c);
    const double width = channel.below(16) == 0 ? 8.0 : 1.0;
    out[c] = static_cast<float>(width * (channel.normal() + rng.normal()));
  }
}

/// [n][row] f32 rows that no calibration set holds.
inline std::vector<float> rows(const KvGeometry& g, int n, uint64_t seed = 5) {
  std::vector<float> x(static_cast<size_t>(n) * g.row());
  for (int t = 0; t < n; ++t)
    fill_row(g.row(), seed, t, x.data() + static_cast<int64_t>(t) * g.row());
  return x;
}

inline CalibrationSet calibration(const KvGeometry& g, int n_tokens = 1024, int context = 512) {
  CalibrationSet data;
  data.geometry = g;
  data.model_sha256 = "model";
  data.text_sha256 = "text";
  data.text_name = "synthetic";
  data.context = context;
  data.n_tokens = n_tokens;
  std::vector<float> row(g.row());
  for (int l = 0; l < g.n_layers; ++l) {
    for (auto* side : {&data.k_pre, &data.v}) {
      side->emplace_back();
      const uint64_t seed = 1000 + 2 * l + (side == &data.v);
      for (int t = 0; t < n_tokens; ++t) {
        fill_row(g.row(), seed, t, row.data());
        const float scale = data.position(t) < 4 ? 0.05f : 1.0f;
        for (const float x : row) side->back().push_back(float_to_half(x * scale));
      }
    }
    data.q_second_moment.emplace_back();
    Rng rng(3, l);
    for (int c = 0; c < g.row(); ++c)
      data.q_second_moment.back().push_back(static_cast<float>(0.1 + rng.uniform()));
  }
  return data;
}

/// Everything a store decodes: [head][n_tokens][head_dim].
inline std::vector<float> decode_all(const CodeStore& store, const KvGeometry& g) {
  const int n = store.n_tokens();
  std::vector<float> out(static_cast<size_t>(n) * g.row());
  for (int h = 0; h < g.n_kv_heads; ++h)
    store.decode(h, 0, n, out.data() + static_cast<int64_t>(h) * n * g.head_dim);
  return out;
}

/// Value of x [n][n_kv_heads][head_dim] at (head, token, channel).
inline float at(const std::vector<float>& x, const KvGeometry& g, int h, int t, int c) {
  return x[(static_cast<size_t>(t) * g.n_kv_heads + h) * g.head_dim + c];
}

/// Squared error relative to the squared values.
inline double nmse(const std::vector<float>& x, const std::vector<float>& decoded,
                   const KvGeometry& g) {
  const int n = static_cast<int>(x.size()) / g.row();
  double error = 0, power = 0;
  for (int h = 0; h < g.n_kv_heads; ++h)
    for (int t = 0; t < n; ++t)
      for (int c = 0; c < g.head_dim; ++c) {
        const double a = at(x, g, h, t, c);
        const double b = decoded[(static_cast<size_t>(h) * n + t) * g.head_dim + c];
        error += (a - b) * (a - b);
        power += a * a;
      }
  return error / power;
}

}  // namespace million::testdata
