// SPDX-License-Identifier: Apache-2.0
// Rows to PQ codes and back, in the strips of pq_strips.h.
//   encode  block = one strip: a thread keeps one tile's subvectors of one subspace in registers
//           while the centroids pass, so a centroid is read once for 8 tokens; then the codes are
//           packed from shared memory.
//   decode  a thread writes one pair of halves.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/pq_strips.h"

namespace million::cuda::MILLION_CUDA_NS {

namespace pq_codes {
constexpr int kDecodeThreads = 128;

/// Codes of one subspace for the 8 tokens of a tile: nearest centroid, the lowest code on ties.
/// `rows` of absent tokens are nullptr; they get code 0.
template <int DS>
MILLION_DEVICE void nearest(uint32_t (&best)[kTile], const uint16_t* const (&rows)[kTile],
                            const uint16_t* book, int K, int d) {
  float x[kTile][DS], least[kTile];
  MILLION_UNROLL
  for (int t = 0; t < kTile; ++t) {
    best[t] = 0, least[t] = INFINITY;
    MILLION_UNROLL
    for (int e = 0; e < DS; ++e) x[t][e] = rows[t] ? from_half(rows[t][e]) : 0.0f;
  }
  for (int c = 0; c < K; ++c) {
    float centroid[DS];
    MILLION_UNROLL
    for (int e = 0; e < DS; ++e) centroid[e] = from_half(book[c * d + e]);
    MILLION_UNROLL
    for (int t = 0; t < kTile; ++t) {
      float distance = 0.0f;
      MILLION_UNROLL
      for (int e = 0; e < DS; ++e) {
        const float difference = x[t][e] - centroid[e];
        distance += difference * difference;
      }
      if (distance < least[t]) least[t] = distance, best[t] = static_cast<uint32_t>(c);
    }
  }
  MILLION_UNROLL
  for (int t = 0; t < kTile; ++t)
    if (!rows[t]) best[t] = 0;
}

/// Block (strip, KV head, sequence) of M x 4 threads: (subspace, tile).
template <int DS>
__global__ void pq_encode_kernel(const PqEncodeArgs a) {
  MILLION_SHARED(shared);  // [token of the strip][M] codes
  const int M = a.codes.M, d = a.head_dim, K = 1 << a.codes.nbits;
  const int thread = static_cast<int>(threadIdx.x), m = thread % M, tile = thread / M;
  const int kv_head = static_cast<int>(blockIdx.y);
  const size_t line = static_cast<size_t>(blockIdx.z) * a.n_kv_heads + kv_head;
  const int done = static_cast<int>(blockIdx.x) * kStrip;
  const uint16_t* rows[kTile];
  MILLION_UNROLL
  for (int t = 0; t < kTile; ++t) {
    const int i = done + tile * kTile + t, at = (a.n_sinks + a.begin + i) & (a.ring_rows - 1);
    rows[t] = i < a.n ? a.ring + (line * a.ring_rows + at) * d + m * DS : nullptr;
  }
  const size_t skipped = a.codes.book_per_head ? static_cast<size_t>(kv_head) * K * d : 0;
  uint32_t best[kTile];
  nearest<DS>(best, rows, reinterpret_cast<const uint16_t*>(a.codes.book) + skipped + m * DS, K, d);
  MILLION_UNROLL
  for (int t = 0; t < kTile; ++t)
    shared[(tile * kTile + t) * M + m] = static_cast<unsigned char>(best[t]);
  __syncthreads();

  const PqRecords records = pq_records(a.key, M, a.codes.nbits);
  const int strip_words = pq_strip_words(M, a.codes.nbits);
  const size_t strip = line * a.codes.strips + a.begin / kStrip + blockIdx.x;
  uint32_t* to = a.codes.codes + strip * strip_words;
  for (int i = thread; i < records.count * records.words; i += static_cast<int>(blockDim.x)) {
    const PqWord at = pq_word_of(records, i);
    to[i] = pq_pack_word(records.codes, a.codes.nbits, at.word, [&](int c) -> uint32_t {
      const PqCode code = a.key ? pq_key_code(M, DS, at.lane, c) : pq_value_code(M, at.lane, c);
      return shared[code.token * M + code.subspace];
    });
  }
}

/// Grid (words of rows / kDecodeThreads, KV heads, sequences).
__global__ void pq_decode_kernel(const PqDecodeArgs a) {
  const int d = a.to.head_dim, words = d / 2, M = a.codes.M, dsub = d / M, nbits = a.codes.nbits;
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= a.to.n * words) return;
  const int token = a.to.begin + i / words, word = i % words;
  const int kv_head = static_cast<int>(blockIdx.y);
  const size_t line = static_cast<size_t>(blockIdx.z) * a.to.n_kv_heads + kv_head;
  const PqRecords records = pq_records(a.key, M, nbits);
  const uint32_t* strip =
      a.codes.codes + (line * a.codes.strips + token / kStrip) * pq_strip_words(M, nbits);
  const uint16_t* book = reinterpret_cast<const uint16_t*>(a.codes.book) +
                         (a.codes.book_per_head ? (static_cast<size_t>(kv_head) << nbits) * d : 0);
  uint32_t pair = 0;
  for (int e = 0; e < 2; ++e) {
    const int channel = 2 * word + e, in_strip = token % kStrip;
    const PqSlot slot = a.key ? pq_key_slot(M, dsub, in_strip, channel / dsub)
                              : pq_value_slot(M, in_strip, channel / dsub);
    const CodePlace at = code_place(records.codes, nbits, slot.code);
    const uint32_t code = pq_code_of(at, nbits, strip[pq_word_at(records, slot.lane, at.word)],
                                     strip[pq_word_at(records, slot.lane, at.high_word)]);
    pair |= static_cast<uint32_t>(book[code * d + channel]) << 16 * e;
  }
  reinterpret_cast<uint32_t*>(a.to.rows)[(line * a.to.capacity + token) * words + word] = pair;
}

}  // namespace pq_codes

namespace {
using namespace pq_codes;

int pq_encode(StreamHandle stream, const PqEncodeArgs& a) {
  const int M = a.codes.M;
  const dim3 grid((a.n + kStrip - 1) / kStrip, a.n_kv_heads, a.batch), block(M * kTiles);
  const auto run = [&](void (*kernel)(PqEncodeArgs)) {
    return launch(kernel, grid, block, static_cast<size_t>(M) * kStrip, stream, a);
  };
  switch (a.head_dim / M) {
    case 1:
      return run(pq_encode_kernel<1>);
    case 2:
      return run(pq_encode_kernel<2>);
    case 4:
      return run(pq_encode_kernel<4>);
    default:
      return run(pq_encode_kernel<8>);
  }
}

int pq_decode(StreamHandle stream, const PqDecodeArgs& a) {
  const int64_t words = static_cast<int64_t>(a.to.n) * (a.to.head_dim / 2);
  const auto blocks = static_cast<unsigned>((words + kDecodeThreads - 1) / kDecodeThreads);
  return launch(pq_decode_kernel, dim3(blocks, a.to.n_kv_heads, a.to.batch), dim3(kDecodeThreads),
                0, stream, a);
}

}  // namespace

void add_pq(DeviceOps& ops) {
  ops.pq_encode = pq_encode;
  ops.pq_decode = pq_decode;
}

}  // namespace million::cuda::MILLION_CUDA_NS
