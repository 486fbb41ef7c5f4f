// SPDX-License-Identifier: Apache-2.0
// The coordinates in which rows are cut into subvectors. Each (layer, KV head) has an affine map
//
//   y = E (x - R(f) mean)        x = D y + R(f) mean,   E [rank][d], D [d][rank], E D = 1
//
// with f the position of the key's frame. E first applies a metric (how much an error in a
// direction costs), then turns and deals the axes so that every subspace has an equal share of the
// variance. Scores and outputs need D only: q.x = (D^T q).y + q.R(f) mean.
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
  int M = 16;           ///< subspaces that share the variance; divides rank
  int nbits = 8;        ///< kOpq: of the codebooks in the loop
  int rank = 0;         ///< axes kept, those of most variance
  uint64_t seed = 1234;

  bool identity() const {
    return rotate == PqRotate::kNone && metric == PqMetric::kNone && !centre;
  }
};

/// Map of one (layer, head); matrices are halves, as they are stored.
struct PqBasis {
  std::vector<float> mean;          ///< [d] before RoPE, magnitude included; empty = not centred
  AlignedVector<uint16_t> encode;   ///< E [rank][d] f16
  AlignedVector<uint16_t> decode;   ///< D [d][rank] f16
  uint64_t bytes() const {
    return mean.capacity() * sizeof(float) +
           (encode.capacity() + decode.capacity()) * sizeof(uint16_t);
  }
};

/// Rows of one (layer, head) in `frame`, the mean of the frame removed where params.centre says so:
/// what train_basis and the codebooks learn from. `mean` (may be null) receives the mean.
AlignedVector<float> centred_rows(const CalibrationSet& data, KvKind kind, int layer, int head,
                                  const KeyFrame& frame, int sinks, bool centre,
                                  std::vector<float>* mean);

/// Trains the map of one (layer, head). Error(kBadInput) when the covariance has a rank below
/// params.rank, naming layer, head and the rank found, or when a metric has no data.
/// Source  balanced allocation and kOpq: Ge et al., "Optimized product quantization", 2013.
PqBasis train_basis(const CalibrationSet& data, KvKind kind, int layer, int head,
                    const KeyFrame& frame, int sinks, const PqBasisParams& params);

/// y [n][rank] = x [n][d] E^T; row by row, so a row's result does not depend on n.
void to_basis(const float* x, int64_t n, int d, int rank, const float* encode, float* y);

}  // namespace million
