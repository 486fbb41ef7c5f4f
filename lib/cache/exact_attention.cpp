// SPDX-License-Identifier: Apache-2.0
#include "lib/cache/exact_attention.h"

#include "kernels/ops.h"

#include <algorithm>

namespace million {

void attend_exact(const KvGeometry& geometry, const ExactRun& k, int64_t k_at, const ExactRun& v,
                  int64_t v_at, int64_t n, int head, const float* q, SoftmaxState* state,
                  float* acc) {
  const auto run_at = [&](int64_t at, const uint16_t** k_rows, const uint16_t** v_rows) {
    int64_t k_run = 0, v_run = 0;
    *k_rows = k.at(head, k_at + at, &k_run);
    *v_rows = v.at(head, v_at + at, &v_run);
    return std::min({n - at, k_run, v_run});
  };
  const uint16_t *k_rows, *v_rows, *next_k = nullptr, *next_v = nullptr;
  int64_t next = n > 0 ? run_at(0, &k_rows, &v_rows) : 0;
  for (int64_t at = 0; at < n;) {
    const int64_t count = next;
    if (at + count < n) next = run_at(at + count, &next_k, &next_v);
    ops().attend_f16({geometry.group(), geometry.head_dim, static_cast<int>(count), q, k_rows,
                      v_rows, state, acc, next_k, next_v});
    at += count;
    k_rows = next_k;
    v_rows = next_v;
  }
}

}  // namespace million
