// SPDX-License-Identifier: Apache-2.0
// Times the phases of a fused kernel call for AttendStats: a few reads of the time stamp counter.
#pragma once

#include "kernels/ops.h"

namespace million::MILLION_ISA {
namespace {

struct PhaseClock {
  AttendStats* stats;
  int64_t last;
  explicit PhaseClock(AttendStats* of) : stats(of), last(of ? time_stamp() : 0) {}
  /// What passed since the last call was `phase`.
  void end(int64_t AttendStats::*phase) {
    if (!stats) return;
    const int64_t at = time_stamp();
    stats->*phase += at - last;
    last = at;
  }
};

}  // namespace
}  // namespace million::MILLION_ISA
