// SPDX-License-Identifier: Apache-2.0
// AVX2 level; kernels/CMakeLists.txt sets the flags of this file alone.
#define MILLION_ISA avx2
#define MILLION_ISA_NAME "avx2"
#define MILLION_ATTEND_PQ attend_pq_tables
#define MILLION_ATTEND_CODED nullptr
#define MILLION_CODED_ROWS nullptr

#include "kernels/cpu/vec_avx2.h"

#include "kernels/cpu/op_table.inl.h"
