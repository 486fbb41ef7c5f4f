// SPDX-License-Identifier: Apache-2.0
// From a method's text to something that runs: trains what needs training on rows that
// calibration_capture takes from the model, and keeps codebooks in files so that no run trains
// twice.
#pragma once

#include "lib/cache/kv_cache.h"
#include "lib/eval/calibration_capture.h"
#include "lib/eval/text.h"
#include "lib/model/decoder.h"

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

namespace million {

/// The fp16 cache that everything is compared with.
Method exact_method(const KvGeometry& geometry);

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
  /// What trained codecs of these kinds are calibrated with; the plan has a text.
  CalibrationInfo calibration_of(const Codec& key, const Codec& value) const;
  std::shared_ptr<const Codec> codec(const MethodSpec& method, KvKind kind);
  const CalibrationSet& calibration(bool gradients);
  std::filesystem::path file_of(const Codec& codec, KvKind kind, int sinks) const;

  std::shared_ptr<const Model> model_;
  std::shared_ptr<const Model> plain_;  ///< model_ without SelfExtend: what calibration reads
  CalibrationPlan plan_;
  std::filesystem::path codebooks_;
  std::optional<CalibrationSet> calibration_;
  double trained_seconds_ = 0.0;
};

/// Calibration of a method as it stands in records.
Json to_json(const CalibrationInfo& info);
/// The same before anything is trained; null for a method that learns nothing.
Json calibration_json(const Model& model, const CalibrationPlan& plan, const MethodSpec& spec);

}  // namespace million
