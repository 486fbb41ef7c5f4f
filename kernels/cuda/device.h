// SPDX-License-Identifier: Apache-2.0
// The device primitives that kernels use, once for nvcc and once for the host (simt/). Kernels hold
// pairs of halves as uint32_t, take one argument (a struct, by value), keep shared memory in one
// dynamic arena, and name the full warp in collectives.
//
// MILLION_CUDA_NS keeps the copies of a kernel apart: the product holds the native and the emulated
// ones side by side.
#pragma once

#include "kernels/cuda/device_ops.h"

#ifdef __CUDACC__
#include <cuda_pipeline.h>
#include <cuda_runtime.h>
#ifndef MILLION_CUDA_NS
#define MILLION_CUDA_NS native
#endif
#define MILLION_UNROLL _Pragma("unroll")
#define MILLION_NO_UNROLL _Pragma("unroll 1")
#define MILLION_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#else
#include "kernels/cuda/simt/simt.h"
#ifndef MILLION_CUDA_NS
#define MILLION_CUDA_NS emulated
#endif
#define MILLION_UNROLL
#define MILLION_NO_UNROLL
#define MILLION_SHARED(name) unsigned char* const name = simt::blk->smem
#endif

#define MILLION_DEVICE __device__ __forceinline__

namespace million::cuda::MILLION_CUDA_NS {

inline constexpr unsigned kFullWarp = 0xFFFFFFFFu;

/// Bytes of (b, a) picked by the nibbles of `sel`; bit 3 of a nibble spreads the byte's sign.
MILLION_DEVICE uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t sel) {
#ifdef __CUDA_ARCH__
  uint32_t r;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(sel));
  return r;
#else
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  uint32_t r = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t s = sel >> 4 * i & 15, byte = static_cast<uint32_t>(both >> 8 * (s & 7)) & 255;
    r |= ((s & 8) != 0 ? ((byte & 128) != 0 ? 255u : 0u) : byte) << 8 * i;
  }
  return r;
#endif
}

/// 2^x; 0 for -inf.
MILLION_DEVICE float exp2_fast(float x) {
#ifdef __CUDA_ARCH__
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
#else
  return std::exp2(x);
#endif
}
MILLION_DEVICE float log2_fast(float x) {
#ifdef __CUDA_ARCH__
  float r;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
#else
  return std::log2(x);
#endif
}

/// Two floats as halves, `low` in the low 16 bits; round to nearest even.
MILLION_DEVICE uint32_t pack_halves(float low, float high) {
#ifdef __CUDA_ARCH__
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#elif defined(__CUDACC__)
  return 0;  // nvcc's own host pass
#else
  return simt::half_bits(low) | static_cast<uint32_t>(simt::half_bits(high)) << 16;
#endif
}
MILLION_DEVICE uint16_t to_half(float x) { return static_cast<uint16_t>(pack_halves(x, 0.0f)); }
MILLION_DEVICE float from_half(uint16_t h) {
#ifdef __CUDA_ARCH__
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(h));
  return r;
#elif defined(__CUDACC__)
  return static_cast<float>(h);  // nvcc's own host pass
#else
  return simt::half_value(h);
#endif
}
MILLION_DEVICE float low_half(uint32_t pair) { return from_half(static_cast<uint16_t>(pair)); }
MILLION_DEVICE float high_half(uint32_t pair) {
  return from_half(static_cast<uint16_t>(pair >> 16));
}

/// d (16x8, f32) += a (16x16 halves) * b (16x8 halves), one fragment a lane. Lane 4 n + j holds of a
/// rows n and n + 8 (a0, a1: columns 2j, 2j+1; a2, a3: columns 2j+8, 2j+9), of b column n (b0: rows
/// 2j, 2j+1; b1: rows 2j+8, 2j+9), of d rows n (d[0], d[1]) and n + 8 (d[2], d[3]), columns 2j, 2j+1.
MILLION_DEVICE void mma_16x8x16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                uint32_t b0, uint32_t b1) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#elif !defined(__CUDACC__)  // nvcc's own host pass sees neither branch
  simt::mma_16x8x16(d, a0, a1, a2, a3, b0, b1);
#endif
}

/// c plus the products of the four unsigned bytes of a and b.
MILLION_DEVICE uint32_t dot_bytes(uint32_t a, uint32_t b, uint32_t c) {
#ifdef __CUDA_ARCH__
  uint32_t r;
  asm("dp4a.u32.u32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
#else
  for (int i = 0; i < 32; i += 8) c += (a >> i & 255) * (b >> i & 255);
  return c;
#endif
}

/// d (16x8, s32) += a (16x32 signed bytes) * b (32x8 signed bytes), modulo 2^32. Lane 4 n + j holds
/// of a rows n and n + 8 (a0, a1: columns 4j to 4j+3; a2, a3: those plus 16), of b column n (b0:
/// rows 4j to 4j+3; b1: those plus 16), of d what mma_16x8x16 has.
MILLION_DEVICE void mma_16x8x32(uint32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                uint32_t a3, uint32_t b0, uint32_t b1) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#elif !defined(__CUDACC__)  // nvcc's own host pass sees neither branch
  simt::mma_16x8x32(d, a0, a1, a2, a3, b0, b1);
#endif
}

/// Four 8x8 matrices of halves from shared memory: row(lane) is the address, the same for whoever
/// asks, of row lane % 8 of matrix lane / 8 (16 bytes, aligned). Lane 4 n + j gets of matrix m, as
/// r[m], columns 2j, 2j+1 of row n; kTransposed: rows 2j, 2j+1 of column n.
template <bool kTransposed, class Row>
MILLION_DEVICE void load_matrices(uint32_t (&r)[4], const Row& row) {
  const int lane = static_cast<int>(threadIdx.x & 31);
#ifdef __CUDA_ARCH__
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row(lane)));
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
#else
  const int n = lane >> 2, j = lane & 3;
  for (int m = 0; m < 4; ++m) {
    const auto half = [&](int from, int column) {
      return static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(row(8 * m + from))[column]);
    };
    r[m] = kTransposed ? half(2 * j, n) | half(2 * j + 1, n) << 16
                       : half(n, 2 * j) | half(n, 2 * j + 1) << 16;
  }
#endif
}

/// (x & mask) | or_bits in one instruction (from two constants ptxas makes two).
MILLION_DEVICE uint32_t pick_bits(uint32_t x, uint32_t mask, uint32_t or_bits) {
#ifdef __CUDA_ARCH__
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(r) : "r"(x), "r"(mask), "r"(or_bits));
  return r;
#else
  return (x & mask) | or_bits;
#endif
}

/// a * b + c of two halves, rounded once.
MILLION_DEVICE uint32_t fma_halves(uint32_t a, uint32_t b, uint32_t c) {
#ifdef __CUDA_ARCH__
  uint32_t r;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
#elif defined(__CUDACC__)
  return 0;  // nvcc's own host pass
#else
  const auto high = [](uint32_t pair) { return static_cast<uint16_t>(pair >> 16); };
  return simt::fma_half(static_cast<uint16_t>(a), static_cast<uint16_t>(b),
                        static_cast<uint16_t>(c)) |
         static_cast<uint32_t>(simt::fma_half(high(a), high(b), high(c))) << 16;
#endif
}

/// Shared memory by 32-bit addresses, for kernels that compute them: of a pointer into it, and the
/// word at one.
MILLION_DEVICE uint32_t shared_address(const void* p) {
#ifdef __CUDA_ARCH__
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
#elif defined(__CUDACC__)
  return p ? 0 : 1;  // nvcc's own host pass
#else
  return static_cast<uint32_t>(static_cast<const unsigned char*>(p) - simt::blk->smem);
#endif
}
MILLION_DEVICE uint32_t load_shared(uint32_t address) {
#ifdef __CUDA_ARCH__
  return *static_cast<const uint32_t*>(__cvta_shared_to_generic(address));
#elif defined(__CUDACC__)
  return address;  // nvcc's own host pass
#else
  return *reinterpret_cast<const uint32_t*>(simt::blk->smem + address);
#endif
}

/// A load of what is read once.
MILLION_DEVICE uint4 load_stream(const uint4* p) {
#ifdef __CUDA_ARCH__
  return __ldcs(p);
#else
  return *p;
#endif
}
MILLION_DEVICE uint2 load_stream(const uint2* p) {
#ifdef __CUDA_ARCH__
  return __ldcs(p);
#else
  return *p;
#endif
}
MILLION_DEVICE uint32_t load_stream(const uint32_t* p) {
#ifdef __CUDA_ARCH__
  return __ldcs(p);
#else
  return *p;
#endif
}

/// Maximum and sum over the 32 lanes of a warp.
MILLION_DEVICE float warp_max(float x) {
  MILLION_UNROLL
  for (int s = 16; s > 0; s >>= 1) x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, s));
  return x;
}
MILLION_DEVICE float warp_sum(float x) {
  MILLION_UNROLL
  for (int s = 16; s > 0; s >>= 1) x += __shfl_xor_sync(kFullWarp, x, s);
  return x;
}

}  // namespace million::cuda::MILLION_CUDA_NS
