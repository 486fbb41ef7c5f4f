// SPDX-License-Identifier: Apache-2.0
// What the files of the coded kernels share.
#pragma once

#include "kernels/cuda/device.h"

namespace million::cuda::MILLION_CUDA_NS {

void add_coded_queries(DeviceOps& ops);  ///< coded_queries.cu
void add_coded_codes(DeviceOps& ops);    ///< coded_codes.cu

/// Bytes of a word, as signed values.
MILLION_DEVICE float byte_value(uint32_t word, int i) {
  return static_cast<float>(static_cast<int8_t>(word >> 8 * i));
}

/// Two bytes of b, which are values plus 128, as a pair of halves: kSelect is 0x4140 for bytes 0
/// and 1, 0x4342 for 2 and 3.
template <uint32_t kSelect>
MILLION_DEVICE uint32_t byte_halves(uint32_t b) {
  constexpr uint32_t k1024 = 0x64646464u, kOne = 0x3C003C00u, kMinus1152 = 0xE480E480u;
  return fma_halves(byte_permute(b, k1024, kSelect), kOne, kMinus1152);
}

}  // namespace million::cuda::MILLION_CUDA_NS
