#pragma once
/// Tells whether a watched file is still the one that was read: a rename into its place changes the inode, a rewrite
/// the times. Compared, never interpreted.
#include <sys/stat.h>

#include <cstdint>
#include <string>

namespace parlando {

struct FileStamp {
  bool exists = false;
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  std::int64_t size = 0;
  std::int64_t changed_ns = 0;   ///< of the inode: a rewrite with the old size and a set-back mtime shows here
  std::int64_t modified_ns = 0;  ///< of the content

  /// A missing file has a stamp, too: `exists` is false.
  static FileStamp of(const std::string& path) {
    struct stat s {};
    if (::stat(path.c_str(), &s) != 0) return {};
    const auto ns = [](const timespec& t) { return static_cast<std::int64_t>(t.tv_sec) * 1'000'000'000 + t.tv_nsec; };
    return {true, s.st_dev, s.st_ino, s.st_size, ns(s.st_ctim), ns(s.st_mtim)};
  }
  bool operator==(const FileStamp&) const = default;
};

}  // namespace parlando
