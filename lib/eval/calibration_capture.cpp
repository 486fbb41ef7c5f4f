// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/calibration_capture.h"

#include "kernels/ops.h"
#include "lib/core/error.h"
#include "lib/core/parallel.h"
#include "lib/core/progress.h"
#include "lib/eval/method_factory.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>

namespace million {
namespace {

constexpr int kFisherSkip = 4;        ///< first positions of a window that the Fisher leaves out
constexpr uint64_t kLabelSeed = 811;  ///< of sampled labels; window w takes kLabelSeed + w

/// Copies what passes through the cache into a CalibrationSet.
class CalibrationProbe : public Probe {
 public:
  explicit CalibrationProbe(CalibrationSet& set) : set_(set) {}
  void set_window(int64_t first_row) { first_row_ = first_row; }

  void on_layer(int layer, int64_t first, int n, const float* q_pre, const float*,
                const float* k_pre, const float*, const float* v) override {
    const KvGeometry& g = set_.geometry;
    const int64_t row = g.row(), to = (first_row_ + first) * row;
    ops().f32_to_f16(k_pre, set_.k_pre[layer].data() + to, n * row);
    ops().f32_to_f16(v, set_.v[layer].data() + to, n * row);
    // RoPE keeps the sum over a pair, so queries before RoPE serve every frame.
    std::vector<float>& moment = set_.q_second_moment[layer];
    const double weight = 1.0 / (static_cast<double>(set_.n_tokens) * g.group());
    std::vector<double> sums(moment.size(), 0.0);
    for (int64_t i = 0; i < n; ++i)
      for (int h = 0; h < g.n_heads; ++h) {
        const float* q = q_pre + (i * g.n_heads + h) * g.head_dim;
        double* sum = sums.data() + h / g.group() * g.head_dim;
        for (int c = 0; c < g.head_dim; ++c) sum[c] += static_cast<double>(q[c]) * q[c];
      }
    for (size_t i = 0; i < sums.size(); ++i) moment[i] += static_cast<float>(sums[i] * weight);
  }

 private:
  CalibrationSet& set_;
  int64_t first_row_ = 0;
};

/// Squares into the set, second moments into sums of its own.
class FisherProbe : public GradientProbe {
 public:
  FisherProbe(CalibrationSet& set, int n_windows, const std::filesystem::path& spill) : set_(set) {
    const KvGeometry& g = set.geometry;
    set.n_grad_tokens = n_windows * set.context;
    const size_t values = static_cast<size_t>(set.n_grad_tokens) * g.row();
    for (auto* side : {&set.k_grad2, &set.v_grad2}) {
      side->clear();
      for (int l = 0; l < g.n_layers; ++l) side->emplace_back(values, spill);
    }
    for (auto& side : sums_)
      side.assign(g.n_layers, std::vector<double>(static_cast<size_t>(g.row()) * g.head_dim, 0.0));
  }
  void set_window(int64_t first_row) { first_row_ = first_row; }

  void on_gradients(int layer, int n, const float* dk, const float* dv) override {
    const KvGeometry& g = set_.geometry;
    const int64_t row = g.row();
    parallel_for(2 * g.n_kv_heads, [&](int64_t job) {
      const bool keys = job < g.n_kv_heads;
      const int64_t head = keys ? job : job - g.n_kv_heads;
      const float* from = (keys ? dk : dv) + head * g.head_dim;
      float* squares =
          (keys ? set_.k_grad2 : set_.v_grad2)[layer].data() + first_row_ * row + head * g.head_dim;
      for (int64_t t = 0; t < n; ++t)
        for (int c = 0; c < g.head_dim; ++c)
          squares[t * row + c] = from[t * row + c] * from[t * row + c];
      double* sum = sums_[keys ? 0 : 1][layer].data() + head * g.head_dim * g.head_dim;
      for (int64_t t = kFisherSkip; t < n; ++t) add_outer(from + t * row, g.head_dim, sum);
    });
    set_.k_grad2[layer].release();
    set_.v_grad2[layer].release();
  }

  /// Means over `count` tokens; the matrices are symmetric.
  void finish(int64_t count) {
    const KvGeometry& g = set_.geometry;
    const int d = g.head_dim;
    for (const int side : {0, 1}) {
      auto& out = side == 0 ? set_.k_fisher : set_.v_fisher;
      out.assign(g.n_layers, std::vector<float>(static_cast<size_t>(g.row()) * d));
      for (int l = 0; l < g.n_layers; ++l)
        for (int h = 0; h < g.n_kv_heads; ++h)
          for (int i = 0; i < d; ++i)
            for (int j = 0; j < d; ++j) {
              const int64_t base = static_cast<int64_t>(h) * d * d;
              out[l][base + i * d + j] =
                  static_cast<float>(sums_[side][l][base + std::max(i, j) * d + std::min(i, j)] /
                                     static_cast<double>(count));
            }
    }
  }

 private:
  /// Lower triangle of sum += g g^T.
  static void add_outer(const float* g, int d, double* sum) {
    for (int i = 0; i < d; ++i)
      for (int j = 0; j <= i; ++j) sum[i * d + j] += static_cast<double>(g[i] * g[j]);
  }

  CalibrationSet& set_;
  int64_t first_row_ = 0;
  std::vector<std::vector<double>> sums_[2];  ///< keys, values: [layer] -> [head][d][d]
};

}  // namespace

CalibrationInfo describe_calibration(const Model& model, const CalibrationPlan& plan,
                                     bool gradients) {
  CalibrationInfo info = {model.sha256,
                          plan.text->sha256,
                          plan.text->name,
                          plan.context,
                          plan.n_windows() * plan.context,
                          plan.covered()};
  if (!gradients) return info;
  info.grad_windows = plan.n_grad_windows();
  if (info.grad_windows > 0) info.grad_labels = labels_name(plan.labels);
  return info;
}

CalibrationSet capture_calibration(std::shared_ptr<const Model> model,
                                   const CalibrationPlan& plan) {
  const TokenText& text = *plan.text;
  const int context = plan.context, count = plan.n_windows();
  const Windows windows = cut_windows(text, context, count);
  MILLION_REQUIRE(windows.count == count, ErrorCode::kBadInput,
                  "calibration text {} has {} tokens, {} windows of {} need {}; use a longer text "
                  "or a smaller --calib-tokens",
                  text.name, text.tokens.size(), count, context, count * context);
  CalibrationSet set;
  set.geometry = model->config.geometry();
  set.model_sha256 = model->sha256;
  set.text_sha256 = text.sha256;
  set.text_name = text.name;
  set.context = context;
  set.n_tokens = count * context;
  set.positions = plan.positions;
  const size_t values = static_cast<size_t>(set.n_tokens) * set.geometry.row();
  for (int l = 0; l < set.geometry.n_layers; ++l) {
    set.k_pre.emplace_back(values, plan.spill);
    set.v.emplace_back(values, plan.spill);
    set.q_second_moment.emplace_back(set.geometry.row(), 0.0f);
  }
  Decoder decoder(model, {});
  KvCache cache(set.geometry, exact_method(set.geometry), Protocol::kDecodePath);
  CalibrationProbe probe(set);
  Progress progress("calibration", count);
  for (int w = 0; w < count; ++w) {
    cache.clear();
    probe.set_window(static_cast<int64_t>(w) * context);
    decoder.forward(windows.window(w), cache, &probe);
    for (const auto* side : {&set.k_pre, &set.v})
      for (const auto& layer : *side) layer.release();
    progress.step();
  }
  return set;
}

void capture_gradients(std::shared_ptr<const Model> model, const CalibrationPlan& plan,
                       CalibrationSet& set) {
  const int count = plan.n_grad_windows();
  if (count == 0) return;
  MILLION_ASSERT(set.context == plan.context && set.n_tokens >= count * plan.context);
  MILLION_REQUIRE(plan.context > kFisherSkip, ErrorCode::kUsage,
                  "gradients need calibration windows of more than {} tokens, got {}; use a longer "
                  "--calib-context or --calib-grad-windows 0",
                  kFisherSkip, plan.context);
  const auto start = std::chrono::steady_clock::now();
  const Windows windows = cut_windows(*plan.text, plan.context, count);
  GradientPass pass(std::move(model));
  FisherProbe probe(set, count, plan.spill);
  set.grad_labels = labels_name(plan.labels);
  Progress progress("gradients", count);
  for (int w = 0; w < count; ++w) {
    probe.set_window(static_cast<int64_t>(w) * plan.context);
    pass.run(windows.window(w), {plan.labels, kLabelSeed + static_cast<uint64_t>(w)}, probe);
    progress.step();
  }
  probe.finish(static_cast<int64_t>(count) * (plan.context - kFisherSkip));
  spdlog::info("gradients of {} windows of {} tokens in {:.1f} s", count, plan.context,
               std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
}

}  // namespace million
