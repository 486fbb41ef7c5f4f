// SPDX-License-Identifier: Apache-2.0
// Text of foreign files in our messages.
#pragma once

#include <string>
#include <string_view>

namespace million {

/// Text from a file made safe for one line of a message: control bytes escaped, at most 80 bytes.
std::string printable(std::string_view text);

}  // namespace million
