// SPDX-License-Identifier: Apache-2.0
// The steps around the model of a tokenizer.json: normalizer, pre_tokenizer, post_processor.
#pragma once

#include "lib/model/tokenizer.h"
#include "lib/model/tokenizer_json.h"

#include <optional>
#include <string>

namespace million {

/// Values of an object, with `name` the file in messages. A missing key or null gives the other
/// value; a value of another type is Error(kBadInput).
std::optional<std::string> text_of(const SortedJson& object, const char* key,
                                   const std::string& name);
bool flag_of(const SortedJson& object, const char* key, bool missing, const std::string& name);
const SortedJson& list_of(const SortedJson& object, const char* key, const SortedJson& missing,
                          const std::string& name);

/// Sets scheme, splits, nfc and space_prefix. A pre_tokenizer with a ByteLevel step is byte level;
/// without, the text must have its spaces turned into U+2581 (Replace or Metaspace).
/// Error(kBadInput) on any step or setting that we do not apply.
void read_steps(const SortedJson& file, const std::string& name, TokenizerData& data);

/// The special token that the post_processor's template puts before a single text.
std::optional<std::string> first_of_template(const SortedJson& file, const std::string& name);

}  // namespace million
