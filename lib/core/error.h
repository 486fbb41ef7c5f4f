// SPDX-License-Identifier: Apache-2.0
// The two kinds of failure. An input mistake throws Error with one line that says what, where, got,
// expected and the next step; a mistake of ours aborts through MILLION_ASSERT.
#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>

namespace million {

/// Why a run stopped; the value is the exit code of the program.
enum class ErrorCode {
  kFailed = 1,        ///< a run failed although its input was fine
  kUsage = 2,         ///< wrong flag, unknown method, impossible combination
  kBadInput = 3,      ///< a model, dump, text or config file is broken or does not fit
  kNoResources = 4,   ///< not enough memory or disk space
  kPartial = 5,       ///< some cells of a sweep failed
  kInterrupted = 130  ///< Ctrl-C after everything finished was saved
};

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

template <class... Args>
[[noreturn]] void fail(ErrorCode code, fmt::format_string<Args...> text, Args&&... args) {
  throw Error(code, fmt::format(text, std::forward<Args>(args)...));
}

}  // namespace million

/// Throws Error(code, formatted message) unless `cond` holds. For everything a user can get wrong.
#define MILLION_REQUIRE(cond, code, ...)               \
  do {                                                 \
    if (!(cond)) ::million::fail((code), __VA_ARGS__); \
  } while (0)

/// Aborts unless `cond` holds. For our own mistakes; active in every build type.
#define MILLION_ASSERT(cond)                                                          \
  do {                                                                                \
    if (!(cond)) {                                                                    \
      std::fprintf(stderr, "%s:%d: internal error: %s\n", __FILE__, __LINE__, #cond); \
      std::abort();                                                                   \
    }                                                                                 \
  } while (0)
