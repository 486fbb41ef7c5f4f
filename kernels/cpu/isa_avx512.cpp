// SPDX-License-Identifier: Apache-2.0
// AVX-512 level; kernels/CMakeLists.txt sets the flags of this file alone.
#define MILLION_ISA avx512
#define MILLION_ISA_NAME "avx512"
#define MILLION_ATTEND_PQ attend_pq_bytes
#define MILLION_ATTEND_CODED attend_coded
#define MILLION_CODED_ROWS coded_rows

#include "kernels/cpu/vec_avx512.h"
#include "kernels/cpu/vec_avx512_bytes.h"
#include "kernels/cpu/vec_avx512_super.h"

#include "kernels/cpu/attention_coded.inl.h"
#include "kernels/cpu/attention_pq_bytes.inl.h"
#include "kernels/cpu/op_table.inl.h"
