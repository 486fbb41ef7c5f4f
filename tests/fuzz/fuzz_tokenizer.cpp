// SPDX-License-Identifier: Apache-2.0
// Fuzz target of the tokenizer readers: any bytes, as a tokenizer.json or (when they begin with
// GGUF) as a vocabulary file, either load or give Error. test_tokenizer_files runs it over changed
// golden files; for a long run link it with libFuzzer:
//   clang++ -std=c++20 -g -fsanitize=fuzzer,address,undefined -I. tests/fuzz/fuzz_tokenizer.cpp ...
#include "lib/core/error.h"
#include "lib/model/gguf.h"
#include "lib/model/tokenizer_files.h"

#include <cstddef>
#include <cstdint>
#include <string>

namespace {

void use(million::TokenizerData data) {
  const million::Tokenizer tokenizer(std::move(data));
  const auto ids = tokenizer.encode("The <|eot_id|> <extra> 12 e\xCC\x81 \xFF", true);
  (void)tokenizer.decode(ids, true);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  try {
    if (bytes.starts_with("GGUF"))
      use(million::read_gguf_tokenizer(*million::GgufFile::from_memory(bytes, "fuzz")));
    else
      use(million::parse_hf_tokenizer(bytes, "fuzz"));
  } catch (const million::Error&) {
  }
  return 0;
}
