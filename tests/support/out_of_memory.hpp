#pragma once
/// While it lives, no tensor can be made: libtorch throws from every place that needs memory.
#include <c10/core/CPUAllocator.h>

#include <cstring>
#include <stdexcept>

namespace parlando {

class OutOfMemory {
 public:
  OutOfMemory() : OutOfMemory(0, SIZE_MAX) {}
  /// Only some of the tensors from now on cannot be made. @param first  of these, from 0
  OutOfMemory(std::size_t first, std::size_t count) {
    auto& a = allocator();
    a.first = first, a.count = count, a.asked = 0;
    c10::SetCPUAllocator(&allocator(), kPriority);
  }
  ~OutOfMemory() { c10::SetCPUAllocator(c10::GetDefaultCPUAllocator(), kPriority); }
  OutOfMemory(const OutOfMemory&) = delete;
  OutOfMemory& operator=(const OutOfMemory&) = delete;
  /// Whether a tensor could not be made.
  bool was_met() const { return allocator().asked > allocator().first; }

 private:
  static constexpr std::uint8_t kPriority = 1;
  struct Limited final : c10::Allocator {
    std::size_t first = 0, count = 0, asked = 0;
    c10::DataPtr allocate(std::size_t bytes) override {
      const auto at = asked++;
      if (at < first || at - first >= count) return c10::GetDefaultCPUAllocator()->allocate(bytes);
      throw std::runtime_error("no memory for " + std::to_string(bytes) + " bytes, the test says");
    }
    c10::DeleterFnPtr raw_deleter() const override { return c10::GetDefaultCPUAllocator()->raw_deleter(); }
    void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
  };
  static Limited& allocator() {
    static Limited limited;
    return limited;
  }
};

}  // namespace parlando
