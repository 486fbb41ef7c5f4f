// SPDX-License-Identifier: Apache-2.0
// The cache of one sequence: per layer and KV head the first S tokens exact (sinks), then sealed
// tokens as codes, then the recent window exact. A key or value is in exactly one of the three.
//
// What the query at position i sees is a function of i alone, so results do not depend on how a
// sequence is cut into calls:
//   decode_path    tokens [S, sealed_end(i + 1)) from codes, the rest exact
//   all_distorted  tokens [S, i + 1 - window) from codes (the paper's perplexity has S = window =
//   0)
//   a codec with a ResidualRule: tokens [S, S + what its rule says for i - S), in both protocols;
//   keys and values may then end their codes at different tokens
#pragma once

#include "lib/cache/method.h"

#include <cstdint>
#include <memory>
#include <string>

namespace million {

/// Allocated bytes of one sequence's cache; `shared` are the codebooks, counted once.
struct CacheBytes {
  uint64_t codes = 0, scales = 0, outliers = 0, sinks = 0, window = 0, shared = 0;
  uint64_t cache() const { return codes + scales + outliers + sinks + window; }
  uint64_t total() const { return cache() + shared; }
};

/// Bits per stored value of a sequence of n_tokens; with_shared counts the codebooks too.
double bits_per_value(const CacheBytes& bytes, const KvGeometry& geometry, int64_t n_tokens,
                      bool with_shared);

class KvCache {
 public:
  /// Error(kUsage) as require_compatible().
  KvCache(const KvGeometry& geometry, Method method, Protocol protocol, bool async_encode = false);
  ~KvCache();

  const KvGeometry& geometry() const;
  int64_t n_tokens() const;

  /// Appends n tokens of one layer and computes their causal attention. Layers are called in order,
  /// each with the same n; n_tokens() grows after the last layer. Rows: q, out [n][n_heads][d];
  /// k, v [n][n_kv_heads][d]; q and k after RoPE. Exact rows are held as f16, and codes are made
  /// from those. all_distorted takes a sequence in one call unless the codecs work row by row or
  /// have a residual rule, and there is no window (Error(kUsage) otherwise). q = out = nullptr
  /// appends without attention, to fill a cache for speed measurements.
  void attend(int layer, const float* q, const float* k, const float* v, int n, float* out);
  /// Values of 64 coded tokens of a head are left out of a single query's sum when their share of
  /// its weight is surely below `share`; 0 = only those whose weights are all below 4^-12 of the
  /// largest. Fused kernels only. See stats().
  void set_skip_share(float share);
  /// Chunks are attended to with bf16 products where the CPU has them (kernels/ops.h); off at
  /// first.
  void set_bf16_products(bool on);
  /// How single queries attend to what is coded now: "exact" (nothing is), "fused", or "decoded":
  /// no kernel reads these codes, rows are decoded first.
  const char* attention_name() const;
  /// What single queries did so far.
  struct Stats {
    double query_ms = 0.0;     ///< wall time of their attend(), appending and handing over included
    double encode_ms = 0.0;    ///< time of encoding, in whatever thread
    int64_t head_queries = 0;  ///< query heads x layers x queries that met codes in fused kernels
    AttendStats kernels;       ///< of those kernels, over all threads
  };
  Stats stats() const;
  CacheBytes bytes() const;
  /// Bits per stored value from allocated bytes; with_shared counts the codebooks too.
  double measured_bits(bool with_shared) const;
  void clear();
  /// A copy that goes on for itself, counters of stats() at 0.
  KvCache fork() const;

 private:
  struct Impl;
  explicit KvCache(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace million
