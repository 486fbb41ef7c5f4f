// SPDX-License-Identifier: Apache-2.0
// What codecs learn from, taken from the running model: keys, values and query statistics of a
// text, and gradients of the loss by keys and values for methods that weigh errors with them.
#pragma once

#include "lib/eval/text.h"
#include "lib/model/gradients.h"
#include "lib/model/model.h"
#include "lib/quant/calibration.h"

#include <filesystem>
#include <memory>

namespace million {

/// How codecs are calibrated; part of every codebook file and result row.
struct CalibrationPlan {
  const TokenText* text = nullptr;
  int context = 2048;  ///< window length; codes of post-RoPE keys hold only up to it
  int n_tokens = 10240;
  int grad_windows = 2;   ///< windows with gradients, for methods that want them; 0 = none
  int64_t positions = 0;  ///< above `context`: see CalibrationSet::positions
  GradientLabels labels = GradientLabels::kText;
  std::filesystem::path spill = {};  ///< folder of what does not fit memory; empty = TMPDIR

  /// Windows that are really run: at least one.
  int n_windows() const { return n_tokens / context > 1 ? n_tokens / context : 1; }
  int n_grad_windows() const { return grad_windows < n_windows() ? grad_windows : n_windows(); }
  int64_t covered() const { return positions > context ? positions : context; }
};

/// What a plan calibrates with, for records; `gradients`: the method uses them. The plan has a
/// text.
CalibrationInfo describe_calibration(const Model& model, const CalibrationPlan& plan,
                                     bool gradients);

/// Runs the plan's windows through the exact model and keeps keys before RoPE, values and query
/// statistics of every layer. Error(kBadInput) when the text is too short.
CalibrationSet capture_calibration(std::shared_ptr<const Model> model, const CalibrationPlan& plan);

/// Adds gradients of the plan's first n_grad_windows(): squares of every token, and the mean of
/// g g^T per layer and KV head over tokens beyond the first 4 of each window (attention sinks,
/// whose gradients are of another size). `set` must come from the same plan.
void capture_gradients(std::shared_ptr<const Model> model, const CalibrationPlan& plan,
                       CalibrationSet& set);

}  // namespace million
