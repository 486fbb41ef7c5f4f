// SPDX-License-Identifier: Apache-2.0
#include "tests/cuda/accept/bench.h"

#include "tests/cuda/accept/cases.h"
#include "tests/cuda/harness.h"

#include <algorithm>
#include <chrono>
#include <cstdio>

namespace million::cuda::bench {
namespace {

using Kind = Method::Kind;

constexpr Model kModels[] = {{"Llama-3.1-8B", 32, 8, 128, 2}, {"SmolLM2-135M", 9, 3, 64, 3}};
const Method kMethods[] = {{Kind::kExact, 16}, {Kind::kPq, 4},     {Kind::kPq, 4, true},
                           {Kind::kPq, 2},     {Kind::kGroups, 4}, {Kind::kGroups, 2},
                           {Kind::kCoded, 2}};
/// Times the decoder's parts: the first is what it does, the others show what more blocks bring.
constexpr int kFactors[] = {1, 2, 4};
/// Calls of a graph, so that an event's resolution (0.5 us) does not count.
constexpr int kCalls = 12;

class Bench {
 public:
  Bench(const Machine& machine, const BenchOptions& options)
      : machine_(machine), options_(options), pools_(machine) {}

  int run() {
    std::size_t bytes = 0;
    const void* p = pools_.largest(bytes);
    read_gb_s(p, bytes);  // clocks rise
    std::printf("{\"kernel\": \"read\", \"bytes\": %zu, \"gb_s\": %.1f}\n", bytes,
                read_gb_s(p, bytes));
    for (const int batch : options_.batches)
      for (const Model& model : kModels)
        for (const Method& method : kMethods) {
          if (!method.two_pass) encode({model, batch, kWindow}, method);  // coded as in one pass
          for (const int tokens : options_.depths) attend({model, batch, tokens}, method);
        }
    return failed_ ? 1 : 0;
  }

 private:
  bool late() const {
    const std::chrono::duration<double> s = std::chrono::steady_clock::now() - begin_;
    return s.count() > options_.seconds;
  }
  static void print_head(const Shape& shape, const Method& method) {
    const Model& m = shape.model;
    std::printf(
        "{\"method\": \"%s\", \"kind\": \"%s\", \"bits\": %d, \"passes\": %d, "
        "\"model\": \"%s\", \"shape\": \"d%d G%d KV%d\", \"batch\": %d, \"tokens\": %d, ",
        method.name(m).c_str(), method.kind_name(), method.bits, method.two_pass ? 2 : 1, m.name,
        m.head_dim, m.n_heads / m.n_kv_heads, m.n_kv_heads, shape.batch, shape.tokens);
  }
  void row(const Shape& shape, const Method& method, const Case& c, const Step& step,
           const Time& time) {
    print_head(shape, method);
    std::printf("\"kernel\": \"%s\", \"splits\": %d, ", step.kernel.c_str(), c.splits);
    if (time.us < 0) {
      failed_ = true;
      std::printf("\"error\": \"%s\"}\n", time.error.c_str());
    } else {
      std::printf("\"us\": %.2f, \"least_us\": %.2f, \"gb_s\": %.1f}\n", time.us, time.least_us,
                  step.bytes / 1e3 / time.us);
    }
    std::fflush(stdout);
  }
  void not_run(const Shape& shape, const Method& method, const std::string& why) {
    print_head(shape, method);
    std::printf("\"not_run\": \"%s\"}\n", why.c_str());
  }
  Time time(const Case& c, const Call& call) {
    return time_calls(c.copies * std::max(1, kCalls / c.copies), call);
  }

  static bool is_finite(const Case& c) {
    std::vector<uint16_t> out(c.n_out);
    test::from_device(out.data(), c.out, 2 * c.n_out);
    return std::all_of(out.begin(), out.end(), [](uint16_t h) { return (h & 0x7C00) != 0x7C00; });
  }

  void encode(const Shape& shape, const Method& method) {
    const Case c = encode_case(pools_, shape, method);
    if (!c.not_run.empty()) return not_run(shape, method, c.not_run);
    for (const Step& step : c.steps) row(shape, method, c, step, time(c, step.call));
  }

  /// All steps together for every factor, and each alone for the first.
  void attend(const Shape& shape, const Method& method) {
    if (late()) return not_run(shape, method, "time");
    int before = 0;
    for (const int factor : kFactors) {
      const Case c = attention_case(machine_, pools_, shape, method, factor);
      if (!c.not_run.empty()) return not_run(shape, method, c.not_run);
      if (c.splits == before) break;
      before = c.splits;
      Step all{"attention", 0.0, [&](StreamHandle s, int i) {
                 for (const Step& step : c.steps)
                   if (const int status = step.call(s, i); status != 0) return status;
                 return 0;
               }};
      for (const Step& step : c.steps) all.bytes += step.bytes;
      Time whole = time(c, all.call);
      if (whole.error.empty() && !is_finite(c)) whole = {-1.0, -1.0, "the output is not finite"};
      row(shape, method, c, all, whole);
      if (factor != kFactors[0]) continue;
      for (const Step& step : c.steps) row(shape, method, c, step, time(c, step.call));
    }
  }

  const Machine& machine_;
  const BenchOptions& options_;
  Pools pools_;
  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  bool failed_ = false;
};

}  // namespace

void print_machine(const Machine& m) {
  std::printf(
      "{\"device\": \"%s\", \"compute_capability\": \"%d.%d\", \"multiprocessors\": %d, "
      "\"shared_per_block\": %zu, \"l2_bytes\": %zu, \"memory_bytes\": %zu, \"driver\": %d}\n",
      m.name.c_str(), m.compute_major, m.compute_minor, m.n_multiprocessors, m.shared_per_block,
      m.l2_bytes, m.memory_bytes, m.driver);
}

int run_bench(const Machine& machine, const BenchOptions& options) {
  print_machine(machine);
  return Bench(machine, options).run();
}

}  // namespace million::cuda::bench
