// SPDX-License-Identifier: Apache-2.0
// Chooses the kernel of PQ attention. The kernels (attention_pq.cuh) have a file for each width of
// codes, so that they compile side by side.
#include "kernels/cuda/attention_pq_launch.h"

namespace million::cuda::MILLION_CUDA_NS {

namespace {

/// cudaErrorInvalidValue, as the runtime's header is not there in every build.
constexpr int kNoSuchKernel = 1;

int launch_pass(StreamHandle stream, const PqAttendArgs& a, PqPass pass) {
  const int nbits = pass == PqPass::kValues ? a.v.nbits : a.k.nbits;
  switch (pq_stored_bits(nbits)) {
    case 4:
      return launch_pq_bits4(stream, a, pass);
    case 6:
      return launch_pq_bits6(stream, a, pass);
    default:
      return launch_pq_bits8(stream, a, pass);
  }
}

int attend_pq(StreamHandle stream, const PqAttendArgs& a) {
  if (!pq_has_kernel(a)) return kNoSuchKernel;
  if (!a.two_pass) return launch_pass(stream, a, PqPass::kBoth);
  const int e = launch_pass(stream, a, PqPass::kKeys);
  return e != 0 ? e : launch_pass(stream, a, PqPass::kValues);
}

}  // namespace

void add_pq_attention(DeviceOps& ops) {
  ops.attend_pq = attend_pq;
  ops.attend_pq_table = attend_pq_table;
}

}  // namespace million::cuda::MILLION_CUDA_NS
