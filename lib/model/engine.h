// SPDX-License-Identifier: Apache-2.0
// A decoder with the cache of one sequence, wherever it runs: what evaluation and generation are
// written against.
#pragma once

#include "lib/cache/kv_cache.h"
#include "lib/device/device.h"
#include "lib/model/decoder.h"

#include <cstdint>
#include <memory>
#include <span>

namespace million {

struct EngineOptions {
  DecoderOptions decoder;
  Backend backend = Backend::kCpu;
  Protocol protocol = Protocol::kDecodePath;
  bool async_encode = false;
  /// Tokens that the sequence may come to; memory of a device is taken for all of them at once. The
  /// CPU's cache grows as it needs.
  int64_t capacity = 0;
  float skip_share = 0.0f;  ///< KvCache::set_skip_share; CPU only
};

class Engine {
 public:
  virtual ~Engine() = default;
  virtual const Model& model() const = 0;
  /// As Decoder::forward with the engine's cache.
  virtual std::span<const float> forward(std::span<const int32_t> tokens,
                                         Probe* probe = nullptr) = 0;
  /// Logits [n][n_vocab] of n hidden rows.
  virtual void logits(const float* hidden, int n, float* out) = 0;
  /// Logits of vocabulary rows [first, first + count) only: out [n][count].
  virtual void logits_block(const float* hidden, int n, int first, int count, float* out) = 0;

  virtual int64_t n_tokens() const = 0;
  virtual void clear() = 0;
  /// A second engine with a copy of this cache: several questions to one long prompt. Error(kUsage)
  /// on a device.
  virtual std::unique_ptr<Engine> fork() const = 0;
  /// Appends rows to the cache of a layer without attention: KvCache::attend without queries.
  virtual void append_only(int layer, const float* k, const float* v, int n) = 0;
  virtual CacheBytes bytes() const = 0;
  virtual double measured_bits(bool with_shared) const = 0;
  virtual const char* attention_name() const = 0;
  virtual KvCache::Stats stats() const = 0;
};

/// Error(kUsage) for combinations that a backend has not, kNoResources when memory is short or
/// there is no such device.
std::unique_ptr<Engine> make_engine(std::shared_ptr<const Model> model, Method method,
                                    const EngineOptions& options);

/// On a device; `device` is one of shared_device() or, in tests, any.
std::unique_ptr<Engine> make_device_engine(std::shared_ptr<Device> device,
                                           std::shared_ptr<const Model> model, Method method,
                                           const EngineOptions& options);

}  // namespace million
