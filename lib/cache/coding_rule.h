// SPDX-License-Identifier: Apache-2.0
// Which tokens of one kind (keys or values) are coded: for a query, and for the encoder. Everything
// is a function of positions alone, so results do not depend on how a sequence is cut into calls.
// All counts are tokens behind the sinks.
#pragma once

#include "lib/quant/codec.h"

#include <algorithm>
#include <cstdint>

namespace million {

enum class Protocol { kDecodePath, kAllDistorted };

/// Steps between the moment a block has left the window and the moment queries see its codes. The
/// worker encodes in that time; synchronous encoding waits equally long, so both give one result.
inline constexpr int64_t kVisibleLag = 16;
/// Smallest run that is sealed at once; blocks of codecs that work row by row are made this long.
inline constexpr int kSealTokens = 64;

struct CodingRule {
  Protocol protocol = Protocol::kDecodePath;
  bool exact = false;  ///< nothing is ever coded
  int sinks = 0, window = 0;
  int seal_tokens = kSealTokens;
  /// A residual rule counts from so many tokens before the query: what it codes is then far in the
  /// sense of SelfExtend.
  int delay = 0;
  bool long_window = false;    ///< the exact rows are read in long runs
  ResidualRule residual = {};  ///< of the codec; without one the cache's window and lag apply

  bool ruled() const { return residual.type != ResidualRule::Type::kNone; }
  bool all_at_once() const { return protocol == Protocol::kAllDistorted && !exact && !ruled(); }

  /// Coded tokens that the query at `position` (sinks count) sees.
  int64_t seen(int64_t position) const {
    const int64_t i = position - sinks;
    if (exact || i < 0) return 0;
    switch (residual.type) {
      case ResidualRule::Type::kFlush:
        return std::max<int64_t>(0, i - delay) / residual.length * residual.length;
      case ResidualRule::Type::kSlide:
        return std::max<int64_t>(0, i - delay - residual.length);
      case ResidualRule::Type::kNone:
        break;
    }
    if (protocol == Protocol::kAllDistorted) return std::max<int64_t>(0, i + 1 - window);
    return sealed(i + 1, kVisibleLag);
  }

  /// Tokens that are with the encoder once the sequence has n tokens, before the attention of the
  /// last one.
  int64_t handed_over(int64_t n) const {
    if (exact) return 0;
    if (ruled()) return seen(n - 1);
    return all_at_once() ? std::max<int64_t>(0, n - sinks) : sealed(n - sinks, 0);
  }

  /// Tokens whose exact rows may go after the attention of the n-th token. A rule of the method
  /// acts on what the next query sees, as in its paper: a full residual is coded at once.
  int64_t dropped(int64_t n) const { return seen(ruled() ? n : n - 1); }

  /// Position at which codes that a query has seen change, after `position`; needs kFlush.
  int64_t next_flush(int64_t position) const {
    const int64_t from = sinks + delay;
    return from + (std::max<int64_t>(0, position - from) / residual.length + 1) * residual.length;
  }

 private:
  int64_t sealed(int64_t behind_sinks, int64_t lag) const {
    const int64_t behind = behind_sinks - window - lag;
    return behind <= 0 ? 0 : behind / seal_tokens * seal_tokens;
  }
};

}  // namespace million
