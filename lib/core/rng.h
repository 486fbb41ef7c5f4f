// SPDX-License-Identifier: Apache-2.0
// Seeded random numbers whose values do not depend on the standard library: std::*_distribution
// differs between implementations, so the transforms are written out.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

namespace million {

/// SplitMix64 (Steele, Lea, Flood 2014): 64 bits of state, passes BigCrush, one line per step.
class Rng {
 public:
  /// Streams of one seed start at hashed places: at multiples of the step they would be one
  /// sequence shifted by a value.
  explicit Rng(uint64_t seed, uint64_t stream = 0) : state_(seed + mix(stream)) {}

  uint64_t next() { return mix(state_ += 0x9E3779B97F4A7C15ull); }
  /// Uniform in [0, 1) with 53 bits.
  double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }
  /// Uniform in [0, n); n > 0. The modulo bias is below n / 2^64.
  uint64_t below(uint64_t n) { return next() % n; }
  /// Standard normal, Box-Muller.
  double normal() {
    const double u = 1.0 - uniform();
    return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * uniform());
  }

 private:
  static uint64_t mix(uint64_t z) {  // 0 stays 0
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }

  uint64_t state_;
};

}  // namespace million
