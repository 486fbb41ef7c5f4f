// SPDX-License-Identifier: Apache-2.0
// The state of one block that runs, and how instructions reach lanes and memory.
#pragma once

#include "tests/ptx/ptx_interpreter.h"

#include <bit>
#include <cstring>
#include <type_traits>

namespace million::ptx {

inline constexpr uint32_t kAllLanes = 0xFFFFFFFFu;

/// Lanes of a warp that stand at the same instruction.
struct Fragment {
  enum class State : uint8_t { kReady, kAtCollective, kAtBarrier };
  int pc = 0;
  uint32_t lanes = 0;
  State state = State::kReady;
};

/// A copy of cp.async that has not been waited for.
struct PendingCopy {
  uint64_t to, from;
  int bytes, source_bytes;
};
using CopyGroup = std::vector<PendingCopy>;

struct Warp {
  int index = 0;
  uint32_t alive = 0;
  uint32_t syncs = 1;          ///< bar.warp.sync so far
  std::vector<uint64_t> file;  ///< registers; 64-bit words for alignment
  std::vector<Fragment> fragments;
  std::vector<uint8_t> local;         ///< [32][local_bytes]
  std::vector<CopyGroup> copies[32];  ///< the last group of a lane is still open
  uint32_t* words() { return reinterpret_cast<uint32_t*>(file.data()); }
};

/// Last accesses to a granule of shared memory.
struct Cell {
  uint32_t write_epoch = 0, write_syncs = 0, read_epoch = 0, read_syncs = 0;
  uint32_t read_warps = 0;  ///< that read it in read_epoch
  uint16_t writer = 0, reader = 0;
  bool atomic = false, several_readers = false;
};

enum class Access : uint8_t { kRead, kWrite, kAtomic };

/// Runs the blocks of a launch one after another.
class Machine {
 public:
  Machine(const Interpreter& owner, const Entry& entry, Dim grid, Dim block, std::size_t shared,
          std::vector<uint8_t> params);
  void run_block(uint64_t number, unsigned seed);
  /// What was counted, with names.
  Counts counts() const;
  const std::string& first_race() const { return first_race_; }

  // ptx_machine.cpp: called by the instructions -------------------------------------------------
  const Entry& entry;
  const Dim grid, block;
  Dim block_index;

  template <class T>
  T* out(Warp& w, const Operand& o) const {
    return reinterpret_cast<T*>(w.words() + o.at);
  }
  template <class T>
  const T* in(Warp& w, const Operand& o) const {
    const uint32_t* base = o.kind == Operand::Kind::kConstant ? entry.constants.data() : w.words();
    return reinterpret_cast<const T*>(base + o.at);
  }
  /// One lane of an operand of any width.
  uint64_t get(Warp& w, const Operand& o, int lane) const;
  void set(Warp& w, const Operand& o, int lane, uint64_t value) const;
  /// A predicate, one bit a lane.
  uint32_t predicate(Warp& w, const Operand& o) const {
    return *in<uint32_t>(w, o) ^ (o.negated ? kAllLanes : 0u);
  }
  void set_predicate(Warp& w, const Operand& o, uint32_t value, uint32_t active) const {
    if (o.kind == Operand::Kind::kNone) return;
    uint32_t& to = *out<uint32_t>(w, o);
    to = (to & ~active) | (value & active);
  }
  const Operand& element(const Operand& vector, int k) const {
    return entry.vectors[vector.at + k];
  }
  [[noreturn]] void refuse(const std::string& what) const;

  const Instruction* now = nullptr;
  uint64_t mma_count = 0;

  // ptx_memory.cpp ------------------------------------------------------------------------------
  void load(Warp& w, uint32_t active);
  void store(Warp& w, uint32_t active);
  void atomic(Warp& w, uint32_t active);
  void copy_async(Warp& w, uint32_t active);
  void copy_commit(Warp& w, uint32_t active);
  void copy_wait(Warp& w, uint32_t active, std::size_t keep);
  /// Where `bytes` at an address of `space` lie; checks alignment, bounds and races.
  uint8_t* resolve(Space space, uint64_t address, int bytes, Access access, Warp& w, int lane);
  void count_access(Space space, const uint64_t* addresses, uint32_t active, int bytes);

 private:
  void start_warp(Warp& w);
  void execute(Warp& w, uint32_t active);
  void run_warp(Warp& w);
  void run_fragment(Warp& w, Fragment f, int limit);
  void leave(Warp& w, uint32_t lanes);
  bool pick(Warp& w, Fragment* f, int* limit);
  bool arrive(Warp& w, Fragment& f, uint32_t* active);
  uint8_t* shared_at(uint64_t offset, int bytes, Access access, Warp& w, int lane);
  void check_race(Cell& cell, uint64_t offset, Access access, const Warp& w, int lane);
  void report_race(uint64_t offset, int thread);
  uint8_t* global_at(uint64_t address, int bytes, Access access, int thread);
  void addresses_of(Warp& w, const Operand& o, int64_t offset, uint32_t active, uint64_t* to) const;

  const Interpreter& owner_;
  const std::vector<uint8_t> params_;
  std::vector<uint8_t> shared_;
  std::vector<Cell> cells_;
  int granule_bits_ = 0;
  std::vector<Warp> warps_;
  uint32_t epoch_ = 1, first_epoch_ = 1;       ///< __syncthreads so far; where this block started
  uintptr_t known_first_ = 1, known_end_ = 0;  ///< memory that was accessed last
  Counts totals_;
  std::vector<uint64_t> executed_, wavefronts_;  ///< by instruction
  std::string first_race_;
};

// What instructions do; `now` of the machine is the instruction.
void execute_integer(Machine& m, Warp& w, uint32_t active);
void execute_float(Machine& m, Warp& w, uint32_t active);
void execute_move(Machine& m, Warp& w, uint32_t active);
void execute_convert(Machine& m, Warp& w, uint32_t active);
void execute_collective(Machine& m, Warp& w, uint32_t active);
/// Lanes that the instruction waits for.
uint32_t collective_mask(Machine& m, Warp& w, uint32_t active);
bool is_collective(Op op);

/// f(lane) for the active lanes; lanes must not depend on each other.
template <class F>
inline void each_lane(uint32_t active, F f) {
  if (active == kAllLanes) {
#pragma GCC ivdep
    for (int lane = 0; lane < 32; ++lane) f(lane);
  } else {
    for (uint32_t left = active; left != 0; left &= left - 1) f(std::countr_zero(left));
  }
}
/// The same for what has effects on memory.
template <class F>
inline void each_lane_in_order(uint32_t active, F f) {
  for (uint32_t left = active; left != 0; left &= left - 1) f(std::countr_zero(left));
}

/// A lane's slot in a register: 4 bytes, or 8 for types of 8.
template <class T>
using Slot = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
template <class T>
inline T from_slot(Slot<T> s) {
  if constexpr (std::is_floating_point_v<T>)
    return std::bit_cast<T>(s);
  else
    return static_cast<T>(s);
}
template <class T>
inline Slot<T> to_slot(T v) {
  if constexpr (std::is_floating_point_v<T>)
    return std::bit_cast<Slot<T>>(v);
  else
    return static_cast<Slot<T>>(static_cast<std::make_unsigned_t<T>>(v));
}

inline int64_t sign_extend(uint64_t v, int bytes) {
  const int shift = 64 - 8 * bytes;
  return static_cast<int64_t>(v << shift) >> shift;
}
inline uint64_t low_bytes(uint64_t v, int bytes) {
  return bytes == 8 ? v : v & ((uint64_t{1} << 8 * bytes) - 1);
}

// ptx_half.cpp -----------------------------------------------------------------------------------
float half_to_float(uint16_t bits);
/// Nearest even, unless another mode is named.
uint16_t round_to_half(double x, Rounding mode = Rounding::kRn);
/// x + y with its last bit set where it is not exact, so that a later rounding to f16 or f32 is
/// that of the exact sum.
double sum_to_odd(double x, double y);

}  // namespace million::ptx
