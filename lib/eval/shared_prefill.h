// SPDX-License-Identifier: Apache-2.0
// Several cache methods on one sequence: who reads the prompt, and how several questions share the
// reading of what they have in common.
//
//   exact  one fp16 engine reads the prompt; its keys and values go into every method's cache. The
//          prompt's attention is exact, as in MILLION's prefill and in serving systems that
//          compress after prefill. The last token of a prompt goes through the method's own cache.
//   cache  every method reads the prompt itself, each token through what its own cache has coded
//          by then: what chunked prefill into a coded cache does.
#pragma once

#include "lib/model/engine.h"

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

namespace million {

enum class Prefill { kExact, kCache };
const char* prefill_name(Prefill prefill);
/// "exact" or "cache"; Error(kUsage) otherwise.
Prefill parse_prefill(std::string_view text);

class SharedPrefill {
 public:
  /// The method `fp16` is the exact reader itself, so it costs nothing beside the others.
  SharedPrefill(std::shared_ptr<const Model> model, std::span<const Method> methods,
                const EngineOptions& options, Prefill prefill);

  /// Appends tokens to every method's cache.
  void read(std::span<const int32_t> tokens);
  /// Ends a prompt with `tokens`, at least kRest of them. Returns hidden states behind the last
  /// one, [n_methods][d_model]. exact: all but the last are read exactly.
  std::vector<float> finish(std::span<const int32_t> tokens);
  /// Tokens that finish() wants at least: results then do not depend on what was read before it,
  /// because a lone token would take another arithmetic than its neighbours in a chunk.
  static constexpr int kRest = 3;

  /// A copy that goes on for itself. Error(kUsage) on a device.
  SharedPrefill fork() const;
  /// Of method m; what it reads alone the others do not see.
  Engine& engine(int m) { return engines_[m] ? *engines_[m] : *exact_; }
  int64_t n_tokens() const;

 private:
  SharedPrefill() = default;

  int d_model_ = 0;
  std::unique_ptr<Engine> exact_;                 ///< exact only
  std::vector<std::unique_ptr<Engine>> engines_;  ///< nullptr: the exact reader
};

/// Tokens with which both sequences start.
int64_t common_prefix(std::span<const int32_t> a, std::span<const int32_t> b);

}  // namespace million
