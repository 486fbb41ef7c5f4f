// SPDX-License-Identifier: Apache-2.0
// Race checker for shared memory. A kernel file that is compiled with -fsanitize=thread calls a
// hook at every access; tests/simt/race_hooks.cpp gives these hooks to note_access() in place of
// the sanitizer's own runtime. For every byte the shadow knows the last write and the reads behind
// it.
//
// Accesses of two threads are ordered by a __syncthreads between them and, in a warp, by
// __syncwarps that name both; a chain of these counts. Nothing else orders memory: not shuffles,
// votes or products, for CUDA promises none, and not the turn that threads happen to take here.
// Atomics do not race with each other. Between the start of an asynchronous copy and the wait for
// it nobody may touch where it goes to. Reads of bytes that the block never wrote and accesses
// behind the end are reported too.
//
// May miss: of reads by one warp that partial masks order, only the last two groups are kept. No
// false report is known.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace simt {

struct Fiber;

/// Accesses so far behind the end of shared memory are taken for overruns of it.
inline constexpr std::size_t kOverrunBytes = 4096;

/// Places found so far, in all launches; each pair of code addresses counts once.
struct Report {
  std::atomic<unsigned> races{0}, uninit{0}, oob{0};
  unsigned total() const { return races + uninit + oob; }
};
extern Report report;
void clear_report();

struct Finding {
  const char* what;
  std::size_t offset;  ///< in shared memory
  unsigned block[3];
  unsigned thread, other_thread;
  const void *code, *other_code;  ///< return addresses; the other one may be nullptr
};
/// Called once for each place, one call at a time. The default prints the addresses.
using FindingSink = void (*)(const Finding&);
void set_finding_sink(FindingSink sink);

enum class Access { kRead, kWrite, kAtomic, kCopyStart, kCopyEnd };
/// An access of the running CUDA thread; ignored where it is not to shared memory.
void note_access(const void* p, std::size_t bytes, Access access, const void* code);

class Shadow {
 public:
  void begin_block(std::size_t bytes, unsigned n_threads);
  /// All threads of the block have met.
  void barrier() { ++epoch_; }
  void sync_warp(unsigned warp, uint32_t mask);
  /// `offset` may lie behind the end.
  void access(const Fiber& me, std::size_t offset, std::size_t bytes, Access access,
              const void* code);

 private:
  // Reads by lanes of one warp in one tick of its clock.
  struct Readers {
    uint32_t tick, lanes;
  };
  struct Cell {
    uint32_t write_epoch, write_tick, read_epoch;
    uint32_t reading_warps;
    Readers recent, older;  // of the warp that read last
    uint16_t writer, reader;
    bool atomic, pending;
    const void *write_code, *read_code;
  };
  // Counts the __syncwarps of a warp. known[me][other]: the last of them through which `me` has
  // heard of `other`; it knows what `other` did at earlier ticks.
  struct WarpClock {
    uint32_t now;
    uint32_t known[32][32];
  };

  bool ordered(const Fiber& me, unsigned thread, uint32_t tick) const;
  bool check_write(const Fiber& me, const Cell& c, std::size_t at, Access access, const void* code);
  bool check_readers(const Fiber& me, const Cell& c, std::size_t at, const void* code);
  void record_read(const Fiber& me, Cell& c, const void* code);
  void record_write(const Fiber& me, Cell& c, Access access, const void* code);

  std::vector<Cell> cells_;
  std::vector<WarpClock> clocks_;
  std::size_t bytes_ = 0;
  // Barriers, counted through all blocks so that cells need no clearing between them.
  uint32_t epoch_ = 1, first_epoch_ = 1;
};

}  // namespace simt
