// SPDX-License-Identifier: Apache-2.0
#include "lib/model/model.h"

#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/model/arch_registry.h"
#include "lib/model/gguf.h"

#include <spdlog/spdlog.h>

#include <limits>

namespace million {
namespace {

/// Id of a special token, or -1 when the file names none.
int32_t token_id(const GgufFile& f, const std::string& name) {
  const std::string key = "tokenizer.ggml." + name + "_token_id";
  if (!f.find(key)) return -1;
  const uint64_t id = f.get_uint(key);
  // llama.cpp writes 0xFFFFFFFF for "none".
  if (id == std::numeric_limits<uint32_t>::max()) return -1;
  MILLION_REQUIRE(id < f.get_strings("tokenizer.ggml.tokens").size(), ErrorCode::kBadInput,
                  "{}: key {} is {}, but the vocabulary has {} tokens", f.name(), key, id,
                  f.get_strings("tokenizer.ggml.tokens").size());
  return static_cast<int32_t>(id);
}

TokenizerData read_tokenizer(const GgufFile& f) {
  const auto kind = f.get_string("tokenizer.ggml.model");
  MILLION_REQUIRE(kind == "gpt2", ErrorCode::kBadInput,
                  "{}: tokenizer model {} is not supported, supported: gpt2 (byte-level BPE)",
                  f.name(), printable(kind));
  TokenizerData data;
  data.pre = f.get_string("tokenizer.ggml.pre", "default");
  const auto& tokens = f.get_strings("tokenizer.ggml.tokens");
  data.tokens.assign(tokens.begin(), tokens.end());
  const auto& merges = f.get_strings("tokenizer.ggml.merges");
  data.merges.assign(merges.begin(), merges.end());
  if (f.find("tokenizer.ggml.token_type")) data.types = f.get_ints("tokenizer.ggml.token_type");
  data.bos = token_id(f, "bos");
  data.eos = token_id(f, "eos");
  data.eot = token_id(f, "eot");
  data.unknown = token_id(f, "unknown");
  // Llama-3 files are converted without the key and mean true.
  const bool llama3 = data.pre == "llama-bpe" || data.pre == "llama3";
  data.add_bos = f.get_bool("tokenizer.ggml.add_bos_token", llama3 && data.bos >= 0);
  MILLION_REQUIRE(!data.add_bos || data.bos >= 0, ErrorCode::kBadInput,
                  "{}: add_bos_token is set, but there is no bos_token_id", f.name());
  return data;
}

Tokenizer make_tokenizer(const GgufFile& f) {
  try {
    return Tokenizer(read_tokenizer(f));
  } catch (const Error& e) {
    const std::string text = e.what();
    if (text.starts_with(f.name())) throw;
    throw Error(e.code(), f.name() + ": " + text);
  }
}

}  // namespace

KvGeometry ModelConfig::geometry() const {
  return {.n_layers = n_layers,
          .n_heads = n_heads,
          .n_kv_heads = n_kv_heads,
          .head_dim = head_dim,
          .rope = Rope(rope)};
}

std::shared_ptr<const Model> Model::from_gguf(std::shared_ptr<const GgufFile> file) {
  auto model = std::make_shared<Model>();
  const Architecture& architecture = find_architecture(*file);
  model->config.arch = architecture.name;
  model->config.name = printable(file->get_string("general.name", "unnamed"));
  model->path = file->name();
  model->tokenizer = make_tokenizer(*file);
  model->chat_template = file->get_string("tokenizer.chat_template", "");
  architecture.load(*file, *model);
  model->weight_bytes = file->tensor_bytes();
  model->sha256 = sha256_of(file->bytes());
  model->mapping = std::move(file);
  return model;
}

std::shared_ptr<const Model> Model::load(const std::filesystem::path& path) {
  return from_gguf(GgufFile::open(path));
}

void require_tokens(std::span<const int32_t> tokens, int n_vocab) {
  for (size_t i = 0; i < tokens.size(); ++i)
    MILLION_REQUIRE(tokens[i] >= 0 && tokens[i] < n_vocab, ErrorCode::kBadInput,
                    "token id {} at position {} of the input, expected 0 to {}", tokens[i], i,
                    n_vocab - 1);
}

void warn_beyond_training(const ModelConfig& config, int64_t n_tokens) {
  if (n_tokens > config.n_context)
    spdlog::warn(
        "{} tokens, the model was trained for {}: plain positions lose quality beyond; speed and "
        "memory are not concerned (use fewer tokens, or a file whose RoPE scaling reaches there)",
        n_tokens, config.n_context);
}

}  // namespace million
