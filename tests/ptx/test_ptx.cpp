// SPDX-License-Identifier: Apache-2.0
// The interpreter's arithmetic: each family of instructions against values from the PTX manual's
// rules, edges included.
#include "tests/ptx/ptx_machine.h"
#include "tests/ptx/ptx_text.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <random>

namespace million::ptx::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const uint64_t kNan = 0x7FFFFFFF, kHalfNan = 0x7FFF, kOtherNan = 0xFFC12345;

struct Row {
  const char* instruction;
  uint64_t a, b, c, result;
};

void check(const std::vector<Row>& rows) {
  for (const Row& r : rows) {
    INFO(r.instruction << std::hex << " a " << r.a << " b " << r.b << " c " << r.c);
    CHECK(evaluate(r.instruction, r.a, r.b, r.c) == r.result);
  }
}

constexpr uint64_t m32(int64_t v) { return static_cast<uint32_t>(v); }
constexpr uint64_t m64(int64_t v) { return static_cast<uint64_t>(v); }

}  // namespace

TEST_CASE("integer arithmetic") {
  check({{"add.s32 d, a, b", m32(-1), 1, 0, 0},
         {"add.u16 h, ha, hb", 0xFFFF, 2, 0, 1},
         {"sub.s64 D, A, B", 0, 1, 0, m64(-1)},
         {"mul.lo.s32 d, a, b", m32(-3), 7, 0, m32(-21)},
         {"mul.lo.u16 h, ha, hb", 0xFFFF, 0xFFFF, 0, 1},
         {"mul.hi.u32 d, a, b", 0xFFFFFFFF, 0xFFFFFFFF, 0, 0xFFFFFFFE},
         {"mul.hi.s32 d, a, b", m32(-1), 1, 0, m32(-1)},
         {"mul.hi.u64 D, A, B", ~0ull, ~0ull, 0, ~1ull},
         {"mul.hi.s64 D, A, B", m64(-5), 3, 0, m64(-1)},
         {"mul.wide.s32 D, a, b", m32(-2), 3, 0, m64(-6)},
         {"mul.wide.u32 D, a, b", m32(-2), 3, 0, 0x2FFFFFFFAull},
         {"mul.wide.s16 d, ha, hb", 0xFFFE, 3, 0, m32(-6)},
         {"mul.wide.u16 d, ha, hb", 0xFFFE, 3, 0, 0x2FFFA},
         {"mad.lo.s32 d, a, b, c", 5, m32(-2), 3, m32(-7)},
         {"mad.lo.s64 D, A, B, C", 5, m64(-2), 3, m64(-7)},
         {"mad.hi.u32 d, a, b, c", 0x80000000, 4, 3, 5},
         {"mad.wide.s32 D, a, b, C", m32(-1), 5, 2, m64(-3)},
         {"mad.wide.u16 d, ha, hb, c", 0xFFFF, 2, 1, 0x1FFFF},
         {"div.s32 d, a, b", m32(-7), 2, 0, m32(-3)},
         {"div.u32 d, a, b", m32(-7), 2, 0, 0x7FFFFFFC},
         {"div.s32 d, a, b", 0x80000000, m32(-1), 0, 0x80000000},
         {"div.u32 d, a, b", 5, 0, 0, 0xFFFFFFFF},
         {"rem.s32 d, a, b", m32(-7), 2, 0, m32(-1)},
         {"rem.u64 D, A, B", 100, 7, 0, 2},
         {"min.s32 d, a, b", m32(-1), 1, 0, m32(-1)},
         {"min.u32 d, a, b", m32(-1), 1, 0, 1},
         {"max.s16 h, ha, hb", 0x8000, 1, 0, 1},
         {"max.u64 D, A, B", m64(-1), 1, 0, m64(-1)},
         {"neg.s32 d, a", 5, 0, 0, m32(-5)},
         {"abs.s32 d, a", m32(-5), 0, 0, 5},
         {"abs.s64 D, A", m64(-5), 0, 0, 5},
         {"sad.s32 d, a, b, c", m32(-2), 3, 10, 15},
         {"dp4a.s32.s32 d, a, b, c", 0x80FF0102, 0x0203FF04, 10, m32(-256 - 3 - 1 + 8 + 10)},
         {"dp4a.u32.s32 d, a, b, c", 0x80FF0102, 0x0203FF04, 10, m32(256 + 765 - 1 + 8 + 10)},
         {"dp2a.lo.s32.u32 d, a, b, c", 0xFFFF0003, 0x01020304, 1, m32(12 - 3 + 1)},
         {"dp2a.hi.u32.u32 d, a, b, c", 0x00020003, 0x01020304, 1, 3 * 2 + 2 * 1 + 1}});
}

TEST_CASE("bits, shifts and logic") {
  check({{"and.b32 d, a, b", 0xF0F0, 0xFF00, 0, 0xF000},
         {"or.b64 D, A, B", 1ull << 63, 1, 0, (1ull << 63) | 1},
         {"xor.b16 h, ha, hb", 0xFFFF, 0x0F0F, 0, 0xF0F0},
         {"not.b32 d, a", 5, 0, 0, ~5u},
         {"cnot.b32 d, a", 0, 0, 0, 1},
         {"shl.b32 d, a, b", 3, 31, 0, 0x80000000},
         {"shl.b32 d, a, b", 3, 32, 0, 0},
         {"shl.b64 D, A, b", 1, 63, 0, 1ull << 63},
         {"shr.u32 d, a, b", 0x80000000, 31, 0, 1},
         {"shr.u32 d, a, b", 0x80000000, 99, 0, 0},
         {"shr.s32 d, a, b", 0x80000000, 99, 0, m32(-1)},
         {"shr.s16 h, ha, b", 0x8000, 4, 0, 0xF800},
         {"shr.s64 D, A, b", m64(-8), 1, 0, m64(-4)},
         {"shf.l.wrap.b32 d, a, b, c", 0x80000001, 0xF0000000, 4, 0x00000008},
         {"shf.r.wrap.b32 d, a, b, c", 0x12345678, 0x9ABCDEF0, 36, 0x01234567},
         {"shf.r.clamp.b32 d, a, b, c", 0x12345678, 0x9ABCDEF0, 36, 0x9ABCDEF0},
         {"shf.l.clamp.b32 d, a, b, c", 0x12345678, 0x9ABCDEF0, 32, 0x12345678},
         {"bfe.u32 d, a, b, c", 0x12345678, 8, 12, 0x456},
         {"bfe.s32 d, a, b, c", 0x00000F00, 8, 4, m32(-1)},
         {"bfe.s32 d, a, b, c", 0x80000000, 28, 8, m32(-8)},
         {"bfe.u32 d, a, b, c", 0x80000000, 40, 8, 0},
         {"bfe.u64 D, A, b, c", 0x123456789ABCDEF0, 32, 16, 0x5678},
         {"bfi.b32 d, a, b, c, 8", 0xAB, 0xFFFFFFFF, 4, 0xFFFFFABF},
         {"bfi.b32 d, a, b, c, 8", 0xAB, 0xFFFFFFFF, 33, 0xFFFFFFFF},
         {"bfi.b64 D, A, B, c, 16", 0xABCD, 0, 40, 0xABCD0000000000},
         {"popc.b32 d, a", 0xF00F, 0, 0, 8},
         {"popc.b64 d, A", ~0ull, 0, 0, 64},
         {"clz.b32 d, a", 1, 0, 0, 31},
         {"clz.b64 d, A", 0, 0, 0, 64},
         {"brev.b32 d, a", 1, 0, 0, 0x80000000},
         {"bfind.u32 d, a", 0x10, 0, 0, 4},
         {"bfind.u32 d, a", 0, 0, 0, 0xFFFFFFFF},
         {"bfind.s32 d, a", m32(-2), 0, 0, 0},
         {"bfind.shiftamt.u32 d, a", 0x10, 0, 0, 27},
         {"prmt.b32 d, a, b, c", 0x33221100, 0x77665544, 0x7520, 0x77552200},
         {"prmt.b32 d, a, b, c", 0x00008000, 0, 0x9181, 0xFF800080},
         {"lop3.b32 d, a, b, c, 0x96", 0xFF00, 0xF0F0, 0xCCCC, 0xFF00 ^ 0xF0F0 ^ 0xCCCC},
         {"lop3.b32 d, a, b, c, 0xEA", 0xFF00, 0xF0F0, 0xCCCC, (0xFF00 & 0xF0F0) | 0xCCCC},
         {"selp.b32 d, a, b, q", 1, 2, 0, 2},
         {"selp.b32 d, a, b, !q", 1, 2, 0, 1},
         {"slct.b32.s32 d, a, b, c", 1, 2, m32(-1), 2},
         {"slct.b32.f32 d, a, b, c", 1, 2, bits(0.0f), 1},
         {"slct.b32.f32 d, a, b, c", 1, 2, kNan, 2}});
}

TEST_CASE("f32: rounding, NaN, subnormals, saturation") {
  const float tiny = 0x1p-140f;
  check({{"add.f32 d, a, b", bits(1.0f), bits(0x1p-24f), 0, bits(1.0f)},
         {"add.f32 d, a, b", bits(1.0f), bits(0x1.8p-24f), 0, bits(1.0f + 0x1p-23f)},
         {"add.f32 d, a, b", bits(kInfinity), bits(-kInfinity), 0, kNan},
         {"add.f32 d, a, b", kOtherNan, bits(1.0f), 0, kNan},
         {"add.ftz.f32 d, a, b", bits(tiny), bits(tiny), 0, 0},
         {"add.f32 d, a, b", bits(tiny), bits(tiny), 0, bits(2 * tiny)},
         {"add.sat.f32 d, a, b", bits(0.75f), bits(0.75f), 0, bits(1.0f)},
         {"add.sat.f32 d, a, b", kNan, bits(0.75f), 0, 0},
         {"sub.f32 d, a, b", bits(1.0f), bits(3.0f), 0, bits(-2.0f)},
         {"mul.f32 d, a, b", bits(-0.0f), bits(3.0f), 0, bits(-0.0f)},
         {"mul.f32 d, a, b", bits(0.0f), bits(kInfinity), 0, kNan},
         // one rounding: the product alone would round to 1
         {"fma.rn.f32 d, a, b, c", bits(1.0f + 0x1p-23f), bits(1.0f - 0x1p-23f), bits(-1.0f),
          bits(-0x1p-46f)},
         {"fma.rn.ftz.f32 d, a, b, c", bits(1.0f + 0x1p-23f), bits(1.0f - 0x1p-23f), bits(-1.0f),
          bits(-0x1p-46f)},
         {"div.rn.f32 d, a, b", bits(1.0f), bits(3.0f), 0, bits(1.0f / 3.0f)},
         {"div.full.f32 d, a, b", bits(1.0f), bits(0.0f), 0, bits(kInfinity)},
         {"div.approx.f32 d, a, b", bits(1.0f), bits(-0x1p127f), 0, bits(-0.0f)},
         {"div.approx.f32 d, a, b", bits(3.0f), bits(2.0f), 0, bits(1.5f)},
         {"min.f32 d, a, b", kOtherNan, bits(1.0f), 0, bits(1.0f)},
         {"min.f32 d, a, b", kOtherNan, kOtherNan, 0, kNan},
         {"min.NaN.f32 d, a, b", kOtherNan, bits(1.0f), 0, kNan},
         {"min.f32 d, a, b", bits(0.0f), bits(-0.0f), 0, bits(-0.0f)},
         {"max.f32 d, a, b", bits(-0.0f), bits(0.0f), 0, bits(0.0f)},
         {"max.f32 d, a, b, c", bits(1.0f), bits(5.0f), bits(3.0f), bits(5.0f)},
         {"max.f32 d, a, b", bits(-kInfinity), kOtherNan, 0, bits(-kInfinity)},
         {"neg.f32 d, a", bits(0.0f), 0, 0, bits(-0.0f)},
         {"abs.f32 d, a", bits(-2.0f), 0, 0, bits(2.0f)},
         {"sqrt.rn.f32 d, a", bits(2.0f), 0, 0, bits(std::sqrt(2.0f))},
         {"sqrt.rn.f32 d, a", bits(-1.0f), 0, 0, kNan},
         {"rcp.rn.f32 d, a", bits(3.0f), 0, 0, bits(1.0f / 3.0f)},
         {"rcp.approx.ftz.f32 d, a", bits(tiny), 0, 0, bits(kInfinity)},
         {"rsqrt.approx.f32 d, a", bits(4.0f), 0, 0, bits(0.5f)},
         {"rsqrt.approx.f32 d, a", bits(0.0f), 0, 0, bits(kInfinity)},
         {"ex2.approx.ftz.f32 d, a", bits(-kInfinity), 0, 0, 0},
         {"ex2.approx.ftz.f32 d, a", bits(10.0f), 0, 0, bits(1024.0f)},
         {"ex2.approx.ftz.f32 d, a", bits(-140.0f), 0, 0, 0},
         {"ex2.approx.f32 d, a", bits(-140.0f), 0, 0, bits(tiny)},
         {"lg2.approx.f32 d, a", bits(8.0f), 0, 0, bits(3.0f)},
         {"lg2.approx.f32 d, a", bits(0.0f), 0, 0, bits(-kInfinity)},
         {"lg2.approx.f32 d, a", bits(-1.0f), 0, 0, kNan},
         {"sin.approx.f32 d, a", bits(0.5f), 0, 0, bits(static_cast<float>(std::sin(0.5)))},
         {"cos.approx.f32 d, a", bits(0.5f), 0, 0, bits(static_cast<float>(std::cos(0.5)))},
         {"tanh.approx.f32 d, a", bits(0.5f), 0, 0, bits(static_cast<float>(std::tanh(0.5)))},
         {"copysign.f32 d, a, b", bits(-1.0f), bits(2.0f), 0, bits(-2.0f)},
         {"testp.infinite.f32 p, a", bits(-kInfinity), 0, 0, 1},
         {"testp.subnormal.f32 p, a", bits(tiny), 0, 0, 1},
         {"testp.normal.f32 p, a", bits(tiny), 0, 0, 0},
         {"testp.notanumber.f32 p, a", kNan, 0, 0, 1},
         {"testp.finite.f32 p, a", kNan, 0, 0, 0},
         {"add.rn.f32x2 D, A, B", bits(1.0f) | bits(2.0f) << 32, bits(3.0f) | bits(5.0f) << 32, 0,
          bits(4.0f) | bits(7.0f) << 32},
         {"fma.rn.f64 D, A, B, C", bits(3.0), bits(0.5), bits(-1.0), bits(0.5)},
         {"div.rn.f64 D, A, B", bits(1.0), bits(3.0), 0, bits(1.0 / 3.0)}});
}

TEST_CASE("f16 and pairs: one rounding") {
  check({{"add.f16 h, ha, hb", 0x3C00, 0x1000, 0, 0x3C00},  // a tie: to even
         {"add.f16 h, ha, hb", 0x3C01, 0x1000, 0, 0x3C02},
         {"sub.f16 h, ha, hb", 0x3C00, 0x3C00, 0, 0},
         {"mul.f16 h, ha, hb", 0x7BFF, 0x4000, 0, 0x7C00},
         {"mul.f16 h, ha, hb", 0x0001, 0x3800, 0, 0},
         {"mul.f16 h, ha, hb", 0x0003, 0x3800, 0, 0x0002},
         {"fma.rn.f16 h, ha, hb, hc", 0x3C01, 0x3C01, 0xBC00, 0x1800},
         // 1 + 2^-10 + 2^-11 - 2^-31: rounded to f32 first it would be a tie, and go up
         {"fma.rn.f16 h, ha, hb, hc", 0x1001, 0x3BFE, 0x3C01, 0x3C01},
         {"fma.rn.f16x2 d, a, b, c", 0x40003C00, 0x42004200, 0x3C003C00, 0x47004400},
         {"add.f16x2 d, a, b", 0x3C00C000, 0x3C003C00, 0, 0x4000BC00},
         {"mul.f16x2 d, a, b", 0x3C004000, 0x42004200, 0, 0x42004600},
         {"min.f16 h, ha, hb", kHalfNan, 0x3C00, 0, 0x3C00},
         {"max.f16x2 d, a, b", 0x7FFF3C00, 0xFE00BC00, 0, 0x7FFF3C00},
         {"max.NaN.f16 h, ha, hb", kHalfNan, 0x3C00, 0, kHalfNan},
         {"neg.f16x2 d, a", 0x3C008000, 0, 0, 0xBC000000},
         {"abs.f16 h, ha", 0xBC00, 0, 0, 0x3C00},
         {"ex2.approx.f16x2 d, a", 0x40003C00, 0, 0, 0x44004000},
         {"ex2.approx.f16 h, ha", 0xFC00, 0, 0, 0}});
}

TEST_CASE("rounding of halves agrees with the compiler's, for every half and between") {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const auto x = static_cast<float>(std::bit_cast<_Float16>(static_cast<uint16_t>(h)));
    const float ours = half_to_float(static_cast<uint16_t>(h));
    if (x != x) {
      REQUIRE(ours != ours);
      continue;
    }
    REQUIRE(bits(ours) == bits(x));
    REQUIRE(round_to_half(x) == h);
  }
  std::mt19937_64 random(1);
  for (int k = 0; k < 200000; ++k) {
    const int exponent = static_cast<int>(random() % 50) - 30;
    const auto mantissa = static_cast<int64_t>(random() >> (random() % 45 + 11));
    const double x = std::ldexp(static_cast<double>(mantissa), exponent - 40) * (k % 2 ? -1 : 1);
    REQUIRE(round_to_half(x) == std::bit_cast<uint16_t>(static_cast<_Float16>(x)));
  }
  CHECK(round_to_half(1.0 + 0x1p-11 + 0x1p-40, Rounding::kRz) == 0x3C00);
  CHECK(round_to_half(1.0 + 0x1p-40, Rounding::kRp) == 0x3C01);
  CHECK(round_to_half(-1.0 - 0x1p-40, Rounding::kRp) == 0xBC00);
  CHECK(round_to_half(-1.0 - 0x1p-40, Rounding::kRm) == 0xBC01);
  CHECK(round_to_half(70000.0, Rounding::kRz) == 0x7BFF);
}

TEST_CASE("conversions") {
  check({{"cvt.rn.f16.f32 h, a", bits(65520.0f), 0, 0, 0x7C00},
         {"cvt.rz.f16.f32 h, a", bits(65535.0f), 0, 0, 0x7BFF},
         {"cvt.rn.f16.f32 h, a", kOtherNan, 0, 0, kHalfNan},
         {"cvt.f32.f16 d, ha", 0x0001, 0, 0, bits(0x1p-24f)},
         {"cvt.f32.f16 d, ha", 0xFC00, 0, 0, bits(-kInfinity)},
         {"cvt.f32.f16 d, ha", 0xFE00, 0, 0, kNan},
         {"cvt.rn.f16x2.f32 d, a, b", bits(1.0f), bits(-2.0f), 0, 0x3C00C000},
         {"cvt.rni.s32.f32 d, a", bits(2.5f), 0, 0, 2},
         {"cvt.rni.s32.f32 d, a", bits(-3.5f), 0, 0, m32(-4)},
         {"cvt.rzi.s32.f32 d, a", bits(-3.5f), 0, 0, m32(-3)},
         {"cvt.rmi.s32.f32 d, a", bits(-3.2f), 0, 0, m32(-4)},
         {"cvt.rpi.s32.f32 d, a", bits(3.2f), 0, 0, 4},
         {"cvt.rzi.s32.f32 d, a", bits(1e20f), 0, 0, 0x7FFFFFFF},
         {"cvt.rzi.s32.f32 d, a", bits(-1e20f), 0, 0, 0x80000000},
         {"cvt.rzi.u32.f32 d, a", bits(-1.0f), 0, 0, 0},
         {"cvt.rzi.u32.f32 d, a", bits(4294967296.0f), 0, 0, 0xFFFFFFFF},
         {"cvt.rzi.s32.f32 d, a", kNan, 0, 0, 0},
         {"cvt.rzi.s8.f32 d, a", bits(-200.0f), 0, 0, m32(-128)},
         {"cvt.rzi.s64.f32 D, a", bits(-200.0f), 0, 0, m64(-200)},
         {"cvt.rzi.u64.f32 D, a", bits(1e30f), 0, 0, ~0ull},
         {"cvt.rni.f32.f32 d, a", bits(0.5f), 0, 0, bits(0.0f)},
         {"cvt.rmi.f32.f32 d, a", bits(-0.5f), 0, 0, bits(-1.0f)},
         {"cvt.sat.f32.f32 d, a", bits(1.5f), 0, 0, bits(1.0f)},
         {"cvt.ftz.f32.f32 d, a", bits(-0x1p-140f), 0, 0, bits(-0.0f)},
         {"cvt.rn.f32.s32 d, a", m32(-16777217), 0, 0, bits(-16777216.0f)},
         {"cvt.rz.f32.u32 d, a", 0xFFFFFFFF, 0, 0, bits(0x1.fffffep31f)},
         {"cvt.rp.f32.u32 d, a", 16777217, 0, 0, bits(16777218.0f)},
         {"cvt.rn.f32.u32 d, a", 0xFFFFFFFF, 0, 0, bits(4294967296.0f)},
         {"cvt.rn.f32.u64 d, A", (1ull << 63) + 1, 0, 0, bits(0x1p63f)},
         {"cvt.rn.f32.s8 d, a", 0xFF, 0, 0, bits(-1.0f)},
         {"cvt.rn.f16.s32 h, a", 2049, 0, 0, 0x6800},
         {"cvt.rn.f32.f64 d, A", bits(1.0 + 0x1p-24), 0, 0, bits(1.0f)},
         {"cvt.rm.f32.f64 d, A", bits(-1.0 - 0x1p-30), 0, 0, bits(-1.0f - 0x1p-23f)},
         {"cvt.f64.f32 D, a", bits(0.1f), 0, 0, bits(static_cast<double>(0.1f))},
         {"cvt.s32.s8 d, a", 0x80, 0, 0, m32(-128)},
         {"cvt.u32.u8 d, a", 0x1FF, 0, 0, 0xFF},
         {"cvt.s64.s32 D, a", m32(-5), 0, 0, m64(-5)},
         {"cvt.u64.u32 D, a", m32(-5), 0, 0, m32(-5)},
         {"cvt.s16.s8 h, ha", 0x80, 0, 0, 0xFF80},
         {"cvt.sat.s8.s32 d, a", 300, 0, 0, 127},
         {"cvt.sat.u8.s32 d, a", m32(-3), 0, 0, 0},
         {"cvt.sat.s32.u32 d, a", 0xFFFFFFFF, 0, 0, 0x7FFFFFFF},
         {"cvt.pack.sat.s8.s32.b32 d, a, b, c", 300, m32(-300), 0x1234, 0x12347F80},
         {"cvt.pack.sat.u8.s32.b32 d, a, b, c", 300, m32(-300), 0x1234, 0x1234FF00}});
}

TEST_CASE("comparisons, NaN ordered and not") {
  const uint64_t one = bits(1.0f), two = bits(2.0f);
  const char* names[] = {"eq",  "ne",  "lt",  "le",  "gt",  "ge",  "equ",
                         "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};
  // 1 ? 2, 2 ? 1, 1 ? 1, NaN ? 1
  const int expected[][4] = {{0, 0, 1, 0}, {1, 1, 0, 0}, {1, 0, 0, 0}, {1, 0, 1, 0}, {0, 1, 0, 0},
                             {0, 1, 1, 0}, {0, 0, 1, 1}, {1, 1, 0, 1}, {1, 0, 0, 1}, {1, 0, 1, 1},
                             {0, 1, 0, 1}, {0, 1, 1, 1}, {1, 1, 1, 0}, {0, 0, 0, 1}};
  for (std::size_t k = 0; k < std::size(names); ++k) {
    const std::string i = std::string("setp.") + names[k] + ".f32 p, a, b";
    INFO(i);
    CHECK(evaluate(i, one, two) == static_cast<uint64_t>(expected[k][0]));
    CHECK(evaluate(i, two, one) == static_cast<uint64_t>(expected[k][1]));
    CHECK(evaluate(i, one, one) == static_cast<uint64_t>(expected[k][2]));
    CHECK(evaluate(i, kOtherNan, one) == static_cast<uint64_t>(expected[k][3]));
  }
  check({{"setp.lt.s32 p, a, b", m32(-1), 1, 0, 1},
         {"setp.lt.u32 p, a, b", m32(-1), 1, 0, 0},
         {"setp.lo.u32 p, a, b", 1, 2, 0, 1},
         {"setp.hs.u64 p, A, B", 1, 2, 0, 0},
         {"setp.gt.s16 p, ha, hb", 0x8000, 0, 0, 0},
         {"setp.lt.f16 p, ha, hb", 0xBC00, 0x3C00, 0, 1},
         {"setp.eq.f32 p, a, b", bits(0.0f), bits(-0.0f), 0, 1},
         {"setp.gt.ftz.f32 p, a, b", bits(0x1p-140f), bits(0.0f), 0, 0},
         {"setp.lt.f64 p, A, B", bits(1.0), bits(2.0), 0, 1},
         {"setp.lt.and.s32 p, a, b, q", 1, 2, 0, 0},
         {"setp.lt.or.s32 p, a, b, !q", 2, 1, 0, 1},
         {"setp.eq.xor.s32 p, a, b, q", 1, 1, 1, 0},
         {"set.lt.u32.s32 d, a, b", 1, 2, 0, 0xFFFFFFFF},
         {"set.lt.f32.s32 d, a, b", 1, 2, 0, bits(1.0f)},
         {"not.pred p, q", 0, 0, 1, 0},
         {"and.pred p, q, !q", 0, 0, 1, 0}});
  // The second result is the comparison's opposite, combined alike.
  CHECK(evaluate("mov.pred p, q;\nsetp.lt.and.s32 s1|p, a, b, q", 1, 2, 1) == 0);
}

TEST_CASE("moves pack and unpack, names have scopes") {
  check({{"mov.b64 D, {a, b}", 1, 2, 0, 2ull << 32 | 1},
         {"mov.b32 d, {ha, hb}", 0x1234, 0x5678, 0, 0x56781234},
         {"mov.b64 D, {ha, hb, hc, ha}", 1, 2, 3, 0x0001000300020001},
         {"mov.u32 d, 0x10", 0, 0, 0, 16},
         {"mov.f32 d, 0f3F800000", 0, 0, 0, bits(1.0f)},
         {"mov.f64 D, 0d3FF0000000000000", 0, 0, 0, bits(1.0)},
         {"add.s32 d, a, -5", 3, 0, 0, m32(-2)}});
  const std::string unpack = "{ .reg .b32 low, high; mov.b64 {low, high}, A; mov.b32 d, high; }\n";
  Program scopes("ld.global.u64 A, [P];\n" + unpack + unpack +
                 "{ .reg .b64 low; mov.u64 low, 7; add.u64 A, A, low; }\n"
                 "cvt.u64.u32 D, d; add.u64 D, D, A; st.global.u64 [P], D;");
  CHECK(scopes.run({5ull << 32}, 1)[0] == (5ull << 32) + 7 + 5);
}

}  // namespace million::ptx::test
