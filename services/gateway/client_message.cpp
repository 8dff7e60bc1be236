#include "services/gateway/client_message.hpp"

#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>

#include "common/base/nesting.hpp"
#include "common/base/units.hpp"

namespace parlando::gateway {
using nlohmann::json;

namespace {

constexpr int kDepthMax = 32;
constexpr std::size_t kShownMax = 40;
constexpr std::uint64_t kLeadLeastMs = 50, kLeadMostMs = 10000;

std::string dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }
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
  if (key == "type") return {};
  if (key == "system") return read_text(value, "open: system", to.system);
  if (key == "speaker") return read_text(value, "open: speaker", to.speaker);
  if (key == "speak") {
    if (!value.is_boolean())
      return fail(Errc::invalid_argument, "open: speak is {}, expected true or false", shown(value));
    to.speak = value.get<bool>();
    return {};
  }
  if (key == "seed") {
    if (!value.is_number_unsigned())
      return fail(Errc::invalid_argument, "open: seed is {}, expected a whole number from 0 to 2^64-1", shown(value));
    to.seed = value.get<std::uint64_t>();
    return {};
  }
  if (key == "lead_ms") return read_lead(value, "open", to.lead);
  return fail(Errc::invalid_argument, "open: '{}' is unknown, expected system, speaker, speak, seed or lead_ms",
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

Result<ClientMessage> read_open(const json& body) {
  OpenOptions options;
  for (const auto& [key, value] : body.items()) PARLANDO_DO(read_option(key, value, options));
  protocol::Open open;
  open.system = options.system;
  open.speaker = options.speaker;
  PARLANDO_DO(check(std::move(open)));
  return ClientMessage(std::move(options));
}

Result<std::string> read_hex(const json& value, const char* name) {
  const auto text = value.is_string() ? value.get<std::string>() : std::string();
  if (text.size() != 32 || text.find_first_not_of("0123456789abcdef") != std::string::npos)
    return fail(Errc::invalid_argument, "resume: {} is no text of 32 hexadecimal digits", name);
  return text;
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
  PARLANDO_TRY(const auto session, read_hex(body.value("session", json()), "session"));
  out.session = {std::strtoull(session.substr(0, 16).c_str(), nullptr, 16),
                 std::strtoull(session.substr(16).c_str(), nullptr, 16)};
  PARLANDO_TRY(out.token, read_hex(body.value("token", json()), "token"));
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

Result<ClientMessage> read_say(const json& body) {
  protocol::Say say;
  PARLANDO_DO(read_text(body.value("text", json()), "text: text", say.text));
  PARLANDO_DO(check(say));
  return ClientMessage(std::move(say));
}

Result<ClientMessage> read_cancel(const json& body) {
  protocol::Cancel cancel;
  if (!body.contains("turn")) return ClientMessage(cancel);
  const auto& turn = body["turn"];
  if (!turn.is_number_unsigned() || turn.get<std::uint64_t>() > std::numeric_limits<std::uint32_t>::max())
    return fail(Errc::invalid_argument, "cancel: turn is {}, expected the number of a turn", shown(turn));
  cancel.turn.value = turn.get<std::uint32_t>();
  return ClientMessage(cancel);
}

json event(std::string_view type) { return json{{"type", std::string(type)}}; }
std::string event_of_turn(std::string_view type, TurnId turn) {
  auto e = event(type);
  e["turn"] = turn.value;
  return dump(e);
}

}  // namespace

Result<ClientMessage> read_client_message(std::string_view text) {
  const auto body = nested_deeper_than(text, kDepthMax) ? json() : json::parse(text, nullptr, false);
  if (!body.is_object() || !body.contains("type") || !body["type"].is_string())
    return fail(Errc::bad_json, "the message is not a JSON object with a type");
  const auto type = body["type"].get<std::string>();
  if (type == "open") return read_open(body);
  if (type == "resume") return read_resume(body);
  if (type == "flush") return ClientMessage(protocol::Flush{});
  if (type == "cancel") return read_cancel(body);
  if (type == "text") return read_say(body);
  return fail(Errc::unknown_type, "the type is '{}', expected open, resume, flush, text or cancel",
              type.substr(0, kShownMax));
}

std::string opened_event(SessionId session, std::uint64_t seed, const std::string& token,
                         const protocol::Opened& opened, std::optional<milliseconds> lead) {
  auto e = event("opened");
  e["session"] = session.text();
  e["rate"] = kSpeechRate;
  e["turns"] = opened.turns;
  e["seed"] = seed;
  e["resume_token"] = token;
  if (lead) e["lead_ms"] = lead->count();
  if (opened.degraded) e["degraded"] = true;
  return dump(e);
}

std::string resumed_event(SessionId session, const std::string& token, const protocol::Attached& attached,
                          std::optional<milliseconds> lead) {
  auto e = event("opened");
  e["session"] = session.text();
  e["rate"] = kSpeechRate;
  e["turns"] = attached.turns;
  e["seed"] = attached.seed;
  e["resume_token"] = token;
  e["resumed"] = true;
  e["input_samples"] = attached.position_samples;
  if (attached.open_turn.value != 0) e["turn"] = attached.open_turn.value;
  if (lead) e["lead_ms"] = lead->count();
  if (attached.degraded) e["degraded"] = true;
  return dump(e);
}

std::string speech_event(std::string_view type, std::int64_t sample) {
  auto e = event(type);
  e["sample"] = sample;
  return dump(e);
}

std::string text_event(protocol::TextKind kind, std::string_view text) {
  auto e = event("text");
  e["kind"] = std::string(protocol::names_of<protocol::TextKind>()[static_cast<std::size_t>(kind)]);
  e["text"] = std::string(text);
  return dump(e);
}

std::string turn_event(const protocol::TurnDone& done) {
  const std::string_view record(reinterpret_cast<const char*>(done.payload.data()), done.payload.size());
  auto e = nested_deeper_than(record, kDepthMax) ? json() : json::parse(record, nullptr, false);
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

std::string error_event(std::string_view code, std::string_view message, std::int64_t retry_ms, bool session_ended) {
  auto e = event("error");
  e["code"] = std::string(code);
  e["message"] = std::string(message);
  if (retry_ms > 0) e["retry_ms"] = retry_ms;
  if (session_ended) e["session_ended"] = true;
  return dump(e);
}

}  // namespace parlando::gateway
