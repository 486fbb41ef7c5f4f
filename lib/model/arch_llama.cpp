// SPDX-License-Identifier: Apache-2.0
// Llama 1-3, SmolLM, TinyLlama, and in GGUF also Mistral. llama.cpp permutes the rows of Q and K so
// that RoPE turns adjacent channels.
#include "lib/model/arch_dense.h"
#include "lib/model/hf_config.h"

namespace million {

void load_llama(const ConfigSource& from, TensorSource& tensors, Model& model) {
  const bool bias = from.hf && from.hf->get_bool("attention_bias", false);
  load_dense(from,
             {.gguf_pairs = RopePairs::kAdjacent,
              .gguf_qkv_bias = Bias::kOptional,
              .hf_qkv_bias = bias ? Bias::kRequired : Bias::kNone},
             tensors, model);
}

}  // namespace million
