// SPDX-License-Identifier: Apache-2.0
// The quantized cache of Hugging Face Transformers with its quanto backend, as a baseline: keys and
// values in groups of `group` neighbouring channels of one token (group_store.h), exact until
// `residual` tokens have gathered. At each such flush the released code decodes everything older
// and quantizes it again together with the new tokens (transformers issue 34189); `requant=0`
// leaves that out. README.md of this folder says what is unconfirmed.
#include "lib/core/error.h"
#include "lib/quant/codec.h"
#include "lib/quant/codec_identity.h"
#include "lib/quant/group_store.h"

#include <algorithm>

namespace million {
namespace {

constexpr int kMaxResidual = 1 << 16;

/// Groups of a token that are decoded and quantized again at every multiple of `residual` tokens.
class QuantoStore final : public TokenStore {
 public:
  QuantoStore(const UniformParams& p, int residual, int row)
      : TokenStore(p), residual_(residual), row_(row) {}

  /// Cuts the run at the flushes, so that the codes depend on the tokens alone and not on the
  /// calls.
  void append(const float* x, int n, int64_t first_token) override {
    while (n > 0) {
      const int piece = std::min(n, residual_ - n_tokens() % residual_);
      TokenStore::append(x, piece, first_token);
      if (n_tokens() % residual_ == 0) requantize(n_tokens() - residual_);
      x += static_cast<int64_t>(piece) * row_;
      first_token += piece;
      n -= piece;
    }
  }
  std::unique_ptr<CodeStore> clone() const override { return std::make_unique<QuantoStore>(*this); }

 private:
  int residual_, row_;
};

class QuantoCodec final : public Codec {
 public:
  QuantoCodec(const Options& options, KvKind kind, const KvGeometry& geometry)
      : id_("quanto", options, kind, geometry) {
    const int d = geometry.head_dim;
    MILLION_REQUIRE(d <= kMaxGroupHeadDim, ErrorCode::kBadInput,
                    "codec quanto: head_dim {} is above {}", d, kMaxGroupHeadDim);
    p_.n_heads = geometry.n_kv_heads;
    p_.head_dim = d;
    p_.bits = options.integer("bits", 1, 8);
    p_.group = options.integer("group", 1, kMaxGroupHeadDim);
    residual_ = options.integer("residual", 0, kMaxResidual);
    requant_ = options.integer("requant", 0, 1) == 1 && residual_ > 0;
    MILLION_REQUIRE(d % p_.group == 0, ErrorCode::kUsage,
                    "codec quanto: group={} does not divide head_dim {}; give a divisor, as "
                    "group={}",
                    p_.group, d, d);
  }

  std::string spec() const override { return id_.spec(); }
  ResidualRule residual() const override {
    if (residual_ == 0) return {};
    return {ResidualRule::Type::kFlush, residual_};
  }
  bool rewrites_codes() const override { return requant_; }
  void train(const CalibrationSet& data, int sinks) override { id_.trained_on(data, sinks); }
  TensorBag save() const override { return {{}, id_.attributes()}; }
  void load(const TensorBag& bag) override { id_.loaded_from(bag); }
  /// The exact rows are the cache's to count.
  double nominal_bits() const override { return p_.bits + 32.0 / p_.group; }
  std::unique_ptr<CodeStore> make_store(int /*layer*/) const override {
    if (requant_) return std::make_unique<QuantoStore>(p_, residual_, id_.geometry().row());
    return std::make_unique<TokenStore>(p_);
  }

 private:
  CodecIdentity id_;
  UniformParams p_;
  int residual_ = 0;
  bool requant_ = false;
};

constexpr OptionInfo kOptions[] = {
    {"bits", "4", "1..8", "bits of a code; quanto has 2 and 4", true},
    {"group", "64", "1..1024", "neighbouring channels of a token with one range", true},
    {"residual", "128", "0..65536",
     "recent tokens kept exact until so many are there; 0 = none, then `window` is allowed", true},
    {"requant", "1", "0|1", "1 = a flush also quantizes all older tokens again", true},
};

std::unique_ptr<Codec> make_quanto(const Options& options, KvKind kind,
                                   const KvGeometry& geometry) {
  return std::make_unique<QuantoCodec>(options, kind, geometry);
}

}  // namespace

CodecInfo quanto_codec() {
  return {"quanto", "groups of a token, coded again whenever the exact recent tokens are flushed",
          "Hugging Face Transformers QuantizedCache, quanto backend", kOptions, make_quanto};
}

}  // namespace million
