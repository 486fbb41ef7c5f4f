// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/task_run.h"

#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/core/progress.h"
#include "lib/eval/interval.h"
#include "lib/eval/longbench.h"
#include "lib/model/sampler.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cmath>

namespace million {
namespace {

using Clock = std::chrono::steady_clock;

/// Below this fp16 score a generated task is beyond the model, and what a method does to it says
/// nothing.
constexpr double kFloor = 0.5;
/// Common starts shorter than this are not worth a copy of the caches.
constexpr int64_t kMinShared = 64;
/// Tokens that the tokenizer may make of a prompt's ends beyond the marks themselves.
constexpr int kOverheadSlack = 8;

/// What one method did in a cell.
struct Lane {
  std::vector<double> scores;
  std::vector<std::string> predictions;
  double answer_s = 0.0, answer_tokens = 0.0;
};

double mean_of(const std::vector<double>& values) {
  double sum = 0.0;
  for (const double v : values) sum += v;
  return values.empty() ? 0.0 : sum / static_cast<double>(values.size());
}

class CellRun {
 public:
  CellRun(Grid& grid, const TaskRunPlan& plan, const TaskInfo& task, GridCell cell,
          std::vector<TaskSample> samples)
      : grid_(grid),
        plan_(plan),
        task_(task),
        cell_(std::move(cell)),
        n_rows_(cell_.records.size()),
        format_(task_chat(*cell_.model, plan.chat)),
        samples_(std::move(samples)) {
    read_prompts();
    grid_.train(cell_);
    // The exact reader is there anyway, and its score tells what the others' are worth.
    const bool asks = grid_.plan().prefill == Prefill::kExact && cell_.exact_row.is_null();
    if (asks) cell_.exact();
    lanes_.resize(cell_.methods.size());
  }

  void run();
  void finish(GridRows& rows);

 private:
  void read_prompts();
  void run_group(const PromptGroup& group, Progress& progress);
  void ask(SharedPrefill& caches, size_t question, std::span<const float> hidden);
  std::optional<double> exact_score() const;
  void add_scores(RunRecord& record, const Lane& lane) const;
  void add_depths(RunRecord& record, const Lane& lane) const;
  std::string note() const;
  void write_samples(const RunRecord& record, const Lane& lane) const;

  Grid& grid_;
  const TaskRunPlan& plan_;
  const TaskInfo& task_;
  GridCell cell_;
  size_t n_rows_ = 0;
  std::optional<ChatFormat> format_;
  std::vector<TaskSample> samples_;
  std::vector<std::vector<int32_t>> prompts_;
  std::vector<Lane> lanes_;
  double prefill_s_ = 0.0;
  int64_t bits_tokens_ = 0;  ///< length of the prompt whose cache was measured
};

void CellRun::read_prompts() {
  MILLION_REQUIRE(!samples_.empty(), ErrorCode::kBadInput,
                  "{}: no samples at length {}; see --samples, --depths and --data", task_.name,
                  cell_.length);
  size_t longest = 0;
  for (size_t i = 0; i < samples_.size(); ++i) {
    const TaskSample& s = samples_[i];
    MILLION_REQUIRE(!s.references.empty() && s.max_new_tokens >= 1, ErrorCode::kBadInput,
                    "{}: sample {} has {} right answers and {} tokens to answer, expected at least "
                    "one of each: {}",
                    task_.name, i, s.references.size(), s.max_new_tokens, s.facts.dump());
    prompts_.push_back(task_prompt(*cell_.model, format_, s));
    MILLION_REQUIRE(prompts_.back().size() >= static_cast<size_t>(SharedPrefill::kRest),
                    ErrorCode::kBadInput, "{}: sample {} has an empty prompt: {}", task_.name, i,
                    s.facts.dump());
    longest = std::max(longest, prompts_.back().size() + s.max_new_tokens);
  }
  if (longest > static_cast<size_t>(cell_.length))
    spdlog::warn("{}: a prompt and its answer take {} tokens, more than the length {}", task_.name,
                 longest, cell_.length);
  warn_beyond_training(cell_.model->config, static_cast<int64_t>(longest));
}

void CellRun::run() {
  const auto groups = group_prompts(prompts_, grid_.plan().engine.backend == Backend::kCpu);
  Progress progress(fmt::format("{} at {}, {}", task_.name, cell_.length, cell_.positions),
                    static_cast<int64_t>(samples_.size()));
  for (const PromptGroup& group : groups) run_group(group, progress);
}

void CellRun::run_group(const PromptGroup& group, Progress& progress) {
  int64_t capacity = 0;
  for (size_t i = group.begin; i < group.end; ++i)
    capacity = std::max<int64_t>(capacity, prompts_[i].size() + samples_[i].max_new_tokens);
  auto start = Clock::now();
  SharedPrefill shared(cell_.model, cell_.methods, grid_.engine_options(capacity),
                       grid_.plan().prefill);
  shared.read(std::span(prompts_[group.begin]).first(group.prefix));
  prefill_s_ += seconds_since(start);
  for (size_t i = group.begin; i < group.end; ++i) {
    check_interrupted();
    start = Clock::now();
    // The last question needs no copy: at 64K tokens an exact cache is gigabytes.
    SharedPrefill caches = i + 1 < group.end ? shared.fork() : std::move(shared);
    const auto hidden = caches.finish(std::span(prompts_[i]).subspan(group.prefix));
    prefill_s_ += seconds_since(start);
    ask(caches, i, hidden);
    progress.step();
  }
}

void CellRun::ask(SharedPrefill& caches, size_t question, std::span<const float> hidden) {
  const size_t d = cell_.model->config.d_model;
  const TaskSample& sample = samples_[question];
  const bool measure = caches.n_tokens() > bits_tokens_;
  if (measure) bits_tokens_ = caches.n_tokens();
  for (size_t m = 0; m < lanes_.size(); ++m) {
    Engine& engine = caches.engine(static_cast<int>(m));
    if (measure && m < n_rows_) add_bits(cell_.records[m], cell_.methods[m], engine);
    const auto start = Clock::now();
    const auto ids = greedy_answer(engine, hidden.subspan(m * d, d), sample.max_new_tokens);
    lanes_[m].answer_s += seconds_since(start);
    lanes_[m].answer_tokens += static_cast<double>(ids.size());
    lanes_[m].predictions.push_back(
        cell_.model->tokenizer.decode(ids, false, TextStart::kContinued));
    const double score = task_.score(task_, lanes_[m].predictions.back(), sample);
    MILLION_REQUIRE(score >= 0.0 && score <= 1.0, ErrorCode::kFailed,
                    "{}: the metric {} gave {} for sample {}, expected 0 to 1", task_.name,
                    task_.metric, score, question);
    lanes_[m].scores.push_back(score);
  }
}

std::optional<double> CellRun::exact_score() const {
  for (size_t m = 0; m < lanes_.size(); ++m)
    if (cell_.methods[m].spec == MethodSpec{}) return mean_of(lanes_[m].scores);
  if (cell_.exact_row.is_null()) return {};
  return cell_.exact_row.at("metrics").at("score").at("value").get<double>();
}

void CellRun::add_scores(RunRecord& record, const Lane& lane) const {
  const auto n = static_cast<int64_t>(lane.scores.size());
  const double mean = mean_of(lane.scores);
  record.metric("score", mean, mean_stderr(lane.scores), n);
  if (task_.binary) {
    const auto hits = static_cast<int64_t>(std::llround(mean * static_cast<double>(n)));
    const Interval w = wilson_interval(hits, n);
    record.metric("wilson_low", w.low, std::nan(""), n);
    record.metric("wilson_high", w.high, std::nan(""), n);
  } else if (n >= 2) {  // one sample says nothing about the spread
    const Interval b = bootstrap_interval(lane.scores, grid_.plan().seed);
    record.metric("bootstrap_low", b.low, std::nan(""), n);
    record.metric("bootstrap_high", b.high, std::nan(""), n);
  }
  double tokens = 0.0;
  for (const auto& p : prompts_) tokens += static_cast<double>(p.size());
  record.metric("prompt_tokens", tokens / static_cast<double>(n), std::nan(""), n);
  record.metric("answer_tokens", lane.answer_tokens / static_cast<double>(n), std::nan(""), n);
  record.timing["prefill_s"] = prefill_s_;
  record.timing["answer_s"] = lane.answer_s;
}

void CellRun::add_depths(RunRecord& record, const Lane& lane) const {
  const std::vector<double>& depths = plan_.samples.depths;
  std::vector<double> sum(depths.size(), 0.0);
  std::vector<int64_t> n(depths.size(), 0);
  for (size_t i = 0; i < samples_.size(); ++i) {
    const double depth = samples_[i].facts.value("depth", 0.0);
    const auto nearest = std::min_element(depths.begin(), depths.end(), [&](double a, double b) {
      return std::abs(a - depth) < std::abs(b - depth);
    });
    sum[nearest - depths.begin()] += lane.scores[i];
    ++n[nearest - depths.begin()];
  }
  for (size_t p = 0; p < sum.size(); ++p)
    sum[p] /= std::max<double>(1.0, static_cast<double>(n[p]));
  record.series["depths"] = depths;
  record.series["depth_score"] = sum;
  record.series["depth_n"] = n;
}

/// Why the rows of this cell say little, or nothing.
std::string CellRun::note() const {
  const std::optional<double> exact = exact_score();
  if (!exact || task_.from_file) return {};
  if (*exact < kFloor)
    return fmt::format(
        "fp16 itself scores {:.2f}: this task at {} tokens is beyond the model with positions {}, "
        "differences between methods say little; take a larger model or a shorter length",
        *exact, cell_.length, cell_.positions);
  const bool all = std::all_of(lanes_.begin(), lanes_.end(),
                               [](const Lane& lane) { return mean_of(lane.scores) >= 1.0; });
  if (*exact >= 1.0 && all && n_rows_ > 1)
    return "fp16 and every method score 1: too easy at this length to tell methods apart; take a "
           "longer one, or a harder task";
  return {};
}

void CellRun::write_samples(const RunRecord& record, const Lane& lane) const {
  if (plan_.samples_json.empty()) return;
  std::string lines;
  for (size_t i = 0; i < samples_.size(); ++i) {
    const TaskSample& s = samples_[i];
    const Json line = {{"row", record.key()},
                       {"task", task_.name},
                       {"method", record.method},
                       {"positions", cell_.positions},
                       {"length", cell_.length},
                       {"sample", i},
                       {"prompt_sha256", sha256_of(s.prompt + s.answer_head)},
                       {"prompt_tokens", prompts_[i].size()},
                       {"prediction", lane.predictions[i]},
                       {"references", s.references},
                       {"score", lane.scores[i]},
                       {"facts", s.facts}};
    lines += (i ? "\n" : "") + line.dump(-1, ' ', false, Json::error_handler_t::replace);
  }
  append_line(plan_.samples_json, lines);
}

void CellRun::finish(GridRows& rows) {
  const std::string reason = note();
  if (!reason.empty()) spdlog::warn("{}: {}", task_.name, reason);
  const std::optional<double> exact = exact_score();
  for (size_t m = 0; m < n_rows_; ++m) {
    RunRecord& record = cell_.records[m];
    add_scores(record, lanes_[m]);
    if (exact && !(cell_.methods[m].spec == MethodSpec{})) record.metric("fp16_score", *exact);
    if (task_.has_depth) add_depths(record, lanes_[m]);
    record.reason = reason;
    write_samples(record, lanes_[m]);
    rows.add(record);
  }
}

/// What makes the questions, as it stands in a row.
void describe_task(const Grid& grid, const TaskRunPlan& plan, const TaskInfo& task,
                   RunRecord& record) {
  Json& c = record.config;
  c["task"] = task.name;
  c["metric"] = task.metric;
  if (task.has_depth) c["depths"] = plan.samples.depths;
  c["samples"] = task.from_file   ? plan.limit
                 : plan.limit > 0 ? std::min(plan.limit, plan.samples.samples)
                                  : plan.samples.samples;
  if (!task.from_file) c["seed"] = grid.plan().seed;
  c["chat"] = task_chat(*grid.plan().model, plan.chat).has_value();
  if (plan.samples.skip_bad_lines) c["skip_bad_lines"] = true;
  if (task.from_file) {
    std::vector<std::string> hashes;
    for (const auto& path : longbench_files(task, plan.samples.data))
      hashes.push_back(sha256_of_file(path));
    record.inputs["data"] = task.name.substr(task.name.find(':') + 1) + ".jsonl";
    // Settings beside the data change prompts and lengths of answers.
    record.inputs["data_sha256"] =
        hashes.size() == 1 ? hashes[0] : sha256_of(fmt::format("{}", fmt::join(hashes, "")));
  } else {
    record.inputs["haystack"] = plan.haystack_name.empty() ? Json() : Json(plan.haystack_name);
    record.inputs["haystack_sha256"] =
        plan.haystack_sha256.empty() ? Json() : Json(plan.haystack_sha256);
  }
}

/// Whether a task of many cannot be had at this length or from this folder, which is no reason to
/// leave out the others. Files that are there and broken are.
bool impossible(const Error& error, const TaskInfo& task, const TaskRunPlan& plan) {
  if (error.code() == ErrorCode::kUsage) return true;
  const auto files = longbench_files(task, plan.samples.data);
  return task.from_file && (files.empty() || files[0].extension() != ".jsonl");
}

}  // namespace

std::vector<TaskSample> possible_samples(const TaskRunPlan& plan, const TaskInfo& task,
                                         const Model& model, int length, bool alone,
                                         std::string* reason) {
  reason->clear();
  try {
    return task_samples(plan, task, model, length);
  } catch (const Error& e) {
    if (alone || !impossible(e, task, plan)) throw;
    *reason = e.what();
    return {};
  }
}

namespace {

void skip(std::vector<RunRecord>& records, const std::string& reason, GridRows& rows) {
  spdlog::warn("{}", reason);
  for (RunRecord& record : records) {
    record.status = "skipped";
    record.reason = reason;
    rows.add(record);
  }
}

void require_plan(const TaskRunPlan& plan) {
  const TaskPlan& s = plan.samples;
  MILLION_REQUIRE(s.samples >= 1 && s.samples <= 10000, ErrorCode::kUsage,
                  "--samples: got {}, expected 1 to 10000", s.samples);
  MILLION_REQUIRE(!s.depths.empty(), ErrorCode::kUsage, "--depths: expected at least one");
  for (const double depth : s.depths)
    MILLION_REQUIRE(depth >= 0.0 && depth <= 1.0, ErrorCode::kUsage,
                    "--depths: got {}, expected 0 (start of the haystack) to 1 (its end)", depth);
  MILLION_REQUIRE(plan.limit >= 0, ErrorCode::kUsage, "--limit: got {}, expected at least 1",
                  plan.limit);
  for (const TaskInfo& task : plan.tasks)
    MILLION_REQUIRE(!task.from_file || !s.data.empty(), ErrorCode::kUsage,
                    "{} reads files: give their folder with --data", task.name);
}

}  // namespace

std::optional<ChatFormat> task_chat(const Model& model, bool chat) {
  if (!chat || model.chat_template.empty()) return {};
  return detect_chat_format(model.chat_template);
}

std::vector<int32_t> task_prompt(const Model& model, const std::optional<ChatFormat>& format,
                                 const TaskSample& sample) {
  const Tokenizer& t = model.tokenizer;
  std::vector<int32_t> ids;
  if (format && sample.chat) {
    const ChatMessage message{"user", sample.prompt};
    ids = encode_chat(t, *format, {&message, 1});
    const auto head = t.encode(sample.answer_head, false, TextStart::kContinued);
    ids.insert(ids.end(), head.begin(), head.end());
    return ids;
  }
  if (t.add_bos() && t.bos() >= 0) ids.push_back(t.bos());
  const auto text = t.encode(sample.prompt + sample.answer_head);
  ids.insert(ids.end(), text.begin(), text.end());
  return ids;
}

std::vector<TaskSample> task_samples(const TaskRunPlan& plan, const TaskInfo& task,
                                     const Model& model, int length) {
  TaskPlan samples = plan.samples;
  samples.length = length;
  samples.tokenizer = &model.tokenizer;
  if (plan.limit > 0) samples.samples = std::min(samples.samples, plan.limit);
  if (task.from_file) samples.samples = plan.limit;
  samples.overhead_tokens =
      static_cast<int>(task_prompt(model, task_chat(model, plan.chat), {}).size()) + kOverheadSlack;
  return task.make(task, samples);
}

std::vector<int32_t> greedy_answer(Engine& engine, std::span<const float> hidden, int max_new) {
  const Model& model = engine.model();
  AlignedVector<float> logits(model.output.rows);
  std::vector<int32_t> ids;
  for (;;) {
    check_interrupted();
    engine.logits(hidden.data(), 1, logits.data());
    const int32_t token = greedy_token(logits);
    if (model.tokenizer.is_end(token)) return ids;
    ids.push_back(token);
    if (static_cast<int>(ids.size()) >= max_new) return ids;
    hidden = engine.forward({&token, 1});
  }
}

std::vector<PromptGroup> group_prompts(std::span<const std::vector<int32_t>> prompts, bool fork) {
  std::vector<PromptGroup> groups;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const auto most = static_cast<int64_t>(prompts[i].size()) - SharedPrefill::kRest;
    if (fork && !groups.empty()) {
      PromptGroup& g = groups.back();
      const std::vector<int32_t>& first = prompts[g.begin];
      const bool alone = g.end - g.begin == 1;
      const int64_t before =
          alone ? static_cast<int64_t>(first.size()) - SharedPrefill::kRest : g.prefix;
      const int64_t common = std::min({before, most, common_prefix(first, prompts[i])});
      const auto longer = static_cast<int64_t>(std::max(first.size(), prompts[i].size()));
      if (common >= std::max(kMinShared, longer / 2)) {
        g.prefix = common;
        ++g.end;
        continue;
      }
    }
    groups.push_back({i, i + 1, 0});
  }
  return groups;
}

void run_tasks(Grid& grid, const TaskRunPlan& plan, GridRows& rows) {
  require_plan(plan);
  const bool single = plan.tasks.size() * grid.plan().lengths.size() == 1;
  std::string reason;
  for (const PositionSpec& positions : grid.plan().positions)
    for (const TaskInfo& task : plan.tasks)
      for (const int length : grid.plan().lengths) {
        check_interrupted();
        GridCell cell = grid.open(positions, length, length, rows, [&](RunRecord& record) {
          describe_task(grid, plan, task, record);
        });
        if (cell.records.empty()) continue;
        auto samples = possible_samples(plan, task, *cell.model, length, single, &reason);
        if (!reason.empty()) {
          skip(cell.records, reason, rows);
          continue;
        }
        CellRun run(grid, plan, task, std::move(cell), std::move(samples));
        run.run();
        run.finish(rows);
      }
  require_any_row(rows);
}

std::string task_markdown(const std::vector<Json>& rows) {
  std::vector<Json> shown = rows;
  for (Json& row : shown) {
    const Json m = row["metrics"];  // a copy: what is added below moves the row's members
    for (const char* kind : {"wilson", "bootstrap"}) {
      const std::string low = fmt::format("{}_low", kind), high = fmt::format("{}_high", kind);
      if (m.contains(low) && m[low]["value"].is_number() && m[high]["value"].is_number())
        row["interval"] = fmt::format("[{:.3f}, {:.3f}]", m[low]["value"].get<double>(),
                                      m[high]["value"].get<double>());
    }
    if (m.contains("score")) row["n"] = m["score"]["n"];
    if (row["status"] != "ok") row["interval"] = row["status"];
  }
  return rows_markdown(std::move(shown), {{"method"},
                                          {"config.positions", "positions"},
                                          {"config.task", "task"},
                                          {"config.length", "length"},
                                          {"metrics.score", "score"},
                                          {"interval", "95 %"},
                                          {"bits.cache", "bits", 4},
                                          {"config.prefill", "prefill"},
                                          {"n"}});
}

}  // namespace million
