// SPDX-License-Identifier: Apache-2.0
// The op table: every computation that has versions per instruction set. Functions work on raw
// pointers, allocate nothing, throw nothing and run on one thread; lib/ spreads heads and rows over
// threads and checks the arguments. Every version computes the function of ref/ops_ref.cpp
// (double); tests/test_kernels.cpp states the bound per op. Letters: d = head_dim, K = 2^nbits,
// dsub = d / M.
#pragma once

#include "kernels/blocks.h"
#include "kernels/layout.h"
#include "kernels/online_softmax.h"

#include <cstddef>
#include <cstdint>

namespace million {

/// What calls of a fused kernel did, added up for reports.
struct AttendStats {
  int64_t groups_left_out = 0;  ///< 64-token groups x heads whose values were left out
  int64_t groups = 0;           ///< all of them
  double mass_left_out = 0.0;   ///< at most so much of the heads' softmax weights, 1 for each head
  /// Ticks of the time stamp counter by phase: tables or turned queries; scores; weights; values.
  int64_t tables = 0, scores = 0, weights = 0, values = 0;

  void add(const AttendStats& x) {
    groups_left_out += x.groups_left_out, groups += x.groups, mass_left_out += x.mass_left_out;
    tables += x.tables, scores += x.scores, weights += x.weights, values += x.values;
  }
};

/// Decode attention of the query heads that share one KV head over exact f16 rows.
struct DenseAttendArgs {
  int n_group;  ///< query heads of the group, 1..16
  int head_dim;
  int n_tokens;         ///< may be 0: the state stays as it is
  const float* q;       ///< [n_group][head_dim], already times 1/sqrt(d)
  const uint16_t* k;    ///< [n_tokens][head_dim] f16
  const uint16_t* v;    ///< [n_tokens][head_dim] f16
  SoftmaxState* state;  ///< [n_group], merged into
  float* acc;           ///< [n_group][head_dim], merged into
  const uint16_t *next_k = nullptr, *next_v = nullptr;  ///< rows of the call after this, to fetch
};

/// The same over f32 rows (decode-then-attend of a codec without a fused kernel).
struct DenseAttendF32Args {
  int n_group, head_dim, n_tokens;
  const float* q;
  const float* k;  ///< [n_tokens][head_dim]
  const float* v;
  SoftmaxState* state;
  float* acc;
  const float *next_k = nullptr, *next_v = nullptr;
};

/// One side (keys or values) of a PQ-coded run: blocks as in layout.h.
struct PqSide {
  int M, nbits;
  const uint8_t* const* blocks;  ///< [ceil(n_tokens / kPqBlock)] pointers to blocks
  const float* centroids;        ///< [M][K][dsub] f32
};

/// Decode attention directly on codes: K enters as sums of table entries q . centroid, V as
/// centroids weighted inside the kernel; neither is materialised for the whole run.
struct PqAttendArgs {
  int n_group, head_dim, n_tokens;
  const float* q;  ///< [n_group][head_dim] in the codes' frame, already times 1/sqrt(d)
  PqSide k, v;
  float* scratch;           ///< at least pq_scratch_floats(args) floats, 64-byte aligned
  SoftmaxState* state;      ///< [n_group], merged into
  float* acc;               ///< [n_group][head_dim], merged into
  bool same_query = false;  ///< q and both sides' centroids are those of the last call with this
                            ///< scratch, whose contents are still there: its tables may be used
  float skip = 0.0f;        ///< as in CodedAttendArgs, with 8-bit tables
  const float* floor = nullptr;
  const uint8_t* next_k = nullptr;  ///< block of keys of the call after this, to fetch
  AttendStats* stats = nullptr;
};
/// Floats of scratch that attend_pq needs; of args only the shape is read.
std::size_t pq_scratch_floats(const PqAttendArgs& args);

/// One side of a run that is coded in a basis (lib/quant/pq_basis.h): blocks as in layout.h, axis j
/// belongs to subspace j / (rank / M).
struct CodedSide {
  int M, nbits;                  ///< nbits 1..8
  const uint8_t* const* blocks;  ///< [ceil(n_tokens / kPqBlock)]
  const int8_t* tables;          ///< [rank][K] centroids in steps of scale[axis]
  const float* scale;            ///< [rank]
};

/// Decode attention on codes in a basis that `span` KV heads share, for all their query heads.
/// Keys lie in frames of `frame` tokens, and a frame's tokens share a query:
///   score = (D^T q).y + sum_k (q.mean[k]) places[k][place of the token]
struct CodedAttendArgs {
  int n_heads;  ///< query heads; head h uses KV head h / (n_heads / span)
  int span, head_dim, rank;
  int n_tokens;
  int frame, first;     ///< tokens of a frame (a multiple of 64); place of token 0 in its frame
  const float* q;       ///< [frames touched][n_heads][head_dim] scaled, turned to each frame
  const int8_t* basis;  ///< D^T as [span * head_dim / 4][rank][4] in steps of basis_scale
  const float* basis_scale;  ///< [rank]
  int n_places;              ///< functions of the place that the mean key needs, a multiple of 16
  const float* places;       ///< [n_places][frame]
  const float* mean;         ///< [span][head_dim][n_places]
  CodedSide k, v;
  float skip;           ///< values of 64 tokens are left out when their share is surely below this
  const float* floor;   ///< [n_heads] lower bounds of log(sum of exp(score)) over all tokens
  float* scratch;       ///< at least coded_scratch_floats(args) floats, 64-byte aligned
  SoftmaxState* state;  ///< [n_heads], merged into
  float* acc;           ///< [n_heads][rank] sums of weight * y, merged into
  AttendStats* stats;   ///< added to; may be nullptr
  const uint8_t* next_k = nullptr;  ///< block of keys of the call after this, to fetch
};
/// Frames that a run touches.
inline int coded_frames(const CodedAttendArgs& a) {
  return a.n_tokens <= 0 ? 0 : (a.first + a.n_tokens - 1) / a.frame + 1;
}
std::size_t coded_scratch_floats(const CodedAttendArgs& args);
/// Shapes that attend_coded takes.
inline constexpr int kMaxCodedHeads = 64;
inline bool coded_shape_fits(const CodedAttendArgs& a) {
  return a.n_heads <= kMaxCodedHeads && a.n_heads % a.span == 0 && a.rank % 16 == 0 &&
         a.head_dim % 4 == 0 && a.head_dim <= 256 && a.frame % 64 == 0 && a.k.nbits <= 8 &&
         a.v.nbits <= 8 && a.k.M > 0 && a.v.M > 0 && a.rank % a.k.M == 0 && a.rank % a.v.M == 0;
}

/// One side of a run of scalar codes, x = (code - offset) * scale + zero with halves for a group:
///   kChannels  a group is `group` tokens of one channel; codes [groups][channel][packed group]
///   kTokens    a group is `group` channels of one token; codes [token][packed row]
///   kBlocks    ggml's blocks of 32 channels (q8_0, q4_0, q4_1), scales inside
/// Packed codes have `bits` bits, little-endian bit order.
struct GroupSide {
  enum class Layout : uint8_t { kChannels, kTokens, kBlocks };
  Layout layout = Layout::kTokens;
  BlockType type = BlockType::kF32;     ///< kBlocks
  int bits = 0, group = 0, offset = 0;  ///< kBlocks: not read
  bool zeros = false;                   ///< scales are pairs (scale, zero), else zero = 0
  const uint8_t* codes = nullptr;       ///< at token 0 of the run
  std::ptrdiff_t code_step = 0;         ///< bytes from a token (kChannels: group) to the next
  const uint16_t* scales = nullptr;     ///< of token 0; kBlocks: nullptr
  std::ptrdiff_t scale_step = 0;        ///< halves from a token (kChannels: group) to the next
};

/// Decode attention on scalar codes; codes are turned to floats in registers.
struct GroupAttendArgs {
  int n_group, head_dim, n_tokens;
  const float* q;  ///< [n_group][head_dim], already times 1/sqrt(d)
  GroupSide k, v;  ///< keys in any layout, values in kTokens or kBlocks; kChannels: token 0 starts
                   ///< a group
  SoftmaxState* state;  ///< [n_group], merged into
  float* acc;           ///< [n_group][head_dim], merged into
};
/// Groups of a row at most.
inline constexpr int kMaxRowGroups = 8;
/// Shapes that attend_groups takes.
inline bool group_side_fits(const GroupSide& s, int head_dim, bool key) {
  using Layout = GroupSide::Layout;
  if (head_dim % 32 != 0 || head_dim > 256) return false;
  if (s.layout == Layout::kBlocks)
    return s.type == BlockType::kQ8_0 || s.type == BlockType::kQ4_0 || s.type == BlockType::kQ4_1;
  if (s.bits < 1 || s.bits > 8) return false;
  if (s.layout == Layout::kChannels) return key && s.group % 32 == 0;
  return s.group % 16 == 0 && head_dim % s.group == 0 && head_dim / s.group <= kMaxRowGroups;
}

/// Rows of a panel and keys of a call, at most.
inline constexpr int kPanelRows = 32, kMaxTileKeys = 256;

/// Prefill attention of many rows on one tile of keys. Rows lie transposed in panels
/// [rows / kPanelRows][head_dim][kPanelRows]. What a row gets depends on no other row, nor on what
/// the others see.
struct TileAttendArgs {
  int rows;  ///< a multiple of kPanelRows
  int head_dim;
  int n_keys;              ///< at most kMaxTileKeys
  const float* q;          ///< panels, already times 1/sqrt(d)
  const float *k, *v;      ///< [n_keys][head_dim], finite also where nobody sees them
  const int *begin, *end;  ///< [rows]: keys [begin, end) are visible to a row; none: begin >= end
  float *max, *sum;        ///< [rows] state of the softmax: -inf and 0 at first
  float* acc;              ///< panels of sums of exp(score - max) v: 0 at first
};
using TileAttend = void (*)(const TileAttendArgs& args);

struct Ops {
  const char* name;  ///< "scalar", "avx2", "avx512"

  // --- conversion and element-wise; n any, pointers unaligned ---
  void (*f16_to_f32)(const uint16_t* x, float* y, std::size_t n);
  void (*f32_to_f16)(const float* x, uint16_t* y, std::size_t n);
  void (*bf16_to_f32)(const uint16_t* x, float* y, std::size_t n);
  void (*f32_to_bf16)(const float* x, uint16_t* y, std::size_t n);
  float (*dot)(const float* x, const float* y, std::size_t n);
  /// y [n][columns] = x [n][w] times the transpose of m [columns][w]. A value does not depend on n.
  void (*multiply_rows)(const float* x, int n, int w, int columns, const float* m, float* y);
  void (*add)(const float* x, float* y, std::size_t n);  ///< y += x
  /// y[i] = silu(gate[i]) * up[i]
  void (*swiglu)(const float* gate, const float* up, float* y, std::size_t n);
  /// y[i] = x[i] * w[i] / sqrt(mean(x^2) + eps)
  void (*rmsnorm)(const float* x, const float* w, float eps, int n, float* y);
  /// Rotates pairs of one row: adjacent (2i, 2i+1) or halves (i, i + n_pairs); cs [n_pairs] cos and
  /// sin separately.
  void (*rope_row)(float* x, const float* cosines, const float* sines, int n_pairs, bool adjacent);
  /// log(sum_i exp(x[i])) without overflow.
  double (*logsumexp)(const float* x, std::size_t n);

  // --- weights; n is a multiple of block_shape(type).values ---
  void (*dequant_row)(BlockType type, const void* row, int n, float* y);
  /// x [n], n % 32 == 0, -> n / 32 activation blocks, symmetric int8, round to nearest even.
  void (*quantize_a8)(const float* x, int n, BlockA8* y);
  /// y[r] = row_r . x for n_rows rows of `row_bytes` bytes; block types only.
  void (*gemv_a8)(BlockType type, const void* rows, std::size_t row_bytes, int n_rows, int n,
                  const BlockA8* x, float* y);

  // --- attention ---
  void (*attend_f16)(const DenseAttendArgs& args);
  void (*attend_f32)(const DenseAttendF32Args& args);
  /// nbits > 8: f32 tables, 1e-5 of the output norm. Scalar and AVX2: scores in 16 bits, 1 %
  /// (cpu/attention_pq_sums.inl.h). AVX-512 with 96 tokens or more: 8-bit tables, score error 0.01
  /// RMS, output within 2.5 % on random data (cpu/attention_pq_bytes.inl.h).
  void (*attend_pq)(const PqAttendArgs& args);
  /// AVX-512: queries, D^T and weights enter as bytes, output within 4 % on random data
  /// (cpu/attention_coded.inl.h); others: as words, 0.2 % (cpu/attention_coded_words.inl.h).
  void (*attend_coded)(const CodedAttendArgs& args);
  /// 1e-5 of the output norm.
  void (*attend_groups)(const GroupAttendArgs& args);
  /// Sums acc [n_heads][rank] back to channels: rows [n_heads][head_dim]. Of args only the shape,
  /// `acc` and the basis of the values are read.
  void (*coded_rows)(const CodedAttendArgs& args, float* rows);
  /// Prefill: one tile of scores s [rows][ld], of which columns [begin[r], end[r]) of row r are
  /// visible. s <- exp(scale * s - new max), 0 where not visible (all `cols` columns are written);
  /// state[r] and acc [rows][head_dim] are rescaled and the sum is updated; P V is the caller's.
  void (*softmax_tile)(float* s, int rows, int cols, int ld, const int* begin, const int* end,
                       float scale, SoftmaxState* state, float* acc, int head_dim);

  /// 1e-5 of the output norm.
  TileAttend attend_tile;

  // --- product quantization ---
  /// codes[i] = argmin_c |x_i - cent_c|^2 over c in [0, K), lowest index on ties, for n rows
  /// x_i = x + i * stride of dsub values. cent_t [dsub][K] is the transposed codebook.
  void (*pq_encode)(const float* x, std::size_t stride, int n, const float* cent_t, int K, int dsub,
                    uint16_t* codes);
};

/// Instruction-set levels, slowest first.
enum class Isa { kScalar, kAvx2, kAvx512 };

/// The table in use: the best level of this CPU unless MILLION_ISA=scalar|avx2|avx512 or set_isa
/// says otherwise. avx512 means F, BW, DQ, VL, VBMI and VNNI.
const Ops& ops();
/// Table of one level; nullptr when this CPU (or build) lacks it.
const Ops* ops_for(Isa isa);
/// attend_tile with products of bf16 (queries, keys, weights and values rounded, sums in f32), 1 %
/// of the output norm; n_keys % 8 == 0, head_dim % 16 == 0, head_dim <= 256. nullptr without
/// AVX512_BF16 or on another level.
TileAttend attend_tile_bf16();
/// Forces a level; false when the CPU lacks it. Not thread-safe: call at start.
bool set_isa(Isa isa);
/// The counter that AttendStats counts in; 0 where there is none.
int64_t time_stamp();
/// Name of a forced level that could not be honoured by MILLION_ISA, or nullptr.
const char* isa_request_error();

}  // namespace million
