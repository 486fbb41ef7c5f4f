// SPDX-License-Identifier: Apache-2.0
#include "lib/cache/device_cache.h"

#include "kernels/ops.h"
#include "lib/cache/device_attention.h"
#include "lib/core/error.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <deque>
#include <utility>

namespace million {
namespace {

/// The three views of where a sequence stands: as it is; exact rows beside decoded ones; decoded
/// rows.
enum StateView { kWhole, kBesideDecoded, kDecodedRows, kStateViews };

int ring_for(int64_t tokens) {
  return static_cast<int>(std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(1, tokens))));
}

/// Exact tokens behind the sinks that a single query may see, and those with the encoder.
int64_t exact_span(const CodingRule& rule, int64_t capacity) {
  if (rule.exact) return capacity;
  const int64_t kept = rule.ruled() ? rule.residual.length : rule.window + kVisibleLag;
  return std::min<int64_t>(capacity, kept + rule.sinks + 2 * rule.seal_tokens);
}

}  // namespace

struct DeviceCache::Impl {
  struct Side {
    DeviceBuffer<uint16_t> ring, sinks;  ///< [n_kv_heads][ring_rows | n_sinks][d]
    DeviceBuffer<uint16_t> decoded;      ///< [n_kv_heads][decoded_rows][d], mode kDecoded only
    std::unique_ptr<DeviceStore> store;
  };
  /// What the layers share of one kind.
  struct Kind {
    CodingRule rule;
    DeviceBuffer<uint16_t> work;     ///< rows of a chunk, [n_kv_heads][work_rows][d]
    DeviceBuffer<uint16_t> scratch;  ///< decoded rows of a layer, [n_kv_heads][decoded_rows][d]
    DeviceBuffer<int32_t> bounds;    ///< [chunk]
    int64_t started = 0;             ///< tokens behind the sinks that are coded or being coded
    int64_t decoded = 0;             ///< mode kDecoded: of those, in `decoded`
    int64_t coded = 0;               ///< that the call's last query sees
  };
  struct Layer {
    std::array<Side, 2> sides;
  };
  /// Encoding of tokens [begin[kind], ...) that runs on the second stream.
  struct Job {
    std::array<int64_t, 2> begin;
    std::unique_ptr<DeviceEvent> done;
  };

  Impl(std::shared_ptr<Device> dev, const KvGeometry& g, Method m, Protocol protocol, bool async,
       int64_t capacity_tokens, int chunk_tokens)
      : device(std::move(dev)),
        geometry(g),
        method(std::move(m)),
        async_encode(async),
        capacity(capacity_tokens),
        chunk(std::min<int64_t>(chunk_tokens, capacity_tokens)),
        encode_stream(device),
        appended(device) {
    std::tie(kinds[0].rule, kinds[1].rule) = coding_rules(method, protocol);
    any_call = takes_any_call(method, kinds[0].rule, kinds[1].rule);
    const int64_t span =
        std::max(exact_span(kinds[0].rule, capacity), exact_span(kinds[1].rule, capacity));
    ring_rows = ring_for(span);
    use_work = !exact() && ring_rows < span + chunk;
    work_rows = use_work ? ring_for(span + chunk) : ring_rows;
    decoded_rows = ring_for(capacity);
    require_memory();
    allocate();
  }

  bool exact() const { return kinds[0].rule.exact; }
  int64_t n_sinks() const { return kinds[0].rule.sinks; }
  int64_t row_values() const { return geometry.row(); }
  bool many() const { return n > 1 || kinds[0].rule.all_at_once() || kinds[1].rule.all_at_once(); }
  int64_t n_after() const { return n_tokens + n; }
  std::pair<const uint16_t*, int> rows_of(const Layer& layer, int kind) const {
    if (many() && use_work) return {kinds[kind].work.data(), work_rows};
    return {layer.sides[kind].ring.data(), ring_rows};
  }
  cuda::ExactRows exact_rows(const Layer& layer, int kind) const {
    const auto [rows, count] = rows_of(layer, kind);
    return {layer.sides[kind].sinks.data(), const_cast<uint16_t*>(rows),
            static_cast<int>(n_sinks()), count};
  }

  void require_memory();
  void allocate();
  void copy_rows(Device::Stream s, int64_t first, int64_t end, std::pair<const uint16_t*, int> from,
                 std::pair<uint16_t*, int> to, int64_t to_shift = 0) const;
  void wait_for_codes(Device::Stream s);
  void upload_state(Device::Stream s);
  void encode_until(Device::Stream s, Layer& layer, int kind, int64_t from, int64_t until);
  void show_decoded(Device::Stream s, Layer& layer);
  void keep_rows(Device::Stream s, Layer& layer);
  void attend_many(Device::Stream s, Layer& layer, const uint16_t* q, uint16_t* out);
  const uint16_t* decoded_for_chunk(Device::Stream s, Layer& layer, int kind);

  std::shared_ptr<Device> device;
  KvGeometry geometry;
  Method method;
  bool async_encode, any_call = true, use_work = false;
  int64_t capacity, chunk;
  int ring_rows = 0, work_rows = 0, decoded_rows = 0;
  std::array<Kind, 2> kinds;  ///< keys, values
  std::unique_ptr<DeviceRope> rope;
  std::vector<Layer> layers;
  DeviceBuffer<cuda::SequenceState> states;
  std::unique_ptr<DeviceAttention> attention;
  DeviceStream encode_stream;
  DeviceEvent appended;
  std::deque<Job> jobs;
  int64_t n_tokens = 0;
  int n = 0;  ///< tokens of the running call
};

/// The planned sizes against what is free, before anything is allocated.
void DeviceCache::Impl::require_memory() {
  const double row = 2.0 * geometry.n_layers * static_cast<double>(row_values());
  const double exact_rows = 2.0 * row * (ring_rows + static_cast<double>(n_sinks()));
  const double scratch = 4.0 * static_cast<double>(row_values()) * (work_rows + decoded_rows);
  const double per_token = exact() ? 2.0 * row : row * method.nominal_bits() / 8.0;
  const double fixed = exact() ? 0.0 : exact_rows + scratch;
  const double needed = exact() ? exact_rows : per_token * static_cast<double>(capacity) + fixed;
  const auto free = static_cast<double>(device->free_bytes());
  MILLION_REQUIRE(
      needed < free, ErrorCode::kNoResources,
      "{} tokens of {} need {:.2f} GiB on {}, {:.2f} GiB are free, enough for about {:.0f} tokens; "
      "use a shorter context, fewer bits, or --backend cpu",
      capacity, method.spec.to_string(), needed / (1 << 30), device->info().name, free / (1 << 30),
      std::max(0.0, (free - fixed) / std::max(1.0, per_token)));
}

void DeviceCache::Impl::allocate() {
  DeviceStream s(device);
  const int64_t heads = geometry.n_kv_heads, d = geometry.head_dim;
  const auto rows = [&](int64_t count) {
    return DeviceBuffer<uint16_t>(device, static_cast<size_t>(heads * count * d));
  };
  states = DeviceBuffer<cuda::SequenceState>(device, kStateViews);
  rope = std::make_unique<DeviceRope>(device, s.get(), geometry.rope, capacity);
  for (Kind& kind : kinds) {
    if (use_work) kind.work = rows(work_rows);
    kind.bounds = DeviceBuffer<int32_t>(device, static_cast<size_t>(chunk));
  }
  const Codec* codecs[] = {method.key_codec.get(), method.value_codec.get()};
  for (int l = 0; l < geometry.n_layers; ++l) {
    Layer layer;
    for (int i = 0; i < 2; ++i) {
      Side& side = layer.sides[i];
      side.ring = rows(ring_rows);
      side.sinks = rows(n_sinks());
      if (!exact())
        side.store = make_device_store(
            {device, s.get(), geometry, *rope, i == 0 ? KvKind::kKey : KvKind::kValue,
             i == 0 ? codecs[i]->frame() : KeyFrame{}, static_cast<int>(n_sinks()), capacity},
            *codecs[i], l);
    }
    layers.push_back(std::move(layer));
  }
  const auto store = [&](int i) { return layers[0].sides[i].store.get(); };
  attention = std::make_unique<DeviceAttention>(device, geometry, store(0), store(1), capacity,
                                                exact() ? capacity : ring_rows);
  const bool decoded = attention->mode() == DeviceAttention::Mode::kDecoded;
  for (Layer& layer : layers)
    for (Side& side : layer.sides)
      if (decoded) side.decoded = rows(decoded_rows);
  for (Kind& kind : kinds)
    if (!exact() && !decoded) kind.scratch = rows(decoded_rows);
  device->synchronize(s.get());
}

/// Tokens [first, end), none when first >= end, from one array of rows (and their number) to
/// another, where token t lies at t - to_shift.
void DeviceCache::Impl::copy_rows(Device::Stream s, int64_t first, int64_t end,
                                  std::pair<const uint16_t*, int> from,
                                  std::pair<uint16_t*, int> to, int64_t to_shift) const {
  if (first >= end) return;
  cuda::CopyRowsArgs a{};
  a.n_kv_heads = geometry.n_kv_heads, a.head_dim = geometry.head_dim;
  a.first = static_cast<int>(first), a.n = static_cast<int>(end - first);
  a.from = from.first, a.from_rows = from.second;
  a.to = to.first, a.to_rows = to.second;
  a.to_shift = static_cast<int>(to_shift);
  device->check(device->ops().copy_rows(s, a), "copy_rows");
}

/// Makes `s` wait for codes that the call's queries see; all of them for a chunk, which also
/// decodes and appends.
void DeviceCache::Impl::wait_for_codes(Device::Stream s) {
  while (!jobs.empty()) {
    const Job& job = jobs.front();
    if (!many() && job.begin[0] >= kinds[0].coded && job.begin[1] >= kinds[1].coded) break;
    device->wait(s, job.done->get());
    // The event must outlive what waits for it; a step that shows new codes is rare.
    device->synchronize(s);
    jobs.pop_front();
  }
}

void DeviceCache::Impl::upload_state(Device::Stream s) {
  const auto coded_k = static_cast<int>(kinds[0].coded), coded_v = static_cast<int>(kinds[1].coded);
  const int total = static_cast<int>(n_after());
  const int sinks = static_cast<int>(std::min(n_sinks(), n_after()));
  const int shown = std::max(coded_k, coded_v);
  const cuda::SequenceState views[kStateViews] = {
      {total, sinks, coded_k, coded_v}, {total, sinks, shown, shown}, {shown, 0, 0, 0}};
  device->copy_in(s, states.data(), views, sizeof views);
  if (!many()) return;
  for (Kind& kind : kinds) {
    std::vector<int32_t> bounds(static_cast<size_t>(n));
    for (int i = 0; i < n; ++i) bounds[i] = static_cast<int32_t>(kind.rule.seen(n_tokens + i));
    device->copy_in(s, kind.bounds.data(), bounds.data(), bounds.size() * sizeof(int32_t));
  }
}

void DeviceCache::Impl::encode_until(Device::Stream s, Layer& layer, int kind, int64_t from,
                                     int64_t until) {
  if (until <= from) return;
  const auto [rows, count] = rows_of(layer, kind);
  layer.sides[kind].store->encode(s, rows, count, from, until - from);
}

/// Mode kDecoded, single tokens: rows of codes that became visible. Where only one kind is coded,
/// the other's exact rows lie beside it.
void DeviceCache::Impl::show_decoded(Device::Stream s, Layer& layer) {
  const int64_t shown = std::max(kinds[0].coded, kinds[1].coded);
  for (int i = 0; i < 2; ++i) {
    Side& side = layer.sides[i];
    const Kind& kind = kinds[i];
    if (kind.coded > kind.decoded)
      side.store->decode(s, kind.decoded, kind.coded - kind.decoded, side.decoded.data(),
                         decoded_rows);
    copy_rows(s, n_sinks() + kind.coded, n_sinks() + shown, {side.ring.data(), ring_rows},
              {side.decoded.data(), decoded_rows}, n_sinks());
  }
}

/// Rows that later calls need go from the chunk's rows to the ring.
void DeviceCache::Impl::keep_rows(Device::Stream s, Layer& layer) {
  if (!use_work) return;
  for (int i = 0; i < 2; ++i) {
    const int64_t needed = std::max(n_sinks() + kinds[i].rule.seen(n_after() - 1), n_tokens);
    copy_rows(s, std::max(needed, n_after() - ring_rows), n_after(),
              {kinds[i].work.data(), work_rows}, {layer.sides[i].ring.data(), ring_rows});
  }
}

/// Decoded rows of all tokens that the chunk's last query sees coded.
const uint16_t* DeviceCache::Impl::decoded_for_chunk(Device::Stream s, Layer& layer, int kind) {
  Side& side = layer.sides[kind];
  const Kind& k = kinds[kind];
  const bool kept = side.decoded.size() > 0;  // those of earlier calls are there
  uint16_t* rows = kept ? side.decoded.data() : k.scratch.data();
  const int64_t from = kept ? k.decoded : 0;
  if (k.coded > from) side.store->decode(s, from, k.coded - from, rows, decoded_rows);
  return rows;
}

void DeviceCache::Impl::attend_many(Device::Stream s, Layer& layer, const uint16_t* q,
                                    uint16_t* out) {
  std::array<int64_t, 2> until{};
  for (int i = 0; i < 2 && !exact(); ++i) {
    until[i] = std::max(kinds[i].started, kinds[i].rule.handed_over(n_after()));
    encode_until(s, layer, i, kinds[i].started, until[i]);
  }
  if (out) {
    cuda::PrefillArgs a{};
    a.n_heads = geometry.n_heads, a.n_kv_heads = geometry.n_kv_heads;
    a.head_dim = geometry.head_dim, a.n = n, a.first = static_cast<int>(n_tokens);
    a.n_sinks = static_cast<int>(n_sinks());
    a.q = q, a.out = out;
    a.scale_log2 = attention->scale_log2();
    a.k = exact_rows(layer, 0), a.v = exact_rows(layer, 1);
    if (!exact()) {
      a.decoded_k = decoded_for_chunk(s, layer, 0), a.decoded_v = decoded_for_chunk(s, layer, 1);
      a.decoded_rows = decoded_rows;
      a.coded_k = kinds[0].bounds.data(), a.coded_v = kinds[1].bounds.data();
    }
    device->check(device->ops().attend_prefill(s, a), "attend_prefill");
  }
  for (int i = 0; i < 2 && !exact(); ++i)
    if (kinds[i].rule.ruled())
      encode_until(s, layer, i, until[i], kinds[i].rule.dropped(n_after()));
  keep_rows(s, layer);
}

DeviceCache::DeviceCache(std::shared_ptr<Device> device, const KvGeometry& geometry, Method method,
                         Protocol protocol, bool async_encode, int64_t capacity, int chunk)
    : impl_(std::make_unique<Impl>(std::move(device), geometry, std::move(method), protocol,
                                   async_encode, capacity, chunk)) {}
DeviceCache::~DeviceCache() { impl_->device->synchronize(impl_->encode_stream.get()); }

const KvGeometry& DeviceCache::geometry() const { return impl_->geometry; }
int64_t DeviceCache::n_tokens() const { return impl_->n_tokens; }
const cuda::SequenceState* DeviceCache::state() const { return impl_->states.data() + kWhole; }
cuda::ExactRows DeviceCache::key_rows(int layer) const {
  return impl_->exact_rows(impl_->layers[layer], 0);
}
cuda::ExactRows DeviceCache::value_rows(int layer) const {
  return impl_->exact_rows(impl_->layers[layer], 1);
}

bool DeviceCache::can_replay() const {
  return !impl_->kinds[0].rule.all_at_once() && !impl_->kinds[1].rule.all_at_once();
}

const DeviceRope& DeviceCache::rope() const { return *impl_->rope; }

int DeviceCache::run_length(int64_t n) const {
  const Impl& m = *impl_;
  int64_t end = m.n_tokens + std::min(n, m.chunk);
  if (m.method.key_codec->rewrites_codes())
    end = std::min(end, m.kinds[0].rule.next_flush(m.n_tokens));
  if (m.method.value_codec->rewrites_codes())
    end = std::min(end, m.kinds[1].rule.next_flush(m.n_tokens));
  return static_cast<int>(end - m.n_tokens);
}

void DeviceCache::begin(Device::Stream s, int n) {
  Impl& m = *impl_;
  MILLION_REQUIRE(m.n_tokens == 0 || m.any_call, ErrorCode::kUsage,
                  "protocol all-distorted with {} takes a sequence in one call: set the chunk to "
                  "the context length",
                  m.method.spec.to_string());
  MILLION_REQUIRE(m.n_tokens + n <= m.capacity, ErrorCode::kUsage,
                  "{} tokens: the device cache was made for {}; give a larger --ctx",
                  m.n_tokens + n, m.capacity);
  MILLION_ASSERT(n >= 1 && n <= m.chunk);
  m.n = n;
  for (Impl::Kind& kind : m.kinds) kind.coded = kind.rule.seen(m.n_after() - 1);
  m.wait_for_codes(s);
  m.upload_state(s);
  if (m.many() || m.attention->mode() != DeviceAttention::Mode::kDecoded) return;
  for (Impl::Layer& layer : m.layers) m.show_decoded(s, layer);
  for (Impl::Kind& kind : m.kinds) kind.decoded = kind.coded;
}

void DeviceCache::prepare(Device::Stream s, int layer) {
  Impl& m = *impl_;
  if (!m.many() || !m.use_work) return;
  for (int i = 0; i < 2; ++i) {
    const int64_t first = m.n_sinks() + m.kinds[i].rule.seen(m.n_tokens);
    m.copy_rows(s, first, m.n_tokens, {m.layers[layer].sides[i].ring.data(), m.ring_rows},
                {m.kinds[i].work.data(), m.work_rows});
  }
}

void DeviceCache::attend(Device::Stream s, int layer_index, const uint16_t* q, uint16_t* out) {
  Impl& m = *impl_;
  Impl::Layer& layer = m.layers[layer_index];
  if (m.many()) return m.attend_many(s, layer, q, out);
  DeviceAttention::LayerView view;
  view.k = m.exact_rows(layer, 0), view.v = m.exact_rows(layer, 1);
  view.k_store = layer.sides[0].store.get(), view.v_store = layer.sides[1].store.get();
  view.decoded_k = layer.sides[0].decoded.data(), view.decoded_v = layer.sides[1].decoded.data();
  view.decoded_rows = m.decoded_rows;
  view.whole = m.states.data() + kWhole;
  view.beside_decoded = m.states.data() + kBesideDecoded;
  view.decoded = m.states.data() + kDecodedRows;
  m.attention->attend_one(s, view, q, out);
}

void DeviceCache::end(Device::Stream s) {
  Impl& m = *impl_;
  std::array<int64_t, 2> from{}, until{};
  for (int i = 0; i < 2; ++i) {
    Impl::Kind& kind = m.kinds[i];
    from[i] = kind.started;
    until[i] = std::max(from[i], kind.rule.handed_over(m.n_after()));
    if (kind.rule.ruled()) until[i] = std::max(until[i], kind.rule.dropped(m.n_after()));
    kind.started = until[i];
    if (m.many()) kind.decoded = kind.coded;
  }
  if (!m.many() && (until[0] > from[0] || until[1] > from[1])) {
    const Device::Stream on = m.async_encode ? m.encode_stream.get() : s;
    if (m.async_encode) {
      m.device->record(m.appended.get(), s);
      m.device->wait(on, m.appended.get());
    }
    for (Impl::Layer& layer : m.layers)
      for (int i = 0; i < 2; ++i) m.encode_until(on, layer, i, from[i], until[i]);
    if (m.async_encode) {
      m.jobs.push_back({from, std::make_unique<DeviceEvent>(m.device)});
      m.device->record(m.jobs.back().done->get(), on);
    }
  }
  m.n_tokens = m.n_after();
}

void DeviceCache::write_rows(Device::Stream s, int layer_index, const float* k, const float* v) {
  Impl& m = *impl_;
  Impl::Layer& layer = m.layers[layer_index];
  const int64_t d = m.geometry.head_dim, heads = m.geometry.n_kv_heads;
  for (int i = 0; i < 2; ++i) {
    const cuda::ExactRows to = m.exact_rows(layer, i);
    std::vector<uint16_t> halves(static_cast<size_t>(m.n) * d);
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t t = 0; t < m.n; ++t)
        ops().f32_to_f16((i == 0 ? k : v) + (t * heads + h) * d, halves.data() + t * d,
                         static_cast<size_t>(d));
      for (int64_t done = 0; done < m.n;) {
        const int64_t at = (m.n_tokens + done) & (to.ring_rows - 1);
        const int64_t run = std::min<int64_t>(m.n - done, to.ring_rows - at);
        m.device->copy_in(s, to.ring + (h * to.ring_rows + at) * d, halves.data() + done * d,
                          static_cast<size_t>(run * d) * sizeof(uint16_t));
        done += run;
      }
      const int64_t sinks = std::clamp<int64_t>(m.n_sinks() - m.n_tokens, 0, m.n);
      if (sinks > 0)
        m.device->copy_in(s, to.sinks + (h * to.sink_rows + m.n_tokens) * d, halves.data(),
                          static_cast<size_t>(sinks * d) * sizeof(uint16_t));
    }
  }
}

void DeviceCache::append_only(Device::Stream s, int layer, const float* k, const float* v) {
  prepare(s, layer);
  write_rows(s, layer, k, v);
  if (impl_->many()) impl_->attend_many(s, impl_->layers[layer], nullptr, nullptr);
}

const char* DeviceCache::attention_name() const {
  const Impl& m = *impl_;
  if (std::min(m.kinds[0].coded, m.kinds[1].coded) == 0) return "exact";
  return m.attention->mode() == DeviceAttention::Mode::kDecoded ? "decoded" : "fused";
}

CacheBytes DeviceCache::bytes() const {
  CacheBytes sum;
  for (const Impl::Layer& layer : impl_->layers)
    for (const Impl::Side& side : layer.sides) {
      sum.sinks += side.sinks.bytes();
      sum.window += side.ring.bytes();
      const StoreBytes b = side.store ? side.store->bytes() : StoreBytes{};
      sum.codes += b.codes, sum.scales += b.scales, sum.outliers += b.outliers;
    }
  const Method& method = impl_->method;
  sum.shared = method.key_codec->shared_bytes() + method.value_codec->shared_bytes();
  return sum;
}

double DeviceCache::measured_bits(bool with_shared) const {
  return bits_per_value(bytes(), impl_->geometry, impl_->n_tokens, with_shared);
}

void DeviceCache::clear() {
  Impl& m = *impl_;
  m.device->synchronize(m.encode_stream.get());
  m.jobs.clear();
  m.n_tokens = 0;
  for (Impl::Kind& kind : m.kinds) kind.started = kind.decoded = kind.coded = 0;
  for (Impl::Layer& layer : m.layers)
    for (Impl::Side& side : layer.sides)
      if (side.store) side.store->clear();
}

}  // namespace million
