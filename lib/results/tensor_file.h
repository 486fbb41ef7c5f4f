// SPDX-License-Identifier: Apache-2.0
// A TensorBag as an HDF5 file: codebooks, reference statistics. Format "million-tensors": root
// attributes format, version, attributes (one JSON text); /tensors/NAME f32 with its shape, chunked
// with a checksum. Trusted files only (hdf5_file.h).
#pragma once

#include "lib/core/tensor.h"

#include <filesystem>

namespace million {

/// Writes the bag; a reader sees the whole file or none. Tensor names: 1..200 characters, '/' makes
/// groups; rank 1..8; an extent may be 0. Error(kNoResources) on a full disk.
void save_tensors(const std::filesystem::path& path, const TensorBag& bag);

/// Error(kBadInput) on anything but a complete file of this format.
TensorBag load_tensors(const std::filesystem::path& path);

}  // namespace million
