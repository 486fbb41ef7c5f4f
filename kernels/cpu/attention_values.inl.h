// SPDX-License-Identifier: Apache-2.0
// The second half of attention on codes: from scores of a run to weights and weighted sums of
// values, for any number of heads that read the same codes. Values are decoded to signed bytes four
// axes at a time, weights are bytes, products 32-bit integers. 64-token groups of a head whose
// weight is surely below a bound are left out. Needs the registers of vec_avx512_bytes.h.
#pragma once

#include "kernels/coded_scratch.h"
#include "kernels/cpu/phase_clock.inl.h"
#include "kernels/cpu/softmax_tile.inl.h"

namespace million::MILLION_ISA {
namespace {

constexpr int kBlockGroups = kPqBlock / kByteLanes;

/// Weights are bytes in units of 1/255 of the largest in their block. They are dithered: most
/// weights of a block may be below half a unit. A block whose weights are all below kLeastWeight of
/// the largest of all is left out.
constexpr float kLeastWeight = 5.96046448e-8f;  ///< 4^-12

/// Four axes of a side for some 64-token groups; `take` gets the four registers of each.
template <int kRegs, bool kUnsigned, class GroupAt, class Take>
MILLION_INLINE void decode_quad(const CodedSide& side, int rank, int quad,
                                const CodeReader<kRegs != 4>& reader, int n_groups,
                                const GroupAt& group_at, const Take& take) {
  const int K = 1 << side.nbits, dsub = rank / side.M;
  Bytes t[4][kRegs];
  int m[4];
  for (int j = 0; j < 4; ++j) {
    const ByteTable<kRegs> table(side.tables + static_cast<std::ptrdiff_t>(4 * quad + j) * K, K);
    for (int i = 0; i < kRegs; ++i) t[j][i] = kUnsigned ? make_unsigned(table.t[i]) : table.t[i];
    m[j] = (4 * quad + j) / dsub;
  }
  for (int i = 0; i < n_groups; ++i) {
    const int group = group_at(i), chunk = group % (kPqBlock / kByteLanes);
    const uint8_t* block = side.blocks[group / (kPqBlock / kByteLanes)];
    Bytes axis[4], codes = no_bytes();
    auto upper = upper_half<kRegs>(codes);
    const TokenOrder order;
    for (int j = 0; j < 4; ++j) {
      if (j == 0 || m[j] != m[j - 1]) {
        codes =
            reader.load(block + static_cast<std::size_t>(m[j]) * pq_run_bytes(side.nbits), chunk);
        if (kUnsigned) codes = order.apply(codes);
        upper = upper_half<kRegs>(codes);
      }
      axis[j] = look_up_halves<kRegs>(t[j], codes, upper);
    }
    take(i, group, axis);
  }
}

/// What one head's value pass needs.
struct HeadWeights {
  float factor = 0.0f;  ///< of the sums in units of the run's largest weight
  float mass = 0.0f;    ///< what the kept groups added to the state's sum
};

/// exp(x) of one number.
inline float exp_of(float x) { return first_lane(vexp(set1(x))); }

/// What is added to the weights of a group before they are rounded, so that small ones are right on
/// average and not lost: (j + 1/2) / 64 - 1/2 with j the bits of the token's place in reverse.
struct WeightDither {
  alignas(64) float at[kByteLanes];
  constexpr WeightDither() : at() {
    for (int i = 0; i < kByteLanes; ++i) {
      int j = 0;
      for (int bit = 0; bit < 6; ++bit) j |= (i >> bit & 1) << (5 - bit);
      at[i] = (static_cast<float>(j) + 0.5f) / 64.0f - 0.5f;
    }
  }
};
constexpr WeightDither kDither;

/// Weights of one group's 64 scores as bytes in units of exp(top) / 255; returns their sum.
inline float group_weights(const float* score, float top, uint8_t* bytes) {
  constexpr float kLog2Of255 = 7.99435344f, kLog2OfE = 1.44269504f;
  const F shift = set1(kLog2Of255 - top * kLog2OfE);
  const F log2_of_e = set1(kLog2OfE);
  const auto weight = [&](int t) {
    return to_ints(vexp2_rough(vfma(load(score + t), log2_of_e, shift)) + load(kDither.at + t));
  };
  const Bytes packed = pack_u8(weight(0), weight(kLanes), weight(2 * kLanes), weight(3 * kLanes));
  store_bytes(bytes, packed);
  return sum_u8(packed);
}

/// Scores behind the run, up to a whole group, weigh nothing.
inline void fill_last_group(float* score, int n_tokens) {
  for (int t = n_tokens; t % kByteLanes != 0; ++t) score[t] = -INFINITY;
}

/// Weights of one head's run as bytes, 0 in groups that do not count, and the unit of each block in
/// s.block_units; any [groups] gets 1 where a group counts. Merges the state and scales the head's
/// accumulator.
HeadWeights weigh_run(const CodedAttendArgs& a, const CodedScratch& s, int h, uint8_t* any) {
  float* score = s.scores + static_cast<std::size_t>(h) * s.stride;
  uint8_t* weights = s.weights + static_cast<std::size_t>(h) * s.stride;
  float* units = s.block_units + static_cast<std::size_t>(h) * (s.stride / kPqBlock);
  const int n_groups = (a.n_tokens + kByteLanes - 1) / kByteLanes;
  fill_last_group(score, a.n_tokens);
  float max = -INFINITY, total = 0.0f;
  for (int g = 0; g < n_groups; g += kBlockGroups) {
    float top = -INFINITY;
    for (int i = g; i < g + kBlockGroups && i < n_groups; ++i) {
      const float x = max64(score + i * kByteLanes);
      if (x > top) top = x;
    }
    s.block_max[g / kBlockGroups] = top;
    if (top > max) max = top;
  }
  for (int b = 0; b * kBlockGroups < n_groups; ++b) {
    const float top = s.block_max[b], relative = exp_of(top - max);
    units[b] = relative > kLeastWeight ? relative / 255.0f : 0.0f;
    for (int g = b * kBlockGroups; g < (b + 1) * kBlockGroups && g < n_groups; ++g) {
      s.group_sums[g] = 0.0f;
      if (units[b] > 0.0f)
        s.group_sums[g] =
            units[b] * group_weights(score + g * kByteLanes, top, weights + g * kByteLanes);
      total += s.group_sums[g];
    }
  }
  const float own = max + std::log(total);
  const float bound = a.floor && a.floor[h] > own ? a.floor[h] : own;
  const float least = a.skip * std::exp(bound - max);
  float kept = 0.0f, lost = 0.0f;
  int n = 0;
  for (int g = 0; g < n_groups; ++g) {
    if (s.group_sums[g] > least) {
      kept += s.group_sums[g];
      any[g] = 1;
      ++n;
    } else {
      lost += s.group_sums[g];
      store_bytes(weights + kByteLanes * g, no_bytes());
    }
  }
  if (a.stats) {
    a.stats->groups_left_out += n_groups - n;
    a.stats->groups += n_groups;
    a.stats->mass_left_out += lost * std::exp(max - bound);
  }
  if (n == 0) return {};
  SoftmaxState& state = a.state[h];
  scale_row(a.acc + static_cast<std::ptrdiff_t>(h) * a.rank, state.rescale(max), a.rank);
  HeadWeights result;
  result.factor = std::exp(max - state.max);
  result.mass = result.factor * kept;
  state.sum += result.mass;
  return result;
}

/// Groups of one block that count.
struct BlockGroups {
  int n = 0;
  uint8_t at[kBlockGroups];
  BlockGroups(const uint8_t* any, int block, int n_groups) {
    for (int i = 0; i < kBlockGroups && block * kBlockGroups + i < n_groups; ++i)
      if (any[block * kBlockGroups + i]) at[n++] = static_cast<uint8_t>(i);
  }
};

/// Heads whose values are summed together: a load of the values serves three.
constexpr int kSumHeads = 3;

/// to [4][16 lanes] += unit * integer sums of four axes.
MILLION_INLINE void add_lanes(const Ints* sum, float unit, float* to) {
  for (int j = 0; j < 4; ++j)
    store(to + j * kLanes, vfma(to_floats(sum[j]), set1(unit), load(to + j * kLanes)));
}

/// sums [kHeads][4][16 lanes] += unit * weighted values [groups of the block][4][64] of four axes.
template <int kHeads>
MILLION_INLINE void sum_block(const CodedScratch& s, int head, int block, const uint8_t* values,
                              const BlockGroups& groups, float* sums) {
  const uint8_t* weights = s.weights + static_cast<std::size_t>(head) * s.stride +
                           static_cast<std::size_t>(block) * kPqBlock;
  Ints sum[kHeads][4] = {};
  for (int i = 0; i < groups.n; ++i) {
    const uint8_t* value = values + 4 * kByteLanes * groups.at[i];
    Bytes axis[4];
    for (int j = 0; j < 4; ++j) axis[j] = load_bytes(value + kByteLanes * j);
    for (int h = 0; h < kHeads; ++h) {
      const Bytes weight =
          load_bytes(weights + static_cast<std::size_t>(h) * s.stride + kByteLanes * groups.at[i]);
      for (int j = 0; j < 4; ++j) sum[h][j] = dot_bytes(sum[h][j], weight, axis[j]);
    }
  }
  const float* units = s.block_units + static_cast<std::size_t>(head) * (s.stride / kPqBlock) +
                       static_cast<std::size_t>(block);
  for (int h = 0; h < kHeads; ++h)
    add_lanes(sum[h], units[static_cast<std::size_t>(h) * (s.stride / kPqBlock)],
              sums + 4 * kLanes * h);
}

/// acc of one head, axes [at, at + 4) += factor * scale * lane sums [4][16], and the middle's part.
MILLION_INLINE void add_axes(const CodedAttendArgs& a, int h, int at, const float* sums,
                             const HeadWeights& head, const float* middle) {
  alignas(64) float sum[kLanes] = {};
  reduce_add4(sum, load(sums), load(sums + kLanes), load(sums + 2 * kLanes),
              load(sums + 3 * kLanes));
  float* acc = a.acc + static_cast<std::ptrdiff_t>(h) * a.rank + at;
  const F scale = load_part(a.v.scale + at, 4) * set1(head.factor);
  F total = vfma(load_part(sum, 4), scale, load_part(acc, 4));
  if (middle) total = vfma(load_part(middle + at, 4), set1(head.mass), total);
  store_part(acc, total, 4);
}

/// One block's part of four axes for all heads.
template <int kRegs>
MILLION_INLINE void value_block(const CodedAttendArgs& a, const CodedScratch& s, int quad,
                                int block, const CodeReader<kRegs != 4>& reader, const uint8_t* any,
                                float* sums) {
  const int n_groups = (a.n_tokens + kByteLanes - 1) / kByteLanes;
  const int n_batches = (a.n_heads + kSumHeads - 1) / kSumHeads;
  const BlockGroups all(any + static_cast<std::ptrdiff_t>(n_batches) * n_groups, block, n_groups);
  if (all.n == 0) return;
  alignas(64) uint8_t values[4 * kPqBlock];
  decode_quad<kRegs, false>(
      a.v, a.rank, quad, reader, all.n, [&](int i) { return block * kBlockGroups + all.at[i]; },
      [&](int i, int, const Bytes* axis) {
        for (int j = 0; j < 4; ++j)
          store_bytes(values + 4 * kByteLanes * all.at[i] + kByteLanes * j, axis[j]);
      });
  for (int batch = 0; batch < n_batches; ++batch) {
    const int head = batch * kSumHeads;
    const BlockGroups groups(any + static_cast<std::ptrdiff_t>(batch) * n_groups, block, n_groups);
    float* to = sums + 4 * kLanes * head;
    if (a.n_heads - head >= 3)
      sum_block<3>(s, head, block, values, groups, to);
    else if (a.n_heads - head == 2)
      sum_block<2>(s, head, block, values, groups, to);
    else
      sum_block<1>(s, head, block, values, groups, to);
  }
}

/// Weights of all heads; any [batches + 1][groups]: those that some head of a batch of kSumHeads
/// needs, and those that any needs.
inline uint8_t* weigh_heads(const CodedAttendArgs& a, const CodedScratch& s, HeadWeights* heads) {
  const int n_groups = (a.n_tokens + kByteLanes - 1) / kByteLanes;
  const int n_batches = (a.n_heads + kSumHeads - 1) / kSumHeads;
  uint8_t* all = s.needed + static_cast<std::ptrdiff_t>(n_batches) * n_groups;
  for (uint8_t* at = s.needed; at < all + n_groups; ++at) *at = 0;
  for (int h = 0; h < a.n_heads; ++h)
    heads[h] = weigh_run(a, s, h, s.needed + static_cast<std::ptrdiff_t>(h / kSumHeads) * n_groups);
  for (int batch = 0; batch < n_batches; ++batch)
    for (int g = 0; g < n_groups; ++g)
      all[g] |= s.needed[static_cast<std::ptrdiff_t>(batch) * n_groups + g];
  return s.needed;
}

template <int kRegs>
void value_pass(const CodedAttendArgs& a, const CodedScratch& s,
                const CodeReader<kRegs != 4>& reader, const float* middle) {
  HeadWeights heads[kMaxCodedHeads];
  PhaseClock clock(a.stats);
  const uint8_t* any = weigh_heads(a, s, heads);
  clock.end(&AttendStats::weights);
  const int n_blocks = (a.n_tokens + kPqBlock - 1) / kPqBlock, dsub = a.rank / a.v.M;
  alignas(64) float sums[kMaxCodedHeads * 4 * kLanes];
  for (int quad = 0; quad < a.rank / 4; ++quad) {
    for (int i = 0; i < 4 * a.n_heads; ++i) store(sums + i * kLanes, zero());
    const int next = (4 * quad + 4) / dsub, next_end = (4 * quad + 7) / dsub + 1;
    for (int block = 0; block < n_blocks; ++block) {
      for (int m = next; m < next_end && m < a.v.M; ++m)
        for (std::size_t i = 0; i < pq_run_bytes(a.v.nbits); i += 64)
          __builtin_prefetch(
              a.v.blocks[block] + static_cast<std::size_t>(m) * pq_run_bytes(a.v.nbits) + i, 0, 3);
      value_block<kRegs>(a, s, quad, block, reader, any, sums);
    }
    for (int h = 0; h < a.n_heads; ++h)
      add_axes(a, h, 4 * quad, sums + 4 * kLanes * h, heads[h], middle);
  }
  clock.end(&AttendStats::values);
}

/// Weights of s.scores and the value pass; centroids are scale * byte + middle [rank] (nullptr: 0).
inline void value_pass(const CodedAttendArgs& a, const CodedScratch& s, const float* middle) {
  if (a.v.nbits == 8)
    value_pass<4>(a, s, CodeReader<false>(8), middle);
  else if (a.v.nbits == 7)
    value_pass<2>(a, s, CodeReader<true>(7), middle);
  else
    value_pass<1>(a, s, CodeReader<true>(a.v.nbits), middle);
}

}  // namespace
}  // namespace million::MILLION_ISA
