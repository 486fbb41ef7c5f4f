// SPDX-License-Identifier: Apache-2.0
#include "lib/core/spill_buffer.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

namespace million {
namespace {

/// A descriptor that is closed on the way out; the mapping keeps the file alive.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

}  // namespace

SpillFile::SpillFile(std::size_t bytes, const std::filesystem::path& folder) : bytes_(bytes) {
  const auto in = folder.empty() ? std::filesystem::temp_directory_path() : folder;
  std::error_code unknown;  // checked first: without support by the file system, allocating would
                            // fill the disk before it fails
  const auto space = std::filesystem::space(in, unknown);
  MILLION_REQUIRE(unknown || space.available >= bytes, ErrorCode::kNoResources,
                  "calibration data need {} bytes in {}, free: {}; free some space or name another "
                  "folder with TMPDIR",
                  bytes, in.string(), space.available);
  std::string name = (in / "million-spill-XXXXXX").string();
  const Descriptor file(::mkostemp(name.data(), O_CLOEXEC));
  MILLION_REQUIRE(file.get() >= 0, ErrorCode::kBadInput,
                  "cannot make a temporary file in {}: {}; name a folder with TMPDIR", in.string(),
                  std::strerror(errno));
  ::unlink(name.c_str());
  int error = EINTR;
  while (error == EINTR) error = ::posix_fallocate(file.get(), 0, static_cast<off_t>(bytes));
  MILLION_REQUIRE(error == 0, ErrorCode::kNoResources,
                  "cannot allocate {} bytes of calibration data in {}: {}; free some space or name "
                  "another folder with TMPDIR",
                  bytes, in.string(), std::strerror(error));
  void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  MILLION_REQUIRE(at != MAP_FAILED, ErrorCode::kNoResources,
                  "cannot map {} bytes of calibration data: {}", bytes, std::strerror(errno));
  data_ = at;
}

SpillFile::~SpillFile() {
  if (data_) ::munmap(data_, bytes_);
}

void SpillFile::release() const {
  if (data_) ::madvise(data_, bytes_, MADV_DONTNEED);  // advice: failing changes nothing
}

}  // namespace million
