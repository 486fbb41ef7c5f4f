// SPDX-License-Identifier: Apache-2.0
#include "apps/decode_flags.h"

#include "apps/eval_flags.h"
#include "lib/core/error.h"
#include "lib/model/gemm.h"
#include "lib/model/position_map.h"

#include <algorithm>

namespace million {
namespace {

/// Share of a head's weight below which the CPU leaves values out: no loss that could be measured.
constexpr float kDefaultSkip = 3e-4f;

void add_common(CLI::App& app, DecodeFlags& f) {
  app.add_option("model", f.model, kModelHelp)->required();
  const char* method = "Method";
  app.add_option("--codec", f.codecs, "cache method (bench: repeatable); default fp16")
      ->group(method)
      ->take_all();
  app.add_option("--codec-k", f.codec_k, "method of keys")->group(method);
  app.add_option("--codec-v", f.codec_v, "method of values")->group(method);
  app.add_option("--calib-text", f.calib_text, "calibration text for trained methods")
      ->group(method);
  app.add_option("--calib-tokens", f.calib_tokens, "calibration tokens")
      ->capture_default_str()
      ->group(method);
  app.add_option("--calib-context", f.calib_context, "calibration window, tokens")
      ->capture_default_str()
      ->group(method);
  app.add_option("--codebooks", f.codebooks, "folder of trained codebooks")->group(method);
  const char* run = "Run";
  app.add_option("--compute", f.compute,
                 "prefill: f32 | bf16x3 | bf16; exact = f32 for single tokens too")
      ->capture_default_str()
      ->group(run);
  app.add_option("--decode-compute", f.decode_compute,
                 "single tokens: int8x2 (activations in two int8 terms) | int8 | exact")
      ->capture_default_str()
      ->group(run);
  app.add_option("--backend", f.backend,
                 "cpu | cuda | cuda-emulated (the device's kernels, run on the host: for checks)")
      ->capture_default_str()
      ->group(run);
  app.add_option("--positions", f.positions,
                 "how to read beyond the trained length: plain | selfextend:group=8,window=1024 | "
                 "linear:factor=8 | ntk:factor=8 | dynamic | yarn:factor=8")
      ->capture_default_str()
      ->group(run);
  app.add_option("--ctx", f.ctx,
                 "tokens that a device's cache is made for; 0 = the model's training length")
      ->group(run);
  app.add_option("--chunk", f.chunk, "prompt tokens processed at once")
      ->capture_default_str()
      ->group(run);
  app.add_flag("--sync-encode", f.sync_encode, "encode in the decoding thread")->group(run);
  app.add_option(
         "--skip-mass", f.skip_mass,
         "leave out the values of 64 coded tokens of a head with surely less than this "
         "share of its weight (fused kernels); 0 = exact; default 3e-4 on the CPU, 0 elsewhere")
      ->check(CLI::Range(0.0f, 0.1f))
      ->group(run);
}

void add_generation(CLI::App& app, DecodeFlags& f) {
  const char* group = "Generation";
  app.add_option("-n,--n-predict", f.n_predict, "most tokens to generate")
      ->capture_default_str()
      ->check(CLI::PositiveNumber)
      ->group(group);
  app.add_option("--temperature", f.temperature, "0 = greedy")->capture_default_str()->group(group);
  app.add_option("--top-k", f.top_k, "0 = all")->capture_default_str()->group(group);
  app.add_option("--top-p", f.top_p, "1 = all")->capture_default_str()->group(group);
  app.add_flag("--ignore-end", f.ignore_end, "go on behind end tokens")->group(group);
  app.add_flag("--no-chat-template", f.no_chat_template, "plain text instead of the chat format")
      ->group(group);
  app.add_flag("--no-default-system", f.no_default_system,
               "leave out the template's own system message")
      ->group(group);
}

}  // namespace

void DecodeFlags::add_to(CLI::App& app) {
  CLI::App* generate = app.add_subcommand("generate", "continue a prompt");
  add_common(*generate, *this);
  add_generation(*generate, *this);
  generate->add_option("--prompt", prompt, "text to continue")->group("Generation");
  generate->add_option("--prompt-file", prompt_file, "file with the prompt")->group("Generation");
  generate->add_flag("--as-chat", as_chat, "the prompt is one user message")->group("Generation");
  generate->add_flag("--print-ids", print_ids, "also print the generated ids")->group("Generation");
  CLI::App* chat = app.add_subcommand("chat", "conversation; one message a line on stdin");
  add_common(*chat, *this);
  add_generation(*chat, *this);
  chat->add_option("--system", system, "system message")->group("Generation");
  CLI::App* bench = app.add_subcommand("bench", "speed and memory by context depth");
  add_common(*bench, *this);
  const char* group = "Bench";
  bench->add_option("--text", text, "text to prefill with")->group(group);
  bench
      ->add_option("--fill", fill,
                   "text | synthetic: random rows through the encoder, deep contexts in seconds")
      ->capture_default_str()
      ->check(CLI::IsMember({"text", "synthetic"}))
      ->group(group);
  bench->add_option("--depths", depths, "context depths, tokens, ascending")
      ->delimiter(',')
      ->capture_default_str()
      ->group(group);
  bench->add_option("--steps", steps, "decode steps a round")->capture_default_str()->group(group);
  bench->add_option("--reps", repeats, "rounds; methods take turns in each")
      ->capture_default_str()
      ->group(group);
  bench->add_option("--csv", csv, "all columns as CSV; '-' = stdout")->group(group);
  for (CLI::App* sub : {generate, chat, bench}) {
    sub->fallthrough();
    sub->callback([this, sub] { command = sub->get_name(); });
  }
}

Generator DecodeInputs::generator(const DecodeFlags& flags) const {
  MILLION_REQUIRE(methods.size() == 1, ErrorCode::kUsage, "--codec: got {} methods, {} takes one",
                  methods.size(), flags.command);
  return Generator(model, options, methods[0], {flags.temperature, flags.top_k, flags.top_p, seed});
}

std::unique_ptr<DecodeInputs> load_decode_inputs(const DecodeFlags& f, const AppContext& context) {
  limit_onednn_isa();
  const std::vector<MethodSpec> specs = parse_methods(
      f.codecs.empty() && f.codec_k.empty() ? std::vector<std::string>{"fp16"} : f.codecs,
      f.codec_k, f.codec_v);
  auto inputs = std::make_unique<DecodeInputs>();
  inputs->seed = context.seed;
  const bool exact = f.compute == "exact";
  const Backend backend = parse_backend(f.backend);
  if (backend != Backend::kCpu)
    inputs->device = shared_device(backend);  // a missing device shows before the load
  const float default_skip = backend == Backend::kCpu ? kDefaultSkip : 0.0f;
  const int use = f.command == "bench" ? f.depths.back() + f.steps : f.ctx;
  const PositionSpec positions = PositionSpec::parse(f.positions);
  MILLION_REQUIRE(
      positions.kind != PositionSpec::Kind::kDynamic || use > 0, ErrorCode::kUsage,
      "--positions dynamic scales for the tokens to come: give their number with --ctx");
  inputs->model = with_positions(Model::load(f.model), positions, use);
  inputs->options = {{exact ? PrefillCompute::kF32 : parse_compute(f.compute),
                      parse_decode_compute(exact ? "exact" : f.decode_compute), f.chunk},
                     backend,
                     Protocol::kDecodePath,
                     !f.sync_encode,
                     f.ctx > 0 ? f.ctx : inputs->model->config.n_context,
                     f.skip_mass >= 0.0f ? f.skip_mass : default_skip};
  CalibrationPlan plan{nullptr, f.calib_context, f.calib_tokens};
  if (!f.calib_text.empty()) {
    inputs->calib_text = load_text(inputs->model->tokenizer, f.calib_text);
    plan.text = &inputs->calib_text;
  }
  MethodFactory factory(inputs->model, plan, f.codebooks);
  for (const MethodSpec& spec : specs) inputs->methods.push_back(factory.make(spec, use));
  return inputs;
}

}  // namespace million
