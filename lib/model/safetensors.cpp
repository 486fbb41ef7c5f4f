// SPDX-License-Identifier: Apache-2.0
#include "lib/model/safetensors.h"

#include "lib/core/checked.h"
#include "lib/core/printable.h"
#include "lib/model/json_file.h"
#include "lib/model/mapped_file.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <map>
#include <set>

namespace million {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

namespace {

constexpr uint64_t kMaxHeader = 100'000'000;  // the limit of the format's own library
constexpr std::size_t kMaxTensors = 1 << 18;
constexpr std::size_t kMaxRank = 8;
constexpr std::size_t kMaxName = 4096;
constexpr std::size_t kMaxShards = 1024;
constexpr std::size_t kMaxFileName = 255;  // of Linux file systems
constexpr uint64_t kMaxIndex = 64 << 20;
constexpr std::string_view kIndexName = "model.safetensors.index.json";
constexpr uint64_t kUnset = std::numeric_limits<uint64_t>::max();

struct Dtype {
  std::string_view name;
  uint64_t bits;
};

// A type that is not here is refused: its ranges could not be checked.
constexpr Dtype kDtypes[] = {{"F32", 32},    {"F16", 16},    {"BF16", 16},   {"F64", 64},
                             {"I8", 8},      {"U8", 8},      {"BOOL", 8},    {"I16", 16},
                             {"U16", 16},    {"I32", 32},    {"U32", 32},    {"I64", 64},
                             {"U64", 64},    {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8},
                             {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F4", 4},      {"C64", 64}};

const Dtype* find_dtype(std::string_view name) {
  for (const Dtype& d : kDtypes)
    if (d.name == name) return &d;
  return nullptr;
}

/// Takes the events of the header's JSON; what the format has no place for is refused at once, so
/// that neither depth nor size of foreign JSON matters.
class HeaderEvents final : public nlohmann::json_sax<SortedJson> {
 public:
  HeaderEvents(const std::string& file, std::vector<SafeTensor>& out) : file_(file), out_(out) {}

  bool null() override { return refuse("null"); }
  bool boolean(bool) override { return refuse("a boolean"); }
  bool number_integer(number_integer_t) override { return refuse("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return refuse("a fraction"); }
  bool binary(binary_t&) override { return refuse("binary data"); }

  bool number_unsigned(number_unsigned_t n) override {
    if (at_ == At::kShape) {
      SafeTensor& t = out_.back();
      MILLION_REQUIRE(t.shape.size() < kMaxRank, ErrorCode::kBadInput,
                      "{}: {} has more than {} dimensions", file_, printable(t.name), kMaxRank);
      t.shape.push_back(n);
    } else if (at_ == At::kOffsets) {
      MILLION_REQUIRE(n_offsets_ < 2, ErrorCode::kBadInput, "{}: {} has more than two data_offsets",
                      file_, printable(out_.back().name));
      offsets_[n_offsets_++] = n;
    } else {
      refuse("a number");
    }
    return true;
  }

  bool string(string_t& text) override {
    if (at_ == At::kMetadata) return true;  // free text about the file
    if (at_ != At::kTensor || field_ != "dtype") return refuse("a string");
    const Dtype* type = find_dtype(text);
    MILLION_REQUIRE(type != nullptr, ErrorCode::kBadInput, "{}: {} has the unknown dtype {}", file_,
                    printable(out_.back().name), printable(text));
    out_.back().dtype = type->name;
    return true;
  }

  bool start_object(std::size_t) override {
    if (at_ == At::kStart) return move(At::kTop);
    if (at_ != At::kTop) return refuse("an object");
    keys_.clear();
    if (field_ == "__metadata__") return move(At::kMetadata);
    MILLION_REQUIRE(out_.size() < kMaxTensors, ErrorCode::kBadInput,
                    "{}: more than {} tensors are declared", file_, kMaxTensors);
    MILLION_REQUIRE(!field_.empty(), ErrorCode::kBadInput, "{}: a tensor has the empty name",
                    file_);
    out_.emplace_back().name = field_;
    offsets_[0] = offsets_[1] = kUnset;
    n_offsets_ = 0;
    return move(At::kTensor);
  }

  bool key(string_t& text) override {
    MILLION_REQUIRE(text.size() <= kMaxName, ErrorCode::kBadInput,
                    "{}: a name of {} bytes in the header, at most {} are allowed", file_,
                    text.size(), kMaxName);
    auto& known = at_ == At::kTop ? names_ : keys_;
    MILLION_REQUIRE(known.insert(text).second, ErrorCode::kBadInput,
                    "{}: {} occurs twice in the header", file_, printable(text));
    MILLION_REQUIRE(
        at_ != At::kTensor || text == "dtype" || text == "shape" || text == "data_offsets",
        ErrorCode::kBadInput, "{}: {} has the unknown field {}", file_, printable(out_.back().name),
        printable(text));
    field_ = text;
    return true;
  }

  bool end_object() override {
    if (at_ == At::kTop) return move(At::kEnd);
    if (at_ == At::kTensor) finish_tensor();
    return move(At::kTop);
  }

  bool start_array(std::size_t) override {
    if (at_ != At::kTensor || field_ == "dtype") return refuse("an array");
    return move(field_ == "shape" ? At::kShape : At::kOffsets);
  }
  bool end_array() override { return move(At::kTensor); }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    fail(ErrorCode::kBadInput,
         "{}: the header is no valid JSON at byte {}; the file is truncated or damaged, fetch it "
         "again",
         file_, 8 + position);
  }

 private:
  enum class At { kStart, kTop, kMetadata, kTensor, kShape, kOffsets, kEnd };

  bool move(At to) {
    at_ = to;
    return true;
  }
  [[noreturn]] bool refuse(const char* got) const {
    fail(ErrorCode::kBadInput,
         "{}: {} at {} in the header; expected name -> dtype, shape, data_offsets", file_, got,
         field_.empty() ? "the start" : printable(field_));
  }
  void finish_tensor() {
    SafeTensor& t = out_.back();
    const std::string where = file_ + ": " + printable(t.name);
    MILLION_REQUIRE(keys_.size() == 3 && n_offsets_ == 2, ErrorCode::kBadInput,
                    "{} needs dtype, shape and two data_offsets", where);
    MILLION_REQUIRE(offsets_[0] <= offsets_[1], ErrorCode::kBadInput,
                    "{} has the data_offsets {} to {}", where, offsets_[0], offsets_[1]);
    t.begin = offsets_[0];
    t.bytes = offsets_[1] - offsets_[0];
    uint64_t bits = find_dtype(t.dtype)->bits;
    for (const uint64_t n : t.shape) bits = checked_mul(bits, n, where.c_str());
    MILLION_REQUIRE(bits % 8 == 0 && bits / 8 == t.bytes, ErrorCode::kBadInput,
                    "{} of shape [{}] and dtype {} takes {} bits, its data_offsets {} to {} hold "
                    "{} bytes",
                    where, fmt::join(t.shape, ", "), t.dtype, bits, offsets_[0], offsets_[1],
                    t.bytes);
  }

  const std::string& file_;
  std::vector<SafeTensor>& out_;
  At at_ = At::kStart;
  std::string field_;
  std::set<std::string, std::less<>> names_, keys_;  // of the header; of the open tensor
  uint64_t offsets_[2] = {kUnset, kUnset};
  int n_offsets_ = 0;
};

}  // namespace

void SafetensorsFile::read_header(std::string_view header) {
  MILLION_REQUIRE(header.starts_with('{'), ErrorCode::kBadInput,
                  "{}: the header starts with \"{}\", expected a JSON object; this is no "
                  "safetensors file",
                  name_, printable(header.substr(0, 8)));
  HeaderEvents events(name_, tensors_);
  SortedJson::sax_parse(header, &events);
  for (std::size_t i = 0; i < tensors_.size(); ++i) index_.emplace(tensors_[i].name, i);
}

/// Sets the data pointers; ranges must follow each other from the first byte to the last.
void SafetensorsFile::place(std::string_view data) {
  std::vector<SafeTensor*> order;
  for (SafeTensor& t : tensors_) order.push_back(&t);
  std::sort(order.begin(), order.end(), [](const SafeTensor* a, const SafeTensor* b) {
    return a->begin != b->begin ? a->begin < b->begin : a->bytes < b->bytes;
  });
  uint64_t end = 0;
  for (SafeTensor* t : order) {
    MILLION_REQUIRE(
        t->begin == end, ErrorCode::kBadInput,
        "{}: {} begins at byte {} of the data, expected {}: ranges must neither overlap "
        "nor leave holes",
        name_, printable(t->name), t->begin, end);
    MILLION_REQUIRE(t->bytes <= data.size() - end, ErrorCode::kBadInput,
                    "{}: {} ends at byte {} of the data, which has {} bytes; the file is truncated "
                    "or damaged, fetch it again",
                    name_, printable(t->name), end + t->bytes, data.size());
    t->data = reinterpret_cast<const std::byte*>(data.data() + t->begin);
    end += t->bytes;
  }
  MILLION_REQUIRE(end == data.size(), ErrorCode::kBadInput,
                  "{}: {} bytes of data lie behind the last tensor", name_, data.size() - end);
}

void SafetensorsFile::parse() {
  uint64_t length = 0;
  MILLION_REQUIRE(bytes_.size() >= sizeof length, ErrorCode::kBadInput,
                  "{}: has {} bytes, a safetensors file starts with a length of 8", name_,
                  bytes_.size());
  std::memcpy(&length, bytes_.data(), sizeof length);
  const uint64_t most = std::min<uint64_t>(kMaxHeader, bytes_.size() - sizeof length);
  MILLION_REQUIRE(length <= most, ErrorCode::kBadInput,
                  "{}: a header of {} bytes is declared, at most {} are possible; the file is "
                  "truncated, damaged or no safetensors file",
                  name_, length, most);
  read_header(bytes_.substr(sizeof length, length));
  place(bytes_.substr(sizeof length + length));
}

std::shared_ptr<const SafetensorsFile> SafetensorsFile::open(const std::filesystem::path& path) {
  auto file = std::make_shared<SafetensorsFile>();
  file->name_ = path.string();
  file->mapping_ = map_file(path, file->bytes_);
  file->parse();
  return file;
}

std::shared_ptr<const SafetensorsFile> SafetensorsFile::from_memory(std::string bytes,
                                                                    std::string name) {
  auto file = std::make_shared<SafetensorsFile>();
  auto owner = std::make_shared<const std::string>(std::move(bytes));
  file->name_ = std::move(name);
  file->bytes_ = *owner;
  file->mapping_ = std::move(owner);
  file->parse();
  return file;
}

const SafeTensor* SafetensorsFile::find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

namespace {

/// Tensor -> shard, as the index says.
std::map<std::string, std::string> read_index(const std::filesystem::path& path) {
  const SortedJson json = read_json_object(path, kMaxIndex);
  const auto map = json.find("weight_map");
  MILLION_REQUIRE(map != json.end() && map->is_object() && !map->empty(), ErrorCode::kBadInput,
                  "{}: weight_map is missing or empty, expected tensor -> shard", path.string());
  std::map<std::string, std::string> out;
  for (const auto& [tensor, shard] : map->items()) {
    MILLION_REQUIRE(shard.is_string(), ErrorCode::kBadInput, "{}: the shard of {} is {}",
                    path.string(), printable(tensor), shard.type_name());
    const auto& file = shard.get_ref<const std::string&>();
    // A name with a slash would lead out of the folder.
    MILLION_REQUIRE(file.ends_with(".safetensors") && file.find('/') == std::string::npos &&
                        file.find('\0') == std::string::npos && file.size() <= kMaxFileName,
                    ErrorCode::kBadInput,
                    "{}: the shard of {} is {}, expected the name of a *.safetensors in the folder",
                    path.string(), printable(tensor), printable(file));
    out.emplace(tensor, file);
  }
  return out;
}

/// The only weights of a folder without an index.
std::string single_file(const std::filesystem::path& folder) {
  constexpr std::string_view kUsual = "model.safetensors";
  std::vector<std::string> found;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.path().extension() == ".safetensors") found.push_back(entry.path().filename());
  if (std::find(found.begin(), found.end(), kUsual) != found.end()) return std::string(kUsual);
  MILLION_REQUIRE(!found.empty(), ErrorCode::kBadInput,
                  "{}: holds neither model.safetensors nor {}; weights in other forms (*.bin, "
                  "*.pth) must be converted first",
                  folder.string(), kIndexName);
  MILLION_REQUIRE(found.size() == 1, ErrorCode::kBadInput,
                  "{}: holds {} *.safetensors files and no {}; fetch the index", folder.string(),
                  found.size(), kIndexName);
  return found[0];
}

void check_index(const std::map<std::string, std::string>& index, const SafetensorsFile& file,
                 const std::string& shard) {
  for (const SafeTensor& t : file.tensors()) {
    const auto it = index.find(t.name);
    MILLION_REQUIRE(it != index.end() && it->second == shard, ErrorCode::kBadInput,
                    "{}: holds the tensor {}, which {} {}", file.name(), printable(t.name),
                    kIndexName,
                    it == index.end() ? "does not name" : "places in " + printable(it->second));
  }
  for (const auto& [tensor, place] : index)
    MILLION_REQUIRE(place != shard || file.find(tensor), ErrorCode::kBadInput,
                    "{}: lacks the tensor {} that {} places there; fetch it again", file.name(),
                    printable(tensor), kIndexName);
}

}  // namespace

std::shared_ptr<const SafetensorsFolder> SafetensorsFolder::open(
    const std::filesystem::path& folder) {
  auto out = std::make_shared<SafetensorsFolder>();
  out->name_ = folder.string();
  const auto index_path = folder / kIndexName;
  std::map<std::string, std::string> index;
  std::set<std::string> names;
  if (std::filesystem::exists(index_path)) {
    index = read_index(index_path);
    for (const auto& [tensor, shard] : index) names.insert(shard);
  } else {
    names.insert(single_file(folder));
  }
  MILLION_REQUIRE(names.size() <= kMaxShards, ErrorCode::kBadInput,
                  "{}: {} shards, at most {} are read", index_path.string(), names.size(),
                  kMaxShards);
  for (const std::string& name : names) {
    MILLION_REQUIRE(std::filesystem::exists(folder / name), ErrorCode::kBadInput,
                    "{}: the shard {} is missing ({} names {} shards); fetch it", folder.string(),
                    printable(name), kIndexName, names.size());
    out->shards_.push_back(SafetensorsFile::open(folder / name));
    if (!index.empty()) check_index(index, *out->shards_.back(), name);
    for (const SafeTensor& t : out->shards_.back()->tensors()) out->tensors_.push_back(&t);
  }
  return out;
}

}  // namespace million
