// SPDX-License-Identifier: Apache-2.0
// Acceptance of the device kernels on a machine with a GPU: one file that needs libc and a driver.
//
//   million-gpu-accept [Catch2 options]    the kernel tests (tests/cuda/test_device_*.cpp)
//   million-gpu-accept --device            the device as a JSON line
//   million-gpu-accept --bench [--depths 4096,32768] [--batches 1,8] [--seconds N]
//                                          times of kernels as JSON lines
//
// Exit: 0 passed, 77 no GPU, 2 wrong use, else failed.
#include "tests/cuda/accept/bench.h"

#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>

using namespace million::cuda::bench;

namespace {

constexpr int kNoGpu = 77;

std::vector<int> numbers(const std::string& text) {
  std::vector<int> v;
  for (std::size_t at = 0; at < text.size();) {
    v.push_back(std::atoi(text.c_str() + at));
    const std::size_t comma = text.find(',', at);
    at = comma == std::string::npos ? text.size() : comma + 1;
  }
  return v;
}

/// False for an option that it does not know.
bool parse(int argc, char** argv, BenchOptions& options) {
  for (int i = 2; i < argc; i += 2) {
    const std::string name = argv[i], value = i + 1 < argc ? argv[i + 1] : "";
    if (value.empty()) return false;
    if (name == "--depths")
      options.depths = numbers(value);
    else if (name == "--batches")
      options.batches = numbers(value);
    else if (name == "--seconds")
      options.seconds = std::atof(value.c_str());
    else
      return false;
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  BenchOptions options;
  if (mode == "--bench" && !parse(argc, argv, options)) {
    std::fprintf(stderr, "million-gpu-accept: --bench takes --depths, --batches and --seconds\n");
    return 2;
  }
  Machine machine;
  std::string why;
  if (!find_machine(machine, why)) {
    std::fprintf(stderr, "million-gpu-accept: not run, no GPU (%s)\n", why.c_str());
    return kNoGpu;
  }
  if (mode == "--device") {
    print_machine(machine);
    return 0;
  }
  if (mode != "--bench") return Catch::Session().run(argc, argv);
  try {
    return run_bench(machine, options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "million-gpu-accept: %s\n", error.what());
    return 1;
  }
}
