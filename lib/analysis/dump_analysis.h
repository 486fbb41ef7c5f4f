// SPDX-License-Identifier: Apache-2.0
// Statistics of whole dumps: every stored layer, tensor and head; how stable the top channels are
// over texts; tables and the JSON that figures are drawn from.
#pragma once

#include "lib/analysis/channel_stats.h"
#include "lib/core/json.h"
#include "lib/results/dump_file.h"

#include <functional>
#include <string>
#include <vector>

namespace million {

/// Statistics of one head of one dump.
struct HeadEntry {
  int dump = 0, layer = 0;
  DumpTensor tensor = DumpTensor::kKey;
  int head = 0;
  HeadStats stats;
  double text_stability = -1.0;  ///< mean Jaccard of the top channels with the other dumps; -1: one
};

struct DumpAnalysis {
  StatsOptions options;
  std::vector<DumpMeta> dumps;   ///< without token ids
  std::vector<HeadEntry> heads;  ///< by dump, layer, tensor, head
};

/// Analyses `tensors` of `layers` of all dumps (of one model: Error(kBadInput) otherwise); tensors
/// that a dump lacks are left out. Calls `on_layer` after each layer of each dump.
DumpAnalysis analyze_dumps(const std::vector<DumpReader>& dumps, std::vector<DumpTensor> tensors,
                           const std::vector<int>& layers, const StatsOptions& options,
                           const std::function<void()>& on_layer = {});

/// {"format": "million-kv-analysis", "version", "options", "dumps": [...], "norm_bins",
///  "summary": {tensor: {...}}, "layers": [{layer, tensor, ...}],
///  "heads": [{dump, layer, tensor, head, ..., "channels": {"min": [...], "max": [...], ...}}]}.
/// "summary" and "layers" are means over the heads of the first dump. Numbers have six digits.
Json to_json(const DumpAnalysis& analysis);

/// One line per dump, layer, tensor, head and channel; channel "all" is the whole head.
std::string to_csv(const DumpAnalysis& analysis);
/// A table over tensors and one over layers, of the first dump.
std::string to_markdown(const DumpAnalysis& analysis);

/// Magnitudes of one layer and KV head for a surface figure: {"layer", "head", "tokens": [...],
/// "k_pre": [[|x| per channel] per token], "k": ..., "v": ...}. Runs of tokens are reduced to their
/// maximum per channel so that at most `max_tokens` remain and no single outlier is lost.
Json surface_json(const DumpReader& dump, int layer, int head, int max_tokens);

}  // namespace million
