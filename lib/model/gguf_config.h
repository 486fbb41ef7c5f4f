// SPDX-License-Identifier: Apache-2.0
// GGUF metadata -> ModelConfig, for decoders of the Llama form. Keys as llama.cpp writes them:
// "<architecture>.block_count", ...
#pragma once

#include "lib/core/rope.h"
#include "lib/model/model.h"

#include <optional>
#include <string>

namespace million {

class GgufFile;

/// Fills everything but n_vocab. `pairs`: how files of this architecture order the rows of Q and K.
/// Error(kBadInput) naming the key.
void read_gguf_config(const GgufFile& file, RopePairs pairs, ModelConfig& config);

/// Integer key of [low, high] as int; `missing` as in GgufFile::get_uint.
int get_size(const GgufFile& file, const std::string& key, int low, int high,
             std::optional<uint64_t> missing = {});
/// Finite float key in (low, high].
float get_real(const GgufFile& file, const std::string& key, double low, double high,
               std::optional<double> missing = {});

}  // namespace million
