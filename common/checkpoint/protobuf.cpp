#include "common/checkpoint/protobuf.hpp"

namespace parlando::checkpoint {

std::optional<std::uint64_t> ProtobufReader::varint(std::span<const std::byte>& bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < bytes.size() && i < 10; ++i) {
    const auto byte = std::to_integer<std::uint64_t>(bytes[i]);
    value |= (byte & 0x7f) << (7 * i);
    if (byte < 0x80) {
      bytes = bytes.subspan(i + 1);
      return value;
    }
  }
  return std::nullopt;
}

std::optional<ProtobufReader::Field> ProtobufReader::next() {
  if (rest_.empty() || !ok_) return std::nullopt;
  ok_ = false;  // stays false on every early return below
  const auto key = varint(rest_);
  if (!key || (*key >> 3) == 0 || (*key >> 3) > 0x1fffffff) return std::nullopt;
  Field field;
  field.number = static_cast<std::uint32_t>(*key >> 3);
  field.wire = static_cast<std::uint32_t>(*key & 7);
  if (field.wire == 0) {
    const auto value = varint(rest_);
    if (!value) return std::nullopt;
    field.value = *value;
  } else if (field.wire == 1 || field.wire == 5) {
    const std::size_t size = field.wire == 1 ? 8 : 4;
    if (rest_.size() < size) return std::nullopt;
    std::memcpy(&field.value, rest_.data(), size);
    rest_ = rest_.subspan(size);
  } else if (field.wire == 2) {
    const auto size = varint(rest_);
    if (!size || *size > rest_.size()) return std::nullopt;
    field.bytes = rest_.first(static_cast<std::size_t>(*size));
    rest_ = rest_.subspan(static_cast<std::size_t>(*size));
  } else {
    return std::nullopt;
  }
  ok_ = true;
  return field;
}

}  // namespace parlando::checkpoint
