// SPDX-License-Identifier: Apache-2.0
// PQ keys in frames of every kind: rows by hand, values of an independent script
// (tests/golden/make_pq_golden.py), layers of different shape, and where codebooks hold.
#include "tests/pq_data.h"

#include "lib/core/files.h"

#include <spdlog/spdlog.h>
#include <catch2/catch.hpp>

#include <algorithm>
#include <cstring>

using namespace million;
using namespace million::testdata;

namespace {

[[maybe_unused]] const bool kQuiet = (spdlog::set_level(spdlog::level::err), true);

/// The mean of a unit's keys in a file, turned to the place of token t; empty when not centred.
std::vector<float> turned_mean(const TensorBag& bag, const std::string& unit, const KvGeometry& g,
                               int span, const KeyFrame& frame, int64_t t) {
  const auto it = bag.tensors.find(unit + ".mean");
  if (it == bag.tensors.end()) return {};
  std::vector<float> mean = it->second.data;
  g.rope.move(mean.data(), span, g.head_dim, frame.position(t));
  return mean;
}

}  // namespace

TEST_CASE("frames: rows are what E, codebook, D and the turned mean make of them", "[pq_frames]") {
  const KvGeometry g = data().geometry;
  constexpr int kRows = 40, kFirst = 5;
  const auto x = rows(g, kRows);
  for (const char* frame : {"off", "pre", "64", "7"})
    for (const int span : {1, 2})
      for (const char* metric : {"none", "fisher"}) {
        CAPTURE(frame, span, metric);
        const auto codec = trained(
            fmt::format("pq:M=8,nbits=4,iters=2,centre=1,rotate=pca,frame={},span={},metric={}",
                        frame, span, metric),
            KvKind::kKey);
        const TensorBag bag = codec->save();
        const auto y = framed(x, g, codec->frame(), kFirst);
        const auto store = codec->make_store(1);
        store->append(y.data(), 18, kFirst);
        store->append(y.data() + 18 * g.row(), kRows - 18, kFirst + 18);
        const auto decoded = decode_all(*store, g);
        double worst = 0.0;
        for (int u = 0; u < 4 / span; ++u)
          for (int t = 0; t < kRows; ++t) {
            const std::string unit = fmt::format("L01.H{}", u * span);
            const auto mean = turned_mean(bag, unit, g, span, codec->frame(), kFirst + t);
            REQUIRE(mean.size() == static_cast<size_t>(16 * span));
            const auto want = by_hand(bag, unit, &y[t * g.row() + u * span * 16], mean,
                                      codec->frame().type != KeyFrame::Type::kPostRope);
            for (int c = 0; c < 16 * span; ++c) {
              const int h = u * span + c / 16;
              worst = std::max(worst, std::abs(want[c] - decoded[(h * kRows + t) * 16 + c % 16]));
            }
          }
        // A mean that rounds to the neighbouring half in float moves a row by one step of it.
        CHECK(worst < 5e-3);
      }
}

TEST_CASE("frames: YaRN's magnitude is part of the mean", "[pq_frames]") {
  CalibrationSet set = data();
  RopeParams p = set.geometry.rope.params();
  p.scaling = RopeScaling::kYarn;
  p.factor = 4;
  p.original_context = 512;
  set.geometry.rope = Rope(p);
  const std::string spec = "pq:M=8,nbits=4,iters=2,metric=none";
  const auto plain = trained(spec, KvKind::kKey)->save(),
             yarn = trained(spec, KvKind::kKey, set)->save();
  const auto &a = plain.tensors.at("L00.H0.mean").data, &b = yarn.tensors.at("L00.H0.mean").data;
  for (size_t c = 0; c < a.size(); ++c)
    CHECK(b[c] == Approx(set.geometry.rope.magnitude() * a[c]).epsilon(1e-4));
  const auto x = rows(set.geometry, 300);
  CHECK(coded_nmse(*trained(spec, KvKind::kKey, set), KvKind::kKey, x, set.geometry) ==
        Approx(coded_nmse(*trained(spec, KvKind::kKey), KvKind::kKey, x, data().geometry))
            .epsilon(0.2));
}

TEST_CASE("frames: block and pre-RoPE codebooks hold beyond the calibrated length", "[pq_frames]") {
  const KvGeometry g = data().geometry;
  const auto x = rows(g, 256);
  const auto at_position = [&](const char* frame, int64_t first) {
    static std::map<std::string, std::unique_ptr<Codec>> codecs;
    auto& codec = codecs[frame];
    if (!codec)
      codec = trained(fmt::format("pq:M=8,nbits=6,metric=none,frame={}", frame), KvKind::kKey);
    return coded_nmse(*codec, KvKind::kKey, x, g, first);
  };
  constexpr int64_t kFar = 64 * 1600;
  CHECK(at_position("off", kFar) > 2.0 * at_position("off", 64));
  CHECK(at_position("64", kFar) == Approx(at_position("64", 64)).epsilon(0.02));
  CHECK(at_position("pre", kFar) == Approx(at_position("pre", 64)).epsilon(0.02));
}

TEST_CASE("frames: calibration positions move keys after RoPE only", "[pq_frames]") {
  CalibrationSet far = data();
  far.positions = 200000;
  const auto same = [&](const char* options, KvKind kind) {
    const std::string spec = fmt::format("pq:M=8,nbits=4,iters=2,{}", options);
    const TensorBag a = trained(spec, kind)->save(), b = trained(spec, kind, far)->save();
    CHECK(b.attributes.at("calibration").at("positions") == 200000);
    return std::all_of(a.tensors.begin(), a.tensors.end(), [&](const auto& named) {
      return b.tensors.at(named.first).data == named.second.data;
    });
  };
  for (const char* frame : {"frame=64", "frame=pre", "frame=7,metric=none"})
    CHECK(same(frame, KvKind::kKey));
  CHECK(!same("frame=off", KvKind::kKey));
  CHECK(!same("frame=off,rotate=pca,centre=1,metric=fisher", KvKind::kKey));
  CHECK(same("frame=off", KvKind::kValue));
  const auto x = rows(data().geometry, 256);
  const std::string off = "pq:M=8,nbits=6,frame=off";
  CHECK(coded_nmse(*trained(off, KvKind::kKey, far), KvKind::kKey, x, far.geometry, 102400) <
        0.7 * coded_nmse(*trained(off, KvKind::kKey), KvKind::kKey, x, far.geometry, 102400));
}

TEST_CASE("layers: each has its own shape, fp16 is exact", "[pq_frames]") {
  const KvGeometry g = data().geometry;
  const auto x = rows(g, 600);
  for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
    CAPTURE(kind_name(kind));
    const auto codec = trained("pq:M=8,layers=8x6+fp16", kind);
    CHECK(codec->nominal_bits() == (8 * 6 / 16.0 + 16.0) / 2);
    const auto coded = codec->make_store(0), exact = codec->make_store(1);
    for (const auto* store : {&coded, &exact}) (*store)->append(x.data(), 600, 0);
    const auto y = decode_all(*exact, g);
    for (int h = 0; h < 4; ++h)
      for (int t = 0; t < 600; ++t)
        for (int c = 0; c < 16; ++c)
          REQUIRE(y[(h * 600 + t) * 16 + c] == half_to_float(float_to_half(at(x, g, h, t, c))));
    const double error = nmse(x, decode_all(*coded, g), g);
    CHECK(error > 1e-4);
    const double values = 600.0 * g.row();
    CHECK(8.0 * static_cast<double>(exact->bytes().total()) / values >= 16.0);
    CHECK(8.0 * static_cast<double>(coded->bytes().total()) / values <
          8 * 6 / 16.0 * 1024 / 600 + 0.3);  // two blocks of 512 tokens
    for (const auto& [name, tensor] : codec->save().tensors) CHECK(name.rfind("L00.", 0) == 0);
    const auto again = make_codec("pq:M=8,layers=8x6*1+fp16*1", kind, g);
    CHECK(again->nominal_bits() == codec->nominal_bits());

    const auto mixed = trained("pq:M=8,layers=8x3+4x8", kind);
    CHECK(mixed->save().tensors.at("L00.H0.codebook").shape == std::vector<std::size_t>{32, 8, 2});
    CHECK(mixed->save().tensors.at("L01.H0.codebook").shape ==
          std::vector<std::size_t>{16, 256, 4});
    CHECK(!make_codec("pq:M=8,layers=fp16*2", kind, g)->needs_training());
    CHECK(!make_codec("pq:M=8,layers=fp16*2", kind, g)->wants_gradients());
  }
}

TEST_CASE("metric: gradients are for caches without a window", "[pq_frames]") {
  const auto wants = [](const char* spec, int window) {
    const auto codec = make_codec(spec, KvKind::kKey, data().geometry);
    codec->expect_window(window);
    return codec->wants_gradients();
  };
  CHECK(wants("pq:M=8", 0));
  CHECK(!wants("pq:M=8", 128));
  CHECK(wants("pq:M=8,metric=fisher", 128));
  CHECK(!wants("pq:M=8,metric=q", 0));
}

TEST_CASE("layers: wrong texts say what is wrong", "[pq_frames]") {
  const std::pair<const char*, const char*> wrong[] = {
      {"8x6", "1 layers, the model has 2"},
      {"8x6*3", "the model has 2"},
      {"8x6*1+fp16*2", "the model has 2"},
      {"8x6*2000000000", "the model has 2"},
      {"8x6*0+fp16*2", "'8x6*0' is no run of layers"},
      {"fp17*2", "'fp17*2' is no run of layers"},
      {"8x*2", "'8x*2' is no run of layers"},
      {"8x6x2*2", "'8x6x2*2' is no run of layers"},
      {"8x6++8x6", "'' is no run of layers"},
      {"8x6*2+", "'' is no run of layers"},
      {"7x6*2", "M=7 does not divide head_dim 16; use one of 1, 2, 4, 8, 16"},
      {"8x13*2", "13 bits a code, expected 1 to 12"},
      {"8*2", "0 bits a code, expected 1 to 12"}};
  for (const auto& [text, message] : wrong) {
    const std::string got = message_of(ErrorCode::kUsage, [&, text = text] {
      make_codec(fmt::format("pq:M=8,layers={}", text), KvKind::kKey, data().geometry);
    });
    CAPTURE(text, got);
    CHECK(got.find(message) != std::string::npos);
  }
  CHECK(message_of(ErrorCode::kUsage, [] {
          make_codec("pq:M=8,layers=8x6+8x5,scope=model", KvKind::kKey, data().geometry);
        }).find("scope=layer or scope=head") != std::string::npos);
}

TEST_CASE("golden: pq decodes as the numpy script says", "[golden]") {
  const Json golden = Json::parse(read_file(MILLION_TEST_DIR "/golden/pq.json"));
  const int n = golden["n_tokens"], first = golden["first_token"];
  const auto x = golden["x"].get<std::vector<float>>();
  CHECK(golden["cases"].size() == 16);
  for (const Json& c : golden["cases"]) {
    const auto spec = c["spec"].get<std::string>(), pairs = c["pairs"].get<std::string>();
    CAPTURE(spec, pairs);
    RopeParams rope;
    rope.n_rot = golden["head_dim"];
    rope.base = golden["base"];
    rope.pairs = pairs == "halves" ? RopePairs::kHalves : RopePairs::kAdjacent;
    const KvGeometry g = {1, 2, 2, rope.n_rot, Rope(rope)};
    const KvKind kind = c["kind"] == "k" ? KvKind::kKey : KvKind::kValue;
    const auto codec = make_codec(spec, kind, g);
    codec->train(calibration(g, 256, 256), 4);  // attributes and names; the tables are replaced
    TensorBag bag = codec->save();
    const Json& tables = golden["tables"][c["tables"].get<std::string>()];
    for (auto& [name, tensor] : bag.tensors) {
      const auto values = tables.at(name).get<std::vector<float>>();
      REQUIRE(values.size() == tensor.data.size());
      std::copy(values.begin(), values.end(), tensor.data.begin());
    }
    codec->load(bag);
    const auto y = framed(
        x, g, kind == KvKind::kKey ? codec->frame() : KeyFrame{KeyFrame::Type::kPreRope, 0}, first);
    const auto store = codec->make_store(0);
    store->append(y.data(), n, first);
    const auto decoded = decode_all(*store, g);
    const auto want = c["decoded"].get<std::vector<float>>();
    // A mean at the border of two halves may round either way in float and in double.
    const double margin = kind == KvKind::kKey && c["tables"] != "plain" ? 5e-3 : 1e-5;
    REQUIRE(want.size() == decoded.size());
    for (int h = 0; h < 2; ++h)
      for (int t = 0; t < n; ++t)
        for (int i = 0; i < g.head_dim; ++i)
          REQUIRE(decoded[(h * n + t) * g.head_dim + i] ==
                  Approx(at(want, g, h, t, i)).epsilon(1e-5).margin(margin));
  }
}
