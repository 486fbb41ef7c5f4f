// SPDX-License-Identifier: Apache-2.0
// What the AVX-512 level can do with AVX512_BF16 beside its table; kernels/CMakeLists.txt sets the
// flags of this file alone.
#define MILLION_ISA avx512_bf16

#include "kernels/cpu/vec_avx512_bf16.h"

#include "kernels/cpu/attend_tile_bf16.inl.h"
