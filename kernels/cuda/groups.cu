// SPDX-License-Identifier: Apache-2.0
// Scalar codes in groups: exact rows of the ring to codes, and codes to rows of halves. The
// formulas and the order of every operation are those of lib/quant/group_store.cpp, so that codes
// and scales have the same bits as on the CPU: one thread goes through a group from its first value
// on, and divisions are the exact ones.
#include "kernels/cuda/launch.h"

namespace million::cuda::MILLION_CUDA_NS {

namespace groups {
constexpr int kThreads = 128;
constexpr int kSlice = 16;  ///< tokens of a decoding thread in layout kChannels

MILLION_DEVICE uint16_t finite_half(float x) {
  return to_half(x < -65504.0f ? -65504.0f : 65504.0f < x ? 65504.0f : x);
}

/// encode_value of group_store.h.
MILLION_DEVICE uint32_t encode_value(float x, float scale, float zero, int top, int bias) {
  const float low = static_cast<float>(-bias), high = static_cast<float>(top - bias);
  const float q = scale > 0.0f ? (x - zero) / scale : 0.0f;
  const float above = low < q ? q : low, clamped = high < above ? high : above;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to even
  return static_cast<uint32_t>(static_cast<int>((clamped + kRound) - kRound) + bias);
}

/// Codes of value(0 .. n - 1), 32 bits at a time from the first word on, the last one filled up
/// with zero bits. Ranges as fit_range has them, of the first smallest and the last largest value:
/// the sign of a zero shows in the scales.
template <class Value>
MILLION_DEVICE void encode_group(const Value& value, int n, const GroupCodesView& v, bool symmetric,
                                 uint32_t* codes, uint16_t* scales) {
  float low = value(0), high = low;
  for (int i = 1; i < n; ++i) {
    const float x = value(i);
    low = x < low ? x : low;
    high = x < high ? high : x;
  }
  const int top = (1 << v.bits) - (symmetric ? 2 : 1),
            bias = symmetric ? (1 << (v.bits - 1)) - 1 : 0;
  uint16_t scale_bits, zero_bits = 0;
  if (symmetric) {
    const float a = fabsf(low), b = fabsf(high);
    scale_bits = finite_half((a < b ? b : a) / static_cast<float>(bias));
  } else {
    scale_bits = finite_half((high - low) / static_cast<float>(top));
    zero_bits = finite_half(low);
  }
  scales[0] = scale_bits;
  if (!symmetric) scales[1] = zero_bits;
  const float scale = from_half(scale_bits), zero = from_half(zero_bits);
  uint32_t word = 0;
  int have = 0;
  for (int i = 0; i < n; ++i) {
    word |= encode_value(value(i), scale, zero, top, bias) << have;
    have += v.bits;
    if (have == 32) *codes++ = word, word = 0, have = 0;
  }
  if (have > 0) *codes = word;
}

/// Codes and scales of a KV head. A code is `bits` bits, so a group of either layout has its codes
/// at group index * group * bits / 8.
MILLION_DEVICE size_t first_group(const GroupCodesView& v, int d, int n_kv_heads) {
  const size_t line = static_cast<size_t>(blockIdx.z) * n_kv_heads + blockIdx.y;
  return line * v.capacity * d / v.group;
}
}  // namespace groups

/// Grid (groups of tokens, n_kv_heads, batch), one thread a channel.
__global__ void encode_channels_kernel(const GroupEncodeArgs a) {
  using namespace groups;
  const int d = a.head_dim, channel = static_cast<int>(threadIdx.x);
  const int first = static_cast<int>(blockIdx.x) * a.codes.group;
  const int n = a.n - first < a.codes.group ? a.n - first : a.codes.group;
  const size_t line = static_cast<size_t>(blockIdx.z) * a.n_kv_heads + blockIdx.y;
  const uint16_t* ring = a.ring + line * a.ring_rows * d + channel;
  const int token = a.n_sinks + a.begin + first, mask = a.ring_rows - 1;
  const auto value = [&](int i) {
    return from_half(ring[static_cast<size_t>((token + i) & mask) * d]);
  };
  const size_t group = first_group(a.codes, d, a.n_kv_heads) +
                       static_cast<size_t>((a.begin + first) / a.codes.group) * d + channel;
  encode_group(
      value, n, a.codes, a.symmetric,
      reinterpret_cast<uint32_t*>(a.codes.codes + group * (a.codes.group * a.codes.bits / 8)),
      a.codes.scales + group * (a.codes.zeros ? 2 : 1));
}

/// Grid (threads over groups of all tokens, n_kv_heads, batch), one thread a group.
__global__ void encode_tokens_kernel(const GroupEncodeArgs a) {
  using namespace groups;
  const int d = a.head_dim, per_token = d / a.codes.group;
  const int index = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (index >= a.n * per_token) return;
  const int u = a.begin + index / per_token, g = index % per_token;
  const size_t line = static_cast<size_t>(blockIdx.z) * a.n_kv_heads + blockIdx.y;
  const uint16_t* row =
      a.ring + (line * a.ring_rows + ((a.n_sinks + u) & (a.ring_rows - 1))) * d + g * a.codes.group;
  const size_t group =
      first_group(a.codes, d, a.n_kv_heads) + static_cast<size_t>(u) * per_token + g;
  encode_group(
      [&](int i) { return from_half(row[i]); }, a.codes.group, a.codes, a.symmetric,
      reinterpret_cast<uint32_t*>(a.codes.codes + group * (a.codes.group * a.codes.bits / 8)),
      a.codes.scales + group * (a.codes.zeros ? 2 : 1));
}

namespace groups {
struct Scale {
  float scale, zero;
};
MILLION_DEVICE Scale scale_at(const GroupCodesView& v, size_t group) {
  if (!v.zeros) return {from_half(v.scales[group]), 0.0f};
  const uint32_t both = reinterpret_cast<const uint32_t*>(v.scales)[group];
  return {low_half(both), high_half(both)};
}
MILLION_DEVICE float decode_value(uint32_t code, const Scale& s, int offset) {
  return static_cast<float>(static_cast<int>(code) - offset) * s.scale + s.zero;
}
}  // namespace groups

/// Grid (slices of 16 tokens, n_kv_heads, batch), one thread two channels.
__global__ void decode_channels_kernel(const GroupDecodeArgs a) {
  using namespace groups;
  const GroupCodesView& v = a.codes;
  const int d = a.to.head_dim, pair = static_cast<int>(threadIdx.x), end = a.to.begin + a.to.n;
  const int u0 = (a.to.begin / kSlice + static_cast<int>(blockIdx.x)) * kSlice;
  const size_t line = static_cast<size_t>(blockIdx.z) * a.to.n_kv_heads + blockIdx.y;
  const size_t group =
      first_group(v, d, a.to.n_kv_heads) + static_cast<size_t>(u0 / v.group) * d + 2 * pair;
  const int group_bytes = v.group * v.bits / 8;
  const unsigned char* codes = v.codes + group * group_bytes + u0 % v.group * v.bits / 8;
  const Scale s0 = scale_at(v, group), s1 = scale_at(v, group + 1);
  const int per_word = 32 / v.bits;
  const uint32_t mask = (1u << v.bits) - 1;
  uint32_t* to = reinterpret_cast<uint32_t*>(a.to.rows + (line * a.to.capacity + u0) * d) + pair;
  for (int w = 0; w < kSlice / per_word; ++w) {
    const uint32_t w0 = reinterpret_cast<const uint32_t*>(codes)[w];
    const uint32_t w1 = reinterpret_cast<const uint32_t*>(codes + group_bytes)[w];
    for (int i = 0; i < per_word; ++i) {
      const int t = w * per_word + i;
      if (u0 + t < a.to.begin || u0 + t >= end) continue;
      to[static_cast<size_t>(t) * (d / 2)] =
          pack_halves(decode_value(w0 >> i * v.bits & mask, s0, v.offset),
                      decode_value(w1 >> i * v.bits & mask, s1, v.offset));
    }
  }
}

/// Grid (threads over tokens and groups of 8 channels, n_kv_heads, batch).
__global__ void decode_tokens_kernel(const GroupDecodeArgs a) {
  using namespace groups;
  const GroupCodesView& v = a.codes;
  const int d = a.to.head_dim, chunks = d / 8;
  const int index = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (index >= a.to.n * chunks) return;
  const int u = a.to.begin + index / chunks, chunk = index % chunks;
  const size_t line = static_cast<size_t>(blockIdx.z) * a.to.n_kv_heads + blockIdx.y;
  const size_t token = line * v.capacity + u;
  const Scale s = scale_at(v, token * (d / v.group) + chunk * 8 / v.group);
  const unsigned char* codes = v.codes + (token * d + chunk * 8) * v.bits / 8;
  const uint32_t mask = (1u << v.bits) - 1;
  uint32_t pairs[4];
  MILLION_UNROLL
  for (int p = 0; p < 4; ++p) {
    const int bit = 2 * p * v.bits;
    uint32_t both = codes[bit / 8];
    if (v.bits == 8) both |= static_cast<uint32_t>(codes[bit / 8 + 1]) << 8;
    both >>= bit % 8;
    pairs[p] = pack_halves(decode_value(both & mask, s, v.offset),
                           decode_value(both >> v.bits & mask, s, v.offset));
  }
  reinterpret_cast<uint4*>(a.to.rows)[(line * a.to.capacity + u) * chunks + chunk] =
      uint4{pairs[0], pairs[1], pairs[2], pairs[3]};
}

namespace {
using namespace groups;

int group_encode(StreamHandle stream, const GroupEncodeArgs& a) {
  const unsigned heads = static_cast<unsigned>(a.n_kv_heads),
                 batch = static_cast<unsigned>(a.batch);
  if (a.codes.layout == GroupCodesView::Layout::kChannels) {
    const dim3 grid((a.n + a.codes.group - 1) / a.codes.group, heads, batch);
    return launch(encode_channels_kernel, grid, dim3(a.head_dim), 0, stream, a);
  }
  const int n = a.n * (a.head_dim / a.codes.group);
  const dim3 grid((n + kThreads - 1) / kThreads, heads, batch);
  return launch(encode_tokens_kernel, grid, dim3(kThreads), 0, stream, a);
}
int group_decode(StreamHandle stream, const GroupDecodeArgs& a) {
  const unsigned heads = static_cast<unsigned>(a.to.n_kv_heads);
  const unsigned batch = static_cast<unsigned>(a.to.batch);
  if (a.to.n == 0) return 0;
  if (a.codes.layout == GroupCodesView::Layout::kChannels) {
    const int slices = (a.to.begin + a.to.n - 1) / kSlice - a.to.begin / kSlice + 1;
    return launch(decode_channels_kernel, dim3(slices, heads, batch), dim3(a.to.head_dim / 2), 0,
                  stream, a);
  }
  const int n = a.to.n * (a.to.head_dim / 8);
  const dim3 grid((n + kThreads - 1) / kThreads, heads, batch);
  return launch(decode_tokens_kernel, grid, dim3(kThreads), 0, stream, a);
}

}  // namespace

void add_groups(DeviceOps& ops) {
  ops.group_encode = group_encode;
  ops.group_decode = group_decode;
}

}  // namespace million::cuda::MILLION_CUDA_NS
