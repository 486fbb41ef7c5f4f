// SPDX-License-Identifier: Apache-2.0
// Nearest-centroid search: items/s are subvectors (rows of dsub values), ns_per_row its inverse.
#include "kernels/bench/bench_common.h"

using namespace million;

namespace {

void encode(benchmark::State& state, const Ops* op) {
  const int K = static_cast<int>(state.range(0)), dsub = static_cast<int>(state.range(1));
  const int n = 4096;
  const auto x = bench::normal(static_cast<std::size_t>(n) * 64, 1.0f, 2);
  const auto centroids = bench::normal(static_cast<std::size_t>(K * dsub));
  std::vector<uint16_t> codes(static_cast<std::size_t>(n));
  for (auto _ : state) {
    op->pq_encode(x.data(), 64, n, centroids.data(), K, dsub, codes.data());
    benchmark::DoNotOptimize(codes.data());
  }
  state.SetItemsProcessed(int64_t{n} * state.iterations());
  state.counters["ns_per_row"] = benchmark::Counter(
      n * 1e-9, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

void register_all() {
  for (const Ops* op : bench::levels())
    benchmark::RegisterBenchmark((std::string("pq_encode/") + op->name).c_str(), encode, op)
        ->ArgNames({"K", "dsub"})
        ->Args({256, 2})
        ->Args({256, 4})
        ->Args({256, 8})
        ->Args({16, 2})
        ->Args({64, 2})
        ->Args({4096, 2});
}

const int kRegistered = (register_all(), 0);

}  // namespace
