// SPDX-License-Identifier: Apache-2.0
// PQ attention on codes of 4 bits.
#include "kernels/cuda/attention_pq.cuh"

namespace million::cuda::MILLION_CUDA_NS {

int launch_pq_bits4(StreamHandle stream, const PqAttendArgs& a, PqPass pass) {
  return pq::launch_bits<4>(stream, a, pass);
}

}  // namespace million::cuda::MILLION_CUDA_NS
