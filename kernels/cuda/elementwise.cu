// SPDX-License-Identifier: Apache-2.0
// Embedding, norms, RoPE with the append to the cache, SwiGLU, argmax: memory-bound row work. One
// block a row; f32 between layers, halves into the products.
#include "kernels/cuda/launch.h"

namespace million::cuda::MILLION_CUDA_NS {

namespace elementwise {
constexpr int kThreads = 128, kWarps = kThreads / 32;

__global__ void embed_kernel(const EmbedArgs a) {
  const int row = static_cast<int>(blockIdx.x);
  const uint16_t* from = a.table + static_cast<size_t>(a.tokens[row]) * a.d_model;
  float* to = a.x + static_cast<size_t>(row) * a.d_model;
  for (int i = static_cast<int>(threadIdx.x); i < a.d_model; i += kThreads)
    to[i] = from_half(from[i]);
}

/// Sum over the block; every thread gets it. `scratch` [kWarps] is free afterwards.
MILLION_DEVICE float block_sum(float x, float* scratch) {
  x = warp_sum(x);
  if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = x;
  __syncthreads();
  float sum = 0.0f;
  for (int w = 0; w < kWarps; ++w) sum += scratch[w];
  __syncthreads();
  return sum;
}

__global__ void rms_norm_kernel(const NormArgs a) {
  MILLION_SHARED(shared);
  const float* x = a.x + static_cast<size_t>(blockIdx.x) * a.d;
  float sum = 0.0f;
  for (int i = static_cast<int>(threadIdx.x); i < a.d; i += kThreads) sum += x[i] * x[i];
  sum = block_sum(sum, reinterpret_cast<float*>(shared));
  const float factor = 1.0f / sqrtf(sum / static_cast<float>(a.d) + a.eps);
  for (int i = static_cast<int>(threadIdx.x); i < a.d; i += kThreads) {
    const float y = x[i] * factor * a.weight[i];
    const size_t at = static_cast<size_t>(blockIdx.x) * a.d + i;
    if (a.y) a.y[at] = to_half(y);
    if (a.y_f32) a.y_f32[at] = y;
  }
}

/// One row of a token: head h of queries, then keys, then values. Block (row), threads over pairs
/// of channels of all heads.
__global__ void rope_append_kernel(const RopeAppendArgs a) {
  const int token = static_cast<int>(blockIdx.x), per = a.n / a.batch, sequence = token / per;
  const int d = a.head_dim, heads = a.n_heads + 2 * a.n_kv_heads, half = d / 2;
  const int position = a.state[sequence].n_tokens - per + token % per;
  const float* cosines = a.cosines + static_cast<size_t>(position) * a.n_pairs;
  const float* sines = a.sines + static_cast<size_t>(position) * a.n_pairs;
  for (int i = static_cast<int>(threadIdx.x); i < heads * half; i += kThreads) {
    const int head = i / half, pair = i % half;
    const bool value = head >= a.n_heads + a.n_kv_heads, turned = !value && pair < a.n_pairs;
    // Channels of this pair; those that are not turned pair up as neighbours behind the others.
    const bool halves = turned && !a.adjacent;
    const int c0 = halves ? pair : 2 * pair, c1 = halves ? pair + a.n_pairs : 2 * pair + 1;
    const float* row = a.qkv + (static_cast<size_t>(token) * heads + head) * d;
    float x0 = row[c0], x1 = row[c1];
    if (a.bias) x0 += a.bias[head * d + c0], x1 += a.bias[head * d + c1];
    if (turned) {
      const float c = cosines[pair] * a.magnitude, s = sines[pair] * a.magnitude;
      const float y0 = x0 * c - x1 * s;
      x1 = x0 * s + x1 * c;
      x0 = y0;
    }
    const uint16_t h0 = to_half(x0), h1 = to_half(x1);
    if (head < a.n_heads) {
      uint16_t* to = a.q + (static_cast<size_t>(token) * a.n_heads + head) * d;
      to[c0] = h0, to[c1] = h1;
      continue;
    }
    const int ring_rows = value ? a.v.ring_rows : a.k.ring_rows;
    const int sink_rows = value ? a.v.sink_rows : a.k.sink_rows;
    const size_t line = static_cast<size_t>(sequence) * a.n_kv_heads +
                        (head - a.n_heads - (value ? a.n_kv_heads : 0));
    uint16_t* ring =
        (value ? a.v.ring : a.k.ring) + (line * ring_rows + (position & (ring_rows - 1))) * d;
    ring[c0] = h0, ring[c1] = h1;
    if (position < sink_rows) {
      uint16_t* sink = (value ? a.v.sinks : a.k.sinks) + (line * sink_rows + position) * d;
      sink[c0] = h0, sink[c1] = h1;
    }
  }
}

__global__ void copy_rows_kernel(const CopyRowsArgs a) {
  const int token = a.first + static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const size_t from = static_cast<size_t>(head) * a.from_rows + (token & (a.from_rows - 1));
  const size_t to = static_cast<size_t>(head) * a.to_rows + ((token - a.to_shift) & (a.to_rows - 1));
  for (int c = static_cast<int>(threadIdx.x); c < a.head_dim; c += 32)
    a.to[to * a.head_dim + c] = a.from[from * a.head_dim + c];
}

__global__ void swiglu_kernel(const SwigluArgs a) {
  const size_t row = blockIdx.y;
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i >= a.d_ff) return;
  const float gate = a.gate_up[row * 2 * a.d_ff + i], up = a.gate_up[(row * 2 + 1) * a.d_ff + i];
  // log2(e): the sigmoid in powers of two
  a.y[row * a.d_ff + i] = to_half(gate / (1.0f + exp2_fast(-1.4426950408889634f * gate)) * up);
}

/// (x, i) beats (y, j): larger, or equal and earlier; NaN loses against everything.
MILLION_DEVICE bool beats(float x, int i, float y, int j) {
  if (x != x) return y != y && i < j;
  return x > y || y != y || (x == y && i < j);
}

__global__ void argmax_kernel(const ArgmaxArgs a) {
  MILLION_SHARED(shared);
  float* best_x = reinterpret_cast<float*>(shared);
  int* best_i = reinterpret_cast<int*>(best_x + kThreads);
  const int t = static_cast<int>(threadIdx.x);
  float x = t < a.n ? a.x[t] : NAN;  // loses against NaN at a lower index too
  int index = t < a.n ? t : a.n;
  for (int i = t + kThreads; i < a.n; i += kThreads)
    if (beats(a.x[i], i, x, index)) x = a.x[i], index = i;
  best_x[t] = x, best_i[t] = index;
  for (int step = kThreads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (t < step && beats(best_x[t + step], best_i[t + step], best_x[t], best_i[t]))
      best_x[t] = best_x[t + step], best_i[t] = best_i[t + step];
  }
  if (t == 0) *a.index = best_i[0];
}

}  // namespace elementwise

namespace {
using namespace elementwise;

int embed(StreamHandle stream, const EmbedArgs& a) {
  return launch(embed_kernel, dim3(a.n), dim3(kThreads), 0, stream, a);
}
int rms_norm(StreamHandle stream, const NormArgs& a) {
  return launch(rms_norm_kernel, dim3(a.n), dim3(kThreads), kWarps * sizeof(float), stream, a);
}
int rope_append(StreamHandle stream, const RopeAppendArgs& a) {
  return launch(rope_append_kernel, dim3(a.n), dim3(kThreads), 0, stream, a);
}
int copy_rows(StreamHandle stream, const CopyRowsArgs& a) {
  return launch(copy_rows_kernel, dim3(a.n > 0 ? a.n : 0, a.n_kv_heads), dim3(32), 0, stream, a);
}
int swiglu(StreamHandle stream, const SwigluArgs& a) {
  const dim3 grid((a.d_ff + kThreads - 1) / kThreads, a.n);
  return launch(swiglu_kernel, grid, dim3(kThreads), 0, stream, a);
}
int argmax(StreamHandle stream, const ArgmaxArgs& a) {
  const size_t bytes = kThreads * (sizeof(float) + sizeof(int));
  return launch(argmax_kernel, dim3(a.n > 0 ? 1 : 0), dim3(kThreads), bytes, stream, a);
}

}  // namespace

void add_elementwise(DeviceOps& ops) {
  ops.embed = embed;
  ops.rms_norm = rms_norm;
  ops.rope_append = rope_append;
  ops.copy_rows = copy_rows;
  ops.swiglu = swiglu;
  ops.argmax = argmax;
}

}  // namespace million::cuda::MILLION_CUDA_NS
