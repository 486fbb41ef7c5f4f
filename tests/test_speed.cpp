// SPDX-License-Identifier: Apache-2.0
// Figures of `kv-decode bench` that follow from raw times.
#include "lib/eval/speed.h"

#include <catch2/catch.hpp>
#include <cmath>

using namespace million;

namespace {

/// Steps of constant time at each of the depths 100, 200, 400.
std::vector<DepthSpeed> times(std::vector<double> ms) {
  const int depths[] = {100, 200, 400};
  std::vector<DepthSpeed> result;
  for (size_t i = 0; i < ms.size(); ++i) {
    result.emplace_back();
    result.back().depth = depths[i];
    result.back().step_ms = {ms[i], ms[i], ms[i]};
  }
  return result;
}

}  // namespace

TEST_CASE("a method pays from where it is no slower than fp16 at all deeper contexts") {
  const auto exact = times({1.0, 2.0, 4.0});
  CHECK(crossover_depth(exact, times({0.5, 1.0, 2.0})) == 100.0);
  CHECK(std::isinf(crossover_depth(exact, times({0.5, 1.0, 4.1}))));
  // Ratios 0.5, 1.5: half of the way between 100 and 200.
  CHECK(crossover_depth(exact, times({2.0, 2.0 / 1.5, 1.0})) == Approx(150.0));
  // Faster at 100, slower at 200: the deeper crossing counts.
  CHECK(crossover_depth(exact, times({0.5, 4.0, 4.0 / 1.5})) == Approx(300.0));
}
