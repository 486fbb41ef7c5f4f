// SPDX-License-Identifier: Apache-2.0
// The coordinates of PQ (lib/quant/pq_basis.h): what every choice of axes keeps, what metrics and
// gradients change, and what is refused.
#include "tests/pq_data.h"

#include "kernels/ops.h"
#include "lib/quant/codebook.h"

#include <spdlog/spdlog.h>
#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>

using namespace million;
using namespace million::testdata;

namespace {

[[maybe_unused]] const bool kQuiet = (spdlog::set_level(spdlog::level::err), true);

const KeyFrame kBlock64{KeyFrame::Type::kBlock, 64};

PqBasisParams params_of(PqRotate rotate, PqMetric metric, int span) {
  PqBasisParams p;
  p.rotate = rotate;
  p.metric = metric;
  p.pairs = 2;
  p.span = span;
  p.rank = span * data().geometry.head_dim;
  p.M = p.rank / 2;
  p.nbits = 4;
  p.centre = true;
  return p;
}

constexpr PqRotate kRotations[] = {PqRotate::kNone, PqRotate::kPerm, PqRotate::kPairs,
                                   PqRotate::kPca,  PqRotate::kOpq,  PqRotate::kHadamard};

/// E D, [rank][rank].
std::vector<double> product(const PqBasis& basis) {
  AlignedVector<float> e, d;
  basis.encode.expand(false, &e);
  basis.decoder().expand(false, &d);
  const size_t rank = basis.encode.scale.size(), w = e.size() / rank;
  std::vector<double> out(rank * rank, 0.0);
  for (size_t i = 0; i < rank; ++i)
    for (size_t j = 0; j < rank; ++j)
      for (size_t c = 0; c < w; ++c)
        out[i * rank + j] += static_cast<double>(e[i * w + c]) * d[j * w + c];
  return out;
}

/// Largest difference of the logarithms of two subspaces' products of variances.
double spread(const std::vector<double>& variance, int M) {
  const size_t dsub = variance.size() / M;
  double low = INFINITY, high = -INFINITY;
  for (int m = 0; m < M; ++m) {
    double sum = 0.0;
    for (size_t j = 0; j < dsub; ++j) sum += std::log(variance[m * dsub + j]);
    low = std::min(low, sum);
    high = std::max(high, sum);
  }
  return high - low;
}

/// Variances of the calibration rows along the axes of a basis.
std::vector<double> variances(const PqBasis& basis, const AlignedVector<float>& rows) {
  AlignedVector<float> e;
  basis.encode.expand(false, &e);
  const int rank = static_cast<int>(basis.encode.scale.size());
  const int w = static_cast<int>(e.size()) / rank;
  const auto n = static_cast<int64_t>(rows.size()) / w;
  std::vector<float> y(static_cast<size_t>(n) * rank);
  ops().multiply_rows(rows.data(), n, w, rank, e.data(), y.data());
  std::vector<double> mean(rank, 0.0), square(rank, 0.0);
  for (size_t i = 0; i < y.size(); ++i) {
    mean[i % rank] += y[i] / static_cast<double>(n);
    square[i % rank] += static_cast<double>(y[i]) * y[i] / static_cast<double>(n);
  }
  for (int j = 0; j < rank; ++j) square[j] -= mean[j] * mean[j];
  return square;
}

}  // namespace

TEST_CASE("basis: D undoes E for every rotation, metric and span", "[pq_basis]") {
  for (const KvKind kind : {KvKind::kKey, KvKind::kValue})
    for (const PqRotate rotate : kRotations)
      for (const PqMetric metric : {PqMetric::kNone, PqMetric::kQuery, PqMetric::kFisher})
        for (const int span : {1, 4}) {
          CAPTURE(kind_name(kind), static_cast<int>(rotate), static_cast<int>(metric), span);
          const PqBasis b =
              train_basis(data(), kind, 1, 0, kBlock64, 4, params_of(rotate, metric, span));
          CHECK(b.decode.values.empty() == (metric == PqMetric::kNone));
          CHECK(b.mean.empty() == (kind == KvKind::kValue));
          const auto ed = product(b);
          const auto rank = static_cast<size_t>(span * 16);
          REQUIRE(ed.size() == rank * rank);
          double worst = 0.0;
          for (size_t i = 0; i < ed.size(); ++i)
            worst = std::max(worst, std::abs(ed[i] - (i % (rank + 1) == 0 ? 1.0 : 0.0)));
          // Bytes are off by up to 1/254 of the largest entry of an axis, a sum of w such errors.
          CHECK(worst < 0.03);
        }
}

TEST_CASE("basis: rotations keep dot products, metrics do not", "[pq_basis]") {
  const auto x = rows(data().geometry, 40, 8);
  for (const PqRotate rotate : kRotations)
    for (const PqMetric metric : {PqMetric::kNone, PqMetric::kFisher}) {
      CAPTURE(static_cast<int>(rotate), static_cast<int>(metric));
      const PqBasis b =
          train_basis(data(), KvKind::kKey, 0, 0, kBlock64, 4, params_of(rotate, metric, 4));
      AlignedVector<float> e;
      b.encode.expand(false, &e);
      std::vector<float> y(x.size());
      ops().multiply_rows(x.data(), 40, 64, 64, e.data(), y.data());
      const auto dot = [](const std::vector<float>& m, int s, int t) {
        return std::inner_product(m.data() + s * 64, m.data() + s * 64 + 64, m.data() + t * 64,
                                  0.0);
      };
      double worst = 0.0;
      for (int t = 0; t + 1 < 40; ++t)
        for (const int s : {t, t + 1})
          worst = std::max(worst, std::abs(dot(y, s, t) - dot(x, s, t)) /
                                      std::sqrt(dot(x, s, s) * dot(x, t, t)));
      CHECK((worst < 0.02) == (metric == PqMetric::kNone));
    }
}

TEST_CASE("basis: subspaces share the variance equally", "[pq_basis]") {
  CalibrationSet set = data();
  scale_channels(&set, [](int c) { return std::exp2(-0.25f * static_cast<float>(c)); });
  for (const PqRotate rotate : {PqRotate::kPerm, PqRotate::kPca}) {
    CAPTURE(static_cast<int>(rotate));
    PqBasisParams p = params_of(rotate, PqMetric::kNone, 4);
    p.M = 16;
    const auto x = unit_rows(set, KvKind::kValue, 0, 0, 4, {}, 4, false, nullptr);
    auto variance = variances(train_basis(set, KvKind::kValue, 0, 0, {}, 4, p), x);
    CHECK(spread(variance, 16) < std::log(4.0));
    std::sort(variance.rbegin(), variance.rend());
    CHECK(spread(variance, 16) > std::log(1000.0));
  }
}

TEST_CASE("basis: rank keeps the axes of most variance", "[pq_basis]") {
  CalibrationSet set = data();
  scale_channels(&set, [](int c) { return c < 8 ? 1.0f : 1e-3f; });
  auto x = rows(set.geometry, 200);
  for (size_t i = 0; i < x.size(); ++i) x[i] *= i % 16 < 8 ? 1.0f : 1e-3f;
  for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
    CAPTURE(kind_name(kind));
    const auto at_rank = [&](int rank, int M, int span) {
      const auto codec = trained(
          fmt::format("pq:M={},nbits=6,rank={},metric=none,span={}", M, rank, span), kind, set);
      CHECK(codec->nominal_bits() == M * 6 / 16.0);
      CHECK(codec->save().tensors.at("L00.H0.encode").shape ==
            std::vector<std::size_t>{static_cast<size_t>(rank * span),
                                     static_cast<size_t>(16 * span)});
      return coded_nmse(*codec, kind, x, set.geometry);
    };
    for (const int span : {1, 2}) {
      CHECK(at_rank(8, 8, span) < 0.01);  // one code of 6 bits for each axis that there is
      CHECK(at_rank(2, 2, span) > 0.1);   // six of eight are missing
    }
  }
  CHECK(message_of(ErrorCode::kUsage, [&] {
          make_codec("pq:M=8,rank=12", KvKind::kKey, set.geometry);
        }).find("rank 12") != std::string::npos);
  CHECK(message_of(ErrorCode::kUsage, [&] {
          make_codec("pq:M=4,rank=8,rotate=none", KvKind::kKey, set.geometry);
        }).find("rank=8") != std::string::npos);
}

TEST_CASE("basis: heads that are copies of one another are coded together", "[pq_basis]") {
  const KvGeometry g = data().geometry;
  CalibrationSet set = data();
  for (auto* side : {&set.k_pre, &set.v})
    for (auto& layer : *side)
      for (int64_t t = 0; t < set.n_tokens; ++t)
        for (int c = 16; c < g.row(); ++c) {
          const float copy = half_to_float(layer[t * g.row() + c % 16]);
          layer[t * g.row() + c] =
              float_to_half(copy + 0.02f * static_cast<float>(Rng(4, t * g.row() + c).normal()));
        }
  auto x = rows(g, 300, 9);
  for (size_t i = 0; i < x.size(); ++i) x[i] = x[i / g.row() * g.row() + i % 16];
  for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
    CAPTURE(kind_name(kind));
    const auto with_span = [&](const char* span) {
      return trained(fmt::format("pq:M=4,nbits=4,metric=none,span={}", span), kind, set);
    };
    const auto all = with_span("4"), automatic = with_span("auto"), one = with_span("1");
    const double error = coded_nmse(*all, kind, x, g);
    CHECK(all->nominal_bits() == one->nominal_bits());
    CHECK(error < 0.3 * coded_nmse(*one, kind, x, g));
    CHECK(error == coded_nmse(*automatic, kind, x, g));
    CHECK(all->save().tensors.at("L01.H0.codebook").data ==
          automatic->save().tensors.at("L01.H0.codebook").data);
  }
  CHECK(message_of(ErrorCode::kUsage, [&] {
          make_codec("pq:M=8,span=3", KvKind::kKey, g);
        }).find("span=3 does not divide the 4 KV heads") != std::string::npos);
}

TEST_CASE("basis: channels without variance are named", "[pq_basis]") {
  const KvGeometry g = data().geometry;
  CalibrationSet set = data();
  for (auto* side : {&set.k_pre, &set.v})
    for (int64_t t = 0; t < set.n_tokens; ++t)
      for (const int c : {6, 7}) side->at(1)[t * g.row() + 2 * 16 + c] = float_to_half(1.5f);
  for (const KvKind kind : {KvKind::kKey, KvKind::kValue})
    for (const char* rotate : {"perm", "pca", "opq"}) {
      CAPTURE(kind_name(kind), rotate);
      const auto train = [&](const char* span) {
        const auto codec = make_codec(
            fmt::format("pq:M=8,nbits=4,rotate={},metric=none,span={}", rotate, span), kind, g);
        return message_of(ErrorCode::kBadInput, [&] { codec->train(set, 4); });
      };
      const std::string one = train("1");
      CHECK(one.find("layer 1, head 2 span 14 directions, rank=16") != std::string::npos);
      CHECK(train("2").find("layer 1, head 2 span 30 directions, rank=32") != std::string::npos);
    }
  trained("pq:M=7,nbits=4,rotate=pca,metric=none,span=1,rank=14", KvKind::kKey, set);
}

TEST_CASE("basis: OPQ is no worse than PCA on the rows it learns from", "[pq_basis]") {
  const KvGeometry g = data().geometry;
  for (const KvKind kind : {KvKind::kKey, KvKind::kValue})
    for (const int span : {1, 4}) {
      CAPTURE(kind_name(kind), span);
      std::vector<float> x;  // layer 1 as it was calibrated, sinks left out
      for (int64_t t = 4; t < 512; ++t)
        for (int c = 0; c < g.row(); ++c)
          x.push_back(
              half_to_float((kind == KvKind::kKey ? data().k_pre : data().v)[1][t * g.row() + c]));
      const auto error = [&](const char* rotate) {
        return coded_nmse(
            *trained(fmt::format("pq:M=8,nbits=4,metric=none,rotate={},span={}", rotate, span),
                     kind),
            kind, x, g, 4);
      };
      const double pca = error("pca");
      CHECK(error("opq") < 1.01 * pca);
    }
}

TEST_CASE("metric: fisher needs gradients, auto takes what there is", "[pq_basis]") {
  CalibrationSet bare = calibration(small_geometry());
  const auto metric = [&](const std::string& spec, KvKind kind, const CalibrationSet& set) {
    return trained(spec, kind, set)->save().attributes.at("metric").get<std::string>();
  };
  const std::string automatic = "pq:M=8,nbits=4,iters=1", fisher = automatic + ",metric=fisher";
  for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
    CAPTURE(kind_name(kind));
    CHECK(message_of(ErrorCode::kBadInput, [&] {
            trained(fisher, kind, bare);
          }).find("needs gradients") != std::string::npos);
    CHECK(metric(automatic, kind, data()) == "fisher");
    CHECK(metric(fisher, kind, data()) == "fisher");
    CHECK(metric(automatic, kind, bare) == (kind == KvKind::kKey ? "q" : "none"));
    CHECK(metric(automatic + ",frame=off", kind, data()) == "none");
    CHECK(make_codec(automatic, kind, bare.geometry)->wants_gradients());
    CHECK(!make_codec(automatic + ",frame=off", kind, bare.geometry)->wants_gradients());

    TensorBag bag = trained(fisher, kind)->save();
    const auto loads = [&](const std::string& spec) {
      return message_of(ErrorCode::kBadInput, [&] {
        bag.attributes["spec"] = make_codec(spec, kind, bare.geometry)->spec();
        make_codec(spec, kind, bare.geometry)->load(bag);
      });
    };
    CHECK(loads(fisher) == "no error");
    CHECK(loads(automatic) == "no error");
    CHECK(loads(automatic + ",metric=none").find("'metric' is \"fisher\", expected none") !=
          std::string::npos);
    bag.attributes["metric"] = "other";
    CHECK(loads(automatic).find("'metric' is \"other\"") != std::string::npos);
  }
  bare.q_second_moment.clear();
  CHECK(message_of(ErrorCode::kBadInput, [&] {
          trained(automatic + ",metric=q", KvKind::kKey, bare);
        }).find("needs query statistics") != std::string::npos);
}

TEST_CASE("metric: errors move to where they cost nothing", "[pq_basis]") {
  const KvGeometry g = data().geometry;
  CalibrationSet set = data();
  for (auto& layer : set.v_fisher) {  // only the first half of the channels matters
    std::fill(layer.begin(), layer.end(), 0.0f);
    for (int h = 0; h < 4; ++h)
      for (int i = 0; i < 8; ++i) layer[(h * 16 + i) * 16 + i] = 1.0f;
  }
  const auto x = rows(g, 300, 3);
  const auto errors = [&](const char* metric) {
    const auto codec =
        trained(fmt::format("pq:M=8,nbits=4,metric={}", metric), KvKind::kValue, set);
    const auto store = codec->make_store(1);
    store->append(x.data(), 300, 0);
    const auto y = decode_all(*store, g);
    std::pair<double, double> sum{0.0, 0.0};
    for (int h = 0; h < 4; ++h)
      for (int t = 0; t < 300; ++t)
        for (int c = 0; c < 16; ++c)
          (c < 8 ? sum.first : sum.second) +=
              std::pow(at(x, g, h, t, c) - y[(static_cast<size_t>(h) * 300 + t) * 16 + c], 2);
    return sum;
  };
  const auto plain = errors("none"), fisher = errors("fisher");
  CHECK(fisher.first < 0.8 * plain.first);
  CHECK(fisher.second > plain.second);
}

TEST_CASE("files: bytes round-trip, anything but whole numbers is refused", "[pq_basis]") {
  for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
    CAPTURE(kind_name(kind));
    const std::string spec = "pq:M=6,nbits=4,iters=1,span=2,rank=12,metric=fisher";
    const auto codec = trained(spec, kind);
    const TensorBag bag = codec->save();
    const auto again = make_codec(spec, kind, data().geometry);
    again->load(bag);
    const TensorBag copy = again->save();
    REQUIRE(copy.tensors.size() == bag.tensors.size());
    CHECK(bag.tensors.count("L01.H2.mean") == (kind == KvKind::kKey));
    for (const auto& [name, tensor] : bag.tensors) CHECK(copy.tensors.at(name).data == tensor.data);
    CHECK(again->shared_bytes() == codec->shared_bytes());  // nothing allocated in reserve
    for (const char* name : {"L01.H2.encode", "L01.H2.decode", "L01.H2.codebook"})
      for (const float wrong : {0.5f, 128.0f, -128.0f}) {
        TensorBag broken = bag;
        broken.tensors.at(name).data[3] = wrong;
        CHECK(message_of(ErrorCode::kBadInput, [&] {
                again->load(broken);
              }).find(fmt::format("'{}' holds {}", name, wrong)) != std::string::npos);
      }
  }
}

TEST_CASE("weights=fisher: centroids move to rows of large gradients", "[pq_basis]") {
  const KvGeometry g = data().geometry;
  const std::string plain = "pq:M=8,nbits=3,frame=pre,rotate=none,centre=0,metric=none";
  CalibrationSet set = data();
  for (auto* side : {&set.k_grad2, &set.v_grad2}) {  // large where the value is above average
    const auto& rows_of = side == &set.k_grad2 ? set.k_pre : set.v;
    side->assign(2, AlignedVector<float>(static_cast<size_t>(set.n_tokens) * g.row(), 1e-3f));
    for (int l = 0; l < 2; ++l)
      for (int c = 0; c < g.row(); ++c) {
        double mean = 0.0;
        for (int64_t t = 0; t < set.n_tokens; ++t)
          mean += half_to_float(rows_of[l][t * g.row() + c]) / set.n_tokens;
        for (int64_t t = 0; t < set.n_tokens; ++t)
          if (half_to_float(rows_of[l][t * g.row() + c]) > mean)
            side->at(l)[t * g.row() + c] = 1.0f;
      }
  }
  for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
    CAPTURE(kind_name(kind));
    const auto weighted = trained(plain + ",weights=fisher", kind, set);
    CHECK(weighted->wants_gradients());
    const TensorBag a = trained(plain, kind, set)->save(), b = weighted->save();
    int up = 0;
    for (int m = 0; m < 8; ++m)
      for (int i = 0; i < 2; ++i) {  // mean of eight centroids of a channel
        double difference = 0.0;
        for (int c = 0; c < 8; ++c) {
          const int at = (m * 8 + c) * 2 + i;
          difference += b.tensors.at("L01.H2.codebook").data[at];
          difference -= a.tensors.at("L01.H2.codebook").data[at];
        }
        up += difference > 0.0;
      }
    CHECK(up >= 14);  // of 16
    CHECK(message_of(ErrorCode::kBadInput, [&] {
            trained(plain + ",weights=fisher", kind, calibration(small_geometry()));
          }).find("weights=fisher needs gradients") != std::string::npos);
    for (const char* spec : {"pq:weights=fisher", "pq:frame=off,weights=fisher",
                             "pq:frame=pre,rotate=none,centre=0,weights=fisher"})
      CHECK(message_of(ErrorCode::kUsage, [&] {
              make_codec(std::string(spec) + ",M=8", kind, g);
            }).find("weights=fisher needs") != std::string::npos);
  }
}
