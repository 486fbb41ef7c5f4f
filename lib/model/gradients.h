// SPDX-License-Identifier: Apache-2.0
// Derivatives of the language-model loss with respect to what a cache stores: keys before RoPE and
// values of every layer, for one window of tokens. L is the sum over the window's predictions of
// the cross entropy. Their squares are the Fisher weights of KVQuant (arXiv 2401.18079, section
// 3.3), their second moments E[g g^T] the metric in which an error of a key or value costs loss.
//
// Forward and backward of the Llama block in f32 with exact attention (no f16 anywhere). The input
// of each layer is kept, everything else is computed again on the way back: memory is n_layers * n
// * d_model floats and about ten buffers of one layer.
#pragma once

#include "lib/model/model.h"

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace million {

/// What the loss is the cross entropy of.
enum class GradientLabels {
  kText,    ///< the text's next token: the empirical Fisher, as KVQuant
  kSampled  ///< drawn from the model's own distribution: the Fisher, the Hessian of the KL
            ///< divergence between the model and its disturbed self
};
/// "text", "sampled"
const char* labels_name(GradientLabels labels);

struct GradientOptions {
  GradientLabels labels = GradientLabels::kText;
  uint64_t seed = 1;  ///< of sampled labels; a label depends on it, the row and the distribution
};

/// Receives the derivatives of a window of n tokens.
class GradientProbe {
 public:
  virtual ~GradientProbe() = default;
  /// dk (keys before RoPE) and dv, [n][n_kv_heads][head_dim]; layers arrive from last to first.
  virtual void on_gradients(int layer, int n, const float* dk, const float* dv) = 0;
  /// May change a layer's keys before RoPE and values, [n][n_kv_heads][head_dim], before they are
  /// used. Called twice a layer (forward and again on the way back) and must do the same each time.
  virtual void edit(int /*layer*/, int /*n*/, float* /*k_pre*/, float* /*v*/) {}
};

/// Predictions 1 .. n - 1 of a window.
struct GradientLoss {
  std::vector<int32_t> labels;  ///< [n - 1]
  std::vector<double> nll;      ///< [n - 1] cross entropy in nats
  double sum() const;
};

class GradientPass {
 public:
  explicit GradientPass(std::shared_ptr<const Model> model);
  ~GradientPass();

  /// Forward and backward over one window of at least 2 tokens that starts at position 0.
  /// Deterministic, bit-equal for every number of threads. Error(kBadInput) on a token outside the
  /// vocabulary; Error(kInterrupted) after a signal. Cost: three forward passes and a little.
  GradientLoss run(std::span<const int32_t> tokens, const GradientOptions& options,
                   GradientProbe& probe);
  /// Forward only: the loss of given labels [n - 1]; `probe` edits.
  GradientLoss loss(std::span<const int32_t> tokens, std::span<const int32_t> labels,
                    GradientProbe& probe);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace million
