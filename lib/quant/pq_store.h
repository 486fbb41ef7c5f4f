// SPDX-License-Identifier: Apache-2.0
// Codes of one layer and kind, packed as kernels/layout.h says, so that attend_pq reads them.
#pragma once

#include "lib/quant/codebook.h"
#include "lib/quant/codec.h"

#include <memory>

namespace million {

/// `tables` are shared with the codec, so a store outlives a codec that is trained again. `books`
/// and `bases` name the entries of each unit of KV heads; bases is empty where rows are coded as
/// they are.
/// `frame` and the geometry's RoPE turn the mean of centred keys to a token's place.
std::unique_ptr<CodeStore> make_pq_store(std::shared_ptr<const PqTables> tables,
                                         const KvGeometry& geometry, const KeyFrame& frame,
                                         std::vector<int> books, std::vector<int> bases);

}  // namespace million
