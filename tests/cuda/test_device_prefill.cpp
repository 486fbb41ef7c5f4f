// SPDX-License-Identifier: Apache-2.0
// attend_prefill against softmax attention in double: shapes, sources of tokens, and what must not
// reach the results. Rows that no query needs are NaN, in the ring and among the decoded ones.
#include "kernels/half.h"
#include "tests/cuda/harness.h"

#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <random>
#include <utility>

using namespace million;
using namespace million::cuda;
using namespace million::cuda::test;

namespace {

enum class Scores { kPlain, kSharp, kRising, kFalling, kBoth };

/// Tokens behind the sinks that the query at a position takes from codes.
using CodedRule = std::function<int(int position)>;

struct Case {
  int d, n_kv_heads, group, n, first, n_sinks;
  CodedRule coded_k, coded_v;  // empty: nothing is coded
  Scores scores = Scores::kPlain;
  int block_rows = 0;
};

/// As a decoder's cache does it: blocks of 64 are coded once they are `window` tokens old.
CodedRule by_blocks(int n_sinks, int window) {
  return [=](int position) { return std::max(0, position + 1 - n_sinks - window) / 64 * 64; };
}
/// Every token, a query's own included.
CodedRule all_coded(int n_sinks) {
  return [=](int position) { return std::max(0, position + 1 - n_sinks); };
}
CodedRule lagging(int n_sinks, int lag) {
  return [=](int position) { return std::max(0, position + 1 - n_sinks - lag); };
}
CodedRule constant(int n) {
  return [=](int) { return n; };
}

/// Halves [heads][tokens][d] of one kind and source.
struct Plane {
  int tokens, d;
  std::vector<uint16_t> rows;
  std::vector<bool> needed;  // by some query
  Plane(int heads, int n_tokens, int dim)
      : tokens(n_tokens),
        d(dim),
        rows(static_cast<size_t>(heads) * n_tokens * dim),
        needed(static_cast<size_t>(n_tokens)) {}
  uint16_t* at(int head, int t) {
    return rows.data() + (static_cast<size_t>(head) * tokens + t) * d;
  }
};

uint16_t half(double x) { return float_to_half(static_cast<float>(x)); }

/// Keys or values of a case: what exists, and what is given to the kernel.
struct Kind {
  Plane exact, decoded;
  std::vector<int32_t> coded;
  int ring_rows = 1;
  std::vector<uint16_t> sinks, ring, table;

  Kind(const Case& c, const CodedRule& rule, std::mt19937& rng)
      : exact(c.n_kv_heads, c.first + c.n, c.d), decoded(c.n_kv_heads, c.first + c.n, c.d) {
    std::normal_distribution<double> normal;
    for (size_t i = 0; i < exact.rows.size(); ++i) {
      const double x = normal(rng);
      exact.rows[i] = half(x), decoded.rows[i] = half(x + 0.7 * normal(rng));
    }
    for (int i = 0; i < c.n; ++i) {
      coded.push_back(rule ? rule(c.first + i) : 0);
      for (int t = 0; t <= c.first + i; ++t) source(c, i, t).needed[t] = true;
    }
  }
  Plane& source(const Case& c, int i, int t) {
    return t >= c.n_sinks && t < c.n_sinks + coded[i] ? decoded : exact;
  }
  /// Only needed rows are given, in the smallest ring that keeps them apart.
  void lay_out(const Case& c) {
    const int total = c.first + c.n;
    int oldest = total;
    for (int t = total - 1; t >= c.n_sinks; --t)
      if (exact.needed[t]) oldest = t;
    while (ring_rows < total - oldest) ring_rows *= 2;
    sinks.assign(static_cast<size_t>(c.n_kv_heads) * c.n_sinks * c.d, 0xFFFF);
    ring.assign(static_cast<size_t>(c.n_kv_heads) * ring_rows * c.d, 0xFFFF);
    table.assign(static_cast<size_t>(c.n_kv_heads) * total * c.d, 0xFFFF);
    for (int h = 0; h < c.n_kv_heads; ++h) {
      for (int t = 0; t < total; ++t) {
        uint16_t* to = t < c.n_sinks
                           ? &sinks[(static_cast<size_t>(h) * c.n_sinks + t) * c.d]
                           : &ring[(static_cast<size_t>(h) * ring_rows + t % ring_rows) * c.d];
        if (exact.needed[t]) std::copy_n(exact.at(h, t), c.d, to);
        if (t >= c.n_sinks && decoded.needed[t])
          std::copy_n(decoded.at(h, t), c.d,
                      &table[(static_cast<size_t>(h) * total + t - c.n_sinks) * c.d]);
      }
    }
  }
};

struct Data {
  Kind k, v;
  std::vector<uint16_t> q;
  float scale_log2;

  Data(const Case& c, std::mt19937& rng)
      : k(c, c.coded_k, rng),
        v(c, c.coded_v, rng),
        scale_log2(static_cast<float>(1.4426950408889634 / std::sqrt(c.d))) {
    std::normal_distribution<double> normal;
    const double gain = c.scores == Scores::kSharp ? 8.0 : 1.0;
    q.resize(static_cast<size_t>(c.n) * c.n_kv_heads * c.group * c.d);
    for (uint16_t& x : q) x = half(gain * normal(rng));
    if (c.scores >= Scores::kRising) add_slope(c);
    k.lay_out(c), v.lay_out(c);
  }
  /// Channel 0 of keys grows with the token, and queries look at nothing else: the maximum of a
  /// group's last head moves in every tile, or never, while the others' rest or (kBoth) the first
  /// head's falls behind far enough to overflow a factor that followed it.
  void add_slope(const Case& c) {
    for (int h = 0; h < c.n_kv_heads; ++h)
      for (int t = 0; t < c.first + c.n; ++t)
        k.exact.at(h, t)[0] = k.decoded.at(h, t)[0] = half(t * 0.125);
    for (size_t row = 0; row < q.size() / c.d; ++row) {
      const int member = static_cast<int>(row) % c.group;
      double step = 0.0;  // of a weight's log2 from token to token
      if (member == c.group - 1)
        step = c.scores == Scores::kFalling ? -0.5 : 0.5;
      else if (member == 0 && c.scores == Scores::kBoth)
        step = -4.0;
      std::fill_n(&q[row * c.d], c.d, half(0.0));
      q[row * c.d] = half(step / 0.125 / scale_log2);
    }
  }
};

std::vector<double> reference(const Case& c, Data& data) {
  std::vector<double> out(data.q.size());
  std::vector<double> s(static_cast<size_t>(c.first + c.n));
  for (size_t row = 0; row < data.q.size() / c.d; ++row) {
    const int i = static_cast<int>(row) / (c.group * c.n_kv_heads);
    const int h = static_cast<int>(row) / c.group % c.n_kv_heads, seen = c.first + i + 1;
    double top = -std::numeric_limits<double>::infinity(), sum = 0.0;
    for (int t = 0; t < seen; ++t) {
      const uint16_t* key = data.k.source(c, i, t).at(h, t);
      s[t] = 0.0;
      for (int x = 0; x < c.d; ++x)
        s[t] += static_cast<double>(half_to_float(data.q[row * c.d + x])) * half_to_float(key[x]);
      s[t] *= data.scale_log2;
      top = std::max(top, s[t]);
    }
    for (int t = 0; t < seen; ++t) sum += s[t] = std::exp2(s[t] - top);
    for (int t = 0; t < seen; ++t) {
      const uint16_t* value = data.v.source(c, i, t).at(h, t);
      for (int x = 0; x < c.d; ++x) out[row * c.d + x] += s[t] / sum * half_to_float(value[x]);
    }
  }
  return out;
}

std::vector<uint16_t> run(const Case& c, Data& data) {
  DeviceVector<uint16_t> q(data.q), out(data.q.size());
  DeviceVector<uint16_t> k_sinks(data.k.sinks), k_ring(data.k.ring), k_table(data.k.table);
  DeviceVector<uint16_t> v_sinks(data.v.sinks), v_ring(data.v.ring), v_table(data.v.table);
  DeviceVector<int32_t> coded_k(data.k.coded), coded_v(data.v.coded);
  PrefillArgs a{};
  a.n_heads = c.n_kv_heads * c.group, a.n_kv_heads = c.n_kv_heads, a.head_dim = c.d;
  a.n = c.n, a.first = c.first, a.n_sinks = c.n_sinks;
  a.q = q.data(), a.scale_log2 = data.scale_log2;
  a.k = {c.n_sinks ? k_sinks.data() : nullptr, k_ring.data(), c.n_sinks, data.k.ring_rows};
  a.v = {c.n_sinks ? v_sinks.data() : nullptr, v_ring.data(), c.n_sinks, data.v.ring_rows};
  if (c.coded_k) {
    a.decoded_k = k_table.data(), a.decoded_v = v_table.data(), a.decoded_rows = c.first + c.n;
    a.coded_k = coded_k.data(), a.coded_v = coded_v.data();
  }
  a.out = out.data(), a.block_rows = c.block_rows;
  REQUIRE(ops().attend_prefill(nullptr, a) == 0);
  return out.get();
}

/// Relative RMS error over all outputs, and of the worst row.
struct Error {
  double all, row;
};
Error error_of(const Case& c, const std::vector<double>& want, const std::vector<uint16_t>& got) {
  double all = 0.0, all_square = 0.0, worst = 0.0;
  for (size_t row = 0; row < want.size() / c.d; ++row) {
    double sum = 0.0, square = 0.0;
    for (size_t x = row * c.d; x < (row + 1) * c.d; ++x) {
      const double e = half_to_float(got[x]) - want[x];
      sum += e * e, square += want[x] * want[x];
    }
    all += sum, all_square += square;
    // NaN must not hide behind a comparison
    if (!(sum <= worst * square)) worst = square > 0.0 ? sum / square : sum;
  }
  return {std::sqrt(all / all_square), std::sqrt(worst)};
}

/// Weights and outputs are rounded to halves once each: relative errors of at most 2^-11, about
/// 2^-12 rms, each. 6e-4 leaves room for the device's exp2; a single row may have outputs that
/// cancel, hence twice that.
void check(const char* name, const Case& c) {
  std::mt19937 rng(static_cast<unsigned>(c.n * 131 + c.first * 7 + c.group + c.d));
  Data data(c, rng);
  const Error e = error_of(c, reference(c, data), run(c, data));
  char line[160];
  std::snprintf(line, sizeof line,
                "prefill %-12s d%d G%d heads %d n %d first %d sinks %d rows %d: %.1e (row %.1e)",
                name, c.d, c.group, c.n_kv_heads * c.group, c.n, c.first, c.n_sinks, c.block_rows,
                e.all, e.row);
  std::puts(line);
  INFO(line);
  CHECK(e.all <= 6e-4);
  CHECK(e.row <= 1.2e-3);
}

/// Every rule of a case where all is as in `c`.
void check_rules(Case c) {
  const int s = c.n_sinks;
  c.coded_k = c.coded_v = by_blocks(s, 0);
  check("blocks", c);
  c.coded_k = c.coded_v = by_blocks(s, 40);
  check("window", c);
  c.coded_k = c.coded_v = all_coded(s);
  check("all", c);
  c.coded_k = by_blocks(s, 0), c.coded_v = lagging(s, 32);  // [KIVI]: keys by group, values late
  check("kivi", c);
}

}  // namespace

TEST_CASE("prefill: exact rows, shapes", "[device]") {
  const int n_of[] = {1, 17, 64, 65, 200}, first_of[] = {0, 5, 130}, sinks_of[] = {0, 4, 70};
  int i = 0;
  for (const int group : {1, 2, 3, 4, 5, 8}) {
    for (const int d : {64, 128}) {
      for (const int rows : {64, 128}) {
        const int n = n_of[i % 5];
        if (harness_is_slow() && n * group > 200) {
          ++i;
          continue;
        }
        check("exact", {d,
                        1 + i % 2,
                        group,
                        n,
                        first_of[i % 3],
                        sinks_of[i % 3],
                        {},
                        {},
                        Scores::kPlain,
                        rows});
        ++i;
      }
    }
  }
}

TEST_CASE("prefill: coded tokens", "[device]") {
  const bool slow = harness_is_slow();
  for (const int rows : {64, 128}) {
    check_rules({64, 1, 2, slow ? 70 : 200, 0, 4, {}, {}, Scores::kPlain, rows});
    check_rules({128, 1, 1, slow ? 40 : 130, 130, 4, {}, {}, Scores::kPlain, rows});
    if (slow) continue;
    check_rules({128, 1, 3, 65, 130, 0, {}, {}, Scores::kPlain, rows});
    check_rules({64, 2, 4, 17, 130, 37, {}, {}, Scores::kPlain, rows});
    check_rules({64, 1, 1, 17, 0, 64, {}, {}, Scores::kPlain, rows});  // still among the sinks
    check_rules({64, 1, 8, 17, 190, 1, {}, {}, Scores::kPlain, rows});
    check_rules({128, 1, 5, 1, 130, 16, {}, {}, Scores::kPlain, rows});
  }
}

TEST_CASE("prefill: keys and values coded apart", "[device]") {
  for (const int d : {64, 128}) {
    for (const int rows : {64, 128}) {
      const auto with = [&](CodedRule k, CodedRule v) {
        check("apart", {d, 1, 2, 50, 130, 3, std::move(k), std::move(v), Scores::kPlain, rows});
      };
      with(constant(0), constant(100));
      with(constant(100), constant(0));
      with(all_coded(3), constant(0));
      with(constant(17), all_coded(3));
      with(lagging(3, 20), lagging(3, 1));
    }
  }
}

TEST_CASE("prefill: sharp, rising and falling scores", "[device]") {
  const int n = harness_is_slow() ? 70 : 150;
  const std::pair<const char*, Scores> all[] = {{"sharp", Scores::kSharp},
                                                {"rising", Scores::kRising},
                                                {"falling", Scores::kFalling},
                                                {"both", Scores::kBoth}};
  for (const auto& [name, scores] : all) {
    for (const int rows : {64, 128}) {
      check(name, {64, 1, 2, n, 5, 4, {}, {}, scores, rows});
      check(name, {128, 1, 3, n / 2, 5, 4, by_blocks(4, 10), by_blocks(4, 10), scores, rows});
    }
  }
}

TEST_CASE("prefill: no queries", "[device]") {
  PrefillArgs a{};
  a.n_heads = 4, a.n_kv_heads = 2, a.head_dim = 64;
  CHECK(ops().attend_prefill(nullptr, a) == 0);
}
