/// What the front door refuses, holds back and keeps: places, budgets, slow readers, voices, secrets, resumed sockets.
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <mutex>

#include "common/audio/audio_file.hpp"
#include "common/base/base64.hpp"
#include "services/gateway/voice_id.hpp"
#include "tests/common/http/tls_client.hpp"
#include "tests/services/gateway/door.hpp"
#include "tests/support/certificate.hpp"
#include "tests/support/temporary_directory.hpp"

namespace parlando::gateway {
namespace {

const std::string kKey = "Authorization: Bearer secret\r\n";

ApiKeys keys(const std::string& limits = {}) {
  return *ApiKeys::parse(digest_of("secret") + " anna " + limits + "\n" + digest_of("other") + " ben\n", "test");
}

json body_of(const std::string& answer) { return json::parse(answer.substr(answer.find("\r\n\r\n") + 4)); }

std::string post(Door& door, const std::string& path, const std::string& body, const std::string& more = {},
                 const std::string& type = "application/json") {
  return "POST " + path + " HTTP/1.1\r\nHost: localhost:" + std::to_string(door.core.listening_port()) +
         "\r\nContent-Type: " + type + "\r\nContent-Length: " + std::to_string(body.size()) + "\r\n" + more + "\r\n" +
         body;
}

/// Sends it whole, however large, and waits for the answer.
std::string ask_whole(Door& door, const std::string& request, milliseconds limit = 20s) {
  Browser client(door.core.listening_port());
  std::size_t sent = 0;
  BOOST_REQUIRE(door.until(
      [&] {
        sent += client.send(std::string_view(request).substr(sent));
        return client.pump().ended;
      },
      limit));
  return client.in;
}

/// A socket of `/v1/realtime` and its events.
struct Talker {
  Talker(Door& d, const std::string& query = "?model=m", const std::string& more = {})
      : door(d), client(d.core.listening_port()) {
    client.send(Browser::upgrade(door.core.listening_port(), more, "/v1/realtime" + query));
    BOOST_REQUIRE(door.until([&] { return client.pump().in.find("\r\n\r\n") != std::string::npos; }));
    answer = client.in.substr(0, client.in.find("\r\n\r\n") + 4);
    if (!answer.starts_with("HTTP/1.1 101")) return;
    client.in.erase(0, answer.size());
  }
  bool is_open() const { return answer.starts_with("HTTP/1.1 101"); }
  void send(const std::string& text) {
    const auto frame = Browser::encode(1, text);
    std::size_t sent = 0;
    BOOST_REQUIRE(door.until([&] {
      sent += client.send(std::string_view(frame).substr(sent));
      return sent == frame.size();
    }));
  }
  /// The next event of a type.
  json wait(const std::string& type) {
    json out;
    BOOST_REQUIRE_MESSAGE(door.until([&] {
      while (const auto frame = client.frame()) {
        if (frame->opcode == 8) code = frame->code();
        if (frame->opcode != 1) continue;
        auto event = json::parse(frame->data);
        last_id = event["event_id"];
        if (event["type"] == type) {
          out = std::move(event);
          return true;
        }
      }
      return false;
    }),
                          "no " << type);
    return out;
  }
  int wait_close() {
    BOOST_REQUIRE(door.until([&] {
      while (const auto frame = client.frame())
        if (frame->opcode == 8) code = frame->code();
      return code != 0 || client.ended;
    }));
    return code;
  }
  Door& door;
  Browser client;
  std::string answer, last_id;
  int code = 0;
};

protocol::Envelope last_open(const Door& door) {
  for (auto m = door.sent.rbegin(); m != door.sent.rend(); ++m)
    if (m->head.type == MessageType::open) return m->head;
  BOOST_FAIL("nothing was opened");
  return {};
}

std::string append(std::size_t bytes) {
  return R"({"type":"input_audio_buffer.append","event_id":"mine","audio":")" +
         to_base64(std::vector<std::byte>(bytes)) + "\"}";
}

std::string form(const std::vector<std::pair<std::string, std::string>>& fields, const std::string& file) {
  std::string out;
  for (const auto& [name, value] : fields)
    out += "--b\r\nContent-Disposition: form-data; name=\"" + name + "\"\r\n\r\n" + value + "\r\n";
  return out + "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"v.wav\"\r\n\r\n" + file +
         "\r\n--b--\r\n";
}

std::string recording(double seconds, float level = 0.3f, int rate = 16000) {
  std::vector<float> wave(static_cast<std::size_t>(seconds * rate));
  for (std::size_t i = 0; i < wave.size(); ++i) wave[i] = level * std::sin(0.05f * static_cast<float>(i));
  return audio::encode_wav(wave, rate);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(admission)

BOOST_AUTO_TEST_CASE(a_session_without_a_place_is_refused_before_its_upgrade) {
  Door door;
  auto controller = Door::controller();
  controller.slots = 2;
  door.core.on_peer(controller, transport::PeerState::changed, door.clock.now());
  Talker first(door), second(door);
  BOOST_TEST(first.is_open());
  BOOST_TEST(second.is_open());
  const auto begun = std::chrono::steady_clock::now();
  Talker third(door);
  BOOST_TEST((std::chrono::steady_clock::now() - begun < 50ms));
  BOOST_TEST(third.answer.starts_with("HTTP/1.1 503"));
  BOOST_TEST(third.answer.find("Retry-After: 1\r\n") != std::string::npos);
  BOOST_TEST(body_of(third.client.in)["error"]["code"] == "overloaded");
  const auto chat = ask_whole(door, post(door, "/v1/audio/speech", "{}", "Connection: close\r\n"));
  BOOST_TEST(chat.starts_with("HTTP/1.1 503"));
  // A socket of the page may come to resume what has a place.
  auto page = door.join();
  // The controller says that one has gone.
  controller.slots = 1;
  door.core.on_peer(controller, transport::PeerState::changed, door.clock.now());
  Talker fourth(door), fifth(door);
  BOOST_TEST(fourth.is_open());
  BOOST_TEST(!fifth.is_open());
}

BOOST_AUTO_TEST_CASE(a_key_with_all_its_sessions_is_refused_before_the_upgrade) {
  Door door(config_of_tests(), keys("sessions=1"));
  Talker first(door, "?model=m", kKey);
  BOOST_TEST(first.is_open());
  Talker second(door, "?model=m", kKey);
  BOOST_TEST(second.answer.starts_with("HTTP/1.1 429"));
  BOOST_TEST(body_of(second.client.in)["error"]["code"] == "rate_limit_exceeded");
  first.client.close();
  BOOST_REQUIRE(door.until([&] { return door.core.load() == 0; }));
  BOOST_TEST(Talker(door, "?model=m", kKey).is_open());
}

BOOST_AUTO_TEST_CASE(a_response_out_of_band_is_a_session_and_a_request_of_its_key) {
  Door door(config_of_tests(), keys("sessions=2 requests_per_minute=3"));
  Talker talker(door, "?model=m", kKey);
  talker.wait("session.created");
  const std::string aside = R"({"type":"response.create","event_id":"e","response":{"conversation":"none"}})";
  talker.send(aside);
  talker.wait("response.created");
  talker.send(aside);
  BOOST_TEST(talker.wait("error")["error"]["code"] == "rate_limit_exceeded");  // sessions
  const auto opened = last_open(door);
  door.answer(opened, protocol::Opened{});
  door.answer(opened, protocol::ErrorMessage{"internal", "because"});
  talker.wait("response.done");
  talker.send(aside);
  BOOST_TEST(talker.wait("error")["error"]["code"] == "rate_limit_exceeded");  // requests: the upgrade was one
  talker.client.close();
  BOOST_REQUIRE(door.until([&] { return door.core.load() == 0; }));
}

BOOST_AUTO_TEST_CASE(an_upgrade_that_never_opens_gives_its_place_back_at_once) {
  Door door(config_of_tests(), keys("sessions=1"));
  auto controller = Door::controller();
  controller.slots = 1;
  door.core.on_peer(controller, transport::PeerState::changed, door.clock.now());
  const auto port = door.core.listening_port();
  auto without_key = Browser::upgrade(port, kKey, "/v1/realtime?model=m");
  const auto at = without_key.find("Sec-WebSocket-Key");
  without_key.erase(at, without_key.find("\r\n", at) + 2 - at);
  const auto answer = door.ask(without_key);
  BOOST_TEST(!answer.starts_with("HTTP/1.1 101"));
  BOOST_TEST(
      door.ask(Browser::upgrade(port, kKey + "Origin:\r\n", "/v1/realtime?model=m")).starts_with("HTTP/1.1 403"));
  BOOST_TEST(Talker(door, "?model=m", kKey).is_open());
}

BOOST_AUTO_TEST_CASE(what_resumes_for_one_resumes_for_the_other) {
  Door door(config_of_tests(), keys("sessions=1"));
  auto controller = Door::controller();
  controller.slots = 1;
  door.core.on_peer(controller, transport::PeerState::changed, door.clock.now());
  Talker first(door, "?model=m", kKey);
  BOOST_TEST(first.is_open());
  for (const std::string query : {"?resume=", "?resume=x&resume=", "?Resume=x", "?x=%3Fresume=x&resume"})
    BOOST_TEST(Talker(door, query, kKey).answer.starts_with("HTTP/1.1 503"), query);
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_AUTO_TEST_SUITE(sessions_of_a_key)

/// A lost resumable session, as the server has noticed.
void lose(Door& door, Talker& talker) {
  talker.client.reset();
  BOOST_REQUIRE(door.until([&] { return door.core.sockets() == 0; }));
}

BOOST_AUTO_TEST_CASE(a_side_of_a_lost_session_is_given_back_when_it_expires) {
  Door door(config_of_tests(), keys("sessions=2"));
  Talker talker(door, "?model=m&resumable=true", kKey);
  talker.wait("parlando.session.resumable");
  talker.send(R"({"type":"response.create","response":{"conversation":"none"}})");
  talker.wait("response.created");
  lose(door, talker);
  BOOST_TEST(Talker(door, "?model=m", kKey).answer.starts_with("HTTP/1.1 429"));
  door.tick(61'000);
  Talker one(door, "?model=m", kKey), two(door, "?model=m", kKey);
  BOOST_TEST(one.is_open());
  BOOST_TEST(two.is_open());
  BOOST_TEST(Talker(door, "?model=m", kKey).answer.starts_with("HTTP/1.1 429"));
}

BOOST_AUTO_TEST_CASE(a_lost_session_that_may_be_resumed_counts) {
  Door door(config_of_tests(), keys("sessions=1"));
  Talker talker(door, "?model=m&resumable=true", kKey);
  talker.wait("parlando.session.resumable");
  lose(door, talker);
  BOOST_TEST(Talker(door, "?model=m", kKey).answer.starts_with("HTTP/1.1 429"));
}

BOOST_AUTO_TEST_CASE(a_resumption_is_not_refused_at_the_limit_and_takes_no_place) {
  Door door(config_of_tests(), keys("sessions=1"));
  Talker talker(door, "?model=m&resumable=true", kKey);
  const auto token = talker.wait("parlando.session.resumable")["resume_token"].get<std::string>();
  // Before its loss was noticed.
  auto again = std::make_unique<Talker>(door, "?resume=" + token + "&after=" + talker.last_id, kKey);
  BOOST_REQUIRE(again->is_open());
  const auto next = again->wait("parlando.session.resumed")["resume_token"].get<std::string>();
  BOOST_TEST(talker.wait_close() == 1001);
  talker.client.close();
  BOOST_TEST(Talker(door, "?model=m", kKey).answer.starts_with("HTTP/1.1 429"));  // it counts once, and still
  // And behind it.
  const auto last = again->last_id;
  BOOST_REQUIRE(door.until([&] { return door.core.sockets() == 1; }));
  lose(door, *again);
  Talker third(door, "?resume=" + next + "&after=" + last, kKey);
  BOOST_REQUIRE(third.is_open());
  third.wait("parlando.session.resumed");
  third.client.send(Browser::encode(8, std::string("\x03\xe8", 2)));
  BOOST_REQUIRE(door.until([&] { return door.core.load() == 0; }));
  BOOST_TEST(Talker(door, "?model=m", kKey).is_open());
}

BOOST_AUTO_TEST_CASE(sides_are_counted_behind_a_loss_and_never_below_none) {
  Door door(config_of_tests(), keys("sessions=2"));
  auto talker = std::make_unique<Talker>(door, "?model=m&resumable=true", kKey);
  const auto token = talker->wait("parlando.session.resumable")["resume_token"].get<std::string>();
  talker->send(R"({"type":"response.create","response":{"conversation":"none"}})");
  talker->wait("response.created");
  const auto opened = last_open(door);
  const auto last = talker->last_id;
  lose(door, *talker);
  Talker again(door, "?resume=" + token + "&after=" + last, kKey);
  again.wait("parlando.session.resumed");
  // The side ends at the new socket: one of two is free, and not two.
  door.answer(opened, protocol::Opened{});
  door.answer(opened, protocol::ErrorMessage{"internal", "because"});
  again.wait("response.done");
  Talker other(door, "?model=m", kKey);
  BOOST_TEST(other.is_open());
  BOOST_TEST(Talker(door, "?model=m", kKey).answer.starts_with("HTTP/1.1 429"));
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_AUTO_TEST_SUITE(large_messages)

/// How long the gateway's thread was away at most.
template <class F>
milliseconds longest_wait(Door& door, F&& done) {
  using Clock = std::chrono::steady_clock;
  Clock::duration longest{};
  const auto end = Clock::now() + 30s;
  while (!done() && Clock::now() < end) {
    const auto begun = Clock::now();
    door.core.wait({}, 1ms);
    longest = std::max(longest, Clock::now() - begun);
    door.collect();
  }
  return std::chrono::duration_cast<milliseconds>(longest);
}

BOOST_AUTO_TEST_CASE(an_append_of_megabytes_is_taken_in_parts) {
  Door door;
  Talker talker(door);
  talker.wait("session.created");
  door.answer(last_open(door), protocol::Opened{});
  constexpr std::size_t kBytes = 20 * 48000;  // 20 s
  const auto frame = Browser::encode(1, append(kBytes));
  std::size_t sent = 0;
  const auto samples = [&] {
    std::size_t out = 0;
    for (const auto& m : door.sent)
      if (m.head.type == MessageType::audio) out += m.payload.size() / 2;
    return out;
  };
  longest_wait(door, [&] {
    sent += talker.client.send(std::string_view(frame).substr(sent));
    return samples() >= 20 * 16000 - 100;
  });
  BOOST_TEST(samples() >= 20 * 16000u - 100);
  BOOST_TEST(samples() <= 20 * 16000u);
  // What comes behind it waits for it.
  talker.send(append(4800));
  BOOST_TEST(door.until([&] { return samples() >= 20 * 16000u + 1500; }));
}

BOOST_AUTO_TEST_CASE(a_large_append_that_is_wrong_is_told_and_a_large_event_is_read) {
  Door door;
  Talker talker(door);
  talker.wait("session.created");
  auto wrong = append(300'000);
  wrong[wrong.size() - 10] = '*';
  talker.send(wrong);
  const auto error = talker.wait("error")["error"];
  BOOST_TEST(error["event_id"] == "mine");
  BOOST_TEST(error["param"] == "audio");
  talker.send(json{{"type", "conversation.item.create"}, {"pad", std::string(300'000, 'x')}, {"event_id", "x"}}.dump());
  BOOST_TEST(talker.wait("error")["error"]["event_id"] == "x");
}

BOOST_AUTO_TEST_CASE(a_large_body_is_read_elsewhere_and_counts_as_a_session_meanwhile) {
  Door door(config_of_tests(), keys("sessions=1"));
  const json body{{"model", "m"},
                  {"pad", std::string(2 << 20, 'x')},
                  {"messages", json::array({{{"role", "user"}, {"content", "hi"}}})}};
  const auto request = post(door, "/v1/chat/completions", body.dump(), kKey);
  Browser client(door.core.listening_port());
  std::size_t sent = 0;
  BOOST_REQUIRE(door.until([&] {
    sent += client.send(std::string_view(request).substr(sent));
    return door.count(MessageType::open) == 1;
  }));
  client.close();
  BOOST_REQUIRE(door.until([&] { return door.core.load() == 0; }));
  BOOST_TEST(Talker(door, "?model=m", kKey).is_open());  // its session is over
}

BOOST_AUTO_TEST_CASE(a_large_body_that_is_wrong_is_refused) {
  Door door(config_of_tests(), keys("sessions=1"));
  const auto bad = post(door, "/v1/chat/completions", std::string(200'000, '['), kKey + "Connection: close\r\n");
  for (int i = 0; i < 2; ++i) {
    const auto answer = ask_whole(door, bad);
    BOOST_TEST(answer.starts_with("HTTP/1.1 400"));
    BOOST_TEST(body_of(answer)["error"]["code"] == "bad_json");
  }
}

BOOST_AUTO_TEST_CASE(bodies_of_clients_that_have_gone_count_until_they_are_done_with) {
  TemporaryDirectory folder;
  auto config = config_of_tests();
  config.voices = folder.path() / "voices";
  Door door(config);
  // The helper is in the middle of something.
  std::mutex mutex;
  std::unique_lock held(mutex);
  door.core.help(
      [&mutex]() -> Helper::Then {
        const std::lock_guard wait(mutex);
        return [](Time) {};
      },
      [](Time) {});
  const auto body = form({{"name", "x"}, {"transcript", "hello"}, {"consent", "yes"}}, std::string(10 << 20, 'x'));
  const auto request = post(door, "/v1/audio/voices", body, {}, "multipart/form-data; boundary=b");
  int refused = 0, left = 0;
  for (int i = 0; i < 40; ++i) {
    Browser client(door.core.listening_port());
    std::size_t sent = 0;
    const auto before = door.core.reading();
    BOOST_REQUIRE(door.until(
        [&] {
          sent += client.send(std::string_view(request).substr(sent));
          return client.pump().in.find("\r\n\r\n") != std::string::npos || client.ended || door.core.reading() > before;
        },
        20s));
    const bool is_refused = client.in.starts_with("HTTP/1.1 503");
    refused += is_refused;
    left += !is_refused;
    client.reset();
    BOOST_REQUIRE(door.until([&] { return door.core.requests() == 0; }));
  }
  BOOST_TEST(left >= 8);
  BOOST_TEST(left <= 16);
  BOOST_TEST(refused == 40 - left);
  BOOST_TEST(door.core.large_bytes() >= static_cast<std::size_t>(left) * (10u << 20));
  BOOST_TEST(door.core.large_bytes() <= 256u << 20);
  held.unlock();
  BOOST_TEST(door.until([&] { return door.core.large_bytes() == 0; }, 20s));
  BOOST_TEST(door.core.reading() == 0u);
  BOOST_TEST(door.get("/v1/audio/voices").starts_with("HTTP/1.1 200"));
}

BOOST_AUTO_TEST_CASE(work_that_throws_on_the_helper_is_told) {
  std::vector<Helper::Then> posted;
  std::mutex mutex;
  std::condition_variable changed;
  Helper helper([&](Helper::Then then) {
    const std::lock_guard lock(mutex);
    posted.push_back(std::move(then));
    changed.notify_one();
  });
  std::string told;
  helper.start([]() -> Helper::Then { throw std::bad_alloc(); }, [&](Time) { told += "failed;"; });
  helper.start([]() -> Helper::Then { throw 7; }, [&](Time) { told += "failed;"; });
  helper.start([&]() -> Helper::Then { return [&](Time) { told += "done;"; }; }, [&](Time) { told += "wrong;"; });
  std::unique_lock lock(mutex);
  BOOST_REQUIRE(changed.wait_for(lock, 20s, [&] { return posted.size() == 3; }));
  for (auto& then : posted) then({});
  BOOST_TEST(told == "failed;failed;done;");
}

/// What its helper does is what fails.
struct FailingApi {
  FailingApi() {
    HttpReplies replies;
    replies.respond = [this](std::uint64_t, http::Response r) {
      status = r.status;
      return true;
    };
    replies.help = [this](Helper::Work, Helper::Then failed) { fails.push_back(std::move(failed)); };
    api.emplace(sessions, std::move(replies), HttpApiSetup{keys("sessions=1")}, [] { return std::string(); });
  }
  Sessions sessions;
  int status = 0;
  std::vector<Helper::Then> fails;
  std::optional<HttpApi> api;
};

BOOST_AUTO_TEST_CASE(a_body_that_cannot_be_read_is_answered_and_its_session_is_over) {
  FailingApi f;
  for (int i = 0; i < 2; ++i) {
    http::Request request{"POST", "/v1/chat/completions", std::string(100'000, 'x'), 9u + static_cast<unsigned>(i)};
    request.headers = {{"Authorization", "Bearer secret"}};
    auto counted = std::make_shared<int>(1);
    const std::weak_ptr<int> still = counted;
    request.counted = std::move(counted);
    BOOST_TEST(f.api->handle(request, {}).later);
    BOOST_TEST(!still.expired());
    BOOST_TEST(f.api->reading() == 1u);
    f.fails.back()({});
    BOOST_TEST(f.status == 500);
    BOOST_TEST(f.api->reading() == 0u);
    request = {};
    BOOST_TEST(still.expired());
  }
}

BOOST_AUTO_TEST_CASE(a_message_that_cannot_be_read_closes_its_socket_and_holds_nothing) {
  Sessions sessions;
  std::int64_t reserved = 0;
  int code = 0, over = 0;
  std::vector<Helper::Then> fails;
  RealtimeWire wire;
  wire.send = [](std::uint64_t, std::string, std::optional<Time>) {};
  wire.read = [](std::uint64_t, bool) {};
  wire.close = [&](std::uint64_t, std::uint16_t c, std::string) { code = c; };
  wire.help = [&](Helper::Work, Helper::Then failed) { fails.push_back(std::move(failed)); };
  wire.reserve = [&](std::size_t bytes, const std::string& share) {
    BOOST_TEST(share == "anna's");
    reserved += static_cast<std::int64_t>(bytes);
    return true;
  };
  wire.release = [&](std::size_t bytes, const std::string&) { reserved -= static_cast<std::int64_t>(bytes); };
  wire.over = [&](std::uint64_t) { ++over; };
  RealtimeSockets sockets(sessions, wire);
  RealtimeUpgrade upgrade{"/v1/realtime?model=m", 0};
  upgrade.share = "anna's";
  for (std::uint64_t id = 1; id <= 2; ++id) {
    sockets.opened(id, upgrade, {});
    sockets.message(id, append(300'000), false, {});
    BOOST_TEST(reserved > 0);
    if (id == 2) sockets.closed(id, {});  // it is gone before it was read
    fails.back()({});
    BOOST_TEST(reserved == 0);
  }
  BOOST_TEST(code == 1011);
  sockets.closed(1, {});
  BOOST_TEST(reserved == 0);
  BOOST_TEST(over == 2);
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_AUTO_TEST_SUITE(slow_readers)

BOOST_AUTO_TEST_CASE(a_realtime_client_that_is_too_slow_misses_sound_and_no_event) {
  Door door;
  Talker talker(door);
  talker.wait("session.created");
  const auto opened = last_open(door);
  door.answer(opened, protocol::Opened{});
  door.answer(opened, protocol::Text{protocol::TextKind::text, 0, "a long answer"}, 1);
  constexpr std::size_t kSecond = 44100;
  std::int64_t at = 0;
  // Far more than the system's buffers take.
  for (int i = 0; i < 300; ++i, at += kSecond / 2) {
    door.answer(opened, protocol::Speech{0, at, 22050, false, protocol::Bytes(kSecond)}, 1);
    door.core.wait({}, 0ms);
  }
  door.answer(opened, protocol::TurnDone{1, false, {}}, 1);
  BOOST_TEST(door.core.http_counters().dropped_late.value() > 0u);
  BOOST_TEST(door.core.http_counters().closed_slow.value() == 0u);
  talker.wait("response.created");
  talker.wait("response.output_audio_transcript.delta");
  talker.wait("response.output_audio.done");
  BOOST_TEST(talker.wait("response.done")["response"]["status"] == "completed");
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_AUTO_TEST_SUITE(voices_of_users)

struct VoiceDoor {
  VoiceDoor() : door(config(folder), keys()) {}
  static GatewayConfig config(const TemporaryDirectory& folder) {
    auto out = config_of_tests();
    out.voices = folder.path() / "voices";
    out.voices_per_key_max = 2;
    return out;
  }
  std::string make(const std::vector<std::pair<std::string, std::string>>& fields, const std::string& file,
                   const std::string& key = kKey) {
    return ask_whole(door, post(door, "/v1/audio/voices", form(fields, file), key + "Connection: close\r\n",
                                "multipart/form-data; boundary=b"));
  }
  json list(const std::string& key = kKey) { return body_of(door.get("/v1/audio/voices", "GET", key))["data"]; }
  TemporaryDirectory folder;
  Door door;
};
const std::vector<std::pair<std::string, std::string>> kFields{
    {"name", "Grandma"}, {"transcript", "hello there"}, {"consent", "she said so on the tape"}};

BOOST_AUTO_TEST_CASE(a_voice_is_made_listed_and_deleted_by_its_owner) {
  VoiceDoor v;
  const auto made = v.make(kFields, recording(2));
  BOOST_REQUIRE_MESSAGE(made.starts_with("HTTP/1.1 200"), made);
  const auto voice = body_of(made);
  BOOST_TEST(voice.size() == 4u);  // as published, and nothing else
  BOOST_TEST(voice["object"] == "audio.voice");
  BOOST_TEST(voice["name"] == "Grandma");
  const auto id = voice["id"].get<std::string>();
  BOOST_TEST(is_voice_id(id));
  BOOST_TEST(v.list() == json::array({voice}));
  const auto kept = v.folder.path() / "voices" / id;
  const auto wave = audio::read_audio(kept / "recording.wav");
  BOOST_REQUIRE(wave);
  BOOST_TEST(wave->rate == 24000);
  BOOST_TEST(std::abs(wave->seconds() - 2) < 0.01);
  std::ifstream file(kept / "voice.json");
  const auto described = json::parse(file);
  BOOST_TEST(described["transcript"] == "hello there");
  BOOST_TEST(described["consent"] == "she said so on the tape");
  BOOST_TEST(described["owner"] == "anna");
  // Somebody else has no such voice.
  const std::string other = "Authorization: Bearer other\r\n";
  BOOST_TEST(v.list(other).empty());
  BOOST_TEST(v.door.get("/v1/audio/voices/" + id, "GET", other).starts_with("HTTP/1.1 404"));
  BOOST_TEST(v.door.get("/v1/audio/voices/" + id, "DELETE", other).starts_with("HTTP/1.1 404"));
  BOOST_TEST(body_of(v.door.get("/v1/audio/voices/" + id, "GET", kKey)) == voice);
  // Another gateway with the same folder has it, too.
  Door second(VoiceDoor::config(v.folder), keys());
  BOOST_TEST(body_of(second.get("/v1/audio/voices", "GET", kKey))["data"] == json::array({voice}));
  BOOST_TEST(body_of(second.get("/v1/audio/voices/" + id, "DELETE", kKey))["deleted"] == true);
  BOOST_TEST(v.list().empty());
  BOOST_TEST(!std::filesystem::exists(kept));
}

BOOST_AUTO_TEST_CASE(what_is_no_voice_is_refused_by_its_field) {
  VoiceDoor v;
  const auto without = [](const std::string& name) {
    auto out = kFields;
    std::erase_if(out, [&](const auto& f) { return f.first == name; });
    return out;
  };
  const auto with = [&](const std::string& name, const std::string& value) {
    auto out = without(name);
    out.emplace_back(name, value);
    return out;
  };
  const std::vector<std::tuple<std::vector<std::pair<std::string, std::string>>, std::string, std::string>> cases{
      {without("name"), recording(2), "name"},
      {without("transcript"), recording(2), "transcript"},
      {without("consent"), recording(2), "consent"},
      {with("consent", "false"), recording(2), "consent"},
      {with("name", std::string(101, 'x')), recording(2), "name"},
      {kFields, "no sound at all", "file"},
      {kFields, recording(0.5), "file"},
      {kFields, recording(31), "file"},
      {kFields, recording(2, 0), "file"}};
  for (const auto& [fields, file, param] : cases) {
    const auto answer = v.make(fields, file);
    BOOST_TEST(answer.starts_with("HTTP/1.1 400"), answer.substr(0, 30) << " for " << param);
    BOOST_TEST(body_of(answer)["error"]["param"] == param);
  }
  BOOST_TEST(v.list().empty());
  BOOST_TEST(v.make(kFields, recording(1)).starts_with("HTTP/1.1 200"));
  BOOST_TEST(v.make(kFields, recording(1)).starts_with("HTTP/1.1 200"));
  BOOST_TEST(v.make(kFields, recording(1)).starts_with("HTTP/1.1 409"));  // as many as a key may have
  BOOST_TEST(v.make(kFields, recording(1), "Authorization: Bearer other\r\n").starts_with("HTTP/1.1 200"));
  BOOST_TEST(v.door.get("/v1/audio/voices/../x", "GET", kKey).starts_with("HTTP/1.1 404"));
}

BOOST_AUTO_TEST_CASE(what_a_crash_has_left_of_voices_goes_at_the_next_start) {
  VoiceDoor v;
  const auto voices = v.folder.path() / "voices";
  const auto id = body_of(v.make(kFields, recording(2)))["id"].get<std::string>();
  for (const auto& name : {"." + id + ".gone", "." + id}) {
    std::filesystem::create_directory(voices / name);
    std::ofstream(voices / name / "recording.wav") << "somebody's voice";
    std::filesystem::last_write_time(voices / name, std::filesystem::file_time_type::clock::now() - 2min);
  }
  const auto fresh = voices / ("." + id.substr(0, id.size() - 1) + (id.back() == 'a' ? "b" : "a"));
  std::filesystem::create_directory(fresh);                  // another gateway makes it now
  std::filesystem::create_directory(voices / ".something");  // none of ours
  std::filesystem::last_write_time(voices / ".something", std::filesystem::file_time_type::clock::now() - 2min);
  Door second(VoiceDoor::config(v.folder), keys());
  BOOST_TEST(second.get("/v1/audio/voices", "GET", kKey).starts_with("HTTP/1.1 200"));
  BOOST_TEST(!std::filesystem::exists(voices / ("." + id + ".gone")));
  BOOST_TEST(!std::filesystem::exists(voices / ("." + id)));
  BOOST_TEST(std::filesystem::exists(voices / id));
  BOOST_TEST(std::filesystem::exists(fresh));
  BOOST_TEST(std::filesystem::exists(voices / ".something"));
}

BOOST_AUTO_TEST_CASE(a_description_that_is_none_hides_no_other_voice) {
  VoiceDoor v;
  const auto id = body_of(v.make(kFields, recording(2)))["id"].get<std::string>();
  auto other = id;
  other.back() = other.back() == 'a' ? 'b' : 'a';
  std::filesystem::create_directory(v.folder.path() / "voices" / other);
  std::ofstream(v.folder.path() / "voices" / other / "voice.json") << R"({"name":1,"owner":"anna"})";
  const auto listed = v.list();
  BOOST_REQUIRE(listed.size() == 1u);
  BOOST_TEST(listed[0]["id"] == id);
}

BOOST_AUTO_TEST_CASE(without_a_folder_there_are_no_voices) {
  Door door;
  const auto answer = door.get("/v1/audio/voices");
  BOOST_TEST(answer.starts_with("HTTP/1.1 404"));
  BOOST_TEST(body_of(answer)["error"]["code"] == "unsupported");
}

BOOST_AUTO_TEST_CASE(only_its_owner_speaks_with_a_voice) {
  VoiceDoor v;
  const auto id = body_of(v.make(kFields, recording(2)))["id"].get<std::string>();
  const json body{{"model", "m"}, {"voice", {{"id", id}}}, {"input", "hello"}};
  const auto refused = ask_whole(
      v.door, post(v.door, "/v1/audio/speech", body.dump(), "Authorization: Bearer other\r\nConnection: close\r\n"));
  BOOST_TEST(refused.starts_with("HTTP/1.1 404"), refused.substr(0, 40));
  BOOST_TEST(v.door.count(MessageType::open) == 0u);
  Browser client(v.door.core.listening_port());
  client.send(post(v.door, "/v1/audio/speech", body.dump(), kKey));
  BOOST_TEST(v.door.until([&] { return v.door.count(MessageType::open) == 1; }));
  // On sockets likewise, when it is opened and later.
  Talker talker(v.door, "?model=m", "Authorization: Bearer other\r\n");
  talker.wait("session.created");
  v.door.answer(last_open(v.door), protocol::Opened{});
  talker.send(
      json{{"type", "session.update"}, {"session", {{"type", "realtime"}, {"audio", {{"output", {{"voice", id}}}}}}}}
          .dump());
  BOOST_TEST(talker.wait("error")["error"]["code"] == "not_found");
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_AUTO_TEST_SUITE(client_secrets)

std::string make_secret(Door& door, const json& body, json* told = nullptr, const std::string& key = kKey) {
  const auto answer =
      ask_whole(door, post(door, "/v1/realtime/client_secrets", body.dump(), key + "Connection: close\r\n"));
  BOOST_REQUIRE_MESSAGE(answer.starts_with("HTTP/1.1 200"), answer);
  const auto out = body_of(answer);
  if (told != nullptr) *told = out;
  return out["value"];
}

BOOST_AUTO_TEST_CASE(a_secret_opens_realtime_with_its_session_and_nothing_else) {
  Door door(config_of_tests(), keys("sessions=1"));
  json told;
  const auto secret =
      make_secret(door,
                  {{"expires_after", {{"anchor", "created_at"}, {"seconds", 60}}},
                   {"session", {{"type", "realtime"}, {"instructions", "be kind"}, {"output_modalities", {"text"}}}}},
                  &told);
  BOOST_TEST(secret.starts_with("ek_"));
  BOOST_TEST(told["session"]["instructions"] == "be kind");
  BOOST_TEST(std::abs(told["expires_at"].get<std::int64_t>() - std::time(nullptr) - 60) <= 1);
  const auto bearer = "Authorization: Bearer " + secret + "\r\n";
  {
    Talker talker(door, "?model=m", "Sec-WebSocket-Protocol: realtime, openai-insecure-api-key." + secret + "\r\n");
    BOOST_REQUIRE(talker.is_open());
    const auto session = talker.wait("session.created")["session"];
    BOOST_TEST(session["instructions"] == "be kind");
    BOOST_TEST(session["output_modalities"] == json::array({"text"}));
    // It is a session of the key that it stands for.
    BOOST_TEST(Talker(door, "?model=m", bearer).answer.starts_with("HTTP/1.1 429"));
  }
  BOOST_REQUIRE(door.until([&] { return door.core.load() == 0; }));
  BOOST_TEST(door.get("/v1/models", "GET", bearer).starts_with("HTTP/1.1 401"));
  BOOST_TEST(
      door.ask(Browser::upgrade(door.core.listening_port(), bearer, "/v1/dialogue")).starts_with("HTTP/1.1 401"));
  auto forged = secret;
  forged[10] = forged[10] == 'A' ? 'B' : 'A';
  BOOST_TEST(Talker(door, "?model=m", "Authorization: Bearer " + forged + "\r\n").answer.starts_with("HTTP/1.1 401"));
  // Another gateway signs otherwise, unless it has the same file.
  Door other(config_of_tests(), keys());
  BOOST_TEST(Talker(other, "?model=m", bearer).answer.starts_with("HTTP/1.1 401"));
}

BOOST_AUTO_TEST_CASE(secrets_of_a_shared_file_are_good_everywhere_until_they_expire) {
  TemporaryDirectory folder;
  const auto path = (folder.path() / "secret").string();
  std::ofstream(path) << std::string(40, 's');
  const auto one = ClientSecrets::read(path), two = ClientSecrets::read(path);
  BOOST_REQUIRE(one);
  const auto secret = one->make({"anna", 1000, R"({"type":"realtime"})"});
  BOOST_REQUIRE(two->find(secret, 999));
  BOOST_TEST(two->find(secret, 999)->key == "anna");
  BOOST_TEST(two->find(secret, 999)->session == R"({"type":"realtime"})");
  BOOST_TEST(!two->find(secret, 1000));
  BOOST_TEST(!two->find(secret + "x", 999));
  BOOST_TEST(!two->find("ek_", 999));
  std::ofstream(path) << "short";
  BOOST_TEST(!ClientSecrets::read(path));
}

BOOST_AUTO_TEST_CASE(a_wrong_wish_for_a_secret_is_named) {
  Door door;
  const std::vector<std::pair<json, std::string>> cases{
      {{{"expires_after", {{"seconds", 5}}}}, "expires_after.seconds"},
      {{{"session", {{"type", "video"}}}}, "session.type"},
      {{{"session", {{"type", "realtime"}, {"output_modalities", "sound"}}}}, "session.output_modalities"},
      {{{"session", {{"type", "realtime"}, {"instructions", std::string(20000, 'x')}}}}, "session"}};
  for (const auto& [body, param] : cases) {
    const auto answer =
        ask_whole(door, post(door, "/v1/realtime/client_secrets", body.dump(), "Connection: close\r\n"));
    BOOST_TEST(answer.starts_with("HTTP/1.1 400"), answer.substr(0, 30));
    BOOST_TEST(body_of(answer)["error"]["param"] == param);
  }
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_AUTO_TEST_SUITE(resumed_sockets)

BOOST_AUTO_TEST_CASE(a_realtime_session_goes_on_behind_the_last_event_that_arrived) {
  Door door;
  auto talker = std::make_unique<Talker>(door, "?model=m&resumable=true");
  const auto token = talker->wait("parlando.session.resumable")["resume_token"].get<std::string>();
  const auto opened = last_open(door);
  door.answer(opened, protocol::Opened{});
  door.answer(opened, protocol::Text{protocol::TextKind::text, 0, "one"}, 1);
  talker->wait("response.output_audio_transcript.delta");
  const auto after = talker->last_id;
  talker->client.reset();
  door.answer(opened, protocol::Text{protocol::TextKind::text, 3, " two"}, 1);
  BOOST_REQUIRE(door.until([&] { return door.core.load() == 1; }));
  door.run();
  door.answer(opened, protocol::Text{protocol::TextKind::text, 7, " three"}, 1);
  BOOST_TEST(door.count(MessageType::close) == 0u);
  Talker again(door, "?resume=" + token + "&after=" + after);
  BOOST_TEST(again.wait("response.output_audio_transcript.delta")["delta"] == " two");
  BOOST_TEST(again.wait("response.output_audio_transcript.delta")["delta"] == " three");
  const auto next = again.wait("parlando.session.resumed")["resume_token"].get<std::string>();
  BOOST_TEST(next != token);
  door.answer(opened, protocol::TurnDone{1, false, {}}, 1);
  BOOST_TEST(again.wait("response.done")["response"]["status"] == "completed");
  // A token is good once.
  Talker wrong(door, "?resume=" + token + "&after=" + after);
  BOOST_TEST(wrong.wait("error")["error"]["code"] == "session_not_found");
  BOOST_TEST(wrong.wait_close() == 1008);
  // The client may come before its loss was noticed.
  const auto last = again.last_id;
  Talker third(door, "?resume=" + next + "&after=" + last);
  third.wait("parlando.session.resumed");
  BOOST_TEST(again.wait_close() == 1001);
  third.client.close();
  for (int i = 0; i < 5 && door.core.load() != 0; ++i) {  // its loss may be noticed late
    door.run();
    door.tick(61'000);
  }
  BOOST_TEST(door.core.load() == 0);
  BOOST_TEST(door.count(MessageType::close) == 1u);
}

BOOST_AUTO_TEST_CASE(a_session_that_did_not_ask_for_it_ends_with_its_socket) {
  Door door;
  Talker talker(door);
  talker.wait("session.created");
  talker.client.reset();
  BOOST_TEST(door.until([&] { return door.core.load() == 0; }));
}

BOOST_AUTO_TEST_CASE(a_resumed_session_is_its_owners_and_needs_no_new_place) {
  Door door(config_of_tests(), keys());
  auto talker = std::make_unique<Talker>(door, "?model=m&resumable=true", kKey);
  const auto token = talker->wait("parlando.session.resumable")["resume_token"].get<std::string>();
  auto controller = Door::controller();
  controller.slots = 0;
  door.core.on_peer(controller, transport::PeerState::changed, door.clock.now());
  Talker thief(door, "?resume=" + token + "&after=" + talker->last_id, "Authorization: Bearer other\r\n");
  BOOST_TEST(thief.wait_close() == 1008);
  Talker owner(door, "?resume=" + token + "&after=" + talker->last_id, kKey);
  owner.wait("parlando.session.resumed");
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_AUTO_TEST_SUITE(erased_sessions)

BOOST_AUTO_TEST_CASE(a_session_is_deleted_by_its_owner_with_its_token_and_by_nobody_else) {
  Door door(config_of_tests(), keys());
  Browser client(door.core.listening_port());
  client.send(Browser::upgrade(door.core.listening_port(), kKey, "/v1/dialogue"));
  BOOST_REQUIRE(door.until([&] { return client.pump().in.find("\r\n\r\n") != std::string::npos; }));
  client.in.erase(0, client.in.find("\r\n\r\n") + 4);
  Door::say(client, R"({"type":"open"})");
  BOOST_REQUIRE(door.until([&] { return door.count(MessageType::open) == 1; }));
  door.answer(last_open(door), protocol::Opened{});
  const auto opened = door.event(client);
  const auto session = opened["session"].get<std::string>(), token = opened["session_token"].get<std::string>();
  BOOST_TEST(token.size() == 32u);
  const auto header = "X-Session-Token: " + token + "\r\n";
  const std::string other = "Authorization: Bearer other\r\n";
  const std::vector<std::pair<std::string, std::string>> wrong{
      {session, kKey},           {session, kKey + "X-Session-Token: " + std::string(32, '0') + "\r\n"},
      {session, other + header}, {std::string(32, '0'), kKey + header},
      {"", kKey + header},       {"x", kKey + header}};
  for (const auto& [name, headers] : wrong) {
    const auto answer = door.get("/v1/sessions/" + name, "DELETE", headers);
    BOOST_TEST(answer.starts_with("HTTP/1.1 404"), answer.substr(0, 40) << " of '" << name << "'");
    BOOST_TEST(body_of(answer)["error"]["code"] == "not_found");
  }
  BOOST_TEST(door.get("/v1/sessions/" + session, "DELETE", header).starts_with("HTTP/1.1 401"));
  BOOST_TEST(door.get("/v1/sessions/" + session, "GET", kKey + header).starts_with("HTTP/1.1 405"));
  BOOST_TEST(door.count(MessageType::erase) == 0u);
  const auto erase = [&](const std::function<void(const protocol::Envelope&)>& answered) {
    const auto before = door.count(MessageType::erase);
    Browser asker(door.core.listening_port());
    asker.send("DELETE /v1/sessions/" + session + " HTTP/1.1\r\nHost: localhost:" +
               std::to_string(door.core.listening_port()) + "\r\nConnection: close\r\n" + kKey + header + "\r\n");
    BOOST_REQUIRE(door.until([&] { return door.count(MessageType::erase) > before; }));
    for (const auto& m : std::vector(door.sent))
      if (m.head.type == MessageType::erase) answered(m.head);
    BOOST_REQUIRE(door.until([&] { return asker.pump().ended; }));
    return asker.in;
  };
  const auto done = erase([&](const auto& head) { door.answer(head, protocol::Erased{2}); });
  BOOST_TEST(done.starts_with("HTTP/1.1 200"), done);
  BOOST_TEST(body_of(done) == (json{{"object", "session.deleted"}, {"id", session}, {"deleted", true}, {"turns", 2}}));
  // Who had it is told, and has none.
  const auto told = door.event(client);
  BOOST_TEST(told["code"] == "not_found");
  BOOST_TEST(told["session_ended"] == true);
  const auto again = erase([&](const auto& head) {
    door.answer(head, protocol::ErrorMessage{"not_found", "it was erased"});
  });
  BOOST_TEST(again.starts_with("HTTP/1.1 404"), again.substr(0, 40));
  BOOST_REQUIRE(door.until([&] { return door.core.requests() == 0; }));
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_AUTO_TEST_SUITE(beta_names)

BOOST_AUTO_TEST_CASE(clients_of_the_beta_get_its_names_where_they_are_switched_on) {
  const std::string asks = "OpenAI-Beta: realtime=v1\r\n";
  Door off;
  BOOST_TEST(Talker(off, "?model=m", asks).wait("session.created")["session"].contains("audio"));
  auto config = config_of_tests();
  config.realtime_beta = true;
  Door door(config);
  BOOST_TEST(Talker(door).wait("session.created")["session"].contains("audio"));  // who does not ask
  Talker talker(door, "?model=m", asks);
  auto session = talker.wait("session.created")["session"];
  BOOST_TEST(session["input_audio_format"] == "pcm16");
  BOOST_TEST(session["modalities"] == json::array({"text", "audio"}));
  BOOST_TEST(session["turn_detection"]["type"] == "server_vad");
  BOOST_TEST(!session.contains("audio"));
  talker.send(json{{"type", "session.update"},
                   {"session",
                    {{"modalities", {"audio", "text"}},
                     {"voice", "Clara"},
                     {"output_audio_format", "g711_ulaw"},
                     {"turn_detection", nullptr},
                     {"max_response_output_tokens", 100}}}}
                  .dump());
  session = talker.wait("session.updated")["session"];
  BOOST_TEST(session["output_audio_format"] == "g711_ulaw");
  BOOST_TEST(session["voice"] == "Clara");
  BOOST_TEST(session["turn_detection"].is_null());
  BOOST_TEST(session["max_response_output_tokens"] == 100);
  const auto opened = last_open(door);
  door.answer(opened, protocol::Opened{});
  talker.send(R"({"type":"response.create","response":{"modalities":["text"]}})");
  talker.wait("response.created");
  door.answer(opened, protocol::Text{protocol::TextKind::text, 0, "hi"}, 1);
  BOOST_TEST(talker.wait("conversation.item.created")["item"]["role"] == "assistant");
  BOOST_TEST(talker.wait("response.text.delta")["delta"] == "hi");
  door.answer(opened, protocol::TurnDone{1, false, {}}, 1);
  const auto done = talker.wait("response.done")["response"];
  BOOST_TEST(done["output"][0]["content"][0]["type"] == "text");
  BOOST_TEST(done["modalities"] == json::array({"text"}));
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_AUTO_TEST_SUITE(secure)

BOOST_AUTO_TEST_CASE(with_a_certificate_everything_is_in_tls) {
  TemporaryDirectory folder;
  auto config = config_of_tests();
  config.tls_certificate = folder.path() / "certificate.pem";
  BOOST_TEST(config.problems("core").size() == 1u);
  config.tls_key = folder.path() / "key.pem";
  BOOST_TEST(config.problems("core").empty());
  make_certificate(config.tls_certificate, config.tls_key);
  Door door(config);
  http::TlsClient client(door.core.listening_port());
  client.send("GET /healthz HTTP/1.1\r\nHost: localhost:" + std::to_string(door.core.listening_port()) + "\r\n\r\n");
  BOOST_TEST(door.until([&] { return client.pump().in.ends_with("alive\n"); }));
  // Files that have gone bad change nothing.
  std::ofstream(config.tls_key) << "nothing";
  door.tick(60'000);
  http::TlsClient later(door.core.listening_port());
  BOOST_TEST(door.until([&] { return later.pump().is_secure(); }));
}

BOOST_AUTO_TEST_CASE(a_page_with_a_key_is_answered_with_a_subprotocol) {
  Door door(config_of_tests(), keys());
  Browser client(door.core.listening_port());
  client.send(Browser::upgrade(door.core.listening_port(),
                               "Sec-WebSocket-Protocol: dialogue, openai-insecure-api-key.secret\r\n", "/v1/dialogue"));
  BOOST_REQUIRE(door.until([&] { return client.pump().in.find("\r\n\r\n") != std::string::npos; }));
  BOOST_TEST(client.in.starts_with("HTTP/1.1 101"));
  BOOST_TEST(client.in.find("Sec-WebSocket-Protocol: dialogue\r\n") != std::string::npos);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::gateway
