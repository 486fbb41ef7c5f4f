// SPDX-License-Identifier: Apache-2.0
// KVQuant (arXiv 2401.18079): non-uniform levels per layer, keys before RoPE with static ranges per
// channel, values with a range per token over all KV heads, a fraction of outliers kept exactly.
//
//   keys    zero and range of a channel from two-sided percentiles of the calibration data; a value
//           outside is an outlier, so their number varies from token to token
//   values  the n_side lowest and highest of a token's row are outliers, by rank; range and zero
//   (f16)
//           of the rest are stored with the token
//   both    u = (x - zero) / range in [-1, 1] goes to the nearest of 2^bits levels
// Differs: lib/quant/README.md.
#include "kernels/half.h"
#include "lib/core/error.h"
#include "lib/core/parallel.h"
#include "lib/core/progress.h"
#include "lib/quant/bitpack.h"
#include "lib/quant/block_array.h"
#include "lib/quant/codec.h"
#include "lib/quant/codec_identity.h"
#include "lib/quant/nuq.h"
#include "lib/quant/outliers.h"

#include <algorithm>
#include <cmath>

namespace million {
namespace {

constexpr int kChunkTokens = 32;  ///< tokens of one unit of parallel encoding
constexpr int kMaxHeadDim = 1024;
constexpr int kMaxRow = 1 << 16;  ///< outlier indices are 16 bits

struct KvQuantParams {
  int bits = 4;
  double outliers = 0.01;
  bool qnorm = false;
  KvKind kind = KvKind::kKey;
  int n_heads = 0, head_dim = 0;

  int row() const { return n_heads * head_dim; }
  bool keys() const { return kind == KvKind::kKey; }
  /// Outliers of a value row at each end; at least one where any are asked for.
  int n_side() const {
    if (outliers <= 0) return 0;
    const int rounded = static_cast<int>(std::lround(outliers * row() / 2));
    return std::min(std::max(1, rounded), (row() - 1) / 2);
  }
};

/// What one layer shares: levels, and for keys the static ranges.
struct KvQuantLayer {
  NuqTable table;
  std::vector<float> zero, range;  ///< [n_heads * head_dim], keys only
};

/// Half of the span and middle of the unmarked values of a row, as halves.
struct ValueRange {
  uint16_t range, zero;
};

ValueRange value_range(const float* x, const uint8_t* outlier, int n) {
  float low = INFINITY, high = -INFINITY;
  for (int i = 0; i < n; ++i) {
    if (outlier[i]) continue;
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
  }
  const auto half = [](float v) { return float_to_half(std::clamp(v, -65504.0f, 65504.0f)); };
  return {half(0.5f * (high - low)), half(0.5f * (high + low))};
}

float normalized(float x, float zero, float range) { return range > 0 ? (x - zero) / range : 0.0f; }

class KvQuantStore final : public CodeStore {
 public:
  KvQuantStore(const KvQuantParams& p, std::shared_ptr<const std::vector<KvQuantLayer>> layers,
               int layer)
      : p_(p),
        layers_(std::move(layers)),
        layer_((*layers_)[layer]),
        head_bytes_(packed_bytes(p.head_dim, p.bits)),
        codes_(p.n_heads * head_bytes_, kTokensPerBlock),
        scales_(p.keys() ? 0 : 2, kTokensPerBlock) {}

  int n_tokens() const override { return static_cast<int>(codes_.size()); }

  void append(const float* x, int n, int64_t /*first_token*/) override {
    const int64_t first = codes_.size();
    codes_.grow(n);
    if (!p_.keys()) scales_.grow(n);
    const bool sparse = p_.outliers > 0;
    std::vector<std::vector<OutlierEntry>> found(sparse ? n : 0);
    const auto encode = [&](int64_t begin, int64_t end) {
      Scratch scratch(p_.row());
      for (int64_t t = begin; t < end; ++t)
        encode_row(x + t * p_.row(), first + t, &scratch, sparse ? &found[t] : nullptr);
    };
    parallel_ranges(n, kChunkTokens, encode);
    for (const auto& row : found) outliers_.append(row);
  }

  void decode(int head, int begin, int end, float* out) const override {
    const int d = p_.head_dim, low = head * d;
    uint8_t codes[kMaxHeadDim];
    for (int64_t t = begin; t < end; ++t, out += d) {
      unpack_bits(codes_.at(t) + head * head_bytes_, d, p_.bits, codes);
      if (p_.keys()) {
        for (int i = 0; i < d; ++i)
          out[i] = layer_.table.decoded[codes[i]] * layer_.range[low + i] + layer_.zero[low + i];
      } else {
        const float range = half_to_float(scales_.at(t)[0]), zero = half_to_float(scales_.at(t)[1]);
        for (int i = 0; i < d; ++i) out[i] = layer_.table.decoded[codes[i]] * range + zero;
      }
      if (p_.outliers > 0)
        outliers_.for_each(t, [&](const OutlierEntry& e) {
          if (e.index >= low && e.index < low + d) out[e.index - low] = half_to_float(e.value);
        });
    }
  }

  StoreBytes bytes() const override {
    return {codes_.bytes(), scales_.bytes(), p_.outliers > 0 ? outliers_.bytes() : 0};
  }
  void clear() override { codes_.clear(), scales_.clear(), outliers_.clear(); }
  std::unique_ptr<CodeStore> clone() const override {
    return std::make_unique<KvQuantStore>(*this);
  }

 private:
  struct Scratch {
    explicit Scratch(int row) : outlier(row), codes(row) {}
    std::vector<uint8_t> outlier, codes;
    std::vector<int> order;
  };

  void encode_row(const float* x, int64_t t, Scratch* s, std::vector<OutlierEntry>* found) {
    const int row = p_.row();
    if (p_.keys()) {
      for (int i = 0; i < row; ++i) {
        const float zero = layer_.zero[i], range = layer_.range[i];
        s->codes[i] = layer_.table.nearest(normalized(x[i], zero, range));
        s->outlier[i] = std::abs(x[i] - zero) > range;
      }
    } else {
      mark_by_rank(x, row, p_.n_side(), &s->order, s->outlier.data());
      const ValueRange r = value_range(x, s->outlier.data(), row);
      scales_.at(t)[0] = r.range;
      scales_.at(t)[1] = r.zero;
      const float range = half_to_float(r.range), zero = half_to_float(r.zero);
      for (int i = 0; i < row; ++i)
        s->codes[i] = layer_.table.nearest(normalized(x[i], zero, range));
    }
    for (int h = 0; h < p_.n_heads; ++h)
      pack_bits(s->codes.data() + h * p_.head_dim, p_.head_dim, p_.bits,
                codes_.at(t) + h * head_bytes_);
    if (!found) return;
    for (int i = 0; i < row; ++i)
      if (s->outlier[i]) found->push_back({float_to_half(x[i]), static_cast<uint16_t>(i)});
  }

  KvQuantParams p_;
  std::shared_ptr<const std::vector<KvQuantLayer>> layers_;  ///< keeps layer_ alive
  const KvQuantLayer& layer_;
  int64_t head_bytes_;
  BlockArray<uint8_t> codes_;    ///< [n_tokens][n_heads][head_bytes]
  BlockArray<uint16_t> scales_;  ///< values: [n_tokens][range, zero]
  SparseRows outliers_;
};

/// Trains one layer.
class LayerTrainer {
 public:
  LayerTrainer(const CalibrationSet& data, const KvQuantParams& p, int layer, const KeyFrame& frame,
               int sinks)
      : data_(data), p_(p), layer_(layer) {
    for (int h = 0; h < p.n_heads; ++h)
      rows_.push_back(calibration_rows(data, p.kind, layer, h, frame, sinks));
    n_ = static_cast<int64_t>(rows_[0].size()) / p.head_dim;
    for (int64_t t = 0; t < data.n_tokens; ++t)
      if (data.position(t) >= sinks) tokens_.push_back(t);
    const auto& gradients = p.keys() ? data.k_grad2 : data.v_grad2;
    n_levels_ = n_;
    if (gradients.empty() || data.n_grad_tokens == 0) return;
    MILLION_ASSERT(gradients[layer].size() == static_cast<size_t>(data.n_grad_tokens) * p.row());
    gradient_ = gradients[layer].data();
    n_levels_ =
        std::lower_bound(tokens_.begin(), tokens_.end(), data.n_grad_tokens) - tokens_.begin();
  }

  KvQuantLayer train() const {
    NuqHistogram histogram;
    KvQuantLayer layer;
    if (p_.keys()) {
      layer.zero.reserve(p_.row());
      layer.range.reserve(p_.row());
      for (int c = 0; c < p_.row(); ++c) add_key_channel(c, &layer, &histogram);
    } else {
      add_value_rows(&histogram);
    }
    layer.table = histogram.solve(1 << p_.bits, p_.qnorm);
    if (gradient_) (p_.keys() ? data_.k_grad2 : data_.v_grad2)[layer_].release();
    return layer;
  }

 private:
  /// Importance of a value's error: F_ii of the loss where gradients are given (then levels are
  /// learned from the rows that have them, ranges still from all). Substitute for
  /// keys: the second moment of the query channel, the gradient of the scores; for values: 1.
  double weight(int64_t row, int c) const {
    if (gradient_) {
      const double w = gradient_[tokens_[row] * p_.row() + c];
      MILLION_REQUIRE(std::isfinite(w) && w >= 0, ErrorCode::kBadInput,
                      "calibration gradients of layer {}, token {}, channel {} are {}; expected "
                      "finite squares",
                      layer_, tokens_[row], c, w);
      return w;
    }
    if (p_.keys() && !data_.q_second_moment.empty()) return data_.q_second_moment[layer_][c];
    return 1.0;
  }

  void add_key_channel(int c, KvQuantLayer* layer, NuqHistogram* histogram) const {
    const auto& rows = rows_[c / p_.head_dim];
    std::vector<float> column(n_), sorted;
    for (int64_t t = 0; t < n_; ++t) column[t] = rows[t * p_.head_dim + c % p_.head_dim];
    sorted = column;
    const float low = quantile(sorted, p_.outliers / 2),
                high = quantile(sorted, 1 - p_.outliers / 2);
    const float zero = 0.5f * (high + low), range = 0.5f * (high - low);
    layer->zero.push_back(zero);
    layer->range.push_back(range);
    for (int64_t t = 0; t < n_levels_; ++t)
      if (p_.outliers <= 0 || std::abs(column[t] - zero) <= range)
        histogram->add(normalized(column[t], zero, range),
                       weight(t, c) * range * static_cast<double>(range));
  }

  void add_value_rows(NuqHistogram* histogram) const {
    const int row = p_.row(), d = p_.head_dim;
    std::vector<float> x(row);
    std::vector<uint8_t> outlier(row);
    std::vector<int> order;
    for (int64_t t = 0; t < n_levels_; ++t) {
      for (int h = 0; h < p_.n_heads; ++h)
        std::copy_n(rows_[h].data() + t * d, d, x.data() + h * d);
      mark_by_rank(x.data(), row, p_.n_side(), &order, outlier.data());
      const ValueRange r = value_range(x.data(), outlier.data(), row);
      const float range = half_to_float(r.range), zero = half_to_float(r.zero);
      for (int i = 0; i < row; ++i)
        if (!outlier[i])
          histogram->add(normalized(x[i], zero, range),
                         weight(t, i) * range * static_cast<double>(range));
    }
  }

  const CalibrationSet& data_;
  KvQuantParams p_;
  int layer_;
  std::vector<AlignedVector<float>> rows_;  ///< [head] -> [n][head_dim]
  std::vector<int64_t> tokens_;             ///< [n] token of each row
  int64_t n_ = 0;
  int64_t n_levels_ = 0;             ///< rows that the levels are learned from
  const float* gradient_ = nullptr;  ///< [n_grad_tokens][n_heads][head_dim] or none
};

class KvQuantCodec final : public Codec {
 public:
  KvQuantCodec(const Options& options, KvKind kind, const KvGeometry& geometry)
      : id_("kvquant", options, kind, geometry) {
    p_.bits = options.integer("bits", 1, 8);
    p_.outliers = options.real("outliers", 0.0, 0.5);
    const std::string qnorm = options.word("qnorm", "auto|0|1");
    p_.qnorm = qnorm == "1" || (qnorm == "auto" && p_.bits <= 2);
    p_.kind = kind;
    p_.n_heads = geometry.n_kv_heads;
    p_.head_dim = geometry.head_dim;
    MILLION_REQUIRE(p_.head_dim <= kMaxHeadDim && p_.row() <= kMaxRow, ErrorCode::kBadInput,
                    "codec kvquant: {} KV heads of {} values; expected head_dim up to {} and at "
                    "most {} values a token (16-bit outlier indices)",
                    p_.n_heads, p_.head_dim, kMaxHeadDim, kMaxRow);
  }

  std::string spec() const override { return id_.spec(); }
  KeyFrame frame() const override { return {KeyFrame::Type::kPreRope, 0}; }
  bool needs_training() const override { return true; }
  bool wants_gradients() const override { return true; }
  void train(const CalibrationSet& data, int sinks) override;
  TensorBag save() const override;
  void load(const TensorBag& bag) override;

  /// As the paper counts: bits, 16 + 16 bits of scale and zero per value row, 32 bits per outlier
  /// and 32 bits of row pointer per token where there are outliers.
  double nominal_bits() const override {
    const double row = p_.row();
    double bits = p_.bits;
    if (!p_.keys()) bits += 32.0 / row;
    if (p_.outliers > 0)
      bits += 32.0 / row + 32.0 * (p_.keys() ? p_.outliers : 2.0 * p_.n_side() / row);
    return bits;
  }
  uint64_t shared_bytes() const override {
    if (!layers_) return 0;
    uint64_t bytes = layers_->capacity() * sizeof(KvQuantLayer);
    for (const KvQuantLayer& layer : *layers_)
      bytes +=
          layer.table.bytes() + (layer.zero.capacity() + layer.range.capacity()) * sizeof(float);
    return bytes;
  }

  std::unique_ptr<CodeStore> make_store(int layer) const override {
    MILLION_ASSERT(layers_ && layer >= 0 && layer < id_.geometry().n_layers);
    return std::make_unique<KvQuantStore>(p_, layers_, layer);
  }

 private:
  /// Rows that give every level something to stand for and the percentiles a row beyond them.
  int64_t min_rows() const {
    const int64_t levels = int64_t{1} << p_.bits;
    if (!p_.keys() || p_.outliers <= 0) return levels;
    return std::max(levels, static_cast<int64_t>(std::ceil(2.0 / p_.outliers)));
  }

  CodecIdentity id_;
  KvQuantParams p_;
  std::shared_ptr<const std::vector<KvQuantLayer>> layers_;
};

void KvQuantCodec::train(const CalibrationSet& data, int sinks) {
  id_.trained_on(data, sinks, wants_gradients());
  int64_t n = 0, n_grad = 0;
  for (int64_t t = 0; t < data.n_tokens; ++t) {
    n += data.position(t) >= sinks;
    n_grad += data.position(t) >= sinks && t < data.n_grad_tokens;
  }
  MILLION_REQUIRE(n >= min_rows(), ErrorCode::kBadInput,
                  "{}: {} calibration rows beyond the sinks, needs at least {}; give a longer "
                  "calibration text",
                  id_.spec(), n, min_rows());
  MILLION_REQUIRE(data.n_grad_tokens == 0 || n_grad >= int64_t{1} << p_.bits, ErrorCode::kBadInput,
                  "{}: {} rows with gradients beyond the sinks, needs at least {}; give more or "
                  "longer gradient windows, or none",
                  id_.spec(), n_grad, 1 << p_.bits);
  auto layers = std::make_shared<std::vector<KvQuantLayer>>(id_.geometry().n_layers);
  parallel_for(id_.geometry().n_layers, [&](int64_t l) {
    check_interrupted();
    (*layers)[l] = LayerTrainer(data, p_, static_cast<int>(l), frame(), sinks).train();
  });
  layers_ = std::move(layers);
}

TensorBag KvQuantCodec::save() const {
  MILLION_ASSERT(layers_);
  TensorBag bag{{}, id_.attributes()};
  for (size_t l = 0; l < layers_->size(); ++l) {
    const KvQuantLayer& layer = (*layers_)[l];
    const size_t n = layer.table.n, row = p_.row();
    const std::string name = fmt::format("L{:02}.", l);
    bag.tensors[name + "levels"] = {{n}, layer.table.levels};
    bag.tensors[name + "decoded"] = {{n}, layer.table.decoded};
    if (!p_.keys()) continue;
    bag.tensors[name + "zero"] = {{row}, layer.zero};
    bag.tensors[name + "range"] = {{row}, layer.range};
  }
  return bag;
}

void KvQuantCodec::load(const TensorBag& bag) {
  id_.loaded_from(bag);
  auto layers = std::make_shared<std::vector<KvQuantLayer>>(id_.geometry().n_layers);
  for (size_t l = 0; l < layers->size(); ++l) {
    KvQuantLayer& layer = (*layers)[l];
    const size_t n = size_t{1} << p_.bits, row = p_.row();
    const std::string name = fmt::format("L{:02}.", l);
    const auto& levels = require_tensor(bag, name + "levels", {n}).data;
    MILLION_REQUIRE(std::is_sorted(levels.begin(), levels.end()), ErrorCode::kBadInput,
                    "codebook: tensor '{}levels' does not ascend; train the codebooks again", name);
    layer.table.levels = levels;
    layer.table.decoded = require_tensor(bag, name + "decoded", {n}).data;
    layer.table.n = static_cast<int>(n);
    layer.table.update_middles();
    if (!p_.keys()) continue;
    layer.zero = require_tensor(bag, name + "zero", {row}).data;
    layer.range = require_tensor(bag, name + "range", {row}).data;
  }
  layers_ = std::move(layers);
}

constexpr OptionInfo kOptions[] = {
    {"bits", "4", "1..8", "bits of a code; 2^bits levels; the paper has 2 to 4", true},
    {"outliers", "0.01", "0..0.5", "fraction of values kept exactly; 0 = dense only", true},
    {"qnorm", "auto", "auto|0|1",
     "match mean and deviation of decoded levels; auto = at 1 and 2 bits"},
};

std::unique_ptr<Codec> make_kvquant(const Options& options, KvKind kind,
                                    const KvGeometry& geometry) {
  return std::make_unique<KvQuantCodec>(options, kind, geometry);
}

}  // namespace

CodecInfo kvquant_codec() {
  return {"kvquant", "non-uniform levels, keys per channel before RoPE, sparse exact outliers",
          "KVQuant, arXiv 2401.18079", kOptions, make_kvquant};
}

}  // namespace million
