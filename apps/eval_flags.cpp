// SPDX-License-Identifier: Apache-2.0
#include "apps/eval_flags.h"

#include "lib/core/error.h"
#include "lib/model/gemm.h"

#include <algorithm>

namespace million {

void EvalFlags::add_to(CLI::App& app) {
  app.add_option("model", model, kModelHelp)->required();
  const char* data = "Data";
  app.add_option("--text", text, "evaluation text, UTF-8")->required()->group(data);
  app.add_option("--calib-text", calib_text, "calibration text; must differ from --text")
      ->group(data);
  app.add_option("--context", context, "tokens of a window; windows do not overlap")
      ->capture_default_str()
      ->group(data);
  app.add_option("--windows", windows, "windows to score, 0 = all of the text")
      ->capture_default_str()
      ->group(data);
  app.add_option(
         "--limit", limit,
         "score at most this many windows (tasks: samples of a cell); rows are marked 'limited', "
         "not a result")
      ->group(data);
  const char* method = "Method";
  app.add_option("--protocol", protocol, "all-distorted | decode-path")
      ->capture_default_str()
      ->group(method);
  app.add_option("--calib-tokens", calib_tokens, "calibration tokens")
      ->capture_default_str()
      ->group(method);
  app.add_option("--calib-context", calib_context, "calibration window, tokens; 0 = as --context")
      ->group(method);
  app.add_option("--calib-grad-windows", calib_grad_windows,
                 "calibration windows with gradients of the loss, for methods that weigh errors "
                 "with them; 0 = none")
      ->capture_default_str()
      ->group(method);
  app.add_option("--calib-positions", calib_positions,
                 "train keys after RoPE at random positions below this; 0 = their own")
      ->group(method);
  app.add_flag("--paper-protocol", paper_protocol,
               "calibrate on the evaluation text as the paper's code does; marked in the row")
      ->group(method);
  app.add_flag("--no-distortion", no_distortion, "leave out K/V and attention errors")
      ->group(method);
  const char* run = "Run";
  app.add_option("--compute", compute, "dense layers: f32 | bf16x3 | bf16")
      ->capture_default_str()
      ->group(run);
  app.add_option("--backend", backend,
                 "cpu | cuda | cuda-emulated (the device's kernels, run on the host: for checks)")
      ->capture_default_str()
      ->group(run);
  app.add_option("--chunk", chunk, "tokens processed at once on the decode path")
      ->capture_default_str()
      ->group(run);
  app.add_option("--skip-mass", skip_mass,
                 "with --chunk 1 on the decode path: as in kv-decode; 0 = exact")
      ->capture_default_str()
      ->check(CLI::Range(0.0f, 0.1f))
      ->group(run);
  app.add_option("--codebooks", codebooks, "folder of trained codebooks; empty = train every time")
      ->group(run);
  app.add_option("--reference", reference,
                 "fp16 reference file (.h5): read when it exists, else written")
      ->group(run);
}

std::unique_ptr<EvalInputs> load_base(const EvalFlags& f, const AppContext& context) {
  limit_onednn_isa();
  auto inputs = std::make_unique<EvalInputs>();
  EvalInputs& in = *inputs;
  SessionPlan& plan = in.plan;
  plan.evaluation.protocol = parse_protocol(f.protocol);
  plan.evaluation.decoder = {parse_compute(f.compute), DecodeCompute::kExact, f.chunk};
  plan.evaluation.skip_share = f.skip_mass;
  plan.evaluation.backend = parse_backend(f.backend);
  if (plan.evaluation.backend != Backend::kCpu) in.device = shared_device(plan.evaluation.backend);
  MILLION_REQUIRE(f.skip_mass == 0.0f || (f.chunk == 1 && f.protocol == "decode-path"),
                  ErrorCode::kUsage,
                  "--skip-mass: got {} with --protocol {} --chunk {}, it concerns single tokens; "
                  "add --protocol decode-path --chunk 1",
                  f.skip_mass, f.protocol, f.chunk);
  in.model = Model::load(f.model);
  if (!f.text.empty()) in.text = load_text(in.model->tokenizer, f.text);
  plan.paper_protocol = f.paper_protocol;
  const std::string calib = f.paper_protocol && f.calib_text.empty() ? f.text : f.calib_text;
  if (!calib.empty()) {
    in.calib_text = load_text(in.model->tokenizer, calib);
    plan.calibration = {&in.calib_text, f.calib_context > 0 ? f.calib_context : f.context,
                        f.calib_tokens, f.calib_grad_windows, f.calib_positions};
  }
  plan.codebooks = f.codebooks;
  plan.reference = f.reference;
  plan.distortion = !f.no_distortion;
  plan.program = context.program;
  plan.command = context.command;
  return inputs;
}

void add_windows(EvalInputs& in, const EvalFlags& f) {
  MILLION_REQUIRE(!f.text.empty(), ErrorCode::kUsage,
                  "perplexity is taken on a text: give one with --text");
  const int windows = f.limit > 0 && (f.windows == 0 || f.limit < f.windows) ? f.limit : f.windows;
  in.plan.limited = windows != f.windows;
  in.plan.evaluation.windows = cut_windows(in.text, f.context, windows);
}

std::unique_ptr<EvalInputs> load_inputs(const EvalFlags& flags, const AppContext& context) {
  auto inputs = load_base(flags, context);
  add_windows(*inputs, flags);
  return inputs;
}

SessionPlan plan_at(const EvalInputs& inputs, int context) {
  SessionPlan plan = inputs.plan;
  const Windows& w = plan.evaluation.windows;
  if (context == w.context) return plan;
  const auto tokens = static_cast<int64_t>(w.count) * w.context;
  const int count = static_cast<int>(std::max<int64_t>(1, tokens / context));
  plan.evaluation.windows = cut_windows(inputs.text, context, count);
  if (!plan.reference.empty()) plan.reference += fmt::format(".{}", context);
  return plan;
}

const std::vector<Column>& score_columns() {
  static const std::vector<Column> columns = {{"method", "method"},
                                              {"bits.nominal", "bits nominal", 3},
                                              {"bits.cache", "bits cache", 4},
                                              {"bits.total", "bits with codebooks", 4},
                                              {"metrics.ppl", "ppl"},
                                              {"metrics.ppl_increase_percent", "ppl +%"},
                                              {"metrics.kl", "KL"},
                                              {"metrics.same_top_percent", "same top %"},
                                              {"metrics.k_nmse", "K nmse", 3},
                                              {"metrics.v_nmse", "V nmse", 3},
                                              {"metrics.attn_error", "attention error", 3},
                                              {"config.protocol", "protocol"},
                                              {"config.context", "context"},
                                              {"config.windows", "windows"},
                                              {"inputs.calibration.context", "calibrated at"}};
  return columns;
}

std::vector<MethodSpec> parse_methods(const std::vector<std::string>& codecs,
                                      const std::string& codec_k, const std::string& codec_v) {
  MILLION_REQUIRE(codec_k.empty() == codec_v.empty(), ErrorCode::kUsage,
                  "--codec-k and --codec-v go together");
  std::vector<MethodSpec> methods;
  for (const std::string& text : codecs) {
    const size_t bar = text.find('|');  // "K | V", the form that records print
    methods.push_back(bar == std::string::npos
                          ? MethodSpec::parse(text)
                          : MethodSpec::parse(text.substr(0, bar), text.substr(bar + 1)));
  }
  if (!codec_k.empty()) methods.push_back(MethodSpec::parse(codec_k, codec_v));
  return methods;
}

std::string codec_list() {
  std::string text;
  for (const CodecInfo& info : codec_table()) {
    text += fmt::format("{}: {} [{}]\n", info.name, info.summary, info.source);
    for (const OptionInfo& o : info.options)
      text += fmt::format("    {}={}  ({}) {}\n", o.key, o.fallback, o.values, o.help);
  }
  text +=
      "every method also takes sinks=N (first tokens exact) and window=N (recent tokens exact)\n";
  return text;
}

}  // namespace million
