// SPDX-License-Identifier: Apache-2.0
#include "lib/quant/pq_store.h"

#include "kernels/ops.h"
#include "lib/core/error.h"
#include "lib/core/parallel.h"
#include "lib/core/rope.h"

#include <algorithm>
#include <cstring>

namespace million {
namespace {

/// Below this many tokens starting threads costs more than encoding.
constexpr int kParallelTokens = 16;

/// Writes codes to places [begin, begin + n) of a run. Eight codes fill nbits whole bytes, so all
/// but the ends go through an accumulator instead of single bits.
void pack_run(uint8_t* run, int nbits, int begin, int n, const uint16_t* codes) {
  int i = 0;
  for (; i < n && (begin + i) % 8 != 0; ++i) pq_set(run, nbits, begin + i, codes[i]);
  uint8_t* out = run + static_cast<size_t>(begin + i) / 8 * nbits;
  for (; i + 8 <= n; i += 8) {
    uint32_t bits = 0;
    int have = 0;
    for (int j = 0; j < 8; ++j) {
      bits |= static_cast<uint32_t>(codes[i + j]) << have;
      for (have += nbits; have >= 8; have -= 8, bits >>= 8) *out++ = static_cast<uint8_t>(bits);
    }
  }
  for (; i < n; ++i) pq_set(run, nbits, begin + i, codes[i]);
}

/// out[t * stride + i] = centroids[code t][i] for the n codes from place `begin` of a run.
template <int kDsub>
void decode_run(const uint8_t* run, int nbits, int begin, int n, const float* centroids, int dsub,
                float* out, int stride) {
  const int width = kDsub > 0 ? kDsub : dsub;
  for (int t = 0; t < n; ++t) {
    const uint32_t code = nbits == 8 ? run[begin + t] : pq_get(run, nbits, begin + t);
    std::memcpy(out + static_cast<int64_t>(t) * stride, centroids + code * width,
                sizeof(float) * width);
  }
}

using DecodeRun = void (*)(const uint8_t*, int, int, int, const float*, int, float*, int);
DecodeRun decode_run_for(int dsub) {
  switch (dsub) {
    case 1:
      return decode_run<1>;
    case 2:
      return decode_run<2>;
    case 4:
      return decode_run<4>;
    case 8:
      return decode_run<8>;
    default:
      return decode_run<0>;
  }
}

/// What one unit of KV heads needs: where its tables lie and its codes.
struct Unit {
  const PqBook* book = nullptr;
  const PqBasis* basis = nullptr;              ///< nullptr: rows are coded as they are
  std::vector<AlignedVector<uint8_t>> blocks;  ///< layout.h
  std::vector<const uint8_t*> pointers;        ///< to the blocks, as kernels want them
};

/// Centroids as f32, made where they are used and not kept: a second copy of all tables would cost
/// more memory than the codes of 2000 tokens.
const float* expand_book(const PqBook& book, AlignedVector<float>* out) {
  out->resize(book.size());
  book.expand(0, book.shape.M, out->data());
  return out->data();
}

class PqStore final : public CodeStore {
 public:
  PqStore(std::shared_ptr<const PqTables> tables, const KvGeometry& geometry, const KeyFrame& frame,
          const std::vector<int>& books, const std::vector<int>& bases)
      : tables_(std::move(tables)),
        d_(geometry.head_dim),
        span_(geometry.n_kv_heads / static_cast<int>(books.size())),
        frame_(frame),
        rope_(geometry.rope),
        units_(books.size()) {
    for (size_t u = 0; u < units_.size(); ++u) {
      units_[u].book = &tables_->books[books[u]];
      if (!bases.empty()) units_[u].basis = &tables_->bases[bases[u]];
    }
    shape_ = units_[0].book->shape;
    rank_ = units_[0].book->dsub * shape_.M;
  }

  int n_tokens() const override { return n_tokens_; }

  void append(const float* x, int n, int64_t first_token) override {
    if (n_tokens_ == 0) first_token_ = first_token;
    for (Unit& unit : units_) grow(unit, n_tokens_ + n);
    const auto n_units = static_cast<int64_t>(units_.size());
    int64_t stride = n_units * width(), unit_stride = width();
    AlignedVector<float> turned;
    if (units_[0].basis) {
      turned.resize(static_cast<size_t>(n) * n_units * rank_);
      turn_rows(x, n, turned.data());
      x = turned.data();
      stride = rank_;
      unit_stride = static_cast<int64_t>(n) * rank_;
    }
    const int64_t jobs = n_units * shape_.M;
    const auto encode = [&](int64_t job) {
      const auto u = static_cast<int>(job / shape_.M), m = static_cast<int>(job % shape_.M);
      encode_subspace(x + u * unit_stride, stride, n, u, m);
    };
    if (n >= kParallelTokens) {
      parallel_for(jobs, encode);
    } else {
      for (int64_t job = 0; job < jobs; ++job) encode(job);
    }
    n_tokens_ += n;
  }

  void decode(int head, int begin, int end, float* out) const override {
    const Unit& unit = units_[head / span_];
    if (!unit.basis) {
      thread_local AlignedVector<float> centroids;
      return decode_rows(unit, expand_book(*unit.book, &centroids), begin, end, out);
    }
    thread_local AlignedVector<float> rows, centroids, matrix;
    rows.resize(static_cast<size_t>(kDecodeRows) * rank_);
    expand_book(*unit.book, &centroids);
    unit.basis->decoder().expand(true, &matrix);
    const float* own = matrix.data() + static_cast<int64_t>(head % span_) * d_ * rank_;
    const float* mean = outside_mean(*unit.basis);
    for (; begin < end; begin += kDecodeRows, out += static_cast<int64_t>(kDecodeRows) * d_) {
      const int n = std::min(end - begin, kDecodeRows);
      coded_rows(unit, centroids.data(), begin, begin + n, rows.data());
      ops().multiply_rows(rows.data(), n, rank_, d_, own, out);
      for (int t = 0; mean && t < n; ++t)
        add_mean(mean + head % span_ * d_, 1, begin + t, 1.0f, out + t * d_);
    }
  }

  int coded_rank() const override {
    return units_[0].basis && !outside_mean(*units_[0].basis) ? rank_ : 0;
  }

  void decode_coded(int head, int begin, int end, float* y) const override {
    const Unit& unit = units_[head / span_];
    thread_local AlignedVector<float> centroids;
    coded_rows(unit, expand_book(*unit.book, &centroids), begin, end, y);
  }

  int coded_units() const override {
    const bool centred = units_[0].basis && !units_[0].basis->mean.empty();
    const bool fits = units_[0].basis && (!centred || units_[0].basis->n_places > 0);
    return fits ? static_cast<int>(units_.size()) : 0;
  }

  CodedUnit coded_unit(int u) const override {
    const Unit& unit = units_[u];
    const PqBasis& basis = *unit.basis;
    const ByteMatrix& decoder = basis.decoder();
    return {{shape_.M, shape_.nbits, unit.pointers.data(), unit.book->bytes.data(),
             unit.book->scale.data()},
            span_,
            rank_,
            decoder.values.data(),
            decoder.scale.data(),
            basis.n_places,
            basis.places.data(),
            basis.place_mean.data(),
            basis.encode.values.data(),
            basis.encode.scale.data(),
            basis.coded_mean.empty() ? nullptr : basis.coded_mean.data()};
  }

  void to_coded(int head, const float* rows, int n, float* y) const override {
    thread_local AlignedVector<float> matrix;
    units_[head / span_].basis->decoder().expand(false, &matrix);
    const float* own = matrix.data() + head % span_ * d_;  // this head's columns of D^T
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < rank_; ++j)
        y[i * rank_ + j] = ops().dot(rows + i * d_, own + static_cast<int64_t>(j) * width(), d_);
  }

  void from_coded(int head, const float* y, int n, float* rows) const override {
    thread_local AlignedVector<float> matrix;
    units_[head / span_].basis->decoder().expand(true, &matrix);
    ops().multiply_rows(y, n, rank_, d_,
                        matrix.data() + static_cast<int64_t>(head % span_) * d_ * rank_, rows);
  }

  StoreBytes bytes() const override {
    StoreBytes total;
    for (const Unit& unit : units_) {
      total.codes += unit.blocks.capacity() * sizeof(unit.blocks[0]) +
                     unit.pointers.capacity() * sizeof(unit.pointers[0]);
      for (const auto& block : unit.blocks) total.codes += block.capacity();
    }
    return total;
  }

  void clear() override {
    n_tokens_ = 0;
    for (Unit& unit : units_) {
      decltype(unit.blocks)().swap(unit.blocks);  // gives the memory back
      decltype(unit.pointers)().swap(unit.pointers);
    }
  }

  std::unique_ptr<CodeStore> clone() const override {
    auto copy = std::make_unique<PqStore>(*this);
    for (Unit& unit : copy->units_)
      for (size_t b = 0; b < unit.blocks.size(); ++b) unit.pointers[b] = unit.blocks[b].data();
    return copy;
  }

  PqSide pq_side(int head, AlignedVector<float>* centroids) const override {
    const Unit& unit = units_[head / span_];
    if (unit.basis) return {0, 0, nullptr, nullptr};  // the kernel knows no basis yet
    return {shape_.M, shape_.nbits, unit.pointers.data(),
            centroids ? expand_book(*unit.book, centroids) : nullptr};
  }

 private:
  static constexpr int kDecodeRows = 256;  ///< rows turned at once

  int width() const { return span_ * d_; }

  void grow(Unit& unit, int64_t n_tokens) {
    while (static_cast<int64_t>(unit.blocks.size()) * kPqBlock < n_tokens) {
      unit.blocks.emplace_back(pq_block_bytes(shape_.M, shape_.nbits));
      unit.pointers.push_back(unit.blocks.back().data());
    }
  }

  /// out [n_heads][d] += sign * R(f) mean for the token at index t of this store.
  void add_mean(const float* mean, int n_heads, int64_t t, float sign, float* out) const {
    thread_local AlignedVector<float> turned;
    turned.assign(mean, mean + static_cast<int64_t>(n_heads) * d_);
    rope_.move(turned.data(), n_heads, d_, frame_.position(first_token_ + t));
    for (int c = 0; c < n_heads * d_; ++c) out[c] += sign * turned[c];
  }

  /// The mean where it cannot be added to y.
  static const float* outside_mean(const PqBasis& basis) {
    return basis.mean.empty() || !basis.coded_mean.empty() ? nullptr : basis.mean.data();
  }

  /// y [rank] += sign * E R(f) mean for the token at index t of this store.
  void add_coded_mean(const PqBasis& basis, int64_t t, float sign, float* y) const {
    if (basis.coded_mean.empty()) return;
    thread_local AlignedVector<float> mean;
    mean.resize(rank_);
    const int64_t f = frame_.place(first_token_ + t);
    ops().f16_to_f32(basis.coded_mean.data() + f * rank_, mean.data(), rank_);
    for (int j = 0; j < rank_; ++j) y[j] += sign * mean[j];
  }

  /// turned [n_units][n][rank] <- E (x - mean) for rows x [n][n_units][w].
  void turn_rows(const float* x, int n, float* turned) const {
    const auto n_units = static_cast<int64_t>(units_.size());
    parallel_ranges(n, kParallelTokens, [&](int64_t begin, int64_t end) {
      AlignedVector<float> matrix, rows;
      for (int64_t u = 0; u < n_units && begin < end; ++u) {
        const PqBasis& basis = *units_[u].basis;
        basis.encode.expand(false, &matrix);
        for (int64_t t = begin; t < end; t += kDecodeRows) {
          const auto count = static_cast<int>(std::min<int64_t>(kDecodeRows, end - t));
          rows.resize(static_cast<size_t>(count) * width());
          for (int i = 0; i < count; ++i) {
            float* row = rows.data() + static_cast<int64_t>(i) * width();
            std::copy_n(x + ((t + i) * n_units + u) * width(), width(), row);
            if (const float* mean = outside_mean(basis))
              add_mean(mean, span_, n_tokens_ + t + i, -1.0f, row);
          }
          float* y = turned + (u * n + t) * rank_;
          ops().multiply_rows(rows.data(), count, width(), rank_, matrix.data(), y);
          for (int i = 0; i < count; ++i)
            add_coded_mean(basis, n_tokens_ + t + i, -1.0f, y + static_cast<int64_t>(i) * rank_);
        }
      }
    });
  }

  /// Centroids of tokens [begin, end) of one unit: out [end - begin][rank].
  void decode_rows(const Unit& unit, const float* centroids, int begin, int end, float* out) const {
    const DecodeRun decode_run = decode_run_for(unit.book->dsub);
    for (int t = begin; t < end;) {
      const int at = t % kPqBlock, n = std::min(end - t, kPqBlock - at);
      const uint8_t* block = unit.blocks[t / kPqBlock].data();
      for (int m = 0; m < shape_.M; ++m)
        decode_run(block + m * pq_run_bytes(shape_.nbits), shape_.nbits, at, n,
                   centroids + m * unit.book->subspace(), unit.book->dsub,
                   out + static_cast<int64_t>(t - begin) * rank_ + m * unit.book->dsub, rank_);
      t += n;
    }
  }

  /// decode_rows with the mean.
  void coded_rows(const Unit& unit, const float* centroids, int begin, int end, float* y) const {
    decode_rows(unit, centroids, begin, end, y);
    for (int t = begin; t < end; ++t)
      add_coded_mean(*unit.basis, t, 1.0f, y + static_cast<int64_t>(t - begin) * rank_);
  }

  /// Encodes subspace m of one unit for n rows of x; touches only that subspace's runs.
  void encode_subspace(const float* x, int64_t stride, int n, int u, int m) {
    const PqBook& book = *units_[u].book;
    const int K = shape_.K(), dsub = book.dsub;
    thread_local AlignedVector<float> centroids, transposed;
    centroids.resize(book.subspace());
    transposed.resize(book.subspace());
    book.expand(m, 1, centroids.data());
    transpose_centroids(centroids.data(), K, dsub, transposed.data());
    const float* rows = x + static_cast<int64_t>(m) * dsub;
    uint16_t codes[kPqBlock];
    for (int done = 0; done < n;) {
      const int t = n_tokens_ + done, at = t % kPqBlock;
      const int count = std::min(n - done, kPqBlock - at);
      ops().pq_encode(rows + done * stride, static_cast<size_t>(stride), count, transposed.data(),
                      K, dsub, codes);
      uint8_t* block = units_[u].blocks[t / kPqBlock].data();
      pack_run(block + m * pq_run_bytes(shape_.nbits), shape_.nbits, at, count, codes);
      done += count;
    }
  }

  std::shared_ptr<const PqTables> tables_;
  int d_, span_;
  KeyFrame frame_;
  Rope rope_;
  std::vector<Unit> units_;
  PqShape shape_;  ///< M counts a unit's subspaces
  int rank_ = 0;
  int n_tokens_ = 0;
  int64_t first_token_ = 0;  ///< of the sequence, at index 0 of this store
};

}  // namespace

std::unique_ptr<CodeStore> make_pq_store(std::shared_ptr<const PqTables> tables,
                                         const KvGeometry& geometry, const KeyFrame& frame,
                                         std::vector<int> books, std::vector<int> bases) {
  return std::make_unique<PqStore>(std::move(tables), geometry, frame, books, bases);
}

}  // namespace million
