// SPDX-License-Identifier: Apache-2.0
// Tables of non-uniform levels up to 8 bits: the nearest level by halving is that of a plain scan,
// and the solver's tables get better with every bit.
#include "lib/core/rng.h"
#include "lib/quant/nuq.h"

#include <catch2/catch.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>

using namespace million;

namespace {

NuqTable random_table(int n, uint64_t seed) {
  Rng rng(seed);
  NuqTable table;
  table.n = n;
  for (int i = 0; i < n; ++i) table.levels.push_back(static_cast<float>(rng.normal()));
  if (n > 4) table.levels[2] = table.levels[3];  // a level that no value needs
  std::sort(table.levels.begin(), table.levels.end());
  table.decoded = table.levels;
  table.update_middles();
  return table;
}

int scan(const NuqTable& table, float u) {
  int code = 0;
  for (int i = 0; i + 1 < table.n; ++i) code += u > table.middles[i];
  return code;
}

}  // namespace

TEST_CASE("nuq: halving finds the level that a scan finds, ties and odd values too", "[nuq]") {
  Rng rng(3);
  for (int n = 1; n <= kMaxNuqLevels; ++n) {
    const NuqTable table = random_table(n, 100 + n);
    std::vector<float> values = {0.0f, -0.0f, 1e30f, -1e30f, INFINITY, -INFINITY, NAN};
    values.insert(values.end(), table.levels.begin(), table.levels.end());
    values.insert(values.end(), table.middles.begin(), table.middles.end());
    for (int i = 0; i < 200; ++i) values.push_back(static_cast<float>(2 * rng.normal()));
    int wrong = 0;
    for (const float u : values) wrong += table.nearest(u) != scan(table, u);
    CAPTURE(n);
    CHECK(wrong == 0);
    CHECK(table.nearest(INFINITY) == n - 1);
    CHECK(table.nearest(NAN) == 0);
  }
}

TEST_CASE("nuq: 1 to 8 bits, each halves the error or better, in little time", "[nuq]") {
  Rng rng(4);
  NuqHistogram histogram;
  std::vector<float> values(200000);
  for (float& u : values) {
    u = static_cast<float>(std::clamp(rng.normal() / 3, -1.0, 1.0));
    histogram.add(u, 1.0);
  }
  double before = 1e9;
  for (int bits = 1; bits <= 8; ++bits) {
    const auto start = std::chrono::steady_clock::now();
    const NuqTable table = histogram.solve(1 << bits, false);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    double error = 0;
    for (const float u : values) {
      const double e = u - table.decoded[table.nearest(u)];
      error += e * e;
    }
    CAPTURE(bits, error, took.count());
    CHECK(error < 0.5 * before);
    before = error;
    CHECK(took.count() < 5.0);  // 0.07 s at 8 bits on one core
    CHECK(table.bytes() <= (3 * sizeof(float)) << bits);
  }
}
