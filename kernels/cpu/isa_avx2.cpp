// SPDX-License-Identifier: Apache-2.0
// AVX2 level; kernels/CMakeLists.txt sets the flags of this file alone.
#define MILLION_ISA avx2
#define MILLION_ISA_NAME "avx2"
#define MILLION_ATTEND_PQ attend_pq_sums
#define MILLION_ATTEND_CODED attend_coded_words
#define MILLION_CODED_ROWS coded_rows_words

#include "kernels/cpu/vec_avx2_super.h"
#include "kernels/cpu/vec_avx2_words.h"

#include "kernels/cpu/attention_coded_words.inl.h"
#include "kernels/cpu/attention_pq_sums.inl.h"
#include "kernels/cpu/op_table.inl.h"
