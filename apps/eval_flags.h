// SPDX-License-Identifier: Apache-2.0
// Flags that the evaluating programs share: model, texts, windows, protocol, arithmetic.
#pragma once

#include "apps/app_main.h"
#include "lib/eval/session.h"

#include <memory>
#include <string>
#include <vector>

namespace million {

struct EvalFlags {
  std::string model, text, calib_text;
  int context = 2048, windows = 4, calib_context = 0, calib_tokens = 10240, chunk = 512, limit = 0;
  float skip_mass = 0.0f;
  int calib_grad_windows = 2;
  int64_t calib_positions = 0;
  std::string protocol = "all-distorted", compute = "f32", backend = "cpu", codebooks, reference;
  bool paper_protocol = false, no_distortion = false;

  void add_to(CLI::App& app);
};

/// Model and texts that a session refers to; keep it alive as long as the session.
struct EvalInputs {
  std::shared_ptr<Device> device;  ///< of --backend, held so that it is made once
  std::shared_ptr<const Model> model;
  TokenText text, calib_text;
  SessionPlan plan;
};

/// Loads everything the flags name and resolves the plan. Errors as the loaders throw them.
std::unique_ptr<EvalInputs> load_inputs(const EvalFlags& flags, const AppContext& context);
/// The same in two steps, for runs without windows of a text: load_base() leaves them out, and the
/// text where --text is not given; add_windows() then needs it.
std::unique_ptr<EvalInputs> load_base(const EvalFlags& flags, const AppContext& context);
void add_windows(EvalInputs& inputs, const EvalFlags& flags);

/// The same plan with windows of another length and as many tokens in all (at least one window).
/// The calibration stays as it is; a reference file gets the length into its name.
SessionPlan plan_at(const EvalInputs& inputs, int context);

/// Columns of the table that kv-eval and pq-sweep print.
const std::vector<Column>& score_columns();

/// "--codec SPEC" entries, or one method from --codec-k and --codec-v.
std::vector<MethodSpec> parse_methods(const std::vector<std::string>& codecs,
                                      const std::string& codec_k, const std::string& codec_v);

/// The method table as text for --list-codecs.
std::string codec_list();

}  // namespace million
