// SPDX-License-Identifier: Apache-2.0
#include "tests/simt/planted.h"

#include "kernels/cuda/device.h"

namespace million::simt_test {
namespace {

using cuda::MILLION_CUDA_NS::kFullWarp;
using Kind = Planted::Kind;

int* shared_ints() { return reinterpret_cast<int*>(simt::blk->smem); }
int thread() { return static_cast<int>(threadIdx.x); }
int mirror() { return static_cast<int>(blockDim.x) - 1 - thread(); }
// Keeps the compiler from dropping a read.
void use(int x) { asm volatile("" : : "r"(x)); }

void no_block_barrier_before_read(bool bug) {
  int* s = shared_ints();
  s[thread()] = thread();
  if (!bug) __syncthreads();
  use(s[mirror()]);
}

void no_block_barrier_before_overwrite(bool bug) {
  int* s = shared_ints();
  s[thread()] = thread();
  __syncthreads();
  const int x = s[mirror()];
  if (!bug) __syncthreads();
  s[thread()] = x;
}

void barrier_of_one_loop_too_few(bool bug) {
  int* s = shared_ints();
  s[thread()] = thread();
  for (int step = static_cast<int>(blockDim.x) / 2; step > 0; step /= 2) {
    if (!bug || step != 32) __syncthreads();
    if (thread() < step) s[thread()] += s[thread() + step];
  }
}

void no_warp_barrier(bool bug) {
  int* s = shared_ints();
  s[thread()] = thread();
  if (!bug) __syncwarp();
  use(s[thread() ^ 1]);
}

void no_warp_barrier_before_overwrite(bool bug) {
  int* s = shared_ints();
  s[thread()] = thread();
  __syncwarp();
  const int x = s[thread() ^ 5];
  if (!bug) __syncwarp();
  s[thread()] = x;
}

void shuffle_instead_of_warp_barrier(bool bug) {
  int* s = shared_ints();
  s[thread()] = thread();
  if (bug)
    use(__shfl_xor_sync(kFullWarp, thread(), 1));
  else
    __syncwarp();
  use(s[thread() ^ 1]);
}

void warp_barrier_between_warps(bool bug) {
  int* s = shared_ints();
  s[thread()] = thread();
  if (bug)
    __syncwarp();
  else
    __syncthreads();
  use(s[thread() ^ 32]);
}

// Two halves of a warp that sync for themselves, and then read each other's.
void warp_barrier_of_half_the_lanes(bool bug) {
  int* s = shared_ints();
  s[thread()] = thread();
  const uint32_t half = (threadIdx.x & 16) != 0 ? 0xFFFF0000u : 0x0000FFFFu;
  __syncwarp(bug ? half : kFullWarp);
  use(s[thread() ^ 16]);
}

// Lane 0 hears of lane 31 through lane 8.
void chain_of_warp_barriers(bool bug) {
  int* s = shared_ints();
  const uint32_t first = 1u << 31 | 1u << 8, second = 1u << 8 | 1u;
  s[thread()] = thread();
  if (first >> threadIdx.x & 1) __syncwarp(first);
  if (!bug && (second >> threadIdx.x & 1)) __syncwarp(second);
  if (threadIdx.x == 0) use(s[31]);
}

void two_writers(bool bug) { shared_ints()[bug ? thread() / 2 : thread()] = thread(); }

void atomics_and_a_plain_read(bool bug) {
  int* s = shared_ints();
  if (thread() == 0) s[0] = 0;
  __syncthreads();
  atomicAdd(s, 1);
  if (!bug) __syncthreads();
  use(s[0]);
}

void never_written(bool bug) {
  int* s = shared_ints();
  if (!bug || thread() != 5) s[thread()] = thread();
  __syncthreads();
  use(s[mirror()]);
}

void half_written(bool bug) {
  auto* s = reinterpret_cast<uint16_t*>(simt::blk->smem);
  s[2 * thread()] = 1;
  if (!bug) s[2 * thread() + 1] = 1;
  use(shared_ints()[thread()]);
}

void read_behind_the_end(bool bug) {
  int* s = shared_ints();
  s[thread()] = thread();
  __syncthreads();
  const int n = static_cast<int>(blockDim.x);
  use(s[bug ? thread() + 1 : (thread() + 1) % n]);
}

void write_behind_the_end(bool bug) { shared_ints()[thread() + (bug ? 1 : 0)] = thread(); }

alignas(16) const int source[256] = {};

void no_wait_for_a_copy(bool bug) {
  int* s = shared_ints();
  __pipeline_memcpy_async(&s[thread()], &source[thread()], 4);
  __pipeline_commit();
  if (!bug) __pipeline_wait_prior(0);
  use(s[thread()]);
  __pipeline_wait_prior(0);
}

void no_barrier_after_a_copy(bool bug) {
  int* s = shared_ints();
  __pipeline_memcpy_async(&s[thread()], &source[thread()], 4);
  __pipeline_commit();
  __pipeline_wait_prior(0);
  if (!bug) __syncthreads();
  use(s[mirror()]);
}

// The barrier does not wait for copies.
void barrier_before_the_wait_for_a_copy(bool bug) {
  int* s = shared_ints();
  __pipeline_memcpy_async(&s[thread()], &source[thread()], 4);
  __pipeline_commit();
  if (bug) __syncthreads();
  __pipeline_wait_prior(0);
  if (!bug) __syncthreads();
  use(s[mirror()]);
}

// Two buffers; the copy for the next step starts while others still read the one it goes to.
void copy_into_what_is_read(bool bug) {
  int* s = shared_ints();
  const int n = static_cast<int>(blockDim.x);
  const auto start = [&](int step) {
    __pipeline_memcpy_async(&s[step % 2 * n + thread()], &source[thread()], 4);
    __pipeline_commit();
  };
  start(0);
  for (int step = 0; step < 4; ++step) {
    if (step < 3) start(step + 1);
    __pipeline_wait_prior(step < 3 ? 1 : 0);
    __syncthreads();
    use(s[step % 2 * n + mirror()]);
    if (!bug) __syncthreads();
  }
}

void waits_for_too_few_copies(bool bug) {
  int* s = shared_ints();
  for (int i = 0; i < 2; ++i) {
    __pipeline_memcpy_async(&s[2 * thread() + i], &source[thread()], 4);
    __pipeline_commit();
  }
  __pipeline_wait_prior(bug ? 1 : 0);
  use(s[2 * thread() + 1]);
  __pipeline_wait_prior(0);
}

}  // namespace

#define MILLION_PLANTED(kind, n_threads, shared_bytes, kernel) \
  Planted { #kernel, Kind::kind, n_threads, shared_bytes, kernel }

const std::vector<Planted>& planted_bugs() {
  static const std::vector<Planted> all = {
      MILLION_PLANTED(kRace, 128, 512, no_block_barrier_before_read),
      MILLION_PLANTED(kRace, 128, 512, no_block_barrier_before_overwrite),
      MILLION_PLANTED(kRace, 128, 512, barrier_of_one_loop_too_few),
      MILLION_PLANTED(kRace, 32, 128, no_warp_barrier),
      MILLION_PLANTED(kRace, 64, 256, no_warp_barrier_before_overwrite),
      MILLION_PLANTED(kRace, 32, 128, shuffle_instead_of_warp_barrier),
      MILLION_PLANTED(kRace, 64, 256, warp_barrier_between_warps),
      MILLION_PLANTED(kRace, 32, 128, warp_barrier_of_half_the_lanes),
      MILLION_PLANTED(kRace, 32, 128, chain_of_warp_barriers),
      MILLION_PLANTED(kRace, 64, 256, two_writers),
      MILLION_PLANTED(kRace, 64, 4, atomics_and_a_plain_read),
      MILLION_PLANTED(kUninitialised, 64, 256, never_written),
      MILLION_PLANTED(kUninitialised, 32, 128, half_written),
      MILLION_PLANTED(kOutOfBounds, 33, 132, read_behind_the_end),
      MILLION_PLANTED(kOutOfBounds, 64, 256, write_behind_the_end),
      MILLION_PLANTED(kRace, 32, 128, no_wait_for_a_copy),
      MILLION_PLANTED(kRace, 64, 256, no_barrier_after_a_copy),
      MILLION_PLANTED(kRace, 64, 256, barrier_before_the_wait_for_a_copy),
      MILLION_PLANTED(kRace, 64, 512, copy_into_what_is_read),
      MILLION_PLANTED(kRace, 32, 256, waits_for_too_few_copies),
  };
  return all;
}

}  // namespace million::simt_test
