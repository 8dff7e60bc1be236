#include "common/base/mapped_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

namespace parlando {

Result<MappedFile> MappedFile::open(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    return fail(errno == ENOENT ? Errc::not_found : Errc::io, "cannot open '{}': {}", path.string(),
                std::strerror(errno));
  struct stat info {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    return fail(Errc::io, "'{}' is not a regular file", path.string());
  }
  MappedFile file;
  file.size_ = static_cast<std::size_t>(info.st_size);
  if (file.size_ > 0) {
    void* data = ::mmap(nullptr, file.size_, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) {
      ::close(fd);
      return fail(Errc::io, "cannot map '{}' ({} bytes): {}", path.string(), info.st_size, std::strerror(errno));
    }
    file.data_ = data;
  }
  ::close(fd);
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

Result<std::string> read_file(const std::filesystem::path& path, std::size_t bytes_max) {
  std::error_code code;
  if (!std::filesystem::is_regular_file(path, code)) return fail(Errc::not_found, "'{}' is not a file", path.string());
  const auto size = std::filesystem::file_size(path, code);
  if (code) return fail(Errc::io, "cannot read the size of '{}': {}", path.string(), code.message());
  if (size > bytes_max)
    return fail(Errc::bad_format, "'{}' has {} bytes, at most {} are read", path.string(), size, bytes_max);
  std::ifstream stream(path, std::ios::binary);
  std::string content(size, '\0');
  if (!stream.read(content.data(), static_cast<std::streamsize>(size)))
    return fail(Errc::io, "cannot read '{}'", path.string());
  return content;
}

Result<void> write_file(const std::filesystem::path& path, std::string_view content) {
  const auto temporary = path.string() + ".tmp";
  {
    std::ofstream stream(temporary, std::ios::binary | std::ios::trunc);
    if (!stream.write(content.data(), static_cast<std::streamsize>(content.size())).flush())
      return fail(Errc::io, "cannot write '{}'", temporary);
  }
  std::error_code code;
  std::filesystem::rename(temporary, path, code);
  if (code) return fail(Errc::io, "cannot rename '{}': {}", temporary, code.message());
  return {};
}

}  // namespace parlando
