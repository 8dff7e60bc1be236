/// Malformed and abrupt clients of a gateway: HTTP, both WebSockets, and the mesh. A seeded script connects, says what
/// is right, nearly right or nonsense, stops in the middle and goes; controllers answer as they like. Whatever is said,
/// the gateway lives, answers what it must, and keeps nothing of those who have gone.
///
///   front_door_fuzz                                      20,000 inputs
///   PARLANDO_FUZZ_INPUTS=1000000 PARLANDO_FUZZ_SEED=7 front_door_fuzz
#define BOOST_TEST_MODULE front_door_fuzz
#include <cstdlib>
#include <deque>
#include <fstream>
#include <list>
#include <random>
#include <sstream>

#include "common/audio/audio_file.hpp"
#include "common/base/base64.hpp"
#include "tests/services/gateway/door.hpp"
#include "tests/support/temporary_directory.hpp"

namespace parlando::gateway {
namespace {

std::uint64_t number_from(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

std::size_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  std::size_t all = 0, resident = 0;
  file >> all >> resident;
  return resident * 4096;
}

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  std::size_t below(std::size_t n) { return n == 0 ? 0 : engine_() % n; }
  bool once_in(std::size_t n) { return below(n) == 0; }
  template <class T>
  const T& of(const std::vector<T>& all) {
    return all[below(all.size())];
  }
  std::string bytes(std::size_t count) {
    std::string out(count, '\0');
    for (auto& c : out) c = static_cast<char>(engine_());
    return out;
  }

 private:
  std::mt19937_64 engine_;
};

std::string a_recording() { return audio::encode_wav(std::vector<float>(16000, 0.25f), 16000); }

// ------------------------------------------------------------------------------------------------ what is right

std::vector<std::string> dialogue_messages() {
  return {
      R"({"type":"open"})",
      R"({"type":"open","lead_ms":400,"speak":true,"detection":{"type":"semantic","eagerness":"low"}})",
      R"({"type":"open","stored":false,"seed":7,"tools":[{"name":"f","parameters":{"type":"object"}}]})",
      R"({"type":"text","text":"hello"})",
      R"({"type":"flush"})",
      R"({"type":"cancel"})",
      R"({"type":"cancel","turn":1})",
      R"({"type":"configure","temperature":0.5,"stop":["x"],"speaker":"voice_0123456789abcdef0123456789abcdef"})",
      R"({"type":"item","role":"user","text":"before","id":"i1"})",
      R"({"type":"item","role":"tool","text":"4","calls":"c1"})",
      R"({"type":"respond","remember":false,"max_tokens":5})",
      R"({"type":"tool_output","call":"c1","output":"4"})",
      R"({"type":"utter","text":"say this"})",
      R"({"type":"truncate","turn":1,"samples":100})",
      R"({"type":"forget","turn":1,"part":"all"})",
      R"({"type":"erase"})",
      R"({"type":"erase","session":"00000000000000070000000000000009","token":"0123456789abcdef0123456789abcdef"})",
      R"({"type":"open","session":"00000000000000070000000000000009","token":"0123456789abcdef0123456789abcdef"})",
      R"({"type":"resume","session":"0123456789abcdef0123456789abcdef","token":"0123456789abcdef0123456789abcdef"})"};
}

std::vector<std::string> realtime_messages() {
  const auto sound = to_base64(std::vector<std::byte>(4800));
  return {
      R"({"type":"input_audio_buffer.append","audio":")" + sound + "\"}",
      R"({"type":"input_audio_buffer.append","audio":")" + std::string(400'000, 'A') + "\"}",
      R"({"type":"input_audio_buffer.commit"})",
      R"({"type":"input_audio_buffer.clear"})",
      R"({"type":"session.update","session":{"type":"realtime","audio":{"input":{"turn_detection":null}}}})",
      R"({"type":"session.update","session":{"type":"realtime","audio":{"input":{"format":{"type":"audio/opus"}}}}})",
      R"({"type":"session.update","session":{"type":"realtime","tools":[{"type":"function","name":"f"}]}})",
      R"({"type":"session.update","session":{"modalities":["text"],"voice":"alloy","input_audio_format":"pcm16"}})",
      R"({"type":"conversation.item.create","item":{"id":"a","type":"message","role":"user","content":[{"type":"input_text","text":"hi"}]}})",
      R"({"type":"conversation.item.create","item":{"type":"function_call_output","call_id":"c","output":"4"}})",
      R"({"type":"conversation.item.truncate","item_id":"a","content_index":0,"audio_end_ms":5})",
      R"({"type":"conversation.item.delete","item_id":"a"})",
      R"({"type":"conversation.item.retrieve","item_id":"a"})",
      R"({"type":"response.create"})",
      R"({"type":"response.create","response":{"conversation":"none","input":[{"type":"item_reference","id":"a"}]}})",
      R"({"type":"response.cancel"})"};
}

std::string request(const std::string& method, const std::string& path, const std::string& body = {},
                    const std::string& type = "application/json") {
  auto out = method + " " + path + " HTTP/1.1\r\nHost: localhost\r\n";
  if (!body.empty()) out += "Content-Type: " + type + "\r\nContent-Length: " + std::to_string(body.size()) + "\r\n";
  return out + "\r\n" + body;
}

std::vector<std::string> requests() {
  const std::string form_type = "multipart/form-data; boundary=b";
  const auto part = [](const std::string& name, const std::string& value) {
    return "--b\r\nContent-Disposition: form-data; name=\"" + name + "\"; filename=\"x\"\r\n\r\n" + value + "\r\n";
  };
  const auto wav = a_recording(), chat = std::string("/v1/chat/completions");
  return {
      request("POST", chat, R"({"model":"m","messages":[{"role":"user","content":"hi"}]})"),
      request(
          "POST", chat,
          R"({"model":"m","stream":true,"messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"hi"}]}]})"),
      request(
          "POST", chat,
          R"({"model":"m","modalities":["text","audio"],"audio":{"voice":"alloy","format":"wav"},"messages":[{"role":"user","content":"hi"}]})"),
      request(
          "POST", chat,
          R"({"model":"m","messages":[{"role":"user","content":[{"type":"input_audio","input_audio":{"format":"wav","data":")" +
              to_base64(std::as_bytes(std::span(wav))) + R"("}}]}]})"),
      request("POST", "/v1/audio/speech", R"({"model":"m","input":"hello","voice":"Clara","response_format":"pcm"})"),
      request("POST", "/v1/audio/speech",
              R"({"model":"m","input":"hello","voice":"Clara","stream_format":"sse","speed":2})"),
      request("POST", "/v1/audio/transcriptions", part("model", "m") + part("file", wav) + "--b--\r\n", form_type),
      request("POST", "/v1/audio/voices",
              part("name", "n") + part("transcript", "t") + part("consent", "c") + part("file", wav) + "--b--\r\n",
              form_type),
      request("GET", "/v1/audio/voices"),
      request("DELETE", "/v1/audio/voices/voice_0123456789abcdef0123456789abcdef"),
      request("DELETE", "/v1/sessions/00000000000000070000000000000009"),
      request("POST", "/v1/realtime/client_secrets", R"({"session":{"type":"realtime","instructions":"x"}})"),
      request("GET", "/v1/models"),
      request("GET", "/v1/models/parlando-chat"),
      request("OPTIONS", chat),
      request("GET", "/healthz"),
      request("GET", "/openapi.json"),
      request("HEAD", "/")};
}

// ------------------------------------------------------------------------------------------------ what is not

/// A value of JSON somewhere in the text becomes another one.
std::string with_other_value(std::string text, Random& random) {
  auto body = json::parse(text, nullptr, false);
  if (body.is_discarded()) return text;
  auto flat = body.flatten();
  if (flat.empty()) return text;
  auto at = flat.begin();
  std::advance(at, static_cast<std::ptrdiff_t>(random.below(flat.size())));
  static const std::vector<json> kValues{nullptr,
                                         true,
                                         -1,
                                         0,
                                         1e308,
                                         std::uint64_t{1} << 63,
                                         "",
                                         "x",
                                         std::string(70'000, 'y'),
                                         json::array(),
                                         json::object(),
                                         json::array({json::array({1})}),
                                         "\u0000\uffff",
                                         0.0001};
  try {
    body[json::json_pointer(at.key())] = random.of(kValues);
    if (random.once_in(4)) body["surplus"] = random.of(kValues);
    return body.dump(-1, ' ', false, json::error_handler_t::replace);
  } catch (const json::exception&) {
    return text;
  }
}

std::string spoiled(std::string text, Random& random) {
  switch (random.below(7)) {
    case 0:
      return with_other_value(std::move(text), random);
    case 1:
      if (!text.empty()) text[random.below(text.size())] = static_cast<char>(random.below(256));
      return text;
    case 2:
      return text.substr(0, random.below(text.size() + 1));
    case 3:
      text.insert(random.below(text.size() + 1), random.bytes(random.below(40)));
      return text;
    case 4: {
      const auto from = random.below(text.size() + 1);
      text.erase(from, random.below(20));
      return text;
    }
    case 5:
      return text + text;
    default:
      return std::string(1 + random.below(200), "[{\"\xff"[random.below(4)]);
  }
}

/// A frame that breaks the rules of WebSockets.
std::string bad_frame(Random& random) {
  auto frame =
      http::Client::encode(static_cast<int>(random.below(16)), random.bytes(random.below(130)), !random.once_in(3));
  if (random.once_in(2)) frame[0] = static_cast<char>(random.below(256));
  if (random.once_in(3)) frame[1] = static_cast<char>(random.below(256));
  if (random.once_in(8)) frame = std::string("\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff", 10) + frame;
  return frame;
}

// ------------------------------------------------------------------------------------------------ the play

struct Play {
  explicit Play(std::uint64_t seed) : random(seed), door(config(folder)) {
    door.core.add_metrics(metrics);
    for (int i = 0; i < 3; ++i) peer(i, transport::PeerState::up);
  }
  static GatewayConfig config(const TemporaryDirectory& folder) {
    auto out = config_of_tests();
    out.hosts = {"*"};
    out.voices = folder.path() / "voices";
    out.voices_per_key_max = 5;
    out.realtime_beta = true;
    out.connections_max = 64;
    out.connections_per_address_max = 0;
    return out;
  }

  // ---- clients
  enum class Kind { http, dialogue, realtime };
  struct Guest {
    Guest(int port, Kind k) : wire(port), kind(k) {}
    http::Client wire;
    Kind kind;
    std::string waiting;  ///< to be sent
    bool stops = false;   ///< it goes when that was sent
  };

  void arrive() {
    const auto kind = static_cast<Kind>(random.below(3));
    auto& guest = guests.emplace_back(door.core.listening_port(), kind);
    if (kind == Kind::http) return;
    static const std::vector<std::string> kQueries{"",
                                                   "?model=m",
                                                   "?intent=transcription",
                                                   "?resumable=true&model=x",
                                                   "?resume=abc&after=event_1",
                                                   "?resume=%zz&&=&after"};
    static const std::vector<std::string> kMore{"", "OpenAI-Beta: realtime=v1\r\n",
                                                "Sec-WebSocket-Protocol: realtime, dialogue\r\n",
                                                "Authorization: Bearer ek_abc.def\r\n", "Origin: null\r\n"};
    const auto path = kind == Kind::dialogue ? std::string("/v1/dialogue") : "/v1/realtime" + random.of(kQueries);
    auto hello = http::Client::upgrade(door.core.listening_port(), random.of(kMore), path);
    guest.waiting = random.once_in(10) ? spoiled(std::move(hello), random) : std::move(hello);
  }

  void speak(Guest& guest) {
    ++inputs;
    static const auto kDialogue = dialogue_messages(), kRealtime = realtime_messages(), kRequests = requests();
    if (guest.kind == Kind::http) {
      auto text = random.of(kRequests);
      // What is wrong in a body is to be found out behind a header that is right.
      const auto head = text.find("\r\n\r\n");
      if (random.once_in(2) && head + 4 < text.size()) {
        const auto type = text.substr(0, head);
        const auto body = spoiled(text.substr(head + 4), random);
        text = type.substr(0, type.find("Content-Length")) + "Content-Length: " + std::to_string(body.size()) +
               "\r\n\r\n" + body;
      } else if (random.once_in(3)) {
        text = spoiled(std::move(text), random);
      }
      guest.waiting += text;
      return;
    }
    if (random.once_in(12)) {
      guest.waiting += bad_frame(random);
      return;
    }
    if (random.once_in(4)) {
      guest.waiting += http::Client::encode(2, random.bytes(random.once_in(20) ? 40'000 : random.below(700)));
      return;
    }
    auto text = random.of(guest.kind == Kind::dialogue ? kDialogue : kRealtime);
    if (random.once_in(3)) text = spoiled(std::move(text), random);
    guest.waiting += http::Client::encode(1, text);
  }

  /// @return whether it has gone
  bool step(Guest& guest) {
    if (!guest.waiting.empty()) {
      const auto all = guest.waiting.size();
      const auto part = random.once_in(3) ? 1 + random.below(std::min<std::size_t>(all, 300)) : all;
      const auto sent = guest.wire.send(std::string_view(guest.waiting).substr(0, part));
      guest.waiting.erase(0, sent);
    }
    if (!random.once_in(20)) guest.wire.pump();  // else it reads later
    guest.wire.in.clear();
    if (guest.wire.ended || (guest.stops && guest.waiting.empty())) {
      random.once_in(2) ? guest.wire.close() : guest.wire.reset();
      return true;
    }
    return false;
  }

  // ---- clients of the mesh
  static transport::Peer caller(std::size_t n) {
    return {"guest-" + std::to_string(n), n == 2 ? "vad" : "client", 1, true, true, false, 1};
  }
  void mesh() {
    ++inputs;
    const auto who = random.below(3);
    const auto name = caller(who).instance;
    if (random.once_in(40)) {
      const bool up = callers.contains(who);
      if (up)
        callers.erase(who);
      else
        callers.insert(who);
      door.core.on_peer(caller(who), up ? transport::PeerState::down : transport::PeerState::up, door.clock.now());
      return;
    }
    if (!callers.contains(who)) return;
    static const auto kDialogue = dialogue_messages();
    protocol::Envelope head;
    head.session = {1, who};
    head.stream = {static_cast<std::uint32_t>(1 + random.below(4))};
    protocol::Message message;
    if (random.once_in(3)) {
      message = protocol::pack(
          protocol::Audio{static_cast<std::int64_t>(random.below(1000)), protocol::Bytes(random.below(700))}, head);
    } else if (random.once_in(10)) {
      message = protocol::pack(protocol::Close{random.once_in(2)}, head);
    } else if (random.once_in(10)) {
      head.type = static_cast<MessageType>(random.below(256));
      message.head = head;
      message.body = spoiled("{}", random);
    } else {
      auto text = random.of(kDialogue);
      if (random.once_in(3)) text = spoiled(std::move(text), random);
      const auto bytes = std::as_bytes(std::span(text));
      message = protocol::pack(protocol::Event{{bytes.begin(), bytes.end()}}, head);
    }
    door.core.on_message(name, std::move(message), door.clock.now());
  }

  // ---- controllers
  void peer(int n, transport::PeerState state) {
    door.core.on_peer(
        {"c" + std::to_string(n), "controller", 1, false, true, false, static_cast<std::int64_t>(random.below(40))},
        state, door.clock.now());
  }
  void answer() {
    for (auto& m : std::exchange(door.sent, {})) {
      if (m.head.type == MessageType::open || m.head.type == MessageType::attach || m.head.type == MessageType::erase)
        open.push_back(m.head);
    }
    while (open.size() > 64) open.pop_front();
    if (open.empty()) return;
    auto head = open[random.below(open.size())];
    head.epoch = {1 + random.below(2)};
    head.turn = {static_cast<std::uint32_t>(random.below(3))};
    const auto say = [&](auto body) {
      door.core.on_message("c" + std::to_string(random.below(3)), protocol::pack(std::move(body), head),
                           door.clock.now());
    };
    // Mostly to whoever asked: all of them are told, and only one is the owner.
    switch (random.below(14)) {
      case 0:
      case 1:
      case 2:
        for (int c = 0; c < 3; ++c)
          door.core.on_message("c" + std::to_string(c), protocol::pack(protocol::Opened{}, head), door.clock.now());
        return;
      case 3:
        return say(protocol::Text{static_cast<protocol::TextKind>(random.below(3)),
                                  static_cast<std::int64_t>(random.below(10)),
                                  spoiled(R"({"id":"c","name":"f","arguments":{}})", random)});
      case 4:
        return say(protocol::Speech{0, static_cast<std::int64_t>(random.below(5000)), 22050, random.once_in(4),
                                    protocol::Bytes(2 * random.below(20'000))});
      case 5:
        return say(protocol::TurnDone{static_cast<std::int64_t>(random.below(3)), random.once_in(3), {}});
      case 6:
        return say(protocol::ErrorMessage{"overloaded", "no", static_cast<std::int64_t>(random.below(100))});
      case 7:
        return say(protocol::SpeechStarted{static_cast<std::int64_t>(random.below(100'000))});
      case 8:
        return say(protocol::SpeechEnded{static_cast<std::int64_t>(random.below(100'000))});
      case 9:
        return say(protocol::Noted{"i", spoiled("text", random), 0, 100});
      case 10:
        return say(protocol::Checkpoint{random.below(100), random.below(100)});
      case 11:
        return say(protocol::Waiting{head.turn, 1});
      case 12:
        return say(protocol::Interrupted{head.turn, 5, "x"});
      default:
        return say(protocol::Hold{head.turn});
    }
  }

  void go_on() {
    if (guests.size() < 24 && random.once_in(3)) arrive();
    if (!guests.empty()) {
      auto& guest = *std::next(guests.begin(), static_cast<std::ptrdiff_t>(random.below(guests.size())));
      if (guest.waiting.size() < (1u << 20)) speak(guest);
      if (random.once_in(8)) guest.stops = true;
    }
    if (random.once_in(3)) mesh();
    std::erase_if(guests, [&](Guest& guest) { return step(guest); });
    if (random.once_in(2)) answer();
    if (random.once_in(50))
      peer(static_cast<int>(random.below(3)),
           random.of(std::vector{transport::PeerState::up, transport::PeerState::changed, transport::PeerState::suspect,
                                 transport::PeerState::down}));
    door.core.wait({}, 0ms);
    door.collect();
    if (random.once_in(20)) door.tick(static_cast<int>(random.below(random.once_in(10) ? 3000 : 50)));
  }

  /// Everybody goes. What is left is what the gateway has kept.
  void leave() {
    guests.clear();
    for (const auto n : callers) door.core.on_peer(caller(n), transport::PeerState::down, door.clock.now());
    callers.clear();
    door.sent.clear();
    open.clear();
    const auto is_empty = [&] { return door.core.load() == 0 && door.core.large_bytes() == 0; };
    for (int i = 0; i < 200 && !is_empty(); ++i) {
      door.until(is_empty, 50ms);
      door.tick(1000);
      door.sent.clear();
    }
  }

  /// What it holds now.
  std::string gauges() {
    door.tick();
    std::string out;
    std::istringstream all(metrics.text());
    for (std::string line; std::getline(all, line);)
      for (const auto* name : {"sessions ", "sockets ", "client_streams ", "api_running ", "large_bytes "})
        if (line.find(std::string("parlando_gateway_") + name) == 0 ||
            line.find("parlando_gateway_realtime_" + std::string(name)) == 0)
          out += line.substr(std::string("parlando_gateway_").size()) + "; ";
    return out + "requests of the server " + std::to_string(door.core.requests());
  }

  Random random;
  TemporaryDirectory folder;
  telemetry::Metrics metrics;
  Door door;
  std::list<Guest> guests;  ///< they do not move
  std::set<std::size_t> callers;
  std::deque<protocol::Envelope> open;
  std::uint64_t inputs = 0;
};

}  // namespace

BOOST_AUTO_TEST_CASE(whatever_is_said_the_gateway_lives_and_keeps_nothing) {
  const auto total = number_from("PARLANDO_FUZZ_INPUTS", 20'000), seed = number_from("PARLANDO_FUZZ_SEED", 1);
  constexpr std::uint64_t kEach = 10'000;  // inputs of one gateway
  std::uint64_t inputs = 0;
  std::size_t warm = 0;
  for (std::uint64_t run = number_from("PARLANDO_FUZZ_RUN", 0); inputs < total; ++run) {  // one that failed, again

    BOOST_TEST_CONTEXT("seed " << seed << " run " << run) {
      Play play(seed * 1'000'003 + run);
      while (play.inputs < kEach && inputs + play.inputs < total) play.go_on();
      inputs += play.inputs;
      // It serves others all the while.
      BOOST_TEST(play.door.get("/healthz").ends_with("alive\n"));
      play.leave();
      BOOST_TEST(play.door.core.load() == 0, play.gauges());
      BOOST_TEST(play.door.core.large_bytes() == 0u);
      BOOST_TEST(play.door.core.http_counters().callback_errors.value() == 0u);
    }
    if (run == 1) warm = resident_bytes();
    if (run % 10 == 9)
      std::printf("%llu inputs, %zu MiB\n", static_cast<unsigned long long>(inputs), resident_bytes() >> 20);
    std::fflush(stdout);
  }
  std::printf("%llu inputs from seed %llu\n", static_cast<unsigned long long>(inputs),
              static_cast<unsigned long long>(seed));
  // Memory that grew with the inputs would be a leak, whatever the leak checker of a sanitizer says.
  if (warm != 0) BOOST_TEST(resident_bytes() < warm + (64u << 20));
}

/// A client breaks off behind every byte of what it says.
BOOST_AUTO_TEST_CASE(a_client_may_go_behind_any_byte) {
  Play play(1);
  auto& door = play.door;
  const auto port = door.core.listening_port();
  const auto upgrade = [&](const std::string& path, const std::vector<std::string>& messages) {
    auto out = http::Client::upgrade(port, {}, path);
    for (const auto& m : messages) out += http::Client::encode(1, m);
    return out + http::Client::encode(2, std::string(64, '\1')) + http::Client::encode(8, "\x03\xe8");
  };
  const std::vector<std::string> scripts{
      requests()[1], requests()[4], upgrade("/v1/dialogue", {R"({"type":"open"})", R"({"type":"text","text":"hi"})"}),
      upgrade("/v1/realtime",
              {R"({"type":"input_audio_buffer.append","audio":"AAAA"})", R"({"type":"response.create"})"})};
  std::size_t cuts = 0;
  for (const auto& script : scripts)
    for (std::size_t end = 0; end <= script.size(); ++end, ++cuts) {
      http::Client client(port);
      client.send(script.substr(0, end));
      for (int i = 0; i < 3; ++i) door.core.wait({}, 0ms);
      door.collect();
      cuts % 2 == 0 ? client.close() : client.reset();
      door.core.wait({}, 0ms);
    }
  std::printf("%zu disconnects\n", cuts);
  play.leave();
  BOOST_TEST(door.core.load() == 0);
  BOOST_TEST(door.core.http_counters().callback_errors.value() == 0u);
  BOOST_TEST(door.get("/healthz").ends_with("alive\n"));
}

}  // namespace parlando::gateway
