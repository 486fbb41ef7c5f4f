// SPDX-License-Identifier: Apache-2.0
#include "lib/cache/exact_attention.h"

#include "kernels/ops.h"

#include <algorithm>

namespace million {
namespace {

/// run_at(at, &k, &v): rows from token `at` on, and how many lie together in both kinds.
template <class RunAt>
void attend_runs(const KvGeometry& g, int64_t n, const RunAt& run_at, const float* q,
                 SoftmaxState* state, float* acc) {
  const uint16_t *k_rows, *v_rows, *next_k = nullptr, *next_v = nullptr;
  int64_t next = n > 0 ? run_at(0, &k_rows, &v_rows) : 0;
  for (int64_t at = 0; at < n;) {
    const int64_t count = next;
    if (at + count < n) next = run_at(at + count, &next_k, &next_v);
    ops().attend_f16({g.group(), g.head_dim, static_cast<int>(count), q, k_rows, v_rows, state, acc,
                      next_k, next_v});
    at += count;
    k_rows = next_k;
    v_rows = next_v;
  }
}

}  // namespace

void attend_exact(const KvGeometry& geometry, const ExactRun& k, int64_t k_at, const ExactRun& v,
                  int64_t v_at, int64_t n, int head, const float* q, SoftmaxState* state,
                  float* acc) {
  const auto run_at = [&](int64_t at, const uint16_t** k_rows, const uint16_t** v_rows) {
    int64_t k_run = 0, v_run = 0;
    *k_rows = k.at(head, k_at + at, &k_run);
    *v_rows = v.at(head, v_at + at, &v_run);
    return std::min({n - at, k_run, v_run});
  };
  attend_runs(geometry, n, run_at, q, state, acc);
}

bool can_attend_halves(const KindCache& k, const KindCache& v) {
  int n = 0;
  return k.frame().type == KeyFrame::Type::kPostRope && k.store().exact_rows(0, 0, &n) &&
         v.store().exact_rows(0, 0, &n);
}

void attend_halves(const KvGeometry& geometry, const KindCache& k, const KindCache& v, int head,
                   int64_t begin, int64_t end, const float* q, SoftmaxState* state, float* acc) {
  const auto run_at = [&](int64_t at, const uint16_t** k_rows, const uint16_t** v_rows) {
    int k_run = 0, v_run = 0;
    *k_rows = k.store().exact_rows(head, static_cast<int>(begin + at), &k_run);
    *v_rows = v.store().exact_rows(head, static_cast<int>(begin + at), &v_run);
    return std::min({end - begin - at, static_cast<int64_t>(k_run), static_cast<int64_t>(v_run)});
  };
  attend_runs(geometry, end - begin, run_at, q, state, acc);
}

}  // namespace million
