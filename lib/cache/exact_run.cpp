// SPDX-License-Identifier: Apache-2.0
#include "lib/cache/exact_run.h"

#include "kernels/ops.h"
#include "lib/core/error.h"

#include <algorithm>

namespace million {

ExactRun::ExactRun(int n_kv_heads, int head_dim, int segment_tokens)
    : n_kv_heads_(n_kv_heads), head_dim_(head_dim), segment_tokens_(segment_tokens) {}

int64_t ExactRun::tokens_of(const Segment& segment) const {
  return static_cast<int64_t>(segment.size()) / (static_cast<int64_t>(n_kv_heads_) * head_dim_);
}

/// Gives `segment` room for `tokens` tokens a head, behind those that it has.
void ExactRun::widen(Segment& segment, int64_t tokens) const {
  const int64_t old = tokens_of(segment) * head_dim_, width = tokens * head_dim_;
  Segment wider(static_cast<size_t>(n_kv_heads_ * width));
  for (int64_t h = 0; h < n_kv_heads_; ++h)
    std::copy_n(segment.data() + h * old, old, wider.data() + h * width);
  segment.swap(wider);
}

void ExactRun::append(const float* x, int64_t n) {
  const Ops& op = ops();
  for (int64_t i = 0; i < n; ++i) {
    const int64_t at = front_ + size_, inside = at % segment_tokens_;
    if (at / segment_tokens_ == static_cast<int64_t>(segments_.size())) segments_.emplace_back();
    Segment& segment = segments_[at / segment_tokens_];
    if (inside >= tokens_of(segment))
      widen(segment, std::min<int64_t>(segment_tokens_, (inside / kStepTokens + 1) * kStepTokens));
    for (int64_t h = 0; h < n_kv_heads_; ++h)
      op.f32_to_f16(x + (i * n_kv_heads_ + h) * head_dim_,
                    segment.data() + (h * tokens_of(segment) + inside) * head_dim_, head_dim_);
    ++size_;
  }
}

void ExactRun::drop_front(int64_t n) {
  MILLION_ASSERT(n >= 0 && n <= size_);
  front_ += n;
  size_ -= n;
  while (front_ >= segment_tokens_ && !segments_.empty()) {
    segments_.pop_front();
    front_ -= segment_tokens_;
  }
  if (size_ == 0) segments_.clear();
}

uint64_t ExactRun::bytes() const {
  uint64_t sum = 0;
  for (const Segment& s : segments_) sum += s.capacity() * sizeof(uint16_t);
  return sum;
}

const uint16_t* ExactRun::at(int head, int64_t t, int64_t* n) const {
  const int64_t at = front_ + t, inside = at % segment_tokens_;
  const Segment& segment = segments_[at / segment_tokens_];
  *n = std::min(size_ - t, segment_tokens_ - inside);
  return segment.data() + (head * tokens_of(segment) + inside) * head_dim_;
}

void ExactRun::read(int head, int64_t begin, int64_t end, float* out) const {
  MILLION_ASSERT(begin >= 0 && end <= size_);
  const Ops& op = ops();
  while (begin < end) {
    int64_t n = 0;
    const uint16_t* rows = at(head, begin, &n);
    n = std::min(n, end - begin);
    op.f16_to_f32(rows, out, static_cast<size_t>(n) * head_dim_);
    out += n * head_dim_;
    begin += n;
  }
}

}  // namespace million
