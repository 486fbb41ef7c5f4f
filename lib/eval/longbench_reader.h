// SPDX-License-Identifier: Apache-2.0
// LongBench's files: one JSON object a line with input, context, answers, all_classes (null but for
// classification), length (words or characters), dataset, language, _id.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace million {

struct LongBenchRecord {
  std::string input, context;
  std::vector<std::string> answers;  ///< at least one, with text in at least one
  std::vector<std::string> classes;  ///< empty where the file says null
  std::string id;                    ///< _id, empty where there is none
  std::string dataset;               ///< as the line names it
  int64_t length = -1;               ///< as the line says, -1 without
  int64_t line = 0;                  ///< from 1
  std::string where;                 ///< "file:line" for messages
};

/// One record from one line. Error(kBadInput) "where: ..." on bytes that are no UTF-8 (with the
/// byte's offset), on what is no JSON object, deeper than 16 brackets, on missing fields or fields
/// of another type, and on answers without text. `line_offset` is the line's place in its file.
LongBenchRecord parse_longbench_line(std::string_view line, const std::string& where,
                                     uint64_t line_offset = 0);

/// Walks over a file; holds one line at a time.
class LongBenchReader {
 public:
  static constexpr uint64_t kMaxLineBytes = uint64_t{64}
                                            << 20;  ///< LongBench's longest: about 1 MB

  /// With skip_bad_lines a line that parse_longbench_line or `accept` refuses is left out and
  /// counted. Error(kBadInput) when the file cannot be read.
  LongBenchReader(std::filesystem::path path, bool skip_bad_lines);

  /// The next record, or nothing at the end of the file. Blank lines are passed over.
  /// `accept(record)` throws Error(kBadInput) on a record that does not fit the task.
  template <class Accept>
  std::optional<LongBenchRecord> next(Accept&& accept) {
    while (take_line()) {
      try {
        LongBenchRecord record = parse_line();
        accept(record);
        return record;
      } catch (const std::exception& e) {
        keep_or_throw(e);
      }
    }
    return std::nullopt;
  }

  int64_t skipped() const { return skipped_; }
  const std::string& first_skipped() const { return first_skipped_; }  ///< its message

 private:
  bool take_line();  ///< false at the end of the file
  LongBenchRecord parse_line() const;
  void keep_or_throw(const std::exception& e);

  std::filesystem::path path_;
  bool skip_bad_lines_;
  std::ifstream in_;
  std::string line_;
  bool too_long_ = false;
  int64_t line_number_ = 0;
  uint64_t line_offset_ = 0, next_offset_ = 0;
  int64_t skipped_ = 0;
  std::string first_skipped_;
};

}  // namespace million
