// SPDX-License-Identifier: Apache-2.0
#include "lib/model/decoder.h"

#include "kernels/ops.h"
#include "lib/core/error.h"
#include "lib/core/parallel.h"
#include "lib/core/progress.h"
#include "lib/model/gemm.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>

namespace million {
namespace {

/// Rows that go through the dense layers at once: bounds the MLP's intermediate memory when a whole
/// window is one chunk.
constexpr int kDenseRows = 2048;
/// Output rows a thread multiplies at least, so that the parts are worth a thread.
constexpr int kRowGrain = 16;

/// One product y = W x of a group that shares its input.
struct Product {
  const WeightView* w;
  float* y;
};

}  // namespace

struct Decoder::Impl {
  Impl(std::shared_ptr<const Model> m, DecoderOptions o)
      : model(std::move(m)),
        options(o),
        gemm(o.prefill),
        rope(model->config.geometry().rope),
        magnitude(model->config.geometry().rope.magnitude()) {
    MILLION_REQUIRE(o.chunk >= 1, ErrorCode::kUsage, "--chunk: got {}, expected at least 1",
                    o.chunk);
    const ModelConfig& c = config();
    const int widest = std::max({c.d_model, c.d_ff, c.n_heads * c.head_dim});
    a8.resize(static_cast<size_t>(widest) / kBlockValues + 1);
    a8_rest.resize(a8.size());
    remainder.resize(widest);
  }

  const ModelConfig& config() const { return model->config; }
  void resize(int n);
  void embed(std::span<const int32_t> tokens);
  void norm(const float* x, const AlignedVector<float>& w, int n, float* y) const;
  void add_bias(float* x, int n, const AlignedVector<float>& bias) const;
  void rotate(float* x, int n, int n_heads, int64_t first) const;
  void forward_chunk(std::span<const int32_t> tokens, KvCache& cache, Probe* probe, float* out);
  void dense_in(const LayerWeights& w, int n);
  void dense_out(const LayerWeights& w, int n);
  void mlp_rows(const LayerWeights& w, int first, int n, bool single);
  void multiply(std::initializer_list<Product> products, const float* x);
  void quantize(const float* from, int n);
  void multiply_blocks(const Product& p, int64_t begin, int64_t end) const;
  void multiply_rows(const Product& p, const float* x, int64_t begin, int64_t end) const;

  std::shared_ptr<const Model> model;
  DecoderOptions options;
  Gemm gemm;
  RopeTable rope;
  float magnitude;
  // Rows of the running chunk; see forward_chunk.
  AlignedVector<float> x, h, q, k, v, attn, gate, up;
  AlignedVector<float> q_pre, k_pre;  // only filled for a probe
  AlignedVector<float> hidden;
  std::vector<BlockA8> a8, a8_rest;
  AlignedVector<float> remainder;
};

void Decoder::Impl::resize(int n) {
  const ModelConfig& c = config();
  const auto rows = static_cast<size_t>(n);
  const size_t q_row = static_cast<size_t>(c.n_heads) * c.head_dim;
  const size_t kv_row = static_cast<size_t>(c.n_kv_heads) * c.head_dim;
  x.resize(rows * c.d_model);
  h.resize(rows * c.d_model);
  q.resize(rows * q_row);
  attn.resize(rows * q_row);
  k.resize(rows * kv_row);
  v.resize(rows * kv_row);
  const size_t dense = static_cast<size_t>(std::min(n, kDenseRows)) * c.d_ff;
  gate.resize(dense);
  up.resize(dense);
}

void Decoder::Impl::embed(std::span<const int32_t> tokens) {
  const WeightView& e = model->token_embedding;
  require_tokens(tokens, config().n_vocab);
  for (size_t i = 0; i < tokens.size(); ++i)
    ops().dequant_row(e.type, e.row(tokens[i]), e.cols, x.data() + i * e.cols);
}

void Decoder::Impl::norm(const float* from, const AlignedVector<float>& w, int n, float* y) const {
  const int d = config().d_model;
  parallel_ranges(n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      ops().rmsnorm(from + i * d, w.data(), config().rms_eps, d, y + i * d);
  });
}

void Decoder::Impl::add_bias(float* rows, int n, const AlignedVector<float>& bias) const {
  if (bias.empty()) return;
  for (int i = 0; i < n; ++i) ops().add(bias.data(), rows + i * bias.size(), bias.size());
}

void Decoder::Impl::rotate(float* rows, int n, int n_heads, int64_t first) const {
  const int d = config().head_dim;
  parallel_ranges(n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int head = 0; head < n_heads; ++head) {
        float* row = rows + (i * n_heads + head) * d;
        ops().rope_row(row, rope.cosines(first + i), rope.sines(first + i), rope.n_pairs(),
                       rope.adjacent());
        if (magnitude != 1.0f)  // YaRN scales the rotated channels
          for (int c = 0; c < 2 * rope.n_pairs(); ++c) row[c] *= magnitude;
      }
  });
}

/// Block-quantized rows against the int8 activations; the second term meets rows that the first has
/// just brought into the L1 cache.
void Decoder::Impl::multiply_blocks(const Product& p, int64_t begin, int64_t end) const {
  const WeightView& w = *p.w;
  const auto gemv = [&](int64_t row, int64_t n, const std::vector<BlockA8>& input, float* y) {
    ops().gemv_a8(w.type, w.row(static_cast<int>(row)), w.row_bytes(), static_cast<int>(n), w.cols,
                  input.data(), y);
  };
  if (options.decode == DecodeCompute::kInt8) return gemv(begin, end - begin, a8, p.y + begin);
  for (; begin < end; begin += kRowGrain) {
    const int64_t n = std::min<int64_t>(kRowGrain, end - begin);
    float rest[kRowGrain];
    gemv(begin, n, a8, p.y + begin);
    gemv(begin, n, a8_rest, rest);
    for (int64_t i = 0; i < n; ++i) p.y[begin + i] += rest[i];
  }
}

void Decoder::Impl::multiply_rows(const Product& p, const float* from, int64_t begin,
                                  int64_t end) const {
  const WeightView& w = *p.w;
  const bool blocks = is_quantized(w.type);
  if (options.decode != DecodeCompute::kExact && blocks) {
    multiply_blocks(p, begin, end);
    return;
  }
  thread_local AlignedVector<float> row;
  row.resize(w.cols);
  for (int64_t r = begin; r < end; ++r) {
    ops().dequant_row(w.type, w.row(static_cast<int>(r)), w.cols, row.data());
    p.y[r] = ops().dot(row.data(), from, w.cols);
  }
}

/// Activations as int8 blocks, and the remainder as blocks of its own.
void Decoder::Impl::quantize(const float* from, int n) {
  ops().quantize_a8(from, n, a8.data());
  if (options.decode != DecodeCompute::kInt8x2) return;
  for (int i = 0; i < n; ++i) {
    const BlockA8& block = a8[i / kBlockValues];
    remainder[i] = from[i] - block.d * static_cast<float>(block.q[i % kBlockValues]);
  }
  ops().quantize_a8(remainder.data(), n, a8_rest.data());
}

/// Products that share their input, as one loop over all output rows.
void Decoder::Impl::multiply(std::initializer_list<Product> products, const float* from) {
  if (options.decode != DecodeCompute::kExact)
    quantize(from, products.begin()->w->cols / kBlockValues * kBlockValues);
  int64_t rows = 0;
  for (const Product& p : products) rows += p.w->rows;
  parallel_ranges(rows, kRowGrain, [&](int64_t begin, int64_t end) {
    int64_t offset = 0;
    for (const Product& p : products) {
      const int64_t from_row = std::clamp<int64_t>(begin - offset, 0, p.w->rows);
      const int64_t to_row = std::clamp<int64_t>(end - offset, 0, p.w->rows);
      if (from_row < to_row) multiply_rows(p, from, from_row, to_row);
      offset += p.w->rows;
    }
  });
}

/// h = norm(x); q, k, v = projections of h.
void Decoder::Impl::dense_in(const LayerWeights& w, int n) {
  norm(x.data(), w.attn_norm, n, h.data());
  if (n == 1) {
    multiply({{&w.wq, q.data()}, {&w.wk, k.data()}, {&w.wv, v.data()}}, h.data());
  } else {
    gemm.run(h.data(), n, w.wq, q.data(), w.wq.rows);
    gemm.run(h.data(), n, w.wk, k.data(), w.wk.rows);
    gemm.run(h.data(), n, w.wv, v.data(), w.wv.rows);
  }
  add_bias(q.data(), n, w.bq);
  add_bias(k.data(), n, w.bk);
  add_bias(v.data(), n, w.bv);
}

/// x += W_o attn; x += MLP(norm(x)).
void Decoder::Impl::dense_out(const LayerWeights& w, int n) {
  if (n == 1)
    multiply({{&w.wo, h.data()}}, attn.data());
  else
    gemm.run(attn.data(), n, w.wo, h.data(), w.wo.rows);
  ops().add(h.data(), x.data(), static_cast<size_t>(n) * config().d_model);
  norm(x.data(), w.ffn_norm, n, h.data());
  for (int first = 0; first < n; first += kDenseRows)
    mlp_rows(w, first, std::min(kDenseRows, n - first), n == 1);
  ops().add(h.data(), x.data(), static_cast<size_t>(n) * config().d_model);
}

/// Rows [first, first + n) of h <- W_down (silu(W_gate h) * W_up h).
void Decoder::Impl::mlp_rows(const LayerWeights& w, int first, int n, bool single) {
  float* rows = h.data() + static_cast<int64_t>(first) * config().d_model;
  if (single) {
    multiply({{&w.w_gate, gate.data()}, {&w.w_up, up.data()}}, rows);
  } else {
    gemm.run(rows, n, w.w_gate, gate.data(), w.w_gate.rows);
    gemm.run(rows, n, w.w_up, up.data(), w.w_up.rows);
  }
  const int64_t d_ff = config().d_ff;
  parallel_ranges(n, 16, [&](int64_t begin, int64_t end) {
    ops().swiglu(gate.data() + begin * d_ff, up.data() + begin * d_ff, gate.data() + begin * d_ff,
                 static_cast<size_t>((end - begin) * d_ff));
  });
  if (single)
    multiply({{&w.w_down, rows}}, gate.data());
  else
    gemm.run(gate.data(), n, w.w_down, rows, w.w_down.rows);
}

void Decoder::Impl::forward_chunk(std::span<const int32_t> tokens, KvCache& cache, Probe* probe,
                                  float* out) {
  const ModelConfig& c = config();
  const int n = static_cast<int>(tokens.size());
  const int64_t first = cache.n_tokens();
  cache.set_bf16_products(options.prefill == PrefillCompute::kBf16);
  resize(n);
  rope.ensure(first + n);
  embed(tokens);
  for (int l = 0; l < c.n_layers; ++l) {
    check_interrupted();
    const LayerWeights& w = model->layers[l];
    dense_in(w, n);
    if (probe) {
      q_pre = q;
      k_pre = k;
    }
    rotate(q.data(), n, c.n_heads, first);
    rotate(k.data(), n, c.n_kv_heads, first);
    if (probe)
      probe->on_layer(l, first, n, q_pre.data(), q.data(), k_pre.data(), k.data(), v.data());
    cache.attend(l, q.data(), k.data(), v.data(), n, attn.data());
    if (probe) probe->on_attention(l, first, n, attn.data());
    dense_out(w, n);
  }
  norm(x.data(), model->output_norm, n, out);
}

Decoder::Decoder(std::shared_ptr<const Model> model, DecoderOptions options)
    : impl_(std::make_unique<Impl>(std::move(model), options)) {}
Decoder::~Decoder() = default;

const Model& Decoder::model() const { return *impl_->model; }

std::span<const float> Decoder::forward(std::span<const int32_t> tokens, KvCache& cache,
                                        Probe* probe) {
  const size_t d = impl_->config().d_model;
  impl_->hidden.resize(tokens.size() * d);
  for (size_t done = 0; done < tokens.size();) {
    const size_t left = tokens.size() - done;
    size_t n = std::min<size_t>(impl_->options.chunk, left);
    // A lone last token would take the decode path's arithmetic; keep it with its neighbours.
    if (left == n + 1 && n > 2) --n;
    impl_->forward_chunk(tokens.subspan(done, n), cache, probe, impl_->hidden.data() + done * d);
    done += n;
  }
  return impl_->hidden;
}

void Decoder::logits(const float* hidden, int n, float* out) {
  const WeightView& w = impl_->model->output;
  if (n == 1)
    impl_->multiply({{&w, out}}, hidden);
  else
    impl_->gemm.run(hidden, n, w, out, w.rows);
}

void Decoder::logits_block(const float* hidden, int n, int first, int count, float* out) {
  WeightView rows = impl_->model->output;
  rows.data = rows.row(first);
  rows.rows = count;
  impl_->gemm.run(hidden, n, rows, out, count);
}

}  // namespace million
