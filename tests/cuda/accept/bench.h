// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "tests/cuda/accept/machine.h"

#include <vector>

namespace million::cuda::bench {

struct BenchOptions {
  std::vector<int> depths{1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072};
  std::vector<int> batches{1, 8};
  double seconds = 1e9;  ///< nothing is begun afterwards
};

/// One JSON line on stdout about the machine.
void print_machine(const Machine& machine);
/// Times all cases and prints a JSON line for each. 1 when one failed (lack of memory is told in
/// its line and is none), else 0.
int run_bench(const Machine& machine, const BenchOptions& options);

}  // namespace million::cuda::bench
