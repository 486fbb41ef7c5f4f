// SPDX-License-Identifier: Apache-2.0
// Memory for numbers: a 64-byte-aligned vector, and a bag of named f32 tensors with attributes (the
// common form of codebook and reference files).
#pragma once

#include "lib/core/huge_pool.h"
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
  AlignedAllocator() = default;
  template <class U>
  AlignedAllocator(const AlignedAllocator<U>&) {}
  T* allocate(std::size_t n) { return static_cast<T*>(huge_allocate(n * sizeof(T))); }
  void deallocate(T* p, std::size_t n) { huge_free(p, n * sizeof(T)); }
  friend bool operator==(const AlignedAllocator&, const AlignedAllocator&) { return true; }
};

/// std::vector whose data() is 64-byte aligned: one cache line, one AVX-512 register.
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
