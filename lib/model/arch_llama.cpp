// SPDX-License-Identifier: Apache-2.0
// The Llama family in GGUF: Llama 1-3, SmolLM, TinyLlama, Mistral without sliding window. Keys and
// names as llama.cpp writes them; Q and K rows are permuted so that RoPE turns adjacent channels.
#include "lib/core/error.h"
#include "lib/model/arch_registry.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace million {
namespace {

constexpr std::array kHeadDims = {64, 80, 96, 128,
                                  256};  // what the attention kernels are built for

// Upper bounds far above any real model; they keep every product of two of them inside 64 bits and
// every single one inside int.
constexpr int kMaxLayers = 1 << 12, kMaxWidth = 1 << 22, kMaxHeads = 1 << 14;
constexpr int kMaxContext = 1 << 30;

void read_heads(const GgufFile& f, ModelConfig& c) {
  c.n_heads = get_size(f, "llama.attention.head_count", 1, kMaxHeads);
  c.n_kv_heads =
      get_size(f, "llama.attention.head_count_kv", 1, kMaxHeads, static_cast<uint64_t>(c.n_heads));
  MILLION_REQUIRE(c.n_heads % c.n_kv_heads == 0, ErrorCode::kBadInput,
                  "{}: {} query heads are no multiple of {} KV heads", f.name(), c.n_heads,
                  c.n_kv_heads);
  if (!f.find("llama.attention.key_length"))
    MILLION_REQUIRE(c.d_model % c.n_heads == 0, ErrorCode::kBadInput,
                    "{}: embedding length {} is no multiple of {} heads", f.name(), c.d_model,
                    c.n_heads);
  const auto even_share = static_cast<uint64_t>(c.d_model / c.n_heads);
  c.head_dim = get_size(f, "llama.attention.key_length", 1, kMaxWidth, even_share);
  const int value_dim =
      get_size(f, "llama.attention.value_length", 1, kMaxWidth, static_cast<uint64_t>(c.head_dim));
  MILLION_REQUIRE(std::find(kHeadDims.begin(), kHeadDims.end(), c.head_dim) != kHeadDims.end(),
                  ErrorCode::kBadInput, "{}: head_dim is {}, supported: {}", f.name(), c.head_dim,
                  fmt::join(kHeadDims, ", "));
  MILLION_REQUIRE(value_dim == c.head_dim, ErrorCode::kBadInput,
                  "{}: values have {} channels a head and keys {}; they must be equal", f.name(),
                  value_dim, c.head_dim);
}

/// YaRN's keys; llama.cpp multiplies its own 0.1 ln(factor) + 1 by the attention factors of the
/// file.
void read_yarn(const GgufFile& f, RopeParams& rope) {
  const std::string key = "llama.rope.scaling.";
  rope.beta_fast = get_real(f, key + "yarn_beta_fast", 0, 1e6, 32.0);
  rope.beta_slow = get_real(f, key + "yarn_beta_slow", 0, 1e6, 1.0);
  const double mix = f.get_float(key + "yarn_ext_factor", 1.0);
  MILLION_REQUIRE(mix == 1.0 || mix == -1.0, ErrorCode::kBadInput,
                  "{}: key {}yarn_ext_factor is {}, only the full mix 1 is supported", f.name(),
                  key, mix);
  const float scale = get_real(f, key + "attn_factor", 0, 1e3, 1.0) *
                      get_real(f, key + "yarn_attn_factor", 0, 1e3, 1.0);
  if (scale != 1.0f) rope.attention_factor = scale * (0.1f * std::log(rope.factor) + 1.0f);
}

void read_rope(const GgufFile& f, ModelConfig& c) {
  RopeParams& rope = c.rope;
  rope.pairs = RopePairs::kAdjacent;
  rope.n_rot =
      get_size(f, "llama.rope.dimension_count", 2, c.head_dim, static_cast<uint64_t>(c.head_dim));
  MILLION_REQUIRE(rope.n_rot % 2 == 0, ErrorCode::kBadInput,
                  "{}: llama.rope.dimension_count is {}, expected an even number", f.name(),
                  rope.n_rot);
  rope.base = get_real(f, "llama.rope.freq_base", 1, 1e12, 10000.0);
  const double old_factor = f.get_float("llama.rope.scale_linear", 1.0);  // before 2023-11
  const auto type = f.get_string("llama.rope.scaling.type", old_factor != 1.0 ? "linear" : "none");
  if (type == "none") return;
  MILLION_REQUIRE(type == "linear" || type == "yarn", ErrorCode::kBadInput,
                  "{}: llama.rope.scaling.type is {}, supported: none, linear, yarn, and Llama-3 "
                  "by the tensor rope_freqs.weight",
                  f.name(), printable(type));
  rope.scaling = type == "linear" ? RopeScaling::kLinear : RopeScaling::kYarn;
  rope.factor = get_real(f, "llama.rope.scaling.factor", 0, 1e6, old_factor);
  rope.original_context = get_size(f, "llama.rope.scaling.original_context_length", 1, kMaxContext,
                                   static_cast<uint64_t>(c.n_context));
  if (rope.scaling == RopeScaling::kYarn) read_yarn(f, rope);
}

void read_config(const GgufFile& f, ModelConfig& c) {
  c.n_layers = get_size(f, "llama.block_count", 1, kMaxLayers);
  c.n_context = get_size(f, "llama.context_length", 1, kMaxContext);
  c.d_model = get_size(f, "llama.embedding_length", 1, kMaxWidth);
  c.d_ff = get_size(f, "llama.feed_forward_length", 1, kMaxWidth);
  c.rms_eps = get_real(f, "llama.attention.layer_norm_rms_epsilon", 0, 1);
  const auto n_experts = f.get_uint("llama.expert_count", 0);
  MILLION_REQUIRE(n_experts == 0, ErrorCode::kBadInput,
                  "{}: mixture of {} experts; only dense feed-forward layers are supported",
                  f.name(), n_experts);
  read_heads(f, c);
  read_rope(f, c);
}

/// Llama-3's scaling comes as one divisor per frequency.
void read_rope_factors(const GgufFile& f, TensorSource& source, RopeParams& rope) {
  const auto factors = source.optional_vector("rope_freqs.weight", rope.n_rot / 2);
  for (const float x : factors)
    MILLION_REQUIRE(std::isfinite(x) && x > 0, ErrorCode::kBadInput,
                    "{}: rope_freqs.weight holds {}, expected positive numbers", f.name(), x);
  rope.freq_factors.assign(factors.begin(), factors.end());
}

LayerWeights read_layer(TensorSource& source, const ModelConfig& c, int layer) {
  const std::string at = fmt::format("blk.{}.", layer);
  const int d_q = c.n_heads * c.head_dim, d_kv = c.n_kv_heads * c.head_dim;
  LayerWeights w;
  w.attn_norm = source.vector(at + "attn_norm.weight", c.d_model);
  w.wq = source.matrix(at + "attn_q.weight", d_q, c.d_model);
  w.wk = source.matrix(at + "attn_k.weight", d_kv, c.d_model);
  w.wv = source.matrix(at + "attn_v.weight", d_kv, c.d_model);
  w.wo = source.matrix(at + "attn_output.weight", c.d_model, d_q);
  w.bq = source.optional_vector(at + "attn_q.bias", d_q);
  w.bk = source.optional_vector(at + "attn_k.bias", d_kv);
  w.bv = source.optional_vector(at + "attn_v.bias", d_kv);
  w.ffn_norm = source.vector(at + "ffn_norm.weight", c.d_model);
  w.w_gate = source.matrix(at + "ffn_gate.weight", c.d_ff, c.d_model);
  w.w_up = source.matrix(at + "ffn_up.weight", c.d_ff, c.d_model);
  w.w_down = source.matrix(at + "ffn_down.weight", c.d_model, c.d_ff);
  return w;
}

}  // namespace

void load_llama(const GgufFile& file, Model& model) {
  ModelConfig& c = model.config;
  read_config(file, c);
  c.n_vocab = model.tokenizer.n_vocab();
  TensorSource source(file);
  model.token_embedding = source.matrix("token_embd.weight", c.n_vocab, c.d_model);
  model.output = source.has("output.weight") ? source.matrix("output.weight", c.n_vocab, c.d_model)
                                             : model.token_embedding;
  model.output_norm = source.vector("output_norm.weight", c.d_model);
  read_rope_factors(file, source, c.rope);
  for (int i = 0; i < c.n_layers; ++i) model.layers.push_back(read_layer(source, c, i));
  constexpr std::array<std::string_view, 2> kIgnored = {".attn_rot_embd.weight",
                                                        ".rotary_emb.inv_freq"};  // recomputed
  source.finish(kIgnored);
}

}  // namespace million
