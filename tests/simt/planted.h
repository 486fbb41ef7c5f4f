// SPDX-License-Identifier: Apache-2.0
// Small kernels, each with a bug that can be switched off. planted.cpp is compiled with
// -fsanitize=thread like the kernels under test.
#pragma once

#include <vector>

namespace million::simt_test {

struct Planted {
  enum class Kind { kRace, kUninitialised, kOutOfBounds };
  const char* name;
  Kind kind;
  unsigned n_threads, shared_bytes;
  void (*kernel)(bool bug);
};
const std::vector<Planted>& planted_bugs();

}  // namespace million::simt_test
