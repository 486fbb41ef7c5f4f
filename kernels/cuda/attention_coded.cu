// SPDX-License-Identifier: Apache-2.0
// Decode attention over codes in a basis that a unit of KV heads shares, one query a sequence, for
// all query heads of the unit at once (the default method of lib/quant).
//   codes   a strip of 32 positions, M bytes a position    coded_layout.h
//   book    [K][M] words: the four bytes of a centroid     grid (splits, unit x heads x cut, batch)
//   turned  queries of each frame in 16-bit fixed point    block of 4, 8 or 12 warps, each with its
//   parts   sums of centroid bytes                         own run of strips; joined at the end
// Keys    A centroid's word is half an operand of the product of bytes as it lies in memory: keys
//         cost a gather and nothing else. The query enters exactly, as high and low bytes in rows
//         0-7 and 8-15 of one product, for eight heads.
// Values  Words of four tokens are interleaved to pairs of halves: rows of the product are axes,
//         columns heads, and the scores' layout is that of the operand P: no shared memory between.
//         Lanes that want the same subspace would meet in a bank, so each takes its subspaces in
//         another order and puts them straight in registers (two selects a word).
// Exactness  scores to 16 bits of the largest query axis; weights as halves; sums in f32.
// Needs   coded_fits(); books in shared memory up to rank 256 (attention_coded.h).
#include "kernels/cuda/attention_coded.h"

#include "kernels/cuda/coded_kernels.h"
#include "kernels/cuda/launch.h"

namespace million::cuda::MILLION_CUDA_NS {

/// One launch: cuts of 8 * kGroups subspaces from group `first_group` on.
struct CodedLaunch {
  CodedAttendArgs a;
  int first_group, cuts, head_blocks;
};

namespace coded {

/// A weight is at most 2^8: the maximum that weights refer to moves only when a score exceeds it by
/// more.
constexpr float kSlack = 8.0f;

template <int kM_, CodedBooks kBooks_, int kTiles_>
struct Plan {
  static constexpr int kM = kM_;          ///< subspaces whose values are summed
  static constexpr int kTiles = kTiles_;  ///< of 8 query heads
  static constexpr CodedBooks kBooks = kBooks_;
  static constexpr bool kGlobal = kBooks == CodedBooks::kGlobal;
  static constexpr int kGroups = kM / 8, kWords = kM / 4;
  static constexpr int kFullGroups = kM / 32 * 4;  ///< in turns of four
  static constexpr int kWarps = coded_warps(kM, kTiles, kBooks);
  static constexpr CodedPlanes kKeys = coded_key_planes(kM, kBooks);
  static constexpr CodedPlanes kValues = coded_value_planes(kM, kBooks);
  /// The last 16 subspaces of values lie twice in a row.
  static constexpr bool kCopied = kBooks == CodedBooks::kPadded && kM % 32 != 0;
  static constexpr int kScored = kTiles == 1 ? 4 : 2;  ///< tiles of tokens whose sums are held
  /// Queries stay in registers beside the sums while strips of a frame follow each other.
  static constexpr bool kKeep = !kGlobal && 3 * kTiles * kM / 2 <= 160;
};

/// Where a warp stands. Numbers instead of pointers: registers are what is short.
template <class P>
struct Warp {
  int lane, n, j;
  int heads;        ///< of this block
  int subspaces;    ///< of the unit
  int row, place;   ///< head n and the frame at hand in TurnedQueries; place of the strip in it
  int line, strip;  ///< the unit among all; strip at hand
  uint32_t books;   ///< in shared memory
  const uint32_t *key_book, *value_book;  ///< kGlobal

  MILLION_DEVICE int M() const { return P::kGlobal ? subspaces : P::kM; }
  MILLION_DEVICE bool has_head(int tile) const { return 8 * tile + n < heads; }
};
/// Row of head n of a tile.
template <class P>
MILLION_DEVICE size_t tile_row(const TurnedQueries& turned, const Warp<P>& w, int tile) {
  return static_cast<size_t>(w.row + 8 * tile * turned.frames);
}

/// Word of a centroid: of subspace `subspace` (a constant) plus what `from` has, in bytes, of the
/// code in byte `byte` of `codes`.
template <class P, bool kKey>
MILLION_DEVICE uint32_t centroid(const Warp<P>& w, uint32_t codes, int byte, uint32_t from,
                                 int subspace) {
  if constexpr (P::kGlobal) {
    const uint32_t code = codes >> 8 * byte & 255;
    return __ldg((kKey ? w.key_book : w.value_book) + code * static_cast<uint32_t>(w.subspaces) +
                 from / 4 + subspace);
  } else {
    constexpr CodedPlanes kPlanes = kKey ? P::kKeys : P::kValues;
    const int at = (kKey ? P::kValues.bytes : 0) +
                   subspace / kPlanes.subspaces * 256 * kPlanes.stride +
                   4 * (subspace % kPlanes.subspaces);
    const uint32_t row =
        dot_bytes(codes, static_cast<uint32_t>(kPlanes.stride) << 8 * byte, w.books + from);
    return load_shared(row + static_cast<uint32_t>(at));
  }
}

/// Both books to shared memory, values first; values as unsigned bytes, which become halves without
/// a sign.
template <class P>
MILLION_DEVICE void load_books(const CodedAttendArgs& a, int unit, unsigned char* books) {
  constexpr int kVectors = P::kM / 4, kThreads = 32 * P::kWarps;
  constexpr CodedPlanes kKeys = P::kKeys, kValues = P::kValues;
  const int first = static_cast<int>(threadIdx.x);
  const auto place = [](const CodedPlanes planes, int i) {
    const int subspace = i % kVectors * 4;
    return subspace / planes.subspaces * 256 * planes.stride + i / kVectors * planes.stride +
           subspace % planes.subspaces * 4;
  };
  const auto* from = reinterpret_cast<const uint4*>(a.k.book) +
                     (static_cast<size_t>(unit) << a.k.nbits) * kVectors;
  for (int i = first; i < kVectors << a.k.nbits; i += kThreads) {
    unsigned char* to = books + kValues.bytes + place(kKeys, i);
    if constexpr (kKeys.stride % 16 == 0) {
      __pipeline_memcpy_async(to, from + i, 16);
    } else {
      const auto* half = reinterpret_cast<const uint2*>(from + i);
      __pipeline_memcpy_async(to, half, 8);
      __pipeline_memcpy_async(to + 8, half + 1, 8);
    }
  }
  __pipeline_commit();
  from = reinterpret_cast<const uint4*>(a.v.book) +
         (static_cast<size_t>(unit) << a.v.nbits) * kVectors;
  constexpr int kFlight = 4;  // loads of a thread on their way
  const int count = kVectors << a.v.nbits;
  for (int i = first; i < count; i += kFlight * kThreads) {
    uint4 x[kFlight];
    MILLION_UNROLL
    for (int k = 0; k < kFlight; ++k)
      if (i + k * kThreads < count) x[k] = from[i + k * kThreads];
    MILLION_UNROLL
    for (int k = 0; k < kFlight; ++k) {
      const int at = i + k * kThreads;
      if (at >= count) break;
      constexpr uint32_t kSign = 0x80808080u;
      const uint4 y{x[k].x ^ kSign, x[k].y ^ kSign, x[k].z ^ kSign, x[k].w ^ kSign};
      unsigned char* to = books + place(kValues, at);
      *reinterpret_cast<uint4*>(to) = y;
      if (P::kCopied && at % kVectors * 4 >= P::kM - 16) *reinterpret_cast<uint4*>(to + 64) = y;
    }
  }
}

/// The query operand of group g for head n of a tile: rows n have its high bytes for two subspaces,
/// rows n + 8 the low ones.
template <class P>
MILLION_DEVICE uint4 query_words(const TurnedQueries& turned, const Warp<P>& w, int g, int tile) {
  const auto* from =
      reinterpret_cast<const uint4*>(turned.words) + tile_row(turned, w, tile) * (w.M() / 2) + w.j;
  return w.has_head(tile) ? __ldg(from + 4 * g) : uint4{0, 0, 0, 0};
}

/// Queries (where they are kept) and their steps, when a strip begins another frame.
template <class P>
MILLION_DEVICE void load_frame(const TurnedQueries& turned, const Warp<P>& w, float scale_log2,
                               uint4 (&q)[P::kKeep ? P::kGroups : 1][P::kTiles],
                               float (&scale)[P::kTiles]) {
  MILLION_UNROLL
  for (int tile = 0; tile < P::kTiles; ++tile) {
    scale[tile] = w.has_head(tile) ? turned.step[tile_row(turned, w, tile)] * scale_log2 : 0.0f;
    if constexpr (P::kKeep) {
      MILLION_UNROLL
      for (int g = 0; g < P::kGroups; ++g) q[g][tile] = query_words(turned, w, g, tile);
    }
  }
}

template <class P>
MILLION_DEVICE const uint32_t* strip_words(const CodedCodesView& side, const Warp<P>& w,
                                           int strip) {
  const auto at = static_cast<size_t>(w.line * side.strips + strip);
  return side.codes + at * coded_strip_words(w.M());
}
/// A lane's words of a strip.
template <class P>
MILLION_DEVICE void load_codes(const CodedCodesView& side, const Warp<P>& w, int strip,
                               uint32_t (&codes)[P::kGlobal ? 1 : P::kWords]) {
  if constexpr (!P::kGlobal) {
    const auto* from = reinterpret_cast<const uint4*>(strip_words(side, w, strip)) + w.lane;
    MILLION_UNROLL
    for (int i = 0; i < P::kWords / 4; ++i) {
      const uint4 x = load_stream(from + i * 32);
      codes[4 * i] = x.x, codes[4 * i + 1] = x.y;
      codes[4 * i + 2] = x.z, codes[4 * i + 3] = x.w;
    }
  }
}
/// Codes of slots without a token are anything: in partial strips they are cut to the book.
template <class P>
MILLION_DEVICE void cut_codes(int nbits, uint32_t (&codes)[P::kGlobal ? 1 : P::kWords]) {
  MILLION_UNROLL
  for (uint32_t& word : codes) word &= ((1u << nbits) - 1) * 0x01010101u;
}

/// Products of one group of subspaces with tiles of tokens from `first` on.
template <class P>
MILLION_DEVICE void score_group(const Warp<P>& w, const uint4 (&q)[P::kTiles], uint32_t codes0,
                                uint32_t codes1, int group, int first,
                                uint32_t (&sums)[P::kScored][P::kTiles][4]) {
  MILLION_UNROLL
  for (int t = 0; t < P::kScored; ++t) {
    const auto from = static_cast<uint32_t>(4 * w.j);
    const uint32_t b0 = centroid<P, true>(w, codes0, first + t, from, 8 * group);
    const uint32_t b1 = centroid<P, true>(w, codes1, first + t, from, 8 * group + 4);
    MILLION_UNROLL
    for (int tile = 0; tile < P::kTiles; ++tile)
      mma_16x8x32(sums[t][tile], q[tile].x, q[tile].y, q[tile].z, q[tile].w, b0, b1);
  }
}

/// Scores of kScored tiles of tokens from `first` on, in powers of two and relative to `top`:
/// x [tile of tokens][tile of heads][2] of tokens 2j, 2j + 1.
template <class P>
MILLION_DEVICE void score_tiles(const CodedAttendArgs& a, const Warp<P>& w, uint32_t keep,
                                const uint32_t (&codes)[P::kGlobal ? 1 : P::kWords],
                                const uint4 (&q)[P::kKeep ? P::kGroups : 1][P::kTiles],
                                const float (&scale)[P::kTiles], const float (&top)[P::kTiles],
                                int first, float (&x)[4][P::kTiles][2]) {
  const TurnedQueries& turned = a.turned;
  uint2 mean[P::kScored][P::kTiles];  // needed when the products are done
  MILLION_UNROLL
  for (int tile = 0; tile < P::kTiles; ++tile) {
    const int32_t* from =
        turned.bias + tile_row(turned, w, tile) * a.shape.frame + (w.place + 2 * w.j);
    MILLION_UNROLL
    for (int t = 0; t < P::kScored; ++t) {
      mean[t][tile] = uint2{0, 0};
      if (a.shape.n_places > 0 && w.has_head(tile))
        mean[t][tile] = *reinterpret_cast<const uint2*>(from + 8 * (first + t));
    }
  }
  uint32_t sums[P::kScored][P::kTiles][4] = {};  // of high bytes (2), and of low ones
  uint4 group[P::kTiles];
  if constexpr (P::kGlobal) {
    const uint32_t* strip = strip_words(a.k, w, w.strip);
    MILLION_NO_UNROLL
    for (int g = 0; g < w.M() / 8; ++g) {
      MILLION_UNROLL
      for (int tile = 0; tile < P::kTiles; ++tile) group[tile] = query_words(turned, w, g, tile);
      const uint2 c =
          load_stream(reinterpret_cast<const uint2*>(strip + coded_word_at(w.lane, 2 * g)));
      score_group<P>(w, group, c.x & keep, c.y & keep, g, first, sums);
    }
  } else {
    MILLION_UNROLL
    for (int g = 0; g < P::kGroups; ++g) {
      MILLION_UNROLL
      for (int tile = 0; tile < P::kTiles; ++tile)
        group[tile] = P::kKeep ? q[P::kKeep ? g : 0][tile] : query_words(turned, w, g, tile);
      score_group<P>(w, group, codes[2 * g], codes[2 * g + 1], g, first, sums);
    }
  }
  MILLION_UNROLL
  for (int t = 0; t < P::kScored; ++t) MILLION_UNROLL
  for (int tile = 0; tile < P::kTiles; ++tile) {
    const uint32_t(&sum)[4] = sums[t][tile];
    const auto score = [&](uint32_t high, uint32_t low) {
      const auto steps = static_cast<int32_t>(256 * high + low);
      return fmaf(static_cast<float>(steps), scale[tile], -top[tile]);
    };
    x[first + t][tile][0] = score(sum[0], sum[2] + mean[t][tile].x);
    x[first + t][tile][1] = score(sum[1], sum[3] + mean[t][tile].y);
  }
}

/// Sums of values and what they are relative to.
template <class P>
struct Sums {
  /// [group][axes 0, 1 or 2, 3][tile]: rows are subspaces n, first the lower axis (2 of the 4),
  /// then the upper one; columns are heads 2j, 2j + 1 of the tile.
  float values[P::kGroups][2][P::kTiles][4] = {};
  float top[P::kTiles] = {};  ///< of head n of a tile, in powers of two
  float sum[P::kTiles] = {};  ///< of this lane's tokens
  bool empty = true;
};

/// Moves the maximum that weights refer to.
template <class P>
MILLION_DEVICE void move_top(int j, float (&x)[4][P::kTiles][2], Sums<P>* s) {
  MILLION_UNROLL
  for (int tile = 0; tile < P::kTiles; ++tile) {
    float most = x[0][tile][0];
    MILLION_UNROLL
    for (int i = 1; i < 8; ++i) most = fmaxf(most, x[i / 2][tile][i % 2]);
    most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, 1));
    most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, 2));
    const float by = s->empty ? most : fmaxf(most, 0.0f);
    const float factor = s->empty ? 0.0f : exp2_fast(-by);
    s->top[tile] += by;
    s->sum[tile] *= factor;
    MILLION_UNROLL
    for (int i = 0; i < 8; ++i) x[i / 2][tile][i % 2] -= by;
    const float f0 = __shfl_sync(kFullWarp, factor, 8 * j);
    const float f1 = __shfl_sync(kFullWarp, factor, 8 * j + 4);
    MILLION_UNROLL
    for (int g = 0; g < 2 * P::kGroups; ++g) {
      float(&v)[4] = s->values[g / 2][g % 2][tile];
      v[0] *= f0, v[1] *= f1, v[2] *= f0, v[3] *= f1;
    }
  }
  s->empty = false;
}

/// Weights of a strip as operands: [half of 16 tokens][tile][tokens 2j, 2j+1 and 2j+8, 2j+9].
template <class P>
MILLION_DEVICE void weigh_strip(int j, float (&x)[4][P::kTiles][2], Sums<P>* s,
                                uint32_t (&weights)[2][P::kTiles][2]) {
  bool over = s->empty;
  MILLION_UNROLL
  for (int tile = 0; tile < P::kTiles; ++tile) MILLION_UNROLL
  for (int i = 0; i < 8; ++i) over |= x[i / 2][tile][i % 2] > kSlack;
  if (__any_sync(kFullWarp, over)) move_top<P>(j, x, s);
  MILLION_UNROLL
  for (int tile = 0; tile < P::kTiles; ++tile) MILLION_UNROLL
  for (int t = 0; t < 4; ++t) {
    const float p0 = exp2_fast(x[t][tile][0]), p1 = exp2_fast(x[t][tile][1]);
    s->sum[tile] += p0 + p1;
    weights[t / 2][tile][t % 2] = pack_halves(p0, p1);
  }
}

/// Values of kTurns groups from `group` on for 16 tokens. codes[u] has the four tokens' codes of
/// the group that this lane reads at turn u.
template <class P, int kTurns>
MILLION_DEVICE void add_values(const Warp<P>& w, const uint32_t (&codes)[kTurns], int group,
                               const uint32_t (&weights)[P::kTiles][2], Sums<P>* s) {
  uint32_t x[kTurns][4];
  MILLION_UNROLL
  for (int u = 0; u < kTurns; ++u) {
    const int subspace = 8 * (u ^ (w.j & (kTurns - 1))) + w.n;
    const int copy = kTurns == 2 && P::kCopied ? 16 * (w.j >> 1) : 0;
    const auto from = static_cast<uint32_t>(4 * (subspace + copy));
    MILLION_UNROLL
    for (int t = 0; t < 4; ++t) {
      x[u][t] = centroid<P, false>(w, codes[u], t, from, 8 * group);
      if constexpr (P::kGlobal) x[u][t] ^= 0x80808080u;
    }
  }
  MILLION_UNROLL
  for (int bit = 1; bit < kTurns; bit *= 2) {  // what was read at turn u is of group u ^ j
    const bool swap = (w.j & bit) != 0;
    MILLION_UNROLL
    for (int u = 0; u < kTurns; ++u) MILLION_UNROLL
    for (int t = 0; t < 4; ++t)
      if ((u & bit) == 0) {
        const uint32_t first = x[u][t], second = x[u | bit][t];
        x[u][t] = swap ? second : first;
        x[u | bit][t] = swap ? first : second;
      }
  }
  MILLION_UNROLL
  for (int u = 0; u < kTurns; ++u) {
    const uint32_t(&v)[4] = x[u];
    MILLION_UNROLL
    for (int axes = 0; axes < 2; ++axes) {
      const uint32_t select = axes == 0 ? 0x5140u : 0x7362u;
      const uint32_t near = byte_permute(v[0], v[1], select);
      const uint32_t far = byte_permute(v[2], v[3], select);
      const uint32_t a0 = byte_halves<0x4140>(near), a1 = byte_halves<0x4342>(near);
      const uint32_t a2 = byte_halves<0x4140>(far), a3 = byte_halves<0x4342>(far);
      MILLION_UNROLL
      for (int tile = 0; tile < P::kTiles; ++tile)
        mma_16x8x16(s->values[group + u][axes][tile], a0, a1, a2, a3, weights[tile][0],
                    weights[tile][1]);
    }
  }
}

template <class P>
MILLION_DEVICE void add_strip(const CodedAttendArgs& a, const Warp<P>& w, int first_group,
                              uint32_t keep, const uint32_t (&codes)[P::kGlobal ? 1 : P::kWords],
                              const uint32_t (&weights)[2][P::kTiles][2], Sums<P>* s) {
  MILLION_UNROLL
  for (int half = 0; half < 2; ++half) {
    const auto turn = [&](int group) {
      if constexpr (P::kGlobal)
        return keep & strip_words(
                          a.v, w,
                          w.strip)[coded_word_at(w.lane, half * (w.M() / 8) + first_group + group)];
      else
        return codes[half * P::kGroups + group];
    };
    MILLION_UNROLL
    for (int g = 0; g < P::kFullGroups; g += 4) {
      const uint32_t c[4] = {turn(g), turn(g + 1), turn(g + 2), turn(g + 3)};
      add_values<P, 4>(w, c, g, weights[half], s);
    }
    if constexpr (P::kFullGroups < P::kGroups) {
      const uint32_t c[2] = {turn(P::kFullGroups), turn(P::kFullGroups + 1)};
      add_values<P, 2>(w, c, P::kFullGroups, weights[half], s);
    }
  }
}

/// What a warp has, to shared memory: [warp][head][4 kM], then [warp][head] tops, then weights.
template <class P>
MILLION_DEVICE void write_sums(const Warp<P>& w, int heads, int warp, Sums<P>* s, float* join) {
  constexpr int kAxes = 4 * P::kM;
  float* tops = join + static_cast<size_t>(P::kWarps) * heads * kAxes;
  MILLION_UNROLL
  for (int tile = 0; tile < P::kTiles; ++tile) {
    float sum = s->sum[tile];
    sum += __shfl_xor_sync(kFullWarp, sum, 1);
    sum += __shfl_xor_sync(kFullWarp, sum, 2);
    const int head = 8 * tile + w.n, column = 8 * tile + 2 * w.j;
    if (w.j == 0 && head < heads) {
      tops[warp * heads + head] = s->top[tile];
      tops[(P::kWarps + warp) * heads + head] = sum;
    }
    MILLION_UNROLL
    for (int g = 0; g < 2 * P::kGroups; ++g) {
      const float(&v)[4] = s->values[g / 2][g % 2][tile];
      float* to = join + (warp * heads + column) * kAxes + 4 * (8 * (g / 2) + w.n) + 2 * (g % 2);
      if (column < heads) *reinterpret_cast<float2*>(to) = float2{v[0], v[2]};
      if (column + 1 < heads) *reinterpret_cast<float2*>(to + kAxes) = float2{v[1], v[3]};
    }
  }
}

/// Normalised rows of the block's heads, from axis `first_axis` on.
template <class P>
MILLION_DEVICE void join_warps(const CodedAttendArgs& a, int heads, int head_line, int first_axis,
                               const float* join) {
  constexpr int kAxes = 4 * P::kM;
  const float* tops = join + static_cast<size_t>(P::kWarps) * heads * kAxes;
  const float* sums = tops + P::kWarps * heads;
  const Parts& parts = a.query.parts;
  for (int i = static_cast<int>(threadIdx.x); i < heads * kAxes; i += 32 * P::kWarps) {
    const int head = i / kAxes;
    float top = -INFINITY, weight = 0.0f, value = 0.0f;
    for (int k = 0; k < P::kWarps; ++k)
      if (sums[k * heads + head] > 0.0f) top = fmaxf(top, tops[k * heads + head]);
    for (int k = 0; k < P::kWarps; ++k)
      if (sums[k * heads + head] > 0.0f) {
        const float f = exp2_fast(tops[k * heads + head] - top);
        weight += f * sums[k * heads + head];
        value += f * join[static_cast<size_t>(k) * heads * kAxes + i];
      }
    const size_t part =
        static_cast<size_t>(head_line + head) * parts.n_parts + parts.first + blockIdx.x;
    parts.rows[part * a.shape.rank + first_axis + i % kAxes] = value / weight;
    if (first_axis == 0 && i % kAxes == 0) parts.lse[part] = top + log2_fast(weight);
  }
}

template <class P>
MILLION_DEVICE void write_empty(const CodedAttendArgs& a, int heads, int head_line,
                                int first_axis) {
  const Parts& parts = a.query.parts;
  for (int i = static_cast<int>(threadIdx.x); i < heads * 4 * P::kM; i += 32 * P::kWarps) {
    const size_t part =
        static_cast<size_t>(head_line + i / (4 * P::kM)) * parts.n_parts + parts.first + blockIdx.x;
    parts.rows[part * a.shape.rank + first_axis + i % (4 * P::kM)] = 0.0f;
    if (first_axis == 0 && i % (4 * P::kM) == 0) parts.lse[part] = -INFINITY;
  }
}

/// Leaves out the slots of a strip, from `slot` on, that hold no coded token.
template <class P>
MILLION_DEVICE void mask_strip(int slot, int begin, int end, float (&x)[4][P::kTiles][2]) {
  MILLION_UNROLL
  for (int i = 0; i < 8; ++i) {
    const int at = slot + i / 2 * 8 + i % 2;
    MILLION_UNROLL
    for (int tile = 0; tile < P::kTiles; ++tile)
      if (at < begin || at >= end) x[i / 2][tile][i % 2] = -INFINITY;
  }
}

/// Attention of the strips [w.strip, to) of a sequence whose tokens have slots [begin, end).
template <class P>
MILLION_DEVICE void attend_strips(const CodedAttendArgs& a, int begin, int end, int to,
                                  int first_group, Warp<P> w, Sums<P>* s) {
  uint4 q[P::kKeep ? P::kGroups : 1][P::kTiles];
  float scale[P::kTiles], x[4][P::kTiles][2];
  uint32_t key_codes[P::kGlobal ? 1 : P::kWords], value_codes[P::kGlobal ? 1 : P::kWords];
  if (w.strip < to) {
    load_codes<P>(a.k, w, w.strip, key_codes);
    load_codes<P>(a.v, w, w.strip, value_codes);
    load_frame<P>(a.turned, w, a.query.scale_log2, q, scale);
  }
  __pipeline_wait_prior(0);
  __syncthreads();
  for (; w.strip < to; ++w.strip) {
    const int slot = w.strip * kCodedStrip;
    const bool partial = slot < begin || slot + kCodedStrip > end, more = w.strip + 1 < to;
    const auto keep = [&](int nbits) { return partial ? ((1u << nbits) - 1) * 0x01010101u : ~0u; };
    if (partial) {
      cut_codes<P>(a.k.nbits, key_codes);
      cut_codes<P>(a.v.nbits, value_codes);
    }
    MILLION_UNROLL
    for (int first = 0; first < 4; first += P::kScored)
      score_tiles<P>(a, w, keep(a.k.nbits), key_codes, q, scale, s->top, first, x);
    if (partial) mask_strip<P>(slot + 2 * w.j, begin, end, x);
    if (more) {  // on their way while values are summed
      load_codes<P>(a.k, w, w.strip + 1, key_codes);
      w.place += kCodedStrip;
      if (w.place == a.shape.frame) {
        w.place = 0, ++w.row;
        load_frame<P>(a.turned, w, a.query.scale_log2, q, scale);
      }
    }
    uint32_t weights[2][P::kTiles][2];
    weigh_strip<P>(w.j, x, s, weights);
    add_strip<P>(a, w, first_group, keep(a.v.nbits), value_codes, weights, s);
    if (more) load_codes<P>(a.v, w, w.strip + 1, value_codes);
  }
}

}  // namespace coded

template <int kM, CodedBooks kBooks, int kTiles>
__global__ void __launch_bounds__(32 * coded_warps(kM, kTiles, kBooks), 1)
    attend_coded_kernel(const CodedLaunch launched) {
  using P = coded::Plan<kM, kBooks, kTiles>;
  MILLION_SHARED(shared);
  const CodedAttendArgs& a = launched.a;
  const int warp = static_cast<int>(threadIdx.x >> 5), lane = static_cast<int>(threadIdx.x & 31);
  const int cut = static_cast<int>(blockIdx.y) % launched.cuts;
  const int head_block = static_cast<int>(blockIdx.y) / launched.cuts % launched.head_blocks;
  const int unit = static_cast<int>(blockIdx.y) / (launched.cuts * launched.head_blocks);
  const int batch = static_cast<int>(blockIdx.z), units = a.query.n_kv_heads / a.shape.span;
  const int first_group = launched.first_group + cut * P::kGroups;

  const int H = a.query.n_heads / units, head0 = 8 * kTiles * head_block;
  const int heads = H - head0 < 8 * kTiles ? H - head0 : 8 * kTiles;
  const int head_line = batch * a.query.n_heads + unit * H + head0;

  const SequenceState state = a.query.state[batch];
  const int begin = coded_slot(state.n_sinks, 0), end = begin + state.coded_k;
  const int strips = coded_strips(state.n_sinks, state.coded_k);
  // Every warp of every split has its run of strips.
  const int runs = static_cast<int>(gridDim.x) * P::kWarps;
  const int run0 = static_cast<int>(blockIdx.x) * P::kWarps;
  const auto run_begin = [&](int run) {
    return static_cast<int>(static_cast<int64_t>(strips) * run / runs);
  };
  if (run_begin(run0) == run_begin(run0 + P::kWarps)) {
    coded::write_empty<P>(a, heads, head_line, 32 * first_group);
    return;
  }
  coded::Warp<P> w;
  w.lane = lane, w.n = lane >> 2, w.j = lane & 3;
  w.heads = heads, w.subspaces = a.k.M;
  w.line = batch * units + unit, w.strip = run_begin(run0 + warp);
  const int position = (state.n_sinks / kCodedStrip + w.strip) * kCodedStrip;
  w.row = (head_line + w.n) * a.turned.frames + position / a.shape.frame;
  w.place = position % a.shape.frame;
  if constexpr (P::kGlobal) {
    w.key_book = reinterpret_cast<const uint32_t*>(a.k.book) +
                 (static_cast<size_t>(unit) << a.k.nbits) * a.k.M;
    w.value_book = reinterpret_cast<const uint32_t*>(a.v.book) +
                   (static_cast<size_t>(unit) << a.v.nbits) * a.k.M + 8 * first_group;
  } else {
    coded::load_books<P>(a, unit, shared);
    w.books = shared_address(shared);
  }
  coded::Sums<P> s;
  coded::attend_strips<P>(a, begin, end, run_begin(run0 + warp + 1), first_group, w, &s);

  __syncthreads();  // the books' memory is free
  float* join = reinterpret_cast<float*>(shared);
  coded::write_sums<P>(w, heads, warp, &s, join);
  __syncthreads();
  coded::join_warps<P>(a, heads, head_line, 32 * first_group, join);
}

namespace {

template <int kM, CodedBooks kBooks, int kTiles>
int launch_coded(StreamHandle stream, const CodedAttendArgs& a, int first_group, int cuts) {
  const int units = a.query.n_kv_heads / a.shape.span, H = a.query.n_heads / units;
  const CodedLaunch launched{a, first_group, cuts, (H + 8 * kTiles - 1) / (8 * kTiles)};
  const dim3 grid(static_cast<unsigned>(a.query.n_splits),
                  static_cast<unsigned>(units * launched.head_blocks * cuts),
                  static_cast<unsigned>(a.query.batch));
  const int shared = coded_arena_bytes(kM, H, kBooks);
  return launch(attend_coded_kernel<kM, kBooks, kTiles>, grid,
                dim3(32 * coded_warps(kM, kTiles, kBooks)), static_cast<size_t>(shared), stream,
                launched);
}

template <int kTiles>
int launch_shared(StreamHandle stream, const CodedAttendArgs& a) {
  constexpr CodedBooks kBooks = CodedBooks::kPadded;
  if (a.k.M == 16) return launch_coded<16, kBooks, kTiles>(stream, a, 0, 1);
  if (a.k.M == 32) return launch_coded<32, kBooks, kTiles>(stream, a, 0, 1);
  if (a.k.M == 48) return launch_coded<48, kBooks, kTiles>(stream, a, 0, 1);
  return launch_coded<64, kBooks, kTiles>(stream, a, 0, 1);
}

/// Whole cuts, and what is left: a multiple of 16 subspaces.
template <int kTiles>
int launch_global(StreamHandle stream, const CodedAttendArgs& a) {
  constexpr CodedBooks kBooks = CodedBooks::kGlobal;
  constexpr int kCut = coded_cut(kTiles);
  const int cuts = a.k.M / kCut, rest = a.k.M % kCut, group = cuts * kCut / 8;
  int error = 0;
  if (cuts > 0) error = launch_coded<kCut, kBooks, kTiles>(stream, a, 0, cuts);
  if (error != 0 || rest == 0) return error;
  if constexpr (kCut > 32) {
    if (rest == 32) return launch_coded<32, kBooks, kTiles>(stream, a, group, 1);
    if (rest == 48) return launch_coded<48, kBooks, kTiles>(stream, a, group, 1);
  }
  return launch_coded<16, kBooks, kTiles>(stream, a, group, 1);
}

template <int kTiles>
int launch_books(StreamHandle stream, const CodedAttendArgs& a) {
  const CodedBooks books = coded_books(a);
  if (books == CodedBooks::kPadded) return launch_shared<kTiles>(stream, a);
  if (books == CodedBooks::kPacked)
    return launch_coded<48, CodedBooks::kPacked, kTiles>(stream, a, 0, 1);
  return launch_global<kTiles>(stream, a);
}

int attend_coded(StreamHandle stream, const CodedAttendArgs& a) {
  const int H = a.query.n_heads / a.query.n_kv_heads * a.shape.span;
  return coded_head_tiles(H) == 1 ? launch_books<1>(stream, a) : launch_books<2>(stream, a);
}

}  // namespace

void add_coded(DeviceOps& ops) {
  ops.attend_coded = attend_coded;
  add_coded_queries(ops);
  add_coded_codes(ops);
}

}  // namespace million::cuda::MILLION_CUDA_NS
