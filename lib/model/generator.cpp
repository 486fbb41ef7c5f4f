// SPDX-License-Identifier: Apache-2.0
#include "lib/model/generator.h"

#include "lib/core/error.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>

namespace million {
namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

}  // namespace

Generator::Generator(std::shared_ptr<const Model> model, const EngineOptions& options,
                     Method method, const SamplerOptions& sampler)
    : model_(std::move(model)),
      engine_(make_engine(model_, std::move(method), options)),
      sampler_(sampler),
      logits_(model_->config.n_vocab) {}

/// Puts tokens into the cache and leaves the logits behind the last one.
void Generator::feed(std::span<const int32_t> tokens) {
  const auto hidden = engine_->forward(tokens);
  cached_.insert(cached_.end(), tokens.begin(), tokens.end());
  engine_->logits(hidden.data() + hidden.size() - model_->config.d_model, 1, logits_.data());
}

Generation Generator::run(std::span<const int32_t> prompt, int n_predict, bool ignore_end,
                          const std::function<bool(std::string_view)>& on_text, TextStart start) {
  MILLION_REQUIRE(!prompt.empty(), ErrorCode::kUsage, "the prompt is empty; give --prompt TEXT");
  const auto [end, ignored] =
      std::mismatch(prompt.begin(), prompt.end(), cached_.begin(), cached_.end());
  auto shared = static_cast<size_t>(end - prompt.begin());
  // The whole cache must be a true prefix; logits need at least one fed token.
  if (shared < cached_.size() || shared == prompt.size()) {
    engine_->clear();
    cached_.clear();
    shared = 0;
  }
  const auto total = static_cast<int64_t>(prompt.size()) + n_predict;
  warn_beyond_training(model_->config, total);
  Generation result;
  result.prompt_tokens = static_cast<int>(prompt.size() - shared);
  auto begin = Clock::now();
  feed(prompt.subspan(shared));
  result.ttft_ms = ms_since(begin);
  for (int i = 0; i < n_predict; ++i) {
    begin = Clock::now();
    const int32_t token = sampler_.sample(logits_);
    result.ids.push_back(token);
    result.ended = model_->tokenizer.is_end(token) && !ignore_end;
    const TextStart start_of = i == 0 ? start : TextStart::kContinued;
    if (result.ended || !on_text(model_->tokenizer.decode({&token, 1}, false, start_of))) break;
    if (i + 1 == n_predict) break;
    feed({&token, 1});
    result.step_ms.push_back(ms_since(begin));
  }
  return result;
}

}  // namespace million
