// SPDX-License-Identifier: Apache-2.0
// Codes that are themselves small floating-point numbers (or a table of normal quantiles), one
// scale for a group of channels of one token and head: nf4 [QLoRA], fp8 e4m3 and e5m2
// [OCP-FP8], fp4 e2m1 with power-of-two scales [OCP-MX]. x ~ scale * value(code).
#include "kernels/half.h"
#include "lib/core/error.h"
#include "lib/core/parallel.h"
#include "lib/quant/bitpack.h"
#include "lib/quant/block_array.h"
#include "lib/quant/codec.h"
#include "lib/quant/codec_identity.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace million {
namespace {

constexpr int kRowGrain = 32;  ///< tokens a thread takes at least
constexpr int kMaxHeadDim = 1024;

/// QLoRA, appendix E: quantiles of N(0, 1) scaled to [-1, 1], with an exact zero.
constexpr float kNf4Levels[16] = {-1.0f,
                                  -0.6961928009986877f,
                                  -0.5250730514526367f,
                                  -0.39491748809814453f,
                                  -0.28444138169288635f,
                                  -0.18477343022823334f,
                                  -0.09105003625154495f,
                                  0.0f,
                                  0.07958029955625534f,
                                  0.16093020141124725f,
                                  0.24611230194568634f,
                                  0.33791524171829224f,
                                  0.44070982933044434f,
                                  0.5626170039176941f,
                                  0.7229568362236023f,
                                  1.0f};

enum class ScaleType { kNone, kHalf, kE8m0 };

/// What a code stands for.
struct LowFloat {
  int bits = 4;
  bool has_sign = false;       ///< the top bit of a code is the sign, the rest numbers a magnitude
  std::vector<float> levels;   ///< rising: all values, or the magnitudes where has_sign
  std::vector<float> middles;  ///< between neighbours
  float top = 1.0f;            ///< a group's largest magnitude is scaled to this value
  int group = 64;
  ScaleType scale = ScaleType::kHalf;
};

/// Bytes of one stored scale.
int64_t scale_bytes(ScaleType type) {
  return type == ScaleType::kNone ? 0 : type == ScaleType::kHalf ? 2 : 1;
}

/// Non-negative values of a float with the given fields, in order of their codes; subnormals
/// included. `n` leaves out codes that mean infinity or NaN.
std::vector<float> magnitudes(int mantissa_bits, int bias, int n) {
  std::vector<float> values;
  for (int code = 0; code < n; ++code) {
    const int exponent = code >> mantissa_bits;
    const int mantissa = code & ((1 << mantissa_bits) - 1);
    const int whole = exponent > 0 ? (1 << mantissa_bits) + mantissa : mantissa;
    values.push_back(
        std::ldexp(static_cast<float>(whole), std::max(exponent, 1) - bias - mantissa_bits));
  }
  return values;
}

std::vector<float> middles(const std::vector<float>& levels) {
  std::vector<float> out;
  for (size_t i = 1; i < levels.size(); ++i) out.push_back(0.5f * (levels[i - 1] + levels[i]));
  return out;
}

/// Code of the level nearest to x, saturating. Midway: the even code where has_sign (IEEE's round
/// to nearest even, as codes count magnitudes), else the lower level. NaN gives the largest level.
uint8_t encode_value(float x, const LowFloat& f) {
  const float key = f.has_sign ? std::abs(x) : x;
  const auto begin = f.middles.begin(), end = f.middles.end();
  auto at = std::lower_bound(begin, end, key);
  if (std::isnan(key)) at = end;
  auto code = static_cast<uint8_t>(at - begin);
  if (!f.has_sign) return code;
  if (at != end && *at == key) code = static_cast<uint8_t>(code + (code & 1));
  return static_cast<uint8_t>(code | (std::signbit(x) ? 1 << (f.bits - 1) : 0));
}

float decode_value(uint8_t code, const LowFloat& f) {
  if (!f.has_sign) return f.levels[code];
  const int sign = 1 << (f.bits - 1);
  const float magnitude = f.levels[code & (sign - 1)];
  return (code & sign) != 0 ? -magnitude : magnitude;
}

/// Exponent of the power of two that a group is divided by [OCP-MX, section 6.3]: that of its
/// largest magnitude less that of the largest level; byte = exponent + 127.
uint8_t fit_e8m0(float largest, float top) {
  if (!(largest > 0.0f)) return 0;
  if (std::isinf(largest)) largest = std::numeric_limits<float>::max();
  return static_cast<uint8_t>(std::clamp(std::ilogb(largest) - std::ilogb(top) + 127, 0, 254));
}

/// Writes the scale of a group and returns the value that will be read back.
float store_scale(float largest, const LowFloat& f, uint8_t* out) {
  if (f.scale == ScaleType::kNone) return 1.0f;
  if (f.scale == ScaleType::kE8m0) {
    *out = fit_e8m0(largest, f.top);
    return std::ldexp(1.0f, *out - 127);
  }
  const uint16_t half = float_to_half(std::min(largest / f.top, 65504.0f));
  std::memcpy(out, &half, sizeof half);
  return half_to_float(half);
}

float load_scale(const LowFloat& f, const uint8_t* in) {
  if (f.scale == ScaleType::kNone) return 1.0f;
  if (f.scale == ScaleType::kE8m0) return std::ldexp(1.0f, *in - 127);
  uint16_t half = 0;
  std::memcpy(&half, in, sizeof half);
  return half_to_float(half);
}

class LowFloatStore final : public CodeStore {
 public:
  LowFloatStore(std::shared_ptr<const LowFloat> format, const KvGeometry& g)
      : f_(std::move(format)),
        n_heads_(g.n_kv_heads),
        head_dim_(g.head_dim),
        row_bytes_(packed_bytes(g.head_dim, f_->bits)),
        head_scales_(g.head_dim / f_->group * scale_bytes(f_->scale)),
        codes_(n_heads_ * row_bytes_, kTokensPerBlock),
        scales_(n_heads_ * head_scales_, kTokensPerBlock) {}

  int n_tokens() const override { return static_cast<int>(codes_.size()); }

  void append(const float* x, int n, int64_t /*first_token*/) override {
    const int64_t first = codes_.size();
    codes_.grow(n);
    if (head_scales_ > 0) scales_.grow(n);
    parallel_ranges(n, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        for (int h = 0; h < n_heads_; ++h)
          encode_row(x + (t * n_heads_ + h) * head_dim_, codes_.at(first + t) + h * row_bytes_,
                     head_scales_ > 0 ? scales_.at(first + t) + h * head_scales_ : nullptr);
    });
  }

  void decode(int head, int begin, int end, float* out) const override {
    uint8_t codes[kMaxHeadDim];
    for (int t = begin; t < end; ++t) {
      unpack_bits(codes_.at(t) + head * row_bytes_, head_dim_, f_->bits, codes);
      const uint8_t* scales = head_scales_ > 0 ? scales_.at(t) + head * head_scales_ : nullptr;
      for (int c = 0; c < head_dim_; c += f_->group) {
        const float scale = load_scale(*f_, scales);
        for (int i = c; i < c + f_->group; ++i) *out++ = scale * decode_value(codes[i], *f_);
        scales += scale_bytes(f_->scale);
      }
    }
  }

  StoreBytes bytes() const override { return {codes_.bytes(), scales_.bytes(), 0}; }
  void clear() override { codes_.clear(), scales_.clear(); }
  std::unique_ptr<CodeStore> clone() const override {
    return std::make_unique<LowFloatStore>(*this);
  }

 private:
  void encode_row(const float* x, uint8_t* packed, uint8_t* scales) const {
    uint8_t codes[kMaxHeadDim];
    for (int c = 0; c < head_dim_; c += f_->group, scales += scale_bytes(f_->scale)) {
      float largest = 0.0f;
      for (int i = c; i < c + f_->group; ++i) largest = std::max(largest, std::abs(x[i]));
      const float scale = store_scale(largest, *f_, scales);
      for (int i = c; i < c + f_->group; ++i)
        codes[i] = encode_value(scale > 0.0f ? x[i] / scale : 0.0f, *f_);
    }
    pack_bits(codes, head_dim_, f_->bits, packed);
  }

  std::shared_ptr<const LowFloat> f_;
  int n_heads_, head_dim_;
  int64_t row_bytes_, head_scales_;
  BlockArray<uint8_t> codes_;   ///< [n_tokens][n_heads][row_bytes]
  BlockArray<uint8_t> scales_;  ///< [n_tokens][n_heads][groups][scale_bytes]
};

class LowFloatCodec final : public Codec {
 public:
  LowFloatCodec(const char* name, LowFloat format, const Options& options, KvKind kind,
                const KvGeometry& geometry)
      : id_(name, options, kind, geometry) {
    const int d = geometry.head_dim;
    MILLION_REQUIRE(d <= kMaxHeadDim, ErrorCode::kBadInput, "codec {}: head_dim {} is above {}",
                    name, d, kMaxHeadDim);
    MILLION_REQUIRE(d % format.group == 0, ErrorCode::kUsage,
                    "codec {}: group={} does not divide head_dim {}; give a divisor, as group={}",
                    name, format.group, d, d);
    format.middles = middles(format.levels);
    format_ = std::make_shared<LowFloat>(std::move(format));
  }

  std::string spec() const override { return id_.spec(); }
  void train(const CalibrationSet& data, int sinks) override { id_.trained_on(data, sinks); }
  TensorBag save() const override { return {{}, id_.attributes()}; }
  void load(const TensorBag& bag) override { id_.loaded_from(bag); }
  double nominal_bits() const override {
    return format_->bits + 8.0 * static_cast<double>(scale_bytes(format_->scale)) / format_->group;
  }
  std::unique_ptr<CodeStore> make_store(int /*layer*/) const override {
    return std::make_unique<LowFloatStore>(format_, id_.geometry());
  }

 private:
  CodecIdentity id_;
  std::shared_ptr<const LowFloat> format_;
};

constexpr OptionInfo kNf4Options[] = {
    {"group", "64", "divides head_dim", "values of a scale", true},
};
constexpr OptionInfo kFp8Options[] = {
    {"format", "e4m3", "e4m3|e5m2", "4 exponent bits and 3 of the mantissa, or 5 and 2", true},
    {"scale", "token", "token|none", "token = one half per token and head; none = 1, as vLLM",
     true},
};
constexpr OptionInfo kFp4Options[] = {
    {"group", "32", "divides head_dim", "values of a scale", true},
    {"scale", "e8m0", "e8m0|f16", "a power of two in a byte, or a half"},
};

std::unique_ptr<Codec> make_nf4(const Options& options, KvKind kind, const KvGeometry& g) {
  LowFloat f;
  f.levels.assign(std::begin(kNf4Levels), std::end(kNf4Levels));
  f.group = options.integer("group", 1, g.head_dim);
  return std::make_unique<LowFloatCodec>("nf4", std::move(f), options, kind, g);
}

std::unique_ptr<Codec> make_fp8(const Options& options, KvKind kind, const KvGeometry& g) {
  LowFloat f;
  f.bits = 8;
  f.has_sign = true;
  f.group = g.head_dim;
  f.scale = options.word("scale", "token|none") == "none" ? ScaleType::kNone : ScaleType::kHalf;
  if (options.word("format", "e4m3|e5m2") == "e4m3") {
    f.levels = magnitudes(3, 7, 0x7F);  // e4m3fn: 0x7F is NaN, no infinity
    f.top = 448.0f;
  } else {
    f.levels = magnitudes(2, 15, 0x7C);  // 0x7C is infinity
    // A half could not hold amax / 57344. Any power of two of it gives the same rounding; the
    // smallest normal level is still 2^-21 of this one.
    f.top = 224.0f;
  }
  return std::make_unique<LowFloatCodec>("fp8", std::move(f), options, kind, g);
}

std::unique_ptr<Codec> make_fp4(const Options& options, KvKind kind, const KvGeometry& g) {
  LowFloat f;
  f.has_sign = true;
  f.levels = magnitudes(1, 1, 8);  // 0 .5 1 1.5 2 3 4 6
  f.top = 6.0f;
  f.group = options.integer("group", 1, g.head_dim);
  f.scale = options.word("scale", "e8m0|f16") == "f16" ? ScaleType::kHalf : ScaleType::kE8m0;
  return std::make_unique<LowFloatCodec>("fp4", std::move(f), options, kind, g);
}

}  // namespace

CodecInfo nf4_codec() {
  return {"nf4", "16 quantiles of the normal distribution, absmax scale per group",
          "QLoRA, arXiv 2305.14314", kNf4Options, make_nf4};
}
CodecInfo fp8_codec() {
  return {"fp8", "8-bit floats e4m3 or e5m2, scale per token or none", "OCP FP8, arXiv 2209.05433",
          kFp8Options, make_fp8};
}
CodecInfo fp4_codec() {
  return {"fp4", "4-bit floats e2m1 with a power-of-two scale per group",
          "OCP MX, arXiv 2310.10537", kFp4Options, make_fp4};
}

}  // namespace million
