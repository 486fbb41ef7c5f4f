// SPDX-License-Identifier: Apache-2.0
// Attention on codes in a basis, its queries and rows, encoding and decoding, against double.
#include "tests/cuda/coded_cache.h"

#include <catch2/catch.hpp>
#include <cstdio>
#include <set>

using namespace million::cuda;
using namespace million::cuda::test;

namespace {

/// Output of all heads: sums in the basis, rows, and log2 weights.
struct Output {
  std::vector<double> sums, rows, lse;
};

Output reference(const Cache& c, double scale_log2) {
  Output out;
  const Shape& s = c.s;
  for (int b = 0; b < c.batch; ++b)
    for (int head = 0; head < s.n_heads; ++head) {
      const int kv = head / s.group(), unit = kv / s.span, own = kv % s.span * s.d;
      const auto x = c.scores(b, head, scale_log2);
      const double top = x.empty() ? 0.0 : *std::max_element(x.begin(), x.end());
      std::vector<double> sums(static_cast<std::size_t>(s.rank));
      double weight = 0.0;
      for (std::size_t t = 0; t < x.size(); ++t) {
        const double p = std::exp2(x[t] - top);
        weight += p;
        for (int j = 0; j < s.rank; ++j)
          sums[static_cast<std::size_t>(j)] += p * c.y(c.v, b, unit, static_cast<int>(t), j);
      }
      if (!x.empty())
        for (double& y : sums) y /= weight;
      for (int ch = 0; ch < s.d; ++ch) {
        double row = 0.0;
        for (int j = 0; j < s.rank; ++j)
          row += sums[static_cast<std::size_t>(j)] * c.v.basis.at(unit, s.w(), j, own + ch);
        out.rows.push_back(row);
      }
      out.sums.insert(out.sums.end(), sums.begin(), sums.end());
      out.lse.push_back(x.empty() ? -INFINITY : top + std::log2(weight));
    }
  return out;
}

/// Parts joined in double.
struct Merged {
  std::vector<float> sums, lse;
};
Merged merge(const Cache& c, const std::vector<float>& rows, const std::vector<float>& lse,
             int n_parts, int first, int n_splits) {
  Merged out;
  const auto rank = static_cast<std::size_t>(c.s.rank);
  for (int h = 0; h < c.batch * c.s.n_heads; ++h) {
    const float* part_lse = lse.data() + h * n_parts;
    for (int p = 0; p < n_parts; ++p)  // parts of others are left alone
      if (p < first || p >= first + n_splits) REQUIRE(std::isnan(part_lse[p]));
    double top = -INFINITY, weight = 0.0;
    for (int p = first; p < first + n_splits; ++p) top = std::max<double>(top, part_lse[p]);
    for (int p = first; p < first + n_splits && top > -INFINITY; ++p)
      weight += std::exp2(part_lse[p] - top);
    for (std::size_t j = 0; j < rank; ++j) {
      double sum = 0.0;
      for (int p = first; p < first + n_splits; ++p) {
        const float row = rows[static_cast<std::size_t>(h * n_parts + p) * rank + j];
        REQUIRE(std::isfinite(row));
        if (part_lse[p] > -INFINITY) sum += std::exp2(part_lse[p] - top) / weight * row;
      }
      out.sums.push_back(static_cast<float>(sum));
    }
    out.lse.push_back(weight > 0.0 ? static_cast<float>(top + std::log2(weight)) : -INFINITY);
  }
  return out;
}

/// coded_rows of joined sums.
std::vector<double> rows_of(const Cache& c, DeviceCache& on, const Merged& merged) {
  const Shape& s = c.s;
  const auto heads = static_cast<std::size_t>(c.batch * s.n_heads);
  const auto d = static_cast<std::size_t>(s.d);
  DeviceVector<float> sums(merged.sums), sums_lse(merged.lse), rows(heads * 2 * d), lse(heads * 2);
  REQUIRE(ops().coded_rows(nullptr, {c.batch,
                                     s.n_heads,
                                     s.n_kv_heads,
                                     s.d,
                                     on.shape,
                                     on.v.view,
                                     sums.data(),
                                     sums_lse.data(),
                                     {rows.data(), lse.data(), 2, 1}}) == 0);
  const auto got = rows.get(), got_lse = lse.get();
  std::vector<double> out;
  for (std::size_t h = 0; h < heads; ++h) {
    REQUIRE(got_lse[2 * h + 1] == merged.lse[h]);
    for (std::size_t ch = 0; ch < d; ++ch) out.push_back(got[(2 * h + 1) * d + ch]);
  }
  return out;
}

/// turn_queries, attend_coded, a merge in double and coded_rows.
Output attend(const Cache& c, int n_splits, int shared_limit, float scale_log2) {
  const Shape& s = c.s;
  DeviceCache on(c);
  DeviceVector<SequenceState> state(c.state);
  DeviceVector<uint16_t> q(c.q);
  const int first = 1, n_parts = n_splits + 2;
  const auto heads = static_cast<std::size_t>(c.batch * s.n_heads);
  const auto frames = static_cast<std::size_t>(c.frames);
  DeviceVector<float> rows(heads * static_cast<std::size_t>(n_parts * s.rank));
  DeviceVector<float> lse(heads * static_cast<std::size_t>(n_parts)), step(heads * frames);
  DeviceVector<uint32_t> words(heads * frames * static_cast<std::size_t>(s.rank / 2));
  DeviceVector<int32_t> bias(heads * frames * static_cast<std::size_t>(s.n_places ? s.frame : 0));
  const QueryArgs query{c.batch,    s.n_heads, s.n_kv_heads,
                        s.d,        q.data(),  state.data(),
                        scale_log2, n_splits,  {rows.data(), lse.data(), n_parts, first}};
  const TurnedQueries turned{words.data(), step.data(), bias.data(), c.frames};
  REQUIRE(coded_fits(on.shape, on.k.view, on.v.view, s.d));
  REQUIRE(ops().turn_queries(nullptr, {query, on.shape, on.k.view, turned}) == 0);
  const CodedAttendArgs args{query, on.shape, on.k.view, on.v.view, turned, shared_limit};
  REQUIRE(static_cast<int>(coded_shared_bytes(args)) <= shared_limit);
  REQUIRE(ops().attend_coded(nullptr, args) == 0);

  const Merged merged = merge(c, rows.get(), lse.get(), n_parts, first, n_splits);
  Output out;
  for (std::size_t i = 0; i < merged.sums.size(); ++i) {
    const int axis = static_cast<int>(i) % s.rank, head = static_cast<int>(i) / s.rank % s.n_heads;
    const int unit = head / s.group() / s.span;
    out.sums.push_back(static_cast<double>(merged.sums[i]) *
                       c.v.scale[static_cast<std::size_t>(unit * s.rank + axis)]);
  }
  out.lse.assign(merged.lse.begin(), merged.lse.end());
  out.rows = rows_of(c, on, merged);
  return out;
}

/// Weights are rounded to halves (up to 2.4e-4 at random), queries to 2^-16 of their largest axis:
/// with 192 axes of a normal query that moves a score by 3e-5 of the scores' deviation.
constexpr double kBound = 6e-4, kScoreShare = 1e-4;
constexpr int kAnyShared = 227 * 1024;

double check(const Cache& c, int n_splits, int shared_limit, double deviation = 3.0) {
  const float scale_log2 = 1.4426950408889634f / std::sqrt(static_cast<float>(c.s.d));
  const Output want = reference(c, scale_log2), got = attend(c, n_splits, shared_limit, scale_log2);
  const double error =
      std::max(relative_rms(got.sums, want.sums), relative_rms(got.rows, want.rows));
  REQUIRE(error < std::max(kBound, kScoreShare * deviation));
  for (std::size_t i = 0; i < want.lse.size(); ++i) {
    if (want.lse[i] == -INFINITY)
      REQUIRE(got.lse[i] == -INFINITY);
    else
      REQUIRE(std::fabs(got.lse[i] - want.lse[i]) < kScoreShare * deviation);
  }
  return error;
}

const Shape kDefault{9, 3, 64, 3, 192, 64, 16, 4};

}  // namespace

TEST_CASE("codes in a basis have one place each") {
  for (const int M : {16, 32, 48, 64, 80, 256}) {
    std::set<int> keys, values;
    for (int t = 0; t < kCodedStrip; ++t)
      for (int m = 0; m < M; ++m) {
        keys.insert(coded_key_byte(t, m));
        values.insert(coded_value_byte(M, t, m));
      }
    for (const auto& s : {keys, values}) {
      REQUIRE(static_cast<int>(s.size()) == kCodedStrip * M);
      REQUIRE(*s.rbegin() == coded_strip_words(M) * 4 - 1);
    }
  }
}

TEST_CASE("attention on codes in a basis: the default model's shape, any number of tokens") {
  double worst = 0.0;
  for (const int sinks : {0, 4, 70})
    for (const int n : {0, 1, 31, 64, 65, 300}) {
      if (harness_is_slow() && (sinks == 0 || n > 100)) continue;
      Shape s = kDefault;
      s.sinks = sinks;
      INFO("sinks " << sinks << " n " << n);
      worst = std::max(worst, check(Cache(s, {n}, 1.2), n > 64 ? 3 : 1, kAnyShared));
    }
  std::printf("attend_coded default: %.2g\n", worst);
}

TEST_CASE("attention on codes in a basis: shapes") {
  struct Case {
    const char* name;
    Shape s;
    std::vector<int> n;
    int splits, shared_limit;
  };
  const std::vector<Case> cases = {
      {"two sequences", kDefault, {1000, 37}, 2, kAnyShared},
      {"empty splits", kDefault, {40, 0, 290}, 7, kAnyShared},
      {"frames that begin inside a warp's run", kDefault, {900}, 1, kAnyShared},
      {"one head", {1, 1, 64, 1, 64, 64, 16, 4}, {200}, 2, kAnyShared},
      {"4 of 128", {4, 1, 128, 1, 128, 128, 16, 70}, {300}, 1, kAnyShared},
      {"8 heads, 2 units", {16, 4, 64, 2, 128, 64, 0, 4}, {150}, 1, kAnyShared},
      {"16 heads of 2 x 128", {16, 2, 128, 2, 256, 64, 16, 4}, {100}, 1, kAnyShared},
      {"8 heads of 2 x 128", {8, 2, 128, 2, 256, 64, 16, 4}, {100}, 1, kAnyShared},
      {"20 heads, 4 axes left", {20, 4, 64, 4, 192, 64, 16, 4}, {130}, 1, kAnyShared},
      {"15 heads of rank 64", {15, 1, 64, 1, 64, 32, 16, 4}, {130}, 2, kAnyShared},
      {"12 heads of rank 128", {12, 2, 64, 2, 128, 64, 16, 4}, {130}, 2, kAnyShared},
      {"neighbours, some pairs",
       {6, 2, 64, 2, 128, 64, 16, 4, 8, 8, 24, true},
       {150},
       2,
       kAnyShared},
      {"4 and 6 bits", {9, 3, 64, 3, 192, 64, 16, 4, 4, 6}, {150}, 1, kAnyShared},
      {"7 and 1 bits", {3, 3, 64, 3, 192, 32, 16, 20, 7, 1, 16}, {75}, 1, kAnyShared},
      {"99 KB", kDefault, {200}, 2, 99 * 1024},
      {"99 KB, few heads", {3, 3, 64, 3, 192, 64, 16, 4}, {200}, 2, 99 * 1024},
      {"no books in shared memory", {9, 3, 64, 3, 192, 64, 16, 4, 8, 6}, {200}, 2, 70 * 1024},
      {"rank 320", {5, 5, 64, 5, 320, 64, 16, 4}, {70}, 1, kAnyShared},
      {"rank 512", {32, 8, 64, 8, 512, 64, 0, 4}, {40}, 1, kAnyShared},
  };
  for (const Case& c : cases) {
    if (harness_is_slow() && c.s.rank > 256) continue;
    INFO(c.name);
    std::printf("attend_coded %s: %.2g\n", c.name,
                check(Cache(c.s, c.n, 1.2), c.splits, c.shared_limit));
  }
}

TEST_CASE("attention on codes in a basis: rising and falling scores, large ones") {
  for (const int head : {0, 8, -1}) {
    Shape s = kDefault;
    s.n_pairs = 0;  // scores then follow from the codes alone
    s.n_places = 0;
    Cache c(s, {260}, 25.0);
    const auto x = c.scores(0, head < 0 ? 3 : head, 1.0);
    std::vector<int> order(x.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
    std::sort(order.begin(), order.end(), [&](int a, int b) {
      return (x[static_cast<std::size_t>(a)] < x[static_cast<std::size_t>(b)]) == (head >= 0);
    });
    const auto codes = c.k.codes;
    for (int t = 0; t < c.longest; ++t)
      std::copy_n(codes.begin() + order[static_cast<std::size_t>(t)] * s.M(), s.M(),
                  c.k.codes.begin() + t * s.M());
    const double spread = *std::max_element(x.begin(), x.end()) / 8 * 1.44;
    REQUIRE(spread > 30.0);  // the maximum moves in every strip of some heads
    INFO("head " << head << " scores to " << spread);
    std::printf("attend_coded scores %s to %.0f: %.2g\n", head < 0 ? "falling" : "rising", spread,
                check(c, 1, kAnyShared, spread / 2));
  }
}

TEST_CASE("turned queries hold the mean's part, however large") {
  Shape s = kDefault;
  for (const double size : {0.0, 1e-3, 300.0}) {
    Cache c(s, {100}, 2.0);
    for (float& m : c.mean) m *= static_cast<float>(size);
    if (size > 1.0)
      for (float& p : c.places) p = 1.0f + 0.01f * p;
    INFO("mean " << size);
    check(c, 1, kAnyShared, size > 1.0 ? 30.0 : 3.0);  // floats of some thousands
  }
  Cache zero(s, {100}, 0.0);  // all scores are equal
  check(zero, 1, kAnyShared);
}

namespace {

/// A ring of random rows and a mean, and what encoding and decoding make of them.
struct Encoded {
  Cache c;
  bool key, centred;
  int begin, n, ring_rows = 64, capacity;
  std::vector<uint16_t> ring, coded_mean, decoded;
  std::vector<uint32_t> codes;

  Encoded(const Shape& s, int tokens, int first, bool keys, bool mean)
      : c(s, {first + tokens, first + tokens}, 1.0),
        key(keys),
        centred(mean),
        begin(first),
        n(tokens),
        capacity(first + tokens + 3) {
    while (ring_rows < n) ring_rows *= 2;
    ring = halves(normal(static_cast<std::size_t>(c.batch * s.n_kv_heads * ring_rows * s.d), 0.7));
    coded_mean = halves(normal(static_cast<std::size_t>(s.units() * s.frame * s.rank), 0.3));
    DeviceCache on(c);
    DeviceVector<uint16_t> on_ring(ring), on_mean(coded_mean);
    const uint16_t* m = centred ? on_mean.data() : nullptr;
    CodedCodesView view = key ? on.k.view : on.v.view;
    DeviceVector<uint32_t> on_codes(static_cast<std::size_t>(c.batch * s.units() * c.strips) *
                                    static_cast<std::size_t>(coded_strip_words(s.M())));
    view.codes = on_codes.data();
    // The basis is orthonormal up to its rounding: E is D^T.
    REQUIRE(ops().coded_encode(
                nullptr, {c.batch, s.n_kv_heads, s.d, on_ring.data(), ring_rows, s.sinks, begin, n,
                          key, on.shape, view, view.basis, view.basis_scale, m}) == 0);
    DeviceVector<uint16_t> rows(static_cast<std::size_t>(c.batch * s.n_kv_heads * capacity * s.d));
    REQUIRE(
        ops().coded_decode(nullptr, {{c.batch, s.n_kv_heads, s.d, begin, n, rows.data(), capacity},
                                     key,
                                     s.sinks,
                                     on.shape,
                                     view,
                                     m}) == 0);
    codes = on_codes.get(), decoded = rows.get();
  }
  const Side& side() const { return key ? c.k : c.v; }
  int place(int t) const { return (c.s.sinks + t) % c.s.frame; }
  double mean_at(int unit, int t, int axis) const {
    const int at = (unit * c.s.frame + place(t)) * c.s.rank + axis;
    return centred ? million::half_to_float(coded_mean[static_cast<std::size_t>(at)]) : 0.0;
  }
  int code(int b, int unit, int t, int m) const {
    const int slot = coded_slot(c.s.sinks, t), at = slot % kCodedStrip, M = c.s.M();
    const int byte = key ? coded_key_byte(at, m) : coded_value_byte(M, at, m);
    const int strip = (b * c.s.units() + unit) * c.strips + slot / kCodedStrip;
    return reinterpret_cast<const uint8_t*>(codes.data())[strip * coded_strip_words(M) * 4 + byte];
  }
  /// What is coded of token t, before the mean is taken off: axes of its unit.
  std::vector<double> coordinates(int b, int unit, int t) const {
    const Shape& s = c.s;
    std::vector<double> x, y(static_cast<std::size_t>(s.rank));
    for (int i = 0; i < s.w(); ++i) {
      const int line = b * s.n_kv_heads + unit * s.span + i / s.d;
      const int at = (line * ring_rows + (s.sinks + t) % ring_rows) * s.d + i % s.d;
      x.push_back(million::half_to_float(ring[static_cast<std::size_t>(at)]));
    }
    for (int h = 0; key && h < s.span; ++h)
      c.turn(x.data() + h * s.d, s.sinks + t - place(t), -1.0);
    for (int j = 0; j < s.rank; ++j)
      for (int ch = 0; ch < s.w(); ++ch)
        y[static_cast<std::size_t>(j)] +=
            side().basis.at(unit, s.w(), j, ch) * x[static_cast<std::size_t>(ch)];
    return y;
  }
};

/// Every code is that of the nearest centroid; returns how many rounding decided.
int check_encoded(const Encoded& e, int b, int unit, int t) {
  int differing = 0;
  const auto y = e.coordinates(b, unit, t);
  for (int m = 0; m < e.c.s.M(); ++m) {
    const auto distance = [&](int code) {
      double sum = 0.0;
      for (int j = 4 * m; j < 4 * m + 4; ++j) {
        const double apart = y[static_cast<std::size_t>(j)] - e.mean_at(unit, t, j) -
                             e.side().centroid(e.c.s, unit, code, j);
        sum += apart * apart;
      }
      return sum;
    };
    const int code = e.code(b, unit, t, m), K = 1 << e.side().nbits;
    REQUIRE(code < K);
    int best = 0;
    double least = distance(0);
    for (int k = 1; k < K; ++k)
      if (const double apart = distance(k); apart < least) least = apart, best = k;
    if (code == best) continue;
    ++differing;  // f32 sums of 64 to 256 products decide between centroids that are equally far
    REQUIRE(distance(code) - least < 1e-5 * (1.0 + least));
  }
  return differing;
}

void check_codes(const Shape& s, int n, int begin, bool key, bool centred, int* differing) {
  const Encoded e(s, n, begin, key, centred);
  std::vector<double> got, want;
  for (int b = 0; b < e.c.batch; ++b)
    for (int kv = 0; kv < s.n_kv_heads; ++kv)
      for (int t = 0; t < e.capacity; ++t) {
        const int unit = kv / s.span, own = kv % s.span * s.d;
        const uint16_t* row = e.decoded.data() + ((b * s.n_kv_heads + kv) * e.capacity + t) * s.d;
        if (t < begin || t >= begin + n) {  // what was not asked for is left alone
          REQUIRE(row[0] == 0xFFFF);
          continue;
        }
        if (own == 0) *differing += check_encoded(e, b, unit, t);
        std::vector<double> x(static_cast<std::size_t>(s.d));
        for (int j = 0; j < s.rank; ++j) {
          const double y =
              e.side().centroid(s, unit, e.code(b, unit, t, j / 4), j) + e.mean_at(unit, t, j);
          for (int ch = 0; ch < s.d; ++ch)
            x[static_cast<std::size_t>(ch)] += y * e.side().basis.at(unit, s.w(), j, own + ch);
        }
        if (key) e.c.turn(x.data(), s.sinks + t - e.place(t), 1.0);
        want.insert(want.end(), x.begin(), x.end());
        for (int ch = 0; ch < s.d; ++ch) got.push_back(million::half_to_float(row[ch]));
      }
  REQUIRE(relative_rms(got, want) < 4e-4);  // halves
}

}  // namespace

TEST_CASE("codes in a basis are those of the nearest centroids, and decode to rows") {
  int differing = 0;
  for (const bool key : {true, false}) {
    check_codes({3, 3, 64, 3, 192, 64, 0, 4}, 13, 32, key, key, &differing);
    check_codes({2, 2, 64, 1, 64, 32, 0, 70, 6, 6, 20, true}, 40, 0, key, key, &differing);
    check_codes({1, 1, 128, 1, 128, 128, 0, 0}, 1, 64, key, false, &differing);
    check_codes({2, 2, 128, 2, 192, 64, 0, 4, 5, 3}, 9, 60, key, key, &differing);
  }
  std::printf("coded_encode: %d codes decided by rounding\n", differing);
}

TEST_CASE("equally near centroids: the first code") {
  const Shape s{1, 1, 64, 1, 64, 64, 0, 0};
  Cache c(s, {8}, 1.0);
  for (int k = 0; k < 256; ++k)  // every centroid four times, in blocks of 64
    std::copy_n(c.v.book.begin() + k % 64 * s.rank, s.rank, c.v.book.begin() + k * s.rank);
  DeviceCache on(c);
  const DeviceVector<uint16_t> ring(halves(normal(64 * 64, 0.7)));
  auto* from = const_cast<DeviceVector<uint16_t>&>(ring).data();
  REQUIRE(ops().coded_encode(nullptr, {1, 1, 64, from, 64, 0, 0, 8, false, on.shape, on.v.view,
                                       on.v.view.basis, on.v.view.basis_scale, nullptr}) == 0);
  const auto got = on.v.codes.get();
  const auto* bytes = reinterpret_cast<const uint8_t*>(got.data());
  for (int t = 0; t < 8; ++t)
    for (int m = 0; m < s.M(); ++m) REQUIRE(bytes[coded_value_byte(s.M(), t, m)] < 64);
}
