// SPDX-License-Identifier: Apache-2.0
// A grid of positions x lengths in which methods are compared: what tasks, perplexity by context
// and growth over a generation have in common. One run record per cell and method.
#pragma once

#include "lib/eval/method_factory.h"
#include "lib/eval/shared_prefill.h"
#include "lib/model/position_map.h"
#include "lib/results/run_record.h"

#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace million {

struct GridPlan {
  std::shared_ptr<const Model> model;  ///< with its own positions
  std::vector<PositionSpec> positions;
  std::vector<MethodSpec> methods;
  std::vector<int> lengths;
  CalibrationPlan calibration;  ///< text may be nullptr
  std::filesystem::path codebooks;
  EngineOptions engine;  ///< protocol is always decode-path; capacity is filled in
  Prefill prefill = Prefill::kExact;
  bool limited = false;  ///< --limit was used: rows are marked "not a result"
  uint64_t seed = 1;
  std::string program, command;  ///< for the records
};

/// Rows in the order of the run, those that a file holds already included.
class GridRows {
 public:
  /// `file` may be nullptr; `on_row` sees every row once.
  GridRows(RecordFile* file, bool force, std::function<void(const Json&)> on_row = {});
  /// True when the file holds this row: it then counts as a row of this run.
  bool resume(const RunRecord& described);
  void add(const RunRecord& record);
  const std::vector<Json>& rows() const { return rows_; }
  /// A finished row of this run or the file, or nullptr.
  const Json* find(const RunRecord& described) const;

 private:
  void show(const Json& row);
  RecordFile* file_;
  bool force_;
  std::function<void(const Json&)> on_row_;
  std::vector<Json> rows_;
};

/// One positions and length, and what is left to run there.
struct GridCell {
  std::shared_ptr<const Model> model;
  std::string positions;
  int length = 0;
  std::vector<RunRecord> records;  ///< of the methods to run, described
  std::vector<MethodSpec> specs;   ///< the same methods
  std::vector<Method> methods;     ///< the same, once Grid::train() made them
  Json exact_row;                  ///< of fp16 in this cell when it is finished, else null

  /// Index of fp16 among the methods; when it is not there it is added behind them, without a
  /// record.
  int exact();
};

class Grid {
 public:
  /// Error(kUsage) when a length or a method is impossible, or no cell can be reached; the message
  /// then has the formula.
  explicit Grid(GridPlan plan);
  const GridPlan& plan() const { return plan_; }
  int longest() const;

  /// Calls describe for every method, then either resumes, writes a skipped row (positions that do
  /// not reach the length), or leaves the method in the cell. `describe` adds the fields of its
  /// kind of run to config and inputs. `reach`: tokens that the sequence comes to.
  GridCell open(const PositionSpec& positions, int64_t reach, int length, GridRows& rows,
                const std::function<void(RunRecord&)>& describe) const;
  /// Makes the methods of a cell: what can be wrong otherwise is best looked at before.
  void train(GridCell& cell);
  EngineOptions engine_options(int64_t capacity) const;

 private:
  RunRecord describe(const MethodSpec& spec, const Model& model, const std::string& positions,
                     int length) const;

  GridPlan plan_;
  std::map<std::string, Method> trained_;  ///< by positions, rotation and method
};

/// Wall time in seconds.
inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Error(kUsage) with the last reason when rows were skipped and none is finished.
void require_any_row(const GridRows& rows);

/// A table of rows, with a column that says which of them are no result (--limit).
std::string rows_markdown(std::vector<Json> rows, std::vector<Column> columns);

/// bits {nominal, cache, total} of what an engine holds.
void add_bits(RunRecord& record, const Method& method, const Engine& engine);

}  // namespace million
