// SPDX-License-Identifier: Apache-2.0
// Rows to codes in a basis and back: y = E (row of a unit) in f32, nearest centroid of each four
// axes, and D (centroids) for prefill. Eight tokens of a unit a block, so that a word of a matrix
// or a centroid serves eight of them; the same maths as lib/quant/pq_store.cpp up to rounding.
#include "kernels/cuda/attention_coded.h"

#include "kernels/cuda/coded_kernels.h"
#include "kernels/cuda/launch.h"

namespace million::cuda::MILLION_CUDA_NS {

namespace coded {

constexpr int kTokens = 8;         ///< of a block
constexpr int kCodeThreads = 192;  ///< the subspaces of rank 192, four pairs of tokens each
constexpr int kPair = 2;           ///< tokens for which a thread searches a subspace
constexpr int kSlices = 4;         ///< of the axes, summed apart for the same channels

/// Turns channel pair `pair` of a row of a head by whole positions, forward or back.
MILLION_DEVICE void turn_pair(const CodedShape& s, int position, bool back, int pair, float* row) {
  const int c0 = s.adjacent ? 2 * pair : pair, c1 = s.adjacent ? c0 + 1 : pair + s.n_pairs;
  const size_t at = static_cast<size_t>(position) * s.n_pairs + pair;
  const float c = s.cosines[at], sine = back ? -s.sines[at] : s.sines[at];
  const float x0 = row[c0], x1 = row[c1];
  row[c0] = x0 * c - x1 * sine;
  row[c1] = x0 * sine + x1 * c;
}

/// Turns the rows [kTokens][span * d] of a unit, token `first` + i at position + i, between their
/// positions and their places in the frame.
MILLION_DEVICE void turn_keys(const CodedShape& s, int head_dim, int position, int n, bool back,
                              float* rows) {
  for (int i = static_cast<int>(threadIdx.x); i < n * s.span * s.n_pairs; i += kCodeThreads) {
    const int pair = i % s.n_pairs, head = i / s.n_pairs % s.span, t = i / (s.n_pairs * s.span);
    const int at = position + t;
    turn_pair(s, at - at % s.frame, back, pair, rows + (t * s.span + head) * head_dim);
  }
}

/// y [kTokens][rank] = E times the rows of the tokens, less the coded mean.
MILLION_DEVICE void encode_rows(const CodedEncodeArgs& a, int unit, int position, const float* rows,
                                float* y) {
  const int w = a.shape.span * a.head_dim, rank = a.shape.rank;
  const auto* matrix =
      reinterpret_cast<const uint32_t*>(a.encode) + static_cast<size_t>(unit) * (w / 4) * rank;
  const float* scale = a.encode_scale + static_cast<size_t>(unit) * rank;
  for (int axis = static_cast<int>(threadIdx.x); axis < rank; axis += kCodeThreads) {
    float sum[kTokens] = {};
    for (int c = 0; c < w / 4; ++c) {
      const uint32_t word = __ldg(matrix + static_cast<size_t>(c) * rank + axis);
      float e[4];
      MILLION_UNROLL
      for (int i = 0; i < 4; ++i) e[i] = byte_value(word, i);
      MILLION_UNROLL
      for (int t = 0; t < kTokens; ++t) {
        const float4 x = *reinterpret_cast<const float4*>(rows + t * w + 4 * c);
        sum[t] = fmaf(e[0], x.x, fmaf(e[1], x.y, fmaf(e[2], x.z, fmaf(e[3], x.w, sum[t]))));
      }
    }
    for (int t = 0; t < kTokens; ++t) {
      float value = sum[t] * scale[axis];
      if (a.coded_mean)
        value -= from_half(a.coded_mean[(static_cast<size_t>(unit) * a.shape.frame +
                                         (position + t) % a.shape.frame) *
                                            rank +
                                        axis]);
      y[t * rank + axis] = value;
    }
  }
}

/// Nearest centroids of subspace m for kPair tokens, the first of equals.
MILLION_DEVICE void nearest(const CodedCodesView& codes, int unit, int m, const float* y, int rank,
                            int (&best)[kPair]) {
  const int M = codes.M;
  const auto* book = reinterpret_cast<const uint32_t*>(codes.book) +
                     (static_cast<size_t>(unit) << codes.nbits) * M + m;
  float scale[4], x[kPair][4], least[kPair];
  MILLION_UNROLL
  for (int i = 0; i < 4; ++i) scale[i] = codes.scale[static_cast<size_t>(unit) * rank + 4 * m + i];
  MILLION_UNROLL
  for (int p = 0; p < kPair; ++p) {
    best[p] = 0, least[p] = INFINITY;
    MILLION_UNROLL
    for (int i = 0; i < 4; ++i) x[p][i] = y[p * rank + 4 * m + i];
  }
  for (int c = 0; c < 1 << codes.nbits; ++c) {
    const uint32_t word = __ldg(book + static_cast<size_t>(c) * M);
    float distance[kPair] = {};
    MILLION_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float value = byte_value(word, i) * scale[i];
      MILLION_UNROLL
      for (int p = 0; p < kPair; ++p) {
        const float apart = x[p][i] - value;
        distance[p] = fmaf(apart, apart, distance[p]);
      }
    }
    MILLION_UNROLL
    for (int p = 0; p < kPair; ++p)
      if (distance[p] < least[p]) least[p] = distance[p], best[p] = c;
  }
}

}  // namespace coded

/// Grid (tokens / kTokens, units, batch).
__global__ void __launch_bounds__(coded::kCodeThreads, 3)
    coded_encode_kernel(const CodedEncodeArgs a) {
  using namespace coded;
  MILLION_SHARED(shared);
  const int unit = static_cast<int>(blockIdx.y), batch = static_cast<int>(blockIdx.z);
  const int span = a.shape.span, d = a.head_dim, w = span * d, rank = a.shape.rank;
  const int first = a.begin + static_cast<int>(blockIdx.x) * kTokens;
  const int left = a.begin + a.n - first, n = left < kTokens ? left : kTokens;
  float* rows = reinterpret_cast<float*>(shared);  // [kTokens][w]
  float* y = rows + kTokens * w;                   // [kTokens][rank]
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * w; i += kCodeThreads) {
    const int t = i / w, kv = unit * span + i % w / d;
    const size_t line = static_cast<size_t>(batch) * a.n_kv_heads + kv;
    const int row = (a.n_sinks + first + t) & (a.ring_rows - 1);
    rows[i] = t < n ? from_half(a.ring[(line * a.ring_rows + row) * d + i % d]) : 0.0f;
  }
  __syncthreads();
  if (a.key) {
    turn_keys(a.shape, d, a.n_sinks + first, n, true, rows);
    __syncthreads();
  }
  encode_rows(a, unit, a.n_sinks + first, rows, y);
  __syncthreads();
  const int M = a.codes.M;
  const size_t line = static_cast<size_t>(batch) * (a.n_kv_heads / span) + unit;
  auto* codes =
      reinterpret_cast<uint8_t*>(a.codes.codes) + line * a.codes.strips * coded_strip_words(M) * 4;
  for (int i = static_cast<int>(threadIdx.x); i < M * (kTokens / kPair); i += kCodeThreads) {
    const int m = i % M, pair = i / M * kPair;
    if (pair >= n) continue;
    int best[kPair];
    nearest(a.codes, unit, m, y + pair * rank, rank, best);
    for (int p = 0; p < kPair && pair + p < n; ++p) {
      const int slot = coded_slot(a.n_sinks, first + pair + p), t = slot % kCodedStrip;
      const size_t strip = static_cast<size_t>(slot / kCodedStrip) * coded_strip_words(M) * 4;
      codes[strip + (a.key ? coded_key_byte(t, m) : coded_value_byte(M, t, m))] =
          static_cast<uint8_t>(best[p]);
    }
  }
}

/// Grid (tokens / kTokens, units, batch).
__global__ void __launch_bounds__(coded::kCodeThreads, 3)
    coded_decode_kernel(const CodedDecodeArgs a) {
  using namespace coded;
  MILLION_SHARED(shared);
  const int unit = static_cast<int>(blockIdx.y), batch = static_cast<int>(blockIdx.z);
  const int span = a.shape.span, d = a.to.head_dim, w = span * d, rank = a.shape.rank;
  const int M = a.codes.M, first = a.to.begin + static_cast<int>(blockIdx.x) * kTokens;
  const int left = a.to.begin + a.to.n - first, n = left < kTokens ? left : kTokens;
  float* y = reinterpret_cast<float*>(shared);  // [kTokens][rank]
  float* rows = y + kTokens * rank;             // [kTokens][w]
  const size_t line = static_cast<size_t>(batch) * (a.to.n_kv_heads / span) + unit;
  const auto* codes = reinterpret_cast<const uint8_t*>(a.codes.codes) +
                      line * a.codes.strips * coded_strip_words(M) * 4;
  const int8_t* book = a.codes.book + (static_cast<size_t>(unit) << a.codes.nbits) * rank;
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * rank; i += kCodeThreads) {
    const int t = i / rank, axis = i % rank, m = axis / 4;
    float value = 0.0f;
    if (t < n) {
      const int slot = coded_slot(a.n_sinks, first + t), at = slot % kCodedStrip;
      const uint8_t code =
          codes[static_cast<size_t>(slot / kCodedStrip) * coded_strip_words(M) * 4 +
                (a.key ? coded_key_byte(at, m) : coded_value_byte(M, at, m))];
      const size_t column = static_cast<size_t>(unit) * rank + axis;
      value =
          static_cast<float>(book[static_cast<size_t>(code) * rank + axis]) * a.codes.scale[column];
      if (a.coded_mean) {
        const int place = (a.n_sinks + first + t) % a.shape.frame;
        value += from_half(
            a.coded_mean[(static_cast<size_t>(unit) * a.shape.frame + place) * rank + axis]);
      }
      value *= a.codes.basis_scale[column];
    }
    y[i] = value;
  }
  __syncthreads();
  // Four channels and a slice of the axes a thread; slices are neighbours in a warp.
  const auto* basis = reinterpret_cast<const uint4*>(a.codes.basis) +
                      static_cast<size_t>(unit) * (w / 4) * (rank / 4);
  for (int i = static_cast<int>(threadIdx.x); i < w; i += kCodeThreads) {
    const int c = i / kSlices, slice = i % kSlices;
    float sum[kTokens][4] = {};
    for (int j = slice; j < rank / 4; j += kSlices) {
      const uint4 word = __ldg(basis + static_cast<size_t>(c) * (rank / 4) + j);
      MILLION_UNROLL
      for (int t = 0; t < kTokens; ++t) {
        const float4 x = *reinterpret_cast<const float4*>(y + t * rank + 4 * j);
        MILLION_UNROLL
        for (int k = 0; k < 4; ++k)
          sum[t][k] = fmaf(
              byte_value(word.x, k), x.x,
              fmaf(byte_value(word.y, k), x.y,
                   fmaf(byte_value(word.z, k), x.z, fmaf(byte_value(word.w, k), x.w, sum[t][k]))));
      }
    }
    MILLION_UNROLL
    for (int t = 0; t < kTokens; ++t) MILLION_UNROLL
    for (int k = 0; k < 4; ++k) {
      sum[t][k] += __shfl_xor_sync(kFullWarp, sum[t][k], 1);
      sum[t][k] += __shfl_xor_sync(kFullWarp, sum[t][k], 2);
      if (slice == 0) rows[t * w + 4 * c + k] = sum[t][k];
    }
  }
  __syncthreads();
  if (a.key) {
    turn_keys(a.shape, d, a.n_sinks + first, n, false, rows);
    __syncthreads();
  }
  for (int i = static_cast<int>(threadIdx.x); i < n * w; i += kCodeThreads) {
    const int t = i / w, kv = unit * span + i % w / d;
    const size_t to = static_cast<size_t>(batch) * a.to.n_kv_heads + kv;
    a.to.rows[(to * a.to.capacity + first + t) * d + i % d] = to_half(rows[i]);
  }
}

namespace {

int coded_encode(StreamHandle stream, const CodedEncodeArgs& a) {
  const dim3 grid(static_cast<unsigned>((a.n + coded::kTokens - 1) / coded::kTokens),
                  static_cast<unsigned>(a.n_kv_heads / a.shape.span),
                  static_cast<unsigned>(a.batch));
  const int floats = coded::kTokens * (a.shape.span * a.head_dim + a.shape.rank);
  return launch(coded_encode_kernel, grid, dim3(coded::kCodeThreads),
                sizeof(float) * static_cast<size_t>(floats), stream, a);
}

int coded_decode(StreamHandle stream, const CodedDecodeArgs& a) {
  const dim3 grid(static_cast<unsigned>((a.to.n + coded::kTokens - 1) / coded::kTokens),
                  static_cast<unsigned>(a.to.n_kv_heads / a.shape.span),
                  static_cast<unsigned>(a.to.batch));
  const int floats = coded::kTokens * (a.shape.span * a.to.head_dim + a.shape.rank);
  return launch(coded_decode_kernel, grid, dim3(coded::kCodeThreads),
                sizeof(float) * static_cast<size_t>(floats), stream, a);
}

}  // namespace

void add_coded_codes(DeviceOps& ops) {
  ops.coded_encode = coded_encode;
  ops.coded_decode = coded_decode;
}

}  // namespace million::cuda::MILLION_CUDA_NS
