// SPDX-License-Identifier: Apache-2.0
// The CUDA device: native_device.cpp where the build has CUDA, an error elsewhere.
#pragma once

#include "lib/device/device.h"

namespace million {

/// Whether this build has the kernels for GPUs.
bool built_with_cuda();

/// The first device that the driver shows. Error(kNoResources) as shared_device().
std::shared_ptr<Device> make_native_device();

}  // namespace million
