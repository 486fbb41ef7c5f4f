// SPDX-License-Identifier: Apache-2.0
// Prefill attention on tiles of keys: attend_tile of every level and attend_tile_bf16 against
// ref/ops_ref.cpp in double, and the promise that a row meets no other one.
#include "kernels/ops.h"
#include "kernels/ref/ops_ref.h"
#include "tests/kernel_data.h"

#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

using namespace million;

namespace {

/// Rows and keys of a few tiles; row r sees keys [begin, end) of each tile.
struct Tiles {
  int rows, d;
  std::vector<int> tile_keys;
  std::vector<float> q, k, v;                ///< q [rows][d], k and v [all keys][d]
  std::vector<std::pair<int, int>> visible;  ///< [tile][row]
  Tiles(int rows_, int d_, std::vector<int> keys, float sigma)
      : rows(rows_), d(d_), tile_keys(std::move(keys)) {
    int n = 0;
    for (const int t : tile_keys) n += t;
    q = normal(std::size_t(rows * d), sigma / std::sqrt(float(d)));
    k = normal(std::size_t(n * d)), v = normal(std::size_t(n * d));
    for (const int t : tile_keys)
      for (int r = 0; r < rows; ++r) visible.push_back(draw_range(t, r));
  }
  /// Everything, nothing, a prefix as in causal attention, or any range.
  static std::pair<int, int> draw_range(int n, int r) {
    const auto any = [](int most) { return int(g_random() % std::size_t(most + 1)); };
    if (r % 5 == 0) return {0, n};
    if (r % 5 == 1) return {n / 2, n / 2};
    if (r % 5 == 2) return {0, any(n)};
    const int a = any(n), b = any(n);
    return {std::min(a, b), std::max(a, b)};
  }
};

struct Result {
  std::vector<float> max, sum, acc;  ///< acc [rows][d]
};

/// float at (row, channel) of panels.
std::size_t panel_at(int row, int c, int d) {
  return std::size_t((row / kPanelRows * d + c) * kPanelRows + row % kPanelRows);
}

Result run(TileAttend attend, const Tiles& t) {
  const auto rows = std::size_t(t.rows);
  Result out{std::vector<float>(rows, -INFINITY), std::vector<float>(rows), {}};
  std::vector<float> q(t.q.size()), acc(t.q.size() + 1, 0.0f);
  acc.back() = 777.0f;
  for (int r = 0; r < t.rows; ++r)
    for (int c = 0; c < t.d; ++c) q[panel_at(r, c, t.d)] = t.q[std::size_t(r * t.d + c)];
  int first = 0;
  for (std::size_t i = 0; i < t.tile_keys.size(); ++i) {
    std::vector<int> begin, end;
    for (std::size_t r = 0; r < rows; ++r) {
      begin.push_back(t.visible[i * rows + r].first);
      end.push_back(t.visible[i * rows + r].second);
    }
    attend({t.rows, t.d, t.tile_keys[i], q.data(), t.k.data() + std::ptrdiff_t{first} * t.d,
            t.v.data() + std::ptrdiff_t{first} * t.d, begin.data(), end.data(), out.max.data(),
            out.sum.data(), acc.data()});
    first += t.tile_keys[i];
  }
  REQUIRE(acc.back() == 777.0f);
  for (int r = 0; r < t.rows; ++r)
    for (int c = 0; c < t.d; ++c) out.acc.push_back(acc[panel_at(r, c, t.d)]);
  return out;
}

void check(TileAttend attend, const Tiles& t, double bound) {
  const Result got = run(attend, t);
  std::vector<double> out, want;
  for (int r = 0; r < t.rows; ++r) {
    std::vector<double> k, v;
    int first = 0;
    for (std::size_t i = 0; i < t.tile_keys.size(); first += t.tile_keys[i], ++i) {
      const auto [from, to] = t.visible[i * std::size_t(t.rows) + std::size_t(r)];
      const auto begin = std::ptrdiff_t{first + from} * t.d, end = std::ptrdiff_t{first + to} * t.d;
      k.insert(k.end(), t.k.begin() + begin, t.k.begin() + end);
      v.insert(v.end(), t.v.begin() + begin, t.v.begin() + end);
    }
    const auto row = std::size_t(r), d = std::size_t(t.d);
    const int n = int(k.size() / d);
    const auto exact = ref::attend(1, t.d, n, t.q.data() + row * d, k.data(), v.data());
    if (n == 0) {
      CHECK(got.max[row] == -INFINITY);
      CHECK(got.sum[row] == 0.0f);
    } else {
      REQUIRE(std::fabs(got.max[row] + std::log(double(got.sum[row])) - exact.lse[0]) <=
              bound * std::max(1.0, std::fabs(exact.lse[0])));
    }
    for (std::size_t c = 0; c < d; ++c) {
      out.push_back(n == 0 ? double(got.acc[row * d + c])
                           : double(got.acc[row * d + c]) / got.sum[row]);
      want.push_back(exact.out[c]);
    }
  }
  CHECK(relative_norm(out, want) <= bound);
}

/// The kernels under test, with the bound of their outputs.
struct Kernel {
  std::string name;
  TileAttend attend;
  double bound;
};
std::vector<Kernel> kernels() {
  std::vector<Kernel> found;
  for (const Ops* op : levels()) found.push_back({op->name, op->attend_tile, 1e-5});
  if (const TileAttend bf16 = attend_tile_bf16()) found.push_back({"bf16", bf16, 1e-2});
  return found;
}

bool equal_row(const Result& a, int row_a, const Result& b, int row_b, int d) {
  const auto i = std::size_t(row_a), j = std::size_t(row_b), n = std::size_t(d);
  return std::memcmp(&a.max[i], &b.max[j], sizeof(float)) == 0 &&
         std::memcmp(&a.sum[i], &b.sum[j], sizeof(float)) == 0 &&
         std::memcmp(&a.acc[i * n], &b.acc[j * n], n * sizeof(float)) == 0;
}

}  // namespace

TEST_CASE("attention on tiles of keys, any visible ranges") {
  for (const Kernel& kernel : kernels())
    for (int d : {64, 80, 96, 128, 256})
      for (const std::vector<int>& keys :
           {std::vector{256}, {8}, {256, 64, 256}, {256, 256, 192}}) {
        INFO(kernel.name << " head_dim=" << d << " tiles=" << keys.size());
        check(kernel.attend, Tiles(kPanelRows * 2, d, keys, 1.0f), kernel.bound);
      }
}

TEST_CASE("attend_tile takes any head_dim and any number of keys") {
  for (const Ops* op : levels())
    for (int d : {1, 7, 40, 65})
      for (int n : {1, 2, 5, 7, 13, 100, 255}) {
        INFO(op->name << " head_dim=" << d << " keys=" << n);
        check(op->attend_tile, Tiles(kPanelRows, d, {n, 256}, 1.0f), 1e-5);
      }
}

TEST_CASE("large scores neither overflow nor lose the smaller ones") {
  for (const Kernel& kernel : kernels()) {
    INFO(kernel.name);
    // Scores of +-100 and more: a bf16 product is off by tenths there, so only f32 has a bound.
    Tiles t(kPanelRows, 64, {256, 256}, 40.0f);
    if (kernel.name != "bf16") check(kernel.attend, t, 2e-4);
    for (const float x : run(kernel.attend, t).acc) REQUIRE(std::isfinite(x));
  }
}

TEST_CASE("a row has the same bits whatever the other rows are and wherever it stands") {
  for (const Kernel& kernel : kernels())
    for (int d : {64, 96}) {
      INFO(kernel.name << " head_dim=" << d);
      const Tiles t(kPanelRows * 2, d, {256, 256, 128}, 2.0f);
      const Result all = run(kernel.attend, t);
      for (int r : {0, 2, 3, 4, 33, 41, 63}) {
        const auto row = std::size_t(r), rows = std::size_t(t.rows);
        // Alone in the last place; the others see nothing, or what this row sees, or all.
        for (int others : {0, 1, 2}) {
          Tiles moved = t;
          const auto to = rows - 1 - row % 7;
          std::copy_n(t.q.begin() + long(row) * d, d, moved.q.begin() + long(to) * d);
          for (std::size_t i = 0; i < t.tile_keys.size(); ++i)
            for (std::size_t o = 0; o < rows; ++o) {
              const auto own = t.visible[i * rows + row];
              moved.visible[i * rows + o] = o == to || others == 1 ? own
                                            : others == 0          ? std::pair(0, 0)
                                                                   : std::pair(0, t.tile_keys[i]);
            }
          CHECK(equal_row(all, r, run(kernel.attend, moved), int(to), d));
        }
      }
    }
}

TEST_CASE("attend_tile_bf16 belongs to the AVX-512 level") {
  const Ops* best = &ops();
  REQUIRE(set_isa(Isa::kScalar));
  CHECK(attend_tile_bf16() == nullptr);
  for (Isa isa : {Isa::kAvx2, Isa::kAvx512})
    if (ops_for(isa) == best) set_isa(isa);
}
