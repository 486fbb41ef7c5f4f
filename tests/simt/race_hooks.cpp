// SPDX-License-Identifier: Apache-2.0
#include "tests/simt/race_hooks.h"

#include <link.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>

#include "kernels/cuda/simt/shadow.h"

namespace million::simt_test {
namespace {

constexpr int kExitWithFindings = 3;

// Where the program lies in memory; addresses in its file start at 0.
uintptr_t load_address() {
  uintptr_t address = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* to) {
        *static_cast<uintptr_t*>(to) = info->dlpi_addr;
        return 1;  // the first object is the program
      },
      &address);
  return address;
}

void print_finding(const simt::Finding& f) {
  std::fprintf(
      stderr, "race checker: %s at shared memory + %zu, block %u,%u,%u\n  thread %u at %s\n",
      f.what, f.offset, f.block[0], f.block[1], f.block[2], f.thread, source_of(f.code).c_str());
  if (f.other_code)
    std::fprintf(stderr, "  thread %u at %s\n", f.other_thread, source_of(f.other_code).c_str());
}

void fail_with_findings() {
  if (simt::report.total() == 0) return;
  std::cout.flush();
  std::fflush(nullptr);
  std::fprintf(stderr,
               "race checker: %u races, %u uninitialised reads, %u accesses out of bounds\n",
               simt::report.races.load(), simt::report.uninit.load(), simt::report.oob.load());
  std::_Exit(kExitWithFindings);
}

const bool installed = [] {
  simt::set_finding_sink(print_finding);
  return std::atexit(fail_with_findings) == 0;
}();

}  // namespace

std::string source_of(const void* code) {
  // The call lies before the address to which it returns.
  const uintptr_t at = reinterpret_cast<uintptr_t>(code) - load_address() - 1;
  char command[160];
  std::snprintf(command, sizeof command, "addr2line -s -i -e /proc/%d/exe 0x%zx 2>&1",
                static_cast<int>(getpid()), static_cast<size_t>(at));
  std::string lines;
  if (FILE* pipe = popen(command, "r")) {
    char line[256];
    while (std::fgets(line, sizeof line, pipe)) {
      if (!lines.empty()) lines += " < ";
      lines += line;
      if (lines.back() == '\n') lines.pop_back();
    }
    pclose(pipe);
  }
  return lines;
}

}  // namespace million::simt_test

// ---- What GCC and Clang call in instrumented code -----------------------------------------------

#define MILLION_NOTE(p, bytes, access) \
  simt::note_access(p, bytes, simt::Access::access, __builtin_return_address(0))

#define MILLION_PLAIN_HOOKS(bytes)                                                       \
  void __tsan_read##bytes(void* p) { MILLION_NOTE(p, bytes, kRead); }                    \
  void __tsan_write##bytes(void* p) { MILLION_NOTE(p, bytes, kWrite); }                  \
  void __tsan_unaligned_read##bytes(void* p) { MILLION_NOTE(p, bytes, kRead); }          \
  void __tsan_unaligned_write##bytes(void* p) { MILLION_NOTE(p, bytes, kWrite); }        \
  void __tsan_volatile_read##bytes(void* p) { MILLION_NOTE(p, bytes, kRead); }           \
  void __tsan_volatile_write##bytes(void* p) { MILLION_NOTE(p, bytes, kWrite); }         \
  void __tsan_unaligned_volatile_read##bytes(void* p) { MILLION_NOTE(p, bytes, kRead); } \
  void __tsan_unaligned_volatile_write##bytes(void* p) { MILLION_NOTE(p, bytes, kWrite); }

// Atomics of host code around the kernels (reference counts, guards of static variables) and of
// simt::atomic_update, which tells of itself.
#define MILLION_ATOMIC_HOOKS(bits, type)                                                           \
  type __tsan_atomic##bits##_load(const volatile type* p, int) {                                   \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                   \
  }                                                                                                \
  void __tsan_atomic##bits##_store(volatile type* p, type v, int) {                                \
    __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                                      \
  }                                                                                                \
  type __tsan_atomic##bits##_exchange(volatile type* p, type v, int) {                             \
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                                            \
  }                                                                                                \
  type __tsan_atomic##bits##_fetch_add(volatile type* p, type v, int) {                            \
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);                                             \
  }                                                                                                \
  type __tsan_atomic##bits##_fetch_sub(volatile type* p, type v, int) {                            \
    return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST);                                             \
  }                                                                                                \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile type* p, type* expected, type v, int, \
                                                    int) {                                         \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
  }                                                                                                \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile type* p, type* expected, type v, int,   \
                                                  int) {                                           \
    return __atomic_compare_exchange_n(p, expected, v, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);  \
  }

extern "C" {
MILLION_PLAIN_HOOKS(1)
MILLION_PLAIN_HOOKS(2)
MILLION_PLAIN_HOOKS(4)
MILLION_PLAIN_HOOKS(8)
MILLION_PLAIN_HOOKS(16)
MILLION_ATOMIC_HOOKS(8, uint8_t)
MILLION_ATOMIC_HOOKS(16, uint16_t)
MILLION_ATOMIC_HOOKS(32, uint32_t)
MILLION_ATOMIC_HOOKS(64, uint64_t)
void __tsan_read_range(void* p, size_t bytes) { MILLION_NOTE(p, bytes, kRead); }
void __tsan_write_range(void* p, size_t bytes) { MILLION_NOTE(p, bytes, kWrite); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
