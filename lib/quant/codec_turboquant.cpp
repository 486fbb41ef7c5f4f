// SPDX-License-Identifier: Apache-2.0
// TurboQuant [arXiv 2504.19874]: a row is stored as its norm and a direction. A random rotation
// makes every coordinate of the direction look like one of a random unit vector, so one table of
// Lloyd-Max levels, known without data, serves all coordinates.
//   qjl=1       one bit less for the levels, then the signs of a Gaussian map of what is left and
//               its norm [QJL]: the decoded row, and with it every score, is right on average.
//   bits=2.5    half of the channels at 3 bits and half at 2, each half an instance of its own; per
//               (layer, head) the half with the larger second moment in calibration gets more.
#include "kernels/half.h"
#include "kernels/ops.h"
#include "lib/core/error.h"
#include "lib/core/parallel.h"
#include "lib/quant/bitpack.h"
#include "lib/quant/block_array.h"
#include "lib/quant/codec.h"
#include "lib/quant/codec_identity.h"
#include "lib/quant/lloyd_max.h"
#include "lib/quant/rotation.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

namespace million {
namespace {

constexpr int kRowGrain = 16;  ///< tokens a thread takes at least
constexpr int kMaxHeadDim = 1024;
constexpr int kMinWidth = 4;      ///< below, the density of a coordinate is not bounded
constexpr int64_t kMinRows = 32;  ///< rows below which second moments are noise
constexpr uint64_t kSignStream =
    8;  ///< random streams: instance i rotates with i, signs with 8 + i

/// Quantizer of vectors of `width` values; shared by all layers and heads.
class Instance {
 public:
  Instance(int width, int level_bits, bool qjl, Rotation::Type rotation, uint64_t seed, int number)
      : width_(width), bits_(level_bits), rotation_(rotation, width, seed, number) {
    for (const double level : sphere_levels(width, level_bits))
      levels_.push_back(static_cast<float>(level));
    for (size_t i = 1; i < levels_.size(); ++i)
      middles_.push_back(0.5f * (levels_[i - 1] + levels_[i]));
    if (!qjl) return;
    signs_ = random_gaussian(width, width, seed, kSignStream + number);
    signs_transposed_.resize(signs_.size());
    for (int i = 0; i < width; ++i)
      for (int j = 0; j < width; ++j) signs_transposed_[j * width + i] = signs_[i * width + j];
  }

  int width() const { return width_; }
  int norms() const { return qjl() ? 2 : 1; }
  int64_t code_bytes() const { return level_bytes() + (qjl() ? packed_bytes(width_, 1) : 0); }
  uint64_t shared_bytes() const {
    return rotation_.bytes() + (levels_.capacity() + middles_.capacity() + signs_.capacity() +
                                signs_transposed_.capacity()) *
                                   sizeof(float);
  }

  /// x [width] -> code_bytes() bytes and norms() halves.
  void encode(const float* x, uint8_t* packed, uint16_t* norms) const;
  void decode(const uint8_t* packed, const uint16_t* norms, float* out) const;

 private:
  bool qjl() const { return !signs_.empty(); }
  int64_t level_bytes() const { return packed_bytes(width_, bits_); }

  int width_, bits_;
  Rotation rotation_;
  std::vector<float> levels_, middles_;
  AlignedVector<float> signs_, signs_transposed_;  ///< QJL's Gaussian map [width][width]
};

uint16_t norm_half(const float* x, int n) {
  double sum = 0.0;
  for (int i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  return float_to_half(static_cast<float>(std::min(std::sqrt(sum), 65504.0)));
}

void Instance::encode(const float* x, uint8_t* packed, uint16_t* norms) const {
  float rotated[kMaxHeadDim], rest[kMaxHeadDim];
  uint8_t codes[kMaxHeadDim];
  norms[0] = norm_half(x, width_);
  // The stored norm divides, so its rounding is part of the quantizer and not added on top.
  const float norm = half_to_float(norms[0]), inverse = norm > 0.0f ? 1.0f / norm : 0.0f;
  rotation_.forward(x, rotated);
  for (int i = 0; i < width_; ++i) {
    const float y = rotated[i] * inverse;
    codes[i] = static_cast<uint8_t>(std::lower_bound(middles_.begin(), middles_.end(), y) -
                                    middles_.begin());
    rest[i] = rotated[i] - norm * levels_[codes[i]];
  }
  pack_bits(codes, width_, bits_, packed);
  if (!qjl()) return;
  norms[1] = norm_half(rest, width_);
  for (int i = 0; i < width_; ++i)
    codes[i] = ops().dot(signs_.data() + int64_t{i} * width_, rest, width_) >= 0.0f;
  pack_bits(codes, width_, 1, packed + level_bytes());
}

void Instance::decode(const uint8_t* packed, const uint16_t* norms, float* out) const {
  float rotated[kMaxHeadDim], signs[kMaxHeadDim];
  uint8_t codes[kMaxHeadDim];
  unpack_bits(packed, width_, bits_, codes);
  const float norm = half_to_float(norms[0]);
  for (int i = 0; i < width_; ++i) rotated[i] = norm * levels_[codes[i]];
  if (qjl()) {  // sqrt(pi/2) / m * |rest| * S^T sign(S rest) with m = width
    const float gain = std::sqrt(0.5f * std::numbers::pi_v<float>) * half_to_float(norms[1]) /
                       static_cast<float>(width_);
    unpack_bits(packed + level_bytes(), width_, 1, codes);
    for (int i = 0; i < width_; ++i) signs[i] = codes[i] != 0 ? gain : -gain;
    for (int i = 0; i < width_; ++i)
      rotated[i] += ops().dot(signs_transposed_.data() + int64_t{i} * width_, signs, width_);
  }
  rotation_.inverse(rotated, out);
}

struct Instances {
  std::vector<Instance> list;  ///< one, or two of half the channels: more bits first
  int64_t code_bytes = 0, norms = 0;
};

class TurboStore final : public CodeStore {
 public:
  /// `order` [n_heads][head_dim]: channels in the order of the instances; nullptr = as they are.
  TurboStore(std::shared_ptr<const Instances> instances,
             std::shared_ptr<const std::vector<uint16_t>> orders, int layer, const KvGeometry& g)
      : instances_(std::move(instances)),
        orders_(std::move(orders)),
        order_(orders_ ? orders_->data() + static_cast<int64_t>(layer) * g.row() : nullptr),
        n_heads_(g.n_kv_heads),
        head_dim_(g.head_dim),
        codes_(n_heads_ * instances_->code_bytes, kTokensPerBlock),
        norms_(n_heads_ * instances_->norms, kTokensPerBlock) {}

  int n_tokens() const override { return static_cast<int>(codes_.size()); }

  void append(const float* x, int n, int64_t /*first_token*/) override {
    const int64_t first = codes_.size();
    codes_.grow(n);
    norms_.grow(n);
    parallel_ranges(n, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        for (int h = 0; h < n_heads_; ++h)
          encode_row(x + (t * n_heads_ + h) * head_dim_, first + t, h);
    });
  }

  void decode(int head, int begin, int end, float* out) const override {
    float row[kMaxHeadDim];
    for (int t = begin; t < end; ++t, out += head_dim_) {
      const uint8_t* packed = codes_.at(t) + head * instances_->code_bytes;
      const uint16_t* norms = norms_.at(t) + head * instances_->norms;
      float* part = order_ != nullptr ? row : out;
      for (const Instance& instance : instances_->list) {
        instance.decode(packed, norms, part);
        packed += instance.code_bytes(), norms += instance.norms(), part += instance.width();
      }
      for (int i = 0; order_ != nullptr && i < head_dim_; ++i)
        out[order_[head * head_dim_ + i]] = row[i];
    }
  }

  StoreBytes bytes() const override { return {codes_.bytes(), norms_.bytes(), 0}; }
  void clear() override { codes_.clear(), norms_.clear(); }
  std::unique_ptr<CodeStore> clone() const override { return std::make_unique<TurboStore>(*this); }

 private:
  void encode_row(const float* x, int64_t t, int head) {
    float row[kMaxHeadDim];
    for (int i = 0; order_ != nullptr && i < head_dim_; ++i)
      row[i] = x[order_[head * head_dim_ + i]];
    const float* part = order_ != nullptr ? row : x;
    uint8_t* packed = codes_.at(t) + head * instances_->code_bytes;
    uint16_t* norms = norms_.at(t) + head * instances_->norms;
    for (const Instance& instance : instances_->list) {
      instance.encode(part, packed, norms);
      packed += instance.code_bytes(), norms += instance.norms(), part += instance.width();
    }
  }

  std::shared_ptr<const Instances> instances_;
  std::shared_ptr<const std::vector<uint16_t>> orders_;
  const uint16_t* order_;
  int n_heads_, head_dim_;
  BlockArray<uint8_t> codes_;   ///< [n_tokens][n_heads][instance: levels, signs]
  BlockArray<uint16_t> norms_;  ///< [n_tokens][n_heads][instance: norm, norm of the rest] f16
};

class TurboCodec final : public Codec {
 public:
  TurboCodec(const Options& options, KvKind kind, const KvGeometry& geometry);

  std::string spec() const override { return id_.spec(); }
  bool needs_training() const override { return instances_->list.size() > 1; }
  void train(const CalibrationSet& data, int sinks) override;
  TensorBag save() const override;
  void load(const TensorBag& bag) override;
  double nominal_bits() const override { return bits_; }
  uint64_t shared_bytes() const override {
    uint64_t n = orders_ ? orders_->capacity() * sizeof(uint16_t) : 0;
    for (const Instance& instance : instances_->list) n += instance.shared_bytes();
    return n;
  }
  std::unique_ptr<CodeStore> make_store(int layer) const override {
    MILLION_ASSERT(!needs_training() || orders_);
    MILLION_ASSERT(layer >= 0 && layer < id_.geometry().n_layers);
    return std::make_unique<TurboStore>(instances_, orders_, layer, id_.geometry());
  }

 private:
  std::vector<std::size_t> tensor_shape() const {
    const KvGeometry& g = id_.geometry();
    return {static_cast<std::size_t>(g.n_layers), static_cast<std::size_t>(g.n_kv_heads),
            static_cast<std::size_t>(g.head_dim)};
  }

  CodecIdentity id_;
  double bits_;
  std::shared_ptr<const Instances> instances_;
  /// [n_layers][n_heads][head_dim] channels, those with more bits first; only with two instances.
  std::shared_ptr<const std::vector<uint16_t>> orders_;
};

TurboCodec::TurboCodec(const Options& options, KvKind kind, const KvGeometry& geometry)
    : id_("turboquant", options, kind, geometry), bits_(options.real("bits", 1.0, 8.0)) {
  const int d = geometry.head_dim, doubled = static_cast<int>(std::lround(2.0 * bits_));
  MILLION_REQUIRE(2.0 * bits_ == doubled, ErrorCode::kUsage,
                  "codec turboquant: bits={}: expected a multiple of 0.5 from 1 to 8",
                  options.text("bits"));
  const bool qjl = options.integer("qjl", 0, 1) == 1, halves = doubled % 2 != 0;
  const auto type = options.word("rotation", "qr|hadamard") == "qr" ? Rotation::Type::kQr
                                                                    : Rotation::Type::kHadamard;
  const auto seed = static_cast<uint64_t>(options.integer("seed", 0, 1 << 30));
  const int n = halves ? 2 : 1, width = d / n;
  MILLION_REQUIRE(d % n == 0 && width >= kMinWidth && d <= kMaxHeadDim, ErrorCode::kBadInput,
                  "codec turboquant: head_dim {}: expected {} to {}{}", d, n * kMinWidth,
                  kMaxHeadDim, halves ? ", even; give whole bits" : "");
  auto instances = std::make_shared<Instances>();
  for (int i = 0; i < n; ++i) {
    const int bits = halves ? (doubled + 1) / 2 - i : doubled / 2;
    const Instance& instance =
        instances->list.emplace_back(width, bits - (qjl ? 1 : 0), qjl, type, seed, i);
    instances->code_bytes += instance.code_bytes();
    instances->norms += instance.norms();
  }
  instances_ = std::move(instances);
}

void TurboCodec::train(const CalibrationSet& data, int sinks) {
  id_.trained_on(data, sinks);
  if (!needs_training()) return;
  const KvGeometry& g = id_.geometry();
  const int d = g.head_dim;
  auto orders = std::make_shared<std::vector<uint16_t>>(static_cast<size_t>(g.n_layers) * g.row());
  parallel_for(static_cast<int64_t>(g.n_layers) * g.n_kv_heads, [&](int64_t unit) {
    const auto rows = calibration_rows(data, id_.kind(), static_cast<int>(unit / g.n_kv_heads),
                                       static_cast<int>(unit % g.n_kv_heads), frame(), sinks);
    const int64_t n = static_cast<int64_t>(rows.size()) / d;
    MILLION_REQUIRE(n >= kMinRows, ErrorCode::kBadInput,
                    "{}: {} calibration rows beyond the sinks, needs at least {}; give a longer "
                    "calibration text",
                    id_.spec(), n, kMinRows);
    std::vector<double> moment(d, 0.0);
    for (int64_t i = 0; i < n * d; ++i) moment[i % d] += static_cast<double>(rows[i]) * rows[i];
    uint16_t* order = orders->data() + unit * d;
    std::iota(order, order + d, uint16_t{0});
    std::stable_sort(order, order + d, [&](int a, int b) { return moment[a] > moment[b]; });
    std::sort(order, order + d / 2);  // only the halves matter; rising places read faster
    std::sort(order + d / 2, order + d);
  });
  orders_ = std::move(orders);
}

TensorBag TurboCodec::save() const {
  TensorBag bag{{}, id_.attributes()};
  if (orders_) bag.tensors["channel_order"] = {tensor_shape(), {orders_->begin(), orders_->end()}};
  return bag;
}

void TurboCodec::load(const TensorBag& bag) {
  id_.loaded_from(bag);
  if (!needs_training()) return;
  const int d = id_.geometry().head_dim;
  const NamedTensor& tensor = require_tensor(bag, "channel_order", tensor_shape());
  auto orders = std::make_shared<std::vector<uint16_t>>();
  orders->reserve(tensor.data.size());  // shared_bytes() counts the capacity
  std::vector<bool> seen;
  for (size_t i = 0; i < tensor.data.size(); ++i) {
    const float channel = tensor.data[i];
    if (i % d == 0) seen.assign(d, false);
    MILLION_REQUIRE(channel >= 0 && channel < static_cast<float>(d) &&
                        channel == std::floor(channel) && !seen[static_cast<size_t>(channel)],
                    ErrorCode::kBadInput,
                    "codebook: tensor 'channel_order' holds {} at place {}; expected each channel "
                    "from 0 to {} once per head: train again",
                    channel, i, d - 1);
    seen[static_cast<size_t>(channel)] = true;
    orders->push_back(static_cast<uint16_t>(channel));
  }
  orders_ = std::move(orders);
}

constexpr OptionInfo kOptions[] = {
    {"bits", "3", "1..8 in steps of 0.5",
     "bits per value; a half step gives half of the channels "
     "one bit more, by calibration",
     true},
    {"qjl", "0", "0|1", "1 = one of the bits is the sign of a random map of what is left"},
    {"rotation", "qr", "qr|hadamard", "random orthogonal matrix, or random signs and Hadamard"},
    {"seed", "1234", "0..1073741824", "seed of the rotation and of the random map"},
};

std::unique_ptr<Codec> make_turboquant(const Options& options, KvKind kind,
                                       const KvGeometry& geometry) {
  return std::make_unique<TurboCodec>(options, kind, geometry);
}

}  // namespace

CodecInfo turboquant_codec() {
  return {"turboquant", "norm, random rotation, Lloyd-Max levels of a unit vector's coordinate",
          "TurboQuant, arXiv 2504.19874", kOptions, make_turboquant};
}

}  // namespace million
