// SPDX-License-Identifier: Apache-2.0
// Flash decoding over rows, one query a sequence, and the merge of parts.
//
// A block has one KV head, its group of up to 8 query heads, and a run of tiles of 64 tokens; grid
// (n_splits, n_kv_heads, batch). Warps never meet before the end: each copies its 16 tokens of the
// next tile to its own shared memory while it works on this one, and has its own softmax.
//
// Products are transposed: tokens (for values: channels) are the 16 rows of the mma and query heads
// its 8 columns. Heads as rows would leave half of each product, and of the sums' registers,
// unused.
//   scores^T [16 tokens][8 heads]  = K [16][d] q^T     A fragments of K: rows as they lie
//   out^T    [d][8 heads]         += V^T [d][16] p^T   A fragments of V: transposing loads
// 16-byte chunk c of row r lies at c ^ (r & 7), so neither loads nor copies meet in a bank.
//
// Group codes (template CODED) are copied as they are and turned to halves in the same shared rows;
// the rest is common. Without codes the loop is the exact fp16 kernel, with nothing added.
#include "kernels/cuda/launch.h"
#include "kernels/hd.h"

namespace million::cuda::MILLION_CUDA_NS {

namespace rows {
constexpr int kWarps = 4, kThreads = 32 * kWarps;
constexpr int kBlocks = 3;  ///< of an SM: what 227 KB have room for at d = 128
constexpr int kSlice = 16;  ///< tokens of a warp in a tile
constexpr int kTileTokens = kWarps * kSlice;
constexpr int kAhead = 4;  ///< fragments loaded before their products
constexpr int kHeads = 8;  ///< columns of a product: heads of a group at most
/// The softmax's reference moves when a score is above it by this power of two. 2^8 is far from the
/// largest half, and the largest weight is never below 1.
constexpr float kSlack = 8.0f;

template <int D>
struct Shape {
  static constexpr int kRow = 2 * D, kSide = kSlice * kRow;  ///< bytes
  static constexpr int kBuffer = 2 * kSide;                  ///< keys, then values
  static constexpr int kWarp = 2 * kBuffer;                  ///< two buffers
  static_assert(kWarp >= kHeads * (D + 2) * 4, "the warp's sums go where its rows were");
};

/// Shared bytes of a slice's codes, and of them with their scales.
MILLION_HD inline int code_bytes(const GroupCodesView& v, int d) { return kSlice * d * v.bits / 8; }
MILLION_HD inline int raw_bytes(const GroupCodesView& v, int d) {
  if (v.layout == GroupCodesView::Layout::kNone) return 0;
  const int groups = v.layout == GroupCodesView::Layout::kChannels ? d : kSlice * d / v.group;
  return code_bytes(v, d) + groups * (v.zeros ? 4 : 2);
}

/// Tokens at work: index i of [0, end) is token i, or i + skip behind the sinks.
struct Span {
  int end, skip, sinks;
};

/// One KV head's keys or values.
struct Side {
  const uint16_t *sinks, *ring;
  int mask;   ///< ring_rows - 1
  int coded;  ///< tokens behind the sinks that are read from codes
  const unsigned char* codes;
  const uint16_t* scales;
  int row_groups;        ///< kTokens: groups of a token
  float slices_inverse;  ///< kChannels: one over the slices of a group
};

template <bool CODED>
MILLION_DEVICE Side side_of(const ExactRows& rows, const GroupCodesView& v, size_t line, int d,
                            int coded) {
  Side s{};
  s.sinks = rows.sinks + line * rows.sink_rows * d;
  s.ring = rows.ring + line * rows.ring_rows * d;
  s.mask = rows.ring_rows - 1;
  if (CODED && v.layout != GroupCodesView::Layout::kNone) {
    s.coded = coded;
    s.codes = v.codes + line * v.capacity * (d * v.bits / 8);
    s.scales = v.scales + line * v.capacity * d / v.group * (v.zeros ? 2 : 1);
    s.row_groups = d / v.group;
    s.slices_inverse = static_cast<float>(kSlice) / static_cast<float>(v.group);
  }
  return s;
}

/// Shared bytes from the slice's first row to chunk `chunk` of row `row`.
template <int D>
MILLION_DEVICE int place(int row, int chunk) {
  return row * Shape<D>::kRow + ((chunk ^ (row & 7)) << 4);
}

/// Starts the copies of the exact rows of indices [i0, i0 + 16). Rows of no token become zero: they
/// weigh nothing, but zero times what is left in memory may be NaN. In place of coded rows comes
/// what the ring has there, for expand_side() to replace.
template <int D>
MILLION_DEVICE void copy_exact(unsigned char* to, const Side& s, const Span& span, int i0) {
  constexpr int kChunks = D / 8, kRowsAtOnce = 32 / kChunks;
  const int lane = static_cast<int>(threadIdx.x & 31), chunk = lane % kChunks;
  const int row0 = lane / kChunks, first = i0 + span.skip;
  if (i0 >= span.sinks && i0 + kSlice <= span.end &&
      (first & s.mask) + kSlice <= s.mask + 1) {  // sixteen rows of the ring, one after another
    const uint16_t* from = s.ring + static_cast<size_t>((first & s.mask) + row0) * D + chunk * 8;
    MILLION_UNROLL
    for (int k = 0; k < kSlice / kRowsAtOnce; ++k)
      __pipeline_memcpy_async(to + place<D>(row0 + k * kRowsAtOnce, chunk),
                              from + k * kRowsAtOnce * D, 16);
    return;
  }
  for (int row = row0; row < kSlice; row += kRowsAtOnce) {
    const int i = i0 + row;
    unsigned char* at = to + place<D>(row, chunk);
    if (i < 0 || i >= span.end) {
      *reinterpret_cast<uint4*>(at) = uint4{0, 0, 0, 0};
      continue;
    }
    const uint16_t* from = i < span.sinks
                               ? s.sinks + static_cast<size_t>(i) * D
                               : s.ring + static_cast<size_t>((i + span.skip) & s.mask) * D;
    __pipeline_memcpy_async(at, from + chunk * 8, 16);
  }
}

/// Starts the copies of a slice's codes, u0 its first token behind the sinks, a multiple of 16:
/// kChannels [d][16 codes], kTokens [16][d codes], then the scales in the order they have.
template <int D, int BITS>
MILLION_DEVICE void copy_codes(unsigned char* to, const Side& s, const GroupCodesView& v, int u0) {
  constexpr int kBytes = kSlice * D * BITS / 8;
  const int lane = static_cast<int>(threadIdx.x & 31), scale_halves = v.zeros ? 2 : 1;
  const uint16_t* scales;
  int n_scales;
  if (v.layout == GroupCodesView::Layout::kChannels) {
    // Slice / slices of a group, from the middle of the slice: exact up to 2^25 tokens.
    const int g = static_cast<int>((static_cast<float>(u0 / kSlice) + 0.5f) * s.slices_inverse);
    const int channel_bytes = v.group * BITS / 8;
    const unsigned char* from = s.codes + static_cast<size_t>(g) * D * channel_bytes +
                                (u0 - g * v.group) * BITS / 8 + lane * channel_bytes;
    MILLION_UNROLL
    for (int i = 0; i < D / 32; ++i)
      __pipeline_memcpy_async(to + (lane + 32 * i) * 2 * BITS, from + 32 * i * channel_bytes,
                              2 * BITS);
    n_scales = D * scale_halves;
    scales = s.scales + static_cast<size_t>(g) * n_scales;
  } else {
    const unsigned char* from = s.codes + static_cast<size_t>(u0) * (D * BITS / 8) + lane * 16;
    MILLION_UNROLL
    for (int i = 0; i < kBytes; i += 512)
      if (i + lane * 16 < kBytes) __pipeline_memcpy_async(to + i + lane * 16, from + i, 16);
    const int row = s.row_groups * scale_halves;
    n_scales = kSlice * row;
    scales = s.scales + static_cast<size_t>(u0) * row;
  }
  if (lane * 8 < n_scales)  // groups of 16 values or more: 256 halves at most
    __pipeline_memcpy_async(to + kBytes + lane * 16, scales + lane * 8, 16);
}

/// Halves (code - offset) * scale + zero of two codes in the low bits of both halves of `codes`. A
/// code under the bits of 1024 is the half 1024 + code, and the difference to 1024 + offset exact;
/// the sum is rounded once.
MILLION_DEVICE uint32_t decode_pair(uint32_t codes, uint32_t mask, uint32_t bias, uint32_t scale,
                                    uint32_t zero) {
  const uint32_t one = 0x3C003C00u;
  return fma_halves(fma_halves(pick_bits(codes, mask, 0x64006400u), one, bias), scale, zero);
}
MILLION_DEVICE uint32_t both_halves(uint32_t h) { return byte_permute(h, h, 0x1010); }
/// -(1024 + offset), twice; offset is below 1024.
MILLION_DEVICE uint32_t bias_pair(int offset) {
  return both_halves(0xE400u + static_cast<uint32_t>(offset));
}

/// Scale and zero of group `at` of those in shared memory, each in both halves.
struct ScalePair {
  uint32_t scale, zero;
};
MILLION_DEVICE ScalePair load_scale(const uint16_t* scales, bool zeros, int at) {
  const uint32_t zero = zeros ? scales[2 * at + 1] : 0u;
  return {both_halves(scales[zeros ? 2 * at : at]), both_halves(zero)};
}

/// Codes of a slice in layout kChannels to rows; `count` rows are coded, WHOLE: all. A lane has two
/// channels, and two more 64 behind.
template <int D, int BITS, bool WHOLE>
MILLION_DEVICE void expand_channels(unsigned char* to, const unsigned char* raw,
                                    const GroupCodesView& v, int count) {
  constexpr int kWords = BITS / 2, kPerHalf = 16 / BITS, kRounds = D / 64;
  constexpr uint32_t kMask = ((1u << BITS) - 1) * 0x10001u;
  const int lane = static_cast<int>(threadIdx.x & 31);
  const uint32_t bias = bias_pair(v.offset);
  uint32_t w[kRounds][2 * kWords], scale[kRounds], zero[kRounds];
  MILLION_UNROLL
  for (int r = 0; r < kRounds; ++r) {
    const int pair = lane + 32 * r;
    MILLION_UNROLL
    for (int i = 0; i < 2 * kWords; ++i)
      w[r][i] = reinterpret_cast<const uint32_t*>(raw)[2 * kWords * pair + i];
    const unsigned char* scales = raw + kSlice * D * BITS / 8;
    if (v.zeros) {
      const uint2 s = reinterpret_cast<const uint2*>(scales)[pair];
      scale[r] = byte_permute(s.x, s.y, 0x5410), zero[r] = byte_permute(s.x, s.y, 0x7632);
    } else {
      scale[r] = reinterpret_cast<const uint32_t*>(scales)[pair], zero[r] = 0;
    }
  }
  MILLION_UNROLL
  for (int row = 0; row < 8; ++row) {  // and row + 8, at the same chunks
    unsigned char* const at = to + (((lane >> 2 ^ row) << 4) | (lane & 3) << 2);
    MILLION_UNROLL
    for (int i = 0; i < 2 * kRounds; ++i) {
      const int r = i / 2, t = row + i % 2 * 8, half = t / kPerHalf;
      const uint32_t codes =
          byte_permute(w[r][half / 2], w[r][half / 2 + kWords], half % 2 != 0 ? 0x7632 : 0x5410);
      const uint32_t x = decode_pair(codes >> t % kPerHalf * BITS, kMask, bias, scale[r], zero[r]);
      if (WHOLE || t < count) *reinterpret_cast<uint32_t*>(at + t * Shape<D>::kRow + r * 128) = x;
    }
  }
}

/// The same for kTokens. A lane has 8 channels of a token, as pairs (c, c + 4) at first.
template <int D, int BITS, bool WHOLE>
MILLION_DEVICE void expand_tokens(unsigned char* to, const unsigned char* raw,
                                  const GroupCodesView& v, int groups, int count) {
  constexpr int kChunks = D / 8;
  constexpr uint32_t kMask = ((1u << BITS) - 1) * 0x10001u;
  const int lane = static_cast<int>(threadIdx.x & 31), chunk = lane % kChunks;
  const int group = chunk * groups / kChunks;
  const bool zeros = v.zeros;
  const uint32_t bias = bias_pair(v.offset);
  const auto* scales = reinterpret_cast<const uint16_t*>(raw + kSlice * D * BITS / 8);
  MILLION_UNROLL
  for (int r = 0; r < kSlice * kChunks / 32; ++r) {
    const int row = lane / kChunks + r * (32 / kChunks);
    if (!WHOLE && row >= count) continue;
    const unsigned char* from = raw + row * (D * BITS / 8) + chunk * BITS;
    uint32_t low, high;  // codes 0 and 4 at bit 0 of their halves, with 1 and 5 above; high: 2, 6
    if (BITS == 2) {
      const uint32_t w = *reinterpret_cast<const uint16_t*>(from);
      low = byte_permute(w, w, 0x3120), high = low >> 4;
    } else if (BITS == 4) {
      low = *reinterpret_cast<const uint32_t*>(from), high = low >> 8;
    } else {
      const uint2 w = *reinterpret_cast<const uint2*>(from);
      low = byte_permute(w.x, w.y, 0x5410), high = byte_permute(w.x, w.y, 0x7632);
    }
    const ScalePair s = load_scale(scales, zeros, row * groups + group);
    const uint32_t x0 = decode_pair(low, kMask, bias, s.scale, s.zero);
    const uint32_t x1 = decode_pair(low >> BITS, kMask, bias, s.scale, s.zero);
    const uint32_t x2 = decode_pair(high, kMask, bias, s.scale, s.zero);
    const uint32_t x3 = decode_pair(high >> BITS, kMask, bias, s.scale, s.zero);
    *reinterpret_cast<uint4*>(to + place<D>(row, chunk)) =
        uint4{byte_permute(x0, x1, 0x5410), byte_permute(x2, x3, 0x5410),
              byte_permute(x0, x1, 0x7632), byte_permute(x2, x3, 0x7632)};
  }
}

template <int D, int BITS, bool WHOLE>
MILLION_DEVICE void expand_layout(unsigned char* to, const unsigned char* raw, const Side& s,
                                  const GroupCodesView& v, int count) {
  if (v.layout == GroupCodesView::Layout::kTokens)
    expand_tokens<D, BITS, WHOLE>(to, raw, v, s.row_groups, count);
  else
    expand_channels<D, BITS, WHOLE>(to, raw, v, count);
}
template <int D, int BITS>
MILLION_DEVICE void expand(unsigned char* to, const unsigned char* raw, const Side& s,
                           const GroupCodesView& v, int u0) {
  if (u0 + kSlice <= s.coded)
    expand_layout<D, BITS, true>(to, raw, s, v, kSlice);
  else
    expand_layout<D, BITS, false>(to, raw, s, v, s.coded - u0);
}

/// Starts all copies of one side of a slice.
template <int D, bool CODED>
MILLION_DEVICE void copy_side(unsigned char* to, unsigned char* raw, const Side& s,
                              const GroupCodesView& v, const Span& span, int i0) {
  const int u0 = i0 - span.sinks;
  if (!CODED || u0 < 0 || u0 + kSlice > s.coded) copy_exact<D>(to, s, span, i0);
  if constexpr (CODED) {
    if (u0 < 0 || u0 >= s.coded) return;
    if (v.bits == 2)
      copy_codes<D, 2>(raw, s, v, u0);
    else if (v.bits == 4)
      copy_codes<D, 4>(raw, s, v, u0);
    else
      copy_codes<D, 8>(raw, s, v, u0);
  }
}

template <int D>
MILLION_DEVICE void expand_side(unsigned char* to, const unsigned char* raw, const Side& s,
                                const GroupCodesView& v, int u0) {
  if (u0 < 0 || u0 >= s.coded) return;
  if (v.bits == 2)
    expand<D, 2>(to, raw, s, v, u0);
  else if (v.bits == 4)
    expand<D, 4>(to, raw, s, v, u0);
  else
    expand<D, 8>(to, raw, s, v, u0);
}

/// What a warp has of its tokens: lane 4 n + j has heads 2j and 2j + 1, and of each 16 channels n
/// and n + 8. `max` is the reference of the weights 2^(score - max), `sum` the lane's own weights.
template <int D>
struct Sums {
  float max[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
  float out[D / 16][4] = {};
};

/// Moves the references up to the slice's largest scores.
template <int D>
MILLION_DEVICE void move_max(Sums<D>& w, float top0, float top1) {
  float top[2] = {top0, top1};
  MILLION_UNROLL
  for (int h = 0; h < 2; ++h) {
    MILLION_UNROLL
    for (int s = 4; s < 32; s *= 2) top[h] = fmaxf(top[h], __shfl_xor_sync(kFullWarp, top[h], s));
    top[h] = fmaxf(top[h], w.max[h]);
    const float factor = exp2_fast(w.max[h] - top[h]);
    w.max[h] = top[h];
    w.sum[h] *= factor;
    MILLION_UNROLL
    for (int c = 0; c < D / 16; ++c) w.out[c][h] *= factor, w.out[c][h + 2] *= factor;
  }
}

/// An 8x8 matrix of halves from its rows (lane 4 n + j: row n, columns 2j, 2j+1) to its columns
/// (row pairs 2j, 2j+1 of column n).
MILLION_DEVICE uint32_t transpose(uint32_t x) {
  const unsigned n = (threadIdx.x & 31) >> 2, j = threadIdx.x & 3, from = 8 * j + n / 2;
  const uint32_t first = __shfl_sync(kFullWarp, x, static_cast<int>(from));
  const uint32_t second = __shfl_sync(kFullWarp, x, static_cast<int>(from + 4));
  return byte_permute(first, second, n % 2 != 0 ? 0x7632 : 0x5410);
}

/// Adds a slice of 16 tokens, `keys` and behind it the values; tokens outside of [begin, end) of
/// them weigh nothing. At least one is inside.
template <int D>
MILLION_DEVICE void attend_slice(Sums<D>& w, const uint32_t (&q)[D / 8], const unsigned char* keys,
                                 float scale, int begin, int end) {
  float s[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  MILLION_UNROLL
  for (int c = 0; c < D / 16; c += kAhead) {
    uint32_t a[kAhead][4];
    MILLION_UNROLL
    for (int i = 0; i < kAhead; ++i)
      load_matrices<false>(
          a[i], [&](int lane) { return keys + (place<D>(lane & 15, lane >> 4) ^ (c + i) << 5); });
    MILLION_UNROLL
    for (int i = 0; i < kAhead; ++i)
      mma_16x8x16(s, a[i][0], a[i][1], a[i][2], a[i][3], q[2 * (c + i)], q[2 * (c + i) + 1]);
  }
  if (begin > 0 || end < kSlice) {
    const int n = static_cast<int>(threadIdx.x & 31) >> 2;
    if (n < begin || n >= end) s[0] = s[1] = -INFINITY;
    if (n + 8 < begin || n + 8 >= end) s[2] = s[3] = -INFINITY;
  }
  const float top0 = fmaxf(s[0], s[2]) * scale, top1 = fmaxf(s[1], s[3]) * scale;
  if (__any_sync(kFullWarp, top0 > w.max[0] + kSlack || top1 > w.max[1] + kSlack))
    move_max<D>(w, top0, top1);
  MILLION_UNROLL
  for (int i = 0; i < 4; ++i) s[i] = exp2_fast(s[i] * scale - w.max[i & 1]);
  w.sum[0] += s[0] + s[2], w.sum[1] += s[1] + s[3];
  const uint32_t p0 = transpose(pack_halves(s[0], s[1]));
  const uint32_t p1 = transpose(pack_halves(s[2], s[3]));
  MILLION_UNROLL
  for (int c = 0; c < D / 16; c += kAhead) {
    uint32_t a[kAhead][4];
    MILLION_UNROLL
    for (int i = 0; i < kAhead; ++i)
      load_matrices<true>(a[i], [&](int lane) {
        const int token = (lane & 7) | (lane & 16) >> 1;
        return keys + Shape<D>::kSide + (place<D>(token, lane >> 3 & 1) ^ (c + i) << 5);
      });
    MILLION_UNROLL
    for (int i = 0; i < kAhead; ++i)
      mma_16x8x16(w.out[c + i], a[i][0], a[i][1], a[i][2], a[i][3], p0, p1);
  }
}

/// Writes a warp's sums [head][d], references and weights [head] to its own shared memory.
template <int D>
MILLION_DEVICE void store_sums(unsigned char* to, Sums<D>& w) {
  float* out = reinterpret_cast<float*>(to);
  const int lane = static_cast<int>(threadIdx.x & 31), n = lane >> 2, j = lane & 3;
  MILLION_UNROLL
  for (int h = 0; h < 2; ++h) {
    MILLION_UNROLL
    for (int s = 4; s < 32; s *= 2) w.sum[h] += __shfl_xor_sync(kFullWarp, w.sum[h], s);
    float* row = out + (2 * j + h) * D;
    MILLION_UNROLL
    for (int c = 0; c < D / 16; ++c)
      row[16 * c + n] = w.out[c][h], row[16 * c + n + 8] = w.out[c][h + 2];
    if (n == 0)
      out[kHeads * D + 2 * j + h] = w.max[h], out[kHeads * (D + 1) + 2 * j + h] = w.sum[h];
  }
}

/// Joins the warps' sums to one part of every head of the group.
template <int D>
MILLION_DEVICE void write_part(const QueryArgs& a, const unsigned char* shared, int group) {
  const size_t head0 =
      (static_cast<size_t>(blockIdx.z) * a.n_kv_heads + blockIdx.y) * static_cast<size_t>(group);
  for (int i = static_cast<int>(threadIdx.x); i < group * D; i += kThreads) {
    const int head = i / D;
    float max = -INFINITY, sum = 0.0f, out = 0.0f;
    MILLION_UNROLL
    for (int w = 0; w < kWarps; ++w)
      max = fmaxf(max,
                  reinterpret_cast<const float*>(shared + w * Shape<D>::kWarp)[kHeads * D + head]);
    if (max > -INFINITY) {
      MILLION_UNROLL
      for (int w = 0; w < kWarps; ++w) {
        const float* from = reinterpret_cast<const float*>(shared + w * Shape<D>::kWarp);
        const float weight = exp2_fast(from[kHeads * D + head] - max);
        sum += weight * from[kHeads * (D + 1) + head];
        out += weight * from[i];
      }
      out /= sum;
    }
    const size_t part = (head0 + head) * a.parts.n_parts + a.parts.first + blockIdx.x;
    a.parts.rows[part * D + i % D] = out;
    if (i % D == 0) a.parts.lse[part] = max > -INFINITY ? max + log2_fast(sum) : -INFINITY;
  }
}

/// B fragments of the group's queries: columns of heads that are not there are zero.
template <int D>
MILLION_DEVICE void load_queries(uint32_t (&q)[D / 8], const QueryArgs& a, int group) {
  const int lane = static_cast<int>(threadIdx.x & 31), n = lane >> 2, j = lane & 3;
  const size_t head = (static_cast<size_t>(blockIdx.z) * a.n_kv_heads + blockIdx.y) * group + n;
  const uint32_t* row = reinterpret_cast<const uint32_t*>(a.q) + head * (D / 2) + j;
  MILLION_UNROLL
  for (int c = 0; c < D / 8; ++c) q[c] = n < group ? row[4 * c] : 0u;
}

}  // namespace rows

template <int D, bool CODED>
__global__ void __launch_bounds__(rows::kThreads, rows::kBlocks)
    attend_rows_kernel(const RowsAttendArgs a) {
  using namespace rows;
  MILLION_SHARED(shared);
  const int warp = static_cast<int>(threadIdx.x) / 32, group = a.query.n_heads / a.query.n_kv_heads;
  const size_t line = static_cast<size_t>(blockIdx.z) * a.query.n_kv_heads + blockIdx.y;
  const SequenceState state = a.query.state[blockIdx.z];
  const Side k = side_of<CODED>(a.k, a.k_codes, line, D, state.coded_k);
  const Side v = side_of<CODED>(a.v, a.v_codes, line, D, state.coded_v);
  Span span{state.n_tokens, 0, state.n_sinks};
  int origin = 0;  // index at which tile 0 starts
  if constexpr (CODED)
    origin = state.n_sinks - (state.n_sinks + kTileTokens - 1) / kTileTokens * kTileTokens;
  else
    span.end -= state.coded_k, span.skip = state.coded_k;
  const int tiles = (span.end - origin + kTileTokens - 1) / kTileTokens;
  const int split = static_cast<int>(blockIdx.x), n_splits = a.query.n_splits;
  int tile = static_cast<int>(static_cast<int64_t>(tiles) * split / n_splits);
  const int last = static_cast<int>(static_cast<int64_t>(tiles) * (split + 1) / n_splits);

  unsigned char* const mine = shared + warp * Shape<D>::kWarp;
  unsigned char *raw_k = nullptr, *raw_v = nullptr;
  if constexpr (CODED) {
    const int k_bytes = raw_bytes(a.k_codes, D), bytes = k_bytes + raw_bytes(a.v_codes, D);
    raw_k = shared + kWarps * Shape<D>::kWarp + warp * bytes, raw_v = raw_k + k_bytes;
  }
  const auto copy = [&](int i0, unsigned char* to) {
    copy_side<D, CODED>(to, raw_k, k, a.k_codes, span, i0);
    copy_side<D, CODED>(to + Shape<D>::kSide, raw_v, v, a.v_codes, span, i0);
  };

  uint32_t q[D / 8];
  load_queries<D>(q, a.query, group);
  Sums<D> sums;
  int i0 = origin + tile * kTileTokens + warp * kSlice, buffer = 0;
  if (tile < last) copy(i0, mine);
  __pipeline_commit();
  for (; tile < last; ++tile, i0 += kTileTokens, buffer ^= Shape<D>::kBuffer) {
    __pipeline_wait_prior(0);
    __syncwarp();  // rows of this slice are there, and the other buffer has been read
    if constexpr (CODED) {
      expand_side<D>(mine + buffer, raw_k, k, a.k_codes, i0 - span.sinks);
      expand_side<D>(mine + buffer + Shape<D>::kSide, raw_v, v, a.v_codes, i0 - span.sinks);
      __syncwarp();
    }
    if (tile + 1 < last) copy(i0 + kTileTokens, mine + (buffer ^ Shape<D>::kBuffer));
    __pipeline_commit();
    if (span.end > 0 && i0 < span.end && i0 + kSlice > 0)
      attend_slice<D>(sums, q, mine + buffer, a.query.scale_log2, -i0, span.end - i0);
  }
  __syncwarp();
  store_sums<D>(mine, sums);
  __syncthreads();
  write_part<D>(a.query, shared, group);
}

namespace rows {
constexpr int kMergeThreads = 256;
}

/// One block a head; a thread has four columns of every n-th part.
__global__ void merge_parts_kernel(const MergeArgs a) {
  using namespace rows;
  MILLION_SHARED(shared);
  float4* const slices = reinterpret_cast<float4*>(shared);
  const int t = static_cast<int>(threadIdx.x), columns = a.width / 4, n_parts = a.parts.n_parts;
  const size_t head = blockIdx.x;
  const float* lse = a.parts.lse + head * n_parts;
  float max = -INFINITY, sum = 0.0f;
  for (int p = t & 31; p < n_parts; p += 32) max = fmaxf(max, lse[p]);
  max = warp_max(max);
  const float reference = max > -INFINITY ? max : 0.0f;
  for (int p = t & 31; p < n_parts; p += 32) sum += exp2_fast(lse[p] - reference);
  sum = warp_sum(sum);

  const int n_slices = kMergeThreads / columns, slice = t / columns, column = t % columns;
  const float4* rows = reinterpret_cast<const float4*>(a.parts.rows) + head * n_parts * columns;
  float4 out{0.0f, 0.0f, 0.0f, 0.0f};
  if (slice < n_slices) {
    for (int p = slice; p < n_parts; p += n_slices) {
      const float weight = exp2_fast(lse[p] - reference);
      const float4 x = rows[static_cast<size_t>(p) * columns + column];
      if (weight > 0.0f)
        out.x += weight * x.x, out.y += weight * x.y, out.z += weight * x.z, out.w += weight * x.w;
    }
    slices[slice * columns + column] = out;
  }
  __syncthreads();
  if (slice != 0) return;
  for (int s = 1; s < n_slices; ++s) {
    const float4 x = slices[s * columns + column];
    out.x += x.x, out.y += x.y, out.z += x.z, out.w += x.w;
  }
  const float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
  out.x *= factor, out.y *= factor, out.z *= factor, out.w *= factor;
  const size_t at = head * columns + column;
  if (a.out) {
    reinterpret_cast<uint2*>(a.out)[at] =
        uint2{pack_halves(out.x, out.y), pack_halves(out.z, out.w)};
    return;
  }
  reinterpret_cast<float4*>(a.out_rows)[at] = out;
  if (column == 0) a.out_lse[head] = sum > 0.0f ? max + log2_fast(sum) : -INFINITY;
}

namespace {
using namespace rows;

template <int D>
int attend_rows_d(StreamHandle stream, const RowsAttendArgs& a) {
  const dim3 grid(a.query.n_splits, a.query.n_kv_heads, a.query.batch);
  const int raw = raw_bytes(a.k_codes, D) + raw_bytes(a.v_codes, D);
  const size_t bytes = static_cast<size_t>(kWarps) * (Shape<D>::kWarp + raw);
  return raw == 0 ? launch(attend_rows_kernel<D, false>, grid, dim3(kThreads), bytes, stream, a)
                  : launch(attend_rows_kernel<D, true>, grid, dim3(kThreads), bytes, stream, a);
}
int attend_rows(StreamHandle stream, const RowsAttendArgs& a) {
  return a.query.head_dim == 64 ? attend_rows_d<64>(stream, a) : attend_rows_d<128>(stream, a);
}

int merge_parts(StreamHandle stream, const MergeArgs& a) {
  const dim3 grid(static_cast<unsigned>(a.batch) * a.n_heads);
  return launch(merge_parts_kernel, grid, dim3(kMergeThreads), kMergeThreads * sizeof(float4),
                stream, a);
}

}  // namespace

void add_rows_attention(DeviceOps& ops) {
  ops.attend_rows = attend_rows;
  ops.merge_parts = merge_parts;
}

}  // namespace million::cuda::MILLION_CUDA_NS
