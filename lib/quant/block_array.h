// SPDX-License-Identifier: Apache-2.0
// Records of one size in blocks of fixed length. A cache grows by a token at a time for hours: a
// plain vector would double its memory and copy everything at each step of growth.
#pragma once

#include "lib/core/tensor.h"

#include <cstdint>
#include <vector>

namespace million {

inline constexpr int kTokensPerBlock = 128;  ///< waste of the last block: 64 tokens on average

template <class T>
class BlockArray {
 public:
  /// `record` values of T a record; `per_block` records a block.
  BlockArray(int64_t record, int64_t per_block) : record_(record), per_block_(per_block) {}

  int64_t size() const { return size_; }
  int64_t record() const { return record_; }
  /// Record i; records of one block are neighbours in memory.
  T* at(int64_t i) { return blocks_[i / per_block_].data() + i % per_block_ * record_; }
  const T* at(int64_t i) const { return blocks_[i / per_block_].data() + i % per_block_ * record_; }
  /// Number of records from i to the end of its block.
  int64_t run(int64_t i) const { return per_block_ - i % per_block_; }
  /// Adds n records of zeros.
  void grow(int64_t n) {
    size_ += n;
    const int64_t n_blocks = (size_ + per_block_ - 1) / per_block_;
    while (static_cast<int64_t>(blocks_.size()) < n_blocks)
      blocks_.emplace_back(static_cast<size_t>(per_block_ * record_));
  }
  void clear() {
    std::vector<AlignedVector<T>>().swap(blocks_);  // assigning {} would keep the capacity
    size_ = 0;
  }
  /// Bytes allocated, the list of blocks included.
  uint64_t bytes() const {
    uint64_t n = blocks_.capacity() * sizeof(blocks_[0]);
    for (const auto& block : blocks_) n += block.capacity() * sizeof(T);
    return n;
  }

 private:
  int64_t record_, per_block_, size_ = 0;
  std::vector<AlignedVector<T>> blocks_;
};

}  // namespace million
