// SPDX-License-Identifier: Apache-2.0
// The project's JSON type: insertion order is kept so that records read the way they are written.
#pragma once

#include <nlohmann/json.hpp>

namespace million {
using Json = nlohmann::ordered_json;
}
