// SPDX-License-Identifier: Apache-2.0
// The coordinates in which rows are cut into subvectors. `span` neighbouring KV heads of a layer
// form a unit whose rows x [w], w = span * head_dim, are coded together by an affine map
//
//   y = E (x - R(f) mean)        x = D y + R(f) mean,   E [rank][w], D [w][rank], E D = 1
//
// with f the position of the key's frame (short frames: x = D (y + E R(f) mean), so that attention
// can stay in y). E first applies a metric (how much an error in a
// direction costs), then turns and deals the axes so that every subspace has an equal share of the
// variance. Scores and outputs need D only: q.x = (D^T q).y + q.R(f) mean, for each head the rows
// of D that are its own. Heads of one layer are projections of one hidden state, so a unit of
// several heads has far fewer directions of large variance than its heads have apart.
#pragma once

#include "lib/core/tensor.h"
#include "lib/quant/calibration.h"

#include <cstdint>
#include <vector>

namespace million {

/// How axes are chosen before the cut.
enum class PqRotate {
  kNone,      ///< neighbouring channels share a code (MILLION)
  kPerm,      ///< channels dealt by variance, no rotation
  kPairs,     ///< principal axes inside groups of neighbouring RoPE pairs, then dealt
  kPca,       ///< principal axes of the head, then dealt
  kOpq,       ///< kPca refined with the codebooks in the loop [OPQ]
  kHadamard,  ///< data-free: Walsh-Hadamard
};
/// What an error costs.
enum class PqMetric {
  kNone,    ///< squared error
  kQuery,   ///< E[q^2] of the RoPE pair: squared error of scores, axis by axis
  kFisher,  ///< E[g g^T] of the loss gradients, shrunk towards a multiple of 1
};

struct PqBasisParams {
  PqRotate rotate = PqRotate::kNone;
  int pairs = 8;  ///< kPairs: RoPE pairs of a group
  PqMetric metric = PqMetric::kNone;
  bool centre = false;  ///< keys: subtract the mean key before RoPE, turned to the frame
  int span = 1;         ///< KV heads of a unit; divides n_kv_heads
  int M = 16;           ///< subspaces of a unit that share the variance; divides rank
  int nbits = 8;        ///< kOpq: of the codebooks in the loop
  int rank = 0;         ///< axes of a unit that are kept, those of most variance
  uint64_t seed = 1234;

  bool identity() const {
    return rotate == PqRotate::kNone && metric == PqMetric::kNone && !centre;
  }
};

/// One matrix as signed bytes with a scale for each axis: its rounding adds 2e-4 of the mean
/// variance, a hundredth of what 4-bit codes lose, at half the memory of halves.
struct ByteMatrix {
  AlignedVector<int8_t> values;  ///< [w / 4][rank][4], as attend_coded reads D^T
  std::vector<float> scale;      ///< [rank]

  static ByteMatrix from(const std::vector<float>& m, int rank);
  /// [rank][w], or [w][rank] transposed.
  void expand(bool transposed, AlignedVector<float>* out) const;
  uint64_t bytes() const { return values.capacity() + scale.capacity() * sizeof(float); }
};

/// Map of one unit.
struct PqBasis {
  std::vector<float> mean;  ///< [w] before RoPE, magnitude included; empty = not centred
  /// E R(f) mean for every position f of a short frame, [period][rank] f16: what is subtracted from
  /// and added to y; empty where the frame has no short period, the mean then stays outside.
  AlignedVector<uint16_t> coded_mean;
  ByteMatrix encode;  ///< E
  ByteMatrix decode;  ///< D^T; empty where E is orthogonal and serves both
  const ByteMatrix& decoder() const { return decode.values.empty() ? encode : decode; }
  /// D coded_mean as a sum of few products of a function of the place and a vector, for
  /// attend_coded: places [n_places][period], place_mean [w][n_places]. Empty without coded_mean or
  /// where the period is no multiple of 64.
  AlignedVector<float> places, place_mean;
  int n_places = 0;
  uint64_t bytes() const {
    return (mean.capacity() + places.capacity() + place_mean.capacity()) * sizeof(float) +
           coded_mean.capacity() * sizeof(uint16_t) + encode.bytes() + decode.bytes();
  }
  /// Fills coded_mean where the frame is short and no axis was left out, and what follows from it.
  void turn_mean(const KvGeometry& geometry, const KeyFrame& frame);

 private:
  void split_places(int period);
};

/// Rows [n][w] of unit `unit` of a layer in `frame`, the mean of the frame removed where `centre`
/// says so: what train_basis and the codebooks learn from. `mean` (may be null) receives the mean.
AlignedVector<float> unit_rows(const CalibrationSet& data, KvKind kind, int layer, int unit,
                               int span, const KeyFrame& frame, int sinks, bool centre,
                               std::vector<float>* mean);

/// Trains the map of one unit. Error(kBadInput) when the covariance has a rank below params.rank,
/// naming layer, head and the rank found, or when a metric has no data.
/// Source  balanced allocation and kOpq: Ge et al., "Optimized product quantization", 2013.
PqBasis train_basis(const CalibrationSet& data, KvKind kind, int layer, int unit,
                    const KeyFrame& frame, int sinks, const PqBasisParams& params);

}  // namespace million
