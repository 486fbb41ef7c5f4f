// SPDX-License-Identifier: Apache-2.0
// The table of the decoder's computations on a device. The functions launch kernels on a stream and
// return at once; all pointers are device memory unless said otherwise. The same sources are
// compiled by nvcc (native_ops) and, through simt/, by the host compiler (emulated_ops), so that
// every kernel runs where there is no GPU. They check nothing: lib/device and lib/cache do.
//
// Letters: d = head_dim (64 or 128), K = 2^nbits, dsub = d / M. Halves are f16 bits in uint16_t.
// A sequence's tokens are its sinks [0, n_sinks), then those read from codes, then exact ones.
#pragma once

#include "kernels/layout.h"

#include <cstddef>
#include <cstdint>

namespace million::cuda {

/// cudaStream_t, or simt::Queue* where kernels are emulated (nullptr: run in the caller).
using StreamHandle = void*;

/// Where a sequence stands. Lies in device memory, so that a captured step can be replayed.
struct SequenceState {
  int32_t n_tokens;          ///< in the cache, those at work included
  int32_t n_sinks;           ///< first tokens, never coded
  int32_t coded_k, coded_v;  ///< tokens behind the sinks whose keys / values are read from codes
};

/// Attention over a part of the tokens: normalised rows, and log2 of the sum of 2^score, which is
/// -inf for an empty part. merge_parts joins parts.
struct Parts {
  float* rows;      ///< [batch][n_heads][n_parts][width]
  float* lse;       ///< [batch][n_heads][n_parts]
  int n_parts = 0;  ///< in these arrays
  int first = 0;    ///< the kernel writes parts [first, first + n_splits)
};

/// What every attention of one query a sequence needs.
struct QueryArgs {
  int batch, n_heads, n_kv_heads, head_dim;
  const uint16_t* q;           ///< [batch][n_heads][d] halves, after RoPE
  const SequenceState* state;  ///< [batch]
  float scale_log2;            ///< of scores: log2(e) / sqrt(d)
  int n_splits;                ///< parts into which a sequence's tokens are cut
  Parts parts;
};

/// Exact halves of one kind: sinks, and a ring in which token t lies at row t % ring_rows.
struct ExactRows {
  uint16_t* sinks;  ///< [batch][n_kv_heads][sink_rows][d]; may be nullptr when sink_rows is 0
  uint16_t* ring;   ///< [batch][n_kv_heads][ring_rows][d]
  int sink_rows, ring_rows;  ///< ring_rows is a power of two
};

/// Scalar codes in groups, x = (code - offset) * scale + zero:
///   kChannels  (keys of KIVI) a group is `group` tokens of one channel:
///              codes [batch][n_kv_heads][capacity / group][d][group * bits / 8], scales likewise
///   kTokens    a group is `group` channels of one token:
///              codes [batch][n_kv_heads][capacity][d * bits / 8], scales [...][d / group]
struct GroupCodesView {
  enum class Layout : int32_t { kNone, kChannels, kTokens };
  Layout layout = Layout::kNone;
  int bits = 0;   ///< 2, 4 or 8; packed in little-endian bit order
  int group = 0;  ///< a multiple of 16; kTokens: it divides d
  int offset = 0;
  bool zeros = false;          ///< scales are pairs (scale, zero), else zero = 0
  int capacity = 0;            ///< tokens; a multiple of 16, kChannels: of group
  uint8_t* codes = nullptr;
  uint16_t* scales = nullptr;  ///< halves
};

/// Flash decoding over rows: exact halves, and group codes for coded tokens. Without codes
/// (layout kNone) the coded tokens [n_sinks, n_sinks + coded) are left out: another kernel has
/// them. K and V may differ in what is coded (state.coded_k, coded_v); with kNone both are equal.
/// If one of K and V has no codes, all its tokens are exact.
struct RowsAttendArgs {
  QueryArgs query;
  ExactRows k, v;
  GroupCodesView k_codes, v_codes;
};

/// Merges parts [0, n_parts) of every head.
struct MergeArgs {
  Parts parts;
  int batch, n_heads, width;  ///< width: a multiple of 4 up to 1024
  uint16_t* out;    ///< [batch][n_heads][width] halves; or nullptr:
  float* out_rows;  ///< the same as f32, with
  float* out_lse;   ///< [batch][n_heads] its log2 weight
};

/// Plain PQ codes of one kind, in strips of 32 tokens (kernels/cuda/pq_strips.h).
struct PqCodesView {
  int M, nbits;           ///< dsub 1, 2, 4 or 8; nbits 1 to 8, kept as 4, 6 or 8 bits
  uint32_t* codes;        ///< [batch][n_kv_heads][strips][pq_strip_words(M, nbits)]
  int strips;             ///< capacity of a head: tokens / 32
  const uint32_t* book;   ///< [n_kv_heads or 1][K][d / 2] pairs of halves; 16-byte aligned
  bool book_per_head;
};

/// Decode attention on codes: tokens [0, coded_k) behind the sinks only, coded_v equals coded_k.
/// Keys and values may differ in M and nbits only in two passes or in the table kernel.
struct PqAttendArgs {
  QueryArgs query;
  PqCodesView k, v;
  /// Keys first, with weights left in `scratch`, then values: for devices whose blocks cannot hold
  /// both codebooks (pq_shared_bytes), and for keys and values of different shapes.
  bool two_pass = false;
  void* scratch = nullptr;  ///< pq_scratch_bytes(args) where two_pass; 16-byte aligned
};

/// Codes of tokens behind the sinks [begin, begin + n), begin a multiple of 32: nearest centroids
/// of the exact rows (token t = n_sinks + i at row t % ring_rows), the lowest index on ties. The
/// rest of an unfinished strip gets code 0.
struct PqEncodeArgs {
  int batch, n_kv_heads, head_dim;
  const uint16_t* ring;  ///< [batch][n_kv_heads][ring_rows][d]
  int ring_rows;         ///< a power of two
  int n_sinks, begin, n;
  bool key;  ///< which of the two orders inside a strip
  PqCodesView codes;
};

/// Rows behind codes: tokens behind the sinks [begin, begin + n) to rows [begin, begin + n).
struct DecodeRowsArgs {
  int batch, n_kv_heads, head_dim, begin, n;
  uint16_t* rows;  ///< [batch][n_kv_heads][capacity][d] halves
  int capacity;
};
struct PqDecodeArgs {
  DecodeRowsArgs to;
  bool key;
  PqCodesView codes;
};

/// Codes in a basis that `span` KV heads share (lib/quant/pq_basis.h). Letters as in the
/// CodedAttendArgs of kernels/ops.h; dsub is 4: M = rank / 4 counts a unit's subspaces. A code
/// takes a byte.
struct CodedCodesView {
  int M, nbits;              ///< nbits 1 to 8
  uint32_t* codes;           ///< [batch][units][strips][8 * M] (kernels/cuda/coded_layout.h)
  int strips;                ///< capacity of a unit, at least coded_strips(n_sinks, tokens)
  const int8_t* book;        ///< [units][K][rank] centroids in steps of scale
  const float* scale;        ///< [units][rank]
  const int8_t* basis;       ///< [units][span * d / 4][rank][4]: D^T in steps of basis_scale
  const float* basis_scale;  ///< [units][rank]
};
struct CodedShape {
  int span, rank;                ///< KV heads and axes of a unit; units = n_kv_heads / span
  int frame;                     ///< positions that share a query; a multiple of 32
  int n_places;                  ///< functions of the place that the mean key needs, a multiple
                                 ///< of 16; 0: not centred
  const float* places;           ///< [units][n_places][frame]
  const float* mean;             ///< [units][span][d][n_places]
  const float *cosines, *sines;  ///< [positions][n_pairs]
  int n_pairs;
  bool adjacent;
};
/// The queries of one step turned to every frame, in the codes' coordinates and in fixed point.
/// Frame f is positions [f * frame, (f + 1) * frame); only those with coded tokens are written.
///   score = step * (bias + sum of (256 high + low) * centroid byte)
struct TurnedQueries {
  uint32_t* words;  ///< [batch][n_heads][frames][M / 8][4][4] bytes (kernels/cuda/coded_layout.h)
  float* step;      ///< [batch][n_heads][frames]
  int32_t* bias;    ///< [batch][n_heads][frames * frame] by position; not read without n_places
  int frames;       ///< capacity
};
struct TurnQueriesArgs {
  QueryArgs query;
  CodedShape shape;
  CodedCodesView k;
  TurnedQueries turned;
};
/// Attention in the codes' coordinates: parts are rows of `rank` sums in steps of v.scale. Tokens
/// [n_sinks, n_sinks + coded_k) only, coded_v equals coded_k.
struct CodedAttendArgs {
  QueryArgs query;  ///< q is not read
  CodedShape shape;
  CodedCodesView k, v;
  TurnedQueries turned;
  int shared_limit;  ///< shared bytes that a block may have: decides where the books lie
};
/// Sums of values [batch][n_heads][rank] back to channels, as one part of the heads.
struct CodedRowsArgs {
  int batch, n_heads, n_kv_heads, head_dim;
  CodedShape shape;
  CodedCodesView v;
  const float* sums;  ///< [batch][n_heads][rank]
  const float* lse;   ///< [batch][n_heads]
  Parts parts;        ///< part `first` is written
};
struct CodedEncodeArgs {
  int batch, n_kv_heads, head_dim;
  const uint16_t* ring;  ///< after RoPE
  int ring_rows, n_sinks, begin, n;
  bool key;  ///< keys are turned back to their frame first
  CodedShape shape;
  CodedCodesView codes;
  const int8_t* encode;        ///< [units][span * d / 4][rank][4]: E in steps of encode_scale
  const float* encode_scale;   ///< [units][rank]
  const uint16_t* coded_mean;  ///< [units][frame][rank] halves subtracted from y, or nullptr
};
struct CodedDecodeArgs {
  DecodeRowsArgs to;
  bool key;
  int n_sinks;
  CodedShape shape;
  CodedCodesView codes;
  const uint16_t* coded_mean;  ///< added to y, or nullptr
};

/// Group codes of tokens behind the sinks [begin, begin + n); kChannels: whole groups.
struct GroupEncodeArgs {
  int batch, n_kv_heads, head_dim;
  const uint16_t* ring;
  int ring_rows, n_sinks, begin, n;
  bool symmetric;  ///< range and codes as lib/quant/group_store.cpp has them
  GroupCodesView codes;
};
struct GroupDecodeArgs {
  DecodeRowsArgs to;
  GroupCodesView codes;
};

/// Causal attention of n queries of one sequence from position `first` on. Query i sees keys of
/// tokens behind the sinks [0, coded_k[i]) and values [0, coded_v[i]) from the decoded rows, all
/// others up to itself exact. Neither bound falls with i. Rows that no query sees are not read
/// into results: the ring need not hold what every query takes from codes.
struct PrefillArgs {
  int n_heads, n_kv_heads, head_dim;
  int n, first, n_sinks;
  const uint16_t* q;  ///< [n][n_heads][d] halves, after RoPE
  float scale_log2;
  ExactRows k, v;                      ///< batch 1
  const uint16_t *decoded_k, *decoded_v;  ///< [n_kv_heads][decoded_rows][d], token n_sinks + i at i
  int decoded_rows;
  const int32_t *coded_k, *coded_v;  ///< [n], both or neither; nullptr: nothing is coded
  uint16_t* out;                     ///< [n][n_heads][d] halves
  int block_rows = 0;  ///< rows of a block (query and head): 64 or 128; 0: chosen by their number
};

struct EmbedArgs {
  const uint16_t* table;  ///< [n_vocab][d_model] halves
  const int32_t* tokens;  ///< [n]
  int n, d_model;
  float* x;  ///< [n][d_model]
};
/// y = x * weight / sqrt(mean(x^2) + eps), as halves for the products and (if set) as f32.
struct NormArgs {
  const float* x;       ///< [n][d]
  const float* weight;  ///< [d]
  float eps;
  int n, d;
  uint16_t* y;
  float* y_f32;
};
/// qkv [n][(n_heads + 2 n_kv_heads) * d] = projections of n tokens that end a sequence: adds the
/// bias, turns queries and keys to their positions, and writes q and the cache's exact rows.
struct RopeAppendArgs {
  const float* qkv;
  const float* bias;             ///< one row, or nullptr
  const float *cosines, *sines;  ///< [positions][n_pairs]
  int n_pairs;
  bool adjacent;     ///< pairs (2i, 2i + 1), else (i, i + n_pairs)
  float magnitude;   ///< of turned channels
  int batch;         ///< sequences, each with n / batch tokens
  int n, n_heads, n_kv_heads, head_dim;
  const SequenceState* state;  ///< [batch]; the n / batch tokens at work end at n_tokens
  uint16_t* q;                 ///< [n][n_heads][d] halves
  ExactRows k, v;
};
/// Copies tokens [first, first + n) of all KV heads from one ring to another: token t lies at row
/// t % from_rows of the first and (t - to_shift) % to_rows of the second.
struct CopyRowsArgs {
  int n_kv_heads, head_dim, first, n;
  const uint16_t* from;  ///< [n_kv_heads][from_rows][d]
  uint16_t* to;          ///< [n_kv_heads][to_rows][d]
  int from_rows, to_rows, to_shift;
};
/// y [n][d_ff] halves = silu(gate) * up of gate_up [n][2 * d_ff].
struct SwigluArgs {
  const float* gate_up;
  int n, d_ff;
  uint16_t* y;
};
/// Index of the largest of n values, the lowest on ties; NaN counts as the smallest.
struct ArgmaxArgs {
  const float* x;
  int n;
  int32_t* index;
};

struct DeviceOps {
  const char* name;  ///< "native" or "emulated"

  // Each returns 0, or the cudaError_t of the launch.
  int (*embed)(StreamHandle, const EmbedArgs&);
  int (*rms_norm)(StreamHandle, const NormArgs&);
  int (*rope_append)(StreamHandle, const RopeAppendArgs&);
  int (*copy_rows)(StreamHandle, const CopyRowsArgs&);
  int (*swiglu)(StreamHandle, const SwigluArgs&);
  int (*argmax)(StreamHandle, const ArgmaxArgs&);

  int (*attend_rows)(StreamHandle, const RowsAttendArgs&);
  int (*merge_parts)(StreamHandle, const MergeArgs&);
  int (*attend_prefill)(StreamHandle, const PrefillArgs&);

  int (*pq_encode)(StreamHandle, const PqEncodeArgs&);
  int (*pq_decode)(StreamHandle, const PqDecodeArgs&);
  /// Tensor-core kernel; needs pq_shared_bytes(args) of shared memory a block.
  int (*attend_pq)(StreamHandle, const PqAttendArgs&);
  /// The readable one: a table of q.centroid for each query head, as in the paper.
  int (*attend_pq_table)(StreamHandle, const PqAttendArgs&);

  int (*turn_queries)(StreamHandle, const TurnQueriesArgs&);
  int (*attend_coded)(StreamHandle, const CodedAttendArgs&);
  int (*coded_rows)(StreamHandle, const CodedRowsArgs&);
  int (*coded_encode)(StreamHandle, const CodedEncodeArgs&);
  int (*coded_decode)(StreamHandle, const CodedDecodeArgs&);

  int (*group_encode)(StreamHandle, const GroupEncodeArgs&);
  int (*group_decode)(StreamHandle, const GroupDecodeArgs&);
};

/// Kernels run on the host by simt/; always there.
const DeviceOps& emulated_ops();
/// Kernels compiled by nvcc; only in builds with MILLION_CUDA.
const DeviceOps& native_ops();

}  // namespace million::cuda
