// SPDX-License-Identifier: Apache-2.0
// Decode attention on PQ codes as in the paper: a table of q . centroid for one query head, scores
// as sums of table entries, values as weighted sums of centroids. The readable second
// implementation of attend_pq, and the one for every other shape.
//   table  [M][K] halves in shared memory, scores in log2 units
//   grid   (parts, query heads, sequences), block 128: a token a thread for scores, a channel a
//          thread for values
// Limits   M * K entries are rebuilt for each head and part; lookups meet in banks at random; the
//          values' codebook is read from cache. attend_pq has none of the three.
// Source   [MILLION]; the same sums as attend_pq, entries rounded to halves.
#include "kernels/cuda/attention_pq_launch.h"

namespace million::cuda::MILLION_CUDA_NS {

namespace pq_table {
constexpr int kThreads = 128, kWarps = kThreads / 32, kStripsOfBlock = kThreads / kStrip;

constexpr size_t shared_bytes(int M, int nbits) {
  return (static_cast<size_t>(M) << nbits) * sizeof(uint16_t) +
         (kThreads + 2 * kWarps) * sizeof(float);
}

/// Codes of one head in one kind.
struct HeadCodes {
  const uint32_t* codes;
  const uint16_t* book;  ///< [K][d]
  PqRecords records;
  int nbits, strip_words;

  MILLION_DEVICE HeadCodes(const PqCodesView& c, bool key, int d, size_t line, int kv_head)
      : records(pq_records(key, c.M, c.nbits)),
        nbits(c.nbits),
        strip_words(pq_strip_words(c.M, c.nbits)) {
    codes = c.codes + line * c.strips * strip_words;
    const size_t skipped = c.book_per_head ? (static_cast<size_t>(kv_head) << nbits) * d : 0;
    book = reinterpret_cast<const uint16_t*>(c.book) + skipped;
  }
  MILLION_DEVICE uint32_t code(int strip, PqSlot slot) const {
    const uint32_t* p = codes + static_cast<size_t>(strip) * strip_words;
    const CodePlace at = code_place(records.codes, nbits, slot.code);
    const uint32_t low = p[pq_word_at(records, slot.lane, at.word)];
    const uint32_t high = p[pq_word_at(records, slot.lane, at.high_word)];
    return pq_code_of(at, nbits, low, high);
  }
};

/// table [M][K] = q . centroid, in log2 units.
MILLION_DEVICE void fill_table(uint16_t* table, const uint16_t* q, const HeadCodes& k, int d, int M,
                               float scale) {
  const int K = 1 << k.nbits, dsub = d / M;
  for (int i = static_cast<int>(threadIdx.x); i < M * K; i += kThreads) {
    const int m = i % M, c = i / M;  // neighbours read neighbours of a codebook row
    float dot = 0.0f;
    for (int e = 0; e < dsub; ++e)
      dot += from_half(q[m * dsub + e]) * from_half(k.book[c * d + m * dsub + e]);
    table[m * K + c] = to_half(dot * scale);
  }
}

__global__ void __launch_bounds__(kThreads) attend_pq_table_kernel(const PqAttendArgs a) {
  MILLION_SHARED(shared);
  const QueryArgs& query = a.query;
  const int t = static_cast<int>(threadIdx.x), lane = t & 31, warp = t >> 5;
  const int head = static_cast<int>(blockIdx.y), sequence = static_cast<int>(blockIdx.z);
  const int kv_head = head / (query.n_heads / query.n_kv_heads), d = query.head_dim;
  const size_t line = static_cast<size_t>(sequence) * query.n_kv_heads + kv_head;
  const size_t query_line = static_cast<size_t>(sequence) * query.n_heads + head;
  const HeadCodes k(a.k, true, d, line, kv_head), v(a.v, false, d, line, kv_head);
  const int key_dsub = d / a.k.M, value_dsub = d / a.v.M;

  uint16_t* table = reinterpret_cast<uint16_t*>(shared);
  float* weights = reinterpret_cast<float*>(table + (static_cast<size_t>(a.k.M) << k.nbits));
  float* largest_of = weights + kThreads;  // [kWarps]
  float* sum_of = largest_of + kWarps;     // [kWarps]
  fill_table(table, query.q + query_line * d, k, d, a.k.M, query.scale_log2);

  // Strips of this part, as attend_pq has them.
  const int n_tokens = query.state[sequence].coded_k, part = static_cast<int>(blockIdx.x);
  const int64_t strips = (n_tokens + kStrip - 1) / kStrip;
  const int begin = static_cast<int>(strips * part / query.n_splits);
  const int end = static_cast<int>(strips * (part + 1) / query.n_splits);

  float largest = -1e30f, sum = 0.0f, value = 0.0f;
  __syncthreads();
  for (int first = begin; first < end; first += kStripsOfBlock) {
    // Scores: thread = token.
    const int strip = first + warp;
    float x = -INFINITY;
    if (strip < end && strip * kStrip + lane < n_tokens) {
      x = 0.0f;
      for (int m = 0; m < a.k.M; ++m) {
        const uint32_t c = k.code(strip, pq_key_slot(a.k.M, key_dsub, lane, m));
        x += from_half(table[(m << k.nbits) + c]);
      }
    }
    // Softmax over the tokens so far.
    const float warp_largest = warp_max(x);
    if (lane == 0) largest_of[warp] = warp_largest;
    __syncthreads();
    const float before = largest;
    for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, largest_of[w]);
    const float factor = exp2_fast(before - largest), p = exp2_fast(x - largest);
    weights[t] = p;
    const float warp_total = warp_sum(p);
    if (lane == 0) sum_of[warp] = warp_total;
    __syncthreads();
    sum *= factor;
    for (int w = 0; w < kWarps; ++w) sum += sum_of[w];
    // Values: thread = channel.
    value *= factor;
    const int n = n_tokens - first * kStrip, mine = (end - first) * kStrip;
    const int tokens = n < mine ? n : mine;
    if (t < d)
      for (int i = 0; i < tokens && i < kThreads; ++i) {
        const PqSlot slot = pq_value_slot(a.v.M, i % kStrip, t / value_dsub);
        const uint32_t c = v.code(first + i / kStrip, slot);
        value += weights[i] * from_half(v.book[c * d + t]);
      }
  }
  const Parts& parts = query.parts;
  const size_t row = query_line * parts.n_parts + parts.first + part;
  if (t < d) parts.rows[row * d + t] = sum > 0.0f ? value / sum : 0.0f;
  if (t == 0) parts.lse[row] = sum > 0.0f ? largest + log2_fast(sum) : -INFINITY;
}

}  // namespace pq_table

int attend_pq_table(StreamHandle stream, const PqAttendArgs& a) {
  const QueryArgs& q = a.query;
  return launch(pq_table::attend_pq_table_kernel, dim3(q.n_splits, q.n_heads, q.batch),
                dim3(pq_table::kThreads), pq_table::shared_bytes(a.k.M, a.k.nbits), stream, a);
}

}  // namespace million::cuda::MILLION_CUDA_NS
