// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/speed.h"

#include "kernels/ops.h"
#include "lib/core/error.h"
#include "lib/core/parallel.h"
#include "lib/core/progress.h"
#include "lib/core/rng.h"
#include "lib/eval/method_factory.h"
#include "lib/eval/session.h"
#include "lib/results/provenance.h"

#include <spdlog/spdlog.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>

namespace million {
namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

int32_t top_token(const AlignedVector<float>& logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

/// Milliseconds of a tick of the time stamp counter, measured over the life of this object.
struct TickRate {
  Clock::time_point start = Clock::now();
  int64_t ticks = time_stamp();
  double tick_ms() const {
    const int64_t passed = time_stamp() - ticks;
    return passed > 0 ? ms_since(start) / static_cast<double>(passed) : 0.0;
  }
};

/// sum += after - before.
void add_difference(const KvCache::Stats& after, const KvCache::Stats& before,
                    KvCache::Stats* sum) {
  sum->query_ms += after.query_ms - before.query_ms;
  sum->encode_ms += after.encode_ms - before.encode_ms;
  sum->head_queries += after.head_queries - before.head_queries;
  AttendStats &to = sum->kernels, minus = before.kernels;
  to.add(after.kernels);
  to.groups_left_out -= minus.groups_left_out, to.groups -= minus.groups;
  to.mass_left_out -= minus.mass_left_out;
  to.tables -= minus.tables, to.scores -= minus.scores;
  to.weights -= minus.weights, to.values -= minus.values;
}

/// One method's sequence while the depths grow.
struct Lane {
  Lane(const std::shared_ptr<const Model>& model, const Method& m, const SpeedPlan& plan)
      : engine(make_engine(model, m,
                           {plan.decoder, plan.backend, Protocol::kDecodePath, plan.async_encode,
                            capacity(plan), plan.skip_share})) {}
  /// The deepest depth and the steps behind it, warm-up included.
  static int64_t capacity(const SpeedPlan& plan) {
    return plan.depths.back() + static_cast<int64_t>(plan.steps) * (plan.repeats + 1);
  }
  std::unique_ptr<Engine> engine;
  int32_t last_token = 0;
  double total_prefill_ms = 0.0;
};

class SpeedRun {
 public:
  SpeedRun(std::shared_ptr<const Model> model, const TokenText& text, const SpeedPlan& plan)
      : model_(std::move(model)), text_(text), plan_(plan), logits_(model_->config.n_vocab) {}

  /// Brings the lane to `depth` tokens; the last hidden row becomes the first generated token.
  DepthSpeed fill(Lane& lane, int depth) {
    DepthSpeed result;
    result.depth = depth;
    const int64_t have = lane.engine->n_tokens();
    MILLION_REQUIRE(depth > have + 1, ErrorCode::kUsage,
                    "depths must grow by more than the decoded steps: {} tokens are cached, next "
                    "depth {}",
                    have, depth);
    result.prefill_tokens = depth - static_cast<int>(have);
    if (plan_.synthetic) {
      fill_random(lane, result.prefill_tokens);
      return result;
    }
    const auto tokens = std::span(text_.tokens).subspan(have, result.prefill_tokens);
    const auto start = Clock::now();
    const auto hidden = lane.engine->forward(tokens);
    lane.engine->logits(hidden.data() + hidden.size() - model_->config.d_model, 1, logits_.data());
    result.prefill_ms = ms_since(start);
    lane.last_token = top_token(logits_);
    lane.total_prefill_ms += result.prefill_ms;
    result.ttft_ms = lane.total_prefill_ms;
    return result;
  }

  /// Decode steps; `result` may be nullptr (warm-up).
  void steps(Lane& lane, DepthSpeed* result) {
    const KvCache::Stats before = lane.engine->stats();
    const TickRate rate;
    for (int s = 0; s < plan_.steps; ++s) {
      check_interrupted();
      const double attention = lane.engine->stats().query_ms;
      const auto start = Clock::now();
      const auto hidden = lane.engine->forward({&lane.last_token, 1});
      lane.engine->logits(hidden.data(), 1, logits_.data());
      lane.last_token = top_token(logits_);
      if (!result) continue;
      result->step_ms.push_back(ms_since(start));
      result->attention_ms.push_back(lane.engine->stats().query_ms - attention);
    }
    if (!result) return;
    add_difference(lane.engine->stats(), before, &result->stats);
    result->tick_ms = rate.tick_ms();
  }

 private:
  /// Appends n tokens of normal rows, the same for every layer, without attention.
  void fill_random(Lane& lane, int n) {
    const KvGeometry g = model_->config.geometry();
    if (random_k_.empty()) {
      Rng rng(kSyntheticSeed);
      for (auto* rows : {&random_k_, &random_v_}) {
        rows->resize(static_cast<size_t>(kSyntheticTokens) * g.row());
        for (float& x : *rows) x = static_cast<float>(rng.normal());
      }
    }
    for (int done = 0; done < n;) {
      check_interrupted();
      const int count = std::min({n - done, kSyntheticTokens, plan_.decoder.chunk});
      for (int l = 0; l < g.n_layers; ++l)
        lane.engine->append_only(l, random_k_.data(), random_v_.data(), count);
      done += count;
    }
  }

  static constexpr int kSyntheticTokens = 512;
  static constexpr uint64_t kSyntheticSeed = 5;

  AlignedVector<float> random_k_, random_v_;
  std::shared_ptr<const Model> model_;
  const TokenText& text_;
  const SpeedPlan& plan_;
  AlignedVector<float> logits_;
};

}  // namespace

double quantile(std::vector<double> values, double q) {
  MILLION_ASSERT(!values.empty());
  std::sort(values.begin(), values.end());
  const double at = q * static_cast<double>(values.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (at - static_cast<double>(low)) * (values[high] - values[low]);
}

namespace {

/// Refuses a plan whose caches cannot be held at the deepest depth, all methods side by side.
void require_memory(const KvGeometry& g, const std::vector<Method>& methods, int depth) {
  const uint64_t available = available_memory_bytes();
  const double values = 2.0 * depth * g.n_layers * g.row();
  double bits = 0.0;
  for (const Method& m : methods) bits += m.nominal_bits();
  constexpr double kBeside = 1.5 * (1 << 30);  // weights, scratch, the buffer of the bandwidth test
  const double needed = values * bits / 8.0 + kBeside;
  MILLION_REQUIRE(
      available == 0 || needed < static_cast<double>(available), ErrorCode::kNoResources,
      "depth {}: {} values of {:.4g} bits (all methods together) and 1.5 GiB beside them need "
      "{:.1f} GiB, {:.1f} GiB are available; use smaller --depths or fewer methods at a time",
      depth, values, bits, needed / (1 << 30), static_cast<double>(available) / (1 << 30));
}

}  // namespace

std::vector<std::vector<DepthSpeed>> measure_speed(std::shared_ptr<const Model> model,
                                                   const std::vector<Method>& methods,
                                                   const TokenText& text, const SpeedPlan& plan) {
  MILLION_REQUIRE(!plan.depths.empty() && std::is_sorted(plan.depths.begin(), plan.depths.end()),
                  ErrorCode::kUsage, "--depths: expected ascending numbers");
  if (plan.backend == Backend::kCpu)  // a device says itself what fits
    require_memory(model->config.geometry(), methods, plan.depths.back());
  MILLION_REQUIRE(plan.synthetic || static_cast<size_t>(plan.depths.back()) <= text.tokens.size(),
                  ErrorCode::kBadInput,
                  "text {} has {} tokens, depth {} needs more; use a longer "
                  "text or --fill synthetic",
                  text.name, text.tokens.size(), plan.depths.back());
  if (!plan.synthetic) warn_beyond_training(model->config, plan.depths.back());
  SpeedRun run(model, text, plan);
  std::vector<Lane> lanes;
  for (const Method& m : methods) lanes.emplace_back(model, m, plan);
  std::vector<std::vector<DepthSpeed>> result(methods.size());
  Progress progress("speed", static_cast<int64_t>(plan.depths.size() * methods.size()));
  for (int depth : plan.depths) {
    for (size_t i = 0; i < lanes.size(); ++i) {
      result[i].push_back(run.fill(lanes[i], depth));
      result[i].back().attention = lanes[i].engine->attention_name();
      result[i].back().bytes = lanes[i].engine->bytes();
      result[i].back().bits_cache = lanes[i].engine->measured_bits(false);
      result[i].back().bits_total = lanes[i].engine->measured_bits(true);
      result[i].back().peak_rss_bytes = peak_rss_bytes();
      progress.step(methods[i].spec.to_string());
    }
    for (int round = 0; round <= plan.repeats; ++round)
      for (size_t i = 0; i < lanes.size(); ++i)
        run.steps(lanes[i], round == 0 ? nullptr : &result[i].back());
  }
  for (size_t i = 0; i < lanes.size(); ++i)
    if (result[i].back().attention == "decoded")
      spdlog::info("{}: no fused kernel reads these codes; they are decoded, then attended to",
                   methods[i].spec.to_string());
  return result;
}

namespace {

/// What the values left out weigh, and where a step's time goes. Phases of attention are those of
/// the fused kernels, in milliseconds of all threads together; there are none for fp16, whose
/// kernel does all at once.
void add_phases(const DepthSpeed& speed, double tpot_ms, int64_t n, RunRecord* r) {
  const AttendStats& k = speed.stats.kernels;
  const double steps = static_cast<double>(n);
  r->metric("weights_ms", tpot_ms - quantile(speed.attention_ms, 0.5), std::nan(""), n);
  r->metric("encode_ms", speed.stats.encode_ms / steps, std::nan(""), n);
  const std::pair<const char*, int64_t> phases[] = {{"tables_ms", k.tables},
                                                    {"scores_ms", k.scores},
                                                    {"softmax_ms", k.weights},
                                                    {"values_ms", k.values}};
  for (const auto& [name, ticks] : phases)
    if (ticks > 0)
      r->metric(name, static_cast<double>(ticks) * speed.tick_ms / steps, std::nan(""), n);
  if (k.groups == 0) return;
  r->metric("left_out_share",
            static_cast<double>(k.groups_left_out) / static_cast<double>(k.groups));
  r->metric("left_out_mass", k.mass_left_out / static_cast<double>(speed.stats.head_queries));
}

}  // namespace

double crossover_depth(const std::vector<DepthSpeed>& exact,
                       const std::vector<DepthSpeed>& method) {
  MILLION_ASSERT(exact.size() == method.size() && !exact.empty());
  double depth = std::numeric_limits<double>::infinity(), gain_behind = 0.0;
  for (size_t i = exact.size(); i-- > 0;) {
    const double gain = quantile(exact[i].step_ms, 0.5) / quantile(method[i].step_ms, 0.5);
    if (gain < 1.0) {
      if (i + 1 == exact.size()) return depth;
      const double share = (1.0 - gain) / (gain_behind - gain);
      return exact[i].depth + share * (exact[i + 1].depth - exact[i].depth);
    }
    depth = exact[i].depth;
    gain_behind = gain;
  }
  return depth;
}

RunRecord speed_record(const Model& model, const Method& method, const TokenText& text,
                       const SpeedPlan& plan, const DepthSpeed& speed, double bandwidth_gb_s,
                       const std::string& command) {
  RunRecord r;
  r.program = "kv-decode bench";
  r.command = command;
  r.method = method.spec.to_string();
  r.config = {{"method", r.method},
              {"depth", speed.depth},
              {"steps", plan.steps},
              {"repeats", plan.repeats},
              {"threads", threads()},
              {"chunk", plan.decoder.chunk},
              {"compute", arithmetic_name(plan.decoder, plan.backend)},
              {"decode", decode_compute_name(plan.decoder.decode)},
              {"async_encode", plan.async_encode},
              {"isa", ops().name},
              {"fill", plan.synthetic ? "synthetic" : "text"},
              {"skip_share", plan.skip_share},
              {"attention", speed.attention}};
  if (model.config.positions != "plain") r.config["positions"] = model.config.positions;
  r.inputs = {{"model", model.config.name},
              {"model_sha256", model.sha256},
              {"text", plan.synthetic ? "" : text.name},
              {"text_sha256", plan.synthetic ? "" : text.sha256},
              {"calibration", to_json(method.calibration)}};
  const double p50 = quantile(speed.step_ms, 0.5);
  const auto n = static_cast<int64_t>(speed.step_ms.size());
  r.metric("tpot_ms", p50, std::nan(""), n);
  r.metric("tpot_p10_ms", quantile(speed.step_ms, 0.1), std::nan(""), n);
  r.metric("tpot_p90_ms", quantile(speed.step_ms, 0.9), std::nan(""), n);
  r.metric("tpot_p99_ms", quantile(speed.step_ms, 0.99), std::nan(""), n);
  r.metric("tok_per_s", 1000.0 / p50, std::nan(""), n);
  r.metric("tpot_max_ms", quantile(speed.step_ms, 1.0), std::nan(""), n);
  const bool on_cpu = plan.backend == Backend::kCpu;  // a device tells no times of its parts
  if (on_cpu) {
    r.metric("attention_ms", quantile(speed.attention_ms, 0.5), std::nan(""), n);
    add_phases(speed, p50, n, &r);
  } else {
    r.config["backend"] = backend_name(plan.backend);
    r.config["device"] = shared_device(plan.backend)->info().name;
  }
  if (!plan.synthetic) {
    r.metric("ttft_ms", speed.ttft_ms);
    r.metric("prefill_tok_per_s", 1000.0 * speed.prefill_tokens / speed.prefill_ms);
  }
  if (on_cpu) {
    r.metric("read_bandwidth_gb_s", bandwidth_gb_s);
    const double step_bytes =
        static_cast<double>(model.weight_bytes) + static_cast<double>(speed.bytes.cache());
    r.metric("share_of_bandwidth", step_bytes / (p50 * 1e6) / bandwidth_gb_s);
  }
  r.bits = {
      {"nominal", method.nominal_bits()}, {"cache", speed.bits_cache}, {"total", speed.bits_total}};
  r.bytes = {{"kv", speed.bytes.cache()},
             {"shared", speed.bytes.shared},
             {"weights", model.weight_bytes},
             {"peak_rss", speed.peak_rss_bytes}};
  r.times("step_ms", speed.step_ms);
  if (on_cpu) r.times("attention_ms", speed.attention_ms);
  return r;
}

const std::vector<Column>& speed_columns() {
  static const std::vector<Column> columns = {
      {"method", "method"},
      {"config.depth", "depth"},
      {"config.attention", "attention"},
      {"metrics.tpot_ms", "TPOT p50 ms", 4},
      {"metrics.tpot_p99_ms", "p99 ms", 4},
      {"metrics.attention_ms", "attention ms", 4},
      {"metrics.weights_ms", "weights ms", 3},
      {"metrics.tables_ms", "tables", 3},
      {"metrics.scores_ms", "scores", 3},
      {"metrics.softmax_ms", "softmax", 3},
      {"metrics.values_ms", "values", 3},
      {"metrics.encode_ms", "encode", 3},
      {"metrics.left_out_share", "values left out", 3},
      {"metrics.left_out_mass", "their weight", 3},
      {"metrics.crossover_depth", "pays from depth", 5},
      {"metrics.tok_per_s", "tokens/s", 4},
      {"metrics.ttft_ms", "TTFT ms", 4},
      {"metrics.prefill_tok_per_s", "prefill tokens/s", 4},
      {"bytes.kv", "KV bytes"},
      {"bits.cache", "bits cache", 4},
      {"metrics.share_of_bandwidth", "share of bandwidth", 3}};
  return columns;
}

double measure_read_bandwidth() {
  constexpr size_t kBytes = size_t{512} << 20;
  constexpr int kPasses = 5;
  void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  MILLION_REQUIRE(memory != MAP_FAILED, ErrorCode::kNoResources,
                  "the bandwidth test needs {} MiB of memory", kBytes >> 20);
  madvise(memory, kBytes, MADV_HUGEPAGE);
  auto* words = static_cast<uint64_t*>(memory);
  constexpr int64_t kWords = kBytes / sizeof(uint64_t);
  parallel_ranges(kWords, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) words[i] = static_cast<uint64_t>(i);
  });
  std::atomic<uint64_t> sink{0};
  std::vector<double> rates;
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto start = Clock::now();
    parallel_ranges(kWords, 8, [&](int64_t begin, int64_t end) {
      // Eight independent sums keep enough loads in flight without vector instructions.
      uint64_t sums[8] = {};
      for (int64_t i = begin; i + 8 <= end; i += 8)
        for (int j = 0; j < 8; ++j) sums[j] ^= words[i + j];
      for (uint64_t s : sums) sink ^= s;
    });
    rates.push_back(static_cast<double>(kBytes) / (ms_since(start) * 1e6));
  }
  munmap(memory, kBytes);
  return quantile(rates, 0.5);
}

}  // namespace million
