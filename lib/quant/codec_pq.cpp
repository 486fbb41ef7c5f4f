// SPDX-License-Identifier: Apache-2.0
// Product quantization: a row of head_dim values is cut into M subvectors, each stored as the
// number of its nearest centroid; M * nbits / head_dim bits per value and no metadata per token
// [PQ].
//
// frame=off is MILLION (arXiv 2504.03661): keys after RoPE, channels as they lie. The default keeps
// keys in a short block frame (R(t mod 64) k instead of R(t) k, so that codebooks hold at any
// context length), centred, and cuts rows in a basis of their own head (pq_basis.h): most of the
// quality at 2 bits comes from there. Values take a basis too; their positions play no part.
#include "lib/core/error.h"
#include "lib/quant/codebook.h"
#include "lib/quant/codec.h"
#include "lib/quant/codec_identity.h"
#include "lib/quant/exact_store.h"
#include "lib/quant/pq_store.h"

#include <algorithm>
#include <charconv>
#include <cmath>

namespace million {
namespace {

constexpr int kMaxBits = 12;

PqRotate parse_rotate(const std::string& word) {
  if (word == "perm") return PqRotate::kPerm;
  if (word == "pairs") return PqRotate::kPairs;
  if (word == "pca") return PqRotate::kPca;
  if (word == "opq") return PqRotate::kOpq;
  if (word == "hadamard") return PqRotate::kHadamard;
  return PqRotate::kNone;
}

/// "off" | "pre" | block length.
KeyFrame parse_frame(const Options& options) {
  const std::string& text = options.text("frame");
  if (text == "off") return {KeyFrame::Type::kPostRope, 0};
  if (text == "pre") return {KeyFrame::Type::kPreRope, 0};
  return {KeyFrame::Type::kBlock, options.integer("frame", 1, 1 << 16)};
}

/// One item of `layers`: "16x8*30", "fp16", "fp16*2". Error(kUsage) with what is wrong.
struct LayerRun {
  PqShape shape;
  int count = 1;
};
LayerRun parse_layer_run(std::string_view item) {
  const auto number = [&](std::string_view text) {
    int value = 0;
    const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
    MILLION_REQUIRE(status == std::errc() && end == text.data() + text.size() && value > 0,
                    ErrorCode::kUsage,
                    "codec pq: layers: '{}' is no run of layers; expected MxNBITS*COUNT or "
                    "fp16*COUNT, joined by '+'",
                    item);
    return value;
  };
  LayerRun run;
  const size_t star = item.find('*');
  if (star != std::string_view::npos) run.count = number(item.substr(star + 1));
  const std::string_view shape = item.substr(0, star);
  if (shape == "fp16") {
    run.shape = {0, 16};
    return run;
  }
  const size_t cross = shape.find('x');
  run.shape = {number(shape.substr(0, cross)),
               cross == std::string_view::npos ? 0 : number(shape.substr(cross + 1))};
  return run;
}

/// Layers of "16x8*28+fp16*2", or of "all": each as M and nbits say.
std::vector<PqShape> parse_layers(const std::string& text, const PqShape& every, int n_layers) {
  if (text == "all") return std::vector<PqShape>(n_layers, every);
  std::vector<PqShape> shapes;
  int64_t n = 0;
  for (size_t begin = 0, plus = 0; plus != std::string::npos; begin = plus + 1) {
    plus = text.find('+', begin);
    const LayerRun run = parse_layer_run(std::string_view(text).substr(begin, plus - begin));
    n += run.count;
    if (n <= n_layers) shapes.insert(shapes.end(), run.count, run.shape);
  }
  MILLION_REQUIRE(n == n_layers, ErrorCode::kUsage,
                  "codec pq: layers={}: {} layers, the model has {}", text, n, n_layers);
  return shapes;
}

std::string divisors(int d) {
  std::string text;
  for (int m = 1; m <= d; ++m)
    if (d % m == 0) text += fmt::format("{}{}", text.empty() ? "" : ", ", m);
  return text;
}

class PqCodec final : public Codec {
 public:
  PqCodec(const Options& options, KvKind kind, const KvGeometry& geometry)
      : id_("pq", options, kind, geometry),
        trained_frame_(parse_frame(options)),
        frame_(trained_frame_) {
    frame_.group = kind == KvKind::kKey ? geometry.self_extend.group : 1;
    MILLION_REQUIRE(frame_.type != KeyFrame::Type::kBlock || frame_.block % frame_.group == 0,
                    ErrorCode::kUsage,
                    "codec pq: frame={} is no multiple of SelfExtend's group={}; use frame={}",
                    frame_.block, frame_.group, 64 * frame_.group);
    parse_shapes(options);
    parse_basis(options);
    const std::string scope = options.word("scope", "model|layer|head");
    params_.scope = scope == "model"   ? CodebookScope::kModel
                    : scope == "layer" ? CodebookScope::kLayer
                                       : CodebookScope::kHead;
    const bool same = std::all_of(params_.layers.begin(), params_.layers.end(),
                                  [&](const PqShape& s) { return s == params_.layers[0]; });
    MILLION_REQUIRE(same || params_.scope != CodebookScope::kModel, ErrorCode::kUsage,
                    "codec pq: layers of different shape need scope=layer or scope=head");
    params_.fisher_weights = options.word("weights", "none|fisher") == "fisher";
    MILLION_REQUIRE(!params_.fisher_weights || (params_.basis.identity() && !auto_metric_ &&
                                                frame_.type == KeyFrame::Type::kPreRope),
                    ErrorCode::kUsage,
                    "codec pq: weights=fisher needs frame=pre,rotate=none,centre=0,metric=none: "
                    "gradients are known per channel");
    params_.iters = options.integer("iters", 1, 1000);
    params_.max_rows = options.integer("rows", 1, 1 << 24);
    params_.seed = options.integer("seed", 0, 1 << 30);
  }

  std::string spec() const override { return id_.spec(); }
  KeyFrame frame() const override { return frame_; }
  bool needs_training() const override {
    return std::any_of(params_.layers.begin(), params_.layers.end(),
                       [](const PqShape& s) { return !s.exact(); });
  }
  bool wants_gradients() const override {
    return needs_training() &&
           (params_.fisher_weights || auto_metric_ || params_.basis.metric == PqMetric::kFisher);
  }

  /// Most of a gradient comes through the tokens next to it. Where those stay exact it weighs the
  /// wrong directions: with window=128 the KL of the default model is a third higher than without
  /// gradients (experiments/02_rate_distortion).
  void expect_window(int tokens) override {
    if (tokens == 0 || !auto_metric_) return;
    auto_metric_ = false;
    params_.basis.metric = metric_without_gradients();
  }

  void train(const CalibrationSet& data, int sinks) override {
    id_.trained_on(data, sinks, wants_gradients());
    if (!needs_training()) return;
    PqParams params = params_;
    if (auto_metric_)
      params.basis.metric = data.k_fisher.empty() ? metric_without_gradients() : PqMetric::kFisher;
    PqTables tables = train_tables(data, id_.kind(), trained_frame_, sinks, params);
    if (frame_.group > 1)
      for (PqBasis& basis : tables.bases) basis.turn_mean(id_.geometry(), frame_);
    tables_ = std::make_shared<const PqTables>(std::move(tables));
  }

  TensorBag save() const override;
  void load(const TensorBag& bag) override;

  double nominal_bits() const override {
    double bits = 0.0;
    for (const PqShape& s : params_.layers)
      bits += s.exact() ? 16.0 : static_cast<double>(s.M) * s.nbits / id_.geometry().head_dim;
    return bits / static_cast<double>(params_.layers.size());
  }
  uint64_t shared_bytes() const override { return tables_ ? tables_->bytes() : 0; }

  std::unique_ptr<CodeStore> make_store(int layer) const override {
    const KvGeometry& g = id_.geometry();
    MILLION_ASSERT(layer >= 0 && layer < g.n_layers);
    if (params_.layers[layer].exact()) return make_exact_store(g);
    MILLION_ASSERT(tables_);
    std::vector<int> books, bases;
    for (int u = 0; u < units(); ++u) {
      books.push_back(codebook_index(params_.scope, units(), layer, u));
      if (!tables_->bases.empty()) bases.push_back(layer * units() + u);
    }
    return make_pq_store(tables_, g, frame_, std::move(books), std::move(bases));
  }

 private:
  void parse_shapes(const Options& options);
  void parse_basis(const Options& options);
  int span() const { return params_.basis.span; }
  int units() const { return id_.geometry().n_kv_heads / span(); }
  int width() const { return span() * id_.geometry().head_dim; }
  int n_books() const { return n_codebooks(params_.scope, id_.geometry().n_layers, units()); }
  PqMetric metric_without_gradients() const {
    return id_.kind() == KvKind::kKey ? PqMetric::kQuery : PqMetric::kNone;
  }
  /// Whether rows are coded in a basis, given the metric that training chose.
  bool has_bases(PqMetric metric) const {
    PqBasisParams p = params_.basis;
    p.metric = metric;
    return !p.identity() || p.rank != width();
  }
  /// Calls f(index, name) for every basis.
  template <class F>
  void for_each_basis(const F& f) const {
    for (int i = 0; i < id_.geometry().n_layers * units(); ++i)
      if (!params_.layers[i / units()].exact())
        f(i, codebook_name(CodebookScope::kHead, units(), span(), i));
  }
  /// Calls f(index, shape, name) for every trained codebook.
  template <class F>
  void for_each_book(const F& f) const {
    for (int i = 0; i < n_books(); ++i) {
      PqShape shape = params_.layers[codebook_layer(params_.scope, units(), i)];
      if (shape.exact()) continue;
      shape.M *= span();
      f(i, shape, codebook_name(params_.scope, units(), span(), i) + ".codebook");
    }
  }

  CodecIdentity id_;
  PqParams params_;
  KeyFrame trained_frame_;  ///< codebooks hold for any group of SelfExtend
  KeyFrame frame_;
  bool auto_metric_ = false;  ///< fisher where there are gradients and no window, else q for keys
  std::shared_ptr<const PqTables> tables_;
};

void PqCodec::parse_shapes(const Options& options) {
  const KvGeometry& g = id_.geometry();
  const int rank = options.integer("rank", 0, g.head_dim);
  const int head_rank = rank == 0 ? g.head_dim : rank;
  const PqShape every{options.integer("M", 1, g.head_dim), options.integer("nbits", 1, kMaxBits)};
  params_.layers = parse_layers(options.text("layers"), every, g.n_layers);
  for (const PqShape& s : params_.layers) {
    if (s.exact()) continue;
    MILLION_REQUIRE(head_rank % s.M == 0, ErrorCode::kUsage,
                    "codec pq: M={} does not divide {} {}; use one of {}", s.M,
                    rank == 0 ? "head_dim" : "rank", head_rank, divisors(head_rank));
    MILLION_REQUIRE(s.nbits >= 1 && s.nbits <= kMaxBits, ErrorCode::kUsage,
                    "codec pq: layers: {} bits a code, expected 1 to {}", s.nbits, kMaxBits);
  }
  const bool one = options.text("span") == "1" ||
                   (options.text("span") == "auto" && frame_.type == KeyFrame::Type::kPostRope);
  const bool all = options.text("span") == "auto" && !one;
  params_.basis.span = one ? 1 : all ? g.n_kv_heads : options.integer("span", 1, g.n_kv_heads);
  MILLION_REQUIRE(g.n_kv_heads % span() == 0, ErrorCode::kUsage,
                  "codec pq: span={} does not divide the {} KV heads", span(), g.n_kv_heads);
  params_.basis.rank = head_rank * span();
}

void PqCodec::parse_basis(const Options& options) {
  const bool key = id_.kind() == KvKind::kKey;
  const bool plain = frame_.type == KeyFrame::Type::kPostRope;
  PqBasisParams& p = params_.basis;
  std::string rotate = options.word("rotate", "auto|none|perm|pairs|pca|opq|hadamard");
  if (rotate == "auto") rotate = plain ? "none" : "pca";
  p.rotate = parse_rotate(rotate);
  p.pairs = options.integer("pairs", 1, 512);
  const std::string centre = options.word("centre", "auto|0|1");
  p.centre = key && (centre == "1" || (centre == "auto" && !plain));
  const std::string metric = options.word("metric", "auto|none|q|fisher");
  if (key && metric == "q") p.metric = PqMetric::kQuery;
  if (metric == "fisher") p.metric = PqMetric::kFisher;
  auto_metric_ = metric == "auto" && !plain;
  MILLION_REQUIRE(p.rank == width() || p.rotate != PqRotate::kNone, ErrorCode::kUsage,
                  "codec pq: rank={} needs a rotation that orders the axes", p.rank / p.span);
  if (p.rotate == PqRotate::kNone && options.text("span") == "auto") {  // nothing to share
    p.rank /= p.span;
    p.span = 1;
  }
  p.seed = options.integer("seed", 0, 1 << 30);
  MILLION_REQUIRE(plain || width() % 4 == 0, ErrorCode::kUsage,
                  "codec pq: frame, rotation and metric need {} KV heads of head_dim {} to be a "
                  "multiple of 4 channels; use frame=off",
                  span(), id_.geometry().head_dim);
}

/// Signed bytes in a file are whole numbers beside their scales.
void save_bytes(const AlignedVector<int8_t>& values, const std::vector<float>& scale,
                const std::vector<std::size_t>& shape, const std::string& name, TensorBag* bag) {
  bag->tensors[name] = {shape, {values.begin(), values.end()}};
  bag->tensors[name + "_scale"] = {{scale.size()}, scale};
}

AlignedVector<int8_t> load_bytes(const TensorBag& bag, const std::string& name,
                                 const std::vector<std::size_t>& shape, std::size_t n_scales,
                                 std::vector<float>* scale) {
  AlignedVector<int8_t> values;
  *scale = require_tensor(bag, name + "_scale", {n_scales}).data;
  const std::vector<float>& numbers = require_tensor(bag, name, shape).data;
  values.reserve(numbers.size());  // what is allocated is counted
  for (const float x : numbers) {
    MILLION_REQUIRE(x >= -127.0f && x <= 127.0f && x == std::nearbyint(x), ErrorCode::kBadInput,
                    "codebook: tensor '{}' holds {}, expected whole numbers from -127 to 127; "
                    "train the codebooks again",
                    name, x);
    values.push_back(static_cast<int8_t>(x));
  }
  return values;
}

/// n matrices [rows][columns] of elements of `size` bytes, turned: files keep the order of the
/// mathematics, memory that of the kernels.
AlignedVector<int8_t> turned(const AlignedVector<int8_t>& x, std::size_t n, std::size_t rows,
                             std::size_t columns, std::size_t size = 1) {
  AlignedVector<int8_t> out(x.size());
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t r = 0; r < rows; ++r)
      for (std::size_t c = 0; c < columns; ++c)
        std::copy_n(x.data() + ((i * rows + r) * columns + c) * size, size,
                    out.data() + ((i * columns + c) * rows + r) * size);
  return out;
}

void save_matrix(const ByteMatrix& m, const std::string& name, TensorBag* bag) {
  const std::size_t rank = m.scale.size(), w = m.values.size() / rank;
  save_bytes(turned(m.values, 1, w / 4, rank, 4), m.scale, {rank, w}, name, bag);
}

ByteMatrix load_matrix(const TensorBag& bag, const std::string& name, std::size_t rank,
                       std::size_t w) {
  ByteMatrix m;
  m.values = turned(load_bytes(bag, name, {rank, w}, rank, &m.scale), 1, rank, w / 4, 4);
  return m;
}

const char* metric_name(PqMetric metric) {
  return metric == PqMetric::kFisher ? "fisher" : metric == PqMetric::kQuery ? "q" : "none";
}

/// The metric that a file was trained with; `automatic`: any will do, else it must be `wanted`.
PqMetric parse_metric(const TensorBag& bag, PqMetric wanted, bool automatic) {
  const Json got = bag.attributes.value("metric", Json());
  for (const PqMetric m : {PqMetric::kNone, PqMetric::kQuery, PqMetric::kFisher})
    if (got == metric_name(m) && (automatic || m == wanted)) return m;
  fail(ErrorCode::kBadInput,
       "codebook: attribute 'metric' is {}, expected {}; train the codebooks again", got.dump(),
       automatic ? "none, q or fisher" : metric_name(wanted));
}

TensorBag PqCodec::save() const {
  MILLION_ASSERT(tables_ || !needs_training());
  TensorBag bag{{}, id_.attributes()};
  bag.attributes["seed"] = params_.seed;
  if (!tables_) return bag;
  bag.attributes["metric"] = metric_name(tables_->metric);
  const auto rank = static_cast<std::size_t>(params_.basis.rank);
  for_each_book([&](int i, const PqShape& s, const std::string& name) {
    const auto M = static_cast<std::size_t>(s.M), K = static_cast<std::size_t>(s.K());
    const PqBook& book = tables_->books[i];
    const std::vector<std::size_t> shape = {M, K, rank / M};
    if (!tables_->bases.empty())
      return save_bytes(turned(book.bytes, M, rank / M, K), book.scale, shape, name, &bag);
    bag.tensors[name] = {shape, std::vector<float>(book.size())};
    book.expand(0, s.M, bag.tensors[name].data.data());
  });
  if (tables_->bases.empty()) return bag;
  for_each_basis([&](int i, const std::string& name) {
    const PqBasis& basis = tables_->bases[i];
    save_matrix(basis.encode, name + ".encode", &bag);
    if (!basis.decode.values.empty()) save_matrix(basis.decode, name + ".decode", &bag);
    if (params_.basis.centre) bag.tensors[name + ".mean"] = {{basis.mean.size()}, basis.mean};
  });
  return bag;
}

void PqCodec::load(const TensorBag& bag) {
  id_.loaded_from(bag);
  if (!needs_training()) return;
  const auto rank = static_cast<std::size_t>(params_.basis.rank);
  const auto w = static_cast<std::size_t>(width());
  PqTables tables;
  tables.books.resize(n_books());
  tables.metric = parse_metric(bag, params_.basis.metric, auto_metric_);
  const bool with_metric = tables.metric != PqMetric::kNone;
  const bool with_bases = has_bases(tables.metric);
  for_each_book([&](int i, const PqShape& s, const std::string& name) {
    const auto M = static_cast<std::size_t>(s.M), K = static_cast<std::size_t>(s.K());
    PqBook& book = tables.books[i];
    book.shape = s;
    book.dsub = static_cast<int>(rank / M);
    const std::vector<std::size_t> shape = {M, K, rank / M};
    if (with_bases)
      book.bytes = turned(load_bytes(bag, name, shape, rank, &book.scale), M, K, rank / M);
    else
      book.set(require_tensor(bag, name, shape).data.data(), false);
  });
  if (with_bases) {
    tables.bases.resize(static_cast<size_t>(id_.geometry().n_layers) * units());
    for_each_basis([&](int i, const std::string& name) {
      PqBasis& basis = tables.bases[i];
      basis.encode = load_matrix(bag, name + ".encode", rank, w);
      if (with_metric) basis.decode = load_matrix(bag, name + ".decode", rank, w);
      if (params_.basis.centre) basis.mean = require_tensor(bag, name + ".mean", {w}).data;
      basis.turn_mean(id_.geometry(), frame_);
    });
  }
  tables_ = std::make_shared<const PqTables>(std::move(tables));
}

constexpr OptionInfo kOptions[] = {
    {"M", "32", "divides head_dim", "subspaces of a row", true},
    {"nbits", "8", "1..12", "bits of a code", true},
    {"scope", "head", "model|layer|head", "which rows share a codebook", true},
    {"frame", "64", "off|pre|1..65536",
     "keys are stored at their place in a block of so many tokens; off = after RoPE (MILLION), pre "
     "= before RoPE",
     true},
    {"rotate", "auto", "auto|none|perm|pairs|pca|opq|hadamard",
     "axes that share a code; auto = none with frame=off, else pca"},
    {"span", "auto", "auto|1..n_kv_heads",
     "KV heads of a layer that share axes and codes; auto = 1 with frame=off, else all"},
    {"pairs", "8", "1..512", "rotate=pairs: RoPE pairs that turn together"},
    {"centre", "auto", "auto|0|1", "subtract the mean key; auto = 0 with frame=off, else 1"},
    {"metric", "auto", "auto|none|q|fisher",
     "what an error costs; auto = none with frame=off, else fisher where there are gradients and "
     "no "
     "window, else q (keys) or none (values, which know no q)"},
    {"rank", "0", "0..head_dim", "axes kept; 0 = all"},
    {"layers", "all", "all|MxNBITS*COUNT+fp16*COUNT+...",
     "shape of each layer's codes instead of M and nbits"},
    {"weights", "none", "none|fisher", "k-means rows weigh as much as their squared gradients"},
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
