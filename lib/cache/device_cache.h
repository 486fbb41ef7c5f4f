// SPDX-License-Identifier: Apache-2.0
// The cache of one sequence on a device: what KvCache is on the CPU, with the same rules
// (coding_rule.h) and results. Codes of a block are made on a second stream while decoding goes on.
//
// Exact rows lie in a ring that holds what a decode step needs. A chunk of many tokens works on
// rows of its own, which the layers share, and leaves its last rows in the ring.
#pragma once

#include "lib/cache/device_store.h"
#include "lib/cache/kv_cache.h"

#include <cstdint>
#include <memory>
#include <vector>

namespace million {

class DeviceCache {
 public:
  /// For up to `capacity` tokens that come in calls of at most `chunk`. Error(kNoResources) when
  /// they do not fit, with what is needed and what there is; Error(kUsage) as KvCache.
  DeviceCache(std::shared_ptr<Device> device, const KvGeometry& geometry, Method method,
              Protocol protocol, bool async_encode, int64_t capacity, int chunk);
  ~DeviceCache();

  const KvGeometry& geometry() const;
  int64_t n_tokens() const;
  const DeviceRope& rope() const;
  /// How many of n coming tokens one call may take: codes that a flush rewrites are read before it.
  int run_length(int64_t n) const;

  /// Starts a call of n tokens on `s`: afterwards state() is that of its end.
  void begin(Device::Stream s, int n);
  const cuda::SequenceState* state() const;
  /// Where the call's new rows of a layer go.
  cuda::ExactRows key_rows(int layer) const;
  cuda::ExactRows value_rows(int layer) const;
  /// Rows of earlier tokens for the call, before its own are written: nothing for single tokens.
  void prepare(Device::Stream s, int layer);
  /// Attention of the call's queries q [n][n_heads][d] to out, halves both.
  void attend(Device::Stream s, int layer, const uint16_t* q, uint16_t* out);
  /// True when single tokens make the same launches at every step, so that one can be replayed.
  bool can_replay() const;
  /// Ends the call: hands tokens to the encoder.
  void end(Device::Stream s);
  /// Writes the call's rows from the host, k, v [n][n_kv_heads][d] f32 after RoPE.
  void write_rows(Device::Stream s, int layer, const float* k, const float* v);
  /// Append without attention, to fill a cache for speed measurements: stands for prepare,
  /// write_rows and attend.
  void append_only(Device::Stream s, int layer, const float* k, const float* v);

  /// "exact", "fused" or "decoded", as KvCache::attention_name().
  const char* attention_name() const;
  CacheBytes bytes() const;
  double measured_bits(bool with_shared) const;
  void clear();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace million
