// SPDX-License-Identifier: Apache-2.0
// Teacher-forced scores of a cache method: perplexity, KL divergence and same-top-token against the
// exact (fp16) cache of the same model, with errors from blocks of text.
#pragma once

#include "lib/cache/kv_cache.h"
#include "lib/eval/text.h"
#include "lib/model/engine.h"

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace million {

/// Hidden states of the fp16 cache after the final norm. The head turns them into the exact
/// reference distribution, at d_model instead of n_vocab floats a token, so KL is exact, not a
/// bound from the top k.
struct Reference {
  std::string model_sha256, text_sha256, compute, positions = "plain";
  int context = 0;
  std::vector<std::vector<float>> hidden;  ///< [window][context * d_model]
};

/// Saves atomically / loads with checks. Error(kBadInput) when the file is not a reference, or was
/// made from another model, text, context, arithmetic or positions, or holds fewer than `windows`
/// windows.
void save_reference(const Reference& reference, int d_model, const std::filesystem::path& path);
Reference load_reference(const std::filesystem::path& path, const Reference& expected, int windows,
                         int d_model);

/// Per-token results of one or more windows, predictions 1 .. context - 1 of each.
struct TokenScores {
  std::vector<double> nll;
  std::vector<double> reference_nll;  ///< of the reference on the same tokens; empty without
  std::vector<double> kl;             ///< KL(reference || method), nats; empty without reference
  std::vector<uint8_t> same_top;      ///< empty without reference
  void append(const TokenScores& more);
};

/// Mean and its standard error from means of consecutive blocks, which keeps the correlation of
/// neighbouring tokens inside a block.
struct MeanError {
  double mean = 0.0, se = 0.0;
  int64_t n = 0;
};
inline constexpr int kBlockTokens = 256;
MeanError block_mean(const std::vector<double>& values, int block = kBlockTokens);

/// Everything a row says about a method on a text.
struct Evaluation {
  TokenScores scores;
  CacheBytes bytes;  ///< of one window's cache at full context
  double bits_nominal = 0.0, bits_cache = 0.0, bits_total = 0.0;
  double seconds = 0.0;  ///< wall time of all windows, head included
};

struct EvaluationPlan {
  Windows windows;
  Protocol protocol = Protocol::kAllDistorted;
  DecoderOptions decoder;  ///< chunk 1 on the decode path: the fused kernels of decoding
  Backend backend = Backend::kCpu;
  float skip_share = 0.0f;  ///< KvCache::set_skip_share, which matters with chunk 1 only
};

/// Scores one method on all windows. With `reference` of the same windows KL and same-top are
/// filled; with `record` non-null the hidden states are stored there (building a reference).
Evaluation evaluate(std::shared_ptr<const Model> model, const Method& method,
                    const EvaluationPlan& plan, const Reference* reference,
                    Reference* record = nullptr,
                    const std::function<void(int window)>& on_window = {});

/// Writes logits of n hidden rows for vocabulary rows [first, first + count): out [n][count].
using LogitsBlock =
    std::function<void(const float* hidden, int n, int first, int count, float* out)>;
/// Scores of hidden states [n][d_model] as predictors of next[0..n); `reference` may be nullptr.
TokenScores score_hidden(int n_vocab, const LogitsBlock& logits, const float* hidden,
                         const float* reference, int n, const int32_t* next);
/// The same with the head of a Decoder or an Engine.
template <class Head>
TokenScores score_hidden(Head& head, const float* hidden, const float* reference, int n,
                         const int32_t* next) {
  return score_hidden(
      head.model().output.rows,
      [&head](const float* rows, int count, int first, int block, float* out) {
        head.logits_block(rows, count, first, block, out);
      },
      hidden, reference, n, next);
}

}  // namespace million
