// SPDX-License-Identifier: Apache-2.0
#include "tests/cuda/accept/cases.h"

#include "kernels/cuda/attention_coded.h"
#include "kernels/cuda/attention_pq.h"
#include "tests/cuda/harness.h"

#include <algorithm>
#include <cmath>

namespace million::cuda::bench {
namespace {

using test::ops;

constexpr int kRing = 256;                ///< rows that hold a window and the block being coded
constexpr int kGroup = 32;                ///< values of a group of KIVI
constexpr int kPartTokens = 256;          ///< as in lib/cache/device_attention.cpp
constexpr int kFrame = 64, kPlaces = 16;  ///< of the default method
constexpr int kMostCopies = 512;

std::size_t size(int n) { return static_cast<std::size_t>(n); }

int power_of_two(int n) {
  int p = 1;
  while (p < n) p *= 2;
  return p;
}

/// A case as it is put together: arrays that all copies share, and how many copies there are.
struct Builder {
  const Machine& machine;
  Pools& pools;
  Shape shape;
  int factor;
  const Model& m = shape.model;
  std::size_t lines = size(shape.batch * m.n_kv_heads);  ///< KV heads of all sequences
  int coded = std::max(0, shape.tokens - kSinks - kWindow) / kGroup * kGroup;
  Case made{};

  int splits(int tokens) const {
    const int blocks = m.n_kv_heads * shape.batch;
    const int wanted = (machine.n_multiprocessors + blocks - 1) / blocks * factor;
    return std::clamp((tokens + kPartTokens - 1) / kPartTokens, 1, std::max(1, wanted));
  }
  /// Copies that together exceed the L2 cache twice.
  void set_copies(double bytes) {
    const double l2 = 2.0 * static_cast<double>(machine.l2_bytes);
    made.copies = bytes >= l2 ? 1 : std::min(kMostCopies, static_cast<int>(l2 / bytes) + 2);
  }
  QueryArgs query(int n_coded, int n_splits, const Parts& parts) const {
    const SequenceState state{shape.tokens, n_coded > 0 ? kSinks : 0, n_coded, n_coded};
    QueryArgs q{};
    q.batch = shape.batch, q.n_heads = m.n_heads, q.n_kv_heads = m.n_kv_heads;
    q.head_dim = m.head_dim;
    q.q = pools.halves(size(shape.batch * m.n_heads * m.head_dim));
    q.state = pools.copy_of(std::vector(size(shape.batch), state));
    q.scale_log2 = 1.4426950f / std::sqrt(static_cast<float>(m.head_dim));
    q.n_splits = n_splits, q.parts = parts;
    return q;
  }
  Parts parts(int n, int width) const {
    const std::size_t rows = size(shape.batch * m.n_heads) * size(n);
    return {pools.work<float>(rows * size(width)), pools.work<float>(rows), n, 0};
  }
  ExactRows exact(int sink_rows, int ring_rows) const {
    const std::size_t row = lines * size(m.head_dim);
    return {pools.halves(row * size(sink_rows)), pools.halves(row * size(ring_rows)), sink_rows,
            ring_rows};
  }
  /// Bytes of tokens held exactly.
  double exact_bytes(int tokens) const {
    return 4.0 * m.head_dim * static_cast<double>(lines) * tokens;
  }
  MergeArgs merge(const Parts& from, int width) const {
    MergeArgs a{};
    a.parts = from, a.batch = shape.batch, a.n_heads = m.n_heads, a.width = width;
    return a;
  }
  void add_merge(const Parts& from) {
    MergeArgs a = merge(from, m.head_dim);
    a.parts.first = 0;
    made.n_out = size(shape.batch * m.n_heads * m.head_dim);
    made.out = a.out = pools.work<uint16_t>(made.n_out);
    add("merge_parts", 0.0, [a](StreamHandle s, int) { return ops().merge_parts(s, a); });
  }
  /// Attention over what a quantized cache holds exactly, as parts from `first` on.
  void add_exact_rows(QueryArgs q, int first) {
    q.n_splits = splits(kSinks + kWindow), q.parts.first = first;
    const RowsAttendArgs a{q, exact(kSinks, kRing), exact(kSinks, kRing), {}, {}};
    add("attend_rows", exact_bytes(shape.tokens - coded),
        [a](StreamHandle s, int) { return ops().attend_rows(s, a); });
  }
  void add(const std::string& kernel, double bytes, Call call) {
    made.steps.push_back({kernel, bytes, std::move(call)});
  }
};

void build_exact(Builder& b) {
  const int n = b.made.splits = b.splits(b.shape.tokens);
  const Parts parts = b.parts(n, b.m.head_dim);
  const QueryArgs q = b.query(0, n, parts);
  const double bytes = b.exact_bytes(b.shape.tokens);
  b.set_copies(bytes);
  const int ring = power_of_two(b.shape.tokens);
  std::vector<RowsAttendArgs> args;
  for (int c = 0; c < b.made.copies; ++c)
    args.push_back({q, b.exact(0, ring), b.exact(0, ring), {}, {}});
  b.add("attend_rows", bytes, [args](StreamHandle s, int i) {
    return ops().attend_rows(s, args[size(i) % args.size()]);
  });
  b.add_merge(parts);
}

PqCodesView pq_codes(Builder& b, int bits, const uint32_t* book) {
  PqCodesView c{};
  c.M = b.m.head_dim * bits / 8, c.nbits = 8, c.strips = (b.shape.tokens + kStrip - 1) / kStrip;
  c.codes = b.pools.bits<uint32_t>(b.lines * size(c.strips) * size(pq_strip_words(c.M, c.nbits)));
  c.book = book, c.book_per_head = true;
  return c;
}
const uint32_t* pq_book(Builder& b) {
  return reinterpret_cast<uint32_t*>(b.pools.halves(size(b.m.n_kv_heads * b.m.head_dim) * 256));
}

void build_pq(Builder& b, const Method& method) {
  const int n = b.made.splits = b.splits(b.coded), exact = b.splits(kSinks + kWindow);
  const Parts parts = b.parts(n + exact, b.m.head_dim);
  const QueryArgs q = b.query(b.coded, n, parts);
  const double bytes = static_cast<double>(b.lines) * b.coded * b.m.head_dim * method.bits / 4;
  b.set_copies(bytes);
  const uint32_t *k_book = pq_book(b), *v_book = pq_book(b);
  std::vector<PqAttendArgs> args;
  for (int c = 0; c < b.made.copies; ++c)
    args.push_back({q, pq_codes(b, method.bits, k_book), pq_codes(b, method.bits, v_book),
                    method.two_pass, nullptr});
  if (pq_shared_bytes(args[0]) > b.machine.shared_per_block) b.made.not_run = "shared memory";
  if (method.two_pass) {
    void* scratch = b.pools.work<uint8_t>(pq_scratch_bytes(args[0]));
    for (PqAttendArgs& a : args) a.scratch = scratch;
  }
  b.add("attend_pq", bytes,
        [args](StreamHandle s, int i) { return ops().attend_pq(s, args[size(i) % args.size()]); });
  b.add_exact_rows(q, n);
  b.add_merge(parts);
}

GroupCodesView group_codes(Builder& b, int bits, bool key) {
  GroupCodesView c{};
  c.layout = key ? GroupCodesView::Layout::kChannels : GroupCodesView::Layout::kTokens;
  c.bits = bits, c.group = kGroup, c.zeros = true;
  c.capacity = std::max(kGroup, b.shape.tokens / kGroup * kGroup);
  const std::size_t values = b.lines * size(c.capacity) * size(b.m.head_dim);
  c.codes = b.pools.bits<uint8_t>(values * size(bits) / 8);
  c.scales = b.pools.halves(values / kGroup * 2);
  return c;
}

void build_groups(Builder& b, const Method& method) {
  const int n = b.made.splits = b.splits(b.shape.tokens);
  const Parts parts = b.parts(n, b.m.head_dim);
  const QueryArgs q = b.query(b.coded, n, parts);
  const double value = method.bits / 8.0 + 4.0 / kGroup;  // bytes, with scale and zero
  const double bytes = 2.0 * value * static_cast<double>(b.lines) * b.coded * b.m.head_dim;
  b.set_copies(bytes);
  const ExactRows k = b.exact(kSinks, kRing), v = b.exact(kSinks, kRing);
  std::vector<RowsAttendArgs> args;
  for (int c = 0; c < b.made.copies; ++c)
    args.push_back(
        {q, k, v, group_codes(b, method.bits, true), group_codes(b, method.bits, false)});
  b.add(
      "attend_rows", bytes + b.exact_bytes(b.shape.tokens - b.coded),
      [args](StreamHandle s, int i) { return ops().attend_rows(s, args[size(i) % args.size()]); });
  b.add_merge(parts);
}

CodedShape coded_shape(Builder& b, int bits) {
  CodedShape s{};
  const std::size_t units = size(b.m.n_kv_heads / b.m.span);
  s.span = b.m.span, s.rank = b.m.span * b.m.head_dim * bits / 2, s.frame = kFrame;
  s.n_places = kPlaces, s.n_pairs = b.m.head_dim / 2;
  s.places = b.pools.floats(units * kPlaces * kFrame);
  s.mean = b.pools.constant(units * size(b.m.span * b.m.head_dim) * kPlaces, 0.01f);
  const std::size_t turns = size(b.shape.tokens + kFrame + 1) * size(s.n_pairs);
  s.cosines = b.pools.floats(turns), s.sines = b.pools.floats(turns);
  return s;
}
/// Codes, with the tables of `like` where it has any.
CodedCodesView coded_codes(Builder& b, const CodedShape& s, CodedCodesView like) {
  const std::size_t units = size(b.m.n_kv_heads / s.span), rank = size(s.rank);
  const std::size_t width = size(s.span * b.m.head_dim);
  if (!like.book) {
    like.M = s.rank / 4, like.nbits = 8, like.strips = coded_strips(kSinks, b.shape.tokens);
    like.book = b.pools.bits<int8_t>(units * 256 * rank);
    like.scale = b.pools.constant(units * rank, 0.01f);
    like.basis = b.pools.bits<int8_t>(units * width * rank);
    like.basis_scale = b.pools.constant(units * rank, 0.001f);
  }
  like.codes = b.pools.bits<uint32_t>(size(b.shape.batch) * units * size(like.strips) *
                                      size(coded_strip_words(like.M)));
  return like;
}
TurnedQueries turned_queries(Builder& b, const CodedShape& s) {
  TurnedQueries t{};
  t.frames = b.shape.tokens / s.frame + 2;
  const std::size_t lines = size(b.shape.batch * b.m.n_heads) * size(t.frames);
  t.words = b.pools.work<uint32_t>(lines * size(s.rank / 2));
  t.step = b.pools.work<float>(lines);
  t.bias = b.pools.work<int32_t>(lines * size(s.frame));
  return t;
}

void build_coded(Builder& b, const Method& method) {
  const int n = b.made.splits = b.splits(b.coded), exact = b.splits(kSinks + kWindow);
  const CodedShape s = coded_shape(b, method.bits);
  const Parts sums = b.parts(n, s.rank), rows = b.parts(1 + exact, b.m.head_dim);
  const QueryArgs q = b.query(b.coded, n, sums);
  const double bytes = static_cast<double>(b.lines) * b.coded * b.m.head_dim * method.bits / 4;
  b.set_copies(bytes);
  const TurnedQueries turned = turned_queries(b, s);
  const int limit = static_cast<int>(b.machine.shared_per_block);
  std::vector<CodedAttendArgs> args;
  for (int c = 0; c < b.made.copies; ++c) {
    const CodedCodesView k = coded_codes(b, s, c ? args[0].k : CodedCodesView{});
    const CodedCodesView v = coded_codes(b, s, c ? args[0].v : CodedCodesView{});
    args.push_back({q, s, k, v, turned, limit});
  }
  const TurnQueriesArgs turn{q, s, args[0].k, turned};
  b.add("turn_queries", 0.0, [turn](StreamHandle t, int) { return ops().turn_queries(t, turn); });
  b.add("attend_coded", bytes, [args](StreamHandle t, int i) {
    return ops().attend_coded(t, args[size(i) % args.size()]);
  });
  MergeArgs join = b.merge(sums, s.rank);
  const std::size_t heads = size(b.shape.batch * b.m.n_heads);
  join.out_rows = b.pools.work<float>(heads * size(s.rank));
  join.out_lse = b.pools.work<float>(heads);
  b.add("merge_sums", 0.0, [join](StreamHandle t, int) { return ops().merge_parts(t, join); });
  const CodedRowsArgs back{b.shape.batch, b.m.n_heads,   b.m.n_kv_heads, b.m.head_dim, s,
                           args[0].v,     join.out_rows, join.out_lse,   rows};
  b.add("coded_rows", 0.0, [back](StreamHandle t, int) { return ops().coded_rows(t, back); });
  QueryArgs beside = q;
  beside.parts = rows;
  b.add_exact_rows(beside, 1);
  b.add_merge(rows);
}

int encode_pq(StreamHandle s, PqEncodeArgs a) {
  a.key = true;
  const int status = ops().pq_encode(s, a);
  a.key = false;
  return status ? status : ops().pq_encode(s, a);
}
int encode_coded(StreamHandle s, CodedEncodeArgs a) {
  a.key = true;
  const int status = ops().coded_encode(s, a);
  a.key = false;
  return status ? status : ops().coded_encode(s, a);
}

}  // namespace

std::string Method::name(const Model& model) const {
  const std::string M = std::to_string(model.head_dim * bits / 8);
  switch (kind) {
    case Kind::kExact:
      return "fp16";
    case Kind::kPq:
      return "pq:M=" + M + ",nbits=8" + (two_pass ? " in two passes" : "");
    case Kind::kGroups:
      return "kivi:bits=" + std::to_string(bits) + ",group=32";
    case Kind::kCoded:
      return "pq:M=" + M + ",nbits=8,span=" + std::to_string(model.span) + " (default)";
  }
  return "?";
}

const char* Method::kind_name() const {
  const char* names[] = {"fp16", "pq", "kivi", "ours"};
  return names[static_cast<int>(kind)];
}

Case attention_case(const Machine& machine, Pools& pools, const Shape& shape, const Method& method,
                    int factor) {
  pools.reset();
  Builder b{machine, pools, shape, factor};
  switch (method.kind) {
    case Method::Kind::kExact:
      build_exact(b);
      break;
    case Method::Kind::kPq:
      build_pq(b, method);
      break;
    case Method::Kind::kGroups:
      build_groups(b, method);
      break;
    case Method::Kind::kCoded:
      build_coded(b, method);
      break;
  }
  if (pools.exhausted()) b.made.not_run = "memory";
  return b.made;
}

Case encode_case(Pools& pools, const Shape& shape, const Method& method) {
  pools.reset();
  const Machine none{};
  Builder b{none, pools, shape, 1};
  const Model& m = shape.model;
  const uint16_t* ring = b.exact(0, kRing).ring;
  const double bytes = b.exact_bytes(kWindow);
  if (method.kind == Method::Kind::kPq) {
    const PqEncodeArgs a{shape.batch, m.n_kv_heads,
                         m.head_dim,  ring,
                         kRing,       0,
                         0,           kWindow,
                         true,        pq_codes(b, method.bits, pq_book(b))};
    b.add("pq_encode", bytes, [a](StreamHandle s, int) { return encode_pq(s, a); });
  } else if (method.kind == Method::Kind::kGroups) {
    GroupEncodeArgs k{shape.batch, m.n_kv_heads,
                      m.head_dim,  ring,
                      kRing,       0,
                      0,           kWindow,
                      false,       group_codes(b, method.bits, true)};
    GroupEncodeArgs v = k;
    v.codes = group_codes(b, method.bits, false);
    b.add("group_encode", bytes, [k, v](StreamHandle s, int) {
      const int status = ops().group_encode(s, k);
      return status ? status : ops().group_encode(s, v);
    });
  } else if (method.kind == Method::Kind::kCoded) {
    CodedEncodeArgs a{};
    a.batch = shape.batch, a.n_kv_heads = m.n_kv_heads, a.head_dim = m.head_dim;
    a.ring = ring, a.ring_rows = kRing, a.n = kWindow;
    a.shape = coded_shape(b, method.bits);
    a.codes = coded_codes(b, a.shape, {});
    const std::size_t units = size(m.n_kv_heads / m.span), rank = size(a.shape.rank);
    a.encode = pools.bits<int8_t>(units * size(m.span * m.head_dim) * rank);
    a.encode_scale = pools.constant(units * rank, 0.001f);
    b.add("coded_encode", bytes, [a](StreamHandle s, int) { return encode_coded(s, a); });
  }
  if (pools.exhausted()) b.made.not_run = "memory";
  return b.made;
}

}  // namespace million::cuda::bench
