// SPDX-License-Identifier: Apache-2.0
// Attention, weights and product quantization of the kernel table on every level this CPU has,
// against ref/ops_ref.cpp in double. Each case states its bound.
#include "kernels/half.h"
#include "kernels/ops.h"
#include "kernels/ref/ops_ref.h"
#include "tests/kernel_data.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

using namespace million;

namespace {

/// First place on a cache line in x, at most 15 floats from its start.
float* aligned(std::vector<float>& x) {
  return x.data() + (16 - reinterpret_cast<std::uintptr_t>(x.data()) / 4 % 16) % 16;
}

/// A PQ-coded run with random codes and centroids.
struct PqRun {
  PqSide side{};
  std::vector<uint8_t> bytes;
  std::vector<const uint8_t*> blocks;
  std::vector<float> centroids;
  PqRun(int M, int nbits, int head_dim, int n_tokens) {
    const std::size_t n_blocks = std::size_t((n_tokens + kPqBlock - 1) / kPqBlock);
    bytes.resize(n_blocks * pq_block_bytes(M, nbits));
    for (uint8_t& b : bytes) b = uint8_t(g_random());
    for (std::size_t i = 0; i < n_blocks; ++i)
      blocks.push_back(bytes.data() + i * pq_block_bytes(M, nbits));
    centroids = normal((std::size_t(M) << nbits) * std::size_t(head_dim / M));
    side = {M, nbits, blocks.data(), centroids.data()};
  }
};

/// Types whose blocks begin with two halves.
bool has_minimum(BlockType type) {
  return type == BlockType::kQ4_1 || type == BlockType::kQ5_1 || type == BlockType::kQ4_K ||
         type == BlockType::kQ5_K;
}

std::vector<uint8_t> random_blocks(BlockType type, std::size_t n_blocks) {
  std::vector<uint8_t> bytes(n_blocks * block_shape(type).bytes);
  for (uint8_t& b : bytes) b = uint8_t(g_random());
  std::uniform_real_distribution<float> draw(-0.05f, 0.05f);
  for (std::size_t i = 0; i < n_blocks; ++i) {
    const uint16_t scales[2] = {float_to_half(draw(g_random)), float_to_half(draw(g_random))};
    const std::size_t at = type == BlockType::kQ6_K ? offsetof(BlockQ6_K, d) : 0;
    std::memcpy(bytes.data() + i * block_shape(type).bytes + at, scales, has_minimum(type) ? 4 : 2);
  }
  return bytes;
}

std::size_t row_bytes_of(BlockType type, int n) {
  return std::size_t(n / block_shape(type).values) * block_shape(type).bytes;
}
std::vector<uint8_t> random_rows(BlockType type, int rows, int n) {
  return random_blocks(type, std::size_t(rows * n / block_shape(type).values));
}

constexpr BlockType kBlockTypes[] = {BlockType::kQ8_0, BlockType::kQ4_0, BlockType::kQ4_1,
                                     BlockType::kQ5_0, BlockType::kQ5_1, BlockType::kQ4_K,
                                     BlockType::kQ5_K, BlockType::kQ6_K};

}  // namespace

TEST_CASE("attention over f16 and f32 rows") {
  // f32 sums and weights; f16 rows are exact. Bound 1e-5 of the output norm, 1e-5 of the log-sum.
  for (const Ops* op : levels())
    for (int d : {64, 80, 96, 128, 256, 40, 7})
      for (int group : {1, 2, 3, 4, 5, 8, 16})
        for (int n : {0, 1, 3, 63, 64, 65, 511, 1100}) {
          if (n > 65 && d != 64 && group != 3) continue;  // long runs once per head_dim
          INFO(op->name << " head_dim=" << d << " group=" << group << " tokens=" << n);
          const std::size_t size = std::size_t(n) * std::size_t(d);
          const auto q = normal(std::size_t(group * d), 1.0f / std::sqrt(float(d)));
          const auto k32 = normal(size + 1, 2.0f), v32 = normal(size + 1);
          std::vector<uint16_t> k(size + 1), v(size + 1);
          op->f32_to_f16(k32.data(), k.data(), size + 1);
          op->f32_to_f16(v32.data(), v.data(), size + 1);
          const auto kd = ref::from_f16(k.data() + 1, size), vd = ref::from_f16(v.data() + 1, size);
          const auto want = ref::attend(group, d, n, q.data(), kd.data(), vd.data());
          Group half(group, d), full(group, d);
          op->attend_f16(
              {group, d, n, q.data(), k.data() + 1, v.data() + 1, half.state.data(), half.acc()});
          const std::vector<float> kf(kd.begin(), kd.end()), vf(vd.begin(), vd.end());
          op->attend_f32(
              {group, d, n, q.data(), kf.data(), vf.data(), full.state.data(), full.acc()});
          REQUIRE(half.intact());
          REQUIRE(full.intact());
          if (n == 0) {
            REQUIRE(half.state[0].sum == 0.0f);
            continue;
          }
          REQUIRE(relative_norm(half.out(), want.out) < 1e-5);
          REQUIRE(relative_norm(full.out(), want.out) < 1e-5);
          REQUIRE(half.lse_error(want.lse) < 1e-5);
          REQUIRE(full.lse_error(want.lse) < 1e-5);
        }
}

TEST_CASE("attention survives scores of any size and continues a given state") {
  const int d = 64, n = 200;
  for (const Ops* op : levels()) {
    INFO(op->name);
    const auto q = normal(d), k = normal(n * d, 30.0f), v = normal(n * d);  // scores near +-1000
    const std::vector<double> kd(k.begin(), k.end()), vd(v.begin(), v.end());
    const auto want = ref::attend(1, d, n, q.data(), kd.data(), vd.data());
    Group at_once(1, d), steps(1, d);
    op->attend_f32({1, d, n, q.data(), k.data(), v.data(), at_once.state.data(), at_once.acc()});
    for (int t = 0; t < n; t += 7) {
      const int count = std::min(7, n - t);
      op->attend_f32({1, d, count, q.data(), k.data() + t * d, v.data() + t * d, steps.state.data(),
                      steps.acc()});
    }
    CHECK(relative_norm(at_once.out(), want.out) < 2e-4);  // f32 scores of 1e3 carry 6e-5
    CHECK(relative_norm(steps.out(), at_once.out()) < 2e-4);
  }
}

TEST_CASE("attention on PQ codes") {
  struct Case {
    int d, k_M, k_nbits, v_M, v_nbits;
  };
  std::vector<Case> cases;
  for (int nbits = 1; nbits <= 12; ++nbits) cases.push_back({64, 32, nbits, 32, nbits});
  for (int M : {1, 2, 4, 8, 16, 64})
    cases.push_back({64, M, 8, M, 8}), cases.push_back({64, M, 4, M, 6});
  for (int d : {80, 96, 128, 256})
    cases.push_back({d, d / 2, 8, d / 4, 8}), cases.push_back({d, d / 16, 8, d, 4});
  cases.push_back({96, 32, 8, 32, 8});  // dsub 3
  cases.push_back({64, 32, 8, 16, 4});
  cases.push_back({64, 16, 3, 32, 8});
  double worst_bytes = 0.0, worst_sums = 0.0, worst_tables = 0.0;
  for (const Ops* op : levels())
    for (const Case& c : cases)
      for (int group : {1, 3, 4, 8, 16})
        for (int n : {0, 1, 63, 64, 65, 97, 130, 511, 512, 513, 1100}) {
          if (group != 3 && n != 65 && n != 130 && n != 513) continue;
          if (c.k_nbits > 10 && n != 513) continue;
          INFO(op->name << " d=" << c.d << " K: M=" << c.k_M << " nbits=" << c.k_nbits << " V: M="
                        << c.v_M << " nbits=" << c.v_nbits << " group=" << group << " n=" << n);
          const PqRun k(c.k_M, c.k_nbits, c.d, n), v(c.v_M, c.v_nbits, c.d, n);
          const auto q = normal(std::size_t(group * c.d), 1.5f / std::sqrt(float(c.d)));
          const auto kd = ref::pq_decode(k.side, c.d, n), vd = ref::pq_decode(v.side, c.d, n);
          const auto want = ref::attend(group, c.d, n, q.data(), kd.data(), vd.data());
          Group result(group, c.d);
          PqAttendArgs args{group, c.d, n, q.data(), k.side, v.side, nullptr, nullptr, nullptr};
          const std::size_t floats = pq_scratch_floats(args);
          std::vector<float> scratch(floats + 32, 0.0f);
          std::fill(aligned(scratch) + floats, scratch.data() + scratch.size(), 777.0f);
          args.scratch = aligned(scratch), args.state = result.state.data(),
          args.acc = result.acc();
          op->attend_pq(args);
          REQUIRE(result.intact());
          for (const float* p = aligned(scratch) + floats; p < scratch.data() + scratch.size(); ++p)
            REQUIRE(*p == 777.0f);
          if (n == 0) {
            REQUIRE(result.state[0].sum == 0.0f);
            continue;
          }
          // f32 tables: 1e-5. Eight-bit tables (AVX-512, 96 tokens or more): 5 % of the output
          // norm, 0.06 (4 RMS errors) in a score. Sixteen-bit tables and values in f32 (scalar,
          // AVX2): 1 % (wide heads span more), 0.02 in a score.
          const bool wide = c.k_nbits > 8 || c.v_nbits > 8;
          const bool sums = op != ops_for(Isa::kAvx512) && !wide;
          const bool bytes = op == ops_for(Isa::kAvx512) && n >= 96;
          const bool k_bytes = bytes && c.k_nbits <= 8, v_bytes = bytes && c.v_nbits <= 8;
          const double error = relative_norm(result.out(), want.out);
          double& worst = k_bytes || v_bytes ? worst_bytes : sums ? worst_sums : worst_tables;
          worst = std::max(worst, error);
          REQUIRE(error < (k_bytes || v_bytes ? 5e-2 : sums ? 1e-2 : 1e-5));
          REQUIRE(result.lse_error(want.lse) < (k_bytes   ? 6e-2
                                                : sums    ? 2e-2
                                                : v_bytes ? 1e-4
                                                          : 1e-5));
        }
  std::printf("attend_pq: largest relative error %.3g in f32, %.3g in 16 bits, %.3g in 8 bits\n",
              worst_tables, worst_sums, worst_bytes);
}

TEST_CASE("attend_pq gives the same bits from the tables of the last call") {
  for (const Ops* op : levels())
    for (int nbits : {4, 8, 10})
      for (int group : {1, 3, 6}) {
        INFO(op->name << " nbits=" << nbits << " group=" << group);
        const PqRun k(16, nbits, 64, 1200), v(16, nbits, 64, 1200);
        const auto q = normal(std::size_t(group * 64), 0.2f);
        PqAttendArgs args{group, 64, 1200, q.data(), k.side, v.side, nullptr, nullptr, nullptr};
        std::vector<float> kept(pq_scratch_floats(args) + 16);
        for (int n : {600, 1200, 70, 130, 130}) {
          args.n_tokens = n;
          Group fresh(group, 64), again(group, 64);
          std::vector<float> scratch(pq_scratch_floats(args) + 16, NAN);
          args.same_query = false;
          args.scratch = aligned(scratch), args.state = fresh.state.data(), args.acc = fresh.acc();
          op->attend_pq(args);
          args.same_query = n != 600;
          args.scratch = aligned(kept), args.state = again.state.data(), args.acc = again.acc();
          op->attend_pq(args);
          REQUIRE(std::memcmp(fresh.acc(), again.acc(), std::size_t(group) * 64 * 4) == 0);
          REQUIRE(fresh.state[0].sum == again.state[0].sum);
        }
      }
}

TEST_CASE("dequant_row has the bits of the definition on every level") {
  for (const Ops* op : levels())
    for (BlockType type : kBlockTypes)
      for (int n : {32, 64, 96, 160, 256, 576, 768}) {
        if (n % block_shape(type).values != 0) continue;
        INFO(op->name << " type=" << int(type) << " n=" << n);
        const auto row = random_rows(type, 1, n);
        const auto want = ref::dequant_row(type, row.data(), n);
        std::vector<float> y(std::size_t(n) + 1, 777.0f), first(std::size_t(n) + 1, 777.0f);
        op->dequant_row(type, row.data(), n, y.data());
        // d q rounded, + m rounded: of values below 2, or of 200 with integer scales to 127
        const double bound = is_super_block(type) ? 5.0e-5 : 2.0e-7;
        for (int i = 0; i < n; ++i)
          REQUIRE(std::fabs(y[std::size_t(i)] - want[std::size_t(i)]) <= bound);
        REQUIRE(y.back() == 777.0f);
        ops_for(Isa::kScalar)->dequant_row(type, row.data(), n, first.data());
        REQUIRE(std::memcmp(y.data(), first.data(), 4 * y.size()) == 0);
      }
  for (const Ops* op : levels()) {
    const auto x = normal(37);
    std::vector<uint16_t> half(37), brain(37);
    std::vector<float> y(37);
    op->f32_to_f16(x.data(), half.data(), 37);
    op->f32_to_bf16(x.data(), brain.data(), 37);
    op->dequant_row(BlockType::kF32, x.data(), 37, y.data());
    CHECK(y == x);
    op->dequant_row(BlockType::kF16, half.data(), 37, y.data());
    for (std::size_t i = 0; i < 37; ++i) CHECK(y[i] == half_to_float(half[i]));
    op->dequant_row(BlockType::kBF16, brain.data(), 37, y.data());
    for (std::size_t i = 0; i < 37; ++i) CHECK(y[i] == bf16_to_float(brain[i]));
  }
}

TEST_CASE("quantize_a8 rounds to the nearest of 255 steps, alike on every level") {
  auto x = normal(32 * 20);
  std::fill(x.begin(), x.begin() + 32, 0.0f);
  x[40] = 1e30f;
  for (std::size_t i = 64; i < 96; ++i) x[i] *= 1e-33f;  // below the smallest scale: zero
  std::vector<BlockA8> first;
  for (const Ops* op : levels()) {
    INFO(op->name);
    std::vector<BlockA8> y(20);
    op->quantize_a8(x.data(), int(x.size()), y.data());
    for (std::size_t b = 0; b < y.size(); ++b) {
      int sum = 0;
      for (std::size_t j = 0; j < 32; ++j) {
        sum += y[b].q[j];
        CHECK(y[b].q[j] >= -127);
        const double error = std::fabs(double(y[b].d) * y[b].q[j] - x[32 * b + j]);
        CHECK(error <= 0.50001 * y[b].d + 1e-30);
      }
      CHECK(y[b].sum == y[b].d * float(sum));
    }
    CHECK(y[0].d == 0.0f);
    CHECK(y[2].d == 0.0f);
    if (first.empty()) first = y;
    CHECK(std::memcmp(first.data(), y.data(), sizeof(BlockA8) * y.size()) == 0);
  }
}

TEST_CASE("gemv_a8 on every block type") {
  // Integer products are exact; f32 sums over blocks: 1e-5 of sum |terms|.
  for (const Ops* op : levels())
    for (BlockType type : kBlockTypes)
      for (int n : {32, 64, 96, 128, 160, 192, 224, 256, 576, 1536})
        for (int rows : {0, 1, 3, 4, 5, 8, 9, 16, 23}) {
          if (n > 300 && rows != 9) continue;
          if (n % block_shape(type).values != 0) continue;
          INFO(op->name << " type=" << int(type) << " n=" << n << " rows=" << rows);
          const std::size_t row_bytes = row_bytes_of(type, n);
          // The allocation ends with the last row: the address sanitizer sees reads beyond it.
          const auto w = random_rows(type, rows, n);
          auto x = normal(std::size_t(n), 3.0f);
          x[5] = 100.0f;  // saturates its block at 127
          std::vector<BlockA8> blocks(std::size_t(n) / 32);
          op->quantize_a8(x.data(), n, blocks.data());
          const auto want = ref::gemv_a8(type, w.data(), row_bytes, rows, n, blocks.data());
          std::vector<float> y(std::size_t(rows) + 1, 777.0f);
          op->gemv_a8(type, w.data(), row_bytes, rows, n, blocks.data(), y.data());
          REQUIRE(y.back() == 777.0f);
          for (std::size_t r = 0; r < std::size_t(rows); ++r) {
            const auto row = ref::dequant_row(type, w.data() + r * row_bytes, n);
            double magnitude = 0.0;
            for (std::size_t i = 0; i < row.size(); ++i)
              magnitude += std::fabs(row[i] * blocks[i / 32].d * blocks[i / 32].q[i % 32]);
            REQUIRE(std::fabs(y[r] - want[r]) <= 2e-6 * magnitude + 1e-30);
          }
        }
}

TEST_CASE("gemv_a8 gives a row the same bits whatever rows stand around it") {
  for (const Ops* op : levels())
    for (BlockType type : kBlockTypes)
      for (int n : {96, 512, 576}) {
        if (n % block_shape(type).values != 0) continue;
        INFO(op->name << " type=" << int(type) << " n=" << n);
        const std::size_t row_bytes = row_bytes_of(type, n);
        const auto w = random_rows(type, 21, n);
        const auto x = normal(std::size_t(n));
        std::vector<BlockA8> blocks(std::size_t(n) / 32);
        op->quantize_a8(x.data(), n, blocks.data());
        std::vector<float> whole(21), split(21);
        op->gemv_a8(type, w.data(), row_bytes, 21, n, blocks.data(), whole.data());
        op->gemv_a8(type, w.data(), row_bytes, 11, n, blocks.data(), split.data());
        op->gemv_a8(type, w.data() + 11 * row_bytes, row_bytes, 10, n, blocks.data(),
                    split.data() + 11);
        CHECK(std::memcmp(whole.data(), split.data(), 4 * whole.size()) == 0);
      }
}

TEST_CASE("gemv_a8 does not saturate at the extremes") {
  for (const Ops* op : levels())
    for (BlockType type : kBlockTypes)
      for (int sign : {-127, 127}) {
        INFO(op->name << " type=" << int(type) << " sign=" << sign);
        auto w = random_blocks(type, 4);
        const std::size_t bytes = block_shape(type).bytes;
        const bool q6 = type == BlockType::kQ6_K;
        const std::size_t head = q6 ? 0 : has_minimum(type) ? 4 : 2, tail = q6 ? 18 : 0;
        for (std::size_t b = 0; b < 4; ++b) {
          const auto block = w.begin() + long(b * bytes);
          std::fill(block + long(head), block + long(bytes - tail),
                    type == BlockType::kQ8_0 ? uint8_t(0x80) : uint8_t(b % 2 ? 0x00 : 0xFF));
          if (q6) std::fill_n(block + 192, 16, uint8_t(b < 2 ? 0x80 : 0x7F));
        }
        const int n = 4 * block_shape(type).values;
        std::vector<BlockA8> x(std::size_t(n) / 32);
        for (BlockA8& block : x) {
          block.d = 1.0f, block.sum = float(32 * sign);
          std::fill(std::begin(block.q), std::end(block.q), int8_t(sign));
        }
        float y = 0.0f;
        op->gemv_a8(type, w.data(), 4 * bytes, 1, n, x.data(), &y);
        const double want = ref::gemv_a8(type, w.data(), 4 * bytes, 1, n, x.data())[0];
        const auto values = ref::dequant_row(type, w.data(), n);
        double magnitude = 0.0;  // of the terms: opposite super-blocks may cancel
        for (const double value : values) magnitude += std::fabs(value * sign);
        CHECK(std::fabs(y - want) <= 2e-6 * magnitude + 1e-3);
      }
}

TEST_CASE("pq_encode finds the nearest centroid, the lowest on ties, alike on every level") {
  for (int K : {1, 2, 3, 4, 8, 15, 16, 17, 32, 64, 100, 256, 4096})
    for (int dsub : {1, 2, 3, 4, 5, 8, 16, 64}) {
      if (K == 4096 && dsub > 4) continue;
      const int n = 37;
      const std::size_t stride = std::size_t(dsub) + 3;
      auto x = normal(std::size_t(n) * stride);
      auto centroids = normal(std::size_t(K * dsub));
      if (K > 40)  // exact ties: centroid 40 repeats centroid 7, and row 0 is equal to both
        for (std::size_t j = 0; j < std::size_t(dsub); ++j)
          x[j] = centroids[j * std::size_t(K) + 7] = centroids[j * std::size_t(K) + 40];
      std::vector<uint16_t> first;
      for (const Ops* op : levels()) {
        INFO(op->name << " K=" << K << " dsub=" << dsub);
        std::vector<uint16_t> codes(std::size_t(n) + 1, 7777);
        op->pq_encode(x.data(), stride, n, centroids.data(), K, dsub, codes.data());
        REQUIRE(codes.back() == 7777);
        for (std::size_t i = 0; i < std::size_t(n); ++i) {
          REQUIRE(codes[i] < K);
          const auto distance = ref::pq_distances(x.data() + i * stride, centroids.data(), K, dsub);
          const double best = *std::min_element(distance.begin(), distance.end());
          REQUIRE(distance[codes[i]] <= best * (1 + 1e-5) + 1e-12);
        }
        if (K > 40) REQUIRE(codes[0] == 7);
        if (first.empty()) first = codes;
        REQUIRE(codes == first);
      }
    }
  for (const Ops* op : levels()) {  // rows of NaN or beyond the range get code 0, not garbage
    std::vector<float> x = {NAN, 1e30f}, centroids(20, 1.0f);
    std::vector<uint16_t> codes(2, 9);
    op->pq_encode(x.data(), 1, 2, centroids.data(), 20, 1, codes.data());
    CHECK(codes == std::vector<uint16_t>{0, 0});
  }
}
