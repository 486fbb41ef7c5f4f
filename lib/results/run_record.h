// SPDX-License-Identifier: Apache-2.0
// Run records: one JSON object a line, appended with one write and synced, so that whatever kills
// the program leaves every finished line valid. CSV and Markdown are always derived from them.
//
// A record is found again by its key: the hash of resolved config, input hashes and format version.
// A sweep asks for the key before it computes a cell and goes on where it was.
#pragma once

#include "lib/core/json.h"

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace million {

/// Raised when a field changes meaning; part of every key, so old rows are never mistaken for new.
inline constexpr int kRecordVersion = 1;

/// SHA-256 (hex) of config, inputs and record version; the order of object keys does not matter.
std::string record_key(const Json& config, const Json& inputs, int version = kRecordVersion);

/// One finished cell. Objects may stay empty; to_json() adds schema, key and provenance.
struct RunRecord {
  std::string program;            ///< "kv-eval"
  std::string status = "ok";      ///< ok | failed | skipped
  std::string method;             ///< canonical method text, may be empty
  std::string reason;             ///< why it failed or was skipped
  Json config = Json::object();   ///< every resolved setting that changes the numbers
  Json inputs = Json::object();   ///< model_sha256, text_sha256, calibration {...}
  Json metrics = Json::object();  ///< name -> {value, se, n}; filled by metric()
  /// nominal, cache, total: bits per value; at: {"8192": total at that length, ...}
  Json bits = Json::object();
  Json series = Json::object();  ///< name -> numbers in order: per layer, per part of the context
  Json bytes = Json::object();   ///< codes, scales, outliers, sinks, window, shared ...
  Json timing = Json::object();  ///< name -> {median, raw [...]}; filled by times()
  uint64_t seed = 0;
  std::string command;  ///< shell_command() of this run

  /// Adds a metric with its standard error (NaN = none) over n samples.
  void metric(const std::string& name, double value, double se = std::nan(""), int64_t n = 1);
  /// Adds raw timings and their median; the unit belongs in the name ("tpot_ms").
  void times(const std::string& name, std::vector<double> raw);
  std::string key() const { return record_key(config, inputs); }
  Json to_json() const;
};

/// A JSONL file of records. Reads what is there at construction; append() adds on disk and in
/// memory.
class RecordFile {
 public:
  /// A missing file is empty. Lines that do not parse, or are no record of a known schema, are
  /// skipped; the first gives one warning on stderr with file, line and count. Error(kBadInput)
  /// when the file cannot be read.
  explicit RecordFile(std::filesystem::path path);

  /// Appends one line; Error(kNoResources) on a full disk.
  void append(const Json& record);
  void append(const RunRecord& record) { append(record.to_json()); }
  const std::vector<Json>& records() const { return records_; }
  /// Lines that were skipped when reading.
  int64_t skipped_lines() const { return skipped_; }
  /// Newest record with this key and status "ok", or nullptr. Valid until the next append.
  const Json* find(std::string_view key) const;

 private:
  void load();
  void index(std::size_t i);

  std::filesystem::path path_;
  std::vector<Json> records_;
  std::unordered_map<std::string, std::size_t> done_;  // key -> newest ok record
  int64_t skipped_ = 0;
};

/// A column of a derived table: a path into the record with dots ("config.context", "bits.cache",
/// "metrics.ppl"). A metric's path stands for value and se.
struct Column {
  std::string path;
  std::string title = {};  ///< empty: the path
  int digits = 4;          ///< significant digits of floating-point values in Markdown
};

/// Columns of every leaf in order of first appearance (arrays stay one cell).
std::vector<Column> all_columns(const std::vector<Json>& records);
/// RFC 4180 text with a header line; full precision; a metric becomes NAME, NAME_se and NAME_n.
std::string to_csv(const std::vector<Json>& records, const std::vector<Column>& columns);
/// GitHub table; a metric prints as "value ± se" with the digits that its error allows.
std::string to_markdown(const std::vector<Json>& records, const std::vector<Column>& columns);

}  // namespace million
