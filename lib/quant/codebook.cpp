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
#include <cstring>
#include <limits>

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

/// One (layer, head) whose rows a codebook learns from.
struct Stream {
  int layer, head;
};

std::vector<Stream> streams_of(CodebookScope scope, const KvGeometry& g, int index) {
  std::vector<Stream> streams;
  for (int l = 0; l < g.n_layers; ++l)
    for (int h = 0; h < g.n_kv_heads; ++h)
      if (codebook_index(scope, g, l, h) == index) streams.push_back({l, h});
  return streams;
}

/// Copies `take` of the n rows to `out` in their order: selection sampling (Knuth 3.4.2, S).
void sample_rows(const float* rows, int64_t n, int64_t take, int d, Rng rng, float* out) {
  for (int64_t i = 0, left = take; i < n && left > 0; ++i) {
    if (static_cast<int64_t>(rng.below(n - i)) >= left) continue;
    std::memcpy(out, rows + i * d, sizeof(float) * d);
    out += d;
    --left;
  }
}

int64_t rows_per_stream(const CalibrationSet& data, int sinks) {
  int64_t n = 0;
  for (int64_t t = 0; t < data.n_tokens; ++t) n += data.position(t) >= sinks;
  return n;
}

struct TrainJob {
  const CalibrationSet& data;
  KvKind kind;
  KeyFrame frame;
  int sinks;
  PqParams params;
  int64_t stream_rows;  ///< rows of each (layer, head)

  int64_t rows(int64_t n_streams) const {
    return std::min<int64_t>(params.max_rows, stream_rows * n_streams);
  }
  AlignedVector<float> gather(int index) const;
  void train(int index, float* book) const;
};

/// Training rows of one codebook, [rows][head_dim].
AlignedVector<float> TrainJob::gather(int index) const {
  const KvGeometry& g = data.geometry;
  const std::vector<Stream> streams = streams_of(params.scope, g, index);
  const int64_t n_streams = static_cast<int64_t>(streams.size()), total = rows(n_streams);
  AlignedVector<float> x(static_cast<size_t>(total) * g.head_dim);
  parallel_for(n_streams, [&](int64_t s) {
    const Stream& stream = streams[s];
    const auto all = calibration_rows(data, kind, stream.layer, stream.head, frame, sinks);
    const int64_t begin = total * s / n_streams, end = total * (s + 1) / n_streams;
    const uint64_t id = static_cast<uint64_t>(stream.layer) * g.n_kv_heads + stream.head;
    sample_rows(all.data(), stream_rows, end - begin, g.head_dim, Rng(params.seed, id),
                x.data() + begin * g.head_dim);
  });
  return x;
}

void TrainJob::train(int index, float* book) const {
  check_interrupted();
  const AlignedVector<float> x = gather(index);
  const int d = data.geometry.head_dim, dsub = d / params.M;
  const int64_t n = static_cast<int64_t>(x.size()) / d;
  parallel_for(params.M, [&](int64_t m) {
    AlignedVector<float> part(static_cast<size_t>(n) * dsub);
    for (int64_t i = 0; i < n; ++i)
      std::memcpy(part.data() + i * dsub, x.data() + i * d + m * dsub, sizeof(float) * dsub);
    train_kmeans(part.data(), n, dsub, params.K(), params.iters, params.seed + m,
                 book + m * params.K() * dsub);
  });
}

template <int kDsub>
void transpose(const float* __restrict centroids, int K, int dsub, float* __restrict out) {
  const int width = kDsub > 0 ? kDsub : dsub;
  for (int c = 0; c < K; ++c)
    for (int i = 0; i < width; ++i) out[static_cast<int64_t>(i) * K + c] = centroids[c * width + i];
}

}  // namespace

int n_codebooks(CodebookScope scope, const KvGeometry& g) {
  switch (scope) {
    case CodebookScope::kModel:
      return 1;
    case CodebookScope::kLayer:
      return g.n_layers;
    case CodebookScope::kHead:
      return g.n_layers * g.n_kv_heads;
  }
  return 0;
}

int codebook_index(CodebookScope scope, const KvGeometry& g, int layer, int head) {
  switch (scope) {
    case CodebookScope::kModel:
      return 0;
    case CodebookScope::kLayer:
      return layer;
    case CodebookScope::kHead:
      return layer * g.n_kv_heads + head;
  }
  return 0;
}

std::string codebook_name(CodebookScope scope, const KvGeometry& g, int index) {
  switch (scope) {
    case CodebookScope::kModel:
      return "model";
    case CodebookScope::kLayer:
      return fmt::format("L{:02}", index);
    case CodebookScope::kHead:
      return fmt::format("L{:02}.H{}", index / g.n_kv_heads, index % g.n_kv_heads);
  }
  return "";
}

PqCodebooks train_codebooks(const CalibrationSet& data, KvKind kind, const KeyFrame& frame,
                            int sinks, const PqParams& params) {
  const KvGeometry& g = data.geometry;
  const int n_books = n_codebooks(params.scope, g);
  const TrainJob job{data, kind, frame, sinks, params, rows_per_stream(data, sinks)};
  const int64_t n_streams = static_cast<int64_t>(g.n_layers) * g.n_kv_heads / n_books;
  const int64_t rows = job.rows(n_streams), K = params.K();
  MILLION_REQUIRE(rows >= K, ErrorCode::kBadInput,
                  "pq: a codebook of {} centroids has {} training rows, needs at least {}: give at "
                  "least {} calibration tokens beyond the sinks, more 'rows', or a wider scope",
                  K, rows, K, (K + n_streams - 1) / n_streams);
  if (rows < kRowsPerCentroid * K)
    spdlog::warn("pq: {} training rows for {} centroids ({}); {} or more train well", rows, K,
                 kind == KvKind::kKey ? "keys" : "values", kRowsPerCentroid * K);

  PqCodebooks books{params.M, params.nbits, g.head_dim, {}};
  books.centroids.resize(books.book_size() * n_books);
  parallel_for(n_books, [&](int64_t i) {
    job.train(static_cast<int>(i), books.centroids.data() + books.book_size() * i);
  });
  return books;
}

void train_kmeans(const float* x, int64_t n, int dsub, int K, int iters, uint64_t seed,
                  float* centroids) {
  faiss::Clustering kmeans(dsub, K);
  kmeans.niter = iters;
  kmeans.seed = static_cast<int>(seed & 0x7FFFFFFF);
  kmeans.min_points_per_centroid = 1;  // too few rows are reported once, by the caller
  kmeans.max_points_per_centroid = std::numeric_limits<int>::max();
  EncoderIndex index(dsub);
  kmeans.train(n, x, index);
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
