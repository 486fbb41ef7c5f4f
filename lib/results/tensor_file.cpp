// SPDX-License-Identifier: Apache-2.0
#include "lib/results/tensor_file.h"

#include "lib/core/checked.h"
#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/results/hdf5_file.h"

#include <algorithm>
#include <string>

namespace million {
namespace {

constexpr const char* kFormat = "million-tensors";
constexpr int64_t kVersion = 1;
constexpr std::size_t kMaxTensors = 100000;
constexpr uint64_t kChunkBytes = 1 << 20;

void check_tensor(const std::string& name, const NamedTensor& tensor) {
  MILLION_ASSERT(!name.empty() && name.size() <= 200 && name.front() != '/' && name.back() != '/' &&
                 name.find("//") == std::string::npos);
  MILLION_ASSERT(!tensor.shape.empty() && tensor.shape.size() <= 8);
  std::size_t n = 1;
  for (std::size_t extent : tensor.shape) n *= extent;
  MILLION_ASSERT(n == tensor.data.size());
}

/// Chunks of about 1 MiB: whole trailing axes, then as much of the next as fits. None for a tensor
/// without values, which HDF5 cannot chunk.
std::vector<uint64_t> chunk_of(const std::vector<uint64_t>& dims) {
  if (std::find(dims.begin(), dims.end(), 0u) != dims.end()) return {};
  std::vector<uint64_t> chunk(dims.size(), 1);
  uint64_t bytes = sizeof(float);
  for (std::size_t axis = dims.size(); axis-- > 0;) {
    chunk[axis] = std::clamp<uint64_t>(kChunkBytes / bytes, 1, dims[axis]);
    bytes *= chunk[axis];
    if (chunk[axis] < dims[axis]) break;
  }
  return chunk;
}

std::string dataset_name(const std::string& tensor) { return "/tensors/" + tensor; }

}  // namespace

void save_tensors(const std::filesystem::path& path, const TensorBag& bag) {
  uint64_t bytes = 1 << 20;
  for (const auto& [name, tensor] : bag.tensors) {
    check_tensor(name, tensor);
    bytes += tensor.data.size() * sizeof(float) + 4096;
  }
  require_free_space(path, bytes, path.string());
  auto part = path;
  part += ".part";
  try {
    Hdf5File file = Hdf5File::create(part);
    file.set_attribute("format", std::string(kFormat));
    file.set_attribute("version", kVersion);
    file.set_attribute("attributes", bag.attributes.dump());
    Json shapes = Json::object();
    for (const auto& [name, tensor] : bag.tensors) {
      const std::vector<uint64_t> dims(tensor.shape.begin(), tensor.shape.end());
      shapes[name] = dims;
      file.create_dataset(dataset_name(name), Hdf5Type::kF32, dims, chunk_of(dims));
      if (!tensor.data.empty())
        file.write(dataset_name(name), std::vector<uint64_t>(dims.size(), 0), dims,
                   tensor.data.data());
    }
    file.set_attribute("shapes", shapes.dump());
    file.close();
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(part, ignored);
    throw;
  }
  publish_file(part, path);
}

TensorBag load_tensors(const std::filesystem::path& path) {
  const Hdf5File file = Hdf5File::open(path);
  MILLION_REQUIRE(file.has_attribute("format") && file.text_attribute("format") == kFormat,
                  ErrorCode::kBadInput, "{} holds no {}, expected a codebook file", path.string(),
                  kFormat);
  const int64_t version = file.int_attribute("version");
  MILLION_REQUIRE(version == kVersion, ErrorCode::kBadInput,
                  "{}: format version {}, this program reads {}", path.string(), version, kVersion);
  TensorBag bag;
  bag.attributes = Json::parse(file.text_attribute("attributes"), nullptr, false);
  const Json shapes = Json::parse(file.text_attribute("shapes"), nullptr, false);
  MILLION_REQUIRE(bag.attributes.is_object() && shapes.is_object() && shapes.size() <= kMaxTensors,
                  ErrorCode::kBadInput, "{}: attributes are no JSON objects; the file is damaged",
                  path.string());
  for (const auto& [name, shape] : shapes.items()) {
    bool valid = shape.is_array() && !shape.empty() && shape.size() <= 8;
    for (const Json& extent : shape) valid = valid && extent.is_number_unsigned();
    MILLION_REQUIRE(valid, ErrorCode::kBadInput, "{}: tensor {}: bad shape {}", path.string(), name,
                    shape.dump());
    const auto dims = shape.get<std::vector<uint64_t>>();
    file.require_dims(dataset_name(name), Hdf5Type::kF32, dims);
    NamedTensor tensor;
    tensor.shape.assign(dims.begin(), dims.end());
    uint64_t n = 1;
    for (uint64_t extent : dims) n *= extent;  // require_dims bounded it by the file's size
    tensor.data.resize(n);
    if (n > 0)
      file.read(dataset_name(name), std::vector<uint64_t>(dims.size(), 0), dims,
                tensor.data.data());
    bag.tensors.emplace(name, std::move(tensor));
  }
  return bag;
}

}  // namespace million
