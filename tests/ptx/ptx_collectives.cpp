// SPDX-License-Identifier: Apache-2.0
// What the lanes of a warp do together: shuffles, votes, reductions, matrix products.
#include "tests/ptx/ptx_machine.h"

#include <algorithm>

namespace million::ptx {
namespace {

void shuffle(Machine& m, Warp& w, uint32_t active) {
  const Instruction& i = *m.now;
  uint32_t values[32], inside = 0;
  std::memcpy(values, m.in<uint32_t>(w, i.a[2]), sizeof values);
  const uint32_t *b = m.in<uint32_t>(w, i.a[3]), *c = m.in<uint32_t>(w, i.a[4]);
  uint32_t result[32];
  each_lane_in_order(active, [&](int lane) {
    const int by = static_cast<int>(b[lane] & 31), clamp = static_cast<int>(c[lane] & 31);
    const int segment = static_cast<int>(c[lane] >> 8 & 31);
    const int first = lane & segment, last = first | (clamp & ~segment);
    int from = 0;
    bool in = true;
    switch (i.mode) {
      case Mode::kUp:
        from = lane - by, in = from >= last;
        break;
      case Mode::kDown:
        from = lane + by, in = from <= last;
        break;
      case Mode::kBfly:
        from = lane ^ by, in = from <= last;
        break;
      default:
        from = first | (by & ~segment), in = from <= last;
    }
    if (!in) from = lane;
    if ((active >> from & 1) == 0)
      m.refuse("lane " + std::to_string(lane) + " reads lane " + std::to_string(from) +
               ", which is not there");
    result[lane] = values[from];
    inside |= static_cast<uint32_t>(in) << lane;
  });
  uint32_t* d = m.out<uint32_t>(w, i.a[0]);
  each_lane_in_order(active, [&](int lane) { d[lane] = result[lane]; });
  m.set_predicate(w, i.a[1], inside, active);
}

void vote(Machine& m, Warp& w, uint32_t active) {
  const Instruction& i = *m.now;
  const uint32_t yes = m.predicate(w, i.a[1]) & active;
  if (i.mode == Mode::kBallot) {
    each_lane_in_order(active, [&](int lane) { m.set(w, i.a[0], lane, yes); });
    return;
  }
  const bool r = i.mode == Mode::kAny   ? yes != 0
                 : i.mode == Mode::kAll ? yes == active
                                        : yes == 0 || yes == active;
  m.set_predicate(w, i.a[0], r ? kAllLanes : 0, active);
}

uint32_t reduce_two(const Instruction& i, uint32_t x, uint32_t y) {
  const bool less =
      i.type == Type::kS32 ? static_cast<int32_t>(x) < static_cast<int32_t>(y) : x < y;
  switch (i.mode) {
    case Mode::kAdd:
      return x + y;
    case Mode::kMin:
      return less ? x : y;
    case Mode::kMax:
      return less ? y : x;
    case Mode::kAnd:
      return x & y;
    case Mode::kOr:
      return x | y;
    default:
      return x ^ y;
  }
}

void reduce(Machine& m, Warp& w, uint32_t active) {
  const Instruction& i = *m.now;
  if (is_float(i.type)) m.refuse("unsupported type");
  const uint32_t* a = m.in<uint32_t>(w, i.a[1]);
  const int first = std::countr_zero(active);
  uint32_t r = a[first];
  each_lane_in_order(active & ~(1u << first), [&](int lane) { r = reduce_two(i, r, a[lane]); });
  each_lane_in_order(active, [&](int lane) { m.set(w, i.a[0], lane, r); });
}

/// Element `half` of register `k` of a vector operand.
float half_of(Machine& m, Warp& w, const Operand& v, int k, int lane, int half) {
  const uint32_t pair = m.in<uint32_t>(w, m.element(v, k))[lane];
  return half_to_float(static_cast<uint16_t>(pair >> 16 * half));
}

/// d = a b + c with a 16x16, b 16x8, c and d 16x8; fragments as in the PTX manual, "Matrix
/// fragments for mma.m16n8k16": lane = 4 group + t.
void mma(Machine& m, Warp& w, uint32_t active) {
  const Instruction& i = *m.now;
  const bool wide = i.type == Type::kF32;
  if (active != kAllLanes) m.refuse("lanes are missing");
  if (i.a[1].count != 4 || i.a[2].count != 2 || i.a[3].count != (wide ? 4 : 2))
    m.refuse("unsupported shape");
  float a[16][16], b[16][8], c[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, column = lane % 4 * 2;
    for (int h = 0; h < 2; ++h) {
      for (int k = 0; k < 4; ++k)
        a[group + k % 2 * 8][column + k / 2 * 8 + h] = half_of(m, w, i.a[1], k, lane, h);
      for (int k = 0; k < 2; ++k) b[column + k * 8 + h][group] = half_of(m, w, i.a[2], k, lane, h);
      for (int k = 0; k < 2; ++k)
        c[group + k * 8][column + h] = wide ? m.in<float>(w, m.element(i.a[3], 2 * k + h))[lane]
                                            : half_of(m, w, i.a[3], k, lane, h);
    }
  }
  for (auto& row : c) {
    const float* factors = a[&row - c];
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < 8; ++n) row[n] += factors[k] * b[k][n];
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int k = 0; k < 2; ++k) {
      const float* two = &c[lane / 4 + k * 8][lane % 4 * 2];
      if (wide) {
        for (int h = 0; h < 2; ++h) m.out<float>(w, m.element(i.a[0], 2 * k + h))[lane] = two[h];
      } else {
        m.out<uint32_t>(w, m.element(i.a[0], k))[lane] =
            round_to_half(two[0]) | static_cast<uint32_t>(round_to_half(two[1])) << 16;
      }
    }
  ++m.mma_count;
}

/// The same with bytes and a sum of 32 bits: a 16x32, b 32x8, "mma.m16n8k32".
void mma_bytes(Machine& m, Warp& w, uint32_t active) {
  const Instruction& i = *m.now;
  if (active != kAllLanes) m.refuse("lanes are missing");
  if (i.a[1].count != 4 || i.a[2].count != 2 || i.a[3].count != 4) m.refuse("unsupported shape");
  int32_t a[16][32], b[32][8];
  uint32_t c[16][8];
  const auto byte = [&](const Operand& v, int k, int lane, int at, bool with_sign) {
    const uint32_t bits = m.in<uint32_t>(w, m.element(v, k))[lane] >> 8 * at & 255;
    return with_sign ? static_cast<int32_t>(sign_extend(bits, 1)) : static_cast<int32_t>(bits);
  };
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, t = lane % 4;
    for (int at = 0; at < 4; ++at) {
      for (int k = 0; k < 4; ++k)
        a[group + k % 2 * 8][4 * t + k / 2 * 16 + at] =
            byte(i.a[1], k, lane, at, is_signed(i.from));
      for (int k = 0; k < 2; ++k)
        b[4 * t + k * 16 + at][group] = byte(i.a[2], k, lane, at, i.b_signed);
      c[group + at / 2 * 8][2 * t + at % 2] = m.in<uint32_t>(w, m.element(i.a[3], at))[lane];
    }
  }
  for (auto& row : c) {
    const int32_t* factors = a[&row - c];
    for (int k = 0; k < 32; ++k)
      for (int n = 0; n < 8; ++n) row[n] += static_cast<uint32_t>(factors[k] * b[k][n]);
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int k = 0; k < 4; ++k)
      m.out<uint32_t>(w, m.element(i.a[0], k))[lane] =
          c[lane / 4 + k / 2 * 8][lane % 4 * 2 + k % 2];
  ++m.mma_count;
}

/// Loads 8x8 matrices of 16 bits; lane 8 x + r has the address of row r of matrix x.
void ldmatrix(Machine& m, Warp& w, uint32_t active) {
  const Instruction& i = *m.now;
  if (active != kAllLanes) m.refuse("lanes are missing");
  const bool one = i.a[0].kind != Operand::Kind::kVector;
  const int n = one ? 1 : i.a[0].count;
  uint16_t matrices[4][8][8];
  uint64_t addresses[32] = {};
  for (int k = 0; k < 8 * n; ++k) {
    addresses[k] = m.get(w, i.a[1], k) + static_cast<uint64_t>(i.offset);
    std::memcpy(matrices[k / 8][k % 8], m.resolve(i.space, addresses[k], 16, Access::kRead, w, k),
                16);
  }
  m.count_access(i.space, addresses, n == 4 ? kAllLanes : (1u << 8 * n) - 1, 16);
  for (int x = 0; x < n; ++x)
    for (int lane = 0; lane < 32; ++lane) {
      const int row = lane / 4, column = lane % 4 * 2;
      const auto& e = matrices[x];
      const uint32_t low = i.transposed ? e[column][row] : e[row][column];
      const uint32_t high = i.transposed ? e[column + 1][row] : e[row][column + 1];
      m.set(w, one ? i.a[0] : m.element(i.a[0], x), lane, low | high << 16);
    }
}

}  // namespace

bool is_collective(Op op) { return op >= Op::kShfl && op <= Op::kBarWarp; }

uint32_t collective_mask(Machine& m, Warp& w, uint32_t active) {
  const Instruction& i = *m.now;
  const int lane = std::countr_zero(active);
  switch (i.op) {
    case Op::kShfl:
      return static_cast<uint32_t>(m.get(w, i.a[5], lane));
    case Op::kVote:
    case Op::kRedux:
      return static_cast<uint32_t>(m.get(w, i.a[2], lane));
    case Op::kBarWarp:
      return static_cast<uint32_t>(m.get(w, i.a[0], lane));
    default:
      return kAllLanes;
  }
}

void execute_collective(Machine& m, Warp& w, uint32_t active) {
  switch (m.now->op) {
    case Op::kShfl:
      return shuffle(m, w, active);
    case Op::kVote:
      return vote(m, w, active);
    case Op::kRedux:
      return reduce(m, w, active);
    case Op::kMma:
      return m.now->k == 32 ? mma_bytes(m, w, active) : mma(m, w, active);
    case Op::kLdmatrix:
      return ldmatrix(m, w, active);
    case Op::kActivemask:
      each_lane_in_order(active, [&](int lane) { m.set(w, m.now->a[0], lane, active); });
      return;
    default:
      // Lanes that are not named are not ordered: then nothing is, which errs on the safe side.
      if (active == w.alive) ++w.syncs;
  }
}

}  // namespace million::ptx
