// SPDX-License-Identifier: Apache-2.0
// Words that every layer above core shares: the shape of a cache, its two kinds, the frame of a
// key.
#pragma once

#include "lib/core/rope.h"

#include <cstdint>

namespace million {

enum class KvKind { kKey, kValue };
inline const char* kind_name(KvKind kind) { return kind == KvKind::kKey ? "k" : "v"; }

/// The position f(t) at which the key of token t is stored: R(f(t)) k.
struct KeyFrame {
  enum class Type { kPostRope, kPreRope, kBlock } type = Type::kPostRope;
  int block = 0;  ///< kBlock: f(t) = t mod block
  int64_t position(int64_t t) const {
    return type == Type::kPostRope ? t : type == Type::kPreRope ? 0 : t % block;
  }
};

/// Shape of a model's cache.
struct KvGeometry {
  int n_layers = 0;
  int n_heads = 0;  ///< query heads; a multiple of n_kv_heads
  int n_kv_heads = 0;
  int head_dim = 0;
  Rope rope;

  int group() const { return n_heads / n_kv_heads; }
  int row() const { return n_kv_heads * head_dim; }  ///< values of one token, layer and kind
};

}  // namespace million
