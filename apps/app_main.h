// SPDX-License-Identifier: Apache-2.0
// The common shell of every program: flags that all share, configuration files, error lines and
// exit codes, logging to stderr, so that stdout carries data only.
#pragma once

#include <CLI/CLI.hpp>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace million {

/// What every program takes as its model.
inline constexpr const char* kModelHelp =
    "GGUF file, folder with safetensors, org/name in the Hugging Face cache, or random:SHAPE";

/// Values of the common flags, filled before the body runs.
struct AppContext {
  std::string program;  ///< "kv-eval"
  std::string command;  ///< shell-quoted command line that repeats this run
  int threads = 0;      ///< resolved: usable cores unless --threads
  uint64_t seed = 1;
  std::string json;  ///< --json: a file, "-" for stdout, empty = not asked for
  bool dry_run = false;
  int verbosity = 0;  ///< -1 with -q, 0, 1 with -v

  /// Where human-readable results go: stdout, unless --json - claims it.
  bool prints_summary() const { return json != "-"; }
};

/// What --help says besides the flags.
struct AppInfo {
  const char* name;
  const char* summary;   ///< one sentence
  const char* examples;  ///< two real commands, one a line
  bool has_dry_run = false;
  const char* exit_notes = "";  ///< appended to the table of exit codes
};

/// Body of a program; its result is the exit code.
using AppBody = std::function<int()>;

/// Registers flags on `app` and returns the body. Both may keep references to `context`.
using AppSetup = std::function<AppBody(CLI::App& app, AppContext& context)>;

/// Runs a program: parses (wrong use = 2, unknown config keys included), applies the common flags,
/// runs the body, and turns Error into its code with one line "PROGRAM: message" on stderr,
/// std::bad_alloc into 4 and anything else into 1. A reader that closed our stdout ends it quietly.
///
///   int main(int argc, char** argv) {
///     return million::run_app(argc, argv, {"kv-x", "what it does", kExamples},
///       [](CLI::App& app, million::AppContext& context) -> million::AppBody {
///         auto flags = std::make_shared<Flags>();
///         app.add_option("--flag", flags->value, "meaning, unit")->group("Data");
///         return [flags, &context] { return run(*flags, context); };
///       });
///   }
int run_app(int argc, char** argv, const AppInfo& info, const AppSetup& setup);

/// Writes data to stdout at once. Error(kNoResources) when the device is full; a closed pipe ends
/// the program quietly with code 0.
void print_out(std::string_view text);

/// Writes `text` to a file atomically, or to stdout for "-"; nothing for an empty path.
void write_output(const std::string& path, std::string_view text);

/// "0-3,7" -> {0, 1, 2, 3, 7}; "all" -> 0..limit-1. Error(kUsage) naming `flag` on anything else.
std::vector<int> parse_ranges(const std::string& text, int limit, const char* flag);

}  // namespace million
