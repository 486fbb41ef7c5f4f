// SPDX-License-Identifier: Apache-2.0
#include "lib/core/files.h"

#include "lib/core/error.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <vector>

namespace million {
namespace {

class FileDescriptor {
 public:
  FileDescriptor(const std::filesystem::path& path, int flags, mode_t mode = 0644)
      : fd_(::open(path.c_str(), flags | O_CLOEXEC, mode)) {}
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  explicit operator bool() const { return fd_ >= 0; }
  int get() const { return fd_; }

 private:
  int fd_;
};

ErrorCode code_of(int error) {
  const bool space = error == ENOSPC || error == EDQUOT || error == EFBIG || error == ENOMEM;
  return space ? ErrorCode::kNoResources : ErrorCode::kBadInput;
}

[[noreturn]] void fail_errno(const char* what, const std::filesystem::path& path) {
  const int error = errno;
  fail(code_of(error), "{} {}: {}", what, path.string(), std::strerror(error));
}

void write_all(int fd, std::string_view text, const std::filesystem::path& path) {
  while (!text.empty()) {
    const ssize_t n = ::write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_errno("cannot write", path);
    text.remove_prefix(static_cast<size_t>(n));
  }
}

void sync_folder(const std::filesystem::path& path) {
  auto folder = path.parent_path();
  if (folder.empty()) folder = ".";
  FileDescriptor fd(folder, O_RDONLY | O_DIRECTORY);
  if (fd) ::fsync(fd.get());
}

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    MILLION_ASSERT(context_ && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1);
  }
  void add(const void* data, size_t n) {
    MILLION_ASSERT(EVP_DigestUpdate(context_.get(), data, n) == 1);
  }
  std::string hex() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int n = 0;
    MILLION_ASSERT(EVP_DigestFinal_ex(context_.get(), digest, &n) == 1);
    std::string text;
    for (unsigned int i = 0; i < n; ++i) text += fmt::format("{:02x}", digest[i]);
    return text;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace

std::string read_file(const std::filesystem::path& path, uint64_t max_bytes) {
  FileDescriptor fd(path, O_RDONLY);
  if (!fd) fail_errno("cannot open", path);
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) fail_errno("cannot read", path);
  MILLION_REQUIRE(S_ISREG(info.st_mode), ErrorCode::kBadInput, "{} is not a regular file",
                  path.string());
  MILLION_REQUIRE(static_cast<uint64_t>(info.st_size) <= max_bytes, ErrorCode::kBadInput,
                  "{}: {} bytes, expected at most {}", path.string(), info.st_size, max_bytes);
  std::string text(static_cast<size_t>(info.st_size), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::read(fd.get(), text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_errno("cannot read", path);
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  text.resize(done);
  return text;
}

void write_file_atomic(const std::filesystem::path& path, std::string_view text) {
  auto part = path;
  part += fmt::format(".{}.part", ::getpid());
  try {
    FileDescriptor fd(part, O_WRONLY | O_CREAT | O_TRUNC);
    if (!fd) fail_errno("cannot create", part);
    write_all(fd.get(), text, part);
  } catch (...) {
    ::unlink(part.c_str());
    throw;
  }
  publish_file(part, path);
}

void append_line(const std::filesystem::path& path, std::string_view line) {
  FileDescriptor fd(path, O_RDWR | O_CREAT | O_APPEND);
  if (!fd) fail_errno("cannot open", path);
  std::string text;
  const off_t size = ::lseek(fd.get(), 0, SEEK_END);
  char last = '\n';
  if (size > 0 && ::pread(fd.get(), &last, 1, size - 1) == 1 && last != '\n') text += '\n';
  text.append(line);
  text += '\n';
  write_all(fd.get(), text, path);
  if (::fsync(fd.get()) != 0) fail_errno("cannot sync", path);
}

void publish_file(const std::filesystem::path& part, const std::filesystem::path& path) {
  {
    FileDescriptor fd(part, O_RDWR);
    if (!fd || ::fsync(fd.get()) != 0) {
      const int error = errno;
      ::unlink(part.c_str());
      errno = error;
      fail_errno("cannot sync", part);
    }
  }
  if (::rename(part.c_str(), path.c_str()) != 0) {
    const int error = errno;
    ::unlink(part.c_str());
    errno = error;
    fail_errno("cannot rename to", path);
  }
  sync_folder(path);
}

void require_free_space(const std::filesystem::path& path, uint64_t bytes, std::string_view what) {
  auto folder = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  std::error_code error;
  const auto space = std::filesystem::space(folder, error);
  MILLION_REQUIRE(!error, ErrorCode::kBadInput, "cannot use folder {}: {}", folder.string(),
                  error.message());
  MILLION_REQUIRE(space.available >= bytes, ErrorCode::kNoResources,
                  "{} needs {:.1f} MiB in {}, free: {:.1f} MiB; free some space or choose another "
                  "place with --out",
                  what, static_cast<double>(bytes) / 1048576.0, folder.string(),
                  static_cast<double>(space.available) / 1048576.0);
}

std::string sha256_of(std::string_view bytes) {
  Sha256 hash;
  hash.add(bytes.data(), bytes.size());
  return hash.hex();
}

std::string sha256_of_file(const std::filesystem::path& path) {
  FileDescriptor fd(path, O_RDONLY);
  if (!fd) fail_errno("cannot open", path);
  Sha256 hash;
  std::vector<char> buffer(1 << 20);
  for (;;) {
    const ssize_t n = ::read(fd.get(), buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_errno("cannot read", path);
    if (n == 0) return hash.hex();
    hash.add(buffer.data(), static_cast<size_t>(n));
  }
}

}  // namespace million
