// SPDX-License-Identifier: Apache-2.0
// Speed of llama.cpp at a context depth, through its public header llama.h. Prefilling 32768 tokens
// takes it minutes for each cache type, so the cache is filled otherwise: kSeed random tokens are
// decoded, the sequence state is taken out, its cells are repeated up to the depth, and it is put
// back. Time does not depend on the values.
//
//   llama_speed MODEL TYPE FLASH(0|1) THREADS DEPTH STEPS PROMPT
//
// Times STEPS single tokens at DEPTH, or with PROMPT > 0 one prompt of PROMPT tokens there. One
// JSON object on stdout. Exit: 0 done, 2 usage, 1 llama.cpp refused something (its last word on
// stderr).
//
// State of a sequence (llama.cpp, src/llama-kv-cache.cpp, state_write): magic u32, sequence i32,
// streams u32 = 1, cells u32, of each cell (position i32, sequences u32 = 1, sequence i32),
// transposed u32, layers u32, the keys of each layer (type i32, row bytes u64, rows), the values of
// each layer alike, or transposed (type i32, element bytes u32, channels u32, [channel][cell]).
#include "llama.h"

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

constexpr int kSeed = 256;
constexpr int kBatch = 512;

[[noreturn]] void die(const char* what) {
  std::fprintf(stderr, "llama_speed: %s\n", what);
  std::exit(1);
}

struct Reader {
  const uint8_t *at, *end;
  const uint8_t* take(std::size_t n) {
    if (n > static_cast<std::size_t>(end - at)) die("the state is shorter than its format says");
    at += n;
    return at - n;
  }
  template <class T>
  T get() {
    T x;
    std::memcpy(&x, take(sizeof x), sizeof x);
    return x;
  }
};

struct Writer {
  std::vector<uint8_t> bytes;
  template <class T>
  T put(T x) {
    const auto* p = reinterpret_cast<const uint8_t*>(&x);
    bytes.insert(bytes.end(), p, p + sizeof x);
    return x;
  }
  /// `unit` bytes of each of the depth cells, taken from the first `cells` in turn.
  void repeat(const uint8_t* from, std::size_t unit, uint32_t cells, uint32_t depth) {
    for (uint32_t done = 0; done < depth; done += cells)
      bytes.insert(bytes.end(), from, from + unit * std::min(cells, depth - done));
  }
};

std::vector<uint8_t> deepen(const std::vector<uint8_t>& state, uint32_t depth) {
  Reader in{state.data(), state.data() + state.size()};
  Writer out;
  out.put(in.get<uint32_t>());
  const auto sequence = out.put(in.get<int32_t>());
  out.put(in.get<uint32_t>());
  const auto cells = in.get<uint32_t>();
  in.take(std::size_t{12} * cells);
  out.put(depth);
  for (uint32_t i = 0; i < depth; ++i)
    out.put(static_cast<int32_t>(i)), out.put(uint32_t{1}), out.put(sequence);
  const auto transposed = out.put(in.get<uint32_t>());
  const auto layers = out.put(in.get<uint32_t>());
  for (int values = 0; values < 2; ++values)
    for (uint32_t l = 0; l < layers; ++l) {
      out.put(in.get<int32_t>());
      if (values && transposed) {
        const auto element = out.put(in.get<uint32_t>());
        const auto channels = out.put(in.get<uint32_t>());
        for (uint32_t c = 0; c < channels; ++c)
          out.repeat(in.take(std::size_t{element} * cells), element, cells, depth);
      } else {
        const auto row = out.put(in.get<uint64_t>());
        out.repeat(in.take(row * cells), row, cells, depth);
      }
    }
  return std::move(out.bytes);
}

void decode(llama_context* context, int n_vocab, int n) {
  std::vector<llama_token> tokens(static_cast<std::size_t>(n));
  for (auto& token : tokens) token = std::rand() % n_vocab;
  for (int at = 0; at < n; at += kBatch)
    if (llama_decode(context, llama_batch_get_one(tokens.data() + at, std::min(kBatch, n - at))))
      die("llama_decode failed");
  llama_synchronize(context);
}

double milliseconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(now).count();
}

ggml_type type_of(const std::string& name) {
  for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
    const char* known = ggml_type_name(static_cast<ggml_type>(i));
    if (known && name == known) return static_cast<ggml_type>(i);
  }
  die("unknown cache type");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 8) {
    std::fprintf(stderr, "usage: llama_speed MODEL TYPE FLASH THREADS DEPTH STEPS PROMPT\n");
    return 2;
  }
  const std::string type = argv[2];
  const int flash = std::atoi(argv[3]), threads = std::atoi(argv[4]), depth = std::atoi(argv[5]);
  const int steps = std::atoi(argv[6]), prompt = std::atoi(argv[7]);
  llama_log_set(
      [](ggml_log_level level, const char* text, void*) {
        if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
      },
      nullptr);
  llama_backend_init();
  llama_model* model = llama_model_load_from_file(argv[1], llama_model_default_params());
  if (!model) die("cannot read the model");
  const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));

  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<uint32_t>(depth + steps + prompt + 64);
  params.n_batch = params.n_ubatch = kBatch;
  params.n_seq_max = 1;
  params.n_threads = params.n_threads_batch = threads;
  params.type_k = params.type_v = type_of(type);
  params.flash_attn_type = flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  llama_context* context = llama_init_from_model(model, params);
  if (!context) die("no context for these settings");

  decode(context, n_vocab, kSeed);
  std::vector<uint8_t> state(llama_state_seq_get_size(context, 0));
  state.resize(llama_state_seq_get_data(context, state.data(), state.size(), 0));
  llama_memory_clear(llama_get_memory(context), true);
  state = deepen(state, static_cast<uint32_t>(depth));
  if (llama_state_seq_set_data(context, state.data(), state.size(), 0) != state.size())
    die("the deepened state was refused");
  if (llama_memory_seq_pos_max(llama_get_memory(context), 0) != depth - 1)
    die("the deepened state has another length");
  std::vector<uint8_t>().swap(state);

  std::vector<double> times;
  if (prompt == 0) decode(context, n_vocab, 1);  // warm-up
  for (int i = 0; i < (prompt > 0 ? 1 : steps); ++i) {
    const double begin = milliseconds();
    decode(context, n_vocab, prompt > 0 ? prompt : 1);
    times.push_back(milliseconds() - begin);
  }
  std::printf(
      "{\"type\": \"%s\", \"flash\": %d, \"threads\": %d, \"depth\": %d, \"prompt\": %d, "
      "\"ms\": [",
      type.c_str(), flash, threads, depth, prompt);
  for (std::size_t i = 0; i < times.size(); ++i) std::printf("%s%.3f", i ? ", " : "", times[i]);
  std::printf("]}\n");
  llama_free(context);
  llama_model_free(model);
  return 0;
}
