// SPDX-License-Identifier: Apache-2.0
// Additive vector quantization of whole head rows in the manner of CommVQ [arXiv 2506.18879]: a row
// is its norm times a sum of centroids, one of 64 from each stage, each stage learned on what the
// stages before leave. Keys are stored before RoPE. A rotation of a sum is the sum of the rotated
// centroids, so a key turned to its position equals the sum of turned centroids: the code commutes
// with RoPE without the paper's constraint on the codebook, at the price of one table of scores per
// position instead of one for all.
// Differs: hard greedy residual k-means instead of soft EM, stages of 64 instead of 64 x 64
// centroids, centroids without the 2 x 2 block form, values by the same code instead of a learned
// encoder.
#include "kernels/half.h"
#include "kernels/ops.h"
#include "lib/core/error.h"
#include "lib/core/parallel.h"
#include "lib/core/progress.h"
#include "lib/quant/bitpack.h"
#include "lib/quant/block_array.h"
#include "lib/quant/codebook.h"
#include "lib/quant/codec.h"
#include "lib/quant/codec_identity.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace million {
namespace {

constexpr int kStageBits = 6;
constexpr int kCentroids = 1 << kStageBits;
constexpr int kChunk = 256;  ///< rows that a thread encodes at once
constexpr int kMaxHeadDim = 1024;

/// Codebooks of one kind: [n_books][n_stages][kCentroids][head_dim], a book per (layer, head).
struct StageBooks {
  int n_stages = 0, head_dim = 0;
  AlignedVector<float> centroids;

  size_t stage_size() const { return static_cast<size_t>(kCentroids) * head_dim; }
  size_t book_size() const { return stage_size() * n_stages; }
  const float* stage(int book, int s) const {
    return centroids.data() + book_size() * book + stage_size() * s;
  }
};

uint16_t norm_half(const float* x, int n) {
  double sum = 0.0;
  for (int i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  return float_to_half(static_cast<float>(std::min(std::sqrt(sum), 65504.0)));
}

/// out <- x / norm as a half holds it; returns that half. A zero row stays zero.
uint16_t normalize(const float* x, int d, float* out) {
  const uint16_t half = norm_half(x, d);
  const float norm = half_to_float(half), inverse = norm > 0.0f ? 1.0f / norm : 0.0f;
  for (int i = 0; i < d; ++i) out[i] = x[i] * inverse;
  return half;
}

/// Codes of `rest` [n][d] in one stage; subtracts the chosen centroids. `scratch` [d][kCentroids].
void encode_stage(const float* centroids, int d, int n, float* rest, float* scratch,
                  uint16_t* codes) {
  transpose_centroids(centroids, kCentroids, d, scratch);
  ops().pq_encode(rest, d, n, scratch, kCentroids, d, codes);
  for (int t = 0; t < n; ++t) {
    const float* chosen = centroids + static_cast<int64_t>(codes[t]) * d;
    for (int i = 0; i < d; ++i) rest[int64_t{t} * d + i] -= chosen[i];
  }
}

class CommVqStore final : public CodeStore {
 public:
  CommVqStore(std::shared_ptr<const StageBooks> books, int layer, int n_heads)
      : books_(std::move(books)),
        first_book_(layer * n_heads),
        n_heads_(n_heads),
        row_bytes_(packed_bytes(books_->n_stages, kStageBits)),
        codes_(n_heads * row_bytes_, kTokensPerBlock),
        norms_(n_heads, kTokensPerBlock) {}

  int n_tokens() const override { return static_cast<int>(codes_.size()); }

  void append(const float* x, int n, int64_t /*first_token*/) override {
    const int64_t first = codes_.size();
    codes_.grow(n);
    norms_.grow(n);
    const int64_t n_chunks = (n + kChunk - 1) / kChunk;
    parallel_for(n_chunks * n_heads_, [&](int64_t unit) {
      const int head = static_cast<int>(unit % n_heads_);
      const int64_t begin = unit / n_heads_ * kChunk;
      const int count = static_cast<int>(std::min<int64_t>(kChunk, n - begin));
      encode_chunk(x + begin * n_heads_ * books_->head_dim, first + begin, count, head);
    });
  }

  void decode(int head, int begin, int end, float* out) const override {
    const StageBooks& b = *books_;
    std::vector<uint8_t> codes(b.n_stages);
    for (int t = begin; t < end; ++t, out += b.head_dim) {
      unpack_bits(codes_.at(t) + head * row_bytes_, b.n_stages, kStageBits, codes.data());
      std::fill(out, out + b.head_dim, 0.0f);
      for (int s = 0; s < b.n_stages; ++s)
        ops().add(b.stage(first_book_ + head, s) + static_cast<int64_t>(codes[s]) * b.head_dim, out,
                  b.head_dim);
      const float norm = half_to_float(norms_.at(t)[head]);
      for (int i = 0; i < b.head_dim; ++i) out[i] *= norm;
    }
  }

  StoreBytes bytes() const override { return {codes_.bytes(), norms_.bytes(), 0}; }
  void clear() override { codes_.clear(), norms_.clear(); }
  std::unique_ptr<CodeStore> clone() const override { return std::make_unique<CommVqStore>(*this); }

 private:
  /// x points at the row of the chunk's first token, head 0.
  void encode_chunk(const float* x, int64_t first, int n, int head) {
    const StageBooks& b = *books_;
    const int d = b.head_dim;
    AlignedVector<float> rest(static_cast<size_t>(n) * d), scratch(b.stage_size());
    std::vector<uint16_t> stage_codes(n);
    std::vector<uint8_t> codes(static_cast<size_t>(n) * b.n_stages);
    for (int t = 0; t < n; ++t)
      norms_.at(first + t)[head] =
          normalize(x + (int64_t{t} * n_heads_ + head) * d, d, rest.data() + int64_t{t} * d);
    for (int s = 0; s < b.n_stages; ++s) {
      encode_stage(b.stage(first_book_ + head, s), d, n, rest.data(), scratch.data(),
                   stage_codes.data());
      for (int t = 0; t < n; ++t)
        codes[static_cast<size_t>(t) * b.n_stages + s] = static_cast<uint8_t>(stage_codes[t]);
    }
    for (int t = 0; t < n; ++t)
      pack_bits(codes.data() + static_cast<size_t>(t) * b.n_stages, b.n_stages, kStageBits,
                codes_.at(first + t) + head * row_bytes_);
  }

  std::shared_ptr<const StageBooks> books_;
  int first_book_, n_heads_;
  int64_t row_bytes_;
  BlockArray<uint8_t> codes_;   ///< [n_tokens][n_heads][row_bytes]
  BlockArray<uint16_t> norms_;  ///< [n_tokens][n_heads] f16
};

class CommVqCodec final : public Codec {
 public:
  CommVqCodec(const Options& options, KvKind kind, const KvGeometry& geometry)
      : id_("commvq", options, kind, geometry) {
    const int d = geometry.head_dim;
    MILLION_REQUIRE(d >= kStageBits && d <= kMaxHeadDim, ErrorCode::kBadInput,
                    "codec commvq: head_dim {}: expected {} to {}", d, kStageBits, kMaxHeadDim);
    n_stages_ = static_cast<int>(std::lround(options.real("bits", 1.0, 8.0) * d / kStageBits));
    rows_ = options.integer("rows", kCentroids, 1 << 24);
    iters_ = options.integer("iters", 1, 1000);
    seed_ = static_cast<uint64_t>(options.integer("seed", 0, 1 << 30));
  }

  std::string spec() const override { return id_.spec(); }
  KeyFrame frame() const override { return {KeyFrame::Type::kPreRope, 0}; }
  bool needs_training() const override { return true; }
  void train(const CalibrationSet& data, int sinks) override;
  TensorBag save() const override;
  void load(const TensorBag& bag) override;
  double nominal_bits() const override {
    return static_cast<double>(n_stages_) * kStageBits / id_.geometry().head_dim;
  }
  uint64_t shared_bytes() const override {
    return books_ ? books_->centroids.capacity() * sizeof(float) : 0;
  }
  std::unique_ptr<CodeStore> make_store(int layer) const override {
    MILLION_ASSERT(books_ && layer >= 0 && layer < id_.geometry().n_layers);
    return std::make_unique<CommVqStore>(books_, layer, id_.geometry().n_kv_heads);
  }

 private:
  int n_books() const { return id_.geometry().n_layers * id_.geometry().n_kv_heads; }
  std::string tensor_name(int book) const {
    return codebook_name(CodebookScope::kHead, id_.geometry().n_kv_heads, 1, book) + ".codebook";
  }
  std::vector<std::size_t> tensor_shape() const {
    return {static_cast<std::size_t>(n_stages_), static_cast<std::size_t>(kCentroids),
            static_cast<std::size_t>(id_.geometry().head_dim)};
  }
  StageBooks empty_books() const {
    StageBooks books{n_stages_, id_.geometry().head_dim, {}};
    books.centroids.resize(books.book_size() * n_books());
    return books;
  }
  AlignedVector<float> training_rows(const CalibrationSet& data, int book, int sinks) const;

  CodecIdentity id_;
  int n_stages_ = 0, rows_ = 0, iters_ = 0;
  uint64_t seed_ = 0;
  std::shared_ptr<const StageBooks> books_;
};

/// At most `rows` normalized rows of one (layer, head), evenly spread over the calibration text.
AlignedVector<float> CommVqCodec::training_rows(const CalibrationSet& data, int book,
                                                int sinks) const {
  const KvGeometry& g = id_.geometry();
  const int d = g.head_dim;
  const auto all =
      calibration_rows(data, id_.kind(), book / g.n_kv_heads, book % g.n_kv_heads, frame(), sinks);
  const int64_t total = static_cast<int64_t>(all.size()) / d, n = std::min<int64_t>(total, rows_);
  MILLION_REQUIRE(n >= kCentroids, ErrorCode::kBadInput,
                  "{}: {} calibration rows beyond the sinks, needs at least {}; give a longer "
                  "calibration text",
                  id_.spec(), n, kCentroids);
  AlignedVector<float> rows(static_cast<size_t>(n) * d);
  for (int64_t i = 0; i < n; ++i) normalize(all.data() + i * total / n * d, d, rows.data() + i * d);
  return rows;
}

void CommVqCodec::train(const CalibrationSet& data, int sinks) {
  id_.trained_on(data, sinks);
  const int d = id_.geometry().head_dim;
  auto books = std::make_shared<StageBooks>(empty_books());
  parallel_for(n_books(), [&](int64_t book) {
    check_interrupted();
    AlignedVector<float> rest = training_rows(data, static_cast<int>(book), sinks);
    AlignedVector<float> scratch(books->stage_size());
    const int n = static_cast<int>(rest.size() / d);
    std::vector<uint16_t> codes(n);
    for (int s = 0; s < n_stages_; ++s) {
      float* stage = books->centroids.data() + books->book_size() * book + books->stage_size() * s;
      train_kmeans(rest.data(), n, d, kCentroids, iters_, seed_ + s, stage);
      encode_stage(stage, d, n, rest.data(), scratch.data(), codes.data());
    }
  });
  books_ = std::move(books);
}

TensorBag CommVqCodec::save() const {
  TensorBag bag{{}, id_.attributes()};
  for (int i = 0; books_ && i < n_books(); ++i)
    bag.tensors[tensor_name(i)] = {
        tensor_shape(), {books_->stage(i, 0), books_->stage(i, 0) + books_->book_size()}};
  return bag;
}

void CommVqCodec::load(const TensorBag& bag) {
  id_.loaded_from(bag);
  auto books = std::make_shared<StageBooks>(empty_books());
  for (int i = 0; i < n_books(); ++i) {
    const NamedTensor& tensor = require_tensor(bag, tensor_name(i), tensor_shape());
    std::copy(tensor.data.begin(), tensor.data.end(),
              books->centroids.begin() + static_cast<int64_t>(books->book_size()) * i);
  }
  books_ = std::move(books);
}

constexpr OptionInfo kOptions[] = {
    {"bits", "2", "1..8", "bits per value, rounded to whole stages of 6 bits a row", true},
    {"rows", "4096", "64..16777216", "training rows of one codebook at most"},
    {"iters", "8", "1..1000", "k-means iterations of a stage"},
    {"seed", "1234", "0..1073741824", "seed of k-means"},
};

std::unique_ptr<Codec> make_commvq(const Options& options, KvKind kind,
                                   const KvGeometry& geometry) {
  return std::make_unique<CommVqCodec>(options, kind, geometry);
}

}  // namespace

CodecInfo commvq_codec() {
  return {"commvq", "norm and a sum of centroids, 6-bit stages over the whole head row",
          "CommVQ, arXiv 2506.18879", kOptions, make_commvq};
}

}  // namespace million
