// SPDX-License-Identifier: Apache-2.0
// Nearest centroid of each row, vectors over centroids. The distance is sum_j (x_j - c_j)^2 with j
// rising, each product and sum rounded on its own (no fused multiply-add), so that every level and
// every vector width finds the same code bit for bit, ties included.
#pragma once

namespace million::MILLION_ISA {
namespace {

/// Squared distances of kLanes (or fewer) centroids to the row; lanes from `valid` on are infinite.
template <int kDsub, bool kPart>
MILLION_INLINE F centroid_distances(const float* x, const float* cent_t, int K, int dsub,
                                    int valid) {
  F sum = zero();
  const int n = kDsub > 0 ? kDsub : dsub;
  for (int j = 0; j < n; ++j) {
    const float* at = cent_t + static_cast<std::size_t>(j) * static_cast<std::size_t>(K);
    const F diff = set1(x[j]) - (kPart ? load_part(at, valid, INFINITY) : load(at));
    sum = sum + diff * diff;
  }
  return sum;
}

/// kRows rows at once: their chains of comparisons are independent.
template <int kDsub, int kRows>
MILLION_INLINE void encode_rows(const float* x, std::size_t stride, const float* cent_t, int K,
                                int dsub, uint16_t* codes) {
  ArgMin nearest[kRows];
  int c = 0;
  for (; c + kLanes <= K; c += kLanes)
    for (int r = 0; r < kRows; ++r)
      nearest[r].update(centroid_distances<kDsub, false>(x + static_cast<std::size_t>(r) * stride,
                                                         cent_t + c, K, dsub, kLanes),
                        c);
  if (c < K)
    for (int r = 0; r < kRows; ++r)
      nearest[r].update(centroid_distances<kDsub, true>(x + static_cast<std::size_t>(r) * stride,
                                                        cent_t + c, K, dsub, K - c),
                        c);
  for (int r = 0; r < kRows; ++r) codes[r] = static_cast<uint16_t>(nearest[r].result());
}

template <int kDsub>
void encode_all(const float* x, std::size_t stride, int n, const float* cent_t, int K, int dsub,
                uint16_t* codes) {
  constexpr int kRows = 4;
  int i = 0;
  for (; i + kRows <= n; i += kRows)
    encode_rows<kDsub, kRows>(x + static_cast<std::size_t>(i) * stride, stride, cent_t, K, dsub,
                              codes + i);
  for (; i < n; ++i)
    encode_rows<kDsub, 1>(x + static_cast<std::size_t>(i) * stride, stride, cent_t, K, dsub,
                          codes + i);
}

void pq_encode(const float* x, std::size_t stride, int n, const float* cent_t, int K, int dsub,
               uint16_t* codes) {
  switch (dsub) {
    case 1:
      encode_all<1>(x, stride, n, cent_t, K, dsub, codes);
      return;
    case 2:
      encode_all<2>(x, stride, n, cent_t, K, dsub, codes);
      return;
    case 4:
      encode_all<4>(x, stride, n, cent_t, K, dsub, codes);
      return;
    case 8:
      encode_all<8>(x, stride, n, cent_t, K, dsub, codes);
      return;
    default:
      encode_all<0>(x, stride, n, cent_t, K, dsub, codes);
      return;
  }
}

}  // namespace
}  // namespace million::MILLION_ISA
