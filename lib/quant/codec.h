// SPDX-License-Identifier: Apache-2.0
// The contract of a method. A Codec holds what is shared by a whole model for one kind (keys or
// values): parameters, codebooks, thresholds. A CodeStore holds the codes of one layer.
#pragma once

#include "kernels/ops.h"
#include "lib/core/tensor.h"
#include "lib/quant/calibration.h"
#include "lib/quant/kv_types.h"
#include "lib/quant/options.h"

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace million {

/// Bytes allocated for the stored tokens of one layer and kind.
struct StoreBytes {
  uint64_t codes = 0;     ///< packed codes or exact values
  uint64_t scales = 0;    ///< scales, zero points, norms
  uint64_t outliers = 0;  ///< sparse values with their indices and row pointers
  uint64_t total() const { return codes + scales + outliers; }
};

/// Codes and map of one unit of KV heads that share a basis, as attend_coded reads them; the
/// members have the meaning of CodedAttendArgs.
struct CodedUnit {
  CodedSide side{};
  int span = 0, rank = 0;
  const int8_t* basis = nullptr;
  const float* basis_scale = nullptr;
  int n_places = 0;
  const float* places = nullptr;
  const float* mean = nullptr;
  /// How rows become y: E as `basis` is laid out, and (may be nullptr) what is subtracted from y by
  /// the place in the frame, [places][rank] halves.
  const int8_t* encode = nullptr;
  const float* encode_scale = nullptr;
  const uint16_t* coded_mean = nullptr;
};

/// Scalar codes as attend_groups reads them: `n` tokens that lie together, 0: there are none.
struct GroupCodes {
  GroupSide side;
  int n = 0;
};

/// Codes of one layer and kind, all KV heads, tokens in order of arrival.
class CodeStore {
 public:
  virtual ~CodeStore() = default;
  virtual int n_tokens() const = 0;
  /// Appends rows x [n][n_kv_heads][head_dim] f32 that lie in the codec's frame; `first_token` is
  /// the index t of the first row in the sequence (sinks count). The result is the same whatever
  /// the split of a run into calls, provided each call but the last appends a multiple of
  /// Codec::block_tokens(); a shorter tail is allowed only as the last append before clear().
  virtual void append(const float* x, int n, int64_t first_token) = 0;
  /// Decodes tokens [begin, end) (indices of this store) of one KV head to out [end -
  /// begin][head_dim]. Safe to call from several threads at once.
  virtual void decode(int head, int begin, int end, float* out) const = 0;
  virtual StoreBytes bytes() const = 0;
  virtual void clear() = 0;
  /// A copy that goes on for itself.
  virtual std::unique_ptr<CodeStore> clone() const = 0;
  /// Codes in a basis (pq_basis.h) can be attended to in its coordinates, `coded_rank()` of them,
  /// without going back to rows of a head: q.x_t = to_coded(q).y_t, and a sum of values is
  /// from_coded(sum of y_t). 0: not possible.
  virtual int coded_rank() const { return 0; }
  /// y [end - begin][coded_rank] of tokens [begin, end) for `head`, their mean included.
  virtual void decode_coded(int /*head*/, int /*begin*/, int /*end*/, float* /*y*/) const {}
  virtual void to_coded(int /*head*/, const float* /*rows*/, int /*n*/, float* /*y*/) const {}
  virtual void from_coded(int /*head*/, const float* /*y*/, int /*n*/, float* /*rows*/) const {}
  /// Units of KV heads that attend_coded can read; 0: it cannot.
  virtual int coded_units() const { return 0; }
  /// Valid until the next append.
  virtual CodedUnit coded_unit(int /*unit*/) const { return {}; }
  /// The codes as attend_pq reads them, when this store is PQ in a fused layout; nullptr blocks
  /// otherwise. The centroids are written to `centroids` as f32, or (nullptr) left out. Valid until
  /// the next append.
  virtual PqSide pq_side(int /*head*/, AlignedVector<float>* /*centroids*/) const {
    return PqSide{0, 0, nullptr, nullptr};
  }
  /// Rows as halves, where this store keeps such: row `begin` of a head, *n gets the number of rows
  /// from there on that lie together. nullptr: it does not.
  virtual const uint16_t* exact_rows(int /*head*/, int /*begin*/, int* /*n*/) const {
    return nullptr;
  }
  /// The scalar codes of one head from token `begin` on, where this store keeps such. Valid until
  /// the next append.
  virtual GroupCodes group_codes(int /*head*/, int /*begin*/) const { return {}; }
  /// What group_codes() will look like, before there are any: only layout, bits, group, offset and
  /// zeros are set. bits = 0: this store keeps none.
  virtual GroupSide group_shape() const { return {}; }
  /// Channels of a Walsh-Hadamard transform that group_codes are turned by; 0: they are not.
  virtual int group_rotation() const { return 0; }
};

/// Tokens behind the sinks that a method keeps exact by a rule of its own paper; such a method
/// takes no `window`. Coded tokens (counted behind the sinks) that the query at index i behind the
/// sinks sees:
///   kNone   the cache's rule (sinks, window, see lib/cache/README.md)
///   kFlush  floor(i / length) * length: the residual is encoded whole when it holds `length`
///   kSlide  max(0, i - length): beyond `length` the oldest token is encoded at every step
struct ResidualRule {
  enum class Type { kNone, kFlush, kSlide } type = Type::kNone;
  int length = 0;
};

class Codec {
 public:
  virtual ~Codec() = default;

  /// Canonical text of this codec, e.g. "pq:M=32,nbits=8,scope=head"; parses back to the same.
  virtual std::string spec() const = 0;
  /// Where keys are stored; values ignore it.
  virtual KeyFrame frame() const { return {}; }
  /// Tokens that are encoded together (a group of per-channel scales); 1 when rows are independent.
  virtual int block_tokens() const { return 1; }
  virtual ResidualRule residual() const { return {}; }
  /// True when appending at a flush (ResidualRule::kFlush) changes the codes of older tokens, so
  /// that queries before and after it must see different codes.
  virtual bool rewrites_codes() const { return false; }
  /// Tells the codec, before train() or load(), how many recent tokens the cache keeps exact; it
  /// may change what wants_gradients() says.
  virtual void expect_window(int /*tokens*/) {}
  /// True when train() learns more from gradients of the loss (CalibrationSet::k_fisher ...).
  virtual bool wants_gradients() const { return false; }
  /// True when train() or load() must run before make_store().
  virtual bool needs_training() const { return false; }
  /// Learns from calibration data of the whole model; the first `sinks` positions of each window
  /// are left out. Deterministic for equal input whatever the thread count. Error(kBadInput) when
  /// there are too few rows (says how many are needed) or a row holds NaN or Inf (names layer,
  /// head, token).
  virtual void train(const CalibrationSet& data, int sinks) = 0;
  virtual TensorBag save() const { return {}; }
  virtual void load(const TensorBag& bag) = 0;
  /// Payload bits per value, metadata as the paper counts it; see bytes() of a store for the truth.
  virtual double nominal_bits() const = 0;
  /// Bytes of codebooks, tables and thresholds that the whole model shares.
  virtual uint64_t shared_bytes() const { return 0; }
  virtual std::unique_ptr<CodeStore> make_store(int layer) const = 0;
};

/// One line of the method table.
struct CodecInfo {
  const char* name;
  const char* summary;  ///< one line for --list-codecs
  const char* source;   ///< paper or file
  std::span<const OptionInfo> options;
  std::unique_ptr<Codec> (*make)(const Options& options, KvKind kind, const KvGeometry& geometry);
};

/// The table; everything that loops over methods loops over this.
std::span<const CodecInfo> codec_table();
/// Parses "name" or "name:key=value,..." and makes the codec for one kind.
/// Error(kUsage) with the list of known names or keys.
std::unique_ptr<Codec> make_codec(std::string_view spec, KvKind kind, const KvGeometry& geometry);

/// A cache method: codecs for keys and values plus what stays exact. Text form
/// "pq:M=32,nbits=8,sinks=4,window=128": `sinks` and `window` are taken from any codec's options,
/// the rest goes to the codec. Keys and values may differ: parse(k_text, v_text).
struct MethodSpec {
  std::string key_codec = "fp16";  ///< canonical codec spec without sinks and window
  std::string value_codec = "fp16";
  int sinks = 0;   ///< first tokens kept exact
  int window = 0;  ///< most recent tokens kept exact

  static MethodSpec parse(std::string_view text);
  static MethodSpec parse(std::string_view key_text, std::string_view value_text);
  /// One text when both codecs agree, else "K | V"; round-trips through parse of the parts.
  std::string to_string() const;
  friend bool operator==(const MethodSpec&, const MethodSpec&) = default;
};

}  // namespace million
