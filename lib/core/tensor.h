// SPDX-License-Identifier: Apache-2.0
// Memory for numbers: a 64-byte-aligned vector, and a bag of named f32 tensors with attributes (the
// common form of codebook and reference files).
#pragma once

#include "lib/core/json.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <new>
#include <string>
#include <vector>

namespace million {

template <class T>
struct AlignedAllocator {
  using value_type = T;
  static constexpr std::size_t kAlign = 64;  // one cache line, one AVX-512 register
  AlignedAllocator() = default;
  template <class U>
  AlignedAllocator(const AlignedAllocator<U>&) {}
  T* allocate(std::size_t n) {
    return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(kAlign)));
  }
  void deallocate(T* p, std::size_t) { ::operator delete(p, std::align_val_t(kAlign)); }
  friend bool operator==(const AlignedAllocator&, const AlignedAllocator&) { return true; }
};

/// std::vector whose data() is 64-byte aligned.
template <class T>
using AlignedVector = std::vector<T, AlignedAllocator<T>>;

/// Dense row-major f32 array of any rank.
struct NamedTensor {
  std::vector<std::size_t> shape;
  std::vector<float> data;
};

/// What a codec saves and loads: tensors by name plus JSON attributes (spec, calibration, seed).
struct TensorBag {
  std::map<std::string, NamedTensor> tensors;
  Json attributes = Json::object();
};

}  // namespace million
