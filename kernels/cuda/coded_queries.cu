// SPDX-License-Identifier: Apache-2.0
// What stands before and behind attention on codes in a basis: queries turned to every frame and
// put into the codes' coordinates, and sums of values put back into channels.
//
// turn_queries: 16 rows of one KV head a block, a row = (frame, query head). All products run on
// tensor cores with f32 as two halves, so that only f32 rounding is left: rows times the bytes of
// D^T, rows times the mean's vectors, and these times their functions of the place. Then a row
// becomes fixed point of 16 bits, in steps that also hold the mean's part.
#include "kernels/cuda/attention_coded.h"

#include "kernels/cuda/coded_kernels.h"
#include "kernels/cuda/launch.h"

namespace million::cuda::MILLION_CUDA_NS {

namespace coded {

constexpr int kRows = 16, kThreads = 128, kWarps = kThreads / 32;
/// Floats from row to row in shared memory: rows that are read by columns of four begin 16 banks
/// apart, rows that are written by pairs 8.
MILLION_HD constexpr int read_stride(int n) { return (n + 15) / 32 * 32 + 16; }
MILLION_HD constexpr int write_stride(int n) { return (n + 23) / 32 * 32 + 8; }
/// Sums of 16-bit queries times bytes stay below 2^30 up to rank 256; beyond, queries get fewer
/// bits. The mean's part stays below 2^29.
constexpr float kQueryRange = 32512.0f, kBiasRange = 536870912.0f;

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

/// A row of this block. Indices fit in 32 bits: there are at most 2^24 (head, frame) of all
/// sequences.
struct alignas(16) Row {
  int line;   ///< in TurnedQueries; -1: the frame holds no coded tokens
  int query;  ///< of all sequences
  int turn;   ///< of the frame's first position in cosines and sines
  int unused;
};

/// A block's memory.
struct Arena {
  Row* row;
  float* queries;   ///< [kRows][read_stride(d)] turned back to their frame
  float* products;  ///< [kRows][read_stride(n_places)] of these and the mean's vectors
  float* turned;    ///< [kRows][write_stride(rank)] in the basis, in steps of the keys
  float* bias;      ///< [kRows][write_stride(frame)]
  int product_stride, turned_stride, bias_stride;
  int floats;  ///< all of it

  MILLION_HD Arena(unsigned char* memory, int d, const CodedShape& s)
      : product_stride(read_stride(s.n_places)),
        turned_stride(write_stride(s.rank)),
        bias_stride(write_stride(s.frame)) {
    row = reinterpret_cast<Row*>(memory);
    queries = reinterpret_cast<float*>(memory) + 4 * kRows;
    products = queries + kRows * read_stride(d);
    turned = products + (s.n_places > 0 ? kRows * product_stride : 0);
    bias = turned + kRows * turned_stride;
    floats = 4 * kRows + kRows * (read_stride(d) + turned_stride);
    if (s.n_places > 0) floats += kRows * (product_stride + bias_stride);
  }
};

/// Queries turned back by whole frames; rows that are not there are zeros.
template <int kDim>
MILLION_DEVICE void turn_rows(const TurnQueriesArgs& a, const Arena& arena) {
  constexpr int kHalf = kDim / 2;
  // A thread keeps its pair of channels.
  const int pair = static_cast<int>(threadIdx.x) % kHalf, n_pairs = a.shape.n_pairs;
  const bool turned = pair < n_pairs, halves = turned && !a.shape.adjacent;
  const int c0 = halves ? pair : 2 * pair, c1 = halves ? pair + n_pairs : 2 * pair + 1;
  MILLION_UNROLL
  for (int i = 0; i < kRows * kHalf / kThreads; ++i) {
    const int index = static_cast<int>(threadIdx.x) / kHalf + i * (kThreads / kHalf);
    const Row row = arena.row[index];
    float x0 = 0.0f, x1 = 0.0f;
    if (row.line >= 0) {
      const uint16_t* q = a.query.q + static_cast<size_t>(row.query) * kDim;
      x0 = from_half(q[c0]), x1 = from_half(q[c1]);
      if (turned) {
        const float c = a.shape.cosines[row.turn + pair], s = a.shape.sines[row.turn + pair];
        const float y0 = x0 * c + x1 * s;
        x1 = x1 * c - x0 * s;
        x0 = y0;
      }
    }
    float* to = arena.queries + index * read_stride(kDim);
    to[c0] = x0, to[c1] = x1;
  }
}

/// Four floats as halves, and what these leave.
MILLION_DEVICE void split_halves(const float4& v, uint32_t (&high)[2], uint32_t (&low)[2]) {
  high[0] = pack_halves(v.x, v.y), high[1] = pack_halves(v.z, v.w);
  low[0] = pack_halves(v.x - low_half(high[0]), v.y - high_half(high[0]));
  low[1] = pack_halves(v.z - low_half(high[1]), v.w - high_half(high[1]));
}

/// 16 columns of 16 rows as operands. Lane 4 n + j takes columns 4 j to 4 j + 3 of rows n and n +
/// 8: any order does that the other operand has too, and this is the order of a word of D^T.
struct Split {
  uint32_t high[2][2], low[2][2];  ///< [row n or n + 8]

  MILLION_DEVICE void load(const float* rows, int stride, int lane) {
    MILLION_UNROLL
    for (int r = 0; r < 2; ++r)
      split_halves(
          *reinterpret_cast<const float4*>(rows + (lane / 4 + 8 * r) * stride + lane % 4 * 4),
          high[r], low[r]);
  }
  /// sum += (high + low) * b
  MILLION_DEVICE void multiply(float (&sum)[4], uint32_t b0, uint32_t b1) const {
    mma_16x8x16(sum, low[0][0], low[1][0], low[0][1], low[1][1], b0, b1);
    multiply_high(sum, b0, b1);
  }
  MILLION_DEVICE void multiply_high(float (&sum)[4], uint32_t b0, uint32_t b1) const {
    mma_16x8x16(sum, high[0][0], high[1][0], high[0][1], high[1][1], b0, b1);
  }
  /// The same with four floats of a column, `step` apart.
  MILLION_DEVICE void multiply_floats(float (&sum)[4], const float* b, int step) const {
    uint32_t b_high[2], b_low[2];
    split_halves(float4{b[0], b[step], b[2 * step], b[3 * step]}, b_high, b_low);
    multiply_high(sum, b_low[0], b_low[1]);
    multiply(sum, b_high[0], b_high[1]);
  }
};

/// Columns 2j, 2j + 1 from `to` on of rows n and n + 8.
MILLION_DEVICE void store_sums(const float (&sum)[4], float* to, int stride, int lane) {
  float* at = to + lane / 4 * stride + lane % 4 * 2;
  *reinterpret_cast<float2*>(at) = float2{sum[0], sum[1]};
  *reinterpret_cast<float2*>(at + 8 * stride) = float2{sum[2], sum[3]};
}

/// Queries times this KV head's part of D^T in the steps that scores need, and times the mean.
template <int kDim>
MILLION_DEVICE void rotate_rows(const TurnQueriesArgs& a, const Arena& arena) {
  const int lane = static_cast<int>(threadIdx.x & 31), n = lane >> 2, j = lane & 3;
  const int column = static_cast<int>(threadIdx.x >> 5) * 8;  // of this warp's first eight
  const int rank = a.shape.rank, n_places = a.shape.n_places;
  const int kv = static_cast<int>(blockIdx.y), unit = kv / a.shape.span;
  Split queries[kDim / 16];
  MILLION_UNROLL
  for (int k = 0; k < kDim / 16; ++k)
    queries[k].load(arena.queries + 16 * k, read_stride(kDim), lane);
  const float* mean = a.shape.mean + (kv * kDim + 4 * j) * n_places + n;
  for (int at = column; at < n_places; at += 8 * kWarps) {
    float sum[4] = {};
    MILLION_UNROLL
    for (int k = 0; k < kDim / 16; ++k)
      queries[k].multiply_floats(sum, mean + (16 * k * n_places + at), n_places);
    store_sums(sum, arena.products + at, arena.product_stride, lane);
  }
  // Unsigned indices, so that a load takes one instruction for its address.
  const auto* basis = reinterpret_cast<const uint32_t*>(a.k.basis);
  auto word_at = static_cast<unsigned>((kv * (kDim / 4) + j) * rank + n + column);
  auto axis = static_cast<unsigned>(unit * rank + 2 * j + column);
  float* to = arena.turned + column + n * arena.turned_stride + 2 * j;
  MILLION_NO_UNROLL
  for (int at = column; at < rank; at += 8 * kWarps) {
    float sum[4] = {};
    uint32_t word[kDim / 16];
    MILLION_UNROLL
    for (int k = 0; k < kDim / 16; ++k)
      word[k] = __ldg(basis + (word_at + static_cast<unsigned>(4 * k * rank))) ^ 0x80808080u;
    const float2 s0 = *reinterpret_cast<const float2*>(a.k.basis_scale + axis);
    const float2 s1 = *reinterpret_cast<const float2*>(a.k.scale + axis);
    MILLION_UNROLL
    for (int k = 0; k < kDim / 16; ++k)
      queries[k].multiply(sum, byte_halves<0x4140>(word[k]), byte_halves<0x4342>(word[k]));
    const float x = s0.x * s1.x, y = s0.y * s1.y;
    *reinterpret_cast<float2*>(to) = float2{sum[0] * x, sum[1] * y};
    *reinterpret_cast<float2*>(to + 8 * arena.turned_stride) = float2{sum[2] * x, sum[3] * y};
    word_at += 8 * kWarps, axis += 8 * kWarps, to += 8 * kWarps;
  }
}

/// The mean's part at every place of a frame: sum of products times functions of the place.
MILLION_DEVICE void mean_rows(const TurnQueriesArgs& a, const Arena& arena) {
  const int lane = static_cast<int>(threadIdx.x & 31), frame = a.shape.frame;
  const size_t unit = blockIdx.y / static_cast<unsigned>(a.shape.span);
  const float* places = a.shape.places + unit * a.shape.n_places * frame + lane / 4;
  for (int at = static_cast<int>(threadIdx.x >> 5) * 8; at < frame; at += 8 * kWarps) {
    float sum[4] = {};
    for (int k = 0; k < a.shape.n_places; k += 16) {
      Split products;
      products.load(arena.products + k, arena.product_stride, lane);
      products.multiply_floats(sum, places + (k + lane % 4 * 4) * frame + at, frame);
    }
    store_sums(sum, arena.bias + at, arena.bias_stride, lane);
  }
}

MILLION_DEVICE float largest(float top, const float* x) {
  const float4 v = *reinterpret_cast<const float4*>(x);
  return fmaxf(fmaxf(top, fmaxf(fabsf(v.x), fabsf(v.y))), fmaxf(fabsf(v.z), fabsf(v.w)));
}

/// High and low bytes of four axes in steps: x = 256 high + low, both signed.
MILLION_DEVICE void query_bytes(const float* y, float inverse, uint32_t* high, uint32_t* low) {
  // Adding 1.5 * 2^23 rounds, and leaves the integer in the low bits.
  constexpr float kRound = 12582912.0f;
  const float4 v = *reinterpret_cast<const float4*>(y);
  const auto bits = [&](float x) {
    const float sum = fmaf(x, inverse, kRound);
    uint32_t b;
    memcpy(&b, &sum, 4);
    return b;
  };
  const uint32_t x[4] = {bits(v.x), bits(v.y), bits(v.z), bits(v.w)};
  *low = byte_permute(byte_permute(x[0], x[1], 0x40), byte_permute(x[2], x[3], 0x40), 0x5410);
  *high = byte_permute(byte_permute(x[0] + 128, x[1] + 128, 0x51),
                       byte_permute(x[2] + 128, x[3] + 128, 0x51), 0x5410);
}

/// Rows as fixed point; eight threads a row.
MILLION_DEVICE void write_rows(const TurnQueriesArgs& a, const Arena& arena) {
  const int index = static_cast<int>(threadIdx.x) / 8, part = static_cast<int>(threadIdx.x) % 8;
  const int rank = a.shape.rank, frame = a.shape.n_places > 0 ? a.shape.frame : 0;
  const float *y = arena.turned + index * arena.turned_stride,
              *bias = arena.bias + index * arena.bias_stride;
  float top = 0.0f, bias_top = 0.0f;
  for (int i = 4 * part; i < rank; i += 32) top = largest(top, y + i);
  for (int i = 4 * part; i < frame; i += 32) bias_top = largest(bias_top, bias + i);
  MILLION_UNROLL
  for (int s = 4; s > 0; s >>= 1) {
    top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, s));
    bias_top = fmaxf(bias_top, __shfl_xor_sync(kFullWarp, bias_top, s));
  }
  const int line = arena.row[index].line;
  if (line < 0) return;
  const float range = rank <= 256 ? kQueryRange : kQueryRange * 256.0f / static_cast<float>(rank);
  float step = fmaxf(top / range, bias_top / kBiasRange);
  if (!(step > 1e-35f)) step = 1.0f;  // zeros
  const float inverse = 1.0f / step;
  const TurnedQueries& to = a.turned;
  if (part == 0) to.step[line] = step;
  auto* words = reinterpret_cast<uint4*>(to.words) + static_cast<size_t>(line) * (rank / 8);
  for (int i = part; i < rank / 8; i += 8) {
    const float* first = y + 32 * (i / 4) + 4 * (i % 4);
    uint4 x;
    query_bytes(first, inverse, &x.x, &x.y);
    query_bytes(first + 16, inverse, &x.z, &x.w);
    words[i] = x;
  }
  int32_t* bias_to = to.bias + static_cast<size_t>(line) * a.shape.frame;
  for (int i = 4 * part; i < frame; i += 32) {
    const float4 v = *reinterpret_cast<const float4*>(bias + i);
    const auto bits = [&](float x) {
      return static_cast<uint32_t>(static_cast<int32_t>(rintf(x * inverse)));
    };
    *reinterpret_cast<uint4*>(bias_to + i) = uint4{bits(v.x), bits(v.y), bits(v.z), bits(v.w)};
  }
}

}  // namespace coded

template <int kDim>
__global__ void __launch_bounds__(coded::kThreads) turn_queries_kernel(const TurnQueriesArgs a) {
  MILLION_SHARED(shared);
  const coded::Frames frames = coded::coded_frames(a);
  const int group = a.query.n_heads / a.query.n_kv_heads;
  const int first = static_cast<int>(blockIdx.x) * coded::kRows;
  if (first / group >= frames.end || (first + coded::kRows - 1) / group < frames.begin) return;
  const coded::Arena arena(shared, kDim, a.shape);
  if (threadIdx.x < coded::kRows) {
    const int flat = first + static_cast<int>(threadIdx.x), frame = flat / group;
    const int query = static_cast<int>(blockIdx.z) * a.query.n_heads +
                      static_cast<int>(blockIdx.y) * group + flat % group;
    const bool there = frame >= frames.begin && frame < frames.end;
    arena.row[threadIdx.x] = {there ? query * a.turned.frames + frame : -1, query,
                              frame * a.shape.frame * a.shape.n_pairs, 0};
  }
  __syncthreads();
  coded::turn_rows<kDim>(a, arena);
  __syncthreads();
  coded::rotate_rows<kDim>(a, arena);
  if (a.shape.n_places > 0) {
    __syncthreads();
    coded::mean_rows(a, arena);
  }
  __syncthreads();
  coded::write_rows(a, arena);
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

int turn_queries(StreamHandle stream, const TurnQueriesArgs& a) {
  const int group = a.query.n_heads / a.query.n_kv_heads;
  const dim3 grid(
      static_cast<unsigned>((a.turned.frames * group + coded::kRows - 1) / coded::kRows),
      static_cast<unsigned>(a.query.n_kv_heads), static_cast<unsigned>(a.query.batch));
  const size_t shared =
      sizeof(float) * static_cast<size_t>(coded::Arena(nullptr, a.query.head_dim, a.shape).floats);
  const auto kernel = a.query.head_dim == 64 ? turn_queries_kernel<64> : turn_queries_kernel<128>;
  return launch(kernel, grid, dim3(coded::kThreads), shared, stream, a);
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
