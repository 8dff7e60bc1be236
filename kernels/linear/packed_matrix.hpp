#pragma once
/// A matrix whose weights are packed, with the memory they lie in. Copies share it.
#include <memory>

#include "kernels/linear/linear.hpp"
#include "kernels/memory/large_memory.hpp"

namespace parlando::kernels {

class PackedMatrix {
 public:
  PackedMatrix() = default;
  /// All zeros, to be filled by `pack_rows` or from a file.
  explicit PackedMatrix(const PackedShape& shape)
      : shape_(shape), memory_(std::make_shared<LargeMemory>(static_cast<std::size_t>(shape.bytes()))) {}
  const PackedShape& shape() const { return shape_; }
  std::span<std::byte> bytes() const { return memory_ ? memory_->bytes() : std::span<std::byte>(); }
  bool shares(const PackedMatrix& other) const { return memory_ != nullptr && memory_ == other.memory_; }

 private:
  PackedShape shape_;
  std::shared_ptr<LargeMemory> memory_;
};

/// y[n] = W x[n]. @param y  [count, rows]
inline void linear(Team& team, const PackedMatrix& w, const LinearInput& x, float* y) {
  linear(team, w.shape(), w.bytes().data(), x, y, w.shape().rows);
}

}  // namespace parlando::kernels
