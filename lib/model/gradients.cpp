// SPDX-License-Identifier: Apache-2.0
#include "lib/model/gradients.h"

#include "kernels/ops.h"
#include "lib/core/error.h"
#include "lib/core/parallel.h"
#include "lib/core/progress.h"
#include "lib/core/rng.h"
#include "lib/model/gemm.h"
#include "lib/model/gradient_attention.h"

#include <algorithm>
#include <cmath>

namespace million {
namespace {

/// Vocabulary rows whose logits are held at once: 2048 x 1792 f32 = 14 MiB.
constexpr int kVocabBlock = 1792;
constexpr int kRowGrain = 16;

double log_add(double a, double b) {
  if (a == -INFINITY) return b;
  const double high = std::max(a, b);
  return high + std::log1p(std::exp(std::min(a, b) - high));
}

/// dx += derivative of y_i = x_i w_i / r, r = sqrt(mean(x^2) + eps), for one row:
/// (w_i dy_i - x_i / (d r^2) sum_j w_j dy_j x_j) / r.
void add_norm_derivative(const float* x, const AlignedVector<float>& w, float eps, const float* dy,
                         float* dx) {
  const auto d = static_cast<int64_t>(w.size());
  double square = 0.0, cross = 0.0;
  for (int64_t i = 0; i < d; ++i) {
    square += static_cast<double>(x[i]) * x[i];
    cross += static_cast<double>(w[i]) * dy[i] * x[i];
  }
  const double inverse = 1.0 / std::sqrt(square / static_cast<double>(d) + eps);
  const auto factor = static_cast<float>(cross * inverse * inverse / static_cast<double>(d));
  const auto scale = static_cast<float>(inverse);
  for (int64_t i = 0; i < d; ++i) dx[i] += scale * (w[i] * dy[i] - x[i] * factor);
}

/// One predicted token while the vocabulary passes by in blocks.
struct HeadRow {
  double lse = -INFINITY;  ///< of all logits after the first sweep
  float target = 0.0f;     ///< logit of the label
  double threshold = 0.0;  ///< sampling: the label is where the distribution function passes it
  double mass = 0.0;       ///< probability of the blocks so far
  int32_t label = -1;      ///< -1: not drawn yet
};

}  // namespace

const char* labels_name(GradientLabels labels) {
  return labels == GradientLabels::kText ? "text" : "sampled";
}

double GradientLoss::sum() const {
  double total = 0.0;
  for (const double x : nll) total += x;
  return total;
}

struct GradientPass::Impl {
  explicit Impl(std::shared_ptr<const Model> m)
      : model(std::move(m)),
        geometry(model->config.geometry()),
        gemm(PrefillCompute::kF32),
        rope(geometry.rope),
        magnitude(geometry.rope.magnitude()) {}

  const ModelConfig& config() const { return model->config; }
  void start(std::span<const int32_t> tokens);
  void norm(const AlignedVector<float>& from, const AlignedVector<float>& w,
            AlignedVector<float>& y) const;
  void norm_back(const AlignedVector<float>& from, const AlignedVector<float>& w,
                 const AlignedVector<float>& dy);
  void add_bias(AlignedVector<float>& rows, const AlignedVector<float>& bias) const;
  void rotate(AlignedVector<float>& rows, int n_heads, bool back) const;
  void attend(int l, GradientProbe& probe);
  void mlp_in(const LayerWeights& w);
  void mlp_out(const LayerWeights& w);
  void layer_back(int l, GradientProbe& probe);
  void mlp_back(const LayerWeights& w);
  void forward(std::span<const int32_t> tokens, GradientProbe& probe, bool keep);
  void head_sweep(std::vector<HeadRow>& rows);
  void head_back(std::vector<HeadRow>& rows);
  void head_row_back(HeadRow& row, float* logits, int first, int count) const;

  std::shared_ptr<const Model> model;
  KvGeometry geometry;
  Gemm gemm;
  RopeTable rope;
  float magnitude;
  int n = 0;
  // Rows of the running layer; q and k after RoPE.
  AlignedVector<float> x, x2, h, q, k, v, attn, gate, up, act, logits;
  AlignedVector<float> dx, dh, dq, dk, dv, dattn;
  std::vector<AlignedVector<float>> inputs;  ///< [layer] -> [n][d_model]
};

void GradientPass::Impl::start(std::span<const int32_t> tokens) {
  const ModelConfig& c = config();
  MILLION_REQUIRE(tokens.size() >= 2, ErrorCode::kBadInput,
                  "gradients: a window of {} tokens, expected at least 2", tokens.size());
  n = static_cast<int>(tokens.size());
  rope.ensure(n);
  const auto rows = static_cast<size_t>(n);
  for (auto* b : {&x, &x2, &h, &dx, &dh}) b->resize(rows * c.d_model);
  for (auto* b : {&q, &attn, &dq, &dattn}) b->resize(rows * c.n_heads * c.head_dim);
  for (auto* b : {&k, &v, &dk, &dv}) b->resize(rows * geometry.row());
  for (auto* b : {&gate, &up, &act}) b->resize(rows * c.d_ff);
  const WeightView& e = model->token_embedding;
  for (size_t i = 0; i < rows; ++i) {
    MILLION_REQUIRE(tokens[i] >= 0 && tokens[i] < c.n_vocab, ErrorCode::kBadInput,
                    "gradients: token id {} at position {}, expected 0 to {}", tokens[i], i,
                    c.n_vocab - 1);
    ops().dequant_row(e.type, e.row(tokens[i]), e.cols, x.data() + i * e.cols);
  }
}

void GradientPass::Impl::norm(const AlignedVector<float>& from, const AlignedVector<float>& w,
                              AlignedVector<float>& y) const {
  const int64_t d = config().d_model;
  parallel_ranges(n, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      ops().rmsnorm(from.data() + i * d, w.data(), config().rms_eps, static_cast<int>(d),
                    y.data() + i * d);
  });
}

/// dx += derivative of the norm.
void GradientPass::Impl::norm_back(const AlignedVector<float>& from, const AlignedVector<float>& w,
                                   const AlignedVector<float>& dy) {
  const int64_t d = config().d_model;
  parallel_ranges(n, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      add_norm_derivative(from.data() + i * d, w, config().rms_eps, dy.data() + i * d,
                          dx.data() + i * d);
  });
}

void GradientPass::Impl::add_bias(AlignedVector<float>& rows,
                                  const AlignedVector<float>& bias) const {
  if (bias.empty()) return;
  for (int i = 0; i < n; ++i)
    ops().add(bias.data(), rows.data() + static_cast<int64_t>(i) * bias.size(), bias.size());
}

/// rows <- magnitude R(position) rows; `back` applies the transpose, which turns the other way.
void GradientPass::Impl::rotate(AlignedVector<float>& rows, int n_heads, bool back) const {
  const int d = config().head_dim, pairs = rope.n_pairs();
  parallel_ranges(n, kRowGrain, [&](int64_t begin, int64_t end) {
    std::vector<float> sines(pairs);
    for (int64_t i = begin; i < end; ++i) {
      for (int p = 0; p < pairs; ++p) sines[p] = back ? -rope.sines(i)[p] : rope.sines(i)[p];
      for (int head = 0; head < n_heads; ++head) {
        float* row = rows.data() + (i * n_heads + head) * d;
        ops().rope_row(row, rope.cosines(i), sines.data(), pairs, rope.adjacent());
        if (magnitude != 1.0f)
          for (int c = 0; c < 2 * pairs; ++c) row[c] *= magnitude;
      }
    }
  });
}

/// x2 = x + W_o attention(norm(x)); q, k, v stay for the way back.
void GradientPass::Impl::attend(int l, GradientProbe& probe) {
  const LayerWeights& w = model->layers[l];
  norm(x, w.attn_norm, h);
  gemm.run(h.data(), n, w.wq, q.data(), w.wq.rows);
  gemm.run(h.data(), n, w.wk, k.data(), w.wk.rows);
  gemm.run(h.data(), n, w.wv, v.data(), w.wv.rows);
  add_bias(q, w.bq);
  add_bias(k, w.bk);
  add_bias(v, w.bv);
  probe.edit(l, n, k.data(), v.data());
  rotate(q, geometry.n_heads, false);
  rotate(k, geometry.n_kv_heads, false);
  attention_forward(geometry, {n, q.data(), k.data(), v.data()}, attn.data());
  gemm.run(attn.data(), n, w.wo, x2.data(), w.wo.rows);
  ops().add(x.data(), x2.data(), x2.size());
}

/// gate and up projections of norm(x2).
void GradientPass::Impl::mlp_in(const LayerWeights& w) {
  norm(x2, w.ffn_norm, h);
  gemm.run(h.data(), n, w.w_gate, gate.data(), w.w_gate.rows);
  gemm.run(h.data(), n, w.w_up, up.data(), w.w_up.rows);
}

/// x = x2 + W_down (silu(gate) * up).
void GradientPass::Impl::mlp_out(const LayerWeights& w) {
  const int64_t d_ff = config().d_ff;
  parallel_ranges(n, kRowGrain, [&](int64_t begin, int64_t end) {
    ops().swiglu(gate.data() + begin * d_ff, up.data() + begin * d_ff, act.data() + begin * d_ff,
                 static_cast<size_t>((end - begin) * d_ff));
  });
  gemm.run(act.data(), n, w.w_down, x.data(), w.w_down.rows);
  ops().add(x2.data(), x.data(), x.size());
}

/// dx (of the layer's output) becomes that of x2.
void GradientPass::Impl::mlp_back(const LayerWeights& w) {
  gemm.run_back(dx.data(), n, w.w_down, act.data(), false);
  const int64_t d_ff = config().d_ff;
  parallel_ranges(n, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * d_ff; i < end * d_ff; ++i) {
      const float g = gate[i], sigmoid = 1.0f / (1.0f + std::exp(-g));
      const float da = act[i], silu = g * sigmoid;
      gate[i] = da * up[i] * (sigmoid + silu * (1.0f - sigmoid));
      up[i] = da * silu;
    }
  });
  gemm.run_back(gate.data(), n, w.w_gate, dh.data(), false);
  gemm.run_back(up.data(), n, w.w_up, dh.data(), true);
  norm_back(x2, w.ffn_norm, dh);
}

/// dx of the layer's output becomes dx of its input.
void GradientPass::Impl::layer_back(int l, GradientProbe& probe) {
  const LayerWeights& w = model->layers[l];
  x.swap(inputs[l]);
  attend(l, probe);
  mlp_in(w);
  mlp_back(w);
  gemm.run_back(dx.data(), n, w.wo, dattn.data(), false);
  attention_backward(geometry, {n, q.data(), k.data(), v.data()}, dattn.data(), dq.data(),
                     dk.data(), dv.data());
  rotate(dq, geometry.n_heads, true);
  rotate(dk, geometry.n_kv_heads, true);
  probe.on_gradients(l, n, dk.data(), dv.data());
  if (l == 0) return;
  gemm.run_back(dq.data(), n, w.wq, dh.data(), false);
  gemm.run_back(dk.data(), n, w.wk, dh.data(), true);
  gemm.run_back(dv.data(), n, w.wv, dh.data(), true);
  norm_back(x, w.attn_norm, dh);
}

void GradientPass::Impl::forward(std::span<const int32_t> tokens, GradientProbe& probe, bool keep) {
  start(tokens);
  inputs.resize(model->layers.size());
  for (int l = 0; l < config().n_layers; ++l) {
    check_interrupted();
    if (keep) inputs[l] = x;
    attend(l, probe);
    mlp_in(model->layers[l]);
    mlp_out(model->layers[l]);
  }
  norm(x, model->output_norm, h);
}

/// Log-sum-exp of every row and the logits of labels that are known.
void GradientPass::Impl::head_sweep(std::vector<HeadRow>& rows) {
  const int m = static_cast<int>(rows.size());
  logits.resize(static_cast<size_t>(m) * kVocabBlock);
  for (int first = 0; first < model->output.rows; first += kVocabBlock) {
    check_interrupted();
    WeightView block = model->output;
    block.data = block.row(first);
    block.rows = std::min(kVocabBlock, model->output.rows - first);
    gemm.run(h.data(), m, block, logits.data(), block.rows);
    parallel_for(m, [&](int64_t i) {
      const float* row = logits.data() + i * block.rows;
      rows[i].lse = log_add(rows[i].lse, ops().logsumexp(row, block.rows));
      const int at = rows[i].label - first;
      if (at >= 0 && at < block.rows) rows[i].target = row[at];
    });
  }
}

/// logits <- probability - [label], drawing the label when it is not known.
void GradientPass::Impl::head_row_back(HeadRow& row, float* block, int first, int count) const {
  const bool last = first + count == model->output.rows;
  int drawn = -1;
  const auto lse = static_cast<float>(row.lse);
  for (int i = 0; i < count; ++i) {
    const float logit = block[i];
    block[i] = std::exp(logit - lse);
    if (row.label >= 0) continue;
    row.mass += block[i];
    // The last token takes what rounding leaves of the distribution.
    if (row.mass <= row.threshold && !(last && i + 1 == count)) continue;
    drawn = i;
    row.label = first + i;
    row.target = logit;
  }
  if (drawn < 0 && row.label >= first && row.label < first + count) drawn = row.label - first;
  if (drawn >= 0) block[drawn] -= 1.0f;
}

/// dh [n][d_model] = derivative of the loss by the hidden states; the last row predicts nothing.
void GradientPass::Impl::head_back(std::vector<HeadRow>& rows) {
  const int m = static_cast<int>(rows.size());
  std::fill(dh.begin() + static_cast<int64_t>(m) * config().d_model, dh.end(), 0.0f);
  for (int first = 0; first < model->output.rows; first += kVocabBlock) {
    check_interrupted();
    WeightView block = model->output;
    block.data = block.row(first);
    block.rows = std::min(kVocabBlock, model->output.rows - first);
    gemm.run(h.data(), m, block, logits.data(), block.rows);
    parallel_for(m, [&](int64_t i) {
      head_row_back(rows[i], logits.data() + i * block.rows, first, block.rows);
    });
    gemm.run_back(logits.data(), m, block, dh.data(), first > 0);
  }
}

namespace {

GradientLoss loss_of(const std::vector<HeadRow>& rows) {
  GradientLoss loss;
  for (const HeadRow& row : rows) {
    loss.labels.push_back(row.label);
    loss.nll.push_back(row.lse - row.target);
  }
  return loss;
}

}  // namespace

GradientPass::GradientPass(std::shared_ptr<const Model> model)
    : impl_(std::make_unique<Impl>(std::move(model))) {}
GradientPass::~GradientPass() = default;

GradientLoss GradientPass::run(std::span<const int32_t> tokens, const GradientOptions& options,
                               GradientProbe& probe) {
  Impl& s = *impl_;
  s.forward(tokens, probe, true);
  std::vector<HeadRow> rows(tokens.size() - 1);
  for (size_t i = 0; i < rows.size(); ++i) {
    if (options.labels == GradientLabels::kText)
      rows[i].label = tokens[i + 1];
    else
      rows[i].threshold = Rng(options.seed, i).uniform();
  }
  s.head_sweep(rows);
  s.head_back(rows);
  std::fill(s.dx.begin(), s.dx.end(), 0.0f);
  s.norm_back(s.x, s.model->output_norm, s.dh);
  for (int l = s.config().n_layers - 1; l >= 0; --l) {
    check_interrupted();
    s.layer_back(l, probe);
  }
  return loss_of(rows);
}

GradientLoss GradientPass::loss(std::span<const int32_t> tokens, std::span<const int32_t> labels,
                                GradientProbe& probe) {
  MILLION_ASSERT(labels.size() + 1 == tokens.size());
  impl_->forward(tokens, probe, false);
  std::vector<HeadRow> rows(labels.size());
  for (size_t i = 0; i < rows.size(); ++i) rows[i].label = labels[i];
  impl_->head_sweep(rows);
  return loss_of(rows);
}

}  // namespace million
