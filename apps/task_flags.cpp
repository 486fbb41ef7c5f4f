// SPDX-License-Identifier: Apache-2.0
#include "apps/task_flags.h"

#include "lib/core/error.h"
#include "lib/core/files.h"

#include <algorithm>
#include <filesystem>
#include <sstream>

namespace million {
namespace {

void add_task_options(CLI::App& app, TaskFlags& f) {
  const char* task = "Tasks";
  app.add_option("--task", f.tasks,
                 "perplexity | context (perplexity by length) | growth (error over a generation) | "
                 "needle | ruler | longbench, or names of --list; comma-separated")
      ->capture_default_str()
      ->group(task);
  app.add_option("--lengths", f.lengths,
                 "tokens of prompt and answer (growth: of the prompt), comma-separated")
      ->delimiter(',')
      ->capture_default_str()
      ->group(task);
  app.add_option("--depths", f.depths, "where needles lie, 0 = start to 1 = end, comma-separated")
      ->delimiter(',')
      ->capture_default_str()
      ->group(task);
  app.add_option("--samples", f.samples, "questions of each length and depth")
      ->capture_default_str()
      ->group(task);
  app.add_option("--haystack", f.haystack, "text to hide needles in; without: a repeated filler")
      ->group(task);
  app.add_option("--data", f.data, "folder of task files (LongBench's *.jsonl)")->group(task);
  app.add_flag("--skip-bad-lines", f.skip_bad_lines, "leave out lines of task files that are bad")
      ->group(task);
  app.add_flag("--no-chat-template", f.no_chat_template, "plain text instead of the chat format")
      ->group(task);
  app.add_option("--samples-json", f.samples_json,
                 "append a line for each sample: prediction, right answers, score, facts")
      ->group(task);
  app.add_option("--score-last", f.score_last, "context: tokens scored at the end of each window")
      ->capture_default_str()
      ->group(task);
  app.add_option("--generate", f.generate, "growth: tokens that fp16 writes behind the prompt")
      ->capture_default_str()
      ->group(task);
  app.add_flag("--greedy", f.greedy, "growth: the likeliest token instead of a drawn one")
      ->group(task);
}

void add_suite(std::span<const TaskInfo> suite, TaskChoice* choice) {
  for (const TaskInfo& task : suite) {
    const auto same = [&](const TaskInfo& t) { return t.name == task.name; };
    if (std::none_of(choice->tasks.begin(), choice->tasks.end(), same))
      choice->tasks.push_back(task);
  }
}

int limited_windows(const EvalFlags& eval) {
  return eval.limit > 0 ? std::min(eval.windows, eval.limit) : eval.windows;
}

}  // namespace

void TaskFlags::add_to(CLI::App& app) {
  add_task_options(app, *this);
  app.add_option("--positions", positions,
                 "repeatable: plain | selfextend:group=8,window=1024 | linear:factor=8 | "
                 "ntk:factor=8 | dynamic | yarn:factor=8")
      ->take_all()
      ->group("Method");
  app.add_option("--prefill", prefill,
                 "tasks: exact (fp16 reads the prompt, then it is encoded) | cache (each method "
                 "reads it through its own codes)")
      ->capture_default_str()
      ->group("Run");
  app.add_option("--decode-compute", decode_compute,
                 "tasks, single tokens: int8x2 (activations in two int8 terms) | int8 | exact")
      ->capture_default_str()
      ->group("Run");
  app.add_flag("--sync-encode", sync_encode, "tasks: encode in the decoding thread")->group("Run");
}

std::vector<PositionSpec> TaskFlags::position_specs() const {
  std::vector<PositionSpec> specs;
  for (const std::string& text : positions) specs.push_back(PositionSpec::parse(text));
  if (specs.empty()) specs.push_back(PositionSpec{});
  return specs;
}

TaskChoice choose_tasks(const std::string& names) {
  TaskChoice choice;
  std::stringstream list(names);
  for (std::string name; std::getline(list, name, ',');) {
    if (name == "perplexity") {
      choice.perplexity = true;
    } else if (name == "context") {
      choice.context = true;
    } else if (name == "growth") {
      choice.growth = true;
    } else if (name == "needle") {
      add_suite(needle_tasks(), &choice);
    } else if (name == "ruler") {
      add_suite(ruler_tasks(), &choice);
    } else if (name == "longbench") {
      add_suite(longbench_tasks(), &choice);
    } else {
      const TaskInfo task = find_task(name);
      add_suite({&task, 1}, &choice);
    }
  }
  MILLION_REQUIRE(choice.perplexity || choice.grid(), ErrorCode::kUsage,
                  "--task: expected a name; see --list");
  return choice;
}

std::string task_list() {
  std::string text =
      "perplexity: perplexity, KL divergence and same top token on --text [ppl; README, "
      "Protocols]\n"
      "context: the same tokens of --text behind contexts of several --lengths [ppl, KL; this "
      "project]\n"
      "growth: KL divergence of a method fed a long fp16 generation, by position [KL; this "
      "project]\n";
  const auto add = [&](const char* suite, std::span<const TaskInfo> tasks) {
    text += fmt::format("{}: all of the following\n", suite);
    for (const TaskInfo& t : tasks)
      text += fmt::format("    {}: {} [{}; {}]\n", t.name, t.summary, t.metric, t.source);
  };
  add("needle", needle_tasks());
  add("ruler", ruler_tasks());
  add("longbench", longbench_tasks());
  return text;
}

GridPlan grid_plan(const EvalFlags& eval, const TaskFlags& flags, const EvalInputs& inputs,
                   std::vector<MethodSpec> methods, uint64_t seed) {
  const EvaluationPlan& e = inputs.plan.evaluation;
  GridPlan plan;
  plan.model = inputs.model;
  plan.positions = flags.position_specs();
  plan.methods = std::move(methods);
  plan.lengths = flags.lengths;
  plan.calibration = inputs.plan.calibration;
  plan.codebooks = inputs.plan.codebooks;
  plan.engine.decoder = e.decoder;
  plan.engine.decoder.decode = parse_decode_compute(flags.decode_compute);
  plan.engine.backend = e.backend;
  plan.engine.async_encode = !flags.sync_encode;
  plan.engine.skip_share = e.skip_share;
  plan.prefill = parse_prefill(flags.prefill);
  plan.limited = eval.limit > 0;
  plan.seed = seed;
  plan.program = inputs.plan.program;
  plan.command = inputs.plan.command;
  return plan;
}

TaskRunPlan task_plan(const EvalFlags& eval, const TaskFlags& flags, const EvalInputs& inputs,
                      const TaskChoice& choice, uint64_t seed) {
  TaskRunPlan plan;
  plan.tasks = choice.tasks;
  plan.samples.depths = flags.depths;
  plan.samples.samples = flags.samples;
  plan.samples.seed = seed;
  plan.samples.data = flags.data;
  plan.samples.skip_bad_lines = flags.skip_bad_lines;
  plan.chat = !flags.no_chat_template;
  plan.limit = eval.limit;
  plan.samples_json = flags.samples_json;
  if (flags.haystack.empty()) return plan;
  constexpr uint64_t kMaxBytes = uint64_t{1} << 30;
  plan.samples.haystack = read_file(flags.haystack, kMaxBytes);
  MILLION_REQUIRE(!plan.samples.haystack.empty(), ErrorCode::kBadInput, "haystack {} is empty",
                  flags.haystack);
  plan.haystack_name = std::filesystem::path(flags.haystack).filename().string();
  plan.haystack_sha256 = sha256_of(plan.samples.haystack);
  require_disjoint(inputs.calib_text, {plan.haystack_name, plan.haystack_sha256, {}},
                   eval.paper_protocol);
  return plan;
}

ContextPlan context_plan(const EvalFlags& eval, const TaskFlags& flags, const EvalInputs& inputs) {
  return {&inputs.text, limited_windows(eval), flags.score_last};
}

GrowthPlan growth_plan(const EvalFlags& eval, const TaskFlags& flags, const EvalInputs& inputs,
                       int chunk) {
  GrowthPlan plan{&inputs.text, limited_windows(eval), flags.generate, flags.greedy};
  if (chunk > 0) plan.chunk = chunk;
  return plan;
}

}  // namespace million
