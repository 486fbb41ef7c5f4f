// SPDX-License-Identifier: Apache-2.0
// Rows, methods and runs for the tests of the cache.
#pragma once

#include "kernels/half.h"
#include "lib/cache/kv_cache.h"
#include "lib/core/rng.h"

#include <catch2/catch.hpp>

#include <cmath>
#include <string>
#include <vector>

namespace million::testdata {

inline constexpr int kCacheTokens = 700;

inline KvGeometry small_geometry() {
  RopeParams rope;
  rope.n_rot = 64;
  return {2, 6, 2, 64, Rope(rope)};
}

/// Keys and values with the outlier channels that real caches have, queries near some keys so that
/// the softmax is not flat.
struct Rows {
  KvGeometry g = small_geometry();
  int n;
  std::vector<AlignedVector<float>> q, k, v, k_pre;  // [layer] -> [token][heads][d]

  explicit Rows(uint64_t seed, int n_tokens = kCacheTokens) : n(n_tokens) {
    Rng rng(seed);
    for (int l = 0; l < g.n_layers; ++l) {
      AlignedVector<float> ql(static_cast<size_t>(n) * g.n_heads * g.head_dim);
      AlignedVector<float> kl(static_cast<size_t>(n) * g.row()), vl(kl.size());
      for (float& x : ql) x = static_cast<float>(rng.normal());
      for (size_t i = 0; i < kl.size(); ++i) {
        kl[i] = static_cast<float>(rng.normal() * (i % 64 == 5 ? 4.0 : 1.0));
        vl[i] = static_cast<float>(rng.normal());
      }
      k_pre.push_back(kl);
      for (int t = 0; t < n; ++t) {
        g.rope.rotate_to(kl.data() + static_cast<int64_t>(t) * g.row(), g.n_kv_heads, 64, t);
        g.rope.rotate_to(ql.data() + static_cast<int64_t>(t) * g.n_heads * 64, g.n_heads, 64, t);
      }
      q.push_back(std::move(ql));
      k.push_back(std::move(kl));
      v.push_back(std::move(vl));
    }
  }
};

inline CalibrationSet calibration(const Rows& rows, int n = kCacheTokens) {
  CalibrationSet set;
  set.geometry = rows.g;
  set.model_sha256 = "model";
  set.text_sha256 = "text";
  set.text_name = "random";
  set.context = set.n_tokens = n;
  for (int l = 0; l < rows.g.n_layers; ++l) {
    const auto half = [](const AlignedVector<float>& x) {
      AlignedVector<uint16_t> y(x.size());
      for (size_t i = 0; i < x.size(); ++i) y[i] = float_to_half(x[i]);
      return y;
    };
    set.k_pre.push_back(half(rows.k_pre[l]));
    set.v.push_back(half(rows.v[l]));
    set.q_second_moment.emplace_back(rows.g.row(), 1.0f);
  }
  return set;
}

inline Method make_method(const std::string& text, const Rows& rows) {
  Method method;
  method.spec = MethodSpec::parse(text);
  const CalibrationSet set = calibration(rows, rows.n);
  const auto make = [&](const std::string& spec, KvKind kind) {
    std::shared_ptr<Codec> codec = make_codec(spec, kind, rows.g);
    if (codec->needs_training()) codec->train(set, method.spec.sinks);
    return codec;
  };
  method.key_codec = make(method.spec.key_codec, KvKind::kKey);
  method.value_codec = make(method.spec.value_codec, KvKind::kValue);
  return method;
}

/// Runs all tokens in pieces; returns the outputs of the last layer [n][n_heads][d].
inline AlignedVector<float> run(KvCache& cache, const Rows& rows, const std::vector<int>& pieces) {
  const KvGeometry& g = rows.g;
  const int64_t q_row = static_cast<int64_t>(g.n_heads) * g.head_dim;
  AlignedVector<float> out;
  int64_t done = 0;
  for (int n : pieces) {
    AlignedVector<float> part(static_cast<size_t>(n) * q_row);
    for (int l = 0; l < g.n_layers; ++l)
      cache.attend(l, rows.q[l].data() + done * q_row, rows.k[l].data() + done * g.row(),
                   rows.v[l].data() + done * g.row(), n, part.data());
    out.insert(out.end(), part.begin(), part.end());
    done += n;
  }
  return out;
}

inline std::vector<int> ones(int n) { return std::vector<int>(n, 1); }

inline double relative_difference(const AlignedVector<float>& a, const AlignedVector<float>& b) {
  REQUIRE(a.size() == b.size());
  double error = 0.0, norm = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    error += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(error / norm);
}

}  // namespace million::testdata
