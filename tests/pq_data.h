// SPDX-License-Identifier: Apache-2.0
// Small heads and tables of PQ as its files hold them, for the tests of bases and frames.
#pragma once

#include "tests/quant_data.h"

#include "lib/core/error.h"
#include "lib/quant/pq_basis.h"

#include <limits>
#include <memory>
#include <string>
#include <vector>

namespace million::testdata {

/// Two layers of four KV heads of 16 channels: a unit of all heads is 64 wide, as Hadamard needs.
inline KvGeometry small_geometry(RopePairs pairs = RopePairs::kAdjacent) {
  RopeParams rope;
  rope.n_rot = 16;
  rope.base = 100000.0f;
  rope.pairs = pairs;
  return {2, 8, 4, 16, Rope(rope)};
}

/// Made-up Fisher matrices: outer products of three directions of a (layer, head) and a floor.
inline void add_fisher(CalibrationSet* data) {
  const KvGeometry& g = data->geometry;
  const int d = g.head_dim;
  data->n_grad_tokens = data->n_tokens;
  data->grad_labels = "text";
  for (auto* side : {&data->k_fisher, &data->v_fisher}) {
    side->assign(g.n_layers, std::vector<float>(static_cast<size_t>(g.row()) * d, 0.0f));
    for (int l = 0; l < g.n_layers; ++l)
      for (int h = 0; h < g.n_kv_heads; ++h) {
        float* f = side->at(l).data() + static_cast<size_t>(h) * d * d;
        Rng rng(91 + (side == &data->v_fisher), l * g.n_kv_heads + h);
        for (int part = 0; part < 3; ++part) {
          std::vector<float> u(d);
          for (float& x : u) x = static_cast<float>(rng.normal());
          for (int i = 0; i < d * d; ++i) f[i] += u[i / d] * u[i % d];
        }
        for (int i = 0; i < d; ++i) f[i * d + i] += 0.1f;
      }
  }
}

/// Seeded data with Fisher matrices, one set for all cases of a program.
inline const CalibrationSet& data() {
  static const CalibrationSet set = [] {
    CalibrationSet s = calibration(small_geometry());
    add_fisher(&s);
    return s;
  }();
  return set;
}

inline std::unique_ptr<Codec> trained(const std::string& spec, KvKind kind,
                                      const CalibrationSet& set = data()) {
  auto codec = make_codec(spec, kind, set.geometry);
  codec->train(set, 4);
  return codec;
}

/// Scales channel c of every head by factor(c), keys and values.
template <class F>
void scale_channels(CalibrationSet* data, const F& factor) {
  const int d = data->geometry.head_dim;
  for (auto* side : {&data->k_pre, &data->v})
    for (auto& layer : *side)
      for (size_t i = 0; i < layer.size(); ++i)
        layer[i] = float_to_half(half_to_float(layer[i]) * factor(static_cast<int>(i % d)));
}

/// Rows x [n][row] turned to the frame's positions of tokens first_token ...
inline std::vector<float> framed(std::vector<float> x, const KvGeometry& g, const KeyFrame& frame,
                                 int64_t first_token) {
  for (size_t t = 0; t < x.size() / g.row(); ++t)
    g.rope.rotate_to(x.data() + t * g.row(), g.n_kv_heads, g.head_dim,
                     frame.position(first_token + static_cast<int64_t>(t)));
  return x;
}

/// Error of what a codec keeps of keys x (before RoPE) or values that stand at first_token ...
inline double coded_nmse(const Codec& codec, KvKind kind, const std::vector<float>& x,
                         const KvGeometry& g, int64_t first_token = 0, int layer = 1) {
  const auto rows = kind == KvKind::kKey ? framed(x, g, codec.frame(), first_token) : x;
  const auto store = codec.make_store(layer);
  store->append(rows.data(), static_cast<int>(rows.size()) / g.row(), first_token);
  return nmse(rows, decode_all(*store, g), g);
}

/// Entry (i, j) of a byte matrix in a file, scaled.
inline double entry(const TensorBag& bag, const std::string& name, size_t i, size_t j) {
  const NamedTensor& t = bag.tensors.at(name);
  return static_cast<double>(bag.tensors.at(name + "_scale").data[i]) *
         t.data[i * t.shape.at(1) + j];
}

/// One row x [w] through the tables "NAME.encode", ".decode" (or the transposed encode) and
/// ".codebook" of a file, in double; `mean` [w] was turned to the row's frame, empty = none. Frames
/// of a short period (`coded`) subtract and add it in the coordinates of the codes, as halves.
inline std::vector<double> by_hand(const TensorBag& bag, const std::string& name, const float* x,
                                   const std::vector<float>& mean, bool coded = false) {
  const NamedTensor& book = bag.tensors.at(name + ".codebook");
  const auto& scale = bag.tensors.at(name + ".codebook_scale").data;
  const std::string encode = name + ".encode";
  const std::string decode = bag.tensors.count(name + ".decode") ? name + ".decode" : encode;
  const size_t M = book.shape[0], K = book.shape[1], dsub = book.shape[2];
  const size_t rank = M * dsub, w = bag.tensors.at(encode).shape[1];
  std::vector<double> y(rank, 0.0), coded_mean(rank, 0.0), out(w, 0.0);
  const bool outside = !mean.empty() && !coded;
  if (outside) out.assign(mean.begin(), mean.end());
  for (size_t j = 0; j < rank; ++j) {
    for (size_t i = 0; i < w; ++i) {
      y[j] += entry(bag, encode, j, i) * (x[i] - (outside ? mean[i] : 0.0));
      if (!mean.empty() && coded) coded_mean[j] += entry(bag, encode, j, i) * mean[i];
    }
    coded_mean[j] = half_to_float(float_to_half(static_cast<float>(coded_mean[j])));
    y[j] -= coded_mean[j];
  }
  for (size_t m = 0; m < M; ++m) {
    const auto centroid = [&](size_t c, size_t j) {
      return static_cast<double>(scale[m * dsub + j]) * book.data[(m * K + c) * dsub + j];
    };
    size_t best = 0;
    double least = std::numeric_limits<double>::infinity();
    for (size_t c = 0; c < K; ++c) {
      double sum = 0.0;
      for (size_t j = 0; j < dsub; ++j) sum += std::pow(y[m * dsub + j] - centroid(c, j), 2);
      if (sum >= least) continue;
      least = sum;
      best = c;
    }
    for (size_t j = 0; j < dsub; ++j)
      for (size_t i = 0; i < w; ++i)
        out[i] +=
            entry(bag, decode, m * dsub + j, i) * (centroid(best, j) + coded_mean[m * dsub + j]);
  }
  return out;
}

/// The one line of the Error that f throws; fails the test when there is none.
template <class F>
std::string message_of(ErrorCode code, const F& f) {
  try {
    f();
  } catch (const Error& e) {
    const std::string text = e.what();
    return e.code() == code && text.find('\n') == std::string::npos ? text : "wrong: " + text;
  }
  return "no error";
}

}  // namespace million::testdata
