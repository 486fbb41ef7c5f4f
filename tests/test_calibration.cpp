// SPDX-License-Identifier: Apache-2.0
// Calibration: positions of training rows, gradients in files and records, what KVQuant does with
// them, and data that do not lie in memory.
#include "lib/core/parallel.h"
#include "lib/eval/method_factory.h"
#include "lib/quant/codec_identity.h"
#include "lib/results/tensor_file.h"
#include "tests/quant_data.h"
#include "tests/scratch.h"
#include "tests/tiny_model.h"

#include <spdlog/spdlog.h>
#include <catch2/catch.hpp>

#include <algorithm>
#include <set>

using namespace million;

namespace {

[[maybe_unused]] const bool kQuiet = (spdlog::set_level(spdlog::level::err), true);

constexpr KeyFrame kPost{KeyFrame::Type::kPostRope, 0}, kPre{KeyFrame::Type::kPreRope, 0};

std::shared_ptr<const Model> tiny() {
  const Scratch folder;
  return Model::load(write_tiny_model({}, folder / "tiny.gguf"));
}

TokenText text(int n) {
  TokenText t{"random", "text hash", {}};
  Rng rng(17);
  for (int i = 0; i < n; ++i) t.tokens.push_back(static_cast<int32_t>(rng.below(280)));
  return t;
}

std::vector<std::filesystem::path> files(const Scratch& folder) {
  std::vector<std::filesystem::path> found;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path()))
    found.push_back(entry.path());
  return found;
}

std::vector<float> levels(const CalibrationSet& set, KvKind kind) {
  const auto codec = make_codec("kvquant:bits=3,outliers=0", kind, set.geometry);
  codec->train(set, 4);
  return codec->save().tensors.at("L01.levels").data;
}

}  // namespace

TEST_CASE("random positions: keys after RoPE only, the same for every run", "[calibration]") {
  CalibrationSet set = testdata::calibration(testdata::geometry());
  const auto own = calibration_rows(set, KvKind::kKey, 1, 2, kPost, 4);
  const auto pre = calibration_rows(set, KvKind::kKey, 1, 2, kPre, 4);
  const auto values = calibration_rows(set, KvKind::kValue, 1, 2, kPost, 4);
  set.positions = 512;  // not above the context: nothing changes
  CHECK(set.covered() == 512);
  CHECK(calibration_rows(set, KvKind::kKey, 1, 2, kPost, 4) == own);
  set.positions = 8192;
  CHECK(set.covered() == 8192);
  CHECK(calibration_rows(set, KvKind::kKey, 1, 2, kPre, 4) == pre);
  CHECK(calibration_rows(set, KvKind::kValue, 1, 2, kPost, 4) == values);
  const auto moved = calibration_rows(set, KvKind::kKey, 1, 2, kPost, 4);
  CHECK(moved == calibration_rows(set, KvKind::kKey, 1, 2, kPost, 4));
  REQUIRE(moved.size() == own.size());
  std::set<int64_t> seen;
  double mean = 0.0;
  for (int64_t t = 0; t < set.n_tokens; ++t) {
    const int64_t at = set.frame_position(kPost, t);
    CHECK((at >= 0 && at < 8192));
    seen.insert(at);
    mean += static_cast<double>(at) / set.n_tokens;
    CHECK(set.frame_position(kPre, t) == 0);
    CHECK(set.frame_position({KeyFrame::Type::kBlock, 64}, t) == t % 512 % 64);
  }
  CHECK(seen.size() > 900);                    // 1024 draws of 8192: 63 repeat on average
  CHECK(mean == Approx(4096).margin(4 * 74));  // standard error 8192 / sqrt(12 * 1024)
  std::vector<float> row(pre.begin() + 100 * 64, pre.begin() + 101 * 64);
  set.geometry.rope.rotate_to(row.data(), 1, 64, set.frame_position(kPost, 104));
  for (int c = 0; c < 64; ++c) CHECK(moved[100 * 64 + c] == Approx(row[c]).margin(1e-6));
}

TEST_CASE("kvquant: levels come from the rows with gradients, ranges from all", "[kvquant]") {
  for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
    INFO(kind_name(kind));
    CalibrationSet set = testdata::calibration(testdata::geometry());
    const int row = set.geometry.row();
    const auto plain = levels(set, kind);
    set.n_grad_tokens = 300;
    set.grad_labels = "text";
    for (auto* side : {&set.k_grad2, &set.v_grad2})
      side->assign(2, AlignedVector<float>(static_cast<size_t>(300) * row, 1.0f));
    const auto before = levels(set, kind);
    CHECK(before != plain);
    auto& data = (kind == KvKind::kKey ? set.k_pre : set.v)[1];
    CalibrationSet inside = set;
    for (int c = 0; c < row; ++c) {  // all but the extremes of a channel, which are its range
      const auto at = [&](int64_t t) { return half_to_float(data[t * row + c]); };
      int64_t low = 4, high = 4;
      for (int64_t t = 4; t < set.n_tokens; ++t) {
        if (t >= 512 && t < 516) continue;
        if (at(t) < at(low)) low = t;
        if (at(t) > at(high)) high = t;
      }
      const float middle = 0.5f * (at(low) + at(high));
      for (int64_t t = 516; t < set.n_tokens; ++t)
        if (t != low && t != high) data[t * row + c] = float_to_half(middle);
      if (20 != low && 20 != high)
        (kind == KvKind::kKey ? inside.k_pre : inside.v)[1][20 * row + c] =
            float_to_half(c % 2 ? middle : at(30));
    }
    CHECK(levels(set, kind) == before);
    CHECK(levels(inside, kind) != before);
    set.n_grad_tokens = 8;  // 4 of them are sinks
    for (auto* side : {&set.k_grad2, &set.v_grad2})
      side->assign(2, AlignedVector<float>(static_cast<size_t>(8) * row, 1.0f));
    CHECK_THROWS_WITH(levels(set, kind), Catch::Contains("4 rows with gradients"));
  }
}

TEST_CASE("captured gradients: squares and Fisher matrices agree", "[gradients]") {
  const auto model = tiny();
  const TokenText calib = text(400);
  CalibrationPlan plan{&calib, 64, 256};
  CalibrationSet set = capture_calibration(model, plan);
  CHECK(set.n_tokens == 256);
  CHECK(set.n_grad_tokens == 0);
  capture_gradients(model, plan, set);
  CHECK(set.n_grad_tokens == 128);
  CHECK(set.grad_labels == "text");
  const int d = 64, row = set.geometry.row();
  for (const bool keys : {true, false})
    for (int l = 0; l < 2; ++l) {
      const auto& squares = (keys ? set.k_grad2 : set.v_grad2).at(l);
      const auto& fisher = (keys ? set.k_fisher : set.v_fisher).at(l);
      REQUIRE(squares.size() == static_cast<size_t>(128) * row);
      REQUIRE(fisher.size() == static_cast<size_t>(row) * d);
      for (int c = 0; c < row; ++c) {
        double mean = 0.0;
        for (int t = 0; t < 128; ++t) mean += t % 64 < 4 ? 0.0 : squares[t * row + c] / 120.0;
        const int i = c % d;
        CHECK(fisher[(c / d * d + i) * d + i] == Approx(mean).epsilon(1e-4));
        CHECK(mean > 0);
        for (int j = 0; j < i; ++j) {
          const float a = fisher[(c / d * d + i) * d + j];
          CHECK(a == fisher[(c / d * d + j) * d + i]);
          CHECK(a * a <=
                1.001f * fisher[(c / d * d + i) * d + i] * fisher[(c / d * d + j) * d + j]);
        }
      }
    }
  plan.labels = GradientLabels::kSampled;
  CalibrationSet sampled = set;
  capture_gradients(model, plan, sampled);
  CHECK(sampled.grad_labels == "sampled");
  CHECK(sampled.k_fisher != set.k_fisher);
}

TEST_CASE("codebook files and records name gradients and covered positions", "[gradients]") {
  const auto model = tiny();
  const TokenText calib = text(400);
  const auto method = [&](const Scratch& folder, const char* spec, int windows, int64_t positions) {
    CalibrationPlan plan{&calib, 64, 256, windows, positions};
    return to_json(
        MethodFactory(model, plan, folder.path()).make(MethodSpec::parse(spec), 64).calibration);
  };
  const Scratch folder;
  const Json two = method(folder, "kvquant:bits=3", 2, 0);
  CHECK(two.at("grad_windows") == 2);
  CHECK(two.at("labels") == "text");
  CHECK(two.at("tokens") == 256);
  REQUIRE(files(folder).size() == 2);  // keys and values, and no temporary file
  for (const auto& file : files(folder)) {
    const TensorBag bag = load_tensors(file);
    CHECK(bag.attributes.at("calibration").at("grad_windows") == 2);
    CHECK(bag.attributes.at("calibration").at("labels") == "text");
    const CalibrationInfo info = calibration_info(bag);
    CHECK(info.grad_windows == 2);
    CHECK(info.positions == 64);
  }
  CHECK(method(folder, "kvquant:bits=3", 2, 0) == two);
  CHECK(files(folder).size() == 2);
  const Json none = method(folder, "kvquant:bits=3", 0, 0);
  CHECK(none.at("grad_windows") == 0);
  CHECK(!none.contains("labels"));
  CHECK(files(folder).size() == 4);
  CHECK(method(folder, "kvquant:bits=3", 100, 0).at("grad_windows") == 4);  // all there are

  const Scratch pq;
  const Json plain = method(pq, "pq:M=8,nbits=2,frame=off", 2, 0);
  CHECK(!plain.contains("grad_windows"));
  CHECK(plain.at("positions") == 64);
  CHECK(files(pq).size() == 2);
  CHECK(method(pq, "pq:M=8,nbits=2,frame=off", 0, 0) == plain);  // gradients do not concern it
  CHECK(files(pq).size() == 2);
  CHECK(method(pq, "pq:M=8,nbits=2,frame=off", 2, 4096).at("positions") == 4096);
  CHECK(files(pq).size() == 4);
  CHECK_THROWS_WITH(method(pq, "pq:M=8,nbits=2,frame=off", -1, 0),
                    Catch::Contains("--calib-grad-windows"));
}

TEST_CASE("a set that lies in files trains the same codec", "[calibration]") {
  // 12000 tokens of 192 halves are 4.4 MiB a layer.
  CalibrationSet large = testdata::calibration(testdata::geometry(1), 12000, 512);
  CHECK(!large.k_pre[0].spilled());  // push_back stays on the heap
  CalibrationSet spilled = large;
  CHECK(spilled.k_pre[0].spilled());
  for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
    const auto a = make_codec("kvquant:bits=3", kind, large.geometry),
               b = make_codec("kvquant:bits=3", kind, large.geometry);
    a->train(large, 4);
    b->train(spilled, 4);
    CHECK(a->save().tensors.at("L00.levels").data == b->save().tensors.at("L00.levels").data);
  }
}
