// SPDX-License-Identifier: Apache-2.0
#include "lib/model/json_file.h"

#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/core/printable.h"

#include <set>
#include <vector>

namespace million {
namespace {

constexpr int kMaxDepth = 16;

}  // namespace

SortedJson parse_json_object(std::string_view text, const std::string& name) {
  using Event = SortedJson::parse_event_t;
  std::vector<std::set<std::string>> keys;  // of the open objects
  const auto check = [&](int depth, Event event, SortedJson& value) {
    MILLION_REQUIRE(depth <= kMaxDepth, ErrorCode::kBadInput,
                    "{}: JSON nested deeper than {} levels", name, kMaxDepth);
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key) {
      const auto& key = value.get_ref<const std::string&>();
      MILLION_REQUIRE(keys.back().insert(key).second, ErrorCode::kBadInput,
                      "{}: key {} occurs twice", name, printable(key));
    }
    return true;
  };
  SortedJson json;
  try {
    json = SortedJson::parse(text, check);
  } catch (const SortedJson::exception& e) {
    fail(ErrorCode::kBadInput, "{}: no valid JSON: {}", name, printable(e.what()));
  }
  MILLION_REQUIRE(json.is_object(), ErrorCode::kBadInput, "{}: holds JSON {}, expected an object",
                  name, json.type_name());
  return json;
}

SortedJson read_json_object(const std::filesystem::path& path, uint64_t max_bytes) {
  return parse_json_object(read_file(path, max_bytes), path.string());
}

}  // namespace million
