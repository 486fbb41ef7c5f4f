// SPDX-License-Identifier: Apache-2.0
#include "lib/cache/exact_run.h"

#include "kernels/ops.h"
#include "lib/core/error.h"

#include <algorithm>

namespace million {

ExactRun::ExactRun(int n_kv_heads, int head_dim, int segment_tokens)
    : n_kv_heads_(n_kv_heads), head_dim_(head_dim), segment_tokens_(segment_tokens) {}

uint16_t* ExactRun::row(Segment& s, int kind, int head, int64_t t) const {
  return s.data() +
         ((static_cast<int64_t>(kind) * n_kv_heads_ + head) * segment_tokens_ + t) * head_dim_;
}

void ExactRun::append(const float* k, const float* v, int64_t n) {
  const Ops& op = ops();
  for (int64_t i = 0; i < n; ++i) {
    const int64_t at = front_ + size_;
    if (at == static_cast<int64_t>(segments_.size()) * segment_tokens_)
      segments_.emplace_back(static_cast<size_t>(2) * n_kv_heads_ * segment_tokens_ * head_dim_);
    Segment& segment = segments_[at / segment_tokens_];
    for (int h = 0; h < n_kv_heads_; ++h) {
      const int64_t from = (i * n_kv_heads_ + h) * head_dim_;
      op.f32_to_f16(k + from, row(segment, 0, h, at % segment_tokens_), head_dim_);
      op.f32_to_f16(v + from, row(segment, 1, h, at % segment_tokens_), head_dim_);
    }
    ++size_;
  }
}

void ExactRun::drop_front(int64_t n) {
  MILLION_ASSERT(n >= 0 && n <= size_);
  front_ += n;
  size_ -= n;
  if (size_ == 0) return clear();
  while (front_ >= segment_tokens_) {
    segments_.pop_front();
    front_ -= segment_tokens_;
  }
}

void ExactRun::clear() {
  segments_.clear();
  front_ = size_ = 0;
}

uint64_t ExactRun::bytes() const {
  uint64_t sum = 0;
  for (const Segment& s : segments_) sum += s.capacity() * sizeof(uint16_t);
  return sum;
}

void ExactRun::spans(
    int head, int64_t begin, int64_t end,
    const std::function<void(int64_t, int64_t, const uint16_t*, const uint16_t*)>& f) const {
  MILLION_ASSERT(begin >= 0 && end <= size_);
  while (begin < end) {
    const int64_t at = front_ + begin;
    const int64_t inside = at % segment_tokens_;
    const int64_t n = std::min(end - begin, segment_tokens_ - inside);
    auto& segment = const_cast<Segment&>(segments_[at / segment_tokens_]);
    f(begin, n, row(segment, 0, head, inside), row(segment, 1, head, inside));
    begin += n;
  }
}

void ExactRun::read(int head, int64_t begin, int64_t end, float* k, float* v) const {
  const Ops& op = ops();
  spans(head, begin, end, [&](int64_t first, int64_t n, const uint16_t* k16, const uint16_t* v16) {
    const auto values = static_cast<size_t>(n) * head_dim_;
    op.f16_to_f32(k16, k + (first - begin) * head_dim_, values);
    op.f16_to_f32(v16, v + (first - begin) * head_dim_, values);
  });
}

}  // namespace million
