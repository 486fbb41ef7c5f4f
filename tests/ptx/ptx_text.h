// SPDX-License-Identifier: Apache-2.0
// Small PTX programs for the tests of the interpreter.
#pragma once

#include "tests/ptx/ptx_interpreter.h"

#include <bit>
#include <cstring>

namespace million::ptx::test {

inline const std::string kHead = ".version 8.0\n.target sm_80\n.address_size 64\n";

/// Registers of every program: %tid.x in t, the address `data` + 8 * t in P.
inline std::string program(const std::string& body, const std::string& file_variables = "") {
  return kHead + file_variables + ".visible .entry k(.param .u64 data)\n{\n" +
         ".reg .b64 A, B, C, D, P, Q, R<9>;\n.reg .b32 a, b, c, d, t, r<40>;\n"
         ".reg .b16 ha, hb, hc, h;\n.reg .pred p, q, s<9>;\n"
         "ld.param.u64 Q, [data];\nmov.u32 t, %tid.x;\nmad.wide.u32 P, t, 8, Q;\n" +
         body + "\nret;\n}\n";
}

/// Runs a program on `data`, one element a thread, and returns the data.
struct Program {
  explicit Program(const std::string& body, const std::string& file_variables = "") {
    interpreter.load(program(body, file_variables));
  }
  std::vector<uint64_t> run(std::vector<uint64_t> data, unsigned threads, std::size_t shared = 0,
                            unsigned blocks = 1) {
    const void* address = data.data();
    interpreter.add_memory(address, data.size() * 8);
    try {
      interpreter.launch("k", {blocks, 1, 1}, {threads, 1, 1}, shared, &address, sizeof address);
    } catch (...) {
      interpreter.remove_memory(address);
      throw;
    }
    interpreter.remove_memory(address);
    return data;
  }
  const Counts& counts() const { return interpreter.counts().at("k"); }

  Interpreter interpreter;
};

/// One instruction on one thread. Sources: A, B, C (64 bits), a, b, c (their low 32), ha, hb, hc
/// (their low 16). The result is the first operand: D, d, h, or p.
inline uint64_t evaluate(const std::string& instruction, uint64_t a, uint64_t b = 0,
                         uint64_t c = 0) {
  const std::string result = instruction.substr(instruction.find(' ') + 1, 1);
  std::string body =
      "ld.global.v2.u64 {A, B}, [Q];\nld.global.u64 C, [Q+16];\n"
      "cvt.u32.u64 a, A; cvt.u32.u64 b, B; cvt.u32.u64 c, C;\n"
      "cvt.u16.u64 ha, A; cvt.u16.u64 hb, B; cvt.u16.u64 hc, C;\nsetp.ne.u32 q, c, 0;\n" +
      instruction + ";\n";
  if (result == "d") body += "cvt.u64.u32 D, d;\n";
  if (result == "h") body += "cvt.u64.u16 D, h;\n";
  if (result == "p") body += "selp.u64 D, 1, 0, p;\n";
  return Program(body + "st.global.u64 [Q], D;").run({a, b, c, 0}, 1)[0];
}

inline uint64_t bits(float x) { return std::bit_cast<uint32_t>(x); }
inline uint64_t bits(double x) { return std::bit_cast<uint64_t>(x); }

}  // namespace million::ptx::test
