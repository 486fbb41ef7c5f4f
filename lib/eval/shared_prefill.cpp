// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/shared_prefill.h"

#include "lib/core/error.h"
#include "lib/eval/method_factory.h"

#include <algorithm>

namespace million {
namespace {

constexpr size_t kPieceTokens = 4096;

/// Hands the rows of each layer and chunk to the caches of all other methods.
class Spread final : public Probe {
 public:
  explicit Spread(std::span<const std::unique_ptr<Engine>> engines) : engines_(engines) {}
  void on_layer(int layer, int64_t /*first*/, int n, const float* /*q_pre*/, const float* /*q*/,
                const float* /*k_pre*/, const float* k, const float* v) override {
    for (const auto& engine : engines_)
      if (engine) engine->append_only(layer, k, v, n);
  }

 private:
  std::span<const std::unique_ptr<Engine>> engines_;
};

}  // namespace

const char* prefill_name(Prefill prefill) { return prefill == Prefill::kExact ? "exact" : "cache"; }

Prefill parse_prefill(std::string_view text) {
  for (const Prefill p : {Prefill::kExact, Prefill::kCache})
    if (text == prefill_name(p)) return p;
  fail(ErrorCode::kUsage, "--prefill: got '{}', expected exact or cache", text);
}

SharedPrefill::SharedPrefill(std::shared_ptr<const Model> model, std::span<const Method> methods,
                             const EngineOptions& options, Prefill prefill)
    : d_model_(model->config.d_model) {
  const bool exact = prefill == Prefill::kExact;
  if (exact) exact_ = make_engine(model, exact_method(model->config.geometry()), options);
  bool taken = !exact;
  for (const Method& method : methods) {
    const bool reader = !taken && method.spec == MethodSpec{};
    taken = taken || reader;
    engines_.push_back(reader ? nullptr : make_engine(model, method, options));
  }
}

void SharedPrefill::read(std::span<const int32_t> tokens) {
  Spread spread(engines_);
  while (!tokens.empty()) {
    // In pieces, because an engine keeps the hidden states of all that it is given at once. A lone
    // last token would take the arithmetic of single tokens.
    const size_t n = tokens.size() <= kPieceTokens + 1 ? tokens.size() : kPieceTokens;
    if (exact_)
      exact_->forward(tokens.first(n), &spread);
    else
      for (const auto& engine : engines_) engine->forward(tokens.first(n));
    tokens = tokens.subspan(n);
  }
}

std::vector<float> SharedPrefill::finish(std::span<const int32_t> tokens) {
  MILLION_ASSERT(static_cast<int>(tokens.size()) >= kRest);
  if (exact_) {
    read(tokens.first(tokens.size() - 1));
    tokens = tokens.last(1);
  }
  std::vector<float> last;
  for (size_t m = 0; m < engines_.size(); ++m) {
    const auto hidden = engine(static_cast<int>(m)).forward(tokens);
    last.insert(last.end(), hidden.end() - d_model_, hidden.end());
  }
  return last;
}

SharedPrefill SharedPrefill::fork() const {
  SharedPrefill copy;
  copy.d_model_ = d_model_;
  if (exact_) copy.exact_ = exact_->fork();
  for (const auto& engine : engines_) copy.engines_.push_back(engine ? engine->fork() : nullptr);
  return copy;
}

int64_t SharedPrefill::n_tokens() const {
  return exact_ ? exact_->n_tokens() : engines_.empty() ? 0 : engines_[0]->n_tokens();
}

int64_t common_prefix(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

}  // namespace million
