// SPDX-License-Identifier: Apache-2.0
#include "lib/quant/nuq.h"

#include "lib/core/error.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace million {
namespace {

constexpr int kBins = 4096;  ///< boundary resolution 1/2048 of the half range

/// Cost of one level for items [i, j): squared error around their weighted mean, from prefix sums.
struct Prefix {
  std::vector<double> w, wu, wuu;

  double cost(int i, int j) const {
    const double weight = w[j] - w[i], sum = wu[j] - wu[i];
    return std::max(0.0, wuu[j] - wuu[i] - sum * sum / weight);
  }
  double mean(int i, int j) const { return (wu[j] - wu[i]) / (w[j] - w[i]); }
};

/// One row of the dynamic program: next[j] = min over i of last[i] + cost(i, j), with split[j] the
/// best i. Best splits never move left as j grows, so halving the range bounds the search.
void relax(const Prefix& prefix, const std::vector<double>& last, int j_low, int j_high, int i_low,
           int i_high, std::vector<double>* next, std::vector<int>* split) {
  if (j_low > j_high) return;
  const int j = (j_low + j_high) / 2;
  double best = std::numeric_limits<double>::infinity();
  int at = i_low;
  for (int i = i_low; i <= std::min(i_high, j - 1); ++i) {
    const double value = last[i] + prefix.cost(i, j);
    if (value < best) best = value, at = i;
  }
  (*next)[j] = best;
  (*split)[j] = at;
  relax(prefix, last, j_low, j - 1, i_low, at, next, split);
  relax(prefix, last, j + 1, j_high, at, i_high, next, split);
}

}  // namespace

NuqHistogram::NuqHistogram() : bins_(kBins) {}

void NuqHistogram::add(float u, double w) {
  const double x = std::clamp(static_cast<double>(u), -1.0, 1.0);
  Bin& bin = bins_[std::min(kBins - 1, static_cast<int>((x + 1.0) * (kBins / 2)))];
  bin.w += w;
  bin.wu += w * x;
  bin.wuu += w * x * x;
  bin.n += 1;
  bin.u += x;
  bin.uu += x * x;
  ++n_;
}

std::vector<double> NuqHistogram::best_levels(int n_levels) const {
  double total = 0;
  for (const Bin& bin : bins_) total += bin.w;
  const bool weighted = total > 0;  // all weights zero: count every value once
  Prefix prefix{{0.0}, {0.0}, {0.0}};
  for (const Bin& bin : bins_) {
    const double w = weighted ? bin.w : bin.n;
    if (w <= 0) continue;
    prefix.w.push_back(prefix.w.back() + w);
    prefix.wu.push_back(prefix.wu.back() + (weighted ? bin.wu : bin.u));
    prefix.wuu.push_back(prefix.wuu.back() + (weighted ? bin.wuu : bin.uu));
  }
  const int n = static_cast<int>(prefix.w.size()) - 1;
  MILLION_ASSERT(n > 0);
  const int used = std::min(n, n_levels);

  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  std::vector<double> last(n + 1, kInfinity), next(n + 1, kInfinity);
  std::vector<std::vector<int>> split(used + 1, std::vector<int>(n + 1, 0));
  last[0] = 0;
  for (int k = 1; k <= used; ++k) {
    std::fill(next.begin(), next.end(), kInfinity);
    relax(prefix, last, k, n, k - 1, n - 1, &next, &split[k]);
    std::swap(last, next);
  }
  std::vector<double> levels(n_levels);
  for (int k = used, j = n; k >= 1; --k) {
    const int i = split[k][j];
    levels[k - 1] = prefix.mean(i, j);
    j = i;
  }
  // Fewer distinct values than levels: the rest repeats the last and is never chosen.
  for (int k = used; k < n_levels; ++k) levels[k] = levels[used - 1];
  // Means of cells with next to no weight suffer from cancellation; the order must hold anyway.
  for (double& level : levels) level = std::clamp(level, -1.0, 1.0);
  std::sort(levels.begin(), levels.end());
  return levels;
}

void NuqHistogram::apply_qnorm(NuqTable* table) const {
  double n = 0, u = 0, uu = 0, q = 0, qq = 0;
  for (const Bin& bin : bins_) {
    if (bin.n == 0) continue;
    const double level = table->levels[table->nearest(static_cast<float>(bin.u / bin.n))];
    n += bin.n;
    u += bin.u;
    uu += bin.uu;
    q += bin.n * level;
    qq += bin.n * level * level;
  }
  const double m1 = u / n, s1 = std::sqrt(std::max(0.0, uu / n - m1 * m1));
  const double m2 = q / n, s2 = std::sqrt(std::max(0.0, qq / n - m2 * m2));
  if (s2 <= 0) return;
  for (int i = 0; i < table->n; ++i)
    table->decoded[i] = static_cast<float>((table->levels[i] - m2) * (s1 / s2) + m1);
}

NuqTable NuqHistogram::solve(int n_levels, bool qnorm) const {
  MILLION_ASSERT(n_levels >= 1 && n_levels <= kMaxNuqLevels);
  const std::vector<double> levels = best_levels(n_levels);
  NuqTable table;
  table.n = n_levels;
  table.levels.assign(levels.begin(), levels.end());
  table.decoded = table.levels;
  table.update_middles();
  if (qnorm) apply_qnorm(&table);
  return table;
}

}  // namespace million
