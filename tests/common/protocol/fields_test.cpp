#include "common/protocol/fields.hpp"

#include <boost/test/unit_test.hpp>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "common/protocol/messages.hpp"

namespace parlando::protocol {
namespace {
using Kind = FieldValue::Kind;
using nlohmann::json;
constexpr auto kNone = std::numeric_limits<std::int64_t>::max();

/// Gives every field a value of its own that its rule allows.
struct Filler final : FieldVisitor {
  std::int64_t n = 0;
  void visit(const char*, FieldValue f) override {
    ++n;
    const auto number = std::clamp<std::int64_t>(f.rule.low + n, f.rule.low, f.rule.high);
    const auto small = f.rule.low == std::numeric_limits<std::int64_t>::min() ? n : number;
    switch (f.kind) {
      case Kind::boolean:
        *static_cast<bool*>(f.value) = n % 2 != 0;
        break;
      case Kind::i32:
        *static_cast<std::int32_t*>(f.value) = static_cast<std::int32_t>(small);
        break;
      case Kind::u32:
        *static_cast<std::uint32_t*>(f.value) = static_cast<std::uint32_t>(small);
        break;
      case Kind::i64:
        *static_cast<std::int64_t*>(f.value) = small;
        break;
      case Kind::u64:
        *static_cast<std::uint64_t*>(f.value) = ~0ull - static_cast<std::uint64_t>(n);
        break;
      case Kind::text:
        *static_cast<std::string*>(f.value) = "wörd" + std::to_string(n);
        break;
      case Kind::json:
        *static_cast<std::string*>(f.value) = R"({"a":[1,2]})";
        break;
      case Kind::name: {
        const auto last = f.names.size() - 1;
        std::memcpy(f.value, &last, f.width);
        break;
      }
    }
  }
};

struct Field {
  std::string name;
  Kind kind;
  Rule rule;
};
struct Lister final : FieldVisitor {
  std::vector<Field> fields;
  void visit(const char* name, FieldValue f) override { fields.push_back({name, f.kind, f.rule}); }
};
/// Sets one number, whatever its rule says.
struct Setter final : FieldVisitor {
  std::string which;
  std::int64_t value = 0;
  void visit(const char* name, FieldValue f) override {
    if (name != which) return;
    if (f.kind == Kind::i32 || f.kind == Kind::u32) std::memcpy(f.value, &value, 4);
    if (f.kind == Kind::i64) std::memcpy(f.value, &value, 8);
    if (f.kind == Kind::name) std::memcpy(f.value, &value, f.width);
  }
};

template <class T>
T filled() {
  T out;
  Filler filler;
  out.fields(filler);
  if constexpr (HasPayload<T>) out.payload.assign(8, std::byte{3});
  return out;
}

template <class T>
void refuse(Message message, const std::string& field) {
  const auto r = read<T>(message);
  BOOST_TEST_CONTEXT(to_string(T::kType) << " " << field) {
    BOOST_REQUIRE(!r.has_value());
    BOOST_TEST((r.error().code == Errc::invalid_argument));
    BOOST_TEST(r.error().message.find(std::string(to_string(T::kType)) + ": " + field) == 0u, r.error().message);
  }
}

template <class T>
void round_trip() {
  BOOST_TEST_CONTEXT(to_string(T::kType)) {
    auto message = pack(filled<T>());
    const auto body = message.body;
    BOOST_REQUIRE(check(message).has_value());
    auto back = read<T>(message);
    BOOST_REQUIRE_MESSAGE(back.has_value(), (back ? std::string() : back.error().message));
    auto again = pack(*std::move(back));
    BOOST_TEST(again.body == body);
    if constexpr (HasPayload<T>) BOOST_TEST(again.payload.size() == 8u);
    Message empty;  // all fields missing: defaults
    BOOST_TEST(read<T>(empty).has_value());
  }
}

template <class T>
void refusals() {
  Lister lister;
  T model;
  model.fields(lister);
  for (const auto& f : lister.fields) {
    const bool number = f.kind == Kind::i32 || f.kind == Kind::u32 || f.kind == Kind::i64;
    const auto low = f.kind == Kind::u32 ? std::max<std::int64_t>(f.rule.low, 0) : f.rule.low;
    if (is_packed(T::kType)) {
      BOOST_TEST((f.kind != Kind::text && f.kind != Kind::json), to_string(T::kType)
                                                                     << " is packed and has the text " << f.name);
      for (const auto value : {f.rule.low - 1, f.rule.high + 1}) {
        const bool fits = f.kind == Kind::i64 || (f.kind == Kind::u32 && value >= 0 && value <= 0xffffffff) ||
                          (f.kind == Kind::i32 && value >= -0x80000000ll && value <= 0x7fffffff);
        if (!number || !fits || f.rule.low == std::numeric_limits<std::int64_t>::min() ||
            value == std::numeric_limits<std::int64_t>::min())
          continue;
        auto broken = filled<T>();
        Setter setter;
        setter.which = f.name;
        setter.value = value;
        broken.fields(setter);
        refuse<T>(pack(std::move(broken)), f.name);
      }
      if (f.kind == Kind::name) {
        auto broken = filled<T>();
        Setter setter;
        setter.which = f.name;
        setter.value = 200;
        broken.fields(setter);
        refuse<T>(pack(std::move(broken)), f.name);
      }
      continue;
    }
    const auto with = [&](json value) {
      auto message = pack(filled<T>());
      auto body = json::parse(message.body);
      body[f.name] = std::move(value);
      message.body = body.dump();
      return message;
    };
    if (f.kind != Kind::json) {
      refuse<T>(with(json::array({1})), f.name);
      refuse<T>(with(f.kind == Kind::text || f.kind == Kind::name ? json(1) : json("x")), f.name);
    }
    if (f.kind == Kind::name) refuse<T>(with("none of these"), f.name);
    if (number || f.kind == Kind::u64) refuse<T>(with(1.5), f.name);
    if (f.kind == Kind::u64) refuse<T>(with(-1), f.name);
    if (number) refuse<T>(with(~0ull), f.name);
    if (f.kind == Kind::i32 || f.kind == Kind::u32) refuse<T>(with(5000000000ll), f.name);
    if (number && low != std::numeric_limits<std::int64_t>::min()) refuse<T>(with(low - 1), f.name);
    if (number && f.rule.high != kNone) refuse<T>(with(f.rule.high + 1), f.name);
    if (f.kind == Kind::text && f.rule.high != kNone)
      refuse<T>(with(std::string(static_cast<std::size_t>(f.rule.high) + 1, 'x')), f.name);
  }
}

template <class... Ts>
struct List {
  static void round_trips() { (round_trip<Ts>(), ...); }
  static void all_refusals() { (refusals<Ts>(), ...); }
  static constexpr std::size_t size = sizeof...(Ts);
};
using All = List<Hello, Heartbeat, HeartbeatReply, Window, Cancel, ErrorMessage, Refused, Resync, Open, Close, OpenVad,
                 OpenTokenizer, Tokenize, OpenChat, Synthesise, Claim, Granted, Renew, Audio, Flush, SpeechStarted,
                 SpeechEnded, Cancelled, Tokens, Hear, Generate, Text, Say, ToolResult, GoOn, Speak, Speech, Commit,
                 History, Committed, Records, Opened, TurnDone, Checkpoint, Attach, Attached, ForkChat, SpeechPaused,
                 SpeechResumed, Played, Hold, Release, Interrupted, Configure, Item, Respond, ToolOutput, Utter,
                 Truncate, Forget, Waiting, Noted, Erase, Erased, Event, Decided>;

}  // namespace

BOOST_AUTO_TEST_SUITE(fields)

BOOST_AUTO_TEST_CASE(every_message_comes_back_as_it_was) { All::round_trips(); }

BOOST_AUTO_TEST_CASE(every_type_but_batch_has_its_struct) {
  std::size_t known = 0;
  for (std::uint16_t t = 0; t < kTypeMax; ++t) known += is_known(t);
  BOOST_TEST(All::size == known - 1);
}

BOOST_AUTO_TEST_CASE(a_wrong_value_is_refused_with_the_name_of_message_and_field) { All::all_refusals(); }

BOOST_AUTO_TEST_CASE(what_is_missing_keeps_its_default_and_what_is_unknown_is_ignored) {
  Message m;
  m.body = R"({"later":[1],"turns_max":7})";
  BOOST_TEST(read<History>(m)->turns_max == 7);
  m.body = "{}";
  BOOST_TEST(read<History>(m)->turns_max == 20);
  m.body = std::string("\x05\0\0\0\0\0\0\0", 8);  // an older writer's shorter body
  const auto checkpoint = read<Checkpoint>(m);
  BOOST_REQUIRE(checkpoint.has_value());
  BOOST_TEST(checkpoint->input == 5u);
  BOOST_TEST(checkpoint->keep_until == 0u);
  m.body = std::string(32, '\1') + "later";
  BOOST_TEST(read<Checkpoint>(m)->keep_until == 0x0101010101010101ull);
  m.body.resize(11);
  BOOST_TEST(read<Checkpoint>(m).error().message == "checkpoint: keep_until has 3 of 8 bytes");
}

BOOST_AUTO_TEST_CASE(names_travel_as_words_and_in_packed_bodies_by_position) {
  auto m = pack(Text{.kind = TextKind::tool_call});
  BOOST_TEST(json::parse(m.body)["kind"] == "tool_call");
  m.body = R"({"kind":"sung"})";
  BOOST_TEST(read<Text>(m).error().message == "text: kind is \"sung\", expected transcript, text, tool_call or done");
  BOOST_TEST((names_of<TextKind>().size() == 4u && names_of<TokenizerMode>().size() == 2u &&
              names_of<SpeechMode>().size() == 4u));
}

BOOST_AUTO_TEST_CASE(bytes_that_are_no_text_do_not_end_the_writer) {
  auto m = pack(Say{"a\xff"});
  BOOST_TEST(m.body == "{\"text\":\"a\xef\xbf\xbd\"}");
  m.body = "{\"kind\":\"" + std::string(39, 'a') + "\xc3\xa9\xc3\xa9\"}";  // cut between letters in the error
  const auto r = read<Text>(m);
  BOOST_REQUIRE(!r.has_value());
  BOOST_TEST(json(r.error().message).dump().size() > 0u);  // throws on half a letter
  m.body = "[]";
  BOOST_TEST((read<Say>(m).error().code == Errc::bad_json));
}

BOOST_AUTO_TEST_CASE(a_long_error_arrives_cut_between_letters) {
  auto m = pack(ErrorMessage{"internal", std::string(3999, 'a') + "\xc3\xa9" + std::string(70000, 'b')});
  BOOST_REQUIRE(check(m).has_value());
  const auto r = read<ErrorMessage>(m);
  BOOST_REQUIRE_MESSAGE(r.has_value(), (r ? std::string() : r.error().message));
  BOOST_TEST(r->message == std::string(3999, 'a'));
  BOOST_TEST(cut("ab", 5) == "ab");
  BOOST_TEST(cut("\x80\x80\x80", 2).empty());
}

BOOST_AUTO_TEST_CASE(json_inside_a_body_is_carried_and_bounded) {
  auto m = pack(ToolResult{{R"({"b":[1,null]})"}});
  BOOST_TEST(read<ToolResult>(m)->result.text == R"({"b":[1,null]})");
  m = pack(ToolResult{{std::string(31, '[') + std::string(31, ']')}});
  BOOST_TEST(read<ToolResult>(m)->result.text == "null");
  m = pack(ToolResult{{"{broken"}});
  BOOST_TEST(read<ToolResult>(m)->result.text == "null");
}

BOOST_AUTO_TEST_CASE(the_table_in_the_documentation_is_the_one_in_the_code) {
  std::ifstream file(std::string(PARLANDO_SOURCE_DIR) + "/docs/protocol.md");
  const std::string text(std::istreambuf_iterator<char>(file), {});
  const std::string begin = "<!-- messages: begin -->\n";
  const std::string end = "<!-- messages: end -->";
  const auto from = text.find(begin);
  const auto to = text.find(end);
  BOOST_REQUIRE((from != std::string::npos && to != std::string::npos && from < to));
  const auto table = text.substr(from + begin.size(), to - from - begin.size());
  BOOST_TEST((table == describe_messages()), "docs/protocol.md holds another table; between its markers belongs\n"
                                                 << describe_messages());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::protocol
