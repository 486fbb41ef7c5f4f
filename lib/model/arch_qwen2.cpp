// SPDX-License-Identifier: Apache-2.0
// Qwen2 and Qwen2.5: the Llama form with biases on Q, K and V, which give some key channels means
// far above their spread. GGUF keeps the order of rows, so RoPE turns halves in both formats.
// Source: arXiv 2407.10671.
#include "lib/model/arch_dense.h"
#include "lib/model/hf_config.h"

namespace million {

void load_qwen2(const ConfigSource& from, TensorSource& tensors, Model& model) {
  load_dense(from,
             {.gguf_pairs = RopePairs::kHalves,
              .gguf_qkv_bias = Bias::kRequired,
              .hf_qkv_bias = Bias::kRequired},
             tensors, model);
  // The window stands in every file and counts only where it is switched on.
  if (from.hf && (from.hf->get_bool("use_sliding_window", false) ||
                  from.hf->any_other("layer_types", "full_attention")))
    model.config.sliding_window = from.hf->get_size("sliding_window", 1, kMaxContext, 0);
}

}  // namespace million
