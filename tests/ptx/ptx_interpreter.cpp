// SPDX-License-Identifier: Apache-2.0
// Launches: blocks over host threads, memory that kernels may access, counts by entry.
#include "tests/ptx/ptx_interpreter.h"

#include "tests/ptx/ptx_machine.h"

#include <algorithm>
#include <atomic>
#include <thread>

namespace million::ptx {

void Counts::add(const Counts& more) {
  launches += more.launches;
  warp_instructions += more.warp_instructions;
  shared_requests += more.shared_requests;
  shared_wavefronts += more.shared_wavefronts;
  global_requests += more.global_requests;
  global_sectors += more.global_sectors;
  mma += more.mma;
  races += more.races;
  unwritten += more.unwritten;
  for (const auto& [name, n] : more.by_opcode) by_opcode[name] += n;
  for (const auto& [name, n] : more.wavefronts_by_opcode) wavefronts_by_opcode[name] += n;
}

void Interpreter::load(const std::string& ptx_text) {
  modules_.push_back(std::make_unique<Module>(ptx_text));
  for (const auto& [address, bytes] : modules_.back()->arrays()) memory_[address] = bytes;
}

bool Interpreter::has(const std::string& entry) const {
  return std::any_of(modules_.begin(), modules_.end(),
                     [&](const auto& m) { return m->find(entry) != nullptr; });
}

void Interpreter::add_memory(const void* p, std::size_t bytes) {
  memory_[reinterpret_cast<uintptr_t>(p)] = bytes;
}
void Interpreter::remove_memory(const void* p) { memory_.erase(reinterpret_cast<uintptr_t>(p)); }

std::pair<uintptr_t, uintptr_t> Interpreter::memory_at(uintptr_t address) const {
  auto next = memory_.upper_bound(address);
  if (next == memory_.begin()) return {0, 0};
  --next;
  return {next->first, next->first + next->second};
}

void Interpreter::launch(const std::string& name, Dim grid, Dim block, std::size_t dynamic_shared,
                         const void* args, std::size_t args_bytes) {
  const Entry* entry = nullptr;
  for (const auto& module : modules_)
    if (!entry) entry = module->find(name);
  if (!entry) fail("no entry " + name + " in the PTX that was loaded");
  const auto* bytes = static_cast<const uint8_t*>(args);
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  const unsigned n = static_cast<unsigned>(
      std::min<uint64_t>(std::max(1u, options.workers), std::max<uint64_t>(1, blocks)));

  std::atomic<uint64_t> next{0};
  std::mutex mutex;
  std::exception_ptr error;
  Counts sum;
  std::string race;
  const auto work = [&] {
    try {
      Machine machine(*this, *entry, grid, block, dynamic_shared, {bytes, bytes + args_bytes});
      for (uint64_t b = next++; b < blocks; b = next++) machine.run_block(b, options.seed);
      const std::lock_guard lock(mutex);
      sum.add(machine.counts());
      if (race.empty()) race = machine.first_race();
    } catch (...) {
      next = blocks;
      const std::lock_guard lock(mutex);
      error = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  for (unsigned k = 1; k < n; ++k) threads.emplace_back(work);
  work();
  for (std::thread& t : threads) t.join();
  if (error) std::rethrow_exception(error);
  sum.launches = 1;
  counts_[name].add(sum);
  if (!race.empty()) fail(race);
}

}  // namespace million::ptx
