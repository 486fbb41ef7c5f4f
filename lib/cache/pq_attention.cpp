// SPDX-License-Identifier: Apache-2.0
#include "lib/cache/pq_attention.h"

#include "kernels/ops.h"

#include <atomic>

namespace million {
namespace {

/// What a thread keeps from call to call.
struct Held {
  int64_t number = 0;
  int head = -1;
  AlignedVector<float> scratch, k_centroids, v_centroids;
};

}  // namespace

int64_t next_query_number() {
  static std::atomic<int64_t> last{0};
  return last.fetch_add(1, std::memory_order_relaxed) + 1;
}

bool can_attend_pq(const KindCache& k, const KindCache& v) {
  return k.frame().type == KeyFrame::Type::kPostRope && k.store().pq_side(0, nullptr).blocks &&
         v.store().pq_side(0, nullptr).blocks;
}

void attend_pq_codes(const KvGeometry& g, const KindCache& k, const KindCache& v,
                     const HeadQuery& query, int64_t begin, int64_t end, const SkipRule& skip,
                     SoftmaxState* state, float* acc, AttendStats* stats) {
  thread_local Held held;
  const bool same = held.number == query.number && held.head == query.head;
  PqSide key = k.store().pq_side(query.head, same ? nullptr : &held.k_centroids);
  PqSide value = v.store().pq_side(query.head, same ? nullptr : &held.v_centroids);
  const uint8_t* next_k = end < k.sealed() ? key.blocks[end / kPqBlock] : nullptr;
  key.blocks += begin / kPqBlock;
  value.blocks += begin / kPqBlock;
  key.centroids = held.k_centroids.data();
  value.centroids = held.v_centroids.data();
  PqAttendArgs args{g.group(), g.head_dim, static_cast<int>(end - begin),
                    query.q,   key,        value,
                    nullptr,   state,      acc};
  args.same_query = same;
  args.next_k = next_k;
  args.skip = skip.share;
  args.floor = skip.floor;
  args.stats = stats;
  held.scratch.resize(pq_scratch_floats(args));
  args.scratch = held.scratch.data();
  ops().attend_pq(args);
  held.number = query.number;
  held.head = query.head;
}

}  // namespace million
