// SPDX-License-Identifier: Apache-2.0
// What a codec learns from: exact keys (before RoPE) and values of a calibration text.
#pragma once

#include "lib/core/rng.h"
#include "lib/core/spill_buffer.h"
#include "lib/core/tensor.h"
#include "lib/quant/kv_types.h"

#include <cstdint>
#include <string>
#include <vector>

namespace million {

/// Calibration rows of all layers. The text was cut into windows of `context` tokens, each run from
/// an empty cache, so row t stands at position t % context.
struct CalibrationSet {
  KvGeometry geometry;
  std::string model_sha256;
  std::string text_sha256;  ///< of the tokens actually used
  std::string text_name;
  int context = 0;
  int n_tokens = 0;
  /// Above `context`: keys after RoPE are trained at seeded random positions below it instead of
  /// their own, so that codebooks cover contexts that no calibration window has.
  int64_t positions = 0;

  /// [layer] -> [n_tokens][n_kv_heads][head_dim] f16. Large ones are files, so that calibration
  /// does not have to fit into memory; readers release() a layer behind themselves.
  std::vector<SpillBuffer<uint16_t>> k_pre, v;
  /// [layer] -> [n_kv_heads][head_dim]: mean over tokens and the group's query heads of q_d^2,
  /// queries before RoPE (RoPE keeps the sum over a pair, so it serves both frames).
  std::vector<std::vector<float>> q_second_moment;
  /// Optional squared gradients of the loss with respect to keys before RoPE and values, for the
  /// first n_grad_tokens tokens: [layer] -> [n_grad_tokens][n_kv_heads][head_dim]; empty = none.
  int n_grad_tokens = 0;
  std::string grad_labels;  ///< "text" or "sampled": of what loss they are
  std::vector<SpillBuffer<float>> k_grad2, v_grad2;
  /// Fisher matrices E[g g^T] of the same gradients, keys before RoPE:
  /// [layer] -> [n_kv_heads][head_dim][head_dim]; empty = none.
  std::vector<std::vector<float>> k_fisher, v_fisher;

  int64_t position(int64_t t) const { return t % context; }
  /// Positions that training sees: [0, covered()).
  int64_t covered() const { return positions > context ? positions : context; }
  /// Where `frame` puts the key of row t in training; a function of t alone.
  int64_t frame_position(const KeyFrame& frame, int64_t t) const {
    constexpr uint64_t kSeed = 20240919;
    if (frame.type != KeyFrame::Type::kPostRope || positions <= context)
      return frame.position(position(t));
    Rng rng(kSeed, static_cast<uint64_t>(t));
    return static_cast<int64_t>(rng.below(static_cast<uint64_t>(positions)));
  }
};

/// What identifies calibration in a codebook file and in every result row.
struct CalibrationInfo {
  std::string model_sha256, text_sha256, text_name;
  int context = 0, n_tokens = 0;
  int64_t positions = 0;         ///< covered by training of keys after RoPE
  int grad_windows = -1;         ///< windows with gradients; -1: the method uses none
  std::string grad_labels = {};  ///< empty without gradients
};

/// Rows of one layer, kind and KV head as f32 [n][head_dim]; keys are rotated into `frame` (values
/// ignore it). Tokens whose position is below `sinks` are left out: attention sinks are stored
/// exactly and would distort the statistics. Error(kBadInput) on NaN or Inf, naming layer, head,
/// token.
AlignedVector<float> calibration_rows(const CalibrationSet& data, KvKind kind, int layer, int head,
                                      const KeyFrame& frame, int sinks);
/// Tokens of those rows, in the same order.
std::vector<int64_t> calibration_tokens(const CalibrationSet& data, int sinks);

}  // namespace million
