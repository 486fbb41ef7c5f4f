// SPDX-License-Identifier: Apache-2.0
// Random caches whose codes are in a basis, as the host has them in double and as the device has
// them, for tests of the coded kernels.
#pragma once

#include "kernels/cuda/attention_coded.h"
#include "kernels/half.h"
#include "tests/cuda/harness.h"

#include <algorithm>
#include <cmath>
#include <random>

namespace million::cuda::test {

inline std::mt19937 g_random(7);

template <class T = float>
std::vector<T> normal(std::size_t n, double size) {
  std::normal_distribution<double> d;
  std::vector<T> x(n);
  for (T& v : x) v = static_cast<T>(size * d(g_random));
  return x;
}
inline std::vector<uint16_t> halves(const std::vector<float>& x) {
  std::vector<uint16_t> h(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) h[i] = float_to_half(x[i]);
  return h;
}
inline double relative_rms(const std::vector<double>& got, const std::vector<double>& want) {
  double error = 0.0, norm = 0.0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    error += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  return norm > 0.0 ? std::sqrt(error / norm) : error;
}

/// Rows of a matrix [rank][w] as bytes [w / 4][rank][4] with a scale each.
struct Bytes {
  std::vector<int8_t> values;
  std::vector<float> scale;
  int rank = 0;

  void add(const std::vector<double>& m, int rows) {
    rank = rows;
    const std::size_t w = m.size() / static_cast<std::size_t>(rows), at = values.size();
    values.resize(at + m.size());
    for (std::size_t j = 0; j < static_cast<std::size_t>(rows); ++j) {
      double top = 0.0;
      for (std::size_t i = 0; i < w; ++i) top = std::max(top, std::fabs(m[j * w + i]));
      scale.push_back(static_cast<float>(top / 127));
      for (std::size_t i = 0; i < w; ++i)
        values[at + (i / 4 * static_cast<std::size_t>(rows) + j) * 4 + i % 4] =
            static_cast<int8_t>(std::lrint(m[j * w + i] / scale.back()));
    }
  }
  /// Element (axis, channel) of the matrix of one unit.
  double at(int unit, int w, int axis, int channel) const {
    const auto base = static_cast<std::size_t>(unit) * static_cast<std::size_t>(w * rank);
    return static_cast<double>(scale[static_cast<std::size_t>(unit * rank + axis)]) *
           values[base + static_cast<std::size_t>((channel / 4 * rank + axis) * 4 + channel % 4)];
  }
};

/// `rank` orthonormal rows of w values.
inline std::vector<double> orthonormal(int rank, int w) {
  auto m = normal<double>(static_cast<std::size_t>(rank * w), 1.0);
  for (int i = 0; i < rank; ++i) {
    double* row = m.data() + i * w;
    for (int pass = 0; pass < 2; ++pass)
      for (int k = 0; k < i; ++k) {
        double dot = 0.0;
        for (int c = 0; c < w; ++c) dot += row[c] * m[static_cast<std::size_t>(k * w + c)];
        for (int c = 0; c < w; ++c) row[c] -= dot * m[static_cast<std::size_t>(k * w + c)];
      }
    double norm = 0.0;
    for (int c = 0; c < w; ++c) norm += row[c] * row[c];
    for (int c = 0; c < w; ++c) row[c] /= std::sqrt(norm);
  }
  return m;
}

struct Shape {
  int n_heads, n_kv_heads, d, span, rank, frame, n_places, sinks;
  int k_nbits = 8, v_nbits = 8, n_pairs = -1;
  bool adjacent = false;

  int units() const { return n_kv_heads / span; }
  int w() const { return span * d; }
  int group() const { return n_heads / n_kv_heads; }
  int M() const { return rank / 4; }
};

/// Codebooks and a basis of one kind, and codes [batch][units][tokens][M].
struct Side {
  int nbits;
  std::vector<int8_t> book;
  std::vector<float> scale;
  Bytes basis;
  std::vector<uint8_t> codes;

  Side(const Shape& s, int bits, double size) : nbits(bits) {
    const auto n = static_cast<std::size_t>(s.units() * s.rank);
    for (const double x : normal<double>(n << bits, 42.0))
      book.push_back(static_cast<int8_t>(std::clamp(std::lrint(x), -127L, 127L)));
    for (const double x : normal<double>(n, 0.3))
      scale.push_back(static_cast<float>(size / 42 * (0.4 + std::fabs(x))));
    for (int u = 0; u < s.units(); ++u) basis.add(orthonormal(s.rank, s.w()), s.rank);
  }
  double centroid(const Shape& s, int unit, int code, int axis) const {
    return static_cast<double>(scale[static_cast<std::size_t>(unit * s.rank + axis)]) *
           book[((static_cast<std::size_t>(unit) << nbits) + static_cast<std::size_t>(code)) *
                    static_cast<std::size_t>(s.rank) +
                static_cast<std::size_t>(axis)];
  }
};

/// What a model has, a cache of `n` coded tokens a sequence, and its copy on the device.
struct Cache {
  Shape s;
  int batch, longest, strips, frames;
  std::vector<SequenceState> state;
  Side k, v;
  std::vector<float> cosines, sines, places, mean;
  std::vector<uint16_t> q;
  double size;

  Cache(const Shape& shape, const std::vector<int>& n, double spread)
      : s(shape),
        batch(static_cast<int>(n.size())),
        longest(*std::max_element(n.begin(), n.end())),
        k(shape, shape.k_nbits, 1.0),
        v(shape, shape.v_nbits, 1.0),
        size(spread) {
    if (s.n_pairs < 0) s.n_pairs = s.d / 2;
    strips = coded_strips(s.sinks, longest) + 1;
    frames = (s.sinks + longest) / s.frame + 2;
    for (const int x : n) state.push_back({s.sinks + x + 5, s.sinks, x, x});
    for (int p = 0; p < frames * s.frame; ++p)
      for (int i = 0; i < s.n_pairs; ++i) {
        const double angle = p * std::pow(10000.0, -static_cast<double>(i) / s.n_pairs);
        cosines.push_back(static_cast<float>(std::cos(angle)));
        sines.push_back(static_cast<float>(std::sin(angle)));
      }
    const auto u = static_cast<std::size_t>(s.units());
    places = normal(u * static_cast<std::size_t>(s.n_places * s.frame), 1.0);
    mean = normal(u * static_cast<std::size_t>(s.w() * s.n_places), 0.12);
    q = halves(normal(static_cast<std::size_t>(batch * s.n_heads * s.d), spread));
    for (Side* side : {&k, &v}) {
      side->codes.resize(static_cast<std::size_t>(batch * s.units() * longest * s.M()));
      for (uint8_t& c : side->codes)
        c = static_cast<uint8_t>(g_random() & ((1u << side->nbits) - 1));
    }
  }
  std::size_t line(int b, int unit, int t) const {
    return static_cast<std::size_t>((b * s.units() + unit) * longest + t) *
           static_cast<std::size_t>(s.M());
  }
  double y(const Side& side, int b, int unit, int t, int axis) const {
    return side.centroid(s, unit, side.codes[line(b, unit, t) + static_cast<std::size_t>(axis / 4)],
                         axis);
  }
  /// x turned by whole positions with the table's cosines.
  void turn(double* x, int position, double sign) const {
    for (int i = 0; i < s.n_pairs; ++i) {
      const int c0 = s.adjacent ? 2 * i : i, c1 = s.adjacent ? 2 * i + 1 : i + s.n_pairs;
      const auto at = static_cast<std::size_t>(position * s.n_pairs + i);
      const double c = cosines[at], sine = sign * sines[at], x0 = x[c0], x1 = x[c1];
      x[c0] = x0 * c - x1 * sine, x[c1] = x0 * sine + x1 * c;
    }
  }
  std::vector<double> query(int b, int head, int frame) const {
    std::vector<double> x;
    for (int c = 0; c < s.d; ++c)
      x.push_back(half_to_float(q[static_cast<std::size_t>((b * s.n_heads + head) * s.d + c)]));
    turn(x.data(), frame * s.frame, -1.0);
    return x;
  }
  /// Scores of one head in powers of two.
  std::vector<double> scores(int b, int head, double scale_log2) const {
    const int kv = head / s.group(), unit = kv / s.span, own = kv % s.span * s.d;
    std::vector<double> out, turned(static_cast<std::size_t>(s.rank));
    std::vector<double> products(static_cast<std::size_t>(s.n_places));
    int frame = -1;
    for (int t = 0; t < state[static_cast<std::size_t>(b)].coded_k; ++t) {
      const int position = s.sinks + t;
      if (position / s.frame != frame) {
        const auto x = query(b, head, frame = position / s.frame);
        for (int j = 0; j < s.rank; ++j) {
          turned[static_cast<std::size_t>(j)] = 0.0;
          for (int c = 0; c < s.d; ++c)
            turned[static_cast<std::size_t>(j)] +=
                x[static_cast<std::size_t>(c)] * k.basis.at(unit, s.w(), j, own + c);
        }
        for (int i = 0; i < s.n_places; ++i) {
          products[static_cast<std::size_t>(i)] = 0.0;
          for (int c = 0; c < s.d; ++c)
            products[static_cast<std::size_t>(i)] +=
                x[static_cast<std::size_t>(c)] *
                mean[static_cast<std::size_t>((kv * s.d + c) * s.n_places + i)];
        }
      }
      double score = 0.0;
      for (int j = 0; j < s.rank; ++j)
        score += turned[static_cast<std::size_t>(j)] * y(k, b, unit, t, j);
      for (int i = 0; i < s.n_places; ++i)
        score += products[static_cast<std::size_t>(i)] *
                 places[static_cast<std::size_t>((unit * s.n_places + i) * s.frame +
                                                 position % s.frame)];
      out.push_back(score * scale_log2);
    }
    return out;
  }
  std::vector<uint32_t> packed(const Side& side, bool key) const {
    const std::size_t bytes = static_cast<std::size_t>(coded_strip_words(s.M())) * 4;
    std::vector<uint8_t> out(static_cast<std::size_t>(batch * s.units() * strips) * bytes, 0xFF);
    for (int b = 0; b < batch; ++b)
      for (int u = 0; u < s.units(); ++u)
        for (int t = 0; t < state[static_cast<std::size_t>(b)].coded_k; ++t)
          for (int m = 0; m < s.M(); ++m) {
            const int slot = coded_slot(s.sinks, t), at = slot % kCodedStrip;
            const int byte = key ? coded_key_byte(at, m) : coded_value_byte(s.M(), at, m);
            out[static_cast<std::size_t>((b * s.units() + u) * strips + slot / kCodedStrip) *
                    bytes +
                static_cast<std::size_t>(byte)] =
                side.codes[line(b, u, t) + static_cast<std::size_t>(m)];
          }
    std::vector<uint32_t> words(out.size() / 4);
    std::memcpy(words.data(), out.data(), out.size());
    return words;
  }
};

/// One side's arrays on the device.
struct DeviceSide {
  DeviceVector<uint32_t> codes;
  DeviceVector<int8_t> book, basis;
  DeviceVector<float> scale, basis_scale;
  CodedCodesView view;

  DeviceSide(const Cache& c, const Side& side, bool key)
      : codes(c.packed(side, key)),
        book(side.book),
        basis(side.basis.values),
        scale(side.scale),
        basis_scale(side.basis.scale),
        view{c.s.M(),     side.nbits,   codes.data(), c.strips,
             book.data(), scale.data(), basis.data(), basis_scale.data()} {}
};

/// A cache on the device.
struct DeviceCache {
  DeviceSide k, v;
  DeviceVector<float> places, mean, cosines, sines;
  CodedShape shape;

  explicit DeviceCache(const Cache& c)
      : k(c, c.k, true),
        v(c, c.v, false),
        places(c.places),
        mean(c.mean),
        cosines(c.cosines),
        sines(c.sines),
        shape{c.s.span,    c.s.rank,       c.s.frame,    c.s.n_places, places.data(),
              mean.data(), cosines.data(), sines.data(), c.s.n_pairs,  c.s.adjacent} {}
};

}  // namespace million::cuda::test
