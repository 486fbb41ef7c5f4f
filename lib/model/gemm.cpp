// SPDX-License-Identifier: Apache-2.0
#include "lib/model/gemm.h"

#include "kernels/ops.h"
#include "lib/core/error.h"
#include "lib/core/parallel.h"

#include <oneapi/dnnl/dnnl.hpp>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <tuple>

namespace million {
namespace {

/// Weight values dequantized at once: 4.5 MiB of f32, which stays in the shared cache while all
/// row tiles use it.
constexpr int64_t kWeightBlock = 1 << 20;
/// Row tile of A with bf16 products and in run_back.
constexpr int kRowTile = 128;
/// oneDNN's f32 kernels take 6 (AVX2) or 8 (AVX-512) rows at once and sum k in another order for
/// the rest, and for fewer than 64 rows (tested by test_decoder_golden): tiles are padded to
/// multiples.
constexpr int kRowUnit = 24, kMinRows = 72;
/// Rows of a tile at most. Measured (2 cores, AVX-512): 346 GFLOP/s at 128 rows, 389 at 256.
constexpr int kMaxRows = 264;

int padded_rows(int rows) {
  return std::max(kMinRows, (rows + kRowUnit - 1) / kRowUnit * kRowUnit);
}
/// Row tile for m rows: an equal share of the threads. Results do not depend on it.
int row_tile(int m) {
  const int pieces = (m + threads() * kMaxRows - 1) / (threads() * kMaxRows) * threads();
  return padded_rows((m + pieces - 1) / pieces);
}

using Bf16Vector = AlignedVector<uint16_t>;

/// One oneDNN bf16 x bf16 -> f32 product of fixed shape; safe to run from several threads because
/// the scratchpad is the caller's.
class Bf16Product {
 public:
  Bf16Product(const dnnl::engine& engine, int n, int k, bool accumulate) : engine_(engine) {
    using dt = dnnl::memory::data_type;
    using tag = dnnl::memory::format_tag;
    a_ = {{kRowTile, k}, dt::bf16, tag::ab};
    b_ = {{k, n}, dt::bf16, tag::ba};
    c_ = {{kRowTile, n}, dt::f32, tag::ab};
    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1.0f);
      attr.set_post_ops(sum);
    }
    dnnl::matmul::primitive_desc pd(dnnl::matmul::desc(a_, b_, c_), attr, engine_);
    scratch_bytes_ = pd.scratchpad_desc().get_size();
    scratch_ = pd.scratchpad_desc();
    matmul_ = dnnl::matmul(pd);
  }

  /// c [kRowTile][n] (+)= a [kRowTile][k] b [n][k]^T.
  void run(const uint16_t* a, const uint16_t* b, float* c) const {
    thread_local AlignedVector<std::byte> scratch;
    if (scratch.size() < scratch_bytes_) scratch.resize(scratch_bytes_);
    dnnl::stream stream(engine_);
    matmul_.execute(stream, {{DNNL_ARG_SRC, {a_, engine_, const_cast<uint16_t*>(a)}},
                             {DNNL_ARG_WEIGHTS, {b_, engine_, const_cast<uint16_t*>(b)}},
                             {DNNL_ARG_DST, {c_, engine_, c}},
                             {DNNL_ARG_SCRATCHPAD, {scratch_, engine_, scratch.data()}}});
    stream.wait();
  }

 private:
  dnnl::engine engine_;
  dnnl::memory::desc a_, b_, c_, scratch_;
  std::size_t scratch_bytes_ = 0;
  dnnl::matmul matmul_;
};

/// x = high + low with both parts bf16; the remainder is below 2^-16 |x|.
void split_bf16(const float* x, std::size_t n, uint16_t* high, uint16_t* low) {
  const Ops& op = ops();
  constexpr std::size_t kPiece = 512;
  float rest[kPiece];
  for (std::size_t i = 0; i < n; i += kPiece) {
    const std::size_t m = std::min(kPiece, n - i);
    op.f32_to_bf16(x + i, high + i, m);
    op.bf16_to_f32(high + i, rest, m);
    for (std::size_t j = 0; j < m; ++j) rest[j] = x[i + j] - rest[j];
    op.f32_to_bf16(rest, low + i, m);
  }
}

}  // namespace

void sgemm(char op_a, char op_b, int m, int n, int k, const float* a, int lda, const float* b,
           int ldb, float beta, float* c, int ldc) {
  MILLION_ASSERT(dnnl_sgemm(op_a, op_b, m, n, k, 1.0f, a, lda, b, ldb, beta, c, ldc) ==
                 dnnl_success);
}

void limit_onednn_isa() {
  const std::string_view level = ops().name;
  if (level == "scalar") dnnl::set_max_cpu_isa(dnnl::cpu_isa::sse41);
  if (level == "avx2") dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx2);
}

struct Gemm::Impl {
  explicit Impl(PrefillCompute c) : compute(c), engine(dnnl::engine::kind::cpu, 0) {}

  const Bf16Product& product(int n, int k, bool accumulate) {
    std::lock_guard lock(mutex);
    auto& slot = products[{n, k, accumulate}];
    if (!slot) {
      try {
        slot = std::make_unique<Bf16Product>(engine, n, k, accumulate);
      } catch (const dnnl::error& e) {
        fail(ErrorCode::kUsage, "this CPU has no bf16 matrix product ({}); use --compute f32",
             e.what());
      }
    }
    return *slot;
  }

  void dequantize(const WeightView& w, int first, int n, bool split);
  void tile_f32(const float* a, int rows, int n, int k, float* c, int ldc) const;
  void tile_bf16(const float* a, int rows, int n, int k, float* c, int ldc);

  PrefillCompute compute;
  dnnl::engine engine;
  std::mutex mutex;
  std::map<std::tuple<int, int, bool>, std::unique_ptr<Bf16Product>> products;
  AlignedVector<float> weights;          // [block rows][k]
  Bf16Vector weights_high, weights_low;  // the same as bf16 parts
};

/// Rows [first, first + n) of w as f32 and, for a split, as bf16 parts; spread over the threads.
void Gemm::Impl::dequantize(const WeightView& w, int first, int n, bool split) {
  const auto size = static_cast<std::size_t>(n) * w.cols;
  if (weights.size() < size) weights.resize(size);
  const bool bf16 = split && compute == PrefillCompute::kBf16;
  const bool bf16x3 = split && compute == PrefillCompute::kBf16x3;
  if ((bf16 || bf16x3) && weights_high.size() < size) weights_high.resize(size);
  if (bf16x3 && weights_low.size() < size) weights_low.resize(size);
  parallel_ranges(n, 8, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* row = weights.data() + r * w.cols;
      ops().dequant_row(w.type, w.row(first + static_cast<int>(r)), w.cols, row);
      if (bf16) ops().f32_to_bf16(row, weights_high.data() + r * w.cols, w.cols);
      if (bf16x3)
        split_bf16(row, w.cols, weights_high.data() + r * w.cols, weights_low.data() + r * w.cols);
    }
  });
}

void Gemm::Impl::tile_f32(const float* a, int rows, int n, int k, float* c, int ldc) const {
  const auto gemm = [&](const float* from, int m, float* to, int ld) {
    MILLION_ASSERT(dnnl_sgemm('N', 'T', m, n, k, 1.0f, from, k, weights.data(), k, 0.0f, to, ld) ==
                   dnnl_success);
  };
  const int all = padded_rows(rows);
  if (rows == all) return gemm(a, rows, c, ldc);
  thread_local AlignedVector<float> padded_a, padded_c;
  padded_a.assign(static_cast<std::size_t>(all) * k, 0.0f);
  padded_c.resize(static_cast<std::size_t>(all) * n);
  std::copy_n(a, static_cast<std::size_t>(rows) * k, padded_a.data());
  gemm(padded_a.data(), all, padded_c.data(), n);
  for (int r = 0; r < rows; ++r)
    std::copy_n(padded_c.data() + static_cast<std::size_t>(r) * n, n,
                c + static_cast<int64_t>(r) * ldc);
}

void Gemm::Impl::tile_bf16(const float* a, int rows, int n, int k, float* c, int ldc) {
  thread_local Bf16Vector high, low;
  thread_local AlignedVector<float> out;
  const auto used = static_cast<std::size_t>(rows) * k;
  high.assign(static_cast<std::size_t>(kRowTile) * k, 0);
  out.resize(static_cast<std::size_t>(kRowTile) * n);
  if (compute == PrefillCompute::kBf16) {
    ops().f32_to_bf16(a, high.data(), used);
    product(n, k, false).run(high.data(), weights_high.data(), out.data());
  } else {
    low.assign(high.size(), 0);
    split_bf16(a, used, high.data(), low.data());
    // Small terms first; low x low is below f32's own rounding and left out.
    product(n, k, false).run(high.data(), weights_low.data(), out.data());
    product(n, k, true).run(low.data(), weights_high.data(), out.data());
    product(n, k, true).run(high.data(), weights_high.data(), out.data());
  }
  for (int r = 0; r < rows; ++r)
    std::copy_n(out.data() + static_cast<std::size_t>(r) * n, n, c + static_cast<int64_t>(r) * ldc);
}

Gemm::Gemm(PrefillCompute compute) : impl_(std::make_unique<Impl>(compute)) {}
Gemm::~Gemm() = default;

void Gemm::run(const float* a, int m, const WeightView& w, float* c, int ldc) {
  const int block = static_cast<int>(std::clamp<int64_t>(kWeightBlock / w.cols, 16, w.rows));
  const int size = impl_->compute == PrefillCompute::kF32 ? row_tile(m) : kRowTile;
  const int64_t tiles = (m + size - 1) / size;
  for (int first = 0; first < w.rows; first += block) {
    const int n = std::min(block, w.rows - first);
    impl_->dequantize(w, first, n, true);
    parallel_for(tiles, [&](int64_t tile) {
      const int row = static_cast<int>(tile) * size;
      const int rows = std::min(size, m - row);
      const float* from = a + static_cast<int64_t>(row) * w.cols;
      float* to = c + static_cast<int64_t>(row) * ldc + first;
      if (impl_->compute == PrefillCompute::kF32)
        impl_->tile_f32(from, rows, n, w.cols, to, ldc);
      else
        impl_->tile_bf16(from, rows, n, w.cols, to, ldc);
    });
  }
}

void Gemm::run_back(const float* dy, int m, const WeightView& w, float* dx, bool accumulate) {
  const int block = static_cast<int>(std::clamp<int64_t>(kWeightBlock / w.cols, 16, w.rows));
  const int64_t tiles = (m + kRowTile - 1) / kRowTile;
  // Two halves of the columns, so that even one tile runs inside a parallel region: outside of one
  // oneDNN would split the sum over its threads.
  const int half = (w.cols + 1) / 2;
  for (int first = 0; first < w.rows; first += block) {
    const int n = std::min(block, w.rows - first);
    impl_->dequantize(w, first, n, false);
    const float beta = accumulate || first > 0 ? 1.0f : 0.0f;
    parallel_for(2 * tiles, [&](int64_t job) {
      const int row = static_cast<int>(job / 2) * kRowTile, column = job % 2 == 0 ? 0 : half;
      sgemm('N', 'N', std::min(kRowTile, m - row), job % 2 == 0 ? half : w.cols - half, n,
            dy + static_cast<int64_t>(row) * w.rows + first, w.rows, impl_->weights.data() + column,
            w.cols, beta, dx + static_cast<int64_t>(row) * w.cols + column, w.cols);
    });
  }
}

}  // namespace million
