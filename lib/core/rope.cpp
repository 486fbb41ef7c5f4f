// SPDX-License-Identifier: Apache-2.0
#include "lib/core/rope.h"

#include "lib/core/error.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace million {
namespace {

constexpr float kTau = 2.0f * std::numbers::pi_v<float>;

/// Llama-3.1: long wavelengths are slowed by `factor`, short ones kept, a linear blend between.
/// Source: the reference implementation's apply_scaling, as in Hugging Face modeling_rope_utils.
float llama3_frequency(const RopeParams& p, float freq) {
  const float wavelength = kTau / freq;
  const float context = static_cast<float>(p.original_context);
  if (wavelength < context / p.high_freq_factor) return freq;
  if (wavelength > context / p.low_freq_factor) return freq / p.factor;
  const float smooth =
      (context / wavelength - p.low_freq_factor) / (p.high_freq_factor - p.low_freq_factor);
  return (1.0f - smooth) * freq / p.factor + smooth * freq;
}

/// YaRN's correction dimension: the pair index that turns `rotations` times over the context.
float yarn_dimension(const RopeParams& p, float rotations) {
  return static_cast<float>(p.n_rot) *
         std::log(static_cast<float>(p.original_context) / (rotations * kTau)) /
         (2.0f * std::log(p.base));
}

/// YaRN (arXiv 2309.00071): interpolate slow pairs, extrapolate fast ones, ramp between.
float yarn_frequency(const RopeParams& p, int pair, float freq) {
  const float low = std::max(0.0f, std::floor(yarn_dimension(p, p.beta_fast)));
  const float high =
      std::min(static_cast<float>(p.n_rot - 1), std::ceil(yarn_dimension(p, p.beta_slow)));
  const float ramp =
      std::clamp((static_cast<float>(pair) - low) / std::max(0.001f, high - low), 0.0f, 1.0f);
  return freq / p.factor * ramp + freq * (1.0f - ramp);
}

const char* scaling_name(RopeScaling s) {
  switch (s) {
    case RopeScaling::kNone:
      return "none";
    case RopeScaling::kLinear:
      return "linear";
    case RopeScaling::kLlama3:
      return "llama3";
    case RopeScaling::kYarn:
      return "yarn";
  }
  return "?";
}

}  // namespace

std::string RopeParams::to_string() const {
  std::string text =
      fmt::format("n_rot={},base={},pairs={},scaling={}", n_rot, base,
                  pairs == RopePairs::kAdjacent ? "adjacent" : "halves", scaling_name(scaling));
  if (scaling != RopeScaling::kNone) text += fmt::format(",factor={}", factor);
  if (scaling == RopeScaling::kLlama3)
    text += fmt::format(",low={},high={},original={}", low_freq_factor, high_freq_factor,
                        original_context);
  if (scaling == RopeScaling::kYarn)
    text += fmt::format(",fast={},slow={},original={},attention={}", beta_fast, beta_slow,
                        original_context, attention_factor);
  for (float f : freq_factors) text += fmt::format(",{}", f);
  return text;
}

Rope::Rope(const RopeParams& params) : params_(params) {
  const RopeParams& p = params_;
  MILLION_REQUIRE(p.n_rot > 0 && p.n_rot % 2 == 0, ErrorCode::kBadInput,
                  "rope: rotated channels: got {}, expected a positive even number", p.n_rot);
  MILLION_REQUIRE(p.base > 1.0f && p.factor > 0.0f, ErrorCode::kBadInput,
                  "rope: base {} and factor {} must be above 1 and above 0", p.base, p.factor);
  const bool needs_context = p.scaling == RopeScaling::kLlama3 || p.scaling == RopeScaling::kYarn;
  MILLION_REQUIRE(!needs_context || p.original_context > 0, ErrorCode::kBadInput,
                  "rope: {} scaling needs the original context length", scaling_name(p.scaling));
  const int n_pairs = p.n_rot / 2;
  MILLION_REQUIRE(p.freq_factors.empty() || static_cast<int>(p.freq_factors.size()) == n_pairs,
                  ErrorCode::kBadInput, "rope: {} frequency factors, expected {}",
                  p.freq_factors.size(), n_pairs);
  for (int i = 0; i < n_pairs; ++i) {
    const double exponent = -2.0 * i / p.n_rot;
    float freq = static_cast<float>(std::pow(static_cast<double>(p.base), exponent));
    if (!p.freq_factors.empty()) freq /= p.freq_factors[i];
    if (p.scaling == RopeScaling::kLinear) freq /= p.factor;
    if (p.scaling == RopeScaling::kLlama3) freq = llama3_frequency(p, freq);
    if (p.scaling == RopeScaling::kYarn) freq = yarn_frequency(p, i, freq);
    inv_freq_.push_back(freq);
  }
  if (p.scaling == RopeScaling::kYarn)
    magnitude_ = p.attention_factor > 0.0f ? p.attention_factor : 0.1f * std::log(p.factor) + 1.0f;
}

void Rope::rotate_to(float* x, int n_heads, int head_dim, int64_t position) const {
  apply(x, n_heads, head_dim, position, magnitude_);
}

void Rope::move(float* x, int n_heads, int head_dim, int64_t delta) const {
  if (delta != 0) apply(x, n_heads, head_dim, delta, 1.0f);
}

void Rope::apply(float* x, int n_heads, int head_dim, int64_t position, float magnitude) const {
  const int n_pairs = params_.n_rot / 2;
  const bool adjacent = params_.pairs == RopePairs::kAdjacent;
  constexpr int kMaxPairs = 256;  // head_dim <= 512
  MILLION_ASSERT(n_pairs <= kMaxPairs && params_.n_rot <= head_dim);
  float cosines[kMaxPairs], sines[kMaxPairs];
  for (int i = 0; i < n_pairs; ++i) {
    const float angle = static_cast<float>(position) * inv_freq_[i];
    cosines[i] = std::cos(angle) * magnitude;
    sines[i] = std::sin(angle) * magnitude;
  }
  for (int h = 0; h < n_heads; ++h) {
    float* row = x + static_cast<int64_t>(h) * head_dim;
    for (int i = 0; i < n_pairs; ++i) {
      float& a = row[adjacent ? 2 * i : i];
      float& b = row[adjacent ? 2 * i + 1 : i + n_pairs];
      const float ra = a * cosines[i] - b * sines[i];
      b = a * sines[i] + b * cosines[i];
      a = ra;
    }
  }
}

void RopeTable::ensure(int64_t n_positions) {
  const int64_t n = n_pairs();
  int64_t have = static_cast<int64_t>(cos_.size()) / n;
  if (have >= n_positions) return;
  cos_.resize(static_cast<size_t>(n_positions * n));
  sin_.resize(cos_.size());
  for (; have < n_positions; ++have)
    for (int64_t i = 0; i < n; ++i) {
      const float angle = static_cast<float>(have) * rope_.inv_freq()[i];
      cos_[have * n + i] = std::cos(angle);
      sin_[have * n + i] = std::sin(angle);
    }
}

}  // namespace million
