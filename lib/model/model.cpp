// SPDX-License-Identifier: Apache-2.0
#include "lib/model/model.h"

#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/core/printable.h"
#include "lib/model/arch_dense.h"
#include "lib/model/gguf.h"
#include "lib/model/hf_config.h"
#include "lib/model/model_files.h"
#include "lib/model/random_model.h"
#include "lib/model/safetensors.h"
#include "lib/model/tokenizer_files.h"

#include <spdlog/spdlog.h>

#include <utility>

namespace million {
namespace {

/// The constructor's message with the file it concerns.
Tokenizer make_tokenizer(TokenizerData data, const std::string& file) {
  try {
    return Tokenizer(std::move(data));
  } catch (const Error& e) {
    const std::string text = e.what();
    if (text.starts_with(file)) throw;
    throw Error(e.code(), file + ": " + text);
  }
}

/// What the views of a model's weights point into.
struct Storage {
  std::shared_ptr<const void> files;
  std::vector<AlignedVector<std::byte>> copies;
};

/// The vocabulary with as many tokens as the embedding has rows.
TokenizerData padded_tokenizer(const std::filesystem::path& folder, const HfConfig& json,
                               const TensorSource& tensors, std::string* chat_template) {
  const auto rows = tensors.rows("token_embd.weight");
  const int n_vocab = json.get_size("vocab_size", 1, kMaxWidth);
  // Before anything of this size is made: the rows are there, the number is only declared.
  MILLION_REQUIRE(rows == static_cast<uint64_t>(n_vocab), ErrorCode::kBadInput,
                  "{}: vocab_size is {}, but the embedding has {} rows", json.name(), n_vocab,
                  rows);
  TokenizerData data = read_hf_tokenizer(folder, chat_template);
  pad_vocabulary(data, rows, (folder / "tokenizer.json").string());
  return data;
}

}  // namespace

KvGeometry ModelConfig::geometry() const {
  return {.n_layers = n_layers,
          .n_heads = n_heads,
          .n_kv_heads = n_kv_heads,
          .head_dim = head_dim,
          .rope = Rope(rope),
          .self_extend = self_extend};
}

std::shared_ptr<const Model> Model::from_gguf(std::shared_ptr<const GgufFile> file) {
  auto model = std::make_shared<Model>();
  const Architecture& architecture = find_architecture(*file);
  model->config.arch = architecture.name;
  model->config.name = printable(file->get_string("general.name", "unnamed"));
  model->path = file->name();
  model->tokenizer = make_tokenizer(read_gguf_tokenizer(*file), file->name());
  model->chat_template = file->get_string("tokenizer.chat_template", "");
  TensorSource tensors(*file);
  architecture.load({.gguf = file.get()}, tensors, *model);
  model->weight_bytes = file->tensor_bytes();
  model->sha256 = sha256_of(file->bytes());
  model->storage = std::make_shared<Storage>(Storage{file, std::move(tensors.copies)});
  return model;
}

namespace {

std::shared_ptr<const Model> read_folder(const std::filesystem::path& folder,
                                         const std::string& name) {
  auto model = std::make_shared<Model>();
  const HfConfig json = HfConfig::read(folder);
  const Architecture& architecture = find_architecture(json);
  model->config.arch = architecture.name;
  model->config.name = printable(name);
  model->path = folder;
  const auto files = SafetensorsFolder::open(folder);
  TensorSource tensors(*files);
  model->tokenizer = make_tokenizer(padded_tokenizer(folder, json, tensors, &model->chat_template),
                                    (folder / "tokenizer.json").string());
  architecture.load({.hf = &json}, tensors, *model);
  std::vector<std::string> shards;
  for (const auto& shard : files->shards()) {
    shards.push_back(std::filesystem::path(shard->name()).filename());
    for (const SafeTensor& t : shard->tensors()) model->weight_bytes += t.bytes;
  }
  model->sha256 = folder_sha256(folder, shards);
  model->storage = std::make_shared<Storage>(Storage{files, std::move(tensors.copies)});
  return model;
}

}  // namespace

std::shared_ptr<const Model> Model::from_folder(const std::filesystem::path& folder,
                                                const std::string& name) {
  try {
    return read_folder(folder, name);
  } catch (const std::filesystem::filesystem_error& e) {
    fail(ErrorCode::kBadInput, "model {}: {}: {}", folder.string(),
         printable(e.path1().filename().string()), e.code().message());
  }
}

std::shared_ptr<const Model> Model::load(const std::filesystem::path& argument) {
  const ModelFiles files = find_model(argument.string());
  if (files.kind == ModelFiles::Kind::kRandom) return random_model(files.name);
  if (files.kind == ModelFiles::Kind::kFolder) return from_folder(files.path, files.name);
  return from_gguf(GgufFile::open(files.path));
}

void require_tokens(std::span<const int32_t> tokens, int n_vocab) {
  for (size_t i = 0; i < tokens.size(); ++i)
    MILLION_REQUIRE(tokens[i] >= 0 && tokens[i] < n_vocab, ErrorCode::kBadInput,
                    "token id {} at position {} of the input, expected 0 to {}", tokens[i], i,
                    n_vocab - 1);
}

void warn_beyond_training(const ModelConfig& config, int64_t n_tokens) {
  MILLION_REQUIRE(!config.self_extend.on() || n_tokens <= config.n_context, ErrorCode::kUsage,
                  "{} tokens are beyond the {} that --positions {} reaches, (L - window) * group + "
                  "window; use a larger group",
                  n_tokens, config.n_context, config.positions);
  if (n_tokens > config.n_context)
    spdlog::warn(
        "{} tokens, the model was trained for {}: plain positions lose quality beyond; speed and "
        "memory are not concerned (use fewer tokens, --positions with a scaling that reaches "
        "there, or a file with one)",
        n_tokens, config.n_context);
  if (config.sliding_window > 0 && n_tokens > config.sliding_window)
    spdlog::warn(
        "{} tokens, the model was trained with attention to the last {} only; here every token "
        "sees "
        "all before it, which this model has not learnt (use at most {} tokens)",
        n_tokens, config.sliding_window, config.sliding_window);
}

}  // namespace million
