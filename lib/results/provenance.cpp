// SPDX-License-Identifier: Apache-2.0
#include "lib/results/provenance.h"

#include "git_version.h"
#include "kernels/ops.h"
#include "lib/core/error.h"

#include <sched.h>

#include <algorithm>
#include <cctype>
#include <ctime>
#include <fstream>

namespace million {
namespace {

/// Text after "key<tabs>: " of the first matching line in a /proc file; empty when absent.
std::string proc_value(const char* file, std::string_view key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with(key)) continue;
    const auto colon = line.find(':');
    if (colon == std::string::npos) continue;
    const auto begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

/// "123 kB" -> bytes; 0 when absent.
uint64_t proc_bytes(const char* file, std::string_view key) {
  const std::string text = proc_value(file, key);
  uint64_t value = 0;
  for (char c : text) {
    if (c < '0' || c > '9') break;
    value = value * 10 + static_cast<uint64_t>(c - '0');
  }
  return value * 1024;
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

}  // namespace

const BuildInfo& build_info() {
#if defined(__clang__)
  static const BuildInfo info{MILLION_VERSION, MILLION_GIT_COMMIT, "clang " __clang_version__,
                              MILLION_BUILD_TYPE, MILLION_GIT_DIRTY != 0};
#else
  static const BuildInfo info{MILLION_VERSION, MILLION_GIT_COMMIT, "gcc " __VERSION__,
                              MILLION_BUILD_TYPE, MILLION_GIT_DIRTY != 0};
#endif
  return info;
}

Json library_versions() {
  return {{"faiss", MILLION_LIB_FAISS},
          {"onednn", MILLION_LIB_ONEDNN},
          {"eigen", MILLION_LIB_EIGEN},
          {"hdf5", MILLION_LIB_HDF5},
          {"pcre2", MILLION_LIB_PCRE2}};
}

Json provenance() {
  const BuildInfo& build = build_info();
  Json machine = {{"cpu", proc_value("/proc/cpuinfo", "model name")},
                  {"cores", usable_cores()},
                  {"isa", ops().name},
                  {"memory_bytes", proc_bytes("/proc/meminfo", "MemTotal")}};
  Json out = {{"commit", build.commit},         {"dirty", build.dirty},
              {"version", build.version},       {"machine", std::move(machine)},
              {"compiler", build.compiler},     {"build_type", build.build_type},
              {"libraries", library_versions()}};
  if (*MILLION_BUILD_SANITIZE) out["sanitize"] = MILLION_BUILD_SANITIZE;
  out["date"] = utc_now();
  return out;
}

std::string isa_name() { return ops().name; }

void select_isa(std::string_view name) {
  MILLION_REQUIRE(!isa_request_error(), ErrorCode::kUsage,
                  "MILLION_ISA={} is unknown or not supported by this CPU", isa_request_error());
  if (name == "auto") return;
  MILLION_REQUIRE(name == "scalar" || name == "avx2" || name == "avx512", ErrorCode::kUsage,
                  "unknown instruction set '{}', expected auto, scalar, avx2 or avx512", name);
  const Isa isa = name == "scalar" ? Isa::kScalar : name == "avx2" ? Isa::kAvx2 : Isa::kAvx512;
  MILLION_REQUIRE(set_isa(isa), ErrorCode::kUsage,
                  "instruction set {}: this CPU or build lacks it, the best here is {}", name,
                  ops().name);
}

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

uint64_t peak_rss_bytes() { return proc_bytes("/proc/self/status", "VmHWM"); }
uint64_t available_memory_bytes() { return proc_bytes("/proc/meminfo", "MemAvailable"); }

std::string shell_quote(std::string_view argument) {
  const auto plain = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) ||
           std::string_view("_-+=./:,@%").find(c) != std::string_view::npos;
  };
  bool quote = argument.empty();
  for (char c : argument) quote = quote || !plain(c);
  if (!quote) return std::string(argument);
  std::string out = "'";
  for (char c : argument) {
    if (c == '\'')
      out += "'\\''";
    else
      out += c;
  }
  return out + "'";
}

std::string shell_command(int argc, const char* const* argv) {
  std::string out;
  for (int i = 0; i < argc; ++i) {
    if (i > 0) out += ' ';
    out += shell_quote(argv[i]);
  }
  return out;
}

}  // namespace million
