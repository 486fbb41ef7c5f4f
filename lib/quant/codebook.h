// SPDX-License-Identifier: Apache-2.0
// K-means training of product-quantization codebooks. FAISS is included in codebook.cpp only.
#pragma once

#include "lib/core/tensor.h"
#include "lib/quant/calibration.h"

#include <cstdint>
#include <string>
#include <vector>

namespace million {

/// Which rows share a codebook: all of the model, those of a layer, those of a KV head.
enum class CodebookScope { kModel, kLayer, kHead };

struct PqParams {
  int M = 32;     ///< subspaces; divides head_dim
  int nbits = 8;  ///< bits of a code
  CodebookScope scope = CodebookScope::kHead;
  int iters = 12;        ///< Lloyd iterations
  int max_rows = 65536;  ///< training rows of one codebook; more are subsampled
  uint64_t seed = 1234;

  int K() const { return 1 << nbits; }
};

/// Codebooks of one kind for the whole model.
struct PqCodebooks {
  int M = 0, nbits = 0, head_dim = 0;
  /// [n_codebooks][M][K][dsub]; one codebook holds K * head_dim values.
  AlignedVector<float> centroids;

  int K() const { return 1 << nbits; }
  int dsub() const { return head_dim / M; }
  std::size_t book_size() const { return static_cast<std::size_t>(K()) * head_dim; }
  const float* book(int i) const { return centroids.data() + book_size() * i; }
};

/// Number of codebooks that `scope` asks for, and the one that a layer and head use.
int n_codebooks(CodebookScope scope, const KvGeometry& geometry);
int codebook_index(CodebookScope scope, const KvGeometry& geometry, int layer, int head);
/// Name of a codebook in files: "model", "L00", "L00.H0".
std::string codebook_name(CodebookScope scope, const KvGeometry& geometry, int index);

/// Trains all codebooks of one kind. Rows are keys in `frame` (or values), sinks left out; a
/// codebook with more than max_rows rows takes an equal random share of each (layer, head).
/// Bit-identical for equal input whatever the thread count.
/// Error(kBadInput) when a codebook has fewer rows than K; one warning when fewer than 39 K.
/// Cost      O(iters * rows * K * head_dim) per codebook; parallel over codebooks or subspaces.
/// Source    Jegou et al., "Product quantization", 2011; FAISS Clustering.
///           Differs from MILLION's code: codebooks per head by default, sampling seeded.
PqCodebooks train_codebooks(const CalibrationSet& data, KvKind kind, const KeyFrame& frame,
                            int sinks, const PqParams& params);

/// K-means of x [n][dsub]; writes centroids [K][dsub]. n >= K. Seeded, single-threaded result.
void train_kmeans(const float* x, int64_t n, int dsub, int K, int iters, uint64_t seed,
                  float* centroids);

/// [K][dsub] -> [dsub][K], the order that pq_encode reads.
void transpose_centroids(const float* centroids, int K, int dsub, float* out);

}  // namespace million
