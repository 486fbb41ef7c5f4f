// SPDX-License-Identifier: Apache-2.0
#include "lib/model/hf_config.h"

#include "lib/core/error.h"
#include "lib/core/printable.h"
#include "lib/model/arch_dense.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>

namespace million {
namespace {

constexpr uint64_t kMaxConfig = 1 << 20;

/// Keys whose presence means a network that this decoder does not compute.
void refuse_other_networks(const HfConfig& json) {
  for (const char* key : {"num_local_experts", "num_experts", "n_routed_experts"}) {
    const int n = json.get_size(key, 0, kMaxWidth, 0);
    MILLION_REQUIRE(n == 0, ErrorCode::kBadInput,
                    "{}: {} is {}; only dense feed-forward layers are supported", json.name(), key,
                    n);
  }
  const std::string act = json.get_string("hidden_act", "silu");
  MILLION_REQUIRE(act == "silu" || act == "swish", ErrorCode::kBadInput,
                  "{}: hidden_act is {}, supported: silu", json.name(), printable(act));
  if (const auto quantized = json.section("quantization_config"))
    fail(
        ErrorCode::kBadInput,
        "{}: weights are quantized by {}; supported in safetensors: F32, F16, BF16 (a GGUF file of "
        "the model may have quantized weights)",
        json.name(), printable(quantized->get_string("quant_method", "an unnamed method")));
  const float part = json.get_real("partial_rotary_factor", 0, 1, 1.0);
  MILLION_REQUIRE(part == 1.0f, ErrorCode::kBadInput,
                  "{}: partial_rotary_factor is {}, supported: 1", json.name(), part);
}

void read_heads(const HfConfig& json, ModelConfig& c) {
  c.n_heads = json.get_size("num_attention_heads", 1, kMaxHeads);
  c.n_kv_heads = json.get_size("num_key_value_heads", 1, kMaxHeads, c.n_heads);
  MILLION_REQUIRE(json.has("head_dim") || c.d_model % c.n_heads == 0, ErrorCode::kBadInput,
                  "{}: hidden_size {} is no multiple of {} heads", json.name(), c.d_model,
                  c.n_heads);
  c.head_dim = json.get_size("head_dim", 1, kMaxWidth, c.d_model / c.n_heads);
  require_heads(c, json.name());
}

/// YaRN as Hugging Face's modeling_rope_utils reads it.
void read_yarn(const HfConfig& scaling, ModelConfig& c) {
  RopeParams& rope = c.rope;
  rope.scaling = RopeScaling::kYarn;
  rope.original_context =
      scaling.get_size("original_max_position_embeddings", 1, kMaxContext, c.n_context);
  rope.beta_fast = scaling.get_real("beta_fast", 0, 1e6, 32.0);
  rope.beta_slow = scaling.get_real("beta_slow", 0, 1e6, 1.0);
  if (scaling.has("attention_factor"))
    rope.attention_factor = scaling.get_real("attention_factor", 0, 1e3);
  for (const char* key : {"mscale", "mscale_all_dim"})
    MILLION_REQUIRE(!scaling.has(key), ErrorCode::kBadInput, "{}: {} is not supported",
                    scaling.name(), key);
  MILLION_REQUIRE(scaling.get_bool("truncate", true), ErrorCode::kBadInput,
                  "{}: truncate is false, supported: true", scaling.name());
  // Some files give the context after extension, some (Qwen2.5) the one before.
  c.n_context = std::max(c.n_context, scaled_context(rope.original_context, rope.factor));
}

void read_llama3(const HfConfig& scaling, RopeParams& rope) {
  rope.scaling = RopeScaling::kLlama3;
  rope.low_freq_factor = scaling.get_real("low_freq_factor", 0, 1e3);
  rope.high_freq_factor = scaling.get_real("high_freq_factor", 0, 1e3);
  MILLION_REQUIRE(rope.low_freq_factor < rope.high_freq_factor, ErrorCode::kBadInput,
                  "{}: low_freq_factor {} is not below high_freq_factor {}", scaling.name(),
                  rope.low_freq_factor, rope.high_freq_factor);
  rope.original_context = scaling.get_size("original_max_position_embeddings", 1, kMaxContext);
}

void read_scaling(const HfConfig& scaling, ModelConfig& c) {
  const std::string type = scaling.get_string("rope_type", scaling.get_string("type", "default"));
  if (type == "default") return;
  MILLION_REQUIRE(type == "linear" || type == "dynamic" || type == "yarn" || type == "llama3",
                  ErrorCode::kBadInput,
                  "{}: type {} is not supported, known: default, linear, dynamic, yarn, llama3",
                  scaling.name(), printable(type));
  if (type == "dynamic") {
    // Which base it takes depends on the length of a run, so it belongs to the run's flags.
    spdlog::warn(
        "{}: dynamic scaling is left to the flag --positions dynamic; plain positions, "
        "{} tokens, are used without it",
        scaling.name(), c.n_context);
    return;
  }
  c.rope.factor = scaling.get_real("factor", 0, 1e6);
  if (type == "yarn") read_yarn(scaling, c);
  if (type == "llama3") read_llama3(scaling, c.rope);
  if (type == "linear") {
    c.rope.scaling = RopeScaling::kLinear;
    // max_position_embeddings is the context before scaling, by convention of the serving engines.
    c.n_context = scaled_context(c.n_context, c.rope.factor);
  }
}

/// "rope_parameters" (transformers 5) holds what were rope_theta and rope_scaling before.
void read_rope(const HfConfig& json, ModelConfig& c) {
  c.rope.pairs = RopePairs::kHalves;
  c.rope.n_rot = c.head_dim;
  const auto both = json.section("rope_parameters"), scaling = json.section("rope_scaling");
  const HfConfig& theta = both && both->has("rope_theta") ? *both : json;
  c.rope.base = theta.get_real("rope_theta", 1, 1e12, 10000.0);
  if (both)
    read_scaling(*both, c);
  else if (scaling)
    read_scaling(*scaling, c);
}

}  // namespace

HfConfig HfConfig::read(const std::filesystem::path& folder) {
  const auto path = folder / "config.json";
  return {read_json_object(path, kMaxConfig), path.string()};
}

const SortedJson* HfConfig::find(const std::string& key) const {
  const auto it = json_.find(key);
  return it == json_.end() || it->is_null() ? nullptr : &*it;
}

const SortedJson& HfConfig::require(const std::string& key) const {
  const SortedJson* value = find(key);
  MILLION_REQUIRE(value != nullptr, ErrorCode::kBadInput, "{}: {} is missing", name_, key);
  return *value;
}

int HfConfig::get_size(const std::string& key, int low, int high,
                       std::optional<int> missing) const {
  if (missing && !find(key)) return *missing;
  const SortedJson& value = require(key);
  const bool good = value.is_number_unsigned() &&
                    value.get<uint64_t>() >= static_cast<uint64_t>(low) &&
                    value.get<uint64_t>() <= static_cast<uint64_t>(high);
  MILLION_REQUIRE(good, ErrorCode::kBadInput, "{}: {} is {}, expected an integer from {} to {}",
                  name_, key, printable(value.dump(-1, ' ', true)), low, high);
  return value.get<int>();
}

float HfConfig::get_real(const std::string& key, double low, double high,
                         std::optional<double> missing) const {
  if (missing && !find(key)) return static_cast<float>(*missing);
  const SortedJson& value = require(key);
  const double x = value.is_number() ? value.get<double>() : std::nan("");
  MILLION_REQUIRE(std::isfinite(x) && x > low && x <= high, ErrorCode::kBadInput,
                  "{}: {} is {}, expected a number above {}, at most {}", name_, key,
                  printable(value.dump(-1, ' ', true)), low, high);
  return static_cast<float>(x);
}

bool HfConfig::get_bool(const std::string& key, bool missing) const {
  const SortedJson* value = find(key);
  MILLION_REQUIRE(!value || value->is_boolean(), ErrorCode::kBadInput,
                  "{}: {} is {}, expected true or false", name_, key,
                  printable(value->dump(-1, ' ', true)));
  return value ? value->get<bool>() : missing;
}

std::string HfConfig::get_string(const std::string& key, std::optional<std::string> missing) const {
  if (missing && !find(key)) return *missing;
  const SortedJson& value = require(key);
  MILLION_REQUIRE(value.is_string(), ErrorCode::kBadInput, "{}: {} is {}, expected a string", name_,
                  key, printable(value.dump(-1, ' ', true)));
  return value.get<std::string>();
}

std::optional<HfConfig> HfConfig::section(const std::string& key) const {
  const SortedJson* value = find(key);
  if (!value) return {};
  MILLION_REQUIRE(value->is_object(), ErrorCode::kBadInput, "{}: {} is {}, expected an object",
                  name_, key, printable(value->dump(-1, ' ', true)));
  return HfConfig(*value, name_ + ": " + key);
}

std::string HfConfig::architecture() const {
  const SortedJson* list = find("architectures");
  if (!list) return "";
  MILLION_REQUIRE(list->is_array() && !list->empty() && list->front().is_string(),
                  ErrorCode::kBadInput, "{}: architectures is {}, expected a list of names", name_,
                  printable(list->dump(-1, ' ', true)));
  return list->front().get<std::string>();
}

bool HfConfig::any_other(const std::string& key, std::string_view text) const {
  const SortedJson* list = find(key);
  if (!list || !list->is_array()) return false;
  for (const SortedJson& entry : *list)
    if (entry.is_string() && entry.get_ref<const std::string&>() != text) return true;
  return false;
}

void read_hf_config(const HfConfig& json, ModelConfig& c) {
  refuse_other_networks(json);
  c.n_layers = json.get_size("num_hidden_layers", 1, kMaxLayers);
  c.n_context = json.get_size("max_position_embeddings", 1, kMaxContext);
  c.d_model = json.get_size("hidden_size", 1, kMaxWidth);
  c.d_ff = json.get_size("intermediate_size", 1, kMaxWidth);
  c.rms_eps = json.get_real("rms_norm_eps", 0, 1, 1e-6);
  read_heads(json, c);
  read_rope(json, c);
}

}  // namespace million
