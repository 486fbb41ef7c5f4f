// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/simt/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#if MILLION_SIMT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !MILLION_SIMT_HAS_UCONTEXT
extern "C" void million_simt_switch(void** save_stack_pointer, void* load_stack_pointer);
asm(R"(
.text
.globl million_simt_switch
.hidden million_simt_switch
.type million_simt_switch,@function
million_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size million_simt_switch,.-million_simt_switch
)");
#endif

namespace simt {
namespace {

#if MILLION_SIMT_ASAN
// The context that was left in the switch under way.
thread_local Context* left = nullptr;
#endif

std::size_t page_bytes() {
  static const std::size_t bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

Stack::Stack() {
  void* p = mmap(nullptr, page_bytes() + kBytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED || mprotect(p, page_bytes(), PROT_NONE) != 0) {
    std::perror("simt: stack of a thread");
    std::abort();
  }
  base_ = static_cast<char*>(p) + page_bytes();
}
Stack::~Stack() {
  if (base_) munmap(base_ - page_bytes(), page_bytes() + kBytes);
}

void Context::prepare(const Stack& stack, unsigned colour, void (*entry)()) {
  // Five lines of 64 bytes apart: 64 stacks then spread over the sets of a cache.
  const std::size_t usable = Stack::kBytes - colour % 64 * 320;
#if MILLION_SIMT_HAS_UCONTEXT
  getcontext(&state_);
  state_.uc_stack.ss_sp = stack.bottom();
  state_.uc_stack.ss_size = usable;
  state_.uc_link = nullptr;
  makecontext(&state_, entry, 0);
#else
  void** top = reinterpret_cast<void**>(stack.bottom() + usable);
  *--top = nullptr;  // where a debugger stops walking
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  stack_pointer_ = top;
#endif
#if MILLION_SIMT_ASAN
  // Frames that were left for the last time have not cleared their red zones.
  ASAN_UNPOISON_MEMORY_REGION(stack.bottom(), Stack::kBytes);
#endif
  fake_stack_ = nullptr;
  bottom_ = stack.bottom();
  size_ = Stack::kBytes;
}

// Not instrumented, and a function of its own: see fiber.h.
__attribute__((noinline, no_sanitize("thread"))) void Context::change(Context& from, Context& to,
                                                                      [[maybe_unused]] bool last) {
#if MILLION_SIMT_ASAN
  left = &from;
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack_, to.bottom_, to.size_);
#endif
#if MILLION_SIMT_HAS_UCONTEXT
  swapcontext(&from.state_, &to.state_);
#else
  million_simt_switch(&from.stack_pointer_, to.stack_pointer_);
#endif
#if MILLION_SIMT_ASAN
  __sanitizer_finish_switch_fiber(from.fake_stack_, &left->bottom_, &left->size_);
#endif
}

__attribute__((noinline, no_sanitize("thread"))) void Context::entered() {
#if MILLION_SIMT_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &left->bottom_, &left->size_);
#endif
}

}  // namespace simt
