// SPDX-License-Identifier: Apache-2.0
// Outliers of KVQuant: which values of a row are kept exactly, and the sparse rows that keep them.
#pragma once

#include "lib/quant/block_array.h"

#include <cstdint>
#include <span>
#include <vector>

namespace million {

/// One exact value of a row.
struct OutlierEntry {
  uint16_t value;  ///< f16
  uint16_t index;  ///< place in the row
};

/// Compressed sparse rows that grow by a row per token: 32 bits an entry, 32 bits a row.
class SparseRows {
 public:
  SparseRows() : entries_(1, kEntriesPerBlock), ends_(1, kTokensPerBlock) {}

  /// Appends one row; entries ascend by index.
  void append(std::span<const OutlierEntry> row);
  /// Calls f(entry) for the entries of row t.
  template <class F>
  void for_each(int64_t t, const F& f) const {
    for (int64_t i = t > 0 ? *ends_.at(t - 1) : 0; i < *ends_.at(t); ++i) f(*entries_.at(i));
  }
  uint64_t bytes() const { return entries_.bytes() + ends_.bytes(); }
  void clear() { entries_.clear(), ends_.clear(); }

 private:
  static constexpr int kEntriesPerBlock = 512;
  BlockArray<OutlierEntry> entries_;
  BlockArray<uint32_t> ends_;  ///< [n_rows] one past the row's last entry
};

/// Marks the n_side lowest and the n_side highest of x [n]; equal values are ranked by index, so
/// the number of marks never depends on ties. outlier [n] is 1 where marked. scratch [n].
void mark_by_rank(const float* x, int n, int n_side, std::vector<int>* scratch, uint8_t* outlier);

/// The q-quantile of values, 0 <= q <= 1, linear between neighbours (numpy's default). Reorders
/// values.
float quantile(std::span<float> values, double q);

}  // namespace million
