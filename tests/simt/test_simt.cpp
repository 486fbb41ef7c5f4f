// SPDX-License-Identifier: Apache-2.0
// The CUDA that kernels get on the host does what the device does, and stops where the device's
// behaviour would be undefined.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cuda/simt/simt.h"

namespace {

constexpr uint32_t kFullWarp = ~0u;

int thread() { return static_cast<int>(threadIdx.x); }
int* shared_ints() { return reinterpret_cast<int*>(simt::blk->smem); }

// What holds in one order of threads holds in all.
void for_orders(const std::function<void()>& check) {
  for (const unsigned seed : {0u, 1u, 2u, 3u}) {
    simt::options.seed = seed;
    INFO("seed " << seed);
    check();
  }
  simt::options.seed = 0;
}

// What a program prints before it is aborted by `body`; empty when it was not.
std::string last_words(const std::function<void()>& body) {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    signal(SIGABRT, SIG_DFL);  // Catch's handler would report a failed test
    body();
    _exit(0);
  }
  close(ends[1]);
  std::string words;
  char part[256];
  for (ssize_t n; (n = read(ends[0], part, sizeof part)) > 0;) words.append(part, n);
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT ? words : "";
}

std::string aborts(unsigned n_threads, const std::function<void()>& kernel) {
  return last_words([&] { simt::launch(2, n_threads, 1024, kernel); });
}

}  // namespace

TEST_CASE("threads and blocks know their places") {
  const dim3 grid(3, 2, 2), block(5, 4, 3);
  std::vector<int> visits(12 * 60);
  for (const unsigned workers : {1u, 4u}) {
    simt::options.workers = workers;
    std::fill(visits.begin(), visits.end(), 0);
    simt::launch(grid, block, 0, [&] {
      const unsigned b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
      const unsigned t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
      if (simt::cur->linear == t && simt::cur->lane == t % 32 && simt::cur->warp == t / 32)
        ++visits[b * 60 + t];
    });
    CHECK(std::all_of(visits.begin(), visits.end(), [](int n) { return n == 1; }));
  }
  simt::options.workers = 1;
}

TEST_CASE("a warp exchanges values") {
  for_orders([] {
    std::vector<float> xored(64), down(64), up(64), from(64);
    std::vector<uint32_t> ballots(64);
    std::vector<int> most(64), least(64), sums(64), any(64), all(64);
    simt::launch(1, 64, 0, [&] {
      const int t = thread();
      const float x = static_cast<float>(t) + 0.5f;
      xored[t] = __shfl_xor_sync(kFullWarp, x, 5);
      down[t] = __shfl_down_sync(kFullWarp, x, 3);
      up[t] = __shfl_up_sync(kFullWarp, x, 3);
      from[t] = __shfl_sync(kFullWarp, x, (t + 7) % 32);
      ballots[t] = __ballot_sync(kFullWarp, t % 3 == 0);
      most[t] = __reduce_max_sync(kFullWarp, t % 7 - 20);
      least[t] = __reduce_min_sync(kFullWarp, t % 7 - 20);
      sums[t] = __reduce_add_sync(kFullWarp, t - 40);
      any[t] = __any_sync(kFullWarp, t == 40);
      all[t] = __all_sync(kFullWarp, t >= 32);
    });
    for (int t = 0; t < 64; ++t) {
      const int warp = t / 32 * 32, lane = t % 32;
      INFO("thread " << t);
      CHECK(xored[t] == static_cast<float>(t ^ 5) + 0.5f);
      CHECK(down[t] == static_cast<float>(lane + 3 > 31 ? t : t + 3) + 0.5f);
      CHECK(up[t] == static_cast<float>(lane < 3 ? t : t - 3) + 0.5f);
      CHECK(from[t] == static_cast<float>(warp + (lane + 7) % 32) + 0.5f);
      uint32_t ballot = 0;
      for (int l = 0; l < 32; ++l) ballot |= ((warp + l) % 3 == 0 ? 1u : 0u) << l;
      CHECK(ballots[t] == ballot);
      CHECK(most[t] == -14);
      CHECK(least[t] == -20);
      CHECK(sums[t] == 32 * (warp - 40) + 31 * 16);
      CHECK(any[t] == (warp == 32));
      CHECK(all[t] == (warp == 32));
    }
  });
}

TEST_CASE("parts of a warp have collectives of their own") {
  for_orders([] {
    std::vector<int> sums(32);
    std::vector<uint32_t> votes(32);
    simt::launch(1, 32, 0, [&] {
      const bool odd = (threadIdx.x & 1) != 0;
      const uint32_t mask = odd ? 0xAAAAAAAAu : 0x55555555u;
      // The even lanes meet more often.
      for (int i = odd ? 3 : 0; i < 4; ++i) sums[thread()] = __reduce_add_sync(mask, thread());
      votes[thread()] = __ballot_sync(mask, thread() > 15);
      __syncwarp();
    });
    for (int t = 0; t < 32; ++t) {
      CHECK(sums[t] == (t % 2 ? 256 : 240));
      CHECK(votes[t] == (t % 2 ? 0xAAAA0000u : 0x55550000u));
    }
  });
}

TEST_CASE("barriers hold the block together") {
  for_orders([] {
    int mistakes = 0, total = 0;
    simt::launch(3, 256, 1024, [&] {
      int* s = shared_ints();
      for (int round = 0; round < 5; ++round) {
        s[thread()] = thread() * (round + 1);
        __syncthreads();
        if (s[255 - thread()] != (255 - thread()) * (round + 1)) ++mistakes;
        __syncthreads();
      }
      for (int step = 128; step > 0; step /= 2) {
        if (thread() < step) s[thread()] += s[thread() + step];
        __syncthreads();
      }
      if (thread() == 0) total += s[0];
    });
    CHECK(mistakes == 0);
    CHECK(total == 3 * 5 * 255 * 128);
  });
}

TEST_CASE("threads that have ended count as arrived") {
  for_orders([] {
    int sum = 0;
    simt::launch(1, 100, 400, [&] {
      shared_ints()[thread()] = thread();
      if (thread() % 10 == 3) return;
      __syncthreads();
      if (thread() == 0)
        for (int i = 0; i < 100; ++i) sum += shared_ints()[i];
    });
    CHECK(sum == 4950);
  });
}

TEST_CASE("shared memory starts as NaN in every block") {
  int written = 0, misplaced = 0;
  float value = 0.0f;
  simt::launch(4, 64, 250, [&] {
    for (int i = thread(); i < 250; i += 64) {
      if (simt::blk->smem[i] != 0xFF) ++written;
      simt::blk->smem[i] = 1;
    }
    const uintptr_t at = reinterpret_cast<uintptr_t>(simt::blk->smem);
    if (at % 128 != 0 || simt::blk->smem_bytes != 250) ++misplaced;
  });
  simt::launch(1, 1, 4, [&] { value = *reinterpret_cast<float*>(simt::blk->smem); });
  CHECK(written == 0);
  CHECK(misplaced == 0);
  CHECK(std::isnan(value));
}

TEST_CASE("asynchronous copies arrive with the wait") {
  std::vector<uint4> from(64);
  for (unsigned i = 0; i < 64; ++i) from[i] = make_uint4(i, i + 1, i + 2, i + 3);
  int early = 0, wrong = 0;
  simt::launch(1, 32, 1024, [&] {
    auto* s = reinterpret_cast<uint4*>(simt::blk->smem);
    const unsigned t = threadIdx.x;
    __pipeline_memcpy_async(&s[t], &from[t], 16);
    __pipeline_commit();
    __pipeline_memcpy_async(&s[t + 32], &from[t + 32], 16);
    __pipeline_commit();
    if (s[t].x != ~0u) ++early;
    __pipeline_wait_prior(1);
    if (s[t].x != t || s[t].w != t + 3) ++wrong;
    if (s[t + 32].x != ~0u) ++early;
    __pipeline_memcpy_async(&s[t], &from[t + 32], 8);  // in a group that is not committed
    __pipeline_wait_prior(0);
    if (s[t + 32].x != t + 32 || s[t + 32].w != t + 35) ++wrong;
    if (s[t].x != t) ++early;
    __pipeline_commit();
    __pipeline_wait_prior(0);
    if (s[t].x != t + 32 || s[t].y != t + 33 || s[t].z != t + 2) ++wrong;
  });
  CHECK(early == 0);
  CHECK(wrong == 0);
}

TEST_CASE("halves are those of kernels/half.h") {
  int wrong = 0;
  for (uint32_t h = 0; h < 65536; ++h) {
    const uint16_t bits = static_cast<uint16_t>(h);
    const float expected = million::half_to_float(bits), got = simt::half_value(bits);
    wrong += std::bit_cast<uint32_t>(expected) != std::bit_cast<uint32_t>(got);
    // Signalling NaN become quiet.
    const bool nan = (h & 0x7FFF) > 0x7C00;
    wrong += simt::half_bits(got) != (nan ? h | 0x200 : h);
    if (nan || (h & 0x7FFF) >= 0x7BFF) continue;
    // Halfway between two halves goes to the even one, anything else to the nearer.
    const float next = simt::half_value(static_cast<uint16_t>(h + 1)), half = (got + next) / 2;
    wrong += simt::half_bits(half) != (h & 1 ? h + 1 : h);
    wrong += simt::half_bits(std::nextafter(half, got)) != h;
    wrong += simt::half_bits(std::nextafter(half, next)) != h + 1;
  }
  CHECK(wrong == 0);
  CHECK(simt::half_bits(65519.996f) == 0x7BFF);
  CHECK(simt::half_bits(65520.0f) == 0x7C00);
  CHECK(simt::half_bits(-1e9f) == 0xFC00);
}

#ifdef __FLT16_MANT_DIG__
TEST_CASE("a * b + c of halves is rounded once") {
  std::mt19937 random(7);
  int wrong = 0;
  for (int i = 0; i < 2000000; ++i) {
    const uint16_t a = static_cast<uint16_t>(random()), b = static_cast<uint16_t>(random());
    const uint16_t c = static_cast<uint16_t>(random());
    // Exact, or so near to c that only c can come out; the compiler's own conversion.
    const double sum = static_cast<double>(simt::half_value(a)) * simt::half_value(b) +
                       static_cast<double>(simt::half_value(c));
    const uint16_t expected = std::bit_cast<uint16_t>(static_cast<_Float16>(sum));
    const uint16_t got = simt::fma_half(a, b, c);
    const bool nan = (expected & 0x7FFF) > 0x7C00;
    wrong += nan ? (got & 0x7FFF) <= 0x7C00 : got != expected;
  }
  CHECK(wrong == 0);
}
#endif

TEST_CASE("a warp multiplies matrices") {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  const auto half = [&] { return simt::half_bits(normal(random)); };
  std::vector<uint16_t> a(16 * 16), b(16 * 8);
  std::vector<float> c(16 * 8), d(16 * 8);
  std::generate(a.begin(), a.end(), half);
  std::generate(b.begin(), b.end(), half);
  std::generate(c.begin(), c.end(), [&] { return normal(random); });
  a[5] = 0x0003;  // a denormal
  for_orders([&] {
    simt::launch(1, 32, 0, [&] {
      const int n = thread() / 4, j = thread() % 4 * 2;
      const auto pair_a = [&](int row, int column) {
        return a[row * 16 + column] | static_cast<uint32_t>(a[row * 16 + column + 1]) << 16;
      };
      const auto pair_b = [&](int row, int column) {
        return b[row * 8 + column] | static_cast<uint32_t>(b[(row + 1) * 8 + column]) << 16;
      };
      float sums[4] = {c[n * 8 + j], c[n * 8 + j + 1], c[(n + 8) * 8 + j], c[(n + 8) * 8 + j + 1]};
      simt::mma_16x8x16(sums, pair_a(n, j), pair_a(n + 8, j), pair_a(n, j + 8),
                        pair_a(n + 8, j + 8), pair_b(j, n), pair_b(j + 8, n));
      d[n * 8 + j] = sums[0], d[n * 8 + j + 1] = sums[1];
      d[(n + 8) * 8 + j] = sums[2], d[(n + 8) * 8 + j + 1] = sums[3];
    });
    double worst = 0.0;
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 8; ++j) {
        double sum = c[i * 8 + j];
        for (int k = 0; k < 16; ++k)
          sum += static_cast<double>(million::half_to_float(a[i * 16 + k])) *
                 million::half_to_float(b[k * 8 + j]);
        worst = std::max(worst, std::abs(sum - d[i * 8 + j]));
      }
    }
    CHECK(worst < 5e-6);  // 17 sums of about 16 in f32
  });
}

TEST_CASE("a warp multiplies bytes") {
  std::mt19937 random(4);
  std::vector<int8_t> a(16 * 32), b(32 * 8);
  for (int8_t& x : a) x = static_cast<int8_t>(random());
  for (int8_t& x : b) x = static_cast<int8_t>(random());
  a[0] = a[1] = b[0] = b[8] = -128;
  std::vector<uint32_t> d(16 * 8);
  simt::launch(1, 32, 0, [&] {
    const int n = thread() / 4, j = thread() % 4;
    const auto word = [](const int8_t* first, int step) {
      uint32_t w = 0;
      for (int i = 0; i < 4; ++i) w |= static_cast<uint32_t>(first[i * step] & 255) << 8 * i;
      return w;
    };
    const auto word_a = [&](int row, int column) { return word(&a[row * 32 + column], 1); };
    const auto word_b = [&](int row, int column) { return word(&b[row * 8 + column], 8); };
    uint32_t sums[4] = {7, 0, ~0u, 0};
    simt::mma_16x8x32(sums, word_a(n, 4 * j), word_a(n + 8, 4 * j), word_a(n, 4 * j + 16),
                      word_a(n + 8, 4 * j + 16), word_b(4 * j, n), word_b(4 * j + 16, n));
    d[n * 8 + 2 * j] = sums[0] - 7, d[n * 8 + 2 * j + 1] = sums[1];
    d[(n + 8) * 8 + 2 * j] = sums[2] + 1, d[(n + 8) * 8 + 2 * j + 1] = sums[3];
  });
  int wrong = 0;
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      int sum = 0;
      for (int k = 0; k < 32; ++k) sum += a[i * 32 + k] * b[k * 8 + j];
      wrong += d[i * 8 + j] != static_cast<uint32_t>(sum);
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("atomics add up, over blocks on several OS threads too") {
  simt::options.workers = 3;
  for_orders([] {
    float sum = 0.0f;
    int count = 0, most = -5, least = 5, shared_total = 0;
    unsigned long long large = 0;
    unsigned owner = 99, last = 0;
    simt::launch(16, 128, 8, [&] {
      int* s = shared_ints();
      if (thread() == 0) s[0] = 0;
      __syncthreads();
      atomicAdd(s, 2);
      atomicAdd(&sum, 0.5f);
      atomicAdd(&count, 1);
      atomicMax(&most, thread() - 20);
      atomicMin(&least, thread() - 20);
      atomicMax(&large, static_cast<unsigned long long>(thread()) << 40);
      atomicCAS(&owner, 99u, blockIdx.x);
      atomicExch(&last, 1u + blockIdx.x);
      __syncthreads();
      if (thread() == 0) atomicAdd(&shared_total, s[0]);
    });
    CHECK(sum == 1024.0f);
    CHECK(count == 2048);
    CHECK(most == 107);
    CHECK(least == -20);
    CHECK(large == 127ull << 40);
    CHECK(owner < 16);
    CHECK((last >= 1 && last <= 16));
    CHECK(shared_total == 16 * 256);
  });
  simt::options.workers = 1;
}

TEST_CASE("kernels run on several OS threads at once") {
  simt::options.seed = 5;
  std::vector<int> sums(4);
  std::vector<std::thread> streams;
  for (int s = 0; s < 4; ++s) {
    streams.emplace_back([&sums, s] {
      for (int i = 0; i < 50; ++i) {
        // Other sizes every time: stacks and shared memory go from launch to launch.
        const int n = 32 * (1 + (i + s) % 4);
        simt::launch(2, n, 4 * n, [&] {
          shared_ints()[thread()] = thread();
          __syncthreads();
          const int x = shared_ints()[n - 1 - thread()];
          const int sum = __reduce_add_sync(kFullWarp, x + thread());
          if (thread() % 32 == 0) sums[s] += sum == 32 * (n - 1) ? 1 : 1000000;
        });
      }
    });
  }
  for (std::thread& t : streams) t.join();
  simt::options.seed = 0;
  for (int s = 0; s < 4; ++s) {
    int warps = 0;
    for (int i = 0; i < 50; ++i) warps += 2 * (1 + (i + s) % 4);
    CHECK(sums[s] == warps);
  }
}

TEST_CASE("what CUDA leaves undefined stops the program") {
  using Catch::Contains;
  CHECK_THAT(aborts(64,
                    [] {
                      if (thread() < 32)
                        __syncthreads();
                      else
                        __shfl_xor_sync(kFullWarp, 1, thread() == 40 ? 1 : 2);
                      if (thread() == 63) __syncwarp(1u << 31 | 1u << 30);
                    }),
             Contains("deadlock") && Contains("block 0,0,0") && Contains("thread 0 waits") &&
                 Contains("of lanes c0000000, of which 80000000"));
  CHECK_THAT(aborts(32,
                    [] {
                      if (blockIdx.x == 1 && thread() == 7)
                        __ballot_sync(kFullWarp, true);
                      else
                        __shfl_xor_sync(kFullWarp, 1, 1);
                    }),
             Contains("different collectives") && Contains("block 1,0,0 thread"));
  CHECK_THAT(aborts(32, [] { __syncwarp(thread() == 3 ? 0xFFu : ~0u); }), Contains("deadlock"));
  CHECK_THAT(aborts(32,
                    [] {
                      if (thread() < 8) __shfl_sync(0xFFu, 1, 8);
                    }),
             Contains("lane outside the mask"));
  CHECK_THAT(aborts(32,
                    [] {
                      if (thread() == 9) __syncwarp(0xFFu);
                    }),
             Contains("not in the mask") && Contains("thread 9"));
  CHECK_THAT(aborts(48, [] { __syncwarp(); }), Contains("lanes that the block lacks"));
  CHECK_THAT(aborts(32,
                    [] {
                      if (thread() == 31) return;
                      __syncwarp();
                    }),
             Contains("deadlock"));
  CHECK_THAT(aborts(32,
                    [] {
                      static const int from = 0;
                      __pipeline_memcpy_async(shared_ints() + thread(), &from, 4);
                      __pipeline_commit();
                    }),
             Contains("had not waited for") && Contains("thread 0"));
  CHECK_THAT(aborts(32,
                    [] {
                      alignas(16) static const int from[4] = {};
                      __pipeline_memcpy_async(shared_ints() + 1, from, 8);
                    }),
             Contains("misaligned"));
  CHECK_THAT(aborts(32, [] { simt::launch(1, 1, 0, [] {}); }), Contains("from a kernel"));
  CHECK_THAT(last_words([] { simt::launch(1, 1025, 0, [] {}); }), Contains("1 to 1024 threads"));
}

#if !defined(__SANITIZE_ADDRESS__)  // which stops at the write itself
TEST_CASE("writes behind the end of shared memory are seen") {
  CHECK_THAT(last_words([] { simt::launch(1, 1, 1021, [] { simt::blk->smem[1021] = 0; }); }),
             Catch::Contains("past the end"));
  CHECK(last_words([] { simt::launch(1, 1, 1021, [] { simt::blk->smem[1020] = 0; }); }).empty());
}
#endif
