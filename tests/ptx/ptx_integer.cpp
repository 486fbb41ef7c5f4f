// SPDX-License-Identifier: Apache-2.0
// Integers, bits and predicates.
#include "tests/ptx/ptx_machine.h"

#include <algorithm>

namespace million::ptx {
namespace {

template <class T>
T high_product(T x, T y) {
  if constexpr (sizeof(T) == 8) {
    __extension__ using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return static_cast<T>(static_cast<Wide>(x) * static_cast<Wide>(y) >> 64);
  } else {
    using Wide = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
    return static_cast<T>(static_cast<Wide>(x) * static_cast<Wide>(y) >> 8 * sizeof(T));
  }
}

template <class T, class F>
void unary(Machine& m, Warp& w, uint32_t active, F f) {
  const Instruction& i = *m.now;
  Slot<T>* d = m.out<Slot<T>>(w, i.a[0]);
  const Slot<T>* a = m.in<Slot<T>>(w, i.a[1]);
  each_lane(active, [=](int l) { d[l] = to_slot<T>(static_cast<T>(f(from_slot<T>(a[l])))); });
}
template <class T, class F>
void binary(Machine& m, Warp& w, uint32_t active, F f) {
  const Instruction& i = *m.now;
  Slot<T>* d = m.out<Slot<T>>(w, i.a[0]);
  const Slot<T>*a = m.in<Slot<T>>(w, i.a[1]), *b = m.in<Slot<T>>(w, i.a[2]);
  each_lane(active, [=](int l) {
    d[l] = to_slot<T>(static_cast<T>(f(from_slot<T>(a[l]), from_slot<T>(b[l]))));
  });
}
template <class T, class F>
void ternary(Machine& m, Warp& w, uint32_t active, F f) {
  const Instruction& i = *m.now;
  Slot<T>* d = m.out<Slot<T>>(w, i.a[0]);
  const Slot<T>*a = m.in<Slot<T>>(w, i.a[1]), *b = m.in<Slot<T>>(w, i.a[2]),
        *c = m.in<Slot<T>>(w, i.a[3]);
  each_lane(active, [=](int l) {
    d[l] =
        to_slot<T>(static_cast<T>(f(from_slot<T>(a[l]), from_slot<T>(b[l]), from_slot<T>(c[l]))));
  });
}

/// Shift amounts are 32 bits wide and saturate.
template <class T, class F>
void shift(Machine& m, Warp& w, uint32_t active, F f) {
  const Instruction& i = *m.now;
  Slot<T>* d = m.out<Slot<T>>(w, i.a[0]);
  const Slot<T>* a = m.in<Slot<T>>(w, i.a[1]);
  const uint32_t* b = m.in<uint32_t>(w, i.a[2]);
  each_lane(active, [=](int l) { d[l] = to_slot<T>(static_cast<T>(f(from_slot<T>(a[l]), b[l]))); });
}

/// mul.wide and mad.wide: the result has twice the width.
template <class T>
void wide(Machine& m, Warp& w, uint32_t active) {
  if constexpr (sizeof(T) == 8) {
    m.refuse("unsupported");
  } else {
    using W = std::conditional_t<sizeof(T) == 2,
                                 std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>,
                                 std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;
    using U = std::make_unsigned_t<W>;
    const Instruction& i = *m.now;
    Slot<W>* d = m.out<Slot<W>>(w, i.a[0]);
    const Slot<T>*a = m.in<Slot<T>>(w, i.a[1]), *b = m.in<Slot<T>>(w, i.a[2]);
    const Slot<W>* c = i.op == Op::kMad ? m.in<Slot<W>>(w, i.a[3]) : nullptr;
    each_lane(active, [=](int l) {
      const W product = static_cast<W>(from_slot<T>(a[l])) * static_cast<W>(from_slot<T>(b[l]));
      d[l] = static_cast<U>(product) + (c ? c[l] : 0);
    });
  }
}

template <class T>
void multiply(Machine& m, Warp& w, uint32_t active) {
  using U = std::make_unsigned_t<T>;
  const Instruction& i = *m.now;
  if (i.mode == Mode::kWide) return wide<T>(m, w, active);
  const bool high = i.mode == Mode::kHi;
  const auto low = [](T x, T y) {
    return static_cast<U>(static_cast<Slot<T>>(static_cast<U>(x)) * static_cast<U>(y));
  };
  const auto sum = [](U x, T y) { return static_cast<U>(x + static_cast<U>(y)); };
  if (i.op == Op::kMul && high)
    binary<T>(m, w, active, [](T x, T y) { return high_product(x, y); });
  else if (i.op == Op::kMul)
    binary<T>(m, w, active, low);
  else if (high)
    ternary<T>(m, w, active,
               [=](T x, T y, T z) { return sum(static_cast<U>(high_product(x, y)), z); });
  else
    ternary<T>(m, w, active, [=](T x, T y, T z) { return sum(low(x, y), z); });
}

/// Division by zero gives all ones on the device; so does the most negative number by -1 wrap.
template <class T>
T quotient(T x, T y) {
  if (y == 0) return static_cast<T>(-1);
  if constexpr (std::is_signed_v<T>)
    if (y == -1) return static_cast<T>(-static_cast<std::make_unsigned_t<T>>(x));
  return static_cast<T>(x / y);
}
template <class T>
T remainder_of(T x, T y) {
  if (y == 0) return x;
  if constexpr (std::is_signed_v<T>)
    if (y == -1) return 0;
  return static_cast<T>(x % y);
}

template <class T>
bool extract(Machine& m, Warp& w, uint32_t active) {
  const Instruction& i = *m.now;
  constexpr uint32_t kBits = 8 * sizeof(T);
  using U = std::make_unsigned_t<T>;
  if (i.op == Op::kBfe) {
    Slot<T>* d = m.out<Slot<T>>(w, i.a[0]);
    const Slot<T>* a = m.in<Slot<T>>(w, i.a[1]);
    const uint32_t *at = m.in<uint32_t>(w, i.a[2]), *length = m.in<uint32_t>(w, i.a[3]);
    each_lane_in_order(active, [&](int l) {
      const uint32_t p = at[l] & 255, n = length[l] & 255;
      const T x = from_slot<T>(a[l]);
      const U all = static_cast<U>(x);
      U r = p < kBits ? static_cast<U>(all >> p) : U{0};
      if (n < kBits) r &= static_cast<U>((U{1} << n) - 1);
      // The sign is the last bit of the field, or of the source where the field ends behind it.
      const uint32_t sign_at = std::min(p + n - 1, kBits - 1);
      const bool negative = std::is_signed_v<T> && n > 0 && (all >> sign_at & 1) != 0;
      const uint32_t have = std::min(n, p < kBits ? kBits - p : 0);
      if (negative && have < kBits) r |= static_cast<U>(~U{0} << have);
      d[l] = to_slot<T>(static_cast<T>(r));
    });
    return true;
  }
  if (i.op != Op::kBfi) return false;
  Slot<T>* d = m.out<Slot<T>>(w, i.a[0]);
  const Slot<T>*a = m.in<Slot<T>>(w, i.a[1]), *b = m.in<Slot<T>>(w, i.a[2]);
  const uint32_t *at = m.in<uint32_t>(w, i.a[3]), *length = m.in<uint32_t>(w, i.a[4]);
  each_lane_in_order(active, [&](int l) {
    const uint32_t p = at[l] & 255, n = length[l] & 255;
    U mask = n >= kBits ? static_cast<U>(~U{0}) : static_cast<U>((U{1} << n) - 1);
    mask = p < kBits ? static_cast<U>(mask << p) : U{0};
    const U moved = p < kBits ? static_cast<U>(static_cast<U>(a[l]) << p) : U{0};
    d[l] = static_cast<U>((static_cast<U>(b[l]) & static_cast<U>(~mask)) | (moved & mask));
  });
  return true;
}

/// Results of 32 bits about a source of T.
template <class T>
bool count_bits(Machine& m, Warp& w, uint32_t active) {
  using U = std::make_unsigned_t<T>;
  const Instruction& i = *m.now;
  if (i.op != Op::kPopc && i.op != Op::kClz && i.op != Op::kBfind) return false;
  uint32_t* d = m.out<uint32_t>(w, i.a[0]);
  const Slot<T>* a = m.in<Slot<T>>(w, i.a[1]);
  each_lane_in_order(active, [&](int l) {
    U x = static_cast<U>(a[l]);
    if (i.op == Op::kPopc) {
      d[l] = static_cast<uint32_t>(std::popcount(x));
    } else if (i.op == Op::kClz) {
      d[l] = static_cast<uint32_t>(std::countl_zero(x));
    } else {  // the highest bit that differs from the sign
      if (std::is_signed_v<T> && static_cast<T>(x) < 0) x = static_cast<U>(~x);
      const auto zeros = static_cast<uint32_t>(std::countl_zero(x));
      d[l] = x == 0 ? ~0u : i.shift_amount ? zeros : 8 * sizeof(T) - 1 - zeros;
    }
  });
  return true;
}

uint64_t reversed(uint64_t v, int bits) {
  uint64_t r = 0;
  for (int k = 0; k < bits; ++k) r |= (v >> k & 1) << (bits - 1 - k);
  return r;
}

template <class T>
void integer(Machine& m, Warp& w, uint32_t active) {
  using U = std::make_unsigned_t<T>;
  constexpr uint32_t kBits = 8 * sizeof(T);
  const auto u = [](T x) { return static_cast<U>(x); };
  switch (m.now->op) {
    case Op::kAdd:
      return binary<T>(m, w, active, [=](T x, T y) { return u(x) + u(y); });
    case Op::kSub:
      return binary<T>(m, w, active, [=](T x, T y) { return u(x) - u(y); });
    case Op::kMul:
    case Op::kMad:
      return multiply<T>(m, w, active);
    case Op::kDiv:
      return binary<T>(m, w, active, quotient<T>);
    case Op::kRem:
      return binary<T>(m, w, active, remainder_of<T>);
    case Op::kMin:
      return binary<T>(m, w, active, [](T x, T y) { return x < y ? x : y; });
    case Op::kMax:
      return binary<T>(m, w, active, [](T x, T y) { return x > y ? x : y; });
    case Op::kNeg:
      return unary<T>(m, w, active, [=](T x) { return U{0} - u(x); });
    case Op::kAbs:
      return unary<T>(m, w, active, [=](T x) { return x < 0 ? U{0} - u(x) : u(x); });
    case Op::kAnd:
      return binary<T>(m, w, active, [](T x, T y) { return x & y; });
    case Op::kOr:
      return binary<T>(m, w, active, [](T x, T y) { return x | y; });
    case Op::kXor:
      return binary<T>(m, w, active, [](T x, T y) { return x ^ y; });
    case Op::kNot:
      return unary<T>(m, w, active, [](T x) { return ~x; });
    case Op::kCnot:
      return unary<T>(m, w, active, [](T x) { return x == 0 ? 1 : 0; });
    case Op::kSad:
      return ternary<T>(m, w, active,
                        [=](T x, T y, T z) { return u(z) + (x < y ? u(y) - u(x) : u(x) - u(y)); });
    case Op::kShl:
      return shift<T>(m, w, active, [=](T x, uint32_t n) -> Slot<T> {
        return n < kBits ? static_cast<Slot<T>>(u(x)) << n : 0;
      });
    case Op::kShr:
      return shift<T>(m, w, active, [=](T x, uint32_t n) -> T {
        if (n >= kBits) return std::is_signed_v<T> && x < 0 ? static_cast<T>(-1) : T{0};
        return static_cast<T>(x >> n);
      });
    case Op::kBrev:
      return unary<T>(m, w, active, [=](T x) { return reversed(u(x), static_cast<int>(kBits)); });
    default:
      if (!extract<T>(m, w, active) && !count_bits<T>(m, w, active)) m.refuse("unsupported");
  }
}

uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  uint32_t r = 0;
  for (int k = 0; k < 4; ++k) {
    const uint32_t s = selector >> 4 * k & 15;
    uint32_t byte = static_cast<uint32_t>(both >> 8 * (s & 7)) & 255;
    if ((s & 8) != 0) byte = (byte & 128) != 0 ? 255 : 0;
    r |= byte << 8 * k;
  }
  return r;
}

uint32_t logic3(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t r = 0;
  for (uint32_t k = 0; k < 8; ++k)
    if ((table >> k & 1) != 0) r |= ((k & 4) ? a : ~a) & ((k & 2) ? b : ~b) & ((k & 1) ? c : ~c);
  return r;
}

uint32_t funnel(const Instruction& i, uint32_t low, uint32_t high, uint32_t n) {
  const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
  n = i.wrap ? n & 31 : std::min(n, 32u);
  return static_cast<uint32_t>(i.mode == Mode::kLeft ? both >> (32 - n) : both >> n);
}

/// Products of bytes, or of halfwords with bytes, summed onto c.
uint32_t dot(const Instruction& i, uint32_t a, uint32_t b, uint32_t c) {
  const auto part = [](uint32_t v, int at, int bytes, bool with_sign) {
    const uint64_t bits = low_bytes(v >> 8 * at, bytes);
    return with_sign ? sign_extend(bits, bytes) : static_cast<int64_t>(bits);
  };
  const int n = i.op == Op::kDp4a ? 4 : 2, bytes = i.op == Op::kDp4a ? 1 : 2;
  const int first = i.op == Op::kDp2a && i.mode == Mode::kHi ? 2 : 0;
  int64_t sum = c;
  for (int k = 0; k < n; ++k)
    sum += part(a, k * bytes, bytes, is_signed(i.type)) * part(b, first + k, 1, is_signed(i.from));
  return static_cast<uint32_t>(sum);
}

bool words(Machine& m, Warp& w, uint32_t active) {
  const Instruction& i = *m.now;
  const auto run = [&](auto f) {
    uint32_t* d = m.out<uint32_t>(w, i.a[0]);
    const uint32_t *a = m.in<uint32_t>(w, i.a[1]), *b = m.in<uint32_t>(w, i.a[2]),
                   *c = m.in<uint32_t>(w, i.a[3]);
    each_lane(active, [=](int l) { d[l] = f(a[l], b[l], c[l]); });
    return true;
  };
  switch (i.op) {
    case Op::kPrmt:
      return run(permute);
    case Op::kLop3: {
      const auto table = static_cast<uint32_t>(m.get(w, i.a[4], 0));
      return run([=](uint32_t a, uint32_t b, uint32_t c) { return logic3(a, b, c, table); });
    }
    case Op::kShf:
      return run([&](uint32_t a, uint32_t b, uint32_t n) { return funnel(i, a, b, n); });
    case Op::kDp4a:
    case Op::kDp2a:
      return run([&](uint32_t a, uint32_t b, uint32_t c) { return dot(i, a, b, c); });
    default:
      return false;
  }
}

void predicates(Machine& m, Warp& w, uint32_t active) {
  const Instruction& i = *m.now;
  const uint32_t a = m.predicate(w, i.a[1]), b = i.n_operands > 2 ? m.predicate(w, i.a[2]) : 0;
  switch (i.op) {
    case Op::kAnd:
      return m.set_predicate(w, i.a[0], a & b, active);
    case Op::kOr:
      return m.set_predicate(w, i.a[0], a | b, active);
    case Op::kXor:
      return m.set_predicate(w, i.a[0], a ^ b, active);
    case Op::kNot:
      return m.set_predicate(w, i.a[0], ~a, active);
    default:
      m.refuse("unsupported");
  }
}

}  // namespace

void execute_integer(Machine& m, Warp& w, uint32_t active) {
  if (words(m, w, active)) return;
  switch (m.now->type) {
    case Type::kPred:
      return predicates(m, w, active);
    case Type::kB16:
    case Type::kU16:
      return integer<uint16_t>(m, w, active);
    case Type::kB32:
    case Type::kU32:
      return integer<uint32_t>(m, w, active);
    case Type::kB64:
    case Type::kU64:
      return integer<uint64_t>(m, w, active);
    case Type::kS16:
      return integer<int16_t>(m, w, active);
    case Type::kS32:
      return integer<int32_t>(m, w, active);
    case Type::kS64:
      return integer<int64_t>(m, w, active);
    default:
      m.refuse("unsupported type");
  }
}

}  // namespace million::ptx
