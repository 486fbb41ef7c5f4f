// SPDX-License-Identifier: Apache-2.0
// Text generation on one cached sequence: feeds what is new of a prompt, then samples token by
// token.
#pragma once

#include "lib/model/engine.h"
#include "lib/model/sampler.h"

#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

namespace million {

struct Generation {
  std::vector<int32_t> ids;     ///< generated tokens, the end token included when it came
  bool ended = false;           ///< an end token came (false: the limit was reached)
  double ttft_ms = 0.0;         ///< from the call to the first logits
  int prompt_tokens = 0;        ///< tokens that had to be fed; the rest was cached
  std::vector<double> step_ms;  ///< one per generated token after the first
};

class Generator {
 public:
  Generator(std::shared_ptr<const Model> model, const EngineOptions& options, Method method,
            const SamplerOptions& sampler);

  /// Continues `prompt` (the whole text so far) by at most n_predict tokens. What the cache holds
  /// as a prefix of the prompt is not fed again; any other cache content is dropped. `on_text` sees
  /// each token's bytes; `start` is kText when the answer is a text of its own (a turn of a chat),
  /// whose first space SentencePiece has put there. Stops at an end token unless ignore_end, or
  /// when `on_text` returns false.
  Generation run(std::span<const int32_t> prompt, int n_predict, bool ignore_end,
                 const std::function<bool(std::string_view)>& on_text,
                 TextStart start = TextStart::kContinued);

  const Engine& engine() const { return *engine_; }

 private:
  void feed(std::span<const int32_t> tokens);

  std::shared_ptr<const Model> model_;
  std::unique_ptr<Engine> engine_;
  Sampler sampler_;
  std::vector<int32_t> cached_;  ///< tokens in the cache, in order
  AlignedVector<float> logits_;
};

}  // namespace million
