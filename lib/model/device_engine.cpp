// SPDX-License-Identifier: Apache-2.0
// The transformer on a device: halves into the products, f32 sums and residual stream. A decode
// step is captured once and replayed: what changes from step to step lies in device memory.
#include "kernels/ops.h"
#include "lib/cache/device_cache.h"
#include "lib/core/error.h"
#include "lib/core/progress.h"
#include "lib/model/device_weights.h"
#include "lib/model/engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace million {
namespace {

class DeviceEngine final : public Engine {
 public:
  DeviceEngine(std::shared_ptr<Device> device, std::shared_ptr<const Model> model, Method method,
               const EngineOptions& o);
  ~DeviceEngine() override { device_->synchronize(stream_.get()); }

  const Model& model() const override { return *model_; }
  std::span<const float> forward(std::span<const int32_t> tokens, Probe* probe) override;
  void logits(const float* hidden, int n, float* out) override {
    logits_block(hidden, n, 0, config().n_vocab, out);
  }
  void logits_block(const float* hidden, int n, int first, int count, float* out) override;
  int64_t n_tokens() const override { return cache_.n_tokens(); }
  void clear() override { cache_.clear(); }
  std::unique_ptr<Engine> fork() const override {
    fail(ErrorCode::kUsage, "a cache on a device cannot be copied; use --backend cpu");
  }
  void append_only(int layer, const float* k, const float* v, int n) override;
  CacheBytes bytes() const override { return cache_.bytes(); }
  double measured_bits(bool with_shared) const override {
    return cache_.measured_bits(with_shared);
  }
  const char* attention_name() const override { return cache_.attention_name(); }
  KvCache::Stats stats() const override { return {}; }

 private:
  const ModelConfig& config() const { return model_->config; }
  int qkv_row() const { return (config().n_heads + 2 * config().n_kv_heads) * config().head_dim; }
  void run(std::span<const int32_t> tokens, Probe* probe, float* hidden);
  void launch_step(int n, Probe* probe);
  void layer_in(const DeviceLayer& w, int layer, int n);
  void layer_out(const DeviceLayer& w, int n);
  void norm(const float* x, const DeviceBuffer<float>& w, int n, float* f32);
  void multiply(const uint16_t* x, const uint16_t* w, float* y, int n, int m, int k,
                bool accumulate = false);
  void show(Probe* probe, int layer, int n);

  std::shared_ptr<Device> device_;
  std::shared_ptr<const Model> model_;
  std::shared_ptr<const DeviceWeights> weights_;
  int chunk_;
  DeviceStream stream_;
  DeviceCache cache_;
  DeviceBuffer<int32_t> tokens_;
  DeviceBuffer<float> x_, qkv_, gate_up_, hidden_, logits_;
  DeviceBuffer<uint16_t> h_, q_, attn_, act_;
  std::unique_ptr<DeviceGraph> step_;  ///< of one token
  std::vector<float> host_hidden_;
};

/// Rows whose logits are made at once.
constexpr int kHeadRows = 512;

void require_shape(const ModelConfig& c) {
  MILLION_REQUIRE(c.head_dim == 64 || c.head_dim == 128, ErrorCode::kBadInput,
                  "{}: head_dim {} has no device kernels (64 and 128 have); use --backend cpu",
                  c.name, c.head_dim);
  MILLION_REQUIRE(c.n_heads / c.n_kv_heads <= 8, ErrorCode::kBadInput,
                  "{}: {} query heads a KV head, device kernels take at most 8; use --backend cpu",
                  c.name, c.n_heads / c.n_kv_heads);
}

int checked_chunk(const EngineOptions& o) {
  MILLION_REQUIRE(o.decoder.chunk >= 1, ErrorCode::kUsage, "--chunk: got {}, expected at least 1",
                  o.decoder.chunk);
  return static_cast<int>(std::min<int64_t>(o.decoder.chunk, o.capacity));
}

DeviceEngine::DeviceEngine(std::shared_ptr<Device> device, std::shared_ptr<const Model> model,
                           Method method, const EngineOptions& o)
    : device_(std::move(device)),
      model_((require_shape(model->config), std::move(model))),
      weights_(device_weights(device_, model_)),
      chunk_(checked_chunk(o)),
      stream_(device_),
      cache_(device_, config().geometry(), std::move(method), o.protocol, o.async_encode,
             o.capacity, chunk_) {
  const ModelConfig& c = config();
  const auto rows = static_cast<size_t>(chunk_);
  const auto floats = [&](size_t n) { return DeviceBuffer<float>(device_, n); };
  const auto halves = [&](size_t n) { return DeviceBuffer<uint16_t>(device_, n); };
  const size_t q_row = static_cast<size_t>(c.n_heads) * c.head_dim;
  tokens_ = DeviceBuffer<int32_t>(device_, rows);
  x_ = floats(rows * c.d_model);
  qkv_ = floats(rows * qkv_row());
  gate_up_ = floats(rows * 2 * c.d_ff);
  hidden_ = floats(rows * c.d_model);
  h_ = halves(std::max<size_t>(rows, kHeadRows) * c.d_model);
  q_ = halves(rows * q_row);
  attn_ = halves(rows * q_row);
  act_ = halves(rows * c.d_ff);
  logits_ = floats(static_cast<size_t>(kHeadRows) * c.n_vocab);
}

void DeviceEngine::norm(const float* x, const DeviceBuffer<float>& w, int n, float* f32) {
  device_->check(device_->ops().rms_norm(stream_.get(), {x, w.data(), config().rms_eps, n,
                                                         config().d_model, h_.data(), f32}),
                 "rms_norm");
}

void DeviceEngine::multiply(const uint16_t* x, const uint16_t* w, float* y, int n, int m, int k,
                            bool accumulate) {
  device_->gemm(stream_.get(), {x, w, y, n, m, k, accumulate});
}

/// q, k and v of h = norm(x), at their places.
void DeviceEngine::layer_in(const DeviceLayer& w, int layer, int n) {
  const ModelConfig& c = config();
  norm(x_.data(), w.attn_norm, n, nullptr);
  multiply(h_.data(), w.qkv.data(), qkv_.data(), n, qkv_row(), c.d_model);
  cache_.prepare(stream_.get(), layer);
  cuda::RopeAppendArgs a{};
  a.qkv = qkv_.data(), a.bias = w.bias.data();
  const DeviceRope& rope = cache_.rope();
  a.cosines = rope.cosines.data(), a.sines = rope.sines.data();
  a.n_pairs = rope.n_pairs, a.adjacent = rope.adjacent;
  a.magnitude = cache_.geometry().rope.magnitude();
  a.batch = 1, a.n = n, a.n_heads = c.n_heads, a.n_kv_heads = c.n_kv_heads;
  a.head_dim = c.head_dim;
  a.state = cache_.state();
  a.q = q_.data();
  a.k = cache_.key_rows(layer), a.v = cache_.value_rows(layer);
  device_->check(device_->ops().rope_append(stream_.get(), a), "rope_append");
}

/// x += W_o attn; x += MLP(norm(x)).
void DeviceEngine::layer_out(const DeviceLayer& w, int n) {
  const ModelConfig& c = config();
  multiply(attn_.data(), w.wo.data(), x_.data(), n, c.d_model, c.n_heads * c.head_dim, true);
  norm(x_.data(), w.ffn_norm, n, nullptr);
  multiply(h_.data(), w.gate_up.data(), gate_up_.data(), n, 2 * c.d_ff, c.d_model);
  device_->check(device_->ops().swiglu(stream_.get(), {gate_up_.data(), n, c.d_ff, act_.data()}),
                 "swiglu");
  multiply(act_.data(), w.w_down.data(), x_.data(), n, c.d_model, c.d_ff, true);
}

void DeviceEngine::launch_step(int n, Probe* probe) {
  const cuda::EmbedArgs a{weights_->token_embedding.data(), tokens_.data(), n, config().d_model,
                          x_.data()};
  device_->check(device_->ops().embed(stream_.get(), a), "embed");
  for (int l = 0; l < config().n_layers; ++l) {
    check_interrupted();
    const DeviceLayer& w = weights_->layers[l];
    layer_in(w, l, n);
    cache_.attend(stream_.get(), l, q_.data(), attn_.data());
    if (probe) show(probe, l, n);
    layer_out(w, n);
  }
  norm(x_.data(), weights_->output_norm, n, hidden_.data());
}

/// Rows of the chunk for a probe: what the products gave, and its rotation on the host.
void DeviceEngine::show(Probe* probe, int layer, int n) {
  const ModelConfig& c = config();
  const int d = c.head_dim, heads = c.n_heads + 2 * c.n_kv_heads;
  std::vector<float> qkv(static_cast<size_t>(n) * qkv_row());
  device_->copy_out(stream_.get(), qkv.data(), qkv_.data(), qkv.size() * sizeof(float));
  std::vector<uint16_t> halves(static_cast<size_t>(n) * c.n_heads * d);
  device_->copy_out(stream_.get(), halves.data(), attn_.data(), halves.size() * sizeof(uint16_t));
  std::vector<float> parts[3], turned[2], attn(halves.size());
  const LayerWeights& w = model_->layers[layer];
  const AlignedVector<float>* biases[] = {&w.bq, &w.bk, &w.bv};
  const int counts[] = {c.n_heads, c.n_kv_heads, c.n_kv_heads};
  for (int i = 0; i < n; ++i)
    for (int p = 0, head = 0; p < 3; head += counts[p++]) {
      const float* row = qkv.data() + (static_cast<size_t>(i) * heads + head) * d;
      parts[p].insert(parts[p].end(), row, row + static_cast<size_t>(counts[p]) * d);
      if (!biases[p]->empty())
        ops().add(biases[p]->data(), parts[p].data() + parts[p].size() - biases[p]->size(),
                  biases[p]->size());
    }
  for (int p = 0; p < 2; ++p) {
    turned[p] = parts[p];
    for (int i = 0; i < n; ++i)
      cache_.geometry().rope.rotate_to(turned[p].data() + static_cast<size_t>(i) * counts[p] * d,
                                       counts[p], d, cache_.n_tokens() + i);
  }
  probe->on_layer(layer, cache_.n_tokens(), n, parts[0].data(), turned[0].data(), parts[1].data(),
                  turned[1].data(), parts[2].data());
  ops().f16_to_f32(halves.data(), attn.data(), attn.size());
  probe->on_attention(layer, cache_.n_tokens(), n, attn.data());
}

void DeviceEngine::run(std::span<const int32_t> tokens, Probe* probe, float* hidden) {
  const int n = static_cast<int>(tokens.size());
  cache_.begin(stream_.get(), n);
  device_->copy_in(stream_.get(), tokens_.data(), tokens.data(), tokens.size_bytes());
  if (n > 1 || probe || !cache_.can_replay()) {
    launch_step(n, probe);
  } else {
    if (!step_) {
      device_->begin_capture(stream_.get());
      launch_step(1, nullptr);
      step_ = device_->end_capture(stream_.get());
    }
    device_->launch(*step_, stream_.get());
  }
  cache_.end(stream_.get());
  const size_t values = static_cast<size_t>(n) * config().d_model;
  device_->copy_out(stream_.get(), hidden, hidden_.data(), values * sizeof(float));
  for (size_t i = 0; i < values; ++i)
    MILLION_REQUIRE(std::isfinite(hidden[i]), ErrorCode::kFailed,
                    "{}: the hidden state at position {} holds {}; halves overflowed or the model "
                    "is broken, --backend cpu computes in f32",
                    config().name,
                    cache_.n_tokens() - n + static_cast<int64_t>(i / config().d_model), hidden[i]);
}

std::span<const float> DeviceEngine::forward(std::span<const int32_t> tokens, Probe* probe) {
  require_tokens(tokens, config().n_vocab);
  const size_t d = config().d_model;
  host_hidden_.resize(tokens.size() * d);
  for (size_t done = 0; done < tokens.size();) {
    const auto n = static_cast<size_t>(
        cache_.run_length(static_cast<int64_t>(std::min<size_t>(chunk_, tokens.size() - done))));
    run(tokens.subspan(done, n), probe, host_hidden_.data() + done * d);
    done += n;
  }
  return host_hidden_;
}

void DeviceEngine::logits_block(const float* hidden, int n, int first, int count, float* out) {
  const int d = config().d_model;
  std::vector<uint16_t> halves(static_cast<size_t>(std::min(n, kHeadRows)) * d);
  for (int row = 0; row < n; row += kHeadRows) {
    const int rows = std::min(kHeadRows, n - row);
    const size_t values = static_cast<size_t>(rows) * d;
    ops().f32_to_f16(hidden + static_cast<size_t>(row) * d, halves.data(), values);
    device_->copy_in(stream_.get(), h_.data(), halves.data(), values * sizeof(uint16_t));
    multiply(h_.data(), weights_->output() + static_cast<size_t>(first) * d, logits_.data(), rows,
             count, d);
    device_->copy_out(stream_.get(), out + static_cast<size_t>(row) * count, logits_.data(),
                      static_cast<size_t>(rows) * count * sizeof(float));
  }
}

void DeviceEngine::append_only(int layer, const float* k, const float* v, int n) {
  MILLION_ASSERT(n <= chunk_);
  if (layer == 0) cache_.begin(stream_.get(), n);
  cache_.append_only(stream_.get(), layer, k, v);
  if (layer == config().n_layers - 1) cache_.end(stream_.get());
}

}  // namespace

std::unique_ptr<Engine> make_device_engine(std::shared_ptr<Device> device,
                                           std::shared_ptr<const Model> model, Method method,
                                           const EngineOptions& options) {
  MILLION_REQUIRE(options.capacity >= 1, ErrorCode::kUsage,
                  "a device cache needs the number of tokens it is for");
  MILLION_REQUIRE(!model->config.self_extend.on(), ErrorCode::kUsage,
                  "--positions {}: SelfExtend runs on the CPU only; give --backend cpu",
                  model->config.positions);
  MILLION_REQUIRE(options.skip_share == 0.0f, ErrorCode::kUsage,
                  "--skip-mass: {} leaves nothing out; give --skip-mass 0",
                  backend_name(options.backend));
  return std::make_unique<DeviceEngine>(std::move(device), std::move(model), std::move(method),
                                        options);
}

}  // namespace million
