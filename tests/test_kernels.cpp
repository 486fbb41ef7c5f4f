// SPDX-License-Identifier: Apache-2.0
// Every op of the kernel table on every level this CPU has, against ref/ops_ref.cpp in double. Each
// case states its bound. Inputs are placed at odd offsets, so that alignment is never assumed, and
// outputs are followed by sentinels, so that a write beyond the end is seen.
#include "kernels/half.h"
#include "kernels/ops.h"
#include "kernels/ref/ops_ref.h"

#include <algorithm>
#include <bit>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

using namespace million;

namespace {

std::vector<const Ops*> levels() {
  std::vector<const Ops*> found;
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512})
    if (const Ops* table = ops_for(isa)) found.push_back(table);
  return found;
}

/// Lengths around the vector widths 1, 8, 16 and the unrolled steps of 2 and 4 vectors.
std::vector<std::size_t> lengths() {
  std::vector<std::size_t> n;
  for (std::size_t i = 0; i <= 68; ++i) n.push_back(i);
  n.insert(n.end(), {127, 128, 129, 576, 1000, 1536});
  return n;
}

constexpr float kSentinel = 12345.5f;

/// n floats that start `shift` elements behind an aligned address; sentinels before and after.
struct Buffer {
  std::vector<float> storage;
  std::size_t n;
  float* data;
  explicit Buffer(std::size_t count, std::size_t shift = 1)
      : storage(count + 32, kSentinel), n(count), data(storage.data() + shift) {}
  bool intact() const {
    for (const float* p = storage.data(); p < storage.data() + storage.size(); ++p)
      if ((p < data || p >= data + n) && *p != kSentinel) return false;
    return true;
  }
};

std::mt19937 g_random(7);

Buffer normal(std::size_t n, float sigma = 1.0f, std::size_t shift = 1) {
  Buffer buffer(n, shift);
  std::normal_distribution<float> draw(0.0f, sigma);
  for (std::size_t i = 0; i < n; ++i) buffer.data[i] = draw(g_random);
  return buffer;
}

/// max_i |got - want| / max(|want_i|, floor)
template <class Want>
double max_relative(const float* got, const Want& want, double floor) {
  double worst = 0.0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double error = std::fabs(got[i] - want[i]) / std::max(std::fabs(want[i]), floor);
    if (!(error <= worst)) worst = error;  // NaN wins
  }
  return worst;
}

}  // namespace

TEST_CASE("half and bfloat16 conversions have the bits of half.h on every level") {
  for (const Ops* op : levels()) {
    INFO(op->name);
    std::vector<uint16_t> all(65536);
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
    std::vector<float> wide(all.size());
    op->f16_to_f32(all.data(), wide.data(), all.size());
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < all.size(); ++i) {
      const float want = half_to_float(all[i]);
      wrong += std::isnan(want) ? !std::isnan(wide[i]) : std::memcmp(&want, &wide[i], 4) != 0;
    }
    CHECK(wrong == 0);
    // Values, neighbours of values, midpoints, and random bit patterns.
    std::vector<float> inputs = wide;
    for (std::size_t i = 0; i + 1 < 0x7C00; ++i) {
      inputs.push_back(std::nextafter(wide[i], INFINITY));
      inputs.push_back(0.5f * (wide[i] + wide[i + 1]));
      inputs.push_back(-0.5f * (wide[i] + wide[i + 1]));
    }
    for (int i = 0; i < 200000; ++i) inputs.push_back(std::bit_cast<float>(uint32_t(g_random())));
    std::vector<uint16_t> half(inputs.size()), brain(inputs.size());
    op->f32_to_f16(inputs.data(), half.data(), inputs.size());
    op->f32_to_bf16(inputs.data(), brain.data(), inputs.size());
    std::size_t wrong_half = 0, wrong_brain = 0;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const bool nan = std::isnan(inputs[i]);
      wrong_half += nan ? !std::isnan(half_to_float(half[i])) : half[i] != float_to_half(inputs[i]);
      wrong_brain +=
          nan ? !std::isnan(bf16_to_float(brain[i])) : brain[i] != float_to_bf16(inputs[i]);
    }
    CHECK(wrong_half == 0);
    CHECK(wrong_brain == 0);
    op->bf16_to_f32(all.data(), wide.data(), all.size());
    for (std::size_t i = 0; i < all.size(); ++i) {
      const uint32_t want = uint32_t(all[i]) << 16;
      if (std::memcmp(&want, &wide[i], 4) != 0) FAIL("bf16 " << i);
    }
    for (std::size_t n : lengths()) {  // nothing beyond n is written
      Buffer y(n);
      op->f16_to_f32(all.data() + 3, y.data, n);
      CHECK(y.intact());
    }
  }
}

TEST_CASE("dot, add, swiglu and rmsnorm") {
  for (const Ops* op : levels())
    for (std::size_t n : lengths())
      for (std::size_t shift : {0, 1, 3}) {
        INFO(op->name << " n=" << n << " shift=" << shift);
        const Buffer x = normal(n, 2.0f, shift), w = normal(n, 1.0f, shift + 1);
        // f32 sums of n products: error <= n eps sum|x y|, in practice far less.
        double magnitude = 0.0;
        for (std::size_t i = 0; i < n; ++i) magnitude += std::fabs(double(x.data[i]) * w.data[i]);
        const double want = ref::dot(x.data, w.data, n);
        REQUIRE(std::fabs(op->dot(x.data, w.data, n) - want) <= 2e-6 * magnitude);

        Buffer y = normal(n, 1.0f, shift);
        const Buffer y0 = y;
        const float* before = y0.storage.data() + (y.data - y.storage.data());
        op->add(x.data, y.data, n);
        for (std::size_t i = 0; i < n; ++i) REQUIRE(y.data[i] == before[i] + x.data[i]);
        REQUIRE(y.intact());

        op->swiglu(x.data, w.data, y.data, n);
        REQUIRE(max_relative(y.data, ref::swiglu(x.data, w.data, n), 1e-30) < 1e-6);
        REQUIRE(y.intact());
        if (n == 0) continue;
        op->rmsnorm(x.data, w.data, 1e-5f, int(n), y.data);
        REQUIRE(max_relative(y.data, ref::rmsnorm(x.data, w.data, 1e-5f, int(n)), 1e-30) < 2e-6);
        REQUIRE(y.intact());
      }
}

TEST_CASE("rope_row turns adjacent and half pairs") {
  for (const Ops* op : levels())
    for (int pairs : {1, 2, 3, 7, 16, 20, 32, 40, 48, 64, 128})
      for (bool adjacent : {false, true}) {
        INFO(op->name << " pairs=" << pairs << " adjacent=" << adjacent);
        Buffer x = normal(2 * std::size_t(pairs));
        Buffer c(std::size_t(pairs), 2), s(std::size_t(pairs), 3);
        for (int i = 0; i < pairs; ++i)
          c.data[i] = std::cos(0.7f * float(i)), s.data[i] = std::sin(0.7f * float(i));
        const auto want = ref::rope_row(x.data, c.data, s.data, pairs, adjacent);
        op->rope_row(x.data, c.data, s.data, pairs, adjacent);
        CHECK(max_relative(x.data, want, 1.0) < 1e-6);
        CHECK(x.intact());
      }
}

TEST_CASE("the exponential is within 2e-7, with the right limits") {
  // softmax_tile of a row whose maximum is 0 gives exp of the other scores.
  for (const Ops* op : levels()) {
    INFO(op->name);
    double worst = 0.0;
    for (int part = 0; part < 400; ++part) {
      std::vector<float> s(1001, 0.0f), x;
      std::uniform_real_distribution<float> draw(-87.0f, 0.0f);
      for (std::size_t i = 1; i < s.size(); ++i)
        s[i] = part == 0 ? -float(i) * 1e-4f : draw(g_random);
      x = s;
      const int begin = 0, end = int(s.size());
      SoftmaxState state;
      op->softmax_tile(s.data(), 1, end, end, &begin, &end, 1.0f, &state, nullptr, 0);
      for (std::size_t i = 0; i < s.size(); ++i) {
        const double want = std::exp(double(x[i]));
        worst = std::max(worst, std::fabs(s[i] - want) / want);
      }
    }
    std::printf("exp, %s: largest relative error %.3g\n", op->name, worst);
    CHECK(worst < 2e-7);
    // Far below, the result is a subnormal or 0; swiglu sees both ends of exp.
    std::vector<float> s = {0.0f, -90.0f, -100.0f, -104.5f, -1000.0f, -INFINITY};
    s.resize(40, -INFINITY);
    const int begin = 0, end = 40;
    SoftmaxState state;
    op->softmax_tile(s.data(), 1, 40, 40, &begin, &end, 1.0f, &state, nullptr, 0);
    CHECK(std::fabs(s[1] - std::exp(-90.0)) < 3e-45);
    CHECK(std::fabs(s[2] - std::exp(-100.0)) < 3e-45);
    for (std::size_t i = 3; i < 40; ++i) CHECK(s[i] == 0.0f);
    std::vector<float> gate(20, -200.0f), up(20, 1.0f), y(20);
    gate[1] = 200.0f, gate[2] = NAN, gate[18] = NAN;
    op->swiglu(gate.data(), up.data(), y.data(), 20);
    CHECK(y[0] == 0.0f);
    CHECK(y[1] == 200.0f);
    CHECK(std::isnan(y[2]));
    CHECK(std::isnan(y[18]));
  }
}

TEST_CASE("logsumexp") {
  for (const Ops* op : levels()) {
    for (std::size_t n : lengths()) {
      INFO(op->name << " n=" << n);
      const Buffer x = normal(n, 5.0f);
      if (n == 0) {
        CHECK(op->logsumexp(x.data, 0) == -INFINITY);
      } else {
        CHECK(std::fabs(op->logsumexp(x.data, n) - ref::logsumexp(x.data, n)) < 2e-7);
      }
    }
    const Buffer row = normal(49152, 4.0f);
    CHECK(std::fabs(op->logsumexp(row.data, row.n) - ref::logsumexp(row.data, row.n)) < 1e-7);
    std::vector<float> x(37, -INFINITY);
    CHECK(op->logsumexp(x.data(), 37) == -INFINITY);
    x[36] = 1e30f;
    CHECK(op->logsumexp(x.data(), 37) == double(1e30f));
    x[3] = INFINITY;
    CHECK(op->logsumexp(x.data(), 37) == INFINITY);
    x[3] = NAN;
    CHECK(std::isnan(op->logsumexp(x.data(), 37)));
  }
}

TEST_CASE("softmax_tile: visible columns, running state, rescaled accumulators") {
  const int rows = 5, d = 20;
  for (const Ops* op : levels())
    for (int cols : {1, 15, 16, 33, 64, 100}) {
      INFO(op->name << " cols=" << cols);
      const int ld = cols + 3, n_tiles = 3;
      std::vector<SoftmaxState> state(rows);
      Buffer acc(std::size_t(rows * d));
      std::fill(acc.data, acc.data + rows * d, 0.0f);
      std::vector<double> max(rows, -INFINITY), sum(rows, 0.0), mass(rows, 0.0);
      for (int tile = 0; tile < n_tiles; ++tile) {
        Buffer s = normal(std::size_t(rows * ld), 4.0f);
        const std::vector<float> raw(s.data, s.data + rows * ld);
        const std::vector<int> begin = {0, cols / 2, cols, 1 % cols, 0};
        const std::vector<int> end = {cols, cols, cols, cols, tile == 0 ? 0 : 1};
        op->softmax_tile(s.data, rows, cols, ld, begin.data(), end.data(), 0.5f, state.data(),
                         acc.data, d);
        CHECK(s.intact());
        for (int r = 0; r < rows; ++r) {
          const float* got = s.data + r * ld;
          double top = max[r];
          for (int c = begin[r]; c < end[r]; ++c) top = std::max(top, 0.5 * raw[r * ld + c]);
          const double factor = std::isinf(max[r]) ? 0.0 : std::exp(max[r] - top);
          sum[r] *= factor, mass[r] *= factor, max[r] = top;
          for (int c = 0; c < cols; ++c) {
            const bool visible = c >= begin[r] && c < end[r];
            const double want = visible ? std::exp(0.5 * raw[r * ld + c] - top) : 0.0;
            REQUIRE(std::fabs(got[c] - want) <= 2e-6 * want);
            sum[r] += want, mass[r] += want * (c + 1);
            for (int i = 0; i < d; ++i) acc.data[r * d + i] += got[c] * float(c + 1);
          }
          for (int c = cols; c < ld; ++c) REQUIRE(got[c] == raw[r * ld + c]);
          REQUIRE(std::fabs(state[r].sum - sum[r]) <= 2e-6 * sum[r]);
          for (int i = 0; i < d; ++i)
            REQUIRE(std::fabs(acc.data[r * d + i] - mass[r]) <= 1e-5 * mass[r]);
        }
      }
      CHECK(state[2].sum == 0.0f);
    }
}

TEST_CASE("merging split parts equals one pass") {
  const int d = 64;
  const Buffer q = normal(std::size_t(d), 0.3f);
  const Buffer k = normal(700 * std::size_t(d)), v = normal(700 * std::size_t(d));
  for (const Ops* op : levels()) {
    INFO(op->name);
    const auto attend = [&](int from, int to, SoftmaxState* state, float* acc) {
      op->attend_f32({1, d, to - from, q.data, k.data + from * d, v.data + from * d, state, acc});
    };
    SoftmaxState whole, part[3];
    std::vector<float> acc_whole(d),
        acc[3] = {std::vector<float>(d), std::vector<float>(d), std::vector<float>(d)};
    attend(0, 700, &whole, acc_whole.data());
    attend(0, 1, &part[0], acc[0].data());
    attend(1, 401, &part[1], acc[1].data());
    attend(401, 700, &part[2], acc[2].data());
    merge_softmax(part[0], acc[0].data(), SoftmaxState{}, acc[1].data(), d);  // empty: no change
    merge_softmax(part[0], acc[0].data(), part[1], acc[1].data(), d);
    merge_softmax(part[0], acc[0].data(), part[2], acc[2].data(), d);
    CHECK(part[0].max == whole.max);
    CHECK(part[0].sum == Approx(whole.sum).epsilon(1e-6));
    for (int i = 0; i < d; ++i)
      CHECK(std::fabs(acc[0][i] / part[0].sum - acc_whole[i] / whole.sum) < 1e-6);
  }
}

TEST_CASE("one level gives the same bits whatever the alignment") {
  const int d = 80, n = 130;
  for (const Ops* op : levels()) {
    INFO(op->name);
    std::vector<float> first;
    const Buffer k0 = normal(std::size_t(n * d)), v0 = normal(std::size_t(n * d)),
                 q0 = normal(std::size_t(3 * d), 0.3f);
    for (std::size_t shift = 0; shift < 5; ++shift) {
      Buffer k(k0.n, shift), v(v0.n, shift + 1), q(q0.n, shift + 2), acc(q0.n, shift);
      std::copy(k0.data, k0.data + k0.n, k.data);
      std::copy(v0.data, v0.data + v0.n, v.data);
      std::copy(q0.data, q0.data + q0.n, q.data);
      std::fill(acc.data, acc.data + acc.n, 0.0f);
      SoftmaxState state[3];
      op->attend_f32({3, d, n, q.data, k.data, v.data, state, acc.data});
      std::vector<float> result(acc.data, acc.data + acc.n);
      result.push_back(op->dot(k.data, v.data, std::size_t(n * d) - 3));
      result.push_back(float(op->logsumexp(k.data, std::size_t(n * d) - 3)));
      if (shift == 0) first = result;
      CHECK(std::memcmp(first.data(), result.data(), 4 * first.size()) == 0);
    }
  }
}

TEST_CASE("set_isa and MILLION_ISA choose the table") {
  const Ops* before = &ops();
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    const Ops* table = ops_for(isa);
    CHECK(set_isa(isa) == (table != nullptr));
    if (table) CHECK(&ops() == table);
  }
  CHECK(ops_for(Isa::kScalar)->name == std::string("scalar"));
  for (const Ops* table : levels())
    if (table == before) CHECK((set_isa(Isa::kScalar) && &ops() == ops_for(Isa::kScalar)));
  const char* wanted = std::getenv("MILLION_ISA");
  if (wanted && *wanted) {
    if (isa_request_error()) {
      CHECK(isa_request_error() == std::string(wanted));
    } else {
      CHECK(before->name == std::string(wanted));
    }
  } else {
    CHECK(isa_request_error() == nullptr);
    CHECK(before == levels().back());
  }
}

TEST_CASE("multiply_rows: any shape, and a value does not depend on the rows beside it") {
  for (const Ops* op : levels())
    for (int w : {1, 5, 16, 64, 192, 193})
      for (int columns : {1, 3, 4, 17, 64})
        for (int n : {1, 2, 3, 7, 64}) {
          INFO(op->name << " n=" << n << " w=" << w << " columns=" << columns);
          const Buffer x = normal(std::size_t(n * w), 1.0f, 1);
          const Buffer m = normal(std::size_t(columns * w), 1.0f, 3);
          std::vector<float> y(static_cast<std::size_t>(n * columns) + 1, 777.0f);
          std::vector<float> one(static_cast<std::size_t>(columns));
          op->multiply_rows(x.data, n, w, columns, m.data, y.data());
          REQUIRE(y.back() == 777.0f);
          for (int i = 0; i < n; ++i) {
            op->multiply_rows(x.data + i * w, 1, w, columns, m.data, one.data());
            REQUIRE(std::equal(one.begin(), one.end(), y.begin() + i * columns));
            for (int c = 0; c < columns; ++c)
              REQUIRE(std::fabs(one[std::size_t(c)] -
                                ref::dot(x.data + i * w, m.data + c * w, std::size_t(w))) <
                      1e-5 * std::sqrt(double(w)));
          }
        }
}
