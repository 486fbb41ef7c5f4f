// SPDX-License-Identifier: Apache-2.0
// FAISS runs Lloyd's algorithm (initialization, centroid update, splitting of empty cells); the
// assignment, nearly all of the time, goes to our own encoder: subvectors of 1 to 16 values are far
// below what FAISS's matrix-product search is made for.
#include "lib/quant/codebook.h"

#include "kernels/ops.h"
#include "lib/core/error.h"
#include "lib/core/parallel.h"
#include "lib/core/progress.h"
#include "lib/core/rng.h"

#include <faiss/Clustering.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

namespace million {
namespace {

/// FAISS warns below this many rows per centroid: cells then follow single rows.
constexpr int64_t kRowsPerCentroid = 39;

/// Exhaustive search over a few short centroids with the encoder that later writes the codes, so
/// that training and encoding agree on the nearest centroid and on ties.
class EncoderIndex final : public faiss::Index {
 public:
  explicit EncoderIndex(int dsub) : faiss::Index(dsub) {}

  void add(idx_t n, const float* x) override {
    MILLION_ASSERT(ntotal == 0);
    ntotal = n;
    centroids_.assign(x, x + n * d);
    transposed_.resize(centroids_.size());
    transpose_centroids(x, static_cast<int>(n), d, transposed_.data());
  }

  void reset() override { ntotal = 0; }

  void search(idx_t n, const float* x, idx_t k, float* distances, idx_t* labels,
              const faiss::SearchParameters* /*params*/) const override {
    MILLION_ASSERT(k == 1);
    constexpr idx_t kChunk = 1024;
    uint16_t codes[kChunk];
    for (idx_t begin = 0; begin < n; begin += kChunk) {
      const idx_t count = std::min(kChunk, n - begin);
      ops().pq_encode(x + begin * d, d, static_cast<int>(count), transposed_.data(),
                      static_cast<int>(ntotal), d, codes);
      for (idx_t i = 0; i < count; ++i) {
        labels[begin + i] = codes[i];
        distances[begin + i] = distance(x + (begin + i) * d, centroids_.data() + codes[i] * d);
      }
    }
  }

 private:
  float distance(const float* a, const float* b) const {
    float sum = 0.0f;
    for (int i = 0; i < d; ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
    return sum;
  }

  AlignedVector<float> centroids_, transposed_;
};

/// One unit of heads whose rows a codebook learns from.
struct Stream {
  int layer, unit;
};

/// Calls f for `take` of the given rows in their order: selection sampling (Knuth 3.4.2, S).
template <class F>
void sample_rows(const std::vector<int64_t>& rows, int64_t take, Rng rng, const F& f) {
  const int64_t n = static_cast<int64_t>(rows.size());
  for (int64_t i = 0, left = take; i < n && left > 0; ++i) {
    if (static_cast<int64_t>(rng.below(n - i)) >= left) continue;
    f(rows[i]);
    --left;
  }
}

/// Rows a codebook may learn from: tokens behind the sinks, and with gradients where they count.
std::vector<int64_t> usable_rows(const CalibrationSet& data, int sinks, bool with_gradients) {
  std::vector<int64_t> rows;
  const auto tokens = calibration_tokens(data, sinks);
  for (size_t i = 0; i < tokens.size(); ++i)
    if (!with_gradients || tokens[i] < data.n_grad_tokens) rows.push_back(static_cast<int64_t>(i));
  return rows;
}

/// Training rows of one codebook in the codes' coordinates, and the gradients of the same values.
struct TrainRows {
  int64_t n = 0;
  AlignedVector<float> x;          ///< [n][rank]
  AlignedVector<float> gradient2;  ///< [n][w], or empty
};

struct TrainJob {
  const CalibrationSet& data;
  KvKind kind;
  KeyFrame frame;
  int sinks;
  PqParams params;
  std::vector<int64_t> usable;  ///< rows of each unit
  std::vector<PqBasis> bases = {};

  int rank() const { return params.basis.rank; }
  int span() const { return params.basis.span; }
  int units() const { return data.geometry.n_kv_heads / span(); }
  int width() const { return span() * data.geometry.head_dim; }
  int n_books() const { return n_codebooks(params.scope, data.geometry.n_layers, units()); }
  int64_t rows(int64_t n_streams) const {
    return std::min<int64_t>(params.max_rows, static_cast<int64_t>(usable.size()) * n_streams);
  }
  void train_bases();
  TrainRows gather(int index) const;
  void add_rows(const Stream& stream, int64_t begin, int64_t end, TrainRows* rows) const;
  PqBook train(int index) const;
};

void TrainJob::train_bases() {
  if (params.basis.identity() && rank() == width()) return;
  bases.resize(static_cast<size_t>(data.geometry.n_layers) * units());
  parallel_for(static_cast<int64_t>(bases.size()), [&](int64_t i) {
    check_interrupted();
    const int layer = static_cast<int>(i / units()), unit = static_cast<int>(i % units());
    const PqShape& shape = params.layers[layer];
    if (shape.exact()) return;
    PqBasisParams p = params.basis;
    p.M = shape.M * span();
    p.nbits = shape.nbits;
    bases[i] = train_basis(data, kind, layer, unit, frame, sinks, p);
  });
}

/// Copies an equal share of one stream's rows to places [begin, end) of `rows`.
void TrainJob::add_rows(const Stream& stream, int64_t begin, int64_t end, TrainRows* rows) const {
  const int w = width();
  const int64_t id = static_cast<int64_t>(stream.layer) * units() + stream.unit;
  const auto all = unit_rows(data, kind, stream.layer, stream.unit, span(), frame, sinks,
                             params.basis.centre, nullptr);
  AlignedVector<float> encode;
  if (!bases.empty()) bases[id].encode.expand(false, &encode);
  const auto tokens = calibration_tokens(data, sinks);
  const auto& gradients = kind == KvKind::kKey ? data.k_grad2 : data.v_grad2;
  sample_rows(usable, end - begin, Rng(params.seed, id), [&](int64_t row) {
    float* to = rows->x.data() + begin * rank();
    if (encode.empty())
      std::memcpy(to, all.data() + row * w, sizeof(float) * w);
    else
      ops().multiply_rows(all.data() + row * w, 1, w, rank(), encode.data(), to);
    if (!rows->gradient2.empty())
      std::copy_n(gradients[stream.layer].data() + tokens[row] * data.geometry.row() +
                      static_cast<int64_t>(stream.unit) * w,
                  w, rows->gradient2.data() + begin * w);
    ++begin;
  });
}

TrainRows TrainJob::gather(int index) const {
  std::vector<Stream> streams;
  for (int l = 0; l < data.geometry.n_layers; ++l)
    for (int u = 0; u < units(); ++u)
      if (codebook_index(params.scope, units(), l, u) == index) streams.push_back({l, u});
  const auto n_streams = static_cast<int64_t>(streams.size());
  TrainRows out;
  out.n = rows(n_streams);
  out.x.resize(static_cast<size_t>(out.n) * rank());
  if (params.fisher_weights) out.gradient2.resize(static_cast<size_t>(out.n) * width());
  parallel_for(n_streams, [&](int64_t s) {
    add_rows(streams[s], out.n * s / n_streams, out.n * (s + 1) / n_streams, &out);
  });
  return out;
}

PqBook TrainJob::train(int index) const {
  check_interrupted();
  PqShape shape = params.layers[codebook_layer(params.scope, units(), index)];
  PqBook book;
  book.shape = shape;
  if (shape.exact()) return book;
  book.shape.M = shape.M *= span();
  book.dsub = rank() / shape.M;
  AlignedVector<float> all(book.size());
  const TrainRows rows = gather(index);
  const int dsub = book.dsub;
  parallel_for(shape.M, [&](int64_t m) {
    AlignedVector<float> part(static_cast<size_t>(rows.n) * dsub);
    AlignedVector<float> weights(rows.gradient2.empty() ? 0 : static_cast<size_t>(rows.n));
    for (int64_t i = 0; i < rows.n; ++i) {
      std::memcpy(part.data() + i * dsub, rows.x.data() + i * rank() + m * dsub,
                  sizeof(float) * dsub);
      for (int j = 0; !weights.empty() && j < dsub; ++j)
        weights[i] += rows.gradient2[i * width() + m * dsub + j];
    }
    // FAISS splits a large cell where one is empty and takes cells for counts of rows: weights far
    // below 1, as squared gradients are, would let it search without end.
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    for (float& x : weights)
      x = sum > 0.0 ? static_cast<float>(x * static_cast<double>(rows.n) / sum) : 1.0f;
    train_kmeans(part.data(), rows.n, dsub, shape.K(), params.iters, params.seed + m,
                 all.data() + m * book.subspace(), false,
                 weights.empty() ? nullptr : weights.data());
  });
  book.set(all.data(), !bases.empty());
  return book;
}

template <int kDsub>
void transpose(const float* __restrict centroids, int K, int dsub, float* __restrict out) {
  const int width = kDsub > 0 ? kDsub : dsub;
  for (int c = 0; c < K; ++c)
    for (int i = 0; i < width; ++i) out[static_cast<int64_t>(i) * K + c] = centroids[c * width + i];
}

}  // namespace

int n_codebooks(CodebookScope scope, int n_layers, int units) {
  return scope == CodebookScope::kModel   ? 1
         : scope == CodebookScope::kLayer ? n_layers
                                          : n_layers * units;
}

int codebook_index(CodebookScope scope, int units, int layer, int unit) {
  return scope == CodebookScope::kModel   ? 0
         : scope == CodebookScope::kLayer ? layer
                                          : layer * units + unit;
}

int codebook_layer(CodebookScope scope, int units, int index) {
  return scope == CodebookScope::kModel   ? 0
         : scope == CodebookScope::kLayer ? index
                                          : index / units;
}

std::string codebook_name(CodebookScope scope, int units, int span, int index) {
  if (scope == CodebookScope::kModel) return "model";
  if (scope == CodebookScope::kLayer) return fmt::format("L{:02}", index);
  return fmt::format("L{:02}.H{}", index / units, index % units * span);
}

void PqBook::set(const float* centroids, bool as_bytes) {
  if (!as_bytes) {
    halves.resize(size());
    ops().f32_to_f16(centroids, halves.data(), size());
    return;
  }
  bytes.resize(size());
  scale.resize(static_cast<size_t>(shape.M) * dsub);
  for (int m = 0; m < shape.M; ++m)
    for (int j = 0; j < dsub; ++j) {
      const float* column = centroids + m * subspace() + j;
      float top = 0.0f;
      for (int c = 0; c < shape.K(); ++c) top = std::max(top, std::abs(column[c * dsub]));
      const float step = scale[m * dsub + j] = top / 127.0f;
      for (int c = 0; c < shape.K() && step > 0.0f; ++c)
        bytes[m * subspace() + j * shape.K() + c] =
            static_cast<int8_t>(std::lrint(column[c * dsub] / step));
    }
}

void PqBook::expand(int first, int n, float* out) const {
  const std::size_t begin = first * subspace();
  if (bytes.empty()) {
    ops().f16_to_f32(halves.data() + begin, out, n * subspace());
    return;
  }
  for (int m = first; m < first + n; ++m)
    for (int c = 0; c < shape.K(); ++c)
      for (int j = 0; j < dsub; ++j)
        *out++ = scale[m * dsub + j] * bytes[m * subspace() + j * shape.K() + c];
}

uint64_t PqTables::bytes() const {
  uint64_t bytes = 0;
  for (const PqBook& book : books) bytes += book.allocated();
  for (const PqBasis& basis : bases) bytes += basis.bytes();
  return bytes;
}

PqTables train_tables(const CalibrationSet& data, KvKind kind, const KeyFrame& frame, int sinks,
                      const PqParams& params) {
  MILLION_REQUIRE(!params.fisher_weights || data.n_grad_tokens > 0, ErrorCode::kBadInput,
                  "pq: weights=fisher needs gradients and the calibration has none; calibrate with "
                  "gradient windows");
  TrainJob job{data, kind, frame, sinks, params, usable_rows(data, sinks, params.fisher_weights)};
  const int n_books = job.n_books();
  const int64_t n_streams = static_cast<int64_t>(data.geometry.n_layers) * job.units() / n_books;
  const int64_t rows = job.rows(n_streams);
  int64_t K = 1;
  for (const PqShape& shape : params.layers)
    if (!shape.exact()) K = std::max<int64_t>(K, shape.K());
  MILLION_REQUIRE(rows >= K, ErrorCode::kBadInput,
                  "pq: a codebook of {} centroids has {} training rows, needs at least {}: give at "
                  "least {} calibration tokens beyond the sinks, more 'rows', or a wider scope",
                  K, rows, K, (K + n_streams - 1) / n_streams);
  if (rows < kRowsPerCentroid * K)
    spdlog::warn("pq: {} training rows for {} centroids ({}); {} or more train well", rows, K,
                 kind == KvKind::kKey ? "keys" : "values", kRowsPerCentroid * K);
  job.train_bases();
  PqTables tables;
  tables.books.resize(n_books);
  parallel_for(n_books, [&](int64_t i) { tables.books[i] = job.train(static_cast<int>(i)); });
  tables.bases = std::move(job.bases);
  tables.metric = params.basis.metric;
  return tables;
}

void train_kmeans(const float* x, int64_t n, int dsub, int K, int iters, uint64_t seed,
                  float* centroids, bool warm, const float* weights) {
  faiss::Clustering kmeans(dsub, K);
  kmeans.niter = iters;
  kmeans.seed = static_cast<int>(seed & 0x7FFFFFFF);
  kmeans.min_points_per_centroid = 1;  // too few rows are reported once, by the caller
  kmeans.max_points_per_centroid = std::numeric_limits<int>::max();
  if (warm) kmeans.centroids.assign(centroids, centroids + static_cast<int64_t>(K) * dsub);
  EncoderIndex index(dsub);
  kmeans.train(n, x, index, weights);
  std::copy(kmeans.centroids.begin(), kmeans.centroids.end(), centroids);
}
void transpose_centroids(const float* centroids, int K, int dsub, float* out) {
  switch (
      dsub) {  // a constant width lets the compiler de-interleave with shuffles: 3-5 times faster
    case 1:
      return transpose<1>(centroids, K, dsub, out);
    case 2:
      return transpose<2>(centroids, K, dsub, out);
    case 4:
      return transpose<4>(centroids, K, dsub, out);
    case 8:
      return transpose<8>(centroids, K, dsub, out);
    default:
      return transpose<0>(centroids, K, dsub, out);
  }
}

}  // namespace million
