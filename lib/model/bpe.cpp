// SPDX-License-Identifier: Apache-2.0
#include "lib/model/bpe.h"

#include "lib/core/error.h"
#include "lib/core/printable.h"

namespace million {

std::pair<std::string_view, std::string_view> split_merge(std::string_view text, std::size_t rank) {
  const auto space = text.find(' ');
  MILLION_REQUIRE(space != std::string_view::npos && space > 0 && space + 1 < text.size() &&
                      text.find(' ', space + 1) == std::string_view::npos,
                  ErrorCode::kBadInput, "merge {} is \"{}\", expected \"left right\"", rank,
                  printable(text));
  return {text.substr(0, space), text.substr(space + 1)};
}

void refuse_merge(std::string_view text, std::string_view part, std::size_t rank) {
  fail(ErrorCode::kBadInput, "merge {} is \"{}\", but \"{}\" is no token of the vocabulary", rank,
       printable(text), printable(part));
}

}  // namespace million
