// SPDX-License-Identifier: Apache-2.0
#include "lib/model/tokenizer_files.h"

#include "lib/core/error.h"
#include "lib/core/printable.h"
#include "lib/model/gguf.h"

#include <cstring>
#include <limits>

namespace million {
namespace {

/// Id of a special token; `missing` when the file names none.
int32_t token_id(const GgufFile& f, const std::string& name, int32_t missing = -1) {
  const std::string key = "tokenizer.ggml." + name + "_token_id";
  if (!f.find(key)) return missing;
  const uint64_t id = f.get_uint(key);
  // llama.cpp writes 0xFFFFFFFF for "none".
  if (id == std::numeric_limits<uint32_t>::max()) return -1;
  MILLION_REQUIRE(id < f.get_strings("tokenizer.ggml.tokens").size(), ErrorCode::kBadInput,
                  "{}: key {} is {}, but the vocabulary has {} tokens", f.name(), key, id,
                  f.get_strings("tokenizer.ggml.tokens").size());
  return static_cast<int32_t>(id);
}

/// An array of exactly n f32: other types of the same size have been read as floats elsewhere.
std::vector<float> read_scores(const GgufFile& f, std::size_t n) {
  constexpr const char* kKey = "tokenizer.ggml.scores";
  const GgufValue* value = f.find(kKey);
  MILLION_REQUIRE(value != nullptr, ErrorCode::kBadInput,
                  "{}: key {} is missing; a SentencePiece vocabulary cannot be used without",
                  f.name(), kKey);
  MILLION_REQUIRE(value->type == GgufType::kArray && value->element == GgufType::kF32,
                  ErrorCode::kBadInput, "{}: key {} is of type {}, expected an array of f32",
                  f.name(), kKey,
                  gguf_type_name(value->type == GgufType::kArray ? value->element : value->type));
  MILLION_REQUIRE(value->count == n && value->bytes.size() == n * sizeof(float),
                  ErrorCode::kBadInput, "{}: key {} has {} values for {} tokens", f.name(), kKey,
                  value->count, n);
  std::vector<float> scores(n);
  if (n > 0) std::memcpy(scores.data(), value->bytes.data(), n * sizeof(float));
  return scores;
}

void read_byte_level(const GgufFile& f, TokenizerData& data) {
  data.pre = f.get_string("tokenizer.ggml.pre", "default");
  const auto& merges = f.get_strings("tokenizer.ggml.merges");
  data.merges.assign(merges.begin(), merges.end());
  if (f.find("tokenizer.ggml.token_type")) data.types = f.get_ints("tokenizer.ggml.token_type");
  data.bos = token_id(f, "bos");
  data.eos = token_id(f, "eos");
  data.unknown = token_id(f, "unknown");
  // Llama-3 files are converted without the key and mean true.
  const bool llama3 = data.pre == "llama-bpe" || data.pre == "llama3";
  data.add_bos = f.get_bool("tokenizer.ggml.add_bos_token", llama3 && data.bos >= 0);
}

/// Defaults of absent keys are llama.cpp's: ids 0 to 2 are <unk>, <s> and </s>.
void read_sentencepiece(const GgufFile& f, TokenizerData& data) {
  data.scheme = TokenizerData::Scheme::kScores;
  data.scores = read_scores(f, data.tokens.size());
  // Without types no token would stand for a byte, and rare characters would be lost.
  data.types = f.get_ints("tokenizer.ggml.token_type");
  MILLION_REQUIRE(data.tokens.size() > 2, ErrorCode::kBadInput,
                  "{}: the vocabulary has {} tokens, a SentencePiece one has at least <unk>, <s>, "
                  "</s>",
                  f.name(), data.tokens.size());
  data.unknown = token_id(f, "unknown", 0);
  data.bos = token_id(f, "bos", 1);
  data.eos = token_id(f, "eos", 2);
  data.add_bos = f.get_bool("tokenizer.ggml.add_bos_token", data.bos >= 0);
  if (f.get_bool("tokenizer.ggml.add_space_prefix", true)) data.space_prefix = SpacePrefix::kEach;
}

}  // namespace

TokenizerData read_gguf_tokenizer(const GgufFile& f) {
  const auto kind = f.get_string("tokenizer.ggml.model");
  MILLION_REQUIRE(kind == "gpt2" || kind == "llama", ErrorCode::kBadInput,
                  "{}: tokenizer model {} is not supported, supported: gpt2 (byte-level BPE), "
                  "llama (SentencePiece BPE)",
                  f.name(), printable(kind));
  TokenizerData data;
  const auto& tokens = f.get_strings("tokenizer.ggml.tokens");
  data.tokens.assign(tokens.begin(), tokens.end());
  if (kind == "gpt2")
    read_byte_level(f, data);
  else
    read_sentencepiece(f, data);
  data.eot = token_id(f, "eot");
  MILLION_REQUIRE(!data.add_bos || data.bos >= 0, ErrorCode::kBadInput,
                  "{}: add_bos_token is set, but there is no bos_token_id", f.name());
  return data;
}

void pad_vocabulary(TokenizerData& data, std::size_t n_vocab, const std::string& name) {
  const std::size_t n = data.tokens.size();
  MILLION_REQUIRE(n <= n_vocab, ErrorCode::kBadInput,
                  "{}: the tokenizer has {} tokens, but the model has rows for {}; the files "
                  "belong to different models",
                  name, n, n_vocab);
  data.tokens.resize(n_vocab);
  if (!data.types.empty()) data.types.resize(n_vocab, 5);  // unused
  if (!data.trims.empty()) data.trims.resize(n_vocab, 0);
  if (!data.scores.empty()) data.scores.resize(n_vocab, 0);
}

}  // namespace million
