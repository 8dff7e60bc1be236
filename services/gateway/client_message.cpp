#include "services/gateway/client_message.hpp"

#include <cstdlib>
#include <map>

#include "common/base/nesting.hpp"
#include "common/base/units.hpp"
#include "services/gateway/json_text.hpp"
#include "services/gateway/settings.hpp"

namespace parlando::gateway {
using nlohmann::json;

namespace {

constexpr int kMessageDepthMax = 32;
constexpr std::size_t kShownMax = 40;
constexpr std::uint64_t kLeadLeastMs = 50, kLeadMostMs = 10000;

/// A value for an error message; what is cut off within a character becomes U+FFFD with the whole message.
std::string shown(const json& value) { return dump(value).substr(0, kShownMax); }

Result<void> read_text(const json& value, const char* name, std::string& to) {
  if (!value.is_string()) return fail(Errc::invalid_argument, "{} is {}, expected a text", name, shown(value));
  to = value.get<std::string>();
  return {};
}

Result<void> read_lead(const json& value, const char* name, std::optional<milliseconds>& to) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() < kLeadLeastMs ||
      value.get<std::uint64_t>() > kLeadMostMs)
    return fail(Errc::invalid_argument, "{}: lead_ms is {}, expected a whole number from {} to {}", name, shown(value),
                kLeadLeastMs, kLeadMostMs);
  to = milliseconds(value.get<std::int64_t>());
  return {};
}

Result<void> read_option(const std::string& key, const json& value, OpenOptions& to) {
  if (key == "type" || key == "session" || key == "token" || is_setting(key)) return {};
  if (key == "stored") {
    if (!value.is_boolean())
      return fail(Errc::invalid_argument, "open: stored is {}, expected true or false", shown(value));
    to.stored = value.get<bool>();
    return {};
  }
  if (key == "seed") {
    if (!value.is_number_unsigned())
      return fail(Errc::invalid_argument, "open: seed is {}, expected a whole number from 0 to 2^64-1", shown(value));
    to.seed = value.get<std::uint64_t>();
    return {};
  }
  if (key == "lead_ms") return read_lead(value, "open", to.lead);
  return fail(Errc::invalid_argument,
              "open: '{}' is unknown, expected seed, lead_ms, stored, session, token or a setting",
              key.substr(0, kShownMax));
}

/// Would controllers take it? The fields' limits are those of messages.hpp.
template <class T>
Result<void> check(T message) {
  auto packed = protocol::pack(std::move(message));
  PARLANDO_DO(protocol::check(packed).map_error([](Error e) {
    return Error{Errc::invalid_argument, std::move(e.message)};
  }));
  PARLANDO_TRY([[maybe_unused]] auto read, protocol::read<T>(packed));
  return {};
}

Result<std::string> read_hex(const json& value, const char* name) {
  const auto text = value.is_string() ? value.get<std::string>() : std::string();
  if (text.size() != 32 || text.find_first_not_of("0123456789abcdef") != std::string::npos)
    return fail(Errc::invalid_argument, "{} is no text of 32 hexadecimal digits", name);
  return text;
}

Result<SessionId> read_session(const json& value, const char* name) {
  PARLANDO_TRY(const auto text, read_hex(value, name));
  return SessionId{std::strtoull(text.substr(0, 16).c_str(), nullptr, 16),
                   std::strtoull(text.substr(16).c_str(), nullptr, 16)};
}

/// A session by its name needs its token.
template <class Options>
Result<void> read_named(const json& body, const char* type, Options& to) {
  if (!body.contains("session") && !body.contains("token")) return {};
  PARLANDO_TRY(to.session, read_session(body.value("session", json()), fmt::format("{}: session", type).c_str()));
  PARLANDO_TRY(to.token, read_hex(body.value("token", json()), fmt::format("{}: token", type).c_str()));
  return {};
}

Result<ClientMessage> read_open(const json& body) {
  OpenOptions options;
  for (const auto& [key, value] : body.items()) PARLANDO_DO(read_option(key, value, options));
  PARLANDO_DO(read_named(body, "open", options));
  if (options.session && !options.stored) return fail(Errc::invalid_argument, "open: a session that goes on is stored");
  PARLANDO_TRY(const auto changes, read_settings(body, "open"));
  PARLANDO_DO(protocol::apply(changes, options));
  protocol::Open open;
  static_cast<protocol::Settings&>(open) = options;
  PARLANDO_DO(check(std::move(open)));
  return ClientMessage(std::move(options));
}

/// Nothing but settings and these fields.
Result<void> expect_only(const json& body, const char* type, std::initializer_list<std::string_view> known,
                         bool settings = false) {
  for (const auto& [key, value] : body.items()) {
    if (key == "type" || (settings && is_setting(key))) continue;
    if (std::find(known.begin(), known.end(), key) == known.end())
      return fail(Errc::invalid_argument, "{}: '{}' is unknown, expected {}{}", type, key.substr(0, kShownMax),
                  fmt::join(known, ", "),
                  !settings           ? ""
                  : known.size() == 0 ? "a setting"
                                      : " or a setting");
  }
  return {};
}

Result<ClientMessage> read_configure(const json& body) {
  PARLANDO_DO(expect_only(body, "configure", {}, true));
  PARLANDO_TRY(auto changes, read_settings(body, "configure"));
  protocol::Configure whole;
  PARLANDO_DO(protocol::apply(changes, whole));
  return ClientMessage(SettingsChange{std::move(changes)});
}

Result<ClientMessage> read_respond(const json& body) {
  PARLANDO_DO(expect_only(body, "respond", {"remember"}, true));
  protocol::Respond respond;
  PARLANDO_TRY(respond.settings, read_settings(body, "respond"));
  protocol::Settings whole;
  PARLANDO_DO(protocol::apply(respond.settings, whole));
  if (respond.settings.text == "{}") respond.settings = {};
  if (const auto remember = body.find("remember"); remember != body.end()) {
    if (!remember->is_boolean())
      return fail(Errc::invalid_argument, "respond: remember is {}, expected true or false", shown(*remember));
    respond.remember = remember->get<bool>();
  }
  PARLANDO_DO(check(respond));
  return ClientMessage(std::move(respond));
}

template <class E>
Result<E> read_name(const json& value, const char* what) {
  const auto names = protocol::names_of<E>();
  for (std::size_t i = 0; i < names.size(); ++i)
    if (value == names[i]) return static_cast<E>(i);
  return fail(Errc::invalid_argument, "{} is {}, expected {}", what, shown(value), fmt::join(names, ", "));
}

/// The calls of an assistant, or the call that a tool answers. Items without are plain texts.
Result<void> check_calls(const protocol::Item& item, const json& calls) {
  using protocol::ItemRole;
  bool good = calls.is_null();
  if (item.role == ItemRole::tool) good = calls.is_string() && calls.get_ref<const std::string&>().size() <= 100;
  if (item.role == ItemRole::assistant && calls.is_array()) {
    const auto is_call = [](const json& call) {
      const auto has_text = [&](const char* key) { return call.contains(key) && call[key].is_string(); };
      return call.is_object() && has_text("id") && has_text("name") && call.contains("arguments");
    };
    good = std::all_of(calls.begin(), calls.end(), is_call);
  }
  if (good) return {};
  const auto* expected = item.role == ItemRole::tool        ? "the id of the call that it answers"
                         : item.role == ItemRole::assistant ? "a list of {id, name, arguments}"
                                                            : "none";
  return fail(Errc::invalid_argument, "item: calls is {}, expected {}", shown(calls), expected);
}

Result<ClientMessage> read_item(const json& body) {
  PARLANDO_DO(expect_only(body, "item", {"id", "role", "text", "calls"}));
  protocol::Item item;
  PARLANDO_TRY(item.role, read_name<protocol::ItemRole>(body.value("role", json()), "item: role"));
  PARLANDO_DO(read_text(body.value("text", json("")), "item: text", item.text));
  PARLANDO_DO(read_text(body.value("id", json("")), "item: id", item.id));
  const auto calls = body.value("calls", json());
  PARLANDO_DO(check_calls(item, calls));
  item.calls.text = dump(calls);
  PARLANDO_DO(check(item));
  return ClientMessage(std::move(item));
}

Result<ClientMessage> read_tool_output(const json& body) {
  PARLANDO_DO(expect_only(body, "tool_output", {"call", "output"}));
  protocol::ToolOutput out;
  PARLANDO_DO(read_text(body.value("call", json()), "tool_output: call", out.call));
  PARLANDO_DO(read_text(body.value("output", json()), "tool_output: output", out.output));
  PARLANDO_DO(check(out));
  return ClientMessage(std::move(out));
}

Result<ClientMessage> read_utter(const json& body) {
  PARLANDO_DO(expect_only(body, "utter", {"text"}));
  protocol::Utter utter;
  PARLANDO_DO(read_text(body.value("text", json()), "utter: text", utter.text));
  if (utter.text.empty()) return fail(Errc::invalid_argument, "utter: text is empty");
  PARLANDO_DO(check(utter));
  return ClientMessage(std::move(utter));
}

Result<void> read_count(const std::string& key, const json& value, std::int64_t& to) {
  constexpr auto kMost = std::uint64_t{1} << 53;
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > kMost)
    return fail(Errc::invalid_argument, "resume: {} is {}, expected a whole number from 0 to 2^53", key, shown(value));
  to = value.get<std::int64_t>();
  return {};
}

Result<ClientMessage> read_resume(const json& body) {
  ResumeOptions out;
  PARLANDO_TRY(out.session, read_session(body.value("session", json()), "resume: session"));
  PARLANDO_TRY(out.token, read_hex(body.value("token", json()), "resume: token"));
  std::int64_t turn = 0;
  const std::map<std::string, std::int64_t*> counts{{"turn", &turn},
                                                    {"samples", &out.claim.samples},
                                                    {"transcript_bytes", &out.claim.transcript_bytes},
                                                    {"reply_bytes", &out.claim.reply_bytes},
                                                    {"tool_calls", &out.claim.tool_calls}};
  for (const auto& [key, value] : body.items()) {
    if (key == "type" || key == "session" || key == "token") continue;
    if (key == "lead_ms") {
      PARLANDO_DO(read_lead(value, "resume", out.lead));
      continue;
    }
    const auto found = counts.find(key);
    if (found == counts.end())
      return fail(Errc::invalid_argument,
                  "resume: '{}' is unknown, expected session, token, turn, samples, transcript_bytes, reply_bytes, "
                  "tool_calls or lead_ms",
                  key.substr(0, kShownMax));
    PARLANDO_DO(read_count(key, value, *found->second));
  }
  if (turn > std::numeric_limits<std::uint32_t>::max())
    return fail(Errc::invalid_argument, "resume: turn is {}, expected the number of a turn", turn);
  out.claim.turn.value = static_cast<std::uint32_t>(turn);
  return ClientMessage(std::move(out));
}

Result<ClientMessage> read_erase(const json& body) {
  PARLANDO_DO(expect_only(body, "erase", {"session", "token"}));
  EraseOptions out;
  PARLANDO_DO(read_named(body, "erase", out));
  return ClientMessage(std::move(out));
}

Result<ClientMessage> read_say(const json& body) {
  protocol::Say say;
  PARLANDO_DO(read_text(body.value("text", json()), "text: text", say.text));
  PARLANDO_DO(check(say));
  return ClientMessage(std::move(say));
}

Result<TurnId> read_turn(const json& turn, const char* what) {
  if (!turn.is_number_unsigned() || turn.get<std::uint64_t>() > std::numeric_limits<std::uint32_t>::max())
    return fail(Errc::invalid_argument, "{} is {}, expected the number of a turn", what, shown(turn));
  return TurnId{turn.get<std::uint32_t>()};
}

Result<ClientMessage> read_cancel(const json& body) {
  protocol::Cancel cancel;
  if (!body.contains("turn")) return ClientMessage(cancel);
  PARLANDO_TRY(cancel.turn, read_turn(body["turn"], "cancel: turn"));
  return ClientMessage(cancel);
}

Result<ClientMessage> read_truncate(const json& body) {
  PARLANDO_DO(expect_only(body, "truncate", {"turn", "samples"}));
  protocol::Truncate out;
  PARLANDO_TRY(out.turn, read_turn(body.value("turn", json()), "truncate: turn"));
  const auto samples = body.value("samples", json());
  if (!samples.is_number_unsigned() || samples.get<std::uint64_t>() > (std::uint64_t{1} << 53))
    return fail(Errc::invalid_argument, "truncate: samples is {}, expected a whole number from 0 to 2^53",
                shown(samples));
  out.samples = samples.get<std::int64_t>();
  return ClientMessage(out);
}

Result<ClientMessage> read_forget(const json& body) {
  PARLANDO_DO(expect_only(body, "forget", {"item", "turn", "part"}));
  protocol::Forget out;
  if (body.contains("item") == body.contains("turn"))
    return fail(Errc::invalid_argument, "forget: either item or turn is expected");
  if (body.contains("item")) {
    PARLANDO_DO(read_text(body["item"], "forget: item", out.item));
    if (out.item.empty()) return fail(Errc::invalid_argument, "forget: item is empty");
  } else {
    PARLANDO_TRY(out.turn, read_turn(body["turn"], "forget: turn"));
  }
  if (body.contains("part")) {
    PARLANDO_TRY(out.part, read_name<protocol::TurnPart>(body["part"], "forget: part"));
  }
  PARLANDO_DO(check(out));
  return ClientMessage(std::move(out));
}

json event(std::string_view type) { return json{{"type", std::string(type)}}; }
std::string event_of_turn(std::string_view type, TurnId turn) {
  auto e = event(type);
  e["turn"] = turn.value;
  return dump(e);
}

}  // namespace

Result<ClientMessage> read_client_message(std::string_view text) {
  const auto body = nested_deeper_than(text, kMessageDepthMax) ? json() : json::parse(text, nullptr, false);
  if (!body.is_object() || !body.contains("type") || !body["type"].is_string())
    return fail(Errc::bad_json, "the message is not a JSON object with a type");
  const auto type = body["type"].get<std::string>();
  using Read = Result<ClientMessage> (*)(const json&);
  static const std::map<std::string, Read, std::less<>> kTypes{
      {"open", read_open},
      {"resume", read_resume},
      {"configure", read_configure},
      {"text", read_say},
      {"cancel", read_cancel},
      {"item", read_item},
      {"respond", read_respond},
      {"tool_output", read_tool_output},
      {"utter", read_utter},
      {"truncate", read_truncate},
      {"forget", read_forget},
      {"erase", read_erase},
      {"flush", [](const json&) { return Result<ClientMessage>(protocol::Flush{}); }}};
  if (const auto found = kTypes.find(type); found != kTypes.end()) return found->second(body);
  std::vector<std::string_view> names;
  for (const auto& [name, read] : kTypes) names.push_back(name);
  return fail(Errc::unknown_type, "the type is '{}', expected {}", type.substr(0, kShownMax), fmt::join(names, ", "));
}

namespace {
void tell_keys(json& to, const SessionKeys& keys) {
  to["resume_token"] = keys.resume_token;
  if (!keys.session_token.empty()) to["session_token"] = keys.session_token;
}
}  // namespace

std::string opened_event(SessionId session, std::uint64_t seed, const SessionKeys& keys, const protocol::Opened& opened,
                         std::optional<milliseconds> lead) {
  auto e = event("opened");
  e["session"] = session.text();
  e["rate"] = kSpeechRate;
  e["turns"] = opened.turns;
  e["seed"] = seed;
  tell_keys(e, keys);
  if (lead) e["lead_ms"] = lead->count();
  if (opened.degraded) e["degraded"] = true;
  return dump(e);
}

std::string resumed_event(SessionId session, const SessionKeys& keys, const protocol::Attached& attached,
                          std::optional<milliseconds> lead) {
  auto e = event("opened");
  e["session"] = session.text();
  e["rate"] = kSpeechRate;
  e["turns"] = attached.turns;
  e["seed"] = attached.seed;
  tell_keys(e, keys);
  e["resumed"] = true;
  e["input_samples"] = attached.position_samples;
  if (attached.open_turn.value != 0) e["turn"] = attached.open_turn.value;
  if (lead) e["lead_ms"] = lead->count();
  if (attached.degraded) e["degraded"] = true;
  return dump(e);
}

std::string erased_event(SessionId session, std::int64_t turns) {
  auto e = event("erased");
  e["session"] = session.text();
  e["turns"] = turns;
  return dump(e);
}

std::string speech_event(std::string_view type, std::int64_t sample) {
  auto e = event(type);
  e["sample"] = sample;
  return dump(e);
}

std::string text_event(TurnId turn, protocol::TextKind kind, std::string_view text) {
  auto e = event("text");
  e["turn"] = turn.value;
  e["kind"] = std::string(protocol::names_of<protocol::TextKind>()[static_cast<std::size_t>(kind)]);
  e["text"] = std::string(text);
  return dump(e);
}

std::string turn_event(const protocol::TurnDone& done) {
  const std::string_view record(reinterpret_cast<const char*>(done.payload.data()), done.payload.size());
  auto e = nested_deeper_than(record, kMessageDepthMax) ? json() : json::parse(record, nullptr, false);
  if (!e.is_object()) e = json::object();
  e["type"] = "turn";
  e["turn"] = done.turn;
  if (done.degraded) e["degraded"] = true;
  return dump(e);
}

std::string cancelled_event(TurnId turn) { return event_of_turn("cancelled", turn); }
std::string hold_event(TurnId turn) { return event_of_turn("hold", turn); }
std::string release_event(TurnId turn) { return event_of_turn("release", turn); }

std::string interrupted_event(const protocol::Interrupted& interrupted) {
  auto e = event("interrupted");
  e["turn"] = interrupted.turn.value;
  e["samples"] = interrupted.samples;
  e["heard"] = interrupted.heard;
  return dump(e);
}

std::string waiting_event(const protocol::Waiting& waiting) {
  auto e = event("waiting");
  e["turn"] = waiting.turn.value;
  e["calls"] = waiting.calls;
  return dump(e);
}

std::string noted_event(const protocol::Noted& noted) {
  auto e = event("noted");
  e["id"] = noted.id;
  e["text"] = noted.text;
  e["first_sample"] = noted.first_sample;
  e["end_sample"] = noted.end_sample;
  return dump(e);
}

std::string error_event(std::string_view code, std::string_view message, std::int64_t retry_ms, bool session_ended,
                        TurnId turn) {
  auto e = event("error");
  e["code"] = std::string(code);
  e["message"] = std::string(message);
  if (retry_ms > 0) e["retry_ms"] = retry_ms;
  if (session_ended) e["session_ended"] = true;
  if (turn.value != 0) e["turn"] = turn.value;
  return dump(e);
}

}  // namespace parlando::gateway
