// SPDX-License-Identifier: Apache-2.0
// Files that are either whole or absent: temporary name + fsync + rename for whole files, one
// O_APPEND write + fsync for records, SHA-256 for inputs.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace million {

/// Reads a whole file of at most max_bytes. Error(kBadInput) when missing, unreadable or larger.
std::string read_file(const std::filesystem::path& path, uint64_t max_bytes = uint64_t{1} << 32);

/// Writes `text` to `path` so that a reader sees the old file or the new one, never a part.
/// Error(kNoResources) on a full disk, Error(kBadInput) when the folder cannot be written.
void write_file_atomic(const std::filesystem::path& path, std::string_view text);

/// Appends `line` plus a newline with a single write and syncs. A torn last line (no newline at the
/// end of the file) is first closed with a newline so that it stays the only damaged record.
void append_line(const std::filesystem::path& path, std::string_view line);

/// fsyncs a file that is complete under `part`, renames it to `path` and syncs the folder.
void publish_file(const std::filesystem::path& part, const std::filesystem::path& path);

/// Error(kNoResources) unless the file system of `path` has at least `bytes` free.
void require_free_space(const std::filesystem::path& path, uint64_t bytes, std::string_view what);

/// Lower-case hex SHA-256.
std::string sha256_of(std::string_view bytes);
std::string sha256_of_file(const std::filesystem::path& path);

}  // namespace million
