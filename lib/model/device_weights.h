// SPDX-License-Identifier: Apache-2.0
// A model's weights on a device: matrices as halves, those that share an input joined.
#pragma once

#include "lib/device/device.h"
#include "lib/model/model.h"

#include <memory>
#include <vector>

namespace million {

struct DeviceLayer {
  DeviceBuffer<float> attn_norm, ffn_norm, bias;  ///< bias of q, k, v; empty: none
  DeviceBuffer<uint16_t> qkv, wo, gate_up, w_down;
};

struct DeviceWeights {
  DeviceBuffer<uint16_t> token_embedding, head;  ///< head is empty when it is the embedding
  DeviceBuffer<float> output_norm;
  std::vector<DeviceLayer> layers;
  const uint16_t* output() const { return head.size() > 0 ? head.data() : token_embedding.data(); }
};

/// Uploads a model, or returns what another engine of the same model and device holds. Error
/// (kNoResources) before anything is allocated, with what is needed and what is free; (kBadInput)
/// when a weight is too large for a half.
std::shared_ptr<const DeviceWeights> device_weights(const std::shared_ptr<Device>& device,
                                                    const std::shared_ptr<const Model>& model);

}  // namespace million
