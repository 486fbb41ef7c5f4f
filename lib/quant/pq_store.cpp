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

/// What one KV head of a layer needs: where its tables lie and its codes.
struct Head {
  const PqBook* book = nullptr;
  const PqBasis* basis = nullptr;              ///< nullptr: rows are coded as they are
  std::vector<AlignedVector<uint8_t>> blocks;  ///< layout.h
  std::vector<const uint8_t*> pointers;        ///< to the blocks, as kernels want them
};

/// Tables of one head as f32, made where they are used and not kept: a second copy of all tables
/// would cost more memory than the codes of 2000 tokens.
struct FloatTables {
  AlignedVector<float> matrix, centroids, transposed;
  const float* load_matrix(const AlignedVector<uint16_t>& half) { return load(half, &matrix); }
  const float* load_centroids(const PqBook& book) { return load(book.centroids, &centroids); }

 private:
  static const float* load(const AlignedVector<uint16_t>& half, AlignedVector<float>* out) {
    out->resize(half.size());
    ops().f16_to_f32(half.data(), out->data(), half.size());
    return out->data();
  }
};

class PqStore final : public CodeStore {
 public:
  PqStore(std::shared_ptr<const PqTables> tables, const KvGeometry& geometry, const KeyFrame& frame,
          const std::vector<int>& books, const std::vector<int>& bases)
      : tables_(std::move(tables)),
        d_(geometry.head_dim),
        frame_(frame),
        rope_(geometry.rope),
        heads_(books.size()) {
    for (size_t h = 0; h < heads_.size(); ++h) {
      heads_[h].book = &tables_->books[books[h]];
      if (!bases.empty()) heads_[h].basis = &tables_->bases[bases[h]];
    }
    shape_ = heads_[0].book->shape;
    rank_ = heads_[0].book->dsub * shape_.M;
  }

  int n_tokens() const override { return n_tokens_; }

  void append(const float* x, int n, int64_t first_token) override {
    if (n_tokens_ == 0) first_token_ = first_token;
    for (Head& head : heads_) grow(head, n_tokens_ + n);
    const auto n_heads = static_cast<int64_t>(heads_.size());
    int64_t stride = n_heads * d_, head_stride = d_;
    if (heads_[0].basis) {
      turned_.resize(static_cast<size_t>(n) * n_heads * rank_);
      turn_rows(x, n);
      x = turned_.data();
      stride = rank_;
      head_stride = static_cast<int64_t>(n) * rank_;
    }
    const int64_t units = n_heads * shape_.M;
    const auto encode = [&](int64_t unit) {
      const auto h = static_cast<int>(unit / shape_.M), m = static_cast<int>(unit % shape_.M);
      encode_subspace(x + h * head_stride, stride, n, h, m);
    };
    if (n >= kParallelTokens) {
      parallel_for(units, encode);
    } else {
      for (int64_t unit = 0; unit < units; ++unit) encode(unit);
    }
    n_tokens_ += n;
  }

  void decode(int head, int begin, int end, float* out) const override {
    const Head& h = heads_[head];
    thread_local FloatTables tables;
    const float* centroids = tables.load_centroids(*h.book);
    if (!h.basis) return decode_rows(h, centroids, begin, end, out);
    const float* matrix = tables.load_matrix(h.basis->decode);
    float rows[kDecodeRows * kMaxRank];
    for (; begin < end; begin += kDecodeRows, out += kDecodeRows * d_) {
      const int n = std::min(end - begin, kDecodeRows);
      decode_rows(h, centroids, begin, begin + n, rows);
      to_basis(rows, n, rank_, d_, matrix, out);
      for (int t = 0; t < n; ++t) add_mean(*h.basis, begin + t, 1.0f, out + t * d_);
    }
  }

  StoreBytes bytes() const override {
    StoreBytes total;
    for (const Head& head : heads_) {
      total.codes += head.blocks.capacity() * sizeof(head.blocks[0]) +
                     head.pointers.capacity() * sizeof(head.pointers[0]);
      for (const auto& block : head.blocks) total.codes += block.capacity();
    }
    return total;
  }

  void clear() override {
    n_tokens_ = 0;
    decltype(turned_)().swap(turned_);
    for (Head& head : heads_) {
      decltype(head.blocks)().swap(head.blocks);  // gives the memory back
      decltype(head.pointers)().swap(head.pointers);
    }
  }

  PqSide pq_side(int head, AlignedVector<float>* centroids) const override {
    const Head& h = heads_[head];
    if (h.basis) return {0, 0, nullptr, nullptr};  // the kernel knows no basis yet
    centroids->resize(h.book->centroids.size());
    ops().f16_to_f32(h.book->centroids.data(), centroids->data(), centroids->size());
    return {shape_.M, shape_.nbits, h.pointers.data(), centroids->data()};
  }

 private:
  static constexpr int kDecodeRows = 16;  ///< rows turned at once; their codes stay in the L1 cache
  static constexpr int kMaxRank = 1024;

  void grow(Head& head, int64_t n_tokens) {
    while (static_cast<int64_t>(head.blocks.size()) * kPqBlock < n_tokens) {
      head.blocks.emplace_back(pq_block_bytes(shape_.M, shape_.nbits));
      head.pointers.push_back(head.blocks.back().data());
    }
  }

  /// out [d] += sign * R(f) mean of the token at index t of this store.
  void add_mean(const PqBasis& basis, int64_t t, float sign, float* out) const {
    if (basis.mean.empty()) return;
    float mean[kMaxRank];
    std::copy_n(basis.mean.data(), d_, mean);
    rope_.move(mean, 1, d_, frame_.position(first_token_ + t));
    for (int c = 0; c < d_; ++c) out[c] += sign * mean[c];
  }

  /// turned_ [n_heads][n][rank] <- E (x - mean) for rows x [n][n_heads][d].
  void turn_rows(const float* x, int n) {
    const auto n_heads = static_cast<int64_t>(heads_.size());
    parallel_ranges(n, kParallelTokens, [&](int64_t begin, int64_t end) {
      FloatTables tables;
      AlignedVector<float> row(d_);
      for (int64_t h = 0; h < n_heads && begin < end; ++h) {
        const PqBasis& basis = *heads_[h].basis;
        const float* matrix = tables.load_matrix(basis.encode);
        for (int64_t t = begin; t < end; ++t) {
          std::copy_n(x + (t * n_heads + h) * d_, d_, row.data());
          add_mean(basis, n_tokens_ + t, -1.0f, row.data());
          to_basis(row.data(), 1, d_, rank_, matrix, turned_.data() + (h * n + t) * rank_);
        }
      }
    });
  }

  /// Centroids of tokens [begin, end) of one head: out [end - begin][rank].
  void decode_rows(const Head& head, const float* centroids, int begin, int end, float* out) const {
    const DecodeRun decode_run = decode_run_for(head.book->dsub);
    for (int t = begin; t < end;) {
      const int at = t % kPqBlock, n = std::min(end - t, kPqBlock - at);
      const uint8_t* block = head.blocks[t / kPqBlock].data();
      for (int m = 0; m < shape_.M; ++m)
        decode_run(block + m * pq_run_bytes(shape_.nbits), shape_.nbits, at, n,
                   centroids + m * head.book->subspace(), head.book->dsub,
                   out + static_cast<int64_t>(t - begin) * rank_ + m * head.book->dsub, rank_);
      t += n;
    }
  }

  /// Encodes subspace m of one head for n rows of x; touches only that subspace's runs.
  void encode_subspace(const float* x, int64_t stride, int n, int h, int m) {
    const PqBook& book = *heads_[h].book;
    const int K = shape_.K(), dsub = book.dsub;
    thread_local FloatTables tables;
    tables.centroids.resize(book.subspace());
    tables.transposed.resize(book.subspace());
    ops().f16_to_f32(book.centroids.data() + m * book.subspace(), tables.centroids.data(),
                     book.subspace());
    transpose_centroids(tables.centroids.data(), K, dsub, tables.transposed.data());
    const float* rows = x + static_cast<int64_t>(m) * dsub;
    uint16_t codes[kPqBlock];
    for (int done = 0; done < n;) {
      const int t = n_tokens_ + done, at = t % kPqBlock;
      const int count = std::min(n - done, kPqBlock - at);
      ops().pq_encode(rows + done * stride, static_cast<size_t>(stride), count,
                      tables.transposed.data(), K, dsub, codes);
      uint8_t* block = heads_[h].blocks[t / kPqBlock].data();
      pack_run(block + m * pq_run_bytes(shape_.nbits), shape_.nbits, at, count, codes);
      done += count;
    }
  }

  std::shared_ptr<const PqTables> tables_;
  int d_;
  KeyFrame frame_;
  Rope rope_;
  std::vector<Head> heads_;
  PqShape shape_;
  int rank_ = 0;
  int n_tokens_ = 0;
  int64_t first_token_ = 0;  ///< of the sequence, at index 0 of this store
  AlignedVector<float> turned_;
};

}  // namespace

std::unique_ptr<CodeStore> make_pq_store(std::shared_ptr<const PqTables> tables,
                                         const KvGeometry& geometry, const KeyFrame& frame,
                                         std::vector<int> books, std::vector<int> bases) {
  return std::make_unique<PqStore>(std::move(tables), geometry, frame, books, bases);
}

}  // namespace million
