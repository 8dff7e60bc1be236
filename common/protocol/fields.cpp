#include "common/protocol/fields.hpp"

#include <cstring>
#include <nlohmann/json.hpp>

#include "common/base/nesting.hpp"

namespace parlando::protocol {
using nlohmann::json;
using Kind = FieldValue::Kind;

namespace {

constexpr int kJsonTextDepthMax = 30;  // inside a body of at most 32 levels

std::int64_t name_index(const FieldValue& f) {
  std::int64_t index = 0;
  std::memcpy(&index, f.value, f.width);
  return index;
}
void set_name_index(const FieldValue& f, std::size_t index) { std::memcpy(f.value, &index, f.width); }

/// Up to 40 bytes of a value for an error, cut between characters.
std::string shown(std::string text) {
  constexpr std::size_t kShown = 40;
  if (text.size() <= kShown) return text;
  return std::string(cut(text, kShown)) + "…";
}
std::string dumped(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

/// Why a number is not allowed; empty when it is.
std::string outside(const char* name, std::int64_t value, const Rule& rule) {
  if (value >= rule.low && value <= rule.high) return {};
  if (rule.high == std::numeric_limits<std::int64_t>::max())
    return fmt::format("{} is {}, expected at least {}", name, value, rule.low);
  return fmt::format("{} is {}, expected {} to {}", name, value, rule.low, rule.high);
}

}  // namespace

std::string_view cut(std::string_view text, std::size_t bytes_max) {
  if (text.size() <= bytes_max) return text;
  auto end = bytes_max;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
  return text.substr(0, end);
}

struct JsonWriter::Impl {
  json body = json::object();
};
JsonWriter::JsonWriter() : impl_(std::make_unique<Impl>()) {}
JsonWriter::~JsonWriter() = default;

void JsonWriter::visit(const char* name, FieldValue f) {
  auto& to = impl_->body[name];
  switch (f.kind) {
    case Kind::boolean:
      to = *static_cast<bool*>(f.value);
      break;
    case Kind::i32:
      to = *static_cast<std::int32_t*>(f.value);
      break;
    case Kind::u32:
      to = *static_cast<std::uint32_t*>(f.value);
      break;
    case Kind::i64:
      to = *static_cast<std::int64_t*>(f.value);
      break;
    case Kind::u64:
      to = *static_cast<std::uint64_t*>(f.value);
      break;
    case Kind::text:
      to = *static_cast<std::string*>(f.value);
      break;
    case Kind::json: {
      const auto& text = *static_cast<std::string*>(f.value);
      to = nested_deeper_than(text, kJsonTextDepthMax) ? json() : json::parse(text, nullptr, false);
      if (to.is_discarded()) to = json();
      break;
    }
    case Kind::name: {
      const auto index = static_cast<std::size_t>(name_index(f));
      to = index < f.names.size() ? std::string(f.names[index]) : std::string();
      break;
    }
  }
}
std::string JsonWriter::text() const { return dumped(impl_->body); }

struct JsonReader::Impl {
  json body;
  std::string problem;
  bool malformed = false;
  void complain(std::string text) {
    if (problem.empty()) problem = std::move(text);
  }
};

JsonReader::JsonReader(std::string_view text) : impl_(std::make_unique<Impl>()) {
  impl_->body = text.empty()                   ? json::object()
                : nested_deeper_than(text, 32) ? json()
                                               : json::parse(text, nullptr, false);
  impl_->malformed = !impl_->body.is_object();
}
JsonReader::~JsonReader() = default;

void JsonReader::visit(const char* name, FieldValue f) {
  if (impl_->malformed) return;
  const auto found = impl_->body.find(name);
  if (found == impl_->body.end()) return;
  const auto& j = *found;
  const auto wrong = [&](std::string_view expected) {
    impl_->complain(fmt::format("{} is {}, expected {}", name, shown(dumped(j)), expected));
  };
  const auto number = [&]<class T>(T* to) {
    if (!j.is_number_integer()) return wrong("a whole number");
    if constexpr (std::is_same_v<T, std::uint64_t>) {
      if (!j.is_number_unsigned()) return wrong("a whole number of at least 0");
      *to = j.get<std::uint64_t>();
    } else {
      // A number above the signed range is larger than any rule allows.
      if (j.is_number_unsigned() &&
          j.get<std::uint64_t>() > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
        return wrong("a smaller number");
      const auto value = j.get<std::int64_t>();
      if (value < static_cast<std::int64_t>(std::numeric_limits<T>::min()) ||
          value > static_cast<std::int64_t>(std::numeric_limits<T>::max()))
        return wrong(fmt::format("{} to {}", std::numeric_limits<T>::min(), std::numeric_limits<T>::max()));
      if (auto why = outside(name, value, f.rule); !why.empty()) return impl_->complain(std::move(why));
      *to = static_cast<T>(value);
    }
  };
  switch (f.kind) {
    case Kind::boolean:
      if (!j.is_boolean()) return wrong("true or false");
      *static_cast<bool*>(f.value) = j.get<bool>();
      return;
    case Kind::i32:
      return number(static_cast<std::int32_t*>(f.value));
    case Kind::u32:
      return number(static_cast<std::uint32_t*>(f.value));
    case Kind::i64:
      return number(static_cast<std::int64_t*>(f.value));
    case Kind::u64:
      return number(static_cast<std::uint64_t*>(f.value));
    case Kind::text: {
      if (!j.is_string()) return wrong("a text");
      const auto& text = j.get_ref<const std::string&>();
      if (static_cast<std::int64_t>(text.size()) > f.rule.high)
        return impl_->complain(fmt::format("{} has {} bytes, at most {} are taken", name, text.size(), f.rule.high));
      *static_cast<std::string*>(f.value) = text;
      return;
    }
    case Kind::json:
      *static_cast<std::string*>(f.value) = dumped(j);
      return;
    case Kind::name: {
      std::string list;
      for (std::size_t i = 0; i < f.names.size(); ++i) {
        if (j.is_string() && j.get_ref<const std::string&>() == f.names[i]) return set_name_index(f, i);
        list += (i == 0 ? "" : i + 1 == f.names.size() ? " or " : ", ") + std::string(f.names[i]);
      }
      return wrong(list);
    }
  }
}

Result<void> JsonReader::done(MessageType type) const {
  if (impl_->malformed) return fail(Errc::bad_json, "the body of {} is not a JSON object", to_string(type));
  if (!impl_->problem.empty()) return fail(Errc::invalid_argument, "{}: {}", to_string(type), impl_->problem);
  return {};
}

void PackWriter::visit(const char*, FieldValue f) {
  const auto add = [&](std::size_t bytes) { out_.append(static_cast<const char*>(f.value), bytes); };
  switch (f.kind) {
    case Kind::boolean:
      out_.push_back(*static_cast<bool*>(f.value) ? 1 : 0);
      return;
    case Kind::i32:
    case Kind::u32:
      return add(4);
    case Kind::i64:
    case Kind::u64:
      return add(8);
    case Kind::name:
      out_.push_back(static_cast<char>(name_index(f)));
      return;
    case Kind::text:
    case Kind::json:
      return;  // packed messages have none; fields_test holds every message to it
  }
}

void PackReader::visit(const char* name, FieldValue f) {
  if (rest_.empty() || !problem_.empty()) return;
  const auto number = [&]<class T>(T* to) {
    if (rest_.size() < sizeof(T)) {
      problem_ = fmt::format("{} has {} of {} bytes", name, rest_.size(), sizeof(T));
      return;
    }
    T value;
    std::memcpy(&value, rest_.data(), sizeof value);
    rest_.remove_prefix(sizeof value);
    if constexpr (!std::is_same_v<T, std::uint64_t>) {
      problem_ = outside(name, static_cast<std::int64_t>(value), f.rule);
      if (!problem_.empty()) return;
    }
    *to = value;
  };
  switch (f.kind) {
    case Kind::boolean:
      *static_cast<bool*>(f.value) = rest_.front() != 0;
      rest_.remove_prefix(1);
      return;
    case Kind::i32:
      return number(static_cast<std::int32_t*>(f.value));
    case Kind::u32:
      return number(static_cast<std::uint32_t*>(f.value));
    case Kind::i64:
      return number(static_cast<std::int64_t*>(f.value));
    case Kind::u64:
      return number(static_cast<std::uint64_t*>(f.value));
    case Kind::name: {
      const auto index = static_cast<unsigned char>(rest_.front());
      rest_.remove_prefix(1);
      if (index >= f.names.size()) {
        problem_ = fmt::format("{} is number {}, expected 0 to {}", name, index, f.names.size() - 1);
        return;
      }
      return set_name_index(f, index);
    }
    case Kind::text:
    case Kind::json:
      return;
  }
}

Result<void> PackReader::done(MessageType type) const {
  if (!problem_.empty()) return fail(Errc::invalid_argument, "{}: {}", to_string(type), problem_);
  return {};
}

}  // namespace parlando::protocol
