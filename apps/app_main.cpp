// SPDX-License-Identifier: Apache-2.0
#include "apps/app_main.h"

#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/core/parallel.h"
#include "lib/core/progress.h"
#include "lib/device/native_device.h"
#include "lib/results/hdf5_file.h"
#include "lib/results/provenance.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <new>
#include <vector>

namespace million {
namespace {

/// Thrown when the reader of stdout went away: no error, nothing left to do.
struct ClosedPipe {};

constexpr const char* kExitCodes =
    "Exit codes:\n"
    "  0 done   1 a run failed   2 wrong use   3 input file bad   4 not enough space or memory\n"
    "  5 some cells failed   130 interrupted after saving what was finished\n";

std::string version_text() {
  const BuildInfo& build = build_info();
  std::string text =
      fmt::format("million {} (commit {}{}, {}, {})\nfeatures: isa {}", build.version, build.commit,
                  build.dirty ? ", modified" : "", build.compiler, build.build_type, isa_name());
  const Json libraries = library_versions();
  for (const auto& [name, version] : libraries.items())
    text += fmt::format(", {} {}", name, version.get<std::string>());
  return text + (built_with_cuda() ? ", cuda on\n" : ", cuda off\n");
}

void start_log(int verbosity) {
  auto log = spdlog::stderr_color_mt("million");
  log->set_pattern("%^%l%$: %v");
  log->set_level(verbosity < 0   ? spdlog::level::warn
                 : verbosity > 0 ? spdlog::level::debug
                                 : spdlog::level::info);
  spdlog::set_default_logger(log);
}

struct CommonFlags {
  std::string isa = "auto", progress = "auto";
  bool quiet = false, verbose = false;
};

void add_common_flags(CLI::App& app, const AppInfo& info, AppContext& context, CommonFlags& flags) {
  app.option_defaults()->always_capture_default();
  app.fallthrough();  // common flags may follow a subcommand
  app.set_config("--config", "", "TOML file of long flags; the command line wins")->group("Common");
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.set_version_flag("--version", version_text, "Print version, commit and features");
  app.add_option("--threads", context.threads, "Worker threads (0 = all usable cores)")
      ->check(CLI::Range(0, 1024))
      ->group("Common");
  app.add_option("--seed", context.seed, "Seed of everything random")->group("Common");
  app.add_option("--json", context.json, "Write results as JSON to FILE, or '-' for stdout")
      ->type_name("FILE")
      ->group("Common");
  app.add_option("--progress", flags.progress, "Progress on stderr")
      ->check(CLI::IsMember({"auto", "plain", "none"}))
      ->group("Common");
  app.add_option("--isa", flags.isa, "Instruction set of the kernels")
      ->check(CLI::IsMember({"auto", "scalar", "avx2", "avx512"}))
      ->group("Common");
  app.add_flag("-q,--quiet", flags.quiet, "Warnings and errors only")->group("Common");
  app.add_flag("-v,--verbose", flags.verbose, "Say more")->group("Common");
  if (info.has_dry_run)
    app.add_flag("--dry-run", context.dry_run, "Print the plan and its cost, run nothing")
        ->group("Common");
}

void apply_common_flags(const CommonFlags& flags, AppContext& context) {
  context.verbosity = flags.quiet ? -1 : flags.verbose ? 1 : 0;
  start_log(context.verbosity);
  set_progress_style(flags.quiet || flags.progress == "none" ? ProgressStyle::kNone
                     : flags.progress == "plain"             ? ProgressStyle::kPlain
                                                             : ProgressStyle::kAuto);
  select_isa(flags.isa);
  if (context.threads == 0) context.threads = usable_cores();
  set_threads(context.threads);
  keep_signals_to_main_thread();
}

void flush_stdout() {
  if (std::fflush(stdout) == 0 && !std::ferror(stdout)) return;
  if (errno == EPIPE) throw ClosedPipe{};
  fail(ErrorCode::kNoResources, "cannot write stdout: {}", std::strerror(errno));
}

/// Parses and runs; every way out but an exit code is an exception.
int run_checked(int argc, char** argv, const AppInfo& info, const AppSetup& setup) {
  AppContext context;
  CommonFlags flags;
  context.program = info.name;
  context.command = shell_command(argc, argv);
  CLI::App app(info.summary, info.name);
  app.footer(fmt::format("Examples:\n{}\n{}{}", info.examples, kExitCodes, info.exit_notes));
  add_common_flags(app, info, context, flags);
  const AppBody body = setup(app, context);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& e) {  // --help, --version
    app.exit(e);
    flush_stdout();
    return 0;
  } catch (const CLI::FileError& e) {
    fail(ErrorCode::kBadInput, "{}", e.what());
  } catch (const CLI::ParseError& e) {
    fail(ErrorCode::kUsage, "{} (see {} --help)", e.what(), info.name);
  }
  apply_common_flags(flags, context);
  const int code = body();
  flush_stdout();
  return code;
}

}  // namespace

int run_app(int argc, char** argv, const AppInfo& info, const AppSetup& setup) {
  hdf5_init();
  install_signal_handlers();
  std::signal(SIGXFSZ, SIG_IGN);  // a file size limit then fails the write: exit 4 instead of death
  const auto report = [&](ErrorCode code, const char* message) {
    fmt::print(stderr, "{}: {}\n", info.name, message);
    return static_cast<int>(code);
  };
  try {
    return run_checked(argc, argv, info, setup);
  } catch (const ClosedPipe&) {
    // The exit flush would fail again; nothing of ours is left in the buffer worth keeping.
    ::close(STDOUT_FILENO);
    return 0;
  } catch (const Error& e) {
    return report(e.code(), e.what());
  } catch (const std::bad_alloc&) {
    return report(ErrorCode::kNoResources,
                  "not enough memory; use a smaller model, context or number of threads");
  } catch (const std::exception& e) {
    return report(ErrorCode::kFailed, e.what());
  }
}

void print_out(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  flush_stdout();
}

void write_output(const std::string& path, std::string_view text) {
  if (path.empty()) return;
  if (path == "-") return print_out(text);
  std::error_code ignored;
  const auto kind = std::filesystem::status(path, ignored).type();
  if (kind == std::filesystem::file_type::regular || kind == std::filesystem::file_type::not_found)
    return write_file_atomic(path, text);
  // A device or pipe is written in place: a rename would replace it.
  std::FILE* out = std::fopen(path.c_str(), "wb");
  const bool written = out && std::fwrite(text.data(), 1, text.size(), out) == text.size();
  const bool closed = out && std::fclose(out) == 0;
  MILLION_REQUIRE(written && closed,
                  errno == ENOSPC ? ErrorCode::kNoResources : ErrorCode::kBadInput,
                  "cannot write {}: {}", path, std::strerror(errno));
}

std::vector<int> parse_ranges(const std::string& text, int limit, const char* flag) {
  const auto bad = [&] {
    fail(ErrorCode::kUsage, "{} {}: expected numbers and ranges in 0..{}, e.g. 0-{} or 0,{}", flag,
         text, limit - 1, limit - 1, limit - 1);
  };
  std::vector<bool> chosen(static_cast<std::size_t>(limit), text == "all");
  const char* at = text.data();
  const char* const end = at + text.size();
  while (text != "all") {
    int first = 0;
    auto result = std::from_chars(at, end, first);
    int last = first;
    if (result.ec == std::errc() && result.ptr != end && *result.ptr == '-')
      result = std::from_chars(result.ptr + 1, end, last);
    if (result.ec != std::errc() || first < 0 || last < first || last >= limit) bad();
    for (int i = first; i <= last; ++i) chosen[static_cast<std::size_t>(i)] = true;
    if (result.ptr == end) break;
    if (*result.ptr != ',') bad();
    at = result.ptr + 1;
  }
  std::vector<int> out;
  for (int i = 0; i < limit; ++i)
    if (chosen[static_cast<std::size_t>(i)]) out.push_back(i);
  return out;
}

}  // namespace million
