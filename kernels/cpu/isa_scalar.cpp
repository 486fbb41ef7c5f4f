// SPDX-License-Identifier: Apache-2.0
// Scalar level: the bodies with one lane, for any CPU.
#define MILLION_ISA scalar
#define MILLION_ISA_NAME "scalar"
#define MILLION_ATTEND_PQ attend_pq_sums
#define MILLION_ATTEND_CODED attend_coded_words
#define MILLION_CODED_ROWS coded_rows_words

#include "kernels/cpu/vec_scalar_super.h"
#include "kernels/cpu/vec_scalar_words.h"

#include "kernels/cpu/attention_coded_words.inl.h"
#include "kernels/cpu/attention_pq_sums.inl.h"
#include "kernels/cpu/op_table.inl.h"
