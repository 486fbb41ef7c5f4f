// SPDX-License-Identifier: Apache-2.0
// Rows as IEEE halves behind the store contract: the fp16 codec, and layers that a method protects.
#pragma once

#include "lib/quant/codec.h"

namespace million {

std::unique_ptr<CodeStore> make_exact_store(const KvGeometry& geometry);

}  // namespace million
