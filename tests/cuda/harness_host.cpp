// SPDX-License-Identifier: Apache-2.0
// Kernels run on the host. MILLION_SIMT_SEED draws the order of threads, MILLION_SIMT_WORKERS
// spreads blocks over OS threads, MILLION_SIMT_RACECHECK checks shared memory in builds whose
// kernels are instrumented (tests/simt).
#include "kernels/cuda/simt/simt.h"
#include "tests/cuda/harness.h"

#include <cstdlib>

namespace million::cuda::test {

const DeviceOps& ops() {
  static const DeviceOps& table = [&]() -> const DeviceOps& {
    if (const char* seed = std::getenv("MILLION_SIMT_SEED"))
      simt::options.seed = static_cast<unsigned>(std::atoi(seed));
    if (const char* workers = std::getenv("MILLION_SIMT_WORKERS"))
      simt::options.workers = static_cast<unsigned>(std::atoi(workers));
    simt::options.racecheck = std::getenv("MILLION_SIMT_RACECHECK") != nullptr;
    return emulated_ops();
  }();
  return table;
}
const char* harness_name() { return std::getenv("MILLION_SIMT_RACECHECK") ? "race" : "host"; }
bool harness_is_slow() { return std::getenv("MILLION_SIMT_RACECHECK") != nullptr; }

void* device_alloc(std::size_t bytes) {
  void* p = std::malloc(bytes ? bytes : 1);
  std::memset(p, 0xFF, bytes);
  return p;
}
void device_free(void* p) { std::free(p); }
void to_device(void* to, const void* from, std::size_t bytes) {
  if (bytes) std::memcpy(to, from, bytes);
}
void from_device(void* to, const void* from, std::size_t bytes) {
  if (bytes) std::memcpy(to, from, bytes);
}

}  // namespace million::cuda::test
