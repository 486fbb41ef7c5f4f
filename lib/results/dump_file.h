// SPDX-License-Identifier: Apache-2.0
// The dump of a real model's cache: keys before and after RoPE, values, queries, attention outputs
// and tokens of one text, HDF5, readable by h5py. Format "million-kv-dump":
//
//   attributes  format, version, model, model_sha256, text_name, text_sha256 (of the tokens),
//               tokenizer, n_layers, n_heads, n_kv_heads, head_dim, kv_heads (which are stored),
//               rope (text), rope_params (JSON), rope_base, context (window length), dtype, seed,
//               commit
//   /tokens     int32 [n]
//   /positions  int32 [n]   position inside the window; the cache starts empty with each window
//   /layers/NN/{k_pre,k,v,q,attn_out}  f16 [head][token][head_dim], axes named
//
// The writer fills PATH.part and renames it when everything is there: a killed run leaves no
// PATH. Trusted files only (hdf5_file.h); the reader checks magic, version and all sizes first.
#pragma once

#include "lib/quant/calibration.h"
#include "lib/quant/kv_types.h"

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace million {

/// What one token leaves in a layer. Query-side tensors have n_heads rows, the others n_kv_heads.
enum class DumpTensor { kKeyPre, kKey, kValue, kQuery, kAttnOut };
inline constexpr int kDumpTensors = 5;
/// "k_pre", "k", "v", "q", "attn_out"
const char* dump_tensor_name(DumpTensor t);
/// Error(kUsage) with the list of names.
DumpTensor parse_dump_tensor(std::string_view name);
inline bool is_query_side(DumpTensor t) {
  return t == DumpTensor::kQuery || t == DumpTensor::kAttnOut;
}

/// Everything about a dump but its rows.
struct DumpMeta {
  KvGeometry geometry;  ///< of the model, whatever part is stored
  std::string model, model_sha256, tokenizer;
  std::string compute;  ///< arithmetic of the run that produced the rows, e.g. "f32"
  std::string text_name;
  std::string text_sha256;  ///< tokens_sha256() of `tokens`
  int context = 0;          ///< window length; row t stands at position t % context
  uint64_t seed = 0;
  std::vector<int32_t> tokens;  ///< [n]; empty when left out (then n_tokens counts)
  int64_t n_tokens = 0;
  std::vector<DumpTensor> tensors;  ///< stored tensors, in enum order
  std::vector<int> layers;          ///< stored layers, ascending
  std::vector<int> kv_heads;        ///< stored KV heads, ascending; query heads are their groups

  /// Model heads that a tensor stores, in order.
  std::vector<int> heads(DumpTensor t) const;
  /// Bytes of all rows.
  uint64_t payload_bytes() const;
};

/// SHA-256 of the token ids as little-endian int32.
std::string tokens_sha256(const std::vector<int32_t>& tokens);

class DumpWriter {
 public:
  /// Checks free space, creates PATH.part and the layout. Error(kNoResources), Error(kBadInput).
  DumpWriter(const std::filesystem::path& path, DumpMeta meta);
  /// Deletes the .part unless finish() ran.
  ~DumpWriter();
  DumpWriter(const DumpWriter&) = delete;
  DumpWriter& operator=(const DumpWriter&) = delete;

  const DumpMeta& meta() const { return meta_; }
  bool wants(int layer, DumpTensor t) const;
  /// Stores `n` tokens of all the model's heads of one tensor: rows [n][heads][head_dim] f32, in
  /// token order per layer and tensor (first_token = what add() has stored so far). Ignores tensors
  /// and layers that are not selected. Values above 65504 become Inf as f16: Error(kFailed) names
  /// them. Written through and checked before the call returns.
  void add(int layer, DumpTensor t, int64_t first_token, int n, const float* rows);
  /// Closes, syncs, renames. Error(kFailed) when rows are missing, Error(kNoResources) on a full
  /// disk.
  void finish();

 private:
  struct Impl;
  DumpMeta meta_;
  std::unique_ptr<Impl> impl_;
};

class DumpReader {
 public:
  /// Error(kBadInput) on anything but a complete dump of a known version.
  explicit DumpReader(const std::filesystem::path& path);
  ~DumpReader();
  DumpReader(DumpReader&&) noexcept;

  const DumpMeta& meta() const;
  const std::filesystem::path& path() const;
  bool has(int layer, DumpTensor t) const;
  /// Tokens [begin, end) of one of the model's heads as f32 [end - begin][head_dim]. Error(kUsage)
  /// when the dump does not hold that tensor, layer or head; Error(kBadInput) on a damaged chunk.
  /// Not thread-safe (HDF5 is not).
  AlignedVector<float> read(int layer, DumpTensor t, int head, int64_t begin, int64_t end) const;
  /// The same bits as stored.
  AlignedVector<uint16_t> read_half(int layer, DumpTensor t, int head, int64_t begin,
                                    int64_t end) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Calibration data from a dump that holds k_pre, v and q of all layers and heads; Error(kBadInput)
/// says what is missing. Rows are the dump's own f16 bits.
CalibrationSet to_calibration_set(const DumpReader& dump);

}  // namespace million
