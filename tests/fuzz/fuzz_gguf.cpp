// SPDX-License-Identifier: Apache-2.0
// Fuzz target of the model reader: any bytes either load or give Error. test_formats runs it over a
// generated corpus; for a long run link it with libFuzzer:
//   clang++ -std=c++20 -g -fsanitize=fuzzer,address,undefined -I. tests/fuzz/fuzz_gguf.cpp ...
#include "lib/core/error.h"
#include "lib/model/gguf.h"
#include "lib/model/model.h"

#include <cstddef>
#include <cstdint>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  try {
    const auto model = million::Model::from_gguf(million::GgufFile::from_memory(bytes, "fuzz"));
    const auto ids = model->tokenizer.encode("The <|im_start|> 12 \xFF", true);
    (void)model->tokenizer.decode(ids, true);
    (void)model->config.geometry();
  } catch (const million::Error&) {
  }
  return 0;
}
