// SPDX-License-Identifier: Apache-2.0
// Floating-point arithmetic: f32, f64, f16 and pairs. Results that are NaN are the canonical one,
// as on the device. Approximations are as exact as their type: what hardware returns lies around
// them.
#include "tests/ptx/ptx_machine.h"

#include <cmath>

namespace million::ptx {
namespace {

constexpr uint16_t kHalfNan = 0x7FFF;

float canonical(float x) { return x != x ? std::bit_cast<float>(0x7FFFFFFFu) : x; }
double canonical(double x) {
  return x != x ? std::bit_cast<double>(uint64_t{0x7FFFFFFFFFFFFFFF}) : x;
}

template <class T>
T flush(T x) {
  return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(T{0}, x) : x;
}

/// NaN gives way to a number unless .NaN; -0 is less than +0.
template <class T>
T least(T x, T y, bool keep_nan) {
  if (x != x || y != y) return keep_nan || (x != x && y != y) ? x + y : x != x ? y : x;
  return x == y ? (std::signbit(x) ? x : y) : x < y ? x : y;
}

template <class T>
T minmax(const Instruction& i, T x, T y) {
  return i.op == Op::kMin ? least(x, y, i.nan) : -least(-x, -y, i.nan);
}

bool test_property(Mode mode, double x, bool normal) {
  switch (mode) {
    case Mode::kFinite:
      return std::isfinite(x);
    case Mode::kInfinite:
      return std::isinf(x);
    case Mode::kNumber:
      return x == x;
    case Mode::kNotANumber:
      return x != x;
    case Mode::kNormal:
      return normal;
    default:
      return !normal && std::isfinite(x) && x != 0;
  }
}

/// Multiply-add of any type that a double holds with its square; the caller rounds once.
double exact_fma(double x, double y, double z) { return sum_to_odd(x * y, z); }

float approximate(Op op, float x) {
  const auto wide = static_cast<double>(x);
  switch (op) {
    case Op::kEx2:
      return static_cast<float>(std::exp2(wide));
    case Op::kLg2:
      return static_cast<float>(std::log2(wide));
    case Op::kSin:
      return static_cast<float>(std::sin(wide));
    case Op::kCos:
      return static_cast<float>(std::cos(wide));
    case Op::kTanh:
      return static_cast<float>(std::tanh(wide));
    default:
      return static_cast<float>(1.0 / std::sqrt(wide));
  }
}

float divide(const Instruction& i, float x, float y) {
  // div.approx multiplies with 1 / y, which is flushed for large divisors.
  if (i.relaxed_div && std::fabs(y) > 0x1p126f && std::isfinite(y) && x == x)
    return std::isinf(x) ? std::bit_cast<float>(0x7FFFFFFFu) : std::copysign(0.0f, x * y);
  return x / y;
}

float f32_value(const Machine& m, const Instruction& i, float x, float y, float z) {
  switch (i.op) {
    case Op::kAdd:
      return x + y;
    case Op::kSub:
      return x - y;
    case Op::kMul:
      return x * y;
    case Op::kFma:
    case Op::kMad:
      return static_cast<float>(exact_fma(x, y, z));
    case Op::kDiv:
      return divide(i, x, y);
    case Op::kMin:
    case Op::kMax: {
      const float two = minmax(i, x, y);
      return i.n_operands > 3 ? minmax(i, two, z) : two;
    }
    case Op::kNeg:
      return -x;
    case Op::kAbs:
      return std::fabs(x);
    case Op::kSqrt:
      return std::sqrt(x);
    case Op::kRcp:
      return 1.0f / x;
    case Op::kCopysign:
      return std::copysign(y, x);
    case Op::kRsqrt:
    case Op::kEx2:
    case Op::kLg2:
    case Op::kSin:
    case Op::kCos:
    case Op::kTanh:
      return approximate(i.op, x);
    default:
      m.refuse("unsupported on f32");
  }
}

float f32_result(const Machine& m, const Instruction& i, float x, float y, float z) {
  if (i.ftz) x = flush(x), y = flush(y), z = flush(z);
  float r = f32_value(m, i, x, y, z);
  if (i.op == Op::kNeg || i.op == Op::kAbs || i.op == Op::kCopysign) return i.ftz ? flush(r) : r;
  if (i.ftz) r = flush(r);
  if (i.sat) r = r > 0.0f ? std::fmin(r, 1.0f) : 0.0f;
  return canonical(r);
}

double f64_result(const Machine& m, const Instruction& i, double x, double y, double z) {
  switch (i.op) {
    case Op::kAdd:
      return canonical(x + y);
    case Op::kSub:
      return canonical(x - y);
    case Op::kMul:
      return canonical(x * y);
    case Op::kFma:
    case Op::kMad:
      return canonical(std::fma(x, y, z));
    case Op::kDiv:
      return canonical(x / y);
    case Op::kMin:
    case Op::kMax:
      return canonical(minmax(i, x, y));
    case Op::kNeg:
      return -x;
    case Op::kAbs:
      return std::fabs(x);
    case Op::kSqrt:
      return canonical(std::sqrt(x));
    case Op::kRcp:
      return canonical(1.0 / x);
    case Op::kCopysign:
      return std::copysign(y, x);
    default:
      m.refuse("unsupported on f64");
  }
}

/// Products and sums of two halves are exact in double.
uint16_t f16_result(const Machine& m, const Instruction& i, uint16_t a, uint16_t b, uint16_t c) {
  if (i.op == Op::kNeg) return a ^ 0x8000;
  if (i.op == Op::kAbs) return a & 0x7FFF;
  const double x = half_to_float(a), y = half_to_float(b), z = half_to_float(c);
  double r = 0;
  switch (i.op) {
    case Op::kAdd:
      r = x + y;
      break;
    case Op::kSub:
      r = x - y;
      break;
    case Op::kMul:
      r = x * y;
      break;
    case Op::kFma:
      r = exact_fma(x, y, z);
      break;
    case Op::kMin:
    case Op::kMax:
      r = minmax(i, x, y);
      if (i.n_operands > 3) r = minmax(i, r, z);
      break;
    case Op::kEx2:
      r = std::exp2(x);
      break;
    case Op::kTanh:
      r = std::tanh(x);
      break;
    default:
      m.refuse("unsupported on f16");
  }
  if (i.sat) r = r > 0 ? std::fmin(r, 1.0) : 0.0;
  uint16_t h = r == r ? round_to_half(r) : kHalfNan;
  if (i.ftz && (h & 0x7C00) == 0) h &= 0x8000;
  return h;
}

/// The frequent ones, all lanes at once.
__attribute__((target_clones("default", "fma"))) void fma_lanes(float* d, const float* a,
                                                                const float* b, const float* c) {
#pragma GCC ivdep
  for (int lane = 0; lane < 32; ++lane)
    d[lane] = canonical(__builtin_fmaf(a[lane], b[lane], c[lane]));
}

bool execute_fast(Machine& m, Warp& w, uint32_t active) {
  const Instruction& i = *m.now;
  if (active != kAllLanes || i.ftz || i.sat) return false;
  float* d = m.out<float>(w, i.a[0]);
  const float *a = m.in<float>(w, i.a[1]), *b = m.in<float>(w, i.a[2]);
  switch (i.op) {
    case Op::kAdd:
      each_lane(active, [=](int l) { d[l] = canonical(a[l] + b[l]); });
      return true;
    case Op::kSub:
      each_lane(active, [=](int l) { d[l] = canonical(a[l] - b[l]); });
      return true;
    case Op::kMul:
      each_lane(active, [=](int l) { d[l] = canonical(a[l] * b[l]); });
      return true;
    case Op::kFma:
      fma_lanes(d, a, b, m.in<float>(w, i.a[3]));
      return true;
    default:
      return false;
  }
}

/// Sources that an instruction does not have read its first one.
template <class T, class F>
void map(Machine& m, Warp& w, uint32_t active, F f) {
  const Instruction& i = *m.now;
  T* d = m.out<T>(w, i.a[0]);
  const T* a = m.in<T>(w, i.a[1]);
  const T* b = i.n_operands > 2 ? m.in<T>(w, i.a[2]) : a;
  const T* c = i.n_operands > 3 ? m.in<T>(w, i.a[3]) : a;
  each_lane_in_order(active, [&](int lane) { d[lane] = f(a[lane], b[lane], c[lane]); });
}

void execute_testp(Machine& m, Warp& w, uint32_t active) {
  const Instruction& i = *m.now;
  uint32_t set = 0;
  each_lane_in_order(active, [&](int lane) {
    bool is = false;
    if (i.type == Type::kF64) {
      const double x = m.in<double>(w, i.a[1])[lane];
      is = test_property(i.mode, x, std::isnormal(x));
    } else {
      const float x = m.in<float>(w, i.a[1])[lane];
      is = test_property(i.mode, x, std::isnormal(x));
    }
    set |= static_cast<uint32_t>(is) << lane;
  });
  m.set_predicate(w, i.a[0], set, active);
}

}  // namespace

void execute_float(Machine& m, Warp& w, uint32_t active) {
  const Instruction& i = *m.now;
  if (i.op == Op::kTestp) return execute_testp(m, w, active);
  const auto pair = [&](auto one) {
    return [one](uint32_t x, uint32_t y, uint32_t z) {
      const auto low = [](uint32_t v) { return static_cast<uint16_t>(v); };
      const auto high = [](uint32_t v) { return static_cast<uint16_t>(v >> 16); };
      return one(low(x), low(y), low(z)) | static_cast<uint32_t>(one(high(x), high(y), high(z)))
                                               << 16;
    };
  };
  const auto f32 = [&](float x, float y, float z) { return f32_result(m, i, x, y, z); };
  const auto f16 = [&](uint16_t x, uint16_t y, uint16_t z) { return f16_result(m, i, x, y, z); };
  switch (i.type) {
    case Type::kF32:
      if (!execute_fast(m, w, active)) map<float>(m, w, active, f32);
      return;
    case Type::kF64:
      return map<double>(m, w, active,
                         [&](double x, double y, double z) { return f64_result(m, i, x, y, z); });
    case Type::kF16:
      return map<uint32_t>(m, w, active, [&](uint32_t x, uint32_t y, uint32_t z) -> uint32_t {
        return f16(static_cast<uint16_t>(x), static_cast<uint16_t>(y), static_cast<uint16_t>(z));
      });
    case Type::kF16x2:
      return map<uint32_t>(m, w, active, pair(f16));
    case Type::kF32x2:
      return map<uint64_t>(m, w, active, [&](uint64_t x, uint64_t y, uint64_t z) {
        const auto half = [](uint64_t v, int shift) {
          return std::bit_cast<float>(static_cast<uint32_t>(v >> shift));
        };
        const float low = f32(half(x, 0), half(y, 0), half(z, 0));
        const float high = f32(half(x, 32), half(y, 32), half(z, 32));
        return std::bit_cast<uint32_t>(low) | static_cast<uint64_t>(std::bit_cast<uint32_t>(high))
                                                  << 32;
      });
    default:
      m.refuse("unsupported type");
  }
}

}  // namespace million::ptx
