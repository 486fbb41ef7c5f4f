// SPDX-License-Identifier: Apache-2.0
// Bits split over layers on a small model, and what a sweep makes of rows: budgets are kept, what
// was measured is used again, codebooks count at every length, only like is compared with like.
#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/eval/sweep.h"
#include "lib/results/tensor_file.h"
#include "tests/scratch.h"
#include "tests/tiny_model.h"

#include <spdlog/spdlog.h>
#include <catch2/catch.hpp>

#include <algorithm>
#include <fstream>

using namespace million;

namespace {

[[maybe_unused]] const bool kQuiet = (spdlog::set_level(spdlog::level::err), true);

std::shared_ptr<const Model> tiny(int n_context = 512, uint64_t seed = 1) {
  const Scratch folder;
  TinyModelSpec spec;
  spec.n_context = n_context;
  spec.seed = seed;
  return Model::load(write_tiny_model(spec, folder / "tiny.gguf"));
}

TokenText text(int n, const char* name, uint64_t seed) {
  TokenText t{name, std::string("hash of ") + name, {}};
  Rng rng(seed);
  for (int i = 0; i < n; ++i) t.tokens.push_back(static_cast<int32_t>(rng.below(280)));
  return t;
}

constexpr const char* kBase = "pq:M=16,nbits=4,iters=1,sinks=4";

/// One allocation on the tiny model with everything kept in `folder`.
struct Setting {
  std::shared_ptr<const Model> model = tiny();
  TokenText calib = text(512, "calibration", 17);
  CalibrationPlan plan{&calib, 128, 512};

  Allocation allocate(double budget, const std::filesystem::path& folder,
                      const char* base = kBase) const {
    MethodFactory factory(model, plan, folder);
    return allocate_bits(model, factory, plan, {}, MethodSpec::parse(base), budget, folder);
  }
};

std::filesystem::path sensitivity_file(const Scratch& folder) {
  for (const auto& entry : std::filesystem::directory_iterator(folder.path()))
    if (entry.path().filename().string().rfind("sensitivity-", 0) == 0) return entry.path();
  return {};
}

void put(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

std::vector<double> bits_of(const Allocation& a) {
  std::vector<double> bits;
  for (const LayerShare& s : a.shares) bits.push_back(s.bits);
  return bits;
}

/// The message of the one-line Error that f throws.
template <class F>
std::string message_of(ErrorCode code, const F& f) {
  try {
    f();
  } catch (const Error& e) {
    const std::string message = e.what();
    return e.code() == code && message.find('\n') == std::string::npos ? message
                                                                       : "wrong: " + message;
  }
  return "no error";
}

}  // namespace

TEST_CASE("allocation: the budget is used and kept, the text is a method", "[allocation]") {
  const Setting s;
  const Scratch folder;
  const KvGeometry g = s.model->config.geometry();
  for (const double budget : {0.75, 1.3, 2.0, 3.3}) {
    const Allocation a = s.allocate(budget, folder.path());
    CAPTURE(budget, a.to_text());
    CHECK(a.bits <= budget + 1e-9);
    CHECK(a.bits > budget - 0.13);  // four shares, shapes up to half a bit apart
    REQUIRE(a.shares.size() == 4);
    double mean = 0.0;
    for (const LayerShare& share : a.shares) {
      CHECK(share.kl > 0.0);
      mean += share.bits / 4;
    }
    CHECK(mean == Approx(a.bits));
    CHECK(a.shares[1].kind == KvKind::kKey);
    CHECK(a.shares[1].layer == 1);
    CHECK(a.shares[2].kind == KvKind::kValue);
    CHECK(a.spec.sinks == 4);
    const auto key = make_codec(a.spec.key_codec, KvKind::kKey, g);
    const auto value = make_codec(a.spec.value_codec, KvKind::kValue, g);
    CHECK((key->nominal_bits() + value->nominal_bits()) / 2 == Approx(a.bits));
    CHECK(key->nominal_bits() == Approx((a.shares[0].bits + a.shares[1].bits) / 2));
    CHECK(a.to_text().find(a.spec.to_string()) != std::string::npos);
    const Scratch other;
    CHECK(s.allocate(budget, other.path()).spec == a.spec);
    CHECK(s.allocate(budget, {}).spec == a.spec);
  }
  CHECK(s.allocate(4.5, folder.path()).bits == 4.0);
}

TEST_CASE("allocation: what was measured is used again, a damaged file is not", "[allocation]") {
  const Setting s;
  const Scratch folder;
  const Allocation measured = s.allocate(2.0, folder.path());
  const auto path = sensitivity_file(folder);
  const std::string good = read_file(path);
  const auto bits_with = [&](const Json& kl) {
    Json kept = Json::parse(good);
    kept["kl"] = kl;
    put(path, kept.dump());
    return bits_of(s.allocate(2.0, folder.path()));
  };
  for (size_t i = 0; i < 4; ++i) {  // the share that costs most gets most
    std::vector<double> kl(4, 1e-6);
    kl[i] = 1.0;
    const auto bits = bits_with(kl);
    CHECK(bits[i] == 4.0);
    CHECK(std::count(bits.begin(), bits.end(), 4.0) == 1);
  }
  CHECK(bits_with({1.0, 1.0, 1.0, 1.0}) == std::vector<double>(4, 2.0));
  const auto again = [&](const std::string& bytes) {
    put(path, bytes);
    const bool equal = s.allocate(2.0, folder.path()).spec == measured.spec;
    return equal && read_file(path) == good;  // measured and written again
  };
  CHECK(again(""));
  CHECK(again(good.substr(0, good.size() / 2)));
  CHECK(again("[1, 2, 3, 4]"));
  Json kept = Json::parse(good);
  for (const Json& kl : {Json({1.0, 2.0}), Json({1.0, 2.0, 3.0, nullptr}), Json("four"), Json()}) {
    kept["kl"] = kl;
    CHECK(again(kept.dump()));
  }
  kept.erase("kl");
  CHECK(again(kept.dump()));
  kept = Json::parse(good);
  kept["kl"] = {1e-6, 1e-6, 1e-6, 1.0};
  kept["id"]["model_sha256"] = "another";
  CHECK(again(kept.dump()));
}

TEST_CASE("allocation: wrong budgets and methods are one line", "[allocation]") {
  const Setting s;
  const auto usage = [&](double budget, const char* base) {
    return message_of(ErrorCode::kUsage, [&] { s.allocate(budget, {}, base); });
  };
  CHECK(usage(0.74, kBase).find("the smallest shape has 0.75 bits") != std::string::npos);
  CHECK(usage(2.0, "uniform:bits=2").find("expected pq") != std::string::npos);
  CHECK(usage(2.0, "fp16").find("'fp16', expected pq") != std::string::npos);
  CHECK(usage(2.0, "pq:M=16,layers=16x4*2").find("without layers=") != std::string::npos);
  const TokenText eval = text(512, "evaluation", 3);
  SessionPlan plan;
  plan.evaluation.windows = cut_windows(eval, 128, 1);
  EvalSession session(s.model, plan);
  CHECK(message_of(ErrorCode::kUsage, [&] {
          session.allocate(MethodSpec::parse(kBase), 2.0);
        }).find("--calib-text") != std::string::npos);
}

TEST_CASE("codebooks of another model are refused by name", "[allocation]") {
  const Setting s;
  const Scratch folder;
  const MethodSpec spec = MethodSpec::parse(kBase);
  MethodFactory(s.model, s.plan, folder.path()).make(spec, 128);
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    TensorBag bag = load_tensors(entry.path());
    CHECK(bag.attributes["calibration"]["model_sha256"] == s.model->sha256);
    bag.attributes["calibration"]["model_sha256"] = "fedcba";
    std::filesystem::remove(entry.path());
    save_tensors(entry.path(), bag);
  }
  const std::string message = message_of(
      ErrorCode::kBadInput, [&] { MethodFactory(s.model, s.plan, folder.path()).make(spec, 128); });
  CAPTURE(message);
  CHECK(message.find("fedcba") != std::string::npos);
  CHECK(message.find(s.model->sha256) != std::string::npos);
}

TEST_CASE("session: bits at a length count codebooks there", "[session]") {
  const auto model = tiny(2048);
  const TokenText eval = text(2048, "evaluation", 3), calib = text(512, "calibration", 17);
  SessionPlan plan;
  plan.evaluation.windows = cut_windows(eval, 2048, 1);
  plan.calibration = {&calib, 128, 512};
  plan.distortion = false;
  for (const Protocol protocol : {Protocol::kAllDistorted, Protocol::kDecodePath}) {
    plan.evaluation.protocol = protocol;
    EvalSession session(model, plan);
    for (const char* spec : {kBase, "uniform:bits=4,window=128,sinks=4", "fp16"}) {
      CAPTURE(spec, protocol_name(protocol));
      const RunRecord r = session.run(MethodSpec::parse(spec));
      const auto at = [&](const char* n) { return r.bits.at("at").at(n).get<double>(); };
      // all-distorted codes the exact window's tokens too; a sequence holds them once.
      const bool twice = protocol == Protocol::kAllDistorted && r.config.at("window") > 0;
      const double coded =
          8.0 * (r.bytes.at("codes").get<double>() + r.bytes.at("scales").get<double>()) /
          (2048.0 * 2 * 2 * model->config.geometry().row());
      const double total = r.bits.at("total").get<double>() - (twice ? coded * 128 / 2044 : 0.0);
      CHECK(at("2048") == Approx(total).epsilon(0.03));
      if (std::string(spec) == "fp16") {
        CHECK(at("131072") == 16.0);
        continue;
      }
      CHECK(at("8192") < at("2048"));
      CHECK(at("32768") < at("8192"));
      CHECK(at("131072") < at("32768"));
      CHECK(at("131072") == Approx(r.bits.at("nominal").get<double>()).epsilon(0.1));
      CHECK(at("131072") > r.bits.at("nominal").get<double>());
    }
  }
}

TEST_CASE("pareto: rows compete at one context, protocol and text", "[pareto]") {
  const auto row = [](int context, double bits, double kl, Json at = nullptr) {
    Json r = {{"status", "ok"},
              {"config", {{"context", context}, {"protocol", "p"}}},
              {"inputs", {{"text_sha256", "t"}}},
              {"metrics", {{"kl", {{"value", kl}}}}},
              {"bits", {{"cache", bits}}}};
    if (!at.is_null()) r["bits"]["at"] = at;
    return r;
  };
  std::vector<Json> rows = {row(512, 2.0, 0.10),  row(512, 3.0, 0.20), row(512, 3.0, 0.05),
                            row(2048, 3.0, 0.20), row(512, 1.0, 0.9),  row(512, 2.0, 0.10),
                            row(512, 1.0, 0.01),  row(512, 1.0, 0.01), row(512, 1.0, 0.01)};
  rows[6]["status"] = "failed";
  rows[7]["config"]["protocol"] = "other";
  rows[8]["inputs"]["text_sha256"] = "other";
  mark_pareto(rows);
  const bool expected[] = {true, false, true, true, true, true};  // equal rows do not beat
  for (int i = 0; i < 6; ++i) CHECK(rows[i].at("pareto") == expected[i]);
  CHECK(!rows[6].contains("pareto"));
  CHECK(!rows[0].contains("pareto_at"));

  // Large codebooks: beaten at short lengths, unbeaten where they no longer count.
  std::vector<Json> two = {row(512, 2.0, 0.10, {{"2048", 6.0}, {"131072", 2.1}}),
                           row(512, 3.0, 0.05, {{"2048", 3.2}, {"131072", 3.0}}),
                           row(512, 2.0, 0.01)};
  mark_pareto(two);
  CHECK(two[0].at("pareto") == false);
  CHECK(two[0].at("pareto_at") == Json({{"2048", false}, {"131072", true}}));
  CHECK(two[1].at("pareto_at") == Json({{"2048", true}, {"131072", true}}));
  CHECK(!two[2].contains("pareto_at"));
}
