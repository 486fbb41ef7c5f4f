// SPDX-License-Identifier: Apache-2.0
// A cache method ready to run, and the rules that say which of its tokens are coded.
#pragma once

#include "lib/cache/coding_rule.h"
#include "lib/quant/codec.h"

#include <memory>
#include <string_view>
#include <utility>

namespace million {

const char* protocol_name(Protocol p);
Protocol parse_protocol(std::string_view text);

/// A method ready to run: parsed spec and trained codecs of a model. Shared by many caches.
struct Method {
  MethodSpec spec;
  std::shared_ptr<const Codec> key_codec, value_codec;  ///< both trained
  CalibrationInfo calibration;                          ///< empty when nothing was trained
  double nominal_bits() const;
};

/// Error(kUsage) when `window` is asked of a codec that keeps recent tokens by a rule of its own.
void require_compatible(const MethodSpec& spec, const Codec& key_codec, const Codec& value_codec);

/// Rules of keys and values. Without rules of their own both are sealed in common blocks, so that
/// a fused kernel finds both sides coded. With SelfExtend the neighbour window stays exact, and the
/// fp16 method is a code too: its far keys lie at their grouped positions.
std::pair<CodingRule, CodingRule> coding_rules(const Method& method, Protocol protocol,
                                               const SelfExtend& self_extend = {});

/// Tells whether a sequence may come in any number of calls: not when codes of a whole sequence
/// are made at once and depend on how it is cut.
bool takes_any_call(const Method& method, const CodingRule& key, const CodingRule& value);

}  // namespace million
