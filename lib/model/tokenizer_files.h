// SPDX-License-Identifier: Apache-2.0
// Tokenizers as files hold them: the keys of a GGUF file, or the tokenizer.json,
// tokenizer_config.json and chat_template.jinja of a Hugging Face folder.
// Both are taken to be hostile: sizes, ids, nesting and types are checked before use.
#pragma once

#include "lib/model/tokenizer.h"

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

namespace million {

class GgufFile;

/// The keys tokenizer.ggml.* of a file. Models "gpt2" (byte-level BPE) and "llama" (SentencePiece
/// BPE by score). Error(kBadInput) with file and key, got and expected.
TokenizerData read_gguf_tokenizer(const GgufFile& file);

/// tokenizer.json of `folder` with the settings of tokenizer_config.json (beginning and end tokens,
/// add_bos_token) and, where that is silent, of config.json (bos_token_id, eos_token_id).
/// `chat_template`, when not null, becomes the text of chat_template.jinja, else that of the
/// chat_template field ("default" of a list), else empty.
/// The vocabulary ends at the highest id that the file names; see pad_vocabulary.
/// Error(kBadInput) with the file and what in it: missing, not JSON, too large, nested too deeply,
/// a kind that we do not read (Unigram, WordPiece, ...), contradicting entries.
TokenizerData read_hf_tokenizer(const std::filesystem::path& folder, std::string* chat_template);

/// The tokenizer.json alone, from memory; `name` is the file in messages.
TokenizerData parse_hf_tokenizer(std::string_view text, const std::string& name);

/// Adds empty tokens up to `n_vocab`, the rows of the embedding: many models have more rows than
/// tokens. Error(kBadInput) when the vocabulary is larger already; `name` is the file in the
/// message.
void pad_vocabulary(TokenizerData& data, std::size_t n_vocab, const std::string& name);

}  // namespace million
