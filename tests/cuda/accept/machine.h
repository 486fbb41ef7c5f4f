// SPDX-License-Identifier: Apache-2.0
// What the benchmark needs of a machine: a GPU (machine_gpu.cu), or the host (machine_host.cpp),
// whose times mean nothing and which shows that the benchmark itself is right.
#pragma once

#include "kernels/cuda/device_ops.h"

#include <cstddef>
#include <functional>
#include <string>

namespace million::cuda::bench {

struct Machine {
  std::string name;
  int compute_major = 0, compute_minor = 0, driver = 0;
  int n_multiprocessors = 0;
  std::size_t shared_per_block = 0, l2_bytes = 0, memory_bytes = 0, free_bytes = 0;
};
/// The first device. False with the reason in `why` where there is none that runs the kernels.
bool find_machine(Machine& machine, std::string& why);

/// Fills p with its first `have` bytes, over and over.
void repeat(void* p, std::size_t have, std::size_t bytes);

/// Puts call number i (from 0) on a stream; returns the launch's status.
using Call = std::function<int(StreamHandle, int i)>;
struct Time {
  double us = -1.0, least_us = -1.0;  ///< of a call: median and smallest of repeats; < 0: failed
  std::string error;
};
/// Times n_calls calls in one CUDA graph, one behind the other, as a decode step has them.
Time time_calls(int n_calls, const Call& call);

/// Bytes per second, in GB, of reading `bytes` of memory once.
double read_gb_s(const void* p, std::size_t bytes);

}  // namespace million::cuda::bench
