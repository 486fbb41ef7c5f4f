// SPDX-License-Identifier: Apache-2.0
// The baseline: every value as IEEE half, 16 bits per value. Values above 65504 become infinity, as
// in any fp16 cache.
#include "kernels/ops.h"
#include "lib/quant/block_array.h"
#include "lib/quant/codec.h"
#include "lib/quant/codec_identity.h"
#include "lib/quant/exact_store.h"

#include <algorithm>

namespace million {
namespace {

class Fp16Store final : public CodeStore {
 public:
  explicit Fp16Store(const KvGeometry& g)
      : head_dim_(g.head_dim), rows_(g.row(), kTokensPerBlock) {}

  int n_tokens() const override { return static_cast<int>(rows_.size()); }

  void append(const float* x, int n, int64_t /*first_token*/) override {
    const int64_t begin = rows_.size(), end = begin + n;
    rows_.grow(n);
    for (int64_t t = begin; t < end;) {
      const int64_t run = std::min(end - t, rows_.run(t));
      ops().f32_to_f16(x + (t - begin) * rows_.record(), rows_.at(t), run * rows_.record());
      t += run;
    }
  }

  void decode(int head, int begin, int end, float* out) const override {
    for (int t = begin; t < end; ++t, out += head_dim_)
      ops().f16_to_f32(rows_.at(t) + head * head_dim_, out, head_dim_);
  }

  StoreBytes bytes() const override { return {rows_.bytes(), 0, 0}; }
  void clear() override { rows_.clear(); }

 private:
  int head_dim_;
  BlockArray<uint16_t> rows_;  ///< [n_tokens][n_kv_heads][head_dim]
};

class Fp16Codec final : public Codec {
 public:
  Fp16Codec(const Options& options, KvKind kind, const KvGeometry& geometry)
      : id_("fp16", options, kind, geometry) {}

  std::string spec() const override { return id_.spec(); }
  void train(const CalibrationSet& data, int sinks) override { id_.trained_on(data, sinks); }
  TensorBag save() const override { return {{}, id_.attributes()}; }
  void load(const TensorBag& bag) override { id_.loaded_from(bag); }
  double nominal_bits() const override { return 16.0; }
  std::unique_ptr<CodeStore> make_store(int /*layer*/) const override {
    return make_exact_store(id_.geometry());
  }

 private:
  CodecIdentity id_;
};

std::unique_ptr<Codec> make_fp16(const Options& options, KvKind kind, const KvGeometry& geometry) {
  return std::make_unique<Fp16Codec>(options, kind, geometry);
}

}  // namespace

std::unique_ptr<CodeStore> make_exact_store(const KvGeometry& geometry) {
  return std::make_unique<Fp16Store>(geometry);
}

CodecInfo fp16_codec() {
  return {"fp16", "every value as IEEE half (the baseline)", "IEEE 754-2008", {}, make_fp16};
}

}  // namespace million
