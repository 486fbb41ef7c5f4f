// SPDX-License-Identifier: Apache-2.0
// pq-sweep: which method at which bits? PQ over M x nbits x scope beside the baselines, one table.
#include "apps/eval_flags.h"

#include "lib/core/error.h"
#include "lib/eval/sweep.h"

#include <spdlog/spdlog.h>

#include <algorithm>

namespace million {
namespace {

struct Flags : EvalFlags {
  std::string config, out, csv, markdown, nbits;
  std::vector<std::string> codecs, scope;
  std::vector<int> M;
  std::string codec_k, codec_v;
  int sinks = 4, window = 0;
  std::vector<double> budgets;
  std::string budget_base = "pq:M=16,nbits=8,sinks=4";
  bool force = false;
};

/// "4-6,8" -> {4, 5, 6, 8}
std::vector<int> bits_list(const std::string& text) {
  constexpr int kMaxBits = 12;
  return parse_ranges(text, kMaxBits + 1, "--nbits");
}

/// Values of the sweep file fill flags that were not given on the command line.
void apply_config(Flags& f, const SweepConfig& c, const CLI::App& app) {
  const auto given = [&](const char* flag) { return app.count(flag) > 0; };
  if (c.context > 0 && !given("--context")) f.context = c.context;
  if (c.windows >= 0 && !given("--windows")) f.windows = c.windows;
  if (c.calib_tokens > 0 && !given("--calib-tokens")) f.calib_tokens = c.calib_tokens;
  if (c.calib_context >= 0 && !given("--calib-context")) f.calib_context = c.calib_context;
  if (!c.protocol.empty() && !given("--protocol")) f.protocol = c.protocol;
  if (!c.compute.empty() && !given("--compute")) f.compute = c.compute;
  if (!given("--budget-bits")) f.budgets = c.budgets;
}

std::vector<MethodSpec> plan_methods(const Flags& f, const SweepConfig& config, int head_dim) {
  std::vector<std::string> texts = config.methods;
  for (const PqGrid& grid : config.grids)
    for (std::string& text : grid_methods(grid, head_dim)) texts.push_back(std::move(text));
  texts.insert(texts.end(), f.codecs.begin(), f.codecs.end());
  if (!f.M.empty() || !f.nbits.empty()) {
    PqGrid grid{f.M.empty() ? std::vector<int>{head_dim / 2} : f.M,
                f.nbits.empty() ? std::vector<int>{8} : bits_list(f.nbits),
                f.scope.empty() ? std::vector<std::string>{"head"} : f.scope, f.sinks, f.window};
    for (std::string& text : grid_methods(grid, head_dim)) texts.push_back(std::move(text));
  }
  std::vector<MethodSpec> methods;
  for (MethodSpec& m : parse_methods(texts, f.codec_k, f.codec_v))
    if (std::find(methods.begin(), methods.end(), m) == methods.end())
      methods.push_back(std::move(m));
  MILLION_REQUIRE(!methods.empty() || !f.budgets.empty(), ErrorCode::kUsage,
                  "nothing to sweep: give --sweep FILE, --codec SPEC, --budget-bits, or --M and "
                  "--nbits");
  return methods;
}

/// Methods that split each budget over layers, keys and values; says why on stderr.
void add_allocations(const Flags& f, const EvalInputs& in, std::vector<MethodSpec>* methods) {
  if (f.budgets.empty()) return;
  EvalSession session(in.model, in.plan);
  for (const double budget : f.budgets) {
    const Allocation a = session.allocate(MethodSpec::parse(f.budget_base), budget);
    spdlog::info("budget of {} bits: {}", budget, a.to_text());
    methods->push_back(a.spec);
  }
}

/// Window lengths of the sweep, the one of --context first.
std::vector<int> contexts_of(const Flags& f, const SweepConfig& config) {
  std::vector<int> contexts = {f.context};
  for (const int c : config.contexts)
    if (std::find(contexts.begin(), contexts.end(), c) == contexts.end()) contexts.push_back(c);
  return contexts;
}

/// Count and an estimate from one real cell: the fp16 reference pass over one window.
int dry_run(const EvalInputs& in, const std::vector<MethodSpec>& methods,
            const std::vector<int>& contexts, const RecordFile& file) {
  SessionPlan plan = in.plan;
  plan.evaluation.windows.count = 1;
  plan.reference.clear();
  plan.distortion = false;
  EvalSession one(in.model, plan);
  const double seconds = one.run(MethodSpec{}).timing.at("evaluate_s").get<double>() *
                         in.plan.evaluation.windows.count;
  int left = 0;
  for (const int length : contexts) {
    const EvalSession session(in.model, plan_at(in, length));
    for (const MethodSpec& m : methods) {
      const bool done = file.find(session.describe(m).key()) != nullptr;
      left += !done;
      print_out(fmt::format("{} at {}{}\n", m.to_string(), length, done ? "  (done)" : ""));
    }
  }
  print_out(
      fmt::format("{} cells, {} left, about {:.1f} min at {:.0f} s a cell, training not "
                  "counted\n",
                  methods.size() * contexts.size(), left, left * seconds / 60.0, seconds));
  return 0;
}

int run(Flags flags, const CLI::App& app, const AppContext& context) {
  SweepConfig config;
  if (!flags.config.empty()) config = load_sweep(flags.config);
  apply_config(flags, config, app);
  const auto inputs = load_inputs(flags, context);
  const KvGeometry geometry = inputs->model->config.geometry();
  std::vector<MethodSpec> methods = plan_methods(flags, config, geometry.head_dim);
  for (const MethodSpec& m : methods) {  // a wrong option shows before the first long run
    make_codec(m.key_codec, KvKind::kKey, geometry);
    make_codec(m.value_codec, KvKind::kValue, geometry);
  }
  RecordFile file(flags.out);
  if (!context.dry_run) add_allocations(flags, *inputs, &methods);
  const std::vector<int> contexts = contexts_of(flags, config);
  if (context.dry_run) return dry_run(*inputs, methods, contexts, file);
  SweepOutcome outcome;
  for (const int length : contexts) {
    EvalSession session(inputs->model, plan_at(*inputs, length));
    const SweepOutcome part = run_sweep(session, methods, file, flags.force);
    outcome.rows.insert(outcome.rows.end(), part.rows.begin(), part.rows.end());
    outcome.resumed += part.resumed;
    outcome.failed += part.failed;
  }
  mark_pareto(outcome.rows);
  std::vector<Column> columns = score_columns();
  columns.push_back({"pareto", "Pareto", 1});
  write_output(flags.csv, to_csv(outcome.rows, all_columns(outcome.rows)));
  const std::string table = to_markdown(outcome.rows, columns);
  write_output(flags.markdown, table);
  if (context.json == "-")
    for (const Json& row : outcome.rows) print_out(row.dump() + "\n");
  else if (flags.markdown != "-" && flags.csv != "-")
    print_out(table);
  spdlog::info("{} cells, {} from {}, {} failed", outcome.rows.size(), outcome.resumed, flags.out,
               outcome.failed);
  return outcome.failed > 0 ? static_cast<int>(ErrorCode::kPartial) : 0;
}

constexpr const char* kExamples =
    "  pq-sweep model.gguf --config configs/sweeps/quick.toml --text test.txt \\\n"
    "      --calib-text train.txt --out sweep.jsonl --markdown sweep.md\n"
    "  pq-sweep model.gguf --M 16,32 --nbits 4-8 --codec kvquant:bits=3,sinks=1 \\\n"
    "      --text test.txt --calib-text train.txt --out grid.jsonl";

void add_flags(CLI::App& app, Flags& f) {
  f.add_to(app);
  const char* methods = "Methods";
  app.add_option("--sweep", f.config, "sweep file (TOML); flags win over it")->group(methods);
  app.add_option("--codec", f.codecs, "method, repeatable; see kv-eval --list-codecs")
      ->group(methods)
      ->take_all();
  app.add_option("--codec-k", f.codec_k, "method of keys")->group(methods);
  app.add_option("--codec-v", f.codec_v, "method of values")->group(methods);
  app.add_option("--M", f.M, "PQ grid: subspaces, comma-separated")->delimiter(',')->group(methods);
  app.add_option("--nbits", f.nbits, "PQ grid: bits a code, e.g. 4-8,10")->group(methods);
  app.add_option("--scope", f.scope, "PQ grid: model, layer, head")->delimiter(',')->group(methods);
  app.add_option("--sinks", f.sinks, "PQ grid: first tokens kept exact")
      ->capture_default_str()
      ->group(methods);
  app.add_option("--window", f.window, "PQ grid: recent tokens kept exact")
      ->capture_default_str()
      ->group(methods);
  app.add_option("--budget-bits", f.budgets,
                 "split so many bits per value over layers, keys and values by measured "
                 "sensitivity; comma-separated")
      ->delimiter(',')
      ->group(methods);
  app.add_option("--budget-base", f.budget_base, "pq method whose layers are measured and resized")
      ->capture_default_str()
      ->group(methods);
  app.add_option("--out", f.out, "records, one JSON line a cell; finished cells are not run again")
      ->required()
      ->group("Output");
  app.add_option("--csv", f.csv, "all columns as CSV; '-' = stdout")->group("Output");
  app.add_option("--markdown", f.markdown, "table as Markdown; '-' = stdout")->group("Output");
  app.add_flag("--force", f.force, "run cells again that --out holds already")->group("Output");
}

}  // namespace
}  // namespace million

int main(int argc, char** argv) {
  using namespace million;
  return run_app(argc, argv, {"pq-sweep", "which KV-cache method at which bits", kExamples, true},
                 [](CLI::App& app, AppContext& context) -> AppBody {
                   auto flags = std::make_shared<Flags>();
                   add_flags(app, *flags);
                   return [flags, &app, &context] { return run(*flags, app, context); };
                 });
}
