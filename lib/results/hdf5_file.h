// SPDX-License-Identifier: Apache-2.0
// The HDF5 C API as objects that close themselves, with every failure an Error. The library's
// header is included in hdf5_file.cpp only; identifiers travel as int64_t.
//
// Trusted files only: HDF5 1.10 itself crashes or hangs on some hostile files. Our readers check
// magic, version and sizes before they allocate, and run foreign files under a time limit.
//
// Disk full: chunk caches hide a failed write until flush or close, and the library's exit handler
// then crashes; so the handler is never installed, every dataset is closed (its cache written)
// after each write, and a failed close is a failed file. Measured on HDF5 1.10.8 with a file size
// limit.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace million {

/// Keeps HDF5 from installing its exit handler and from printing its error stack. Called by every
/// Hdf5File; a program calls it first thing so that no other user of the library comes earlier.
void hdf5_init();

enum class Hdf5Type { kF16, kF32, kInt32, kInt64 };

/// An open file; closes without error check when destroyed (the failure path), see close().
class Hdf5File {
 public:
  /// Creates or truncates. Error(kNoResources) when the disk is full, Error(kBadInput) otherwise.
  static Hdf5File create(const std::filesystem::path& path);
  /// Opens for reading. Error(kBadInput) on anything that is no complete HDF5 file.
  static Hdf5File open(const std::filesystem::path& path);
  ~Hdf5File();
  Hdf5File(Hdf5File&& other) noexcept;
  Hdf5File& operator=(Hdf5File&&) = delete;

  /// Writes all buffers to the file; Error when one write failed.
  void flush();
  /// Flushes and closes; Error when anything failed. The object is empty afterwards.
  void close();
  const std::filesystem::path& path() const { return path_; }

  // Attributes of the root group, or of a dataset or group when `object` is given. Text is stored at
  // fixed length (bytes in h5py): variable-length text lies in a heap without a checksum.
  void set_attribute(const std::string& name, const std::string& value,
                     const std::string& object = "/");
  void set_attribute(const std::string& name, int64_t value, const std::string& object = "/");
  void set_attribute(const std::string& name, double value, const std::string& object = "/");
  void set_attribute(const std::string& name, const std::vector<int64_t>& values,
                     const std::string& object = "/");
  bool has_attribute(const std::string& name) const;
  /// Error(kBadInput) when missing, of another type, or longer than 64 MiB.
  std::string text_attribute(const std::string& name) const;
  int64_t int_attribute(const std::string& name) const;
  double real_attribute(const std::string& name) const;
  std::vector<int64_t> ints_attribute(const std::string& name) const;

  /// Creates a dataset (parents as needed). `chunk` empty: contiguous without filters; else chunked
  /// with shuffle and fletcher32, so a flipped bit makes the read fail instead of passing unseen.
  void create_dataset(const std::string& name, Hdf5Type type, const std::vector<uint64_t>& dims,
                      const std::vector<uint64_t>& chunk = {});
  /// Writes or reads the box [start, start + count) with memory of the dataset's own type,
  /// row-major. The dataset is closed again before the call returns, so a full disk shows here.
  void write(const std::string& name, std::span<const uint64_t> start,
             std::span<const uint64_t> count, const void* data);
  void read(const std::string& name, std::span<const uint64_t> start,
            std::span<const uint64_t> count, void* data) const;
  bool exists(const std::string& name) const;
  /// Extents of a dataset that must have this type and rank, with all its bytes in the file:
  /// Error(kBadInput) naming got and expected. Safe to allocate by afterwards.
  std::vector<uint64_t> checked_dims(const std::string& name, Hdf5Type type, int rank) const;
  /// The same, with exact extents.
  void require_dims(const std::string& name, Hdf5Type type,
                    const std::vector<uint64_t>& expected) const;
  /// Names of the links of a group, sorted; at most `limit` (Error(kBadInput) above).
  std::vector<std::string> list(const std::string& group, std::size_t limit) const;

  /// Makes `scale` a dimension scale called `label` (once) and attaches it to axis `axis` of
  /// `dataset`, so that h5py and xarray name the axis.
  void attach_scale(const std::string& dataset, int axis, const std::string& scale,
                    const std::string& label);
  /// Names an axis without a scale.
  void label_axis(const std::string& dataset, int axis, const std::string& label);

 private:
  Hdf5File(int64_t id, std::filesystem::path path, bool writing);
  [[noreturn]] void broken(const std::string& what) const;
  void write_attribute(const std::string& name, const std::string& object, int64_t type,
                       std::span<const uint64_t> dims, const void* data);
  void read_attribute(const std::string& name, int64_t type, bool integer, std::size_t n,
                      void* data) const;

  int64_t id_ = -1;
  std::filesystem::path path_;
  bool writing_ = false;
};

}  // namespace million
