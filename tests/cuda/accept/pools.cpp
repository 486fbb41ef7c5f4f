// SPDX-License-Identifier: Apache-2.0
#include "kernels/half.h"
#include "tests/cuda/accept/cases.h"
#include "tests/cuda/harness.h"

#include <algorithm>
#include <random>

namespace million::cuda::bench {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;
constexpr std::size_t kPatternBytes = 2 * kMiB;  ///< drawn on the host, then repeated

}  // namespace

Pools::Pools(const Machine& machine) {
  const auto share = [&](double part, std::size_t most) {
    const auto bytes = static_cast<std::size_t>(part * static_cast<double>(machine.free_bytes));
    return std::max(kPatternBytes, std::min(bytes, most * kMiB));
  };
  halves_ = make(share(0.45, 6144)), bits_ = make(share(0.2, 2560));
  floats_ = make(share(0.05, 128)), work_ = make(share(0.1, 768));
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> halves(kPatternBytes / 2);
  for (uint16_t& h : halves) h = float_to_half(normal(rng));
  std::vector<uint32_t> bits(kPatternBytes / 4);
  for (uint32_t& word : bits) word = static_cast<uint32_t>(rng());
  std::vector<float> floats(kPatternBytes / 4);
  for (float& x : floats) x = std::uniform_real_distribution<float>(-0.7f, 0.7f)(rng);
  store(halves_.base, halves.data(), kPatternBytes);
  store(bits_.base, bits.data(), kPatternBytes);
  store(floats_.base, floats.data(), kPatternBytes);
  for (const Pool& pool : {halves_, bits_, floats_}) repeat(pool.base, kPatternBytes, pool.size);
}

Pools::~Pools() {
  for (const Pool& pool : {halves_, bits_, floats_, work_}) test::device_free(pool.base);
}

Pools::Pool Pools::make(std::size_t bytes) {
  return {static_cast<unsigned char*>(test::device_alloc(bytes)), bytes, 0};
}

void* Pools::take(Pool& pool, std::size_t bytes) {
  const std::size_t at = (pool.used + 255) / 256 * 256;
  if (at + bytes > pool.size) {
    exhausted_ = true;
    return nullptr;
  }
  pool.used = at + bytes;
  return pool.base + at;
}

void Pools::store(void* to, const void* from, std::size_t bytes) {
  if (to) test::to_device(to, from, bytes);
}

float* Pools::constant(std::size_t n, float scale) { return copy_of(std::vector<float>(n, scale)); }

void Pools::reset() {
  for (Pool* pool : {&halves_, &bits_, &floats_, &work_}) pool->used = 0;
  exhausted_ = false;
}

const void* Pools::largest(std::size_t& bytes) const {
  bytes = halves_.size / 16 * 16;
  return halves_.base;
}

}  // namespace million::cuda::bench
