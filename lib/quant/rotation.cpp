// SPDX-License-Identifier: Apache-2.0
#include "lib/quant/rotation.h"

#include "kernels/ops.h"
#include "lib/core/error.h"
#include "lib/core/rng.h"

#include <Eigen/QR>

#include <algorithm>
#include <cmath>

namespace million {

void walsh_hadamard(float* x, int n, int width) {
  MILLION_ASSERT(width > 0 && (width & (width - 1)) == 0 && n % width == 0);
  const float scale = 1.0f / std::sqrt(static_cast<float>(width));
  for (float* block = x; block < x + n; block += width) {
    for (int half = 1; half < width; half *= 2)
      for (int i = 0; i < width; i += 2 * half)
        for (int j = i; j < i + half; ++j) {
          const float a = block[j], b = block[j + half];
          block[j] = a + b;
          block[j + half] = a - b;
        }
    for (int i = 0; i < width; ++i) block[i] *= scale;
  }
}

int largest_power_of_two_divisor(int n) { return n & -n; }

AlignedVector<float> random_gaussian(int rows, int d, uint64_t seed, uint64_t stream) {
  Rng rng(seed, stream);
  AlignedVector<float> x(static_cast<size_t>(rows) * d);
  for (float& value : x) value = static_cast<float>(rng.normal());
  return x;
}

AlignedVector<float> random_orthogonal(int d, uint64_t seed, uint64_t stream) {
  Rng rng(seed, stream);
  Eigen::MatrixXd gaussian(d, d);
  for (int i = 0; i < d; ++i)
    for (int j = 0; j < d; ++j) gaussian(i, j) = rng.normal();
  const Eigen::HouseholderQR<Eigen::MatrixXd> qr(gaussian);
  const Eigen::MatrixXd q = qr.householderQ();
  AlignedVector<float> out(static_cast<size_t>(d) * d);
  for (int j = 0; j < d; ++j) {
    const double sign = qr.matrixQR()(j, j) < 0.0 ? -1.0 : 1.0;
    for (int i = 0; i < d; ++i)
      out[static_cast<size_t>(i) * d + j] = static_cast<float>(sign * q(i, j));
  }
  return out;
}

Rotation::Rotation(Type type, int d, uint64_t seed, uint64_t stream) : type_(type), d_(d) {
  if (type == Type::kHadamard) {
    Rng rng(seed, stream);
    for (int i = 0; i < d; ++i) signs_.push_back(rng.below(2) == 0 ? 1.0f : -1.0f);
    return;
  }
  matrix_ = random_orthogonal(d, seed, stream);
  transposed_.resize(matrix_.size());
  for (int i = 0; i < d; ++i)
    for (int j = 0; j < d; ++j)
      transposed_[static_cast<size_t>(j) * d + i] = matrix_[static_cast<size_t>(i) * d + j];
}

void Rotation::forward(const float* x, float* y) const {
  if (type_ == Type::kQr) {
    for (int i = 0; i < d_; ++i) y[i] = ops().dot(matrix_.data() + i * int64_t{d_}, x, d_);
    return;
  }
  for (int i = 0; i < d_; ++i) y[i] = signs_[i] * x[i];
  walsh_hadamard(y, d_, largest_power_of_two_divisor(d_));
}

void Rotation::inverse(const float* y, float* x) const {
  if (type_ == Type::kQr) {
    for (int i = 0; i < d_; ++i) x[i] = ops().dot(transposed_.data() + i * int64_t{d_}, y, d_);
    return;
  }
  std::copy(y, y + d_, x);
  walsh_hadamard(x, d_, largest_power_of_two_divisor(d_));
  for (int i = 0; i < d_; ++i) x[i] *= signs_[i];
}

uint64_t Rotation::bytes() const {
  return (matrix_.capacity() + transposed_.capacity() + signs_.capacity()) * sizeof(float);
}

}  // namespace million
