// SPDX-License-Identifier: Apache-2.0
// Every level must be the mean of its cell, and cell borders lie midway between levels. Lloyd's
// iteration reaches that slowly at 8 bits (steps shrink like 1 / levels^2), so the equations are
// solved by Newton's method: cell i depends on levels i - 1, i and i + 1 only, a tridiagonal
// system. The density is log-concave, so the solution is the only one and it is the minimum.
#include "lib/quant/lloyd_max.h"

#include "lib/core/error.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace million {
namespace {

/// Gauss-Legendre on [-1, 1], 8 points: half of the places and their weights.
constexpr std::array<double, 4> kPlaces = {0.1834346424956498, 0.5255324099163290,
                                           0.7966664774136267, 0.9602898564975363};
constexpr std::array<double, 4> kWeights = {0.3626837833783620, 0.3137066458778873,
                                            0.2223810344533745, 0.1012285362903763};
constexpr double kTailSigmas = 14.0;  ///< mass beyond is below 1e-40
constexpr int kStartGrid = 8192;
constexpr int kMaxSteps = 100;

struct Sphere {
  int d;
  double density(double x) const { return std::pow(std::max(0.0, 1.0 - x * x), 0.5 * (d - 3)); }
};

struct Cell {
  double mass = 0, mean = 0;
};

Cell integrate(const Sphere& s, double low, double high) {
  const double limit = std::min(1.0, kTailSigmas / std::sqrt(static_cast<double>(s.d)));
  low = std::clamp(low, -limit, limit), high = std::clamp(high, -limit, limit);
  const int pieces = 1 + static_cast<int>((high - low) * 2.0 * std::sqrt(static_cast<double>(s.d)));
  const double half = 0.5 * (high - low) / pieces;
  double mass = 0, moment = 0;
  for (int p = 0; p < pieces; ++p) {
    const double middle = low + (2 * p + 1) * half;
    for (size_t i = 0; i < kPlaces.size(); ++i)
      for (const double x : {middle - half * kPlaces[i], middle + half * kPlaces[i]}) {
        const double f = kWeights[i] * half * s.density(x);
        mass += f;
        moment += f * x;
      }
  }
  return {mass, mass > 0 ? moment / mass : 0.5 * (low + high)};
}

/// Quantiles of density^(1/3), the best level density in the limit of many levels.
std::vector<double> start_levels(const Sphere& s, int n) {
  const double limit = std::min(1.0, kTailSigmas / std::sqrt(static_cast<double>(s.d)));
  std::vector<double> sum(kStartGrid + 1, 0.0);
  const auto place = [&](double i) { return limit * (2.0 * i / kStartGrid - 1.0); };
  for (int i = 0; i < kStartGrid; ++i) sum[i + 1] = sum[i] + std::cbrt(s.density(place(i + 0.5)));
  std::vector<double> levels;
  for (int k = 0; k < n; ++k) {
    const double target = sum.back() * (k + 0.5) / n;
    const int i = static_cast<int>(std::upper_bound(sum.begin(), sum.end(), target) - sum.begin());
    levels.push_back(place(i - 1 + (target - sum[i - 1]) / (sum[i] - sum[i - 1])));
  }
  return levels;
}

/// One Newton step of levels - means(levels) = 0; the tridiagonal system by elimination.
std::vector<double> newton_step(const Sphere& s, const std::vector<double>& c) {
  const int n = static_cast<int>(c.size());
  std::vector<double> upper(n), step(n);
  for (int i = 0; i < n; ++i) {
    const double low = i > 0 ? 0.5 * (c[i - 1] + c[i]) : -1.0;
    const double high = i + 1 < n ? 0.5 * (c[i] + c[i + 1]) : 1.0;
    const Cell cell = integrate(s, low, high);
    // Half the change of the mean with each border: a border moves half as far as its levels.
    const double by_low = i > 0 ? 0.5 * s.density(low) * (cell.mean - low) / cell.mass : 0.0;
    const double by_high = i + 1 < n ? 0.5 * s.density(high) * (high - cell.mean) / cell.mass : 0.0;
    const double above = i > 0 ? upper[i - 1] : 0.0, before = i > 0 ? step[i - 1] : 0.0;
    const double pivot = 1.0 - by_low - by_high + by_low * above;
    upper[i] = -by_high / pivot;
    step[i] = (cell.mean - c[i] + by_low * before) / pivot;
  }
  for (int i = n - 2; i >= 0; --i) step[i] -= upper[i] * step[i + 1];
  return step;
}

}  // namespace

std::vector<double> sphere_levels(int d, int bits) {
  MILLION_ASSERT(d >= 4 && bits >= 0 && bits <= 8);
  const Sphere s{d};
  const int n = 1 << bits;
  if (n == 1) return {0.0};
  std::vector<double> c = start_levels(s, n);
  for (int iteration = 0; iteration < kMaxSteps; ++iteration) {
    const std::vector<double> step = newton_step(s, c);
    double scale = 1.0, largest = 0.0;
    std::vector<double> next(n);
    const auto moved = [&] {
      for (int i = 0; i < n; ++i) next[i] = c[i] + scale * step[i];
      return std::is_sorted(next.begin(), next.end()) && next.front() > -1.0 && next.back() < 1.0;
    };
    while (!moved() && scale > 1e-6) scale *= 0.5;
    for (int i = 0; i < n; ++i) largest = std::max(largest, std::abs(scale * step[i]));
    c = next;
    if (largest < 1e-14) break;
  }
  for (int i = 0; i < n / 2; ++i) {  // the density is even; so are the levels, to the last bit
    const double level = 0.5 * (c[n - 1 - i] - c[i]);
    c[i] = -level;
    c[n - 1 - i] = level;
  }
  return c;
}

}  // namespace million
