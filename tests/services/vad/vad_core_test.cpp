#include "services/vad/vad_core.hpp"

#include <boost/test/unit_test.hpp>
#include <random>

#include "common/audio/audio_file.hpp"
#include "common/base/pcm.hpp"

namespace parlando::vad {
namespace {

using protocol::Message;
using protocol::MessageType;

const std::filesystem::path kRoot = PARLANDO_SOURCE_DIR;

std::shared_ptr<const SileroWeights> weights() {
  static const auto loaded = *SileroWeights::load(kRoot / "models/silero-vad/silero_vad.safetensors");
  return loaded;
}

/// A recorded question with half a second of silence in front of it and one and a half behind.
std::vector<std::byte> recording(const char* name = "capital_of_france.wav") {
  auto wave = audio::read_audio(kRoot / "models/nano/questions" / name)->wave;
  wave.insert(wave.begin(), 8000, 0.0f);
  wave.resize(wave.size() + 24000, 0.0f);
  return to_pcm16(wave);
}

std::string_view name_of(TurnEvent::Kind kind) {
  static constexpr std::string_view kNames[] = {"speech_started", "speech_paused", "speech_resumed", "speech_ended"};
  return kNames[static_cast<int>(kind)];
}

/// What network and detector say of a recording as a whole.
std::vector<std::string> offline(const std::vector<std::byte>& pcm, std::int64_t base) {
  const auto wave = from_pcm16(pcm);
  Silero net(weights());
  TurnDetector detector({});
  std::vector<std::string> out;
  for (std::size_t at = 0; at + kFrameSamples <= wave.size(); at += kFrameSamples) {
    const float p = net(std::span<const float, kFrameSamples>(wave.data() + at, kFrameSamples));
    if (const auto e = detector.push(p, base + static_cast<std::int64_t>(at)))
      out.push_back(fmt::format("{} {}", name_of(e->kind), e->sample));
  }
  return out;
}

/// A caller with one stream.
class Caller {
 public:
  explicit Caller(VadCore& core, std::string name = "controller-1", std::uint32_t stream = 5)
      : core_(core), name_(std::move(name)) {
    head_.session = {1, 2};
    head_.stream = {stream};
    head_.turn = {3};
    head_.trace = 77;
  }
  template <class T>
  void say(T body) {
    core_.on_message(name_, protocol::pack(std::move(body), head_), {});
  }
  void hear(std::int64_t first, std::span<const std::byte> pcm) {
    say(protocol::Audio{first, {pcm.begin(), pcm.end()}});
  }
  void open() { say(protocol::OpenVad{}); }
  /// What the core has answered since, as "name position" or "code".
  std::vector<std::string> answers() {
    std::vector<std::string> out;
    for (auto& o : core_.take()) {
      const auto head = o.message.head;
      if (o.peer != name_ || head.key() != head_.key() || head.turn != head_.turn || head.trace != head_.trace)
        out.push_back("misdirected");
      else if (head.type == MessageType::error) {
        error_ = *protocol::read<protocol::ErrorMessage>(o.message);
        out.push_back(error_.code);
      } else {
        out.push_back(fmt::format("{} {}", to_string(head.type), sample_of(o.message)));
      }
    }
    return out;
  }
  std::string answer() {
    const auto all = answers();
    return all.empty() ? "none" : fmt::format("{}", fmt::join(all, ", "));
  }
  const protocol::ErrorMessage& error() const { return error_; }
  const std::string& name() const { return name_; }

 private:
  static std::int64_t sample_of(Message& m) {
    switch (m.head.type) {
      case MessageType::speech_started:
        return protocol::read<protocol::SpeechStarted>(m)->sample;
      case MessageType::speech_paused:
        return protocol::read<protocol::SpeechPaused>(m)->sample;
      case MessageType::speech_resumed:
        return protocol::read<protocol::SpeechResumed>(m)->sample;
      default:
        return protocol::read<protocol::SpeechEnded>(m)->sample;
    }
  }
  VadCore& core_;
  std::string name_;
  protocol::Envelope head_;
  protocol::ErrorMessage error_;
};

void hear_all(Caller& caller, const std::vector<std::byte>& pcm, std::size_t packet, std::int64_t base = 0) {
  for (std::size_t at = 0; at < pcm.size(); at += packet)
    caller.hear(base + static_cast<std::int64_t>(at / 2),
                std::span(pcm).subspan(at, std::min(packet, pcm.size() - at)));
}

}  // namespace

BOOST_AUTO_TEST_SUITE(vad_core)

BOOST_AUTO_TEST_CASE(any_way_of_cutting_a_recording_gives_the_events_of_the_whole) {
  std::mt19937 random(20240607);
  for (const char* name : {"capital_of_france.wav", "set_a_timer.wav", "weather_in_paris.wav"}) {
    const auto pcm = recording(name);
    for (const std::int64_t base : {std::int64_t{0}, std::int64_t{123457}, std::int64_t{1} << 60}) {
      const auto expected = offline(pcm, base);
      BOOST_REQUIRE(expected.size() >= 2u);
      for (int round = 0; round < 4; ++round) {
        BOOST_TEST_CONTEXT(name << ", base " << base << ", round " << round) {
          const std::size_t longest = round == 0 ? 7 : round == 1 ? 320 : round == 2 ? 16000 : 1300;
          VadCore core({}, weights());
          Caller caller(core);
          caller.open();
          for (std::size_t at = 0; at < pcm.size();) {
            const auto count = std::min<std::size_t>(2 * (random() % (longest + 1)), pcm.size() - at);
            caller.hear(base + static_cast<std::int64_t>(at / 2), std::span(pcm).subspan(at, count));
            at += count;
          }
          const auto seen = caller.answers();
          BOOST_TEST(seen == expected, boost::test_tools::per_element());
        }
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(events_lie_around_the_speech) {
  const auto pcm = recording();
  VadCore core({}, weights());
  Caller caller(core);
  caller.open();
  hear_all(caller, pcm, 640, 16000);
  const auto seen = caller.answers();
  BOOST_REQUIRE(seen.size() >= 3u);
  BOOST_REQUIRE(seen.front().starts_with("speech_started"));
  BOOST_REQUIRE(seen.back().starts_with("speech_ended"));
  BOOST_TEST(seen[seen.size() - 2] == "speech_paused" + seen.back().substr(12));
  const auto started = std::stoll(seen.front().substr(15)) - 16000;
  const auto ended = std::stoll(seen.back().substr(13)) - 16000;
  BOOST_TEST(started >= 8000 - 1024);
  BOOST_TEST(started < 8000 + 8000);
  BOOST_TEST(ended > started + 8000);
  BOOST_TEST(ended <= static_cast<std::int64_t>(pcm.size() / 2) - 24000 + 4096);
}

/// A stream is one user's, not one turn's: turns follow each other on it, and positions go on.
BOOST_AUTO_TEST_CASE(a_stream_goes_on_with_the_next_turn) {
  std::vector<std::byte> pcm;
  std::vector<std::int64_t> begins;
  for (const char* name : {"capital_of_france.wav", "set_a_timer.wav", "weather_in_paris.wav"}) {
    begins.push_back(static_cast<std::int64_t>(pcm.size() / 2));
    const auto one = recording(name);
    pcm.insert(pcm.end(), one.begin(), one.end());
  }
  begins.push_back(static_cast<std::int64_t>(pcm.size() / 2));
  VadCore core({}, weights());
  Caller caller(core);
  caller.open();
  hear_all(caller, pcm, 640);
  std::size_t turns = 0;
  std::string last = "speech_ended";
  for (const auto& line : caller.answers()) {
    const auto name = line.substr(0, line.find(' '));
    const auto sample = std::stoll(line.substr(name.size() + 1));
    if (name == "speech_started") {
      BOOST_TEST(last == "speech_ended");
      BOOST_TEST(sample >= begins.at(turns) + 8000 - 1024);
      ++turns;
    } else {
      BOOST_REQUIRE(turns > 0u);
      const bool again = name == "speech_paused" && last == name;  // it lasts
      BOOST_TEST(
          (name == "speech_resumed" ? last == "speech_paused" : again || (last != name && last != "speech_ended")));
    }
    BOOST_TEST(sample < begins.at(turns));
    last = name;
  }
  BOOST_TEST(turns == 3u);
  BOOST_TEST(last == "speech_ended");
}

/// Two questions with 1.5 s between them: one utterance or two, as the stream asks.
BOOST_AUTO_TEST_CASE(a_stream_has_its_own_silence_and_threshold) {
  auto pcm = recording("set_a_timer.wav");
  const auto second = recording("weather_in_paris.wav");
  pcm.insert(pcm.end(), second.begin(), second.end());
  pcm.resize(pcm.size() + 2 * 48000);
  VadCore core({}, weights());
  std::uint32_t stream = 5;
  const auto heard = [&](protocol::OpenVad options) {
    Caller caller(core, "controller-1", ++stream);
    caller.say(options);
    hear_all(caller, pcm, 640);
    return caller.answers();
  };
  const auto count = [](const std::vector<std::string>& seen, std::string_view name) {
    return std::count_if(seen.begin(), seen.end(), [&](const auto& s) { return s.starts_with(name); });
  };
  const auto plain = heard({});
  BOOST_TEST(count(plain, "speech_ended") == 2);
  BOOST_TEST(heard({-1, 500}) == plain, boost::test_tools::per_element());
  const auto patient = heard({-1, 4000});
  BOOST_TEST(count(patient, "speech_started") == 1);
  BOOST_TEST(count(patient, "speech_ended") == 1);
  BOOST_TEST(count(patient, "speech_paused") >= 2);
  // The pause between the questions and the one at the end last, and are told twice.
  BOOST_TEST(count(patient, "speech_resumed") == count(patient, "speech_paused") - 3);
  BOOST_TEST(patient.front() == plain.front());
  // Silence shorter than a pause: none is told.
  BOOST_TEST(count(heard({-1, 120}), "speech_paused") == 0);
  // The least threshold takes any frame for speech, the highest only what is certain.
  BOOST_TEST(count(heard({0, -1}), "speech_started") >= 1);
  const auto sure = heard({1000, -1});
  BOOST_TEST(count(sure, "speech_started") <= 2);
  if (!sure.empty()) BOOST_TEST(std::stoll(sure.front().substr(15)) >= std::stoll(plain.front().substr(15)));
}

BOOST_AUTO_TEST_CASE(a_gap_or_an_overlap_is_answered_once_and_changes_nothing) {
  const auto pcm = recording();
  const auto expected = offline(pcm, 0);
  VadCore core({}, weights());
  Caller caller(core);
  caller.open();
  std::vector<std::string> seen;
  const auto take = [&](std::string_view complaint) {
    for (auto& a : caller.answers())
      if (a.starts_with("speech"))
        seen.push_back(a);
      else
        BOOST_TEST(a == complaint);
  };
  const std::vector<std::byte> noise(640, std::byte{0x55});
  for (std::size_t at = 0, n = 0; at < pcm.size(); at += 640, ++n) {
    const auto first = static_cast<std::int64_t>(at / 2);
    if (n % 10 == 9) {
      caller.hear(first + 1, noise);
      BOOST_TEST(caller.answer() == "position_mismatch");
      BOOST_TEST(caller.error().message ==
                 fmt::format("audio starts at sample {}, the stream goes on at {}", first + 1, first));
      caller.hear(first - 1, noise);
      caller.hear(first + 320, noise);
      caller.hear(0, noise);
      BOOST_TEST(caller.answer() == "none");
    }
    caller.hear(first, std::span(pcm).subspan(at, std::min<std::size_t>(640, pcm.size() - at)));
    take("");
  }
  BOOST_TEST(seen == expected, boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(wrong_audio_is_refused_and_changes_nothing) {
  const auto pcm = recording();
  VadCore core({}, weights());
  Caller caller(core);
  caller.open();
  caller.hear(40, std::span(pcm).first(641));
  BOOST_TEST(caller.answer() == "bad_frame");
  caller.hear(std::numeric_limits<std::int64_t>::max(), std::span(pcm).first(640));
  BOOST_TEST(caller.answer() == "invalid_argument");
  caller.hear(-1, std::span(pcm).first(640));
  BOOST_TEST(caller.answer() == "invalid_argument");
  // None of them became the base.
  hear_all(caller, pcm, 640, 1000);
  const auto seen = caller.answers();
  const auto expected = offline(pcm, 1000);
  BOOST_TEST(seen == expected, boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(messages_without_a_stream_or_of_another_kind_are_refused) {
  VadCore core({.sessions_max = 2}, weights());
  Caller first(core, "a");
  Caller second(core, "b");
  Caller third(core, "c");
  first.hear(0, {});
  BOOST_TEST(first.answer() == "not_found");
  BOOST_TEST(first.error().message == "stream 5 is not open");
  first.say(protocol::Flush{});
  BOOST_TEST(first.answer() == "not_found");
  first.say(protocol::Close{});
  BOOST_TEST(first.answer() == "none");
  first.open();
  BOOST_TEST(first.answer() == "none");
  first.open();
  BOOST_TEST(first.answer() == "invalid_argument");
  second.open();
  BOOST_TEST(core.slots() == 0);
  BOOST_TEST(core.load() == 2);
  third.open();
  BOOST_TEST(third.answer() == "overloaded");
  BOOST_TEST(third.error().message == "2 streams are open, at most 2 are served");
  third.hear(0, {});
  BOOST_TEST(third.answer() == "none");  // one refusal is enough
  second.say(protocol::Close{});
  third.open();
  third.hear(0, {});
  BOOST_TEST(third.answer() == "none");
  first.say(protocol::Generate{});
  BOOST_TEST(first.answer() == "unsupported");
  BOOST_TEST(first.error().message == "vad takes no message of type generate");
  first.say(protocol::Cancel{});
  BOOST_TEST(first.answer() == "unsupported");
}

BOOST_AUTO_TEST_CASE(a_flush_ends_speech_and_without_speech_says_so) {
  const auto pcm = recording();
  VadCore core({}, weights());
  Caller caller(core);
  caller.open();
  caller.say(protocol::Flush{});
  BOOST_TEST(caller.answer() == "no_speech");
  BOOST_TEST(caller.error().message == "no speech was found in 0.00 s of audio");
  // The silence in front: 7 frames of it are 0.22 s; what does not fill a frame is not judged.
  caller.hear(500, std::span(pcm).first(2 * 4000));
  caller.say(protocol::Flush{});
  BOOST_TEST(caller.answer() == "no_speech");
  BOOST_TEST(caller.error().message == "no speech was found in 0.22 s of audio");
  caller.say(protocol::Flush{4501});
  BOOST_TEST(caller.answer() == "position_mismatch");
  caller.hear(4500, std::span(pcm).subspan(2 * 4000, 2 * 16000));
  const auto started = caller.answer();
  BOOST_TEST(started.starts_with("speech_started"));
  caller.say(protocol::Flush{});
  const auto ended = caller.answer();
  BOOST_TEST(ended.starts_with("speech_ended"));
  BOOST_TEST(std::stoll(ended.substr(13)) <= 20500);
  caller.say(protocol::Flush{});
  BOOST_TEST(caller.answer() == "no_speech");
}

BOOST_AUTO_TEST_CASE(a_flush_with_an_end_ends_speech_no_later) {
  const auto pcm = recording();
  VadCore core({}, weights());
  Caller caller(core);
  caller.open();
  caller.hear(0, std::span(pcm).first(2 * 20000));
  BOOST_TEST(caller.answer().starts_with("speech_started"));
  caller.say(protocol::Flush{16000});
  BOOST_TEST(caller.answer() == "speech_ended 16000");
  caller.hear(20000, std::span(pcm).subspan(2 * 20000, 2 * 512));  // the stream goes on
  BOOST_TEST(!caller.answer().starts_with("position"));
}

BOOST_AUTO_TEST_CASE(what_follows_close_is_ignored_and_the_stream_may_be_opened_again) {
  const auto pcm = recording();
  VadCore core({}, weights());
  Caller caller(core);
  caller.open();
  hear_all(caller, {pcm.begin(), pcm.begin() + 2 * 20000}, 640);
  caller.answers();
  caller.say(protocol::Close{});
  BOOST_TEST(core.load() == 0);
  caller.hear(20000, std::span(pcm).subspan(2 * 20000, 640));
  caller.say(protocol::Flush{});
  caller.say(protocol::Close{});
  BOOST_TEST(caller.answer() == "none");
  caller.open();
  hear_all(caller, pcm, 640);
  const auto seen = caller.answers();
  const auto expected = offline(pcm, 0);
  BOOST_TEST(seen == expected, boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(streams_of_callers_do_not_mix) {
  const auto pcm = recording();
  const auto other = recording("set_a_timer.wav");
  VadCore core({}, weights());
  Caller a(core, "a");
  Caller b(core, "b");
  Caller c(core, "a", 6);
  a.open();
  b.open();
  c.open();
  std::vector<std::string> seen[3];
  for (std::size_t at = 0; at < std::max(pcm.size(), other.size()); at += 640) {
    const auto feed = [&](Caller& caller, const std::vector<std::byte>& sound, std::vector<std::string>& to) {
      if (at >= sound.size()) return;
      caller.hear(static_cast<std::int64_t>(at / 2),
                  std::span(sound).subspan(at, std::min<std::size_t>(640, sound.size() - at)));
      for (auto& answer : caller.answers()) to.push_back(answer);
    };
    feed(a, pcm, seen[0]);
    feed(b, other, seen[1]);
    feed(c, pcm, seen[2]);
  }
  BOOST_TEST(seen[0] == offline(pcm, 0), boost::test_tools::per_element());
  BOOST_TEST(seen[1] == offline(other, 0), boost::test_tools::per_element());
  BOOST_TEST(seen[2] == offline(pcm, 0), boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(a_caller_that_is_down_leaves_nothing_behind) {
  VadCore core({}, weights());
  Caller a(core, "a");
  Caller b(core, "b");
  a.open();
  b.open();
  transport::Peer peer;
  peer.instance = "a";
  core.on_peer(peer, transport::PeerState::suspect, {});
  core.on_peer(peer, transport::PeerState::changed, {});
  BOOST_TEST(core.load() == 2);
  core.on_peer(peer, transport::PeerState::down, {});
  BOOST_TEST(core.load() == 1);
  b.hear(0, {});
  BOOST_TEST(b.answer() == "none");
  a.hear(0, {});
  BOOST_TEST(a.answer() == "not_found");
}

BOOST_AUTO_TEST_CASE(weights_that_are_not_there_are_named) {
  const auto core = VadCore::make({.weights = "/none/silero.safetensors"});
  BOOST_REQUIRE(!core.has_value());
  BOOST_TEST(core.error().message.find("/none/silero.safetensors") != std::string::npos);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::vad
