// SPDX-License-Identifier: Apache-2.0
// What kernels/cuda/launch.h calls in builds with MILLION_PTX_LAUNCH (compile with -include): runs
// the PTX entry that has the name of the host function `kernel`. Link with -rdynamic.
#pragma once

#include "kernels/cuda/simt/simt.h"

#include <cstddef>

void ptx_launch(void* kernel, dim3 grid, dim3 block, std::size_t shared, const void* args,
                std::size_t bytes);
