// SPDX-License-Identifier: Apache-2.0
// Group codes on the device: codes and scales have the bits that lib/quant/group_store.cpp gives
// them, and rows the halves behind them. fit_range() and encode_value() below restate the functions
// of those names there, decode_value() the one of group_store.h.
#include "kernels/half.h"
#include "tests/cuda/harness.h"

#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <random>

namespace {

using namespace million;
using namespace million::cuda;
using namespace million::cuda::test;
using Layout = GroupCodesView::Layout;

struct Params {
  Layout layout = Layout::kChannels;
  int bits = 2, group = 32;
  bool symmetric = false;

  int top() const { return symmetric ? (1 << bits) - 2 : (1 << bits) - 1; }
  int bias() const { return symmetric ? (1 << (bits - 1)) - 1 : 0; }
};

uint16_t finite_half(float x) { return float_to_half(std::clamp(x, -65504.0f, 65504.0f)); }

struct Range {
  uint16_t scale = 0, zero = 0;
};
Range fit_range(float low, float high, const Params& p) {
  if (p.symmetric)
    return {finite_half(std::max(std::abs(low), std::abs(high)) / static_cast<float>(p.bias())), 0};
  return {finite_half((high - low) / static_cast<float>(p.top())), finite_half(low)};
}
int encode_value(float x, float scale, float zero, const Params& p) {
  const float low = static_cast<float>(-p.bias()), high = static_cast<float>(p.top() - p.bias());
  const float q = scale > 0.0f ? (x - zero) / scale : 0.0f;
  const float clamped = std::min(std::max(low, q), high);
  constexpr float kRound = 12582912.0f;
  return static_cast<int>((clamped + kRound) - kRound) + p.bias();
}

constexpr int kBatch = 2, kHeads = 2, kLines = kBatch * kHeads;

struct Case {
  Params p;
  int d = 128, n_sinks = 4, ring_rows = 256, capacity = 512;
  int begin = 0, n = 96;
};

/// Rows of the ring: normal values, with groups of what is easy to get wrong.
std::vector<uint16_t> make_ring(const Case& c, unsigned seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> ring(static_cast<size_t>(kLines) * c.ring_rows * c.d);
  for (size_t i = 0; i < ring.size(); ++i) {
    // One value of a channel or a token decides its group's kind, whichever way groups run.
    const int channel = static_cast<int>(i) % c.d, row = static_cast<int>(i) / c.d % c.ring_rows;
    const int kind = (c.p.layout == Layout::kChannels ? channel : row) % 16;
    const float x = normal(rng);
    if (kind == 3)
      ring[i] = 0x3555;  // constant
    else if (kind == 5)
      ring[i] = x < 0.0f ? 0x8000 : 0x0000;  // zeros of both signs
    else if (kind == 7)
      ring[i] = x < 0.0f ? 0xFBFF : 0x7BFF;  // the largest halves
    else if (kind == 9)
      ring[i] = static_cast<uint16_t>(rng() & 0x80FF);  // subnormal
    else if (kind == 11)
      ring[i] = float_to_half(std::round(x * 2.0f) * 0.5f);  // ties
    else if (kind == 13)  // -infinity, but not alone in a group: its range would be NaN
      ring[i] = x < -1.0f && row % 2 == 1 && channel % 2 == 1 ? 0xFC00 : float_to_half(x);
    else
      ring[i] = float_to_half(x * (kind == 15 ? 1000.0f : 1.0f));
  }
  return ring;
}

struct Codes {
  std::vector<uint8_t> codes;
  std::vector<uint16_t> scales;
};
size_t n_groups(const Case& c) {
  return static_cast<size_t>(kLines) * c.capacity * c.d / c.p.group;
}
size_t group_of(const Case& c, size_t line, int u, int channel) {
  const size_t first = line * c.capacity * c.d / c.p.group;
  return c.p.layout == Layout::kChannels
             ? first + static_cast<size_t>(u / c.p.group) * c.d + channel
             : first + static_cast<size_t>(u) * (c.d / c.p.group) + channel / c.p.group;
}

/// Codes of tokens [begin, begin + n) in `to`, as the device's arrays have them.
void encode(const Case& c, const std::vector<uint16_t>& ring, Codes& to) {
  const bool channels = c.p.layout == Layout::kChannels;
  const int along = channels ? c.n : c.d, across = channels ? c.d : c.n;
  for (size_t line = 0; line < kLines; ++line)
    for (int i = 0; i < across; ++i)
      for (int first = 0; first < along; first += c.p.group) {
        std::vector<float> x;
        for (int j = first; j < std::min(along, first + c.p.group); ++j) {
          const int u = c.begin + (channels ? j : i), channel = channels ? i : j;
          const int row = (c.n_sinks + u) % c.ring_rows;
          x.push_back(half_to_float(ring[(line * c.ring_rows + row) * c.d + channel]));
        }
        const auto [low, high] = std::minmax_element(x.begin(), x.end());
        const Range r = fit_range(*low, *high, c.p);
        const size_t group =
            group_of(c, line, c.begin + (channels ? first : i), channels ? i : first);
        to.scales[group * (c.p.symmetric ? 1 : 2)] = r.scale;
        if (!c.p.symmetric) to.scales[group * 2 + 1] = r.zero;
        const size_t bytes = c.p.group * c.p.bits / 8;
        for (size_t j = 0; j < x.size(); ++j) {
          const int code = encode_value(x[j], half_to_float(r.scale), half_to_float(r.zero), c.p);
          const size_t bit = group * bytes * 8 + j * c.p.bits;
          const int mask = ((1 << c.p.bits) - 1) << bit % 8;
          to.codes[bit / 8] = static_cast<uint8_t>((to.codes[bit / 8] & ~mask) | code << bit % 8);
        }
      }
}

uint16_t decode(const Case& c, const Codes& from, size_t line, int u, int channel) {
  const size_t group = group_of(c, line, u, channel);
  const int j = (c.p.layout == Layout::kChannels ? u : channel) % c.p.group;
  const size_t bit = group * c.p.group * c.p.bits + static_cast<size_t>(j) * c.p.bits;
  const int code = from.codes[bit / 8] >> bit % 8 & ((1 << c.p.bits) - 1);
  const float scale = half_to_float(from.scales[group * (c.p.symmetric ? 1 : 2)]);
  const float zero = c.p.symmetric ? 0.0f : half_to_float(from.scales[group * 2 + 1]);
  return float_to_half(static_cast<float>(code - c.p.bias()) * scale + zero);
}

size_t n_different(const auto& a, const auto& b) {
  size_t n = 0;
  for (size_t i = 0; i < a.size(); ++i) n += a[i] != b[i];
  return n;
}

/// Encodes c's tokens behind others, decodes a part of them.
void check(const Case& c, int decode_begin, int decode_n) {
  INFO("bits " << c.p.bits << " group " << c.p.group << " symmetric " << c.p.symmetric << " d "
               << c.d << " channels " << (c.p.layout == Layout::kChannels) << " n " << c.n);
  const auto ring = make_ring(c, static_cast<unsigned>(c.p.bits + c.d + c.n));
  Codes want{std::vector<uint8_t>(n_groups(c) * c.p.group * c.p.bits / 8, 0xFF),
             std::vector<uint16_t>(n_groups(c) * (c.p.symmetric ? 1 : 2), 0xFFFF)};
  DeviceVector<uint16_t> d_ring(ring), scales(want.scales);
  DeviceVector<uint8_t> codes(want.codes);
  const GroupCodesView view{c.p.layout,     c.p.bits,   c.p.group,    c.p.bias(),
                            !c.p.symmetric, c.capacity, codes.data(), scales.data()};
  const GroupEncodeArgs a{kBatch,    kHeads,  c.d, d_ring.data(), c.ring_rows,
                          c.n_sinks, c.begin, c.n, c.p.symmetric, view};
  REQUIRE(ops().group_encode(nullptr, a) == 0);
  encode(c, ring, want);
  auto got = codes.get();
  if (c.p.layout == Layout::kChannels && c.n % c.p.group != 0) {
    // What lies behind the tokens of a short last group is nobody's.
    Case whole = c;
    whole.begin += c.n / c.p.group * c.p.group;
    for (size_t line = 0; line < kLines; ++line)
      for (int channel = 0; channel < c.d; ++channel)
        for (int j = c.n % c.p.group; j < c.p.group; ++j) {
          const size_t bit =
              group_of(whole, line, whole.begin, channel) * c.p.group * c.p.bits + j * c.p.bits;
          for (auto* v : {&got, &want.codes})
            (*v)[bit / 8] |= static_cast<uint8_t>(((1 << c.p.bits) - 1) << bit % 8);
        }
  }
  CHECK(n_different(got, want.codes) == 0);
  CHECK(n_different(scales.get(), want.scales) == 0);

  const int capacity = c.capacity + 8;
  std::vector<uint16_t> want_rows(static_cast<size_t>(kLines) * capacity * c.d, 0xFFFF);
  DeviceVector<uint16_t> rows(want_rows);
  const GroupDecodeArgs b{{kBatch, kHeads, c.d, decode_begin, decode_n, rows.data(), capacity},
                          view};
  REQUIRE(ops().group_decode(nullptr, b) == 0);
  for (size_t line = 0; line < kLines; ++line)
    for (int u = decode_begin; u < decode_begin + decode_n; ++u)
      for (int channel = 0; channel < c.d; ++channel)
        want_rows[(line * capacity + u) * c.d + channel] = decode(c, want, line, u, channel);
  CHECK(n_different(rows.get(), want_rows) == 0);
}

}  // namespace

TEST_CASE("groups: codes, scales and rows have the bits of the CPU's") {
  for (const Layout layout : {Layout::kChannels, Layout::kTokens})
    for (const int d : {64, 128})
      for (const int bits : {2, 4, 8})
        for (const bool symmetric : {false, true})
          for (const int group : {16, 32, 64}) {
            if (harness_is_slow() && group == 16) continue;
            Case c;
            c.p = {layout, bits, group, symmetric}, c.d = d;
            c.begin = 192, c.n = 128;  // the ring wraps between
            check(c, 192 + 3, 101);
          }
}

TEST_CASE("groups: a last group of fewer tokens, single tokens, nothing") {
  for (const int bits : {2, 4, 8})
    for (const bool symmetric : {false, true}) {
      Case c;
      c.p = {Layout::kChannels, bits, 32, symmetric};
      for (const int n : {1, 15, 33, 63}) {
        c.begin = 64, c.n = n;
        check(c, 64, n);
      }
      c.p.layout = Layout::kTokens;
      for (const int n : {0, 1, 17}) {
        c.begin = 99, c.n = n;
        check(c, 99, n);
      }
    }
}
