// SPDX-License-Identifier: Apache-2.0
#include "lib/results/dump_file.h"

#include "kernels/ops.h"
#include "lib/core/checked.h"
#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/core/json.h"
#include "lib/results/hdf5_file.h"
#include "lib/results/provenance.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <optional>

namespace million {
namespace {

constexpr const char* kFormat = "million-kv-dump";
constexpr int64_t kVersion = 1;
constexpr std::array<const char*, kDumpTensors> kNames = {"k_pre", "k", "v", "q", "attn_out"};
constexpr uint64_t kChunkBytes = 128 << 10;  // the small end of 128 KiB..1 MiB: few rewrites of a
                                             // chunk when the decoder adds 512 tokens at a time

// Limits of a plausible model; everything else is a damaged file.
constexpr int64_t kMaxLayers = 1024, kMaxHeads = 1024, kMaxHeadDim = 4096;
constexpr int64_t kMaxTokens = int64_t{1} << 31;

std::string dataset_name(int layer, DumpTensor t) {
  return fmt::format("/layers/{:02d}/{}", layer, dump_tensor_name(t));
}

uint64_t chunk_tokens(int head_dim, int64_t n_tokens) {
  const uint64_t row = static_cast<uint64_t>(head_dim) * sizeof(uint16_t);
  return std::min<uint64_t>(std::bit_ceil((kChunkBytes + row - 1) / row),
                            static_cast<uint64_t>(n_tokens));
}

Json rope_to_json(const RopeParams& p) {
  return {{"n_rot", p.n_rot},
          {"base", p.base},
          {"pairs", p.pairs == RopePairs::kAdjacent ? "adjacent" : "halves"},
          {"scaling", static_cast<int>(p.scaling)},
          {"factor", p.factor},
          {"low_freq_factor", p.low_freq_factor},
          {"high_freq_factor", p.high_freq_factor},
          {"original_context", p.original_context},
          {"beta_fast", p.beta_fast},
          {"beta_slow", p.beta_slow},
          {"attention_factor", p.attention_factor},
          {"freq_factors", p.freq_factors}};
}

RopeParams rope_from_json(const Json& j, int head_dim) {
  RopeParams p;
  p.n_rot = j.at("n_rot").get<int>();
  p.base = j.at("base").get<float>();
  p.pairs = j.at("pairs") == "adjacent" ? RopePairs::kAdjacent : RopePairs::kHalves;
  const int scaling = j.at("scaling").get<int>();
  p.scaling = static_cast<RopeScaling>(scaling);
  p.factor = j.at("factor").get<float>();
  p.low_freq_factor = j.at("low_freq_factor").get<float>();
  p.high_freq_factor = j.at("high_freq_factor").get<float>();
  p.original_context = j.at("original_context").get<int>();
  p.beta_fast = j.at("beta_fast").get<float>();
  p.beta_slow = j.at("beta_slow").get<float>();
  p.attention_factor = j.at("attention_factor").get<float>();
  p.freq_factors = j.at("freq_factors").get<std::vector<float>>();
  MILLION_REQUIRE(p.n_rot >= 0 && p.n_rot <= head_dim && p.n_rot % 2 == 0 && p.base > 0 &&
                      scaling >= 0 && scaling <= static_cast<int>(RopeScaling::kYarn),
                  ErrorCode::kBadInput, "rope_params {} do not fit head_dim {}", j.dump(),
                  head_dim);
  return p;
}

std::vector<int64_t> as_int64(const std::vector<int>& v) { return {v.begin(), v.end()}; }

/// Ascending indices below `limit`, at least one.
bool is_selection(const std::vector<int>& v, int limit) {
  for (std::size_t i = 0; i < v.size(); ++i)
    if (v[i] < 0 || v[i] >= limit || (i > 0 && v[i] <= v[i - 1])) return false;
  return !v.empty();
}

}  // namespace

const char* dump_tensor_name(DumpTensor t) { return kNames[static_cast<std::size_t>(t)]; }

DumpTensor parse_dump_tensor(std::string_view name) {
  for (std::size_t i = 0; i < kNames.size(); ++i)
    if (name == kNames[i]) return static_cast<DumpTensor>(i);
  fail(ErrorCode::kUsage, "unknown tensor '{}', expected one of {}", name, fmt::join(kNames, ", "));
}

std::vector<int> DumpMeta::heads(DumpTensor t) const {
  if (!is_query_side(t)) return kv_heads;
  std::vector<int> out;
  for (int head : kv_heads)
    for (int g = 0; g < geometry.group(); ++g) out.push_back(head * geometry.group() + g);
  return out;
}

uint64_t DumpMeta::payload_bytes() const {
  uint64_t rows = 0;
  for (DumpTensor t : tensors) rows += heads(t).size();
  return checked_mul(rows * layers.size() * static_cast<uint64_t>(geometry.head_dim) * 2,
                     static_cast<uint64_t>(n_tokens), "dump size");
}

std::string tokens_sha256(const std::vector<int32_t>& tokens) {
  return sha256_of({reinterpret_cast<const char*>(tokens.data()), tokens.size() * sizeof(int32_t)});
}

// --- writer ---

struct DumpWriter::Impl {
  std::filesystem::path path, part;
  std::optional<Hdf5File> file;
  std::vector<std::array<int64_t, kDumpTensors>> stored;  // [layer][tensor]: tokens written so far
  AlignedVector<float> gathered;                          // [head][token][head_dim]
  AlignedVector<uint16_t> half;

  void write_attributes(const DumpMeta& meta);
  void create_layout(const DumpMeta& meta);
  ~Impl() {
    file.reset();
    std::error_code ignored;
    if (!part.empty()) std::filesystem::remove(part, ignored);
  }
};

void DumpWriter::Impl::write_attributes(const DumpMeta& meta) {
  const KvGeometry& g = meta.geometry;
  std::vector<std::string> names;
  for (DumpTensor t : meta.tensors) names.emplace_back(dump_tensor_name(t));
  file->set_attribute("format", std::string(kFormat));
  file->set_attribute("version", kVersion);
  file->set_attribute("model", meta.model);
  file->set_attribute("model_sha256", meta.model_sha256);
  file->set_attribute("text_name", meta.text_name);
  file->set_attribute("text_sha256", meta.text_sha256);
  file->set_attribute("tokenizer", meta.tokenizer);
  file->set_attribute("n_layers", int64_t{g.n_layers});
  file->set_attribute("n_heads", int64_t{g.n_heads});
  file->set_attribute("n_kv_heads", int64_t{g.n_kv_heads});
  file->set_attribute("head_dim", int64_t{g.head_dim});
  file->set_attribute("layers", as_int64(meta.layers));
  file->set_attribute("kv_heads", as_int64(meta.kv_heads));
  file->set_attribute("tensors", fmt::format("{}", fmt::join(names, ",")));
  file->set_attribute("rope", g.rope.params().to_string());
  file->set_attribute("rope_params", rope_to_json(g.rope.params()).dump());
  file->set_attribute("rope_base", static_cast<double>(g.rope.params().base));
  file->set_attribute("context", int64_t{meta.context});
  file->set_attribute("n_tokens", meta.n_tokens);
  file->set_attribute("dtype", std::string("float16"));
  file->set_attribute("compute", meta.compute);
  file->set_attribute("seed", static_cast<int64_t>(meta.seed));
  file->set_attribute("commit", build_info().commit);
}

void DumpWriter::Impl::create_layout(const DumpMeta& meta) {
  const auto n = static_cast<uint64_t>(meta.n_tokens);
  const std::array<uint64_t, 1> zero = {0}, all = {n};
  const std::vector<uint64_t> chunk = {std::min<uint64_t>(n, kChunkBytes / 4)};
  std::vector<int32_t> positions(n);
  for (uint64_t t = 0; t < n; ++t)
    positions[t] = static_cast<int32_t>(t % static_cast<uint64_t>(meta.context));
  file->create_dataset("/positions", Hdf5Type::kInt32, {n}, chunk);
  file->write("/positions", zero, all, positions.data());
  if (!meta.tokens.empty()) {
    file->create_dataset("/tokens", Hdf5Type::kInt32, {n}, chunk);
    file->write("/tokens", zero, all, meta.tokens.data());
  }
  const auto d = static_cast<uint64_t>(meta.geometry.head_dim);
  for (const char* scale : {"/kv_head", "/head"}) {
    const auto ids = meta.heads(scale[1] == 'k' ? DumpTensor::kKey : DumpTensor::kQuery);
    const std::vector<int32_t> values(ids.begin(), ids.end());
    const std::array<uint64_t, 1> count = {values.size()};
    file->create_dataset(scale, Hdf5Type::kInt32, {count[0]}, {count[0]});
    file->write(scale, zero, count, values.data());
  }
  for (int layer : meta.layers)
    for (DumpTensor t : meta.tensors) {
      const std::string name = dataset_name(layer, t);
      file->create_dataset(name, Hdf5Type::kF16, {meta.heads(t).size(), n, d},
                           {1, chunk_tokens(meta.geometry.head_dim, meta.n_tokens), d});
      if (is_query_side(t))
        file->attach_scale(name, 0, "/head", "head");
      else
        file->attach_scale(name, 0, "/kv_head", "kv_head");
      file->attach_scale(name, 1, "/positions", "token");
      file->label_axis(name, 2, "channel");
    }
}

DumpWriter::DumpWriter(const std::filesystem::path& path, DumpMeta meta)
    : meta_(std::move(meta)), impl_(std::make_unique<Impl>()) {
  const KvGeometry& g = meta_.geometry;
  if (!meta_.tokens.empty()) meta_.n_tokens = static_cast<int64_t>(meta_.tokens.size());
  std::sort(meta_.tensors.begin(), meta_.tensors.end());
  MILLION_REQUIRE(meta_.n_tokens > 0 && meta_.n_tokens < kMaxTokens && meta_.context > 0,
                  ErrorCode::kUsage, "cannot dump {} tokens in windows of {}", meta_.n_tokens,
                  meta_.context);
  MILLION_REQUIRE(is_selection(meta_.layers, g.n_layers), ErrorCode::kUsage,
                  "layers [{}]: expected ascending numbers in 0..{}", fmt::join(meta_.layers, ","),
                  g.n_layers - 1);
  MILLION_REQUIRE(is_selection(meta_.kv_heads, g.n_kv_heads), ErrorCode::kUsage,
                  "KV heads [{}]: expected ascending numbers in 0..{}",
                  fmt::join(meta_.kv_heads, ","), g.n_kv_heads - 1);
  MILLION_REQUIRE(!meta_.tensors.empty(), ErrorCode::kUsage, "no tensor selected");
  require_free_space(path, meta_.payload_bytes() + meta_.payload_bytes() / 64 + (4u << 20),
                     path.string());
  impl_->path = path;
  impl_->stored.resize(static_cast<std::size_t>(g.n_layers));
  auto part = path;
  part += ".part";
  impl_->file.emplace(Hdf5File::create(part));
  impl_->part = part;
  impl_->write_attributes(meta_);
  impl_->create_layout(meta_);
  impl_->file->flush();
}

DumpWriter::~DumpWriter() = default;

bool DumpWriter::wants(int layer, DumpTensor t) const {
  return std::binary_search(meta_.layers.begin(), meta_.layers.end(), layer) &&
         std::binary_search(meta_.tensors.begin(), meta_.tensors.end(), t);
}

void DumpWriter::add(int layer, DumpTensor t, int64_t first_token, int n, const float* rows) {
  if (!wants(layer, t) || n == 0) return;
  int64_t& stored = impl_->stored[static_cast<std::size_t>(layer)][static_cast<std::size_t>(t)];
  MILLION_ASSERT(first_token == stored && first_token + n <= meta_.n_tokens);
  const auto heads = meta_.heads(t);
  const std::size_t d = static_cast<std::size_t>(meta_.geometry.head_dim);
  const std::size_t row =
      d * static_cast<std::size_t>(is_query_side(t) ? meta_.geometry.n_heads
                                                    : meta_.geometry.n_kv_heads);
  const std::size_t count = static_cast<std::size_t>(n);
  impl_->gathered.resize(heads.size() * count * d);
  impl_->half.resize(impl_->gathered.size());
  float* out = impl_->gathered.data();
  for (int head : heads)
    for (std::size_t i = 0; i < count; ++i, out += d)
      std::copy_n(rows + i * row + static_cast<std::size_t>(head) * d, d, out);
  for (std::size_t i = 0; i < impl_->gathered.size(); ++i)
    MILLION_REQUIRE(std::abs(impl_->gathered[i]) <= 65504.0f, ErrorCode::kFailed,
                    "layer {} {} head {} token {} channel {}: {} does not fit float16", layer,
                    dump_tensor_name(t), heads[i / (count * d)],
                    first_token + static_cast<int64_t>(i / d % count), i % d, impl_->gathered[i]);
  ops().f32_to_f16(impl_->gathered.data(), impl_->half.data(), impl_->gathered.size());
  const std::array<uint64_t, 3> start = {0, static_cast<uint64_t>(first_token), 0};
  const std::array<uint64_t, 3> box = {heads.size(), count, d};
  impl_->file->write(dataset_name(layer, t), start, box, impl_->half.data());
  stored += n;
}

void DumpWriter::finish() {
  for (int layer : meta_.layers)
    for (DumpTensor t : meta_.tensors) {
      const int64_t got =
          impl_->stored[static_cast<std::size_t>(layer)][static_cast<std::size_t>(t)];
      MILLION_REQUIRE(got == meta_.n_tokens, ErrorCode::kFailed,
                      "{}: layer {} {} holds {} of {} tokens; the dump is incomplete",
                      impl_->path.string(), layer, dump_tensor_name(t), got, meta_.n_tokens);
    }
  impl_->file->close();
  impl_->file.reset();
  publish_file(impl_->part, impl_->path);
  impl_->part.clear();
}

// --- reader ---

struct DumpReader::Impl {
  explicit Impl(const std::filesystem::path& p) : path(p), file(Hdf5File::open(p)) {}
  std::filesystem::path path;
  Hdf5File file;
  DumpMeta meta;

  int64_t bounded(const char* name, int64_t low, int64_t high) const;
  void read_geometry();
  void read_selection();
  void check_layout();
};

int64_t DumpReader::Impl::bounded(const char* name, int64_t low, int64_t high) const {
  const int64_t value = file.int_attribute(name);
  MILLION_REQUIRE(value >= low && value <= high, ErrorCode::kBadInput,
                  "{}: attribute {} is {}, expected {}..{}", path.string(), name, value, low, high);
  return value;
}

void DumpReader::Impl::read_geometry() {
  KvGeometry& g = meta.geometry;
  g.n_layers = static_cast<int>(bounded("n_layers", 1, kMaxLayers));
  g.n_heads = static_cast<int>(bounded("n_heads", 1, kMaxHeads));
  g.n_kv_heads = static_cast<int>(bounded("n_kv_heads", 1, g.n_heads));
  g.head_dim = static_cast<int>(bounded("head_dim", 1, kMaxHeadDim));
  MILLION_REQUIRE(g.n_heads % g.n_kv_heads == 0, ErrorCode::kBadInput,
                  "{}: {} query heads are no multiple of {} KV heads", path.string(), g.n_heads,
                  g.n_kv_heads);
  try {
    const auto p = rope_from_json(Json::parse(file.text_attribute("rope_params")), g.head_dim);
    if (p.n_rot > 0) g.rope = Rope(p);  // 0: a model without RoPE
  } catch (const Json::exception& e) {
    fail(ErrorCode::kBadInput, "{}: attribute rope_params: {}", path.string(), e.what());
  }
}

void DumpReader::Impl::read_selection() {
  meta.model = file.text_attribute("model");
  meta.model_sha256 = file.text_attribute("model_sha256");
  meta.text_name = file.text_attribute("text_name");
  meta.text_sha256 = file.text_attribute("text_sha256");
  meta.tokenizer = file.text_attribute("tokenizer");
  meta.compute = file.text_attribute("compute");
  meta.context = static_cast<int>(bounded("context", 1, kMaxTokens - 1));
  meta.n_tokens = bounded("n_tokens", 1, kMaxTokens - 1);
  meta.seed = static_cast<uint64_t>(file.int_attribute("seed"));
  const std::string names = file.text_attribute("tensors");
  for (std::size_t begin = 0; begin <= names.size();) {
    const std::size_t end = std::min(names.find(',', begin), names.size());
    meta.tensors.push_back(parse_dump_tensor(std::string_view(names).substr(begin, end - begin)));
    begin = end + 1;
  }
  for (const auto& [name, limit, out] :
       {std::tuple{"layers", meta.geometry.n_layers, &meta.layers},
        std::tuple{"kv_heads", meta.geometry.n_kv_heads, &meta.kv_heads}}) {
    for (int64_t value : file.ints_attribute(name))
      out->push_back(value >= 0 && value < limit ? static_cast<int>(value) : -1);
    MILLION_REQUIRE(is_selection(*out, limit), ErrorCode::kBadInput,
                    "{}: attribute {}: expected ascending numbers in 0..{}", path.string(), name,
                    limit - 1);
  }
}

void DumpReader::Impl::check_layout() {
  const auto n = static_cast<uint64_t>(meta.n_tokens);
  const auto d = static_cast<uint64_t>(meta.geometry.head_dim);
  const std::array<uint64_t, 1> zero = {0}, all = {n};
  file.require_dims("/positions", Hdf5Type::kInt32, {n});
  std::vector<int32_t> positions(n);
  file.read("/positions", zero, all, positions.data());
  for (uint64_t t = 0; t < n; ++t)
    MILLION_REQUIRE(positions[t] == static_cast<int64_t>(t) % meta.context, ErrorCode::kBadInput,
                    "{}: token {} stands at position {}, expected {} (windows of {})",
                    path.string(), t, positions[t], static_cast<int64_t>(t) % meta.context,
                    meta.context);
  if (file.exists("/tokens")) {
    file.require_dims("/tokens", Hdf5Type::kInt32, {n});
    meta.tokens.resize(n);
    file.read("/tokens", zero, all, meta.tokens.data());
    MILLION_REQUIRE(tokens_sha256(meta.tokens) == meta.text_sha256, ErrorCode::kBadInput,
                    "{}: the tokens do not have the SHA-256 of attribute text_sha256; the file is "
                    "damaged, write it again",
                    path.string());
  }
  for (int layer : meta.layers)
    for (DumpTensor t : meta.tensors)
      file.require_dims(dataset_name(layer, t), Hdf5Type::kF16, {meta.heads(t).size(), n, d});
}

DumpReader::DumpReader(const std::filesystem::path& path) : impl_(std::make_unique<Impl>(path)) {
  const Hdf5File& file = impl_->file;
  MILLION_REQUIRE(file.has_attribute("format") && file.text_attribute("format") == kFormat,
                  ErrorCode::kBadInput, "{} is no {}, expected a file written by kv-dump",
                  path.string(), kFormat);
  const int64_t version = file.int_attribute("version");
  MILLION_REQUIRE(version == kVersion, ErrorCode::kBadInput,
                  "{}: format version {}, this program reads {}", path.string(), version, kVersion);
  impl_->read_geometry();
  impl_->read_selection();
  impl_->check_layout();
}

DumpReader::~DumpReader() = default;
DumpReader::DumpReader(DumpReader&&) noexcept = default;

const DumpMeta& DumpReader::meta() const { return impl_->meta; }
const std::filesystem::path& DumpReader::path() const { return impl_->path; }

bool DumpReader::has(int layer, DumpTensor t) const {
  return std::binary_search(meta().layers.begin(), meta().layers.end(), layer) &&
         std::binary_search(meta().tensors.begin(), meta().tensors.end(), t);
}

AlignedVector<uint16_t> DumpReader::read_half(int layer, DumpTensor t, int head, int64_t begin,
                                              int64_t end) const {
  const auto heads = meta().heads(t);
  const auto at = std::lower_bound(heads.begin(), heads.end(), head);
  MILLION_REQUIRE(has(layer, t) && at != heads.end() && *at == head, ErrorCode::kUsage,
                  "{} holds no {} of layer {} head {}; write it with kv-dump --tensors {}",
                  path().string(), dump_tensor_name(t), layer, head, dump_tensor_name(t));
  MILLION_REQUIRE(begin >= 0 && begin <= end && end <= meta().n_tokens, ErrorCode::kUsage,
                  "{}: tokens [{}, {}), expected inside [0, {})", path().string(), begin, end,
                  meta().n_tokens);
  const auto d = static_cast<uint64_t>(meta().geometry.head_dim);
  AlignedVector<uint16_t> out(static_cast<std::size_t>(end - begin) * d);
  if (out.empty()) return out;
  const std::array<uint64_t, 3> start = {static_cast<uint64_t>(at - heads.begin()),
                                         static_cast<uint64_t>(begin), 0};
  const std::array<uint64_t, 3> count = {1, static_cast<uint64_t>(end - begin), d};
  impl_->file.read(dataset_name(layer, t), start, count, out.data());
  return out;
}

AlignedVector<float> DumpReader::read(int layer, DumpTensor t, int head, int64_t begin,
                                      int64_t end) const {
  const auto half = read_half(layer, t, head, begin, end);
  AlignedVector<float> out(half.size());
  ops().f16_to_f32(half.data(), out.data(), half.size());
  return out;
}

}  // namespace million
