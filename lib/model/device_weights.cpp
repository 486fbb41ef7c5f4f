// SPDX-License-Identifier: Apache-2.0
#include "lib/model/device_weights.h"

#include "kernels/ops.h"
#include "lib/core/error.h"
#include "lib/core/parallel.h"

#include <cmath>
#include <initializer_list>
#include <map>
#include <mutex>

namespace million {
namespace {

uint64_t values_of(const Model& model) {
  const ModelConfig& c = model.config;
  const uint64_t kv = static_cast<uint64_t>(c.n_kv_heads) * c.head_dim;
  const uint64_t q = static_cast<uint64_t>(c.n_heads) * c.head_dim, d = c.d_model;
  const uint64_t layer = d * (2 * q + 2 * kv + 3 * static_cast<uint64_t>(c.d_ff));
  const uint64_t vocab = static_cast<uint64_t>(c.n_vocab) * d;
  return layer * c.n_layers + vocab * (model.output.data == model.token_embedding.data ? 1 : 2);
}

class Uploader {
 public:
  explicit Uploader(const std::shared_ptr<Device>& device) : device_(device), stream_(device) {}

  DeviceBuffer<uint16_t> matrices(std::initializer_list<const WeightView*> list) {
    size_t total = 0, at = 0;
    for (const WeightView* w : list) total += static_cast<size_t>(w->rows) * w->cols;
    std::vector<uint16_t> halves(total);
    for (const WeightView* w : list) {
      convert(*w, halves.data() + at);
      at += static_cast<size_t>(w->rows) * w->cols;
    }
    return DeviceBuffer<uint16_t>(device_, stream_.get(), halves);
  }
  DeviceBuffer<float> vector(const AlignedVector<float>& v) {
    return DeviceBuffer<float>(device_, stream_.get(), std::vector<float>(v.begin(), v.end()));
  }
  void finish() { device_->synchronize(stream_.get()); }

 private:
  static void convert(const WeightView& w, uint16_t* out) {
    parallel_for(w.rows, [&](int64_t r) {
      thread_local AlignedVector<float> row;
      row.resize(w.cols);
      ops().dequant_row(w.type, w.row(static_cast<int>(r)), w.cols, row.data());
      for (const float x : row)
        MILLION_REQUIRE(std::abs(x) <= 65504.0f, ErrorCode::kBadInput,
                        "a weight of {} does not fit a half; use --backend cpu", x);
      ops().f32_to_f16(row.data(), out + r * w.cols, row.size());
    });
  }
  std::shared_ptr<Device> device_;
  DeviceStream stream_;
};

DeviceLayer upload_layer(Uploader& up, const LayerWeights& w) {
  DeviceLayer layer;
  layer.attn_norm = up.vector(w.attn_norm);
  layer.ffn_norm = up.vector(w.ffn_norm);
  layer.qkv = up.matrices({&w.wq, &w.wk, &w.wv});
  layer.wo = up.matrices({&w.wo});
  layer.gate_up = up.matrices({&w.w_gate, &w.w_up});
  layer.w_down = up.matrices({&w.w_down});
  if (w.bq.empty() && w.bk.empty() && w.bv.empty()) return layer;
  AlignedVector<float> bias;
  for (const auto& [b, rows] :
       {std::pair(&w.bq, w.wq.rows), std::pair(&w.bk, w.wk.rows), std::pair(&w.bv, w.wv.rows)}) {
    bias.insert(bias.end(), b->begin(), b->end());
    if (b->empty()) bias.insert(bias.end(), static_cast<size_t>(rows), 0.0f);
  }
  layer.bias = up.vector(bias);
  return layer;
}

std::shared_ptr<const DeviceWeights> upload(const std::shared_ptr<Device>& device,
                                            const Model& model) {
  const uint64_t needed = values_of(model) * sizeof(uint16_t), free = device->free_bytes();
  MILLION_REQUIRE(needed < free, ErrorCode::kNoResources,
                  "the weights of {} take {:.2f} GiB as halves, {} has {:.2f} GiB free; use a "
                  "smaller model or --backend cpu",
                  model.config.name, static_cast<double>(needed) / (1 << 30), device->info().name,
                  static_cast<double>(free) / (1 << 30));
  auto weights = std::make_shared<DeviceWeights>();
  Uploader up(device);
  weights->token_embedding = up.matrices({&model.token_embedding});
  if (model.output.data != model.token_embedding.data) weights->head = up.matrices({&model.output});
  weights->output_norm = up.vector(model.output_norm);
  for (const LayerWeights& w : model.layers) weights->layers.push_back(upload_layer(up, w));
  up.finish();
  return weights;
}

}  // namespace

std::shared_ptr<const DeviceWeights> device_weights(const std::shared_ptr<Device>& device,
                                                    const std::shared_ptr<const Model>& model) {
  static std::mutex mutex;
  static std::map<std::pair<const Device*, const Model*>, std::weak_ptr<const DeviceWeights>> held;
  std::lock_guard lock(mutex);
  auto& slot = held[{device.get(), model.get()}];
  auto weights = slot.lock();
  if (!weights) slot = weights = upload(device, *model);
  return weights;
}

}  // namespace million
