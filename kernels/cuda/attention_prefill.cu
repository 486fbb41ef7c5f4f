// SPDX-License-Identifier: Apache-2.0
// Causal attention of many queries over exact and decoded rows [FA2]. A row of a block is a pair of
// query and head of one KV head's group, so that a group reads its keys and values once: block
// (64 R rows, KV head), four warps of 16 R rows each.
//
// Keys and values come in slabs of 8 KB (32 or 64 tokens of one kind from one source) through a
// ring of three buffers: while one is used, the next two are under way. A tile whose tokens are
// exact for some rows and decoded for others takes both slabs: its scores are selected by row and
// token, and its weights are split in two masked parts. Rows of a slab that no query of the block
// needs are zeros: what lies in their place may be another token or NaN.
#include "kernels/cuda/launch.h"

namespace million::cuda::MILLION_CUDA_NS {

namespace prefill {
constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kSlabs = 3, kSlabBytes = 8192;

template <int D, int R>
struct Shape {
  static constexpr int kRows = 16 * R * kWarps;
  static constexpr int kTokens = kSlabBytes / (2 * D);
  static constexpr int kChunks = D / 8;              // of 16 bytes in a row
  static constexpr int kQueryBytes = kRows * D * 2;  // behind the slabs
  // Fragments of the queries stay in registers where these suffice.
  static constexpr bool kHoldQueries = D == 64;
};

/// Where 16 bytes of a row lie: rows of 8 turn their chunks so that eight rows of one chunk, and
/// eight chunks of one row, meet in no bank.
template <int D>
MILLION_DEVICE int chunk_offset(int row, int chunk) {
  return row * 2 * D + ((chunk ^ (row & 7)) << 4);
}

/// Tokens that the queries of a block take from codes, as positions: the first query below
/// `first`, the last below `last`.
struct Bounds {
  int first, last;
};
MILLION_DEVICE Bounds bounds_of(const int32_t* coded, int n_sinks, int q_first, int q_last) {
  if (!coded) return {n_sinks, n_sinks};
  return {n_sinks + coded[q_first], n_sinks + coded[q_last]};
}

/// What the queries of a block see.
struct View {
  int head;             // KV head
  int q_first, q_last;  // queries
  int begin, end;       // position of the first; one past that of the last
  Bounds keys, values;

  /// Sources of the tokens [from, to) as two bits: exact, decoded.
  MILLION_DEVICE static int sources(const Bounds& b, int n_sinks, int from, int to) {
    const bool exact = from < n_sinks || to > b.first;
    const bool decoded = to > n_sinks && b.last > n_sinks && from < b.last;
    return (exact ? 1 : 0) | (decoded ? 2 : 0);
  }
  /// Kinds of slabs that tokens [from, from + n_tokens) need, bit by bit.
  MILLION_DEVICE int kinds(int n_sinks, int from, int n_tokens) const {
    const int to = from + n_tokens < end ? from + n_tokens : end;
    return sources(keys, n_sinks, from, to) | sources(values, n_sinks, from, to) << 2;
  }
};

/// Loads a slab (kinds: see Slabs) of tokens [from, from + kTokens): the whole block,
/// asynchronously.
template <int D>
MILLION_DEVICE void load_slab(const PrefillArgs& a, const View& view, int kind, int from,
                              unsigned char* slab) {
  constexpr int kChunks = D / 8, kTokens = kSlabBytes / (2 * D), kStep = kThreads / kChunks;
  const bool value = kind >= 2, decoded = (kind & 1) != 0;
  const Bounds bound = value ? view.values : view.keys;
  const int32_t* coded = value ? a.coded_v : a.coded_k;
  const int ring_rows = value ? a.v.ring_rows : a.k.ring_rows;
  const int sink_rows = value ? a.v.sink_rows : a.k.sink_rows;
  const uint16_t* rows = decoded ? (value ? a.decoded_v : a.decoded_k)
                         : value ? a.v.ring
                                 : a.k.ring;
  const uint16_t* sinks = value ? a.v.sinks : a.k.sinks;
  const int n_rows = decoded ? a.decoded_rows : ring_rows;
  rows += static_cast<size_t>(view.head) * n_rows * D;
  sinks += static_cast<size_t>(view.head) * sink_rows * D;

  const int thread = static_cast<int>(threadIdx.x);
  const int row0 = thread / kChunks, chunk = thread % kChunks;
  const int to = from + kTokens;
  // Every row of the slab is needed by some query, whatever the tokens between its bounds are.
  const bool whole =
      from >= a.n_sinks && to <= view.end &&
      (decoded ? to <= bound.last
               : from >= bound.last || (from >= bound.first && to <= view.begin + 1));
  if (whole) {
    // A ring that holds a tile of tokens holds it in one piece.
    const size_t row = (decoded ? from - a.n_sinks : from & (ring_rows - 1)) + row0;
    const uint16_t* source = rows + row * D + chunk * 8;
    unsigned char* place = slab + chunk_offset<D>(row0, chunk);  // kStep is a multiple of 8
    MILLION_UNROLL
    for (int i = 0; i < kTokens / kStep; ++i)
      __pipeline_memcpy_async(place + i * kStep * 2 * D, source + i * kStep * D, 16);
    return;
  }
  MILLION_NO_UNROLL
  for (int row = row0; row < kTokens; row += kStep) {
    const int t = from + row;
    const uint16_t* source = nullptr;
    if (t >= view.end) {
    } else if (decoded) {
      if (t >= a.n_sinks && t < bound.last) source = rows + static_cast<size_t>(t - a.n_sinks) * D;
    } else if (t < a.n_sinks) {
      source = sinks + static_cast<size_t>(t) * D;
    } else {
      // Bounds do not fall, so the first query that sees the token needs it if any does.
      const int q = t - a.first > view.q_first ? t - a.first : view.q_first;
      if (t >= bound.last || t >= a.n_sinks + coded[q])
        source = rows + static_cast<size_t>(t & (ring_rows - 1)) * D;
    }
    unsigned char* place = slab + chunk_offset<D>(row, chunk);
    if (source)
      __pipeline_memcpy_async(place, source + chunk * 8, 16);
    else
      *reinterpret_cast<uint4*>(place) = uint4{0, 0, 0, 0};
  }
}

/// The slabs of a block in the order of their use. Kinds: exact keys 0, decoded keys 1, exact
/// values 2, decoded values 3.
template <int D>
struct Slabs {
  static constexpr int kTokens = kSlabBytes / (2 * D);
  unsigned char* buffers;
  int from, kinds;  // of the next to be loaded: its tile and what is left of that
  int loads, uses;  // modulo kSlabs

  MILLION_DEVICE Slabs(const PrefillArgs& a, const View& view, unsigned char* shared)
      : buffers(shared), from(0), kinds(view.kinds(a.n_sinks, 0, kTokens)), loads(0), uses(0) {
    for (int i = 0; i < kSlabs - 1; ++i) load(a, view);
  }
  MILLION_DEVICE void load(const PrefillArgs& a, const View& view) {
    if (from < view.end) {
      const int kind = (kinds & 1) != 0 ? 0 : (kinds & 2) != 0 ? 1 : (kinds & 4) != 0 ? 2 : 3;
      load_slab<D>(a, view, kind, from, buffers + loads * kSlabBytes);
      kinds &= kinds - 1;
      if (kinds == 0) {
        from += kTokens;
        kinds = view.kinds(a.n_sinks, from, kTokens);
      }
    }
    loads = loads == kSlabs - 1 ? 0 : loads + 1;
    __pipeline_commit();  // also without copies: waits count groups
  }
  /// The next slab, ready. The barrier also says that all warps are done with the one before.
  MILLION_DEVICE const unsigned char* next(const PrefillArgs& a, const View& view) {
    __pipeline_wait_prior(kSlabs - 2);
    __syncthreads();
    load(a, view);
    const unsigned char* slab = buffers + uses * kSlabBytes;
    uses = uses == kSlabs - 1 ? 0 : uses + 1;
    return slab;
  }
};

/// Fragment of 16 queries x 16 channels (step k) as mma's operand a.
template <int D>
MILLION_DEVICE void query_fragment(uint32_t (&q)[4], const unsigned char* queries, int row, int k) {
  load_matrices<false>(q, [=](int lane) {
    return queries + chunk_offset<D>(row + (lane & 15), 2 * k + (lane >> 4));
  });
}
/// Fragments of 16 keys x 16 channels: operands b (r[0], r[1]) of keys 0-7 and (r[2], r[3]) of
/// 8-15.
template <int D>
MILLION_DEVICE void key_fragments(uint32_t (&r)[4], const unsigned char* slab, int token, int k) {
  load_matrices<false>(r, [=](int lane) {
    return slab + chunk_offset<D>(token + (lane & 7) + (lane >> 4) * 8, 2 * k + (lane >> 3 & 1));
  });
}
/// Fragments of 16 tokens x 16 channels of values: operands b of channels 0-7 and 8-15.
template <int D>
MILLION_DEVICE void value_fragments(uint32_t (&r)[4], const unsigned char* slab, int token, int c) {
  load_matrices<true>(r, [=](int lane) {
    return slab + chunk_offset<D>(token + (lane & 15), 2 * c + (lane >> 4));
  });
}

/// A warp's part of the work: rows 16 x + n and 16 x + n + 8 of its 16 R (lane 4 n + j). Registers
/// follow mma's fragments; y = 0, 1 is the upper and the lower row of a pair.
template <int D, int R>
struct Rows {
  using S = Shape<D, R>;
  static constexpr int kTokens = S::kTokens, kSteps = D / 16;
  static constexpr int kHeld = S::kHoldQueries ? kSteps : 1;

  const unsigned char* queries;  // of the block, in shared memory
  int first_row, n, j;           // first row of the warp; lane
  int query[R][2];               // of the rows
  uint32_t held[R][kHeld][4];
  float out[R][D / 8][4];
  float maximum[R][2], sum[R][2];  // the maximum that scores are taken against; sums of this lane

  MILLION_DEVICE void init(const PrefillArgs& a, const unsigned char* shared, int block_row) {
    const int group = a.n_heads / a.n_kv_heads, last = a.n * group - 1;
    const int lane = static_cast<int>(threadIdx.x & 31);
    queries = shared, n = lane >> 2, j = lane & 3;
    first_row = static_cast<int>(threadIdx.x >> 5) * 16 * R;
    MILLION_UNROLL
    for (int x = 0; x < R; ++x) {
      MILLION_UNROLL
      for (int y = 0; y < 2; ++y) {
        const int row = block_row + first_row + 16 * x + 8 * y + n;
        query[x][y] = (row < last ? row : last) / group;
        maximum[x][y] = -INFINITY, sum[x][y] = 0.0f;
      }
      MILLION_UNROLL
      for (int c = 0; c < D / 8; ++c)
        out[x][c][0] = out[x][c][1] = out[x][c][2] = out[x][c][3] = 0.0f;
      if constexpr (S::kHoldQueries) {
        MILLION_UNROLL
        for (int k = 0; k < kSteps; ++k)
          query_fragment<D>(held[x][k], queries, first_row + 16 * x, k);
      }
    }
  }

  /// Scores of all tokens of a slab.
  MILLION_DEVICE void scores(float (&s)[R][kTokens / 8][4], const unsigned char* slab) {
    MILLION_UNROLL
    for (int x = 0; x < R; ++x) {
      MILLION_UNROLL
      for (int t = 0; t < kTokens / 8; ++t)
        s[x][t][0] = s[x][t][1] = s[x][t][2] = s[x][t][3] = 0.0f;
    }
    MILLION_UNROLL
    for (int k = 0; k < kSteps; ++k) {
      const int at = S::kHoldQueries ? k : 0;
      if constexpr (!S::kHoldQueries) {
        MILLION_UNROLL
        for (int x = 0; x < R; ++x) query_fragment<D>(held[x][0], queries, first_row + 16 * x, k);
      }
      MILLION_UNROLL
      for (int t = 0; t < kTokens / 16; ++t) {
        uint32_t b[4];
        key_fragments<D>(b, slab, 16 * t, k);
        MILLION_UNROLL
        for (int x = 0; x < R; ++x) {
          uint32_t(&q)[4] = held[x][at];
          mma_16x8x16(s[x][2 * t], q[0], q[1], q[2], q[3], b[0], b[1]);
          mma_16x8x16(s[x][2 * t + 1], q[0], q[1], q[2], q[3], b[2], b[3]);
        }
      }
    }
  }

  /// Scores of decoded keys, put where a row takes the token from codes. Rare: registers are left
  /// to the other paths.
  MILLION_DEVICE void replace_scores(float (&s)[R][kTokens / 8][4], const unsigned char* slab,
                                     const PrefillArgs& a, int from) {
    MILLION_UNROLL
    for (int x = 0; x < R; ++x) {
      const int bound0 = a.n_sinks + a.coded_k[query[x][0]];
      const int bound1 = a.n_sinks + a.coded_k[query[x][1]];
      MILLION_UNROLL
      for (int t = 0; t < kTokens / 16; ++t) {
        float other[2][4] = {};
        MILLION_NO_UNROLL
        for (int k = 0; k < kSteps; ++k) {
          uint32_t q[4], b[4];
          query_fragment<D>(q, queries, first_row + 16 * x, k);
          key_fragments<D>(b, slab, 16 * t, k);
          mma_16x8x16(other[0], q[0], q[1], q[2], q[3], b[0], b[1]);
          mma_16x8x16(other[1], q[0], q[1], q[2], q[3], b[2], b[3]);
        }
        MILLION_UNROLL
        for (int i = 0; i < 8; ++i) {
          const int token = from + 16 * t + 8 * (i >> 2) + 2 * j + (i & 1);
          if (token >= a.n_sinks && token < ((i & 2) != 0 ? bound1 : bound0))
            s[x][2 * t + (i >> 2)][i & 3] = other[i >> 2][i & 3];
        }
      }
    }
  }

  /// Hides tokens behind a row's own.
  MILLION_DEVICE void mask_future(float (&s)[R][kTokens / 8][4], int first, int from) {
    MILLION_UNROLL
    for (int x = 0; x < R; ++x) {
      MILLION_UNROLL
      for (int t = 0; t < kTokens / 8; ++t) {
        MILLION_UNROLL
        for (int e = 0; e < 4; ++e)
          if (from + 8 * t + 2 * j + (e & 1) > first + query[x][e >> 1]) s[x][t][e] = -INFINITY;
      }
    }
  }

  /// Scores to weights 2^(scale * s - maximum), as halves in the order of mma's operand a. The
  /// maximum moves only when exceeded by 2^8, so that sums are seldom rescaled; a row's largest
  /// weight stays in [1, 2^8], far from the largest half.
  MILLION_DEVICE void weights(uint32_t (&p)[R][kTokens / 16][4], float (&s)[R][kTokens / 8][4],
                              float scale) {
    constexpr float kSlack = 8.0f;
    float top[R][2];
    bool move = false;
    MILLION_UNROLL
    for (int x = 0; x < R; ++x) {
      MILLION_UNROLL
      for (int y = 0; y < 2; ++y) {
        float m = fmaxf(s[x][0][2 * y], s[x][0][2 * y + 1]);
        MILLION_UNROLL
        for (int t = 1; t < kTokens / 8; ++t)
          m = fmaxf(m, fmaxf(s[x][t][2 * y], s[x][t][2 * y + 1]));
        top[x][y] = m * scale;
        move = move || top[x][y] > maximum[x][y] + kSlack;
      }
    }
    if (__any_sync(kFullWarp, move)) move_maximum(top);
    MILLION_UNROLL
    for (int x = 0; x < R; ++x) {
      MILLION_UNROLL
      for (int t = 0; t < kTokens / 8; ++t) {
        float w[4];
        MILLION_UNROLL
        for (int e = 0; e < 4; ++e) {
          w[e] = exp2_fast(s[x][t][e] * scale - maximum[x][e >> 1]);
          sum[x][e >> 1] += w[e];
        }
        p[x][t >> 1][(t & 1) * 2] = pack_halves(w[0], w[1]);
        p[x][t >> 1][(t & 1) * 2 + 1] = pack_halves(w[2], w[3]);
      }
    }
  }
  MILLION_DEVICE void move_maximum(const float (&top)[R][2]) {
    MILLION_UNROLL
    for (int x = 0; x < R; ++x) {
      MILLION_UNROLL
      for (int y = 0; y < 2; ++y) {
        float m = top[x][y];  // the four lanes of a row agree
        m = fmaxf(m, __shfl_xor_sync(kFullWarp, m, 1));
        m = fmaxf(m, __shfl_xor_sync(kFullWarp, m, 2));
        m = fmaxf(m, maximum[x][y]);
        const float factor = exp2_fast(maximum[x][y] - m);
        maximum[x][y] = m;
        sum[x][y] *= factor;
        MILLION_UNROLL
        for (int c = 0; c < D / 8; ++c) out[x][c][2 * y] *= factor, out[x][c][2 * y + 1] *= factor;
      }
    }
  }

  /// The part of the weights whose values come from one source.
  MILLION_DEVICE void masked_weights(uint32_t (&part)[R][kTokens / 16][4],
                                     const uint32_t (&p)[R][kTokens / 16][4], const PrefillArgs& a,
                                     int from, bool decoded) {
    MILLION_UNROLL
    for (int x = 0; x < R; ++x) {
      const int bound0 = a.n_sinks + a.coded_v[query[x][0]];
      const int bound1 = a.n_sinks + a.coded_v[query[x][1]];
      MILLION_UNROLL
      for (int t = 0; t < kTokens / 16; ++t) {
        MILLION_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int token = from + 16 * t + 8 * (i >> 1) + 2 * j, bound = i & 1 ? bound1 : bound0;
          const bool low = token >= a.n_sinks && token < bound;
          const bool high = token + 1 >= a.n_sinks && token + 1 < bound;
          const uint32_t keep = (low == decoded ? 0xFFFFu : 0u) | (high == decoded ? ~0xFFFFu : 0u);
          part[x][t][i] = p[x][t][i] & keep;
        }
      }
    }
  }

  /// out += weights * values of a slab.
  MILLION_DEVICE void add_values(const uint32_t (&p)[R][kTokens / 16][4],
                                 const unsigned char* slab) {
    MILLION_UNROLL
    for (int t = 0; t < kTokens / 16; ++t) {
      MILLION_UNROLL
      for (int c = 0; c < D / 16; ++c) {
        uint32_t b[4];
        value_fragments<D>(b, slab, 16 * t, c);
        MILLION_UNROLL
        for (int x = 0; x < R; ++x) {
          const uint32_t(&w)[4] = p[x][t];
          mma_16x8x16(out[x][2 * c], w[0], w[1], w[2], w[3], b[0], b[1]);
          mma_16x8x16(out[x][2 * c + 1], w[0], w[1], w[2], w[3], b[2], b[3]);
        }
      }
    }
  }

  MILLION_DEVICE void store(const PrefillArgs& a, int head, int block_row) {
    const int group = a.n_heads / a.n_kv_heads, end = a.n * group;
    MILLION_UNROLL
    for (int x = 0; x < R; ++x) {
      MILLION_UNROLL
      for (int y = 0; y < 2; ++y) {
        float total = sum[x][y];
        total += __shfl_xor_sync(kFullWarp, total, 1);
        total += __shfl_xor_sync(kFullWarp, total, 2);
        const float factor = 1.0f / total;
        const int row = block_row + first_row + 16 * x + 8 * y + n;
        if (row >= end) continue;
        const int q = row / group;
        const size_t line = static_cast<size_t>(q) * a.n_heads + head * group + (row - q * group);
        uint32_t* to = reinterpret_cast<uint32_t*>(a.out + line * D) + j;
        MILLION_UNROLL
        for (int c = 0; c < D / 8; ++c)
          to[4 * c] = pack_halves(out[x][c][2 * y] * factor, out[x][c][2 * y + 1] * factor);
      }
    }
  }
};

/// The block's queries to shared memory; rows past the end repeat the last one.
template <int D, int R>
MILLION_DEVICE void load_queries(const PrefillArgs& a, int head, int block_row,
                                 unsigned char* queries) {
  using S = Shape<D, R>;
  const int group = a.n_heads / a.n_kv_heads, last = a.n * group - 1;
  for (int i = static_cast<int>(threadIdx.x); i < S::kRows * S::kChunks; i += kThreads) {
    const int row = i / S::kChunks, chunk = i % S::kChunks;
    const int from = block_row + row < last ? block_row + row : last, q = from / group;
    const size_t line = static_cast<size_t>(q) * a.n_heads + head * group + (from - q * group);
    *reinterpret_cast<uint4*>(queries + chunk_offset<D>(row, chunk)) =
        *reinterpret_cast<const uint4*>(a.q + line * D + chunk * 8);
  }
}

/// Grid (blocks of rows, KV heads). Late blocks see the most tokens and start first.
template <int D, int R>
__global__ void __launch_bounds__(kThreads, R == 1 ? 3 : 2) prefill_kernel(const PrefillArgs a) {
  using S = Shape<D, R>;
  constexpr int kTokens = S::kTokens;
  MILLION_SHARED(shared);
  unsigned char* queries = shared + kSlabs * kSlabBytes;
  const int group = a.n_heads / a.n_kv_heads, head = static_cast<int>(blockIdx.y);
  const int block_row = static_cast<int>(gridDim.x - 1 - blockIdx.x) * S::kRows;
  const int last_row = a.n * group - 1;
  const int end_row = block_row + S::kRows - 1 < last_row ? block_row + S::kRows - 1 : last_row;
  View view;
  view.head = head, view.q_first = block_row / group, view.q_last = end_row / group;
  view.begin = a.first + view.q_first, view.end = a.first + view.q_last + 1;
  view.keys = bounds_of(a.coded_k, a.n_sinks, view.q_first, view.q_last);
  view.values = bounds_of(a.coded_v, a.n_sinks, view.q_first, view.q_last);

  Slabs<D> slabs(a, view, shared);
  load_queries<D, R>(a, head, block_row, queries);
  __syncthreads();
  Rows<D, R> rows;
  rows.init(a, queries, block_row);
  for (int from = 0; from < view.end; from += kTokens) {
    const int kinds = view.kinds(a.n_sinks, from, kTokens);
    uint32_t p[R][kTokens / 16][4];
    {
      float s[R][kTokens / 8][4];
      rows.scores(s, slabs.next(a, view));
      if ((kinds & 3) == 3) rows.replace_scores(s, slabs.next(a, view), a, from);
      if (from + kTokens > view.begin + 1) rows.mask_future(s, a.first, from);
      rows.weights(p, s, a.scale_log2);
    }
    if (kinds >> 2 != 3) {
      rows.add_values(p, slabs.next(a, view));
    } else {
      for (int decoded = 0; decoded < 2; ++decoded) {
        uint32_t part[R][kTokens / 16][4];
        rows.masked_weights(part, p, a, from, decoded != 0);
        rows.add_values(part, slabs.next(a, view));
      }
    }
  }
  __pipeline_wait_prior(0);
  rows.store(a, head, block_row);
}

}  // namespace prefill

namespace {
using namespace prefill;

template <int D, int R>
int start(StreamHandle stream, const PrefillArgs& a) {
  using S = Shape<D, R>;
  const int rows = a.n * (a.n_heads / a.n_kv_heads);
  const dim3 grid((rows + S::kRows - 1) / S::kRows, a.n_kv_heads);
  const size_t shared = kSlabs * kSlabBytes + S::kQueryBytes;
  return launch(prefill_kernel<D, R>, grid, dim3(kThreads), shared, stream, a);
}

/// Blocks of 128 rows read keys and values half as often, from shared memory too, where enough
/// of them remain to fill a device: two for each of about 128 multiprocessors.
int attend_prefill(StreamHandle stream, const PrefillArgs& a) {
  const size_t rows = static_cast<size_t>(a.n) * (a.n_heads / a.n_kv_heads);
  const bool large = a.block_rows ? a.block_rows == 128 : rows / 128 * a.n_kv_heads >= 256;
  if (a.head_dim == 64) return large ? start<64, 2>(stream, a) : start<64, 1>(stream, a);
  return large ? start<128, 2>(stream, a) : start<128, 1>(stream, a);
}

}  // namespace

void add_prefill(DeviceOps& ops) { ops.attend_prefill = attend_prefill; }

}  // namespace million::cuda::MILLION_CUDA_NS
