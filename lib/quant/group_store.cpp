// SPDX-License-Identifier: Apache-2.0
#include "lib/quant/group_store.h"

#include "kernels/half.h"
#include "lib/core/error.h"
#include "lib/core/parallel.h"
#include "lib/quant/bitpack.h"

#include <algorithm>
#include <cmath>

namespace million {
namespace {

uint16_t finite_half(float x) { return float_to_half(std::clamp(x, -65504.0f, 65504.0f)); }

/// Shape of packed codes; where they lie is left out.
GroupSide packed_side(GroupSide::Layout layout, const UniformParams& p) {
  GroupSide side;
  side.layout = layout;
  side.bits = p.bits;
  side.group = p.group;
  side.offset = p.bias();
  side.zeros = !p.symmetric;
  return side;
}

}  // namespace

GroupRange fit_range(float low, float high, const UniformParams& p) {
  if (p.symmetric)
    return {finite_half(std::max(std::abs(low), std::abs(high)) / static_cast<float>(p.bias())), 0};
  return {finite_half((high - low) / static_cast<float>(p.top())), finite_half(low)};
}

uint8_t encode_value(float x, float scale, float zero, const UniformParams& p) {
  const float low = static_cast<float>(-p.bias()), high = static_cast<float>(p.top() - p.bias());
  const float q = scale > 0.0f ? (x - zero) / scale : 0.0f;
  const float clamped = std::min(std::max(low, q), high);
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to even without a libm call
  return static_cast<uint8_t>(static_cast<int>((clamped + kRound) - kRound) + p.bias());
}

TokenStore::TokenStore(const UniformParams& p)
    : p_(p),
      row_bytes_(packed_bytes(p.head_dim, p.bits)),
      head_halves_(static_cast<int64_t>(p.head_dim / p.group) * p.scale_halves()),
      codes_(p.n_heads * row_bytes_, kTokensPerBlock),
      scales_(p.n_heads * head_halves_, kTokensPerBlock) {}

void TokenStore::append(const float* x, int n, int64_t /*first_token*/) {
  const int64_t first = codes_.size();
  codes_.grow(n);
  scales_.grow(n);
  parallel_ranges(n, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int h = 0; h < p_.n_heads; ++h)
        encode_row(x + (t * p_.n_heads + h) * p_.head_dim, codes_.at(first + t) + h * row_bytes_,
                   scales_.at(first + t) + h * head_halves_);
  });
}

void TokenStore::decode(int head, int begin, int end, float* out) const {
  uint8_t codes[kMaxGroupHeadDim];
  for (int t = begin; t < end; ++t) {
    unpack_bits(codes_.at(t) + head * row_bytes_, p_.head_dim, p_.bits, codes);
    const uint16_t* scales = scales_.at(t) + head * head_halves_;
    for (int c = 0; c < p_.head_dim; c += p_.group, scales += p_.scale_halves()) {
      const float scale = half_to_float(scales[0]);
      const float zero = p_.symmetric ? 0.0f : half_to_float(scales[1]);
      for (int i = c; i < c + p_.group; ++i) *out++ = decode_value(codes[i], scale, zero, p_);
    }
  }
}

GroupSide TokenStore::group_shape() const { return packed_side(GroupSide::Layout::kTokens, p_); }

GroupCodes TokenStore::group_codes(int head, int begin) const {
  GroupCodes run;
  if (begin >= n_tokens()) return run;
  run.side = packed_side(GroupSide::Layout::kTokens, p_);
  run.side.codes = codes_.at(begin) + head * row_bytes_;
  run.side.code_step = codes_.record();
  run.side.scales = scales_.at(begin) + head * head_halves_;
  run.side.scale_step = scales_.record();
  run.n = static_cast<int>(std::min(codes_.run(begin), codes_.size() - begin));
  return run;
}

void TokenStore::requantize(int64_t n) {
  parallel_ranges(n, kRowGrain, [&](int64_t begin, int64_t end) {
    std::vector<float> x(p_.head_dim);
    for (int64_t t = begin; t < end; ++t)
      for (int h = 0; h < p_.n_heads; ++h) {
        decode(h, static_cast<int>(t), static_cast<int>(t) + 1, x.data());
        for (float& value : x) value = half_to_float(finite_half(value));
        encode_row(x.data(), codes_.at(t) + h * row_bytes_, scales_.at(t) + h * head_halves_);
      }
  });
}

void TokenStore::encode_row(const float* x, uint8_t* packed, uint16_t* scales) const {
  uint8_t codes[kMaxGroupHeadDim];
  for (int c = 0; c < p_.head_dim; c += p_.group, scales += p_.scale_halves()) {
    const auto [low, high] = std::minmax_element(x + c, x + c + p_.group);
    const GroupRange r = fit_range(*low, *high, p_);
    scales[0] = r.scale;
    if (!p_.symmetric) scales[1] = r.zero;
    const float scale = half_to_float(r.scale), zero = half_to_float(r.zero);
    for (int i = c; i < c + p_.group; ++i) codes[i] = encode_value(x[i], scale, zero, p_);
  }
  pack_bits(codes, p_.head_dim, p_.bits, packed);
}

ChannelStore::ChannelStore(const UniformParams& p)
    : p_(p),
      run_bytes_(packed_bytes(p.group, p.bits)),
      codes_(p.n_heads * p.head_dim * run_bytes_, std::max(1, kTokensPerBlock / p.group)),
      scales_(static_cast<int64_t>(p.n_heads) * p.head_dim * p.scale_halves(),
              std::max(1, kTokensPerBlock / p.group)) {}

void ChannelStore::append(const float* x, int n, int64_t /*first_token*/) {
  MILLION_ASSERT(n_tokens_ % p_.group == 0);  // a short group may only be the last
  const int64_t first = codes_.size(), n_groups = (n + p_.group - 1) / p_.group;
  codes_.grow(n_groups);
  scales_.grow(n_groups);
  const int row = p_.n_heads * p_.head_dim;
  parallel_ranges(n_groups * p_.n_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t g = unit / p_.n_heads, h = unit % p_.n_heads;
      const int count = static_cast<int>(std::min<int64_t>(p_.group, n - g * p_.group));
      encode_group(x + g * p_.group * row + h * p_.head_dim, count,
                   codes_.at(first + g) + h * p_.head_dim * run_bytes_,
                   scales_.at(first + g) + h * p_.head_dim * p_.scale_halves());
    }
  });
  n_tokens_ += n;
}

void ChannelStore::decode(int head, int begin, int end, float* out) const {
  std::vector<uint8_t> codes(p_.group);
  for (int t = begin; t < end;) {
    const int g = t / p_.group, at = t % p_.group, n = std::min(end - t, p_.group - at);
    const uint8_t* packed = codes_.at(g) + head * p_.head_dim * run_bytes_;
    const uint16_t* scales = scales_.at(g) + head * p_.head_dim * p_.scale_halves();
    for (int c = 0; c < p_.head_dim; ++c, packed += run_bytes_, scales += p_.scale_halves()) {
      const float scale = half_to_float(scales[0]);
      const float zero = p_.symmetric ? 0.0f : half_to_float(scales[1]);
      unpack_bits(packed, at + n, p_.bits, codes.data());
      for (int i = 0; i < n; ++i)
        out[static_cast<int64_t>(t - begin + i) * p_.head_dim + c] =
            decode_value(codes[at + i], scale, zero, p_);
    }
    t += n;
  }
}

GroupSide ChannelStore::group_shape() const {
  return packed_side(GroupSide::Layout::kChannels, p_);
}

/// Only where groups and the blocks of other stores end together.
GroupCodes ChannelStore::group_codes(int head, int begin) const {
  GroupCodes run;
  if (begin >= n_tokens_ || kTokensPerBlock % p_.group != 0 || begin % p_.group != 0) return run;
  const int64_t g = begin / p_.group;
  run.side = packed_side(GroupSide::Layout::kChannels, p_);
  run.side.codes = codes_.at(g) + head * p_.head_dim * run_bytes_;
  run.side.code_step = codes_.record();
  run.side.scales = scales_.at(g) + head * p_.head_dim * p_.scale_halves();
  run.side.scale_step = scales_.record();
  run.n = static_cast<int>(std::min<int64_t>(codes_.run(g) * p_.group, n_tokens_ - begin));
  return run;
}

void ChannelStore::encode_group(const float* x, int n, uint8_t* packed, uint16_t* scales) const {
  const int64_t row = static_cast<int64_t>(p_.n_heads) * p_.head_dim;
  std::vector<float> values(n);
  std::vector<uint8_t> codes(n);
  for (int c = 0; c < p_.head_dim; ++c, packed += run_bytes_, scales += p_.scale_halves()) {
    for (int i = 0; i < n; ++i) values[i] = x[i * row + c];
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    const GroupRange r = fit_range(*low, *high, p_);
    scales[0] = r.scale;
    if (!p_.symmetric) scales[1] = r.zero;
    const float scale = half_to_float(r.scale), zero = half_to_float(r.zero);
    for (int i = 0; i < n; ++i) codes[i] = encode_value(values[i], scale, zero, p_);
    pack_bits(codes.data(), n, p_.bits, packed);
  }
}

}  // namespace million
