// SPDX-License-Identifier: Apache-2.0
#include "lib/cache/kv_cache.h"

#include "kernels/ops.h"
#include "lib/cache/attention.h"
#include "lib/cache/encoder.h"
#include "lib/cache/exact_run.h"
#include "lib/core/error.h"
#include "lib/core/parallel.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <shared_mutex>

namespace million {
namespace {

/// Steps between the moment a block has left the window and the moment queries see its codes. The
/// worker encodes in that time; synchronous encoding waits equally long, so both give one result.
constexpr int64_t kVisibleLag = 8;
/// Smallest run that is sealed at once; blocks of codecs that work row by row are made this long.
constexpr int kSealTokens = 64;
/// Tokens of one work item of single-query attention; fixed, so that the order of merging does not
/// depend on the number of threads. A multiple of kPqBlock.
constexpr int64_t kPartTokens = 2048;
/// Tokens decoded at once by decode-then-attend.
constexpr int kDecodeTokens = 256;

}  // namespace

const char* protocol_name(Protocol p) {
  return p == Protocol::kDecodePath ? "decode-path" : "all-distorted";
}

Protocol parse_protocol(std::string_view text) {
  if (text == "decode-path") return Protocol::kDecodePath;
  if (text == "all-distorted") return Protocol::kAllDistorted;
  fail(ErrorCode::kUsage, "--protocol: got '{}', expected decode-path or all-distorted", text);
}

double Method::nominal_bits() const {
  return 0.5 * (key_codec->nominal_bits() + value_codec->nominal_bits());
}

struct KvCache::Impl {
  /// One layer: sinks, codes, window, and how many sealed tokens queries may see.
  struct Layer {
    ExactRun sinks, window;
    std::unique_ptr<CodeStore> k, v;
    int64_t sealed = 0;   ///< tokens whose codes are visible; the window starts behind them
    int64_t started = 0;  ///< tokens handed to the encoder, >= sealed
    int64_t ticket = 0;   ///< of the last encoding job
    std::unique_ptr<std::shared_mutex> stores = std::make_unique<std::shared_mutex>();
  };

  Impl(const KvGeometry& g, Method m, Protocol p, bool async)
      : geometry(g), method(std::move(m)), protocol(p), rope(g.rope), encoder(async) {
    exact = method.spec.key_codec == "fp16" && method.spec.value_codec == "fp16";
    if (!exact) {
      const int block =
          std::lcm(method.key_codec->block_tokens(), method.value_codec->block_tokens());
      seal_tokens = std::lcm(block, kSealTokens);
      row_wise = block == 1;
    }
    reset();
  }

  void reset() {
    encoder.wait(last_ticket);
    layers.clear();
    // A window stays small; an exact cache is read in long runs.
    const int segment = exact ? 2 * kSealTokens : kSealTokens;
    for (int l = 0; l < geometry.n_layers; ++l) {
      Layer layer{ExactRun(geometry.n_kv_heads, geometry.head_dim, std::max(1, n_sinks())),
                  ExactRun(geometry.n_kv_heads, geometry.head_dim, segment), nullptr, nullptr};
      if (!exact) {
        layer.k = method.key_codec->make_store(l);
        layer.v = method.value_codec->make_store(l);
      }
      layers.push_back(std::move(layer));
    }
    n_tokens = 0;
  }

  int n_sinks() const { return exact ? 0 : method.spec.sinks; }

  /// Sealed tokens once the sequence has n tokens (decode path).
  int64_t sealed_of(int64_t n, int64_t lag) const {
    if (exact) return 0;
    const int64_t behind = n - n_sinks() - method.spec.window - lag;
    return behind <= 0 ? 0 : behind / seal_tokens * seal_tokens;
  }

  /// First position behind the codes that the query at position i sees.
  int64_t boundary(int64_t i) const {
    if (i < n_sinks()) return i + 1;
    if (exact) return 0;
    if (protocol == Protocol::kDecodePath) return n_sinks() + sealed_of(i + 1, kVisibleLag);
    return std::max<int64_t>(n_sinks(), i + 1 - method.spec.window);
  }

  void append_exact(Layer& layer, const float* k, const float* v, int n) const;
  void make_visible(Layer& layer, int64_t until);
  void start_encoding(Layer& layer, int64_t until);
  void fill_tiles(Layer& layer, int64_t n_after, int64_t n_coded);
  void attend_many(Layer& layer, const float* q, int n, int64_t n_coded, float* out);
  void attend_one(Layer& layer, const float* q, float* out);
  void attend_part(const Layer& layer, int head, int64_t part, const float* q, SoftmaxState* state,
                   float* acc) const;
  void attend_codes(const Layer& layer, int head, int64_t begin, int64_t end, const float* q,
                    SoftmaxState* state, float* acc) const;
  void rotate_decoded(float* k, int64_t first, int64_t n) const;

  KvGeometry geometry;
  Method method;
  Protocol protocol;
  bool exact = true;     ///< both codecs are fp16: nothing is ever sealed
  bool row_wise = true;  ///< codecs take any number of rows
  int seal_tokens = kSealTokens;
  int64_t n_tokens = 0;
  int64_t last_ticket = 0;
  RopeTable rope;
  std::vector<Layer> layers;
  TileRows exact_k, exact_v, coded_k, coded_v;
  AlignedVector<float> scaled_q, part_acc;
  std::vector<SoftmaxState> part_state;
  BlockEncoder encoder;  // last member: its thread stops before the stores go
};

void KvCache::Impl::append_exact(Layer& layer, const float* k, const float* v, int n) const {
  const int64_t to_sinks = std::clamp<int64_t>(n_sinks() - layer.sinks.size(), 0, n);
  layer.sinks.append(k, v, to_sinks);
  const int64_t row = geometry.row();
  layer.window.append(k + to_sinks * row, v + to_sinks * row, n - to_sinks);
}

/// Hands the codes of tokens [started, until) (counted behind the sinks) to the encoder.
void KvCache::Impl::start_encoding(Layer& layer, int64_t until) {
  if (until <= layer.started) return;
  const int64_t n = until - layer.started;
  const int64_t window_first = layer.started - layer.sealed;
  EncodeJob job;
  job.first_token = n_sinks() + layer.started;
  job.n = static_cast<int>(n);
  job.k.resize(n * geometry.row());
  job.v.resize(job.k.size());
  AlignedVector<float> k(n * geometry.head_dim), v(k.size());
  for (int h = 0; h < geometry.n_kv_heads; ++h) {
    layer.window.read(h, window_first, window_first + n, k.data(), v.data());
    for (int64_t t = 0; t < n; ++t) {
      const int64_t to = (t * geometry.n_kv_heads + h) * geometry.head_dim;
      std::copy_n(k.data() + t * geometry.head_dim, geometry.head_dim, job.k.data() + to);
      std::copy_n(v.data() + t * geometry.head_dim, geometry.head_dim, job.v.data() + to);
    }
  }
  const KeyFrame frame = method.key_codec->frame();
  job.run = [this, &layer, frame](EncodeJob& j) {
    if (frame.type != KeyFrame::Type::kPostRope)
      parallel_for(j.n, [&](int64_t t) {
        const int64_t position = j.first_token + t;
        geometry.rope.move(j.k.data() + t * geometry.row(), geometry.n_kv_heads, geometry.head_dim,
                           frame.position(position) - position);
      });
    std::unique_lock lock(*layer.stores);
    layer.k->append(j.k.data(), j.n, j.first_token);
    layer.v->append(j.v.data(), j.n, j.first_token);
  };
  layer.started = until;
  last_ticket = layer.ticket = encoder.submit(std::move(job));
}

/// Makes the codes of tokens [0, until) visible and drops their exact rows. all_distorted keeps the
/// rows of its window, so that bytes() counts them.
void KvCache::Impl::make_visible(Layer& layer, int64_t until) {
  if (until <= layer.sealed) return;
  encoder.wait(layer.ticket);
  const int64_t kept = protocol == Protocol::kAllDistorted ? method.spec.window : 0;
  layer.window.drop_front(std::max<int64_t>(0, until - layer.sealed - kept));
  layer.sealed = until;
}

/// Rotates decoded keys of positions [first, first + n) from the codec's frame to after RoPE.
void KvCache::Impl::rotate_decoded(float* k, int64_t first, int64_t n) const {
  const KeyFrame frame = method.key_codec->frame();
  if (frame.type == KeyFrame::Type::kPostRope) return;
  const Ops& op = ops();
  for (int64_t t = 0; t < n; ++t) {
    const int64_t by = first + t - frame.position(first + t);
    op.rope_row(k + t * geometry.head_dim, rope.cosines(by), rope.sines(by), rope.n_pairs(),
                rope.adjacent());
  }
}

/// f32 rows for attend_chunk: what is exact, and the first n_coded sealed tokens decoded.
void KvCache::Impl::fill_tiles(Layer& layer, int64_t n_after, int64_t n_coded) {
  const int d = geometry.head_dim;
  for (TileRows* rows : {&exact_k, &exact_v}) rows->reset(geometry.n_kv_heads, d, n_after);
  if (n_coded > 0)
    for (TileRows* rows : {&coded_k, &coded_v}) rows->reset(geometry.n_kv_heads, d, n_after);
  const int64_t n_sink_rows = layer.sinks.size();
  const int64_t window_first = n_sink_rows + layer.sealed;
  const int64_t parts = (n_coded + kDecodeTokens - 1) / kDecodeTokens;
  parallel_for(geometry.n_kv_heads * (parts + 1), [&](int64_t job) {
    const int head = static_cast<int>(job % geometry.n_kv_heads);
    const int64_t part = job / geometry.n_kv_heads;
    if (part == parts) {
      layer.sinks.read(head, 0, n_sink_rows, exact_k.at(head, 0), exact_v.at(head, 0));
      layer.window.read(head, 0, layer.window.size(), exact_k.at(head, window_first),
                        exact_v.at(head, window_first));
      return;
    }
    const int64_t begin = part * kDecodeTokens;
    const int64_t end = std::min(n_coded, begin + kDecodeTokens);
    float* k = coded_k.at(head, n_sink_rows + begin);
    layer.k->decode(head, static_cast<int>(begin), static_cast<int>(end), k);
    layer.v->decode(head, static_cast<int>(begin), static_cast<int>(end),
                    coded_v.at(head, n_sink_rows + begin));
    rotate_decoded(k, n_sink_rows + begin, end - begin);
  });
}

void KvCache::Impl::attend_many(Layer& layer, const float* q, int n, int64_t n_coded, float* out) {
  fill_tiles(layer, n_tokens + n, n_coded);
  ChunkView view{&exact_k, &exact_v, &coded_k,  &coded_v,
                 n_tokens, n,        n_sinks(), [this](int64_t i) { return boundary(i); }};
  attend_chunk(geometry, view, q, out);
}

/// Sealed tokens [begin, end) of one head against the group's queries (scaled, after RoPE).
void KvCache::Impl::attend_codes(const Layer& layer, int head, int64_t begin, int64_t end,
                                 const float* q, SoftmaxState* state, float* acc) const {
  const int group = geometry.group(), d = geometry.head_dim;
  thread_local AlignedVector<float> scratch, k_centroids, v_centroids;
  PqSide k = layer.k->pq_side(head, &k_centroids), v = layer.v->pq_side(head, &v_centroids);
  if (k.blocks && v.blocks && method.key_codec->frame().type == KeyFrame::Type::kPostRope) {
    scratch.resize(pq_scratch_floats(group, d, k.M, k.nbits));
    k.blocks += begin / kPqBlock;
    v.blocks += begin / kPqBlock;
    ops().attend_pq({group, d, static_cast<int>(end - begin), q, k, v, scratch.data(), state, acc});
    return;
  }
  scratch.resize(static_cast<size_t>(2) * kDecodeTokens * d);
  float* rows_k = scratch.data();
  float* rows_v = rows_k + static_cast<int64_t>(kDecodeTokens) * d;
  for (; begin < end; begin += kDecodeTokens) {
    const int64_t n = std::min<int64_t>(kDecodeTokens, end - begin);
    layer.k->decode(head, static_cast<int>(begin), static_cast<int>(begin + n), rows_k);
    layer.v->decode(head, static_cast<int>(begin), static_cast<int>(begin + n), rows_v);
    rotate_decoded(rows_k, layer.sinks.size() + begin, n);
    ops().attend_f32({group, d, static_cast<int>(n), q, rows_k, rows_v, state, acc});
  }
}

/// Part `part` of one head: first the parts of the codes, then those of the exact rows; the sinks
/// go with the first exact part.
void KvCache::Impl::attend_part(const Layer& layer, int head, int64_t part, const float* q,
                                SoftmaxState* state, float* acc) const {
  const int64_t coded_parts = (layer.sealed + kPartTokens - 1) / kPartTokens;
  if (part < coded_parts) {
    std::shared_lock lock(*layer.stores);
    const int64_t begin = part * kPartTokens;
    attend_codes(layer, head, begin, std::min(layer.sealed, begin + kPartTokens), q, state, acc);
    return;
  }
  const auto attend = [&](int64_t, int64_t n, const uint16_t* k, const uint16_t* v) {
    ops().attend_f16(
        {geometry.group(), geometry.head_dim, static_cast<int>(n), q, k, v, state, acc});
  };
  if (part == coded_parts) layer.sinks.spans(head, 0, layer.sinks.size(), attend);
  const int64_t begin = (part - coded_parts) * kPartTokens;
  layer.window.spans(head, begin, std::min(layer.window.size(), begin + kPartTokens), attend);
}

void KvCache::Impl::attend_one(Layer& layer, const float* q, float* out) {
  const int group = geometry.group(), d = geometry.head_dim, hk = geometry.n_kv_heads;
  const int64_t parts = (layer.sealed + kPartTokens - 1) / kPartTokens +
                        std::max<int64_t>(1, (layer.window.size() + kPartTokens - 1) / kPartTokens);
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  scaled_q.resize(static_cast<size_t>(geometry.n_heads) * d);
  for (size_t i = 0; i < scaled_q.size(); ++i) scaled_q[i] = q[i] * scale;
  part_acc.assign(static_cast<size_t>(parts) * geometry.n_heads * d, 0.0f);
  part_state.assign(static_cast<size_t>(parts) * geometry.n_heads, SoftmaxState{});
  const auto slot = [&](int64_t head, int64_t part) { return (part * hk + head) * group; };
  parallel_for(parts * hk, [&](int64_t job) {
    const int64_t head = job % hk, part = job / hk, at = slot(head, part);
    attend_part(layer, static_cast<int>(head), part, scaled_q.data() + head * group * d,
                &part_state[at], &part_acc[at * d]);
  });
  for (int h = 0; h < geometry.n_heads; ++h) {
    SoftmaxState state = part_state[h];
    float* acc = &part_acc[static_cast<size_t>(h) * d];
    for (int64_t part = 1; part < parts; ++part) {
      const int64_t at = slot(0, part) + h;
      merge_softmax(state, acc, part_state[at], &part_acc[at * d], d);
    }
    for (int c = 0; c < d; ++c) out[static_cast<int64_t>(h) * d + c] = acc[c] / state.sum;
  }
}

KvCache::KvCache(const KvGeometry& geometry, Method method, Protocol protocol, bool async_encode)
    : impl_(std::make_unique<Impl>(geometry, std::move(method), protocol, async_encode)) {}
KvCache::~KvCache() = default;

const KvGeometry& KvCache::geometry() const { return impl_->geometry; }
int64_t KvCache::n_tokens() const { return impl_->n_tokens; }
void KvCache::clear() { impl_->reset(); }

void KvCache::attend(int layer_index, const float* q, const float* k, const float* v, int n,
                     float* out) {
  Impl& m = *impl_;
  Impl::Layer& layer = m.layers[layer_index];
  const bool distorted = m.protocol == Protocol::kAllDistorted && !m.exact;
  MILLION_REQUIRE(
      !distorted || m.n_tokens == 0 || (m.row_wise && m.method.spec.window == 0), ErrorCode::kUsage,
      "protocol all-distorted with {} takes a sequence in one call: set the chunk to the "
      "context length",
      m.method.spec.to_string());
  const int64_t n_after = m.n_tokens + n;
  m.rope.ensure(n_after);
  m.append_exact(layer, k, v, n);
  const int64_t behind_sinks = std::max<int64_t>(0, n_after - m.n_sinks());
  const int64_t visible = distorted ? behind_sinks : m.sealed_of(n_after, kVisibleLag);
  m.start_encoding(layer, distorted ? behind_sinks : m.sealed_of(n_after, 0));
  if (n == 1 && !(distorted && m.method.spec.window > 0)) {
    m.make_visible(layer, visible);
    m.attend_one(layer, q, out);
  } else {
    if (visible > 0) m.encoder.wait(layer.ticket);
    m.attend_many(layer, q, n, visible, out);
    m.make_visible(layer, visible);
  }
  if (layer_index == m.geometry.n_layers - 1) m.n_tokens = n_after;
}

CacheBytes KvCache::bytes() const {
  CacheBytes sum;
  for (const Impl::Layer& layer : impl_->layers) {
    sum.sinks += layer.sinks.bytes();
    sum.window += layer.window.bytes();
    if (!layer.k) continue;
    std::shared_lock lock(*layer.stores);
    for (const CodeStore* store : {layer.k.get(), layer.v.get()}) {
      const StoreBytes b = store->bytes();
      sum.codes += b.codes;
      sum.scales += b.scales;
      sum.outliers += b.outliers;
    }
  }
  const Method& method = impl_->method;
  sum.shared = method.key_codec->shared_bytes() + method.value_codec->shared_bytes();
  return sum;
}

double KvCache::measured_bits(bool with_shared) const {
  const KvGeometry& g = impl_->geometry;
  const double values = 2.0 * static_cast<double>(impl_->n_tokens) * g.n_layers * g.row();
  const CacheBytes b = bytes();
  return values == 0.0 ? 0.0
                       : 8.0 * static_cast<double>(with_shared ? b.total() : b.cache()) / values;
}

}  // namespace million
