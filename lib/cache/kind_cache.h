// SPDX-License-Identifier: Apache-2.0
// Keys or values of one layer: sinks exact, then codes, then the window exact. Keys and values have
// boundaries of their own (CodingRule), because a method may keep them exact by different rules.
#pragma once

#include "lib/cache/coding_rule.h"
#include "lib/cache/encoder.h"
#include "lib/cache/exact_run.h"
#include "lib/quant/codec.h"

#include <cstdint>
#include <deque>
#include <memory>
#include <shared_mutex>

namespace million {

class KindCache {
 public:
  /// `store` is nullptr when nothing is ever coded. `geometry` must outlive this object; `frame` is
  /// where the codec wants the rows (values: after RoPE, which leaves them as they are).
  KindCache(const KvGeometry& geometry, const CodingRule& rule, KeyFrame frame,
            std::unique_ptr<CodeStore> store);
  /// A copy that goes on for itself, while no job is under way.
  KindCache(const KindCache& from, const KvGeometry& geometry);
  KindCache(KindCache&&) = default;
  KindCache& operator=(KindCache&&) = default;

  /// Appends n rows x [n][n_kv_heads][head_dim]; the first rows of a sequence are its sinks.
  void append_exact(const float* x, int64_t n);
  /// Hands tokens up to `until` (behind the sinks) to the encoder; the rows are copied. Nothing
  /// here may move or go before the encoder is done.
  void start_encoding(int64_t until, BlockEncoder& encoder);
  /// Drops the exact rows of tokens [0, until), which are with the encoder; from now on they are
  /// read from codes.
  void drop(int64_t until);

  const ExactRun& sinks() const { return sinks_; }
  const ExactRun& window() const { return window_; }
  const CodeStore& store() const { return *store_; }
  const KeyFrame& frame() const { return frame_; }
  int head_dim() const { return geometry_->head_dim; }
  int64_t sealed() const { return sealed_; }  ///< tokens behind the sinks that are only coded
  /// Of the encoding job whose end makes tokens [0, until) readable as codes, until >= sealed().
  int64_t ticket(int64_t until) const;
  int64_t last_ticket() const { return jobs_.empty() ? 0 : jobs_.back().ticket; }
  /// Held shared while codes are read, because a worker may append others.
  std::shared_mutex& mutex() const { return *mutex_; }
  StoreBytes code_bytes() const;

 private:
  const KvGeometry* geometry_;
  KeyFrame frame_;
  int n_sinks_;
  ExactRun sinks_, window_;
  std::unique_ptr<CodeStore> store_;
  int64_t sealed_ = 0;   ///< the window starts behind them
  int64_t started_ = 0;  ///< tokens handed to the encoder, >= sealed_
  struct Job {
    int64_t until, ticket;
  };
  std::deque<Job> jobs_;  ///< in order; ended ones are dropped as tokens are sealed
  std::unique_ptr<std::shared_mutex> mutex_ = std::make_unique<std::shared_mutex>();
};

}  // namespace million
