// SPDX-License-Identifier: Apache-2.0
// kv-decode: the end-to-end decoder with any cache method: generate, chat, bench.
#include "apps/decode_flags.h"

#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/core/progress.h"
#include "lib/eval/speed.h"
#include "lib/model/chat.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <iostream>

namespace million {
namespace {

bool print_piece(std::string_view piece) {
  print_out(piece);
  return !interrupted();
}

void report(const Generation& g, const Engine& engine) {
  const double step = g.step_ms.empty() ? 0.0 : quantile(g.step_ms, 0.5);
  spdlog::info(
      "prompt {} tokens, first token after {:.0f} ms; {} tokens, median {:.2f} ms each; "
      "cache {:.2f} MiB, {:.3f} bits a value (fp16: 16)",
      g.prompt_tokens, g.ttft_ms, g.ids.size(), step,
      static_cast<double>(engine.bytes().cache()) / 1048576.0, engine.measured_bits(false));
}

std::vector<int32_t> encode_turns(const DecodeFlags& flags, const Model& model,
                                  std::span<const ChatMessage> messages) {
  const ChatFormat format =
      flags.no_chat_template ? ChatFormat{} : detect_chat_format(model.chat_template);
  return encode_chat(model.tokenizer, format, messages, {!flags.no_default_system, true});
}

/// Plain text behind BOS, where the model wants one.
std::vector<int32_t> encode_prompt(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<int32_t> ids = tokenizer.encode(text);
  if (tokenizer.add_bos() && !ids.empty()) ids.insert(ids.begin(), tokenizer.bos());
  return ids;
}

int generate(const DecodeFlags& flags, const AppContext& context) {
  const auto in = load_decode_inputs(flags, context);
  const std::string prompt =
      flags.prompt_file.empty() ? flags.prompt : read_file(flags.prompt_file);
  const ChatMessage message{"user", prompt};
  const std::vector<int32_t> ids = flags.as_chat ? encode_turns(flags, *in->model, {&message, 1})
                                                 : encode_prompt(in->model->tokenizer, prompt);
  Generator generator = in->generator(flags);
  const TextStart start = flags.as_chat ? TextStart::kText : TextStart::kContinued;
  const Generation g = generator.run(ids, flags.n_predict, flags.ignore_end, print_piece, start);
  print_out(flags.print_ids ? fmt::format("\n{}\n", fmt::join(g.ids, " ")) : "\n");
  report(g, generator.engine());
  check_interrupted();
  return 0;
}

int chat(const DecodeFlags& flags, const AppContext& context) {
  const auto in = load_decode_inputs(flags, context);
  Generator generator = in->generator(flags);
  std::vector<ChatMessage> turns;
  if (!flags.system.empty()) turns.push_back({"system", flags.system});
  std::string line;
  while (fmt::print(stderr, "> "), std::fflush(stderr), std::getline(std::cin, line)) {
    if (line.empty()) continue;
    turns.push_back({"user", line});
    const Generation g = generator.run(encode_turns(flags, *in->model, turns), flags.n_predict,
                                       flags.ignore_end, print_piece, TextStart::kText);
    print_out("\n");
    report(g, generator.engine());
    check_interrupted();
    turns.push_back({"assistant", in->model->tokenizer.decode(g.ids)});
  }
  return 0;
}

/// Index of fp16 among the methods, their number when it is not there.
size_t find_exact(const std::vector<Method>& methods) {
  const auto is_exact = [](const Method& m) { return m.spec.to_string() == "fp16"; };
  return static_cast<size_t>(std::find_if(methods.begin(), methods.end(), is_exact) -
                             methods.begin());
}

int bench(const DecodeFlags& flags, const AppContext& context) {
  const auto in = load_decode_inputs(flags, context);
  const bool synthetic = flags.fill == "synthetic";
  MILLION_REQUIRE(synthetic || !flags.text.empty(), ErrorCode::kUsage,
                  "bench needs --text FILE to prefill with, or --fill synthetic");
  const TokenText text = synthetic ? TokenText{} : load_text(in->model->tokenizer, flags.text);
  const EngineOptions& o = in->options;
  const SpeedPlan plan{flags.depths, flags.steps,    flags.repeats, o.decoder,
                       o.backend,    o.async_encode, synthetic,     o.skip_share};
  const auto lanes = measure_speed(in->model, in->methods, text, plan);
  const double bandwidth = measure_read_bandwidth();  // last: its buffer counts in the peak memory
  const bool to_file = !context.json.empty() && context.json != "-";
  RecordFile file(to_file ? context.json : std::string());
  std::vector<Json> rows;
  const size_t exact = find_exact(in->methods);
  for (size_t m = 0; m < lanes.size(); ++m)
    for (const DepthSpeed& d : lanes[m]) {
      RunRecord record =
          speed_record(*in->model, in->methods[m], text, plan, d, bandwidth, context.command);
      if (m != exact && exact < lanes.size()) {
        const double depth = crossover_depth(lanes[exact], lanes[m]);
        if (std::isfinite(depth)) record.metric("crossover_depth", depth);
      }
      rows.push_back(record.to_json());
    }
  for (const Json& row : rows) {
    if (to_file) file.append(row);
    if (context.json == "-") print_out(row.dump() + "\n");
  }
  write_output(flags.csv, to_csv(rows, all_columns(rows)));
  if (context.prints_summary()) print_out(to_markdown(rows, speed_columns()));
  return 0;
}

constexpr const char* kExamples =
    "  kv-decode generate model.gguf --prompt 'What is the capital of France?' --as-chat\n"
    "  kv-decode bench model.gguf --text book.txt --depths 128,1024,4096 --codec fp16 \\\n"
    "      --codec pq:M=32,nbits=8,sinks=4 --calib-text train.txt --json speed.jsonl";

}  // namespace
}  // namespace million

int main(int argc, char** argv) {
  using namespace million;
  return run_app(argc, argv, {"kv-decode", "decode with any KV-cache method", kExamples},
                 [](CLI::App& app, AppContext& context) -> AppBody {
                   auto flags = std::make_shared<DecodeFlags>();
                   app.require_subcommand(1);
                   flags->add_to(app);
                   return [flags, &context] {
                     if (flags->command == "generate") return generate(*flags, context);
                     if (flags->command == "chat") return chat(*flags, context);
                     return bench(*flags, context);
                   };
                 });
}
