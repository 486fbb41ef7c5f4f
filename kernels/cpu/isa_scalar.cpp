// SPDX-License-Identifier: Apache-2.0
// Scalar level: the bodies with one lane, for any CPU.
#define MILLION_ISA scalar
#define MILLION_ISA_NAME "scalar"
#define MILLION_ATTEND_PQ attend_pq_tables

#include "kernels/ops.h"

// clang-format off: the bodies build on each other in this order
#include "kernels/cpu/vec_scalar.h"

#include "kernels/cpu/attention_dense.inl.h"
#include "kernels/cpu/attention_pq.inl.h"
#include "kernels/cpu/elementwise.inl.h"
#include "kernels/cpu/op_table.inl.h"
#include "kernels/cpu/pq_encode.inl.h"
#include "kernels/cpu/softmax_tile.inl.h"
#include "kernels/cpu/weights.inl.h"
// clang-format on
