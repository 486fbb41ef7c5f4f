// SPDX-License-Identifier: Apache-2.0
// Mistral 7B: the Llama form without biases; version 0.1 was trained with attention to the last
// sliding_window tokens. Up to that length full attention is equal, beyond it a run is warned of
// (warn_beyond_training). Source: arXiv 2310.06825. GGUF files of it have the architecture "llama".
#include "lib/model/arch_dense.h"
#include "lib/model/hf_config.h"

namespace million {

void load_mistral(const ConfigSource& from, TensorSource& tensors, Model& model) {
  load_dense(from,
             {.gguf_pairs = RopePairs::kAdjacent,
              .gguf_qkv_bias = Bias::kNone,
              .hf_qkv_bias = Bias::kNone},
             tensors, model);
  if (from.hf) model.config.sliding_window = from.hf->get_size("sliding_window", 1, kMaxContext, 0);
}

}  // namespace million
