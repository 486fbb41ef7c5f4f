// SPDX-License-Identifier: Apache-2.0
#include "lib/analysis/channel_stats.h"

#include "lib/core/error.h"

#include <Eigen/Dense>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>

namespace million {
namespace {

using RowMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Median of `values` (mean of the middle two); reorders them.
double median_of(std::vector<float>& values) {
  const std::size_t half = values.size() / 2;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(half);
  std::nth_element(values.begin(), middle, values.end());
  const double upper = *middle;
  if (values.size() % 2) return upper;
  return 0.5 * (upper + *std::max_element(values.begin(), middle));
}

/// Channels of the largest energy, largest first.
std::vector<int> top_of(const std::vector<double>& energy, int top) {
  std::vector<int> order(energy.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return energy[static_cast<std::size_t>(a)] > energy[static_cast<std::size_t>(b)];
  });
  order.resize(std::min(order.size(), static_cast<std::size_t>(top)));
  return order;
}

std::vector<double> channel_energy(std::span<const float> rows, std::size_t d) {
  std::vector<double> energy(d, 0.0);
  for (std::size_t i = 0; i < rows.size(); ++i)
    energy[i % d] += static_cast<double>(rows[i]) * rows[i];
  return energy;
}

/// Mean Jaccard of the top sets over all pairs of contiguous shards; 1 with fewer than two.
double stability_of(std::span<const float> rows, std::size_t d, const StatsOptions& o) {
  const std::size_t n = rows.size() / d;
  const std::size_t shards = std::min(static_cast<std::size_t>(o.shards), n);
  std::vector<std::vector<int>> tops;
  for (std::size_t s = 0; s < shards; ++s) {
    const std::size_t begin = n * s / shards, end = n * (s + 1) / shards;
    tops.push_back(top_of(channel_energy(rows.subspan(begin * d, (end - begin) * d), d), o.top));
  }
  double sum = 0.0;
  int pairs = 0;
  for (std::size_t a = 0; a < tops.size(); ++a)
    for (std::size_t b = a + 1; b < tops.size(); ++b, ++pairs) sum += jaccard(tops[a], tops[b]);
  return pairs > 0 ? sum / pairs : 1.0;
}

/// Shares beyond k sd for the values of one channel (first = channel, step = d) or of all (0, 1).
void count_outliers(std::span<const float> rows, std::size_t first, std::size_t step, double median,
                    const StatsOptions& o, ValueStats& stats) {
  const double mean = stats.moments.mean(), sd = stats.moments.sd();
  std::vector<int64_t> beyond(o.sigmas.size(), 0);
  int64_t beyond_median = 0;
  double sum_abs = 0.0;
  for (std::size_t i = first; i < rows.size(); i += step) {
    const double away = std::abs(rows[i] - mean), magnitude = std::abs(rows[i]);
    for (std::size_t k = 0; k < beyond.size(); ++k) beyond[k] += away > o.sigmas[k] * sd;
    beyond_median += magnitude > o.median_factor * median;
    sum_abs += magnitude;
  }
  const double n = static_cast<double>(stats.moments.count());
  for (int64_t count : beyond) stats.beyond_sigma.push_back(static_cast<double>(count) / n);
  stats.beyond_median = static_cast<double>(beyond_median) / n;
  stats.mean_abs = sum_abs / n;
}

std::vector<double> norms_by_bin(std::span<const float> rows, std::size_t d, int context) {
  const std::size_t n = rows.size() / d;
  const auto window = context > 0 ? static_cast<std::size_t>(context) : n;
  const auto bounds = norm_bins(static_cast<int>(window));
  std::vector<double> sum(bounds.size() - 1, 0.0);
  std::vector<int64_t> count(sum.size(), 0);
  for (std::size_t t = 0; t < n; ++t) {
    double norm2 = 0.0;
    for (float x : rows.subspan(t * d, d)) norm2 += static_cast<double>(x) * x;
    const auto bin = static_cast<std::size_t>(
        std::upper_bound(bounds.begin(), bounds.end(), static_cast<int>(t % window)) -
        bounds.begin() - 1);
    sum[bin] += std::sqrt(norm2);
    ++count[bin];
  }
  for (std::size_t b = 0; b < sum.size(); ++b)
    sum[b] = count[b] > 0 ? sum[b] / static_cast<double>(count[b]) : 0.0;
  return sum;
}

/// Shares of variance along the principal axes, descending; all zero for constant rows.
std::vector<double> spectrum_of(std::span<const float> rows, std::size_t d) {
  const auto n = static_cast<Eigen::Index>(rows.size() / d);
  const Eigen::Map<const RowMatrix> x(rows.data(), n, static_cast<Eigen::Index>(d));
  const Eigen::RowVectorXd mean = x.cast<double>().colwise().mean();
  Eigen::MatrixXd covariance =
      Eigen::MatrixXd::Zero(static_cast<Eigen::Index>(d), static_cast<Eigen::Index>(d));
  constexpr Eigen::Index kBlock = 1024;  // rows turned to double at a time
  for (Eigen::Index at = 0; at < n; at += kBlock) {
    const Eigen::MatrixXd centred =
        x.middleRows(at, std::min(kBlock, n - at)).cast<double>().rowwise() - mean;
    covariance.noalias() += centred.transpose() * centred;
  }
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(covariance, Eigen::EigenvaluesOnly);
  const Eigen::VectorXd values = solver.eigenvalues().cwiseMax(0.0);
  const double total = values.sum();
  std::vector<double> out(d, 0.0);
  for (std::size_t i = 0; i < d && total > 0.0; ++i)
    out[i] = values[static_cast<Eigen::Index>(d - 1 - i)] / total;
  return out;
}

void check_finite(std::span<const float> rows, std::size_t d) {
  for (std::size_t i = 0; i < rows.size(); ++i)
    MILLION_REQUIRE(std::isfinite(rows[i]), ErrorCode::kBadInput,
                    "token {} channel {} is {}; the rows cannot be analysed", i / d, i % d,
                    rows[i]);
}

}  // namespace

void Moments::add(double x) {
  const auto before = static_cast<double>(n_);
  if (n_++ == 0) min_ = max_ = x;
  min_ = std::min(min_, x);
  max_ = std::max(max_, x);
  const auto n = static_cast<double>(n_);
  const double delta = x - mean_, step = delta / n, term = delta * step * before;
  mean_ += step;
  m4_ += term * step * step * (n * n - 3.0 * n + 3.0) + 6.0 * step * step * m2_ - 4.0 * step * m3_;
  m3_ += term * step * (n - 2.0) - 3.0 * step * m2_;
  m2_ += term;
}

Moments& Moments::operator+=(const Moments& o) {
  if (o.n_ == 0) return *this;
  if (n_ == 0) return *this = o;
  const auto na = static_cast<double>(n_), nb = static_cast<double>(o.n_);
  const double n = na + nb, delta = o.mean_ - mean_, delta2 = delta * delta;
  m4_ += o.m4_ + delta2 * delta2 * na * nb * (na * na - na * nb + nb * nb) / (n * n * n) +
         6.0 * delta2 * (na * na * o.m2_ + nb * nb * m2_) / (n * n) +
         4.0 * delta * (na * o.m3_ - nb * m3_) / n;
  m3_ += o.m3_ + delta2 * delta * na * nb * (na - nb) / (n * n) +
         3.0 * delta * (na * o.m2_ - nb * m2_) / n;
  m2_ += o.m2_ + delta2 * na * nb / n;
  mean_ += delta * nb / n;
  min_ = std::min(min_, o.min_);
  max_ = std::max(max_, o.max_);
  n_ += o.n_;
  return *this;
}

double Moments::sd() const { return n_ > 0 ? std::sqrt(m2_ / static_cast<double>(n_)) : 0.0; }

double Moments::kurtosis() const {
  return m2_ > 0.0 ? static_cast<double>(n_) * m4_ / (m2_ * m2_) : 0.0;
}

double Moments::energy() const {
  return n_ > 0 ? m2_ / static_cast<double>(n_) + mean_ * mean_ : 0.0;
}

int HeadStats::components_for(double share) const {
  double sum = 0.0;
  for (std::size_t i = 0; i < spectrum.size(); ++i)
    if ((sum += spectrum[i]) >= share) return static_cast<int>(i) + 1;
  return static_cast<int>(spectrum.size());
}

std::vector<int> norm_bins(int context) {
  std::vector<int> bounds = {0};
  for (int next = 1; next < context; next += next < 4 ? 1 : next) bounds.push_back(next);
  bounds.push_back(std::max(context, 1));
  return bounds;
}

double jaccard(const std::vector<int>& a, const std::vector<int>& b) {
  std::vector<int> x = a, y = b, both;
  std::sort(x.begin(), x.end());
  std::sort(y.begin(), y.end());
  std::set_intersection(x.begin(), x.end(), y.begin(), y.end(), std::back_inserter(both));
  const std::size_t all = x.size() + y.size() - both.size();
  return all > 0 ? static_cast<double>(both.size()) / static_cast<double>(all) : 1.0;
}

HeadStats head_stats(std::span<const float> rows, int head_dim, const StatsOptions& o) {
  const auto d = static_cast<std::size_t>(head_dim);
  MILLION_ASSERT(d > 0 && !rows.empty() && rows.size() % d == 0 && o.top > 0 && o.shards > 0);
  check_finite(rows, d);
  HeadStats out;
  out.channels.resize(d);
  for (std::size_t i = 0; i < rows.size(); ++i) out.channels[i % d].moments.add(rows[i]);
  for (const ValueStats& channel : out.channels) out.all.moments += channel.moments;

  std::vector<float> magnitudes(rows.size());
  std::transform(rows.begin(), rows.end(), magnitudes.begin(), [](float x) { return std::abs(x); });
  const double median = out.all.median_abs = median_of(magnitudes);
  count_outliers(rows, 0, 1, median, o, out.all);
  std::vector<float> column;
  std::vector<float> ratios;
  for (std::size_t c = 0; c < d; ++c) {
    ValueStats& channel = out.channels[c];
    count_outliers(rows, c, d, median, o, channel);
    column.clear();
    for (std::size_t i = c; i < rows.size(); i += d) column.push_back(std::abs(rows[i]));
    channel.median_abs = median_of(column);
    out.outlier_channels += channel.mean_abs > o.median_factor * median;
    const double sd = channel.moments.sd();
    ratios.push_back(sd > 0 ? static_cast<float>(std::abs(channel.moments.mean()) / sd) : 0.0f);
  }
  out.mean_to_sd = median_of(ratios);

  const auto energy = channel_energy(rows, d);
  out.top_channels = top_of(energy, o.top);
  const double total = std::accumulate(energy.begin(), energy.end(), 0.0);
  for (int c : out.top_channels)
    out.top_energy += total > 0 ? energy[static_cast<std::size_t>(c)] / total : 0.0;
  out.shard_stability = stability_of(rows, d, o);
  out.norm_by_bin = norms_by_bin(rows, d, o.context);
  out.spectrum = spectrum_of(rows, d);
  double entropy = 0.0;
  for (double share : out.spectrum)
    if (share > 0.0) entropy -= share * std::log(share);
  out.effective_rank = std::exp(entropy);
  return out;
}

}  // namespace million
