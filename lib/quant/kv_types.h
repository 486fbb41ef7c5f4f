// SPDX-License-Identifier: Apache-2.0
// Words that every layer above core shares: the shape of a cache, its two kinds, the frame of a
// key.
#pragma once

#include "lib/core/rope.h"

#include <algorithm>
#include <cstdint>

namespace million {

enum class KvKind { kKey, kValue };
inline const char* kind_name(KvKind kind) { return kind == KvKind::kKey ? "k" : "v"; }

/// Where attention places tokens. A query at index i sees the tokens of its neighbour window, i - j
/// < window, at their own positions, and all before them ("far") in groups: key j at j / group,
/// the query at i / group + window - window / group. group = 1: every token at its own position.
/// Source  Jin et al., "LLM Maybe LongLM: Self-Extend", ICML 2024; `group` divides `window`.
struct SelfExtend {
  int group = 1;
  int window = 0;
  bool on() const { return group > 1; }
  int64_t far_query(int64_t i) const { return i / group + window - window / group; }
  /// Tokens [0, far_end) are far from the query at index i.
  int64_t far_end(int64_t i) const { return on() ? std::max<int64_t>(0, i - window + 1) : 0; }
  friend bool operator==(const SelfExtend&, const SelfExtend&) = default;
};

/// The position f(t) at which the key of token t is stored: R(f(t)) k. A far query meets token t at
/// t / group; rest(t) is what is left to turn then. Runs of kBlock have `block` tokens, and a
/// `group` that divides it, so that rest() is one number in each of them.
struct KeyFrame {
  enum class Type { kPostRope, kPreRope, kBlock } type = Type::kPostRope;
  int block = 0;  ///< kBlock: f(t) = (t mod block) / group
  int group = 1;  ///< SelfExtend::group
  int64_t position(int64_t t) const {
    return type == Type::kPostRope ? t / group : type == Type::kPreRope ? 0 : t % block / group;
  }
  int64_t rest(int64_t t) const { return t / group - position(t); }
  /// Token t's place in its run of kBlock; 0 before RoPE.
  int64_t place(int64_t t) const { return type == Type::kBlock ? t % block : 0; }
  /// A row after RoPE at its own position is stored as it is.
  bool plain() const { return type == Type::kPostRope && group == 1; }
};

/// Shape of a model's cache.
struct KvGeometry {
  int n_layers = 0;
  int n_heads = 0;  ///< query heads; a multiple of n_kv_heads
  int n_kv_heads = 0;
  int head_dim = 0;
  Rope rope;
  SelfExtend self_extend = {};

  int group() const { return n_heads / n_kv_heads; }
  int row() const { return n_kv_heads * head_dim; }  ///< values of one token, layer and kind
};

}  // namespace million
