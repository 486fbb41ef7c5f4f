// SPDX-License-Identifier: Apache-2.0
#include "tests/family_model.h"

#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/core/rng.h"
#include "tests/tiny_model.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>

namespace million {
namespace {

constexpr int kVocab = 280;  // tiny_vocabulary()

int get(const Json& c, const char* key, int missing) { return c.value(key, missing); }
int heads(const Json& c) { return c.at("num_attention_heads"); }
int head_dim(const Json& c) {
  return get(c, "head_dim", c.at("hidden_size").get<int>() / heads(c));
}
int kv_heads(const Json& c) { return get(c, "num_key_value_heads", heads(c)); }
bool is_qwen(const Json& c) { return c.at("model_type") == "qwen2"; }
double rope_theta(const Json& c) {
  const Json rope = c.value("rope_parameters", Json::object());
  return rope.value("rope_theta", c.value("rope_theta", 10000.0));
}

uint64_t name_hash(std::string_view name) {
  uint64_t h = 0xCBF29CE484222325ull;
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001B3ull;
  return h;
}

FamilyTensor make_tensor(std::string name, std::vector<uint64_t> shape) {
  uint64_t n = 1;
  for (const uint64_t s : shape) n *= s;
  Rng rng(name_hash(name));
  FamilyTensor t{std::move(name), std::move(shape), std::vector<float>(n)};
  const bool norm = t.name.find("norm") != std::string::npos;
  const float step = t.name.ends_with("bias") ? 0x1p-6f : 0x1p-9f;
  for (float& x : t.values) {
    const int k = static_cast<int>(rng.next() >> 56) - 128;
    x = norm ? 1.0f + static_cast<float>(k >> 5) / 16.0f : static_cast<float>(k) * step;
  }
  return t;
}

std::string dtype_name(BlockType type) {
  return type == BlockType::kF32 ? "F32" : type == BlockType::kF16 ? "F16" : "BF16";
}

/// tokenizer.json of tiny_vocabulary(), as the tokenizers library writes it.
std::string tokenizer_json() {
  const TokenizerData v = tiny_vocabulary();
  Json vocab = Json::object(), added = Json::array();
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    vocab[v.tokens[i]] = i;
    if (v.types[i] == 3)
      added.push_back({{"id", i},
                       {"content", v.tokens[i]},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false},
                       {"special", true}});
  }
  const Json digits = {{"type", "Digits"}, {"individual_digits", true}};
  const Json bytes = {{"type", "ByteLevel"},
                      {"add_prefix_space", false},
                      {"trim_offsets", true},
                      {"use_regex", true}};
  const Json json = {
      {"version", "1.0"},
      {"added_tokens", added},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", Json::array({digits, bytes})}}},
      {"post_processor", nullptr},
      {"decoder", bytes},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", v.merges}}}};
  return json.dump();
}

/// llama.cpp's order of the rows of Q and K: what were halves of a head become neighbours.
FamilyTensor permuted(FamilyTensor t, int n_heads) {
  const std::vector<float> from = t.values;
  const size_t rows = t.shape[0], cols = t.values.size() / rows;
  const size_t dim = rows / static_cast<size_t>(n_heads);
  for (size_t r = 0; r < rows; ++r) {
    const size_t head = r / dim, i = r % dim;
    const size_t source = head * dim + i / 2 + i % 2 * (dim / 2);
    std::copy_n(from.begin() + static_cast<std::ptrdiff_t>(source * cols), cols,
                t.values.begin() + static_cast<std::ptrdiff_t>(r * cols));
  }
  return t;
}

std::string gguf_name(std::string name) {
  static const std::pair<std::string, std::string> kWords[] = {
      {"model.embed_tokens", "token_embd"},
      {"model.norm", "output_norm"},
      {"lm_head", "output"},
      {"model.layers", "blk"},
      {"post_attention_layernorm", "ffn_norm"},
      {"input_layernorm", "attn_norm"},
      {"self_attn.q_proj", "attn_q"},
      {"self_attn.k_proj", "attn_k"},
      {"self_attn.v_proj", "attn_v"},
      {"self_attn.o_proj", "attn_output"},
      {"mlp.gate_proj", "ffn_gate"},
      {"mlp.up_proj", "ffn_up"},
      {"mlp.down_proj", "ffn_down"}};
  for (const auto& [from, to] : kWords)
    if (const auto at = name.find(from); at != std::string::npos) name.replace(at, from.size(), to);
  return name;
}

/// Divisors of the frequencies, from the formula of Llama 3.1's reference code.
std::vector<float> llama3_factors(const Json& c, const Json& s) {
  const double factor = s.at("factor"), low = s.at("low_freq_factor"),
               high = s.at("high_freq_factor"), old = s.at("original_max_position_embeddings");
  std::vector<float> out;
  for (int i = 0; i < head_dim(c) / 2; ++i) {
    const double wave = 2 * std::numbers::pi * std::pow(rope_theta(c), 2.0 * i / head_dim(c));
    const double smooth = std::clamp((old / wave - low) / (high - low), 0.0, 1.0);
    out.push_back(static_cast<float>(1.0 / ((1.0 - smooth) / factor + smooth)));
  }
  return out;
}

void add_keys(GgufBuilder& out, const Json& c) {
  const std::string arch = is_qwen(c) ? "qwen2" : "llama";
  const auto size = [&](const char* key, int n) {
    out.u32(arch + "." + key, static_cast<uint32_t>(n));
  };
  out.string("general.architecture", arch);
  out.string("general.name", "family");
  size("block_count", c.at("num_hidden_layers"));
  size("context_length", c.at("max_position_embeddings"));
  size("embedding_length", c.at("hidden_size"));
  size("feed_forward_length", c.at("intermediate_size"));
  size("attention.head_count", heads(c));
  size("attention.head_count_kv", kv_heads(c));
  if (c.contains("head_dim")) size("attention.key_length", head_dim(c));
  if (c.contains("head_dim")) size("attention.value_length", head_dim(c));
  out.f32(arch + ".attention.layer_norm_rms_epsilon", c.at("rms_norm_eps"));
  out.f32(arch + ".rope.freq_base", static_cast<float>(rope_theta(c)));
  const Json scaling = c.value("rope_scaling", Json::object());
  const std::string type = scaling.value("type", "");
  if (type != "linear" && type != "yarn") return;
  out.string(arch + ".rope.scaling.type", type);
  out.f32(arch + ".rope.scaling.factor", scaling.at("factor"));
  if (type == "yarn")
    size("rope.scaling.original_context_length", scaling.at("original_max_position_embeddings"));
}

void add_tensor(GgufBuilder& out, const FamilyTensor& t, BlockType type) {
  const BlockType stored = t.shape.size() == 1 ? BlockType::kF32 : type;
  out.tensor(gguf_name(t.name), {t.shape.rbegin(), t.shape.rend()}, ggml_type_id(stored),
             quantize_blocks(stored, t.values));
}

}  // namespace

void SafetensorsBuilder::raw(const std::string& entry) {
  header_ += (header_.empty() ? "" : ",") + entry;
}

void SafetensorsBuilder::tensor(const std::string& name, const std::string& dtype,
                                std::vector<uint64_t> shape, std::string_view data) {
  raw(Json(name).dump() + ":" +
      Json{{"dtype", dtype},
           {"shape", shape},
           {"data_offsets", {data_.size(), data_.size() + data.size()}}}
          .dump());
  data_ += data;
}

std::string SafetensorsBuilder::file(std::string_view header, std::string_view data) {
  return le_bytes<uint64_t>(header.size()) + std::string(header) + std::string(data);
}

std::vector<FamilyTensor> family_tensors(const Json& c) {
  const uint64_t d = c.at("hidden_size"), ff = c.at("intermediate_size"), vocab = kVocab;
  const auto dim = static_cast<uint64_t>(head_dim(c));
  const uint64_t q = static_cast<uint64_t>(heads(c)) * dim,
                 kv = static_cast<uint64_t>(kv_heads(c)) * dim;
  std::vector<FamilyTensor> out;
  const auto add = [&](const std::string& name, std::vector<uint64_t> shape) {
    out.push_back(make_tensor(name, std::move(shape)));
  };
  add("model.embed_tokens.weight", {vocab, d});
  add("model.norm.weight", {d});
  if (!c.value("tie_word_embeddings", false)) add("lm_head.weight", {vocab, d});
  for (int i = 0; i < c.at("num_hidden_layers").get<int>(); ++i) {
    const std::string at = fmt::format("model.layers.{}.", i);
    add(at + "input_layernorm.weight", {d});
    add(at + "post_attention_layernorm.weight", {d});
    add(at + "self_attn.q_proj.weight", {q, d});
    add(at + "self_attn.k_proj.weight", {kv, d});
    add(at + "self_attn.v_proj.weight", {kv, d});
    add(at + "self_attn.o_proj.weight", {d, q});
    add(at + "mlp.gate_proj.weight", {ff, d});
    add(at + "mlp.up_proj.weight", {ff, d});
    add(at + "mlp.down_proj.weight", {d, ff});
    if (!is_qwen(c)) continue;
    add(at + "self_attn.q_proj.bias", {q});
    add(at + "self_attn.k_proj.bias", {kv});
    add(at + "self_attn.v_proj.bias", {kv});
  }
  return out;
}

void write_family_folder(const Json& config, const FolderSpec& spec,
                         const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  write_file_atomic(folder / "config.json", config.dump(2));
  write_file_atomic(folder / "tokenizer.json", tokenizer_json());
  std::vector<SafetensorsBuilder> shards(static_cast<size_t>(spec.n_shards));
  Json map = Json::object();
  const auto shard_name = [&](size_t i) {
    return spec.n_shards == 1
               ? std::string("model.safetensors")
               : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, spec.n_shards);
  };
  size_t next = 0;
  for (const FamilyTensor& t : family_tensors(config)) {
    const size_t shard = next++ % shards.size();
    shards[shard].tensor(t.name, dtype_name(spec.type), t.shape,
                         quantize_blocks(spec.type, t.values));
    map[t.name] = shard_name(shard);
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    shards[i].padding.assign(static_cast<size_t>(spec.padding), ' ');
    write_file_atomic(folder / shard_name(i), shards[i].finish());
  }
  if (spec.n_shards > 1)
    write_file_atomic(folder / "model.safetensors.index.json",
                      Json{{"metadata", Json::object()}, {"weight_map", map}}.dump());
}

std::string family_gguf(const Json& config, BlockType type) {
  GgufBuilder out;
  add_keys(out, config);
  const TokenizerData v = tiny_vocabulary();
  out.string("tokenizer.ggml.model", "gpt2");
  out.string("tokenizer.ggml.pre", v.pre);
  out.strings("tokenizer.ggml.tokens", v.tokens);
  out.i32s("tokenizer.ggml.token_type", v.types);
  out.strings("tokenizer.ggml.merges", v.merges);
  for (FamilyTensor t : family_tensors(config)) {
    const bool query = t.name.find("q_proj") != std::string::npos;
    const bool key = t.name.find("k_proj") != std::string::npos;
    if (!is_qwen(config) && (query || key))
      t = permuted(std::move(t), query ? heads(config) : kv_heads(config));
    add_tensor(out, t, type);
  }
  const Json scaling = config.value("rope_scaling", Json::object());
  if (scaling.value("rope_type", "") == "llama3")
    add_tensor(out,
               {"rope_freqs.weight",
                {static_cast<uint64_t>(head_dim(config) / 2)},
                llama3_factors(config, scaling)},
               type);
  return out.finish();
}

}  // namespace million
