// SPDX-License-Identifier: Apache-2.0
// kv-eval: perplexity, KL divergence and same-top-token of cache methods on a text.
#include "apps/eval_flags.h"

#include "lib/core/error.h"

#include <algorithm>

namespace million {
namespace {

struct Flags : EvalFlags {
  std::vector<std::string> codecs;
  std::string codec_k, codec_v, csv;
  bool force = false;
};

/// "1.2 MiB"
std::string mib(double bytes) { return fmt::format("{:.1f} MiB", bytes / 1048576.0); }

int dry_run(const EvalInputs& in, const std::vector<MethodSpec>& methods) {
  const Windows& w = in.plan.evaluation.windows;
  const ModelConfig& c = in.model->config;
  const double kv = 4.0 * c.n_layers * c.n_kv_heads * c.head_dim * w.context;
  print_out(fmt::format(
      "{} methods x {} windows of {} tokens; fp16 cache of a window {}, reference "
      "file {}\n",
      methods.size(), w.count, w.context, mib(kv), mib(4.0 * w.count * w.context * c.d_model)));
  for (const MethodSpec& m : methods) print_out(m.to_string() + "\n");
  return 0;
}

int run(const Flags& flags, const AppContext& context) {
  const std::vector<MethodSpec> methods =
      parse_methods(flags.codecs.empty() && flags.codec_k.empty() ? std::vector<std::string>{"fp16"}
                                                                  : flags.codecs,
                    flags.codec_k, flags.codec_v);
  const auto inputs = load_inputs(flags, context);
  for (const MethodSpec& m : methods)  // a wrong option shows before the first long run
    for (KvKind kind : {KvKind::kKey, KvKind::kValue})
      make_codec(kind == KvKind::kKey ? m.key_codec : m.value_codec, kind,
                 inputs->model->config.geometry());
  if (context.dry_run) return dry_run(*inputs, methods);
  EvalSession session(inputs->model, inputs->plan);
  const bool to_file = !context.json.empty() && context.json != "-";
  RecordFile file(to_file ? context.json : std::string());
  std::vector<Json> rows;
  for (const MethodSpec& m : methods) {
    const Json* done = flags.force ? nullptr : file.find(session.describe(m).key());
    if (done) {
      rows.push_back(*done);
      continue;
    }
    const RunRecord record = session.run(m);
    rows.push_back(record.to_json());
    if (to_file) file.append(rows.back());
    if (context.json == "-") print_out(rows.back().dump() + "\n");
  }
  write_output(flags.csv, to_csv(rows, all_columns(rows)));
  if (context.prints_summary()) print_out(to_markdown(rows, score_columns()));
  return 0;
}

constexpr const char* kExamples =
    "  kv-eval model.gguf --text test.txt --codec fp16 --codec uniform:bits=4,group=64\n"
    "  kv-eval model.gguf --text test.txt --calib-text train.txt --reference ref.h5 \\\n"
    "      --codec-k pq:M=32,nbits=8,sinks=4 --codec-v pq:M=16,nbits=8,sinks=4 --json rows.jsonl";

}  // namespace
}  // namespace million

int main(int argc, char** argv) {
  using namespace million;
  return run_app(
      argc, argv,
      {"kv-eval", "perplexity and KL divergence of KV-cache methods on a text", kExamples, true},
      [](CLI::App& app, AppContext& context) -> AppBody {
        auto flags = std::make_shared<Flags>();
        flags->add_to(app);
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
        app.add_option("--csv", flags->csv, "all columns as CSV; '-' = stdout")->group("Output");
        app.add_flag("--force", flags->force, "run again what the --json file holds already")
            ->group("Output");
        return [flags, &context] { return run(*flags, context); };
      });
}
