// SPDX-License-Identifier: Apache-2.0
// K-means training of product-quantization codebooks. FAISS is included in codebook.cpp only.
#pragma once

#include "lib/core/tensor.h"
#include "lib/quant/calibration.h"
#include "lib/quant/pq_basis.h"

#include <cstdint>
#include <string>
#include <vector>

namespace million {

/// Which rows share a codebook: all of the model, those of a layer, those of a KV head.
enum class CodebookScope { kModel, kLayer, kHead };

/// Codes of one layer. M = 0: the layer is kept as exact halves.
struct PqShape {
  int M = 32;     ///< subspaces of a KV head; divides the rank of a head
  int nbits = 8;  ///< bits of a code
  int K() const { return 1 << nbits; }
  bool exact() const { return M == 0; }
  friend bool operator==(const PqShape&, const PqShape&) = default;
};

struct PqParams {
  std::vector<PqShape> layers;  ///< [n_layers]
  CodebookScope scope = CodebookScope::kHead;
  PqBasisParams basis;          ///< M and nbits of it are set from the layer, rank is a unit's
  bool fisher_weights = false;  ///< rows weigh as much as their squared gradients [CQ]
  int iters = 12;               ///< Lloyd iterations
  int max_rows = 65536;         ///< training rows of one codebook; more are subsampled
  uint64_t seed = 1234;
};

/// Codebook of a layer or unit of heads as it is stored: centroids as halves [M][K][dsub] where
/// rows are coded as they are, else as signed bytes [M][dsub][K] (the tables of attend_coded) with
/// a scale for each of the rank axes (rounding them adds 1e-4 of an axis' variance, below a
/// hundredth of what 4 bits lose).
struct PqBook {
  PqShape shape;  ///< M counts the unit's subspaces
  int dsub = 0;
  AlignedVector<uint16_t> halves;
  AlignedVector<int8_t> bytes;
  std::vector<float> scale;  ///< [M * dsub], with bytes

  std::size_t subspace() const { return static_cast<std::size_t>(shape.K()) * dsub; }
  std::size_t size() const { return subspace() * shape.M; }
  void set(const float* centroids, bool as_bytes);
  /// Centroids of subspaces [first, first + n) as f32 [n][K][dsub].
  void expand(int first, int n, float* out) const;
  uint64_t allocated() const {
    return halves.capacity() * sizeof(uint16_t) + bytes.capacity() +
           scale.capacity() * sizeof(float);
  }
};

/// Everything of one kind that the whole model shares.
struct PqTables {
  std::vector<PqBook> books;          ///< [n_codebooks]; no centroids where the layer is exact
  std::vector<PqBasis> bases;         ///< [n_layers * units of a layer], or empty: rows as they are
  PqMetric metric = PqMetric::kNone;  ///< of the bases
  uint64_t bytes() const;
};

/// Number of codebooks that `scope` asks for with `units` units of heads in a layer, and the one
/// that a layer and unit use.
int n_codebooks(CodebookScope scope, int n_layers, int units);
int codebook_index(CodebookScope scope, int units, int layer, int unit);
/// First layer of a codebook: all its layers have the same shape.
int codebook_layer(CodebookScope scope, int units, int index);
/// Name of a codebook in files: "model", "L00", "L00.H0" (the unit's first head).
std::string codebook_name(CodebookScope scope, int units, int span, int index);

/// Trains bases and codebooks of one kind. Rows are keys in `frame` (or values), sinks left out; a
/// codebook with more than max_rows rows takes an equal random share of each (layer, head).
/// Bit-identical for equal input whatever the thread count.
/// Error(kBadInput) when a codebook has fewer rows than K; one warning when fewer than 39 K.
/// Cost      O(iters * rows * K * head_dim) per codebook; parallel over codebooks or subspaces.
/// Source    Jegou et al., "Product quantization", 2011; FAISS Clustering.
///           Differs from MILLION's code: codebooks per head by default, sampling seeded.
PqTables train_tables(const CalibrationSet& data, KvKind kind, const KeyFrame& frame, int sinks,
                      const PqParams& params);

/// K-means of x [n][dsub]; writes centroids [K][dsub]. n >= K. Seeded, single-threaded result.
/// `warm`: centroids hold the start. `weights` [n] of the rows, or nullptr.
void train_kmeans(const float* x, int64_t n, int dsub, int K, int iters, uint64_t seed,
                  float* centroids, bool warm = false, const float* weights = nullptr);

/// [K][dsub] -> [dsub][K], the order that pq_encode reads.
void transpose_centroids(const float* centroids, int K, int dsub, float* out);

}  // namespace million
