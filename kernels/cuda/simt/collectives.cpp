// SPDX-License-Identifier: Apache-2.0
// Collectives of a warp, and asynchronous copies.
#include "kernels/cuda/simt/runtime.h"

#include <algorithm>
#include <climits>

namespace simt {
namespace {

using Lanes = Exchange* [kWarp];
using Four = float __attribute__((vector_size(16), may_alias));

void shuffle(uint32_t mask, Lanes& lanes) {
  for (unsigned l = 0; l < kWarp; ++l) {
    if (!(mask >> l & 1)) continue;
    const unsigned source = lanes[l]->source;
    if (!(mask >> source & 1)) fail("shuffle from a lane outside the mask");
    lanes[l]->out[0] = lanes[source]->in[0];
  }
}

void reduce(Op op, uint32_t mask, Lanes& lanes) {
  uint32_t result = 0;
  if (op == Op::kMaxInt) result = static_cast<uint32_t>(INT_MIN);
  if (op == Op::kMinInt) result = static_cast<uint32_t>(INT_MAX);
  for (unsigned l = 0; l < kWarp; ++l) {
    if (!(mask >> l & 1)) continue;
    const uint32_t x = lanes[l]->in[0];
    const int a = static_cast<int>(result), b = static_cast<int>(x);
    if (op == Op::kBallot) result |= (x != 0 ? 1u : 0u) << l;
    if (op == Op::kMaxInt) result = static_cast<uint32_t>(std::max(a, b));
    if (op == Op::kMinInt) result = static_cast<uint32_t>(std::min(a, b));
    if (op == Op::kAddInt) result += x;
  }
  for (unsigned l = 0; l < kWarp; ++l)
    if (mask >> l & 1) lanes[l]->out[0] = result;
}

// d [16][8] = a [16][K] times b [K][8].
template <int K>
void multiply(const float (&a)[16][K], const float (&b)[K][8], float (&d)[16][8]) {
  for (int i = 0; i < 16; ++i) {
    Four left{}, right{};
    for (int k = 0; k < K; ++k) {
      const Four* row = reinterpret_cast<const Four*>(b[k]);
      left += a[i][k] * row[0];
      right += a[i][k] * row[1];
    }
    std::memcpy(&d[i][0], &left, sizeof left);
    std::memcpy(&d[i][4], &right, sizeof right);
  }
}

// Products work on whole matrices, gathered from the fragments of 32 lanes.
void multiply_halves(Lanes& lanes) {
  float low[6][kWarp], high[6][kWarp];  // halves of register [r] of a lane
  for (int r = 0; r < 6; ++r) {
    uint32_t in[kWarp];
    for (unsigned l = 0; l < kWarp; ++l) in[l] = lanes[l]->in[r];
    for (unsigned l = 0; l < kWarp; ++l) low[r][l] = half_value(static_cast<uint16_t>(in[l]));
    for (unsigned l = 0; l < kWarp; ++l)
      high[r][l] = half_value(static_cast<uint16_t>(in[l] >> 16));
  }
  float a[16][16], d[16][8];
  alignas(sizeof(Four)) float b[16][8];
  for (unsigned l = 0; l < kWarp; ++l) {
    const unsigned n = l / 4, j = l % 4 * 2;
    for (unsigned r = 0; r < 4; ++r) {
      float* pair = &a[n + r % 2 * 8][j + r / 2 * 8];
      pair[0] = low[r][l], pair[1] = high[r][l];
    }
    for (unsigned r = 0; r < 2; ++r)
      b[j + r * 8][n] = low[4 + r][l], b[j + r * 8 + 1][n] = high[4 + r][l];
  }
  multiply(a, b, d);
  for (unsigned l = 0; l < kWarp; ++l) {
    const unsigned n = l / 4, j = l % 4 * 2;
    float* sums = lanes[l]->sums;
    sums[0] += d[n][j], sums[1] += d[n][j + 1];
    sums[2] += d[n + 8][j], sums[3] += d[n + 8][j + 1];
  }
}

// Sums of 32 products of bytes are exact floats.
void multiply_bytes(Lanes& lanes) {
  const auto byte = [](uint32_t word, unsigned i) {
    return static_cast<float>(static_cast<int8_t>(word >> 8 * i));
  };
  float a[16][32], d[16][8];
  alignas(sizeof(Four)) float b[32][8];
  for (unsigned l = 0; l < kWarp; ++l) {
    const unsigned n = l / 4, j = l % 4 * 4;
    const uint32_t* in = lanes[l]->in;
    for (unsigned i = 0; i < 4; ++i) {
      for (unsigned r = 0; r < 4; ++r) a[n + r % 2 * 8][j + r / 2 * 16 + i] = byte(in[r], i);
      for (unsigned r = 0; r < 2; ++r) b[j + r * 16 + i][n] = byte(in[4 + r], i);
    }
  }
  multiply(a, b, d);
  for (unsigned l = 0; l < kWarp; ++l) {
    const unsigned n = l / 4, j = l % 4 * 2;
    const float sums[4] = {d[n][j], d[n][j + 1], d[n + 8][j], d[n + 8][j + 1]};
    for (int i = 0; i < 4; ++i)
      lanes[l]->out[i] = static_cast<uint32_t>(static_cast<int32_t>(sums[i]));
  }
}

void execute(Op op, uint32_t mask, Lanes& lanes) {
  switch (op) {
    case Op::kSyncWarp:
      return;
    case Op::kShuffle:
      return shuffle(mask, lanes);
    case Op::kMma16x8x16:
      return multiply_halves(lanes);
    case Op::kMma16x8x32:
      return multiply_bytes(lanes);
    default:
      return reduce(op, mask, lanes);
  }
}

// All lanes have come.
void complete(unsigned warp, Op op, uint32_t mask) {
  Worker& w = *worker;
  Fiber* const first = &w.fibers[warp * kWarp];
  Lanes lanes = {};
  for (unsigned l = 0; l < kWarp; ++l)
    if (mask >> l & 1) lanes[l] = first[l].exchange;
  execute(op, mask, lanes);
  if (op == Op::kSyncWarp && w.shadow) w.shadow->sync_warp(warp, mask);
  for (unsigned l = 0; l < kWarp; ++l)
    if (mask >> l & 1) w.wake(first[l]);
}

Meeting& meeting_of(const Fiber& me, Op op, uint32_t mask) {
  std::vector<Meeting>& all = worker->meetings[me.warp];
  for (Meeting& m : all) {
    if (m.mask == mask && m.op != op) fail("lanes of a warp are in different collectives");
    if (m.mask == mask) return m;
  }
  all.push_back({op, mask, 0});
  return all.back();
}

}  // namespace

void warp_collective(Op op, uint32_t mask, Exchange* lane) {
  Fiber& me = this_fiber();
  Worker& w = *worker;
  if (!(mask >> me.lane & 1)) fail("a lane is not in the mask of its collective");
  const unsigned n_lanes = std::min(w.n_threads - me.warp * kWarp, kWarp);
  if (n_lanes < kWarp && mask >> n_lanes != 0) fail("a mask names lanes that the block lacks");
  if ((op == Op::kMma16x8x16 || op == Op::kMma16x8x32) && mask != ~0u) fail("needs the full warp");
  me.exchange = lane;
  me.state = Fiber::State::kInCollective;
  Meeting& meeting = meeting_of(me, op, mask);
  meeting.arrived |= 1u << me.lane;
  if (meeting.arrived == mask) {
    std::vector<Meeting>& all = w.meetings[me.warp];
    all.erase(all.begin() + (&meeting - all.data()));
    complete(me.warp, op, mask);
  }
  w.wait(me);
}

uint32_t warp_collective(Op op, uint32_t mask, uint32_t value, uint32_t source) {
  Exchange lane;
  lane.in[0] = value;
  lane.source = source;
  warp_collective(op, mask, &lane);
  return op == Op::kSyncWarp ? 0 : lane.out[0];
}

void mma_16x8x16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                 uint32_t b1) {
  Exchange lane{{a0, a1, a2, a3, b0, b1}, {}, {d[0], d[1], d[2], d[3]}, 0};
  warp_collective(Op::kMma16x8x16, ~0u, &lane);
  std::copy(lane.sums, lane.sums + 4, d);
}

void mma_16x8x32(uint32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                 uint32_t b1) {
  Exchange lane{{a0, a1, a2, a3, b0, b1}, {}, {}, 0};
  warp_collective(Op::kMma16x8x32, ~0u, &lane);
  for (int i = 0; i < 4; ++i) d[i] += lane.out[i];
}

void copy_async(void* to, const void* from, std::size_t bytes) {
  const uintptr_t both = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  if (bytes != 4 && bytes != 8 && bytes != 16) fail("an asynchronous copy has 4, 8 or 16 bytes");
  if (both % bytes != 0) fail("misaligned asynchronous copy");
  Fiber& me = this_fiber();
  note_access(to, bytes, Access::kCopyStart, __builtin_return_address(0));
  me.copies.push_back({to, from, bytes, me.open_group});
}

void commit_copies() { ++this_fiber().open_group; }

void wait_copies(unsigned n_pending_groups) {
  Fiber& me = this_fiber();
  const auto pending = std::find_if(me.copies.begin(), me.copies.end(), [&](const auto& c) {
    return c.group + n_pending_groups >= me.open_group;
  });
  for (auto c = me.copies.begin(); c != pending; ++c) {
    note_access(c->to, c->bytes, Access::kCopyEnd, __builtin_return_address(0));
    std::memcpy(c->to, c->from, c->bytes);
  }
  me.copies.erase(me.copies.begin(), pending);
}

}  // namespace simt
