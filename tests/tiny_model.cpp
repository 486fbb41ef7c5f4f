// SPDX-License-Identifier: Apache-2.0
#include "tests/tiny_model.h"

#include "kernels/half.h"
#include "kernels/ops.h"
#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/core/rng.h"

#include <algorithm>
#include <cmath>

namespace million {
namespace {

constexpr uint64_t kAlignment = 32;

std::string sized(std::string_view text) {
  return le_bytes<uint64_t>(text.size()) + std::string(text);
}

int clamp_level(float x, int low, int high) {
  return std::clamp(static_cast<int>(std::lround(x)), low, high);
}

struct Range {
  float low = 0, high = 0, largest = 0;  // largest: the value of greatest magnitude, with its sign
};

Range range_of(const float* x) {
  Range r{x[0], x[0], x[0]};
  for (int i = 1; i < kBlockValues; ++i) {
    r.low = std::min(r.low, x[i]);
    r.high = std::max(r.high, x[i]);
    if (std::abs(x[i]) > std::abs(r.largest)) r.largest = x[i];
  }
  return r;
}

/// Levels 0 .. 2^bits - 1 of one block. Symmetric: x = d (q - 2^(bits-1)); else x = d q + m.
struct Levels {
  uint16_t d, m;
  int q[kBlockValues];
};

Levels quantize_levels(const float* x, int bits, bool symmetric) {
  const Range r = range_of(x);
  const int half = 1 << (bits - 1), top = 2 * half - 1;
  Levels out{};
  out.d = float_to_half(symmetric ? r.largest / static_cast<float>(-half)
                                  : (r.high - r.low) / static_cast<float>(top));
  out.m = float_to_half(r.low);
  const float d = half_to_float(out.d);
  const float base = symmetric ? d * static_cast<float>(-half) : half_to_float(out.m);
  for (int i = 0; i < kBlockValues; ++i)
    out.q[i] = d == 0.0f ? (symmetric ? half : 0) : clamp_level((x[i] - base) / d, 0, top);
  return out;
}

template <class Block>
std::string pack_levels(const float* x) {
  constexpr bool kMinimum = requires(Block b) { b.m; };
  constexpr bool kFifthBit = requires(Block b) { b.high; };
  const Levels levels = quantize_levels(x, kFifthBit ? 5 : 4, !kMinimum);
  Block block{};
  block.d = levels.d;
  if constexpr (kMinimum) block.m = levels.m;
  for (int i = 0; i < 16; ++i)
    block.q[i] = static_cast<uint8_t>((levels.q[i] & 15) | (levels.q[i + 16] & 15) << 4);
  if constexpr (kFifthBit)
    for (int i = 0; i < kBlockValues; ++i)
      block.high[i / 8] |= static_cast<uint8_t>((levels.q[i] >> 4) << (i % 8));
  return le_bytes(block);
}

std::string pack_q8(const float* x) {
  BlockQ8_0 block{};
  block.d = float_to_half(std::abs(range_of(x).largest) / 127.0f);
  const float d = half_to_float(block.d);
  for (int i = 0; i < kBlockValues; ++i)
    block.q[i] = static_cast<int8_t>(d == 0.0f ? 0 : clamp_level(x[i] / d, -127, 127));
  return le_bytes(block);
}

/// Integer scales of sub-blocks under one half: the largest becomes `top`.
struct SubScales {
  uint16_t d;
  int level[16];
  float step(int s) const { return half_to_float(d) * static_cast<float>(level[s]); }
};

SubScales sub_scales(std::span<const float> scales, int top) {
  SubScales out{};
  float largest = 0.0f;
  for (const float s : scales) largest = std::max(largest, std::abs(s));
  out.d = float_to_half(largest / static_cast<float>(top));
  const float d = half_to_float(out.d);
  for (std::size_t s = 0; s < scales.size(); ++s)
    out.level[s] = d == 0.0f ? 0 : clamp_level(scales[s] / d, -top, top);
  return out;
}

void pack_six_bits(const SubScales& scale, const SubScales& minimum, uint8_t* out) {
  for (int s = 0; s < 4; ++s) {
    const int high = scale.level[s + 4], high_minimum = minimum.level[s + 4];
    out[s] = static_cast<uint8_t>(scale.level[s] | high >> 4 << 6);
    out[s + 4] = static_cast<uint8_t>(minimum.level[s] | high_minimum >> 4 << 6);
    out[s + 8] = static_cast<uint8_t>((high & 15) | (high_minimum & 15) << 4);
  }
}

/// Q4_K and Q5_K.
template <class Block>
std::string pack_affine(const float* x) {
  constexpr bool kFifthBit = requires(Block b) { b.high; };
  constexpr int kTop = kFifthBit ? 31 : 15;
  float scales[8], minima[8];
  for (int s = 0; s < 8; ++s) {
    const Range r = range_of(x + 32 * s);
    minima[s] = std::max(0.0f, -r.low);
    scales[s] = std::max(0.0f, r.high + minima[s]) / static_cast<float>(kTop);
  }
  const SubScales scale = sub_scales(scales, 63), minimum = sub_scales(minima, 63);
  Block block{};
  block.d = scale.d, block.dmin = minimum.d;
  pack_six_bits(scale, minimum, block.scales);
  for (int i = 0; i < kSuperValues; ++i) {
    const int s = i / 32, j = i % 32;
    const float d = scale.step(s);
    const int q = d == 0.0f ? 0 : clamp_level((x[i] + minimum.step(s)) / d, 0, kTop);
    block.q[s / 2 * 32 + j] |= static_cast<uint8_t>((q & 15) << s % 2 * 4);
    if constexpr (kFifthBit) block.high[j] |= static_cast<uint8_t>((q >> 4) << s);
  }
  return le_bytes(block);
}

std::string pack_q6_k(const float* x) {
  float scales[16];
  for (int s = 0; s < 16; ++s) {
    float largest = 0.0f;
    for (int i = 0; i < 16; ++i)
      if (std::abs(x[16 * s + i]) > std::abs(largest)) largest = x[16 * s + i];
    scales[s] = largest / -32.0f;
  }
  const SubScales scale = sub_scales(scales, 127);
  BlockQ6_K block{};
  block.d = scale.d;
  for (int s = 0; s < 16; ++s) block.scales[s] = static_cast<int8_t>(scale.level[s]);
  for (int i = 0; i < kSuperValues; ++i) {
    const float d = scale.step(i / 16);
    const int q = 32 + (d == 0.0f ? 0 : clamp_level(x[i] / d, -32, 31));
    block.q[i / 128 * 64 + i % 64] |= static_cast<uint8_t>((q & 15) << i % 128 / 64 * 4);
    block.high[i / 128 * 32 + i % 32] |= static_cast<uint8_t>((q >> 4) << i / 32 % 4 * 2);
  }
  return le_bytes(block);
}

/// Adds the tensors of one model, each from its own random stream.
class Weights {
 public:
  Weights(GgufBuilder& out, const TinyModelSpec& spec) : out_(out), spec_(spec) {}

  void matrix(const std::string& name, BlockType type, int rows, int cols) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(cols));
    const auto x = next(static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols), scale);
    const std::vector<uint64_t> dims = {static_cast<uint64_t>(cols), static_cast<uint64_t>(rows)};
    std::string data = quantize_blocks(type, x);
    if (spec_.as_floats) {
      std::vector<float> values(x.size());
      ops().dequant_row(type, data.data(), rows * cols, values.data());
      data = quantize_blocks(BlockType::kF32, values);
      type = BlockType::kF32;
    }
    out_.tensor(name, dims, ggml_type_id(type), data);
  }
  void vector(const std::string& name, int n, float mean, float scale) {
    auto x = next(static_cast<std::size_t>(n), scale);
    for (float& v : x) v += mean;
    out_.tensor(name, {static_cast<uint64_t>(n)}, 0, quantize_blocks(BlockType::kF32, x));
  }

 private:
  std::vector<float> next(std::size_t n, float scale) {
    return normal_values(spec_.seed * 1000 + stream_++, n, scale);
  }
  GgufBuilder& out_;
  const TinyModelSpec& spec_;
  uint64_t stream_ = 0;
};

void add_keys(GgufBuilder& out, const TinyModelSpec& s) {
  const auto size = [&](const char* key, int n) {
    out.u32(std::string("llama.") + key, static_cast<uint32_t>(n));
  };
  out.string("general.architecture", "llama");
  out.string("general.name", "tiny");
  size("block_count", s.n_layers);
  size("context_length", s.n_context);
  size("embedding_length", s.d_model);
  size("feed_forward_length", s.d_ff);
  size("attention.head_count", s.n_heads);
  size("attention.head_count_kv", s.n_kv_heads);
  size("attention.key_length", s.head_dim);
  size("attention.value_length", s.head_dim);
  size("rope.dimension_count", s.head_dim);
  out.f32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  out.f32("llama.rope.freq_base", 10000.0f);
  if (s.rope_scaling == "linear" || s.rope_scaling == "yarn") {
    out.string("llama.rope.scaling.type", s.rope_scaling);
    out.f32("llama.rope.scaling.factor", 4.0f);
    size("rope.scaling.original_context_length", s.n_context / 4);
  }
}

void add_vocabulary(GgufBuilder& out) {
  const TokenizerData v = tiny_vocabulary();
  out.string("tokenizer.ggml.model", "gpt2");
  out.string("tokenizer.ggml.pre", v.pre);
  out.strings("tokenizer.ggml.tokens", v.tokens);
  out.i32s("tokenizer.ggml.token_type", v.types);
  out.strings("tokenizer.ggml.merges", v.merges);
  out.u32("tokenizer.ggml.bos_token_id", static_cast<uint32_t>(v.bos));
  out.u32("tokenizer.ggml.eos_token_id", static_cast<uint32_t>(v.eos));
  out.boolean("tokenizer.ggml.add_bos_token", false);
  out.string("tokenizer.chat_template",
             "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
             "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}");
}

void add_layer(Weights& w, const TinyModelSpec& s, int layer) {
  const std::string at = fmt::format("blk.{}.", layer);
  const int d_q = s.n_heads * s.head_dim, d_kv = s.n_kv_heads * s.head_dim;
  w.vector(at + "attn_norm.weight", s.d_model, 1.0f, 0.1f);
  w.matrix(at + "attn_q.weight", s.type, d_q, s.d_model);
  w.matrix(at + "attn_k.weight", s.type, d_kv, s.d_model);
  w.matrix(at + "attn_v.weight", s.type, d_kv, s.d_model);
  w.matrix(at + "attn_output.weight", s.type, s.d_model, d_q);
  w.vector(at + "ffn_norm.weight", s.d_model, 1.0f, 0.1f);
  w.matrix(at + "ffn_gate.weight", s.type, s.d_ff, s.d_model);
  w.matrix(at + "ffn_up.weight", s.type, s.d_ff, s.d_model);
  w.matrix(at + "ffn_down.weight", s.type, s.d_model, s.d_ff);
  if (!s.biases) return;
  w.vector(at + "attn_q.bias", d_q, 0.0f, 0.5f);
  w.vector(at + "attn_k.bias", d_kv, 0.0f, 0.5f);
  w.vector(at + "attn_v.bias", d_kv, 0.0f, 0.5f);
}

}  // namespace

void GgufBuilder::raw(const std::string& key, uint32_t type, std::string_view bytes) {
  keys_ += sized(key) + le_bytes(type) + std::string(bytes);
  ++n_keys_;
}
void GgufBuilder::u32(const std::string& key, uint32_t value) { raw(key, 4, le_bytes(value)); }
void GgufBuilder::f32(const std::string& key, float value) { raw(key, 6, le_bytes(value)); }
void GgufBuilder::boolean(const std::string& key, bool value) {
  raw(key, 7, le_bytes<uint8_t>(value ? 1 : 0));
}
void GgufBuilder::string(const std::string& key, std::string_view value) {
  raw(key, 8, sized(value));
}
void GgufBuilder::strings(const std::string& key, std::span<const std::string> values) {
  std::string bytes = le_bytes<uint32_t>(8) + le_bytes<uint64_t>(values.size());
  for (const std::string& v : values) bytes += sized(v);
  raw(key, 9, bytes);
}
void GgufBuilder::i32s(const std::string& key, std::span<const int32_t> values) {
  std::string bytes = le_bytes<uint32_t>(5) + le_bytes<uint64_t>(values.size());
  for (const int32_t v : values) bytes += le_bytes(v);
  raw(key, 9, bytes);
}

void GgufBuilder::raw_tensor(const std::string& name, std::vector<uint64_t> dims,
                             uint32_t ggml_type, uint64_t offset) {
  tensors_ += sized(name) + le_bytes(static_cast<uint32_t>(dims.size()));
  for (const uint64_t d : dims) tensors_ += le_bytes(d);
  tensors_ += le_bytes(ggml_type) + le_bytes(offset);
  ++n_tensors_;
}

void GgufBuilder::tensor(const std::string& name, std::vector<uint64_t> dims, uint32_t ggml_type,
                         std::string_view data) {
  data_.resize((data_.size() + kAlignment - 1) / kAlignment * kAlignment, '\0');
  raw_tensor(name, std::move(dims), ggml_type, data_.size());
  data_ += data;
}

std::string GgufBuilder::finish() const {
  std::string file = magic + le_bytes(version) +
                     le_bytes(n_tensors_ + static_cast<uint64_t>(extra_tensors)) +
                     le_bytes(n_keys_ + static_cast<uint64_t>(extra_keys)) + keys_ + tensors_;
  if (!data_.empty()) file.resize((file.size() + kAlignment - 1) / kAlignment * kAlignment, '\0');
  return file + data_;
}

TokenizerData tiny_vocabulary() {
  TokenizerData v;
  v.pre = "smollm";
  v.tokens = {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"};
  v.types.assign(v.tokens.size(), 3);
  // GPT-2's byte characters, written as UTF-8 of one or two bytes.
  int next = 0x100;
  for (int b = 0; b < 256; ++b) {
    const bool stays = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    const int c = stays ? b : next++;
    v.tokens.push_back(c < 0x80 ? std::string(1, static_cast<char>(c))
                                : std::string{static_cast<char>(0xC0 | (c >> 6)),
                                              static_cast<char>(0x80 | (c & 0x3F))});
  }
  const std::string g = "\u0120";  // the space
  v.merges = {g + " t",   g + " a", "i n",    "h e", "r e",      "o n",    "e r",
              g + "t he", "a t",    g + " s", "o u", "e s",      g + " o", "e n",
              "i s",      g + " w", "n d",    "i t", g + "a nd", "in g"};
  for (const std::string& m : v.merges) {
    const auto space = m.find(' ');
    v.tokens.push_back(m.substr(0, space) + m.substr(space + 1));
  }
  v.types.resize(v.tokens.size(), 1);
  v.bos = 1;
  v.eos = 2;
  return v;
}

std::string tiny_model_bytes(const TinyModelSpec& spec) {
  GgufBuilder out;
  add_keys(out, spec);
  add_vocabulary(out);
  const int n_vocab = static_cast<int>(tiny_vocabulary().tokens.size());
  Weights w(out, spec);
  w.matrix("token_embd.weight", spec.embedding_type, n_vocab, spec.d_model);
  for (int i = 0; i < spec.n_layers; ++i) add_layer(w, spec, i);
  w.vector("output_norm.weight", spec.d_model, 1.0f, 0.1f);
  if (!spec.tied) w.matrix("output.weight", spec.embedding_type, n_vocab, spec.d_model);
  if (spec.rope_scaling == "llama3") {
    std::vector<float> factors;
    for (int i = 0; i < spec.head_dim / 2; ++i) factors.push_back(i < spec.head_dim / 4 ? 1 : 8);
    out.tensor("rope_freqs.weight", {factors.size()}, 0, quantize_blocks(BlockType::kF32, factors));
  }
  return out.finish();
}

std::filesystem::path write_tiny_model(const TinyModelSpec& spec,
                                       const std::filesystem::path& path) {
  write_file_atomic(path, tiny_model_bytes(spec));
  return path;
}

std::vector<float> normal_values(uint64_t seed, std::size_t n, float scale) {
  Rng rng(seed);
  std::vector<float> x(n);
  for (float& v : x) v = scale * static_cast<float>(rng.normal());
  return x;
}

std::string quantize_blocks(BlockType type, std::span<const float> values) {
  const auto step = static_cast<std::size_t>(block_shape(type).values);
  MILLION_ASSERT(values.size() % step == 0);
  std::string out;
  for (std::size_t i = 0; i < values.size(); i += step) {
    const float* x = values.data() + i;
    switch (type) {
      case BlockType::kF32:
        out += le_bytes(*x);
        break;
      case BlockType::kF16:
        out += le_bytes(float_to_half(*x));
        break;
      case BlockType::kBF16:
        out += le_bytes(float_to_bf16(*x));
        break;
      case BlockType::kQ8_0:
        out += pack_q8(x);
        break;
      case BlockType::kQ4_0:
        out += pack_levels<BlockQ4_0>(x);
        break;
      case BlockType::kQ4_1:
        out += pack_levels<BlockQ4_1>(x);
        break;
      case BlockType::kQ5_0:
        out += pack_levels<BlockQ5_0>(x);
        break;
      case BlockType::kQ5_1:
        out += pack_levels<BlockQ5_1>(x);
        break;
      case BlockType::kQ4_K:
        out += pack_affine<BlockQ4_K>(x);
        break;
      case BlockType::kQ5_K:
        out += pack_affine<BlockQ5_K>(x);
        break;
      case BlockType::kQ6_K:
        out += pack_q6_k(x);
        break;
    }
  }
  return out;
}

uint32_t ggml_type_id(BlockType type) {
  constexpr uint32_t kIds[] = {0, 1, 30, 8, 2, 3, 6, 7, 12, 13, 14};  // in the order of BlockType
  return kIds[static_cast<int>(type)];
}

}  // namespace million
