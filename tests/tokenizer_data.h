// SPDX-License-Identifier: Apache-2.0
// Golden tokenizers (tests/golden/tokenizers.json) and files made of them.
#pragma once

#include "lib/core/files.h"
#include "lib/model/gguf.h"
#include "lib/model/json_file.h"
#include "lib/model/tokenizer_files.h"
#include "tests/scratch.h"

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <string_view>

namespace million {

inline const SortedJson& golden() {
  static const SortedJson tree =
      SortedJson::parse(read_file(MILLION_TEST_DIR "/golden/tokenizers.json"));
  return tree;
}

/// The whole tokenizer.json of a golden entry: variants change some keys of their base.
inline SortedJson golden_file(const std::string& name) {
  SortedJson file = golden()["files"][name]["file"];
  if (!file.contains("base")) return file;
  SortedJson whole = golden_file(file["base"].get<std::string>());
  for (const auto& [key, value] : file.items()) {
    if (key == "model")
      whole["model"].update(value);
    else if (key != "base")
      whole[key] = value;
  }
  return whole;
}

inline void write(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;  // no fsync: thousands of files
}

inline TokenizerData read(const std::string& file, const std::string& config = "{}",
                          std::string* chat_template = nullptr) {
  const Scratch folder;
  write(folder / "tokenizer.json", file);
  write(folder / "tokenizer_config.json", config);
  return read_hf_tokenizer(folder.path(), chat_template);
}

inline std::string base64_bytes(std::string_view text) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  uint32_t bits = 0;
  int n = 0;
  for (const char c : text.substr(0, text.find('='))) {
    bits = bits << 6 | static_cast<uint32_t>(kDigits.find(c));
    n += 6;
    if (n < 8) continue;
    n -= 8;
    out.push_back(static_cast<char>(bits >> n & 0xFF));
  }
  return out;
}

inline std::string golden_gguf(const std::string& name) {
  return base64_bytes(golden()["pieces"][name]["gguf"].get<std::string>());
}

inline TokenizerData read_gguf(const std::string& bytes) {
  return read_gguf_tokenizer(*GgufFile::from_memory(bytes, "test.gguf"));
}

inline double seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace million
