// SPDX-License-Identifier: Apache-2.0
// What lies in the rows of one head: range and moments per channel, outliers, the channels that
// carry the magnitude and whether they stay the same along the text, norms by position (attention
// sinks), spectrum.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace million {

/// Streaming central moments up to the fourth; two streams merge exactly. Source: Pebay, "Formulas
/// for robust, one-pass parallel computation of covariances and arbitrary-order statistical
/// moments", Sandia report SAND2008-6212, 2008.
class Moments {
 public:
  void add(double x);
  Moments& operator+=(const Moments& other);

  int64_t count() const { return n_; }
  double min() const { return min_; }
  double max() const { return max_; }
  double mean() const { return mean_; }
  double sd() const;        ///< of the population (divides by n)
  double kurtosis() const;  ///< m4 / m2^2: 3 for a normal distribution; 0 when all values are equal
  double energy() const;    ///< mean of x^2

 private:
  int64_t n_ = 0;
  double mean_ = 0.0, m2_ = 0.0, m3_ = 0.0, m4_ = 0.0;
  double min_ = 0.0, max_ = 0.0;
};

/// Statistics of one set of values: a channel, or all channels of a head.
struct ValueStats {
  Moments moments;
  double mean_abs = 0.0;
  double median_abs = 0.0;
  std::vector<double> beyond_sigma;  ///< share with |x - mean| > k sd of this set, per k
  double beyond_median = 0.0;        ///< share with |x| > factor * median |x| of the head
};

struct StatsOptions {
  std::vector<double> sigmas = {3.0, 4.0, 6.0};
  double median_factor = 5.0;
  int top = 8;      ///< channels in the top list
  int shards = 2;   ///< contiguous parts of the text for the stability of the top list
  int context = 0;  ///< window length: row t stands at position t % context; 0 = one window
};

struct HeadStats {
  ValueStats all;                    ///< the values of all channels together
  std::vector<ValueStats> channels;  ///< [head_dim]
  std::vector<int> top_channels;     ///< largest energy first, ties to the lower index
  double top_energy = 0.0;           ///< share of the energy in the top channels
  double shard_stability = 1.0;      ///< mean Jaccard of the top sets over all pairs of shards
  int outlier_channels = 0;          ///< channels with mean |x| > factor * median |x| of the head
  double mean_to_sd = 0.0;           ///< median over channels of |mean| / sd; RoPE removes means
  std::vector<double> norm_by_bin;   ///< mean |row| per position bin of norm_bins()
  std::vector<double> spectrum;      ///< eigenvalues of the covariance as shares, descending
  double effective_rank = 0.0;       ///< exp of the entropy of `spectrum`
  /// Leading components that hold `share` of the variance.
  int components_for(double share) const;
};

/// Bounds of the position bins of a window: 0, 1, 2, 3, 4, 8, 16 ... context; bin b is
/// [bound b, bound b + 1).
std::vector<int> norm_bins(int context);

/// Statistics of rows [n][head_dim] in token order. n >= 1; Error(kBadInput) on NaN or Inf, naming
/// token and channel. Thread-safe.
HeadStats head_stats(std::span<const float> rows, int head_dim, const StatsOptions& options);

/// |a intersect b| / |a union b|; 1 for two empty sets.
double jaccard(const std::vector<int>& a, const std::vector<int>& b);

}  // namespace million
