// SPDX-License-Identifier: Apache-2.0
// Fuzz target of the safetensors reader: any bytes either parse, and then every byte of every
// tensor can be read, or give Error. test_safetensors runs it over a generated corpus; for a long
// run link it with libFuzzer:
//   clang++ -std=c++20 -g -fsanitize=fuzzer,address,undefined -I. tests/fuzz/fuzz_safetensors.cpp
//   ...
#include "lib/core/error.h"
#include "lib/model/safetensors.h"

#include <cstddef>
#include <cstdint>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  try {
    const auto file = million::SafetensorsFile::from_memory(bytes, "fuzz");
    unsigned sum = 0;
    for (const million::SafeTensor& t : file->tensors()) {
      for (uint64_t i = 0; i < t.bytes; ++i) sum += static_cast<unsigned>(t.data[i]);
      if (file->find(t.name) != &t) __builtin_trap();
    }
    volatile unsigned kept = sum;
    (void)kept;
  } catch (const million::Error&) {
  }
  return 0;
}
