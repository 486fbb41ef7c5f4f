// SPDX-License-Identifier: Apache-2.0
// JSON that comes with a model, read with limits: such files are foreign.
#pragma once

#include "lib/core/json.h"

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace million {

/// Sorted keys: a lookup costs log n, where the insertion-ordered type of lib/core/json.h searches.
using SortedJson = nlohmann::json;

/// Parses one JSON object. Error(kBadInput) naming `name`: no JSON, no object, nested deeper than
/// 16 levels, or an object with the same key twice (readers differ in which one counts).
SortedJson parse_json_object(std::string_view text, const std::string& name);
/// The same from a file of at most max_bytes.
SortedJson read_json_object(const std::filesystem::path& path, uint64_t max_bytes);

}  // namespace million
