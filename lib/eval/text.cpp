// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/text.h"

#include "lib/core/error.h"
#include "lib/core/files.h"

#include <algorithm>

namespace million {

TokenText load_text(const Tokenizer& tokenizer, const std::filesystem::path& path) {
  constexpr uint64_t kMaxBytes = uint64_t{1} << 30;
  const std::string text = read_file(path, kMaxBytes);
  MILLION_REQUIRE(!text.empty(), ErrorCode::kBadInput, "text {} is empty", path.string());
  TokenText result{path.filename().string(), sha256_of(text), {}};
  if (tokenizer.add_bos()) result.tokens.push_back(tokenizer.bos());
  const std::vector<int32_t> ids = tokenizer.encode(text);
  result.tokens.insert(result.tokens.end(), ids.begin(), ids.end());
  return result;
}

Windows cut_windows(const TokenText& text, int context, int limit) {
  MILLION_REQUIRE(context >= 2, ErrorCode::kUsage, "--context: got {}, expected at least 2",
                  context);
  MILLION_REQUIRE(limit >= 0, ErrorCode::kUsage, "--windows: got {}, expected 0 (all) or more",
                  limit);
  const auto available = static_cast<int>(text.tokens.size() / static_cast<size_t>(context));
  MILLION_REQUIRE(available >= 1, ErrorCode::kBadInput,
                  "text {} has {} tokens, one window needs {}; use a longer text or a smaller "
                  "--context",
                  text.name, text.tokens.size(), context);
  return {&text, context, limit == 0 ? available : std::min(limit, available)};
}

void require_disjoint(const TokenText& calibration, const TokenText& evaluation, bool allowed) {
  MILLION_REQUIRE(allowed || calibration.sha256 != evaluation.sha256, ErrorCode::kBadInput,
                  "calibration text {} is the evaluation text; give another --calib-text, or "
                  "--paper-protocol to calibrate on the evaluation text as the paper's code does",
                  calibration.name);
}

}  // namespace million
