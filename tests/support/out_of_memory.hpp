#pragma once
/// While it lives, no tensor can be made: libtorch throws from every place that needs memory.
#include <c10/core/CPUAllocator.h>

#include <stdexcept>

namespace parlando {

class OutOfMemory {
 public:
  OutOfMemory() { c10::SetCPUAllocator(&allocator(), kPriority); }
  ~OutOfMemory() { c10::SetCPUAllocator(c10::GetDefaultCPUAllocator(), kPriority); }
  OutOfMemory(const OutOfMemory&) = delete;
  OutOfMemory& operator=(const OutOfMemory&) = delete;

 private:
  static constexpr std::uint8_t kPriority = 1;
  struct Empty final : c10::Allocator {
    c10::DataPtr allocate(std::size_t bytes) override {
      throw std::runtime_error("no memory for " + std::to_string(bytes) + " bytes, the test says");
    }
    void copy_data(void*, const void*, std::size_t) const override {}
  };
  static Empty& allocator() {
    static Empty empty;
    return empty;
  }
};

}  // namespace parlando
