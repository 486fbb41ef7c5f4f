// SPDX-License-Identifier: Apache-2.0
#include "lib/model/gguf_config.h"

#include "lib/core/error.h"
#include "lib/core/printable.h"
#include "lib/model/arch_dense.h"
#include "lib/model/gguf.h"

#include <algorithm>
#include <cmath>

namespace million {
namespace {

/// Keys of one architecture.
class Keys {
 public:
  explicit Keys(const GgufFile& file)
      : file_(file), prefix_(std::string(file.get_string("general.architecture")) + ".") {}

  const GgufFile& file() const { return file_; }
  const std::string& name() const { return file_.name(); }
  std::string key(const char* rest) const { return prefix_ + rest; }
  int size(const char* rest, int low, int high, std::optional<uint64_t> missing = {}) const {
    return get_size(file_, key(rest), low, high, missing);
  }
  float real(const char* rest, double low, double high, std::optional<double> missing = {}) const {
    return get_real(file_, key(rest), low, high, missing);
  }

 private:
  const GgufFile& file_;
  std::string prefix_;
};

void read_heads(const Keys& f, ModelConfig& c) {
  c.n_heads = f.size("attention.head_count", 1, kMaxHeads);
  c.n_kv_heads = f.size("attention.head_count_kv", 1, kMaxHeads, static_cast<uint64_t>(c.n_heads));
  if (!f.file().find(f.key("attention.key_length")))
    MILLION_REQUIRE(c.d_model % c.n_heads == 0, ErrorCode::kBadInput,
                    "{}: embedding length {} is no multiple of {} heads", f.name(), c.d_model,
                    c.n_heads);
  const auto even_share = static_cast<uint64_t>(c.d_model / c.n_heads);
  c.head_dim = f.size("attention.key_length", 1, kMaxWidth, even_share);
  require_heads(c, f.name());
  const int value_dim =
      f.size("attention.value_length", 1, kMaxWidth, static_cast<uint64_t>(c.head_dim));
  MILLION_REQUIRE(value_dim == c.head_dim, ErrorCode::kBadInput,
                  "{}: values have {} channels a head and keys {}; they must be equal", f.name(),
                  value_dim, c.head_dim);
}

/// YaRN's keys; llama.cpp multiplies its own 0.1 ln(factor) + 1 by the attention factors of the
/// file.
void read_yarn(const Keys& f, RopeParams& rope) {
  rope.beta_fast = f.real("rope.scaling.yarn_beta_fast", 0, 1e6, 32.0);
  rope.beta_slow = f.real("rope.scaling.yarn_beta_slow", 0, 1e6, 1.0);
  const auto mix_key = f.key("rope.scaling.yarn_ext_factor");
  const double mix = f.file().get_float(mix_key, 1.0);
  MILLION_REQUIRE(mix == 1.0 || mix == -1.0, ErrorCode::kBadInput,
                  "{}: key {} is {}, only the full mix 1 is supported", f.name(), mix_key, mix);
  const float scale = f.real("rope.scaling.attn_factor", 0, 1e3, 1.0) *
                      f.real("rope.scaling.yarn_attn_factor", 0, 1e3, 1.0);
  if (scale != 1.0f) rope.attention_factor = scale * (0.1f * std::log(rope.factor) + 1.0f);
}

void read_rope(const Keys& f, ModelConfig& c) {
  RopeParams& rope = c.rope;
  rope.n_rot = f.size("rope.dimension_count", 2, c.head_dim, static_cast<uint64_t>(c.head_dim));
  MILLION_REQUIRE(rope.n_rot % 2 == 0, ErrorCode::kBadInput,
                  "{}: {} is {}, expected an even number", f.name(), f.key("rope.dimension_count"),
                  rope.n_rot);
  rope.base = f.real("rope.freq_base", 1, 1e12, 10000.0);
  const double old_factor = f.file().get_float(f.key("rope.scale_linear"), 1.0);  // before 2023-11
  const auto type =
      f.file().get_string(f.key("rope.scaling.type"), old_factor != 1.0 ? "linear" : "none");
  if (type == "none") return;
  MILLION_REQUIRE(type == "linear" || type == "yarn", ErrorCode::kBadInput,
                  "{}: {} is {}, supported: none, linear, yarn, and Llama-3 by the tensor "
                  "rope_freqs.weight",
                  f.name(), f.key("rope.scaling.type"), printable(type));
  rope.scaling = type == "linear" ? RopeScaling::kLinear : RopeScaling::kYarn;
  rope.factor = f.real("rope.scaling.factor", 0, 1e6, old_factor);
  const char* const kOriginal = "rope.scaling.original_context_length";
  const bool has_original = f.file().find(f.key(kOriginal)) != nullptr;
  rope.original_context = f.size(kOriginal, 1, kMaxContext, static_cast<uint64_t>(c.n_context));
  const int reach = scaled_context(rope.original_context, rope.factor);
  // As in hf_config: without the key, linear scaling stands beside the context before it.
  const bool before = rope.scaling == RopeScaling::kLinear && !has_original;
  c.n_context = before ? reach : std::max(c.n_context, reach);
  if (rope.scaling == RopeScaling::kYarn) read_yarn(f, rope);
}

}  // namespace

void read_gguf_config(const GgufFile& file, RopePairs pairs, ModelConfig& c) {
  const Keys f(file);
  c.n_layers = f.size("block_count", 1, kMaxLayers);
  c.n_context = f.size("context_length", 1, kMaxContext);
  c.d_model = f.size("embedding_length", 1, kMaxWidth);
  c.d_ff = f.size("feed_forward_length", 1, kMaxWidth);
  c.rms_eps = f.real("attention.layer_norm_rms_epsilon", 0, 1);
  c.sliding_window = f.size("attention.sliding_window", 0, kMaxContext, 0);
  const auto n_experts = file.get_uint(f.key("expert_count"), 0);
  MILLION_REQUIRE(n_experts == 0, ErrorCode::kBadInput,
                  "{}: mixture of {} experts; only dense feed-forward layers are supported",
                  f.name(), n_experts);
  read_heads(f, c);
  c.rope.pairs = pairs;
  read_rope(f, c);
}

int get_size(const GgufFile& file, const std::string& key, int low, int high,
             std::optional<uint64_t> missing) {
  const uint64_t n = file.get_uint(key, missing);
  MILLION_REQUIRE(n >= static_cast<uint64_t>(low) && n <= static_cast<uint64_t>(high),
                  ErrorCode::kBadInput, "{}: key {} is {}, expected {} to {}", file.name(), key, n,
                  low, high);
  return static_cast<int>(n);
}

float get_real(const GgufFile& file, const std::string& key, double low, double high,
               std::optional<double> missing) {
  const double x = file.get_float(key, missing);
  MILLION_REQUIRE(std::isfinite(x) && x > low && x <= high, ErrorCode::kBadInput,
                  "{}: key {} is {}, expected more than {} and at most {}", file.name(), key, x,
                  low, high);
  return static_cast<float>(x);
}

}  // namespace million
