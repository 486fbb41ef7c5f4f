// SPDX-License-Identifier: Apache-2.0
// MILLION_HD marks functions that a CUDA compiler builds for host and device alike. In translation
// units built for one instruction set (they define MILLION_ISA) it also forces inlining: an emitted
// copy of a shared inline function would let the linker hand AVX-512 code to the whole program.
#pragma once

#if defined(__CUDACC__)
#define MILLION_HD __host__ __device__
#elif defined(MILLION_ISA)
#define MILLION_HD __attribute__((always_inline))
#else
#define MILLION_HD
#endif

/// Inner kernels are inlined into the loops around them: GCC then unrolls their short loops early
/// enough to keep small arrays of vectors in registers.
#define MILLION_INLINE inline __attribute__((always_inline))
