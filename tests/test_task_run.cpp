// SPDX-License-Identifier: Apache-2.0
// The machinery of tasks, perplexity by context and growth: shared reading of prompts, copies of
// caches, rows and resume, on a tiny model with tasks of the test's own making.
#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/core/rng.h"
#include "lib/eval/context_curve.h"
#include "lib/eval/growth.h"
#include "lib/eval/run_cost.h"
#include "lib/model/generator.h"
#include "tests/local_task.h"
#include "tests/scratch.h"
#include "tests/tiny_model.h"

#include <spdlog/spdlog.h>
#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <sstream>

using namespace million;
using Catch::Matchers::Contains;

namespace {

[[maybe_unused]] const bool kQuiet = (spdlog::set_level(spdlog::level::err), true);

constexpr int kVocab = 280;
constexpr const char* kMethods[] = {"fp16",
                                    "pq:M=16,nbits=4,sinks=4,window=16",
                                    "pq:M=16,nbits=4,frame=off,sinks=4",
                                    "kivi:bits=2,group=32,residual=32",
                                    "kvquant:bits=3,outliers=0.01,sinks=1",
                                    "turboquant:bits=3",
                                    "q4_0",
                                    "uniform:bits=4,axis=token,group=64",
                                    "commvq:bits=2"};

std::shared_ptr<const Model> tiny() {
  static const auto model = [] {
    const Scratch folder;
    return Model::load(write_tiny_model({}, folder / "tiny.gguf"));
  }();
  return model;
}

std::vector<int32_t> random_tokens(uint64_t seed, int n) {
  std::vector<int32_t> tokens;
  Rng rng(seed);
  for (int i = 0; i < n; ++i) tokens.push_back(static_cast<int32_t>(4 + rng.below(kVocab - 4)));
  return tokens;
}

const TokenText& text() {
  static const TokenText t{"random", "text hash", random_tokens(17, 2000)};
  return t;
}

const CalibrationPlan& calibration() {
  static const TokenText t{"calibration", "calibration hash", random_tokens(18, 700)};
  static const CalibrationPlan plan{&t, 128, 512};
  return plan;
}

const Method& method(const std::string& spec) {
  static std::map<std::string, Method> made;
  static MethodFactory factory(tiny(), calibration(), {});
  if (!made.count(spec)) made[spec] = factory.make(MethodSpec::parse(spec), 256);
  return made.at(spec);
}

EngineOptions options() {
  EngineOptions o;
  o.decoder.chunk = 64;
  o.async_encode = true;
  return o;
}

using Rows = std::vector<float>;
Rows forward(Engine& engine, std::span<const int32_t> tokens) {
  const auto hidden = engine.forward(tokens);
  return {hidden.begin(), hidden.end()};
}

/// Hidden states of a chunk and then of single tokens, which take the fused kernels.
Rows chunk_and_steps(Engine& engine, std::span<const int32_t> tokens) {
  Rows all = forward(engine, tokens.first(tokens.size() / 2));
  for (const int32_t token : tokens.subspan(tokens.size() / 2)) {
    const Rows one = forward(engine, {&token, 1});
    all.insert(all.end(), one.begin(), one.end());
  }
  return all;
}

/// Keys and values as the model makes them.
class Recorder final : public Probe {
 public:
  void on_layer(int layer, int64_t, int n, const float*, const float*, const float*, const float* k,
                const float* v) override {
    const size_t size = static_cast<size_t>(n) * tiny()->config.geometry().row();
    keys[layer].insert(keys[layer].end(), k, k + size);
    values[layer].insert(values[layer].end(), v, v + size);
  }
  std::map<int, Rows> keys, values;
};

GridPlan grid_plan(std::vector<std::string> methods, std::vector<int> lengths) {
  GridPlan plan;
  plan.model = tiny();
  plan.positions = {PositionSpec{}};
  for (const std::string& m : methods) plan.methods.push_back(MethodSpec::parse(m));
  plan.lengths = std::move(lengths);
  plan.calibration = calibration();
  plan.engine = options();
  plan.program = "test";
  plan.command = "test --task local";
  return plan;
}

double value(const Json& row, const char* metric) {
  return row.at("metrics").at(metric).at("value").get<double>();
}

constexpr const char* kPq = "pq:M=16,nbits=4,sinks=4,window=16";

}  // namespace

TEST_CASE("a copied cache and its original share nothing", "[fork]") {
  const auto prompt = random_tokens(1, 203), left = random_tokens(2, 60),
             right = random_tokens(3, 60);
  for (const char* spec : kMethods) {
    CAPTURE(spec);
    const auto fresh = [&](std::span<const int32_t> tail) {
      const auto engine = make_engine(tiny(), method(spec), options());
      chunk_and_steps(*engine, prompt);
      return chunk_and_steps(*engine, tail);
    };
    const auto original = make_engine(tiny(), method(spec), options());
    chunk_and_steps(*original, prompt);
    const auto copy = original->fork();
    CHECK(copy->n_tokens() == 203);
    CHECK(chunk_and_steps(*copy, right) == fresh(right));
    CHECK(chunk_and_steps(*original, left) == fresh(left));
    const auto second = copy->fork();
    copy->clear();
    CHECK(copy->n_tokens() == 0);
    CHECK(second->n_tokens() == 263);
    CHECK(std::isfinite(forward(*second, left)[0]));
  }
}

TEST_CASE("exact prefill gives every cache the rows that fp16 made, and nothing else",
          "[prefill]") {
  const auto prompt = random_tokens(4, 201);
  std::vector<Method> methods;
  for (const char* spec : kMethods) methods.push_back(method(spec));
  SharedPrefill shared(tiny(), methods, options(), Prefill::kExact);
  shared.read(std::span(prompt).first(120));
  const std::vector<float> last = shared.finish(std::span(prompt).subspan(120));
  Recorder rows;
  const auto exact = make_engine(tiny(), method("fp16"), options());
  exact->forward(std::span(prompt).first(200), &rows);
  const size_t d = tiny()->config.d_model;
  REQUIRE(last.size() == methods.size() * d);
  for (size_t m = 0; m < methods.size(); ++m) {
    CAPTURE(kMethods[m]);
    const auto alone = make_engine(tiny(), methods[m], options());
    for (int l = 0; l < tiny()->config.n_layers; ++l)
      alone->append_only(l, rows.keys[l].data(), rows.values[l].data(), 200);
    CHECK(shared.engine(static_cast<int>(m)).n_tokens() == 201);
    CHECK(Rows(last.begin() + m * d, last.begin() + (m + 1) * d) ==
          forward(*alone, std::span(prompt).last(1)));
  }
  // Coded methods see something else than fp16 does.
  CHECK(Rows(last.begin(), last.begin() + d) != Rows(last.begin() + d, last.begin() + 2 * d));
}

TEST_CASE("prefill through the cache is what a Generator does", "[prefill]") {
  const auto prompt = random_tokens(5, 150);
  for (const char* spec : kMethods) {
    CAPTURE(spec);
    const Method m[] = {method(spec)};
    SharedPrefill caches(tiny(), m, options(), Prefill::kCache);
    const auto hidden = caches.finish(prompt);
    const auto ids = greedy_answer(caches.engine(0), hidden, 24);
    Generator generator(tiny(), options(), method(spec), {});
    Generation g = generator.run(prompt, 24, false, [](std::string_view) { return true; });
    if (g.ended) g.ids.pop_back();
    CHECK(ids == g.ids);
  }
}

TEST_CASE("an answer does not depend on what was read before it was asked", "[prefill]") {
  auto a = random_tokens(6, 180), b = a;
  const auto tail = random_tokens(7, 30);
  std::copy(tail.begin(), tail.end(), b.end() - 30);
  std::vector<Method> methods = {method("fp16"), method(kPq), method("kivi:bits=2,group=32")};
  for (const Prefill prefill : {Prefill::kExact, Prefill::kCache}) {
    SharedPrefill shared(tiny(), methods, options(), prefill);
    shared.read(std::span(a).first(150));
    SharedPrefill first = shared.fork();
    const auto of_a = first.finish(std::span(a).subspan(150));
    const auto of_b = shared.finish(std::span(b).subspan(150));
    SharedPrefill alone_a(tiny(), methods, options(), prefill);
    SharedPrefill alone_b(tiny(), methods, options(), prefill);
    CHECK(of_a == alone_a.finish(a));
    CHECK(of_b == alone_b.finish(b));
    CHECK(of_a != of_b);
    const auto ids = greedy_answer(first.engine(1), std::span(of_a).subspan(128, 128), 12);
    CHECK(ids == greedy_answer(alone_a.engine(1), std::span(of_a).subspan(128, 128), 12));
  }
  CHECK_THROWS_WITH(parse_prefill("both"), Contains("expected exact or cache"));
}

TEST_CASE("neighbours share the start that makes up half of each", "[prefill]") {
  const auto start = random_tokens(8, 200);
  std::vector<std::vector<int32_t>> prompts(5, start);
  for (size_t i = 0; i < prompts.size(); ++i) {
    const auto tail = random_tokens(20 + i, 40);
    prompts[i].insert(prompts[i].end(), tail.begin(), tail.end());
  }
  prompts[3] = random_tokens(9, 240);
  const auto groups = group_prompts(prompts, true);
  REQUIRE(groups.size() == 3);
  CHECK((groups[0].begin == 0 && groups[0].end == 3 && groups[0].prefix >= 200));
  CHECK((groups[1].begin == 3 && groups[1].end == 4 && groups[1].prefix == 0));
  CHECK((groups[2].begin == 4 && groups[2].end == 5));
  CHECK(group_prompts(prompts, false).size() == 5);
  // Equal prompts leave each question the tokens that it needs.
  const auto same = group_prompts(std::vector(2, start), true);
  REQUIRE(same.size() == 1);
  CHECK(same[0].prefix == 200 - SharedPrefill::kRest);
}

TEST_CASE("rows of a task: scores, intervals, depths, bits", "[task]") {
  const Scratch folder;
  Grid grid(grid_plan({"fp16", kPq}, {512}));
  TaskRunPlan plan = local_plan();
  plan.samples_json = folder / "samples.jsonl";
  GridRows rows(nullptr, false);
  run_tasks(grid, plan, rows);
  REQUIRE(rows.rows().size() == 2);
  const Json &exact = rows.rows()[0], &coded = rows.rows()[1];
  for (const Json& row : rows.rows()) {
    CHECK(row["status"] == "ok");
    CHECK(value(row, "score") == 0.5);
    CHECK(row["metrics"]["score"]["n"] == 4);
    CHECK(row["metrics"]["score"]["se"].get<double>() == Approx(std::sqrt(1.0 / 3.0 / 4.0)));
    CHECK(value(row, "wilson_low") == Approx(0.15).margin(0.01));
    CHECK(row["series"]["depth_score"] == Json({0.0, 1.0}));
    CHECK(row["series"]["depth_n"] == Json({2, 2}));
    for (const char* key :
         {"task", "method", "key_codec", "value_codec", "sinks", "window", "positions", "length",
          "depths", "samples", "seed", "prefill", "chat", "protocol", "compute", "limited"})
      CHECK(row["config"].contains(key));
    for (const char* key : {"model", "model_sha256", "haystack", "haystack_sha256", "calibration"})
      CHECK(row["inputs"].contains(key));
    CHECK(row["command"] == "test --task local");
  }
  // Exact rows are allocated in steps of 128 tokens.
  const double tokens = value(exact, "prompt_tokens");
  CHECK(exact["bits"]["cache"].get<double>() ==
        Approx(16.0 * 128 * std::ceil(tokens / 128) / tokens));
  CHECK(coded["bits"]["cache"].get<double>() < exact["bits"]["cache"].get<double>());
  CHECK(coded["bits"]["nominal"] == 1.0);
  CHECK(value(coded, "fp16_score") == 0.5);
  CHECK_FALSE(exact["metrics"].contains("fp16_score"));
  CHECK_THAT(task_markdown(rows.rows()), Contains("[0.150, 0.850]"));
  std::stringstream lines(read_file(folder / "samples.jsonl"));
  int n = 0;
  for (std::string line; std::getline(lines, line); ++n) {
    const Json sample = Json::parse(line);
    CHECK(sample["row"] == rows.rows()[n / 4]["key"]);
    CHECK((sample["sample"] == n % 4 && sample["references"] == Json({"right"})));
  }
  CHECK(n == 8);
}

TEST_CASE("finished rows are not run again, fp16 is asked beside the others", "[task]") {
  const Scratch folder;
  const TaskRunPlan plan = local_plan();
  RecordFile file(folder / "rows.jsonl");
  const auto run = [&](std::vector<std::string> methods, bool force) {
    Grid grid(grid_plan(std::move(methods), {128}));
    GridRows rows(&file, force);
    g_made = 0;
    run_tasks(grid, plan, rows);
    return rows.rows();
  };
  const auto first = run({kPq}, false);
  CHECK(value(first[0], "fp16_score") == 0.5);
  CHECK((g_made == 1 && file.records().size() == 1));
  const auto again = run({kPq}, false);
  REQUIRE(again.size() == 1);
  CHECK(again[0].dump() == first[0].dump());  // as text: NaN is not equal to itself
  CHECK((g_made == 0 && file.records().size() == 1));
  CHECK(run({"fp16", kPq}, false).size() == 2);
  CHECK((g_made == 1 && file.records().size() == 2));
  CHECK(run({kPq}, true)[0]["key"] == first[0]["key"]);
  CHECK((g_made == 1 && file.records().size() == 3));
}

TEST_CASE("positions that do not reach a length: skipped rows with the formula", "[task]") {
  const Scratch folder;
  RecordFile file(folder / "rows.jsonl");
  const auto run = [&](std::vector<int> lengths) {
    GridPlan plan = grid_plan({"fp16"}, std::move(lengths));
    plan.positions = {PositionSpec::parse("selfextend:group=2,window=256")};
    Grid grid(plan);
    GridRows rows(&file, false);
    run_tasks(grid, local_plan(), rows);
    return rows.rows();
  };
  const auto rows = run({128, 1024});
  REQUIRE(rows.size() == 2);
  CHECK(rows[0]["status"] == "ok");
  CHECK(rows[1]["status"] == "skipped");
  CHECK_THAT(rows[1]["reason"].get<std::string>(), Contains("(512 - 256) * 2 + 256 = 768"));
  run({128, 1024});
  CHECK(file.records().size() == 2);  // nothing twice
  CHECK_THROWS_WITH(run({1024}), Contains("(512 - 256) * 2 + 256 = 768"));
}

TEST_CASE("a task that cannot be made leaves the others alone", "[task]") {
  Grid grid(grid_plan({"fp16"}, {128}));
  GridRows rows(nullptr, false);
  TaskRunPlan plan = local_plan();
  const auto too_short = [](const TaskInfo& task, const TaskPlan&) -> std::vector<TaskSample> {
    fail(ErrorCode::kUsage, "task {}: too short", task.name);
  };
  plan.tasks[0].make = too_short;
  CHECK_THROWS_WITH(run_tasks(grid, plan, rows), "task local: too short");
  CHECK(rows.rows().empty());
  plan.tasks.push_back(local_task());
  plan.tasks[1].name = "other";
  run_tasks(grid, plan, rows);
  REQUIRE(rows.rows().size() == 2);
  CHECK((rows.rows()[0]["status"] == "skipped" && rows.rows()[1]["status"] == "ok"));
  CHECK(rows.rows()[0]["reason"] == "task local: too short");
  // Files: what is not there is skipped, nothing left is an error.
  for (TaskInfo& task : plan.tasks) task.from_file = true, task.make = too_short;
  const Scratch folder;
  plan.samples.data = folder.path();
  GridRows none(nullptr, false);
  CHECK_THROWS_WITH(run_tasks(grid, plan, none), "task other: too short");
  CHECK(none.rows().size() == 2);
  // A set whose data are there and whose metric cannot be computed does not end the suite.
  std::ofstream(folder / "multifieldqa_zh.jsonl") << "{}\n";
  plan.tasks = {find_task("longbench:multifieldqa_zh"), local_task()};
  GridRows suite(nullptr, false);
  run_tasks(grid, plan, suite);
  REQUIRE(suite.rows().size() == 2);
  CHECK((suite.rows()[0]["status"] == "skipped" && suite.rows()[1]["status"] == "ok"));
  CHECK_THAT(estimate_tasks(grid, plan, {}), Contains("multifieldqa_zh at 128: skipped"));
}

TEST_CASE("scaled positions are another row, and another score of the tiny model", "[task]") {
  GridPlan plan = grid_plan({kPq}, {128});
  plan.positions = {PositionSpec{}, PositionSpec::parse("ntk:factor=4"),
                    PositionSpec::parse("yarn:factor=4")};
  Grid grid(plan);
  GridRows rows(nullptr, false);
  run_context(grid, {&text(), 2, 64}, rows);
  REQUIRE(rows.rows().size() == 3);
  CHECK(value(rows.rows()[0], "nll") != value(rows.rows()[1], "nll"));
  CHECK(value(rows.rows()[1], "nll") != value(rows.rows()[2], "nll"));
  CHECK(rows.rows()[1]["config"]["positions"] == "ntk:factor=4");
}

TEST_CASE("what a task refuses, and what it warns of", "[task]") {
  Grid grid(grid_plan({"fp16"}, {128}));
  GridRows rows(nullptr, false);
  const auto run = [&](const auto& change) {
    TaskRunPlan plan = local_plan();
    change(plan);
    run_tasks(grid, plan, rows);
  };
  CHECK_THROWS_WITH(run([](auto& p) { p.tasks[0].make = make_unanswerable; }),
                    Contains("local: sample 3 has 0 right answers"));
  CHECK_THROWS_WITH(run([](auto& p) { p.samples.samples = 0; }), Contains("--samples: got 0"));
  CHECK_THROWS_WITH(run([](auto& p) { p.samples.depths = {1.5}; }), Contains("--depths: got 1.5"));
  CHECK_THROWS_WITH(run([](auto& p) { p.tasks[0].from_file = true; }), Contains("--data"));
  CHECK_THROWS_WITH(run([](auto& p) {
                      p.tasks[0].score = [](const TaskInfo&, std::string_view, const TaskSample&) {
                        return std::nan("");
                      };
                    }),
                    Contains("expected 0 to 1"));
  CHECK_THROWS_WITH(Grid(grid_plan({"fp16"}, {8})), Contains("--lengths: got 8"));
  GridPlan uncalibrated = grid_plan({kPq}, {128});
  uncalibrated.calibration.text = nullptr;
  CHECK_THROWS_WITH(Grid(uncalibrated), Contains("--calib-text"));
  CHECK(rows.rows().empty());
  run([](auto& p) { p.samples.depths = {0.0}; });
  CHECK_THAT(rows.rows().back()["reason"].get<std::string>(), Contains("fp16 itself scores 0.00"));
  run([](auto& p) { p.limit = 1; });
  CHECK(rows.rows().back()["metrics"]["score"]["n"] == 2);
  CHECK(rows.rows().back()["config"]["samples"] == 1);
}

TEST_CASE("perplexity by context scores the same tokens at every length", "[context]") {
  const ContextPlan plan{&text(), 3, 64};
  CHECK(end_points(plan, 256) == std::vector<int64_t>{256, 1128, 1999});
  CHECK_THROWS_WITH(end_points({&text(), 40, 64}, 256), Contains("has 2000 tokens"));
  for (const Prefill prefill : {Prefill::kExact, Prefill::kCache}) {
    GridPlan setting = grid_plan({"fp16", kPq}, {64, 256});
    setting.prefill = prefill;
    Grid grid(setting);
    GridRows rows(nullptr, false);
    run_context(grid, plan, rows);
    REQUIRE(rows.rows().size() == 4);
    for (const Json& row : rows.rows()) CHECK(row["metrics"]["nll"]["n"] == 192);
    CHECK(value(rows.rows()[2], "kl") < 1e-6);
    CHECK(value(rows.rows()[3], "kl") > 1e-6);
    // fp16 over a whole window says the same as the shared reading does.
    double sum = 0.0;
    const auto engine = make_engine(tiny(), method("fp16"), options());
    for (const int64_t end : end_points(plan, 256)) {
      engine->clear();
      const auto hidden = engine->forward(std::span(text().tokens).subspan(end - 256, 256));
      const auto scores = score_hidden(*engine, hidden.data() + 192 * tiny()->config.d_model,
                                       nullptr, 64, text().tokens.data() + end - 63);
      for (const double x : scores.nll) sum += x / 192.0;
    }
    CHECK(value(rows.rows()[2], "nll") == Approx(sum).epsilon(1e-9));
  }
}

TEST_CASE("growth: distance from fp16 along its own text", "[growth]") {
  std::vector<double> steps(256);
  for (size_t i = 0; i < steps.size(); ++i) steps[i] = static_cast<double>(i % 128 / 8);
  const auto parts = part_means(steps, 128);
  for (int p = 0; p < kGrowthParts; ++p) CHECK(parts[p] == p);
  GrowthPlan plan{&text(), 2, 128, false, 32};
  Grid grid(grid_plan({"fp16", kPq}, {64}));
  const auto run = [&](int chunk) {
    plan.chunk = chunk;
    GridRows rows(nullptr, false);
    run_growth(grid, plan, rows);
    return rows.rows();
  };
  const auto rows = run(32);
  REQUIRE(rows.size() == 2);
  CHECK(value(rows[0], "kl") < 1e-6);
  CHECK_FALSE(rows[0]["metrics"].contains("kl_growth"));
  CHECK(value(rows[1], "kl") > 1e-6);
  CHECK(value(rows[1], "kl_growth") ==
        Approx(value(rows[1], "kl_last") / value(rows[1], "kl_first")));
  CHECK(rows[1]["series"]["kl_by_position"].size() == kGrowthParts);
  CHECK(rows[1]["series"]["position_end"].back() == 64 + 128);
  CHECK(rows[1]["metrics"]["kl"]["n"] == 256);
  const auto other = run(50);
  CHECK(value(other[1], "kl") == value(rows[1], "kl"));
  CHECK(other[1]["key"] == rows[1]["key"]);
  // Single tokens take other kernels: a row of its own, nearly the same.
  const auto single = run(1);
  CHECK(single[1]["key"] != rows[1]["key"]);
  CHECK(value(single[1], "kl") == Approx(value(rows[1], "kl")).epsilon(0.2));
  plan.generate = 10;
  CHECK_THROWS_WITH(run(32), Contains("--generate: got 10"));
  // The prompt is within reach, what is written behind it is not.
  plan.generate = 1024;
  GridPlan beyond = grid_plan({"fp16"}, {64});
  beyond.positions = {PositionSpec::parse("selfextend:group=2,window=128")};
  Grid far(beyond);
  GridRows none(nullptr, false);
  CHECK_THROWS_WITH(run_growth(far, plan, none), Contains("(L - window) * group + window"));
}

TEST_CASE("the cost of a run is estimated from a measurement", "[task]") {
  Grid grid(grid_plan({"fp16", kPq}, {128, 256}));
  const RunCost cost = measure_cost(tiny(), grid.engine_options(0));
  CHECK((cost.token_s > 0.0 && cost.step_s > 0.0));
  CHECK_THAT(estimate_tasks(grid, local_plan(), cost), Contains("local at 256: 4 questions"));
  CHECK_THAT(estimate_context(grid, {&text(), 3, 64}, cost), Contains("3 end points"));
  CHECK_THAT(estimate_growth(grid, {&text(), 1, 128}, cost), Contains("128 tokens written"));
  CHECK_THAT(estimate_memory(grid), Contains("at 256 tokens"));
}
