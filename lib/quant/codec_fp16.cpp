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
      : n_heads_(g.n_kv_heads),
        head_dim_(g.head_dim),
        blocks_(static_cast<int64_t>(g.row()) * kTokensPerBlock, 1) {}

  int n_tokens() const override { return n_tokens_; }

  void append(const float* x, int n, int64_t /*first_token*/) override {
    const int64_t end = n_tokens_ + n;
    blocks_.grow((end + kTokensPerBlock - 1) / kTokensPerBlock - blocks_.size());
    for (int64_t t = n_tokens_; t < end; ++t)
      for (int h = 0; h < n_heads_; ++h, x += head_dim_)
        ops().f32_to_f16(x, blocks_.at(t / kTokensPerBlock) + place(h, t), head_dim_);
    n_tokens_ = static_cast<int>(end);
  }

  const uint16_t* exact_rows(int head, int begin, int* n) const override {
    *n = std::min(n_tokens_ - begin, kTokensPerBlock - begin % kTokensPerBlock);
    return blocks_.at(begin / kTokensPerBlock) + place(head, begin);
  }

  void decode(int head, int begin, int end, float* out) const override {
    while (begin < end) {
      int n = 0;
      const uint16_t* rows = exact_rows(head, begin, &n);
      n = std::min(n, end - begin);
      ops().f16_to_f32(rows, out, static_cast<size_t>(n) * head_dim_);
      out += static_cast<int64_t>(n) * head_dim_;
      begin += n;
    }
  }

  StoreBytes bytes() const override { return {blocks_.bytes(), 0, 0}; }
  void clear() override { blocks_.clear(), n_tokens_ = 0; }
  std::unique_ptr<CodeStore> clone() const override { return std::make_unique<Fp16Store>(*this); }

 private:
  int64_t place(int head, int64_t t) const {
    return (static_cast<int64_t>(head) * kTokensPerBlock + t % kTokensPerBlock) * head_dim_;
  }

  int n_heads_, head_dim_, n_tokens_ = 0;
  BlockArray<uint16_t> blocks_;  ///< [block][n_kv_heads][kTokensPerBlock][head_dim]
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
