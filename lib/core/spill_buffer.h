// SPDX-License-Identifier: Apache-2.0
// Large arrays that are written once and read in slabs: small ones are heap memory, large ones an
// unlinked temporary file mapped into memory, whose pages the system may take back at any time.
#pragma once

#include "lib/core/error.h"
#include "lib/core/tensor.h"

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <type_traits>
#include <utility>

namespace million {

/// From this size on a SpillBuffer is a file: 4 MiB, so that a default calibration of a small
/// model never touches the disk.
inline constexpr std::size_t kSpillBytes = std::size_t{4} << 20;

/// Mapping of a temporary file that has no name any more, zero at first; its space is allocated
/// before it is used, so a full disk is an error here and not a signal later.
class SpillFile {
 public:
  SpillFile() = default;
  /// `folder` must exist; empty = TMPDIR or the system's. Error(kNoResources) with the bytes needed
  /// when the disk is full, Error(kBadInput) when the folder cannot be written.
  SpillFile(std::size_t bytes, const std::filesystem::path& folder);
  ~SpillFile();
  SpillFile(SpillFile&& other) noexcept { swap(other); }
  SpillFile& operator=(SpillFile&& other) noexcept {
    swap(other);
    return *this;
  }
  SpillFile(const SpillFile&) = delete;

  void* data() const { return data_; }
  /// Lets go of the pages in memory; the content stays in the file. Safe beside other readers.
  void release() const;

 private:
  void swap(SpillFile& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// An array with a vector's ways. A copy is as large as the original and lies in TMPDIR.
template <class T>
class SpillBuffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  using value_type = T;

  SpillBuffer() = default;
  /// n zeros; see SpillFile for `folder` and errors.
  explicit SpillBuffer(std::size_t n, const std::filesystem::path& folder = {}) {
    if (n * sizeof(T) < kSpillBytes) {
      heap_.resize(n);
      return;
    }
    file_ = SpillFile(n * sizeof(T), folder);
    spilled_ = n;
  }
  SpillBuffer(const AlignedVector<T>& x) : SpillBuffer(x.size()) {
    std::copy(x.begin(), x.end(), begin());
  }
  SpillBuffer(const SpillBuffer& x) : SpillBuffer(x.size()) {
    std::copy(x.begin(), x.end(), begin());
  }
  SpillBuffer(SpillBuffer&& x) noexcept { swap(x); }
  SpillBuffer& operator=(SpillBuffer x) noexcept {
    swap(x);
    return *this;
  }

  std::size_t size() const { return spilled() ? spilled_ : heap_.size(); }
  bool empty() const { return size() == 0; }
  T* data() { return spilled() ? static_cast<T*>(file_.data()) : heap_.data(); }
  const T* data() const { return spilled() ? static_cast<const T*>(file_.data()) : heap_.data(); }
  T& operator[](std::size_t i) { return data()[i]; }
  const T& operator[](std::size_t i) const { return data()[i]; }
  T* begin() { return data(); }
  T* end() { return data() + size(); }
  const T* begin() const { return data(); }
  const T* end() const { return data() + size(); }

  /// Only for buffers on the heap, which stay there.
  void push_back(const T& x) {
    MILLION_ASSERT(!spilled());
    heap_.push_back(x);
  }
  bool spilled() const { return spilled_ > 0; }
  /// To be called when a slab was written or read: see SpillFile::release; nothing on the heap.
  void release() const {
    if (spilled()) file_.release();
  }

 private:
  void swap(SpillBuffer& other) noexcept {
    heap_.swap(other.heap_);
    std::swap(file_, other.file_);
    std::swap(spilled_, other.spilled_);
  }
  AlignedVector<T> heap_;
  SpillFile file_;
  std::size_t spilled_ = 0;  ///< values in the file; 0 = on the heap
};

}  // namespace million
