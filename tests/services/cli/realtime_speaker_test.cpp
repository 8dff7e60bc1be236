#define BOOST_TEST_MODULE realtime_speaker
#include "services/cli/realtime_speaker.hpp"

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <nlohmann/json.hpp>

#include "common/base/base64.hpp"
#include "services/cli/ws_socket.hpp"

namespace parlando::cli {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;

constexpr int kPerMs = RealtimePlan::kRate / 1000;

/// One second of speech, its first word after 100 ms and its last one up to 900 ms.
RealtimePlan one_second() {
  RealtimePlan plan;
  Utterance said;
  said.pcm.assign(2 * RealtimePlan::kRate, '\x11');
  said.begin_sample = 100 * kPerMs;
  said.end_sample = 900 * kPerMs;
  plan.utterances = {said};
  return plan;
}

/// A speaker and the clock that is turned for it.
struct Rig {
  explicit Rig(RealtimePlan p = one_second()) : plan(std::move(p)), speaker(plan, 0, now) {}
  std::vector<std::string> event(const json& e) { return speaker.on_event(e.dump(), now); }
  /// Frames until so much time has passed. @return samples of speech (not of the room) in them
  std::int64_t pass(int ms) {
    std::int64_t spoken = 0;
    for (int done = 0; done < ms; done += 20) {
      now += milliseconds(20);
      for (const auto& text : speaker.on_frame(now)) {
        const auto message = json::parse(text);
        BOOST_REQUIRE(message["type"] == "input_audio_buffer.append");
        const auto pcm = from_base64(message["audio"].get<std::string>());
        BOOST_REQUIRE((pcm && pcm->size() == 2u * 20 * kPerMs));
        for (std::size_t i = 0; i < pcm->size(); i += 2) spoken += (*pcm)[i] == std::byte{0x11};
      }
    }
    return spoken;
  }
  void agree() {
    const auto update = event({{"type", "session.created"}});
    BOOST_REQUIRE(update.size() == 1u);
    BOOST_TEST(json::parse(update[0])["type"] == "session.update");
    event({{"type", "session.updated"}});
  }
  void sound(int ms) {
    const std::vector<std::byte> pcm(static_cast<std::size_t>(2 * ms * kPerMs));
    event({{"type", "response.output_audio.delta"}, {"delta", to_base64(pcm)}});
  }
  void done(const char* status = "completed") {
    event({{"type", "response.done"}, {"response", {{"status", status}}}});
  }
  RealtimePlan plan;
  RealtimeSpeaker::Time now{};
  RealtimeSpeaker speaker;
};

}  // namespace

BOOST_AUTO_TEST_CASE(an_answer_is_timed_from_the_true_end_of_speech) {
  Rig rig;
  rig.agree();
  BOOST_TEST(rig.pass(680) == 0);  // it is quiet before the first word
  BOOST_TEST(rig.pass(1040) == RealtimePlan::kRate);
  rig.pass(300);
  rig.event({{"type", "input_audio_buffer.speech_stopped"}});
  rig.event({{"type", "response.created"}});
  rig.pass(100);
  rig.sound(1000);
  rig.done();
  const auto turns = rig.speaker.take();
  BOOST_REQUIRE(turns.size() == 1u);
  // The frame that ended with sample 900 ms left 900 ms behind the begin of speech: 700 + 900 ms.
  BOOST_TEST(turns[0].end_told == 2020.0 - 1600.0, boost::test_tools::tolerance(0.06));
  BOOST_TEST(turns[0].first_audio - turns[0].end_told == 100.0, boost::test_tools::tolerance(1e-9));
  BOOST_TEST(turns[0].audio_seconds == 1.0, boost::test_tools::tolerance(1e-3));
  BOOST_TEST(turns[0].underruns == 0);
  BOOST_TEST(turns[0].failure.empty());
}

BOOST_AUTO_TEST_CASE(an_answer_that_is_over_before_the_quiet_rest_of_the_question_is_one_turn) {
  auto plan = one_second();
  plan.answer_max = std::chrono::seconds(2);
  plan.utterances[0].end_sample = 300 * kPerMs;
  Rig rig(plan);
  rig.agree();
  rig.pass(700 + 400);
  rig.event({{"type", "input_audio_buffer.speech_stopped"}});
  rig.event({{"type", "response.created"}});
  rig.sound(4000);
  rig.done();
  rig.pass(600 + 2100);  // the rest of the question, and as long as an answer may take
  const auto turns = rig.speaker.take();
  BOOST_REQUIRE(turns.size() == 1u);
  BOOST_TEST(turns[0].failure.empty());
}

BOOST_AUTO_TEST_CASE(the_next_question_waits_until_the_answer_has_been_heard) {
  Rig rig;
  rig.agree();
  rig.pass(1800);
  rig.event({{"type", "response.created"}});
  rig.sound(3000);
  rig.done();
  BOOST_TEST(rig.pass(200 + 3000 + 660) == 0);
  BOOST_TEST(rig.pass(1100) > 0);
}

BOOST_AUTO_TEST_CASE(sound_that_comes_too_late_is_an_underrun) {
  Rig rig;
  rig.agree();
  rig.pass(1800);
  rig.event({{"type", "response.created"}});
  rig.sound(100);
  rig.pass(400);  // 200 ms of the loudspeaker's buffer and 100 ms of sound are over
  rig.sound(100);
  rig.sound(500);
  rig.done();
  const auto turns = rig.speaker.take();
  BOOST_REQUIRE(turns.size() == 1u);
  BOOST_TEST(turns[0].underruns == 1);
}

BOOST_AUTO_TEST_CASE(a_question_without_an_answer_is_told_and_the_next_one_asked) {
  auto plan = one_second();
  plan.answer_max = std::chrono::seconds(2);
  Rig rig(plan);
  rig.agree();
  rig.pass(1800);
  BOOST_TEST(rig.speaker.take().empty());
  rig.pass(2000);
  auto turns = rig.speaker.take();
  BOOST_REQUIRE(turns.size() == 1u);
  BOOST_TEST(turns[0].failure == "no answer has come");
  BOOST_TEST(rig.pass(1900) > 0);
  rig.event({{"type", "response.created"}});
  rig.event(
      {{"type", "response.done"},
       {"response",
        {{"status", "failed"}, {"status_details", {{"error", {{"code", "overloaded"}, {"message", "later"}}}}}}}});
  turns = rig.speaker.take();
  BOOST_REQUIRE(turns.size() == 1u);
  BOOST_TEST(turns[0].failure == "overloaded: later");
}

BOOST_AUTO_TEST_CASE(an_answer_to_half_a_question_is_no_latency) {
  Rig rig;
  rig.agree();
  rig.pass(700 + 500);
  rig.event({{"type", "input_audio_buffer.speech_stopped"}});
  rig.event({{"type", "response.created"}});
  rig.sound(200);
  rig.done("cancelled");
  rig.pass(600);
  rig.event({{"type", "response.created"}});
  rig.sound(200);
  rig.done();
  const auto turns = rig.speaker.take();
  BOOST_REQUIRE(turns.size() == 1u);
  BOOST_TEST(turns[0].cut_off);
  BOOST_TEST(std::isnan(turns[0].first_audio));
}

BOOST_AUTO_TEST_CASE(a_server_that_agrees_to_nothing_is_given_up_with_its_reason) {
  Rig silent;
  silent.pass(10'100);
  BOOST_REQUIRE(silent.speaker.failure().has_value());
  BOOST_TEST(*silent.speaker.failure() == "session.created has not come");
  BOOST_TEST(silent.pass(100) == 0);
  Rig refusing;
  refusing.event({{"type", "session.created"}});
  refusing.event({{"type", "error"}, {"error", {{"type", "invalid_request_error"}, {"message", "no such voice"}}}});
  BOOST_REQUIRE(refusing.speaker.failure().has_value());
  BOOST_TEST(*refusing.speaker.failure() == "invalid_request_error: no such voice");
}

BOOST_AUTO_TEST_CASE(what_is_no_event_is_counted_and_harms_nobody) {
  Rig rig;
  rig.agree();
  for (const auto* text :
       {"", "[]", "{", "{\"type\":7}", "{\"type\":\"response.done\"}",
        "{\"type\":\"response.done\",\"response\":{\"status_details\":null,\"status\":\"failed\"}}",
        "{\"type\":\"response.output_audio.delta\",\"delta\":7}", "{\"type\":\"error\",\"error\":7}"})
    rig.speaker.on_event(text, rig.now);
  BOOST_TEST(rig.speaker.errors().at("an event is no JSON object") == 3);
  BOOST_TEST(rig.speaker.errors().at("no reason is told") == 1);
  BOOST_TEST(!rig.speaker.failure().has_value());
  BOOST_TEST(rig.pass(1800) > 0);
}

BOOST_AUTO_TEST_CASE(nothing_new_is_said_behind_the_end) {
  Rig rig;
  rig.agree();
  rig.speaker.finish();
  BOOST_TEST(rig.pass(3000) == 0);
  BOOST_TEST(rig.speaker.is_idle());
}

BOOST_AUTO_TEST_CASE(addresses_are_read_or_named) {
  const auto url = WsUrl::parse("wss://example.org/v1/realtime?model=x");
  BOOST_REQUIRE(url.has_value());
  BOOST_TEST((url->tls && url->port == 443 && url->host == "example.org" && url->target == "/v1/realtime?model=x"));
  BOOST_TEST(url->authority() == "example.org");
  const auto six = WsUrl::parse("http://[::1]:7860");
  BOOST_REQUIRE(six.has_value());
  BOOST_TEST((!six->tls && six->port == 7860 && six->host == "::1" && six->target == "/"));
  BOOST_TEST(six->authority() == "[::1]:7860");
  for (const auto* text : {"", "example.org", "ftp://x", "ws://", "ws://x:0", "ws://x:99999", "ws://x:y", "ws://x/a b",
                           "ws://x\r\nEvil: 1"}) {
    const auto read = WsUrl::parse(text);
    BOOST_TEST(!read.has_value(), text);
    BOOST_TEST((!read.has_value() && read.error().code == Errc::invalid_argument));
  }
}

BOOST_AUTO_TEST_CASE(frames_say_their_size) {
  for (const std::size_t size : {0u, 125u, 126u, 65535u, 65536u}) {
    const auto frame = ws_frame(std::string(size, 'x'), 2, 0x01020304);
    const std::size_t head = size < 126 ? 2 : size < 65536 ? 4 : 10;
    BOOST_TEST(frame.size() == head + 4 + size);
    BOOST_TEST((static_cast<unsigned char>(frame[1]) & 0x80) != 0);
    if (size > 0) BOOST_TEST(static_cast<char>(frame[head + 4] ^ 0x04) == 'x');
  }
}

}  // namespace parlando::cli
