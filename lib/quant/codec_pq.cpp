// SPDX-License-Identifier: Apache-2.0
// Product quantization as in MILLION (arXiv 2504.03661): a row of head_dim values is cut into M
// subvectors, each stored as the number of its nearest centroid. M * nbits / head_dim bits per
// value and no metadata per token. Codes are packed as kernels/layout.h says, so attend_pq reads
// them.
#include "kernels/ops.h"
#include "lib/core/error.h"
#include "lib/core/parallel.h"
#include "lib/quant/codebook.h"
#include "lib/quant/codec.h"
#include "lib/quant/codec_identity.h"

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

class PqStore final : public CodeStore {
 public:
  /// `books` are shared with the codec, so a store outlives a codec that is trained again.
  PqStore(std::shared_ptr<const PqCodebooks> books, std::vector<int> book_of_head)
      : books_(std::move(books)), heads_(book_of_head.size()) {
    for (size_t h = 0; h < heads_.size(); ++h) heads_[h].centroids = books_->book(book_of_head[h]);
  }

  int n_tokens() const override { return n_tokens_; }

  void append(const float* x, int n, int64_t /*first_token*/) override {
    const int M = books_->M;
    const int64_t units = static_cast<int64_t>(heads_.size()) * M;
    for (Head& head : heads_) grow(head, n_tokens_ + n);
    const auto encode = [&](int64_t unit) {
      encode_subspace(x, n, static_cast<int>(unit / M), static_cast<int>(unit % M));
    };
    if (n >= kParallelTokens) {
      parallel_for(units, encode);
    } else {
      for (int64_t unit = 0; unit < units; ++unit) encode(unit);
    }
    n_tokens_ += n;
  }

  void decode(int head, int begin, int end, float* out) const override {
    const PqCodebooks& b = *books_;
    const DecodeRun decode_run = decode_run_for(b.dsub());
    for (int t = begin; t < end;) {
      const int at = t % kPqBlock, n = std::min(end - t, kPqBlock - at);
      const uint8_t* block = heads_[head].blocks[t / kPqBlock].data();
      for (int m = 0; m < b.M; ++m)
        decode_run(block + m * pq_run_bytes(b.nbits), b.nbits, at, n,
                   heads_[head].centroids + static_cast<int64_t>(m) * b.K() * b.dsub(), b.dsub(),
                   out + static_cast<int64_t>(t - begin) * b.head_dim + m * b.dsub(), b.head_dim);
      t += n;
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
    for (Head& head : heads_) {
      decltype(head.blocks)().swap(head.blocks);  // gives the memory back
      decltype(head.pointers)().swap(head.pointers);
    }
  }

  PqSide pq_side(int head) const override {
    return {books_->M, books_->nbits, heads_[head].pointers.data(), heads_[head].centroids};
  }

 private:
  struct Head {
    const float* centroids = nullptr;            ///< [M][K][dsub]
    std::vector<AlignedVector<uint8_t>> blocks;  ///< layout.h
    std::vector<const uint8_t*> pointers;        ///< to the blocks, as kernels want them
  };

  void grow(Head& head, int64_t n_tokens) {
    while (static_cast<int64_t>(head.blocks.size()) * kPqBlock < n_tokens) {
      head.blocks.emplace_back(pq_block_bytes(books_->M, books_->nbits));
      head.pointers.push_back(head.blocks.back().data());
    }
  }

  /// Encodes subspace m of one head for n rows of x; touches only that subspace's runs.
  void encode_subspace(const float* x, int n, int h, int m) {
    const PqCodebooks& b = *books_;
    const int K = b.K(), dsub = b.dsub();
    const int64_t row = static_cast<int64_t>(heads_.size()) * b.head_dim;
    // Transposed here and not kept: a second copy of all codebooks would cost more memory than the
    // codes of 2000 tokens, and one transposition costs as much as encoding two rows.
    thread_local AlignedVector<float> transposed;
    transposed.resize(static_cast<size_t>(K) * dsub);
    transpose_centroids(heads_[h].centroids + static_cast<int64_t>(m) * K * dsub, K, dsub,
                        transposed.data());
    const float* rows = x + static_cast<int64_t>(h) * b.head_dim + m * dsub;
    uint16_t codes[kPqBlock];
    for (int done = 0; done < n;) {
      const int t = n_tokens_ + done, at = t % kPqBlock;
      const int count = std::min(n - done, kPqBlock - at);
      ops().pq_encode(rows + done * row, static_cast<size_t>(row), count, transposed.data(), K,
                      dsub, codes);
      uint8_t* block = heads_[h].blocks[t / kPqBlock].data();
      pack_run(block + m * pq_run_bytes(b.nbits), b.nbits, at, count, codes);
      done += count;
    }
  }

  std::shared_ptr<const PqCodebooks> books_;
  std::vector<Head> heads_;
  int n_tokens_ = 0;
};

class PqCodec final : public Codec {
 public:
  PqCodec(const Options& options, KvKind kind, const KvGeometry& geometry)
      : id_("pq", options, kind, geometry) {
    const int d = geometry.head_dim;
    params_.M = options.integer("M", 1, d);
    MILLION_REQUIRE(d % params_.M == 0, ErrorCode::kUsage,
                    "codec pq: M={} does not divide head_dim {}; use one of {}", params_.M, d,
                    divisors(d));
    params_.nbits = options.integer("nbits", 1, 12);
    const std::string scope = options.word("scope", "model|layer|head");
    params_.scope = scope == "model"   ? CodebookScope::kModel
                    : scope == "layer" ? CodebookScope::kLayer
                                       : CodebookScope::kHead;
    if (options.word("rope", "post|pre") == "pre") frame_.type = KeyFrame::Type::kPreRope;
    params_.iters = options.integer("iters", 1, 1000);
    params_.max_rows = options.integer("rows", 1, 1 << 24);
    params_.seed = options.integer("seed", 0, 1 << 30);
  }

  std::string spec() const override { return id_.spec(); }
  KeyFrame frame() const override { return frame_; }
  bool needs_training() const override { return true; }

  void train(const CalibrationSet& data, int sinks) override {
    id_.trained_on(data, sinks);
    books_ = std::make_shared<const PqCodebooks>(
        train_codebooks(data, id_.kind(), frame_, sinks, params_));
  }

  TensorBag save() const override {
    MILLION_ASSERT(books_);
    TensorBag bag{{}, id_.attributes()};
    bag.attributes["seed"] = params_.seed;
    for (int i = 0; i < n_books(); ++i) {
      const float* book = books_->book(i);
      bag.tensors[tensor_name(i)] = {tensor_shape(), {book, book + books_->book_size()}};
    }
    return bag;
  }

  void load(const TensorBag& bag) override {
    id_.loaded_from(bag);
    PqCodebooks books{params_.M, params_.nbits, id_.geometry().head_dim, {}};
    books.centroids.reserve(books.book_size() * n_books());
    for (int i = 0; i < n_books(); ++i) {
      const NamedTensor& tensor = require_tensor(bag, tensor_name(i), tensor_shape());
      books.centroids.insert(books.centroids.end(), tensor.data.begin(), tensor.data.end());
    }
    books_ = std::make_shared<const PqCodebooks>(std::move(books));
  }

  double nominal_bits() const override {
    return static_cast<double>(params_.M) * params_.nbits / id_.geometry().head_dim;
  }
  uint64_t shared_bytes() const override {
    return books_ ? books_->centroids.capacity() * sizeof(float) : 0;
  }

  std::unique_ptr<CodeStore> make_store(int layer) const override {
    MILLION_ASSERT(books_ && layer >= 0 && layer < id_.geometry().n_layers);
    std::vector<int> book_of_head;
    for (int h = 0; h < id_.geometry().n_kv_heads; ++h)
      book_of_head.push_back(codebook_index(params_.scope, id_.geometry(), layer, h));
    return std::make_unique<PqStore>(books_, std::move(book_of_head));
  }

 private:
  static std::string divisors(int d) {
    std::string text;
    for (int m = 1; m <= d; ++m)
      if (d % m == 0) text += fmt::format("{}{}", text.empty() ? "" : ", ", m);
    return text;
  }
  int n_books() const { return n_codebooks(params_.scope, id_.geometry()); }
  std::string tensor_name(int i) const {
    return codebook_name(params_.scope, id_.geometry(), i) + ".codebook";
  }
  std::vector<std::size_t> tensor_shape() const {
    return {static_cast<std::size_t>(params_.M), static_cast<std::size_t>(params_.K()),
            static_cast<std::size_t>(id_.geometry().head_dim / params_.M)};
  }

  CodecIdentity id_;
  PqParams params_;
  KeyFrame frame_;
  std::shared_ptr<const PqCodebooks> books_;
};

constexpr OptionInfo kOptions[] = {
    {"M", "32", "divides head_dim", "subspaces of a row", true},
    {"nbits", "8", "1..12", "bits of a code", true},
    {"scope", "head", "model|layer|head", "which rows share a codebook", true},
    {"rope", "post", "post|pre", "keys are stored after or before RoPE"},
    {"iters", "12", "1..1000", "k-means iterations"},
    {"rows", "65536", "1..16777216", "training rows of one codebook at most"},
    {"seed", "1234", "0..1073741824", "seed of sampling and k-means"},
};

std::unique_ptr<Codec> make_pq(const Options& options, KvKind kind, const KvGeometry& geometry) {
  return std::make_unique<PqCodec>(options, kind, geometry);
}

}  // namespace

CodecInfo pq_codec() {
  return {"pq", "product quantization: M codes of nbits bits per row", "MILLION, arXiv 2504.03661",
          kOptions, make_pq};
}

}  // namespace million
