// SPDX-License-Identifier: Apache-2.0
// Runs the PTX that nvcc made, on the host: a check of compiled device code that shares nothing
// with the host build of a kernel but its source. Warps run in lockstep, lowest instruction first,
// so that instructions, bank conflicts and sectors are counted as the PTX has them. Checked: bounds
// and alignment of every access, races on shared memory (between __syncthreads and __syncwarp),
// lanes missing from collectives. Registers and memory start as all ones.
#pragma once

#include "tests/ptx/ptx_module.h"

#include <mutex>

namespace million::ptx {

struct Dim {
  unsigned x = 1, y = 1, z = 1;
};

/// What one entry did in all its launches.
struct Counts {
  uint64_t launches = 0, warp_instructions = 0;
  uint64_t shared_requests = 0;    ///< warp instructions that access shared memory
  uint64_t shared_wavefronts = 0;  ///< cycles they take: 1 where no two words share a bank
  uint64_t global_requests = 0, global_sectors = 0;  ///< sectors of 32 bytes
  uint64_t mma = 0, races = 0;
  uint64_t unwritten = 0;  ///< reads of shared memory that nobody wrote
  std::map<std::string, uint64_t> by_opcode, wavefronts_by_opcode;
  void add(const Counts& more);
};

struct Options {
  unsigned seed = 0;     ///< order in which the warps of a block run; 0: by number
  unsigned workers = 1;  ///< host threads, each runs whole blocks
};

class Interpreter {
 public:
  Options options;

  void load(const std::string& ptx_text);
  bool has(const std::string& entry) const;
  /// Memory that kernels may access.
  void add_memory(const void* p, std::size_t bytes);
  void remove_memory(const void* p);
  /// Runs all blocks; `args` is copied to parameter space. Throws Error for what is refused and,
  /// behind the last block, for races.
  void launch(const std::string& entry, Dim grid, Dim block, std::size_t dynamic_shared,
              const void* args, std::size_t args_bytes);

  const std::map<std::string, Counts>& counts() const { return counts_; }
  /// [first, end) of the memory around an address; {0, 0} where there is none.
  std::pair<uintptr_t, uintptr_t> memory_at(uintptr_t address) const;

 private:
  std::vector<std::unique_ptr<Module>> modules_;
  std::map<uintptr_t, std::size_t> memory_;
  std::map<std::string, Counts> counts_;
};

}  // namespace million::ptx
