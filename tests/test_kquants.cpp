// SPDX-License-Identifier: Apache-2.0
// Q4_K, Q5_K and Q6_K against llama.cpp's own Python package (golden/kquants.json): values, files
// and products; and tiny models in these types against the same models in floats.
#include "kernels/ops.h"
#include "kernels/ref/ops_ref.h"
#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/core/json.h"
#include "lib/eval/method_factory.h"
#include "lib/model/decoder.h"
#include "lib/model/gguf.h"
#include "tests/tiny_model.h"

#include <catch2/catch.hpp>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

using namespace million;
using Catch::Matchers::Contains;

namespace {

struct GoldenType {
  BlockType type;
  std::string name, blocks;   ///< bytes
  std::vector<float> values;  ///< [6 blocks][256]
};

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (std::size_t i = 0; i < hex.size(); i += 2)
    bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

const Json& golden() {
  static const Json json = Json::parse(read_file(MILLION_TEST_DIR "/golden/kquants.json"));
  return json;
}

std::vector<GoldenType> golden_types() {
  std::vector<GoldenType> out;
  for (const Json& t : golden()["types"]) {
    GoldenType g{BlockType::kF32, t["name"].get<std::string>(), from_hex(t["blocks"]), {}};
    for (BlockType type : {BlockType::kQ4_K, BlockType::kQ5_K, BlockType::kQ6_K})
      if (ggml_type_id(type) == t["id"].get<uint32_t>()) g.type = type;
    REQUIRE(block_type_name(g.type) == g.name);
    const std::string bytes = from_hex(t["values"]);
    g.values.resize(bytes.size() / sizeof(float));
    std::memcpy(g.values.data(), bytes.data(), bytes.size());
    REQUIRE(g.values.size() == 6 * std::size_t{kSuperValues});
    REQUIRE(g.blocks.size() == 6 * block_shape(g.type).bytes);
    out.push_back(std::move(g));
  }
  REQUIRE(out.size() == 3);
  return out;
}

std::vector<const Ops*> levels() {
  std::vector<const Ops*> found;
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512})
    if (const Ops* table = ops_for(isa)) found.push_back(table);
  return found;
}

TinyModelSpec tiny(BlockType type, BlockType embedding, bool as_floats) {
  return {.d_model = 256,
          .d_ff = 512,
          .type = type,
          .embedding_type = embedding,
          .as_floats = as_floats};
}

/// Logits [n tokens][n_vocab] of a model run over a fixed prompt, as one chunk or token by token.
std::vector<float> logits_of(const TinyModelSpec& spec, DecodeCompute decode, bool one_by_one) {
  const auto model = Model::from_gguf(GgufFile::from_memory(tiny_model_bytes(spec), "tiny.gguf"));
  Decoder decoder(model, {PrefillCompute::kF32, decode, 512});
  const KvGeometry g = model->config.geometry();
  KvCache cache(g, exact_method(g), Protocol::kDecodePath);
  const std::vector<int32_t> ids = {5, 100, 42, 7, 250, 33, 261, 90, 12, 77, 140, 9};
  const auto vocab = static_cast<std::size_t>(model->config.n_vocab);
  std::vector<float> out(ids.size() * vocab);
  if (!one_by_one) {
    const auto rows = decoder.forward(ids, cache);
    decoder.logits(rows.data(), static_cast<int>(ids.size()), out.data());
    return out;
  }
  for (std::size_t i = 0; i < ids.size(); ++i)
    decoder.logits(decoder.forward({&ids[i], 1}, cache).data(), 1, out.data() + i * vocab);
  return out;
}

double worst_difference(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double worst = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i)
    worst = std::max(worst, std::fabs(static_cast<double>(a[i]) - b[i]));
  return worst;
}

}  // namespace

TEST_CASE("super-blocks have the values that llama.cpp's package gives them, bit for bit") {
  for (const GoldenType& g : golden_types()) {
    INFO(g.name);
    const int n = static_cast<int>(g.values.size());
    for (const Ops* op : levels()) {
      INFO(op->name);
      std::vector<float> y(g.values.size() + 1, 777.0f);
      op->dequant_row(g.type, g.blocks.data(), n, y.data());
      CHECK(std::memcmp(y.data(), g.values.data(), g.values.size() * sizeof(float)) == 0);
      CHECK(y.back() == 777.0f);
    }
    const auto slow = ref::dequant_row(g.type, g.blocks.data(), n);
    for (std::size_t i = 0; i < slow.size(); ++i)  // ref keeps in double what the others round
      REQUIRE(std::fabs(slow[i] - static_cast<double>(g.values[i])) <=
              1e-6 * std::fabs(slow[i]) + 4e-6);
  }
}

TEST_CASE("products of super-blocks equal those of the golden values") {
  for (const GoldenType& g : golden_types())
    for (const Ops* op : levels()) {
      INFO(g.name << " " << op->name);
      const std::size_t n = g.values.size();
      const auto x = normal_values(3, n, 1.0f);
      std::vector<BlockA8> a8(n / kBlockValues);
      op->quantize_a8(x.data(), static_cast<int>(n), a8.data());
      // All six super-blocks as one row, then as six rows of one.
      float whole = 0.0f;
      std::vector<float> rows(6);
      op->gemv_a8(g.type, g.blocks.data(), g.blocks.size(), 1, static_cast<int>(n), a8.data(),
                  &whole);
      op->gemv_a8(g.type, g.blocks.data(), block_shape(g.type).bytes, 6, kSuperValues, a8.data(),
                  rows.data());
      double sum = 0.0, magnitude = 0.0;
      for (std::size_t i = 0; i < n; ++i) {
        const BlockA8& a = a8[i / kBlockValues];
        const double term = static_cast<double>(g.values[i]) * a.d * a.q[i % kBlockValues];
        sum += term, magnitude += std::fabs(term);
      }
      CHECK(std::fabs(sum - whole) <= 2e-6 * magnitude);
      for (std::size_t r = 0; r < rows.size(); ++r) {
        double row = 0.0, terms = 0.0;
        for (std::size_t i = 0; i < std::size_t{kSuperValues}; ++i) {
          const BlockA8& a = a8[i / kBlockValues];
          const double term =
              g.values[r * kSuperValues + i] * static_cast<double>(a.d) * a.q[i % kBlockValues];
          row += term, terms += std::fabs(term);
        }
        CHECK(std::fabs(row - rows[r]) <= 2e-6 * terms);
      }
    }
}

TEST_CASE("a file that llama.cpp's package wrote is read") {
  const auto file = GgufFile::from_memory(from_hex(golden()["file"]), "kquants.gguf");
  CHECK(file->get_string("general.architecture", {}) == "llama");
  for (const GoldenType& g : golden_types()) {
    const GgufTensor* t = file->find_tensor(g.name);
    REQUIRE(t != nullptr);
    CHECK(t->type == g.type);
    CHECK(t->dims == std::vector<uint64_t>{256, 2});
    REQUIRE(t->bytes == 2 * block_shape(g.type).bytes);
    CHECK(std::memcmp(t->data, g.blocks.data(), t->bytes) == 0);
  }
}

TEST_CASE("rows that are no whole super-blocks are refused in one line") {
  for (BlockType type : {BlockType::kQ4_K, BlockType::kQ5_K, BlockType::kQ6_K})
    for (uint64_t columns : {32u, 128u, 576u, 255u}) {
      GgufBuilder out;
      out.string("general.architecture", "llama");
      out.tensor("blk.0.attn_q.weight", {columns, 4}, ggml_type_id(type), std::string(4096, '\0'));
      try {
        GgufFile::from_memory(out.finish(), "bad.gguf");
        FAIL("taken");
      } catch (const Error& e) {
        CHECK(e.code() == ErrorCode::kBadInput);
        CHECK_THAT(e.what(),
                   Contains("attn_q.weight has rows of " + std::to_string(columns) +
                            " values, expected a multiple of 256 for " + block_type_name(type)));
        CHECK(std::string(e.what()).find('\n') == std::string::npos);
      }
    }
}

TEST_CASE("a tiny model in super-blocks gives the logits of its values in floats") {
  // As llama.cpp mixes them: Q4_K or Q5_K matrices, the embedding and head in Q6_K.
  for (const auto& [type, embedding] : {std::pair(BlockType::kQ4_K, BlockType::kQ6_K),
                                        std::pair(BlockType::kQ5_K, BlockType::kQ6_K),
                                        std::pair(BlockType::kQ6_K, BlockType::kQ4_K)}) {
    INFO(block_type_name(type));
    const TinyModelSpec blocks = tiny(type, embedding, false);
    const TinyModelSpec floats = tiny(type, embedding, true);
    const auto want = logits_of(floats, DecodeCompute::kExact, false);
    double power = 0.0;
    for (const float x : want) power += static_cast<double>(x) * x;
    REQUIRE(std::sqrt(power / static_cast<double>(want.size())) > 0.5);
    CHECK(logits_of(blocks, DecodeCompute::kExact, false) == want);
    const auto single = logits_of(floats, DecodeCompute::kExact, true);
    CHECK(logits_of(blocks, DecodeCompute::kExact, true) == single);
    CHECK(worst_difference(single, want) < 1e-2);
    CHECK(worst_difference(logits_of(blocks, DecodeCompute::kInt8x2, true), single) < 1e-2);
    const double int8 = worst_difference(logits_of(blocks, DecodeCompute::kInt8, true), single);
    CHECK(int8 > 0.0);
    CHECK(int8 < 0.3);
  }
}
