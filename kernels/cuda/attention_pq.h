// SPDX-License-Identifier: Apache-2.0
// What a host must know to launch PQ attention: the shapes that exist, shared memory, scratch.
#pragma once

#include "kernels/cuda/device_ops.h"
#include "kernels/cuda/pq_strips.h"

namespace million::cuda {

/// Warps of a block; each owns every kPqWarps-th strip of its part.
inline constexpr int kPqWarps = 8;
/// A codebook row (the centroids of one code) takes 256 bytes of shared memory, so that a code
/// byte is the second byte of an address. Rows of 128 bytes (head_dim 64) leave room for the
/// values'.
inline constexpr int kPqRowBytes = 256;
/// Weights of a strip in the order of mma fragments: 4 heads (absent ones are zeros) x 32 halves.
inline constexpr int kPqWeightBytes = 4 * kStrip * 2;

enum class PqPass { kBoth, kKeys, kValues };

/// Query heads that a block takes: 1, 2 or 4 (with padding) of the group of a KV head.
MILLION_HD constexpr int pq_block_heads(int group, bool two_pass) {
  return group >= 3 || (group == 2 && two_pass) ? 4 : group;
}
MILLION_HD constexpr int pq_head_blocks(int group) { return (group + 3) / 4; }

MILLION_HD constexpr int pq_book_bytes(int head_dim, int nbits, PqPass pass) {
  const int books = pass == PqPass::kBoth && head_dim == 128 ? 2 : 1;
  return books * (1 << pq_stored_bits(nbits)) * kPqRowBytes;
}
/// Of one warp: weights of a strip, and zeros of the same size, 32 bytes off to be in other banks.
inline constexpr int kPqWarpBytes = 2 * kPqWeightBytes + 32;
/// The books and the warps' memory; at the end the same memory joins the warps.
MILLION_HD constexpr int pq_arena_bytes(int head_dim, int nbits, int block_heads, PqPass pass) {
  const int loop = pq_book_bytes(head_dim, nbits, pass) + kPqWarps * kPqWarpBytes;
  const int join = kPqWarps * block_heads * (head_dim + 2) * 4;
  return loop > join ? loop : join;
}

/// Whether attend_pq has a kernel for these shapes; attend_pq_table has one for every shape.
inline bool pq_has_kernel(const PqAttendArgs& a) {
  const int d = a.query.head_dim, group = a.query.n_heads / a.query.n_kv_heads;
  const auto fits = [&](const PqCodesView& c) {
    return (c.M * 2 == d || c.M * 4 == d) && c.nbits >= 1 && c.nbits <= 8;
  };
  const bool equal = a.k.M == a.v.M && pq_stored_bits(a.k.nbits) == pq_stored_bits(a.v.nbits);
  return (d == 64 || d == 128) && group >= 1 && group <= 8 && fits(a.k) && fits(a.v) &&
         (equal || a.two_pass);
}

/// Shared memory of a block of attend_pq.
inline std::size_t pq_shared_bytes(const PqAttendArgs& a) {
  const int d = a.query.head_dim;
  const int heads = pq_block_heads(a.query.n_heads / a.query.n_kv_heads, a.two_pass);
  if (!a.two_pass) return pq_arena_bytes(d, a.k.nbits, heads, PqPass::kBoth);
  const int keys = pq_arena_bytes(d, a.k.nbits, heads, PqPass::kKeys);
  const int values = pq_arena_bytes(d, a.v.nbits, heads, PqPass::kValues);
  return keys > values ? keys : values;
}

/// What the keys' pass leaves for the values': weights [strips] and their reference [strips][4] of
/// a (sequence, KV head, block of heads), then [n_splits][kPqWarps][4] (reference, sum) of warps.
MILLION_HD constexpr std::size_t pq_scratch_of(int strips, int n_splits) {
  return static_cast<std::size_t>(strips) * (kPqWeightBytes + 16) +
         static_cast<std::size_t>(n_splits) * kPqWarps * 32;
}
inline std::size_t pq_scratch_bytes(const PqAttendArgs& a) {
  const QueryArgs& q = a.query;
  const int blocks = q.batch * q.n_kv_heads * pq_head_blocks(q.n_heads / q.n_kv_heads);
  return static_cast<std::size_t>(blocks) * pq_scratch_of(a.k.strips, q.n_splits);
}

}  // namespace million::cuda
