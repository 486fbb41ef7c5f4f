// SPDX-License-Identifier: Apache-2.0
// Shared by the benchmark programs: a table per level of this CPU, random data, big buffers.
#pragma once

#include "kernels/half.h"
#include "kernels/ops.h"

#include <benchmark/benchmark.h>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <sys/mman.h>

namespace million::bench {

inline std::vector<const Ops*> levels() {
  std::vector<const Ops*> found;
  for (Isa isa : {Isa::kAvx512, Isa::kAvx2, Isa::kScalar})
    if (const Ops* table = ops_for(isa)) found.push_back(table);
  return found;
}

inline std::vector<float> normal(std::size_t n, float sigma = 1.0f, unsigned seed = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> draw(0.0f, sigma);
  std::vector<float> x(n);
  for (float& value : x) value = draw(random);
  return x;
}

/// Anonymous memory with huge pages where the system gives them; bytes that look random.
class RandomBytes {
 public:
  explicit RandomBytes(std::size_t n)
      : n_(n),
        data_(static_cast<uint8_t*>(
            mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {
    if (data_ == MAP_FAILED) std::abort();
    madvise(data_, n, MADV_HUGEPAGE);
    uint64_t state = 88172645463325252ull;
    for (std::size_t i = 0; i + 8 <= n; i += 8) {
      state ^= state << 13, state ^= state >> 7, state ^= state << 17;
      __builtin_memcpy(data_ + i, &state, 8);
    }
  }
  ~RandomBytes() { munmap(data_, n_); }
  RandomBytes(const RandomBytes&) = delete;
  RandomBytes& operator=(const RandomBytes&) = delete;
  uint8_t* data() { return data_; }

 private:
  std::size_t n_;
  uint8_t* data_;
};

}  // namespace million::bench
