// SPDX-License-Identifier: Apache-2.0
// A dump as calibration data: the same rows a codec would have seen during the run that wrote it.
#include "lib/core/error.h"
#include "lib/results/dump_file.h"

#include <algorithm>

namespace million {
namespace {

/// Copies one tensor of one layer into [token][n_kv_heads][head_dim].
SpillBuffer<uint16_t> token_major(const DumpReader& dump, int layer, DumpTensor t) {
  const DumpMeta& meta = dump.meta();
  const auto d = static_cast<std::size_t>(meta.geometry.head_dim);
  const auto row = static_cast<std::size_t>(meta.geometry.row());
  SpillBuffer<uint16_t> out(static_cast<std::size_t>(meta.n_tokens) * row);
  for (int head = 0; head < meta.geometry.n_kv_heads; ++head) {
    const auto rows = dump.read_half(layer, t, head, 0, meta.n_tokens);
    for (std::size_t i = 0; i < static_cast<std::size_t>(meta.n_tokens); ++i)
      std::copy_n(rows.data() + i * d, d,
                  out.data() + i * row + static_cast<std::size_t>(head) * d);
  }
  out.release();
  return out;
}

/// [n_kv_heads][head_dim]: mean of q^2 over tokens and the group's heads, queries before RoPE. The
/// dump holds them after RoPE, so each is turned back by its position.
std::vector<float> query_second_moment(const DumpReader& dump, int layer) {
  const DumpMeta& meta = dump.meta();
  const KvGeometry& g = meta.geometry;
  const auto d = static_cast<std::size_t>(g.head_dim);
  std::vector<double> sum(static_cast<std::size_t>(g.row()));
  const auto rotated = static_cast<std::size_t>(g.rope.params().n_rot);
  for (int head = 0; head < g.n_heads; ++head) {
    auto rows = dump.read(layer, DumpTensor::kQuery, head, 0, meta.n_tokens);
    double* into = sum.data() + static_cast<std::size_t>(head / g.group()) * d;
    for (int64_t t = 0; t < meta.n_tokens; ++t) {
      float* row = rows.data() + static_cast<std::size_t>(t) * d;
      g.rope.move(row, 1, g.head_dim, -(t % meta.context));
      for (std::size_t c = 0; c < d; ++c) {
        const double scale = c < rotated ? g.rope.magnitude() : 1.0;
        into[c] += static_cast<double>(row[c]) * row[c] / (scale * scale);
      }
    }
  }
  const double n = static_cast<double>(meta.n_tokens) * g.group();
  std::vector<float> out(sum.size());
  std::transform(sum.begin(), sum.end(), out.begin(),
                 [n](double s) { return static_cast<float>(s / n); });
  return out;
}

}  // namespace

CalibrationSet to_calibration_set(const DumpReader& dump) {
  const DumpMeta& meta = dump.meta();
  const KvGeometry& g = meta.geometry;
  for (DumpTensor t : {DumpTensor::kKeyPre, DumpTensor::kValue, DumpTensor::kQuery})
    MILLION_REQUIRE(
        dump.has(0, t) && static_cast<int>(meta.layers.size()) == g.n_layers &&
            static_cast<int>(meta.kv_heads.size()) == g.n_kv_heads,
        ErrorCode::kBadInput,
        "{} cannot calibrate: it needs k_pre, v and q of all {} layers and {} KV heads; "
        "write it with kv-dump --tensors k_pre,v,q",
        dump.path().string(), g.n_layers, g.n_kv_heads);
  CalibrationSet out;
  out.geometry = g;
  out.model_sha256 = meta.model_sha256;
  out.text_sha256 = meta.text_sha256;
  out.text_name = meta.text_name;
  out.context = meta.context;
  out.n_tokens = static_cast<int>(meta.n_tokens);
  for (int layer = 0; layer < g.n_layers; ++layer) {
    out.k_pre.push_back(token_major(dump, layer, DumpTensor::kKeyPre));
    out.v.push_back(token_major(dump, layer, DumpTensor::kValue));
    out.q_second_moment.push_back(query_second_moment(dump, layer));
  }
  return out;
}

}  // namespace million
