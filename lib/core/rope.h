// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding: parameters, scalings, and the rotation of rows to or between
// positions.
//
// A stored key is R(f) k with f the position of its frame (design notes in lib/cache/README.md):
// after RoPE f is the token's position, before RoPE f is 0. Rotations add, R(a) R(b) = R(a + b), so
// a key or query moves between frames by rotating with the difference of positions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace million {

/// How the channels of a head pair up for the rotation.
enum class RopePairs {
  kAdjacent,  ///< (2i, 2i+1): GGUF Llama weights are permuted to this
  kHalves     ///< (i, i + n_rot/2): Hugging Face order
};

enum class RopeScaling { kNone, kLinear, kLlama3, kYarn };

/// Everything that determines the rotation; parsed from the model file by lib/model.
struct RopeParams {
  int n_rot = 0;          ///< rotated channels of a head, even, <= head_dim; the rest pass through
  float base = 10000.0f;  ///< rope theta
  RopePairs pairs = RopePairs::kAdjacent;
  RopeScaling scaling = RopeScaling::kNone;
  float factor = 1.0f;            ///< context extension factor (linear, Llama-3, YaRN)
  float low_freq_factor = 1.0f;   ///< Llama-3
  float high_freq_factor = 4.0f;  ///< Llama-3
  int original_context = 0;       ///< Llama-3, YaRN: context before extension
  float beta_fast = 32.0f;        ///< YaRN
  float beta_slow = 1.0f;         ///< YaRN
  float attention_factor = 0.0f;  ///< YaRN: 0 = 0.1 ln(factor) + 1
  std::vector<float>
      freq_factors;  ///< optional per-pair divisors from the file (rope_freqs.weight)

  friend bool operator==(const RopeParams&, const RopeParams&) = default;
  /// Stable text form for file attributes and hashes.
  std::string to_string() const;
};

/// Inverse frequencies of all pairs and the magnitude factor; cheap to copy, immutable.
class Rope {
 public:
  Rope() = default;
  explicit Rope(const RopeParams& params);

  const RopeParams& params() const { return params_; }
  /// [n_rot/2] radians per position.
  const std::vector<float>& inv_freq() const { return inv_freq_; }
  /// YaRN's mscale, applied once by rotate_to (never by move); 1 otherwise.
  float magnitude() const { return magnitude_; }

  /// x <- magnitude * R(position) x for n_heads consecutive rows of head_dim values.
  void rotate_to(float* x, int n_heads, int head_dim, int64_t position) const;
  /// x <- R(delta) x; delta may be negative. No magnitude: moves a row between frames.
  void move(float* x, int n_heads, int head_dim, int64_t delta) const;

 private:
  void apply(float* x, int n_heads, int head_dim, int64_t position, float magnitude) const;

  RopeParams params_;
  std::vector<float> inv_freq_;
  float magnitude_ = 1.0f;
};

/// Cosines and sines of all positions up to a limit that grows on demand, magnitude not included;
/// one table serves every layer and head of a sequence.
class RopeTable {
 public:
  explicit RopeTable(const Rope& rope) : rope_(rope) {}
  /// Makes rows [0, n_positions) available; invalidates pointers when it grows.
  void ensure(int64_t n_positions);
  const float* cosines(int64_t position) const { return cos_.data() + position * n_pairs(); }
  const float* sines(int64_t position) const { return sin_.data() + position * n_pairs(); }
  int n_pairs() const { return static_cast<int>(rope_.inv_freq().size()); }
  int64_t n_positions() const { return static_cast<int64_t>(cos_.size()) / n_pairs(); }
  bool adjacent() const { return rope_.params().pairs == RopePairs::kAdjacent; }

 private:
  Rope rope_;
  std::vector<float> cos_, sin_;
};

}  // namespace million
