// SPDX-License-Identifier: Apache-2.0
// From a method's text to something that runs: captures calibration rows from the model, trains
// what needs training, and keeps codebooks in files so that no run trains twice.
#pragma once

#include "lib/cache/kv_cache.h"
#include "lib/eval/text.h"
#include "lib/model/decoder.h"

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

namespace million {

/// The fp16 cache that everything is compared with.
Method exact_method(const KvGeometry& geometry);

/// Runs `n_tokens` of the text in windows of `context` tokens through the exact model and keeps
/// keys before RoPE, values and query statistics of every layer.
CalibrationSet capture_calibration(std::shared_ptr<const Model> model, const TokenText& text,
                                   int context, int n_tokens);

/// How codecs are calibrated; part of every codebook file and result row.
struct CalibrationPlan {
  const TokenText* text = nullptr;
  int context = 2048;  ///< window length; codes of post-RoPE keys hold only up to it
  int n_tokens = 10240;
};

class MethodFactory {
 public:
  /// `codebooks`: folder of codebook files, created on first use; empty = keep none.
  MethodFactory(std::shared_ptr<const Model> model, CalibrationPlan plan,
                std::filesystem::path codebooks);

  /// Trained codecs of a method. Warns once when a post-RoPE key codec will be used beyond the
  /// calibrated length. Error(kUsage) when training is needed and no calibration text was given.
  Method make(const MethodSpec& spec, int use_context);
  /// Seconds spent in training by the last make(); 0 when everything came from files.
  double trained_seconds() const { return trained_seconds_; }

 private:
  std::shared_ptr<const Codec> codec(const std::string& spec, KvKind kind, int sinks);
  const CalibrationSet& calibration();
  std::filesystem::path file_of(const std::string& spec, KvKind kind, int sinks) const;

  std::shared_ptr<const Model> model_;
  CalibrationPlan plan_;
  std::filesystem::path codebooks_;
  std::optional<CalibrationSet> calibration_;
  double trained_seconds_ = 0.0;
};

/// Calibration of a method as it stands in records.
Json to_json(const CalibrationInfo& info);

}  // namespace million
