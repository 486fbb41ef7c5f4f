// SPDX-License-Identifier: Apache-2.0
#include "lib/quant/outliers.h"

#include "lib/core/error.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace million {

void SparseRows::append(std::span<const OutlierEntry> row) {
  const int64_t first = entries_.size(), n = static_cast<int64_t>(row.size());
  MILLION_REQUIRE(first + n <= std::numeric_limits<uint32_t>::max(), ErrorCode::kNoResources,
                  "kvquant: a layer holds {} outliers, the most that 32-bit row pointers reach; "
                  "use a shorter context or a smaller outlier fraction",
                  first);
  entries_.grow(n);
  for (int64_t i = 0; i < n; ++i) *entries_.at(first + i) = row[i];
  ends_.grow(1);
  *ends_.at(ends_.size() - 1) = static_cast<uint32_t>(first + n);
}

void mark_by_rank(const float* x, int n, int n_side, std::vector<int>* scratch, uint8_t* outlier) {
  std::fill(outlier, outlier + n, uint8_t{0});
  if (n_side == 0) return;
  std::vector<int>& order = *scratch;
  order.resize(n);
  std::iota(order.begin(), order.end(), 0);
  const auto less = [x](int a, int b) { return x[a] < x[b] || (x[a] == x[b] && a < b); };
  std::nth_element(order.begin(), order.begin() + n_side, order.end(), less);
  std::nth_element(order.begin() + n_side, order.end() - n_side, order.end(), less);
  for (int i = 0; i < n_side; ++i) outlier[order[i]] = outlier[order[n - 1 - i]] = 1;
}

float quantile(std::span<float> values, double q) {
  MILLION_ASSERT(!values.empty() && q >= 0.0 && q <= 1.0);
  const double at = q * static_cast<double>(values.size() - 1);
  const size_t low = static_cast<size_t>(at);
  std::nth_element(values.begin(), values.begin() + low, values.end());
  const float a = values[low];
  if (low + 1 >= values.size()) return a;
  const float b = *std::min_element(values.begin() + low + 1, values.end());
  return static_cast<float>(a + (at - static_cast<double>(low)) * (static_cast<double>(b) - a));
}

}  // namespace million
