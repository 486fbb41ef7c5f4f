// SPDX-License-Identifier: Apache-2.0
#include "lib/model/arch_registry.h"

#include "kernels/half.h"
#include "lib/core/error.h"

#include <cmath>
#include <cstring>

namespace million {
namespace {

constexpr Architecture kArchitectures[] = {
    {"llama", load_llama},
};

std::string dims_text(std::span<const uint64_t> dims) {
  return fmt::format("[{}]", fmt::join(dims, ", "));
}

}  // namespace

std::span<const Architecture> architectures() { return kArchitectures; }

const Architecture& find_architecture(const GgufFile& file) {
  const auto name = file.get_string("general.architecture");
  std::string known;
  for (const Architecture& a : kArchitectures) {
    if (a.name == name) return a;
    known += (known.empty() ? "" : ", ") + std::string(a.name);
  }
  fail(ErrorCode::kBadInput, "{}: architecture {} is not supported, known: {}", file.name(),
       printable(name), known);
}

const GgufTensor& TensorSource::take(const std::string& name, const std::vector<uint64_t>& dims) {
  const GgufTensor* t = file_.find_tensor(name);
  MILLION_REQUIRE(t != nullptr, ErrorCode::kBadInput, "{}: tensor {} is missing", file_.name(),
                  name);
  MILLION_REQUIRE(t->dims == dims, ErrorCode::kBadInput,
                  "{}: tensor {} has the shape {}, expected {}", file_.name(), name,
                  dims_text(t->dims), dims_text(dims));
  taken_[static_cast<std::size_t>(t - file_.tensors().data())] = true;
  return *t;
}

WeightView TensorSource::matrix(const std::string& name, int rows, int cols) {
  const GgufTensor& t = take(name, {static_cast<uint64_t>(cols), static_cast<uint64_t>(rows)});
  return {.type = t.type, .data = t.data, .rows = rows, .cols = cols};
}

AlignedVector<float> TensorSource::vector(const std::string& name, int n) {
  const GgufTensor& t = take(name, {static_cast<uint64_t>(n)});
  AlignedVector<float> out(static_cast<std::size_t>(n));
  if (t.type == BlockType::kF32) {
    std::memcpy(out.data(), t.data, t.bytes);
    return out;
  }
  const bool half = t.type == BlockType::kF16;
  MILLION_REQUIRE(half || t.type == BlockType::kBF16, ErrorCode::kBadInput,
                  "{}: vector {} is {}, expected F32, F16 or BF16", file_.name(), name,
                  block_type_name(t.type));
  for (std::size_t i = 0; i < out.size(); ++i) {
    uint16_t bits;
    std::memcpy(&bits, t.data + 2 * i, sizeof bits);
    out[i] = half ? half_to_float(bits) : bf16_to_float(bits);
  }
  return out;
}

AlignedVector<float> TensorSource::optional_vector(const std::string& name, int n) {
  return has(name) ? vector(name, n) : AlignedVector<float>();
}

void TensorSource::finish(std::span<const std::string_view> ignored) const {
  for (std::size_t i = 0; i < taken_.size(); ++i) {
    const std::string_view name = file_.tensors()[i].name;
    bool known = taken_[i];
    for (const auto suffix : ignored) known = known || name.ends_with(suffix);
    MILLION_REQUIRE(known, ErrorCode::kBadInput,
                    "{}: tensor {} has no place in architecture {}; leaving it out would give "
                    "wrong results",
                    file_.name(), printable(name),
                    printable(file_.get_string("general.architecture")));
  }
}

int get_size(const GgufFile& file, const std::string& key, int low, int high,
             std::optional<uint64_t> missing) {
  const uint64_t n = file.get_uint(key, missing);
  MILLION_REQUIRE(n >= static_cast<uint64_t>(low) && n <= static_cast<uint64_t>(high),
                  ErrorCode::kBadInput, "{}: key {} is {}, expected {} to {}", file.name(), key, n,
                  low, high);
  return static_cast<int>(n);
}

float get_real(const GgufFile& file, const std::string& key, double low, double high,
               std::optional<double> missing) {
  const double x = file.get_float(key, missing);
  MILLION_REQUIRE(std::isfinite(x) && x > low && x <= high, ErrorCode::kBadInput,
                  "{}: key {} is {}, expected more than {} and at most {}", file.name(), key, x,
                  low, high);
  return static_cast<float>(x);
}

}  // namespace million
