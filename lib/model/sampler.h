// SPDX-License-Identifier: Apache-2.0
// Choice of the next token from logits. Deterministic: equal seeds and logits give equal tokens.
#pragma once

#include "lib/core/rng.h"

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace million {

struct SamplerOptions {
  float temperature = 0.0f;  ///< 0 = greedy; the logits are divided by it
  int top_k = 0;             ///< keep the k most likely tokens; 0 = all
  float top_p = 1.0f;        ///< keep the fewest most likely tokens whose probability reaches it
  uint64_t seed = 0;
};

/// Applies temperature, then top-k, then top-p to the probabilities that top-k left, then draws one
/// token in proportion to the rest. Equal logits are ordered by id, lowest first.
class Sampler {
 public:
  /// Error(kUsage) when an option is out of range.
  explicit Sampler(const SamplerOptions& options);
  /// Id of a token. Error(kFailed) on a NaN or +infinity, and when every logit is -infinity.
  int32_t sample(std::span<const float> logits);

 private:
  SamplerOptions options_;
  Rng rng_;
  std::vector<std::pair<float, int32_t>> order_;
  std::vector<double> weights_;
};

/// Id of the greatest logit, the lowest of equal ones; errors as Sampler::sample.
int32_t greedy_token(std::span<const float> logits);

}  // namespace million
