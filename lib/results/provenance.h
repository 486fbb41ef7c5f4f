// SPDX-License-Identifier: Apache-2.0
// Where a result comes from: commit, machine, compiler, libraries, the command that repeats it.
#pragma once

#include "lib/core/json.h"

#include <cstdint>
#include <string>
#include <string_view>

namespace million {

/// What was baked in when the program was built; commit is "unknown" in a tree without git.
struct BuildInfo {
  std::string version, commit, compiler, build_type;
  bool dirty = false;  ///< tracked files differed from the commit
};
const BuildInfo& build_info();

/// {"faiss": "1.7.3", ...} of the libraries that shape numbers.
Json library_versions();

/// {commit, dirty, version, machine {cpu, cores, isa, memory_bytes}, compiler, build_type,
/// libraries, date}. The date (UTC, seconds) is the moment of the call.
Json provenance();

/// Name of the instruction-set level in use: "scalar", "avx2", "avx512".
std::string isa_name();
/// Forces a level by name, or keeps the best one with "auto". Error(kUsage) when the CPU or build
/// lacks it, also when MILLION_ISA asked for such a level. Call at start.
void select_isa(std::string_view name);

/// CPUs this process may run on: what a container or taskset grants, not what the box has.
int usable_cores();

/// Largest resident set of this process so far (VmHWM), or 0 where /proc lacks it.
uint64_t peak_rss_bytes();
/// Memory that a new allocation can get without swapping, bytes; 0 when the system does not say.
uint64_t available_memory_bytes();

/// One argument as a POSIX shell reads it back: plain words stay plain, others get single quotes.
std::string shell_quote(std::string_view argument);
/// The whole command line, each argument quoted.
std::string shell_command(int argc, const char* const* argv);

}  // namespace million
