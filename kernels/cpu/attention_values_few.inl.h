// SPDX-License-Identifier: Apache-2.0
// The value pass of attention_values.inl.h for few heads that read the same codes (plain product
// codes: the query heads of one KV head). Block by block, decoded values stay in registers and meet
// the weights of all heads there; the weights of a head's block share one class, so that integer
// sums live as long as a block. Needs the registers of vec_avx512_bytes.h.
#pragma once

#include "kernels/cpu/attention_values.inl.h"
#include "kernels/cpu/prefetch.inl.h"

namespace million::MILLION_ISA {
namespace {

/// Which axes of four share a code: kCodes different codes, in order.
template <int kRegs, int kCodes>
MILLION_INLINE void decode_axes(const Bytes (*t)[kRegs], const uint8_t* const* runs, int chunk,
                                const CodeReader<kRegs != 4>& reader, Bytes* axis) {
  constexpr int kShare = 4 / kCodes;
  for (int i = 0; i < kCodes; ++i) {
    const Bytes codes = reader.load(runs[i], chunk);
    const auto upper = upper_half<kRegs>(codes);
    for (int j = i * kShare; j < (i + 1) * kShare; ++j)
      axis[j] = look_up_halves<kRegs>(t[j], codes, upper);
  }
}

/// One block's values of four axes: lane_sums [kHeads][rank][16] from axis 4 quad on.
template <int kRegs, int kCodes, int kHeads>
MILLION_INLINE void few_quad(const CodedAttendArgs& a, const CodedScratch& s, int block, int quad,
                             const CodeReader<kRegs != 4>& reader, const BlockGroups& groups) {
  const int K = 1 << a.v.nbits, dsub = a.rank / a.v.M;
  Bytes t[4][kRegs];
  const uint8_t* runs[kCodes];
  for (int j = 0; j < 4; ++j) {
    const ByteTable<kRegs> table(a.v.tables + static_cast<std::ptrdiff_t>(4 * quad + j) * K, K);
    for (int i = 0; i < kRegs; ++i) t[j][i] = table.t[i];
  }
  for (int i = 0; i < kCodes; ++i)
    runs[i] = a.v.blocks[block] + static_cast<std::size_t>((4 * quad + 4 / kCodes * i) / dsub) *
                                      pq_run_bytes(a.v.nbits);
  const uint8_t* weights = s.weights + static_cast<std::size_t>(block) * kPqBlock;
  Ints sum[kHeads][4] = {};
  for (int i = 0; i < groups.n; ++i) {
    Bytes axis[4];
    decode_axes<kRegs, kCodes>(t, runs, groups.at[i], reader, axis);
    for (int h = 0; h < kHeads; ++h) {
      const Bytes weight =
          load_bytes(weights + static_cast<std::size_t>(h) * s.stride + kByteLanes * groups.at[i]);
      for (int j = 0; j < 4; ++j) sum[h][j] = dot_bytes(sum[h][j], weight, axis[j]);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    const F unit = set1(s.block_units[static_cast<std::size_t>(h) * (s.stride / kPqBlock) +
                                      static_cast<std::size_t>(block)]);
    float* to = s.lane_sums + static_cast<std::ptrdiff_t>(h * a.rank + 4 * quad) * kLanes;
    for (int j = 0; j < 4; ++j)
      store(to + j * kLanes, vfma(to_floats(sum[h][j]), unit, load(to + j * kLanes)));
  }
}

template <int kRegs, int kCodes, int kHeads>
void few_blocks(const CodedAttendArgs& a, const CodedScratch& s,
                const CodeReader<kRegs != 4>& reader, const uint8_t* any) {
  const int n_groups = (a.n_tokens + kByteLanes - 1) / kByteLanes;
  const int n_blocks = (n_groups + kBlockGroups - 1) / kBlockGroups;
  for (int b = 0; b < n_blocks; ++b) {
    const BlockGroups groups(any, b, n_groups);
    if (groups.n == 0) continue;
    PrefetchAhead<> next(b + 1 < n_blocks ? a.v.blocks[b + 1] : nullptr,
                         pq_block_bytes(a.v.M, a.v.nbits), a.rank / 4);
    for (int quad = 0; quad < a.rank / 4; ++quad) {
      next.step();
      few_quad<kRegs, kCodes, kHeads>(a, s, b, quad, reader, groups);
    }
  }
}

template <int kRegs, int kHeads>
void few_values(const CodedAttendArgs& a, const CodedScratch& s, const uint8_t* any) {
  const CodeReader<kRegs != 4> reader(a.v.nbits);
  const int dsub = a.rank / a.v.M;
  if (dsub % 4 == 0)
    few_blocks<kRegs, 1, kHeads>(a, s, reader, any);
  else if (dsub == 2)
    few_blocks<kRegs, 2, kHeads>(a, s, reader, any);
  else
    few_blocks<kRegs, 4, kHeads>(a, s, reader, any);
}

template <int kHeads>
void few_value_pass(const CodedAttendArgs& a, const CodedScratch& s, const float* middle) {
  HeadWeights heads[kHeads];
  uint8_t* any = s.needed;
  for (std::size_t g = 0; g < s.stride / kByteLanes; ++g) any[g] = 0;
  PhaseClock clock(a.stats);
  for (int h = 0; h < kHeads; ++h) heads[h] = weigh_run(a, s, h, any);
  clock.end(&AttendStats::weights);
  for (int i = 0; i < kHeads * a.rank; ++i) store(s.lane_sums + i * kLanes, zero());
  if (a.v.nbits == 8)
    few_values<4, kHeads>(a, s, any);
  else if (a.v.nbits == 7)
    few_values<2, kHeads>(a, s, any);
  else
    few_values<1, kHeads>(a, s, any);
  for (int h = 0; h < kHeads; ++h)
    for (int i = 0; i < a.rank; i += 4)
      add_axes(a, h, i, s.lane_sums + static_cast<std::ptrdiff_t>(h * a.rank + i) * kLanes,
               heads[h], middle);
  clock.end(&AttendStats::values);
}

/// value_pass for any number of heads.
inline void any_value_pass(const CodedAttendArgs& a, const CodedScratch& s, const float* middle) {
  switch (a.n_heads) {
    case 1:
      return few_value_pass<1>(a, s, middle);
    case 2:
      return few_value_pass<2>(a, s, middle);
    case 3:
      return few_value_pass<3>(a, s, middle);
    case 4:
      return few_value_pass<4>(a, s, middle);
    default:
      return value_pass(a, s, middle);
  }
}

}  // namespace
}  // namespace million::MILLION_ISA
