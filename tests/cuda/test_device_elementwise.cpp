// SPDX-License-Identifier: Apache-2.0
// Embedding, norm, RoPE with its append, SwiGLU, argmax against double.
#include "tests/cuda/harness.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <string>

namespace million::cuda::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr uint16_t kUnwritten = 0xFFFF;

double half_value(uint16_t h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  const double sign = (h & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa == 0 ? sign * HUGE_VAL : std::nan("");
  return sign *
         (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(mantissa + 1024, exponent - 25));
}

/// Error of a half against `exact`, in units of what rounding to nearest may cost.
double half_error(uint16_t h, double exact) {
  const double value = half_value(h), unit = std::max(std::fabs(exact) * 0x1p-11, 0x1p-25);
  if (std::isinf(value) && std::fabs(exact) >= 65520.0 && (value > 0) == (exact > 0)) return 0.0;
  const double error = std::fabs(value - exact) / unit;
  return error == error ? error : HUGE_VAL;
}

std::vector<float> normal_floats(std::size_t n, float deviation, std::mt19937& random) {
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> v(n);
  for (float& x : v) x = normal(random);
  return v;
}

void print_error(const std::string& what, double error) {
  std::printf("%s: %.3g\n", what.c_str(), error);
}

}  // namespace

TEST_CASE("embed copies rows of the table") {
  const int n_vocab = 7;
  for (const int d_model : {1, 128, 200}) {
    std::mt19937 random(1);
    std::vector<uint16_t> table(static_cast<std::size_t>(n_vocab * d_model));
    for (uint16_t& h : table) h = static_cast<uint16_t>(random() % 0x7C00 | (random() & 0x8000));
    const std::vector<int32_t> tokens = {3, 0, 6, 3, 5};
    DeviceVector<uint16_t> device_table(table);
    DeviceVector<int32_t> device_tokens(tokens);
    DeviceVector<float> x(tokens.size() * static_cast<std::size_t>(d_model));
    const EmbedArgs args{device_table.data(), device_tokens.data(), static_cast<int>(tokens.size()),
                         d_model, x.data()};
    REQUIRE(ops().embed(nullptr, args) == 0);
    const std::vector<float> got = x.get();
    for (std::size_t k = 0; k < got.size(); ++k) {
      const auto token = static_cast<std::size_t>(tokens[k / static_cast<std::size_t>(d_model)]);
      const std::size_t at =
          token * static_cast<std::size_t>(d_model) + k % static_cast<std::size_t>(d_model);
      REQUIRE(static_cast<double>(got[k]) == half_value(table[at]));
    }
  }
}

TEST_CASE("rms_norm of rows of different size") {
  double worst = 0, worst_f32 = 0;
  for (const int d : {64, 320, 1000}) {
    std::mt19937 random(2);
    const int n = 4;
    std::vector<float> x = normal_floats(static_cast<std::size_t>(n * d), 1.0f, random);
    // Row 1 is so small that eps decides, row 2 large, row 3 zero.
    const float size[] = {1.0f, 1e-4f, 300.0f, 0.0f};
    for (int k = 0; k < n * d; ++k) x[static_cast<std::size_t>(k)] *= size[k / d];
    const std::vector<float> weight = normal_floats(static_cast<std::size_t>(d), 2.0f, random);
    const float eps = 1e-5f;
    DeviceVector<float> device_x(x), device_weight(weight);
    for (const int outputs : {1, 2, 3}) {
      DeviceVector<uint16_t> y(x.size());
      DeviceVector<float> y_f32(x.size());
      const NormArgs args{device_x.data(),
                          device_weight.data(),
                          eps,
                          n,
                          d,
                          (outputs & 1) != 0 ? y.data() : nullptr,
                          (outputs & 2) != 0 ? y_f32.data() : nullptr};
      REQUIRE(ops().rms_norm(nullptr, args) == 0);
      const std::vector<uint16_t> halves = y.get();
      const std::vector<float> floats = y_f32.get();
      for (int row = 0; row < n; ++row) {
        double sum = 0;
        for (int i = 0; i < d; ++i) {
          const double v = x[static_cast<std::size_t>(row * d + i)];
          sum += v * v;
        }
        for (int i = 0; i < d; ++i) {
          const auto at = static_cast<std::size_t>(row * d + i);
          const double exact =
              x[at] / std::sqrt(sum / d + eps) * weight[static_cast<std::size_t>(i)];
          if ((outputs & 1) != 0) worst = std::max(worst, half_error(halves[at], exact));
          if ((outputs & 1) == 0) REQUIRE(halves[at] == kUnwritten);
          if ((outputs & 2) != 0)
            worst_f32 =
                std::max(worst_f32, std::fabs(floats[at] - exact) / (std::fabs(exact) + 1e-30));
        }
      }
    }
  }
  print_error("rms_norm f32, relative", worst_f32);
  print_error("rms_norm halves, units of rounding", worst);
  // A sum of 1000 positive terms in 128 chains, a root, a reciprocal, two products: under 16 ulp.
  CHECK(worst_f32 < 16 * 0x1p-24);
  CHECK(worst < 1.01);  // one rounding to half of that
}

namespace {

struct RopeCase {
  int batch, per;  ///< sequences, and tokens of each at work
  int n_heads, n_kv_heads, head_dim, n_pairs;
  bool adjacent, bias;
  float magnitude;
  int k_ring, v_ring, k_sinks, v_sinks;
  std::vector<int> n_tokens;  ///< the ones at work included
};

/// One kind of exact rows with the expected content beside them.
struct RowsOnDevice {
  int ring_rows, sink_rows;
  DeviceVector<uint16_t> ring, sinks;
  std::vector<double> ring_exact, sinks_exact;  ///< NaN: not written

  RowsOnDevice(int lines, int ring_n, int sink_n, int d)
      : ring_rows(ring_n),
        sink_rows(sink_n),
        ring(static_cast<std::size_t>(lines * ring_n * d)),
        sinks(static_cast<std::size_t>(lines * sink_n * d)),
        ring_exact(ring.size(), kNan),
        sinks_exact(sinks.size(), kNan) {}
  ExactRows view() {
    return {sink_rows > 0 ? sinks.data() : nullptr, ring.data(), sink_rows, ring_rows};
  }
  void expect(int line, int position, int d, int channel, double value) {
    const int slot = line * ring_rows + position % ring_rows;
    ring_exact[static_cast<std::size_t>(slot * d + channel)] = value;
    if (position < sink_rows)
      sinks_exact[static_cast<std::size_t>((line * sink_rows + position) * d + channel)] = value;
  }
};

double worst_error(const std::vector<uint16_t>& got, const std::vector<double>& exact) {
  double worst = 0;
  for (std::size_t k = 0; k < got.size(); ++k) {
    if (exact[k] != exact[k])
      REQUIRE(got[k] == kUnwritten);
    else
      worst = std::max(worst, half_error(got[k], exact[k]));
  }
  return worst;
}

/// The projections of a token, turned: [heads][d] in double.
std::vector<double> turned_row(const RopeCase& c, const float* qkv, const std::vector<float>& bias,
                               const float* cosines, const float* sines) {
  const int d = c.head_dim, heads = c.n_heads + 2 * c.n_kv_heads;
  std::vector<double> x(static_cast<std::size_t>(heads * d));
  for (std::size_t k = 0; k < x.size(); ++k)
    x[k] = static_cast<double>(qkv[k]) + (c.bias ? static_cast<double>(bias[k]) : 0.0);
  for (int head = 0; head < c.n_heads + c.n_kv_heads; ++head)
    for (int p = 0; p < c.n_pairs; ++p) {
      const int c0 = c.adjacent ? 2 * p : p, c1 = c.adjacent ? 2 * p + 1 : p + c.n_pairs;
      double& a = x[static_cast<std::size_t>(head * d + c0)];
      double& b = x[static_cast<std::size_t>(head * d + c1)];
      const double x0 = a, x1 = b;
      a = (x0 * cosines[p] - x1 * sines[p]) * c.magnitude;
      b = (x0 * sines[p] + x1 * cosines[p]) * c.magnitude;
    }
  return x;
}

double run_rope(const RopeCase& c) {
  std::mt19937 random(3);
  const int d = c.head_dim, heads = c.n_heads + 2 * c.n_kv_heads, n = c.batch * c.per;
  const int positions = *std::max_element(c.n_tokens.begin(), c.n_tokens.end());
  const std::vector<float> qkv =
      normal_floats(static_cast<std::size_t>(n * heads * d), 2.0f, random);
  const std::vector<float> bias = normal_floats(static_cast<std::size_t>(heads * d), 1.0f, random);
  std::vector<float> cosines(static_cast<std::size_t>(positions * c.n_pairs)),
      sines(cosines.size());
  for (std::size_t k = 0; k < cosines.size(); ++k) {
    const int pairs = c.n_pairs, at = static_cast<int>(k);
    const double angle = at / pairs * std::pow(10000.0, -double(at % pairs) / pairs);
    cosines[k] = static_cast<float>(std::cos(angle)),
    sines[k] = static_cast<float>(std::sin(angle));
  }
  std::vector<SequenceState> states;
  for (const int tokens : c.n_tokens) states.push_back({tokens, 0, 0, 0});

  DeviceVector<float> device_qkv(qkv), device_bias(bias), device_cos(cosines), device_sin(sines);
  DeviceVector<SequenceState> device_states(states);
  DeviceVector<uint16_t> q(static_cast<std::size_t>(n * c.n_heads * d));
  RowsOnDevice k(c.batch * c.n_kv_heads, c.k_ring, c.k_sinks, d);
  RowsOnDevice v(c.batch * c.n_kv_heads, c.v_ring, c.v_sinks, d);
  const RopeAppendArgs args{device_qkv.data(),
                            c.bias ? device_bias.data() : nullptr,
                            device_cos.data(),
                            device_sin.data(),
                            c.n_pairs,
                            c.adjacent,
                            c.magnitude,
                            c.batch,
                            n,
                            c.n_heads,
                            c.n_kv_heads,
                            d,
                            device_states.data(),
                            q.data(),
                            k.view(),
                            v.view()};
  REQUIRE(ops().rope_append(nullptr, args) == 0);

  std::vector<double> q_exact(q.size());
  for (int token = 0; token < n; ++token) {
    const int sequence = token / c.per;
    const int position = c.n_tokens[static_cast<std::size_t>(sequence)] - c.per + token % c.per;
    const std::vector<double> row =
        turned_row(c, &qkv[static_cast<std::size_t>(token * heads * d)], bias,
                   cosines.data() + static_cast<std::size_t>(position * c.n_pairs),
                   sines.data() + static_cast<std::size_t>(position * c.n_pairs));
    for (int head = 0; head < heads; ++head)
      for (int i = 0; i < d; ++i) {
        const double exact = row[static_cast<std::size_t>(head * d + i)];
        const int line = sequence * c.n_kv_heads + (head - c.n_heads) % c.n_kv_heads;
        if (head < c.n_heads)
          q_exact[static_cast<std::size_t>((token * c.n_heads + head) * d + i)] = exact;
        else
          (head < c.n_heads + c.n_kv_heads ? k : v).expect(line, position, d, i, exact);
      }
  }
  return std::max({worst_error(q.get(), q_exact), worst_error(k.ring.get(), k.ring_exact),
                   worst_error(v.ring.get(), v.ring_exact),
                   worst_error(k.sinks.get(), k.sinks_exact),
                   worst_error(v.sinks.get(), v.sinks_exact)});
}

}  // namespace

TEST_CASE("rope_append turns, and writes the rows of its tokens only") {
  const std::vector<std::pair<const char*, RopeCase>> cases = {
      {"halves", {1, 1, 4, 2, 64, 32, false, false, 1.0f, 16, 16, 0, 0, {5}}},
      {"adjacent", {1, 1, 4, 2, 64, 32, true, false, 1.0f, 16, 16, 0, 0, {5}}},
      {"partial, bias", {1, 1, 4, 2, 64, 16, false, true, 1.25f, 16, 8, 0, 0, {13}}},
      {"partial, adjacent, bias", {1, 1, 3, 1, 128, 24, true, true, 0.75f, 16, 16, 0, 0, {9}}},
      {"nothing turned", {1, 2, 2, 2, 64, 0, false, true, 1.0f, 16, 16, 0, 0, {9}}},
      {"ring wraps, sinks", {1, 6, 2, 1, 64, 32, false, true, 1.0f, 16, 8, 4, 3, {19}}},
      {"first tokens, sinks", {1, 6, 2, 1, 64, 32, true, false, 1.0f, 16, 8, 4, 5, {6}}},
      {"sequences apart", {2, 1, 4, 2, 128, 64, false, true, 1.0f, 16, 32, 4, 4, {3, 40}}},
      {"sequences apart, prefill", {2, 3, 4, 2, 64, 32, true, true, 1.0f, 8, 8, 4, 4, {3, 10}}},
      {"four sequences", {4, 1, 8, 1, 64, 32, false, false, 1.0f, 8, 8, 2, 0, {1, 2, 8, 9}}}};
  for (const auto& [name, c] : cases) {
    INFO(name);
    const double worst = run_rope(c);
    print_error(std::string("rope_append ") + name + ", units of rounding", worst);
    // Products of f32 cancel: a result may be wrong by 3 * 2^-24 of its terms, which are up to
    // about 2^10 times the smallest results here: as much again as one rounding to half.
    CHECK(worst < 2.0);
  }
}

TEST_CASE("copy_rows copies from ring to ring") {
  std::mt19937 random(4);
  const int heads = 3, d = 64;
  struct Case {
    int first, n, from_rows, to_rows, shift;
  };
  for (const Case& c : {Case{0, 5, 8, 16, 0}, Case{6, 5, 8, 16, 4}, Case{30, 8, 8, 8, 3}}) {
    std::vector<uint16_t> from(static_cast<std::size_t>(heads * c.from_rows * d));
    for (uint16_t& h : from) h = static_cast<uint16_t>(random() & 0x7FFF);
    DeviceVector<uint16_t> device_from(from);
    DeviceVector<uint16_t> to(static_cast<std::size_t>(heads * c.to_rows * d));
    const CopyRowsArgs args{heads,     d,           c.first,   c.n,    device_from.data(),
                            to.data(), c.from_rows, c.to_rows, c.shift};
    REQUIRE(ops().copy_rows(nullptr, args) == 0);
    std::vector<uint16_t> exact(to.size(), kUnwritten);
    for (int head = 0; head < heads; ++head)
      for (int t = c.first; t < c.first + c.n; ++t)
        for (int i = 0; i < d; ++i)
          exact[static_cast<std::size_t>(
              (head * c.to_rows + (t - c.shift + c.to_rows) % c.to_rows) * d + i)] =
              from[static_cast<std::size_t>((head * c.from_rows + t % c.from_rows) * d + i)];
    REQUIRE(to.get() == exact);
  }
}

TEST_CASE("swiglu, saturated gates included") {
  std::mt19937 random(5);
  double worst = 0;
  for (const int d_ff : {1, 128, 300}) {
    const int n = 3;
    std::vector<float> x = normal_floats(static_cast<std::size_t>(n * 2 * d_ff), 3.0f, random);
    // Gates of row 0: the sigmoid is 0 or 1 there, and no power of two may turn into NaN.
    const float gates[] = {-200.0f, 200.0f, -90.0f, 88.0f, 0.0f, -0.0f, -1e30f, 1e-6f, -3e38f};
    for (int i = 0; i < std::min(d_ff, 9); ++i) x[static_cast<std::size_t>(i)] = gates[i];
    DeviceVector<float> gate_up(x);
    DeviceVector<uint16_t> y(static_cast<std::size_t>(n * d_ff));
    REQUIRE(ops().swiglu(nullptr, {gate_up.data(), n, d_ff, y.data()}) == 0);
    const std::vector<uint16_t> got = y.get();
    for (int row = 0; row < n; ++row)
      for (int i = 0; i < d_ff; ++i) {
        const double gate = x[static_cast<std::size_t>(row * 2 * d_ff + i)];
        const double up = x[static_cast<std::size_t>((row * 2 + 1) * d_ff + i)];
        const double exact = gate / (1.0 + std::exp(-gate)) * up;
        worst = std::max(worst, half_error(got[static_cast<std::size_t>(row * d_ff + i)], exact));
      }
  }
  print_error("swiglu, units of rounding", worst);
  // The argument of 2^x has an error of 2^-24 of itself: 1e-6 of the result at |gate| = 16.
  CHECK(worst < 1.05);
}

namespace {

int32_t best_index(const std::vector<float>& x) {
  std::size_t best = 0;
  for (std::size_t i = 1; i < x.size(); ++i)
    if (x[i] > x[best] || (x[best] != x[best] && x[i] == x[i])) best = i;
  return static_cast<int32_t>(best);
}

void check_argmax(const std::vector<float>& x) {
  DeviceVector<float> device_x(x);
  DeviceVector<int32_t> index(1);
  REQUIRE(ops().argmax(nullptr, {device_x.data(), static_cast<int>(x.size()), index.data()}) == 0);
  REQUIRE(index.get()[0] == best_index(x));
}

}  // namespace

TEST_CASE("argmax: lowest index on ties, NaN last") {
  std::mt19937 random(6);
  for (const std::size_t n : {1, 2, 5, 127, 128, 129, 300, 1000}) {
    CAPTURE(n);
    std::vector<float> x(n);
    for (float& v : x) v = static_cast<float>(random() % 17);  // many ties
    check_argmax(x);
    for (std::size_t k = 0; k < n; k += 3) x[k] = kNan;
    check_argmax(x);
    check_argmax(std::vector<float>(n, kNan));
    check_argmax(std::vector<float>(n, -kInfinity));
    check_argmax(std::vector<float>(n, 2.0f));
    std::vector<float> last(n, kNan);
    last.back() = -kInfinity;
    check_argmax(last);
    x = normal_floats(n, 1.0f, random);
    x[n / 2] = kInfinity, x[n - 1] = kInfinity;
    check_argmax(x);
  }
}

}  // namespace million::cuda::test
