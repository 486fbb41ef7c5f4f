// SPDX-License-Identifier: Apache-2.0
// Uniform scalar quantization, the family of baselines: x ~ (q - bias) * scale + zero with q of 2
// to 8 bits. Formulas of KIVI (arXiv 2402.02750, section 3) and of the common symmetric form.
//
//   axis=token            a group is `group` neighbouring channels of one token and head
//   axis=channel          a group is `group` consecutive tokens of one channel (KIVI's keys)
//   axis=channel,group=0  one range per channel for the whole model run, from calibration
//
// Scale and zero are halves; codes are chosen with the rounded scale, so the error of rounding it
// is part of the quantizer and not added on top.
#include "kernels/half.h"
#include "lib/core/error.h"
#include "lib/core/parallel.h"
#include "lib/quant/bitpack.h"
#include "lib/quant/block_array.h"
#include "lib/quant/codec.h"
#include "lib/quant/codec_identity.h"

#include <algorithm>
#include <cmath>

namespace million {
namespace {

constexpr int kRowGrain = 32;           ///< tokens a thread takes at least
constexpr int64_t kMinStaticRows = 32;  ///< rows below which a static range is noise
constexpr int kMaxHeadDim = 1024;

struct UniformParams {
  int bits = 4, group = 64;
  bool symmetric = false;
  int n_heads = 0, head_dim = 0;

  int top() const { return symmetric ? (1 << bits) - 2 : (1 << bits) - 1; }  ///< highest code
  int bias() const { return symmetric ? (1 << (bits - 1)) - 1 : 0; }
  int scale_halves() const { return symmetric ? 1 : 2; }
};

struct Range {
  uint16_t scale = 0, zero = 0;  ///< f16
};

uint16_t finite_half(float x) { return float_to_half(std::clamp(x, -65504.0f, 65504.0f)); }

Range fit_range(float low, float high, const UniformParams& p) {
  if (p.symmetric)
    return {finite_half(std::max(std::abs(low), std::abs(high)) / static_cast<float>(p.bias())), 0};
  return {finite_half((high - low) / static_cast<float>(p.top())), finite_half(low)};
}

/// Code of x; scale 0 (a constant group) gives the code that decodes to zero. NaN gives code 0.
uint8_t encode_value(float x, float scale, float zero, const UniformParams& p) {
  const float low = static_cast<float>(-p.bias()), high = static_cast<float>(p.top() - p.bias());
  const float q = scale > 0.0f ? (x - zero) / scale : 0.0f;
  const float clamped = std::min(std::max(low, q), high);
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to even without a libm call
  return static_cast<uint8_t>(static_cast<int>((clamped + kRound) - kRound) + p.bias());
}

float decode_value(uint8_t code, float scale, float zero, const UniformParams& p) {
  return static_cast<float>(code - p.bias()) * scale + zero;
}

/// Groups of channels within a token.
class TokenStore final : public CodeStore {
 public:
  explicit TokenStore(const UniformParams& p)
      : p_(p),
        row_bytes_(packed_bytes(p.head_dim, p.bits)),
        head_halves_(static_cast<int64_t>(p.head_dim / p.group) * p.scale_halves()),
        codes_(p.n_heads * row_bytes_, kTokensPerBlock),
        scales_(p.n_heads * head_halves_, kTokensPerBlock) {}

  int n_tokens() const override { return static_cast<int>(codes_.size()); }

  void append(const float* x, int n, int64_t /*first_token*/) override {
    const int64_t first = codes_.size();
    codes_.grow(n);
    scales_.grow(n);
    parallel_ranges(n, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        for (int h = 0; h < p_.n_heads; ++h)
          encode_row(x + (t * p_.n_heads + h) * p_.head_dim, codes_.at(first + t) + h * row_bytes_,
                     scales_.at(first + t) + h * head_halves_);
    });
  }

  void decode(int head, int begin, int end, float* out) const override {
    uint8_t codes[kMaxHeadDim];
    for (int t = begin; t < end; ++t) {
      unpack_bits(codes_.at(t) + head * row_bytes_, p_.head_dim, p_.bits, codes);
      const uint16_t* scales = scales_.at(t) + head * head_halves_;
      for (int c = 0; c < p_.head_dim; c += p_.group, scales += p_.scale_halves()) {
        const float scale = half_to_float(scales[0]);
        const float zero = p_.symmetric ? 0.0f : half_to_float(scales[1]);
        for (int i = c; i < c + p_.group; ++i) *out++ = decode_value(codes[i], scale, zero, p_);
      }
    }
  }

  StoreBytes bytes() const override { return {codes_.bytes(), scales_.bytes(), 0}; }
  void clear() override { codes_.clear(), scales_.clear(); }

 private:
  void encode_row(const float* x, uint8_t* packed, uint16_t* scales) const {
    uint8_t codes[kMaxHeadDim];
    for (int c = 0; c < p_.head_dim; c += p_.group, scales += p_.scale_halves()) {
      const auto [low, high] = std::minmax_element(x + c, x + c + p_.group);
      const Range r = fit_range(*low, *high, p_);
      scales[0] = r.scale;
      if (!p_.symmetric) scales[1] = r.zero;
      const float scale = half_to_float(r.scale), zero = half_to_float(r.zero);
      for (int i = c; i < c + p_.group; ++i) codes[i] = encode_value(x[i], scale, zero, p_);
    }
    pack_bits(codes, p_.head_dim, p_.bits, packed);
  }

  UniformParams p_;
  int64_t row_bytes_, head_halves_;
  BlockArray<uint8_t> codes_;    ///< [n_tokens][n_heads][row_bytes]
  BlockArray<uint16_t> scales_;  ///< [n_tokens][n_heads][groups][scale, zero]
};

/// Groups of tokens within a channel.
class ChannelStore final : public CodeStore {
 public:
  explicit ChannelStore(const UniformParams& p)
      : p_(p),
        run_bytes_(packed_bytes(p.group, p.bits)),
        codes_(p.n_heads * p.head_dim * run_bytes_, std::max(1, kTokensPerBlock / p.group)),
        scales_(static_cast<int64_t>(p.n_heads) * p.head_dim * p.scale_halves(),
                std::max(1, kTokensPerBlock / p.group)) {}

  int n_tokens() const override { return n_tokens_; }

  void append(const float* x, int n, int64_t /*first_token*/) override {
    MILLION_ASSERT(n_tokens_ % p_.group == 0);  // a short group may only be the last
    const int64_t first = codes_.size(), n_groups = (n + p_.group - 1) / p_.group;
    codes_.grow(n_groups);
    scales_.grow(n_groups);
    const int row = p_.n_heads * p_.head_dim;
    parallel_ranges(n_groups * p_.n_heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t g = unit / p_.n_heads, h = unit % p_.n_heads;
        const int count = static_cast<int>(std::min<int64_t>(p_.group, n - g * p_.group));
        encode_group(x + g * p_.group * row + h * p_.head_dim, count,
                     codes_.at(first + g) + h * p_.head_dim * run_bytes_,
                     scales_.at(first + g) + h * p_.head_dim * p_.scale_halves());
      }
    });
    n_tokens_ += n;
  }

  void decode(int head, int begin, int end, float* out) const override {
    std::vector<uint8_t> codes(p_.group);
    for (int t = begin; t < end;) {
      const int g = t / p_.group, at = t % p_.group, n = std::min(end - t, p_.group - at);
      const uint8_t* packed = codes_.at(g) + head * p_.head_dim * run_bytes_;
      const uint16_t* scales = scales_.at(g) + head * p_.head_dim * p_.scale_halves();
      for (int c = 0; c < p_.head_dim; ++c, packed += run_bytes_, scales += p_.scale_halves()) {
        const float scale = half_to_float(scales[0]);
        const float zero = p_.symmetric ? 0.0f : half_to_float(scales[1]);
        unpack_bits(packed, at + n, p_.bits, codes.data());
        for (int i = 0; i < n; ++i)
          out[static_cast<int64_t>(t - begin + i) * p_.head_dim + c] =
              decode_value(codes[at + i], scale, zero, p_);
      }
      t += n;
    }
  }

  StoreBytes bytes() const override { return {codes_.bytes(), scales_.bytes(), 0}; }
  void clear() override { codes_.clear(), scales_.clear(), n_tokens_ = 0; }

 private:
  /// x points at the head's first channel of the group's first token.
  void encode_group(const float* x, int n, uint8_t* packed, uint16_t* scales) const {
    const int64_t row = static_cast<int64_t>(p_.n_heads) * p_.head_dim;
    std::vector<float> values(n);
    std::vector<uint8_t> codes(n);
    for (int c = 0; c < p_.head_dim; ++c, packed += run_bytes_, scales += p_.scale_halves()) {
      for (int i = 0; i < n; ++i) values[i] = x[i * row + c];
      const auto [low, high] = std::minmax_element(values.begin(), values.end());
      const Range r = fit_range(*low, *high, p_);
      scales[0] = r.scale;
      if (!p_.symmetric) scales[1] = r.zero;
      const float scale = half_to_float(r.scale), zero = half_to_float(r.zero);
      for (int i = 0; i < n; ++i) codes[i] = encode_value(values[i], scale, zero, p_);
      pack_bits(codes.data(), n, p_.bits, packed);
    }
  }

  UniformParams p_;
  int64_t run_bytes_;
  BlockArray<uint8_t> codes_;    ///< [n_groups][n_heads][head_dim][run_bytes]
  BlockArray<uint16_t> scales_;  ///< [n_groups][n_heads][head_dim][scale, zero]
  int n_tokens_ = 0;
};

/// Calibrated ranges of every channel, [n_layers][n_heads][head_dim]; values that f16 can hold.
struct StaticRanges {
  std::vector<float> scale, zero;
};

/// One static range per channel.
class StaticStore final : public CodeStore {
 public:
  StaticStore(const UniformParams& p, std::shared_ptr<const StaticRanges> ranges, int layer)
      : p_(p),
        ranges_(std::move(ranges)),
        scale_(ranges_->scale.data() + static_cast<int64_t>(layer) * p.n_heads * p.head_dim),
        zero_(ranges_->zero.data() + static_cast<int64_t>(layer) * p.n_heads * p.head_dim),
        row_bytes_(packed_bytes(p.head_dim, p.bits)),
        codes_(p.n_heads * row_bytes_, kTokensPerBlock) {}

  int n_tokens() const override { return static_cast<int>(codes_.size()); }

  void append(const float* x, int n, int64_t /*first_token*/) override {
    const int64_t first = codes_.size();
    const int d = p_.head_dim;
    codes_.grow(n);
    parallel_ranges(n, kRowGrain, [&](int64_t begin, int64_t end) {
      uint8_t codes[kMaxHeadDim];
      for (int64_t t = begin; t < end; ++t)
        for (int h = 0; h < p_.n_heads; ++h) {
          const float* row = x + (t * p_.n_heads + h) * d;
          for (int i = 0; i < d; ++i)
            codes[i] = encode_value(row[i], scale_[h * d + i], zero_[h * d + i], p_);
          pack_bits(codes, d, p_.bits, codes_.at(first + t) + h * row_bytes_);
        }
    });
  }

  void decode(int head, int begin, int end, float* out) const override {
    uint8_t codes[kMaxHeadDim];
    const float *scale = scale_ + head * p_.head_dim, *zero = zero_ + head * p_.head_dim;
    for (int t = begin; t < end; ++t, out += p_.head_dim) {
      unpack_bits(codes_.at(t) + head * row_bytes_, p_.head_dim, p_.bits, codes);
      for (int i = 0; i < p_.head_dim; ++i) out[i] = decode_value(codes[i], scale[i], zero[i], p_);
    }
  }

  StoreBytes bytes() const override { return {codes_.bytes(), 0, 0}; }
  void clear() override { codes_.clear(); }

 private:
  UniformParams p_;
  std::shared_ptr<const StaticRanges> ranges_;
  const float *scale_, *zero_;  ///< [n_heads][head_dim] of this layer
  int64_t row_bytes_;
  BlockArray<uint8_t> codes_;  ///< [n_tokens][n_heads][row_bytes]
};

class UniformCodec final : public Codec {
 public:
  UniformCodec(const Options& options, KvKind kind, const KvGeometry& geometry)
      : id_("uniform", options, kind, geometry) {
    const int d = geometry.head_dim;
    MILLION_REQUIRE(d <= kMaxHeadDim, ErrorCode::kBadInput,
                    "codec uniform: head_dim {} is above {}", d, kMaxHeadDim);
    p_.n_heads = geometry.n_kv_heads;
    p_.head_dim = d;
    p_.bits = options.integer("bits", 2, 8);
    p_.symmetric = options.integer("symmetric", 0, 1) == 1;
    by_channel_ = options.word("axis", "token|channel") == "channel";
    if (options.text("group") == "auto") {
      p_.group = by_channel_ || d % 64 == 0 ? 64 : d;
    } else {
      p_.group = options.integer("group", by_channel_ ? 0 : 1, by_channel_ ? 4096 : d);
    }
    MILLION_REQUIRE(by_channel_ || d % p_.group == 0, ErrorCode::kUsage,
                    "codec uniform: group={} does not divide head_dim {}; give a divisor, as "
                    "group={}",
                    p_.group, d, d);
    if (options.word("rope", "post|pre") == "pre") frame_.type = KeyFrame::Type::kPreRope;
  }

  std::string spec() const override { return id_.spec(); }
  KeyFrame frame() const override { return frame_; }
  int block_tokens() const override { return by_channel_ && p_.group > 0 ? p_.group : 1; }
  bool needs_training() const override { return p_.group == 0; }
  void train(const CalibrationSet& data, int sinks) override;
  TensorBag save() const override;
  void load(const TensorBag& bag) override;

  double nominal_bits() const override {
    return p_.bits + (p_.group > 0 ? 16.0 * p_.scale_halves() / p_.group : 0.0);
  }
  uint64_t shared_bytes() const override {
    return ranges_ ? (ranges_->scale.capacity() + ranges_->zero.capacity()) * sizeof(float) : 0;
  }

  std::unique_ptr<CodeStore> make_store(int layer) const override {
    if (!by_channel_) return std::make_unique<TokenStore>(p_);
    if (p_.group > 0) return std::make_unique<ChannelStore>(p_);
    MILLION_ASSERT(ranges_ && layer >= 0 && layer < id_.geometry().n_layers);
    return std::make_unique<StaticStore>(p_, ranges_, layer);
  }

 private:
  std::vector<std::size_t> tensor_shape() const {
    return {static_cast<std::size_t>(id_.geometry().n_layers), static_cast<std::size_t>(p_.n_heads),
            static_cast<std::size_t>(p_.head_dim)};
  }

  CodecIdentity id_;
  UniformParams p_;
  bool by_channel_ = false;
  KeyFrame frame_;
  std::shared_ptr<const StaticRanges> ranges_;
};

void UniformCodec::train(const CalibrationSet& data, int sinks) {
  id_.trained_on(data, sinks);
  if (!needs_training()) return;
  const KvGeometry& g = id_.geometry();
  const int d = g.head_dim;
  auto ranges = std::make_shared<StaticRanges>();
  ranges->scale.resize(static_cast<size_t>(g.n_layers) * g.row());
  ranges->zero.resize(ranges->scale.size());
  parallel_for(static_cast<int64_t>(g.n_layers) * g.n_kv_heads, [&](int64_t unit) {
    const int layer = static_cast<int>(unit / g.n_kv_heads);
    const int head = static_cast<int>(unit % g.n_kv_heads);
    const auto rows = calibration_rows(data, id_.kind(), layer, head, frame_, sinks);
    const int64_t n = static_cast<int64_t>(rows.size()) / d;
    MILLION_REQUIRE(n >= kMinStaticRows, ErrorCode::kBadInput,
                    "{}: {} calibration rows beyond the sinks, needs at least {}; give a longer "
                    "calibration text",
                    id_.spec(), n, kMinStaticRows);
    for (int i = 0; i < d; ++i) {
      float low = rows[i], high = rows[i];
      for (int64_t t = 1; t < n; ++t) {
        low = std::min(low, rows[t * d + i]);
        high = std::max(high, rows[t * d + i]);
      }
      const Range r = fit_range(low, high, p_);
      ranges->scale[unit * d + i] = half_to_float(r.scale);
      ranges->zero[unit * d + i] = half_to_float(r.zero);
    }
  });
  ranges_ = std::move(ranges);
}

TensorBag UniformCodec::save() const {
  TensorBag bag{{}, id_.attributes()};
  if (ranges_) {
    bag.tensors["scale"] = {tensor_shape(), ranges_->scale};
    bag.tensors["zero"] = {tensor_shape(), ranges_->zero};
  }
  return bag;
}

void UniformCodec::load(const TensorBag& bag) {
  id_.loaded_from(bag);
  if (!needs_training()) return;
  auto ranges = std::make_shared<StaticRanges>();
  ranges->scale = require_tensor(bag, "scale", tensor_shape()).data;
  ranges->zero = require_tensor(bag, "zero", tensor_shape()).data;
  ranges_ = std::move(ranges);
}

constexpr OptionInfo kOptions[] = {
    {"bits", "4", "2..8", "bits of a code", true},
    {"axis", "token", "token|channel", "direction of a group", true},
    {"group", "auto", "auto|0..4096",
     "values of a group; auto = 64 (token: head_dim if 64 does not divide it); channel: 0 = static "
     "ranges from calibration"},
    {"symmetric", "0", "0|1", "1 = no zero point"},
    {"rope", "post", "post|pre", "keys are stored after or before RoPE"},
};

std::unique_ptr<Codec> make_uniform(const Options& options, KvKind kind,
                                    const KvGeometry& geometry) {
  return std::make_unique<UniformCodec>(options, kind, geometry);
}

}  // namespace

CodecInfo uniform_codec() {
  return {"uniform", "round to nearest in groups of a token or of a channel",
          "KIVI, arXiv 2402.02750 (group quantizer)", kOptions, make_uniform};
}

}  // namespace million
