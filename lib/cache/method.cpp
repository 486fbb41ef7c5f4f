// SPDX-License-Identifier: Apache-2.0
#include "lib/cache/method.h"

#include "lib/core/error.h"

#include <algorithm>
#include <numeric>

namespace million {

const char* protocol_name(Protocol p) {
  return p == Protocol::kDecodePath ? "decode-path" : "all-distorted";
}

Protocol parse_protocol(std::string_view text) {
  if (text == "decode-path") return Protocol::kDecodePath;
  if (text == "all-distorted") return Protocol::kAllDistorted;
  fail(ErrorCode::kUsage, "--protocol: got '{}', expected decode-path or all-distorted", text);
}

double Method::nominal_bits() const {
  return 0.5 * (key_codec->nominal_bits() + value_codec->nominal_bits());
}

void require_compatible(const MethodSpec& spec, const Codec& key_codec, const Codec& value_codec) {
  for (const Codec* codec : {&key_codec, &value_codec})
    MILLION_REQUIRE(spec.window == 0 || codec->residual().type == ResidualRule::Type::kNone,
                    ErrorCode::kUsage,
                    "method {}: window={} beside {}, which keeps its last tokens by a rule of its "
                    "own; leave window out or set residual=0",
                    spec.to_string(), spec.window, codec->spec());
}

std::pair<CodingRule, CodingRule> coding_rules(const Method& method, Protocol protocol,
                                               const SelfExtend& self_extend) {
  const Codec &k = *method.key_codec, &v = *method.value_codec;
  require_compatible(method.spec, k, v);
  CodingRule key, value;
  for (auto [rule, codec] : {std::pair(&key, &k), std::pair(&value, &v)}) {
    rule->protocol = protocol;
    const bool fp16 = method.spec.key_codec == "fp16" && method.spec.value_codec == "fp16";
    rule->exact = fp16 && !self_extend.on();
    rule->sinks = fp16 ? 0 : method.spec.sinks;
    rule->window = method.spec.window;
    rule->long_window = rule->exact;
    if (self_extend.on()) {
      rule->window = std::max(rule->window, self_extend.window);
      rule->delay = self_extend.window - 1;
      rule->long_window = true;
    }
    rule->residual = codec->residual();
    rule->seal_tokens = std::lcm(codec->block_tokens(), kSealTokens);
    // A run that a rule hands over must be whole groups.
    MILLION_ASSERT(!rule->ruled() || rule->residual.length > 0);
    if (rule->residual.type == ResidualRule::Type::kFlush)
      MILLION_ASSERT(rule->residual.length % codec->block_tokens() == 0);
    if (rule->residual.type == ResidualRule::Type::kSlide)
      MILLION_ASSERT(codec->block_tokens() == 1);
  }
  if (!key.ruled() && !value.ruled())
    key.seal_tokens = value.seal_tokens = std::lcm(key.seal_tokens, value.seal_tokens);
  return {key, value};
}

bool takes_any_call(const Method& method, const CodingRule& key, const CodingRule& value) {
  const auto free = [&](const CodingRule& rule, const Codec& codec) {
    return !rule.all_at_once() || (codec.block_tokens() == 1 && rule.window == 0);
  };
  return free(key, *method.key_codec) && free(value, *method.value_codec);
}

}  // namespace million
