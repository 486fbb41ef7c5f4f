// SPDX-License-Identifier: Apache-2.0
// Kernel tests on compiled PTX. The launch code is that of the host build; kernels run in the
// interpreter, from the files that MILLION_PTX_FILES names (colons between them). MILLION_PTX_SEED
// draws the order of warps, MILLION_PTX_WORKERS is the number of host threads, MILLION_PTX_OPCODES
// prints what each kernel executed. Races fail the launch.
#include "tests/cuda/harness.h"
#include "tests/ptx/ptx_interpreter.h"
#include "tests/ptx/ptx_launch.h"

#include <cxxabi.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>

namespace million::cuda::test {
namespace {

std::string readable(const std::string& symbol) {
  int status = 0;
  char* const text = abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, &status);
  std::string name = status == 0 ? text : symbol;
  std::free(text);
  name = name.substr(0, name.rfind('('));
  if (name.rfind("void ", 0) == 0) name.erase(0, 5);
  constexpr const char kScope[] = "million::cuda::native::";
  for (std::size_t at = name.find(kScope); at != std::string::npos; at = name.find(kScope))
    name.erase(at, sizeof kScope - 1);
  return name;
}

void print_opcodes(const ptx::Counts& c) {
  std::vector<std::pair<uint64_t, std::string>> order;
  for (const auto& [name, n] : c.by_opcode) order.emplace_back(n, name);
  std::sort(order.rbegin(), order.rend());
  for (const auto& [n, name] : order) {
    const auto waves = c.wavefronts_by_opcode.find(name);
    if (waves == c.wavefronts_by_opcode.end())
      std::printf("      %12llu %s\n", static_cast<unsigned long long>(n), name.c_str());
    else
      std::printf("      %12llu %s, %.2f wavefronts each\n", static_cast<unsigned long long>(n),
                  name.c_str(), static_cast<double>(waves->second) / static_cast<double>(n));
  }
}

/// The interpreter; reports what it counted when the program ends.
class Device {
 public:
  Device() {
    if (const char* seed = std::getenv("MILLION_PTX_SEED"))
      interpreter.options.seed = static_cast<unsigned>(std::atoi(seed));
    if (const char* workers = std::getenv("MILLION_PTX_WORKERS"))
      interpreter.options.workers = static_cast<unsigned>(std::atoi(workers));
    const char* files = std::getenv("MILLION_PTX_FILES");
    std::istringstream in(files ? files : "");
    for (std::string path; std::getline(in, path, ':');) {
      std::ifstream file(path);
      if (!file) ptx::fail("cannot read " + path + ", named by MILLION_PTX_FILES");
      std::stringstream text;
      text << file.rdbuf();
      interpreter.load(text.str());
    }
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device() {
    if (interpreter.counts().empty()) return;
    std::printf("%-56s %9s %12s %11s %11s %11s %9s %6s %9s\n", "PTX kernel", "launches",
                "warp instr", "shared req", "wavefronts", "sectors", "mma", "races", "unwritten");
    for (const auto& [symbol, c] : interpreter.counts()) {
      const auto n = [](uint64_t v) { return static_cast<unsigned long long>(v); };
      std::printf("%-56s %9llu %12llu %11llu %11llu %11llu %9llu %6llu %9llu\n",
                  readable(symbol).c_str(), n(c.launches), n(c.warp_instructions),
                  n(c.shared_requests), n(c.shared_wavefronts), n(c.global_sectors), n(c.mma),
                  n(c.races), n(c.unwritten));
      if (std::getenv("MILLION_PTX_OPCODES")) print_opcodes(c);
    }
  }

  ptx::Interpreter interpreter;
};

Device& device() {
  static Device d;
  return d;
}

}  // namespace

// The table was built with the launch code of this build; its name says nothing here.
const DeviceOps& ops() { return emulated_ops(); }
const char* harness_name() { return "ptx"; }
bool harness_is_slow() { return true; }

void* device_alloc(std::size_t bytes) {
  // As the device aligns, so that vector loads may be used on whole arrays.
  void* p = std::aligned_alloc(256, (bytes + 256) / 256 * 256);
  std::memset(p, 0xFF, bytes);
  device().interpreter.add_memory(p, bytes);
  return p;
}
void device_free(void* p) {
  device().interpreter.remove_memory(p);
  std::free(p);
}
void to_device(void* to, const void* from, std::size_t bytes) {
  if (bytes) std::memcpy(to, from, bytes);
}
void from_device(void* to, const void* from, std::size_t bytes) {
  if (bytes) std::memcpy(to, from, bytes);
}

}  // namespace million::cuda::test

void ptx_launch(void* kernel, dim3 grid, dim3 block, std::size_t shared, const void* args,
                std::size_t bytes) {
  using namespace million;
  Dl_info info{};
  if (dladdr(kernel, &info) == 0 || !info.dli_sname || info.dli_saddr != kernel)
    ptx::fail(
        "a kernel without a symbol: link with -rdynamic, keep kernels out of anonymous "
        "namespaces");
  cuda::test::device().interpreter.launch(info.dli_sname, {grid.x, grid.y, grid.z},
                                          {block.x, block.y, block.z}, shared, args, bytes);
}
