// SPDX-License-Identifier: Apache-2.0
// How far decoded keys and values are from the exact ones, by themselves and through attention.
// Read together: the squared error of rows ranks methods badly (a key error that all tokens share
// cancels in the softmax, one on a sink does not), the attention output ranks them well.
#pragma once

#include <cstdint>
#include <span>

namespace million {

/// Sums of a squared error, merged over heads and layers by addition.
struct SquaredError {
  double error2 = 0.0;  ///< sum |x - y|^2
  double norm2 = 0.0;   ///< sum |x|^2
  SquaredError& operator+=(const SquaredError& other);
  /// error2 / norm2; 0 for equal inputs even when both are zero, infinite when only the norm is.
  double nmse() const;
  /// Signal to quantization noise, 10 log10(1 / nmse); infinite for equal inputs.
  double sqnr_db() const;
  /// sqrt(nmse).
  double relative() const;
};
SquaredError squared_error(std::span<const float> exact, std::span<const float> decoded);

/// Causal attention of one query head over one KV head.
struct AttentionErrorArgs {
  int n_tokens, head_dim, n_queries;
  const float* q;        ///< [n_queries][head_dim], after RoPE, not yet scaled by 1/sqrt(d)
  const int* positions;  ///< [n_queries] query i sees tokens [0, positions[i]], < n_tokens
  const float* k_exact;  ///< [n_tokens][head_dim], after RoPE
  const float* v_exact;
  const float* k;  ///< decoded, same shape and frame
  const float* v;
  int top = 16;  ///< tokens compared by top_overlap()
};

/// Sums over queries; merged by addition.
struct AttentionError {
  SquaredError out;      ///< attention outputs
  double score2 = 0.0;   ///< squared errors of the scaled scores, each query's mean removed:
  int64_t n_scores = 0;  ///< the softmax does not see a common shift
  double overlap = 0.0;
  int64_t n_queries = 0;
  AttentionError& operator+=(const AttentionError& other);
  /// Relative L2 error of the outputs.
  double attn_error() const { return out.relative(); }
  /// Root mean square error of the scores, in nats of the softmax exponent.
  double score_error() const;
  /// Mean share of the `top` highest-scored exact tokens that stay among the top after decoding.
  double top_overlap() const;
};

/// Softmax in double; O(n_queries * n_tokens * head_dim). Thread-safe.
AttentionError attention_error(const AttentionErrorArgs& args);

}  // namespace million
