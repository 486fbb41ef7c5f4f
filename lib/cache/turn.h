// SPDX-License-Identifier: Apache-2.0
// Rows moved between positions with the cosines and sines of a table.
#pragma once

#include "lib/core/rope.h"

#include <cstdint>

namespace million {

/// rows [n][head_dim] <- R(by) rows, by may be negative; |by| below the table's length.
void turn_rows(const RopeTable& rope, float* rows, int n, int head_dim, int64_t by);

}  // namespace million
