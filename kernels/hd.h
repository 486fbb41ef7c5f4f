// SPDX-License-Identifier: Apache-2.0
// MILLION_HD marks functions that a CUDA compiler builds for host and device alike.
#pragma once

#if defined(__CUDACC__)
#define MILLION_HD __host__ __device__
#else
#define MILLION_HD
#endif
