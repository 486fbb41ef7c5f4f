// SPDX-License-Identifier: Apache-2.0
// kv-dump: runs a text through the exact model and stores what enters the cache.
#include "apps/app_main.h"
#include "lib/core/error.h"
#include "lib/core/progress.h"
#include "lib/eval/method_factory.h"
#include "lib/eval/session.h"
#include "lib/eval/text.h"
#include "lib/model/engine.h"
#include "lib/model/gemm.h"
#include "lib/results/dump_file.h"
#include "lib/results/provenance.h"
#include "lib/results/run_record.h"

#include <spdlog/spdlog.h>

#include <chrono>
#include <memory>
#include <optional>
#include <sstream>

namespace million {
namespace {

struct Flags {
  std::string model, text, out, layers = "all", kv_heads = "all", compute = "f32", backend = "cpu";
  std::string tensors = "k_pre,k,v,q,attn_out";
  int64_t tokens = 2048;
  int context = 2048, chunk = 512;
  bool skip_tokens = false, force = false;
};

/// Stores what a window's pass shows; rows of the window start at token `start` of the dump.
class DumpProbe : public Probe {
 public:
  explicit DumpProbe(DumpWriter& writer) : writer_(writer) {}
  void set_start(int64_t start) { start_ = start; }

  void on_layer(int layer, int64_t first, int n, const float*, const float* q, const float* k_pre,
                const float* k, const float* v) override {
    writer_.add(layer, DumpTensor::kKeyPre, start_ + first, n, k_pre);
    writer_.add(layer, DumpTensor::kKey, start_ + first, n, k);
    writer_.add(layer, DumpTensor::kValue, start_ + first, n, v);
    writer_.add(layer, DumpTensor::kQuery, start_ + first, n, q);
  }
  void on_attention(int layer, int64_t first, int n, const float* out) override {
    writer_.add(layer, DumpTensor::kAttnOut, start_ + first, n, out);
  }

 private:
  DumpWriter& writer_;
  int64_t start_ = 0;
};

DumpMeta plan_dump(const Flags& f, const Model& model, const AppContext& context) {
  MILLION_REQUIRE(f.tokens >= 1 && f.context >= 1 && f.chunk >= 1, ErrorCode::kUsage,
                  "--tokens {}, --context {} and --chunk {} must be at least 1", f.tokens,
                  f.context, f.chunk);
  const TokenText text = load_text(model.tokenizer, f.text);
  MILLION_REQUIRE(static_cast<int64_t>(text.tokens.size()) >= f.tokens, ErrorCode::kBadInput,
                  "text {} has {} tokens, --tokens asks for {}; use a longer text or fewer tokens",
                  f.text, text.tokens.size(), f.tokens);
  DumpMeta meta;
  meta.geometry = model.config.geometry();
  meta.model = model.config.name;
  meta.model_sha256 = model.sha256;
  meta.tokenizer = fmt::format("{} tokens of the model file", model.tokenizer.n_vocab());
  meta.compute = arithmetic_name({parse_compute(f.compute)}, parse_backend(f.backend));
  meta.text_name = text.name;
  meta.context = static_cast<int>(std::min<int64_t>(f.context, f.tokens));
  meta.seed = context.seed;
  meta.tokens.assign(text.tokens.begin(), text.tokens.begin() + f.tokens);
  meta.text_sha256 = tokens_sha256(meta.tokens);
  meta.n_tokens = f.tokens;
  meta.layers = parse_ranges(f.layers, meta.geometry.n_layers, "--layers");
  meta.kv_heads = parse_ranges(f.kv_heads, meta.geometry.n_kv_heads, "--kv-heads");
  std::vector<bool> chosen(kDumpTensors, false);
  std::stringstream names(f.tensors);
  for (std::string name; std::getline(names, name, ',');)
    chosen[static_cast<std::size_t>(parse_dump_tensor(name))] = true;
  for (std::size_t t = 0; t < chosen.size(); ++t)
    if (chosen[t]) meta.tensors.push_back(static_cast<DumpTensor>(t));
  return meta;
}

/// What an existing dump holds differently from the plan; empty when it is the same dump.
std::string difference(const DumpMeta& have, const DumpMeta& want, bool with_tokens) {
  if (have.model_sha256 != want.model_sha256) return "another model";
  if (have.text_sha256 != want.text_sha256) return "other text or number of tokens";
  if (have.context != want.context) return fmt::format("context {}", have.context);
  if (have.compute != want.compute) return "compute " + have.compute;
  if (have.layers != want.layers || have.kv_heads != want.kv_heads) return "other layers or heads";
  if (have.tensors != want.tensors) return "other tensors";
  if (have.tokens.empty() == with_tokens) return with_tokens ? "no token ids" : "token ids";
  return "";
}

/// True when PATH is already this dump; Error(kUsage) when it is something else.
bool is_up_to_date(const Flags& f, const DumpMeta& want) {
  if (f.force || !std::filesystem::exists(f.out)) return false;
  std::string what;
  try {
    what = difference(DumpReader(f.out).meta(), want, !f.skip_tokens);
  } catch (const Error& e) {
    what = "no readable dump";
  }
  MILLION_REQUIRE(what.empty(), ErrorCode::kUsage,
                  "{} exists and differs ({}); replace it with --force or choose another --out",
                  f.out, what);
  return true;
}

void write_dump(const Flags& f, const std::shared_ptr<const Model>& model, const DumpMeta& meta) {
  const std::vector<int32_t> tokens = meta.tokens;
  DumpMeta stored = meta;
  if (f.skip_tokens) stored.tokens.clear();
  DumpWriter writer(f.out, std::move(stored));
  const auto engine = make_engine(model, exact_method(meta.geometry),
                                  {{parse_compute(f.compute), DecodeCompute::kExact, f.chunk},
                                   parse_backend(f.backend),
                                   Protocol::kDecodePath,
                                   false,
                                   meta.context});
  DumpProbe probe(writer);
  Progress progress("dump, tokens", meta.n_tokens);
  for (int64_t start = 0; start < meta.n_tokens; start += meta.context) {
    const int64_t end = std::min<int64_t>(start + meta.context, meta.n_tokens);
    engine->clear();
    probe.set_start(start);
    for (int64_t at = start; at < end; at += f.chunk) {
      const auto n = std::min<int64_t>(f.chunk, end - at);
      engine->forward(
          std::span(tokens).subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(n)),
          &probe);
      progress.step("", n);
    }
  }
  writer.finish();
}

RunRecord make_record(const Flags& f, const DumpMeta& meta, const AppContext& context) {
  std::vector<std::string> names;
  for (DumpTensor t : meta.tensors) names.emplace_back(dump_tensor_name(t));
  RunRecord record;
  record.program = context.program;
  record.command = context.command;
  record.seed = context.seed;
  record.config = {
      {"tokens", meta.n_tokens},     {"context", meta.context},   {"tensors", names},
      {"layers", meta.layers},       {"kv_heads", meta.kv_heads}, {"compute", f.compute},
      {"skip_tokens", f.skip_tokens}};
  record.inputs = {{"model", meta.model},
                   {"model_sha256", meta.model_sha256},
                   {"text", meta.text_name},
                   {"text_sha256", meta.text_sha256}};
  record.bytes = {{"payload", meta.payload_bytes()}};
  return record;
}

int run(const Flags& f, const AppContext& context) {
  limit_onednn_isa();
  std::shared_ptr<Device> device;
  if (const Backend backend = parse_backend(f.backend); backend != Backend::kCpu)
    device = shared_device(backend);  // a missing device shows before the model is loaded
  const auto model = Model::load(f.model);
  const DumpMeta meta = plan_dump(f, *model, context);
  const double mib = static_cast<double>(meta.payload_bytes()) / (1 << 20);
  spdlog::info("{}: {} layers, {} KV heads, {} tokens in windows of {}, {}: {:.1f} MiB", f.out,
               meta.layers.size(), meta.kv_heads.size(), meta.n_tokens, meta.context, f.tensors,
               mib);
  RunRecord record = make_record(f, meta, context);
  const bool kept = is_up_to_date(f, meta);
  if (!kept && !context.dry_run) {
    const auto start = std::chrono::steady_clock::now();
    try {
      write_dump(f, model, meta);
    } catch (const Error& e) {
      if (e.code() != ErrorCode::kInterrupted) throw;
      fail(e.code(), "interrupted; a dump is written whole or not at all, nothing was left");
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    record.times("dump_s", {seconds.count()});
    record.bytes["file"] = std::filesystem::file_size(f.out);
    record.bytes["peak_rss"] = peak_rss_bytes();
  }
  const char* state = kept ? "up to date" : context.dry_run ? "would be written" : "written";
  if (kept || context.dry_run) {
    record.status = "skipped";
    record.reason = state;
  }
  if (!context.json.empty()) write_output(context.json, record.to_json().dump() + "\n");
  if (context.prints_summary()) print_out(fmt::format("{}: {}, {:.1f} MiB\n", f.out, state, mib));
  return 0;
}

constexpr const char* kExamples =
    "  kv-dump model.gguf --text book.txt --out book.h5 --tokens 4096 --context 2048\n"
    "  kv-dump model.gguf --text book.txt --out keys.h5 --layers 0,10-12 --tensors k_pre,k\n"
    "Read it with h5py:  h5py.File(\"book.h5\")[\"layers/00/k\"][head, token, channel]\n";

}  // namespace
}  // namespace million

int main(int argc, char** argv) {
  using namespace million;
  const AppInfo info{"kv-dump", "Stores keys, values, queries and tokens of a model's run as HDF5.",
                     kExamples, /*has_dry_run=*/true};
  return run_app(argc, argv, info, [](CLI::App& app, AppContext& context) -> AppBody {
    auto f = std::make_shared<Flags>();
    app.add_option("model", f->model, kModelHelp)->required();
    app.add_option("--text", f->text, "UTF-8 text to run")->required()->group("Data");
    app.add_option("--tokens", f->tokens, "Tokens to store, from the start")->group("Data");
    app.add_option("--context", f->context, "Window length in tokens; each starts an empty cache")
        ->group("Data");
    app.add_option("--layers", f->layers, "Layers, e.g. 0-29 or 0,5")->group("Selection");
    app.add_option("--kv-heads", f->kv_heads, "KV heads with their query heads")
        ->group("Selection");
    app.add_option("--tensors", f->tensors, "Of k_pre, k, v, q, attn_out")->group("Selection");
    app.add_flag("--skip-tokens", f->skip_tokens, "Leave out the token ids")->group("Selection");
    app.add_option("--compute", f->compute, "Dense layers: f32, bf16x3 or bf16")->group("Run");
    app.add_option("--chunk", f->chunk, "Tokens processed at once")->group("Run");
    app.add_option("--backend", f->backend, "cpu, cuda or cuda-emulated")->group("Run");
    app.add_option("--out", f->out, "HDF5 file; kept when it is this dump already")
        ->required()
        ->group("Output");
    app.add_flag("--force", f->force, "Write even when the file exists")->group("Output");
    return [f, &context] { return run(*f, context); };
  });
}
