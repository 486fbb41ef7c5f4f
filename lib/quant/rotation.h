// SPDX-License-Identifier: Apache-2.0
// Fixed orthogonal maps of rows: the Walsh-Hadamard transform and seeded random rotations. They
// spread an outlier channel over all channels, and as R^T R = 1 they leave scores q . k unchanged
// when applied to both sides. Eigen is included in rotation.cpp only.
#pragma once

#include "lib/core/tensor.h"

#include <cstdint>
#include <vector>

namespace million {

/// x <- H x / sqrt(width) in each block of `width` neighbouring values; its own inverse.
/// `width` is a power of two that divides n. Cost O(n log width).
void walsh_hadamard(float* x, int n, int width);

/// Largest power of two that divides n > 0.
int largest_power_of_two_divisor(int n);

/// Random orthogonal matrix [d][d], uniform over all of them (Haar): Q of the QR decomposition of a
/// Gaussian matrix with the signs of R's diagonal moved into Q. The matrix is filled row by row
/// from Rng(seed, stream). Computed in double; equal input gives equal output.
AlignedVector<float> random_orthogonal(int d, uint64_t seed, uint64_t stream = 0);

/// [rows][d] independent standard normal values from Rng(seed, stream), row by row.
AlignedVector<float> random_gaussian(int rows, int d, uint64_t seed, uint64_t stream);

/// A random rotation of rows of d values.
class Rotation {
 public:
  enum class Type {
    kQr,       ///< random_orthogonal: O(d^2) a row
    kHadamard  ///< random signs, then walsh_hadamard as wide as d allows: O(d log d) a row
  };
  Rotation(Type type, int d, uint64_t seed, uint64_t stream);

  void forward(const float* x, float* y) const;  ///< y = R x; x and y do not overlap
  void inverse(const float* y, float* x) const;  ///< x = R^T y
  uint64_t bytes() const;

 private:
  Type type_;
  int d_;
  AlignedVector<float> matrix_, transposed_;  ///< kQr: [d][d]
  AlignedVector<float> signs_;                ///< kHadamard: [d] of +-1
};

}  // namespace million
