#pragma once
/// A realtime translator between a scripted client and a scripted conversation. What it has ever emitted in a test is
/// written to a file, which realtime_schema_test.py holds against the published schema.
#include <boost/test/unit_test.hpp>
#include <cstdlib>
#include <fstream>

#include "common/base/base64.hpp"
#include "services/gateway/realtime.hpp"

namespace parlando::gateway {

using nlohmann::json;

/// Of all tests of this program, one a line.
inline std::ofstream& emitted() {
  static std::ofstream file(PARLANDO_REALTIME_EVENTS, std::ios::trunc);
  return file;
}

struct RealtimeRig {
  explicit RealtimeRig(RealtimeOptions options = {}) : translator(with_prefix(std::move(options))) {
    translator.start();
    collect();
  }
  static RealtimeOptions with_prefix(RealtimeOptions options) {
    static int rigs = 0;
    options.id_prefix = fmt::format("t{}x", ++rigs);
    options.expires_at = 1800000000;
    return options;
  }

  void collect() {
    for (auto& [text, sound, number] : translator.take_for_client()) {
      BOOST_TEST(text.size() < (1u << 20));
      if (is_recorded) emitted() << text << "\n";
      events.push_back(json::parse(text));
    }
    for (auto& message : translator.take_for_talks()) {
      if (message.kind == ToTalk::Kind::text) {
        auto body = json::parse(message.data);
        body["talk"] = message.talk;
        told.push_back(std::move(body));
      } else if (message.kind == ToTalk::Kind::sound) {
        BOOST_TEST(message.data.size() <= (32u << 10));
        BOOST_TEST(message.data.size() % 2 == 0u);
        heard += message.data;
      } else {
        told.push_back({{"type", message.kind == ToTalk::Kind::begin ? "(begin)" : "(end)"}, {"talk", message.talk}});
      }
    }
  }
  /// The client says this.
  RealtimeRig& say(const json& event) { return say_text(event.dump()); }
  RealtimeRig& say_text(const std::string& text) {
    translator.client_message(text, false);
    collect();
    return *this;
  }
  RealtimeRig& append(std::span<const std::byte> sound) {
    return say({{"type", "input_audio_buffer.append"}, {"audio", to_base64(sound)}});
  }
  /// So much silence.
  RealtimeRig& append_ms(int ms) { return append(std::vector<std::byte>(static_cast<std::size_t>(ms) * 48)); }
  RealtimeRig& update(json session) {
    session["type"] = session.value("type", "realtime");
    return say({{"type", "session.update"}, {"session", std::move(session)}});
  }
  RealtimeRig& without_detection() { return update({{"audio", {{"input", {{"turn_detection", nullptr}}}}}}); }

  /// The conversation tells this.
  RealtimeRig& tell(const json& event, int talk = 0) {
    translator.talk_event(talk, event.dump());
    collect();
    return *this;
  }
  RealtimeRig& text(int turn, const std::string& text, const char* kind = "text", int talk = 0) {
    return tell({{"type", "text"}, {"turn", turn}, {"kind", kind}, {"text", text}}, talk);
  }
  RealtimeRig& call(int turn, const std::string& id, const std::string& name, const json& arguments) {
    return text(turn, json{{"id", id}, {"name", name}, {"arguments", arguments}}.dump(), "tool_call");
  }
  RealtimeRig& sound(int turn, std::size_t samples, int talk = 0) {
    std::string pcm(2 * samples, '\0');
    for (std::size_t i = 0; i < samples; ++i) pcm[2 * i + 1] = static_cast<char>(i % 50);
    translator.talk_sound(talk, static_cast<std::uint32_t>(turn), pcm);
    collect();
    return *this;
  }
  RealtimeRig& turn(int turn, int talk = 0) {
    return tell({{"type", "turn"},
                 {"turn", turn},
                 {"user", ""},
                 {"assistant", ""},
                 {"usage", {{"prompt_tokens", 50}, {"cached_tokens", 20}, {"output_tokens", 7}}}},
                talk);
  }
  /// A spoken turn of 1 s up to its transcript.
  RealtimeRig& spoken(int number, const std::string& transcript, std::int64_t at = 0) {
    append_ms(1500);
    tell({{"type", "speech_started"}, {"sample", at + 1600}});
    tell({{"type", "speech_ended"}, {"sample", at + 17600}});
    return text(number, transcript, "transcript");
  }

  /// Types of the events since the last time; deltas of one kind in a row are one.
  std::string types() {
    std::string out;
    std::string last;
    for (; seen < events.size(); ++seen) {
      const auto type = events[seen]["type"].get<std::string>();
      if (type == last && type.ends_with(".delta")) continue;
      if (type == "rate_limits.updated") continue;  // beside the flows
      out += (out.empty() ? "" : " ") + type;
      last = type;
    }
    return out;
  }
  std::string told_types() {
    std::string out;
    for (; told_seen < told.size(); ++told_seen)
      out += (out.empty() ? "" : " ") + told[told_seen]["type"].get<std::string>();
    return out;
  }
  void skip() {
    seen = events.size();
    told_seen = told.size();
  }
  /// The last event of a type.
  const json& last(const std::string& type) const {
    for (auto e = events.rbegin(); e != events.rend(); ++e)
      if ((*e)["type"] == type) return *e;
    BOOST_FAIL("no event " << type);
    throw 0;
  }
  const json& last_told(const std::string& type) const {
    for (auto e = told.rbegin(); e != told.rend(); ++e)
      if ((*e)["type"] == type) return *e;
    BOOST_FAIL("no message " << type);
    throw 0;
  }
  /// Of the last call that was told.
  std::string call_id() const { return last("response.function_call_arguments.done")["call_id"]; }
  std::size_t count(const std::string& type) const {
    return static_cast<std::size_t>(
        std::count_if(events.begin(), events.end(), [&](const json& e) { return e["type"] == type; }));
  }
  /// Samples of the client's format in all sound deltas of a response.
  std::size_t sound_bytes(const std::string& response) const {
    std::size_t out = 0;
    for (const auto& e : events)
      if (e["type"] == "response.output_audio.delta" && e["response_id"] == response)
        out += from_base64(e["delta"].get<std::string>())->size();
    return out;
  }

  Realtime translator;
  bool is_recorded = true;
  std::vector<json> events, told;
  std::string heard;  ///< by the conversation
  std::size_t seen = 0, told_seen = 0;
};

}  // namespace parlando::gateway
