// SPDX-License-Identifier: Apache-2.0
// Reads a tokenizer.json in one pass: the vocabulary and the merges, which make up nearly all of
// its megabytes, go straight into lists, the rest becomes a small document.
#pragma once

#include "lib/model/json_file.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace million {

struct TokenizerJson {
  std::vector<std::pair<std::string, int32_t>> vocab;  ///< model.vocab: token and id
  std::vector<std::string> merges;                     ///< model.merges, as "left right"
  SortedJson rest;                                     ///< all other keys
};

/// `name` is the file in messages. Error(kBadInput): not JSON, nested deeper than 64, more than a
/// million values outside of vocabulary and merges, a key twice in one object, an id that is no
/// integer from 0 to 2^31 - 1, a merge that is neither "left right" nor a pair of strings without
/// spaces. A vocabulary that is a list (Unigram) is passed over and stays empty.
TokenizerJson parse_tokenizer_json(std::string_view text, const std::string& name);

}  // namespace million
