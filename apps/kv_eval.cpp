// SPDX-License-Identifier: Apache-2.0
// kv-eval: perplexity, KL divergence and same-top-token of cache methods on a text; tasks, long
// contexts and long generations with them.
#include "apps/task_flags.h"

#include "lib/core/error.h"
#include "lib/eval/run_cost.h"

#include <algorithm>

namespace million {
namespace {

struct Flags : EvalFlags {
  TaskFlags task;
  std::vector<std::string> codecs;
  std::string codec_k, codec_v, csv;
  bool force = false, protocol_given = false, chunk_given = false;
};

/// "1.2 MiB"
std::string mib(double bytes) { return fmt::format("{:.1f} MiB", bytes / 1048576.0); }

std::string estimate_perplexity(const EvalInputs& in, size_t n_methods) {
  const Windows& w = in.plan.evaluation.windows;
  const ModelConfig& c = in.model->config;
  const double kv = 4.0 * c.n_layers * c.n_kv_heads * c.head_dim * w.context;
  return fmt::format(
      "{} methods x {} windows of {} tokens; fp16 cache of a window {}, reference "
      "file {}\n",
      n_methods, w.count, w.context, mib(kv), mib(4.0 * w.count * w.context * c.d_model));
}

/// One run of the program: what was asked for, its inputs and the rows so far.
class Run {
 public:
  Run(const Flags& flags, const AppContext& context)
      : flags_(flags),
        context_(context),
        choice_(choose_tasks(flags.task.tasks)),
        positions_(flags.task.position_specs()),
        methods_(parse_methods(flags.codecs.empty() && flags.codec_k.empty()
                                   ? std::vector<std::string>{"fp16"}
                                   : flags.codecs,
                               flags.codec_k, flags.codec_v)) {
    MILLION_REQUIRE(!choice_.grid() || !flags.protocol_given || flags.protocol == "decode-path",
                    ErrorCode::kUsage,
                    "--protocol {}: tasks go through the cache as generation does; expected "
                    "decode-path or no --protocol",
                    flags.protocol);
    MILLION_REQUIRE(!(choice_.context || choice_.growth) || !flags.text.empty(), ErrorCode::kUsage,
                    "--task {}: give a text with --text", flags.task.tasks);
    inputs_ = load_base(flags, context);
    if (choice_.perplexity) add_windows(*inputs_, flags);
    for (const MethodSpec& m : methods_)  // a wrong option shows before the first long run
      for (KvKind kind : {KvKind::kKey, KvKind::kValue})
        make_codec(kind == KvKind::kKey ? m.key_codec : m.value_codec, kind,
                   inputs_->model->config.geometry());
    if (!choice_.grid()) return;
    grid_.emplace(grid_plan(flags, flags.task, *inputs_, methods_, context.seed));
    tasks_ = task_plan(flags, flags.task, *inputs_, choice_, context.seed);
    curve_ = context_plan(flags, flags.task, *inputs_);
    growth_ = growth_plan(flags, flags.task, *inputs_, flags.chunk_given ? flags.chunk : 0);
  }

  int dry_run() {
    if (choice_.perplexity) print_out(estimate_perplexity(*inputs_, methods_.size()));
    if (choice_.grid()) {
      const RunCost cost = measure_cost(inputs_->model, grid_->engine_options(0));
      if (!choice_.tasks.empty()) print_out(estimate_tasks(*grid_, tasks_, cost));
      if (choice_.context) print_out(estimate_context(*grid_, curve_, cost));
      if (choice_.growth) print_out(estimate_growth(*grid_, growth_, cost));
      print_out(estimate_memory(*grid_));
    }
    for (const MethodSpec& m : methods_) print_out(m.to_string() + "\n");
    return 0;
  }

  int all() {
    const bool to_file = !context_.json.empty() && context_.json != "-";
    RecordFile file(to_file ? context_.json : std::string());
    file_ = to_file ? &file : nullptr;
    std::string tables;
    const auto rows_of = [&](const auto& body, const auto& table) {
      GridRows rows(file_, flags_.force, [this](const Json& row) {
        if (context_.json == "-") print_out(row.dump() + "\n");
      });
      body(rows);
      rows_.insert(rows_.end(), rows.rows().begin(), rows.rows().end());
      tables += (tables.empty() ? "" : "\n") + table(rows.rows());
    };
    if (choice_.perplexity) rows_of([&](GridRows& r) { perplexity(r); }, perplexity_markdown);
    if (!choice_.tasks.empty())
      rows_of([&](GridRows& r) { run_tasks(*grid_, tasks_, r); }, task_markdown);
    if (choice_.context)
      rows_of([&](GridRows& r) { run_context(*grid_, curve_, r); }, context_markdown);
    if (choice_.growth)
      rows_of([&](GridRows& r) { run_growth(*grid_, growth_, r); }, growth_markdown);
    write_output(flags_.csv, to_csv(rows_, all_columns(rows_)));
    if (context_.prints_summary()) print_out(tables);
    return 0;
  }

 private:
  /// With each kind of positions; each has a reference of its own.
  void perplexity(GridRows& rows) {
    std::vector<std::shared_ptr<const Model>> models;
    const int n_tokens = inputs_->plan.evaluation.windows.context;
    for (const PositionSpec& p : positions_)
      models.push_back(with_positions(inputs_->model, p, n_tokens));
    for (const auto& model : models) {
      SessionPlan plan = inputs_->plan;
      if (!plan.reference.empty() && model != inputs_->model) {
        std::string suffix = "." + model->config.positions;
        std::replace_if(
            suffix.begin(), suffix.end(), [](char c) { return c == ':' || c == ','; }, '-');
        plan.reference += suffix;
      }
      EvalSession session(model, plan);
      for (const MethodSpec& m : methods_)
        if (!rows.resume(session.describe(m))) rows.add(session.run(m));
    }
  }

  static std::string perplexity_markdown(const std::vector<Json>& rows) {
    std::vector<Column> columns = score_columns();
    if (std::any_of(rows.begin(), rows.end(),
                    [](const Json& r) { return r["config"].contains("positions"); }))
      columns.insert(columns.begin() + 1, {"config.positions", "positions"});
    return to_markdown(rows, columns);
  }

  const Flags& flags_;
  const AppContext& context_;
  TaskChoice choice_;
  std::vector<PositionSpec> positions_;
  std::vector<MethodSpec> methods_;
  std::unique_ptr<EvalInputs> inputs_;
  std::optional<Grid> grid_;
  TaskRunPlan tasks_;
  ContextPlan curve_;
  GrowthPlan growth_;
  RecordFile* file_ = nullptr;
  std::vector<Json> rows_;
};

constexpr const char* kExamples =
    "  kv-eval model.gguf --text test.txt --codec fp16 --codec uniform:bits=4,group=64\n"
    "  kv-eval model.gguf --text test.txt --calib-text train.txt --reference ref.h5 \\\n"
    "      --codec-k pq:M=32,nbits=8,sinks=4 --codec-v pq:M=16,nbits=8,sinks=4 --json rows.jsonl\n"
    "  kv-eval model.gguf --task needle --lengths 1024,4096 --calib-text train.txt --codec fp16 "
    "\\\n"
    "      --codec pq:M=32,nbits=8,sinks=4 --positions selfextend:group=8,window=1024";

}  // namespace
}  // namespace million

int main(int argc, char** argv) {
  using namespace million;
  return run_app(
      argc, argv,
      {"kv-eval", "quality of KV-cache methods: perplexity, KL divergence, long-context tasks",
       kExamples, true},
      [](CLI::App& app, AppContext& context) -> AppBody {
        auto flags = std::make_shared<Flags>();
        flags->add_to(app);
        app.get_option("--text")->required(false);  // tasks bring their own
        flags->task.add_to(app);
        app.add_option("--codec", flags->codecs, "method, repeatable; see --list-codecs")
            ->group("Method")
            ->take_all();
        app.add_option("--codec-k", flags->codec_k, "method of keys")->group("Method");
        app.add_option("--codec-v", flags->codec_v, "method of values")->group("Method");
        app.add_flag_callback(
               "--list-codecs",
               [] {
                 print_out(codec_list());
                 throw CLI::Success();
               },
               "print methods, options and sources")
            ->group("Method");
        app.add_flag_callback(
               "--list",
               [] {
                 print_out(task_list());
                 throw CLI::Success();
               },
               "print every task with its metric and source")
            ->group("Tasks");
        app.add_option("--csv", flags->csv, "all columns as CSV; '-' = stdout")->group("Output");
        app.add_flag("--force", flags->force, "run again what the --json file holds already")
            ->group("Output");
        return [flags, &app, &context] {
          flags->protocol_given = app.count("--protocol") > 0;
          flags->chunk_given = app.count("--chunk") > 0;
          Run run(*flags, context);
          return context.dry_run ? run.dry_run() : run.all();
        };
      });
}
