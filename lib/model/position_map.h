// SPDX-License-Identifier: Apache-2.0
// Ways to read further than a model was trained: scalings of RoPE, and SelfExtend. One text form in
// flags, records and file names:
//   plain                            as the model file says
//   selfextend:group=16,window=1024  Jin et al. 2024: the last `window` tokens at their own
//                                    positions, all before them in groups of `group`
//   linear:factor=8                  positions divided by the factor (Chen et al. 2023)
//   ntk:factor=8                     base * factor^(d / (d - 2)) (NTK-aware, 2023)
//   dynamic                          ntk with the factor that the length of the run asks for, as in
//                                    Hugging Face's DynamicNTK; one base for the whole run, because
//                                    keys in a cache cannot be turned again
//   yarn:factor=8                    arXiv 2309.00071, with its temperature
#pragma once

#include "lib/model/model.h"
#include "lib/quant/kv_types.h"

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace million {

struct PositionSpec {
  enum class Kind { kPlain, kSelfExtend, kLinear, kNtk, kDynamic, kYarn } kind = Kind::kPlain;
  SelfExtend self_extend = {};
  double factor = 1.0;  ///< linear, ntk, yarn

  /// Error(kUsage) naming what is known; a window that the group does not divide is refused.
  static PositionSpec parse(std::string_view text);
  std::string to_string() const;
};

/// The same model with other positions: weights are shared, n_context is what can be reached.
/// `n_tokens`: the longest sequence to come, which `dynamic` scales for; 0 = the trained context.
/// Error(kUsage) when SelfExtend cannot reach n_tokens (names the formula), or when the model's
/// file already scales its positions and `spec` scales them again.
std::shared_ptr<const Model> with_positions(std::shared_ptr<const Model> model,
                                            const PositionSpec& spec, int64_t n_tokens);

/// The model with each token at its own position; codebooks are trained on it and hold for any
/// group.
std::shared_ptr<const Model> without_self_extend(std::shared_ptr<const Model> model);

/// Longest sequence whose positions the model has seen: n_context, or with SelfExtend
/// (n_context - window) * group + window.
int64_t reach(const ModelConfig& trained, const PositionSpec& spec);

}  // namespace million
