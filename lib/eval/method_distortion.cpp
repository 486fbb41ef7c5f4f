// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/method_distortion.h"

#include "kernels/ops.h"
#include "lib/analysis/distortion.h"
#include "lib/core/parallel.h"
#include "lib/eval/method_factory.h"

#include <algorithm>
#include <cmath>

namespace million {
namespace {

/// Query positions per window whose attention is compared.
constexpr int kQuerySamples = 32;

class WindowProbe : public Probe {
 public:
  explicit WindowProbe(CapturedWindow& w) : w_(w) {}

  void on_layer(int layer, int64_t first, int n, const float*, const float* q, const float*,
                const float* k, const float* v) override {
    const KvGeometry& g = w_.geometry;
    const int64_t row = g.row(), q_row = static_cast<int64_t>(g.n_heads) * g.head_dim;
    ops().f32_to_f16(k, w_.k[layer].data() + first * row, n * row);
    ops().f32_to_f16(v, w_.v[layer].data() + first * row, n * row);
    for (size_t s = 0; s < w_.query_positions.size(); ++s) {
      const int64_t at = w_.query_positions[s] - first;
      if (at >= 0 && at < n) std::copy_n(q + at * q_row, q_row, w_.q[layer].data() + s * q_row);
    }
  }

 private:
  CapturedWindow& w_;
};

/// What one layer loses.
struct LayerError {
  SquaredError k, v;
  AttentionError attention;
};

/// Values of one number over layers: mean and its error.
struct LayerSpread {
  double sum = 0.0, square = 0.0;
  int64_t n = 0;
  std::vector<double> values;
  void add(double x) {
    sum += x;
    square += x * x;
    ++n;
    values.push_back(x);
  }
  double mean() const { return sum / static_cast<double>(n); }
  double error() const {
    if (n < 2) return std::nan("");
    const double variance = (square - sum * mean()) / static_cast<double>(n - 1);
    return std::sqrt(std::max(0.0, variance) / static_cast<double>(n));
  }
};

/// Rows of one head [n][d] as f32 out of [n][n_kv_heads][d] f16.
AlignedVector<float> head_rows(const AlignedVector<uint16_t>& half, const KvGeometry& g, int head,
                               int n) {
  AlignedVector<float> rows(static_cast<size_t>(n) * g.head_dim);
  for (int t = 0; t < n; ++t)
    ops().f16_to_f32(half.data() + static_cast<int64_t>(t) * g.row() + head * g.head_dim,
                     rows.data() + static_cast<int64_t>(t) * g.head_dim, g.head_dim);
  return rows;
}

/// Codes of all tokens behind the sinks, keys rotated into the codec's frame first.
std::unique_ptr<CodeStore> encode_layer(const Codec& codec, const CapturedWindow& w, int layer,
                                        KvKind kind, int sinks) {
  const KvGeometry& g = w.geometry;
  const AlignedVector<uint16_t>& half = kind == KvKind::kKey ? w.k[layer] : w.v[layer];
  const int n = w.n_tokens - sinks;
  AlignedVector<float> rows(static_cast<size_t>(n) * g.row());
  ops().f16_to_f32(half.data() + static_cast<int64_t>(sinks) * g.row(), rows.data(), rows.size());
  if (kind == KvKind::kKey)
    for (int t = 0; t < n; ++t)
      g.rope.move(rows.data() + static_cast<int64_t>(t) * g.row(), g.n_kv_heads, g.head_dim,
                  codec.frame().position(sinks + t) - (sinks + t));
  auto store = codec.make_store(layer);
  store->append(rows.data(), n, sinks);
  return store;
}

/// Decodes one head behind the sinks into rows that start out exact; keys come back after RoPE.
void decode_head(const Codec& codec, const CodeStore& store, const KvGeometry& g, KvKind kind,
                 int head, int sinks, AlignedVector<float>& rows) {
  float* first = rows.data() + static_cast<int64_t>(sinks) * g.head_dim;
  store.decode(head, 0, store.n_tokens(), first);
  if (kind == KvKind::kKey)
    for (int t = 0; t < store.n_tokens(); ++t)
      g.rope.move(first + static_cast<int64_t>(t) * g.head_dim, 1, g.head_dim,
                  (sinks + t) - codec.frame().position(sinks + t));
}

LayerError layer_error(const Method& method, const CapturedWindow& w, int layer) {
  const KvGeometry& g = w.geometry;
  const int sinks = std::min(method.spec.sinks, w.n_tokens - 1);
  const auto k_store = encode_layer(*method.key_codec, w, layer, KvKind::kKey, sinks);
  const auto v_store = encode_layer(*method.value_codec, w, layer, KvKind::kValue, sinks);
  const auto samples = static_cast<int>(w.query_positions.size());
  LayerError sum;
  for (int head = 0; head < g.n_kv_heads; ++head) {
    const AlignedVector<float> k_exact = head_rows(w.k[layer], g, head, w.n_tokens);
    const AlignedVector<float> v_exact = head_rows(w.v[layer], g, head, w.n_tokens);
    AlignedVector<float> k = k_exact, v = v_exact;
    decode_head(*method.key_codec, *k_store, g, KvKind::kKey, head, sinks, k);
    decode_head(*method.value_codec, *v_store, g, KvKind::kValue, head, sinks, v);
    sum.k += squared_error(k_exact, k);
    sum.v += squared_error(v_exact, v);
    AlignedVector<float> q(static_cast<size_t>(samples) * g.head_dim);
    for (int h = head * g.group(); h < (head + 1) * g.group(); ++h) {
      for (int s = 0; s < samples; ++s)
        std::copy_n(w.q[layer].data() + (static_cast<int64_t>(s) * g.n_heads + h) * g.head_dim,
                    g.head_dim, q.data() + static_cast<int64_t>(s) * g.head_dim);
      sum.attention +=
          attention_error({w.n_tokens, g.head_dim, samples, q.data(), w.query_positions.data(),
                           k_exact.data(), v_exact.data(), k.data(), v.data()});
    }
  }
  return sum;
}

}  // namespace

CapturedWindow capture_window(std::shared_ptr<const Model> model, std::span<const int32_t> tokens,
                              const DecoderOptions& options) {
  CapturedWindow w;
  w.geometry = model->config.geometry();
  w.n_tokens = static_cast<int>(tokens.size());
  const int samples = std::min(kQuerySamples, w.n_tokens);
  for (int s = 0; s < samples; ++s)  // spread evenly, the last position included
    w.query_positions.push_back((s + 1) * w.n_tokens / samples - 1);
  const size_t values = static_cast<size_t>(w.n_tokens) * w.geometry.row();
  const size_t q_values = static_cast<size_t>(samples) * w.geometry.n_heads * w.geometry.head_dim;
  for (int l = 0; l < w.geometry.n_layers; ++l) {
    w.k.emplace_back(values);
    w.v.emplace_back(values);
    w.q.emplace_back(q_values);
  }
  Decoder decoder(model, options);
  KvCache cache(w.geometry, exact_method(w.geometry), Protocol::kDecodePath);
  WindowProbe probe(w);
  decoder.forward(tokens, cache, &probe);
  return w;
}

void add_distortion(RunRecord& record, const Method& method, const CapturedWindow& window) {
  std::vector<LayerError> layers(window.geometry.n_layers);
  parallel_for(window.geometry.n_layers,
               [&](int64_t l) { layers[l] = layer_error(method, window, static_cast<int>(l)); });
  LayerSpread k, v, attention, score, overlap;
  for (const LayerError& e : layers) {
    k.add(e.k.nmse());
    v.add(e.v.nmse());
    attention.add(e.attention.attn_error());
    score.add(e.attention.score_error());
    overlap.add(e.attention.top_overlap());
  }
  const auto add = [&](const char* name, const LayerSpread& s) {
    record.metric(name, s.mean(), s.error(), s.n);
    record.series[std::string(name) + "_by_layer"] = s.values;
  };
  add("k_nmse", k);
  add("v_nmse", v);
  add("attn_error", attention);
  add("score_error", score);
  add("top16_overlap", overlap);
}

}  // namespace million
