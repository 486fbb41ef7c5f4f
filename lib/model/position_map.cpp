// SPDX-License-Identifier: Apache-2.0
#include "lib/model/position_map.h"

#include "lib/core/error.h"
#include "lib/quant/options.h"

#include <algorithm>
#include <cmath>
#include <span>

namespace million {
namespace {

constexpr OptionInfo kGroupOptions[] = {
    {"group", "8", "1..1024", "tokens that share a position", true},
    {"window", "1024", "1..1048576", "neighbours at their own positions", true}};
constexpr OptionInfo kFactorOptions[] = {
    {"factor", "8", "1..1000", "context length by which positions are stretched", true}};

struct KindInfo {
  std::string_view name;
  PositionSpec::Kind kind;
  std::span<const OptionInfo> options;
};
constexpr KindInfo kKinds[] = {{"plain", PositionSpec::Kind::kPlain, {}},
                               {"selfextend", PositionSpec::Kind::kSelfExtend, kGroupOptions},
                               {"linear", PositionSpec::Kind::kLinear, kFactorOptions},
                               {"ntk", PositionSpec::Kind::kNtk, kFactorOptions},
                               {"dynamic", PositionSpec::Kind::kDynamic, {}},
                               {"yarn", PositionSpec::Kind::kYarn, kFactorOptions}};

const KindInfo& find_kind(std::string_view name) {
  std::string known;
  for (const KindInfo& k : kKinds) {
    if (k.name == name) return k;
    known += (known.empty() ? "" : ", ") + std::string(k.name);
  }
  fail(ErrorCode::kUsage, "--positions: got '{}', expected one of {}", name, known);
}

/// NTK-aware base; the exponent makes the slowest pair turn `factor` times slower.
float ntk_base(const RopeParams& rope, double factor) {
  const double d = rope.n_rot;
  return static_cast<float>(rope.base * std::pow(factor, d / (d - 2.0)));
}

void scale_rope(ModelConfig& c, const PositionSpec& spec, int64_t n_tokens) {
  using Kind = PositionSpec::Kind;
  MILLION_REQUIRE(c.rope.scaling == RopeScaling::kNone && c.rope.freq_factors.empty(),
                  ErrorCode::kUsage,
                  "--positions {}: the model's file scales its positions already ({}); expected "
                  "plain or selfextend",
                  spec.to_string(), c.rope.to_string());
  double factor = spec.factor;
  const int trained = c.n_context;
  switch (spec.kind) {
    case Kind::kLinear:
      c.rope.scaling = RopeScaling::kLinear;
      c.rope.factor = static_cast<float>(factor);
      break;
    case Kind::kYarn:
      c.rope.scaling = RopeScaling::kYarn;
      c.rope.factor = static_cast<float>(factor);
      c.rope.original_context = trained;
      break;
    case Kind::kDynamic:
      factor = std::max(1.0, static_cast<double>(n_tokens) / trained);
      [[fallthrough]];
    default:
      c.rope.base = ntk_base(c.rope, factor);
  }
  c.n_context = static_cast<int>(std::min(1e9, trained * factor));
}

}  // namespace

PositionSpec PositionSpec::parse(std::string_view text) {
  const size_t colon = text.find(':');
  const KindInfo& info = find_kind(text.substr(0, colon));
  const std::string_view rest =
      colon == std::string_view::npos ? std::string_view() : text.substr(colon + 1);
  const Options options(fmt::format("positions {}", info.name), info.options, rest);
  PositionSpec spec;
  spec.kind = info.kind;
  if (info.kind == Kind::kSelfExtend) {
    spec.self_extend = {options.integer("group", 1, 1024), options.integer("window", 1, 1 << 20)};
    const SelfExtend& s = spec.self_extend;
    MILLION_REQUIRE(s.window % s.group == 0, ErrorCode::kUsage,
                    "--positions selfextend: window={} is no multiple of group={}; use window={}",
                    s.window, s.group, (s.window / s.group + 1) * s.group);
  } else if (!info.options.empty()) {
    spec.factor = options.real("factor", 1.0, 1000.0);
  }
  return spec;
}

std::string PositionSpec::to_string() const {
  const auto info =
      std::find_if(std::begin(kKinds), std::end(kKinds), [&](auto& k) { return k.kind == kind; });
  if (kind == Kind::kSelfExtend)
    return fmt::format("{}:group={},window={}", info->name, self_extend.group, self_extend.window);
  if (!info->options.empty()) return fmt::format("{}:factor={}", info->name, factor);
  return std::string(info->name);
}

int64_t reach(const ModelConfig& trained, const PositionSpec& spec) {
  const SelfExtend& s = spec.self_extend;
  if (spec.kind != PositionSpec::Kind::kSelfExtend) return trained.n_context;
  return std::max<int64_t>(0, trained.n_context - s.window) * s.group + s.window;
}

std::shared_ptr<const Model> with_positions(std::shared_ptr<const Model> model,
                                            const PositionSpec& spec, int64_t n_tokens) {
  if (spec.kind == PositionSpec::Kind::kPlain) return model;
  auto changed = std::make_shared<Model>(*model);
  ModelConfig& c = changed->config;
  if (spec.kind == PositionSpec::Kind::kSelfExtend) {
    const SelfExtend& s = spec.self_extend;
    const int64_t longest = reach(c, spec);
    MILLION_REQUIRE(s.window <= c.n_context && n_tokens <= longest, ErrorCode::kUsage,
                    "--positions {}: {} tokens are beyond what it reaches, (L - window) * group + "
                    "window = ({} - {}) * {} + {} = {}; use a larger group",
                    spec.to_string(), n_tokens, c.n_context, s.window, s.group, s.window, longest);
    c.self_extend = s;
    c.n_context = static_cast<int>(std::min<int64_t>(longest, 1000000000));
  } else {
    scale_rope(c, spec, n_tokens);
  }
  c.positions = spec.to_string();
  return changed;
}

std::shared_ptr<const Model> without_self_extend(std::shared_ptr<const Model> model) {
  if (!model->config.self_extend.on()) return model;
  auto plain = std::make_shared<Model>(*model);
  plain->config.self_extend = {};
  plain->config.positions = "plain";
  return plain;
}

}  // namespace million
