// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/sweep.h"

#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/core/progress.h"

#include <spdlog/spdlog.h>
#include <toml++/toml.h>

#include <algorithm>
#include <cmath>
#include <string_view>

namespace million {
namespace {

/// Reads typed values of one TOML table and remembers which keys were asked for.
class TableReader {
 public:
  TableReader(const toml::table& table, std::string where)
      : table_(table), where_(std::move(where)) {}

  template <class T>
  void read(const char* key, T& value) {
    known_.push_back(key);
    const toml::node* node = table_.get(key);
    if (!node) return;
    const auto got = node->value<T>();
    MILLION_REQUIRE(got, ErrorCode::kBadInput, "{}:{}: '{}' has the wrong type", where_,
                    node->source().begin.line, key);
    value = *got;
  }

  template <class T>
  void read_list(const char* key, std::vector<T>& values) {
    known_.push_back(key);
    const toml::node* node = table_.get(key);
    if (!node) return;
    const toml::array* array = node->as_array();
    MILLION_REQUIRE(array, ErrorCode::kBadInput, "{}:{}: '{}' must be a list", where_,
                    node->source().begin.line, key);
    values.clear();
    for (const toml::node& item : *array) {
      const auto got = item.value<T>();
      MILLION_REQUIRE(got, ErrorCode::kBadInput, "{}:{}: an entry of '{}' has the wrong type",
                      where_, item.source().begin.line, key);
      values.push_back(*got);
    }
  }

  void allow(const char* key) { known_.push_back(key); }

  /// A misspelt key must not be ignored: the run would silently use a default.
  void require_known() const {
    for (const auto& [key, node] : table_) {
      const std::string name(key.str());
      MILLION_REQUIRE(std::find(known_.begin(), known_.end(), name) != known_.end(),
                      ErrorCode::kBadInput, "{}:{}: unknown key '{}', known: {}", where_,
                      node.source().begin.line, name, fmt::join(known_, ", "));
    }
  }

 private:
  const toml::table& table_;
  std::string where_;
  std::vector<std::string> known_;
};

PqGrid read_grid(const toml::table& table, const std::string& path) {
  PqGrid grid;
  TableReader reader(table, path);
  reader.read_list("M", grid.M);
  reader.read_list("nbits", grid.nbits);
  reader.read_list("scope", grid.scope);
  reader.read("sinks", grid.sinks);
  reader.read("window", grid.window);
  reader.require_known();
  return grid;
}

double value_of(const Json& row, const char* group, const char* name) {
  const Json& v = row.at(group).at(name);
  return v.is_object() ? v.at("value").get<double>() : v.get<double>();
}

/// True when two rows may stand in one table.
bool comparable(const Json& a, const Json& b) {
  const auto same = [&](const char* group, const char* key) {
    return a.value(group, Json::object()).value(key, Json()) ==
           b.value(group, Json::object()).value(key, Json());
  };
  return same("config", "protocol") && same("config", "context") && same("inputs", "text_sha256");
}

bool scored(const Json& row) {
  return row.value("status", "") == "ok" && row.contains("metrics") &&
         row["metrics"].contains("kl");
}

}  // namespace

std::vector<std::string> grid_methods(const PqGrid& grid, int head_dim) {
  MILLION_REQUIRE(!grid.M.empty() && !grid.nbits.empty() && !grid.scope.empty(), ErrorCode::kUsage,
                  "a PQ grid needs at least one M, one nbits and one scope");
  std::vector<std::string> methods;
  for (const std::string& scope : grid.scope)
    for (int m : grid.M) {
      MILLION_REQUIRE(m > 0 && head_dim % m == 0, ErrorCode::kUsage,
                      "M={} does not divide head_dim {}; try a divisor such as {}", m, head_dim,
                      head_dim / 2);
      for (int nbits : grid.nbits)
        methods.push_back(
            fmt::format("pq:M={},nbits={},scope={},sinks={}", m, nbits, scope, grid.sinks) +
            (grid.window > 0 ? fmt::format(",window={}", grid.window) : ""));
    }
  return methods;
}

SweepConfig load_sweep(const std::string& path) {
  constexpr uint64_t kMaxBytes = 1 << 20;
  const std::string text = read_file(path, kMaxBytes);
  SweepConfig config;
  try {
    const toml::table table = toml::parse(text, path);
    TableReader reader(table, path);
    reader.read("context", config.context);
    reader.read_list("contexts", config.contexts);
    reader.read("windows", config.windows);
    reader.read("calib_tokens", config.calib_tokens);
    reader.read("calib_context", config.calib_context);
    reader.read("protocol", config.protocol);
    reader.read("compute", config.compute);
    reader.read_list("methods", config.methods);
    reader.read_list("budgets", config.budgets);
    reader.allow("pq");
    reader.require_known();
    if (const toml::node* node = table.get("pq")) {
      if (const toml::table* one = node->as_table()) config.grids.push_back(read_grid(*one, path));
      if (const toml::array* many = node->as_array())
        for (const toml::node& item : *many)
          if (item.is_table()) config.grids.push_back(read_grid(*item.as_table(), path));
    }
  } catch (const toml::parse_error& e) {
    fail(ErrorCode::kBadInput, "{}:{}: {}", path, e.source().begin.line, e.description());
  }
  return config;
}

SweepOutcome run_sweep(EvalSession& session, const std::vector<MethodSpec>& methods,
                       RecordFile& file, bool force) {
  SweepOutcome outcome;
  for (const MethodSpec& spec : methods) {
    check_interrupted();
    RunRecord record = session.describe(spec);
    if (const Json* done = force ? nullptr : file.find(record.key())) {
      outcome.rows.push_back(*done);
      ++outcome.resumed;
      continue;
    }
    try {
      record = session.run(spec);
    } catch (const Error& e) {
      if (e.code() == ErrorCode::kInterrupted || e.code() == ErrorCode::kNoResources) throw;
      record.status = "failed";
      record.reason = e.what();
      ++outcome.failed;
      spdlog::error("{}: {}", record.method, e.what());
    }
    outcome.rows.push_back(record.to_json());
    file.append(outcome.rows.back());
  }
  return outcome;
}

void mark_pareto(std::vector<Json>& rows) {
  for (Json& row : rows) {
    if (!scored(row)) continue;
    std::vector<const Json*> rivals;
    for (const Json& other : rows)
      if (scored(other) && &other != &row && comparable(other, row)) rivals.push_back(&other);
    const auto unbeaten = [&](const auto& bits_of) {
      const double bits = bits_of(row), kl = value_of(row, "metrics", "kl");
      return std::none_of(rivals.begin(), rivals.end(), [&](const Json* other) {
        const double b = bits_of(*other), k = value_of(*other, "metrics", "kl");
        return b <= bits && k <= kl && (b < bits || k < kl);
      });
    };
    row["pareto"] = unbeaten([](const Json& r) { return value_of(r, "bits", "cache"); });
    if (!row["bits"].contains("at")) continue;
    for (const auto& [length, bits] : row["bits"]["at"].items())
      row["pareto_at"][length] = unbeaten([&key = length](const Json& r) {
        return r["bits"].contains("at") ? r["bits"]["at"].value(key, INFINITY) : INFINITY;
      });
  }
}

}  // namespace million
