// SPDX-License-Identifier: Apache-2.0
// Weights and values of few heads that read the same codes (plain product codes: the query heads of
// one KV head), block by block behind the block's scores: decoded values stay in registers and meet
// the weights of all heads there, and memory is read evenly over the whole time. A head's running
// maximum scales its sums as in flash attention. Needs the registers of vec_avx512_bytes.h.
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

/// One head of a run so far: weights are relative to `max`.
struct FewHead {
  float max = -INFINITY, sum = 0.0f, lost = 0.0f;
};

/// A new maximum: what was summed so far shrinks.
inline void raise_max(const CodedAttendArgs& a, const CodedScratch& s, int h, float top,
                      FewHead* head) {
  const float factor = exp_of(head->max - top);
  head->max = top;
  if (head->sum == 0.0f) return;
  head->sum *= factor, head->lost *= factor;
  scale_row(s.lane_sums + static_cast<std::ptrdiff_t>(h) * a.rank * kLanes, factor,
            a.rank * kLanes);
}

/// Weights of one head's n scores of a block as bytes, 0 in groups that do not count; any [groups]
/// gets 1 where a group counts. Returns the bytes' unit.
float weigh_block(const CodedAttendArgs& a, const CodedScratch& s, int h, int n, FewHead* head,
                  uint8_t* any) {
  float* score = s.scores + static_cast<std::size_t>(h) * s.stride;
  uint8_t* weights = s.weights + static_cast<std::size_t>(h) * s.stride;
  const int n_groups = (n + kByteLanes - 1) / kByteLanes;
  fill_last_group(score, n);
  float top = -INFINITY, total = 0.0f, sums[kBlockGroups] = {};
  for (int g = 0; g < n_groups; ++g) {
    const float x = max64(score + g * kByteLanes);
    if (x > top) top = x;
  }
  if (top > head->max) raise_max(a, s, h, top, head);
  const float relative = exp_of(top - head->max);
  const float unit = relative / 255.0f;
  for (int g = 0; g < n_groups && relative > kLeastWeight; ++g) {
    sums[g] = unit * group_weights(score + g * kByteLanes, top, weights + g * kByteLanes);
    total += sums[g];
  }
  float least = 0.0f;
  if (a.skip > 0.0f) {  // against the most that is known of all weights
    const float elsewhere = a.floor ? exp_of(a.floor[h] - head->max) : 0.0f;
    least = a.skip * (head->sum + total > elsewhere ? head->sum + total : elsewhere);
  }
  int kept = 0;
  for (int g = 0; g < n_groups; ++g) {
    const bool counts = sums[g] > least;
    (counts ? head->sum : head->lost) += sums[g];
    kept += counts;
    if (counts)
      any[g] = 1;
    else
      store_bytes(weights + kByteLanes * g, no_bytes());
  }
  if (a.stats) a.stats->groups_left_out += n_groups - kept, a.stats->groups += n_groups;
  return unit;
}

/// One block's values of four axes: lane_sums [kHeads][rank][16] from axis 4 quad on.
template <int kRegs, int kCodes, int kHeads>
MILLION_INLINE void few_quad(const CodedAttendArgs& a, const CodedScratch& s, const uint8_t* block,
                             int quad, const CodeReader<kRegs != 4>& reader,
                             const BlockGroups& groups, const float* units) {
  const int K = 1 << a.v.nbits, dsub = a.rank / a.v.M;
  Bytes t[4][kRegs];
  const uint8_t* runs[kCodes];
  for (int j = 0; j < 4; ++j) {
    const ByteTable<kRegs> table(a.v.tables + static_cast<std::ptrdiff_t>(4 * quad + j) * K, K);
    for (int i = 0; i < kRegs; ++i) t[j][i] = table.t[i];
  }
  for (int i = 0; i < kCodes; ++i)
    runs[i] = block + static_cast<std::size_t>((4 * quad + 4 / kCodes * i) / dsub) *
                          pq_run_bytes(a.v.nbits);
  Ints sum[kHeads][4] = {};
  for (int i = 0; i < groups.n; ++i) {
    Bytes axis[4];
    decode_axes<kRegs, kCodes>(t, runs, groups.at[i], reader, axis);
    for (int h = 0; h < kHeads; ++h) {
      const Bytes weight = load_bytes(s.weights + static_cast<std::size_t>(h) * s.stride +
                                      kByteLanes * groups.at[i]);
      for (int j = 0; j < 4; ++j) sum[h][j] = dot_bytes(sum[h][j], weight, axis[j]);
    }
  }
  for (int h = 0; h < kHeads; ++h)
    add_lanes(sum[h], units[h],
              s.lane_sums + static_cast<std::ptrdiff_t>(h * a.rank + 4 * quad) * kLanes);
}

/// All axes of a block; meanwhile the block that follows is fetched.
template <int kRegs, int kCodes, int kHeads>
void few_quads(const CodedAttendArgs& a, const CodedScratch& s, const uint8_t* block,
               const BlockGroups& groups, const float* units, PrefetchAhead<>& next) {
  const CodeReader<kRegs != 4> reader(a.v.nbits);
  for (int quad = 0; quad < a.rank / 4; ++quad) {
    next.step();
    few_quad<kRegs, kCodes, kHeads>(a, s, block, quad, reader, groups, units);
  }
}

template <int kRegs, int kHeads>
void few_values(const CodedAttendArgs& a, const CodedScratch& s, const uint8_t* block,
                const BlockGroups& groups, const float* units, PrefetchAhead<>& next) {
  const int dsub = a.rank / a.v.M;
  if (dsub % 4 == 0)
    few_quads<kRegs, 1, kHeads>(a, s, block, groups, units, next);
  else if (dsub == 2)
    few_quads<kRegs, 2, kHeads>(a, s, block, groups, units, next);
  else
    few_quads<kRegs, 4, kHeads>(a, s, block, groups, units, next);
}

/// Weights and values of a block whose n scores are in s.scores.
template <int kHeads>
void few_block(const CodedAttendArgs& a, const CodedScratch& s, int block, int n, FewHead* heads,
               PhaseClock& clock) {
  uint8_t any[kBlockGroups] = {};
  float units[kHeads];
  for (int h = 0; h < kHeads; ++h) units[h] = weigh_block(a, s, h, n, &heads[h], any);
  clock.end(&AttendStats::weights);
  const bool last = (block + 1) * kPqBlock >= a.n_tokens;
  PrefetchAhead<> next(last ? nullptr : a.v.blocks[block + 1], pq_block_bytes(a.v.M, a.v.nbits),
                       a.rank / 4);
  const BlockGroups groups(any, 0, kBlockGroups);
  if (groups.n == 0) return;
  if (a.v.nbits == 8)
    few_values<4, kHeads>(a, s, a.v.blocks[block], groups, units, next);
  else if (a.v.nbits == 7)
    few_values<2, kHeads>(a, s, a.v.blocks[block], groups, units, next);
  else
    few_values<1, kHeads>(a, s, a.v.blocks[block], groups, units, next);
  clock.end(&AttendStats::values);
}

/// few_block for a.n_heads heads, at most kFewHeads.
inline void few_block_any(const CodedAttendArgs& a, const CodedScratch& s, int block, int n,
                          FewHead* heads, PhaseClock& clock) {
  switch (a.n_heads) {
    case 1:
      return few_block<1>(a, s, block, n, heads, clock);
    case 2:
      return few_block<2>(a, s, block, n, heads, clock);
    case 3:
      return few_block<3>(a, s, block, n, heads, clock);
    default:
      return few_block<4>(a, s, block, n, heads, clock);
  }
}

inline void few_begin(const CodedAttendArgs& a, const CodedScratch& s) {
  for (int i = 0; i < a.n_heads * a.rank; ++i) store(s.lane_sums + i * kLanes, zero());
}

/// Merges the run into the states and accumulators.
inline void few_end(const CodedAttendArgs& a, const CodedScratch& s, const FewHead* heads,
                    const float* middle) {
  for (int h = 0; h < a.n_heads; ++h) {
    const FewHead& head = heads[h];
    if (a.stats && head.lost > 0.0f) {
      const float elsewhere = a.floor ? exp_of(a.floor[h] - head.max) : 0.0f;
      const float all = head.sum + head.lost;
      a.stats->mass_left_out += head.lost / (all > elsewhere ? all : elsewhere);
    }
    if (head.sum == 0.0f) continue;
    SoftmaxState& state = a.state[h];
    scale_row(a.acc + static_cast<std::ptrdiff_t>(h) * a.rank, state.rescale(head.max), a.rank);
    HeadWeights weights;
    weights.factor = std::exp(head.max - state.max);
    weights.mass = weights.factor * head.sum;
    state.sum += weights.mass;
    for (int i = 0; i < a.rank; i += 4)
      add_axes(a, h, i, s.lane_sums + static_cast<std::ptrdiff_t>(h * a.rank + i) * kLanes, weights,
               middle);
  }
}

}  // namespace
}  // namespace million::MILLION_ISA
