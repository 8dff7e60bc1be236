#pragma once
/// One field list per message serves writing, reading, validation, limits and the table in docs/protocol.md. A message
/// is a struct with `template <class V> void fields(V&& v)` that calls `v("name", member, rule)`; the rule is optional.
/// Readers refuse a field of another type or outside its rule with a sentence that names it; a field that is missing
/// keeps its default, and unknown fields are ignored, so that fields may be added.
#include <concepts>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/protocol/envelope.hpp"

namespace parlando::protocol {

/// What a value must satisfy. Numbers lie in [low, high]; texts have at most `high` bytes.
struct Rule {
  std::int64_t low = std::numeric_limits<std::int64_t>::min();
  std::int64_t high = std::numeric_limits<std::int64_t>::max();
};
constexpr Rule at_least(std::int64_t low) { return {low, std::numeric_limits<std::int64_t>::max()}; }
constexpr Rule within(std::int64_t low, std::int64_t high) { return {low, high}; }
constexpr Rule bytes_at_most(std::int64_t high) { return {0, high}; }

/// A value of a few names. Specialise `names_of` beside the enumeration; the position is the value.
template <class E>
std::span<const std::string_view> names_of();
template <class T>
concept NamedEnum = std::is_enum_v<T>;

/// At most so many bytes of a text, cut between characters.
std::string_view cut(std::string_view text, std::size_t bytes_max);

/// JSON as text, carried unread: tool arguments, options of a model. Checked to be JSON of at most 30 levels.
struct JsonText {
  std::string text = "null";
  bool operator==(const JsonText&) const = default;
};

/// A field as readers and writers see it: its name and where its value lies.
struct FieldValue {
  enum class Kind { boolean, i32, u32, i64, u64, text, json, name };
  Kind kind;
  void* value;
  Rule rule;
  std::span<const std::string_view> names;  ///< of Kind::name, whose value is an int
  std::size_t width = 0;                    ///< of Kind::name: bytes of the enumeration
};

class FieldVisitor {
 public:
  virtual ~FieldVisitor() = default;
  virtual void visit(const char* name, FieldValue field) = 0;

  template <class T>
  void operator()(const char* name, T& value, Rule rule = {}) {
    using Kind = FieldValue::Kind;
    if constexpr (std::is_same_v<T, bool>)
      visit(name, {Kind::boolean, &value, rule, {}});
    else if constexpr (std::is_same_v<T, std::int32_t>)
      visit(name, {Kind::i32, &value, rule, {}});
    else if constexpr (std::is_same_v<T, std::uint32_t>)
      visit(name, {Kind::u32, &value, rule, {}});
    else if constexpr (std::is_same_v<T, std::int64_t>)
      visit(name, {Kind::i64, &value, rule, {}});
    else if constexpr (std::is_same_v<T, std::uint64_t>)
      visit(name, {Kind::u64, &value, rule, {}});
    else if constexpr (std::is_same_v<T, TurnId> || std::is_same_v<T, StreamId>)
      visit(name, {Kind::u32, &value.value, rule, {}});
    else if constexpr (std::is_same_v<T, Epoch>)
      visit(name, {Kind::u64, &value.value, rule, {}});
    else if constexpr (std::is_same_v<T, std::string>)
      visit(name, {Kind::text, &value, rule, {}});
    else if constexpr (std::is_same_v<T, JsonText>)
      visit(name, {Kind::json, &value.text, rule, {}});
    else {
      static_assert(NamedEnum<T>, "a kind of field that no visitor knows");
      visit(name, {Kind::name, &value, rule, names_of<T>(), sizeof(T)});
    }
  }
};

/// Fields as a JSON object. Bytes that are not UTF-8 become U+FFFD.
class JsonWriter final : public FieldVisitor {
 public:
  JsonWriter();
  ~JsonWriter() override;
  void visit(const char* name, FieldValue field) override;
  std::string text() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Fields from a JSON object; an empty text is an empty object.
class JsonReader final : public FieldVisitor {
 public:
  explicit JsonReader(std::string_view text);
  ~JsonReader() override;
  void visit(const char* name, FieldValue field) override;
  /// The first thing that was wrong. @error Errc::bad_json, Errc::invalid_argument
  Result<void> done(MessageType type) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Fields one behind the other, little-endian, numbers and booleans only: the bodies of frames.
class PackWriter final : public FieldVisitor {
 public:
  void visit(const char* name, FieldValue field) override;
  std::string take() { return std::move(out_); }

 private:
  std::string out_;
};
class PackReader final : public FieldVisitor {
 public:
  explicit PackReader(std::string_view body) : rest_(body) {}
  void visit(const char* name, FieldValue field) override;
  /// Fields that a shorter body of an older writer does not have keep their defaults. @error Errc::bad_frame,
  /// Errc::invalid_argument
  Result<void> done(MessageType type) const;

 private:
  std::string_view rest_;
  std::string problem_;
};

}  // namespace parlando::protocol
