// SPDX-License-Identifier: Apache-2.0
#include "lib/core/printable.h"

#include <fmt/format.h>

#include <cstddef>

namespace million {

std::string printable(std::string_view text) {
  constexpr std::size_t kMost = 80;
  std::string out;
  for (const char c : text.substr(0, kMost)) {
    const auto byte = static_cast<unsigned char>(c);
    out += byte < 0x20 || byte >= 0x7F ? fmt::format("\\x{:02x}", byte) : std::string(1, c);
  }
  return text.size() > kMost ? out + "..." : out;
}

}  // namespace million
