// SPDX-License-Identifier: Apache-2.0
// Decode attention of KV heads with 3 query heads of head_dim 64 (the default model's shape) by
// context length: exact f16 rows, PQ codes of one head, codes in a basis common to 3 heads (one
// call does the work of three of the others). bytes/s is what is read of the cache, tokens/s the
// cached tokens passed. Several heads or layers are walked in turn, so that long contexts come from
// memory.
#include "kernels/bench/bench_common.h"

#include <algorithm>

using namespace million;

namespace {

constexpr int kGroup = 3, kHeadDim = 64, kHeads = 16, kRowHeads = 3;

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

/// Calls of 4096 tokens, of which the first makes the tables, as lib/cache makes them.
void attend_pq(benchmark::State& state, const Ops* op) {
  constexpr int kPart = 4096;
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
  const PqSide side_shape{M, nbits, nullptr, centroids.data()};
  PqAttendArgs args{kGroup,     kHeadDim, kPart,   q.data(), side_shape,
                    side_shape, nullptr,  nullptr, nullptr};
  const std::size_t floats = pq_scratch_floats(args);
  std::unique_ptr<float, decltype(&std::free)> scratch(
      static_cast<float*>(std::aligned_alloc(64, (floats + 15) / 16 * 64)), &std::free);
  std::size_t head = 0;
  args.scratch = scratch.get();
  for (auto _ : state) {
    for (int t = 0; t < n; t += kPart) {
      SoftmaxState softmax[kGroup];
      float acc[kGroup * kHeadDim] = {};
      args.n_tokens = std::min(kPart, n - t);
      args.k.blocks = blocks.data() + 2 * head * n_blocks + t / kPqBlock;
      args.v.blocks = args.k.blocks + n_blocks;
      args.state = softmax, args.acc = acc;
      args.same_query = t > 0;
      op->attend_pq(args);
      benchmark::DoNotOptimize(acc);
    }
    head = (head + 1) % kHeads;
  }
  state.SetBytesProcessed(static_cast<int64_t>(2 * side) * state.iterations());
  state.SetItemsProcessed(int64_t{n} * state.iterations());
}

/// The default method: frames of 64 tokens, calls of 4096 tokens as lib/cache makes them.
void attend_coded(benchmark::State& state, const Ops* op) {
  constexpr int kUnitHeads = 9, kSpan = 3, kRank = kSpan * kHeadDim, kFrame = 64, kPlaces = 16;
  constexpr int kPart = 4096, kFirst = 4, kLayers = 8;
  const int n = static_cast<int>(state.range(0)), M = static_cast<int>(state.range(1));
  const std::size_t n_blocks = static_cast<std::size_t>((n + kPqBlock - 1) / kPqBlock);
  const std::size_t side = n_blocks * pq_block_bytes(M, 8);
  bench::RandomBytes cache(2 * kLayers * side), tables((2 * 256 + kRank) * kRank);
  std::vector<const uint8_t*> blocks;
  for (std::size_t i = 0; i < 2 * kLayers * n_blocks; ++i)
    blocks.push_back(cache.data() + i * pq_block_bytes(M, 8));
  const auto* bytes = reinterpret_cast<const int8_t*>(tables.data());
  const std::vector<float> scale(kRank, 0.01f);
  const auto q = bench::normal(std::size_t{kUnitHeads} * kHeadDim * (kPart / kFrame + 1), 0.1f);
  const auto mean = bench::normal(std::size_t{kRank} * kPlaces, 0.1f);
  const auto places = bench::normal(std::size_t{kPlaces} * kFrame);
  const CodedSide codes{M, 8, nullptr, bytes, scale.data()};
  CodedAttendArgs args{kUnitHeads,   kSpan,    kHeadDim,
                       kRank,        kPart,    kFrame,
                       kFirst,       q.data(), bytes + 2 * 256 * kRank,
                       scale.data(), kPlaces,  places.data(),
                       mean.data(),  codes,    codes,
                       0.0f,         nullptr,  nullptr,
                       nullptr,      nullptr,  nullptr};
  const std::size_t floats = coded_scratch_floats(args);
  std::unique_ptr<float, decltype(&std::free)> scratch(
      static_cast<float*>(std::aligned_alloc(64, (floats + 15) / 16 * 64)), &std::free);
  args.scratch = scratch.get();
  std::size_t layer = 0;
  for (auto _ : state) {
    for (int t = 0; t < n; t += kPart) {
      SoftmaxState softmax[kUnitHeads];
      float acc[kUnitHeads * kRank] = {};
      args.n_tokens = std::min(kPart, n - t);
      args.k.blocks = blocks.data() + 2 * layer * n_blocks + t / kPqBlock;
      args.v.blocks = args.k.blocks + n_blocks;
      args.state = softmax, args.acc = acc;
      op->attend_coded(args);
      benchmark::DoNotOptimize(acc);
    }
    layer = (layer + 1) % kLayers;
  }
  state.SetBytesProcessed(static_cast<int64_t>(2 * side) * state.iterations());
  state.SetItemsProcessed(int64_t{n} * state.iterations());
}

/// KIVI's values: groups of 32 channels of a token (its keys differ in the direction only).
GroupSide kivi_side(int bits) {
  GroupSide side;
  side.bits = bits, side.group = 32, side.zeros = true;
  side.code_step = kRowHeads * kHeadDim * bits / 8, side.scale_step = kRowHeads * kHeadDim / 32 * 2;
  return side;
}
GroupSide block_side(BlockType type) {
  GroupSide side;
  side.layout = GroupSide::Layout::kBlocks, side.type = type;
  side.code_step =
      kRowHeads * kHeadDim / kBlockValues * static_cast<std::ptrdiff_t>(block_shape(type).bytes);
  return side;
}

/// Rows of the KV heads of a layer lie together, as lib/quant stores them.
void attend_groups(benchmark::State& state, const Ops* op, GroupSide side) {
  const int n = static_cast<int>(state.range(0));
  const auto code_bytes = static_cast<std::size_t>(n * side.code_step);
  const auto halves = static_cast<std::size_t>(n * side.scale_step);
  constexpr int kLayers = kHeads / kRowHeads;
  bench::RandomBytes codes(kLayers * 2 * code_bytes);
  const std::vector<uint16_t> scales(kLayers * 2 * halves + 1, 0x1c00);  // 2^-8
  const auto q = bench::normal(std::size_t{kGroup} * kHeadDim, 0.01f);
  GroupSide k = side, v = side;
  int head = 0;
  for (auto _ : state) {
    SoftmaxState softmax[kGroup];
    float acc[kGroup * kHeadDim] = {};
    const std::size_t layer = static_cast<std::size_t>(head / kRowHeads);
    const int row_head = head % kRowHeads;
    k.codes = codes.data() + 2 * layer * code_bytes + row_head * side.code_step / kRowHeads;
    v.codes = k.codes + code_bytes;
    if (side.layout != GroupSide::Layout::kBlocks) {
      k.scales = scales.data() + 2 * layer * halves + row_head * side.scale_step / kRowHeads;
      v.scales = k.scales + halves;
    }
    op->attend_groups({kGroup, kHeadDim, n, q.data(), k, v, softmax, acc});
    benchmark::DoNotOptimize(acc);
    head = (head + 1) % (kLayers * kRowHeads);
  }
  state.SetBytesProcessed(static_cast<int64_t>(2 * (code_bytes + 2 * halves) / kRowHeads) *
                          state.iterations());
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
    auto* coded = benchmark::RegisterBenchmark(("attend_coded" + level).c_str(), attend_coded, op);
    coded->ArgNames({"tokens", "M"})->Unit(benchmark::kMicrosecond);
    for (int n : {512, 2048, 8192, 32768}) coded->Args({n, 48})->Args({n, 96});
    for (int n : {2048, 32768}) {
      for (int bits : {2, 4})
        benchmark::RegisterBenchmark(
            ("attend_groups/kivi" + std::to_string(bits) + level).c_str(),
            [op, bits](benchmark::State& state) { attend_groups(state, op, kivi_side(bits)); })
            ->ArgName("tokens")
            ->Arg(n)
            ->Unit(benchmark::kMicrosecond);
      for (const auto& [name, type] :
           {std::pair("q8_0", BlockType::kQ8_0), std::pair("q4_0", BlockType::kQ4_0)})
        benchmark::RegisterBenchmark((std::string("attend_groups/") + name + level).c_str(),
                                     [op, type = type](benchmark::State& state) {
                                       attend_groups(state, op, block_side(type));
                                     })
            ->ArgName("tokens")
            ->Arg(n)
            ->Unit(benchmark::kMicrosecond);
    }
    pq->Args({32768, 64, 4})->Args({32768, 32, 4})->Args({32768, 32, 6})->Args({32768, 16, 12});
  }
}

const int kRegistered = (register_all(), 0);

}  // namespace
