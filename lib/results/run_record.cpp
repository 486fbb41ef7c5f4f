// SPDX-License-Identifier: Apache-2.0
#include "lib/results/run_record.h"

#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/results/provenance.h"

#include <algorithm>
#include <set>
#include <utility>

namespace million {
namespace {

/// dump() with keys sorted, so that insertion order does not change a hash. Floats print in their
/// shortest round-trip form; invalid UTF-8 in a path is replaced instead of thrown.
std::string canonical(const Json& value) {
  return nlohmann::json(value).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

bool is_metric(const Json& value) { return value.is_object() && value.contains("value"); }

/// Value at a dotted path, or nullptr. Key names may hold dots themselves: every split is tried.
const Json* at_path(const Json& value, std::string_view path) {
  if (path.empty()) return &value;
  if (!value.is_object()) return nullptr;
  for (const auto& [name, child] : value.items()) {
    if (!path.starts_with(name)) continue;
    if (path.size() == name.size()) return &child;
    if (path[name.size()] != '.') continue;
    if (const Json* found = at_path(child, path.substr(name.size() + 1))) return found;
  }
  return nullptr;
}

void collect(const Json& value, const std::string& path, std::vector<Column>& out,
             std::set<std::string>& seen) {
  if (value.is_object() && !is_metric(value)) {
    for (const auto& [name, child] : value.items())
      collect(child, path.empty() ? name : path + "." + name, out, seen);
  } else if (seen.insert(path).second) {
    out.push_back({path, "", 4});
  }
}

std::string plain_text(const Json* value) {
  if (!value || value->is_null()) return "";
  if (value->is_string()) return value->get<std::string>();
  return value->dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string csv_cell(std::string text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string out(1, '"');
  for (char c : text) {
    if (c == '"') out += '"';
    out += c;
  }
  out += '"';
  return out;
}

const std::string& title_of(const Column& column) {
  return column.title.empty() ? column.path : column.title;
}

/// "12.345 ± 0.067": the error at two significant digits decides the decimals of both.
std::string with_error(double value, double se, int digits) {
  if (!std::isfinite(se) || se <= 0 || !std::isfinite(value))
    return fmt::format("{:.{}g}", value, digits);
  const int decimals = std::clamp(1 - static_cast<int>(std::floor(std::log10(se))), 0, 12);
  return fmt::format("{:.{}f} ± {:.{}f}", value, decimals, se, decimals);
}

double number_or_nan(const Json& object, const char* name) {
  const auto it = object.find(name);
  return it != object.end() && it->is_number() ? it->get<double>() : std::nan("");
}

std::string markdown_cell(const Json* value, int digits) {
  std::string text;
  if (value && is_metric(*value))
    text = with_error(number_or_nan(*value, "value"), number_or_nan(*value, "se"), digits);
  else if (value && value->is_number_float())
    text = fmt::format("{:.{}g}", value->get<double>(), digits);
  else
    text = plain_text(value);
  std::string out;
  for (char c : text) {
    if (c == '|') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out;
}

/// True when any record holds a metric at this path: the CSV then has three columns for all rows.
bool holds_metric(const std::vector<Json>& records, const std::string& path) {
  return std::any_of(records.begin(), records.end(), [&](const Json& record) {
    const Json* value = at_path(record, path);
    return value && is_metric(*value);
  });
}

}  // namespace

std::string record_key(const Json& config, const Json& inputs, int version) {
  return sha256_of(canonical({{"config", config}, {"inputs", inputs}, {"version", version}}));
}

void RunRecord::metric(const std::string& name, double value, double se, int64_t n) {
  metrics[name] = {{"value", value}, {"se", se}, {"n", n}};
}

void RunRecord::times(const std::string& name, std::vector<double> raw) {
  MILLION_ASSERT(!raw.empty());
  std::vector<double> sorted = raw;
  std::sort(sorted.begin(), sorted.end());
  const std::size_t middle = sorted.size() / 2;
  const double median =
      sorted.size() % 2 ? sorted[middle] : 0.5 * (sorted[middle - 1] + sorted[middle]);
  timing[name] = {{"median", median}, {"raw", std::move(raw)}};
}

Json RunRecord::to_json() const {
  MILLION_ASSERT(status == "ok" || status == "failed" || status == "skipped");
  Json out = {{"schema", kRecordVersion},   {"key", key()},      {"program", program},
              {"status", status},           {"method", method},  {"config", config},
              {"metrics", metrics},         {"bits", bits},      {"bytes", bytes},
              {"timing", timing},           {"seed", seed},      {"inputs", inputs},
              {"provenance", provenance()}, {"command", command}};
  if (!series.empty()) out["series"] = series;
  if (!reason.empty()) out["reason"] = reason;
  return out;
}

RecordFile::RecordFile(std::filesystem::path path) : path_(std::move(path)) { load(); }

void RecordFile::load() {
  if (!std::filesystem::exists(path_)) return;
  const std::string text = read_file(path_);
  int64_t line_number = 0, first_bad = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line(text.data() + begin, end - begin);
    begin = end + 1;
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    Json record = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    const bool known =
        record.is_object() && record.contains("schema") && record["schema"].is_number_integer() &&
        record["schema"].get<int64_t>() <= kRecordVersion && record.contains("key") &&
        record["key"].is_string() && record.contains("status") && record["status"].is_string();
    if (!known) {
      if (skipped_++ == 0) first_bad = line_number;
      continue;
    }
    records_.push_back(std::move(record));
    index(records_.size() - 1);
  }
  if (skipped_ > 0)
    fmt::print(stderr, "warning: {}:{}: torn or unknown record skipped ({} in all); {} kept\n",
               path_.string(), first_bad, skipped_, records_.size());
}

void RecordFile::index(std::size_t i) {
  if (records_[i]["status"] == "ok") done_[records_[i]["key"].get<std::string>()] = i;
}

void RecordFile::append(const Json& record) {
  MILLION_ASSERT(record.contains("schema") && record.contains("key") && record.contains("status"));
  append_line(path_, record.dump(-1, ' ', false, Json::error_handler_t::replace));
  records_.push_back(record);
  index(records_.size() - 1);
}

const Json* RecordFile::find(std::string_view key) const {
  const auto it = done_.find(std::string(key));
  return it == done_.end() ? nullptr : &records_[it->second];
}

std::vector<Column> all_columns(const std::vector<Json>& records) {
  std::vector<Column> columns;
  std::set<std::string> seen;
  for (const Json& record : records) collect(record, "", columns, seen);
  return columns;
}

std::string to_csv(const std::vector<Json>& records, const std::vector<Column>& columns) {
  std::vector<bool> metric(columns.size());
  std::string out;
  for (std::size_t c = 0; c < columns.size(); ++c) {
    metric[c] = holds_metric(records, columns[c].path);
    const std::string& title = title_of(columns[c]);
    out += (c ? "," : "") + csv_cell(title);
    if (metric[c]) out += "," + csv_cell(title + "_se") + "," + csv_cell(title + "_n");
  }
  out += "\n";
  for (const Json& record : records) {
    for (std::size_t c = 0; c < columns.size(); ++c) {
      const Json* value = at_path(record, columns[c].path);
      if (c) out += ",";
      if (!metric[c]) {
        out += csv_cell(plain_text(value));
        continue;
      }
      for (const char* part : {"value", "se", "n"}) {
        if (part[0] != 'v') out += ",";
        if (value) out += csv_cell(plain_text(at_path(*value, part)));
      }
    }
    out += "\n";
  }
  return out;
}

std::string to_markdown(const std::vector<Json>& records, const std::vector<Column>& columns) {
  std::string out = "|", rule = "|";
  for (const Column& column : columns) {
    out += " " + title_of(column) + " |";
    rule += "---|";
  }
  out += "\n" + rule + "\n";
  for (const Json& record : records) {
    out += "|";
    for (const Column& column : columns)
      out += " " + markdown_cell(at_path(record, column.path), column.digits) + " |";
    out += "\n";
  }
  return out;
}

}  // namespace million
