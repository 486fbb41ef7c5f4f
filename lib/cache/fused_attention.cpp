// SPDX-License-Identifier: Apache-2.0
#include "lib/cache/fused_attention.h"

#include "kernels/ops.h"
#include "lib/cache/turn.h"

#include <algorithm>
#include <shared_mutex>

namespace million {
namespace {

/// Shape of a call over n tokens from place `first` of a frame on; pointers into data are left out.
CodedAttendArgs shape_of(const KvGeometry& g, const KindCache& k, const KindCache& v, int unit,
                         int n, int first) {
  const CodedUnit key = k.store().coded_unit(unit), value = v.store().coded_unit(unit);
  CodedAttendArgs args{};
  args.n_heads = key.span * g.group();
  args.span = key.span;
  args.head_dim = g.head_dim;
  args.rank = key.rank;
  args.n_tokens = n;
  args.frame = k.frame().block;
  args.first = first;
  args.basis = key.basis;
  args.basis_scale = key.basis_scale;
  args.n_places = key.n_places;
  args.places = key.places;
  args.mean = key.mean;
  args.k = key.side;
  args.v = value.side;
  return args;
}

/// The unit's queries [frame][heads][head_dim], turned back to each frame that args touches.
void turn_to_frames(const KvGeometry& g, const RopeTable& rope, const KeyFrame& frame,
                    const CodedAttendArgs& args, int64_t first_token, const float* q,
                    AlignedVector<float>* turned) {
  const int64_t size = static_cast<int64_t>(args.n_heads) * g.head_dim;
  const int n = coded_frames(args);
  turned->resize(static_cast<size_t>(n) * size);
  for (int i = 0; i < n; ++i) {
    float* to = turned->data() + i * size;
    std::copy_n(q, size, to);
    turn_rows(rope, to, args.n_heads, g.head_dim,
              -frame.rest(first_token + static_cast<int64_t>(i) * args.frame));
  }
}

}  // namespace

int fused_units(const KvGeometry& g, const KindCache& k, const KindCache& v) {
  // Units come with pointers to the codes, which a worker may be growing.
  std::shared_lock key_lock(k.mutex()), value_lock(v.mutex());
  const int units = k.store().coded_units();
  if (units == 0 || v.store().coded_units() != units) return 0;
  if (k.frame().type != KeyFrame::Type::kBlock) return 0;
  const CodedUnit key = k.store().coded_unit(0), value = v.store().coded_unit(0);
  const bool same = key.span == value.span && key.rank == value.rank;
  return same && coded_shape_fits(shape_of(g, k, v, 0, 1, 0)) ? units : 0;
}

void attend_fused(const KvGeometry& g, const RopeTable& rope, const KindCache& k,
                  const KindCache& v, int unit, int64_t begin, int64_t end, const float* q,
                  const SkipRule& skip, SoftmaxState* state, float* sums, AttendStats* stats) {
  const int64_t position = k.sinks().size() + begin, block = k.frame().block;
  const int64_t first = position % block;
  CodedAttendArgs args =
      shape_of(g, k, v, unit, static_cast<int>(end - begin), static_cast<int>(first));
  thread_local AlignedVector<float> turned, scratch;
  const int64_t head = static_cast<int64_t>(unit) * args.n_heads;
  turn_to_frames(g, rope, k.frame(), args, position - first, q + head * g.head_dim, &turned);
  scratch.resize(coded_scratch_floats(args));
  args.q = turned.data();
  args.scratch = scratch.data();
  args.next_k = end < k.sealed() ? args.k.blocks[end / kPqBlock] : nullptr;
  args.k.blocks += begin / kPqBlock;
  args.v.blocks += begin / kPqBlock;
  args.skip = skip.share;
  args.floor = skip.floor ? skip.floor + head : nullptr;
  args.state = state;
  args.acc = sums;
  args.stats = stats;
  ops().attend_coded(args);
}

int fused_rank(const KindCache& v) {
  std::shared_lock lock(v.mutex());
  return v.store().coded_unit(0).rank;
}

void fused_value_rows(const KvGeometry& g, const KindCache& v, int unit, float* sums, float* rows) {
  std::shared_lock lock(v.mutex());
  CodedAttendArgs args = shape_of(g, v, v, unit, 0, 0);
  args.acc = sums;
  ops().coded_rows(args, rows);
}

}  // namespace million
