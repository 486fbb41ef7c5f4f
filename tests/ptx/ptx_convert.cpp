// SPDX-License-Identifier: Apache-2.0
// cvt, and the rounding of halves, written out (host compilers have a half type of their own, which
// the host build of the kernels uses).
#include "tests/ptx/ptx_machine.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace million::ptx {

float half_to_float(uint16_t bits) {
  const uint32_t magnitude = bits & 0x7FFFu, sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  if (magnitude > 0x7C00) return std::bit_cast<float>(0x7FFFFFFFu);
  if (magnitude == 0x7C00) return std::bit_cast<float>(sign | 0x7F800000u);
  // The exponent is rebased by a product, which serves subnormals too.
  const float value = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

uint16_t round_to_half(double x, Rounding mode) {
  const auto bits = std::bit_cast<uint64_t>(x);
  const auto sign = static_cast<uint16_t>(bits >> 48 & 0x8000);
  const uint64_t magnitude = bits & 0x7FFFFFFFFFFFFFFF;
  if (x != x) return 0x7FFF;
  if (std::isinf(x)) return sign | 0x7C00;
  const int exponent = static_cast<int>(magnitude >> 52) - 1023;
  const uint64_t mantissa =
      (magnitude & 0xFFFFFFFFFFFFF) | (magnitude != 0 ? uint64_t{1} << 52 : 0);
  const int shift = std::min(63, 42 + std::max(0, -14 - exponent));  // to multiples of the last bit
  uint64_t n = mantissa >> shift;
  const uint64_t rest = mantissa & ((uint64_t{1} << shift) - 1), half = uint64_t{1} << (shift - 1);
  const bool up = mode == Rounding::kRn   ? rest > half || (rest == half && (n & 1) != 0)
                  : mode == Rounding::kRp ? rest != 0 && sign == 0
                  : mode == Rounding::kRm ? rest != 0 && sign != 0
                                          : false;
  n += up ? 1 : 0;
  const uint64_t result = n + (static_cast<uint64_t>(std::max(0, exponent + 14)) << 10);
  if (result < 0x7C00) return static_cast<uint16_t>(sign | result);
  const bool to_infinity = mode == Rounding::kRn || (mode == Rounding::kRp && sign == 0) ||
                           (mode == Rounding::kRm && sign != 0);
  return static_cast<uint16_t>(sign | (to_infinity ? 0x7C00 : 0x7BFF));
}

double sum_to_odd(double x, double y) {
  const double sum = x + y;
  if (!std::isfinite(sum)) return sum;
  const double of_y = sum - x, error = (x - (sum - of_y)) + (y - of_y);
  const auto bits = std::bit_cast<uint64_t>(sum);
  if (error == 0 || (bits & 1) != 0) return sum;
  return std::bit_cast<double>((error > 0) == (sum > 0) ? bits + 1 : bits - 1);
}

namespace {

/// Rounds a value that long double holds exactly.
float round_to_float(long double x, Rounding mode) {
  const auto r = static_cast<float>(x);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const bool above = static_cast<long double>(r) > x, below = static_cast<long double>(r) < x;
  if (above && (mode == Rounding::kRm || (mode == Rounding::kRz && x > 0)))
    return std::nextafter(r, -kInfinity);
  if (below && (mode == Rounding::kRp || (mode == Rounding::kRz && x < 0)))
    return std::nextafter(r, kInfinity);
  return r == r ? r : std::bit_cast<float>(0x7FFFFFFFu);
}

double round_to_integer(double x, Rounding mode) {
  switch (mode) {
    case Rounding::kRni:
      return std::nearbyint(x);
    case Rounding::kRmi:
      return std::floor(x);
    case Rounding::kRpi:
      return std::ceil(x);
    case Rounding::kRzi:
      return std::trunc(x);
    default:
      return x;
  }
}

/// Clamped to the type; NaN gives 0.
uint64_t to_integer(double x, Type type) {
  const int bytes = size_of(type);
  const double low = is_signed(type) ? -std::ldexp(1.0, 8 * bytes - 1) : 0.0;
  const double end = std::ldexp(1.0, 8 * bytes - (is_signed(type) ? 1 : 0));
  if (x != x) return 0;
  if (x < low) x = low;
  if (x >= end)
    return low_bytes(is_signed(type) ? ~uint64_t{0} >> (65 - 8 * bytes) : ~uint64_t{0}, bytes);
  return is_signed(type) ? static_cast<uint64_t>(static_cast<int64_t>(x))
                         : static_cast<uint64_t>(x);
}

uint64_t clamp_integer(__int128 x, Type type) {
  const int bits = 8 * size_of(type);
  const __int128 one = 1;
  const __int128 low = is_signed(type) ? -(one << (bits - 1)) : 0;
  const __int128 high = (one << (bits - (is_signed(type) ? 1 : 0))) - 1;
  return static_cast<uint64_t>(std::min(std::max(x, low), high));
}

double float_source(uint64_t v, Type type) {
  switch (type) {
    case Type::kF32:
      return std::bit_cast<float>(static_cast<uint32_t>(v));
    case Type::kF16:
      return half_to_float(static_cast<uint16_t>(v));
    default:
      return std::bit_cast<double>(v);
  }
}

bool is_subnormal(float x) { return std::fpclassify(x) == FP_SUBNORMAL; }

uint64_t to_float(const Machine& m, const Instruction& i, double x) {
  if (i.sat) x = x > 0 ? std::fmin(x, 1.0) : 0.0;
  switch (i.type) {
    case Type::kF32: {
      float r = round_to_float(x, i.rounding);
      if (i.ftz && is_subnormal(r)) r = std::copysign(0.0f, r);
      return std::bit_cast<uint32_t>(r);
    }
    case Type::kF16:
    case Type::kF16x2:
      return round_to_half(x, i.rounding == Rounding::kNone ? Rounding::kRn : i.rounding);
    case Type::kF64:
      return x == x ? std::bit_cast<uint64_t>(x) : uint64_t{0x7FFFFFFFFFFFFFFF};
    default:
      m.refuse("unsupported type");
  }
}

uint64_t convert(const Machine& m, const Instruction& i, uint64_t v) {
  const int bytes = size_of(i.from);
  if (is_float(i.from)) {
    if (i.from == Type::kF16x2 || i.from == Type::kF32x2) m.refuse("unsupported type");
    double x = float_source(v, i.from);
    if (i.ftz && i.from == Type::kF32 && is_subnormal(static_cast<float>(x)))
      x = std::copysign(0.0, x);
    x = round_to_integer(x, i.rounding);
    return is_float(i.type) ? to_float(m, i, x) : to_integer(x, i.type);
  }
  const bool with_sign = is_signed(i.from);
  const int64_t s = sign_extend(v, bytes);
  const uint64_t u = low_bytes(v, bytes);
  if (is_float(i.type)) {
    if (i.type == Type::kF32) {
      const long double x = with_sign ? static_cast<long double>(s) : static_cast<long double>(u);
      return std::bit_cast<uint32_t>(round_to_float(x, i.rounding));
    }
    return to_float(m, i, with_sign ? static_cast<double>(s) : static_cast<double>(u));
  }
  if (i.sat)
    return clamp_integer(with_sign ? static_cast<__int128>(s) : static_cast<__int128>(u), i.type);
  const uint64_t x = with_sign ? static_cast<uint64_t>(s) : u;
  return is_signed(i.type) ? static_cast<uint64_t>(sign_extend(x, size_of(i.type)))
                           : low_bytes(x, size_of(i.type));
}

/// The frequent ones.
bool convert_fast(Machine& m, Warp& w, uint32_t active) {
  const Instruction& i = *m.now;
  if (i.ftz || i.sat || i.a[0].width != 4 || i.a[1].width != 4) return false;
  uint32_t* d = m.out<uint32_t>(w, i.a[0]);
  const uint32_t* a = m.in<uint32_t>(w, i.a[1]);
  if (i.type == Type::kF32 && i.from == Type::kF16) {
    each_lane(active, [=](int l) {
      d[l] = std::bit_cast<uint32_t>(half_to_float(static_cast<uint16_t>(a[l])));
    });
  } else if (i.type == Type::kF32 && i.from == Type::kS32 && i.rounding == Rounding::kRn) {
    each_lane(active, [=](int l) {
      d[l] = std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(a[l])));
    });
  } else {
    return false;
  }
  return true;
}

/// cvt.pack.sat: d = (c <<) clamp(a) above clamp(b).
uint64_t pack(const Instruction& i, uint64_t a, uint64_t b, uint64_t c) {
  const int bits = 8 * size_of(i.type);
  const auto part = [&](uint64_t v) {
    const int bytes = size_of(i.from);
    const __int128 x = is_signed(i.from) ? static_cast<__int128>(sign_extend(v, bytes))
                                         : static_cast<__int128>(low_bytes(v, bytes));
    return clamp_integer(x, i.type) & ((uint64_t{1} << bits) - 1);
  };
  return c << 2 * bits | part(a) << bits | part(b);
}

}  // namespace

void execute_convert(Machine& m, Warp& w, uint32_t active) {
  const Instruction& i = *m.now;
  if (i.op == Op::kCvtPack) {
    each_lane_in_order(active, [&](int l) {
      const uint64_t c = i.n_operands > 3 ? m.get(w, i.a[3], l) : 0;
      m.set(w, i.a[0], l,
            static_cast<uint32_t>(pack(i, m.get(w, i.a[1], l), m.get(w, i.a[2], l), c)));
    });
  } else if (i.type == Type::kF16x2) {
    if (i.from != Type::kF32 || i.n_operands != 3) m.refuse("unsupported");
    each_lane_in_order(active, [&](int l) {
      const uint64_t high = convert(m, i, m.get(w, i.a[1], l));
      m.set(w, i.a[0], l, high << 16 | convert(m, i, m.get(w, i.a[2], l)));
    });
  } else if (!convert_fast(m, w, active)) {
    each_lane_in_order(active,
                       [&](int l) { m.set(w, i.a[0], l, convert(m, i, m.get(w, i.a[1], l))); });
  }
}

}  // namespace million::ptx
