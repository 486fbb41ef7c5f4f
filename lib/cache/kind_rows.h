// SPDX-License-Identifier: Apache-2.0
// f32 rows of keys or values out of a cache, keys turned to where a query meets them: coded tokens
// and far tokens (SelfExtend) at their grouped positions, without SelfExtend all at their own.
#pragma once

#include "lib/cache/attention.h"
#include "lib/cache/kind_cache.h"
#include "lib/core/rope.h"
#include "lib/quant/kv_types.h"

#include <cstdint>

namespace million {

/// Coded tokens [begin, end) behind the sinks of one head: out [end - begin][head_dim]. The caller
/// holds the mutex.
void read_coded(const KindCache& kind, const RopeTable& rope, int head, int64_t begin, int64_t end,
                float* out);
/// Exact rows [begin, end) of `run`, whose first row is the sequence's token `first`, as far keys
/// (values: as they are).
void read_far(const KindCache& kind, const ExactRun& run, int64_t first, const RopeTable& rope,
              int head, int64_t begin, int64_t end, float* out);
/// Tokens [begin, end) behind the sinks, all of them coded or all of them exact, for a far query.
void read_kind(const KindCache& kind, const RopeTable& rope, int head, int64_t begin, int64_t end,
               float* out);

/// Rows of one layer for a chunk of queries (attend_chunk).
struct ChunkRows {
  TileRows exact_k, exact_v, far_k, coded_k, coded_v;

  /// Queries at positions [first, n_after). What is exact, what is far and exact, and the coded
  /// tokens [0, n_coded) of each kind that the last of them sees.
  void fill(const KvGeometry& geometry, const RopeTable& rope, const KindCache& k,
            const KindCache& v, int64_t n_coded_k, int64_t n_coded_v, int64_t n_after);
  bool any_coded() const { return any_coded_; }

 private:
  struct Side;
  void fill_exact(const KvGeometry& geometry, const RopeTable& rope, const Side& side, int head,
                  int64_t n_after);
  bool any_coded_ = false;
};

}  // namespace million
