// SPDX-License-Identifier: Apache-2.0
// KIVI (arXiv 2402.02750, section 3): keys after RoPE in groups of `group` consecutive tokens of
// one channel, values in groups of `group` neighbouring channels of one token, minimum and range of
// a group as halves (group_store.h). Its own residual rule: up to `residual` keys stay exact until
// they are coded together, so no group straddles that boundary; the last `residual` values stay
// exact and one value row is coded a step.
#include "lib/core/error.h"
#include "lib/quant/codec.h"
#include "lib/quant/codec_identity.h"
#include "lib/quant/group_store.h"

namespace million {
namespace {

constexpr int kMaxResidual = 1 << 16;

class KiviCodec final : public Codec {
 public:
  KiviCodec(const Options& options, KvKind kind, const KvGeometry& geometry)
      : id_("kivi", options, kind, geometry) {
    const int d = geometry.head_dim;
    MILLION_REQUIRE(d <= kMaxGroupHeadDim, ErrorCode::kBadInput,
                    "codec kivi: head_dim {} is above {}", d, kMaxGroupHeadDim);
    p_.n_heads = geometry.n_kv_heads;
    p_.head_dim = d;
    p_.bits = options.integer("bits", 1, 8);
    p_.group = options.integer("group", 1, 4096);
    residual_ = options.integer("residual", 0, kMaxResidual);
    MILLION_REQUIRE(residual_ % p_.group == 0, ErrorCode::kUsage,
                    "codec kivi: residual={} is no multiple of group={}; groups of keys may not "
                    "straddle it, give a multiple, as residual={}",
                    residual_, p_.group, 4 * p_.group);
    MILLION_REQUIRE(keys() || d % p_.group == 0, ErrorCode::kUsage,
                    "codec kivi: group={} does not divide head_dim {}, along which values are "
                    "grouped; give a divisor, as group={}",
                    p_.group, d, d);
  }

  std::string spec() const override { return id_.spec(); }
  int block_tokens() const override { return keys() ? p_.group : 1; }
  ResidualRule residual() const override {
    if (residual_ == 0) return {};
    return {keys() ? ResidualRule::Type::kFlush : ResidualRule::Type::kSlide, residual_};
  }
  void train(const CalibrationSet& data, int sinks) override { id_.trained_on(data, sinks); }
  TensorBag save() const override { return {{}, id_.attributes()}; }
  void load(const TensorBag& bag) override { id_.loaded_from(bag); }
  /// The exact rows are the cache's to count.
  double nominal_bits() const override { return p_.bits + 32.0 / p_.group; }
  std::unique_ptr<CodeStore> make_store(int /*layer*/) const override {
    if (keys()) return std::make_unique<ChannelStore>(p_);
    return std::make_unique<TokenStore>(p_);
  }

 private:
  bool keys() const { return id_.kind() == KvKind::kKey; }

  CodecIdentity id_;
  UniformParams p_;
  int residual_ = 0;
};

constexpr OptionInfo kOptions[] = {
    {"bits", "2", "1..8", "bits of a code; the paper has 2 and 4", true},
    {"group", "32", "1..4096", "values of a group: tokens for keys, channels for values", true},
    {"residual", "128", "0..65536",
     "recent tokens kept exact, a multiple of group; 0 = none, then `window` is allowed", true},
};

std::unique_ptr<Codec> make_kivi(const Options& options, KvKind kind, const KvGeometry& geometry) {
  return std::make_unique<KiviCodec>(options, kind, geometry);
}

}  // namespace

CodecInfo kivi_codec() {
  return {"kivi", "keys in groups of a channel, values in groups of a token, exact recent tokens",
          "KIVI, arXiv 2402.02750", kOptions, make_kivi};
}

}  // namespace million
