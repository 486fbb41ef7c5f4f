// SPDX-License-Identifier: Apache-2.0
// attend_coded against ref/ in double: shapes, widths, frames, ragged runs, what is left out.
#include "kernels/ref/ops_ref.h"
#include "tests/kernel_data.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdio>

using namespace million;

namespace {

std::vector<int8_t> signed_bytes(std::size_t n) {
  std::vector<int8_t> x(n);
  for (int8_t& value : x) value = int8_t(int(g_random() % 255) - 127);
  return x;
}

struct Shape {
  int n_heads, span, head_dim, k_M, k_nbits, v_M, v_nbits, frame, n_places;
};

/// Random codes, tables, basis and queries of one shape.
struct CodedRun {
  CodedAttendArgs args{};
  std::vector<uint8_t> bytes;
  std::vector<const uint8_t*> blocks;
  std::vector<int8_t> k_tables, v_tables, basis;
  std::vector<float> k_scale, v_scale, basis_scale, q, places, mean, scratch;

  CodedRun(const Shape& s, int n, int first, float spread) {
    const int rank = s.span * s.head_dim;
    args = {s.n_heads,
            s.span,
            s.head_dim,
            rank,
            n,
            s.frame,
            first,
            nullptr,
            nullptr,
            nullptr,
            s.n_places,
            nullptr,
            nullptr,
            {s.k_M, s.k_nbits, nullptr, nullptr, nullptr},
            {s.v_M, s.v_nbits, nullptr, nullptr, nullptr},
            0.0f,
            nullptr,
            nullptr,
            nullptr,
            nullptr,
            nullptr};
    const std::size_t n_blocks = std::size_t((n + kPqBlock - 1) / kPqBlock);
    const std::size_t k_bytes = pq_block_bytes(s.k_M, s.k_nbits);
    const std::size_t v_bytes = pq_block_bytes(s.v_M, s.v_nbits);
    bytes.resize(n_blocks * (k_bytes + v_bytes));
    for (uint8_t& b : bytes) b = uint8_t(g_random());
    for (std::size_t i = 0; i < n_blocks; ++i) blocks.push_back(bytes.data() + i * k_bytes);
    for (std::size_t i = 0; i < n_blocks; ++i)
      blocks.push_back(bytes.data() + n_blocks * k_bytes + i * v_bytes);
    const auto steps = [&](std::size_t count, float size) {
      auto x = normal(count, 0.3f * size);
      for (float& value : x) value = std::fabs(value) + size;
      return x;
    };
    k_tables = signed_bytes(std::size_t(rank) << s.k_nbits);
    v_tables = signed_bytes(std::size_t(rank) << s.v_nbits);
    basis = signed_bytes(std::size_t(rank * rank));
    k_scale = steps(std::size_t(rank), 1.0f / 73), v_scale = steps(std::size_t(rank), 1.0f / 73);
    basis_scale = steps(std::size_t(rank), 1.0f / 73 / std::sqrt(float(rank)));
    q = normal(std::size_t(coded_frames(args) * s.n_heads * s.head_dim),
               spread / std::sqrt(float(s.head_dim)));
    mean = normal(std::size_t(rank * s.n_places), 0.25f);
    places = normal(std::size_t(s.n_places * s.frame));
    args.q = q.data(), args.basis = basis.data(), args.basis_scale = basis_scale.data();
    args.places = places.data(), args.mean = mean.data();
    args.k.blocks = blocks.data(), args.k.tables = k_tables.data(), args.k.scale = k_scale.data();
    args.v.blocks = blocks.data() + n_blocks, args.v.tables = v_tables.data();
    args.v.scale = v_scale.data();
    const std::size_t floats = coded_scratch_floats(args);
    scratch.assign(floats + 32, 777.0f);
    args.scratch =
        scratch.data() + (16 - reinterpret_cast<std::uintptr_t>(scratch.data()) / 4 % 16) % 16;
  }
  /// Nothing was written behind the scratch.
  bool intact() const {
    const float* end = args.scratch + coded_scratch_floats(args);
    return std::all_of(end, scratch.data() + scratch.size(), [](float x) { return x == 777.0f; });
  }
  void attend(const Ops* op, Group* result) {
    args.state = result->state.data(), args.acc = result->acc();
    op->attend_coded(args);
  }
};

const Shape kDefault{9, 3, 64, 48, 8, 48, 8, 64, 16};

}  // namespace

TEST_CASE("attention on codes in a basis") {
  std::vector<Shape> shapes = {kDefault,
                               {9, 3, 64, 96, 8, 96, 8, 64, 32},
                               {9, 3, 64, 24, 8, 24, 8, 128, 16},
                               {8, 8, 64, 128, 8, 128, 8, 64, 16},
                               {32, 4, 128, 128, 8, 128, 8, 64, 0},
                               {1, 1, 64, 16, 8, 16, 8, 64, 16},
                               {4, 1, 80, 20, 8, 40, 8, 64, 16},
                               {7, 1, 64, 64, 4, 64, 4, 64, 16},
                               {12, 2, 64, 32, 8, 64, 4, 64, 16}};
  for (int nbits = 1; nbits <= 8; ++nbits)
    shapes.push_back({6, 2, 64, 32, nbits, 32, 9 - nbits, 64, 16});
  double worst = 0.0;
  for (const Ops* op : levels()) {
    for (const Shape& s : shapes)
      for (int n : {0, 1, 15, 17, 63, 64, 65, 130, 511, 512, 513, 1100, 2048}) {
        if (n > 600 && s.span * s.head_dim > 192) continue;
        const int first = (n * 7 + s.n_heads) % s.frame;
        INFO(op->name << " heads=" << s.n_heads << " span=" << s.span << " d=" << s.head_dim
                      << " K: M=" << s.k_M << " nbits=" << s.k_nbits << " V: M=" << s.v_M
                      << " nbits=" << s.v_nbits << " n=" << n << " first=" << first);
        CodedRun run(s, n, first, 1.5f);
        REQUIRE(coded_shape_fits(run.args));
        Group result(s.n_heads, run.args.rank);
        run.attend(op, &result);
        REQUIRE(result.intact());
        REQUIRE(run.intact());
        if (n == 0) {
          REQUIRE(result.state[0].sum == 0.0f);
          continue;
        }
        const auto want = ref::attend_coded(run.args);
        const double error = relative_norm(result.out(), want.out);
        worst = std::max(worst, error);
        REQUIRE(error < 4e-2);
        std::vector<float> rows(std::size_t(s.n_heads * s.head_dim));
        op->coded_rows(run.args, rows.data());
        REQUIRE(relative_norm({rows.begin(), rows.end()}, ref::coded_rows(run.args)) < 1e-5);
        REQUIRE(result.lse_error(want.lse) < 12e-2);  // six deviations
      }
  }
  std::printf("attend_coded: largest relative error %.3g\n", worst);
}

TEST_CASE("attention on codes in a basis continues a given state") {
  for (const Ops* op : levels()) {
    CodedRun run(kDefault, 1024, 0, 1.5f);
    const auto want = ref::attend_coded(run.args);
    Group parts(kDefault.n_heads, run.args.rank);
    run.args.state = parts.state.data(), run.args.acc = parts.acc();
    run.args.n_tokens = 512;
    op->attend_coded(run.args);
    run.args.k.blocks += 1, run.args.v.blocks += 1;
    run.args.q += 512 / kDefault.frame * kDefault.n_heads * kDefault.head_dim;
    op->attend_coded(run.args);
    CHECK(relative_norm(parts.out(), want.out) < 4e-2);
    CHECK(parts.lse_error(want.lse) < 12e-2);  // six deviations
  }
}

TEST_CASE("what attention on codes leaves out stays below the bound") {
  for (const Ops* op : levels()) {
    CodedRun run(kDefault, 2048, 4, 12.0f);  // a few tokens dominate
    Group exact(9, run.args.rank), some = exact, none = exact;
    run.attend(op, &exact);
    AttendStats stats;
    run.args.stats = &stats;
    run.args.skip = 1e-4f;
    run.attend(op, &some);
    CHECK(stats.groups == 9 * 2048 / 64);
    CHECK(stats.groups_left_out > 0);
    CHECK(stats.mass_left_out > 0.0);
    CHECK(stats.mass_left_out <= 1e-4 * double(stats.groups_left_out));
    CHECK((stats.tables > 0 && stats.scores > 0 && stats.weights > 0 && stats.values > 0));
    for (std::size_t h = 0; h < 9; ++h) {
      CHECK(some.state[h].max == exact.state[h].max);
      CHECK(some.state[h].sum <= exact.state[h].sum);
      CHECK(some.state[h].sum >= exact.state[h].sum * (1.0f - 1e-4f * 2048 / 64));
    }
    // A bound from elsewhere that outweighs this run leaves nothing of it.
    const std::vector<float> high(9, 1000.0f);
    run.args.floor = high.data();
    stats = {};
    run.attend(op, &none);
    CHECK(stats.groups_left_out == stats.groups);
    CHECK(none.state[0].sum == 0.0f);
    CHECK(none.storage[1] == 0.0f);
  }
}
