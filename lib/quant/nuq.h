// SPDX-License-Identifier: Apache-2.0
// Non-uniform quantization of normalized values: 2^bits signposts in [-1, 1] that minimise a
// weighted squared error, and KVQuant's Q-Norm (arXiv 2401.18079, sections 3.3 and 3.6).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace million {

inline constexpr int kMaxNuqLevels = 256;

/// Signposts of one layer and kind. Codes are chosen with `levels`; `decoded` differs from it only
/// under Q-Norm.
struct NuqTable {
  int n = 0;                   ///< 2^bits
  std::vector<float> levels;   ///< [n] ascending
  std::vector<float> decoded;  ///< [n]
  std::vector<float> middles;  ///< [n - 1]

  /// Number of the nearest level, the lowest on ties; 0 for NaN. Counts the middles below u by
  /// halving, without branches that depend on the data.
  uint8_t nearest(float u) const {
    const float* at = middles.data();
    for (int left = n - 1; left > 0;) {
      const int half = (left + 1) / 2;
      at += u > at[half - 1] ? half : 0;
      left -= half;
    }
    return static_cast<uint8_t>(at - middles.data());
  }
  /// To be called after `levels` changed.
  void update_middles() {
    middles.resize(static_cast<size_t>(n - 1));
    for (int i = 0; i + 1 < n; ++i) middles[i] = 0.5f * (levels[i] + levels[i + 1]);
  }
  /// Allocated, beside the object itself.
  uint64_t bytes() const {
    return (levels.capacity() + decoded.capacity() + middles.capacity()) * sizeof(float);
  }
};

/// Weighted histogram of normalized values. Bins keep sums and not counts only, so the mean of any
/// range of bins is exact; the bins merely limit where a boundary between two levels may fall.
class NuqHistogram {
 public:
  NuqHistogram();

  /// Adds a value in [-1, 1] (clamped) with weight w >= 0.
  void add(float u, double w);
  int64_t size() const { return n_; }

  /// The best `n_levels` signposts for the weighted squared error over this histogram: dynamic
  /// programming, exact up to the bins, so without start values or iterations. With Q-Norm the
  /// decoded levels are scaled and shifted so that mean and deviation of the decoded data match the
  /// data's. Deterministic. Source: KVQuant 3.3 (the released code runs Lloyd from k-means++
  /// instead); solver as in Wang and Song, "Ckmeans.1d.dp", 2011, with monotone split points.
  NuqTable solve(int n_levels, bool qnorm) const;

 private:
  struct Bin {
    double w = 0, wu = 0, wuu = 0;  ///< weighted
    double n = 0, u = 0, uu = 0;    ///< plain, for Q-Norm
  };
  std::vector<double> best_levels(int n_levels) const;
  void apply_qnorm(NuqTable* table) const;

  std::vector<Bin> bins_;
  int64_t n_ = 0;
};

}  // namespace million
