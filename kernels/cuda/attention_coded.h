// SPDX-License-Identifier: Apache-2.0
// What a host must know to launch attention on codes in a basis: shapes, where the codebooks lie,
// shared memory.
#pragma once

#include "kernels/cuda/coded_layout.h"
#include "kernels/cuda/device_ops.h"

namespace million::cuda {

/// Where a block reads centroids from. Packed: shared memory without the padding that keeps lanes
/// in different banks, for devices with 99 KB a block. Global: any rank, from the caches.
enum class CodedBooks { kPadded, kPacked, kGlobal };

/// Subspaces of a unit whose codebooks fit in shared memory.
inline constexpr int kCodedSubspaces = 64;

/// Query heads of a block come in tiles of 8: one tile, or two.
MILLION_HD constexpr int coded_head_tiles(int unit_heads) { return unit_heads <= 8 ? 1 : 2; }

/// How one codebook lies in shared memory: planes of 256 rows (codes), a row = the centroids of
/// `subspaces` subspaces and a rest, `stride` bytes: a byte, so that one product of bytes makes an
/// address of a code.
struct CodedPlanes {
  int subspaces, stride, bytes;  ///< bytes of all planes
};
/// Keys: four words of rest spread eight tokens' centroids of four subspaces over all banks (3.2
/// wavefronts a gather on random codes; two words: 3.4).
MILLION_HD constexpr CodedPlanes coded_key_planes(int M, CodedBooks books) {
  const int subspaces = M <= 48 ? M : 32;
  const int stride = 4 * (subspaces + (books == CodedBooks::kPacked ? 2 : 4));
  return {subspaces, stride, M / subspaces * 256 * stride};
}
/// Values: the bank is the subspace; where 16 are left their copy lies in the other 16 banks.
MILLION_HD constexpr CodedPlanes coded_value_planes(int M, CodedBooks books) {
  if (books == CodedBooks::kPacked) return {M, 4 * M, 256 * 4 * M};
  return {32, 128, (M + 31) / 32 * 256 * 128};
}
/// Subspaces whose values a block sums without books in shared memory, as many as registers allow:
/// larger ranks are cut, and scores computed again for each cut.
MILLION_HD constexpr int coded_cut(int head_tiles) { return head_tiles == 1 ? 64 : 32; }
/// Warps of a block, as many as registers allow.
MILLION_HD constexpr int coded_warps(int M, int head_tiles, CodedBooks books) {
  return books == CodedBooks::kGlobal ? 4 : head_tiles * M <= 32 ? 12 : 8;
}

/// The books, and then in the same memory what joins the warps: sums, maximum and weight.
MILLION_HD constexpr int coded_arena_bytes(int M, int unit_heads, CodedBooks books) {
  const int tiles = coded_head_tiles(unit_heads);
  const int heads = unit_heads < 8 * tiles ? unit_heads : 8 * tiles;
  const int loop = books == CodedBooks::kGlobal
                       ? 0
                       : coded_key_planes(M, books).bytes + coded_value_planes(M, books).bytes;
  const int join = coded_warps(M, tiles, books) * heads * (4 * M + 2) * 4;
  return loop > join ? loop : join;
}

/// Shapes that the coded kernels take.
inline bool coded_fits(const CodedShape& s, const CodedCodesView& k, const CodedCodesView& v,
                       int head_dim) {
  const auto side = [&](const CodedCodesView& c) {
    return c.M * 4 == s.rank && c.nbits >= 1 && c.nbits <= 8;
  };
  return (head_dim == 64 || head_dim == 128) && s.rank % 64 == 0 && s.rank <= 2048 &&
         s.frame % kCodedStrip == 0 && s.frame > 0 && s.n_places % 16 == 0 && side(k) && side(v);
}

inline CodedBooks coded_books(const CodedAttendArgs& a) {
  const int M = a.k.M, H = a.query.n_heads / a.query.n_kv_heads * a.shape.span;
  const auto fits = [&](CodedBooks b) {
    return M <= kCodedSubspaces && coded_arena_bytes(M, H, b) <= a.shared_limit;
  };
  if (fits(CodedBooks::kPadded)) return CodedBooks::kPadded;
  return M == 48 && fits(CodedBooks::kPacked) ? CodedBooks::kPacked : CodedBooks::kGlobal;
}

/// Shared memory of a block of attend_coded.
inline std::size_t coded_shared_bytes(const CodedAttendArgs& a) {
  const int H = a.query.n_heads / a.query.n_kv_heads * a.shape.span;
  const int cut = coded_cut(coded_head_tiles(H));
  const CodedBooks books = coded_books(a);
  const int M = books == CodedBooks::kGlobal && a.k.M > cut ? cut : a.k.M;
  return static_cast<std::size_t>(coded_arena_bytes(M, H, books));
}

}  // namespace million::cuda
