#pragma once
/// Protobuf wire reading without a schema: enough for ONNX models and SentencePiece files. Never reads outside its
/// span; a truncated or overlong field is an error and ends the iteration.
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>

namespace parlando::checkpoint {

class ProtobufReader {
 public:
  struct Field {
    std::uint32_t number = 0;
    std::uint32_t wire = 0;            ///< 0 varint, 1 fixed64, 2 bytes, 5 fixed32
    std::uint64_t value = 0;           ///< varint and fixed fields
    std::span<const std::byte> bytes;  ///< wire type 2

    std::string_view text() const { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }
    float as_float() const {
      const auto bits = static_cast<std::uint32_t>(value);
      float out;
      std::memcpy(&out, &bits, 4);
      return out;
    }
  };

  explicit ProtobufReader(std::span<const std::byte> bytes) : rest_(bytes) {}

  /// The next field; nothing at the end or after malformed bytes (then `ok()` is false).
  std::optional<Field> next();
  bool ok() const { return ok_; }

  /// Reads one varint from the front of `bytes` and shortens it; for packed repeated fields.
  static std::optional<std::uint64_t> varint(std::span<const std::byte>& bytes);

 private:
  std::span<const std::byte> rest_;
  bool ok_ = true;
};

}  // namespace parlando::checkpoint
