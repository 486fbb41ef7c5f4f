// SPDX-License-Identifier: Apache-2.0
// Shared by the tests of kernels: levels, random data, a group of query heads, errors.
#pragma once

#include "kernels/ops.h"

#include <cmath>
#include <cstddef>
#include <random>
#include <vector>

namespace million {

/// Tables of the levels that this CPU has.
inline std::vector<const Ops*> levels() {
  std::vector<const Ops*> found;
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512})
    if (const Ops* table = ops_for(isa)) found.push_back(table);
  return found;
}

inline std::mt19937 g_random(11);

inline std::vector<float> normal(std::size_t n, float sigma = 1.0f) {
  std::vector<float> x(n);
  std::normal_distribution<float> draw(0.0f, sigma);
  for (float& value : x) value = draw(g_random);
  return x;
}

inline double relative_norm(const std::vector<double>& got, const std::vector<double>& want) {
  double error = 0.0, norm = 0.0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    error += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  return norm > 0.0 ? std::sqrt(error / norm) : std::sqrt(error);
}

/// State and accumulators of a group, misaligned by one float.
struct Group {
  int n_group, d;
  std::vector<SoftmaxState> state;
  std::vector<float> storage;
  Group(int group, int head_dim)
      : n_group(group),
        d(head_dim),
        state(std::size_t(group)),
        storage(std::size_t(group * head_dim) + 2, 0.0f) {
    storage.front() = storage.back() = 777.0f;
  }
  float* acc() { return storage.data() + 1; }
  bool intact() const { return storage.front() == 777.0f && storage.back() == 777.0f; }
  std::vector<double> out() {
    std::vector<double> y(storage.size() - 2);
    for (std::size_t i = 0; i < y.size(); ++i)
      y[i] = double(acc()[i]) / state[i / std::size_t(d)].sum;
    return y;
  }
  double lse_error(const std::vector<double>& want) const {
    double worst = 0.0;
    for (std::size_t g = 0; g < want.size(); ++g)
      worst = std::max(worst, std::fabs(state[g].max + std::log(double(state[g].sum)) - want[g]));
    return worst;
  }
};

}  // namespace million
