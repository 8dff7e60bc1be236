#pragma once
/// A file mapped read-only into memory. Move-only; the bytes live as long as the object.
#include <cstddef>
#include <filesystem>
#include <span>

#include "common/base/result.hpp"

namespace parlando {

class MappedFile {
 public:
  /// @error Errc::not_found or Errc::io, naming the path.
  static Result<MappedFile> open(const std::filesystem::path& path);

  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Whole file as bytes, refused above `bytes_max`.
Result<std::string> read_file(const std::filesystem::path& path, std::size_t bytes_max = 1u << 30);

/// Writes through a temporary name and renames, so that a reader sees the old or the new file and never a part.
Result<void> write_file(const std::filesystem::path& path, std::string_view content);

}  // namespace parlando
