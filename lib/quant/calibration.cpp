// SPDX-License-Identifier: Apache-2.0
#include "lib/quant/calibration.h"

#include "kernels/ops.h"
#include "lib/core/error.h"

#include <cmath>

namespace million {

AlignedVector<float> calibration_rows(const CalibrationSet& data, KvKind kind, int layer, int head,
                                      const KeyFrame& frame, int sinks) {
  const KvGeometry& g = data.geometry;
  const int d = g.head_dim;
  const auto& layers = kind == KvKind::kKey ? data.k_pre : data.v;
  MILLION_ASSERT(layer >= 0 && layer < static_cast<int>(layers.size()));
  MILLION_ASSERT(head >= 0 && head < g.n_kv_heads && data.context > 0);
  const SpillBuffer<uint16_t>& source = layers[layer];
  MILLION_ASSERT(source.size() == static_cast<size_t>(data.n_tokens) * g.row());

  AlignedVector<float> rows;
  rows.reserve(static_cast<size_t>(data.n_tokens) * d);
  for (int64_t t = 0; t < data.n_tokens; ++t) {
    if (data.position(t) < sinks) continue;
    const size_t at = rows.size();
    rows.resize(at + d);
    ops().f16_to_f32(source.data() + t * g.row() + head * d, rows.data() + at, d);
    for (int i = 0; i < d; ++i)
      MILLION_REQUIRE(std::isfinite(rows[at + i]), ErrorCode::kBadInput,
                      "calibration {} of layer {}, head {}, token {} holds {} in channel {}; "
                      "expected finite values: check the model file and dump again",
                      kind == KvKind::kKey ? "keys" : "values", layer, head, t, rows[at + i], i);
    // rotate_to and not move: stored keys of every frame carry YaRN's magnitude, even at position
    // 0.
    if (kind == KvKind::kKey)
      g.rope.rotate_to(rows.data() + at, 1, d, data.frame_position(frame, t));
  }
  source.release();
  return rows;
}

std::vector<int64_t> calibration_tokens(const CalibrationSet& data, int sinks) {
  std::vector<int64_t> tokens;
  for (int64_t t = 0; t < data.n_tokens; ++t)
    if (data.position(t) >= sinks) tokens.push_back(t);
  return tokens;
}

}  // namespace million
