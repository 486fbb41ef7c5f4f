// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/ops_ref.h"

#include "kernels/half.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

namespace million::ref {
namespace {

struct BlockValues {
  double d = 0.0, m = 0.0;
  int q[kBlockValues] = {};
};

void unpack_nibbles(const uint8_t* packed, const uint8_t* high, int offset, int* q) {
  for (int j = 0; j < 16; ++j) {
    q[j] = packed[j] & 15;
    q[j + 16] = packed[j] >> 4;
  }
  for (int j = 0; j < kBlockValues; ++j) {
    if (high && ((high[j / 8] >> (j % 8)) & 1)) q[j] += 16;
    q[j] -= offset;
  }
}

template <class Block>
Block read_block(const uint8_t* at) {
  Block block;
  std::memcpy(&block, at, sizeof(block));
  return block;
}

/// Value j of the block is d q[j] + m.
BlockValues unpack_block(BlockType type, const uint8_t* at) {
  BlockValues out;
  if (type == BlockType::kQ8_0) {
    const auto b = read_block<BlockQ8_0>(at);
    out.d = half_to_float(b.d);
    for (int j = 0; j < kBlockValues; ++j) out.q[j] = b.q[j];
  } else if (type == BlockType::kQ4_0) {
    const auto b = read_block<BlockQ4_0>(at);
    out.d = half_to_float(b.d);
    unpack_nibbles(b.q, nullptr, 8, out.q);
  } else if (type == BlockType::kQ4_1) {
    const auto b = read_block<BlockQ4_1>(at);
    out.d = half_to_float(b.d), out.m = half_to_float(b.m);
    unpack_nibbles(b.q, nullptr, 0, out.q);
  } else if (type == BlockType::kQ5_0) {
    const auto b = read_block<BlockQ5_0>(at);
    out.d = half_to_float(b.d);
    unpack_nibbles(b.q, b.high, 16, out.q);
  } else if (type == BlockType::kQ5_1) {
    const auto b = read_block<BlockQ5_1>(at);
    out.d = half_to_float(b.d), out.m = half_to_float(b.m);
    unpack_nibbles(b.q, b.high, 0, out.q);
  }
  return out;
}

int nibble(const uint8_t* bytes, int byte, int which) { return bytes[byte] >> (4 * which) & 15; }

/// Scale and minimum of sub-block s of Q4_K and Q5_K.
std::pair<int, int> six_bit_pair(const uint8_t* p, int s) {
  if (s < 4) return {p[s] % 64, p[s + 4] % 64};
  return {p[s + 4] % 16 + p[s - 4] / 64 * 16, p[s + 4] / 16 + p[s] / 64 * 16};
}

/// Value j of a super-block (blocks.h).
double super_value(BlockType type, const uint8_t* at, int j) {
  if (type == BlockType::kQ6_K) {
    const auto b = read_block<BlockQ6_K>(at);
    const int half = j / 128, code = nibble(b.q, half * 64 + j % 64, j % 128 / 64) +
                                     16 * (b.high[half * 32 + j % 32] >> (j / 32 % 4 * 2) & 3);
    return static_cast<double>(half_to_float(b.d)) * b.scales[j / 16] * (code - 32);
  }
  const auto value = [j](const auto& b, int fifth) {
    const auto [scale, minimum] = six_bit_pair(b.scales, j / 32);
    const int code = nibble(b.q, j / 64 * 32 + j % 32, j / 32 % 2) + 16 * fifth;
    return static_cast<double>(half_to_float(b.d)) * scale * code -
           static_cast<double>(half_to_float(b.dmin)) * minimum;
  };
  if (type == BlockType::kQ4_K) return value(read_block<BlockQ4_K>(at), 0);
  const auto b = read_block<BlockQ5_K>(at);
  return value(b, b.high[j % 32] >> (j / 32) & 1);
}

template <class T>
T read_at(const void* row, int i) {
  T value;
  std::memcpy(&value, static_cast<const uint8_t*>(row) + sizeof(T) * static_cast<std::size_t>(i),
              sizeof(T));
  return value;
}

}  // namespace

double dot(const float* x, const float* y, std::size_t n) {
  double sum = 0.0;
  for (std::size_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * y[i];
  return sum;
}

std::vector<double> swiglu(const float* gate, const float* up, std::size_t n) {
  std::vector<double> y(n);
  for (std::size_t i = 0; i < n; ++i) {
    const double g = gate[i];
    y[i] = g / (1.0 + std::exp(-g)) * up[i];
  }
  return y;
}

std::vector<double> rmsnorm(const float* x, const float* w, double eps, int n) {
  double square = 0.0;
  for (int i = 0; i < n; ++i) square += static_cast<double>(x[i]) * x[i];
  const double scale = 1.0 / std::sqrt(square / n + eps);
  std::vector<double> y(static_cast<std::size_t>(n));
  for (int i = 0; i < n; ++i) y[static_cast<std::size_t>(i)] = x[i] * scale * w[i];
  return y;
}

std::vector<double> rope_row(const float* x, const float* cosines, const float* sines, int n_pairs,
                             bool adjacent) {
  std::vector<double> y(static_cast<std::size_t>(2 * n_pairs));
  for (int i = 0; i < n_pairs; ++i) {
    const std::size_t a = static_cast<std::size_t>(adjacent ? 2 * i : i);
    const std::size_t b = static_cast<std::size_t>(adjacent ? 2 * i + 1 : i + n_pairs);
    const double c = cosines[i], s = sines[i];
    y[a] = x[a] * c - x[b] * s;
    y[b] = x[a] * s + x[b] * c;
  }
  return y;
}

double logsumexp(const float* x, std::size_t n) {
  double max = -INFINITY;
  for (std::size_t i = 0; i < n; ++i) max = std::max(max, static_cast<double>(x[i]));
  if (std::isinf(max)) return max;
  double sum = 0.0;
  for (std::size_t i = 0; i < n; ++i) sum += std::exp(x[i] - max);
  return max + std::log(sum);
}

std::vector<double> dequant_row(BlockType type, const void* row, int n) {
  std::vector<double> y(static_cast<std::size_t>(n));
  const BlockShape shape = block_shape(type);
  for (int i = 0; i < n; i += shape.values) {
    double* out = y.data() + i;
    if (type == BlockType::kF32) {
      out[0] = read_at<float>(row, i);
    } else if (type == BlockType::kF16) {
      out[0] = half_to_float(read_at<uint16_t>(row, i));
    } else if (type == BlockType::kBF16) {
      out[0] = bf16_to_float(read_at<uint16_t>(row, i));
    } else if (is_super_block(type)) {
      const std::size_t at = static_cast<std::size_t>(i / shape.values) * shape.bytes;
      for (int j = 0; j < shape.values; ++j)
        out[j] = super_value(type, static_cast<const uint8_t*>(row) + at, j);
    } else {
      const std::size_t at = static_cast<std::size_t>(i / shape.values) * shape.bytes;
      const BlockValues b = unpack_block(type, static_cast<const uint8_t*>(row) + at);
      for (int j = 0; j < kBlockValues; ++j) out[j] = b.d * b.q[j] + b.m;
    }
  }
  return y;
}

std::vector<double> gemv_a8(BlockType type, const void* rows, std::size_t row_bytes, int n_rows,
                            int n, const BlockA8* x) {
  std::vector<double> y(static_cast<std::size_t>(n_rows));
  for (int r = 0; r < n_rows; ++r) {
    const auto* row = static_cast<const uint8_t*>(rows) + row_bytes * static_cast<std::size_t>(r);
    const std::vector<double> w = dequant_row(type, row, n);
    for (int i = 0; i < n; ++i) {
      const BlockA8& block = x[i / kBlockValues];
      y[static_cast<std::size_t>(r)] +=
          w[static_cast<std::size_t>(i)] * block.d * block.q[i % kBlockValues];
    }
  }
  return y;
}

Attention attend(int n_group, int head_dim, int n_tokens, const float* q, const double* k,
                 const double* v) {
  const std::size_t d = static_cast<std::size_t>(head_dim);
  const std::size_t n = static_cast<std::size_t>(n_tokens);
  Attention result;
  result.out.assign(static_cast<std::size_t>(n_group) * d, 0.0);
  result.lse.assign(static_cast<std::size_t>(n_group), -INFINITY);
  for (std::size_t g = 0; g < static_cast<std::size_t>(n_group); ++g) {
    std::vector<double> score(n);
    double max = -INFINITY, sum = 0.0;
    for (std::size_t t = 0; t < n; ++t) {
      for (std::size_t i = 0; i < d; ++i) score[t] += q[g * d + i] * k[t * d + i];
      max = std::max(max, score[t]);
    }
    for (std::size_t t = 0; t < n; ++t) sum += score[t] = std::exp(score[t] - max);
    if (n == 0) continue;
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t i = 0; i < d; ++i) result.out[g * d + i] += score[t] / sum * v[t * d + i];
    result.lse[g] = max + std::log(sum);
  }
  return result;
}

std::vector<double> from_f16(const uint16_t* x, std::size_t n) {
  std::vector<double> y(n);
  for (std::size_t i = 0; i < n; ++i) y[i] = half_to_float(x[i]);
  return y;
}

std::vector<double> pq_decode(const PqSide& side, int head_dim, int n_tokens) {
  const int dsub = head_dim / side.M;
  const std::size_t K = std::size_t{1} << side.nbits;
  std::vector<double> rows(static_cast<std::size_t>(n_tokens) * static_cast<std::size_t>(head_dim));
  for (int t = 0; t < n_tokens; ++t) {
    const uint8_t* block = side.blocks[t / kPqBlock];
    for (int m = 0; m < side.M; ++m) {
      const uint8_t* run = block + static_cast<std::size_t>(m) * pq_run_bytes(side.nbits);
      const uint32_t code = pq_get(run, side.nbits, t % kPqBlock);
      const float* centroid = side.centroids + (static_cast<std::size_t>(m) * K + code) *
                                                   static_cast<std::size_t>(dsub);
      for (int j = 0; j < dsub; ++j)
        rows[static_cast<std::size_t>(t) * static_cast<std::size_t>(head_dim) +
             static_cast<std::size_t>(m * dsub + j)] = centroid[j];
    }
  }
  return rows;
}

namespace {

/// Rows y [n_tokens][rank] of a side in a basis.
std::vector<double> coded_rows(const CodedSide& side, int rank, int n_tokens) {
  const int K = 1 << side.nbits, dsub = rank / side.M;
  std::vector<double> rows;
  for (int t = 0; t < n_tokens; ++t)
    for (int j = 0; j < rank; ++j) {
      const uint8_t* run =
          side.blocks[t / kPqBlock] + static_cast<std::size_t>(j / dsub) * pq_run_bytes(side.nbits);
      const auto code = static_cast<std::ptrdiff_t>(pq_get(run, side.nbits, t % kPqBlock));
      rows.push_back(static_cast<double>(side.scale[j]) *
                     side.tables[static_cast<std::ptrdiff_t>(j) * K + code]);
    }
  return rows;
}

/// Query head h of a frame in the basis, and what the mean key adds at a place: weights of places.
struct TurnedQuery {
  std::vector<double> y, mean;
  TurnedQuery(const CodedAttendArgs& a, int frame, int h)
      : y(static_cast<std::size_t>(a.rank)), mean(static_cast<std::size_t>(a.n_places)) {
    const int kv = h / (a.n_heads / a.span);
    const float* q = a.q + (static_cast<std::ptrdiff_t>(frame) * a.n_heads + h) * a.head_dim;
    for (int c = 0; c < a.head_dim; ++c) {
      const int row = kv * a.head_dim + c;
      for (int j = 0; j < a.rank; ++j)
        y[static_cast<std::size_t>(j)] +=
            static_cast<double>(q[c]) * a.basis_scale[j] *
            a.basis[(static_cast<std::ptrdiff_t>(row / 4) * a.rank + j) * 4 + row % 4];
      for (int k = 0; k < a.n_places; ++k)
        mean[static_cast<std::size_t>(k)] +=
            static_cast<double>(q[c]) * a.mean[static_cast<std::ptrdiff_t>(row) * a.n_places + k];
    }
  }
};

}  // namespace

Attention attend_coded(const CodedAttendArgs& a) {
  const auto rank = static_cast<std::size_t>(a.rank), n = static_cast<std::size_t>(a.n_tokens);
  const auto k = coded_rows(a.k, a.rank, a.n_tokens), v = coded_rows(a.v, a.rank, a.n_tokens);
  Attention result;
  for (int h = 0; h < a.n_heads; ++h) {
    std::vector<double> score(n), out(rank);
    double max = -INFINITY, sum = 0.0;
    int frame = -1;
    TurnedQuery query(a, 0, h);
    for (std::size_t t = 0; t < n; ++t) {
      const int at = a.first + static_cast<int>(t);
      if (at / a.frame != frame) query = TurnedQuery(a, frame = at / a.frame, h);
      for (std::size_t j = 0; j < rank; ++j) score[t] += query.y[j] * k[t * rank + j];
      for (int i = 0; i < a.n_places; ++i)
        score[t] += query.mean[static_cast<std::size_t>(i)] *
                    a.places[static_cast<std::ptrdiff_t>(i) * a.frame + at % a.frame];
      max = std::max(max, score[t]);
    }
    for (std::size_t t = 0; t < n; ++t) sum += score[t] = std::exp(score[t] - max);
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t j = 0; j < rank; ++j) out[j] += score[t] / sum * v[t * rank + j];
    result.out.insert(result.out.end(), out.begin(), out.end());
    result.lse.push_back(max + std::log(sum));
  }
  return result;
}

std::vector<double> coded_rows(const CodedAttendArgs& a) {
  std::vector<double> rows;
  for (int h = 0; h < a.n_heads; ++h)
    for (int c = 0; c < a.head_dim; ++c) {
      const int row = h / (a.n_heads / a.span) * a.head_dim + c;
      double sum = 0.0;
      for (int j = 0; j < a.rank; ++j)
        sum += static_cast<double>(a.acc[static_cast<std::ptrdiff_t>(h) * a.rank + j]) *
               a.basis_scale[j] *
               a.basis[(static_cast<std::ptrdiff_t>(row / 4) * a.rank + j) * 4 + row % 4];
      rows.push_back(sum);
    }
  return rows;
}

std::vector<double> pq_distances(const float* x, const float* cent_t, int K, int dsub) {
  std::vector<double> distance(static_cast<std::size_t>(K));
  for (int c = 0; c < K; ++c)
    for (int j = 0; j < dsub; ++j) {
      const double diff = static_cast<double>(x[j]) -
                          cent_t[static_cast<std::size_t>(j) * static_cast<std::size_t>(K) +
                                 static_cast<std::size_t>(c)];
      distance[static_cast<std::size_t>(c)] += diff * diff;
    }
  return distance;
}

}  // namespace million::ref
