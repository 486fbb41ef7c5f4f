// SPDX-License-Identifier: Apache-2.0
// Exact rows of one layer and kind as f16: sinks, the recent window, or a whole fp16 cache. Kept in
// segments so that it grows without moving and without doubling, and shrinks from the front.
#pragma once

#include "lib/core/tensor.h"

#include <cstdint>
#include <deque>

namespace million {

class ExactRun {
 public:
  /// Segments of `segment_tokens` tokens: [n_kv_heads][segment_tokens][head_dim] f16. Segments
  /// start at multiples of segment_tokens of the rows ever appended, so what is allocated and where
  /// pieces end depends on how many rows came and went and not on the calls.
  ExactRun(int n_kv_heads, int head_dim, int segment_tokens);

  int64_t size() const { return size_; }
  /// Appends n rows x [n][n_kv_heads][head_dim], rounded to f16.
  void append(const float* x, int64_t n);
  void drop_front(int64_t n);
  uint64_t bytes() const;  ///< allocated

  /// Row t of one head, [head_dim] f16; *n gets the number of rows that follow it without a gap,
  /// itself included.
  const uint16_t* at(int head, int64_t t, int64_t* n) const;
  /// Rows [begin, end) of one head as f32 [end - begin][head_dim].
  void read(int head, int64_t begin, int64_t end, float* out) const;

 private:
  using Segment = AlignedVector<uint16_t>;
  /// A segment grows by so many tokens at a time, so that a long one wastes little.
  static constexpr int64_t kStepTokens = 128;

  int64_t tokens_of(const Segment& segment) const;  ///< it has room for
  void widen(Segment& segment, int64_t tokens) const;

  int n_kv_heads_, head_dim_, segment_tokens_;
  int64_t front_ = 0;  ///< dropped rows of the first segment
  int64_t size_ = 0;
  std::deque<Segment> segments_;
};

}  // namespace million
