// SPDX-License-Identifier: Apache-2.0
// Moves, packing, address spaces, comparisons and selections.
#include "tests/ptx/ptx_machine.h"

namespace million::ptx {
namespace {

void move_vector(Machine& m, Warp& w, uint32_t active) {
  const Instruction& i = *m.now;
  const bool unpack = i.a[0].kind == Operand::Kind::kVector;
  const Operand& vector = unpack ? i.a[0] : i.a[1];
  const int bits = 8 * size_of(i.type) / vector.count;
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  each_lane_in_order(active, [&](int lane) {
    if (unpack) {
      const uint64_t v = m.get(w, i.a[1], lane);
      for (int e = 0; e < vector.count; ++e)
        m.set(w, m.element(vector, e), lane, v >> bits * e & mask);
    } else {
      uint64_t v = 0;
      for (int e = 0; e < vector.count; ++e)
        v |= (m.get(w, m.element(vector, e), lane) & mask) << bits * e;
      m.set(w, i.a[0], lane, v);
    }
  });
}

template <class T>
void copy(Machine& m, Warp& w, uint32_t active) {
  T* d = m.out<T>(w, m.now->a[0]);
  const T* a = m.in<T>(w, m.now->a[1]);
  each_lane(active, [=](int l) { d[l] = a[l]; });
}

void move(Machine& m, Warp& w, uint32_t active) {
  const Instruction& i = *m.now;
  if (i.a[0].kind == Operand::Kind::kVector || i.a[1].kind == Operand::Kind::kVector)
    return move_vector(m, w, active);
  switch (i.a[0].width) {
    case 1:
      return m.set_predicate(w, i.a[0], m.predicate(w, i.a[1]), active);
    case 4:
      return copy<uint32_t>(m, w, active);
    case 8:
      return copy<uint64_t>(m, w, active);
    default:
      m.refuse("unsupported");
  }
}

uint64_t window_of(Space s) {
  switch (s) {
    case Space::kShared:
      return kSharedWindow;
    case Space::kLocal:
      return kLocalWindow;
    case Space::kParam:
      return kParamWindow;
    default:
      return 0;
  }
}

void convert_address(Machine& m, Warp& w, uint32_t active) {
  const Instruction& i = *m.now;
  const uint64_t window = window_of(i.space);
  each_lane_in_order(active, [&](int lane) {
    const uint64_t a = m.get(w, i.a[1], lane);
    m.set(w, i.a[0], lane, i.to ? a - window : a + window);
  });
}

void is_in_space(Machine& m, Warp& w, uint32_t active) {
  const Instruction& i = *m.now;
  uint32_t result = 0;
  each_lane_in_order(active, [&](int lane) {
    const uint64_t window = m.get(w, i.a[1], lane) >> 56;
    const bool in =
        window_of(i.space) != 0 ? window == window_of(i.space) >> 56 : window < kParamWindow >> 56;
    result |= static_cast<uint32_t>(in) << lane;
  });
  m.set_predicate(w, i.a[0], result, active);
}

template <class F>
uint32_t mask_of(uint32_t active, F f) {
  uint32_t r = 0;
  if (active == kAllLanes) {
    for (int l = 0; l < 32; ++l) r |= static_cast<uint32_t>(f(l)) << l;
  } else {
    each_lane_in_order(active, [&](int l) { r |= static_cast<uint32_t>(f(l)) << l; });
  }
  return r;
}

/// Value(slot) is a number that compares as the type does.
template <class S, class Value>
uint32_t compare(Compare c, const S* a, const S* b, uint32_t active, Value v) {
  const auto run = [&](auto f) {
    return mask_of(active, [&](int l) { return f(v(a[l]), v(b[l])); });
  };
  switch (c) {
    case Compare::kEq:
      return run([](auto x, auto y) { return x == y; });
    case Compare::kNe:
      return run([](auto x, auto y) { return x < y || x > y; });
    case Compare::kLt:
    case Compare::kLo:
      return run([](auto x, auto y) { return x < y; });
    case Compare::kLe:
    case Compare::kLs:
      return run([](auto x, auto y) { return x <= y; });
    case Compare::kGt:
    case Compare::kHi:
      return run([](auto x, auto y) { return x > y; });
    case Compare::kGe:
    case Compare::kHs:
      return run([](auto x, auto y) { return x >= y; });
    case Compare::kEqu:
      return run([](auto x, auto y) { return !(x < y || x > y); });
    case Compare::kNeu:
      return run([](auto x, auto y) { return x != y; });
    case Compare::kLtu:
      return run([](auto x, auto y) { return !(x >= y); });
    case Compare::kLeu:
      return run([](auto x, auto y) { return !(x > y); });
    case Compare::kGtu:
      return run([](auto x, auto y) { return !(x <= y); });
    case Compare::kGeu:
      return run([](auto x, auto y) { return !(x < y); });
    case Compare::kNum:
      return run([](auto x, auto y) { return x == x && y == y; });
    default:
      return run([](auto x, auto y) { return x != x || y != y; });
  }
}

template <class T>
uint32_t compare_as(Machine& m, Warp& w, const Operand& x, const Operand& y, uint32_t active) {
  const Instruction& i = *m.now;
  return compare(i.compare, m.in<Slot<T>>(w, x), m.in<Slot<T>>(w, y), active, [&](Slot<T> s) {
    const T v = from_slot<T>(s);
    if constexpr (std::is_same_v<T, float>)
      if (i.ftz && v > -0x1p-126f && v < 0x1p-126f) return 0.0f;
    return v;
  });
}

uint32_t comparison(Machine& m, Warp& w, Type type, const Operand& x, const Operand& y,
                    uint32_t active) {
  switch (type) {
    case Type::kB16:
    case Type::kU16:
      return compare_as<uint16_t>(m, w, x, y, active);
    case Type::kB32:
    case Type::kU32:
      return compare_as<uint32_t>(m, w, x, y, active);
    case Type::kB64:
    case Type::kU64:
      return compare_as<uint64_t>(m, w, x, y, active);
    case Type::kS16:
      return compare_as<int16_t>(m, w, x, y, active);
    case Type::kS32:
      return compare_as<int32_t>(m, w, x, y, active);
    case Type::kS64:
      return compare_as<int64_t>(m, w, x, y, active);
    case Type::kF32:
      return compare_as<float>(m, w, x, y, active);
    case Type::kF64:
      return compare_as<double>(m, w, x, y, active);
    case Type::kF16:
      return compare(m.now->compare, m.in<uint32_t>(w, x), m.in<uint32_t>(w, y), active,
                     [](uint32_t s) { return half_to_float(static_cast<uint16_t>(s)); });
    default:
      m.refuse("unsupported type");
  }
}

uint32_t combine(Mode logic, uint32_t x, uint32_t y) {
  switch (logic) {
    case Mode::kAnd:
      return x & y;
    case Mode::kOr:
      return x | y;
    case Mode::kXor:
      return x ^ y;
    default:
      return x;
  }
}

void set_predicates(Machine& m, Warp& w, uint32_t active) {
  const Instruction& i = *m.now;
  const uint32_t r = comparison(m, w, i.type, i.a[2], i.a[3], active);
  const uint32_t c = i.n_operands > 4 ? m.predicate(w, i.a[4]) : 0;
  m.set_predicate(w, i.a[0], combine(i.logic, r, c), active);
  m.set_predicate(w, i.a[1], combine(i.logic, ~r, c), active);
}

/// set: all ones, or 1.0, for true.
void set_value(Machine& m, Warp& w, uint32_t active) {
  const Instruction& i = *m.now;
  if (i.logic != Mode::kNone || size_of(i.type) != 4) m.refuse("unsupported");
  const uint32_t r = comparison(m, w, i.from, i.a[1], i.a[2], active);
  const uint32_t yes = i.type == Type::kF32 ? 0x3F800000u : ~0u;
  each_lane_in_order(active, [&](int lane) { m.set(w, i.a[0], lane, r >> lane & 1 ? yes : 0); });
}

template <class S>
void select(Machine& m, Warp& w, uint32_t active, uint32_t first) {
  const Instruction& i = *m.now;
  S* d = m.out<S>(w, i.a[0]);
  const S *a = m.in<S>(w, i.a[1]), *b = m.in<S>(w, i.a[2]);
  each_lane(active, [=](int l) { d[l] = first >> l & 1 ? a[l] : b[l]; });
}

void select_by(Machine& m, Warp& w, uint32_t active, uint32_t first) {
  if (m.now->a[0].width == 8)
    select<uint64_t>(m, w, active, first);
  else
    select<uint32_t>(m, w, active, first);
}

/// slct: a where c >= 0; NaN is not.
uint32_t not_negative(Machine& m, Warp& w, uint32_t active) {
  const Operand& c = m.now->a[3];
  if (m.now->from == Type::kF32) {
    const float* x = m.in<float>(w, c);
    return mask_of(active, [=](int l) { return x[l] >= 0.0f; });
  }
  const auto* x = m.in<int32_t>(w, c);
  return mask_of(active, [=](int l) { return x[l] >= 0; });
}

}  // namespace

void execute_move(Machine& m, Warp& w, uint32_t active) {
  switch (m.now->op) {
    case Op::kMov:
      return move(m, w, active);
    case Op::kCvta:
      return convert_address(m, w, active);
    case Op::kIsspacep:
      return is_in_space(m, w, active);
    case Op::kSetp:
      return set_predicates(m, w, active);
    case Op::kSet:
      return set_value(m, w, active);
    case Op::kSelp:
      return select_by(m, w, active, m.predicate(w, m.now->a[3]));
    case Op::kSlct:
      return select_by(m, w, active, not_negative(m, w, active));
    default:
      m.refuse("unsupported");
  }
}

}  // namespace million::ptx
