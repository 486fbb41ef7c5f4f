// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/perplexity.h"

#include "kernels/ops.h"
#include "lib/core/error.h"
#include "lib/core/parallel.h"
#include "lib/core/progress.h"
#include "lib/results/tensor_file.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace million {
namespace {

/// Vocabulary rows whose logits are held at once: 2048 x 1792 f32 = 14 MiB a model.
constexpr int kVocabBlock = 1792;

/// Running sums over the vocabulary of one predicted token.
struct RowState {
  double lse = -INFINITY;  ///< of the method's logits so far
  SoftmaxState reference;  ///< of the reference logits so far
  float cross = 0.0f;      ///< sum exp(l_ref - max) (l_ref - l), scaled with `reference`
  float top = -INFINITY, reference_top = -INFINITY, target = 0.0f, reference_target = 0.0f;
  int top_id = 0, reference_top_id = 0;
};

double log_add(double a, double b) {
  if (a == -INFINITY) return b;
  const double high = std::max(a, b);
  return high + std::log1p(std::exp(std::min(a, b) - high));
}

void update_top(const float* x, int n, int first_id, float& top, int& id) {
  const float* best = std::max_element(x, x + n);
  if (*best > top) {
    top = *best;
    id = first_id + static_cast<int>(best - x);
  }
}

/// One block of the vocabulary for one token; `reference` (may be nullptr) is overwritten.
void update_row(RowState& s, const float* logits, float* reference, int n, int first_id,
                int32_t target) {
  const Ops& op = ops();
  s.lse = log_add(s.lse, op.logsumexp(logits, n));
  update_top(logits, n, first_id, s.top, s.top_id);
  const bool inside = target >= first_id && target < first_id + n;
  if (inside) s.target = logits[target - first_id];
  if (!reference) return;
  if (inside) s.reference_target = reference[target - first_id];
  update_top(reference, n, first_id, s.reference_top, s.reference_top_id);
  float difference[kVocabBlock];
  for (int i = 0; i < n; ++i) difference[i] = reference[i] - logits[i];
  const int begin = 0;
  op.softmax_tile(reference, 1, n, n, &begin, &n, 1.0f, &s.reference, &s.cross, 1);
  s.cross += op.dot(reference, difference, n);
}

}  // namespace

void TokenScores::append(const TokenScores& more) {
  nll.insert(nll.end(), more.nll.begin(), more.nll.end());
  reference_nll.insert(reference_nll.end(), more.reference_nll.begin(), more.reference_nll.end());
  kl.insert(kl.end(), more.kl.begin(), more.kl.end());
  same_top.insert(same_top.end(), more.same_top.begin(), more.same_top.end());
}

MeanError block_mean(const std::vector<double>& values, int block) {
  MeanError result;
  result.n = static_cast<int64_t>(values.size());
  if (values.empty()) return result;
  std::vector<double> means;
  double sum = 0.0;
  for (size_t i = 0; i < values.size(); i += block) {
    const size_t end = std::min(values.size(), i + block);
    double part = 0.0;
    for (size_t j = i; j < end; ++j) part += values[j];
    sum += part;
    if (end - i == static_cast<size_t>(block)) means.push_back(part / block);
  }
  result.mean = sum / static_cast<double>(values.size());
  if (means.size() < 2) return result;
  double mean = 0.0, square = 0.0;
  for (double m : means) mean += m / static_cast<double>(means.size());
  for (double m : means) square += (m - mean) * (m - mean);
  const auto n = static_cast<double>(means.size());
  result.se = std::sqrt(square / (n - 1.0) / n);
  return result;
}

TokenScores score_hidden(int n_vocab, const LogitsBlock& logits_block, const float* hidden,
                         const float* reference, int n, const int32_t* next) {
  std::vector<RowState> rows(n);
  AlignedVector<float> logits(static_cast<size_t>(n) * kVocabBlock);
  AlignedVector<float> reference_logits(reference ? logits.size() : 0);
  for (int first = 0; first < n_vocab; first += kVocabBlock) {
    const int block = std::min(kVocabBlock, n_vocab - first);
    logits_block(hidden, n, first, block, logits.data());
    if (reference) logits_block(reference, n, first, block, reference_logits.data());
    parallel_for(n, [&](int64_t i) {
      update_row(rows[i], logits.data() + i * block,
                 reference ? reference_logits.data() + i * block : nullptr, block, first, next[i]);
    });
  }
  TokenScores scores;
  for (const RowState& s : rows) {
    scores.nll.push_back(s.lse - s.target);
    if (!reference) continue;
    const double reference_lse = s.reference.max + std::log(static_cast<double>(s.reference.sum));
    const double kl = static_cast<double>(s.cross) / s.reference.sum - reference_lse + s.lse;
    scores.reference_nll.push_back(reference_lse - s.reference_target);
    scores.kl.push_back(std::max(0.0, kl));  // rounding can leave -1e-7
    scores.same_top.push_back(s.top_id == s.reference_top_id);
  }
  return scores;
}

Evaluation evaluate(std::shared_ptr<const Model> model, const Method& method,
                    const EvaluationPlan& plan, const Reference* reference, Reference* record,
                    const std::function<void(int)>& on_window) {
  const auto start = std::chrono::steady_clock::now();
  const int context = plan.windows.context;
  EngineOptions options{plan.decoder, plan.backend, plan.protocol, false, context, plan.skip_share};
  // Codes of a whole window are made in one call: groups of tokens must not straddle chunks.
  if (plan.protocol == Protocol::kAllDistorted) options.decoder.chunk = context;
  options.decoder.decode = DecodeCompute::kExact;
  const std::unique_ptr<Engine> engine = make_engine(model, method, options);
  Evaluation result;
  for (int w = 0; w < plan.windows.count; ++w) {
    check_interrupted();
    const auto tokens = plan.windows.window(w);
    engine->clear();
    const auto hidden = engine->forward(tokens);
    if (record) record->hidden.emplace_back(hidden.begin(), hidden.end());
    const float* exact = reference ? reference->hidden.at(w).data() : nullptr;
    result.scores.append(
        score_hidden(*engine, hidden.data(), exact, context - 1, tokens.data() + 1));
    if (on_window) on_window(w);
  }
  result.bytes = engine->bytes();
  result.bits_nominal = method.nominal_bits();
  result.bits_cache = engine->measured_bits(false);
  result.bits_total = engine->measured_bits(true);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

void save_reference(const Reference& reference, int d_model, const std::filesystem::path& path) {
  TensorBag bag;
  bag.attributes = {{"kind", "reference"},
                    {"model_sha256", reference.model_sha256},
                    {"text_sha256", reference.text_sha256},
                    {"context", reference.context},
                    {"compute", reference.compute},
                    {"positions", reference.positions}};
  for (size_t w = 0; w < reference.hidden.size(); ++w)
    bag.tensors[fmt::format("W{:04}.hidden", w)] = {
        {static_cast<size_t>(reference.context), static_cast<size_t>(d_model)},
        reference.hidden[w]};
  save_tensors(path, bag);
}

Reference load_reference(const std::filesystem::path& path, const Reference& expected, int windows,
                         int d_model) {
  const TensorBag bag = load_tensors(path);
  const auto check = [&](const char* key, const Json& want, const Json& fallback = Json()) {
    const Json got = bag.attributes.value(key, fallback);
    MILLION_REQUIRE(got == want, ErrorCode::kBadInput,
                    "reference {}: {} is {}, expected {}; delete it or give another --reference",
                    path.string(), key, got.dump(), want.dump());
  };
  check("kind", "reference");
  check("model_sha256", expected.model_sha256);
  check("text_sha256", expected.text_sha256);
  check("context", expected.context);
  check("compute", expected.compute);
  check("positions", expected.positions, "plain");  // older files do not say
  Reference loaded = expected;
  const size_t values = static_cast<size_t>(expected.context) * d_model;
  for (int w = 0; w < windows; ++w) {
    const auto found = bag.tensors.find(fmt::format("W{:04}.hidden", w));
    MILLION_REQUIRE(found != bag.tensors.end() && found->second.data.size() == values,
                    ErrorCode::kBadInput,
                    "reference {} holds {} windows, {} are needed; delete it to compute it again",
                    path.string(), bag.tensors.size(), windows);
    loaded.hidden.push_back(found->second.data);
  }
  return loaded;
}

}  // namespace million
