// SPDX-License-Identifier: Apache-2.0
// Prefill attention of a query tile (64 positions times the group's heads) on 16 tiles of 256 keys:
// attend_tile beside two matrix products of oneDNN and softmax_tile. items/s are multiplications of
// the two products.
//   bench_prefill --benchmark_filter=avx512 --benchmark_enable_random_interleaving=true
// oneDNN takes its own best level: compare AVX2 with ONEDNN_MAX_CPU_ISA=AVX2.
#include "kernels/bench/bench_common.h"

#include <dnnl.h>

using namespace million;

namespace {

constexpr int kTile = 256, kTiles = 16;

struct Data {
  int rows, d;
  std::vector<float> q, k, v, acc, scores, max, sum;
  std::vector<int> begin, end;
  std::vector<SoftmaxState> state;
  Data(int d_, int group)
      : rows(64 * group),
        d(d_),
        q(bench::normal(static_cast<std::size_t>(rows * d), 0.3f)),
        k(bench::normal(static_cast<std::size_t>(kTiles * kTile * d), 1.0f, 2)),
        v(bench::normal(static_cast<std::size_t>(kTiles * kTile * d), 1.0f, 3)),
        acc(q.size()),
        scores(static_cast<std::size_t>(rows * kTile)),
        max(static_cast<std::size_t>(rows), -INFINITY),
        sum(static_cast<std::size_t>(rows)),
        begin(static_cast<std::size_t>(rows), 0),
        end(static_cast<std::size_t>(rows), kTile),
        state(static_cast<std::size_t>(rows)) {}
  std::ptrdiff_t key(int tile) const { return std::ptrdiff_t{tile} * kTile * d; }
  int64_t work() const { return int64_t{2} * rows * d * kTile * kTiles; }
};

void panels(benchmark::State& state, TileAttend attend_tile) {
  Data x(static_cast<int>(state.range(0)), static_cast<int>(state.range(1)));
  for (auto _ : state) {
    for (int t = 0; t < kTiles; ++t)
      attend_tile({x.rows, x.d, kTile, x.q.data(), x.k.data() + x.key(t), x.v.data() + x.key(t),
                   x.begin.data(), x.end.data(), x.max.data(), x.sum.data(), x.acc.data()});
    benchmark::DoNotOptimize(x.acc.data());
  }
  state.SetItemsProcessed(x.work() * state.iterations());
}

void products(benchmark::State& state, const Ops* op) {
  Data x(static_cast<int>(state.range(0)), static_cast<int>(state.range(1)));
  for (auto _ : state) {
    for (int t = 0; t < kTiles; ++t) {
      dnnl_sgemm('N', 'T', x.rows, kTile, x.d, 1.0f, x.q.data(), x.d, x.k.data() + x.key(t), x.d,
                 0.0f, x.scores.data(), kTile);
      op->softmax_tile(x.scores.data(), x.rows, kTile, kTile, x.begin.data(), x.end.data(), 1.0f,
                       x.state.data(), x.acc.data(), x.d);
      dnnl_sgemm('N', 'N', x.rows, x.d, kTile, 1.0f, x.scores.data(), kTile, x.v.data() + x.key(t),
                 x.d, 1.0f, x.acc.data(), x.d);
    }
    benchmark::DoNotOptimize(x.acc.data());
  }
  state.SetItemsProcessed(x.work() * state.iterations());
}

template <class Use>
void add(const std::string& name, Use use) {
  auto* b = benchmark::RegisterBenchmark(name.c_str(), use);
  for (int d : {64, 128})
    for (int group : {1, 3, 4, 8}) b->Args({d, group});
}

void register_all() {
  for (const Ops* op : bench::levels()) {
    add(std::string("panels/") + op->name,
        [=](benchmark::State& state) { panels(state, op->attend_tile); });
    add(std::string("products/") + op->name, [=](benchmark::State& state) { products(state, op); });
  }
  if (const TileAttend bf16 = attend_tile_bf16())
    add("panels/avx512_bf16", [=](benchmark::State& state) { panels(state, bf16); });
}

const int kRegistered = (register_all(), 0);

}  // namespace
