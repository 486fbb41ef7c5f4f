// SPDX-License-Identifier: Apache-2.0
#include "lib/model/gguf.h"

#include "lib/core/checked.h"
#include "lib/core/printable.h"
#include "lib/model/mapped_file.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <iterator>
#include <limits>

namespace million {

static_assert(std::endian::native == std::endian::little, "GGUF is read as little-endian memory");

namespace {

constexpr uint64_t kMaxKeys = 1 << 16;     // real files have 20-60
constexpr uint64_t kMaxTensors = 1 << 18;  // the largest mixture models have some 10 000
constexpr uint64_t kMaxNameBytes = 65535;  // the specification's limit for keys
constexpr uint64_t kMaxAlignment = 1 << 20;
constexpr uint64_t kMaxBytes = std::numeric_limits<int64_t>::max();

constexpr std::size_t kTypeBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
constexpr const char* kTypeNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                      "bool", "string", "array", "u64", "i64", "f64"};

struct TypeName {
  uint32_t id;
  const char* name;
  std::optional<BlockType> block;  // empty: known to ggml, not to us
};

// ggml's tensor types by number; the gaps are types that ggml removed.
constexpr TypeName kTensorTypes[] = {{0, "F32", BlockType::kF32},
                                     {1, "F16", BlockType::kF16},
                                     {2, "Q4_0", BlockType::kQ4_0},
                                     {3, "Q4_1", BlockType::kQ4_1},
                                     {6, "Q5_0", BlockType::kQ5_0},
                                     {7, "Q5_1", BlockType::kQ5_1},
                                     {8, "Q8_0", BlockType::kQ8_0},
                                     {9, "Q8_1", {}},
                                     {10, "Q2_K", {}},
                                     {11, "Q3_K", {}},
                                     {12, "Q4_K", BlockType::kQ4_K},
                                     {13, "Q5_K", BlockType::kQ5_K},
                                     {14, "Q6_K", BlockType::kQ6_K},
                                     {15, "Q8_K", {}},
                                     {16, "IQ2_XXS", {}},
                                     {17, "IQ2_XS", {}},
                                     {18, "IQ3_XXS", {}},
                                     {19, "IQ1_S", {}},
                                     {20, "IQ4_NL", {}},
                                     {21, "IQ3_S", {}},
                                     {22, "IQ2_S", {}},
                                     {23, "IQ4_XS", {}},
                                     {24, "I8", {}},
                                     {25, "I16", {}},
                                     {26, "I32", {}},
                                     {27, "I64", {}},
                                     {28, "F64", {}},
                                     {29, "IQ1_M", {}},
                                     {30, "BF16", BlockType::kBF16},
                                     {34, "TQ1_0", {}},
                                     {35, "TQ2_0", {}},
                                     {39, "MXFP4", {}}};

template <class T>
T load(std::string_view bytes, uint64_t index = 0) {
  T value;
  std::memcpy(&value, bytes.data() + index * sizeof(T), sizeof(T));
  return value;
}

/// Element `index` of an integer value; empty when it is no integer or not representable.
std::optional<int64_t> integer_at(GgufType type, std::string_view bytes, uint64_t index) {
  switch (type) {
    case GgufType::kU8:
      return load<uint8_t>(bytes, index);
    case GgufType::kI8:
      return load<int8_t>(bytes, index);
    case GgufType::kU16:
      return load<uint16_t>(bytes, index);
    case GgufType::kI16:
      return load<int16_t>(bytes, index);
    case GgufType::kU32:
      return load<uint32_t>(bytes, index);
    case GgufType::kI32:
      return load<int32_t>(bytes, index);
    case GgufType::kI64:
      return load<int64_t>(bytes, index);
    case GgufType::kU64: {
      const auto value = load<uint64_t>(bytes, index);
      if (value > kMaxBytes) return {};
      return static_cast<int64_t>(value);
    }
    default:
      return {};
  }
}

}  // namespace

/// One pass over the file: header, metadata, tensor table, then the ranges of the tensor data.
class GgufParser {
 public:
  explicit GgufParser(GgufFile& file) : f_(file) {}

  void parse() {
    const auto [n_tensors, n_keys] = parse_header();
    for (uint64_t i = 0; i < n_keys; ++i) parse_key();
    f_.tensors_.reserve(n_tensors);
    for (uint64_t i = 0; i < n_tensors; ++i) parse_tensor();
    place_tensors();
  }

 private:
  uint64_t left() const { return f_.bytes_.size() - at_; }

  std::string_view take(uint64_t n, const char* what) {
    MILLION_REQUIRE(n <= left(), ErrorCode::kBadInput,
                    "{}: {} needs {} bytes at offset {}, but only {} are left; the file is "
                    "truncated or damaged, fetch it again",
                    f_.name_, what, n, at_, left());
    const auto bytes = f_.bytes_.substr(at_, n);
    at_ += n;
    return bytes;
  }
  template <class T>
  T read(const char* what) {
    return load<T>(take(sizeof(T), what));
  }
  std::string_view read_string(const char* what, uint64_t max_bytes = kMaxBytes) {
    const auto n = read<uint64_t>(what);
    MILLION_REQUIRE(n <= max_bytes, ErrorCode::kBadInput,
                    "{}: {} at offset {} is {} bytes long, at most {} are allowed", f_.name_, what,
                    at_, n, max_bytes);
    return take(n, what);
  }
  /// Refuses a count whose smallest possible content does not fit into the rest of the file.
  void check_count(uint64_t n, uint64_t smallest, uint64_t limit, std::string_view what) const {
    const uint64_t most = std::min(limit, left() / smallest);
    MILLION_REQUIRE(n <= most, ErrorCode::kBadInput,
                    "{}: {} {} are declared at offset {}, but at most {} fit; the file is "
                    "truncated or damaged, fetch it again",
                    f_.name_, n, what, at_, most);
  }

  std::pair<uint64_t, uint64_t> parse_header() {
    const auto magic = take(4, "magic");
    MILLION_REQUIRE(magic != "FUGG", ErrorCode::kBadInput,
                    "{}: big-endian GGUF; convert it to little-endian", f_.name_);
    MILLION_REQUIRE(magic == "GGUF", ErrorCode::kBadInput,
                    "{}: starts with \"{}\", expected \"GGUF\"; this is no GGUF model", f_.name_,
                    printable(magic));
    f_.version_ = read<uint32_t>("version");
    MILLION_REQUIRE((f_.version_ & 0xFFFFu) != 0, ErrorCode::kBadInput,
                    "{}: version {:#010x}: big-endian GGUF; convert it to little-endian", f_.name_,
                    f_.version_);
    MILLION_REQUIRE(f_.version_ == 2 || f_.version_ == 3, ErrorCode::kBadInput,
                    "{}: GGUF version {}, supported: 2 and 3; convert the model again", f_.name_,
                    f_.version_);
    const auto n_tensors = read<uint64_t>("tensor count");
    const auto n_keys = read<uint64_t>("key count");
    check_count(n_keys, 8 + 1 + 4 + 1, kMaxKeys, "metadata keys");
    check_count(n_tensors, 8 + 1 + 4 + 8 + 4 + 8, kMaxTensors, "tensors");
    return {n_tensors, n_keys};
  }

  GgufType read_type(std::string_view key) {
    const auto id = read<uint32_t>("value type");
    MILLION_REQUIRE(id < std::size(kTypeNames), ErrorCode::kBadInput,
                    "{}: key {} has the unknown value type {}, expected 0 to {}", f_.name_,
                    printable(key), id, std::size(kTypeNames) - 1);
    return static_cast<GgufType>(id);
  }

  void parse_key() {
    const auto key = read_string("metadata key", kMaxNameBytes);
    MILLION_REQUIRE(!key.empty(), ErrorCode::kBadInput, "{}: empty metadata key at offset {}",
                    f_.name_, at_);
    GgufValue value;
    value.type = read_type(key);
    if (value.type == GgufType::kArray)
      parse_array(key, value);
    else if (value.type == GgufType::kString)
      value.bytes = read_string("string value");
    else
      value.bytes = take(kTypeBytes[static_cast<int>(value.type)], "value");
    const bool fresh = f_.values_.emplace(key, std::move(value)).second;
    MILLION_REQUIRE(fresh, ErrorCode::kBadInput, "{}: metadata key {} occurs twice", f_.name_,
                    printable(key));
  }

  void parse_array(std::string_view key, GgufValue& value) {
    value.element = read_type(key);
    MILLION_REQUIRE(value.element != GgufType::kArray, ErrorCode::kBadInput,
                    "{}: key {} is an array of arrays, which is not supported", f_.name_,
                    printable(key));
    value.count = read<uint64_t>("array length");
    const auto what = "elements of " + printable(key);
    if (value.element == GgufType::kString) {
      check_count(value.count, 8, kMaxBytes, what);  // a string is at least its length
      value.strings.reserve(value.count);
      for (uint64_t i = 0; i < value.count; ++i) value.strings.push_back(read_string("string"));
      return;
    }
    const uint64_t size = kTypeBytes[static_cast<int>(value.element)];
    check_count(value.count, size, kMaxBytes, what);
    value.bytes = take(value.count * size, "array");
  }

  BlockType read_tensor_type(std::string_view name) {
    const auto id = read<uint32_t>("tensor type");
    for (const TypeName& t : kTensorTypes) {
      if (t.id != id) continue;
      MILLION_REQUIRE(t.block.has_value(), ErrorCode::kBadInput, "{}: {} is {}, supported: {}",
                      f_.name_, printable(name), t.name, supported_block_types());
      return *t.block;
    }
    fail(ErrorCode::kBadInput, "{}: {} has the unknown tensor type {}, supported: {}", f_.name_,
         printable(name), id, supported_block_types());
  }

  void parse_tensor() {
    GgufTensor t;
    t.name = read_string("tensor name", kMaxNameBytes);
    MILLION_REQUIRE(!t.name.empty(), ErrorCode::kBadInput, "{}: empty tensor name at offset {}",
                    f_.name_, at_);
    const std::string where = f_.name_ + ": size of " + printable(t.name);
    const auto n_dims = read<uint32_t>("tensor rank");
    MILLION_REQUIRE(n_dims >= 1 && n_dims <= 4, ErrorCode::kBadInput,
                    "{}: {} has {} dimensions, expected 1 to 4", f_.name_, printable(t.name),
                    n_dims);
    uint64_t n_values = 1;
    for (uint32_t d = 0; d < n_dims; ++d) {
      t.dims.push_back(read<uint64_t>("tensor size"));
      MILLION_REQUIRE(t.dims.back() > 0, ErrorCode::kBadInput, "{}: {} has a dimension of size 0",
                      f_.name_, printable(t.name));
      n_values = checked_mul(n_values, t.dims.back(), where.c_str());
    }
    t.type = read_tensor_type(t.name);
    t.offset = read<uint64_t>("tensor offset");
    const BlockShape shape = block_shape(t.type);
    const auto values = static_cast<uint64_t>(shape.values);
    MILLION_REQUIRE(t.dims[0] % values == 0, ErrorCode::kBadInput,
                    "{}: {} has rows of {} values, expected a multiple of {} for {}", f_.name_,
                    printable(t.name), t.dims[0], values, block_type_name(t.type));
    t.bytes = checked_mul(n_values / values, shape.bytes, where.c_str());
    const bool fresh = f_.tensor_index_.emplace(t.name, f_.tensors_.size()).second;
    MILLION_REQUIRE(fresh, ErrorCode::kBadInput, "{}: tensor {} occurs twice", f_.name_,
                    printable(t.name));
    f_.tensors_.push_back(std::move(t));
  }

  uint64_t alignment() const {
    constexpr std::string_view kKey = "general.alignment";
    const GgufValue* value = f_.find(kKey);
    if (value == nullptr) return 32;
    MILLION_REQUIRE(value->type == GgufType::kU32, ErrorCode::kBadInput,
                    "{}: {} is {}, expected u32", f_.name_, kKey, gguf_type_name(value->type));
    const auto n = load<uint32_t>(value->bytes);
    MILLION_REQUIRE(std::has_single_bit(n) && n >= 8 && n <= kMaxAlignment, ErrorCode::kBadInput,
                    "{}: {} is {}, expected a power of two from 8 to {}", f_.name_, kKey, n,
                    kMaxAlignment);
    return n;
  }

  void place_tensors() {
    const uint64_t align = alignment();
    if (f_.tensors_.empty()) return;
    const uint64_t start = checked_add(at_, align - 1, "start of the tensor data") & ~(align - 1);
    const uint64_t size = f_.bytes_.size() - std::min<uint64_t>(start, f_.bytes_.size());
    for (GgufTensor& t : f_.tensors_) {
      MILLION_REQUIRE(t.offset % align == 0, ErrorCode::kBadInput,
                      "{}: {} lies at offset {}, expected a multiple of {}", f_.name_,
                      printable(t.name), t.offset, align);
      const std::string where = f_.name_ + ": end of " + printable(t.name);
      const uint64_t end = checked_add(t.offset, t.bytes, where.c_str());
      MILLION_REQUIRE(end <= size, ErrorCode::kBadInput,
                      "{}: {} ends at byte {} of the tensor data, which has {} bytes; the file is "
                      "truncated or damaged, fetch it again",
                      f_.name_, printable(t.name), end, size);
      t.data = reinterpret_cast<const std::byte*>(f_.bytes_.data() + start + t.offset);
      f_.tensor_bytes_ = checked_add(f_.tensor_bytes_, t.bytes, "bytes of all GGUF tensors");
    }
    check_overlap();
  }

  void check_overlap() const {
    std::vector<const GgufTensor*> order;
    for (const GgufTensor& t : f_.tensors_) order.push_back(&t);
    std::sort(order.begin(), order.end(),
              [](const auto* a, const auto* b) { return a->offset < b->offset; });
    for (std::size_t i = 1; i < order.size(); ++i)
      MILLION_REQUIRE(order[i - 1]->offset + order[i - 1]->bytes <= order[i]->offset,
                      ErrorCode::kBadInput, "{}: tensors {} and {} overlap", f_.name_,
                      printable(order[i - 1]->name), printable(order[i]->name));
  }

  GgufFile& f_;
  uint64_t at_ = 0;
};

std::shared_ptr<const GgufFile> GgufFile::open(const std::filesystem::path& path) {
  auto file = std::make_shared<GgufFile>();
  file->name_ = path.string();
  file->mapping_ = map_file(path, file->bytes_);
  GgufParser(*file).parse();
  return file;
}

std::shared_ptr<const GgufFile> GgufFile::from_memory(std::string bytes, std::string name) {
  auto file = std::make_shared<GgufFile>();
  auto owner = std::make_shared<const std::string>(std::move(bytes));
  file->name_ = std::move(name);
  file->bytes_ = *owner;
  file->mapping_ = std::move(owner);
  GgufParser(*file).parse();
  return file;
}

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
  const auto it = tensor_index_.find(name);
  return it == tensor_index_.end() ? nullptr : &tensors_[it->second];
}

const GgufValue* GgufFile::find(std::string_view key) const {
  const auto it = values_.find(key);
  return it == values_.end() ? nullptr : &it->second;
}

const GgufValue& GgufFile::require(std::string_view key, const char* expected) const {
  const GgufValue* value = find(key);
  MILLION_REQUIRE(value != nullptr, ErrorCode::kBadInput, "{}: key {} ({}) is missing", name_, key,
                  expected);
  return *value;
}

uint64_t GgufFile::get_uint(std::string_view key, std::optional<uint64_t> missing) const {
  if (missing && !find(key)) return *missing;
  const GgufValue& v = require(key, "integer");
  const auto n = integer_at(v.type, v.bytes, 0);
  MILLION_REQUIRE(n && *n >= 0, ErrorCode::kBadInput,
                  "{}: key {} is {}, expected an integer from 0 to 2^63 - 1", name_, key,
                  n ? fmt::format("{}", *n) : std::string(gguf_type_name(v.type)));
  return static_cast<uint64_t>(*n);
}

double GgufFile::get_float(std::string_view key, std::optional<double> missing) const {
  if (missing && !find(key)) return *missing;
  const GgufValue& v = require(key, "f32");
  if (v.type == GgufType::kF32) return static_cast<double>(load<float>(v.bytes));
  MILLION_REQUIRE(v.type == GgufType::kF64, ErrorCode::kBadInput, "{}: key {} is {}, expected f32",
                  name_, key, gguf_type_name(v.type));
  return load<double>(v.bytes);
}

bool GgufFile::get_bool(std::string_view key, std::optional<bool> missing) const {
  if (missing && !find(key)) return *missing;
  const GgufValue& v = require(key, "bool");
  MILLION_REQUIRE(v.type == GgufType::kBool, ErrorCode::kBadInput,
                  "{}: key {} is {}, expected bool", name_, key, gguf_type_name(v.type));
  const auto byte = load<uint8_t>(v.bytes);
  MILLION_REQUIRE(byte <= 1, ErrorCode::kBadInput, "{}: key {} is {}, expected 0 or 1", name_, key,
                  byte);
  return byte == 1;
}

std::string_view GgufFile::get_string(std::string_view key,
                                      std::optional<std::string_view> missing) const {
  if (missing && !find(key)) return *missing;
  const GgufValue& v = require(key, "string");
  MILLION_REQUIRE(v.type == GgufType::kString, ErrorCode::kBadInput,
                  "{}: key {} is {}, expected string", name_, key, gguf_type_name(v.type));
  return v.bytes;
}

const std::vector<std::string_view>& GgufFile::get_strings(std::string_view key) const {
  const GgufValue& v = require(key, "array of strings");
  MILLION_REQUIRE(v.type == GgufType::kArray && v.element == GgufType::kString,
                  ErrorCode::kBadInput, "{}: key {} is {} of {}, expected an array of strings",
                  name_, key, gguf_type_name(v.type), gguf_type_name(v.element));
  return v.strings;
}

std::vector<int32_t> GgufFile::get_ints(std::string_view key) const {
  const GgufValue& v = require(key, "array of i32");
  std::vector<int32_t> out;
  const bool array = v.type == GgufType::kArray && v.element != GgufType::kString;
  if (array) out.reserve(v.count);
  for (uint64_t i = 0; array && i < v.count; ++i) {
    const auto n = integer_at(v.element, v.bytes, i);
    MILLION_REQUIRE(n && std::in_range<int32_t>(*n), ErrorCode::kBadInput,
                    "{}: element {} of {} is no 32-bit integer (type {})", name_, i, key,
                    gguf_type_name(v.element));
    out.push_back(static_cast<int32_t>(*n));
  }
  MILLION_REQUIRE(array, ErrorCode::kBadInput, "{}: key {} is {} of {}, expected an array of i32",
                  name_, key, gguf_type_name(v.type), gguf_type_name(v.element));
  return out;
}

const char* gguf_type_name(GgufType type) { return kTypeNames[static_cast<int>(type)]; }

const char* block_type_name(BlockType type) {
  for (const TypeName& t : kTensorTypes)
    if (t.block == type) return t.name;
  return "?";
}

std::string supported_block_types() {
  std::string text;
  for (const TypeName& t : kTensorTypes)
    if (t.block) text += (text.empty() ? "" : ", ") + std::string(t.name);
  return text;
}

}  // namespace million
