#pragma once
/// A named tensor as it lies in a file: type, shape and little-endian row-major bytes owned by somebody else.
#include <cstdint>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::checkpoint {

enum class Dtype : std::uint8_t { f64, f32, f16, bf16, i64, i32, i16, i8, u8, boolean };

std::size_t bytes_of(Dtype dtype);
std::string_view name_of(Dtype dtype);            ///< safetensors spelling: F32, BF16, …
std::optional<Dtype> dtype_of(std::string_view);  ///< inverse of name_of

using Shape = std::vector<std::int64_t>;

std::string to_string(const Shape& shape);

/// Number of elements, or nothing when a dimension is negative or the product overflows 2^62.
std::optional<std::int64_t> elements_of(const Shape& shape);

struct TensorData {
  Dtype dtype = Dtype::f32;
  Shape shape;
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;  ///< keeps `bytes` alive
  bool mapped = false;                ///< `bytes` are pages of a mapped file and can be dropped after copying

  std::int64_t elements() const { return elements_of(shape).value_or(0); }
};

using TensorMap = std::map<std::string, TensorData>;

/// Makes a tensor that owns its values.
TensorData make_f32(Shape shape, std::vector<float> values);

/// The values as float32, converted from any floating type. @error Errc::unsupported for integers.
Result<std::vector<float>> to_f32(const TensorData& tensor);

}  // namespace parlando::checkpoint
