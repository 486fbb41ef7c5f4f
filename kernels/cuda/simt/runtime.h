// SPDX-License-Identifier: Apache-2.0
// What the parts of the runtime share: the threads of the block at work and their turns.
#pragma once

#include "kernels/cuda/simt/fiber.h"
#include "kernels/cuda/simt/shadow.h"
#include "kernels/cuda/simt/simt.h"

#include <array>
#include <vector>

namespace simt {

inline constexpr unsigned kWarp = 32, kMaxThreads = 1024;

/// Stops the program: names what happened, the block and the thread.
[[noreturn]] void fail(const char* what);

struct Fiber : Thread {
  enum class State { kReady, kAtBarrier, kInCollective, kDone };
  struct Copy {
    void* to;
    const void* from;
    std::size_t bytes;
    unsigned group;
  };
  State state;
  Exchange* exchange;        ///< of the collective it waits in
  std::vector<Copy> copies;  ///< not yet done
  unsigned open_group;       ///< that the next copy joins
  Context context;
};

/// Lanes of a warp that have met in a collective. Several, with different masks, can be under way.
struct Meeting {
  Op op;
  uint32_t mask, arrived;
};

/// Threads that can run, in the order in which they became ready.
class ReadyList {
 public:
  void clear() { head_ = tail_ = 0; }
  bool empty() const { return head_ == tail_; }
  void push(unsigned thread) { slots_[tail_++ % kMaxThreads] = static_cast<uint16_t>(thread); }
  /// The first, or the one that `draw` picks.
  unsigned pop(unsigned draw) {
    uint16_t& first = slots_[head_ % kMaxThreads];
    std::swap(first, slots_[(head_ + draw % (tail_ - head_)) % kMaxThreads]);
    return ++head_, first;
  }

 private:
  std::array<uint16_t, kMaxThreads> slots_;  // each thread waits at most once
  unsigned head_ = 0, tail_ = 0;
};

/// Shared memory of a block. What lies behind it, up to a page that cannot be touched, is checked.
class SharedArena {
 public:
  SharedArena() = default;
  ~SharedArena() { release(); }
  SharedArena(const SharedArena&) = delete;
  SharedArena& operator=(const SharedArena&) = delete;
  /// `bytes` of NaN. With `slack`, accesses shortly behind the end come back, for the race checker
  /// to report them.
  unsigned char* clear(std::size_t bytes, bool slack);
  bool end_is_intact() const;

 private:
  void release();

  unsigned char* map_ = nullptr;
  std::size_t capacity_ = 0;
  unsigned char *end_ = nullptr,
                *limit_ = nullptr;  // of the block's bytes, of what is behind them
};

/// Runs one block at a time for an OS thread.
struct Worker {
  std::vector<Fiber> fibers;
  std::vector<Stack> stacks;
  std::vector<std::vector<Meeting>> meetings;  ///< [warp]
  ReadyList ready;
  SharedArena arena;
  Block block;
  Context home;  ///< of the OS thread
  const std::function<void()>* body = nullptr;
  unsigned n_threads = 0, n_live = 0, n_at_barrier = 0;
  uint32_t random = 0;
  Shadow* shadow = nullptr;  ///< where the race checker is on
  Shadow shadow_memory;

  void run_block(dim3 index);
  void wake(Fiber& f) {
    f.state = Fiber::State::kReady;
    ready.push(f.linear);
  }
  /// Gives the turn away; returns when `me` has it again.
  void wait(Fiber& me);
  [[noreturn]] void finish(Fiber& me);
  void open_barrier();

 private:
  void prepare_threads();
  Fiber* next();
  [[noreturn]] void report_deadlock();
};
extern constinit thread_local Worker* worker;

inline Fiber& this_fiber() { return *static_cast<Fiber*>(cur); }

}  // namespace simt
