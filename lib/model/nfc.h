// SPDX-License-Identifier: Apache-2.0
// Unicode's canonical composition (form NFC), which the tokenizer.json of some families (Qwen2)
// applies to the text first.
#pragma once

#include <string>
#include <string_view>

namespace million {

/// The text in form NFC; bytes that are no UTF-8 stay where they are and nothing composes across
/// them. n log n in the longest run of combining marks, else linear.
/// Source: Unicode Standard Annex 15; the standard's chapter 3.12 for Hangul.
std::string to_nfc(std::string_view text);

}  // namespace million
