// SPDX-License-Identifier: Apache-2.0
#include "lib/model/model_files.h"

#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/core/printable.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <system_error>

namespace million {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kRandomPrefix = "random:";
constexpr uint64_t kMaxRef = 256;

/// "org/name" and a revision, as the hub allows them; no path can be hidden in it.
struct HubName {
  std::string org, name, revision = "main";
};

bool is_word(std::string_view text) {
  const auto good = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.';
  };
  return !text.empty() && text[0] != '.' && std::all_of(text.begin(), text.end(), good);
}

bool parse_hub_name(const std::string& text, HubName& out) {
  const auto slash = text.find('/');
  if (slash == std::string::npos || text.ends_with(".gguf")) return false;
  const auto at = text.find('@', slash);
  out.org = text.substr(0, slash);
  out.name = text.substr(slash + 1, at == std::string::npos ? at : at - slash - 1);
  if (at != std::string::npos) out.revision = text.substr(at + 1);
  return is_word(out.org) && is_word(out.name) && is_word(out.revision);
}

/// Commit that a revision stands for; the revision itself when it is no branch or tag.
std::string commit_of(const fs::path& repository, const std::string& revision) {
  const fs::path ref = repository / "refs" / revision;
  if (!fs::is_regular_file(ref)) return revision;
  std::string commit = read_file(ref, kMaxRef);
  while (!commit.empty() && std::isspace(static_cast<unsigned char>(commit.back())))
    commit.pop_back();
  MILLION_REQUIRE(is_word(commit), ErrorCode::kBadInput, "{}: holds {}, expected a commit",
                  ref.string(), printable(commit));
  return commit;
}

[[noreturn]] void not_in_cache(const std::string& argument, const HubName& hub,
                               const std::string& tried) {
  fail(ErrorCode::kBadInput,
       "model {}: no such path, and not in the Hugging Face cache (looked for {}); fetch it with "
       "'huggingface-cli download {}/{}' or give the path of a GGUF file or folder",
       argument, tried, hub.org, hub.name);
}

ModelFiles find_in_cache(const std::string& argument, const HubName& hub) {
  std::string from;
  const fs::path cache = hub_cache(from);
  if (cache.empty()) not_in_cache(argument, hub, "none of HF_HUB_CACHE, HF_HOME and HOME is set");
  const fs::path repository = cache / fmt::format("models--{}--{}", hub.org, hub.name);
  if (!fs::is_directory(repository))
    not_in_cache(argument, hub, fmt::format("{}, by {}", repository.string(), from));
  const fs::path folder = repository / "snapshots" / commit_of(repository, hub.revision);
  if (!fs::is_directory(folder))
    not_in_cache(argument, hub,
                 fmt::format("revision {} as {}, by {}", hub.revision, folder.string(), from));
  return {ModelFiles::Kind::kFolder, folder, hub.org + "/" + hub.name};
}

/// What a folder is called: of a snapshot in the cache its repository, else its own name.
std::string folder_name(const fs::path& folder) {
  const fs::path real = fs::canonical(folder);
  constexpr std::string_view kModels = "models--";
  const std::string repository = real.parent_path().parent_path().filename();
  if (real.parent_path().filename() == "snapshots" && repository.starts_with(kModels)) {
    const std::string name = repository.substr(kModels.size());
    const auto cut = name.find("--");
    if (cut != std::string::npos) return name.substr(0, cut) + "/" + name.substr(cut + 2);
  }
  return real.filename();
}

void require_config(const fs::path& folder) {
  if (fs::exists(folder / "config.json")) return;
  std::string gguf;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().extension() == ".gguf" && (gguf.empty() || entry.path().string() < gguf))
      gguf = entry.path().string();
  fail(ErrorCode::kBadInput,
       "model folder {} has no config.json; expected a GGUF file, or a folder with config.json, "
       "tokenizer.json and *.safetensors{}",
       folder.string(), gguf.empty() ? "" : "; there is " + gguf);
}

ModelFiles find_on_disk(const std::string& argument) {
  ModelFiles files{ModelFiles::Kind::kGguf, argument, ""};
  std::error_code error;
  if (fs::is_directory(files.path, error)) {
    files.kind = ModelFiles::Kind::kFolder;
    files.name = folder_name(files.path);
  } else if (HubName hub; !fs::exists(files.path, error) && parse_hub_name(argument, hub)) {
    files = find_in_cache(argument, hub);
  }
  if (files.kind == ModelFiles::Kind::kFolder) require_config(files.path);
  MILLION_REQUIRE(files.path.extension() != ".safetensors", ErrorCode::kBadInput,
                  "model {}: weights alone are no model; give the folder with config.json and "
                  "tokenizer.json",
                  argument);
  return files;
}

}  // namespace

fs::path hub_cache(std::string& from) {
  const auto variable = [&](const char* name) {
    const char* value = std::getenv(name);
    from = name;
    return value && *value ? fs::path(value) : fs::path();
  };
  if (const auto path = variable("HF_HUB_CACHE"); !path.empty()) return path;
  if (const auto path = variable("HF_HOME"); !path.empty()) return path / "hub";
  if (const auto path = variable("HOME"); !path.empty())
    return path / ".cache" / "huggingface" / "hub";
  return {};
}

ModelFiles find_model(const std::string& argument) {
  if (argument.starts_with(kRandomPrefix))
    return {ModelFiles::Kind::kRandom, {}, argument.substr(kRandomPrefix.size())};
  try {
    return find_on_disk(argument);
  } catch (const fs::filesystem_error& e) {
    fail(ErrorCode::kBadInput, "model {}: {}", argument, e.what());
  }
}

std::string folder_sha256(const fs::path& folder, const std::vector<std::string>& shards) {
  std::vector<std::string> names = shards;
  for (const char* name : {"config.json", "tokenizer.json"})
    if (fs::exists(folder / name)) names.push_back(name);
  std::sort(names.begin(), names.end());
  std::string lines;
  for (const std::string& name : names)
    lines += fmt::format("{}  {}\n", sha256_of_file(folder / name), name);
  return sha256_of(lines);
}

}  // namespace million
