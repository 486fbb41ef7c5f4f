// SPDX-License-Identifier: Apache-2.0
// The parts of PQ attention that are compiled in files of their own.
#pragma once

#include "kernels/cuda/attention_pq.h"
#include "kernels/cuda/launch.h"

namespace million::cuda::MILLION_CUDA_NS {

int launch_pq_bits4(StreamHandle stream, const PqAttendArgs& a, PqPass pass);
int launch_pq_bits6(StreamHandle stream, const PqAttendArgs& a, PqPass pass);
int launch_pq_bits8(StreamHandle stream, const PqAttendArgs& a, PqPass pass);
int attend_pq_table(StreamHandle stream, const PqAttendArgs& a);

}  // namespace million::cuda::MILLION_CUDA_NS
