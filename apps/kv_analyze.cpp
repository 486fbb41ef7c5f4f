// SPDX-License-Identifier: Apache-2.0
// kv-analyze: outliers, channel ranges, norms, spectrum and their stability, from one or more
// dumps.
#include "apps/app_main.h"
#include "lib/analysis/dump_analysis.h"
#include "lib/core/error.h"
#include "lib/core/progress.h"
#include "lib/results/provenance.h"

#include <memory>
#include <sstream>

namespace million {
namespace {

struct Flags {
  std::vector<std::string> dumps;
  std::string csv, layers = "all", tensors = "k_pre,k,v", surface;
  std::vector<double> sigmas = {3.0, 4.0, 6.0};
  double median_factor = 5.0;
  int top = 8, shards = 2, surface_tokens = 512;
};

StatsOptions stats_options(const Flags& f) {
  StatsOptions options;
  options.sigmas = f.sigmas;
  options.median_factor = f.median_factor;
  options.top = f.top;
  options.shards = f.shards;
  for (double sigma : f.sigmas)
    MILLION_REQUIRE(sigma > 0.0, ErrorCode::kUsage, "--k-sigma: got {}, expected above 0", sigma);
  MILLION_REQUIRE(!f.sigmas.empty() && f.top >= 1 && f.shards >= 1 && f.median_factor > 0.0,
                  ErrorCode::kUsage, "--k-sigma, --top, --shards and --median-factor are positive");
  return options;
}

/// The --surface "layer,head" of the first dump.
Json surface_of(const Flags& f, const DumpReader& dump) {
  int layer = 0, head = 0;
  char comma = 0, rest = 0;
  std::stringstream text(f.surface);
  const bool parsed = text >> layer >> comma >> head && comma == ',' && !(text >> rest);
  MILLION_REQUIRE(parsed && f.surface_tokens >= 1, ErrorCode::kUsage,
                  "--surface {}: expected LAYER,HEAD, e.g. 12,0", f.surface);
  return surface_json(dump, layer, head, f.surface_tokens);
}

int run(const Flags& f, const AppContext& context) {
  const StatsOptions options = stats_options(f);
  std::vector<DumpTensor> tensors;
  std::stringstream names(f.tensors);
  for (std::string name; std::getline(names, name, ',');)
    tensors.push_back(parse_dump_tensor(name));
  std::vector<DumpReader> dumps;
  for (const std::string& path : f.dumps) dumps.emplace_back(path);
  const auto layers = parse_ranges(f.layers, dumps[0].meta().geometry.n_layers, "--layers");
  Json surface;
  if (!f.surface.empty()) surface = surface_of(f, dumps[0]);

  Progress progress("analysis, layers", static_cast<int64_t>(dumps.size() * layers.size()));
  const DumpAnalysis analysis = analyze_dumps(dumps, tensors, layers, options, [&] {
    check_interrupted();
    progress.step();
  });
  if (!context.json.empty()) {
    Json out = to_json(analysis);
    if (!surface.is_null()) out["surface"] = std::move(surface);
    out["provenance"] = provenance();
    out["command"] = context.command;
    write_output(context.json, out.dump() + "\n");
  }
  write_output(f.csv, to_csv(analysis));
  if (context.prints_summary() && f.csv != "-") print_out(to_markdown(analysis));
  return 0;
}

constexpr const char* kExamples =
    "  kv-analyze book.h5 --json book.json --csv book.csv\n"
    "  kv-analyze book.h5 other.h5 --layers 0-9 --surface 4,1 --json both.json\n"
    "Several dumps of one model: the tables are of the first, the others show whether its top\n"
    "channels stay the same on another text. --json - and --csv - print instead of the tables.\n";

}  // namespace
}  // namespace million

int main(int argc, char** argv) {
  using namespace million;
  const AppInfo info{"kv-analyze", "Statistics of kv-dump files: where are the outliers?",
                     kExamples};
  return run_app(argc, argv, info, [](CLI::App& app, AppContext& context) -> AppBody {
    auto f = std::make_shared<Flags>();
    app.add_option("dumps", f->dumps, "Files written by kv-dump")->required();
    app.add_option("--layers", f->layers, "Layers, e.g. 0-29 or 0,5")->group("Selection");
    app.add_option("--tensors", f->tensors,
                   "Of k_pre, k, v, q, attn_out; missing ones are left out")
        ->group("Selection");
    app.add_option("--k-sigma", f->sigmas, "Outlier thresholds in standard deviations")
        ->delimiter(',')
        ->group("Statistics");
    app.add_option("--median-factor", f->median_factor, "Threshold in median magnitudes of a head")
        ->group("Statistics");
    app.add_option("--top", f->top, "Channels in the top list")->group("Statistics");
    app.add_option("--shards", f->shards, "Parts of a text compared for stability")
        ->group("Statistics");
    app.add_option("--csv", f->csv, "One line per channel, or '-' for stdout")
        ->type_name("FILE")
        ->group("Output");
    app.add_option("--surface", f->surface, "LAYER,HEAD: add |K| and |V| over tokens to the JSON")
        ->group("Output");
    app.add_option("--surface-tokens", f->surface_tokens, "Points along the token axis at most")
        ->group("Output");
    return [f, &context] { return run(*f, context); };
  });
}
