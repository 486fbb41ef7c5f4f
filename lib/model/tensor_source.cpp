// SPDX-License-Identifier: Apache-2.0
#include "lib/model/tensor_source.h"

#include "kernels/half.h"
#include "lib/core/error.h"
#include "lib/core/printable.h"
#include "lib/model/gguf.h"
#include "lib/model/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace million {
namespace {

struct NamePair {
  std::string_view gguf, hf;
};

// Names outside and inside of the layers; checked against the gguf package by test_families.
constexpr NamePair kModelNames[] = {{"token_embd.weight", "model.embed_tokens.weight"},
                                    {"output_norm.weight", "model.norm.weight"},
                                    {"output.weight", "lm_head.weight"}};
constexpr NamePair kLayerNames[] = {
    {"attn_norm", "input_layernorm"},    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},      {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"}, {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},       {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"}};

// Tables that some files carry and that we compute: GGUF's, then Hugging Face's.
constexpr std::array<std::string_view, 2> kComputed = {".attn_rot_embd.weight",
                                                       ".rotary_emb.inv_freq"};

std::optional<BlockType> float_type(std::string_view dtype) {
  if (dtype == "F32") return BlockType::kF32;
  if (dtype == "F16") return BlockType::kF16;
  if (dtype == "BF16") return BlockType::kBF16;
  return {};
}

/// Bytes of the unit in which kernels read a type; blocks of quantized types are packed.
std::size_t alignment_of(BlockType type) {
  const BlockShape shape = block_shape(type);
  return shape.values == 1 ? shape.bytes : 1;
}

/// In the order in which the format writes it.
std::string shape_text(std::vector<uint64_t> shape, bool gguf) {
  if (gguf) std::reverse(shape.begin(), shape.end());
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

}  // namespace

std::string hf_tensor_name(std::string_view gguf_name) {
  for (const NamePair& n : kModelNames)
    if (n.gguf == gguf_name) return std::string(n.hf);
  constexpr std::string_view kLayer = "blk.";
  if (!gguf_name.starts_with(kLayer)) return "";
  const auto part = gguf_name.find('.', kLayer.size()), kind = gguf_name.rfind('.');
  if (part == std::string_view::npos || kind <= part) return "";
  const auto layer = gguf_name.substr(kLayer.size(), part - kLayer.size());
  const auto inner = gguf_name.substr(part + 1, kind - part - 1);
  for (const NamePair& n : kLayerNames)
    if (n.gguf == inner)
      return fmt::format("model.layers.{}.{}{}", layer, n.hf, gguf_name.substr(kind));
  return "";
}

TensorSource::TensorSource(const GgufFile& file) : name_(file.name()) {
  for (const GgufTensor& t : file.tensors())
    tensors_.emplace(t.name, Stored{block_type_name(t.type), t.type,
                                    std::vector(t.dims.rbegin(), t.dims.rend()), t.data, t.bytes});
}

TensorSource::TensorSource(const SafetensorsFolder& folder) : name_(folder.name()), gguf_(false) {
  for (const SafeTensor* t : folder.tensors()) {
    const bool fresh =
        tensors_
            .emplace(t->name, Stored{t->dtype, float_type(t->dtype), t->shape, t->data, t->bytes})
            .second;
    MILLION_REQUIRE(fresh, ErrorCode::kBadInput, "{}: tensor {} is in two shards", name_,
                    printable(t->name));
  }
}

std::string TensorSource::stored_name(std::string_view name) const {
  return gguf_ ? std::string(name) : hf_tensor_name(name);
}

TensorSource::Stored* TensorSource::find(std::string_view name) {
  const std::string stored = stored_name(name);
  if (stored.empty()) return nullptr;  // the format has no name for it
  const auto it = tensors_.find(stored);
  return it == tensors_.end() ? nullptr : &it->second;
}
const TensorSource::Stored* TensorSource::find(std::string_view name) const {
  return const_cast<TensorSource*>(this)->find(name);
}

uint64_t TensorSource::rows(const std::string& name) const {
  const Stored* t = find(name);
  MILLION_REQUIRE(t != nullptr && !t->shape.empty(), ErrorCode::kBadInput,
                  "{}: tensor {} is missing", name_, stored_name(name));
  return t->shape[0];
}

TensorSource::Stored& TensorSource::take(const std::string& name,
                                         const std::vector<uint64_t>& shape) {
  Stored* t = find(name);
  MILLION_REQUIRE(t != nullptr, ErrorCode::kBadInput, "{}: tensor {} is missing", name_,
                  stored_name(name));
  MILLION_REQUIRE(t->shape == shape, ErrorCode::kBadInput,
                  "{}: tensor {} has the shape {}, expected {}", name_, stored_name(name),
                  shape_text(t->shape, gguf_), shape_text(shape, gguf_));
  MILLION_REQUIRE(t->type.has_value(), ErrorCode::kBadInput,
                  "{}: tensor {} is {}, supported in safetensors: F32, F16, BF16", name_,
                  stored_name(name), t->dtype);
  t->taken = true;
  return *t;
}

WeightView TensorSource::matrix(const std::string& name, int rows, int cols) {
  Stored& t = take(name, {static_cast<uint64_t>(rows), static_cast<uint64_t>(cols)});
  if (reinterpret_cast<uintptr_t>(t.data) % alignment_of(*t.type) != 0) {
    copies.emplace_back(t.data, t.data + t.bytes);
    t.data = copies.back().data();
  }
  return {.type = *t.type, .data = t.data, .rows = rows, .cols = cols};
}

AlignedVector<float> TensorSource::vector(const std::string& name, int n) {
  const Stored& t = take(name, {static_cast<uint64_t>(n)});
  AlignedVector<float> out(static_cast<std::size_t>(n));
  if (t.type == BlockType::kF32) {
    std::memcpy(out.data(), t.data, t.bytes);
    return out;
  }
  const bool half = t.type == BlockType::kF16;
  MILLION_REQUIRE(half || t.type == BlockType::kBF16, ErrorCode::kBadInput,
                  "{}: vector {} is {}, expected F32, F16 or BF16", name_, stored_name(name),
                  t.dtype);
  for (std::size_t i = 0; i < out.size(); ++i) {
    uint16_t bits;
    std::memcpy(&bits, t.data + 2 * i, sizeof bits);
    out[i] = half ? half_to_float(bits) : bf16_to_float(bits);
  }
  return out;
}

AlignedVector<float> TensorSource::optional_vector(const std::string& name, int n) {
  return has(name) ? vector(name, n) : AlignedVector<float>();
}

void TensorSource::ignore(std::string_view name) {
  if (Stored* t = find(name)) t->taken = true;
}

void TensorSource::finish() const {
  for (const auto& [name, t] : tensors_) {
    bool known = t.taken;
    for (const auto suffix : kComputed) known = known || name.ends_with(suffix);
    MILLION_REQUIRE(known, ErrorCode::kBadInput,
                    "{}: tensor {} has no place in this architecture; leaving it out would give "
                    "wrong results",
                    name_, printable(name));
  }
}

}  // namespace million
