// SPDX-License-Identifier: Apache-2.0
#include "lib/core/progress.h"

#include "lib/core/error.h"

#include <omp.h>
#include <unistd.h>

#include <csignal>
#include <utility>
#include <vector>

namespace million {
namespace {

ProgressStyle g_style = ProgressStyle::kAuto;
volatile std::sig_atomic_t g_interrupted = 0;

constexpr int kHandled[] = {SIGINT, SIGTERM, SIGUSR1};

void on_signal(int) { g_interrupted = 1; }

bool redraws() { return g_style == ProgressStyle::kAuto && ::isatty(STDERR_FILENO); }

double seconds_since(std::chrono::steady_clock::time_point t) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - t).count();
}

}  // namespace

void set_progress_style(ProgressStyle style) { g_style = style; }

Progress::Progress(std::string title, int64_t total)
    : title_(std::move(title)),
      total_(total),
      start_(std::chrono::steady_clock::now()),
      printed_(start_) {}

Progress::~Progress() {
  if (done_ > 0) print(true);
}

void Progress::step(const std::string& note, int64_t n) {
  done_ += n;
  note_ = note;
  const double every = redraws() ? 0.2 : 10.0;  // seconds between prints
  if (seconds_since(printed_) >= every) print(false);
}

void Progress::print(bool last) {
  if (g_style == ProgressStyle::kNone) return;
  printed_ = std::chrono::steady_clock::now();
  const double elapsed = seconds_since(start_);
  std::string line = fmt::format("{}: {}/{}, {:.1f} s", title_, done_, total_, elapsed);
  if (!last && done_ > 0 && done_ < total_)
    line += fmt::format(", {:.0f} s left",
                        elapsed / static_cast<double>(done_) * static_cast<double>(total_ - done_));
  if (!note_.empty()) line += "  " + note_;
  if (redraws())
    fmt::print(stderr, "\r\033[K{}{}", line, last ? "\n" : "");
  else
    fmt::print(stderr, "{}\n", line);
  std::fflush(stderr);
}

void install_signal_handlers() {
  // oneDNN's generated f32 kernels use the stack pointer as a plain register, so a handler on the
  // running stack writes its frame into the heap (seen with oneDNN 2.6.3, AVX-512: Ctrl-C during
  // prefill corrupted memory in one run of 15). A stack of their own keeps handlers away from that;
  // it is never freed, a signal may come during exit.
  static auto& memory = *new std::vector<char>(static_cast<std::size_t>(SIGSTKSZ) + 64 * 1024);
  stack_t stack{};
  stack.ss_sp = memory.data();
  stack.ss_size = memory.size();
  MILLION_ASSERT(sigaltstack(&stack, nullptr) == 0);
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_ONSTACK;
  for (int signal : kHandled) sigaction(signal, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
}

void keep_signals_to_main_thread() {
  sigset_t handled;
  sigemptyset(&handled);
  for (int signal : kHandled) sigaddset(&handled, signal);
#pragma omp parallel
  if (omp_get_thread_num() != 0) pthread_sigmask(SIG_BLOCK, &handled, nullptr);
}

bool interrupted() { return g_interrupted != 0; }

void check_interrupted() {
  MILLION_REQUIRE(!interrupted(), ErrorCode::kInterrupted,
                  "interrupted; what was finished is saved, the same command goes on from there");
}

}  // namespace million
