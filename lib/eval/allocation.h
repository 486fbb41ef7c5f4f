// SPDX-License-Identifier: Apache-2.0
// Bits where they pay: which PQ shape each layer's keys and values get under a budget.
//
// Measured: the KL divergence when one layer's keys (or values) alone go through the base method,
// on a window of the calibration text. Assumed: a layer's divergence falls by four for each bit per
// value (6 dB, what a fixed-rate code of Gaussian rows does), and divergences of layers add up.
#pragma once

#include "lib/eval/method_factory.h"

#include <memory>
#include <string>
#include <vector>

namespace million {

/// What one layer's keys or values cost alone, and what they were given.
struct LayerShare {
  KvKind kind = KvKind::kKey;
  int layer = 0;
  double kl = 0.0;    ///< at the base method's bits
  double bits = 0.0;  ///< allocated
};

struct Allocation {
  MethodSpec spec;
  double bits = 0.0;               ///< mean over layers, keys and values; at most the budget
  std::vector<LayerShare> shares;  ///< keys of all layers, then values
  std::string to_text() const;     ///< the table behind the choice
};

/// The best mix of shapes from head_dim/8 codes of 6 bits (.75 bits) to head_dim/2 codes of 8 bits
/// (4 bits) for `budget_bits`, sinks and window as in `base`, which must be a pq method for keys
/// and values. Deterministic. Error(kUsage) when the budget is below the smallest shape. Cost 2
/// n_layers passes over one window of at most 1024 calibration tokens, once: what was
///           measured is kept in `folder` (empty = nowhere).
Allocation allocate_bits(std::shared_ptr<const Model> model, MethodFactory& factory,
                         const CalibrationPlan& calibration, const DecoderOptions& decoder,
                         const MethodSpec& base, double budget_bits,
                         const std::filesystem::path& folder);

}  // namespace million
