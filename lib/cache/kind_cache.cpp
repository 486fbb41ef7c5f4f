// SPDX-License-Identifier: Apache-2.0
#include "lib/cache/kind_cache.h"

#include "lib/core/error.h"
#include "lib/core/parallel.h"

#include <algorithm>

namespace million {
namespace {

/// Tokens of a segment where a method keeps its own short residual: waste is half of it on average.
constexpr int kResidualSegment = 32;

/// A window stays small; an exact cache is read in long runs.
int segment_tokens(const CodingRule& rule) {
  if (rule.long_window) return 4 * kSealTokens;
  return rule.ruled() ? kResidualSegment : kSealTokens;
}

}  // namespace

KindCache::KindCache(const KvGeometry& geometry, const CodingRule& rule, KeyFrame frame,
                     std::unique_ptr<CodeStore> store)
    : geometry_(&geometry),
      frame_(frame),
      n_sinks_(rule.sinks),
      sinks_(geometry.n_kv_heads, geometry.head_dim, std::max(1, rule.sinks)),
      window_(geometry.n_kv_heads, geometry.head_dim, segment_tokens(rule)),
      store_(std::move(store)) {}

KindCache::KindCache(const KindCache& from, const KvGeometry& geometry)
    : geometry_(&geometry),
      frame_(from.frame_),
      n_sinks_(from.n_sinks_),
      sinks_(from.sinks_),
      window_(from.window_),
      store_(from.store_ ? from.store_->clone() : nullptr),
      sealed_(from.sealed_),
      started_(from.started_) {}

void KindCache::append_exact(const float* x, int64_t n) {
  const int64_t to_sinks = std::clamp<int64_t>(n_sinks_ - sinks_.size(), 0, n);
  sinks_.append(x, to_sinks);
  window_.append(x + to_sinks * geometry_->row(), n - to_sinks);
}

void KindCache::start_encoding(int64_t until, BlockEncoder& encoder) {
  if (until <= started_) return;
  const int64_t n = until - started_, first = started_ - sealed_, d = geometry_->head_dim;
  EncodeJob job;
  job.first_token = n_sinks_ + started_;
  job.n = static_cast<int>(n);
  job.x.resize(n * geometry_->row());
  AlignedVector<float> rows(n * d);
  for (int h = 0; h < geometry_->n_kv_heads; ++h) {
    window_.read(h, first, first + n, rows.data());
    for (int64_t t = 0; t < n; ++t)
      std::copy_n(rows.data() + t * d, d, job.x.data() + (t * geometry_->n_kv_heads + h) * d);
  }
  job.run = [this](EncodeJob& j) {
    if (!frame_.plain())
      parallel_for(j.n, [&](int64_t t) {
        const int64_t position = j.first_token + t;
        geometry_->rope.move(j.x.data() + t * geometry_->row(), geometry_->n_kv_heads,
                             geometry_->head_dim, frame_.position(position) - position);
      });
    std::unique_lock lock(*mutex_);
    store_->append(j.x.data(), j.n, j.first_token);
  };
  started_ = until;
  jobs_.push_back({until, encoder.submit(std::move(job))});
}

int64_t KindCache::ticket(int64_t until) const {
  for (const Job& job : jobs_)
    if (job.until >= until) return job.ticket;
  return 0;
}

void KindCache::drop(int64_t until) {
  if (until <= sealed_) return;
  MILLION_ASSERT(until <= started_);
  window_.drop_front(until - sealed_);
  sealed_ = until;
  // A job that ends there may still run: a method's own rule drops rows before it is waited for.
  while (!jobs_.empty() && jobs_.front().until < sealed_) jobs_.pop_front();
}

StoreBytes KindCache::code_bytes() const {
  if (!store_) return {};
  std::shared_lock lock(*mutex_);
  return store_->bytes();
}

}  // namespace million
