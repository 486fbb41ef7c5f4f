// SPDX-License-Identifier: Apache-2.0
// What a method does to one window's keys, values and attention, beside what it does to the text:
// reconstruction error ranks methods badly, so it never stands alone.
#pragma once

#include "lib/cache/kv_cache.h"
#include "lib/model/decoder.h"
#include "lib/results/run_record.h"

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace million {

/// Exact rows of one window in every layer, as the fp16 cache's run sees them.
struct CapturedWindow {
  KvGeometry geometry;
  int n_tokens = 0;
  std::vector<AlignedVector<uint16_t>> k, v;  ///< [layer] -> [n][n_kv_heads][d] f16, k after RoPE
  std::vector<int> query_positions;           ///< ascending; a sample over the window
  std::vector<AlignedVector<float>> q;        ///< [layer] -> [sample][n_heads][d], after RoPE
};

CapturedWindow capture_window(std::shared_ptr<const Model> model, std::span<const int32_t> tokens,
                              const DecoderOptions& options);

/// Adds k_nmse, v_nmse, attn_error (relative L2 of the attention outputs), score_error and
/// top_overlap, means over layers and heads with the spread over layers as error, and each layer's
/// numbers as series "NAME_by_layer". Sinks stay exact; the window does not count here.
void add_distortion(RunRecord& record, const Method& method, const CapturedWindow& window);

}  // namespace million
