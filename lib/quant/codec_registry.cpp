// SPDX-License-Identifier: Apache-2.0
// The table of methods. To add one: write codec_NAME.cpp with a function NAME_codec(), declare it
// here and give it a line in the table; tests, sweeps and help loop over the table.
#include "lib/quant/codec.h"

#include "lib/core/error.h"
#include "lib/quant/codec_identity.h"

namespace million {

CodecInfo fp16_codec();
CodecInfo uniform_codec();
CodecInfo pq_codec();
CodecInfo kvquant_codec();
CodecInfo kivi_codec();
CodecInfo quanto_codec();
CodecInfo q8_0_codec();
CodecInfo q4_0_codec();
CodecInfo q4_1_codec();
CodecInfo q5_0_codec();
CodecInfo q5_1_codec();
CodecInfo iq4_nl_codec();
CodecInfo nf4_codec();
CodecInfo fp8_codec();
CodecInfo fp4_codec();
CodecInfo turboquant_codec();
CodecInfo commvq_codec();

std::span<const CodecInfo> codec_table() {
  // clang-format off: a line each
  static const CodecInfo kTable[] = {
      fp16_codec(),    pq_codec(),         kvquant_codec(), kivi_codec(),   quanto_codec(),
      uniform_codec(), turboquant_codec(), commvq_codec(),  q8_0_codec(),   q4_0_codec(),
      q4_1_codec(),    q5_0_codec(),       q5_1_codec(),    iq4_nl_codec(), nf4_codec(),
      fp8_codec(),     fp4_codec(),
  };
  // clang-format on
  return kTable;
}

const CodecInfo& find_codec(std::string_view name) {
  std::string names;
  for (const CodecInfo& info : codec_table()) {
    if (name == info.name) return info;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", info.name);
  }
  fail(ErrorCode::kUsage, "unknown codec '{}'; known codecs: {}", name, names);
}

SpecParts split_spec(std::string_view spec) {
  const size_t colon = spec.find(':');
  if (colon == std::string_view::npos) return {spec, {}};
  return {spec.substr(0, colon), spec.substr(colon + 1)};
}

std::string canonical_spec(std::string_view name, const Options& options) {
  const std::string text = options.to_string();
  return text.empty() ? std::string(name) : fmt::format("{}:{}", name, text);
}

std::unique_ptr<Codec> make_codec(std::string_view spec, KvKind kind, const KvGeometry& g) {
  MILLION_REQUIRE(g.n_layers > 0 && g.n_kv_heads > 0 && g.head_dim > 0 && g.n_heads > 0 &&
                      g.n_heads % g.n_kv_heads == 0,
                  ErrorCode::kBadInput,
                  "cache shape: {} layers, {} query heads, {} KV heads, head_dim {}; expected all "
                  "positive and query heads a multiple of KV heads",
                  g.n_layers, g.n_heads, g.n_kv_heads, g.head_dim);
  const SpecParts parts = split_spec(spec);
  const CodecInfo& info = find_codec(parts.name);
  return info.make(Options(info.name, info.options, parts.options), kind, g);
}

}  // namespace million
