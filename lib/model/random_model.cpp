// SPDX-License-Identifier: Apache-2.0
#include "lib/model/random_model.h"

#include "kernels/half.h"
#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/core/parallel.h"
#include "lib/core/rng.h"
#include "lib/model/tokenizer_files.h"
#include "lib/model/tokenizer_scheme.h"
#include "lib/quant/options.h"
#include "lib/results/provenance.h"

#include <array>
#include <cmath>
#include <cstring>
#include <utility>

namespace million {
namespace {

constexpr auto kL = RopeScaling::kLlama3;

// From the config.json of the models' publishers. The last four columns: tied head, biases of Q, K
// and V, RoPE scaling with factor and context before it.
constexpr ModelShape kShapes[] = {
    // name            family    layers width heads kv dim  mlp    vocab   context eps   base
    {"llama-2-7b", "llama", 32, 4096, 32, 32, 128, 11008, 32000, 4096, 1e-5f, 1e4f},
    {"llama-2-13b", "llama", 40, 5120, 40, 40, 128, 13824, 32000, 4096, 1e-5f, 1e4f},
    {"longchat-7b-32k", "llama", 32, 4096, 32, 32, 128, 11008, 32000, 32768, 1e-6f, 1e4f, false,
     false, RopeScaling::kLinear, 8.0f, 4096},
    {"yarn-llama-2-7b-128k", "llama", 32, 4096, 32, 32, 128, 11008, 32000, 131072, 1e-5f, 1e4f,
     false, false, RopeScaling::kYarn, 32.0f, 4096},
    {"llama-3.1-8b", "llama", 32, 4096, 32, 8, 128, 14336, 128256, 131072, 1e-5f, 5e5f, false,
     false, kL, 8.0f, 8192},
    {"llama-3.2-1b", "llama", 16, 2048, 32, 8, 64, 8192, 128256, 131072, 1e-5f, 5e5f, true, false,
     kL, 32.0f, 8192},
    {"llama-3.2-3b", "llama", 28, 3072, 24, 8, 128, 8192, 128256, 131072, 1e-5f, 5e5f, true, false,
     kL, 32.0f, 8192},
    {"mistral-7b", "mistral", 32, 4096, 32, 8, 128, 14336, 32768, 32768, 1e-5f, 1e6f},
    {"qwen2.5-0.5b", "qwen2", 24, 896, 14, 2, 64, 4864, 151936, 32768, 1e-6f, 1e6f, true, true},
    {"qwen2.5-1.5b", "qwen2", 28, 1536, 12, 2, 128, 8960, 151936, 131072, 1e-6f, 1e6f, true, true},
    {"qwen2.5-7b", "qwen2", 28, 3584, 28, 4, 128, 18944, 152064, 131072, 1e-6f, 1e6f, false, true},
    {"smollm2-135m", "llama", 30, 576, 9, 3, 64, 1536, 49152, 8192, 1e-5f, 1e5f, true},
    {"tinyllama-1.1b", "llama", 22, 2048, 32, 4, 64, 5632, 32000, 2048, 1e-5f, 1e4f},
};

constexpr OptionInfo kOptions[] = {{"layers", "0", "0..4096", "layers, 0: as published"},
                                   {"type", "q4_0", "q4_0|q8_0|f16", "type of all matrices", true},
                                   {"seed", "1", "0..1000000", "of the weights"}};

const ModelShape& find_shape(std::string_view name) {
  std::string known;
  for (const ModelShape& s : kShapes) {
    if (s.name == name) return s;
    known += (known.empty() ? "" : ", ") + std::string(s.name);
  }
  fail(ErrorCode::kUsage, "model random:{}: unknown shape, known: {}", name, known);
}

/// Bytes of `type` whose values spread about as 1 / sqrt(cols), so that hidden states stay finite
/// over any number of layers.
class NoiseFill {
 public:
  NoiseFill(BlockType type, int cols) : type_(type), shape_(block_shape(type)) {
    const double spread = 1.0 / std::sqrt(static_cast<double>(cols));
    // Uniform codes of b bits have a spread of 2^b / sqrt(12) steps.
    const double levels = type == BlockType::kQ8_0 ? 256.0 : 16.0;
    scale_ = float_to_half(static_cast<float>(spread * std::sqrt(12.0) / levels));
    for (int i = 0; i < 256; ++i)
      halves_[static_cast<size_t>(i)] =
          float_to_half(static_cast<float>(spread * std::sqrt(12.0) * ((i + 0.5) / 256.0 - 0.5)));
  }

  void row(std::byte* out, int cols, Rng rng) const {
    if (type_ == BlockType::kF16) {
      for (int i = 0; i < cols; i += 8) {
        const uint64_t bits = rng.next();
        for (int j = 0; j < std::min(8, cols - i); ++j)
          std::memcpy(out + 2 * (i + j), &halves_[bits >> (8 * j) & 255], 2);
      }
      return;
    }
    for (int i = 0; i < cols / shape_.values; ++i, out += shape_.bytes) {
      std::memcpy(out, &scale_, sizeof scale_);
      for (size_t j = sizeof scale_; j < shape_.bytes; j += sizeof(uint64_t)) {
        const uint64_t bits = rng.next();
        std::memcpy(out + j, &bits, std::min(sizeof bits, shape_.bytes - j));
      }
    }
  }

 private:
  BlockType type_;
  BlockShape shape_;
  uint16_t scale_ = 0;
  std::array<uint16_t, 256> halves_{};
};

/// Makes the weights; matrices are rows of one allocation each.
class Maker {
 public:
  Maker(BlockType type, uint64_t seed) : type_(type), seed_(seed) {}

  WeightView matrix(int rows, int cols) {
    WeightView view{type_, nullptr, rows, cols};
    AlignedVector<std::byte> memory(view.row_bytes() * static_cast<size_t>(rows));
    std::byte* const bytes = memory.data();
    const NoiseFill noise(type_, cols);
    const uint64_t stream = (++n_matrices_) << 32;
    parallel_for(rows, [&](int64_t r) {
      noise.row(bytes + static_cast<size_t>(r) * view.row_bytes(), cols,
                Rng(seed_, stream + static_cast<uint64_t>(r)));
    });
    view.data = bytes;
    storage->push_back(std::move(memory));
    return view;
  }
  AlignedVector<float> bias(int n) {
    Rng rng(seed_, (++n_matrices_) << 32);
    AlignedVector<float> out(static_cast<size_t>(n));
    for (float& x : out) x = static_cast<float>(rng.normal());
    return out;
  }

  std::shared_ptr<std::vector<AlignedVector<std::byte>>> storage =
      std::make_shared<std::vector<AlignedVector<std::byte>>>();

 private:
  BlockType type_;
  uint64_t seed_, n_matrices_ = 0;
};

LayerWeights make_layer(Maker& make, const ModelConfig& c, bool biases) {
  const int d_q = c.n_heads * c.head_dim, d_kv = c.n_kv_heads * c.head_dim;
  LayerWeights w;
  w.attn_norm.assign(static_cast<size_t>(c.d_model), 1.0f);
  w.ffn_norm = w.attn_norm;
  w.wq = make.matrix(d_q, c.d_model);
  w.wk = make.matrix(d_kv, c.d_model);
  w.wv = make.matrix(d_kv, c.d_model);
  w.wo = make.matrix(c.d_model, d_q);
  w.w_gate = make.matrix(c.d_ff, c.d_model);
  w.w_up = make.matrix(c.d_ff, c.d_model);
  w.w_down = make.matrix(c.d_model, c.d_ff);
  if (!biases) return w;
  w.bq = make.bias(d_q);
  w.bk = make.bias(d_kv);
  w.bv = make.bias(d_kv);
  return w;
}

/// The 256 bytes in GPT-2's characters, then tokens that no text gives.
TokenizerData byte_vocabulary(int n_vocab) {
  TokenizerData v;
  v.pre = "gpt-2";
  const auto characters = byte_characters();
  v.tokens.assign(characters.begin(), characters.end());
  v.types.assign(v.tokens.size(), 1);
  pad_vocabulary(v, static_cast<std::size_t>(n_vocab), "byte vocabulary");
  return v;
}

ModelConfig config_of(const ModelShape& s, int n_layers) {
  ModelConfig c;
  c.arch = s.arch;
  c.name = fmt::format("random {}", s.name);
  c.n_layers = n_layers;
  c.d_model = s.d_model;
  c.n_heads = s.n_heads;
  c.n_kv_heads = s.n_kv_heads;
  c.head_dim = s.head_dim;
  c.d_ff = s.d_ff;
  c.n_vocab = s.n_vocab;
  c.n_context = s.n_context;
  c.rms_eps = s.rms_eps;
  c.rope.n_rot = s.head_dim;
  c.rope.base = s.rope_base;
  c.rope.pairs = RopePairs::kHalves;
  c.rope.scaling = s.scaling;
  c.rope.factor = s.factor;
  c.rope.original_context = s.original_context;
  return c;
}

/// Bytes of the matrices of one layer, and of embedding and head.
std::pair<uint64_t, uint64_t> bytes_of(const ModelConfig& c, bool tied, BlockType type) {
  const BlockShape shape = block_shape(type);
  const uint64_t d = static_cast<uint64_t>(c.d_model), dim = static_cast<uint64_t>(c.head_dim);
  const uint64_t heads = 2 * static_cast<uint64_t>(c.n_heads + c.n_kv_heads);
  const uint64_t layer = d * (heads * dim + 3 * static_cast<uint64_t>(c.d_ff));
  const uint64_t ends = d * static_cast<uint64_t>(c.n_vocab) * (tied ? 1 : 2);
  const auto bytes = [&](uint64_t n) {
    return n / static_cast<uint64_t>(shape.values) * shape.bytes;
  };
  return {bytes(layer), bytes(ends)};
}

void require_memory(const ModelConfig& c, uint64_t layer, uint64_t ends, std::string_view name) {
  const uint64_t needed = ends + static_cast<uint64_t>(c.n_layers) * layer;
  const uint64_t free = available_memory_bytes();
  if (free == 0 || needed < free) return;  // 0: unknown
  const auto gib = [](uint64_t n) { return static_cast<double>(n) / (1 << 30); };
  const uint64_t fit = free > ends ? (free - ends) / layer : 0;
  fail(ErrorCode::kNoResources,
       "model random:{}: {} layers take {:.1f} GiB, {:.1f} GiB are available; {}", name, c.n_layers,
       gib(needed), gib(free),
       fit > 0 ? fmt::format("use at most layers={}, or a smaller type", fit)
               : std::string("use a smaller shape"));
}

}  // namespace

std::span<const ModelShape> model_shapes() { return kShapes; }

std::shared_ptr<const Model> random_model(std::string_view text) {
  const size_t comma = text.find(',');
  const ModelShape& shape = find_shape(text.substr(0, comma));
  const Options options(
      fmt::format("model random:{}", shape.name), kOptions,
      comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1));
  const std::string type_name = options.word("type", "q4_0|q8_0|f16");
  const BlockType type = type_name == "q4_0"   ? BlockType::kQ4_0
                         : type_name == "q8_0" ? BlockType::kQ8_0
                                               : BlockType::kF16;
  const int layers = options.integer("layers", 0, 4096);
  auto model = std::make_shared<Model>();
  model->config = config_of(shape, layers > 0 ? layers : shape.n_layers);
  ModelConfig& c = model->config;
  if (c.n_layers != shape.n_layers) c.name += fmt::format(" of {} layers", c.n_layers);
  const auto [layer_bytes, end_bytes] = bytes_of(c, shape.tied, type);
  require_memory(c, layer_bytes, end_bytes, text);
  model->tokenizer = Tokenizer(byte_vocabulary(c.n_vocab));
  Maker make(type, static_cast<uint64_t>(options.integer("seed", 0, 1000000)));
  model->token_embedding = make.matrix(c.n_vocab, c.d_model);
  model->output = shape.tied ? model->token_embedding : make.matrix(c.n_vocab, c.d_model);
  model->output_norm.assign(static_cast<size_t>(c.d_model), 1.0f);
  for (int i = 0; i < c.n_layers; ++i) model->layers.push_back(make_layer(make, c, shape.biases));
  model->path = fmt::format("random:{},{}", shape.name, options.to_string());
  model->sha256 = sha256_of(model->path.string());  // stands for the weights, which it determines
  model->weight_bytes = end_bytes + static_cast<uint64_t>(c.n_layers) * layer_bytes;
  model->storage = make.storage;
  return model;
}

}  // namespace million
