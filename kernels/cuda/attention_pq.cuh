// SPDX-License-Identifier: Apache-2.0
// Decode attention on PQ codes with tensor cores: neither keys nor values are decoded to memory,
// and the codebook entry (a pair of halves, or two) is gathered straight into an mma fragment. With
// d / M <= 4 an entry is as small as an entry of a lookup table, serves all query heads at once,
// and is accumulated in f32.
//
//   keys      a warp takes 8 tokens a tile. Lane 4 n + j gathers, for token n, the subspaces of its
//             record (pq_strips.h); row r of the query operand is skewed like the gathers of one
//             token, for which the accumulator sums up whole dot products. The rest is ignored. The
//             token changes with the tile, so that a strip's scores meet in different lanes.
//   softmax   a token a lane, in registers. The reference that is subtracted from scores moves only
//             when a score exceeds it clearly, so the sums are seldom rescaled.
//   values    a lane keeps its subspaces. Weights are expanded to a block-diagonal operand, 4 heads
//             x 4 lanes of a quad, so that each lane's gathers meet only its own columns.
//
// Grid (parts, KV heads x blocks of heads, sequences). A warp owns a stream of strips; warps meet
// once, at the end. Source of the idea to skip the decode: [MILLION]; the scheme is our own.
#pragma once

#include "kernels/cuda/attention_pq_launch.h"

namespace million::cuda::MILLION_CUDA_NS::pq {

/// Scores (log2) may exceed the reference by kSlack before it moves, to kHeadroom below the
/// largest: weights stay in [2^-14, 2^15], where halves are exact to 2^-11, down to 2^-21 of the
/// largest.
inline constexpr float kHeadroom = 7.0f, kSlack = 15.0f;
inline constexpr float kNoReference = -1e30f;

/// Shared memory of a multiprocessor of the device that is compiled for.
#if defined(__CUDA_ARCH__) && \
    (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200)
inline constexpr int kSharedOfMultiprocessor = 100 * 1024;
#else
inline constexpr int kSharedOfMultiprocessor = 164 * 1024;
#endif

/// Template arguments: head_dim, dsub, stored bits of a code, query heads of a block.
template <int D_, int DS_, int NB_, int GH_>
struct Shape {
  static constexpr int D = D_, DS = DS_, NB = NB_, GH = GH_, M = D / DS;
  static constexpr int HP = (GH + 1) / 2, GP = 2 * HP;  ///< pairs of heads; heads with padding
  static constexpr int kThreads = kPqWarps * 32;
  static constexpr PqRecords kKeys = pq_records(true, M, NB), kValues = pq_records(false, M, NB);
  static constexpr int kKeyGathers = M / 4;                   ///< of a lane and tile
  static constexpr int kTurns = pq_key_turns(M, DS);          ///< gathers in 128 bytes of a row
  static constexpr int kValueWords = D / 64;                  ///< of a lane and token
  static constexpr int kValueCodes = kValues.codes / kStrip;  ///< of a lane and token
  static constexpr int kStripWords = pq_strip_words(M, NB);
  /// Blocks that a multiprocessor is to hold, at most 2: registers are kept to that.
  MILLION_HD static constexpr int blocks(PqPass pass) {
    const int arena = pq_arena_bytes(D, NB, GH, pass) + 1024;  // 1 KB is the system's
    const bool two = D == 64 || pass == PqPass::kValues;       // others need the registers
    return two && 2 * arena <= kSharedOfMultiprocessor ? 2 : 1;
  }
  /// Values behind the keys' book, or in the free half of its rows.
  MILLION_HD static constexpr int values_at(PqPass pass) {
    return pass != PqPass::kBoth ? 0 : D == 64 ? kPqRowBytes / 2 : (1 << NB) * kPqRowBytes;
  }
};

/// What a block works on.
struct Work {
  int sequence, kv_head, first_head, n_heads;
  int begin, end, n_tokens;  ///< strips; tokens of the sequence, the last strip may be cut short
};
template <class S>
MILLION_DEVICE Work work_of_block(const PqAttendArgs& a) {
  const int group = a.query.n_heads / a.query.n_kv_heads, blocks = pq_head_blocks(group);
  const int kv_head = static_cast<int>(blockIdx.y) / blocks;
  const int skipped = static_cast<int>(blockIdx.y) % blocks * S::GH;
  Work w;
  w.sequence = static_cast<int>(blockIdx.z);
  w.kv_head = kv_head;
  w.first_head = kv_head * group + skipped;
  w.n_heads = group - skipped < S::GH ? group - skipped : S::GH;
  w.n_tokens = a.query.state[w.sequence].coded_k;
  const int strips = (w.n_tokens + kStrip - 1) / kStrip, parts = static_cast<int>(gridDim.x);
  const int part = static_cast<int>(blockIdx.x);
  w.begin = static_cast<int>(static_cast<int64_t>(strips) * part / parts);
  w.end = static_cast<int>(static_cast<int64_t>(strips) * (part + 1) / parts);
  return w;
}

/// Codebook rows to shared memory, asynchronously; for D = 64 to half rows.
template <class S>
MILLION_DEVICE void fetch_book(unsigned char* to, const PqCodesView& c, int kv_head) {
  constexpr int kChunks = S::D / 8;  // of 16 bytes in a row
  const int K = 1 << c.nbits;
  const size_t skipped = c.book_per_head ? static_cast<size_t>(kv_head) * K * (S::D / 2) : 0;
  const uint4* from = reinterpret_cast<const uint4*>(c.book + skipped);
  for (int i = static_cast<int>(threadIdx.x); i < K * kChunks; i += S::kThreads)
    __pipeline_memcpy_async(to + i / kChunks * kPqRowBytes + i % kChunks * 16, from + i, 16);
}

/// The record of this lane in the first strip of a head.
template <class S, bool kKey>
MILLION_DEVICE const uint32_t* records_of(const PqCodesView& c, const Work& w, int n_kv_heads,
                                          int lane) {
  constexpr PqRecords r = pq_records(kKey, S::M, S::NB);
  const size_t line = static_cast<size_t>(w.sequence) * n_kv_heads + w.kv_head;
  return c.codes + line * c.strips * S::kStripWords + lane % r.count * r.vector;
}
template <int kWords, int kCount, int kVector>
MILLION_DEVICE void fetch_record(uint32_t (&to)[kWords], const uint32_t* from) {
  MILLION_UNROLL
  for (int i = 0; i < kWords / kVector; ++i) {
    const uint32_t* p = from + i * kCount * kVector;
    if constexpr (kVector == 4) {
      const uint4 v = load_stream(reinterpret_cast<const uint4*>(p));
      to[4 * i] = v.x, to[4 * i + 1] = v.y, to[4 * i + 2] = v.z, to[4 * i + 3] = v.w;
    } else if constexpr (kVector == 2) {
      const uint2 v = load_stream(reinterpret_cast<const uint2*>(p));
      to[2 * i] = v.x, to[2 * i + 1] = v.y;
    } else {
      to[i] = load_stream(p);
    }
  }
}
template <class S>
MILLION_DEVICE void fetch_keys(uint32_t (&to)[S::kKeys.words], const uint32_t* from, int strip) {
  fetch_record<S::kKeys.words, S::kKeys.count, S::kKeys.vector>(
      to, from + static_cast<size_t>(strip) * S::kStripWords);
}
template <class S>
MILLION_DEVICE void fetch_values(uint32_t (&to)[S::kValues.words], const uint32_t* from,
                                 int strip) {
  fetch_record<S::kValues.words, S::kValues.count, S::kValues.vector>(
      to, from + static_cast<size_t>(strip) * S::kStripWords);
}

/// Codes 4 i to 4 i + 3 of a record as bytes.
template <int NB, int kCodes, int kWords>
MILLION_DEVICE uint32_t four_codes(const uint32_t (&record)[kWords], int i) {
  if constexpr (NB == 8) return record[i];
  const uint32_t low = record[i / 2] >> i % 2 * 4 & 0x0F0F0F0Fu;
  if constexpr (NB == 4) return low;
  const uint32_t pairs = record[NB == 6 ? (kCodes + 7) / 8 + i / 4 : 0];
  return low | ((i % 4 < 2 ? pairs << (4 - i % 4 * 2) : pairs >> (i % 4 * 2 - 4)) & 0x30303030u);
}

/// Query fragments, skewed like the gathers of keys: [pair of heads][mma][columns 0-7, 8-15][head].
template <class S>
struct Query {
  static constexpr int kSteps = S::D / 16;
  uint32_t a[S::HP][kSteps][2][2];
  uint32_t offsets[S::kTurns / 4];  ///< of this lane's gathers in 128 bytes of a row, a byte each

  MILLION_DEVICE void load(const PqAttendArgs& args, const Work& w, int lane) {
    const uint32_t* q =
        reinterpret_cast<const uint32_t*>(args.query.q) +
        (static_cast<size_t>(w.sequence) * args.query.n_heads + w.first_head) * (S::D / 2);
    MILLION_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      MILLION_UNROLL
      for (int e = 0; e < 2; ++e) {
        // A step is two subspaces of a word, or one of two words.
        const int u = S::DS == 2 ? 2 * step + e : step, word = S::DS == 2 ? 0 : e;
        const int subspace = pq_key_code(S::M, S::DS, lane, u).subspace;
        MILLION_UNROLL
        for (int g = 0; g < S::GP; ++g)
          a[g / 2][step][e][g % 2] =
              g < w.n_heads ? q[g * (S::D / 2) + subspace * (S::DS / 2) + word] : 0u;
      }
    }
    MILLION_UNROLL
    for (int i = 0; i < S::kTurns / 4; ++i) offsets[i] = 0;
    MILLION_UNROLL
    for (int u = 0; u < S::kTurns; ++u)
      offsets[u / 4] |=
          static_cast<uint32_t>(pq_key_code(S::M, S::DS, lane, u).subspace * S::DS * 2)
          << u % 4 * 8;
  }
};

/// The token of a strip whose scores lane 4 n + j gets: of tile j - n / 2, because the tile's skew
/// moves the wanted element of row n by two columns, to the next lane of the quad.
MILLION_DEVICE int token_of_lane(int lane) {
  const int n = lane >> 2, tile = ((lane & 3) - (n >> 1)) & 3;
  return tile * kTile + ((n + 2 * tile) & 7);
}

/// Products of a strip's keys: scores of this lane's token.
template <class S>
MILLION_DEVICE void score_strip(float (&scores)[S::GH], const Query<S>& q,
                                const uint32_t (&record)[S::kKeys.words], const unsigned char* book,
                                int lane) {
  float sums[kTiles][S::HP][4] = {};
  MILLION_UNROLL
  for (int tile = 0; tile < kTiles; ++tile) {
    MILLION_UNROLL
    for (int step = 0; step < Query<S>::kSteps; ++step) {
      uint32_t b[2];
      MILLION_UNROLL
      for (int e = 0; e < (S::DS == 2 ? 2 : 1); ++e) {
        const int u = S::DS == 2 ? 2 * step + e : step, k = u % 4;
        const int turn = (u + pq_key_skew(0, tile)) % S::kTurns;
        const uint32_t codes =
            four_codes<S::NB, S::kKeys.codes>(record, (tile * S::kKeyGathers + u) / 4);
        // (code << 8) + offset: offsets are below 128, so their sign fills the high bytes with 0
        const uint32_t at =
            byte_permute(codes, q.offsets[turn / 4],
                         (4u + turn % 4) | k << 4 | (12u + turn % 4) << 8 | (12u + turn % 4) << 12);
        const unsigned char* entry = book + u / S::kTurns * 128 + at;
        if constexpr (S::DS == 2) {
          b[e] = *reinterpret_cast<const uint32_t*>(entry);
        } else {
          const uint2 v = *reinterpret_cast<const uint2*>(entry);
          b[0] = v.x, b[1] = v.y;
        }
      }
      MILLION_UNROLL
      for (int p = 0; p < S::HP; ++p)
        mma_16x8x16(sums[tile][p], q.a[p][step][0][0], q.a[p][step][0][1], q.a[p][step][1][0],
                    q.a[p][step][1][1], b[0], b[1]);
    }
  }
  // Of row n, the wanted column is n + 2 tile: register n % 2 of the lane with this tile.
  const bool odd = (lane & 4) != 0;
  const int tile = ((lane & 3) - (lane >> 3)) & 3;
  MILLION_UNROLL
  for (int g = 0; g < S::GH; ++g) {
    float v[kTiles];
    MILLION_UNROLL
    for (int i = 0; i < kTiles; ++i)
      v[i] = odd ? sums[i][g / 2][g % 2 * 2 + 1] : sums[i][g / 2][g % 2 * 2];
    const float low = (tile & 1) != 0 ? v[1] : v[0], high = (tile & 1) != 0 ? v[3] : v[2];
    scores[g] = (tile & 2) != 0 ? high : low;
  }
}

/// Sums of weighted values: acc [word of the lane][half of the word] is an mma accumulator whose
/// rows are (head, lane of the quad) and whose columns are quads.
template <class S>
struct Sums {
  float acc[S::kValueWords][2][4] = {};

  /// Rows n are of head n / 4, rows n + 8 of head n / 4 + 2.
  MILLION_DEVICE void rescale(const float (&factor)[4], int lane) {
    const float f0 = (lane & 16) != 0 ? factor[1] : factor[0];
    const float f1 = (lane & 16) != 0 ? factor[3] : factor[2];
    MILLION_UNROLL
    for (int w = 0; w < S::kValueWords; ++w) {
      MILLION_UNROLL
      for (int e = 0; e < 2; ++e)
        acc[w][e][0] *= f0, acc[w][e][1] *= f0, acc[w][e][2] *= f1, acc[w][e][3] *= f1;
    }
  }

  /// `weights` point to this lane's rows of the operand, for the lower and the upper half of the
  /// tokens: to weights, or zeros.
  MILLION_DEVICE void add_strip(const uint32_t (&record)[S::kValues.words],
                                const unsigned char* book, const unsigned char* const (&weights)[2],
                                uint32_t offset) {
    MILLION_UNROLL
    for (int four = 0; four < kStrip / 4; ++four) {
      const uint4 p = *reinterpret_cast<const uint4*>(weights[four / 4] + four * 32);
      uint32_t v[S::kValueWords][4];
      MILLION_UNROLL
      for (int h = 0; h < S::kValueCodes; ++h) {
        const uint32_t codes = four_codes<S::NB, S::kValues.codes>(
            record, (four / 2 * S::kValueCodes + h) * 2 + four % 2);
        MILLION_UNROLL
        for (int t = 0; t < 4; ++t) {
          // (code << 8) + offset; bytes 1 to 3 of the offset are 0
          const uint32_t at = byte_permute(codes, offset, 4 | t << 4 | 5 << 8 | 5 << 12);
          const unsigned char* entry = book + h * 128 + at;
          if constexpr (S::kValueWords > S::kValueCodes) {
            const uint2 both = *reinterpret_cast<const uint2*>(entry);
            v[0][t] = both.x, v[S::kValueWords - 1][t] = both.y;
          } else {
            v[h][t] = *reinterpret_cast<const uint32_t*>(entry);
          }
        }
      }
      MILLION_UNROLL
      for (int w = 0; w < S::kValueWords; ++w) {
        mma_16x8x16(acc[w][0], p.x, p.y, p.z, p.w, byte_permute(v[w][0], v[w][1], 0x5410),
                    byte_permute(v[w][2], v[w][3], 0x5410));
        mma_16x8x16(acc[w][1], p.x, p.y, p.z, p.w, byte_permute(v[w][0], v[w][1], 0x7632),
                    byte_permute(v[w][2], v[w][3], 0x7632));
      }
    }
  }

  /// Offset of a lane's gathers in a row, and the first channel of its word w.
  MILLION_DEVICE static int lane_offset(int lane) {
    return lane % S::M * S::DS * 2 + lane / S::M * 4;  // M = 16: half the lanes take word 1
  }
  MILLION_DEVICE static int channel(int lane, int w) {
    return lane_offset(lane) / 2 + w * (S::kValueCodes > 1 ? 64 : 2);
  }
};

/// References and sums of a warp's softmax; sums are of this lane's tokens.
template <class S>
struct Softmax {
  float reference[S::GH], sum[S::GH];

  MILLION_DEVICE void clear() {
    MILLION_UNROLL
    for (int g = 0; g < S::GH; ++g) reference[g] = kNoReference, sum[g] = 0.0f;
  }

  /// Whether a token of the warp exceeds a reference by more than kSlack.
  MILLION_DEVICE bool exceeded(const float (&x)[S::GH]) const {
    bool over = false;
    MILLION_UNROLL
    for (int g = 0; g < S::GH; ++g) over |= x[g] > reference[g] + kSlack;
    return __any_sync(kFullWarp, over);
  }
  /// Moves the references; what was summed up must be multiplied by `factor`.
  MILLION_DEVICE void move(const float (&x)[S::GH], float (&factor)[4]) {
    MILLION_UNROLL
    for (int g = 0; g < S::GH; ++g) {
      const float next = fmaxf(reference[g], warp_max(x[g]) - kHeadroom);
      factor[g] = exp2_fast(reference[g] - next);
      reference[g] = next;
      sum[g] *= factor[g];
    }
  }
  /// Weights of a token 4 f + t as the mma reads them: halves [f][head % 2][t / 2][head / 2][t %
  /// 2]; from the middle of the strip on, head % 2 is flipped, for other banks.
  MILLION_DEVICE void weigh(const float (&x)[S::GH], unsigned char* weights, int token) {
    unsigned char* to = weights + (token >> 2) * 32 + (token & 2) * 4 + (token & 1) * 2;
    unsigned char* const halves[2] = {to + (token & 16), to + (~token & 16)};
    MILLION_UNROLL
    for (int g = 0; g < S::GH; ++g) {
      const float p = exp2_fast(x[g] - reference[g]);
      sum[g] += p;
      *reinterpret_cast<uint16_t*>(halves[g & 1] + (g >> 1) * 4) = to_half(p);
    }
  }
};

/// Joins the warps of a block in shared memory and writes its part. `reference` and `sum` are those
/// of a warp, and equal in its lanes.
template <class S>
MILLION_DEVICE void join_warps(const PqAttendArgs& a, const Work& w, unsigned char* shared,
                               const Sums<S>& sums, const float (&reference)[S::GH],
                               const float (&sum)[S::GH], int warp, int lane) {
  float* rows = reinterpret_cast<float*>(shared);      // [warps][GH][D]
  float* references = rows + kPqWarps * S::GH * S::D;  // [warps][GH]
  float* weights = references + kPqWarps * S::GH;      // [warps][GH]
  __syncthreads();  // books, scores and weights are no longer read
  const int n = lane >> 2, j = lane & 3;
  MILLION_UNROLL
  for (int word = 0; word < S::kValueWords; ++word) {
    MILLION_UNROLL
    for (int e = 0; e < 2; ++e) {
      MILLION_UNROLL
      for (int r = 0; r < 4; ++r) {
        const int head = (n >> 2) + 2 * (r >> 1), owner = 4 * (2 * j + (r & 1)) + (n & 3);
        if (head < S::GH)
          rows[(warp * S::GH + head) * S::D + Sums<S>::channel(owner, word) + e] =
              sums.acc[word][e][r];
      }
    }
  }
  if (lane == 0) {
    MILLION_UNROLL
    for (int g = 0; g < S::GH; ++g)
      references[warp * S::GH + g] = reference[g], weights[warp * S::GH + g] = sum[g];
  }
  __syncthreads();
  const Parts& parts = a.query.parts;
  for (int i = static_cast<int>(threadIdx.x); i < w.n_heads * S::D; i += S::kThreads) {
    const int g = i / S::D, c = i % S::D;
    float largest = kNoReference, sum_all = 0.0f, value = 0.0f;
    for (int k = 0; k < kPqWarps; ++k) largest = fmaxf(largest, references[k * S::GH + g]);
    for (int k = 0; k < kPqWarps; ++k) {
      const float f = exp2_fast(references[k * S::GH + g] - largest);
      sum_all += f * weights[k * S::GH + g];
      value += f * rows[(k * S::GH + g) * S::D + c];
    }
    const size_t head = static_cast<size_t>(w.sequence) * a.query.n_heads + w.first_head + g;
    const size_t part = head * parts.n_parts + parts.first + blockIdx.x;
    parts.rows[part * S::D + c] = sum_all > 0.0f ? value / sum_all : 0.0f;
    if (c == 0) parts.lse[part] = sum_all > 0.0f ? largest + log2_fast(sum_all) : -INFINITY;
  }
}

/// Memory of a warp behind the books: weights of a strip, and zeros.
template <class S>
struct WarpMemory {
  unsigned char *weights, *zeros;

  MILLION_DEVICE WarpMemory(unsigned char* shared, PqPass pass, int warp, int lane) {
    weights = shared + pq_book_bytes(S::D, S::NB, pass) + warp * kPqWarpBytes;
    zeros = weights + kPqWeightBytes + 32;
    // Heads that are not there have weights of zero.
    for (int i = lane; i < kPqWarpBytes / 4; i += 32) reinterpret_cast<uint32_t*>(weights)[i] = 0;
  }
  /// Rows n and n + 8 of the weights' operand are 0 but in the columns of lane n % 4 of a quad.
  MILLION_DEVICE const unsigned char* operand(int lane, int half) const {
    const int n = lane >> 2;
    return (n & 3) == (lane & 3) ? weights + ((n >> 2) ^ half) * 16 : zeros;
  }
};

/// What the keys' pass leaves of a (sequence, KV head, block of heads): attention_pq.h.
struct Scratch {
  unsigned char* weights;  ///< [strips] of kPqWeightBytes
  float* references;       ///< [strips][4]
  float* warps;            ///< [n_splits][kPqWarps][4][2]

  MILLION_DEVICE explicit Scratch(const PqAttendArgs& a) {
    const size_t line = static_cast<size_t>(blockIdx.z) * gridDim.y + blockIdx.y;
    const int strips = a.k.strips, splits = static_cast<int>(gridDim.x);
    weights = static_cast<unsigned char*>(a.scratch) + line * pq_scratch_of(strips, splits);
    references = reinterpret_cast<float*>(weights + static_cast<size_t>(strips) * kPqWeightBytes);
    warps = references + static_cast<size_t>(strips) * 4;
  }
};

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::blocks(PqPass::kBoth))
    attend_pq_kernel(const PqAttendArgs a) {
  MILLION_SHARED(shared);
  const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x >> 5);
  const int token = token_of_lane(lane);
  const Work w = work_of_block<S>(a);
  const unsigned char* value_book = shared + S::values_at(PqPass::kBoth);
  fetch_book<S>(shared, a.k, w.kv_head);
  fetch_book<S>(shared + S::values_at(PqPass::kBoth), a.v, w.kv_head);
  __pipeline_commit();
  const WarpMemory<S> memory(shared, PqPass::kBoth, warp, lane);
  Query<S> query;
  query.load(a, w, lane);
  const uint32_t* keys = records_of<S, true>(a.k, w, a.query.n_kv_heads, lane);
  const uint32_t* values = records_of<S, false>(a.v, w, a.query.n_kv_heads, lane);
  uint32_t key_codes[S::kKeys.words] = {}, value_codes[S::kValues.words] = {};
  int strip = w.begin + warp;
  if (strip < w.end) {
    fetch_keys<S>(key_codes, keys, strip);
    fetch_values<S>(value_codes, values, strip);
  }
  Sums<S> sums;
  Softmax<S> softmax;
  softmax.clear();
  const unsigned char* const operand[2] = {memory.operand(lane, 0), memory.operand(lane, 1)};
  const uint32_t offset = static_cast<uint32_t>(Sums<S>::lane_offset(lane));
  __pipeline_wait_prior(0);
  __syncthreads();

  for (; strip < w.end; strip += kPqWarps) {
    const int next = strip + kPqWarps;
    float x[S::GH];
    score_strip<S>(x, query, key_codes, shared, lane);
    if (next < w.end) fetch_keys<S>(key_codes, keys, next);
    const bool visible = strip * kStrip + token < w.n_tokens;
    MILLION_UNROLL
    for (int g = 0; g < S::GH; ++g) x[g] = visible ? x[g] * a.query.scale_log2 : -INFINITY;
    if (softmax.exceeded(x)) {
      float factor[4] = {};
      softmax.move(x, factor);
      sums.rescale(factor, lane);
    }
    __syncwarp();  // the last strip's weights are read
    softmax.weigh(x, memory.weights, token);
    __syncwarp();
    sums.add_strip(value_codes, value_book, operand, offset);
    if (next < w.end) fetch_values<S>(value_codes, values, next);
  }
  MILLION_UNROLL
  for (int g = 0; g < S::GH; ++g) softmax.sum[g] = warp_sum(softmax.sum[g]);
  join_warps<S>(a, w, shared, sums, softmax.reference, softmax.sum, warp, lane);
}

/// First of two passes: weights, relative to a warp's reference at that strip, to scratch.
template <class S>
__global__ void __launch_bounds__(S::kThreads, S::blocks(PqPass::kKeys))
    attend_pq_keys_kernel(const PqAttendArgs a) {
  MILLION_SHARED(shared);
  const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x >> 5);
  const int token = token_of_lane(lane);
  const Work w = work_of_block<S>(a);
  fetch_book<S>(shared, a.k, w.kv_head);
  __pipeline_commit();
  const WarpMemory<S> memory(shared, PqPass::kKeys, warp, lane);
  Query<S> query;
  query.load(a, w, lane);
  const uint32_t* keys = records_of<S, true>(a.k, w, a.query.n_kv_heads, lane);
  uint32_t codes[S::kKeys.words] = {};
  int strip = w.begin + warp;
  if (strip < w.end) fetch_keys<S>(codes, keys, strip);
  const Scratch scratch(a);
  Softmax<S> softmax;
  softmax.clear();
  __pipeline_wait_prior(0);
  __syncthreads();

  for (; strip < w.end; strip += kPqWarps) {
    const int next = strip + kPqWarps;
    float x[S::GH], factor[4];
    score_strip<S>(x, query, codes, shared, lane);
    if (next < w.end) fetch_keys<S>(codes, keys, next);
    const bool visible = strip * kStrip + token < w.n_tokens;
    MILLION_UNROLL
    for (int g = 0; g < S::GH; ++g) x[g] = visible ? x[g] * a.query.scale_log2 : -INFINITY;
    if (softmax.exceeded(x)) softmax.move(x, factor);
    __syncwarp();  // the last strip's weights are read
    softmax.weigh(x, memory.weights, token);
    __syncwarp();
    reinterpret_cast<uint2*>(scratch.weights + static_cast<size_t>(strip) * kPqWeightBytes)[lane] =
        reinterpret_cast<const uint2*>(memory.weights)[lane];
    if (lane == 0) {
      MILLION_UNROLL
      for (int g = 0; g < S::GH; ++g)
        scratch.references[static_cast<size_t>(strip) * 4 + g] = softmax.reference[g];
    }
  }
  MILLION_UNROLL
  for (int g = 0; g < S::GH; ++g) softmax.sum[g] = warp_sum(softmax.sum[g]);
  if (lane == 0) {
    float* to = scratch.warps + (static_cast<size_t>(blockIdx.x) * kPqWarps + warp) * 8;
    MILLION_UNROLL
    for (int g = 0; g < S::GH; ++g)
      to[2 * g] = softmax.reference[g], to[2 * g + 1] = softmax.sum[g];
  }
}

/// Second of two passes. Warps own the same strips as in the first one, so references only grow.
template <class S>
__global__ void __launch_bounds__(S::kThreads, S::blocks(PqPass::kValues))
    attend_pq_values_kernel(const PqAttendArgs a) {
  MILLION_SHARED(shared);
  const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x >> 5);
  const Work w = work_of_block<S>(a);
  fetch_book<S>(shared, a.v, w.kv_head);
  __pipeline_commit();
  const WarpMemory<S> memory(shared, PqPass::kValues, warp, lane);
  const Scratch scratch(a);
  const uint32_t* values = records_of<S, false>(a.v, w, a.query.n_kv_heads, lane);
  uint32_t codes[S::kValues.words] = {};
  uint2 weights = {};
  const auto fetch = [&](int strip) {
    fetch_values<S>(codes, values, strip);
    weights = load_stream(reinterpret_cast<const uint2*>(
                              scratch.weights + static_cast<size_t>(strip) * kPqWeightBytes) +
                          lane);
  };
  int strip = w.begin + warp;
  if (strip < w.end) fetch(strip);
  Sums<S> sums;
  float reference[S::GH], sum[S::GH];
  MILLION_UNROLL
  for (int g = 0; g < S::GH; ++g) reference[g] = kNoReference;
  const unsigned char* const operand[2] = {memory.operand(lane, 0), memory.operand(lane, 1)};
  const uint32_t offset = static_cast<uint32_t>(Sums<S>::lane_offset(lane));
  __pipeline_wait_prior(0);
  __syncthreads();

  for (; strip < w.end; strip += kPqWarps) {
    const int next = strip + kPqWarps;
    float factor[4] = {};
    bool moved = false;
    MILLION_UNROLL
    for (int g = 0; g < S::GH; ++g) {
      const float to = scratch.references[static_cast<size_t>(strip) * 4 + g];
      moved |= to != reference[g];
      factor[g] = exp2_fast(reference[g] - to);
      reference[g] = to;
    }
    if (moved) sums.rescale(factor, lane);
    reinterpret_cast<uint2*>(memory.weights)[lane] = weights;
    __syncwarp();
    sums.add_strip(codes, shared, operand, offset);
    if (next < w.end) fetch(next);
    __syncwarp();  // weights are read; the next ones may be written
  }
  const float* from = scratch.warps + (static_cast<size_t>(blockIdx.x) * kPqWarps + warp) * 8;
  MILLION_UNROLL
  for (int g = 0; g < S::GH; ++g) reference[g] = from[2 * g], sum[g] = from[2 * g + 1];
  join_warps<S>(a, w, shared, sums, reference, sum, warp, lane);
}

template <class S>
int launch_shape(StreamHandle stream, const PqAttendArgs& a, PqPass pass) {
  const QueryArgs& q = a.query;
  const int nbits = pass == PqPass::kValues ? a.v.nbits : a.k.nbits;
  const dim3 grid(q.n_splits, q.n_kv_heads * pq_head_blocks(q.n_heads / q.n_kv_heads), q.batch);
  const auto shared = static_cast<size_t>(pq_arena_bytes(S::D, nbits, S::GH, pass));
  const dim3 block(S::kThreads);
  if constexpr (S::GH != 2)  // in two passes, two heads are padded to four
    if (pass != PqPass::kBoth)
      return launch(pass == PqPass::kKeys ? attend_pq_keys_kernel<S> : attend_pq_values_kernel<S>,
                    grid, block, shared, stream, a);
  return launch(attend_pq_kernel<S>, grid, block, shared, stream, a);
}

template <int D, int DS, int NB>
int launch_heads(StreamHandle stream, const PqAttendArgs& a, PqPass pass) {
  switch (pq_block_heads(a.query.n_heads / a.query.n_kv_heads, pass != PqPass::kBoth)) {
    case 1:
      return launch_shape<Shape<D, DS, NB, 1>>(stream, a, pass);
    case 2:
      return launch_shape<Shape<D, DS, NB, 2>>(stream, a, pass);
    default:
      return launch_shape<Shape<D, DS, NB, 4>>(stream, a, pass);
  }
}

/// Kernels for codes of NB bits.
template <int NB>
int launch_bits(StreamHandle stream, const PqAttendArgs& a, PqPass pass) {
  const int d = a.query.head_dim, dsub = d / (pass == PqPass::kValues ? a.v.M : a.k.M);
  if (d == 64) {
    return dsub == 2 ? launch_heads<64, 2, NB>(stream, a, pass)
                     : launch_heads<64, 4, NB>(stream, a, pass);
  }
  return dsub == 2 ? launch_heads<128, 2, NB>(stream, a, pass)
                   : launch_heads<128, 4, NB>(stream, a, pass);
}

}  // namespace million::cuda::MILLION_CUDA_NS::pq
