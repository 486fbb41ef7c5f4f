// SPDX-License-Identifier: Apache-2.0
// Stacks of their own for the threads of a kernel, and the switch between them. Ten instructions on
// x86-64, where ucontext would make a system call at every switch; ucontext elsewhere.
//
// The address sanitiser is told of every switch. The thread sanitiser is not: to it a fiber's
// accesses are those of the OS thread that runs it, so it compares what OS threads do (blocks of a
// launch, streams), and the fibers of a block, which never run at the same time, cannot give false
// reports. Functions that are left without returning are not instrumented, for it counts calls.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) || defined(MILLION_SIMT_UCONTEXT)
#define MILLION_SIMT_HAS_UCONTEXT 1
#include <ucontext.h>
#else
#define MILLION_SIMT_HAS_UCONTEXT 0
#endif

#if defined(__SANITIZE_ADDRESS__)
#define MILLION_SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MILLION_SIMT_ASAN 1
#endif
#endif
#ifndef MILLION_SIMT_ASAN
#define MILLION_SIMT_ASAN 0
#endif

namespace simt {

/// Memory for a stack, with a page below that stops an overflow.
class Stack {
 public:
  Stack();
  ~Stack();
  Stack(Stack&& other) noexcept : base_(other.base_) { other.base_ = nullptr; }
  Stack& operator=(Stack&&) = delete;
  char* bottom() const { return base_; }
  static constexpr std::size_t kBytes = 256 << 10;

 private:
  char* base_;
};

/// Where a stack was left.
class Context {
 public:
  /// The next switch to this context calls `entry` on `stack`, which must not return. `colour`
  /// moves the top, so that the stacks of a block do not share lines of a cache.
  void prepare(const Stack& stack, unsigned colour, void (*entry)());
  /// Leaves `from` and goes on where `to` was left. A context that is left for the `last` time
  /// needs another prepare().
  static void change(Context& from, Context& to, bool last = false);
  /// To be called first thing in `entry`.
  static void entered();

 private:
#if MILLION_SIMT_HAS_UCONTEXT
  ucontext_t state_;
#else
  void* stack_pointer_ = nullptr;
#endif
  void* fake_stack_ = nullptr;  // of the address sanitiser, as are the bounds
  const void* bottom_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace simt
