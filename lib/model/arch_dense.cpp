// SPDX-License-Identifier: Apache-2.0
#include "lib/model/arch_dense.h"

#include "lib/core/error.h"
#include "lib/model/gguf_config.h"
#include "lib/model/hf_config.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace million {
namespace {

constexpr std::array kHeadDims = {64, 80, 96, 128,
                                  256};  // what the attention kernels are built for

/// Llama-3's scaling in GGUF: one divisor per frequency.
void read_rope_factors(TensorSource& tensors, RopeParams& rope) {
  const auto factors = tensors.optional_vector("rope_freqs.weight", rope.n_rot / 2);
  for (const float x : factors)
    MILLION_REQUIRE(std::isfinite(x) && x > 0, ErrorCode::kBadInput,
                    "{}: rope_freqs.weight holds {}, expected positive numbers", tensors.name(), x);
  rope.freq_factors.assign(factors.begin(), factors.end());
}

AlignedVector<float> read_bias(TensorSource& tensors, Bias bias, const std::string& name, int n) {
  if (bias == Bias::kNone) return {};
  return bias == Bias::kRequired ? tensors.vector(name, n) : tensors.optional_vector(name, n);
}

LayerWeights read_layer(TensorSource& tensors, const ModelConfig& c, Bias bias, int layer) {
  const std::string at = fmt::format("blk.{}.", layer);
  const int d_q = c.n_heads * c.head_dim, d_kv = c.n_kv_heads * c.head_dim;
  LayerWeights w;
  w.attn_norm = tensors.vector(at + "attn_norm.weight", c.d_model);
  w.wq = tensors.matrix(at + "attn_q.weight", d_q, c.d_model);
  w.wk = tensors.matrix(at + "attn_k.weight", d_kv, c.d_model);
  w.wv = tensors.matrix(at + "attn_v.weight", d_kv, c.d_model);
  w.wo = tensors.matrix(at + "attn_output.weight", c.d_model, d_q);
  w.bq = read_bias(tensors, bias, at + "attn_q.bias", d_q);
  w.bk = read_bias(tensors, bias, at + "attn_k.bias", d_kv);
  w.bv = read_bias(tensors, bias, at + "attn_v.bias", d_kv);
  w.ffn_norm = tensors.vector(at + "ffn_norm.weight", c.d_model);
  w.w_gate = tensors.matrix(at + "ffn_gate.weight", c.d_ff, c.d_model);
  w.w_up = tensors.matrix(at + "ffn_up.weight", c.d_ff, c.d_model);
  w.w_down = tensors.matrix(at + "ffn_down.weight", c.d_model, c.d_ff);
  return w;
}

}  // namespace

int scaled_context(int trained, float factor) {
  const double reach = static_cast<double>(trained) * static_cast<double>(factor);
  return static_cast<int>(std::clamp<double>(reach, 1, kMaxContext));
}

void require_heads(const ModelConfig& c, const std::string& file) {
  MILLION_REQUIRE(c.n_heads % c.n_kv_heads == 0, ErrorCode::kBadInput,
                  "{}: {} query heads are no multiple of {} KV heads", file, c.n_heads,
                  c.n_kv_heads);
  MILLION_REQUIRE(std::find(kHeadDims.begin(), kHeadDims.end(), c.head_dim) != kHeadDims.end(),
                  ErrorCode::kBadInput, "{}: head_dim is {}, supported: {}", file, c.head_dim,
                  fmt::join(kHeadDims, ", "));
}

void load_dense(const ConfigSource& from, const DenseRecipe& recipe, TensorSource& tensors,
                Model& model) {
  ModelConfig& c = model.config;
  bool tied = false;
  if (from.gguf) {
    read_gguf_config(*from.gguf, recipe.gguf_pairs, c);
    tied = !tensors.has("output.weight");
  } else {
    read_hf_config(*from.hf, c);
    tied = from.hf->get_bool("tie_word_embeddings", false);
    if (tied) tensors.ignore("output.weight");  // saved by some, a copy of the embedding
  }
  c.n_vocab = model.tokenizer.n_vocab();
  model.token_embedding = tensors.matrix("token_embd.weight", c.n_vocab, c.d_model);
  model.output =
      tied ? model.token_embedding : tensors.matrix("output.weight", c.n_vocab, c.d_model);
  model.output_norm = tensors.vector("output_norm.weight", c.d_model);
  read_rope_factors(tensors, c.rope);
  const Bias bias = from.gguf ? recipe.gguf_qkv_bias : recipe.hf_qkv_bias;
  for (int i = 0; i < c.n_layers; ++i) model.layers.push_back(read_layer(tensors, c, bias, i));
  tensors.finish();
}

}  // namespace million
