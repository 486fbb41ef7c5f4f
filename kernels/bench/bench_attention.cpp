// SPDX-License-Identifier: Apache-2.0
// Decode attention of one KV head with 3 query heads of head_dim 64 (the default model's shape) by
// context length: exact f16 rows against PQ codes. bytes/s is what is read of the cache, tokens/s
// the cached tokens passed. 16 KV heads are walked in turn, so that long contexts come from memory.
#include "kernels/bench/bench_common.h"

using namespace million;

namespace {

constexpr int kGroup = 3, kHeadDim = 64, kHeads = 16;

void attend_f16(benchmark::State& state, const Ops* op) {
  const int n = static_cast<int>(state.range(0));
  const std::size_t rows = static_cast<std::size_t>(n) * kHeadDim;
  const auto values = bench::normal(rows);
  bench::RandomBytes cache(2 * kHeads * rows * sizeof(uint16_t));
  auto* k = reinterpret_cast<uint16_t*>(cache.data());
  for (int h = 0; h < 2 * kHeads; ++h)
    op->f32_to_f16(values.data(), k + static_cast<std::size_t>(h) * rows, rows);
  const auto q = bench::normal(kGroup * kHeadDim, 0.35f);
  int head = 0;
  for (auto _ : state) {
    SoftmaxState softmax[kGroup];
    float acc[kGroup * kHeadDim] = {};
    const uint16_t* at = k + static_cast<std::size_t>(2 * head) * rows;
    op->attend_f16({kGroup, kHeadDim, n, q.data(), at, at + rows, softmax, acc});
    benchmark::DoNotOptimize(acc);
    head = (head + 1) % kHeads;
  }
  state.SetBytesProcessed(static_cast<int64_t>(2 * rows * sizeof(uint16_t)) * state.iterations());
  state.SetItemsProcessed(int64_t{n} * state.iterations());
}

void attend_pq(benchmark::State& state, const Ops* op) {
  const int n = static_cast<int>(state.range(0)), M = static_cast<int>(state.range(1));
  const int nbits = static_cast<int>(state.range(2));
  const std::size_t n_blocks = static_cast<std::size_t>((n + kPqBlock - 1) / kPqBlock);
  const std::size_t side = n_blocks * pq_block_bytes(M, nbits);
  bench::RandomBytes cache(2 * kHeads * side);
  const auto centroids = bench::normal(static_cast<std::size_t>(kHeadDim) << nbits);
  const auto q = bench::normal(kGroup * kHeadDim, 0.35f);
  std::vector<const uint8_t*> blocks;
  for (std::size_t i = 0; i < 2 * kHeads * n_blocks; ++i)
    blocks.push_back(cache.data() + i * pq_block_bytes(M, nbits));
  const std::size_t floats = pq_scratch_floats(kGroup, kHeadDim, M, nbits);
  std::unique_ptr<float, decltype(&std::free)> scratch(
      static_cast<float*>(std::aligned_alloc(64, (floats + 15) / 16 * 64)), &std::free);
  std::size_t head = 0;
  for (auto _ : state) {
    SoftmaxState softmax[kGroup];
    float acc[kGroup * kHeadDim] = {};
    const PqSide k{M, nbits, blocks.data() + 2 * head * n_blocks, centroids.data()};
    const PqSide v{M, nbits, k.blocks + n_blocks, centroids.data()};
    op->attend_pq({kGroup, kHeadDim, n, q.data(), k, v, scratch.get(), softmax, acc});
    benchmark::DoNotOptimize(acc);
    head = (head + 1) % kHeads;
  }
  state.SetBytesProcessed(static_cast<int64_t>(2 * side) * state.iterations());
  state.SetItemsProcessed(int64_t{n} * state.iterations());
}

void register_all() {
  for (const Ops* op : bench::levels()) {
    const std::string level = std::string("/") + op->name;
    benchmark::RegisterBenchmark(("attend_f16" + level).c_str(), attend_f16, op)
        ->ArgName("tokens")
        ->Arg(512)
        ->Arg(2048)
        ->Arg(8192)
        ->Arg(32768)
        ->Unit(benchmark::kMicrosecond);
    auto* pq = benchmark::RegisterBenchmark(("attend_pq" + level).c_str(), attend_pq, op);
    pq->ArgNames({"tokens", "M", "nbits"})->Unit(benchmark::kMicrosecond);
    for (int n : {512, 2048, 8192, 32768}) pq->Args({n, 32, 8})->Args({n, 16, 8});
    pq->Args({32768, 64, 4})->Args({32768, 32, 4})->Args({32768, 32, 6})->Args({32768, 16, 12});
  }
}

const int kRegistered = (register_all(), 0);

}  // namespace
