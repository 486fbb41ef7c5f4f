// SPDX-License-Identifier: Apache-2.0
// Runs one shape of a device kernel on random data, to be counted by tests/ptx: linked with its
// harness, which prints what each kernel executed. count_kernels.py runs it at two lengths and
// takes the difference, so that what does not grow with the tokens drops out.
//
//   count_shapes rows         d=128 group=4 tokens=4096
//   count_shapes pq           d=128 group=4 M=64 nbits=8 two_pass=0 tokens=4096
//   count_shapes coded        d=64 group=3 span=3 M=48 frame=64 places=16 shared_kb=227 tokens=4096
//   count_shapes prefill      d=128 group=4 n=32 rows=128 tokens=4096
//   count_shapes encode_pq    d=128 M=64 nbits=8 tokens=128
//   count_shapes encode_coded d=64 span=3 M=48 frame=64 places=16 tokens=128
//
// One KV head (coded: one unit), one sequence, one part. Prints "shared_bytes N": what a block
// needs.
#include "kernels/cuda/attention_coded.h"
#include "kernels/cuda/attention_pq.h"
#include "kernels/half.h"
#include "tests/cuda/harness.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <string>

using namespace million;
using namespace million::cuda;
using namespace million::cuda::test;

namespace {

std::map<std::string, int> options;
int get(const char* name) {
  const auto found = options.find(name);
  if (found == options.end()) {
    std::fprintf(stderr, "count_shapes: %s= is missing\n", name);
    std::exit(2);
  }
  return found->second;
}
std::size_t size(int n) { return static_cast<std::size_t>(n); }

std::mt19937 rng(1);
std::vector<std::shared_ptr<void>> kept;  // device arrays live until the end

/// n values on the device, each from `draw`.
template <class T, class Draw>
T* device(std::size_t n, Draw draw) {
  std::vector<T> host(n);
  for (T& x : host) x = static_cast<T>(draw());
  const auto made = std::make_shared<DeviceVector<T>>(host);
  kept.push_back(made);
  return made->data();
}
template <class T>
T* zeros(std::size_t n) {
  return device<T>(n, [] { return 0; });
}
float normal() { return std::normal_distribution<float>()(rng); }
uint16_t* halves(std::size_t n) {
  return device<uint16_t>(n, [] { return float_to_half(normal()); });
}
float* floats(std::size_t n, float scale) {
  return device<float>(n, [&] { return scale * normal(); });
}
template <class T>
T* random_bits(std::size_t n) {
  return device<T>(n, [] { return rng(); });
}

QueryArgs query_of(int d, int n_heads, int n_kv_heads, int tokens, bool coded, int width) {
  const SequenceState state{tokens, 0, coded ? tokens : 0, coded ? tokens : 0};
  const auto states = std::make_shared<DeviceVector<SequenceState>>(std::vector{state});
  kept.push_back(states);
  QueryArgs q{};
  q.batch = 1, q.n_heads = n_heads, q.n_kv_heads = n_kv_heads, q.head_dim = d;
  q.q = halves(size(n_heads * d)), q.state = states->data();
  q.scale_log2 = 0.1f, q.n_splits = 1;
  q.parts = {zeros<float>(size(n_heads * width)), zeros<float>(size(n_heads)), 1, 0};
  return q;
}

int run_rows() {
  const int d = get("d"), tokens = get("tokens");
  int ring_rows = 1;
  while (ring_rows < tokens) ring_rows *= 2;
  RowsAttendArgs a{};
  a.query = query_of(d, get("group"), 1, tokens, false, d);
  a.k = {nullptr, halves(size(ring_rows) * size(d)), 0, ring_rows};
  a.v = {nullptr, halves(size(ring_rows) * size(d)), 0, ring_rows};
  return ops().attend_rows(nullptr, a);
}

PqCodesView pq_codes(int d, int tokens) {
  PqCodesView c{};
  c.M = get("M"), c.nbits = get("nbits"), c.strips = (tokens + kStrip - 1) / kStrip;
  c.codes = random_bits<uint32_t>(size(c.strips) * size(pq_strip_words(c.M, c.nbits)));
  c.book = reinterpret_cast<uint32_t*>(halves((size_t{1} << c.nbits) * size(d)));
  return c;
}

int run_pq() {
  const int d = get("d"), tokens = get("tokens");
  PqAttendArgs a{};
  a.query = query_of(d, get("group"), 1, tokens, true, d);
  a.k = pq_codes(d, tokens), a.v = pq_codes(d, tokens);
  a.two_pass = get("two_pass") != 0;
  if (a.two_pass) a.scratch = zeros<float>(pq_scratch_bytes(a) / 4 + 1);
  std::printf("shared_bytes %zu\n", pq_shared_bytes(a));
  return ops().attend_pq(nullptr, a);
}

int run_encode_pq() {
  const int d = get("d"), tokens = get("tokens");
  PqEncodeArgs a{};
  a.batch = 1, a.n_kv_heads = 1, a.head_dim = d, a.ring_rows = 256, a.n = tokens;
  a.ring = halves(size(a.ring_rows) * size(d));
  a.codes = pq_codes(d, tokens);
  int error = 0;
  for (const bool key : {true, false}) {
    a.key = key;
    error = error ? error : ops().pq_encode(nullptr, a);
  }
  return error;
}

CodedShape coded_shape(int d, int tokens) {
  CodedShape s{};
  s.span = get("span"), s.rank = 4 * get("M"), s.frame = get("frame"), s.n_places = get("places");
  s.n_pairs = d / 2;
  s.places = floats(size(s.n_places) * size(s.frame), 1.0f);
  s.mean = floats(size(s.span * d) * size(s.n_places), 0.1f);
  const std::size_t turns = size(tokens + s.frame + 1) * size(s.n_pairs);
  s.cosines = floats(turns, 0.7f), s.sines = floats(turns, 0.7f);
  return s;
}
CodedCodesView coded_codes(const CodedShape& s, int d, int tokens) {
  CodedCodesView c{};
  c.M = s.rank / 4, c.nbits = 8, c.strips = coded_strips(0, tokens);
  c.codes = random_bits<uint32_t>(size(c.strips) * size(coded_strip_words(c.M)));
  c.book = random_bits<int8_t>(256 * size(s.rank));
  c.scale = floats(size(s.rank), 0.01f);
  c.basis = random_bits<int8_t>(size(s.span * d) * size(s.rank));
  c.basis_scale = floats(size(s.rank), 0.001f);
  return c;
}

int run_coded() {
  const int d = get("d"), tokens = get("tokens");
  const CodedShape s = coded_shape(d, tokens);
  const int n_heads = s.span * get("group");
  const QueryArgs query = query_of(d, n_heads, s.span, tokens, true, s.rank);
  const CodedCodesView k = coded_codes(s, d, tokens), v = coded_codes(s, d, tokens);
  TurnedQueries turned{};
  turned.frames = (tokens + s.frame - 1) / s.frame;
  const std::size_t lines = size(n_heads) * size(turned.frames);
  turned.words = zeros<uint32_t>(lines * size(k.M) * 2), turned.step = zeros<float>(lines);
  turned.bias = zeros<int32_t>(lines * size(s.frame));
  const CodedAttendArgs a{query, s, k, v, turned, get("shared_kb") * 1024};
  std::printf("shared_bytes %zu\n", coded_shared_bytes(a));
  const int error = ops().turn_queries(nullptr, {query, s, k, turned});
  return error ? error : ops().attend_coded(nullptr, a);
}

int run_encode_coded() {
  const int d = get("d"), tokens = get("tokens");
  CodedEncodeArgs a{};
  a.shape = coded_shape(d, tokens);
  a.batch = 1, a.n_kv_heads = a.shape.span, a.head_dim = d, a.ring_rows = 256, a.n = tokens;
  a.ring = halves(size(a.n_kv_heads) * size(a.ring_rows) * size(d));
  a.codes = coded_codes(a.shape, d, tokens);
  a.encode = random_bits<int8_t>(size(a.shape.span * d) * size(a.shape.rank));
  a.encode_scale = floats(size(a.shape.rank), 0.001f);
  int error = 0;
  for (const bool key : {true, false}) {
    a.key = key;
    error = error ? error : ops().coded_encode(nullptr, a);
  }
  return error;
}

/// n queries behind `tokens` others.
int run_prefill() {
  PrefillArgs a{};
  a.head_dim = get("d"), a.n_heads = get("group"), a.n_kv_heads = 1;
  a.n = get("n"), a.first = get("tokens"), a.block_rows = get("rows"), a.scale_log2 = 0.1f;
  int ring_rows = 1;
  while (ring_rows < a.first + a.n) ring_rows *= 2;
  const std::size_t values = size(a.n) * size(a.n_heads * a.head_dim);
  a.q = halves(values), a.out = zeros<uint16_t>(values);
  a.k = {nullptr, halves(size(ring_rows) * size(a.head_dim)), 0, ring_rows};
  a.v = {nullptr, halves(size(ring_rows) * size(a.head_dim)), 0, ring_rows};
  return ops().attend_prefill(nullptr, a);
}

}  // namespace

int main(int argc, char** argv) {
  const std::map<std::string, int (*)()> kernels{
      {"rows", run_rows},           {"pq", run_pq},
      {"prefill", run_prefill},     {"coded", run_coded},
      {"encode_pq", run_encode_pq}, {"encode_coded", run_encode_coded}};
  const auto kernel = kernels.find(argc > 1 ? argv[1] : "");
  if (kernel == kernels.end()) {
    std::fprintf(stderr, "count_shapes: no kernel %s\n", argc > 1 ? argv[1] : "");
    return 2;
  }
  for (int i = 2; i < argc; ++i) {
    const std::string text = argv[i];
    const std::size_t equals = text.find('=');
    if (equals == std::string::npos) return 2;
    options[text.substr(0, equals)] = std::atoi(text.c_str() + equals + 1);
  }
  const int error = kernel->second();
  kept.clear();
  if (error) std::fprintf(stderr, "count_shapes: launch failed with %d\n", error);
  return error ? 1 : 0;
}
