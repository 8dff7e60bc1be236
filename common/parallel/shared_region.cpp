#include "common/parallel/shared_region.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <new>

namespace parlando::parallel {

namespace {

constexpr std::size_t kLine = 64;

constexpr std::size_t rounded(std::size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

constexpr std::size_t kWordsAt = rounded(sizeof(RegionHeader));

std::size_t region_bytes(std::size_t ranks, std::size_t slot_bytes) {
  return kWordsAt + ranks * (sizeof(RankWords) + 2 * slot_bytes);
}

}  // namespace

Result<std::shared_ptr<SharedRegion>> SharedRegion::map(int descriptor, std::size_t bytes) {
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (memory == MAP_FAILED) {
    const int error = errno;
    ::close(descriptor);
    return fail(Errc::io, "shared region: cannot map {} bytes: {}", bytes, std::strerror(error));
  }
  return std::shared_ptr<SharedRegion>(new SharedRegion(descriptor, static_cast<std::byte*>(memory), bytes));
}

Result<std::shared_ptr<SharedRegion>> SharedRegion::build(int descriptor, int ranks, std::size_t slot_bytes) {
  const auto bytes = region_bytes(static_cast<std::size_t>(ranks), slot_bytes);
  // Reserved now: a full /dev/shm is an error here, not a SIGBUS in the middle of a call.
  if (const int error = ::posix_fallocate(descriptor, 0, static_cast<off_t>(bytes)); error != 0) {
    ::close(descriptor);
    return fail(Errc::io, "shared region: cannot get {} bytes: {}", bytes, std::strerror(error));
  }
  PARLANDO_TRY(auto out, map(descriptor, bytes));
  for (int r = 0; r < ranks; ++r) new (&out->words(r)) RankWords;
  auto* header = new (out->memory_) RegionHeader;
  header->ranks = static_cast<std::uint32_t>(ranks);
  header->slot_bytes = slot_bytes;
  return out;
}

Result<std::shared_ptr<SharedRegion>> SharedRegion::create(int ranks, std::size_t slot_bytes) {
  if (ranks < 1 || ranks > kRanksMax || slot_bytes == 0)
    return fail(Errc::invalid_argument,
                "shared region: {} ranks with slots of {} bytes, expected 1 to {} and more than 0", ranks, slot_bytes,
                kRanksMax);
  const int descriptor = ::memfd_create("parlando-ranks", MFD_CLOEXEC);
  if (descriptor < 0) return fail(Errc::io, "shared region: memfd_create: {}", std::strerror(errno));
  return build(descriptor, ranks, rounded(slot_bytes));
}

Result<std::shared_ptr<SharedRegion>> SharedRegion::create_file(const std::filesystem::path& path, int ranks,
                                                                std::size_t slot_bytes) {
  if (ranks < 1 || ranks > kRanksMax || slot_bytes == 0)
    return fail(Errc::invalid_argument,
                "shared region: {} ranks with slots of {} bytes, expected 1 to {} and more than 0", ranks, slot_bytes,
                kRanksMax);
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (descriptor < 0) return fail(Errc::io, "shared region {}: {}", path.string(), std::strerror(errno));
  auto out = build(descriptor, ranks, rounded(slot_bytes));
  if (!out) ::unlink(path.c_str());
  return out;
}

Result<std::shared_ptr<SharedRegion>> SharedRegion::attach(int descriptor) {
  const int own = ::fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
  if (own < 0) return fail(Errc::io, "shared region: descriptor {}: {}", descriptor, std::strerror(errno));
  struct stat status {};
  if (::fstat(own, &status) != 0 || status.st_size < static_cast<off_t>(kWordsAt)) {
    ::close(own);
    return fail(Errc::bad_format, "shared region: {} bytes, expected at least {}", status.st_size, kWordsAt);
  }
  PARLANDO_TRY(auto out, map(own, static_cast<std::size_t>(status.st_size)));
  const auto& header = out->header();
  if (header.magic != RegionHeader::kMagic)
    return fail(Errc::bad_format, "shared region: begins with {:016x}, expected {:016x}", header.magic,
                RegionHeader::kMagic);
  // The sizes are looked at one by one first, so that their product cannot wrap round.
  const bool sane = header.ranks >= 1 && header.ranks <= kRanksMax && header.slot_bytes <= out->bytes_ &&
                    region_bytes(header.ranks, header.slot_bytes) == out->bytes_;
  if (!sane)
    return fail(Errc::bad_format, "shared region: {} bytes for {} ranks with slots of {}", out->bytes_, header.ranks,
                header.slot_bytes);
  return out;
}

Result<std::shared_ptr<SharedRegion>> SharedRegion::attach_file(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (descriptor < 0) return fail(Errc::io, "shared region {}: {}", path.string(), std::strerror(errno));
  auto out = attach(descriptor);
  ::close(descriptor);
  return out;
}

SharedRegion::~SharedRegion() {
  ::munmap(memory_, bytes_);
  ::close(descriptor_);
}

RankWords& SharedRegion::words(int rank) const {
  return *reinterpret_cast<RankWords*>(memory_ + kWordsAt + static_cast<std::size_t>(rank) * sizeof(RankWords));
}

std::byte* SharedRegion::slot(int rank, std::uint32_t call) const {
  const auto index = 2 * static_cast<std::size_t>(rank) + call % 2;
  return memory_ + kWordsAt + header().ranks * sizeof(RankWords) + index * header().slot_bytes;
}

}  // namespace parlando::parallel
