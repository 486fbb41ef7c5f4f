// SPDX-License-Identifier: Apache-2.0
// What a model argument means, and where its files are. Nothing is ever downloaded.
//   path/to/model.gguf      a GGUF file
//   path/to/folder          config.json, tokenizer.json and *.safetensors
//   org/name[@revision]     such a folder in the Hugging Face cache, when no such path exists
//   random:llama-3.1-8b     random weights of a published shape (random_model.h)
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace million {

struct ModelFiles {
  enum class Kind { kGguf, kFolder, kRandom } kind = Kind::kGguf;
  std::filesystem::path path;  ///< the file or the folder
  std::string name;  ///< what the folder is called in records; of kRandom what follows ':'
};

/// Error(kBadInput): no such path and not in the cache (names the folder looked for and which
/// variable led there), or a folder without config.json.
ModelFiles find_model(const std::string& argument);

/// HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub, as huggingface_hub has it; `from`
/// becomes the name of what decided. Empty when not even HOME is set.
std::filesystem::path hub_cache(std::string& from);

/// SHA-256 over "<SHA-256>  <name>\n" of config.json, tokenizer.json and the shards in order of
/// their names, which is what this prints:
///   sha256sum config.json tokenizer.json *.safetensors | LC_ALL=C sort -k 2 | sha256sum
std::string folder_sha256(const std::filesystem::path& folder,
                          const std::vector<std::string>& shards);

}  // namespace million
