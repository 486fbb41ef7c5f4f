// SPDX-License-Identifier: Apache-2.0
// Flash decoding over rows (exact halves, group codes) and the merge of parts, against double.
#include "kernels/half.h"
#include "tests/cuda/harness.h"

#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>

namespace {

using namespace million;
using namespace million::cuda;
using namespace million::cuda::test;
using Layout = GroupCodesView::Layout;

/// Weights are rounded to halves, 2^-11 / sqrt(3) = 2.8e-4 RMS each, the same for every channel:
/// what is left after a sum of random values is at most that. The merged output adds its own
/// rounding to a half, about 2e-4.
constexpr double kMaxError = 6e-4;
/// Products of halves summed in f32, log2 and exp2 of 2 ulp, scores below 2^8: 2^8 * 2^-23.
constexpr double kMaxLseError = 3e-5;

enum class Scores { kRandom, kSharp, kRising };

struct CodesSpec {
  Layout layout = Layout::kNone;
  int bits = 2, group = 32;
  bool symmetric = false;
};

struct Case {
  std::string name;
  int d = 128, heads_per_kv = 4, n_kv_heads = 2;
  std::vector<SequenceState> states;
  int ring_rows = 1024, sink_rows = 4;
  int n_splits = 3;
  CodesSpec k, v;
  Scores scores = Scores::kRandom;
};

/// Keys or values: what lies on the device, and every token's halves.
struct HostSide {
  std::vector<uint16_t> sinks, ring, scales;
  std::vector<uint8_t> codes;
  GroupCodesView view;
  std::vector<std::vector<uint16_t>> rows;  ///< [batch * n_kv_heads][n_tokens * d]
};

class Builder {
 public:
  explicit Builder(const Case& c) : c_(c), rng_(static_cast<unsigned>(c.name.size() + 7 * c.d)) {
    const size_t n = c.states.size() * c.n_kv_heads * c.heads_per_kv * c.d;
    const float spread = c.scores == Scores::kSharp ? 8.0f : 1.0f;
    for (size_t i = 0; i < n; ++i) q.push_back(float_to_half(spread * normal()));
  }

  HostSide side(bool key) {
    const CodesSpec& spec = key ? c_.k : c_.v;
    const size_t lines = c_.states.size() * c_.n_kv_heads;
    HostSide s;
    s.sinks.assign(lines * c_.sink_rows * c_.d, 0xFFFF);
    s.ring.assign(lines * c_.ring_rows * c_.d, 0xFFFF);  // NaN where no exact token lies
    set_view(s, spec, lines);
    for (size_t line = 0; line < lines; ++line) {
      const SequenceState& state = c_.states[line / c_.n_kv_heads];
      std::vector<uint16_t> rows(static_cast<size_t>(state.n_tokens) * c_.d);
      for (int t = 0; t < state.n_tokens; ++t)
        for (int c = 0; c < c_.d; ++c)
          rows[static_cast<size_t>(t) * c_.d + c] = float_to_half(exact_value(key, line, t, c));
      const int coded = key ? state.coded_k : state.coded_v;
      for (int t = 0; t < state.n_tokens; ++t) {
        if (t >= state.n_sinks && t < state.n_sinks + coded) continue;
        const bool sink = t < state.n_sinks;
        uint16_t* to = sink ? &s.sinks[(line * c_.sink_rows + t) * c_.d]
                            : &s.ring[(line * c_.ring_rows + t % c_.ring_rows) * c_.d];
        std::copy_n(&rows[static_cast<size_t>(t) * c_.d], c_.d, to);
      }
      if (spec.layout != Layout::kNone) {
        fill_scales(s, spec, line, coded);
        for (int u = 0; u < coded; ++u)
          for (int c = 0; c < c_.d; ++c)
            rows[static_cast<size_t>(state.n_sinks + u) * c_.d + c] = code(s, spec, line, u, c);
      }
      s.rows.push_back(std::move(rows));
    }
    return s;
  }

  std::vector<uint16_t> q;

 private:
  float normal() { return normal_(rng_); }

  float exact_value(bool key, size_t line, int t, int c) {
    if (!key || c_.scores != Scores::kRising) return normal();
    // Along the first query of the group: its scores rise by 1/4 of a power of two with each token.
    const size_t head = line * c_.heads_per_kv;
    double norm = 0.0;
    for (int i = 0; i < c_.d; ++i) norm += std::pow(half_to_float(q[head * c_.d + i]), 2);
    const double step = 0.25 * t * std::sqrt(c_.d) / (1.4426950408889634 * norm);
    return static_cast<float>(half_to_float(q[head * c_.d + c]) * step);
  }

  void set_view(HostSide& s, const CodesSpec& spec, size_t lines) {
    if (spec.layout == Layout::kNone) return;
    int most = 0;
    for (const auto& state : c_.states) most = std::max({most, state.coded_k, state.coded_v});
    const int unit = spec.layout == Layout::kChannels ? std::max(spec.group, 16) : 16;
    s.view = {spec.layout,     spec.bits,
              spec.group,      spec.symmetric ? (1 << (spec.bits - 1)) - 1 : 0,
              !spec.symmetric, (most + unit - 1) / unit * unit,
              nullptr,         nullptr};
    s.codes.resize(lines * s.view.capacity * c_.d * spec.bits / 8);
    for (auto& byte : s.codes) byte = static_cast<uint8_t>(rng_());
    s.scales.assign(lines * s.view.capacity * c_.d / spec.group * (spec.symmetric ? 1 : 2), 0xFFFF);
  }
  size_t scale_index(const HostSide& s, const CodesSpec& spec, size_t line, int u, int c) const {
    const size_t groups = static_cast<size_t>(s.view.capacity) * c_.d / spec.group;
    const size_t at = spec.layout == Layout::kChannels
                          ? static_cast<size_t>(u / spec.group) * c_.d + c
                          : static_cast<size_t>(u) * (c_.d / spec.group) + c / spec.group;
    return (line * groups + at) * (spec.symmetric ? 1 : 2);
  }
  void fill_scales(HostSide& s, const CodesSpec& spec, size_t line, int coded) {
    for (int u = 0; u < coded; ++u)
      for (int c = 0; c < c_.d; ++c) {
        const size_t at = scale_index(s, spec, line, u, c);
        if (s.scales[at] != 0xFFFF) continue;
        const float range = 2.0f + std::fabs(normal());
        s.scales[at] = float_to_half(range / static_cast<float>((1 << spec.bits) - 1));
        if (!spec.symmetric) s.scales[at + 1] = float_to_half(-0.5f * range + 0.2f * normal());
      }
  }
  /// The half behind a code: decode_value of lib/quant/group_store.h, rounded.
  uint16_t code(const HostSide& s, const CodesSpec& spec, size_t line, int u, int c) const {
    const size_t head = line * s.view.capacity * c_.d;
    size_t index;  // of the code, all having the same width
    if (spec.layout == Layout::kChannels)
      index = (static_cast<size_t>(u / spec.group) * c_.d + c) * spec.group + u % spec.group;
    else
      index = static_cast<size_t>(u) * c_.d + c;
    const size_t bit = (head + index) * spec.bits;
    const int value = s.codes[bit / 8] >> bit % 8 & ((1 << spec.bits) - 1);
    const size_t at = scale_index(s, spec, line, u, c);
    const float zero = spec.symmetric ? 0.0f : half_to_float(s.scales[at + 1]);
    return float_to_half(static_cast<float>(value - s.view.offset) * half_to_float(s.scales[at]) +
                         zero);
  }

  const Case& c_;
  std::mt19937 rng_;
  std::normal_distribution<float> normal_;
};

struct Reference {
  std::vector<double> out;  ///< [d]
  double lse;               ///< log2
};
Reference attend(const Case& c, const Builder& b, const HostSide& k, const HostSide& v,
                 size_t sequence, int head) {
  const SequenceState& state = c.states[sequence];
  const size_t line = sequence * c.n_kv_heads + head / c.heads_per_kv;
  const bool skips = c.k.layout == Layout::kNone && c.v.layout == Layout::kNone;
  const size_t q = (sequence * c.n_kv_heads * c.heads_per_kv + head) * c.d;
  std::vector<double> score;
  std::vector<int> token;
  for (int t = 0; t < state.n_tokens; ++t) {
    if (skips && t >= state.n_sinks && t < state.n_sinks + state.coded_k) continue;
    double s = 0.0;
    for (int i = 0; i < c.d; ++i)
      s += static_cast<double>(half_to_float(b.q[q + i])) *
           half_to_float(k.rows[line][static_cast<size_t>(t) * c.d + i]);
    score.push_back(s * 1.4426950408889634 / std::sqrt(c.d));
    token.push_back(t);
  }
  Reference r{std::vector<double>(c.d, 0.0), -INFINITY};
  if (score.empty()) return r;
  const double max = *std::max_element(score.begin(), score.end());
  double sum = 0.0;
  for (size_t i = 0; i < score.size(); ++i) {
    const double p = std::exp2(score[i] - max);
    sum += p;
    for (int j = 0; j < c.d; ++j)
      r.out[j] += p * half_to_float(v.rows[line][static_cast<size_t>(token[i]) * c.d + j]);
  }
  for (double& x : r.out) x /= sum;
  r.lse = max + std::log2(sum);
  return r;
}

/// RMS error over RMS of the reference; NaN and infinity stay.
template <class Get>
double relative_error(const std::vector<double>& want, const Get& get) {
  double error = 0.0, size = 0.0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += std::pow(get(i) - want[i], 2);
    size += want[i] * want[i];
  }
  return size > 0.0 ? std::sqrt(error / size) : std::sqrt(error);
}

ExactRows exact_rows(DeviceVector<uint16_t>& sinks, DeviceVector<uint16_t>& ring, const Case& c) {
  return {c.sink_rows ? sinks.data() : nullptr, ring.data(), c.sink_rows, c.ring_rows};
}

/// Parts 2 to n_splits + 1 are the kernel's: zero rows where they are empty. The others are not
/// touched.
void check_empty_parts(const float* rows, const float* lse, int n_parts, const Case& c) {
  for (int p = 0; p < n_parts; ++p) {
    const bool own = p >= 2 && p < 2 + c.n_splits;
    if (!own) CHECK(lse[p] == -INFINITY);
    if (lse[p] > -INFINITY) continue;
    int wrong = 0;
    for (int i = 0; i < c.d; ++i) {
      const float x = rows[p * c.d + i];
      wrong += own ? x != 0.0f : !std::isnan(x);
    }
    CHECK(wrong == 0);
  }
}

/// Worst errors of a case.
struct Errors {
  double out = 0.0, lse = 0.0;
};

/// Attention in parts, some of them not the kernel's own, and their merge in both forms.
Errors run(const Case& c) {
  Builder b(c);
  const HostSide k = b.side(true), v = b.side(false);
  const int batch = static_cast<int>(c.states.size()), n_heads = c.n_kv_heads * c.heads_per_kv;
  const int first = 2, n_parts = c.n_splits + 3;
  DeviceVector<uint16_t> q(b.q), k_sinks(k.sinks), k_ring(k.ring), v_sinks(v.sinks), v_ring(v.ring);
  DeviceVector<uint16_t> k_scales(k.scales), v_scales(v.scales);
  DeviceVector<uint8_t> k_codes(k.codes), v_codes(v.codes);
  DeviceVector<SequenceState> state(c.states);
  const size_t heads = static_cast<size_t>(batch) * n_heads;
  DeviceVector<float> rows(heads * n_parts * c.d);  // NaN: empty parts are to be written too
  DeviceVector<float> lse(std::vector<float>(heads * n_parts, -INFINITY));
  const auto scale = static_cast<float>(1.4426950408889634 / std::sqrt(c.d));
  const Parts parts{rows.data(), lse.data(), n_parts, first};
  RowsAttendArgs a{};
  a.query = {batch, n_heads, c.n_kv_heads, c.d, q.data(), state.data(), scale, c.n_splits, parts};
  a.k = exact_rows(k_sinks, k_ring, c), a.v = exact_rows(v_sinks, v_ring, c);
  a.k_codes = k.view, a.v_codes = v.view;
  a.k_codes.codes = k_codes.data(), a.k_codes.scales = k_scales.data();
  a.v_codes.codes = v_codes.data(), a.v_codes.scales = v_scales.data();
  REQUIRE(ops().attend_rows(nullptr, a) == 0);
  DeviceVector<uint16_t> out(heads * c.d);
  DeviceVector<float> out_rows(heads * c.d), out_lse(heads);
  MergeArgs merge{parts, batch, n_heads, c.d, out.data(), nullptr, nullptr};
  REQUIRE(ops().merge_parts(nullptr, merge) == 0);
  merge.out = nullptr, merge.out_rows = out_rows.data(), merge.out_lse = out_lse.data();
  REQUIRE(ops().merge_parts(nullptr, merge) == 0);

  const auto got = out.get();
  const auto got_rows = out_rows.get(), got_lse = out_lse.get();
  const auto part_rows = rows.get(), part_lse = lse.get();
  Errors worst;
  for (size_t h = 0; h < heads; ++h) {
    const Reference want = attend(c, b, k, v, h / n_heads, static_cast<int>(h % n_heads));
    const auto half_at = [&](size_t i) {
      return static_cast<double>(half_to_float(got[h * c.d + i]));
    };
    const auto row_at = [&](size_t i) { return static_cast<double>(got_rows[h * c.d + i]); };
    for (const double error : {relative_error(want.out, half_at), relative_error(want.out, row_at)})
      if (!(error <= worst.out)) worst.out = error;
    if (std::isinf(want.lse)) {
      CHECK(got_lse[h] == -INFINITY);
      for (int p = 0; p < n_parts; ++p) CHECK(part_lse[h * n_parts + p] == -INFINITY);
    } else {
      const double error = std::fabs(got_lse[h] - want.lse);
      if (!(error <= worst.lse)) worst.lse = error;
    }
    check_empty_parts(&part_rows[h * n_parts * c.d], &part_lse[h * n_parts], n_parts, c);
  }
  return worst;
}

void check(const Case& c) {
  const Errors worst = run(c);
  std::printf("attend_rows %s d%d G%d splits %d: %.1e, lse %.1e\n", c.name.c_str(), c.d,
              c.heads_per_kv, c.n_splits, worst.out, worst.lse);
  INFO(c.name << " d " << c.d << " heads per KV head " << c.heads_per_kv);
  CHECK(worst.out <= kMaxError);
  CHECK(worst.lse <= kMaxLseError);
}

}  // namespace

TEST_CASE("rows: lengths around a tile, groups of 1 to 8 heads") {
  int i = 0;
  for (const int d : {64, 128})
    for (const int group : {1, 2, 3, 4, 8})
      for (const int n : {1, 63, 64, 65, 1000}) {
        if (harness_is_slow() && (n == 1000 || group == 2)) continue;
        Case c;
        c.name = "exact n" + std::to_string(n);
        c.d = d, c.heads_per_kv = group, c.n_kv_heads = group > 4 ? 1 : 2;
        c.states = {{n, i % 2 ? std::min(n, 4) : 0, 0, 0}};
        c.n_splits = 1 + i++ % 5;
        check(c);
      }
}

TEST_CASE("rows: sequences of their own lengths, coded tokens left to another kernel") {
  for (const int n_splits : {1, 2, 3, 4, 5})
    for (const int d : {64, 128}) {
      Case c;
      c.name = "exact batch", c.d = d, c.n_splits = n_splits, c.ring_rows = 512;
      c.states = {{700, 4, 331, 331}, {17, 4, 0, 0}, {0, 4, 0, 0}, {3, 4, 0, 0}, {100, 4, 96, 96}};
      check(c);
    }
}

TEST_CASE("rows: a ring smaller than the tokens ever seen") {
  for (const int n_sinks : {0, 4})
    for (const int d : {64, 128}) {
      Case c;
      c.name = "exact ring sinks " + std::to_string(n_sinks), c.d = d, c.n_splits = 2;
      c.ring_rows = 256, c.sink_rows = n_sinks;
      c.states = {{5000, n_sinks, 4800, 4800}, {777, n_sinks, 544, 544}};
      check(c);
    }
}

TEST_CASE("rows: scores that rise with every token, and sharp ones") {
  for (const int d : {64, 128})
    for (const Scores scores : {Scores::kRising, Scores::kSharp}) {
      Case c;
      c.name = scores == Scores::kRising ? "exact rising" : "exact sharp";
      c.d = d, c.scores = scores, c.n_splits = 2;
      c.states = {{harness_is_slow() ? 200 : 600, 0, 0, 0}};
      check(c);
    }
}

TEST_CASE("rows: keys coded by channel, values by token, as KIVI has them") {
  for (const int d : {64, 128})
    for (const int bits : {2, 4, 8})
      for (const bool symmetric : {false, true}) {
        Case c;
        c.name = "kivi bits " + std::to_string(bits) + (symmetric ? " symmetric" : "");
        c.d = d, c.ring_rows = 128, c.n_splits = symmetric ? 2 : 3;
        c.heads_per_kv = symmetric ? 8 : 4, c.n_kv_heads = symmetric ? 1 : 2;
        c.k = {Layout::kChannels, bits, 32, symmetric};
        c.v = {Layout::kTokens, bits, 32, symmetric};
        const int s = symmetric ? 4 : 0;
        c.states = {
            {200 + s, s, 128, 160}, {300 + s, s, 192, 230}, {s + 40, s, 32, 39}, {0, s, 0, 0}};
        check(c);
      }
}

TEST_CASE("rows: other layouts, groups that end early, one exact side") {
  const CodesSpec none, channels{Layout::kChannels, 4, 64, false};
  const CodesSpec tokens{Layout::kTokens, 4, 64, true}, fine{Layout::kTokens, 8, 16, false};
  struct Sides {
    const char* name;
    CodesSpec k, v;
  };
  const Sides sides[] = {{"tokens", tokens, tokens},
                         {"tokens fine", fine, fine},
                         {"channels", channels, {Layout::kChannels, 2, 16, true}},
                         {"odd groups", {Layout::kChannels, 8, 48, false}, tokens},
                         {"keys only", channels, none},
                         {"values only", none, fine}};
  for (const int d : {64, 128})
    for (const Sides& side : sides) {
      Case c;
      c.name = side.name, c.d = d, c.k = side.k, c.v = side.v, c.n_splits = 4, c.ring_rows = 512;
      const int k1 = side.k.layout == Layout::kNone ? 0 : 285;
      const int v1 = side.v.layout == Layout::kNone ? 0 : 291;
      c.states = {{300, 4, k1, v1}, {k1 / 3 + v1 / 3 + 4, 4, k1 / 3, v1 / 3}};
      check(c);
    }
}

TEST_CASE("merge: parts of any weight, empty parts, nothing at all") {
  std::mt19937 rng(5);
  std::normal_distribution<float> normal;
  for (const int width : {64, 128, 192, 1024})
    for (const int n_parts : {1, 5, 70}) {
      const int batch = 2, n_heads = 3, heads = batch * n_heads;
      std::vector<float> rows, lse;
      for (int i = 0; i < heads * n_parts; ++i) {
        // Every third part is empty, and its row is not to be read; head 4 has nothing.
        const bool empty = i % 3 == 1 || i / n_parts == 4;
        lse.push_back(empty ? -INFINITY : 20.0f * normal(rng));
        for (int c = 0; c < width; ++c) rows.push_back(empty ? NAN : normal(rng));
      }
      DeviceVector<float> d_rows(rows), d_lse(lse), out_rows(heads * width), out_lse(heads);
      DeviceVector<uint16_t> out(heads * width);
      MergeArgs a{{d_rows.data(), d_lse.data(), n_parts, 0},
                  batch,
                  n_heads,
                  width,
                  out.data(),
                  nullptr,
                  nullptr};
      REQUIRE(ops().merge_parts(nullptr, a) == 0);
      a.out = nullptr, a.out_rows = out_rows.data(), a.out_lse = out_lse.data();
      REQUIRE(ops().merge_parts(nullptr, a) == 0);
      const auto got = out.get();
      const auto got_rows = out_rows.get(), got_lse = out_lse.get();
      double worst = 0.0, worst_half = 0.0;
      for (int h = 0; h < heads; ++h) {
        double max = -INFINITY, sum = 0.0;
        std::vector<double> want(width, 0.0);
        for (int p = 0; p < n_parts; ++p) max = std::max<double>(max, lse[h * n_parts + p]);
        for (int p = 0; p < n_parts && max > -INFINITY; ++p) {
          const double w = std::exp2(lse[h * n_parts + p] - max);
          if (w == 0.0) continue;
          sum += w;
          for (int c = 0; c < width; ++c) want[c] += w * rows[(h * n_parts + p) * width + c];
        }
        for (double& x : want) x = sum > 0.0 ? x / sum : 0.0;
        if (sum == 0.0)
          CHECK(got_lse[h] == -INFINITY);
        else
          CHECK(std::fabs(got_lse[h] - (max + std::log2(sum))) <= 1e-5 * (1.0 + std::fabs(max)));
        const double error =
            relative_error(want, [&](size_t i) { return got_rows[h * width + i]; });
        const double half =
            relative_error(want, [&](size_t i) { return half_to_float(got[h * width + i]); });
        if (!(error <= worst)) worst = error;
        if (!(half <= worst_half)) worst_half = half;
      }
      std::printf("merge_parts width %d parts %d: %.1e, halves %.1e\n", width, n_parts, worst,
                  worst_half);
      CHECK(worst <= 1e-5);       // exp2 of a difference of 100 rounded at 2^-17, times ln 2
      CHECK(worst_half <= 4e-4);  // half a unit of a half is at most 2^-11
    }
}
