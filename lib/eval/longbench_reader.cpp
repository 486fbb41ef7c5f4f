// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/longbench_reader.h"
#include "lib/core/error.h"
#include "lib/core/json.h"
#include "lib/model/pretokenizer.h"

#include <algorithm>

namespace million {

namespace {

constexpr int kMaxDepth = 16;

bool is_blank(std::string_view text) { return text.find_first_not_of(" \t\r\n") == text.npos; }

/// Brackets open at once, at most; those in strings do not count.
int depth_of(std::string_view json) {
  int depth = 0, most = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      most = std::max(most, ++depth);
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return most;
}

Json parse_json(std::string_view line, const std::string& where, uint64_t line_offset) {
  const std::size_t valid = valid_utf8_prefix(line);
  MILLION_REQUIRE(valid == line.size(), ErrorCode::kBadInput,
                  "{}: byte {} of the line (offset {} of the file) is no UTF-8; LongBench's files "
                  "are UTF-8 throughout, so this one is damaged or was converted",
                  where, valid + 1, line_offset + valid);
  MILLION_REQUIRE(depth_of(line) <= kMaxDepth, ErrorCode::kBadInput,
                  "{}: more than {} brackets inside each other; a record of LongBench has 2", where,
                  kMaxDepth);
  try {
    Json json = Json::parse(line);
    MILLION_REQUIRE(json.is_object(), ErrorCode::kBadInput,
                    "{}: a JSON {} where an object with input, context and answers is expected",
                    where, json.type_name());
    return json;
  } catch (const Json::parse_error& e) {
    fail(ErrorCode::kBadInput,
         "{}: no valid JSON from byte {} of the line on; expected one whole object a line", where,
         e.byte);
  } catch (const Json::exception& e) {  // a number that no double holds
    fail(ErrorCode::kBadInput, "{}: {}; expected one whole object a line", where, e.what());
  }
}

const Json& field(const Json& json, const char* name, const std::string& where) {
  const auto it = json.find(name);
  MILLION_REQUIRE(it != json.end(), ErrorCode::kBadInput,
                  "{}: field \"{}\" is missing; a record has input, context, answers, all_classes",
                  where, name);
  return *it;
}

std::string text_field(const Json& json, const char* name, const std::string& where) {
  const Json& value = field(json, name, where);
  MILLION_REQUIRE(value.is_string(), ErrorCode::kBadInput, "{}: field \"{}\" is a {}, not a text",
                  where, name, value.type_name());
  return value.get<std::string>();
}

std::vector<std::string> text_list(const Json& value, const char* name, const std::string& where) {
  MILLION_REQUIRE(value.is_array(), ErrorCode::kBadInput,
                  "{}: field \"{}\" is a {}, not a list of texts", where, name, value.type_name());
  std::vector<std::string> out;
  for (const Json& item : value) {
    MILLION_REQUIRE(item.is_string(), ErrorCode::kBadInput,
                    "{}: {}[{}] is a {}, not a text (numbers are written \"7\")", where, name,
                    out.size(), item.type_name());
    out.push_back(item.get<std::string>());
  }
  return out;
}

}  // namespace

LongBenchRecord parse_longbench_line(std::string_view line, const std::string& where,
                                     uint64_t line_offset) {
  const Json json = parse_json(line, where, line_offset);
  LongBenchRecord record;
  record.where = where;
  record.input = text_field(json, "input", where);
  record.context = text_field(json, "context", where);
  record.answers = text_list(field(json, "answers", where), "answers", where);
  MILLION_REQUIRE(!std::all_of(record.answers.begin(), record.answers.end(), is_blank),
                  ErrorCode::kBadInput,
                  "{}: \"answers\" has no text, so nothing could score; expected at least one "
                  "right answer",
                  where);
  if (const auto it = json.find("all_classes"); it != json.end() && !it->is_null())
    record.classes = text_list(*it, "all_classes", where);
  if (const auto it = json.find("_id"); it != json.end())
    record.id = it->is_string() ? it->get<std::string>() : it->is_number() ? it->dump() : "";
  if (const auto it = json.find("dataset"); it != json.end() && it->is_string())
    record.dataset = it->get<std::string>();
  if (const auto it = json.find("length"); it != json.end() && it->is_number_integer())
    record.length = it->get<int64_t>();
  return record;
}

LongBenchReader::LongBenchReader(std::filesystem::path path, bool skip_bad_lines)
    : path_(std::move(path)), skip_bad_lines_(skip_bad_lines), in_(path_, std::ios::binary) {
  MILLION_REQUIRE(in_ && std::filesystem::is_regular_file(path_), ErrorCode::kBadInput,
                  "cannot read {}; check that it is a file with read permission", path_.string());
}

bool LongBenchReader::take_line() {
  constexpr int kEnd = std::char_traits<char>::eof();
  std::streambuf& bytes = *in_.rdbuf();
  do {
    line_.clear();
    too_long_ = false;
    line_offset_ = next_offset_;
    ++line_number_;
    int c = bytes.sbumpc();
    if (c == kEnd) return false;
    for (; c != kEnd && c != '\n'; c = bytes.sbumpc()) {
      ++next_offset_;
      // The rest of a line that is too long is read past but not kept.
      if (line_.size() < kMaxLineBytes) {
        line_.push_back(static_cast<char>(c));
      } else {
        too_long_ = true;
      }
    }
    next_offset_ += c == '\n';
    if (line_number_ == 1 && line_.rfind("\xef\xbb\xbf", 0) == 0) line_.erase(0, 3);
  } while (is_blank(line_));
  return true;
}

LongBenchRecord LongBenchReader::parse_line() const {
  const std::string where = fmt::format("{}:{}", path_.string(), line_number_);
  MILLION_REQUIRE(!too_long_, ErrorCode::kBadInput,
                  "{}: longer than {} MiB; a record of LongBench has about 1 MB at most, so line "
                  "ends are missing or this is another kind of file",
                  where, kMaxLineBytes >> 20);
  LongBenchRecord record = parse_longbench_line(line_, where, line_offset_);
  record.line = line_number_;
  return record;
}

void LongBenchReader::keep_or_throw(const std::exception& e) {
  const auto* error = dynamic_cast<const Error*>(&e);
  const bool bad_line = error != nullptr && error->code() == ErrorCode::kBadInput;
  if (!bad_line) throw;  // out of memory, say: no fault of the line
  MILLION_REQUIRE(skip_bad_lines_, ErrorCode::kBadInput,
                  "{} (--skip-bad-lines goes on without such lines)", e.what());
  if (skipped_++ == 0) first_skipped_ = e.what();
}

}  // namespace million
