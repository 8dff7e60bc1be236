#pragma once
/// Memory for weights and caches: zeros, made of large pages where the system has them, so that a stream through
/// gigabytes does not wait for address translations. Pages exist from their first use on.
#include <cstddef>
#include <span>

namespace parlando::kernels {

class LargeMemory {
 public:
  LargeMemory() = default;
  /// @throws std::bad_alloc
  explicit LargeMemory(std::size_t bytes);
  LargeMemory(LargeMemory&& other) noexcept;
  LargeMemory& operator=(LargeMemory&& other) noexcept;
  ~LargeMemory();
  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::span<std::byte> bytes() const { return {data_, size_}; }

 private:
  void* mapping_ = nullptr;
  std::size_t mapped_ = 0, size_ = 0;
  std::byte* data_ = nullptr;
};

}  // namespace parlando::kernels
