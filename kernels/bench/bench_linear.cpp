// SPDX-License-Identifier: Apache-2.0
// Matrix-vector products of quantized weights: bytes/s is the rate at which weights are read. A
// buffer of 256 MB is walked, so that they come from memory and not from a cache. Also the ops
// around the products at the default model's sizes.
//   bench_linear --benchmark_filter=avx512 --benchmark_format=json
#include "kernels/bench/bench_common.h"

using namespace million;

namespace {

void gemv(benchmark::State& state, const Ops* op, BlockType type) {
  const int n_rows = static_cast<int>(state.range(0)), n = static_cast<int>(state.range(1));
  const std::size_t row_bytes =
      static_cast<std::size_t>(n / block_shape(type).values) * block_shape(type).bytes;
  const std::size_t matrix = row_bytes * static_cast<std::size_t>(n_rows);
  const std::size_t total = std::size_t{256} << 20;
  static bench::RandomBytes weights(total);
  const auto x = bench::normal(static_cast<std::size_t>(n));
  std::vector<BlockA8> blocks(static_cast<std::size_t>(n) / 32);
  op->quantize_a8(x.data(), n, blocks.data());
  std::vector<float> y(static_cast<std::size_t>(n_rows));
  std::size_t at = 0;
  for (auto _ : state) {
    op->gemv_a8(type, weights.data() + at, row_bytes, n_rows, n, blocks.data(), y.data());
    benchmark::DoNotOptimize(y.data());
    at = at + 2 * matrix <= total ? at + matrix : 0;
  }
  state.SetBytesProcessed(static_cast<int64_t>(matrix) * state.iterations());
}

void quantize(benchmark::State& state, const Ops* op) {
  const auto x = bench::normal(1536);
  std::vector<BlockA8> blocks(48);
  for (auto _ : state) {
    op->quantize_a8(x.data(), 1536, blocks.data());
    benchmark::DoNotOptimize(blocks.data());
  }
  state.SetItemsProcessed(1536 * state.iterations());
}

void logsumexp(benchmark::State& state, const Ops* op) {
  const auto x = bench::normal(49152);
  for (auto _ : state) benchmark::DoNotOptimize(op->logsumexp(x.data(), x.size()));
  state.SetItemsProcessed(49152 * state.iterations());
}

void swiglu(benchmark::State& state, const Ops* op) {
  const auto x = bench::normal(1536), up = bench::normal(1536);
  std::vector<float> y(1536);
  for (auto _ : state) {
    op->swiglu(x.data(), up.data(), y.data(), y.size());
    benchmark::DoNotOptimize(y.data());
  }
  state.SetItemsProcessed(1536 * state.iterations());
}

void rmsnorm(benchmark::State& state, const Ops* op) {
  const auto x = bench::normal(576);
  std::vector<float> y(576);
  for (auto _ : state) {
    op->rmsnorm(x.data(), x.data(), 1e-5f, 576, y.data());
    benchmark::DoNotOptimize(y.data());
  }
  state.SetItemsProcessed(576 * state.iterations());
}

void rope(benchmark::State& state, const Ops* op, bool adjacent) {
  auto x = bench::normal(64);
  const std::vector<float> c(32, 0.6f), s(32, 0.8f);
  for (auto _ : state) {
    op->rope_row(x.data(), c.data(), s.data(), 32, adjacent);
    benchmark::DoNotOptimize(x.data());
  }
  state.SetItemsProcessed(64 * state.iterations());
}

void softmax_tile(benchmark::State& state, const Ops* op) {
  const int rows = 64, cols = 512, d = 64;
  const auto scores = bench::normal(static_cast<std::size_t>(rows * cols), 3.0f);
  auto s = scores;
  std::vector<int> begin(rows, 0), end(rows, cols);
  std::vector<float> acc(rows * d);
  for (auto _ : state) {
    std::vector<SoftmaxState> row_state(rows);
    op->softmax_tile(s.data(), rows, cols, cols, begin.data(), end.data(), 1.0f, row_state.data(),
                     acc.data(), d);
    benchmark::DoNotOptimize(s.data());
  }
  state.SetItemsProcessed(int64_t{rows} * cols * state.iterations());
}

/// The product that turns rows of 192 channels into a basis, 64 rows at a time.
void multiply_rows(benchmark::State& state, const Ops* op) {
  const int n = 64, w = 192;
  const auto x = bench::normal(static_cast<std::size_t>(n * w));
  const auto m = bench::normal(static_cast<std::size_t>(w * w));
  std::vector<float> y(static_cast<std::size_t>(n * w));
  for (auto _ : state) {
    op->multiply_rows(x.data(), n, w, w, m.data(), y.data());
    benchmark::DoNotOptimize(y.data());
  }
  state.SetItemsProcessed(int64_t{n} * w * w * state.iterations());
}

void dequantize(benchmark::State& state, const Ops* op, BlockType type) {
  bench::RandomBytes row(48 * block_shape(type).bytes + 8);
  std::vector<float> y(1536);
  for (auto _ : state) {
    op->dequant_row(type, row.data(), 1536, y.data());
    benchmark::DoNotOptimize(y.data());
  }
  state.SetItemsProcessed(1536 * state.iterations());
}

void register_all() {
  const std::pair<const char*, BlockType> types[] = {
      {"q4_1", BlockType::kQ4_1}, {"q8_0", BlockType::kQ8_0}, {"q4_0", BlockType::kQ4_0},
      {"q5_0", BlockType::kQ5_0}, {"q5_1", BlockType::kQ5_1}, {"q4_k", BlockType::kQ4_K},
      {"q5_k", BlockType::kQ5_K}, {"q6_k", BlockType::kQ6_K}};
  for (const Ops* op : bench::levels()) {
    const std::string level = std::string("/") + op->name;
    for (const auto& [name, type] : types) {
      auto* b = benchmark::RegisterBenchmark((std::string("gemv_") + name + level).c_str(), gemv,
                                             op, type);
      b->Args({1536, 2048});
      if (!is_super_block(type)) b->Args({576, 576})->Args({1536, 576})->Args({576, 1536});
      if (type == BlockType::kQ8_0) b->Args({49152, 576});
      benchmark::RegisterBenchmark((std::string("dequant_") + name + level).c_str(), dequantize, op,
                                   type);
    }
    benchmark::RegisterBenchmark(("quantize_a8" + level).c_str(), quantize, op);
    benchmark::RegisterBenchmark(("logsumexp" + level).c_str(), logsumexp, op);
    benchmark::RegisterBenchmark(("swiglu" + level).c_str(), swiglu, op);
    benchmark::RegisterBenchmark(("rmsnorm" + level).c_str(), rmsnorm, op);
    benchmark::RegisterBenchmark(("rope_adjacent" + level).c_str(), rope, op, true);
    benchmark::RegisterBenchmark(("rope_halves" + level).c_str(), rope, op, false);
    benchmark::RegisterBenchmark(("softmax_tile" + level).c_str(), softmax_tile, op);
    benchmark::RegisterBenchmark(("multiply_rows" + level).c_str(), multiply_rows, op);
  }
}

const int kRegistered = (register_all(), 0);

}  // namespace
