// SPDX-License-Identifier: Apache-2.0
// The transformer on the CPU: chunks of tokens as matrix work, single tokens as matrix-vector work
// on the quantized weights; attention goes through a KvCache.
#pragma once

#include "lib/cache/kv_cache.h"
#include "lib/model/model.h"

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

namespace million {

/// Arithmetic of the dense layers. Prefill: f32 exact, f32 through three bf16 products, bf16.
/// Decode (one token) on block-quantized weights: int8 activations, int8 activations in two terms
/// (x and what is left of it: the error of the first falls by two orders at the same weight
/// traffic), or f32 (exact).
enum class PrefillCompute { kF32, kBf16x3, kBf16 };
enum class DecodeCompute { kInt8, kInt8x2, kExact };

struct DecoderOptions {
  PrefillCompute prefill = PrefillCompute::kF32;
  DecodeCompute decode = DecodeCompute::kInt8x2;
  int chunk = 512;  ///< tokens that forward() processes at once; results do not depend on it
};

/// Sees what enters the cache. Rows of token i: q [n_heads][head_dim], k and v
/// [n_kv_heads][head_dim].
class Probe {
 public:
  virtual ~Probe() = default;
  /// `first` is the position of the first of n rows. Called once per layer and chunk, layers in
  /// order.
  virtual void on_layer(int layer, int64_t first, int n, const float* q_pre, const float* q,
                        const float* k_pre, const float* k, const float* v) = 0;
  /// Attention output of the same rows before the output projection, [n][n_heads][head_dim].
  virtual void on_attention(int /*layer*/, int64_t /*first*/, int /*n*/, const float* /*out*/) {}
};

class Decoder {
 public:
  Decoder(std::shared_ptr<const Model> model, DecoderOptions options);
  ~Decoder();

  const Model& model() const;
  /// Runs tokens through all layers, appends their K and V to `cache`, and returns the hidden
  /// states after the final norm: [n][d_model], valid until the next call. n = 1 takes the decode
  /// path.
  std::span<const float> forward(std::span<const int32_t> tokens, KvCache& cache,
                                 Probe* probe = nullptr);
  /// Logits [n][n_vocab] of n hidden rows.
  void logits(const float* hidden, int n, float* out);
  /// Logits of vocabulary rows [first, first + count) only: out [n][count], matrix arithmetic.
  void logits_block(const float* hidden, int n, int first, int count, float* out);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace million
