// SPDX-License-Identifier: Apache-2.0
// Speed of decoding by context depth, methods interleaved, so that a drift of the machine hits all
// of them alike.
#pragma once

#include "lib/cache/kv_cache.h"
#include "lib/eval/text.h"
#include "lib/model/engine.h"
#include "lib/results/run_record.h"

#include <memory>
#include <span>
#include <string>
#include <vector>

namespace million {

/// Raw times of one method at one depth.
struct DepthSpeed {
  int depth = 0;
  double prefill_ms = 0.0;  ///< prefill of this depth's new tokens (from the depth before)
  int prefill_tokens = 0;
  double ttft_ms = 0.0;         ///< prefill from an empty cache up to here, first logits included
  std::vector<double> step_ms;  ///< decode steps, one token each, in order
  std::vector<double> attention_ms;  ///< of each step: all layers' KvCache::attend
  KvCache::Stats stats;              ///< of the steps
  double tick_ms = 0.0;              ///< of the kernels' time stamp counter
  std::string attention;             ///< KvCache::attention_name()
  CacheBytes bytes;
  double bits_cache = 0.0, bits_total = 0.0;
  uint64_t peak_rss_bytes = 0;  ///< of the process so far, all methods of the run together
};

struct SpeedPlan {
  std::vector<int> depths;  ///< ascending
  int steps = 16;           ///< decode steps per repetition
  int repeats = 3;          ///< rounds over the methods; a warm-up round comes first
  DecoderOptions decoder;
  Backend backend = Backend::kCpu;
  bool async_encode = true;
  /// Fill caches with random rows through the encoder instead of a prefill of the text: deep
  /// contexts in seconds; TTFT and prefill then say nothing.
  bool synthetic = false;
  float skip_share = 0.0f;  ///< KvCache::set_skip_share
};

/// Prefills each method's cache with the text up to each depth and times decode steps there, the
/// methods in turn. Result: [method][depth]. Error(kBadInput) when the text is too short.
std::vector<std::vector<DepthSpeed>> measure_speed(std::shared_ptr<const Model> model,
                                                   const std::vector<Method>& methods,
                                                   const TokenText& text, const SpeedPlan& plan);

/// Depth from which `method` decodes no slower than `exact` at all measured depths beyond, linear
/// between depths; the first depth when it never was slower, infinity when it is at the last.
/// Both are measured at the same depths.
double crossover_depth(const std::vector<DepthSpeed>& exact, const std::vector<DepthSpeed>& method);

/// One row of `kv-decode bench`. share_of_bandwidth = bytes that a step must read (weights once,
/// the cache once) / median step time / measured read bandwidth.
RunRecord speed_record(const Model& model, const Method& method, const TokenText& text,
                       const SpeedPlan& plan, const DepthSpeed& speed, double bandwidth_gb_s,
                       const std::string& command);
/// Columns of the table that `kv-decode bench` prints.
const std::vector<Column>& speed_columns();

/// Read bandwidth of main memory over all threads in GB/s: median of several passes over a buffer
/// much larger than the caches (512 MiB, which count in the peak memory of the process).
double measure_read_bandwidth();

/// Quantile q of raw times, linear between neighbours.
double quantile(std::vector<double> values, double q);

}  // namespace million
