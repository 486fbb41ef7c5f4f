// SPDX-License-Identifier: Apache-2.0
// Read-only mappings of model files.
#pragma once

#include <filesystem>
#include <memory>
#include <string_view>

namespace million {

/// Maps a whole regular file; `bytes` views it as long as the returned owner lives.
/// Error(kBadInput) when it is missing, empty or no regular file.
std::shared_ptr<const void> map_file(const std::filesystem::path& path, std::string_view& bytes);

}  // namespace million
