// SPDX-License-Identifier: Apache-2.0
// Uniform scalar quantization, the family of baselines: x ~ (q - bias) * scale + zero with q of 1
// to 8 bits. Formulas of KIVI (arXiv 2402.02750, section 3) and of the common symmetric form.
//
//   axis=token            a group is `group` neighbouring channels of one token and head
//   axis=channel          a group is `group` consecutive tokens of one channel (KIVI's keys)
//   axis=channel,group=0  one range per channel for the whole model run, from calibration
//
// Groups are coded in group_store.h.
#include "kernels/half.h"
#include "lib/core/error.h"
#include "lib/core/parallel.h"
#include "lib/quant/bitpack.h"
#include "lib/quant/block_array.h"
#include "lib/quant/codec.h"
#include "lib/quant/codec_identity.h"
#include "lib/quant/group_store.h"

#include <algorithm>
#include <cmath>

namespace million {
namespace {

constexpr int64_t kMinStaticRows = 32;  ///< rows below which a static range is noise

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
      uint8_t codes[kMaxGroupHeadDim];
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
    uint8_t codes[kMaxGroupHeadDim];
    const float *scale = scale_ + head * p_.head_dim, *zero = zero_ + head * p_.head_dim;
    for (int t = begin; t < end; ++t, out += p_.head_dim) {
      unpack_bits(codes_.at(t) + head * row_bytes_, p_.head_dim, p_.bits, codes);
      for (int i = 0; i < p_.head_dim; ++i) out[i] = decode_value(codes[i], scale[i], zero[i], p_);
    }
  }

  StoreBytes bytes() const override { return {codes_.bytes(), 0, 0}; }
  void clear() override { codes_.clear(); }
  std::unique_ptr<CodeStore> clone() const override { return std::make_unique<StaticStore>(*this); }

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
    MILLION_REQUIRE(d <= kMaxGroupHeadDim, ErrorCode::kBadInput,
                    "codec uniform: head_dim {} is above {}", d, kMaxGroupHeadDim);
    p_.n_heads = geometry.n_kv_heads;
    p_.head_dim = d;
    p_.bits = options.integer("bits", 1, 8);
    p_.symmetric = options.integer("symmetric", 0, 1) == 1;
    MILLION_REQUIRE(!p_.symmetric || p_.bits >= 2, ErrorCode::kUsage,
                    "codec uniform: bits={} with symmetric=1 has one level, zero; give bits=2 or "
                    "more, or symmetric=0",
                    p_.bits);
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
      const GroupRange r = fit_range(low, high, p_);
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
    {"bits", "4", "1..8", "bits of a code; symmetric: from 2", true},
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
