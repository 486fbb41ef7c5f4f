// SPDX-License-Identifier: Apache-2.0
// Optimal scalar levels for one coordinate of a random unit vector.
#pragma once

#include <vector>

namespace million {

/// The 2^bits Lloyd-Max levels (least mean squared error) of a coordinate of a vector that is
/// uniform on the unit sphere of d dimensions, rising. The density is c (1 - x^2)^((d-3)/2) on
/// [-1, 1], close to N(0, 1/d). d >= 4, 0 <= bits <= 8; bits = 0 gives the single level 0.
/// Source  Max, "Quantizing for minimum distortion", 1960; Lloyd, 1982; [TurboQuant] section 3.1.
std::vector<double> sphere_levels(int d, int bits);

}  // namespace million
