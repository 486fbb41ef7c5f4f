// SPDX-License-Identifier: Apache-2.0
#include "lib/model/engine.h"

namespace million {
namespace {

class CpuEngine final : public Engine {
 public:
  CpuEngine(std::shared_ptr<const Model> model, Method method, const EngineOptions& o)
      : model_(std::move(model)),
        options_(o.decoder),
        decoder_(model_, o.decoder),
        cache_(model_->config.geometry(), std::move(method), o.protocol, o.async_encode) {
    cache_.set_skip_share(o.skip_share);
  }

  CpuEngine(const CpuEngine& from)
      : model_(from.model_),
        options_(from.options_),
        decoder_(model_, options_),
        cache_(from.cache_.fork()) {}

  const Model& model() const override { return decoder_.model(); }
  std::span<const float> forward(std::span<const int32_t> tokens, Probe* probe) override {
    return decoder_.forward(tokens, cache_, probe);
  }
  void logits(const float* hidden, int n, float* out) override { decoder_.logits(hidden, n, out); }
  void logits_block(const float* hidden, int n, int first, int count, float* out) override {
    decoder_.logits_block(hidden, n, first, count, out);
  }
  int64_t n_tokens() const override { return cache_.n_tokens(); }
  void clear() override { cache_.clear(); }
  std::unique_ptr<Engine> fork() const override { return std::make_unique<CpuEngine>(*this); }
  void append_only(int layer, const float* k, const float* v, int n) override {
    cache_.attend(layer, nullptr, k, v, n, nullptr);
  }
  CacheBytes bytes() const override { return cache_.bytes(); }
  double measured_bits(bool with_shared) const override {
    return cache_.measured_bits(with_shared);
  }
  const char* attention_name() const override { return cache_.attention_name(); }
  KvCache::Stats stats() const override { return cache_.stats(); }

 private:
  std::shared_ptr<const Model> model_;
  DecoderOptions options_;
  Decoder decoder_;
  KvCache cache_;
};

}  // namespace

std::unique_ptr<Engine> make_engine(std::shared_ptr<const Model> model, Method method,
                                    const EngineOptions& options) {
  if (options.backend == Backend::kCpu)
    return std::make_unique<CpuEngine>(std::move(model), std::move(method), options);
  return make_device_engine(shared_device(options.backend), std::move(model), std::move(method),
                            options);
}

}  // namespace million
