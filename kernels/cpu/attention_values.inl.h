// SPDX-License-Identifier: Apache-2.0
// The second half of attention on codes: from scores of a run to weights and weighted sums of
// values, for any number of heads that read the same codes. Values are decoded to signed bytes four
// axes at a time, weights are bytes, products 32-bit integers. 64-token groups of a head whose
// weight is surely below a bound are left out. Needs the registers of vec_avx512_bytes.h.
#pragma once

#include "kernels/coded_scratch.h"
#include "kernels/cpu/softmax_tile.inl.h"

namespace million::MILLION_ISA {
namespace {

/// Weights are bytes in units of 4^-c / 255 of the run's largest; a group of 64 tokens has the
/// class c of its own largest weight, so that a byte always has at least 6 significant bits.
constexpr int kWeightClasses = 12;
constexpr float kLogFour = 1.38629436f;
constexpr float kClassUnit[kWeightClasses] = {
    1 / 255.0f,         1 / 255.0f / 4,      1 / 255.0f / 16,      1 / 255.0f / 64,
    1 / 255.0f / 256,   1 / 255.0f / 1024,   1 / 255.0f / 4096,    1 / 255.0f / 16384,
    1 / 255.0f / 65536, 1 / 255.0f / 262144, 1 / 255.0f / 1048576, 1 / 255.0f / 4194304,
};

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
    CodeQuarters<kRegs> quarters(codes);
    const TokenOrder order;
    for (int j = 0; j < 4; ++j) {
      if (j == 0 || m[j] != m[j - 1]) {
        codes =
            reader.load(block + static_cast<std::size_t>(m[j]) * pq_run_bytes(side.nbits), chunk);
        if (kUnsigned) codes = order.apply(codes);
        quarters = CodeQuarters<kRegs>(codes);
      }
      axis[j] = look_up_quarters<kRegs>(t[j], codes, quarters);
    }
    take(i, group, axis);
  }
}

/// What one head's value pass needs.
struct HeadWeights {
  float factor;                ///< of the sums in units of the run's largest weight
  float mass;                  ///< what the kept groups added to the state's sum
  int n;                       ///< groups that count
  int n_classes;               ///< those that have groups
  int end[kWeightClasses];     ///< of each class in s.groups [h]
  float unit[kWeightClasses];  ///< of its bytes
};

/// Class of a group whose largest score is `below` under the largest of all.
inline int weight_class(float below) {
  const float c = below * (1.0f / kLogFour);
  return c < static_cast<float>(kWeightClasses) ? static_cast<int>(c) : kWeightClasses;
}

/// Weights of one group as bytes in units of 4^-c / 255 of the run's maximum; returns their sum.
inline float group_weights(const float* score, int n, float max, int c, uint8_t* bytes) {
  const F shift = set1(static_cast<float>(c) * kLogFour - max), units = set1(255.0f);
  auto sum = no_bytes();
  for (int t = 0; t < kByteLanes; t += kLanes) {
    F w = zero();
    if (t + kLanes <= n)
      w = vexp(load(score + t) + shift);
    else if (t < n)
      w = vexp(load_part(score + t, n - t, -INFINITY) + shift);
    sum = add_int(sum, store_rounded(bytes + t, w * units, 0));
  }
  return sum_int(sum);
}

/// Weights of one head's run, and the groups that count, by class. Merges the state and scales the
/// head's accumulator.
void run_weights(const CodedAttendArgs& a, const CodedScratch& s, int h, HeadWeights* result) {
  const float* score = s.scores + static_cast<std::size_t>(h) * s.stride;
  uint8_t* weights = s.weights + static_cast<std::size_t>(h) * s.stride;
  const int n_groups = (a.n_tokens + kByteLanes - 1) / kByteLanes;
  float max = -INFINITY, total = 0.0f;
  const auto size = [&](int g) {
    return a.n_tokens - g * kByteLanes < kByteLanes ? a.n_tokens - g * kByteLanes : kByteLanes;
  };
  for (int g = 0; g < n_groups; ++g) {
    const float top = max_scaled(score + g * kByteLanes, size(g), set1(1.0f));
    s.group_max[g] = top;
    if (top > max) max = top;
  }
  int count[kWeightClasses + 1] = {};
  for (int g = 0; g < n_groups; ++g) {
    const int c = weight_class(max - s.group_max[g]);
    s.group_class[g] = static_cast<uint8_t>(c);
    s.group_sums[g] = 0.0f;
    if (c == kWeightClasses) continue;  // below 4^-12 of the maximum
    s.group_sums[g] = kClassUnit[c] * group_weights(score + g * kByteLanes, size(g), max, c,
                                                    weights + g * kByteLanes);
    total += s.group_sums[g];
  }
  const float own = max + std::log(total);
  const float bound = a.floor && a.floor[h] > own ? a.floor[h] : own;
  const float least = a.skip * std::exp(bound - max);
  float kept = 0.0f;
  for (int g = 0; g < n_groups; ++g) {
    if (!(s.group_sums[g] > least)) s.group_class[g] = kWeightClasses;
    if (s.group_class[g] == kWeightClasses) continue;
    kept += s.group_sums[g];
    ++count[s.group_class[g]];
  }
  int at[kWeightClasses], n = 0;
  result->n_classes = 0;
  for (int c = 0; c < kWeightClasses; ++c) {
    at[c] = n;
    n += count[c];
    if (count[c] == 0) continue;
    result->end[result->n_classes] = n;
    result->unit[result->n_classes++] = kClassUnit[c];
  }
  result->n = n;
  uint16_t* groups = s.groups + static_cast<std::size_t>(h) * (s.stride / kByteLanes);
  for (int g = 0; g < n_groups; ++g)
    if (s.group_class[g] < kWeightClasses)
      groups[at[s.group_class[g]]++] = static_cast<uint16_t>(g);
  if (a.left_out) {
    a.left_out[0] += n_groups - n;
    a.left_out[1] += n_groups;
  }
  if (n == 0) return;
  SoftmaxState& state = a.state[h];
  scale_row(a.acc + static_cast<std::ptrdiff_t>(h) * a.rank, state.rescale(max), a.rank);
  result->factor = std::exp(max - state.max);
  result->mass = result->factor * kept;
  state.sum += result->mass;
}

/// Adds weighted integer sums of four axes over one group.
MILLION_INLINE void sum_group(const uint8_t* values, const uint8_t* weights, uint16_t group,
                              Ints* sum) {
  const Bytes weight = load_bytes(weights + kByteLanes * std::size_t{group});
  const uint8_t* value = values + 4 * kByteLanes * std::size_t{group};
  for (int j = 0; j < 4; ++j)
    sum[j] = dot_bytes(sum[j], weight, load_bytes(value + kByteLanes * j));
}

/// total [4] = weighted sums of four axes over one head's groups, class by class; in two chains of
/// sums, because one waits for its own results.
MILLION_INLINE void sum_groups(const uint8_t* values, const uint8_t* weights,
                               const uint16_t* groups, const HeadWeights& head, float* total) {
  F sum[4] = {zero(), zero(), zero(), zero()};
  for (int c = 0, i = 0; c < head.n_classes; ++c) {
    const int end = head.end[c];
    Ints even[4] = {}, odd[4] = {};
    for (; i + 2 <= end; i += 2) {
      sum_group(values, weights, groups[i], even);
      sum_group(values, weights, groups[i + 1], odd);
    }
    for (; i < end; ++i) sum_group(values, weights, groups[i], even);
    const F unit = set1(head.unit[c]);
    for (int j = 0; j < 4; ++j) sum[j] = vfma(to_floats(even[j] + odd[j]), unit, sum[j]);
  }
  reduce_add4(total, sum[0], sum[1], sum[2], sum[3]);
}

/// Groups that some head needs, ascending.
inline int join_groups(const CodedAttendArgs& a, const CodedScratch& s, const HeadWeights* heads) {
  const std::size_t slots = s.stride / kByteLanes;
  uint8_t* needed = s.quads;  // free by now
  for (std::size_t g = 0; g < slots; ++g) needed[g] = 0;
  for (int h = 0; h < a.n_heads; ++h) {
    const uint16_t* groups = s.groups + static_cast<std::size_t>(h) * slots;
    for (int i = 0; i < heads[h].n; ++i) needed[groups[i]] = 1;
  }
  int n = 0;
  for (std::size_t g = 0; g < slots; ++g)
    if (needed[g]) s.any_group[n++] = static_cast<uint16_t>(g);
  return n;
}

template <int kRegs>
void value_pass(const CodedAttendArgs& a, const CodedScratch& s,
                const CodeReader<kRegs != 4>& reader, const float* middle) {
  HeadWeights heads[kMaxCodedHeads];
  for (int h = 0; h < a.n_heads; ++h) run_weights(a, s, h, &heads[h]);
  const int n_groups = join_groups(a, s, heads);
  const std::size_t slots = s.stride / kByteLanes;
  const int dsub = a.rank / a.v.M;
  for (int quad = 0; quad < a.rank / 4 && n_groups > 0; ++quad) {
    const int next = (4 * quad + 4) / dsub, next_end = (4 * quad + 7) / dsub + 1;
    decode_quad<kRegs, false>(
        a.v, a.rank, quad, reader, n_groups, [&](int i) { return int{s.any_group[i]}; },
        [&](int, int group, const Bytes* axis) {
          uint8_t* value = s.values + 4 * kByteLanes * static_cast<std::size_t>(group);
          for (int j = 0; j < 4; ++j) store_bytes(value + kByteLanes * j, axis[j]);
          const uint8_t* block = a.v.blocks[group / (kPqBlock / kByteLanes)];
          for (int m = next; m < next_end && m < a.v.M; ++m)
            __builtin_prefetch(block + static_cast<std::size_t>(m) * pq_run_bytes(a.v.nbits) +
                                   group % (kPqBlock / kByteLanes) * 8 * a.v.nbits,
                               0, 3);
        });
    const F scale = load_part(a.v.scale + 4 * quad, 4);
    for (int h = 0; h < a.n_heads; ++h) {
      if (heads[h].n == 0) continue;
      alignas(64) float sum[kLanes] = {};
      sum_groups(s.values, s.weights + static_cast<std::size_t>(h) * s.stride,
                 s.groups + static_cast<std::size_t>(h) * slots, heads[h], sum);
      float* acc = a.acc + static_cast<std::ptrdiff_t>(h) * a.rank + 4 * quad;
      F total = vfma(load_part(sum, 4), scale * set1(heads[h].factor), load_part(acc, 4));
      if (middle) total = vfma(load_part(middle + 4 * quad, 4), set1(heads[h].mass), total);
      store_part(acc, total, 4);
    }
  }
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
