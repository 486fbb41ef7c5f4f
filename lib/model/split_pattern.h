// SPDX-License-Identifier: Apache-2.0
// Regular expressions of a tokenizer.json are Oniguruma's (Ruby syntax); ours run in PCRE2. The two
// agree on what the known families use but for some escapes, which are rewritten here; what differs
// and cannot be rewritten is refused, because a wrong cut gives wrong tokens quietly.
#pragma once

#include <string>
#include <string_view>

// Unicode White_Space, for use inside a bracket expression. PCRE2's \s differs under UCP: it also
// takes U+180E.
#define MILLION_WHITE_SPACE \
  "\\t-\\r "                \
  "\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}"

namespace million {

/// The same expression for PCRE2 with UTF and UCP. Error(kBadInput) names what is not supported:
/// back references, \h, \b and other escapes, nested sets, intersections, options but (?i:), a
/// counted repeat with + or ? behind it.
/// Source: Oniguruma doc/RE (syntax), pcre2pattern(3).
std::string translate_pattern(std::string_view oniguruma);

/// An expression that matches exactly this text.
std::string quote_pattern(std::string_view text);

}  // namespace million
