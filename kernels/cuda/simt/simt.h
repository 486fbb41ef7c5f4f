// SPDX-License-Identifier: Apache-2.0
// CUDA kernels on the host: the words of CUDA C++ that kernels use, so that the source that nvcc
// compiles also runs, and can be sanitised and checked for races, where there is no GPU.
//
// Every CUDA thread is a fiber that runs until it reaches a barrier or a collective of its warp;
// the last thread to arrive works out the result for all. A block belongs to one OS thread. What
// CUDA leaves undefined stops the program and names block and thread: lanes of a warp in different
// collectives, shuffles from absent lanes, threads that wait for each other, writes past the end of
// shared memory, copies nobody waited for. Shared memory starts as NaN.
//
// Kernels may run on several OS threads at once. Not here: textures, cooperative groups, named
// barriers, clusters, and static __shared__ arrays (shared memory is one dynamic arena).
#pragma once

#include "kernels/half.h"

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

namespace simt {

struct Options {
  unsigned seed = 0;       ///< 0: threads take turns in order; else the next one is drawn
  unsigned workers = 1;    ///< OS threads over which the blocks of a launch are spread
  bool racecheck = false;  ///< shadow.h; sees kernels built with -fsanitize=thread
};
/// To be set while no kernel runs.
extern Options options;

/// Runs `body` once for every thread of the grid, with `shared_bytes` of shared memory a block, and
/// returns when all have ended. Stacks are kept for the next launch.
void launch(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& body);

/// A stream: runs what it is given, in order.
class Queue {
 public:
  virtual ~Queue() = default;
  virtual void enqueue(std::function<void()> work) = 0;
};

struct Thread {
  dim3 tid;
  unsigned lane, warp, linear;
};
struct Block {
  dim3 bid, bdim, gdim;
  unsigned char* smem;
  std::size_t smem_bytes;
};
/// The CUDA thread and block at work in this OS thread, or nullptr.
extern constinit thread_local Thread* cur;
extern constinit thread_local Block* blk;

enum class Op { kSyncWarp, kShuffle, kBallot, kMaxInt, kMinInt, kAddInt, kMma16x8x16, kMma16x8x32 };
/// What a lane brings to a collective of its warp, and takes from it.
struct Exchange {
  uint32_t in[6];
  uint32_t out[4];
  float sums[4];
  uint32_t source;  ///< kShuffle: the lane to read
};
void block_barrier();
void warp_collective(Op op, uint32_t mask, Exchange* lane);
uint32_t warp_collective(Op op, uint32_t mask, uint32_t value, uint32_t source = 0);

/// Copies of a thread are withheld until it waits for them: as late as the device may have them.
void copy_async(void* to, const void* from, std::size_t bytes);
void commit_copies();
void wait_copies(unsigned n_pending_groups);

/// Tells the race checker of an atomic access.
void note_atomic(const void* p, std::size_t bytes);
template <class T, class F>
T atomic_update(T* p, F&& next_of) {
  note_atomic(p, sizeof(T));
  T old, next;
  __atomic_load(p, &old, __ATOMIC_RELAXED);
  do {
    next = next_of(old);
  } while (!__atomic_compare_exchange(p, &old, &next, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}

/// Halves as the device converts them: round to nearest even.
inline uint16_t half_bits(float x) { return million::float_to_half(x); }
/// million::half_to_float without a branch, because a matrix product needs hundreds.
inline float half_value(uint16_t h) {
  const uint32_t magnitude = h & 0x7FFFu;
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1.0p112f;
  const uint32_t finite = std::bit_cast<uint32_t>(scaled);
  const uint32_t bits = magnitude < 0x7C00u ? finite : 0x7F800000u | magnitude << 13;
  return std::bit_cast<float>(bits | static_cast<uint32_t>(h & 0x8000u) << 16);
}

/// a * b + c, rounded once.
inline uint16_t fma_half(uint16_t a, uint16_t b, uint16_t c) {
  const double sum = static_cast<double>(half_value(a)) * static_cast<double>(half_value(b)) +
                     static_cast<double>(half_value(c));
  // Rounding to odd keeps what lies behind 24 bits from being lost before the second rounding.
  const float nearest = static_cast<float>(sum);
  uint32_t bits = std::bit_cast<uint32_t>(nearest);
  if (std::isfinite(nearest) && static_cast<double>(nearest) != sum) {
    if (std::abs(static_cast<double>(nearest)) > std::abs(sum)) --bits;
    bits |= 1;
  }
  return half_bits(std::bit_cast<float>(bits));
}

/// mma.sync.m16n8k16 with f32 sums; fragments as mma_16x8x16 of device.h describes them.
void mma_16x8x16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                 uint32_t b1);
void mma_16x8x32(uint32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                 uint32_t b1);

}  // namespace simt

#define threadIdx (simt::cur->tid)
#define blockIdx (simt::blk->bid)
#define blockDim (simt::blk->bdim)
#define gridDim (simt::blk->gdim)

inline void __syncthreads() { simt::block_barrier(); }
inline void __syncwarp(uint32_t mask = ~0u) {
  simt::warp_collective(simt::Op::kSyncWarp, mask, uint32_t{0});
}

template <class T>
T __shfl_sync(uint32_t mask, T value, unsigned source) {
  static_assert(sizeof(T) == 4);
  return std::bit_cast<T>(
      simt::warp_collective(simt::Op::kShuffle, mask, std::bit_cast<uint32_t>(value), source & 31));
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, unsigned bits) {
  return __shfl_sync(mask, value, simt::cur->lane ^ bits);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta) {
  const unsigned lane = simt::cur->lane;
  return __shfl_sync(mask, value, lane + delta > 31 ? lane : lane + delta);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta) {
  const unsigned lane = simt::cur->lane;
  return __shfl_sync(mask, value, delta > lane ? lane : lane - delta);
}
inline uint32_t __ballot_sync(uint32_t mask, bool vote) {
  return simt::warp_collective(simt::Op::kBallot, mask, static_cast<uint32_t>(vote));
}
inline bool __any_sync(uint32_t mask, bool vote) { return __ballot_sync(mask, vote) != 0; }
inline bool __all_sync(uint32_t mask, bool vote) { return __ballot_sync(mask, !vote) == 0; }
inline int __reduce_max_sync(uint32_t mask, int value) {
  return static_cast<int>(
      simt::warp_collective(simt::Op::kMaxInt, mask, static_cast<uint32_t>(value)));
}
inline int __reduce_min_sync(uint32_t mask, int value) {
  return static_cast<int>(
      simt::warp_collective(simt::Op::kMinInt, mask, static_cast<uint32_t>(value)));
}
inline int __reduce_add_sync(uint32_t mask, int value) {
  return static_cast<int>(
      simt::warp_collective(simt::Op::kAddInt, mask, static_cast<uint32_t>(value)));
}

// Of int, unsigned, unsigned long long and float, in shared and global memory; each returns the
// value before. They order nothing else, as on the device.
template <class T>
T atomicAdd(T* p, std::type_identity_t<T> v) {
  return simt::atomic_update(p, [v](T old) { return static_cast<T>(old + v); });
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> v) {
  return simt::atomic_update(p, [v](T old) { return old < v ? v : old; });
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> v) {
  return simt::atomic_update(p, [v](T old) { return v < old ? v : old; });
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> v) {
  return simt::atomic_update(p, [v](T) { return v; });
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  return simt::atomic_update(p, [=](T old) { return old == expected ? v : old; });
}

inline void __pipeline_memcpy_async(void* to, const void* from, std::size_t bytes) {
  simt::copy_async(to, from, bytes);
}
inline void __pipeline_commit() { simt::commit_copies(); }
inline void __pipeline_wait_prior(unsigned n_pending_groups) {
  simt::wait_copies(n_pending_groups);
}
template <class T>
T __ldg(const T* p) {
  return *p;
}
