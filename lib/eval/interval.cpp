// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/interval.h"

#include "lib/core/error.h"
#include "lib/core/rng.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace million {

Interval wilson_interval(int64_t hits, int64_t n, double z) {
  MILLION_ASSERT(hits >= 0 && hits <= n);
  if (n == 0) return {0.0, 1.0};
  const auto count = static_cast<double>(n);
  const double p = static_cast<double>(hits) / count;
  const double shrink = 1.0 + z * z / count;
  const double center = (p + z * z / (2.0 * count)) / shrink;
  const double half = z / shrink * std::sqrt(p * (1.0 - p) / count + z * z / (4.0 * count * count));
  // At 0 and n hits one end is exact; rounding would leave it a hair beside.
  return {hits == 0 ? 0.0 : center - half, hits == n ? 1.0 : center + half};
}

double mean_stderr(std::span<const double> values) {
  if (values.size() < 2) return std::numeric_limits<double>::quiet_NaN();
  const auto n = static_cast<double>(values.size());
  double sum = 0.0, square = 0.0;
  for (const double v : values) sum += v;
  for (const double v : values) square += (v - sum / n) * (v - sum / n);
  return std::sqrt(square / (n - 1.0) / n);
}

Interval bootstrap_interval(std::span<const double> values, uint64_t seed, int draws,
                            double level) {
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  MILLION_ASSERT(draws > 0 && level > 0.0 && level < 1.0);
  if (values.empty()) return {kNaN, kNaN};
  Rng rng(seed);
  std::vector<double> means(static_cast<size_t>(draws));
  for (double& mean : means) {
    double sum = 0.0;
    for (size_t i = 0; i < values.size(); ++i) sum += values[rng.below(values.size())];
    mean = sum / static_cast<double>(values.size());
  }
  std::sort(means.begin(), means.end());
  const auto at = [&](double q) {
    const double place = q * static_cast<double>(means.size() - 1);
    return means[static_cast<size_t>(std::lround(place))];
  };
  return {at((1.0 - level) / 2.0), at((1.0 + level) / 2.0)};
}

}  // namespace million
