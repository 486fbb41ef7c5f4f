// SPDX-License-Identifier: Apache-2.0
// Run records: torn lines cost one record, keys decide what is done, tables are derived.
#include "lib/core/files.h"
#include "lib/results/provenance.h"
#include "lib/results/run_record.h"
#include "tests/scratch.h"

#include <unistd.h>
#include <catch2/catch.hpp>

#include <algorithm>
#include <array>
#include <fstream>

using namespace million;
namespace fs = std::filesystem;

namespace {

RunRecord make_row(int context, double ppl) {
  RunRecord row;
  row.program = "kv-eval";
  row.method = "pq:M=32,nbits=8";
  row.config = {{"context", context}, {"method", row.method}};
  row.inputs = {{"model_sha256", "abc"}};
  row.metric("ppl", ppl, 0.0321, 40);
  row.bits = {{"nominal", 4.0}, {"cache", 4.25}};
  row.times("tpot_ms", {3.0, 1.0, 2.0, 10.0});
  row.command = shell_command(2, std::array<const char*, 2>{"kv-eval", "a b'c"}.data());
  return row;
}

}  // namespace

TEST_CASE("records survive a torn line", "[records]") {
  Scratch dir;
  const fs::path path = dir / "runs.jsonl";
  {
    RecordFile file(path);
    CHECK(file.records().empty());
    file.append(make_row(1, 10.0));
    file.append(make_row(2, 11.0));
  }
  const std::string two = read_file(path);
  std::ofstream(path, std::ios::binary)
      << two.substr(0, two.size() - 20);  // killed inside the second line
  {
    RecordFile file(path);
    CHECK(file.records().size() == 1);
    CHECK(file.skipped_lines() == 1);
    CHECK(file.find(make_row(1, 0).key()) != nullptr);
    CHECK(file.find(make_row(2, 0).key()) == nullptr);
    file.append(make_row(3, 12.0));
    CHECK(file.find(make_row(3, 0).key()) != nullptr);
  }
  append_line(path, "not json");
  append_line(path, R"({"schema": 999, "key": "k", "status": "ok"})");
  append_line(path, R"([1, 2])");
  RecordFile file(path);
  CHECK(file.records().size() == 2);
  CHECK(file.skipped_lines() == 4);
  CHECK(file.records()[1]["config"]["context"] == 3);
}

TEST_CASE("a failed record is not taken for done", "[records]") {
  Scratch dir;
  RecordFile file(dir / "runs.jsonl");
  RunRecord row = make_row(1, 10.0);
  row.status = "failed";
  row.reason = "out of memory";
  file.append(row);
  CHECK(file.find(row.key()) == nullptr);
  file.append(make_row(1, 10.0));
  REQUIRE(file.find(row.key()) != nullptr);
  CHECK((*file.find(row.key()))["status"] == "ok");
}

TEST_CASE("the resume key changes with every setting and with nothing else", "[records]") {
  const Json config = {{"method", "pq"}, {"context", 2048}, {"theta", 0.5}, {"sub", {{"x", 1}}}};
  const Json inputs = {{"model_sha256", "a"}, {"text_sha256", "b"}};
  const std::string key = record_key(config, inputs);
  CHECK(key.size() == 64);
  CHECK(record_key({{"sub", {{"x", 1}}}, {"theta", 0.5}, {"context", 2048}, {"method", "pq"}},
                   inputs) == key);
  for (const auto& [name, value] : config.items()) {
    Json other = config;
    other[name] = value.is_string() ? Json("pqx") : value.is_object() ? Json{{"x", 2}} : Json(7);
    CHECK(record_key(other, inputs) != key);
    other.erase(name);
    CHECK(record_key(other, inputs) != key);
  }
  CHECK(record_key(config, {{"model_sha256", "a"}, {"text_sha256", "c"}}) != key);
  CHECK(record_key(config, inputs, kRecordVersion + 1) != key);
  // A value that differs only in its last bit is another setting.
  Json close = config;
  close["theta"] = std::nextafter(0.5, 1.0);
  CHECK(record_key(close, inputs) != key);
}

TEST_CASE("tables are derived from records", "[records]") {
  std::vector<Json> records = {make_row(1, 12.345678).to_json(), make_row(2, 9.0).to_json()};
  records[0]["config"]["note"] = "a,\"b\" | c";
  const std::vector<Column> columns = {
      {"config.context", "context"}, {"metrics.ppl", "ppl"}, {"bits.cache"}, {"config.note"}};
  CHECK(to_csv(records, columns) ==
        "context,ppl,ppl_se,ppl_n,bits.cache,config.note\n"
        "1,12.345678,0.0321,40,4.25,\"a,\"\"b\"\" | c\"\n"
        "2,9.0,0.0321,40,4.25,\n");
  CHECK(to_markdown(records, columns) ==
        "| context | ppl | bits.cache | config.note |\n|---|---|---|---|\n"
        "| 1 | 12.346 ± 0.032 | 4.25 | a,\"b\" \\| c |\n"
        "| 2 | 9.000 ± 0.032 | 4.25 |  |\n");
  CHECK(records[0]["timing"]["tpot_ms"]["median"] == 2.5);
  CHECK(records[0]["command"] == "kv-eval 'a b'\\''c'");
  const auto every = all_columns(records);
  CHECK(every.front().path == "schema");
  CHECK(std::count_if(every.begin(), every.end(),
                      [](const Column& c) { return c.path == "metrics.ppl"; }) == 1);
  CHECK(std::count_if(every.begin(), every.end(),
                      [](const Column& c) { return c.path == "provenance.machine.cpu"; }) == 1);
}

TEST_CASE("provenance names commit and machine", "[records]") {
  const Json p = provenance();
  CHECK_FALSE(p["commit"].get<std::string>().empty());
  CHECK(p["machine"]["memory_bytes"].get<uint64_t>() > (1u << 20));
  CHECK(p["machine"]["isa"] == isa_name());
  CHECK(p["date"].get<std::string>().size() == 20);
  CHECK(peak_rss_bytes() > (1u << 20));
  CHECK(shell_quote("") == "''");
  CHECK(shell_quote("--a=b,c:d") == "--a=b,c:d");
  CHECK(shell_quote("$x") == "'$x'");
}
