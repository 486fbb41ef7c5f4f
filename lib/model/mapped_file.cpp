// SPDX-License-Identifier: Apache-2.0
#include "lib/model/mapped_file.h"

#include "lib/core/error.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace million {

std::shared_ptr<const void> map_file(const std::filesystem::path& path, std::string_view& bytes) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  MILLION_REQUIRE(fd >= 0, ErrorCode::kBadInput, "cannot open model {}: {}", path.string(),
                  std::strerror(errno));
  struct stat info {};
  const bool regular = ::fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
  const std::size_t size = regular ? static_cast<std::size_t>(info.st_size) : 0;
  void* memory = size > 0 ? ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0) : MAP_FAILED;
  const int error = errno;
  ::close(fd);
  MILLION_REQUIRE(regular, ErrorCode::kBadInput, "model {} is not a regular file", path.string());
  MILLION_REQUIRE(size > 0, ErrorCode::kBadInput, "model {} is empty", path.string());
  MILLION_REQUIRE(memory != MAP_FAILED, ErrorCode::kNoResources, "cannot map model {}: {}",
                  path.string(), std::strerror(error));
  bytes = {static_cast<const char*>(memory), size};
  return {memory, [size](const void* p) { ::munmap(const_cast<void*>(p), size); }};
}

}  // namespace million
