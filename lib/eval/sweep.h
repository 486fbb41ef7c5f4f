// SPDX-License-Identifier: Apache-2.0
// A grid of methods: what to run, what is done already, which of them no other method beats.
#pragma once

#include "lib/eval/session.h"

#include <functional>
#include <string>
#include <vector>

namespace million {

/// PQ grid: every (M, nbits, scope) that fits, as method texts.
struct PqGrid {
  std::vector<int> M, nbits;
  std::vector<std::string> scope = {"head"};
  int sinks = 4, window = 0;
};
/// "pq:M=..,nbits=..,scope=..,sinks=.." in the order scope, M, nbits. Combinations whose M does not
/// divide head_dim are an Error(kUsage); so is an empty axis.
std::vector<std::string> grid_methods(const PqGrid& grid, int head_dim);

/// A sweep file (TOML). Keys: context, contexts, windows, budgets, calib_tokens, calib_context,
/// protocol, compute (all optional, flags win), methods = [text...], and [pq] M, nbits, scope,
/// sinks, window.
struct SweepConfig {
  int context = 0, windows = -1, calib_tokens = 0, calib_context = -1;  ///< unset values
  std::vector<int> contexts;  ///< further window lengths, each with as many tokens as `context` has
  std::string protocol, compute;
  std::vector<std::string> methods;
  std::vector<double> budgets;  ///< bits per value to be split over layers, keys and values
  std::vector<PqGrid> grids;
};
/// Error(kBadInput) with file, line and the known keys on anything unknown or of a wrong type.
SweepConfig load_sweep(const std::string& path);

/// What became of a cell.
struct SweepOutcome {
  std::vector<Json> rows;  ///< one record per method, in order: ok, failed or resumed
  int resumed = 0, failed = 0;
};

/// Runs every method that `file` does not hold yet, appends each row as soon as it is finished. A
/// cell that fails is recorded as failed with its reason and the sweep goes on; Ctrl-C stops after
/// the rows written so far.
SweepOutcome run_sweep(EvalSession& session, const std::vector<MethodSpec>& methods,
                       RecordFile& file, bool force);

/// Marks "pareto": true in rows that no other ok row of the same protocol, context and text beats
/// in both bits (bits.cache) and KL, and "pareto_at": {"8192": ...} the same with codebooks counted
/// at each length of bits.at.
void mark_pareto(std::vector<Json>& rows);

}  // namespace million
