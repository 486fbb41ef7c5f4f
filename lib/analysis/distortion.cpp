// SPDX-License-Identifier: Apache-2.0
#include "lib/analysis/distortion.h"

#include "kernels/ops.h"
#include "lib/core/error.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace million {
namespace {

/// Scaled scores of one query against tokens [0, n).
void scores_of(const float* q, const float* k, int n, int d, std::vector<double>& out) {
  const Ops& table = ops();
  const double scale = 1.0 / std::sqrt(static_cast<double>(d));
  out.resize(static_cast<std::size_t>(n));
  for (int t = 0; t < n; ++t)
    out[static_cast<std::size_t>(t)] =
        scale * table.dot(q, k + static_cast<std::size_t>(t) * static_cast<std::size_t>(d),
                          static_cast<std::size_t>(d));
}

/// softmax(s) V in double.
void output_of(const std::vector<double>& s, const float* v, int d, std::vector<double>& out) {
  const double max = *std::max_element(s.begin(), s.end());
  double sum = 0.0;
  out.assign(static_cast<std::size_t>(d), 0.0);
  for (std::size_t t = 0; t < s.size(); ++t) {
    const double weight = std::exp(s[t] - max);
    sum += weight;
    const float* row = v + t * static_cast<std::size_t>(d);
    for (std::size_t c = 0; c < out.size(); ++c) out[c] += weight * row[c];
  }
  for (double& x : out) x /= sum;
}

/// Indices of the k largest scores, sorted by index; ties go to the lower index.
std::vector<int> top_of(const std::vector<double>& s, int k) {
  std::vector<int> order(s.size());
  std::iota(order.begin(), order.end(), 0);
  std::nth_element(order.begin(), order.begin() + (k - 1), order.end(), [&](int a, int b) {
    const double sa = s[static_cast<std::size_t>(a)], sb = s[static_cast<std::size_t>(b)];
    return sa > sb || (sa == sb && a < b);
  });
  order.resize(static_cast<std::size_t>(k));
  std::sort(order.begin(), order.end());
  return order;
}

double overlap_of(const std::vector<double>& exact, const std::vector<double>& decoded, int top) {
  const int k = std::min(top, static_cast<int>(exact.size()));
  const auto a = top_of(exact, k), b = top_of(decoded, k);
  std::vector<int> both;
  std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
  return static_cast<double>(both.size()) / k;
}

}  // namespace

SquaredError& SquaredError::operator+=(const SquaredError& other) {
  error2 += other.error2;
  norm2 += other.norm2;
  return *this;
}

double SquaredError::nmse() const {
  if (error2 == 0.0) return 0.0;
  return norm2 > 0.0 ? error2 / norm2 : std::numeric_limits<double>::infinity();
}

double SquaredError::sqnr_db() const { return -10.0 * std::log10(nmse()); }

double SquaredError::relative() const { return std::sqrt(nmse()); }

SquaredError squared_error(std::span<const float> exact, std::span<const float> decoded) {
  MILLION_ASSERT(exact.size() == decoded.size());
  SquaredError sum;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    const double x = exact[i], difference = x - decoded[i];
    sum.error2 += difference * difference;
    sum.norm2 += x * x;
  }
  return sum;
}

AttentionError& AttentionError::operator+=(const AttentionError& other) {
  out += other.out;
  score2 += other.score2;
  n_scores += other.n_scores;
  overlap += other.overlap;
  n_queries += other.n_queries;
  return *this;
}

double AttentionError::score_error() const {
  return n_scores > 0 ? std::sqrt(score2 / static_cast<double>(n_scores)) : 0.0;
}

double AttentionError::top_overlap() const {
  return n_queries > 0 ? overlap / static_cast<double>(n_queries) : 1.0;
}

AttentionError attention_error(const AttentionErrorArgs& a) {
  MILLION_ASSERT(a.top > 0 && a.head_dim > 0);
  AttentionError sum;
  std::vector<double> exact, decoded, out_exact, out_decoded;
  for (int i = 0; i < a.n_queries; ++i) {
    const int n = a.positions[i] + 1;
    MILLION_ASSERT(n > 0 && n <= a.n_tokens);
    const float* q = a.q + static_cast<std::size_t>(i) * static_cast<std::size_t>(a.head_dim);
    scores_of(q, a.k_exact, n, a.head_dim, exact);
    scores_of(q, a.k, n, a.head_dim, decoded);
    output_of(exact, a.v_exact, a.head_dim, out_exact);
    output_of(decoded, a.v, a.head_dim, out_decoded);
    for (std::size_t c = 0; c < out_exact.size(); ++c) {
      const double difference = out_exact[c] - out_decoded[c];
      sum.out.error2 += difference * difference;
      sum.out.norm2 += out_exact[c] * out_exact[c];
    }
    double mean = 0.0, square = 0.0;
    for (std::size_t t = 0; t < exact.size(); ++t) mean += decoded[t] - exact[t];
    mean /= n;
    for (std::size_t t = 0; t < exact.size(); ++t) {
      const double difference = decoded[t] - exact[t] - mean;
      square += difference * difference;
    }
    sum.score2 += square;
    sum.n_scores += n;
    sum.overlap += overlap_of(exact, decoded, a.top);
    ++sum.n_queries;
  }
  return sum;
}

}  // namespace million
