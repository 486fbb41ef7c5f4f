// SPDX-License-Identifier: Apache-2.0
// Dense layers of a chunk of tokens: C = A W^T through oneDNN.
// Weights stay quantized in memory; blocks of rows are dequantized, multiplied and forgotten.
#pragma once

#include "lib/model/decoder.h"

#include <memory>

namespace million {

class Gemm {
 public:
  explicit Gemm(PrefillCompute compute);
  ~Gemm();

  /// c [m][ldc], columns [0, w.rows) <- a [m][w.cols] w^T. A row's result depends neither on m nor
  /// on the number of threads: tiles have the same height range and k is summed in one order.
  void run(const float* a, int m, const WeightView& w, float* c, int ldc);
  /// The product of a backward pass, always in f32: dx [m][w.cols] = dy [m][w.rows] w, added to dx
  /// when `accumulate`. Bit-equal for every number of threads.
  void run_back(const float* dy, int m, const WeightView& w, float* dx, bool accumulate);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// c [m][ldc] = op(a) op(b) + beta c, row-major, op = 'N' or 'T'. On one thread when called from a
/// parallel region, and then with sums in one order.
void sgemm(char op_a, char op_b, int m, int n, int k, const float* a, int lda, const float* b,
           int ldb, float beta, float* c, int ldc);

/// Limits oneDNN to the forced instruction set; call before its first use.
void limit_onednn_isa();

}  // namespace million
