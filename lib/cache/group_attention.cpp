// SPDX-License-Identifier: Apache-2.0
#include "lib/cache/group_attention.h"

#include "kernels/ops.h"
#include "lib/quant/rotation.h"

#include <algorithm>
#include <vector>

namespace million {
namespace {

/// Rows [n][d] turned by a store's transform, which is its own inverse.
void turn(float* rows, int n, int d, int width) {
  for (int i = 0; width > 0 && i < n; ++i) walsh_hadamard(rows + i * d, d, width);
}

}  // namespace

bool can_attend_groups(const KvGeometry& g, const KindCache& k, const KindCache& v) {
  if (k.frame().type != KeyFrame::Type::kPostRope) return false;
  const GroupCodes key = k.store().group_codes(0, 0), value = v.store().group_codes(0, 0);
  return key.n > 0 && value.n > 0 && group_side_fits(key.side, g.head_dim, true) &&
         group_side_fits(value.side, g.head_dim, false);
}

void attend_groups(const KvGeometry& g, const KindCache& k, const KindCache& v, int head,
                   int64_t begin, int64_t end, const float* q, SoftmaxState* state, float* acc) {
  const int group = g.group(), d = g.head_dim;
  const size_t size = static_cast<size_t>(group) * d;
  // q.(H k) = (H q).k, and a sum of H v is H of the sum.
  std::vector<float> query(q, q + size), sum(size, 0.0f);
  std::vector<SoftmaxState> own(group);
  turn(query.data(), group, d, k.store().group_rotation());
  for (int64_t t = begin; t < end;) {
    const GroupCodes key = k.store().group_codes(head, static_cast<int>(t));
    const GroupCodes value = v.store().group_codes(head, static_cast<int>(t));
    const int n = static_cast<int>(std::min<int64_t>(end - t, std::min(key.n, value.n)));
    ops().attend_groups({group, d, n, query.data(), key.side, value.side, own.data(), sum.data()});
    t += n;
  }
  turn(sum.data(), group, d, v.store().group_rotation());
  for (int h = 0; h < group; ++h)
    merge_softmax(state[h], acc + static_cast<int64_t>(h) * d, own[h],
                  sum.data() + static_cast<size_t>(h) * d, d);
}

}  // namespace million
