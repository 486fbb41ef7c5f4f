// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/session.h"

#include "kernels/ops.h"

#include "lib/core/error.h"
#include "lib/core/progress.h"
#include "lib/eval/method_distortion.h"
#include "lib/results/provenance.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>

namespace million {
namespace {

/// Mean over windows and blocks of exp(nll): the perplexity, with the error of its logarithm.
void add_perplexity(RunRecord& record, const std::vector<double>& nll) {
  const MeanError m = block_mean(nll);
  const double ppl = std::exp(m.mean);
  record.metric("nll", m.mean, m.se, m.n);
  record.metric("ppl", ppl, ppl * m.se, m.n);
}

/// Lengths at which a sequence's bits are counted with its codebooks.
constexpr int64_t kReportLengths[] = {2048, 8192, 32768, 131072};
constexpr int kPositionParts = 8;

/// Mean KL of each eighth of the context; kl holds context - 1 predictions of each window.
std::vector<double> kl_by_position(const std::vector<double>& kl, int context) {
  std::vector<double> sum(kPositionParts, 0.0);
  std::vector<int64_t> n(kPositionParts, 0);
  for (size_t i = 0; i < kl.size(); ++i) {
    const auto part = static_cast<int64_t>(i % (context - 1)) * kPositionParts / (context - 1);
    sum[part] += kl[i];
    ++n[part];
  }
  for (int p = 0; p < kPositionParts; ++p)
    sum[p] /= std::max<double>(1.0, static_cast<double>(n[p]));
  return sum;
}

/// Bits per value of a sequence of `length` tokens, codebooks included: what the window's cache
/// allocated for a coded token, times the tokens that would be coded, and the exact rows.
double bits_at(const RunRecord& record, const CacheBytes& bytes, int64_t length,
               const KvGeometry& geometry) {
  const double context = record.config["context"], row = 2.0 * geometry.n_layers * geometry.row();
  const double exact_rows = static_cast<double>(bytes.sinks + bytes.window) / (2.0 * row);
  const auto coded = static_cast<double>(bytes.codes + bytes.scales + bytes.outliers);
  // all-distorted codes the tokens of its window too; a residual by a method's own rule is exact.
  const bool window_coded = record.config["protocol"] == protocol_name(Protocol::kAllDistorted) &&
                            (record.config["window"].get<int>() > 0 || geometry.self_extend.on());
  const double n_coded =
      std::max(1.0, context - (window_coded ? record.config["sinks"].get<double>() : exact_rows));
  const auto n = static_cast<double>(length);
  if (coded == 0.0) return 16.0;
  const double total = coded / n_coded * std::max(0.0, n - exact_rows) +
                       2.0 * row * std::min(exact_rows, n) + static_cast<double>(bytes.shared);
  return 8.0 * total / (n * row);
}

}  // namespace

void add_token_scores(RunRecord& record, const TokenScores& s) {
  add_perplexity(record, s.nll);
  std::vector<double> difference(s.nll.size()), same(s.same_top.begin(), s.same_top.end());
  for (size_t i = 0; i < difference.size(); ++i) difference[i] = s.nll[i] - s.reference_nll[i];
  const MeanError d = block_mean(difference);  // paired: the text's own spread cancels
  record.metric("ppl_increase_percent", 100.0 * std::expm1(d.mean), 100.0 * std::exp(d.mean) * d.se,
                d.n);
  const MeanError kl = block_mean(s.kl), top = block_mean(same);
  record.metric("kl", kl.mean, kl.se, kl.n);
  std::vector<double> sorted = s.kl;
  std::sort(sorted.begin(), sorted.end());
  record.metric("kl_p99",
                sorted[static_cast<size_t>(0.99 * static_cast<double>(sorted.size() - 1))],
                std::nan(""), kl.n);
  record.metric("same_top_percent", 100.0 * top.mean, 100.0 * top.se, top.n);
}

const char* compute_name(PrefillCompute compute) {
  switch (compute) {
    case PrefillCompute::kF32:
      return "f32";
    case PrefillCompute::kBf16x3:
      return "bf16x3";
    case PrefillCompute::kBf16:
      return "bf16";
  }
  return "?";
}

PrefillCompute parse_compute(std::string_view text) {
  for (PrefillCompute c : {PrefillCompute::kF32, PrefillCompute::kBf16x3, PrefillCompute::kBf16})
    if (text == compute_name(c)) return c;
  fail(ErrorCode::kUsage, "--compute: got '{}', expected f32, bf16x3 or bf16", text);
}

const char* arithmetic_name(const DecoderOptions& decoder, Backend backend) {
  return backend == Backend::kCpu ? compute_name(decoder.prefill) : "f16";
}

const char* decode_compute_name(DecodeCompute compute) {
  switch (compute) {
    case DecodeCompute::kInt8:
      return "int8";
    case DecodeCompute::kInt8x2:
      return "int8x2";
    case DecodeCompute::kExact:
      return "exact";
  }
  return "?";
}

DecodeCompute parse_decode_compute(std::string_view text) {
  for (DecodeCompute c : {DecodeCompute::kInt8, DecodeCompute::kInt8x2, DecodeCompute::kExact})
    if (text == decode_compute_name(c)) return c;
  fail(ErrorCode::kUsage, "--decode-compute: got '{}', expected int8, int8x2 or exact", text);
}

struct EvalSession::Distortion {
  explicit Distortion(CapturedWindow w) : window(std::move(w)) {}
  CapturedWindow window;
};

EvalSession::EvalSession(std::shared_ptr<const Model> model, SessionPlan plan)
    : model_(std::move(model)),
      plan_(std::move(plan)),
      factory_(model_, plan_.calibration, plan_.codebooks) {
  if (plan_.calibration.text)
    require_disjoint(*plan_.calibration.text, *plan_.evaluation.windows.text, plan_.paper_protocol);
  const int context = plan_.evaluation.windows.context;
  if (context > model_->config.n_context)
    spdlog::warn("context {} is beyond the model's trained {}; plain positions lose quality there",
                 context, model_->config.n_context);
}

EvalSession::~EvalSession() = default;

RunRecord EvalSession::describe(const MethodSpec& spec) const {
  const EvaluationPlan& e = plan_.evaluation;
  RunRecord record;
  record.program = plan_.program;
  record.command = plan_.command;
  record.method = spec.to_string();
  record.config = {{"method", record.method},
                   {"key_codec", spec.key_codec},
                   {"value_codec", spec.value_codec},
                   {"sinks", spec.sinks},
                   {"window", spec.window},
                   {"protocol", protocol_name(e.protocol)},
                   {"context", e.windows.context},
                   {"stride", e.windows.context},
                   {"windows", e.windows.count},
                   {"compute", arithmetic_name(e.decoder, e.backend)},
                   {"bos", model_->tokenizer.add_bos()},
                   {"paper_protocol", plan_.paper_protocol},
                   {"distortion", plan_.distortion},
                   {"limited", plan_.limited}};
  if (e.protocol == Protocol::kDecodePath && e.decoder.chunk == 1) {  // by the fused kernels
    record.config["chunk"] = 1;
    record.config["skip_share"] = e.skip_share;
    record.config["isa"] = ops().name;
  }
  if (e.backend != Backend::kCpu) record.config["backend"] = backend_name(e.backend);
  if (model_->config.positions != "plain") record.config["positions"] = model_->config.positions;
  record.inputs = {{"model", model_->config.name},
                   {"model_sha256", model_->sha256},
                   {"text", e.windows.text->name},
                   {"text_sha256", e.windows.text->sha256}};
  record.inputs["calibration"] = calibration_json(*model_, plan_.calibration, spec);
  return record;
}

const Reference& EvalSession::reference() {
  if (reference_) return *reference_;
  const EvaluationPlan& e = plan_.evaluation;
  Reference wanted;
  wanted.model_sha256 = model_->sha256;
  wanted.text_sha256 = e.windows.text->sha256;
  wanted.context = e.windows.context;
  wanted.compute = arithmetic_name(e.decoder, e.backend);
  wanted.positions = model_->config.positions;
  const bool keep = !plan_.reference.empty();
  if (keep && std::filesystem::exists(plan_.reference)) {
    reference_ = load_reference(plan_.reference, wanted, e.windows.count, model_->config.d_model);
    return *reference_;
  }
  Progress progress("fp16 reference", e.windows.count);
  const Evaluation run = evaluate(model_, exact_method(model_->config.geometry()), e, nullptr,
                                  &wanted, [&](int) { progress.step(); });
  reference_seconds_ = run.seconds;
  if (keep) save_reference(wanted, model_->config.d_model, plan_.reference);
  reference_ = std::move(wanted);
  return *reference_;
}

Allocation EvalSession::allocate(const MethodSpec& base, double budget_bits) {
  MILLION_REQUIRE(plan_.calibration.text, ErrorCode::kUsage,
                  "--budget-bits measures layers on a calibration text: give --calib-text");
  return allocate_bits(model_, factory_, plan_.calibration, plan_.evaluation.decoder, base,
                       budget_bits, plan_.codebooks);
}

double EvalSession::reference_seconds() const { return reference_seconds_; }

void EvalSession::add_scores(RunRecord& record, const Evaluation& e) const {
  add_token_scores(record, e.scores);
  record.series["kl_by_position"] = kl_by_position(e.scores.kl, plan_.evaluation.windows.context);
  record.bits = {{"nominal", e.bits_nominal}, {"cache", e.bits_cache}, {"total", e.bits_total}};
  for (const int64_t length : kReportLengths)
    record.bits["at"][std::to_string(length)] =
        bits_at(record, e.bytes, length, model_->config.geometry());
  record.bytes = {{"codes", e.bytes.codes},       {"scales", e.bytes.scales},
                  {"outliers", e.bytes.outliers}, {"sinks", e.bytes.sinks},
                  {"window", e.bytes.window},     {"shared", e.bytes.shared}};
}

RunRecord EvalSession::run(const MethodSpec& spec) {
  RunRecord record = describe(spec);
  const EvaluationPlan& e = plan_.evaluation;
  const Reference& exact = reference();
  const Method method = factory_.make(spec, e.windows.context);
  Progress progress(record.method, e.windows.count);
  const Evaluation result =
      evaluate(model_, method, e, &exact, nullptr, [&](int) { progress.step(); });
  add_scores(record, result);
  if (plan_.distortion) {
    if (!distortion_)
      distortion_ =
          std::make_unique<Distortion>(capture_window(model_, e.windows.window(0), e.decoder));
    add_distortion(record, method, distortion_->window);
  }
  record.timing["evaluate_s"] = result.seconds;
  record.timing["train_s"] = factory_.trained_seconds();
  return record;
}

}  // namespace million
