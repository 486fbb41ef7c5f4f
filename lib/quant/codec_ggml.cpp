// SPDX-License-Identifier: Apache-2.0
// The KV-cache types of llama.cpp: blocks of 32 values along head_dim of one token and head, in
// ggml's byte layout (kernels/blocks.h). Encoding follows ggml's reference quantizers [llama.cpp,
// ggml/src/ggml-quants.c]: codes are chosen with the f32 scale, and the scale is stored as half.
// Since 2026 (PR 21038) llama.cpp turns queries and keys by a Walsh-Hadamard transform 64 channels
// wide before storing them, and values with the output turned back. Turning the decoded row back
// here is the same up to rounding: H is orthogonal, so (H q) . (H k)' = q . H (H k)'.
#include "kernels/blocks.h"
#include "kernels/half.h"
#include "kernels/ops.h"
#include "lib/core/error.h"
#include "lib/core/parallel.h"
#include "lib/quant/block_array.h"
#include "lib/quant/codec.h"
#include "lib/quant/codec_identity.h"
#include "lib/quant/rotation.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

namespace million {
namespace {

constexpr int kRowGrain = 32;       ///< tokens a thread takes at least
constexpr int kRotationWidth = 64;  ///< llama.cpp's block of the transform
constexpr float kTiniest = 1e-15f;  ///< ggml's GROUP_MAX_EPS: smaller blocks are zeros
constexpr int kMaxHeadDim = 1024;

/// iq4_nl: sixteen levels, denser around zero.
constexpr int8_t kIq4Levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};

uint16_t finite_half(float x) { return float_to_half(std::clamp(x, -65504.0f, 65504.0f)); }

/// 1 / d; 0 where ggml stores an all-zero block or where 1 / d would overflow.
float inverse(float d) {
  return std::abs(d) >= std::numeric_limits<float>::min() ? 1.0f / d : 0.0f;
}

/// x cut to an integer in [0, top]; NaN gives 0.
uint8_t cut(float x, float top) { return static_cast<uint8_t>(std::min(std::max(0.0f, x), top)); }

/// The value of largest magnitude with its sign, the first one on ties.
float signed_max(const float* x) {
  float best = 0.0f;
  for (int i = 0; i < kBlockValues; ++i)
    if (std::abs(x[i]) > std::abs(best)) best = x[i];
  return best;
}

/// Element j in the low half of byte j, j + 16 in the high half; returns the fifth bits.
uint32_t pack_nibbles(const uint8_t* codes, uint8_t* out) {
  uint32_t high = 0;
  for (int j = 0; j < kBlockValues / 2; ++j)
    out[j] = static_cast<uint8_t>((codes[j] & 15) | (codes[j + 16] & 15) << 4);
  for (int j = 0; j < kBlockValues; ++j) high |= static_cast<uint32_t>(codes[j] >> 4 & 1) << j;
  return high;
}

void encode_q8_0(const float* x, uint8_t* out) {
  BlockQ8_0 block;
  const float d = std::abs(signed_max(x)) / 127.0f, id = inverse(d);
  block.d = finite_half(d);
  for (int i = 0; i < kBlockValues; ++i) {
    const float q = std::min(std::max(-127.0f, x[i] * id), 127.0f);  // NaN gives -127
    block.q[i] = static_cast<int8_t>(std::round(q));                 // half away from zero, as ggml
  }
  std::memcpy(out, &block, sizeof block);
}

/// q4_0 and q5_0: d = signed max / -half, so that the largest value is stored exactly.
template <class Block>
void encode_symmetric(const float* x, uint8_t* out) {
  constexpr bool kFive = std::is_same_v<Block, BlockQ5_0>;
  constexpr float kHalf = kFive ? 16.0f : 8.0f;
  const float d = signed_max(x) / -kHalf, id = inverse(d);
  uint8_t codes[kBlockValues];
  for (int i = 0; i < kBlockValues; ++i)
    codes[i] = cut(x[i] * id + (kHalf + 0.5f), 2.0f * kHalf - 1.0f);
  Block block;
  block.d = finite_half(d);
  const uint32_t high = pack_nibbles(codes, block.q);
  if constexpr (kFive) std::memcpy(block.high, &high, sizeof high);
  std::memcpy(out, &block, sizeof block);
}

/// q4_1 and q5_1: d = (max - min) / top.
template <class Block>
void encode_affine(const float* x, uint8_t* out) {
  constexpr bool kFive = std::is_same_v<Block, BlockQ5_1>;
  constexpr float kTop = kFive ? 31.0f : 15.0f;
  const auto [low, high_value] = std::minmax_element(x, x + kBlockValues);
  const float d = (*high_value - *low) / kTop, id = inverse(d), m = *low;
  uint8_t codes[kBlockValues];
  for (int i = 0; i < kBlockValues; ++i) codes[i] = cut((x[i] - m) * id + 0.5f, kTop);
  Block block;
  block.d = finite_half(d);
  block.m = finite_half(m);
  const uint32_t high = pack_nibbles(codes, block.q);
  if constexpr (kFive) std::memcpy(block.high, &high, sizeof high);
  std::memcpy(out, &block, sizeof block);
}

/// Nearest level; midway between two, the higher (ggml's best_index_int8).
uint8_t nearest_iq4(float x) {
  int code = 0;
  for (int i = 1; i < 16; ++i)
    code += x >= 0.5f * static_cast<float>(kIq4Levels[i - 1] + kIq4Levels[i]);
  return static_cast<uint8_t>(code);
}

/// Levels by the first guess of the scale, then the scale of least error (weights x^2) for those
/// levels; no search over scales, which only ggml's file quantizer does.
void encode_iq4_nl(const float* x, uint8_t* out) {
  BlockQ4_0 block{};  // the same layout; an all-zero block writes zeros (ggml reads what was there)
  const float largest = signed_max(x);
  if (std::abs(largest) >= kTiniest) {
    const float id = inverse(largest / kIq4Levels[0]);
    uint8_t codes[kBlockValues];
    float sum_qx = 0.0f, sum_q2 = 0.0f;
    for (int i = 0; i < kBlockValues; ++i) {
      codes[i] = nearest_iq4(x[i] * id);
      const float q = kIq4Levels[codes[i]], w = x[i] * x[i];
      sum_qx += w * q * x[i];
      sum_q2 += w * q * q;
    }
    const float d = sum_qx * inverse(sum_q2);
    block.d =
        std::isfinite(d) && sum_q2 > 0.0f ? finite_half(d) : finite_half(largest / kIq4Levels[0]);
    pack_nibbles(codes, block.q);
  }
  std::memcpy(out, &block, sizeof block);
}

void decode_iq4_nl(const uint8_t* row, int n, float* out) {
  for (int c = 0; c < n; c += kBlockValues, row += sizeof(BlockQ4_0), out += kBlockValues) {
    BlockQ4_0 block;
    std::memcpy(&block, row, sizeof block);
    const float d = half_to_float(block.d);
    for (int j = 0; j < kBlockValues / 2; ++j) {
      out[j] = d * kIq4Levels[block.q[j] & 15];
      out[j + 16] = d * kIq4Levels[block.q[j] >> 4];
    }
  }
}

template <BlockType kType>
void decode_row(const uint8_t* row, int n, float* out) {
  ops().dequant_row(kType, row, n, out);
}

struct GgmlType {
  const char* name;
  int block_bytes, scale_bytes;
  void (*encode)(const float* x, uint8_t* block);            ///< one block
  void (*decode)(const uint8_t* blocks, int n, float* out);  ///< n values
  std::optional<BlockType> fused;                            ///< what attend_groups knows it as
};

constexpr GgmlType kTypes[] = {
    {"q8_0", sizeof(BlockQ8_0), 2, encode_q8_0, decode_row<BlockType::kQ8_0>, BlockType::kQ8_0},
    {"q4_0", sizeof(BlockQ4_0), 2, encode_symmetric<BlockQ4_0>, decode_row<BlockType::kQ4_0>,
     BlockType::kQ4_0},
    {"q4_1", sizeof(BlockQ4_1), 4, encode_affine<BlockQ4_1>, decode_row<BlockType::kQ4_1>,
     BlockType::kQ4_1},
    {"q5_0", sizeof(BlockQ5_0), 2, encode_symmetric<BlockQ5_0>, decode_row<BlockType::kQ5_0>, {}},
    {"q5_1", sizeof(BlockQ5_1), 4, encode_affine<BlockQ5_1>, decode_row<BlockType::kQ5_1>, {}},
    {"iq4_nl", sizeof(BlockQ4_0), 2, encode_iq4_nl, decode_iq4_nl, {}},
};

class GgmlStore final : public CodeStore {
 public:
  GgmlStore(const GgmlType& type, const KvGeometry& g, bool rotate)
      : type_(type),
        rotate_(rotate),
        n_heads_(g.n_kv_heads),
        head_dim_(g.head_dim),
        row_bytes_(static_cast<int64_t>(g.head_dim) / kBlockValues * type.block_bytes),
        blocks_(n_heads_ * row_bytes_, kTokensPerBlock) {}

  int n_tokens() const override { return static_cast<int>(blocks_.size()); }

  void append(const float* x, int n, int64_t /*first_token*/) override {
    const int64_t first = blocks_.size();
    blocks_.grow(n);
    parallel_ranges(n, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        for (int h = 0; h < n_heads_; ++h)
          encode_row(x + (t * n_heads_ + h) * head_dim_, blocks_.at(first + t) + h * row_bytes_);
    });
  }

  void decode(int head, int begin, int end, float* out) const override {
    for (int t = begin; t < end; ++t, out += head_dim_) {
      type_.decode(blocks_.at(t) + head * row_bytes_, head_dim_, out);
      if (rotate_) walsh_hadamard(out, head_dim_, kRotationWidth);
    }
  }

  GroupCodes group_codes(int head, int begin) const override {
    GroupCodes run;
    if (!type_.fused || begin >= n_tokens()) return run;
    run.side.layout = GroupSide::Layout::kBlocks;
    run.side.type = *type_.fused;
    run.side.codes = blocks_.at(begin) + head * row_bytes_;
    run.side.code_step = blocks_.record();
    run.n = static_cast<int>(std::min(blocks_.run(begin), blocks_.size() - begin));
    return run;
  }
  int group_rotation() const override { return rotate_ ? kRotationWidth : 0; }

  /// Scales lie inside the blocks; they are told apart by their share.
  StoreBytes bytes() const override {
    const uint64_t total = blocks_.bytes();
    const uint64_t scales = total * type_.scale_bytes / type_.block_bytes;
    return {total - scales, scales, 0};
  }
  void clear() override { blocks_.clear(); }
  std::unique_ptr<CodeStore> clone() const override { return std::make_unique<GgmlStore>(*this); }

 private:
  void encode_row(const float* x, uint8_t* out) const {
    float row[kMaxHeadDim];
    std::copy(x, x + head_dim_, row);
    if (rotate_) walsh_hadamard(row, head_dim_, kRotationWidth);
    for (int c = 0; c < head_dim_; c += kBlockValues, out += type_.block_bytes)
      type_.encode(row + c, out);
  }

  const GgmlType& type_;
  bool rotate_;
  int n_heads_, head_dim_;
  int64_t row_bytes_;
  BlockArray<uint8_t> blocks_;  ///< [n_tokens][n_heads][head_dim / 32][block_bytes]
};

class GgmlCodec final : public Codec {
 public:
  GgmlCodec(const GgmlType& type, const Options& options, KvKind kind, const KvGeometry& geometry)
      : id_(type.name, options, kind, geometry), type_(type) {
    const int d = geometry.head_dim;
    MILLION_REQUIRE(d % kBlockValues == 0 && d <= kMaxHeadDim, ErrorCode::kBadInput,
                    "codec {}: head_dim {}: expected a multiple of {} up to {}, as in llama.cpp; "
                    "use uniform for this model",
                    type.name, d, kBlockValues, kMaxHeadDim);
    const bool fits = d % kRotationWidth == 0;
    rotate_ = options.text("rotate") == "auto" ? fits : options.integer("rotate", 0, 1) == 1;
    MILLION_REQUIRE(fits || !rotate_, ErrorCode::kUsage,
                    "codec {}: rotate=1 with head_dim {}: expected a multiple of {}; give rotate=0",
                    type.name, d, kRotationWidth);
  }

  std::string spec() const override { return id_.spec(); }
  void train(const CalibrationSet& data, int sinks) override { id_.trained_on(data, sinks); }
  TensorBag save() const override { return {{}, id_.attributes()}; }
  void load(const TensorBag& bag) override { id_.loaded_from(bag); }
  double nominal_bits() const override { return 8.0 * type_.block_bytes / kBlockValues; }
  std::unique_ptr<CodeStore> make_store(int /*layer*/) const override {
    return std::make_unique<GgmlStore>(type_, id_.geometry(), rotate_);
  }

 private:
  CodecIdentity id_;
  const GgmlType& type_;
  bool rotate_ = false;
};

constexpr OptionInfo kOptions[] = {
    {"rotate", "auto", "auto|0|1",
     "1 = Walsh-Hadamard transform of 64 channels before encoding; auto = where 64 divides "
     "head_dim",
     true},
};

template <int kIndex>
std::unique_ptr<Codec> make_ggml(const Options& options, KvKind kind, const KvGeometry& geometry) {
  return std::make_unique<GgmlCodec>(kTypes[kIndex], options, kind, geometry);
}

template <int kIndex>
CodecInfo ggml_codec(const char* summary) {
  return {kTypes[kIndex].name, summary, "llama.cpp, ggml-quants.c", kOptions, make_ggml<kIndex>};
}

}  // namespace

CodecInfo q8_0_codec() { return ggml_codec<0>("llama.cpp: 8 bits, one scale for 32 values"); }
CodecInfo q4_0_codec() {
  return ggml_codec<1>("llama.cpp: 4 bits, one signed scale for 32 values");
}
CodecInfo q4_1_codec() {
  return ggml_codec<2>("llama.cpp: 4 bits, scale and minimum for 32 values");
}
CodecInfo q5_0_codec() {
  return ggml_codec<3>("llama.cpp: 5 bits, one signed scale for 32 values");
}
CodecInfo q5_1_codec() {
  return ggml_codec<4>("llama.cpp: 5 bits, scale and minimum for 32 values");
}
CodecInfo iq4_nl_codec() {
  return ggml_codec<5>("llama.cpp: 16 non-linear levels, one scale for 32 values");
}

}  // namespace million
