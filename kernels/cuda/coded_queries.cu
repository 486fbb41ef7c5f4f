// SPDX-License-Identifier: Apache-2.0
// What stands before and behind attention on codes in a basis: queries turned to every frame and
// put into the codes' coordinates, and sums of values put back into channels.
//
// turn_queries: a warp takes 16 frames of one query head, and then the next 16 of its block's.
//   query   turned in registers, straight in the operands' order, in 16-bit fixed point; its steps
//           follow from the longest pair of channels, which turning leaves alone
//   axes    products of bytes with D^T, exact; a row's sums stay in registers until its largest is
//           known, and become 16 bits (ranks that are too large for that are summed twice)
//   mean    f32 as two halves on tensor cores, so that only f32 rounding is left: the query times
//           the mean's vectors, and these times their functions of the place
#include "kernels/cuda/attention_coded.h"

#include "kernels/cuda/coded_kernels.h"
#include "kernels/cuda/launch.h"

namespace million::cuda::MILLION_CUDA_NS {

namespace coded {

constexpr int kRows = 16, kThreads = 256, kWarps = kThreads / 32;
/// Sums of 16-bit queries times bytes stay below 1.06 * 10^9 up to rank 256 (beyond, queries get
/// fewer bits), and so does the mean's part: both together fit in 31 bits.
constexpr float kQueryRange = 32512.0f, kBiasRange = 1.06e9f;

/// Frames that hold coded tokens.
struct Frames {
  int begin, end;
};
MILLION_DEVICE Frames coded_frames(const TurnQueriesArgs& a) {
  const SequenceState& state = a.query.state[blockIdx.z];
  const int begin = state.n_sinks / a.shape.frame;
  if (state.coded_k <= 0) return {begin, begin};
  const int end = (state.n_sinks + state.coded_k - 1) / a.shape.frame + 1;
  return {begin, end < a.turned.frames ? end : a.turned.frames};
}

/// A block's memory.
struct Arena {
  float* query;    ///< [d] in steps of this head
  float* lengths;  ///< [d] of the pairs of channels
  float* scale;    ///< [rank] of axes; then what takes the sums' offset off
  float* offset;
  uint4* basis;   ///< [rank / 8][d / 64][lane] operands; not where `global`
  uint4* mean;    ///< [n_places / 8][d / 16][lane] operands: halves, and what they leave
  uint4* places;  ///< [frame / 8][n_places / 16][lane] likewise
  float* most;    ///< [kWarps] largest values of functions of the place
  float4* kept;   ///< [warp][n_places / 8][lane] products with the mean's vectors
  int floats;     ///< all of it

  MILLION_HD Arena(unsigned char* memory, int d, const CodedShape& s, bool global) {
    float* const first = reinterpret_cast<float*>(memory);
    query = first, lengths = query + d, scale = lengths + d, offset = scale + s.rank;
    basis = reinterpret_cast<uint4*>(offset + s.rank);
    const int basis_words = global ? 0 : s.rank / 8 * (d / 64) * 32;
    mean = basis + basis_words;
    places = mean + s.n_places / 8 * (d / 16) * 32;
    const int place_words = s.n_places > 0 ? s.frame / 8 * (s.n_places / 16) * 32 : 0;
    most = reinterpret_cast<float*>(places + place_words);
    kept = reinterpret_cast<float4*>(most + kWarps);
    floats = 2 * d + 2 * s.rank + kWarps +
             4 * (basis_words + s.n_places / 8 * (d / 16) * 32 + place_words +
                  kWarps * s.n_places / 8 * 32);
  }
};

/// Channels in the order of the operands: for each four pairs, their first channels and then their
/// second ones. Channels that are not turned come in pairs too.
struct Turning {
  int n_pairs;
  bool adjacent;

  MILLION_DEVICE explicit Turning(const CodedShape& s) : n_pairs(s.n_pairs), adjacent(s.adjacent) {}
  MILLION_DEVICE int channel(int pair, int second) const {
    return adjacent || pair >= n_pairs ? 2 * pair + second : pair + second * n_pairs;
  }
};

/// Four floats as halves, and what these leave.
MILLION_DEVICE void split_halves(const float (&v)[4], uint32_t (&high)[2], uint32_t (&low)[2]) {
  high[0] = pack_halves(v[0], v[1]), high[1] = pack_halves(v[2], v[3]);
  low[0] = pack_halves(v[0] - low_half(high[0]), v[1] - high_half(high[0]));
  low[1] = pack_halves(v[2] - low_half(high[1]), v[3] - high_half(high[1]));
}
MILLION_DEVICE uint4 split_operand(float v0, float v1, float v2, float v3) {
  uint32_t high[2], low[2];
  split_halves({v0, v1, v2, v3}, high, low);
  return {high[0], high[1], low[0], low[1]};
}

/// 16 columns of 16 rows as an operand.
struct Split {
  uint32_t high[2][2], low[2][2];  ///< [row n or n + 8]

  /// sums += (high + low) * (high + low of b), for two tiles in turn.
  MILLION_DEVICE void multiply(float (&sums)[2][4], const uint4& b0, const uint4& b1) const {
    mma_16x8x16(sums[0], low[0][0], low[1][0], low[0][1], low[1][1], b0.x, b0.y);
    mma_16x8x16(sums[1], low[0][0], low[1][0], low[0][1], low[1][1], b1.x, b1.y);
    mma_16x8x16(sums[0], high[0][0], high[1][0], high[0][1], high[1][1], b0.z, b0.w);
    mma_16x8x16(sums[1], high[0][0], high[1][0], high[0][1], high[1][1], b1.z, b1.w);
    mma_16x8x16(sums[0], high[0][0], high[1][0], high[0][1], high[1][1], b0.x, b0.y);
    mma_16x8x16(sums[1], high[0][0], high[1][0], high[0][1], high[1][1], b1.x, b1.y);
  }
};

MILLION_DEVICE uint32_t float_bits(float x) {
  uint32_t b;
  memcpy(&b, &x, 4);
  return b;
}
MILLION_DEVICE float bits_float(uint32_t b) {
  float x;
  memcpy(&x, &b, 4);
  return x;
}

/// The query to shared memory in the operands' order, with the lengths of its pairs.
template <int kDim>
MILLION_DEVICE void load_query(const TurnQueriesArgs& a, const Arena& arena) {
  const Turning turning(a.shape);
  const auto line = blockIdx.z * static_cast<unsigned>(a.query.n_heads) + blockIdx.y;
  const uint16_t* q = a.query.q + static_cast<size_t>(line) * kDim;
  const int at = static_cast<int>(threadIdx.x), pair = at / 8 * 4 + at % 4, second = at / 4 % 2;
  if (at >= kDim) return;
  const float x = from_half(q[turning.channel(pair, second)]);
  const float other = from_half(q[turning.channel(pair, 1 - second)]);
  arena.query[at] = x;
  arena.lengths[at] = x * x + other * other;
}

/// The query in steps of the longest pair; returns the step.
template <int kDim>
MILLION_DEVICE float scale_query(const Arena& arena) {
  const int at = static_cast<int>(threadIdx.x), lane = at & 31;
  float top = 0.0f;
  MILLION_UNROLL
  for (int i = 0; i < kDim; i += 32) top = fmaxf(top, arena.lengths[lane + i]);
  top = sqrtf(warp_max(top));
  if (!(top > 1e-30f)) top = 1.0f;  // zeros
  if (at < kDim) arena.query[at] *= kQueryRange / top;
  return top * (1.0f / kQueryRange);
}

/// The mean's vectors and functions as operands, and the functions' largest values (one a warp).
template <int kDim>
MILLION_DEVICE void load_mean(const TurnQueriesArgs& a, int kv, const Arena& arena) {
  const Turning turning(a.shape);
  const int frame = a.shape.frame, n_places = a.shape.n_places;
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, n = lane / 4, j = lane & 3;
  const float* mean = a.shape.mean + kv * kDim * n_places;
  for (int i = thread / 32; i < n_places / 8 * (kDim / 16); i += kWarps) {
    const int k = i % (kDim / 16), place = i / (kDim / 16) * 8 + n;
    const auto value = [&](int pair) {
      return __ldg(mean + turning.channel(k / 2 * 16 + 4 * j + pair, k & 1) * n_places + place);
    };
    arena.mean[32 * i + lane] = split_operand(value(0), value(1), value(2), value(3));
  }
  const float* places = a.shape.places + static_cast<size_t>(kv / a.shape.span) * n_places * frame;
  float top = 0.0f;
  for (int i = thread / 32; i < frame / 8 * (n_places / 16); i += kWarps) {
    // Columns of two tiles are mixed, so that a lane's sums are of four places in a row.
    const int chunk = i % (n_places / 16), tile = i / (n_places / 16);
    const int place = tile / 2 * 16 + n / 2 * 4 + tile % 2 * 2 + n % 2;
    const float* p = places + (16 * chunk + 2 * j) * frame + place;
    const float x = __ldg(p), y = __ldg(p + frame);
    const float z = __ldg(p + 8 * frame), w = __ldg(p + 9 * frame);
    arena.places[32 * i + lane] = split_operand(x, y, z, w);
    top = fmaxf(fmaxf(top, fmaxf(fabsf(x), fabsf(y))), fmaxf(fabsf(z), fabsf(w)));
  }
  top = warp_max(top);
  if (lane == 0) arena.most[thread / 32] = top;
}

/// A float that is an integer plus this holds it in its low bits; and, 256 times as large, an
/// integer of 256 times the weight.
constexpr uint32_t kInteger = 0x4B400000u, kInteger256 = 0x4F400000u;
/// 1.5 * 2^23 is 256 times this.
constexpr uint32_t kMiddle = 49152;

/// Scales of axes for sums of high bytes that start at kInteger256 - kMiddle and sums of low ones
/// that start at kInteger: together they are 1.5 * 2^31 too large. With a bit less in the scale
/// that offset is exact.
MILLION_DEVICE void load_scales(const TurnQueriesArgs& a, int kv, const Arena& arena) {
  const int rank = a.shape.rank;
  const size_t first = static_cast<size_t>(kv / a.shape.span) * rank;
  for (int i = static_cast<int>(threadIdx.x); i < rank; i += kThreads) {
    const float s = __ldg(a.k.basis_scale + first + i) * __ldg(a.k.scale + first + i);
    const float even = bits_float(float_bits(s) & ~1u);
    arena.scale[i] = even;
    arena.offset[i] = even * -3221225472.0f;
  }
}

/// High and low bytes of four numbers of 16 bits: x = 256 high + low, both signed. The words hold
/// x + 128 in their low bits.
MILLION_DEVICE void word_bytes(const uint32_t (&x)[4], uint32_t* high, uint32_t* low) {
  const uint32_t first = byte_permute(x[0], x[1], 0x5140);
  const uint32_t second = byte_permute(x[2], x[3], 0x5140);
  *low = byte_permute(first, second, 0x5410) ^ 0x80808080u;
  *high = byte_permute(first, second, 0x7632);
}
/// Adding 1.5 * 2^23 rounds, and leaves the integer in the low bits.
constexpr float kRound = 12582912.0f + 128.0f;

/// A query turned to 16 frames as operands.
template <int kDim>
struct Rows {
  static constexpr int kSteps = kDim / 32;
  uint32_t high[kSteps][4], low[kSteps][4];  ///< bytes
};

/// Cosines and sines of fours of pairs 4 k + j; channels that are not turned have 1 and 0.
template <int kDim>
MILLION_DEVICE void load_angles(const CodedShape& shape, int turn, int j,
                                float (&cosines)[kDim / 32][4], float (&sines)[kDim / 32][4]) {
  const float *c = shape.cosines + turn + 4 * j, *s = shape.sines + turn + 4 * j;
  if (shape.n_pairs == kDim / 2) {
    MILLION_UNROLL
    for (int k = 0; k < kDim / 32; ++k) {
      const float4 x = __ldg(reinterpret_cast<const float4*>(c) + 4 * k);
      const float4 y = __ldg(reinterpret_cast<const float4*>(s) + 4 * k);
      cosines[k][0] = x.x, cosines[k][1] = x.y, cosines[k][2] = x.z, cosines[k][3] = x.w;
      sines[k][0] = y.x, sines[k][1] = y.y, sines[k][2] = y.z, sines[k][3] = y.w;
    }
    return;
  }
  MILLION_UNROLL
  for (int i = 0; i < kDim / 8; ++i) {
    const int k = i / 4, pair = 16 * k + i % 4;
    const bool turned = pair + 4 * j < shape.n_pairs;
    cosines[k][i % 4] = turned ? __ldg(c + pair) : 1.0f;
    sines[k][i % 4] = turned ? __ldg(s + pair) : 0.0f;
  }
}

/// Turns the query to frames of rows n and n + 8 (`turn`: their first positions' angles), and
/// leaves products with the mean's vectors in `kept`. Returns sums of their magnitudes.
template <int kDim>
MILLION_DEVICE float2 turn_rows(const TurnQueriesArgs& a, const Arena& arena, const int (&turn)[2],
                                float4* kept, Rows<kDim>* rows) {
  const int lane = static_cast<int>(threadIdx.x & 31), j = lane & 3;
  float cosines[2][kDim / 32][4], sines[2][kDim / 32][4];
  MILLION_UNROLL
  for (int r = 0; r < 2; ++r) load_angles<kDim>(a.shape, turn[r], j, cosines[r], sines[r]);
  Split split[kDim / 16];
  MILLION_UNROLL
  for (int k = 0; k < kDim / 32; ++k) {
    const float* query = arena.query + 32 * k + 8 * j;
    const float4 q0 = *reinterpret_cast<const float4*>(query);
    const float4 q1 = *reinterpret_cast<const float4*>(query + 4);
    const float x0[4] = {q0.x, q0.y, q0.z, q0.w}, x1[4] = {q1.x, q1.y, q1.z, q1.w};
    MILLION_UNROLL
    for (int r = 0; r < 2; ++r) {
      float x[2][4];
      uint32_t bits[2][4];
      MILLION_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float c = cosines[r][k][i], s = sines[r][k][i];
        x[0][i] = x0[i] * c + x1[i] * s;
        x[1][i] = x1[i] * c - x0[i] * s;
        bits[0][i] = float_bits(x[0][i] + kRound);
        bits[1][i] = float_bits(x[1][i] + kRound);
      }
      MILLION_UNROLL
      for (int e = 0; e < 2; ++e) {
        word_bytes(bits[e], &rows->high[k][2 * e + r], &rows->low[k][2 * e + r]);
        split_halves(x[e], split[2 * k + e].high[r], split[2 * k + e].low[r]);
      }
    }
  }
  float2 size{0.0f, 0.0f};
  MILLION_NO_UNROLL
  for (int chunk = 0; chunk < a.shape.n_places / 16; ++chunk) {
    const uint4* mean = arena.mean + 2 * chunk * (kDim / 16) * 32 + lane;
    float sums[2][4] = {};
    MILLION_UNROLL
    for (int k = 0; k < kDim / 16; ++k)
      split[k].multiply(sums, mean[32 * k], mean[32 * (kDim / 16 + k)]);
    MILLION_UNROLL
    for (int tile = 0; tile < 2; ++tile) {
      const float(&x)[4] = sums[tile];
      size.x += fabsf(x[0]) + fabsf(x[1]);
      size.y += fabsf(x[2]) + fabsf(x[3]);
      kept[32 * (2 * chunk + tile)] = float4{x[0], x[1], x[2], x[3]};
    }
  }
  MILLION_UNROLL
  for (int s = 1; s < 4; s *= 2) {
    size.x += __shfl_xor_sync(kFullWarp, size.x, s);
    size.y += __shfl_xor_sync(kFullWarp, size.y, s);
  }
  return size;
}

/// Where a lane reads D^T: 32 axes are four products; lane n's four axes in a row give one to each.
/// The order of lanes is such that lane j gets sums of subspaces j and j + 4 of eight.
template <int kDim>
struct Basis {
  const uint32_t* words;   ///< of this head, lane n's first axis
  int quad[kDim / 32][2];  ///< offsets of two fours of channels, and bytes of these
  uint32_t select[kDim / 32][2];
  const uint4* staged;  ///< or operands in shared memory
  int rank, n_pairs;
  bool bytewise;  ///< fours of pairs are not made of two fours of channels

  MILLION_DEVICE Basis(const TurnQueriesArgs& a, int kv, const Arena& arena, int lane)
      : rank(a.shape.rank), n_pairs(a.shape.n_pairs) {
    const int n = lane >> 2;
    words = reinterpret_cast<const uint32_t*>(a.k.basis) +
            static_cast<size_t>(kv) * (kDim / 4) * rank + 4 * (n / 2 + n % 2 * 4);
    staged = arena.basis + lane;
    bytewise = !a.shape.adjacent && n_pairs % 4 != 0;
    MILLION_UNROLL
    for (int k = 0; k < kDim / 32; ++k) {
      const int four = 4 * k + (lane & 3);
      const bool mixed = a.shape.adjacent || 4 * four >= n_pairs;
      quad[k][0] = (mixed ? 2 * four : four) * rank;
      quad[k][1] = (mixed ? 2 * four + 1 : four + n_pairs / 4) * rank;
      select[k][0] = mixed ? 0x6420 : 0x3210, select[k][1] = mixed ? 0x7531 : 0x7654;
    }
  }
  /// One axis of four channels that lie anywhere.
  MILLION_DEVICE uint32_t gather(int axis, int k, int second) const {
    uint32_t word = 0;
    MILLION_NO_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int pair = 16 * k + 4 * static_cast<int>(threadIdx.x & 3) + i;
      const int c = pair >= n_pairs ? 2 * pair + second : pair + second * n_pairs;
      word |= (__ldg(words + c / 4 * rank + axis) >> c % 4 * 8 & 255) << 8 * i;
    }
    return word;
  }
  MILLION_DEVICE uint4 gather_all(int axis, int k) const {
    return {gather(axis, 2 * k, 0), gather(axis, 2 * k, 1), gather(axis, 2 * k + 1, 0),
            gather(axis, 2 * k + 1, 1)};
  }
  MILLION_DEVICE void pair(int axis, int k, uint32_t* first, uint32_t* second) const {
    const uint32_t x = __ldg(words + quad[k][0] + axis), y = __ldg(words + quad[k][1] + axis);
    *first = byte_permute(x, y, select[k][0]), *second = byte_permute(x, y, select[k][1]);
  }
  /// Product t of 32 axes from `axis` on, channels 64 k to 64 k + 63; not where `bytewise`.
  MILLION_DEVICE uint4 load(int axis, int t, int k) const {
    uint4 x;
    pair(axis + t, 2 * k, &x.x, &x.y);
    pair(axis + t, 2 * k + 1, &x.z, &x.w);
    return x;
  }
  /// kAxes: the rank, where that is known.
  template <int kAxes>
  MILLION_DEVICE void stage(uint4* to) const {
    const int first = static_cast<int>(threadIdx.x >> 5), n = kAxes > 0 ? kAxes : rank;
    const auto at = [&](int i, int k) { return to + (i * (kDim / 64) + k) * 32; };
    if (bytewise) {
      for (int i = first; i < n / 8; i += kWarps)
        for (int k = 0; k < kDim / 64; ++k) *at(i, k) = gather_all(i / 4 * 32 + i % 4, k);
      return;
    }
    MILLION_UNROLL
    for (int i = first; i < n / 8; i += kWarps) MILLION_UNROLL
    for (int k = 0; k < kDim / 64; ++k) *at(i, k) = load(i / 4 * 32, i % 4, k);
  }
};

/// Rows in kAxes axes of the basis from `axis` on: sums[32 axes][axis % 4][row n: axes 4j and 16 +
/// 4j, row n + 8].
template <int kDim, int kAxes, bool kStaged>
MILLION_DEVICE void rotate_rows(const Rows<kDim>& rows, const Basis<kDim>& basis, int axis,
                                const float* scale, const float* offset,
                                float (&sums)[kAxes / 32][4][4]) {
  MILLION_UNROLL
  for (int g = 0; g < kAxes / 32; ++g) {
    float s[2][4], o[2][4];
    MILLION_UNROLL
    for (int e = 0; e < 2; ++e) {
      const float4 x = *reinterpret_cast<const float4*>(scale + axis + 32 * g + 16 * e);
      const float4 y = *reinterpret_cast<const float4*>(offset + axis + 32 * g + 16 * e);
      s[e][0] = x.x, s[e][1] = x.y, s[e][2] = x.z, s[e][3] = x.w;
      o[e][0] = y.x, o[e][1] = y.y, o[e][2] = y.z, o[e][3] = y.w;
    }
    MILLION_UNROLL
    for (int t = 0; t < 4; ++t) {
      constexpr uint32_t kStart = kInteger256 - kMiddle;
      uint32_t high[4] = {kStart, kStart, kStart, kStart};
      uint32_t low[4] = {kInteger, kInteger, kInteger, kInteger};
      MILLION_UNROLL
      for (int k = 0; k < kDim / 64; ++k) {
        const uint4 b = kStaged ? basis.staged[((axis / 8 + 4 * g + t) * (kDim / 64) + k) * 32]
                        : basis.bytewise ? basis.gather_all(axis + 32 * g + t, k)
                                         : basis.load(axis + 32 * g, t, k);
        MILLION_UNROLL
        for (int half = 0; half < 2; ++half) {
          const uint32_t(&h)[4] = rows.high[2 * k + half], (&l)[4] = rows.low[2 * k + half];
          const uint32_t b0 = half == 0 ? b.x : b.z, b1 = half == 0 ? b.y : b.w;
          mma_16x8x32(high, h[0], h[1], h[2], h[3], b0, b1);
          mma_16x8x32(low, l[0], l[1], l[2], l[3], b0, b1);
        }
      }
      MILLION_UNROLL
      for (int i = 0; i < 4; ++i)
        sums[g][t][i] = fmaf(bits_float(low[i]), s[i % 2][t],
                             fmaf(bits_float(high[i]), s[i % 2][t], o[i % 2][t]));
    }
  }
}

/// kAxes axes of a row (r = 0: n, 1: n + 8) as fixed point.
template <int kAxes>
MILLION_DEVICE void write_axes(const float (&sums)[kAxes / 32][4][4], int r, float inverse,
                               uint4* to) {
  MILLION_UNROLL
  for (int g = 0; g < kAxes / 32; ++g) {
    uint32_t bits[2][4];
    MILLION_UNROLL
    for (int t = 0; t < 4; ++t) MILLION_UNROLL
    for (int e = 0; e < 2; ++e)
      bits[e][t] = float_bits(fmaf(sums[g][t][2 * r + e], inverse, kRound));
    uint4 x;
    word_bytes(bits[0], &x.x, &x.y);
    word_bytes(bits[1], &x.z, &x.w);
    to[4 * g] = x;
  }
}

/// The mean's part at every place of 16 frames, in steps.
MILLION_DEVICE void write_mean(const TurnQueriesArgs& a, const Arena& arena, const float4* kept,
                               float query_step, const float (&inverse)[2],
                               int32_t* const (&to)[2]) {
  const int lane = static_cast<int>(threadIdx.x & 31), chunks = a.shape.n_places / 16;
  Split products;
  const auto load = [&](int chunk) {
    const float4 x = kept[64 * chunk], y = kept[64 * chunk + 32];
    const float s = query_step;
    split_halves({x.x * s, x.y * s, y.x * s, y.y * s}, products.high[0], products.low[0]);
    split_halves({x.z * s, x.w * s, y.z * s, y.w * s}, products.high[1], products.low[1]);
  };
  const auto write = [&](int r, const float(&sum)[2][4], int at) {
    const auto bits = [&](float x) {
      return static_cast<uint32_t>(static_cast<int32_t>(rintf(x * inverse[r])));
    };
    *reinterpret_cast<uint4*>(to[r] + at) = uint4{bits(sum[0][2 * r]), bits(sum[0][2 * r + 1]),
                                                  bits(sum[1][2 * r]), bits(sum[1][2 * r + 1])};
  };
  load(0);
  const uint4* places = arena.places + lane;
  MILLION_NO_UNROLL
  for (int place = 0; place < a.shape.frame; place += 32) {
    float sum[2][2][4] = {};
    if (chunks == 1) {
      MILLION_UNROLL
      for (int i = 0; i < 2; ++i) products.multiply(sum[i], places[64 * i], places[64 * i + 32]);
    } else {
      MILLION_NO_UNROLL
      for (int chunk = 0; chunk < chunks; ++chunk) {
        load(chunk);
        MILLION_UNROLL
        for (int i = 0; i < 2; ++i)
          products.multiply(sum[i], places[32 * (2 * i * chunks + chunk)],
                            places[32 * ((2 * i + 1) * chunks + chunk)]);
      }
    }
    places += 128 * chunks;
    MILLION_UNROLL
    for (int r = 0; r < 2; ++r) {
      if (to[r] == nullptr) continue;
      write(r, sum[0], place);
      write(r, sum[1], place + 16);
    }
  }
}

}  // namespace coded

/// kAxes: the rank, or (kTwice) a part of it. kStaged: D^T lies in shared memory.
/// Blocks of an SM: 0 leaves registers to ptxas; 1 keeps it from spilling for one block more.
template <int kDim, int kAxes, bool kTwice, bool kStaged>
__global__ void __launch_bounds__(coded::kThreads, kStaged ? 0 : 1)
    turn_queries_kernel(const TurnQueriesArgs a) {
  using namespace coded;
  MILLION_SHARED(shared);
  const Frames frames = coded_frames(a);
  if (frames.begin + static_cast<int>(blockIdx.x) * kRows * kWarps >= frames.end) return;
  const Arena arena(shared, kDim, a.shape, !kStaged);
  const int head = static_cast<int>(blockIdx.y), rank = kTwice ? a.shape.rank : kAxes;
  const int kv = head / (a.query.n_heads / a.query.n_kv_heads);
  const int warp = static_cast<int>(threadIdx.x >> 5), lane = static_cast<int>(threadIdx.x & 31);
  const Basis<kDim> basis(a, kv, arena, lane);
  load_query<kDim>(a, arena);
  if constexpr (kStaged) basis.template stage<kTwice ? 0 : kAxes>(arena.basis + lane);
  load_scales(a, kv, arena);
  if (a.shape.n_places > 0)
    load_mean<kDim>(a, kv, arena);
  else if (threadIdx.x < kWarps)
    arena.most[threadIdx.x] = 0.0f;
  __syncthreads();
  const float query_step = scale_query<kDim>(arena);
  __syncthreads();

  const int n = lane >> 2, j = lane & 3;
  const float *scale = arena.scale + 4 * j, *offset = arena.offset + 4 * j;
  float4* kept = arena.kept + warp * (a.shape.n_places / 8) * 32 + lane;
  const int head_line = (static_cast<int>(blockIdx.z) * a.query.n_heads + head) * a.turned.frames;
  const float range = rank <= 256 ? kQueryRange : kQueryRange * 256.0f / static_cast<float>(rank);

  float most = 0.0f;
  MILLION_UNROLL
  for (int i = 0; i < kWarps; ++i) most = fmaxf(most, arena.most[i]);
  const float query_inverse = 1.0f / query_step;
  MILLION_NO_UNROLL
  for (int first = frames.begin + (static_cast<int>(blockIdx.x) * kWarps + warp) * kRows;
       first < frames.end; first += static_cast<int>(gridDim.x) * kWarps * kRows) {
    int turn[2];
    MILLION_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int frame = first + n + 8 * r;
      turn[r] = (frame < frames.end ? frame : frames.end - 1) * a.shape.frame * a.shape.n_pairs;
    }
    Rows<kDim> rows;
    const float2 size = turn_rows<kDim>(a, arena, turn, kept, &rows);
    float sums[kAxes / 32][4][4], top[2] = {};
    MILLION_NO_UNROLL
    for (int axis = 0; axis < (kTwice ? rank : kAxes); axis += kAxes) {
      rotate_rows<kDim, kAxes, kStaged>(rows, basis, axis, scale, offset, sums);
      MILLION_UNROLL
      for (int i = 0; i < kAxes / 2; ++i) {
        float& t = top[i / 2 % 2];
        t = fmaxf(t, fabsf(sums[i / 16][i / 4 % 4][i % 4]));
      }
    }
    float inverse[2];
    int32_t* bias[2];
    MILLION_UNROLL
    for (int r = 0; r < 2; ++r) {
      top[r] = fmaxf(top[r], __shfl_xor_sync(kFullWarp, top[r], 1));
      top[r] = fmaxf(top[r], __shfl_xor_sync(kFullWarp, top[r], 2));
      const float bound = most * (r == 0 ? size.x : size.y);
      float step = fmaxf(top[r] * (1.0f / range), bound * (1.0f / kBiasRange));
      if (!(step > 1e-30f)) step = 1.0f;  // zeros
      inverse[r] = 1.0f / step;
      const int frame = first + n + 8 * r;
      const bool there = frame < frames.end;
      if (there && j == 0) a.turned.step[head_line + frame] = step * query_step;
      bias[r] = there
                    ? a.turned.bias + static_cast<size_t>(head_line + frame) * a.shape.frame + 4 * j
                    : nullptr;
    }
    MILLION_NO_UNROLL
    for (int axis = 0; axis < (kTwice ? rank : kAxes); axis += kAxes) {
      if constexpr (kTwice)
        rotate_rows<kDim, kAxes, kStaged>(rows, basis, axis, scale, offset, sums);
      MILLION_UNROLL
      for (int r = 0; r < 2; ++r) {
        const int frame = first + n + 8 * r;
        if (frame < frames.end)
          write_axes<kAxes>(sums, r, inverse[r],
                            reinterpret_cast<uint4*>(a.turned.words) +
                                static_cast<size_t>(head_line + frame) * (rank / 8) + axis / 8 + j);
      }
    }
    if (a.shape.n_places > 0) {
      const float true_inverse[2] = {inverse[0] * query_inverse, inverse[1] * query_inverse};
      write_mean(a, arena, kept, query_step, true_inverse, bias);
    }
  }
}

/// One head a block: 16 threads for each four channels, over the axes.
__global__ void __launch_bounds__(256) coded_rows_kernel(const CodedRowsArgs a) {
  const int head = static_cast<int>(blockIdx.x), part = static_cast<int>(threadIdx.x) & 15;
  const int d = a.head_dim, rank = a.shape.rank, kv = head / (a.n_heads / a.n_kv_heads);
  const size_t unit = static_cast<size_t>(kv / a.shape.span);
  const size_t line = static_cast<size_t>(blockIdx.y) * a.n_heads + head;
  const float* sums = a.sums + line * rank;
  const float *basis_scale = a.v.basis_scale + unit * rank, *scale = a.v.scale + unit * rank;
  float* to = a.parts.rows + (line * a.parts.n_parts + a.parts.first) * d;
  for (int c = static_cast<int>(threadIdx.x) / 16; c < d / 4; c += 16) {
    const auto* basis =
        reinterpret_cast<const uint32_t*>(a.v.basis) + (static_cast<size_t>(kv) * d / 4 + c) * rank;
    float x[4] = {};
    for (int j = part; j < rank; j += 16) {
      const uint32_t word = basis[j];
      const float y = sums[j] * (basis_scale[j] * scale[j]);
      MILLION_UNROLL
      for (int i = 0; i < 4; ++i) x[i] = fmaf(byte_value(word, i), y, x[i]);
    }
    MILLION_UNROLL
    for (int s = 8; s > 0; s >>= 1) MILLION_UNROLL
    for (int i = 0; i < 4; ++i) x[i] += __shfl_xor_sync(kFullWarp, x[i], s);
    if (part == 0) *reinterpret_cast<float4*>(to + 4 * c) = float4{x[0], x[1], x[2], x[3]};
  }
  if (threadIdx.x == 0) a.parts.lse[line * a.parts.n_parts + a.parts.first] = a.lse[line];
}

namespace {

/// Blocks of a launch, about; where frames need more, a block takes several times its 128.
constexpr int kTurnBlocks = 264;

template <int kDim, int kAxes, bool kTwice, bool kStaged>
int launch_turn(StreamHandle stream, const TurnQueriesArgs& a) {
  constexpr int kFrames = coded::kRows * coded::kWarps;
  const int needed = (a.turned.frames + kFrames - 1) / kFrames;
  const int heads = a.query.n_heads * a.query.batch, most = (kTurnBlocks + heads - 1) / heads;
  const dim3 grid(static_cast<unsigned>(needed < most ? needed : most),
                  static_cast<unsigned>(a.query.n_heads), static_cast<unsigned>(a.query.batch));
  const auto floats = static_cast<size_t>(coded::Arena(nullptr, kDim, a.shape, !kStaged).floats);
  return launch(turn_queries_kernel<kDim, kAxes, kTwice, kStaged>, grid, dim3(coded::kThreads),
                sizeof(float) * floats, stream, a);
}

template <int kDim>
int launch_turn_dim(StreamHandle stream, const TurnQueriesArgs& a) {
  const int rank = a.shape.rank;
  if (rank == 64) return launch_turn<kDim, 64, false, true>(stream, a);
  if (rank == 128) return launch_turn<kDim, 128, false, true>(stream, a);
  if constexpr (kDim == 64)
    if (rank == 192) return launch_turn<kDim, 192, false, true>(stream, a);
  if (rank <= 256) return launch_turn<kDim, 64, true, true>(stream, a);
  return launch_turn<kDim, 32, true, false>(stream, a);
}

int turn_queries(StreamHandle stream, const TurnQueriesArgs& a) {
  return a.query.head_dim == 64 ? launch_turn_dim<64>(stream, a) : launch_turn_dim<128>(stream, a);
}

int coded_rows(StreamHandle stream, const CodedRowsArgs& a) {
  const dim3 grid(static_cast<unsigned>(a.n_heads), static_cast<unsigned>(a.batch));
  return launch(coded_rows_kernel, grid, dim3(256), 0, stream, a);
}

}  // namespace

void add_coded_queries(DeviceOps& ops) {
  ops.turn_queries = turn_queries;
  ops.coded_rows = coded_rows;
}

}  // namespace million::cuda::MILLION_CUDA_NS
