// SPDX-License-Identifier: Apache-2.0
// Slow truth of every op in double, written straight from the definitions in ops.h. Only tests use
// it; signatures are its own (outputs are double, nothing is merged in place).
#pragma once

#include "kernels/blocks.h"
#include "kernels/ops.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace million::ref {

double dot(const float* x, const float* y, std::size_t n);
/// silu(gate) * up, [n].
std::vector<double> swiglu(const float* gate, const float* up, std::size_t n);
/// x * w / sqrt(mean(x^2) + eps), [n].
std::vector<double> rmsnorm(const float* x, const float* w, double eps, int n);
/// One rotated row, [2 n_pairs].
std::vector<double> rope_row(const float* x, const float* cosines, const float* sines, int n_pairs,
                             bool adjacent);
double logsumexp(const float* x, std::size_t n);

/// One row of any BlockType, [n].
std::vector<double> dequant_row(BlockType type, const void* row, int n);
/// rows . x with x taken as d q of its blocks, [n_rows].
std::vector<double> gemv_a8(BlockType type, const void* rows, std::size_t row_bytes, int n_rows,
                            int n, const BlockA8* x);

/// Softmax attention of one group: out [n_group][head_dim] normalised, lse [n_group].
struct Attention {
  std::vector<double> out, lse;
};
Attention attend(int n_group, int head_dim, int n_tokens, const float* q, const double* k,
                 const double* v);
/// f16 rows as double, [n].
std::vector<double> from_f16(const uint16_t* x, std::size_t n);
/// Decoded rows of a PQ-coded run, [n_tokens][head_dim].
std::vector<double> pq_decode(const PqSide& side, int head_dim, int n_tokens);

/// attend_coded with nothing left out: out [n_heads][rank].
Attention attend_coded(const CodedAttendArgs& args);
/// [n_heads][head_dim] of args.acc.
std::vector<double> coded_rows(const CodedAttendArgs& args);

/// Squared distances of one row to all centroids; cent_t [dsub][K].
std::vector<double> pq_distances(const float* x, const float* cent_t, int K, int dsub);

}  // namespace million::ref
