#include "common/checkpoint/tensor_data.hpp"

#include <bit>
#include <cmath>
#include <cstring>

namespace parlando::checkpoint {

std::size_t bytes_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::f64:
    case Dtype::i64:
      return 8;
    case Dtype::f32:
    case Dtype::i32:
      return 4;
    case Dtype::f16:
    case Dtype::bf16:
    case Dtype::i16:
      return 2;
    default:
      return 1;
  }
}

namespace {
constexpr std::pair<Dtype, std::string_view> kNames[] = {
    {Dtype::f64, "F64"}, {Dtype::f32, "F32"}, {Dtype::f16, "F16"}, {Dtype::bf16, "BF16"}, {Dtype::i64, "I64"},
    {Dtype::i32, "I32"}, {Dtype::i16, "I16"}, {Dtype::i8, "I8"},   {Dtype::u8, "U8"},     {Dtype::boolean, "BOOL"}};

float half_to_float(std::uint16_t h) {
  const std::uint32_t sign = (h & 0x8000u) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023u;
  if (exponent == 0)
    return std::copysign(std::ldexp(static_cast<float>(mantissa), -24), std::bit_cast<float>(sign | 0x3f800000u));
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}
}  // namespace

std::string_view name_of(Dtype dtype) {
  for (const auto& [value, name] : kNames)
    if (value == dtype) return name;
  return "?";
}

std::optional<Dtype> dtype_of(std::string_view text) {
  for (const auto& [value, name] : kNames)
    if (name == text) return value;
  return std::nullopt;
}

std::string to_string(const Shape& shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

std::optional<std::int64_t> elements_of(const Shape& shape) {
  std::int64_t count = 1;
  for (const auto dim : shape) {
    if (dim < 0) return std::nullopt;
    if (dim != 0 && count > (std::int64_t{1} << 62) / dim) return std::nullopt;
    count *= dim;
  }
  return count;
}

TensorData make_f32(Shape shape, std::vector<float> values) {
  auto owner = std::make_shared<const std::vector<float>>(std::move(values));
  return {Dtype::f32, std::move(shape), std::as_bytes(std::span(*owner)), owner};
}

Result<std::vector<float>> to_f32(const TensorData& tensor) {
  const auto count = static_cast<std::size_t>(tensor.elements());
  std::vector<float> out(count);
  const auto* bytes = tensor.bytes.data();
  auto load16 = [bytes](std::size_t i) {
    std::uint16_t v;
    std::memcpy(&v, bytes + 2 * i, 2);
    return v;
  };
  switch (tensor.dtype) {
    case Dtype::f32:
      std::memcpy(out.data(), bytes, 4 * count);
      break;
    case Dtype::f64:
      for (std::size_t i = 0; i < count; ++i) {
        double v;
        std::memcpy(&v, bytes + 8 * i, 8);
        out[i] = static_cast<float>(v);
      }
      break;
    case Dtype::f16:
      for (std::size_t i = 0; i < count; ++i) out[i] = half_to_float(load16(i));
      break;
    case Dtype::bf16:
      for (std::size_t i = 0; i < count; ++i)
        out[i] = std::bit_cast<float>(static_cast<std::uint32_t>(load16(i)) << 16);
      break;
    default:
      return fail(Errc::unsupported, "a tensor of type {} is not a floating-point tensor", name_of(tensor.dtype));
  }
  return out;
}

}  // namespace parlando::checkpoint
