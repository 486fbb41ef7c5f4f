// SPDX-License-Identifier: Apache-2.0
// Picks the op table once: the best level of this CPU, or what MILLION_ISA asks for. Built for the
// baseline CPU, like everything outside cpu/isa_*.cpp.
#include "kernels/coded_scratch.h"
#include "kernels/ops.h"
#include "kernels/word_scratch.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#if defined(MILLION_X86_LEVELS)
#include <cpuid.h>
#endif

namespace million {

namespace scalar {
extern const Ops kOps;
}
#if defined(MILLION_X86_LEVELS)
namespace avx2 {
extern const Ops kOps;
}
namespace avx512 {
extern const Ops kOps;
}
namespace avx512_bf16 {
void attend_tile(const TileAttendArgs& args);
}
#endif

namespace {

#if defined(MILLION_X86_LEVELS)
/// F16C by CPUID: not every compiler's __builtin_cpu_supports knows the name. It needs no operating
/// system support beyond AVX's.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & (1u << 29)) != 0;
}

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
}

/// By CPUID (leaf 7, subleaf 1): not every compiler's __builtin_cpu_supports knows the name.
bool has_avx512_bf16() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return has_avx512() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 &&
         (eax & (1u << 5)) != 0;
}
#endif

struct Choice {
  const Ops* table;
  const char* refused = nullptr;  ///< value of MILLION_ISA that could not be honoured
};

Choice choose() {
  const Ops* best = ops_for(Isa::kAvx512);
  if (!best) best = ops_for(Isa::kAvx2);
  if (!best) best = ops_for(Isa::kScalar);
  const char* wanted = std::getenv("MILLION_ISA");
  if (!wanted || !*wanted) return {best};
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    const Ops* table = ops_for(isa);
    if (table && std::strcmp(wanted, table->name) == 0) return {table};
  }
  return {best, wanted};
}

Choice& current() {
  static Choice choice = choose();
  return choice;
}

}  // namespace

/// Enough for every level: key tables [n_group][M][K], scores [n_group][kPqBlock], the unpacked
/// codes of a run, 8-bit value tables [head_dim][256] and what the value pass needs, or
/// WordScratch.
std::size_t pq_scratch_floats(const PqAttendArgs& args) {
  const auto group = static_cast<std::size_t>(args.n_group);
  const auto d = static_cast<std::size_t>(args.head_dim);
  const std::size_t tables = static_cast<std::size_t>(args.k.M) << args.k.nbits;
  const std::size_t passes = 6 * static_cast<std::size_t>(args.k.M);
  const std::size_t with_tables = group * (tables + passes + 2 * kPqBlock + d) + d * 64 + 4096 +
                                  CodedScratch(pq_value_run(args)).floats;
  return std::max(with_tables, PqSumScratch(args).floats);
}

std::size_t coded_scratch_floats(const CodedAttendArgs& args) {
  return std::max(CodedScratch(args).floats, WordScratch(args).floats);
}

const Ops& ops() { return *current().table; }

const Ops* ops_for(Isa isa) {
  if (isa == Isa::kScalar) return &scalar::kOps;
#if defined(MILLION_X86_LEVELS)
  static const bool avx2_ok = has_avx2();
  static const bool avx512_ok = has_avx512();
  if (isa == Isa::kAvx2 && avx2_ok) return &avx2::kOps;
  if (isa == Isa::kAvx512 && avx512_ok) return &avx512::kOps;
#endif
  return nullptr;
}

TileAttend attend_tile_bf16() {
#if defined(MILLION_X86_LEVELS)
  static const bool here = has_avx512_bf16();
  if (here && current().table == &avx512::kOps) return avx512_bf16::attend_tile;
#endif
  return nullptr;
}

bool set_isa(Isa isa) {
  const Ops* table = ops_for(isa);
  if (table) current().table = table;
  return table != nullptr;
}

int64_t time_stamp() {
#if defined(__x86_64__)
  return static_cast<int64_t>(__builtin_ia32_rdtsc());
#else
  return 0;
#endif
}

const char* isa_request_error() { return current().refused; }

}  // namespace million
