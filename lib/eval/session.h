// SPDX-License-Identifier: Apache-2.0
// One evaluation setting (model, text, windows, protocol) in which many methods are scored: keeps
// the fp16 reference and turns each method into a run record.
#pragma once

#include "lib/eval/allocation.h"
#include "lib/eval/method_factory.h"
#include "lib/eval/perplexity.h"
#include "lib/results/run_record.h"

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

namespace million {

struct SessionPlan {
  EvaluationPlan evaluation;
  CalibrationPlan calibration;      ///< text may be nullptr
  std::filesystem::path codebooks;  ///< folder; empty = keep none
  std::filesystem::path reference;  ///< file; loaded when there, else written; empty = in memory
  bool paper_protocol = false;      ///< calibrated on the evaluation text; marked in the row
  bool distortion = true;           ///< also K/V and attention errors on the first window
  bool limited = false;             ///< --limit was used: rows are marked "not a result"
  std::string program, command;     ///< for the records
};

class EvalSession {
 public:
  EvalSession(std::shared_ptr<const Model> model, SessionPlan plan);
  ~EvalSession();

  /// The row's identity without running it: what key() of the finished record will be.
  RunRecord describe(const MethodSpec& spec) const;
  /// Trains or loads, scores all windows, measures bytes. Throws what the parts throw.
  RunRecord run(const MethodSpec& spec);
  /// Splits a budget over layers, keys and values: see allocate_bits. Error(kUsage) without a
  /// calibration text.
  Allocation allocate(const MethodSpec& base, double budget_bits);
  /// Seconds that run() of an untrained method takes, measured on the reference pass.
  double reference_seconds() const;

 private:
  const Reference& reference();
  void add_scores(RunRecord& record, const Evaluation& e) const;

  struct Distortion;
  std::shared_ptr<const Model> model_;
  SessionPlan plan_;
  MethodFactory factory_;
  std::optional<Reference> reference_;
  double reference_seconds_ = 0.0;
  std::unique_ptr<Distortion> distortion_;
};

/// Metrics of tokens scored beside the exact cache: nll, ppl, ppl_increase_percent, kl, kl_p99,
/// same_top_percent; errors from blocks of text.
void add_token_scores(RunRecord& record, const TokenScores& scores);

const char* compute_name(PrefillCompute compute);
/// "f32", "bf16x3", "bf16"; Error(kUsage) otherwise.
PrefillCompute parse_compute(std::string_view text);
/// Arithmetic of the dense layers in records: the CPU's --compute, a device's halves.
const char* arithmetic_name(const DecoderOptions& decoder, Backend backend);
const char* decode_compute_name(DecodeCompute compute);
/// "int8", "int8x2", "exact"; Error(kUsage) otherwise.
DecodeCompute parse_decode_compute(std::string_view text);

}  // namespace million
