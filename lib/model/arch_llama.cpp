// SPDX-License-Identifier: Apache-2.0
// Llama 1-3, SmolLM, TinyLlama, and in GGUF also Mistral. llama.cpp permutes the rows of Q and K so
// that RoPE turns adjacent channels.
#include "lib/core/error.h"
#include "lib/model/arch_dense.h"
#include "lib/model/hf_config.h"

namespace million {

void load_llama(const ConfigSource& from, TensorSource& tensors, Model& model) {
  // Such a folder also has a bias behind attn_output, which no layer here adds.
  MILLION_REQUIRE(!from.hf || !from.hf->get_bool("attention_bias", false), ErrorCode::kBadInput,
                  "{}: attention_bias is true, supported for {}: false", from.hf->name(),
                  model.config.arch);
  load_dense(from, {.gguf_pairs = RopePairs::kAdjacent, .gguf_qkv_bias = Bias::kOptional}, tensors,
             model);
}

}  // namespace million
