// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/grid.h"

#include "lib/core/error.h"
#include "lib/eval/session.h"

#include <spdlog/spdlog.h>

#include <algorithm>

namespace million {
namespace {

constexpr int kMaxLength = 1 << 24;  ///< tokens; far beyond what memory holds

/// The reason why positions do not reach a length; empty when they do.
std::string unreachable(const GridPlan& plan, const PositionSpec& positions, int64_t length) {
  try {
    with_positions(plan.model, positions, length);
    return {};
  } catch (const Error& e) {
    return e.what();
  }
}

}  // namespace

GridRows::GridRows(RecordFile* file, bool force, std::function<void(const Json&)> on_row)
    : file_(file), force_(force), on_row_(std::move(on_row)) {}

void GridRows::show(const Json& row) {
  rows_.push_back(row);
  if (on_row_) on_row_(row);
}

bool GridRows::resume(const RunRecord& described) {
  const Json* done = file_ && !force_ ? file_->find(described.key()) : nullptr;
  if (done) show(*done);
  return done != nullptr;
}

void GridRows::add(const RunRecord& record) {
  const Json row = record.to_json();
  // A skipped row is no finished one, so it comes again in every run; once is enough in the file.
  const auto same = [&](const Json& r) {
    return r["key"] == row["key"] && r["status"] == row["status"];
  };
  const bool again = record.status == "skipped" && file_ &&
                     std::any_of(file_->records().begin(), file_->records().end(), same);
  if (file_ && !again) file_->append(row);
  show(row);
}

const Json* GridRows::find(const RunRecord& described) const {
  const std::string key = described.key();
  for (const Json& row : rows_)
    if (row["key"] == key && row["status"] == "ok") return &row;
  return file_ && !force_ ? file_->find(key) : nullptr;
}

Grid::Grid(GridPlan plan) : plan_(std::move(plan)) {
  MILLION_REQUIRE(!plan_.lengths.empty() && !plan_.positions.empty() && !plan_.methods.empty(),
                  ErrorCode::kUsage, "expected a length, positions and a method at least");
  for (const int length : plan_.lengths)
    MILLION_REQUIRE(length >= 16 && length <= kMaxLength, ErrorCode::kUsage,
                    "--lengths: got {}, expected 16 to {} tokens", length, kMaxLength);
  KvGeometry geometry = plan_.model->config.geometry();
  for (const MethodSpec& m : plan_.methods) {  // a wrong option shows before the first long run
    for (const PositionSpec& p : plan_.positions) {
      geometry.self_extend = p.self_extend;
      make_codec(m.key_codec, KvKind::kKey, geometry);
    }
    const auto key = make_codec(m.key_codec, KvKind::kKey, geometry);
    const auto value = make_codec(m.value_codec, KvKind::kValue, geometry);
    require_compatible(m, *key, *value);
    MILLION_REQUIRE(plan_.calibration.text || !(key->needs_training() || value->needs_training()),
                    ErrorCode::kUsage, "{} is calibrated: give a text with --calib-text",
                    m.to_string());
  }
  std::string reason;
  for (const PositionSpec& p : plan_.positions)
    for (const int length : plan_.lengths)
      if (reason = unreachable(plan_, p, length); reason.empty()) return;
  fail(ErrorCode::kUsage, "{}", reason);
}

int Grid::longest() const { return *std::max_element(plan_.lengths.begin(), plan_.lengths.end()); }

EngineOptions Grid::engine_options(int64_t capacity) const {
  EngineOptions options = plan_.engine;
  options.protocol = Protocol::kDecodePath;
  options.capacity = capacity;
  return options;
}

RunRecord Grid::describe(const MethodSpec& spec, const Model& model, const std::string& positions,
                         int length) const {
  RunRecord record;
  record.program = plan_.program;
  record.command = plan_.command;
  record.seed = plan_.seed;
  record.method = spec.to_string();
  const EngineOptions& e = plan_.engine;
  record.config = {{"method", record.method},
                   {"key_codec", spec.key_codec},
                   {"value_codec", spec.value_codec},
                   {"sinks", spec.sinks},
                   {"window", spec.window},
                   {"positions", positions},
                   {"length", length},
                   {"prefill", prefill_name(plan_.prefill)},
                   {"protocol", protocol_name(Protocol::kDecodePath)},
                   {"compute", arithmetic_name(e.decoder, e.backend)},
                   {"limited", plan_.limited}};
  if (e.backend == Backend::kCpu)
    record.config["decode_compute"] = decode_compute_name(e.decoder.decode);
  else
    record.config["backend"] = backend_name(e.backend);
  if (e.decoder.chunk == 1) record.config["chunk"] = 1;  // by the kernels of single tokens
  if (e.skip_share > 0.0f) record.config["skip_share"] = e.skip_share;
  record.inputs = {{"model", model.config.name},
                   {"model_sha256", model.sha256},
                   {"trained_context", plan_.model->config.n_context}};
  record.inputs["calibration"] = calibration_json(model, plan_.calibration, spec);
  return record;
}

void require_any_row(const GridRows& rows) {
  std::string reason;
  for (const Json& row : rows.rows()) {
    if (row["status"] == "ok") return;
    if (row["status"] == "skipped") reason = row["reason"].get<std::string>();
  }
  MILLION_REQUIRE(reason.empty(), ErrorCode::kUsage, "{}", reason);
}

std::string rows_markdown(std::vector<Json> rows, std::vector<Column> columns) {
  bool any = false;
  for (Json& row : rows)
    if (row["config"].value("limited", false)) {
      row["note"] = "limited: not a result";
      any = true;
    }
  if (any) columns.push_back({"note"});
  return to_markdown(rows, columns);
}

GridCell Grid::open(const PositionSpec& positions, int64_t reach, int length, GridRows& rows,
                    const std::function<void(RunRecord&)>& describe_run) const {
  GridCell cell;
  cell.positions = positions.to_string();
  cell.length = length;
  const std::string reason = unreachable(plan_, positions, reach);
  cell.model = reason.empty() ? with_positions(plan_.model, positions, reach) : plan_.model;
  for (const MethodSpec& spec : plan_.methods) {
    RunRecord record = describe(spec, *cell.model, cell.positions, length);
    describe_run(record);
    if (reason.empty() && rows.resume(record)) continue;
    if (reason.empty()) {
      cell.records.push_back(std::move(record));
      cell.specs.push_back(spec);
      continue;
    }
    record.status = "skipped";
    record.reason = reason;
    rows.add(record);
  }
  if (!reason.empty()) spdlog::warn("{}", reason);
  RunRecord exact = describe(MethodSpec{}, *cell.model, cell.positions, length);
  describe_run(exact);
  if (const Json* row = rows.find(exact)) cell.exact_row = *row;
  return cell;
}

void Grid::train(GridCell& cell) {
  // Calibration data are large: they go with the factory, the codecs stay.
  MethodFactory factory(cell.model, plan_.calibration, plan_.codebooks);
  for (const MethodSpec& spec : cell.specs) {
    const ModelConfig& c = cell.model->config;
    // `dynamic` rotates otherwise at every length, the others do not.
    const std::string id = c.positions + "|" + c.rope.to_string() + "|" + spec.to_string();
    auto found = trained_.find(id);
    if (found == trained_.end())
      found = trained_.emplace(id, factory.make(spec, cell.length)).first;
    cell.methods.push_back(found->second);
  }
}

int GridCell::exact() {
  const auto is_exact = [](const Method& m) { return m.spec == MethodSpec{}; };
  const auto found = std::find_if(methods.begin(), methods.end(), is_exact);
  const auto index = static_cast<int>(found - methods.begin());
  if (found == methods.end()) methods.push_back(exact_method(model->config.geometry()));
  return index;
}

void add_bits(RunRecord& record, const Method& method, const Engine& engine) {
  record.bits = {{"nominal", method.nominal_bits()},
                 {"cache", engine.measured_bits(false)},
                 {"total", engine.measured_bits(true)}};
  const CacheBytes b = engine.bytes();
  record.bytes = {{"codes", b.codes}, {"scales", b.scales}, {"outliers", b.outliers},
                  {"sinks", b.sinks}, {"window", b.window}, {"shared", b.shared}};
}

}  // namespace million
