// SPDX-License-Identifier: Apache-2.0
// What the benchmark times: attention of one layer at one decode step, kernel by kernel as the
// decoder launches it (lib/cache/device_attention.cpp), and the coding of a block of tokens.
#pragma once

#include "tests/cuda/accept/machine.h"

#include <cstdint>
#include <string>
#include <vector>

namespace million::cuda::bench {

/// As in experiments/gpu/roofline.py, whose predictions the times are held against.
struct Model {
  const char* name;
  int n_heads, n_kv_heads, head_dim;
  int span;  ///< KV heads of a unit of the default method
};
struct Shape {
  Model model;
  int batch, tokens;
};
struct Method {
  enum class Kind { kExact, kPq, kGroups, kCoded };
  Kind kind;
  int bits;               ///< a value
  bool two_pass = false;  ///< kPq
  std::string name(const Model& model) const;
  const char* kind_name() const;  ///< as in roofline.py
};

/// Device memory of random contents, from which cases cut their arrays. A case starts with reset().
class Pools {
 public:
  explicit Pools(const Machine& machine);
  ~Pools();
  Pools(const Pools&) = delete;
  Pools& operator=(const Pools&) = delete;

  uint16_t* halves(std::size_t n) { return static_cast<uint16_t*>(take(halves_, 2 * n)); }
  template <class T>
  T* bits(std::size_t n) {
    return static_cast<T*>(take(bits_, n * sizeof(T)));
  }
  float* floats(std::size_t n) { return static_cast<float*>(take(floats_, 4 * n)); }
  /// Written by kernels.
  template <class T>
  T* work(std::size_t n) {
    return static_cast<T*>(take(work_, n * sizeof(T)));
  }
  /// n floats of `scale`.
  float* constant(std::size_t n, float scale);
  template <class T>
  T* copy_of(const std::vector<T>& v) {
    T* p = work<T>(v.size());
    store(p, v.data(), v.size() * sizeof(T));
    return p;
  }
  void reset();
  bool exhausted() const { return exhausted_; }
  const void* largest(std::size_t& bytes) const;

 private:
  struct Pool {
    unsigned char* base = nullptr;
    std::size_t size = 0, used = 0;
  };
  Pool make(std::size_t bytes);
  void* take(Pool& pool, std::size_t bytes);
  void store(void* to, const void* from, std::size_t bytes);

  Pool halves_, bits_, floats_, work_;
  bool exhausted_ = false;
};

/// One kernel, or several that belong together.
struct Step {
  std::string kernel;
  double bytes;  ///< of the cache that it reads, and of codes written when encoding
  Call call;     ///< call i works on copy i % copies of the cache
};
struct Case {
  int copies = 1, splits = 0;
  std::string not_run;            ///< why it cannot run here: memory, shared memory
  const uint16_t* out = nullptr;  ///< [n_out] halves that attention ends in
  std::size_t n_out = 0;
  std::vector<Step> steps;  ///< all of them, in this order, are the attention of a layer
};

/// Sinks and window of quantized methods, held exactly.
inline constexpr int kSinks = 4, kWindow = 128;

/// Attention at a decode step, tokens cut into `factor` times the decoder's parts.
Case attention_case(const Machine& machine, Pools& pools, const Shape& shape, const Method& method,
                    int factor);
/// Coding of a block of kWindow tokens, keys and values. No steps for kExact.
Case encode_case(Pools& pools, const Shape& shape, const Method& method);

}  // namespace million::cuda::bench
