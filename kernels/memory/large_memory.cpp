#include "kernels/memory/large_memory.hpp"

#include <sys/mman.h>

#include <cstdint>
#include <new>
#include <utility>

namespace parlando::kernels {

namespace {
constexpr std::size_t kLargePage = std::size_t{2} << 20;
}

LargeMemory::LargeMemory(std::size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  // Small pieces are not worth a large page each; larger ones begin at the border of one.
  const auto alignment = bytes >= kLargePage ? kLargePage : 1;
  mapped_ = bytes + alignment - 1;
  mapping_ = ::mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) {
    mapping_ = nullptr;
    throw std::bad_alloc();
  }
  const auto begin = (reinterpret_cast<std::uintptr_t>(mapping_) + alignment - 1) / alignment * alignment;
  data_ = reinterpret_cast<std::byte*>(begin);
#ifdef MADV_HUGEPAGE
  if (alignment > 1) ::madvise(data_, bytes, MADV_HUGEPAGE);  // a wish; without it everything works, slower
#endif
}

LargeMemory::LargeMemory(LargeMemory&& other) noexcept { *this = std::move(other); }

LargeMemory& LargeMemory::operator=(LargeMemory&& other) noexcept {
  std::swap(mapping_, other.mapping_), std::swap(mapped_, other.mapped_), std::swap(size_, other.size_);
  std::swap(data_, other.data_);
  return *this;
}

LargeMemory::~LargeMemory() {
  if (mapping_ != nullptr) ::munmap(mapping_, mapped_);
}

}  // namespace parlando::kernels
