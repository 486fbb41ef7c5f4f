// SPDX-License-Identifier: Apache-2.0
// Groups of values with one range each, x ~ (q - bias) * scale + zero with q of 1 to 8 bits: the
// quantizer and the two stores that uniform, kivi and quanto share. Formulas of [KIVI] section 3
// and of the common symmetric form.
//
// Scale and zero are halves; codes are chosen with the rounded scale, so the error of rounding it
// is part of the quantizer and not added on top.
#pragma once

#include "lib/quant/block_array.h"
#include "lib/quant/codec.h"

#include <cstdint>

namespace million {

inline constexpr int kRowGrain = 32;  ///< tokens a thread takes at least
inline constexpr int kMaxGroupHeadDim = 1024;

struct UniformParams {
  int bits = 4, group = 64;
  bool symmetric = false;
  int n_heads = 0, head_dim = 0;

  int top() const { return symmetric ? (1 << bits) - 2 : (1 << bits) - 1; }  ///< highest code
  int bias() const { return symmetric ? (1 << (bits - 1)) - 1 : 0; }
  int scale_halves() const { return symmetric ? 1 : 2; }
};

/// Scale and zero of one group as f16 bits.
struct GroupRange {
  uint16_t scale = 0, zero = 0;
};
/// The range of a group whose values lie in [low, high]; clamped to what a half can hold.
GroupRange fit_range(float low, float high, const UniformParams& p);

/// Code of x; scale 0 (a constant group) gives the code that decodes to zero. NaN gives code 0.
uint8_t encode_value(float x, float scale, float zero, const UniformParams& p);

inline float decode_value(uint8_t code, float scale, float zero, const UniformParams& p) {
  return static_cast<float>(code - p.bias()) * scale + zero;
}

/// Groups of `group` neighbouring channels within a token and head.
class TokenStore : public CodeStore {
 public:
  explicit TokenStore(const UniformParams& p);

  int n_tokens() const override { return static_cast<int>(codes_.size()); }
  void append(const float* x, int n, int64_t first_token) override;
  void decode(int head, int begin, int end, float* out) const override;
  GroupCodes group_codes(int head, int begin) const override;
  GroupSide group_shape() const override;
  StoreBytes bytes() const override { return {codes_.bytes(), scales_.bytes(), 0}; }
  void clear() override { codes_.clear(), scales_.clear(); }
  std::unique_ptr<CodeStore> clone() const override { return std::make_unique<TokenStore>(*this); }

 protected:
  /// Decodes tokens [0, n) to halves, the type of a cache's tensors, and quantizes those again, in
  /// place.
  void requantize(int64_t n);

 private:
  void encode_row(const float* x, uint8_t* packed, uint16_t* scales) const;

  UniformParams p_;
  int64_t row_bytes_, head_halves_;
  BlockArray<uint8_t> codes_;    ///< [n_tokens][n_heads][row_bytes]
  BlockArray<uint16_t> scales_;  ///< [n_tokens][n_heads][groups][scale, zero]
};

/// Groups of `group` consecutive tokens within a channel.
class ChannelStore final : public CodeStore {
 public:
  explicit ChannelStore(const UniformParams& p);

  int n_tokens() const override { return n_tokens_; }
  void append(const float* x, int n, int64_t first_token) override;
  void decode(int head, int begin, int end, float* out) const override;
  GroupCodes group_codes(int head, int begin) const override;
  GroupSide group_shape() const override;
  StoreBytes bytes() const override { return {codes_.bytes(), scales_.bytes(), 0}; }
  void clear() override { codes_.clear(), scales_.clear(), n_tokens_ = 0; }
  std::unique_ptr<CodeStore> clone() const override {
    return std::make_unique<ChannelStore>(*this);
  }

 private:
  /// x points at the head's first channel of the group's first token.
  void encode_group(const float* x, int n, uint8_t* packed, uint16_t* scales) const;

  UniformParams p_;
  int64_t run_bytes_;
  BlockArray<uint8_t> codes_;    ///< [n_groups][n_heads][head_dim][run_bytes]
  BlockArray<uint16_t> scales_;  ///< [n_groups][n_heads][head_dim][scale, zero]
  int n_tokens_ = 0;
};

}  // namespace million
