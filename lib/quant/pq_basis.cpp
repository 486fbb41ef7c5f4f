// SPDX-License-Identifier: Apache-2.0
#include "lib/quant/pq_basis.h"

#include "kernels/ops.h"
#include "lib/core/error.h"
#include "lib/quant/codebook.h"

#include <Eigen/Dense>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace million {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Vector = Eigen::VectorXd;

/// Share of the Fisher matrix's trace that is spread over all directions: a few thousand gradients
/// leave its small eigenvalues to chance.
constexpr double kFisherShrink = 0.2;
/// Axes whose variance is below this share of the largest are numerically absent.
constexpr double kRankTolerance = 1e-10;
/// Rounds of kOpq and k-means steps in each; more moved the error by less than 1 % on the default
/// model.
constexpr int kOpqRounds = 10;
constexpr int kOpqSteps = 2;
/// Rows of the rounds, spread evenly over the calibration text.
constexpr int64_t kOpqRows = 8192;
/// Positions at which a rotating metric is averaged when the frame has no period of its own.
constexpr int kMetricPositions = 64;

/// Channels of a unit that RoPE turns by one angle, pair by pair of rising number: the pair's
/// channels in every head; then the channels that it leaves alone.
std::vector<std::vector<int>> rope_pairs(const KvGeometry& g, int span) {
  std::vector<std::vector<int>> pairs;
  const int n = g.rope.params().n_rot / 2;
  const bool adjacent = g.rope.params().pairs == RopePairs::kAdjacent;
  const auto add = [&](std::vector<int> channels) {
    pairs.emplace_back();
    for (int h = 0; h < span; ++h)
      for (const int c : channels) pairs.back().push_back(h * g.head_dim + c);
  };
  for (int i = 0; i < n; ++i) add(adjacent ? std::vector{2 * i, 2 * i + 1} : std::vector{i, i + n});
  for (int c = 2 * n; c < g.head_dim; ++c) add({c});
  return pairs;
}

/// Positions over which the frame moves, for averages.
std::vector<int64_t> frame_positions(const CalibrationSet& data, const KeyFrame& frame) {
  std::vector<int64_t> positions;
  const int64_t span = frame.type == KeyFrame::Type::kPreRope ? 1
                       : frame.type == KeyFrame::Type::kBlock ? frame.block
                                                              : data.covered();
  const int64_t n = std::min<int64_t>(span, kMetricPositions);
  for (int64_t i = 0; i < n; ++i) positions.push_back(i * span / n);
  return positions;
}

/// Mean of R(f) F R(f)^T over the positions of the frame.
Matrix rotated_mean(const Matrix& fisher, const CalibrationSet& data, const KeyFrame& frame) {
  const int d = static_cast<int>(fisher.rows());
  Matrix sum = Matrix::Zero(d, d);
  const auto positions = frame_positions(data, frame);
  for (const int64_t f : positions) {
    Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> m = fisher.cast<float>();
    for (int side = 0; side < 2; ++side) {  // R (R F^T)^T
      data.geometry.rope.move(m.data(), d, d, f);
      m.transposeInPlace();
    }
    sum += m.cast<double>();
  }
  return sum / static_cast<double>(positions.size());
}

Matrix query_metric(const CalibrationSet& data, int layer, int head) {
  const KvGeometry& g = data.geometry;
  Matrix metric = Matrix::Zero(g.head_dim, g.head_dim);
  const float* moment = data.q_second_moment[layer].data() + head * g.head_dim;
  for (const auto& pair : rope_pairs(g, 1)) {
    double mean = 0.0;
    for (const int c : pair) mean += moment[c] / static_cast<double>(pair.size());
    for (const int c : pair) metric(c, c) = mean;
  }
  return metric;
}

Matrix fisher_metric(const CalibrationSet& data, KvKind kind, int layer, int head,
                     const KeyFrame& frame) {
  const int d = data.geometry.head_dim;
  const auto& all = kind == KvKind::kKey ? data.k_fisher : data.v_fisher;
  const float* from = all[layer].data() + static_cast<int64_t>(head) * d * d;
  Matrix fisher(d, d);
  for (int i = 0; i < d * d; ++i) fisher.data()[i] = from[i];
  if (kind == KvKind::kKey) fisher = rotated_mean(fisher, data, frame);
  const double level = fisher.trace() / d;
  return (1.0 - kFisherShrink) * fisher + kFisherShrink * level * Matrix::Identity(d, d);
}

/// Square root and inverse square root of a symmetric positive matrix.
struct Roots {
  Matrix root, inverse;
};

void require_metric(const CalibrationSet& data, KvKind kind, const PqBasisParams& p) {
  const bool fisher = p.metric == PqMetric::kFisher;
  MILLION_REQUIRE(!fisher || !(kind == KvKind::kKey ? data.k_fisher : data.v_fisher).empty(),
                  ErrorCode::kBadInput,
                  "pq: metric=fisher needs gradients and the calibration has none; calibrate with "
                  "gradient windows or use metric=q");
  MILLION_REQUIRE(fisher || !data.q_second_moment.empty(), ErrorCode::kBadInput,
                  "pq: metric=q needs query statistics and the calibration has none; calibrate "
                  "from the model or from a dump with queries");
}

/// Metric of a unit: those of its heads on the diagonal.
Matrix unit_metric(const CalibrationSet& data, KvKind kind, int layer, int unit,
                   const KeyFrame& frame, const PqBasisParams& p) {
  const int d = data.geometry.head_dim;
  Matrix metric = Matrix::Zero(p.span * d, p.span * d);
  for (int h = 0; h < p.span; ++h) {
    const int head = unit * p.span + h;
    metric.block(h * d, h * d, d, d) = p.metric == PqMetric::kFisher
                                           ? fisher_metric(data, kind, layer, head, frame)
                                           : query_metric(data, layer, head);
  }
  return metric;
}

Roots metric_roots(const CalibrationSet& data, KvKind kind, int layer, int unit,
                   const KeyFrame& frame, const PqBasisParams& p) {
  const int w = p.span * data.geometry.head_dim;
  if (p.metric == PqMetric::kNone) return {Matrix::Identity(w, w), Matrix::Identity(w, w)};
  require_metric(data, kind, p);
  const Eigen::SelfAdjointEigenSolver<Matrix> solver(
      unit_metric(data, kind, layer, unit, frame, p));
  const Vector& values = solver.eigenvalues();
  MILLION_REQUIRE(values.allFinite() && values(0) > kRankTolerance * values(w - 1),
                  ErrorCode::kBadInput,
                  "pq: the metric of layer {}, head {} has eigenvalues from {} to {}; expected all "
                  "positive: use more calibration tokens or metric=none",
                  layer, unit * p.span, values(0), values(w - 1));
  const Matrix& u = solver.eigenvectors();
  // Scaled to a mean of 1, so that both maps have axes of similar length.
  const Vector scaled = values / values.mean();
  return {u * scaled.cwiseSqrt().asDiagonal() * u.transpose(),
          u * scaled.cwiseSqrt().cwiseInverse().asDiagonal() * u.transpose()};
}

Matrix covariance(const Matrix& x) {
  const Eigen::RowVectorXd mean = x.colwise().mean();
  const Matrix centred = x.rowwise() - mean;
  return centred.transpose() * centred / static_cast<double>(x.rows());
}

/// Order of axes that fills M subspaces one after the other: axes by falling variance, each to the
/// open subspace with the smallest product of variances so far.
std::vector<int> balanced_order(const std::vector<double>& variance, int M, int rank) {
  std::vector<int> by_variance(variance.size());
  std::iota(by_variance.begin(), by_variance.end(), 0);
  std::stable_sort(by_variance.begin(), by_variance.end(),
                   [&](int a, int b) { return variance[a] > variance[b]; });
  by_variance.resize(rank);
  const double smallest = variance[by_variance.back()];
  std::vector<std::vector<int>> parts(M);
  std::vector<double> product(M, 0.0);  // logarithms relative to the smallest: never negative
  for (const int axis : by_variance) {
    int best = -1;
    for (int m = 0; m < M; ++m)
      if (static_cast<int>(parts[m].size()) < rank / M && (best < 0 || product[m] < product[best]))
        best = m;
    parts[best].push_back(axis);
    product[best] += std::log(variance[axis] / smallest);
  }
  std::vector<int> order;
  for (const auto& part : parts) order.insert(order.end(), part.begin(), part.end());
  return order;
}

/// Principal axes (columns) inside groups of channels; everything outside a group is zero.
Matrix principal_axes(const Matrix& cov, const std::vector<std::vector<int>>& groups) {
  const auto d = cov.rows();
  Matrix axes = Matrix::Zero(d, d);
  Eigen::Index column = 0;
  for (const auto& group : groups) {
    const auto n = static_cast<Eigen::Index>(group.size());
    Matrix part(n, n);
    for (Eigen::Index i = 0; i < n; ++i)
      for (Eigen::Index j = 0; j < n; ++j) part(i, j) = cov(group[i], group[j]);
    const Eigen::SelfAdjointEigenSolver<Matrix> solver(part);
    for (Eigen::Index j = 0; j < n; ++j, ++column)
      for (Eigen::Index i = 0; i < n; ++i) axes(group[i], column) = solver.eigenvectors()(i, j);
  }
  return axes;
}

Matrix hadamard_axes(int d) {
  MILLION_REQUIRE((d & (d - 1)) == 0, ErrorCode::kUsage,
                  "pq: rotate=hadamard needs a head_dim that is a power of two, got {}", d);
  Matrix axes(d, d);
  for (int i = 0; i < d; ++i)
    for (int j = 0; j < d; ++j)
      axes(i, j) = (__builtin_popcount(i & j) % 2 ? -1.0 : 1.0) / std::sqrt(static_cast<double>(d));
  return axes;
}

/// Groups inside which kPairs and kPca turn.
std::vector<std::vector<int>> rotation_groups(const KvGeometry& g, const PqBasisParams& p) {
  std::vector<std::vector<int>> groups;
  if (p.rotate == PqRotate::kPairs) {
    int left = 0;
    for (const auto& pair : rope_pairs(g, p.span)) {
      if (left-- == 0) {
        groups.emplace_back();
        left = p.pairs - 1;
      }
      groups.back().insert(groups.back().end(), pair.begin(), pair.end());
    }
    return groups;
  }
  groups.emplace_back(p.span * g.head_dim);
  std::iota(groups.back().begin(), groups.back().end(), 0);
  return groups;
}

/// Orthogonal [w][rank], columns in the order of subspaces.
Matrix choose_axes(const Matrix& x, const KvGeometry& g, const PqBasisParams& p, int layer,
                   int unit) {
  const int d = p.span * g.head_dim;
  Matrix axes = Matrix::Identity(d, d);
  if (p.rotate == PqRotate::kNone) return axes.leftCols(p.rank);
  const Matrix cov = covariance(x);
  if (p.rotate == PqRotate::kHadamard) return hadamard_axes(d).leftCols(p.rank);
  if (p.rotate != PqRotate::kPerm) axes = principal_axes(cov, rotation_groups(g, p));
  std::vector<double> variance(d);
  for (int j = 0; j < d; ++j) variance[j] = axes.col(j).dot(cov * axes.col(j));
  const double largest = *std::max_element(variance.begin(), variance.end());
  const auto found = std::count_if(variance.begin(), variance.end(),
                                   [&](double v) { return v > kRankTolerance * largest; });
  MILLION_REQUIRE(found >= p.rank, ErrorCode::kBadInput,
                  "pq: calibration rows of layer {}, head {} span {} directions, rank={} needs as "
                  "many; use a longer calibration text or a smaller rank",
                  layer, unit * p.span, found, p.rank);
  const std::vector<int> order = balanced_order(variance, p.M, p.rank);
  Matrix dealt(d, p.rank);
  for (int j = 0; j < p.rank; ++j) dealt.col(j) = axes.col(order[j]);
  return dealt;
}

/// Nearest centroids of all rows y [n][rank] in every subspace, centroids warm-started in `books`.
void quantize_rows(AlignedVector<float>& y, int64_t n, const PqBasisParams& p,
                   AlignedVector<float>& books, bool first) {
  const int dsub = p.rank / p.M, K = 1 << p.nbits;
  AlignedVector<float> part(static_cast<size_t>(n) * dsub),
      transposed(static_cast<size_t>(K) * dsub);
  std::vector<uint16_t> codes(n);
  for (int m = 0; m < p.M; ++m) {
    for (int64_t i = 0; i < n; ++i)
      std::copy_n(y.data() + i * p.rank + m * dsub, dsub, part.data() + i * dsub);
    float* book = books.data() + static_cast<int64_t>(m) * K * dsub;
    train_kmeans(part.data(), n, dsub, K, first ? 2 * kOpqSteps : kOpqSteps, p.seed + m, book,
                 !first);
    transpose_centroids(book, K, dsub, transposed.data());
    ops().pq_encode(part.data(), dsub, static_cast<int>(n), transposed.data(), K, dsub,
                    codes.data());
    for (int64_t i = 0; i < n; ++i)
      std::copy_n(book + static_cast<int64_t>(codes[i]) * dsub, dsub,
                  y.data() + i * p.rank + m * dsub);
  }
}

/// The orthogonal factor of the polar decomposition, which maximises trace(Q^T m); by the roots of
/// m^T m, fifteen times faster than a singular value decomposition.
Matrix nearest_orthogonal(const Matrix& m) {
  const Eigen::SelfAdjointEigenSolver<Matrix> solver(m.transpose() * m);
  return m * solver.operatorInverseSqrt();
}

/// Alternates codebooks for fixed axes with the axes that fit those codes best (Procrustes).
Matrix refine_axes(const Matrix& x, Matrix axes, const PqBasisParams& p) {
  using MatrixF = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const int64_t step = std::max<int64_t>(1, x.rows() / kOpqRows), n = x.rows() / step;
  if (n < (int64_t{1} << p.nbits) || p.rank != x.cols()) return axes;
  MatrixF rows(n, x.cols());
  for (int64_t i = 0; i < n; ++i) rows.row(i) = x.row(i * step).cast<float>();
  AlignedVector<float> books(static_cast<size_t>(p.rank) << p.nbits);
  AlignedVector<float> y(static_cast<size_t>(n) * p.rank);
  Eigen::Map<MatrixF> coded(y.data(), n, p.rank);
  for (int round = 0; round < kOpqRounds; ++round) {
    coded.noalias() = rows * axes.cast<float>();
    quantize_rows(y, n, p, books, round == 0);
    axes = nearest_orthogonal((rows.transpose() * coded).cast<double>());
  }
  return axes;
}

std::vector<float> floats(const Matrix& m) {
  std::vector<float> out(static_cast<size_t>(m.size()));
  for (Eigen::Index i = 0; i < m.size(); ++i) out[i] = static_cast<float>(m.data()[i]);
  return out;
}

}  // namespace

ByteMatrix ByteMatrix::from(const std::vector<float>& m, int rank) {
  ByteMatrix out;
  const size_t w = m.size() / rank;
  out.values.resize(m.size());
  out.scale.resize(rank);
  for (int j = 0; j < rank; ++j) {
    float top = 0.0f;
    for (size_t i = 0; i < w; ++i) top = std::max(top, std::abs(m[j * w + i]));
    const float scale = out.scale[j] = top / 127.0f;
    for (size_t i = 0; i < w && scale > 0.0f; ++i)
      out.values[(i / 4 * rank + j) * 4 + i % 4] =
          static_cast<int8_t>(std::lrint(m[j * w + i] / scale));
  }
  return out;
}

void ByteMatrix::expand(bool transposed, AlignedVector<float>* out) const {
  const size_t rank = scale.size(), w = values.size() / rank;
  out->resize(values.size());
  for (size_t j = 0; j < rank; ++j)
    for (size_t i = 0; i < w; ++i)
      (*out)[transposed ? i * rank + j : j * w + i] =
          scale[j] * values[(i / 4 * rank + j) * 4 + i % 4];
}

void PqBasis::turn_mean(const KvGeometry& g, const KeyFrame& frame) {
  constexpr int kLongest = 1024;
  const int period = frame.type == KeyFrame::Type::kPreRope ? 1
                     : frame.type == KeyFrame::Type::kBlock ? frame.block
                                                            : kLongest + 1;
  const auto w = mean.size(), rank = encode.scale.size();
  if (mean.empty() || period > kLongest || rank != w) return;
  AlignedVector<float> matrix;
  encode.expand(false, &matrix);
  coded_mean.resize(period * rank);
  std::vector<float> turned(w), y(rank);
  for (int f = 0; f < period; ++f) {
    turned = mean;
    g.rope.move(turned.data(), static_cast<int>(w) / g.head_dim, g.head_dim, frame.position(f));
    ops().multiply_rows(turned.data(), 1, static_cast<int>(w), static_cast<int>(rank),
                        matrix.data(), y.data());
    ops().f32_to_f16(y.data(), coded_mean.data() + f * rank, rank);
  }
  split_places(period);
}

void PqBasis::split_places(int period) {
  /// A mean of norm 15, the default model's, then moves no score by more than a hundredth.
  constexpr double kTolerance = 5e-4;
  constexpr int kLongest = 256, kLanes = 16;
  if (period % 64 != 0 || period > kLongest) return;
  const auto w = static_cast<Eigen::Index>(mean.size());
  using MatrixF = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  MatrixF coded(period, w);
  ops().f16_to_f32(coded_mean.data(), coded.data(), coded_mean.size());
  AlignedVector<float> matrix;
  decoder().expand(false, &matrix);
  const Matrix rows = (coded * Eigen::Map<const MatrixF>(matrix.data(), w, w)).cast<double>();
  const Eigen::SelfAdjointEigenSolver<Matrix> solver(rows * rows.transpose());
  const Vector& energy = solver.eigenvalues();  // ascending
  double left = 0.0;
  Eigen::Index drop = 0;
  while (drop < period && left + energy(drop) <= kTolerance * kTolerance * energy.sum())
    left += std::max(0.0, energy(drop++));
  n_places = static_cast<int>((period - drop + kLanes - 1) / kLanes * kLanes);
  const MatrixF functions = solver.eigenvectors().rightCols(n_places).cast<float>();
  const MatrixF vectors =
      (rows.transpose() * solver.eigenvectors().rightCols(n_places)).cast<float>();
  places.resize(functions.size());
  place_mean.resize(vectors.size());
  Eigen::Map<MatrixF>(places.data(), n_places, period) = functions.transpose();
  Eigen::Map<MatrixF>(place_mean.data(), w, n_places) = vectors;
}

AlignedVector<float> unit_rows(const CalibrationSet& data, KvKind kind, int layer, int unit,
                               int span, const KeyFrame& frame, int sinks, bool centre,
                               std::vector<float>* mean) {
  const int d = data.geometry.head_dim, w = span * d;
  const bool centred = centre && kind == KvKind::kKey;
  const KeyFrame from = centred ? KeyFrame{KeyFrame::Type::kPreRope, 0} : frame;
  const auto tokens = calibration_tokens(data, sinks);
  const auto n = static_cast<int64_t>(tokens.size());
  AlignedVector<float> rows(static_cast<size_t>(n) * w);
  for (int h = 0; h < span; ++h) {
    const auto part = calibration_rows(data, kind, layer, unit * span + h, from, sinks);
    for (int64_t i = 0; i < n; ++i)
      std::copy_n(part.data() + i * d, d, rows.data() + i * w + h * d);
  }
  if (!centred) return rows;
  std::vector<double> sum(w, 0.0);
  for (int64_t i = 0; i < n; ++i)
    for (int c = 0; c < w; ++c) sum[c] += rows[i * w + c];
  std::vector<float> average(w);
  for (int c = 0; c < w; ++c)
    average[c] = static_cast<float>(sum[c] / std::max<double>(1.0, static_cast<double>(n)));
  for (int64_t i = 0; i < n; ++i) {
    for (int c = 0; c < w; ++c) rows[i * w + c] -= average[c];
    data.geometry.rope.move(rows.data() + i * w, span, d, data.frame_position(frame, tokens[i]));
  }
  if (mean) *mean = std::move(average);
  return rows;
}

PqBasis train_basis(const CalibrationSet& data, KvKind kind, int layer, int unit,
                    const KeyFrame& frame, int sinks, const PqBasisParams& p) {
  const int w = p.span * data.geometry.head_dim;
  PqBasis basis;
  const auto rows = unit_rows(data, kind, layer, unit, p.span, frame, sinks, p.centre, &basis.mean);
  const int64_t n = static_cast<int64_t>(rows.size()) / w;
  MILLION_REQUIRE(n > p.rank, ErrorCode::kBadInput,
                  "pq: a basis of rank {} has {} calibration rows beyond the sinks, needs at least "
                  "{}; use a longer calibration text",
                  p.rank, n, p.rank + 1);
  const Roots metric = metric_roots(data, kind, layer, unit, frame, p);
  const Matrix x =
      Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>(
          rows.data(), n, w)
          .cast<double>() *
      metric.root;
  Matrix axes = choose_axes(x, data.geometry, p, layer, unit);
  if (p.rotate == PqRotate::kOpq) axes = refine_axes(x, std::move(axes), p);
  basis.encode = ByteMatrix::from(floats(axes.transpose() * metric.root), p.rank);
  if (p.metric != PqMetric::kNone)
    basis.decode = ByteMatrix::from(floats(axes.transpose() * metric.inverse), p.rank);
  basis.turn_mean(data.geometry, frame);
  return basis;
}

}  // namespace million
