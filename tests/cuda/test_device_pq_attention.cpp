// SPDX-License-Identifier: Apache-2.0
// Attention on PQ codes against a plain attention in double over the same halves.
#include "kernels/cuda/attention_pq.h"
#include "tests/cuda/pq_data.h"

#include <catch2/catch.hpp>

#include <algorithm>
#include <cstdio>
#include <limits>
#include <numeric>
#include <string>

namespace million::cuda::test::pq {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct AttendCase {
  std::string name;
  int d = 128, k_dsub = 2, v_dsub = 2, k_bits = 8, v_bits = 8;
  int group = 4, n_kv_heads = 1, n_splits = 2;
  std::vector<int> lengths = {200};  ///< coded tokens of each sequence
  bool two_pass = false, table = false, book_per_head = false;
  double sharpness = 1.0;  ///< of scores
  int rising_head = -1;    ///< tokens are sorted by this head's score
};

struct Reference {
  std::vector<double> rows, lse;  ///< [batch][n_heads][d], [batch][n_heads]
};

/// Everything a case needs on the host.
struct Problem {
  AttendCase c;
  Kind k, v;
  std::vector<uint16_t> q;
  double scale_log2;

  int batch() const { return static_cast<int>(c.lengths.size()); }
  int n_heads() const { return c.group * c.n_kv_heads; }
  int line(int b, int head) const { return b * c.n_kv_heads + head / c.group; }
  double score(int b, int head, int t) const {
    double sum = 0.0;
    for (int i = 0; i < c.d; ++i)
      sum += half_value(q[(static_cast<size_t>(b) * n_heads() + head) * c.d + i]) *
             k.value(line(b, head), t, i);
    return sum * scale_log2;
  }
};

Problem make_problem(const AttendCase& c, unsigned seed) {
  std::mt19937 random(seed);
  const int batch = static_cast<int>(c.lengths.size()), lines = batch * c.n_kv_heads;
  const int tokens = *std::max_element(c.lengths.begin(), c.lengths.end());
  const int books = c.book_per_head ? c.n_kv_heads : 1;
  Problem p{c, {}, {}, {}, 0.0};
  p.k = random_kind(c.d, c.d / c.k_dsub, c.k_bits, lines, tokens, books, true, random);
  p.v = random_kind(c.d, c.d / c.v_dsub, c.v_bits, lines, tokens, books, false, random);
  p.q = random_halves(static_cast<size_t>(batch) * p.n_heads() * c.d, c.sharpness, random);
  p.scale_log2 = 1.4426950408889634 / std::sqrt(static_cast<double>(c.d));
  if (c.rising_head >= 0) {
    std::vector<int> order(tokens);
    std::iota(order.begin(), order.end(), 0);
    std::vector<double> score(tokens);
    for (int t = 0; t < tokens; ++t) score[t] = p.score(0, c.rising_head, t);
    std::sort(order.begin(), order.end(), [&](int x, int y) { return score[x] < score[y]; });
    Kind sorted = p.k;
    for (int t = 0; t < tokens; ++t)
      for (int m = 0; m < p.k.M; ++m) sorted.code(0, t, m) = p.k.code(0, order[t], m);
    p.k = sorted;
  }
  return p;
}

Reference attend(const Problem& p) {
  const int d = p.c.d;
  Reference r;
  for (int b = 0; b < p.batch(); ++b) {
    for (int head = 0; head < p.n_heads(); ++head) {
      std::vector<double> score(p.c.lengths[b]), row(d, 0.0);
      for (int t = 0; t < p.c.lengths[b]; ++t) score[t] = p.score(b, head, t);
      const double largest =
          score.empty() ? -kInfinity : *std::max_element(score.begin(), score.end());
      double sum = 0.0;
      for (int t = 0; t < p.c.lengths[b]; ++t) {
        const double weight = std::exp2(score[t] - largest);
        sum += weight;
        for (int i = 0; i < d; ++i) row[i] += weight * p.v.value(p.line(b, head), t, i);
      }
      for (double x : row) r.rows.push_back(sum > 0 ? x / sum : 0.0);
      r.lse.push_back(sum > 0 ? largest + std::log2(sum) : -kInfinity);
    }
  }
  return r;
}

/// The kernel's parts, merged here. Also checks what a part may be and that others are untouched.
Reference attend_on_device(const Problem& p) {
  constexpr int kFirst = 1, kBehind = 1;  // parts of others around ours
  std::mt19937 random(99);
  const AttendCase& c = p.c;
  const int n_parts = kFirst + c.n_splits + kBehind, rows = p.batch() * p.n_heads();
  std::vector<SequenceState> state;
  for (int n : c.lengths) state.push_back({n + 7, 4, n, n});
  DeviceVector<SequenceState> states(state);
  DeviceVector<uint16_t> q(p.q);
  DeviceVector<uint32_t> k_codes(packed(p.k, random)), v_codes(packed(p.v, random));
  DeviceVector<uint32_t> k_book(pairs_of(p.k.book)), v_book(pairs_of(p.v.book));
  DeviceVector<float> out(static_cast<size_t>(rows) * n_parts * c.d), lse(rows * n_parts);
  PqAttendArgs a;
  a.query = {p.batch(),
             p.n_heads(),
             c.n_kv_heads,
             c.d,
             q.data(),
             states.data(),
             static_cast<float>(p.scale_log2),
             c.n_splits,
             {out.data(), lse.data(), n_parts, kFirst}};
  a.k = view_of(p.k, k_codes, k_book);
  a.v = view_of(p.v, v_codes, v_book);
  a.two_pass = c.two_pass;
  DeviceVector<uint8_t> scratch(c.two_pass ? pq_scratch_bytes(a) : 0);
  a.scratch = scratch.data();
  REQUIRE((c.table ? ops().attend_pq_table : ops().attend_pq)(nullptr, a) == 0);

  const std::vector<float> got = out.get(), got_lse = lse.get();
  Reference r;
  for (int row = 0; row < rows; ++row) {
    double sum = 0.0, largest = -kInfinity;
    std::vector<double> merged(c.d, 0.0);
    const auto at = [&](int part) { return static_cast<size_t>(row) * n_parts + part; };
    REQUIRE(std::isnan(got_lse[at(0)]));
    REQUIRE(std::isnan(got_lse[at(n_parts - 1)]));
    REQUIRE(std::isnan(got[at(0) * c.d]));
    REQUIRE(std::isnan(got[at(n_parts - 1) * c.d]));
    for (int s = kFirst; s < kFirst + c.n_splits; ++s)
      largest = std::max<double>(largest, got_lse[at(s)]);
    for (int s = kFirst; s < kFirst + c.n_splits; ++s) {
      const float part_lse = got_lse[at(s)];
      REQUIRE(!std::isnan(part_lse));
      const double weight = part_lse == -kInfinity ? 0.0 : std::exp2(part_lse - largest);
      sum += weight;
      for (int i = 0; i < c.d; ++i) {
        const float x = got[at(s) * c.d + i];
        if (part_lse == -kInfinity) REQUIRE(x == 0.0f);
        merged[i] += weight * x;
      }
    }
    for (double x : merged) r.rows.push_back(sum > 0 ? x / sum : 0.0);
    r.lse.push_back(sum > 0 ? largest + std::log2(sum) : -kInfinity);
  }
  return r;
}

/// Scores are f32 sums of exact products and weights are halves, off by up to 2^-11 of themselves
/// at random: 1e-4 of a row over many tokens, 3e-4 of one that hangs on few. The table's entries
/// are halves too, off by 2^-12 each: that moves log2 of the sum by up to 3e-3 where scores are
/// sharp.
void check_attention(const AttendCase& c) {
  static unsigned seed = 1;
  const Problem p = make_problem(c, seed++);
  const Reference want = attend(p), got = attend_on_device(p);
  double error = 0.0, norm = 0.0, worst_lse = 0.0, worst_head = 0.0;
  for (size_t head = 0; head < want.lse.size(); ++head) {
    double e = 0.0, n = 0.0;
    for (int i = 0; i < c.d; ++i) {
      const double x = got.rows[head * c.d + i], y = want.rows[head * c.d + i];
      e += (x - y) * (x - y), n += y * y;
    }
    error += e, norm += n;
    if (n > 0) worst_head = std::max(worst_head, std::sqrt(e / n));
    if (want.lse[head] == -kInfinity)
      REQUIRE(got.lse[head] == -kInfinity);
    else
      worst_lse = std::max(worst_lse, std::fabs(got.lse[head] - want.lse[head]));
  }
  const double relative = norm > 0 ? std::sqrt(error / norm) : std::sqrt(error);
  std::printf("%-44s %.1e, worst head %.1e, lse %.1e\n", c.name.c_str(), relative, worst_head,
              worst_lse);
  INFO(c.name);
  CHECK(relative <= 6e-4);
  CHECK(worst_head <= 1e-3);
  CHECK(worst_lse <= (c.table ? 1e-2 : 1e-4));
}

TEST_CASE("attend_pq: every shape") {
  const int long_run = harness_is_slow() ? 100 : 330;  // more than one strip for some warps
  for (bool two_pass : {false, true})
    for (int d : {64, 128})
      for (int dsub : {2, 4})
        for (int nbits : {4, 6, 8})
          for (int group : {1, 2, 4}) {
            AttendCase c;
            c.name = std::string("attend_pq d") + std::to_string(d) + " M" +
                     std::to_string(d / dsub) + " n" + std::to_string(nbits) + " G" +
                     std::to_string(group) + (two_pass ? " two passes" : "");
            c.d = d, c.k_dsub = c.v_dsub = dsub, c.k_bits = c.v_bits = nbits, c.group = group;
            c.two_pass = two_pass;
            c.lengths = {long_run};
            c.n_splits = 1;
            check_attention(c);
          }
}

TEST_CASE("attend_pq: groups, batches of different lengths, books of heads, odd widths") {
  for (bool two_pass : {false, true}) {
    const std::string suffix = two_pass ? " two passes" : "";
    for (int group = 1; group <= 8; ++group) {
      AttendCase c;
      c.name = "attend_pq group " + std::to_string(group) + suffix;
      c.d = 64, c.group = group, c.n_kv_heads = 2, c.book_per_head = true;
      c.k_bits = c.v_bits = 4, c.lengths = {95, 33}, c.n_splits = 2, c.two_pass = two_pass;
      check_attention(c);
    }
    AttendCase c;
    c.name = "attend_pq lengths 0 1 31 32 33 600" + suffix;
    c.lengths = {0, 1, 31, 32, 33, harness_is_slow() ? 120 : 600};
    c.k_bits = c.v_bits = 7;  // kept as 8 bits, half the rows
    c.n_kv_heads = 2, c.book_per_head = true, c.n_splits = 3, c.two_pass = two_pass;
    check_attention(c);
    c = {};
    c.name = "attend_pq more parts than strips" + suffix;
    c.lengths = {40}, c.n_splits = 7, c.two_pass = two_pass, c.k_bits = c.v_bits = 5;
    check_attention(c);
    c = {};
    c.name = "attend_pq nothing coded" + suffix;
    c.lengths = {0, 0, 3}, c.n_splits = 2, c.two_pass = two_pass;
    check_attention(c);
  }
  AttendCase c;
  c.name = "attend_pq keys M64 n8, values M32 n4";
  c.v_dsub = 4, c.v_bits = 4, c.two_pass = true, c.group = 6;
  check_attention(c);
}

TEST_CASE("attend_pq: scores that rise for one head, sharp scores") {
  for (bool two_pass : {false, true})
    for (int head = 0; head < 4; ++head) {
      AttendCase c;
      c.name =
          "attend_pq rising for head " + std::to_string(head) + (two_pass ? " two passes" : "");
      c.lengths = {harness_is_slow() ? 300 : 1032};
      c.n_splits = 1, c.sharpness = 8.0, c.rising_head = head, c.two_pass = two_pass;
      check_attention(c);
    }
}

TEST_CASE("attend_pq refuses what it has no kernel for") {
  PqAttendArgs a{};
  a.query.n_heads = a.query.n_kv_heads = 1, a.query.head_dim = 128, a.query.batch = 1;
  a.k.M = a.v.M = 16, a.k.nbits = a.v.nbits = 8;
  CHECK(!pq_has_kernel(a));
  CHECK(ops().attend_pq(nullptr, a) != 0);
  a.k.M = a.v.M = 64;
  CHECK(pq_has_kernel(a));
  a.v.nbits = 4;
  CHECK(!pq_has_kernel(a));
  a.two_pass = true;
  CHECK(pq_has_kernel(a));
  CHECK(pq_shared_bytes(a) <= 99 * 1024);
}

TEST_CASE("attend_pq_table: shapes, groups, lengths") {
  for (int nbits : {3, 4, 5, 6, 8})
    for (int dsub : {1, 2, 4, 8}) {
      AttendCase c;
      c.name = "attend_pq_table d128 dsub" + std::to_string(dsub) + " n" + std::to_string(nbits);
      c.table = true, c.k_dsub = dsub, c.v_dsub = 8 / dsub, c.k_bits = nbits, c.v_bits = 9 - nbits;
      if (c.v_bits < 2) c.v_bits = 8;
      c.group = 2, c.lengths = {150}, c.n_splits = 2;
      check_attention(c);
    }
  AttendCase c;
  c.name = "attend_pq_table lengths 0 1 32 33 300";
  c.table = true, c.d = 64, c.lengths = {0, 1, 32, 33, 300}, c.n_splits = 3, c.n_kv_heads = 2;
  c.book_per_head = true, c.group = 3;
  check_attention(c);
  c = {};
  c.name = "attend_pq_table rising";
  c.table = true, c.lengths = {600}, c.n_splits = 1, c.sharpness = 8.0, c.rising_head = 1;
  check_attention(c);
}

}  // namespace
}  // namespace million::cuda::test::pq
