// SPDX-License-Identifier: Apache-2.0
// Exact rows of one layer as f16: sinks, the recent window, or a whole fp16 cache. Kept in segments
// so that it grows without moving and without doubling, and shrinks from the front.
#pragma once

#include "lib/core/tensor.h"

#include <cstdint>
#include <deque>
#include <functional>

namespace million {

class ExactRun {
 public:
  /// Segments of `segment_tokens` tokens: [K, V][n_kv_heads][segment_tokens][head_dim] f16.
  ExactRun(int n_kv_heads, int head_dim, int segment_tokens);

  int64_t size() const { return size_; }
  /// Appends n rows k, v [n][n_kv_heads][head_dim], rounded to f16.
  void append(const float* k, const float* v, int64_t n);
  void drop_front(int64_t n);
  void clear();
  uint64_t bytes() const;  ///< allocated

  /// Calls f(first, n, k, v) for contiguous pieces of rows [begin, end) of one head, in order; k
  /// and v are [n][head_dim] f16.
  void spans(int head, int64_t begin, int64_t end,
             const std::function<void(int64_t first, int64_t n, const uint16_t* k,
                                      const uint16_t* v)>& f) const;
  /// Rows [begin, end) of one head as f32 [end - begin][head_dim].
  void read(int head, int64_t begin, int64_t end, float* k, float* v) const;

 private:
  using Segment = AlignedVector<uint16_t>;
  uint16_t* row(Segment& s, int kind, int head, int64_t t) const;

  int n_kv_heads_, head_dim_, segment_tokens_;
  int64_t front_ = 0;  ///< dropped rows of the first segment
  int64_t size_ = 0;
  std::deque<Segment> segments_;
};

}  // namespace million
