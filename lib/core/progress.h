// SPDX-License-Identifier: Apache-2.0
// Progress on stderr (stdout carries data only) and the Ctrl-C flag that long loops poll.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace million {

enum class ProgressStyle { kAuto, kPlain, kNone };  ///< auto: one updating line on a terminal
void set_progress_style(ProgressStyle style);

/// Counts `total` steps of a job. On a terminal one line with ETA is redrawn; otherwise a plain
/// line is printed at most every 10 s and at the end. Not thread-safe: call from the owning thread.
class Progress {
 public:
  Progress(std::string title, int64_t total);
  ~Progress();
  void step(const std::string& note = "", int64_t n = 1);

 private:
  void print(bool last);
  std::string title_, note_;
  int64_t total_, done_ = 0;
  std::chrono::steady_clock::time_point start_, printed_;
};

/// Installs handlers for SIGINT, SIGTERM and SIGUSR1 that only set a flag; SIGPIPE is ignored.
void install_signal_handlers();
/// Makes the OpenMP workers block those signals; call after set_threads. Only the main thread has
/// the handlers' own stack.
void keep_signals_to_main_thread();
bool interrupted();
/// Throws Error(kInterrupted) once a signal arrived. Long loops call it between units of work.
void check_interrupted();

}  // namespace million
