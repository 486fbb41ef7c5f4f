// SPDX-License-Identifier: Apache-2.0
// Overflow-safe size arithmetic for everything that comes from a file or a flag.
#pragma once

#include "lib/core/error.h"

#include <cstddef>
#include <cstdint>

namespace million {

/// a * b, or Error(kBadInput) naming `what` when the product does not fit 64 bits.
inline uint64_t checked_mul(uint64_t a, uint64_t b, const char* what) {
  uint64_t r = 0;
  MILLION_REQUIRE(!__builtin_mul_overflow(a, b, &r), ErrorCode::kBadInput,
                  "{}: {} * {} overflows 64 bits; the file is damaged or hostile", what, a, b);
  return r;
}

/// a + b, or Error(kBadInput) naming `what` when the sum does not fit 64 bits.
inline uint64_t checked_add(uint64_t a, uint64_t b, const char* what) {
  uint64_t r = 0;
  MILLION_REQUIRE(!__builtin_add_overflow(a, b, &r), ErrorCode::kBadInput,
                  "{}: {} + {} overflows 64 bits; the file is damaged or hostile", what, a, b);
  return r;
}

}  // namespace million
