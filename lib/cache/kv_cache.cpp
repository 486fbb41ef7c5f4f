// SPDX-License-Identifier: Apache-2.0
#include "lib/cache/kv_cache.h"

#include "kernels/ops.h"
#include "lib/cache/attention.h"
#include "lib/cache/coded_attention.h"
#include "lib/cache/encoder.h"
#include "lib/cache/exact_attention.h"
#include "lib/cache/fused_attention.h"
#include "lib/cache/group_attention.h"
#include "lib/cache/kind_rows.h"
#include "lib/cache/pq_attention.h"
#include "lib/cache/query_parts.h"
#include "lib/cache/turn.h"
#include "lib/core/error.h"
#include "lib/core/parallel.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <shared_mutex>
#include <tuple>

namespace million {
namespace {

/// Tokens decoded at once by decode-then-attend.
constexpr int kDecodeTokens = 256;

}  // namespace

struct KvCache::Impl {
  struct Layer {
    KindCache k, v;
  };
  /// The group's queries of one KV head, scaled: for neighbours, and for far tokens.
  struct HeadQueries {
    const float *near, *far;
  };

  Impl(const KvGeometry& g, Method m, Protocol p, bool async)
      : geometry(g), method(std::move(m)), protocol(p), rope(g.rope), encoder(async) {
    std::tie(key_rule, value_rule) = coding_rules(method, protocol, g.self_extend);
    any_call = takes_any_call(method, key_rule, value_rule);
    reset();
  }

  void reset() {
    encoder.wait(last_ticket);
    layers.clear();
    KeyFrame frame = method.key_codec->frame();
    frame.group = geometry.self_extend.group;
    for (int l = 0; l < geometry.n_layers; ++l) {
      const auto store = [&](const Codec& codec) {
        return key_rule.exact ? nullptr : codec.make_store(l);
      };
      layers.push_back({KindCache(geometry, key_rule, frame, store(*method.key_codec)),
                        KindCache(geometry, value_rule, KeyFrame{}, store(*method.value_codec))});
    }
    n_tokens = 0;
  }

  /// Single tokens: a job at every seventh call, so that a block of keys and values of all layers
  /// is encoded within 14 of the 16 steps until its codes are seen. Chunks: all at once.
  void pace_encoder(bool single) {
    static_assert(kVisibleLag >= 16);
    if (!single)
      encoder.allow(std::numeric_limits<int32_t>::max());
    else if (++n_single_calls % 7 == 0)
      encoder.allow(1);
  }

  int n_sinks() const { return key_rule.sinks; }

  /// First position behind the codes that the query at position i sees.
  int64_t boundary(const CodingRule& rule, int64_t i) const {
    return std::min<int64_t>(n_sinks(), i + 1) + rule.seen(i);
  }

  template <class F>
  void for_kinds(Layer& layer, const F& f) {
    f(layer.k, key_rule);
    f(layer.v, value_rule);
  }

  void attend_run(Layer& layer, int64_t first, int n, bool single, const float* q, float* out);
  void hand_over(KindCache& kind, int64_t until);
  int64_t run_end(int64_t first, int64_t end) const;
  void attend_many(Layer& layer, int64_t first, const float* q, int n, float* out);
  void attend_one(Layer& layer, int64_t position, const float* q, float* out);
  void attend_coded_parts(Layer& layer, const QueryParts& cut, int units);
  void attend_part(const Layer& layer, const QueryParts& parts, int head, int64_t part,
                   const HeadQueries& q, SoftmaxState* state, float* acc) const;
  void attend_codes(const Layer& layer, int head, int64_t begin, int64_t end, const float* q,
                    SoftmaxState* state, float* acc, AttendStats* stats) const;
  void attend_sinks(const Layer& layer, int head, const HeadQueries& q, SoftmaxState* state,
                    float* acc) const;

  KvGeometry geometry;
  Method method;
  Protocol protocol;
  CodingRule key_rule, value_rule;
  bool any_call = true;  ///< a sequence may come in any number of calls
  int64_t n_tokens = 0;
  int64_t last_ticket = 0;
  int64_t n_single_calls = 0;
  int64_t query_number = 0;  ///< of the query and layer at work
  RopeTable rope;
  std::vector<Layer> layers;
  /// Of a single query; far_q is where it meets far tokens, and what is coded is far. Without
  /// SelfExtend both are the same.
  AlignedVector<float> scaled_q, far_q, part_acc;
  int64_t far_end = 0;  ///< of the single query at work, sinks count
  std::vector<SoftmaxState> part_state;
  AlignedVector<float> coded_sums, coded_rows;  ///< [part][n_heads][rank]; [n_heads][head_dim]
  std::vector<SoftmaxState> coded_state;
  std::vector<float> floor;
  float skip_share = 0.0f;
  bool bf16_products = false;
  std::vector<AttendStats> job_stats;  ///< of the parts at work
  KvCache::Stats stats;
  BlockEncoder encoder;  // last member: its thread stops before the stores go
};

void KvCache::Impl::hand_over(KindCache& kind, int64_t until) {
  kind.start_encoding(until, encoder);
  last_ticket = std::max(last_ticket, kind.last_ticket());
}

/// End of the run of queries from `first` on that see one state of codes: codes that a flush
/// rewrites must be read before it.
int64_t KvCache::Impl::run_end(int64_t first, int64_t end) const {
  if (method.key_codec->rewrites_codes()) end = std::min(end, key_rule.next_flush(first));
  if (method.value_codec->rewrites_codes()) end = std::min(end, value_rule.next_flush(first));
  return end;
}

void KvCache::Impl::attend_many(Layer& layer, int64_t first, const float* q, int n, float* out) {
  thread_local ChunkRows chunk_rows;  // much at long contexts; the caches of a thread share them
  const int64_t last = first + n - 1;
  chunk_rows.fill(geometry, rope, layer.k, layer.v, key_rule.seen(last), value_rule.seen(last),
                  first + n);
  ChunkView view{&chunk_rows.exact_k,
                 &chunk_rows.exact_v,
                 geometry.self_extend.on() ? &chunk_rows.far_k : &chunk_rows.exact_k,
                 &chunk_rows.coded_k,
                 &chunk_rows.coded_v,
                 &rope,
                 first,
                 n,
                 chunk_rows.any_coded(),
                 [this](int64_t i) { return boundary(key_rule, i); },
                 [this](int64_t i) { return boundary(value_rule, i); },
                 bf16_products};
  attend_chunk(geometry, view, q, out);
}

/// Tokens [begin, end) of one head, of which keys or values or both are coded, against the group's
/// queries (scaled, after RoPE, as they meet far tokens).
void KvCache::Impl::attend_codes(const Layer& layer, int head, int64_t begin, int64_t end,
                                 const float* q, SoftmaxState* state, float* acc,
                                 AttendStats* stats_here) const {
  const int group = geometry.group(), d = geometry.head_dim;
  thread_local AlignedVector<float> scratch;
  const bool both = end <= std::min(layer.k.sealed(), layer.v.sealed());
  if (both && can_attend_halves(layer.k, layer.v))
    return attend_halves(geometry, layer.k, layer.v, head, begin, end, q, state, acc);
  if (both && can_attend_pq(layer.k, layer.v))
    return attend_pq_codes(geometry, layer.k, layer.v, {head, query_number, q}, begin, end,
                           {skip_share, floor.data() + static_cast<int64_t>(head) * group}, state,
                           acc, stats_here);
  if (both && can_attend_coded(layer.k, layer.v))
    return attend_coded(geometry, layer.k, layer.v, head, begin, end, q, state, acc);
  if (both && can_attend_groups(geometry, layer.k, layer.v))
    return attend_groups(geometry, layer.k, layer.v, head, begin, end, q, state, acc);
  scratch.resize(static_cast<size_t>(2) * kDecodeTokens * d);
  float* rows_k = scratch.data();
  float* rows_v = rows_k + static_cast<int64_t>(kDecodeTokens) * d;
  for (; begin < end; begin += kDecodeTokens) {
    const int64_t n = std::min<int64_t>(kDecodeTokens, end - begin);
    read_kind(layer.k, rope, head, begin, begin + n, rows_k);
    read_kind(layer.v, rope, head, begin, begin + n, rows_v);
    ops().attend_f32({group, d, static_cast<int>(n), q, rows_k, rows_v, state, acc});
  }
}

void KvCache::Impl::attend_sinks(const Layer& layer, int head, const HeadQueries& q,
                                 SoftmaxState* state, float* acc) const {
  const ExactRun &k = layer.k.sinks(), &v = layer.v.sinks();
  const int64_t n_far = std::min(far_end, k.size()), d = geometry.head_dim;
  if (n_far > 0) {
    AlignedVector<float> rows(static_cast<size_t>(2 * n_far * d));
    read_far(layer.k, k, 0, rope, head, 0, n_far, rows.data());
    v.read(head, 0, n_far, rows.data() + n_far * d);
    ops().attend_f32({geometry.group(), geometry.head_dim, static_cast<int>(n_far), q.far,
                      rows.data(), rows.data() + n_far * d, state, acc});
  }
  attend_exact(geometry, k, n_far, v, n_far, k.size() - n_far, head, q.near, state, acc);
}

/// Part `part` of one head, behind those with keys and values coded: first the parts of tokens with
/// one of them coded, then the exact ones; the sinks go with the first exact part.
void KvCache::Impl::attend_part(const Layer& layer, const QueryParts& parts, int head, int64_t part,
                                const HeadQueries& q, SoftmaxState* state, float* acc) const {
  if (part < parts.both + parts.one) {
    std::shared_lock key_lock(layer.k.mutex()), value_lock(layer.v.mutex());
    const int64_t begin = parts.low + (part - parts.both) * parts.coded_size;
    const int64_t end = std::min(parts.high, begin + parts.coded_size);
    attend_codes(layer, head, begin, end, q.far, state, acc, nullptr);
    return;
  }
  const int64_t exact_part = part - parts.both - parts.one;
  if (exact_part == 0) attend_sinks(layer, head, q, state, acc);
  int64_t begin = parts.high + exact_part * parts.exact_size;
  const int64_t end = std::min(parts.end, begin + parts.exact_size);
  const int64_t near = std::clamp<int64_t>(far_end - n_sinks(), begin, std::max(begin, end));
  if (begin < near)  // far, but not coded yet
    attend_codes(layer, head, begin, near, q.far, state, acc, nullptr);
  begin = near;
  attend_exact(geometry, layer.k.window(), begin - layer.k.sealed(), layer.v.window(),
               begin - layer.v.sealed(), end - begin, head, q.near, state, acc);
}

/// The coded parts, by the fused kernel of `units` units or (0) head by head, merged into
/// part_state and part_acc of part 0, which hold all other tokens: these give the first bound of
/// what is left out.
void KvCache::Impl::attend_coded_parts(Layer& layer, const QueryParts& cut, int units) {
  const int n_heads = geometry.n_heads, d = geometry.head_dim;
  const int jobs = units > 0 ? units : geometry.n_kv_heads, job_heads = n_heads / jobs;
  const int width = units > 0 ? fused_rank(layer.v) : d;
  coded_sums.assign(static_cast<size_t>(cut.both) * n_heads * width, 0.0f);
  coded_state.assign(static_cast<size_t>(cut.both) * n_heads, SoftmaxState{});
  job_stats.assign(static_cast<size_t>(cut.both) * jobs, {});
  const auto attend = [&](int unit, int64_t part) {
    const int64_t begin = part * cut.coded_size, end = std::min(cut.low, begin + cut.coded_size);
    const int64_t job = part * jobs + unit, at = job * job_heads;
    std::shared_lock key_lock(layer.k.mutex()), value_lock(layer.v.mutex());
    if (units > 0)
      attend_fused(geometry, rope, layer.k, layer.v, unit, begin, end, far_q.data(),
                   {skip_share, floor.data()}, &coded_state[at], &coded_sums[at * width],
                   &job_stats[job]);
    else
      attend_codes(layer, unit, begin, end,
                   far_q.data() + static_cast<int64_t>(unit) * job_heads * d, &coded_state[at],
                   &coded_sums[at * width], &job_stats[job]);
  };
  // A thread keeps its last head's tables and fetches the next part's codes.
  parallel_runs(cut.both * jobs,
                [&](int64_t i) { attend(static_cast<int>(i / cut.both), i % cut.both); });
  for (const AttendStats& x : job_stats) stats.kernels.add(x);
  stats.head_queries += n_heads;
  for (int64_t at = n_heads; at < cut.both * n_heads; ++at)
    merge_softmax(coded_state[at % n_heads], &coded_sums[at % n_heads * width], coded_state[at],
                  &coded_sums[at * width], width);
  const float* rows = coded_sums.data();
  if (units > 0) {
    coded_rows.resize(static_cast<size_t>(n_heads) * d);
    for (int u = 0; u < units; ++u)
      fused_value_rows(geometry, layer.v, u,
                       &coded_sums[static_cast<size_t>(u) * job_heads * width],
                       &coded_rows[static_cast<size_t>(u) * job_heads * d]);
    rows = coded_rows.data();
  }
  for (int h = 0; h < n_heads; ++h)
    merge_softmax(part_state[h], &part_acc[static_cast<size_t>(h) * d], coded_state[h],
                  rows + static_cast<int64_t>(h) * d, d);
}

void KvCache::Impl::attend_one(Layer& layer, int64_t position, const float* q, float* out) {
  const int group = geometry.group(), d = geometry.head_dim, hk = geometry.n_kv_heads;
  const bool coded = std::min(layer.k.sealed(), layer.v.sealed()) > 0;
  query_number = next_query_number();
  const int units = coded ? fused_units(geometry, layer.k, layer.v) : 0;
  const QueryParts cut(layer.k, layer.v);
  // Parts with exact tokens come first: what they weigh bounds what the others can leave out.
  const int64_t parts = cut.total() - cut.both;
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  scaled_q.resize(static_cast<size_t>(geometry.n_heads) * d);
  for (size_t i = 0; i < scaled_q.size(); ++i) scaled_q[i] = q[i] * scale;
  far_q = scaled_q;
  far_end = geometry.self_extend.far_end(position);
  if (far_end > 0)
    turn_rows(rope, far_q.data(), geometry.n_heads, d,
              geometry.self_extend.far_query(position) - position);
  part_acc.assign(static_cast<size_t>(parts) * geometry.n_heads * d, 0.0f);
  part_state.assign(static_cast<size_t>(parts) * geometry.n_heads, SoftmaxState{});
  const auto slot = [&](int64_t head, int64_t part) { return (part * hk + head) * group; };
  parallel_for(parts * hk, [&](int64_t job) {
    const int64_t head = job % hk, part = job / hk, at = slot(head, part);
    const HeadQueries mine{&scaled_q[head * group * d], &far_q[head * group * d]};
    attend_part(layer, cut, static_cast<int>(head), cut.both + part, mine, &part_state[at],
                &part_acc[at * d]);
  });
  for (int h = 0; h < geometry.n_heads; ++h)
    for (int64_t part = 1; part < parts; ++part) {
      const int64_t at = slot(0, part) + h;
      merge_softmax(part_state[h], &part_acc[static_cast<size_t>(h) * d], part_state[at],
                    &part_acc[at * d], d);
    }
  floor.resize(geometry.n_heads);
  for (int h = 0; h < geometry.n_heads; ++h)
    floor[h] = part_state[h].max + std::log(part_state[h].sum);
  if (cut.both > 0) attend_coded_parts(layer, cut, units);
  for (int h = 0; h < geometry.n_heads; ++h)
    for (int64_t c = static_cast<int64_t>(h) * d; c < static_cast<int64_t>(h + 1) * d; ++c)
      out[c] = part_acc[c] / part_state[h].sum;
}

/// Attention of n queries from position `first` on, whose rows are already here.
void KvCache::Impl::attend_run(Layer& layer, int64_t first, int n, bool single, const float* q,
                               float* out) {
  const int64_t n_after = first + n;
  for_kinds(layer, [&](KindCache& kind, const CodingRule& rule) {
    if (rule.ruled()) hand_over(kind, rule.handed_over(n_after));
    encoder.wait(kind.ticket(rule.seen(n_after - 1)));
    if (single) kind.drop(rule.seen(n_after - 1));
  });
  if (!out)
    encoder.wait(last_ticket);  // rows are handed over faster than they are encoded
  else if (single)
    attend_one(layer, first, q, out);
  else
    attend_many(layer, first, q, n, out);
  for_kinds(layer, [&](KindCache& kind, const CodingRule& rule) {
    if (rule.ruled()) hand_over(kind, rule.dropped(n_after));
    kind.drop(rule.dropped(n_after));
  });
}

KvCache::KvCache(const KvGeometry& geometry, Method method, Protocol protocol, bool async_encode)
    : impl_(std::make_unique<Impl>(geometry, std::move(method), protocol, async_encode)) {}
KvCache::KvCache(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
KvCache::~KvCache() = default;

KvCache KvCache::fork() const {
  Impl& from = *impl_;
  from.encoder.wait(from.last_ticket);
  auto copy =
      std::make_unique<Impl>(from.geometry, from.method, from.protocol, from.encoder.async());
  copy->layers.clear();
  for (const Impl::Layer& layer : from.layers)
    copy->layers.push_back(
        {KindCache(layer.k, copy->geometry), KindCache(layer.v, copy->geometry)});
  copy->n_tokens = from.n_tokens;
  copy->skip_share = from.skip_share;
  copy->bf16_products = from.bf16_products;
  return KvCache(std::move(copy));
}

const KvGeometry& KvCache::geometry() const { return impl_->geometry; }
int64_t KvCache::n_tokens() const { return impl_->n_tokens; }
void KvCache::clear() { impl_->reset(); }
void KvCache::set_skip_share(float share) { impl_->skip_share = share; }
void KvCache::set_bf16_products(bool on) { impl_->bf16_products = on; }
const char* KvCache::attention_name() const {
  const Impl::Layer& layer = impl_->layers[0];
  if (std::min(layer.k.sealed(), layer.v.sealed()) == 0) return "exact";
  if (fused_units(impl_->geometry, layer.k, layer.v) > 0) return "fused";
  std::shared_lock key_lock(layer.k.mutex()), value_lock(layer.v.mutex());
  const bool fused = can_attend_halves(layer.k, layer.v) || can_attend_pq(layer.k, layer.v) ||
                     can_attend_groups(impl_->geometry, layer.k, layer.v);
  return fused ? "fused" : "decoded";
}

KvCache::Stats KvCache::stats() const {
  Stats result = impl_->stats;
  result.encode_ms = impl_->encoder.run_ms();
  return result;
}

void KvCache::attend(int layer_index, const float* q, const float* k, const float* v, int n,
                     float* out) {
  Impl& m = *impl_;
  Impl::Layer& layer = m.layers[layer_index];
  const auto start = std::chrono::steady_clock::now();
  MILLION_REQUIRE(
      m.n_tokens == 0 || m.any_call, ErrorCode::kUsage,
      "protocol all-distorted with {} takes a sequence in one call: set the chunk to the "
      "context length",
      m.method.spec.to_string());
  const int64_t n_after = m.n_tokens + n;
  m.rope.ensure(n_after);
  layer.k.append_exact(k, n);
  layer.v.append_exact(v, n);
  m.for_kinds(layer, [&](KindCache& kind, const CodingRule& rule) {
    if (!rule.ruled()) m.hand_over(kind, rule.handed_over(n_after));
  });
  const int64_t row = static_cast<int64_t>(m.geometry.n_heads) * m.geometry.head_dim;
  const bool single = n == 1;
  m.pace_encoder(single);
  for (int64_t first = m.n_tokens; first < n_after;) {
    const int64_t end = m.run_end(first, n_after), at = (first - m.n_tokens) * row;
    m.attend_run(layer, first, static_cast<int>(end - first), single, q ? q + at : nullptr,
                 out ? out + at : nullptr);
    first = end;
  }
  if (layer_index == m.geometry.n_layers - 1) m.n_tokens = n_after;
  if (single)
    m.stats.query_ms +=
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

CacheBytes KvCache::bytes() const {
  impl_->encoder.wait(impl_->last_ticket);  // what is counted must not depend on the worker's pace
  CacheBytes sum;
  for (const Impl::Layer& layer : impl_->layers)
    for (const KindCache* kind : {&layer.k, &layer.v}) {
      const StoreBytes b = kind->code_bytes();
      sum.sinks += kind->sinks().bytes();
      sum.window += kind->window().bytes();
      sum.codes += b.codes;
      sum.scales += b.scales;
      sum.outliers += b.outliers;
    }
  const Method& method = impl_->method;
  sum.shared = method.key_codec->shared_bytes() + method.value_codec->shared_bytes();
  return sum;
}

double bits_per_value(const CacheBytes& bytes, const KvGeometry& geometry, int64_t n_tokens,
                      bool with_shared) {
  const double values = 2.0 * static_cast<double>(n_tokens) * geometry.n_layers * geometry.row();
  const auto total = static_cast<double>(with_shared ? bytes.total() : bytes.cache());
  return values == 0.0 ? 0.0 : 8.0 * total / values;
}

double KvCache::measured_bits(bool with_shared) const {
  return bits_per_value(bytes(), impl_->geometry, impl_->n_tokens, with_shared);
}

}  // namespace million
