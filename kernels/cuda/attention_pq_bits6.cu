// SPDX-License-Identifier: Apache-2.0
// PQ attention on codes of 6 bits.
#include "kernels/cuda/attention_pq.cuh"

namespace million::cuda::MILLION_CUDA_NS {

int launch_pq_bits6(StreamHandle stream, const PqAttendArgs& a, PqPass pass) {
  return pq::launch_bits<6>(stream, a, pass);
}

}  // namespace million::cuda::MILLION_CUDA_NS
