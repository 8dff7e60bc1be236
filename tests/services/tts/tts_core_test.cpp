#define BOOST_TEST_MODULE tts_core
#include <boost/test/unit_test.hpp>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "common/base/pcm.hpp"
#include "services/tts/tts_core.hpp"
#include "tests/support/core_driver.hpp"
#include "tests/support/out_of_memory.hpp"
#include "tests/support/temporary_directory.hpp"

namespace parlando::tts {
namespace {
using nlohmann::json;
using protocol::MessageType;
using transport::PeerState;
namespace fs = std::filesystem;

const fs::path kNano = fs::path(PARLANDO_SOURCE_DIR) / "models/nano/Step-Audio-TTS-3B";

/// Codes of whole groups, as tokenizer and llm-tts give them.
std::vector<std::int32_t> codes(int groups) {
  std::vector<std::int32_t> out;
  for (int g = 0; g < groups; ++g)
    for (const int c : {g % 7, g % 5, 1024 + g % 11, 1024 + g % 13, 1024 + g % 3}) out.push_back(c);
  return out;
}

protocol::Bytes bytes_of(const std::vector<std::int32_t>& values) { return to_bytes(std::span(values)); }

/// A speech model with voices of its own.
struct Folder {
  TemporaryDirectory root;
  fs::path speakers = root.path() / "speakers";
  Folder() {
    fs::create_directory_symlink(kNano / "CosyVoice-300M-25Hz", root.path() / "CosyVoice-300M-25Hz");
    fs::create_directory(speakers);
  }
  void add(const std::string& name) { fs::copy_file(kNano / "speakers/Clara_prompt.wav", wav(name)); }
  fs::path wav(const std::string& name) const { return speakers / (name + "_prompt.wav"); }
  std::unique_ptr<service::Core> core(const std::vector<std::string>& names) const {
    json info;
    for (const auto& name : names) info[name] = "what is said";
    std::ofstream(speakers / "speakers_info.json") << info.dump();
    TtsConfig config;
    config.model = root.path().string();
    auto made = TtsCore::make(config);
    BOOST_REQUIRE_MESSAGE(made.has_value(), (made ? std::string() : made.error().message));
    return *std::move(made);
  }
};

constexpr SessionId kOwnSession{0, 1};  // on which voices are asked for

struct World {
  std::unique_ptr<service::Core> core;
  telemetry::Metrics metrics;
  CoreDriver driver{*core};
  explicit World(std::unique_ptr<service::Core> c) : core(std::move(c)) { core->add_metrics(metrics); }

  /// Requests for codes of voices that went to the tokenizer.
  std::vector<CoreDriver::Heard> asked() {
    auto out = driver.take(MessageType::tokenize);
    for (const auto& h : out) {
      BOOST_TEST((h.message.head.session == kOwnSession));
      BOOST_TEST(h.read<protocol::Tokenize>().rate >= 16000);
    }
    return out;
  }
  void answer(const CoreDriver::Heard& request) {
    driver.tell(request.peer, request.stream(), protocol::Tokens{0, 12, true, bytes_of(codes(12))}, kOwnSession);
  }
  void refuse(const CoreDriver::Heard& request) {
    driver.tell(request.peer, request.stream(), protocol::ErrorMessage{"overloaded", "no room"}, kOwnSession);
  }
  void speak(std::uint32_t stream, const std::string& speaker, std::uint32_t piece = 0, Time deadline = Time::max()) {
    driver.tell("controller", stream, protocol::Speak{.piece = piece, .text = "hello", .speaker = speaker},
                CoreDriver::kSession, deadline);
  }
  /// llm-tts gives codes of whole groups.
  void give(const CoreDriver::Heard& request, int groups, bool last = true, std::int64_t first = 0) {
    driver.tell(request.peer, request.stream(), protocol::Tokens{first, first + groups, last, bytes_of(codes(groups))});
  }
  void fail(const CoreDriver::Heard& request, const std::string& code) {
    driver.tell(request.peer, request.stream(), protocol::ErrorMessage{code, "no"});
  }
  bool counts(const std::string& line) const { return metrics.text().find("\n" + line + "\n") != std::string::npos; }
};

/// A core that serves: llm-tts and tokenizer are there, the voices have their codes.
struct Serving : World {
  explicit Serving(std::unique_ptr<service::Core> c, const std::vector<std::string>& llms = {"llm"})
      : World(std::move(c)) {
    for (const auto& llm : llms) driver.replica(llm, "llm-tts");
    driver.replica("tokenizer", "tokenizer");
    for (const auto& request : asked()) answer(request);
    BOOST_REQUIRE(core->why_not_ready() == "");
    driver.take();
  }
  /// The request for the codes of an utterance, the only thing that is said.
  CoreDriver::Heard request() {
    driver.work();
    const auto heard = driver.take();
    BOOST_REQUIRE(heard.size() == 1u);
    BOOST_REQUIRE(heard[0].is<protocol::Synthesise>());
    return heard[0];
  }
  CoreDriver::Heard begin(std::uint32_t stream, const std::string& speaker = "Clara") {
    speak(stream, speaker);
    return request();
  }
};

/// What a failed utterance must leave: an error to its caller, the end of the stream to llm-tts, nothing here.
void check_ended(World& w, std::uint32_t stream, const CoreDriver::Heard& request, const std::string& code) {
  int errors = 0;
  int closes = 0;
  for (const auto& h : w.driver.take()) {
    if (h.is<protocol::ErrorMessage>()) {
      BOOST_TEST((h.peer == "controller" && h.stream() == stream && h.code() == code), h.code() << " " << h.why());
      ++errors;
    }
    if (h.is<protocol::Close>()) {
      BOOST_TEST((h.peer == request.peer && h.stream() == request.stream()));
      ++closes;
    }
  }
  BOOST_TEST(errors == 1);
  BOOST_TEST(closes == 1);
  BOOST_TEST(w.core->load() == 0);
}

/// The sound of one piece as it was heard, put together by position.
struct Sound {
  std::vector<std::byte> pcm;
  std::int64_t first = -1;
  int ends = 0;
  void hear(const std::vector<CoreDriver::Heard>& heard, std::uint32_t piece = 0) {
    for (const auto& h : heard) {
      if (!h.is<protocol::Speech>()) continue;
      const auto speech = h.read<protocol::Speech>();
      if (speech.piece != piece) continue;
      if (first < 0) first = speech.first_sample;
      BOOST_TEST(speech.first_sample == first + static_cast<std::int64_t>(pcm.size() / 2));
      pcm.insert(pcm.end(), speech.payload.begin(), speech.payload.end());
      ends += speech.last;
    }
  }
  std::int64_t end() const { return first + static_cast<std::int64_t>(pcm.size() / 2); }
};

}  // namespace

BOOST_AUTO_TEST_CASE(codes_become_sound_and_the_request_is_closed) {
  Folder folder;
  folder.add("Clara");
  Serving w(folder.core({"Clara"}));
  const auto request = w.begin(3);
  w.give(request, 6);
  w.driver.work();
  const auto heard = w.driver.take();
  Sound sound;
  sound.hear(heard);
  BOOST_TEST(sound.first == 0);
  BOOST_TEST(sound.end() > 6 * 2400);  // 6 groups are 0.72 s
  BOOST_TEST(sound.ends == 1);
  BOOST_TEST(std::count_if(heard.begin(), heard.end(), [&](const auto& h) {
               return h.template is<protocol::Close>() && h.peer == "llm" && h.stream() == request.stream();
             }) == 1);
}

BOOST_AUTO_TEST_CASE(an_error_of_the_language_model_ends_the_utterance_on_both_sides) {
  Folder folder;
  folder.add("Clara");
  Serving w(folder.core({"Clara"}));
  const auto request = w.begin(3);
  w.fail(request, "overloaded");
  check_ended(w, 3, request, "overloaded");
}

BOOST_AUTO_TEST_CASE(a_decoder_that_fails_ends_the_utterance_on_both_sides) {
  Folder folder;
  folder.add("Clara");
  Serving w(folder.core({"Clara"}));
  const auto request = w.begin(3);
  w.give(request, 12, false);
  {
    const OutOfMemory now;
    w.driver.work();
  }
  check_ended(w, 3, request, "internal");
  w.give(request, 2, true, 12);  // on its way meanwhile
  w.driver.work();
  BOOST_TEST(w.driver.take().empty());
}

BOOST_AUTO_TEST_CASE(a_caller_that_closes_or_goes_ends_its_request) {
  Folder folder;
  folder.add("Clara");
  for (const bool gone : {false, true}) {
    Serving w(folder.core({"Clara"}));
    const auto request = w.begin(3);
    w.driver.caller("controller", PeerState::suspect);  // it may come back
    BOOST_TEST(w.driver.take().empty());
    if (gone)
      w.driver.caller("controller", PeerState::down);
    else
      w.driver.tell("controller", 3, protocol::Close{});
    const auto heard = w.driver.take();
    BOOST_REQUIRE(heard.size() == 1u);
    BOOST_TEST(heard[0].is<protocol::Close>());
    BOOST_TEST((heard[0].peer == "llm" && heard[0].stream() == request.stream()));
    BOOST_TEST(w.core->load() == 0);
  }
}

BOOST_AUTO_TEST_CASE(a_failed_request_for_a_voice_is_made_again_with_growing_pauses) {
  Folder folder;
  folder.add("Clara");
  World w(folder.core({"Clara"}));
  w.driver.replica("llm", "llm-tts");
  w.driver.replica("tokenizer", "tokenizer");
  auto requests = w.asked();
  BOOST_REQUIRE(requests.size() == 1u);
  for (const int pause : {500, 1000}) {
    w.refuse(requests[0]);
    w.driver.tick(milliseconds(pause - 20));
    BOOST_TEST(w.asked().empty(), "pause " << pause);
    BOOST_TEST(w.core->why_not_ready() == "0 of 1 voices have their codes");
    w.driver.tick(milliseconds(20));
    requests = w.asked();
    BOOST_REQUIRE(requests.size() == 1u);
    w.driver.tick(milliseconds(5000));
    BOOST_TEST(w.asked().empty());  // one request at a time
  }
  w.answer(requests[0]);
  BOOST_TEST(w.core->why_not_ready() == "");
  w.driver.tick(std::chrono::minutes(5));
  BOOST_TEST(w.asked().empty());
}

BOOST_AUTO_TEST_CASE(a_request_for_a_voice_that_was_lost_with_its_tokenizer_is_made_again_at_once) {
  Folder folder;
  folder.add("Clara");
  World w(folder.core({"Clara"}));
  w.driver.replica("llm", "llm-tts");
  w.driver.replica("one", "tokenizer");
  BOOST_TEST(w.asked().size() == 1u);
  w.driver.replica("two", "tokenizer");
  BOOST_TEST(w.asked().empty());  // the first one is at it
  w.driver.replica("one", "tokenizer", PeerState::down);
  const auto requests = w.asked();
  BOOST_REQUIRE(requests.size() == 1u);
  BOOST_TEST(requests[0].peer == "two");
}

BOOST_AUTO_TEST_CASE(a_voice_that_cannot_be_had_is_reported_and_the_others_serve) {
  Folder folder;
  for (const char* name : {"Clara", "refused"}) folder.add(name);
  std::ofstream(folder.wav("text")) << "this is no sound";
  {  // 31 s of a loud tone, s16le, mono, 16 kHz
    const std::uint32_t samples = 31 * 16000;
    std::ofstream out(folder.wav("long"), std::ios::binary);
    auto put = [&](auto value) { out.write(reinterpret_cast<const char*>(&value), sizeof value); };
    out << "RIFF";
    put(std::uint32_t(36 + 2 * samples));
    out << "WAVEfmt ";
    put(std::uint32_t{16});
    for (const int value : {1, 1}) put(static_cast<std::uint16_t>(value));
    for (const int value : {16000, 32000}) put(static_cast<std::uint32_t>(value));
    for (const int value : {2, 16}) put(static_cast<std::uint16_t>(value));
    out << "data";
    put(std::uint32_t(2 * samples));
    for (std::uint32_t i = 0; i < samples; ++i) put(std::int16_t(i % 64 < 32 ? 8000 : -8000));
  }
  World w(folder.core({"Clara", "refused", "text", "long", "missing"}));
  w.driver.replica("llm", "llm-tts");
  w.driver.replica("tokenizer", "tokenizer");
  auto requests = w.asked();
  BOOST_REQUIRE(requests.size() == 2u);  // nobody is asked for the other three
  w.answer(requests[0]);
  auto refused = requests[1];
  for (int i = 0; i < 3; ++i) {
    BOOST_TEST(w.core->why_not_ready() == "1 of 5 voices have their codes");
    w.refuse(refused);
    w.driver.tick(milliseconds(2000));
    requests = w.asked();
    if (!requests.empty()) refused = requests[0];
  }
  BOOST_TEST(w.core->why_not_ready() == "");
  BOOST_TEST(w.counts("parlando_tts_voices_broken 4"));
  w.driver.take();
  std::uint32_t stream = 10;
  for (const auto& [name, why] : std::map<std::string, std::string>{{"text", "text_prompt.wav"},
                                                                    {"long", "31.0 s"},
                                                                    {"missing", "missing_prompt.wav"},
                                                                    {"refused", "no room"}}) {
    w.speak(++stream, name);
    w.driver.work();
    const auto heard = w.driver.take();
    BOOST_REQUIRE(heard.size() == 1u);
    BOOST_TEST(heard[0].is<protocol::ErrorMessage>());
    BOOST_TEST(heard[0].stream() == stream);
    BOOST_TEST(heard[0].why().find("voice '" + name + "' cannot be used") != std::string::npos, heard[0].why());
    BOOST_TEST(heard[0].why().find(why) != std::string::npos, heard[0].why());
  }
  w.speak(20, "Clara");
  w.driver.work();
  BOOST_TEST(w.driver.take(MessageType::synthesise).size() == 1u);
  // Repaired on the disk, it is found by the next try.
  fs::remove(folder.wav("text"));
  folder.add("text");
  w.driver.tick(milliseconds(31000));
  requests = w.asked();
  BOOST_TEST(requests.size() == 2u);
  for (const auto& request : requests) w.answer(request);
  BOOST_TEST(w.counts("parlando_tts_voices_broken 2"));
}

BOOST_AUTO_TEST_CASE(where_no_voice_can_be_used_the_service_is_not_ready_and_says_why) {
  Folder folder;
  World w(folder.core({"missing"}));
  w.driver.replica("llm", "llm-tts");
  w.driver.replica("tokenizer", "tokenizer");
  BOOST_TEST(w.core->why_not_ready().find("missing_prompt.wav") != std::string::npos, w.core->why_not_ready());
}

BOOST_AUTO_TEST_CASE(an_utterance_waits_for_its_voices_codes_without_reading_the_recording_again) {
  Folder folder;
  folder.add("Clara");
  World w(folder.core({"Clara"}));
  w.driver.replica("llm", "llm-tts");
  w.driver.replica("tokenizer", "tokenizer");
  const auto requests = w.asked();
  BOOST_REQUIRE(requests.size() == 1u);
  fs::rename(folder.wav("Clara"), folder.wav("away"));  // whoever reads it now fails
  w.speak(3, "Clara");
  for (int i = 0; i < 50; ++i) {
    w.driver.tick(milliseconds(20));
    w.driver.work();
  }
  BOOST_TEST(w.driver.take().empty());
  fs::rename(folder.wav("away"), folder.wav("Clara"));
  w.answer(requests[0]);
  w.driver.work();
  BOOST_TEST(w.driver.take(MessageType::synthesise).size() == 1u);
}

/// Two replicas of llm-tts and one voice.
struct TwoReplicas : Serving {
  TwoReplicas() : Serving(one_voice(), {"a", "b"}) {}
  static std::unique_ptr<service::Core> one_voice() {
    static const auto folder = [] {
      auto made = std::make_unique<Folder>();
      made->add("Clara");
      return made;
    }();
    return folder->core({"Clara"});
  }
  static std::string other(const std::string& llm) { return llm == "a" ? "b" : "a"; }
};

/// The sound of twelve groups as it is made without any trouble.
const Sound& undisturbed() {
  static const auto sound = [] {
    TwoReplicas w;
    const auto request = w.begin(3);
    w.give(request, 12);
    w.driver.work();
    Sound out;
    out.hear(w.driver.take());
    BOOST_REQUIRE(out.ends == 1);
    BOOST_REQUIRE(out.first == 0);
    return out;
  }();
  return sound;
}

BOOST_AUTO_TEST_CASE(pieces_are_spoken_in_their_order_and_each_has_an_end) {
  TwoReplicas w;
  for (const std::uint32_t piece : {4, 5, 9}) {
    w.driver.tell(
        "controller", 3,
        protocol::Speak{.piece = piece, .text = fmt::format("text {}", piece), .speaker = "Clara", .seed = piece});
  }
  auto request = w.request();
  for (const std::uint32_t piece : {4, 5, 9}) {
    const auto asked = request.read<protocol::Synthesise>();
    BOOST_TEST(asked.text == fmt::format("text {}", piece));
    BOOST_TEST(asked.seed == piece);
    BOOST_TEST(asked.operator_voice);
    BOOST_TEST((from_bytes<std::int32_t>(asked.payload) == codes(12)));  // the voice's
    w.give(request, 6, false);
    w.driver.work();
    w.give(request, 0, true, 6);
    w.driver.work();
    Sound sound;
    auto heard = w.driver.take();
    sound.hear(heard, piece);
    BOOST_TEST(sound.first == 0);
    BOOST_TEST(sound.ends == 1);
    BOOST_TEST(w.core->load() == 1);
    for (const auto& h : heard)
      if (h.is<protocol::Synthesise>()) request = h;
  }
  w.driver.tell("controller", 3, protocol::Close{});
  BOOST_TEST(w.core->load() == 0);
}

/// Three pieces, the codes of the first of which have just come; the second has been asked for.
struct Ahead : TwoReplicas {
  CoreDriver::Heard first, second;
  Ahead() {
    for (const std::uint32_t piece : {0, 1, 2}) speak(3, "Clara", piece);
    first = request();
    give(first, 11, false);
    driver.work();
    for (const auto& h : driver.take()) BOOST_TEST(h.is<protocol::Speech>());
    give(first, 1, true, 11);
    driver.work(1);
    const auto heard = driver.take();
    BOOST_REQUIRE(heard.size() == 1u);
    BOOST_REQUIRE(heard[0].is<protocol::Synthesise>());
    second = heard[0];
    BOOST_TEST(second.stream() != first.stream());
  }
};

BOOST_AUTO_TEST_CASE(the_codes_of_the_next_piece_are_asked_for_while_this_one_is_decoded) {
  Ahead w;
  w.give(w.second, 12);  // quicker than the decoder
  w.driver.work();
  const auto heard = w.driver.take();
  Sound second;
  second.hear(heard, 1);
  BOOST_TEST((second.pcm == undisturbed().pcm));
  BOOST_TEST(second.ends == 1);
  // The pieces stay in order, and the third is asked for in its turn.
  std::string order;
  for (const auto& h : heard) {
    if (h.is<protocol::Speech>()) order += fmt::format("{}", h.read<protocol::Speech>().piece);
    if (h.is<protocol::Synthesise>()) order += 's';
  }
  BOOST_TEST(std::ranges::is_sorted(order.substr(0, order.find('s'))));
  BOOST_TEST(std::count(order.begin(), order.end(), 's') == 1, order);
  BOOST_TEST(order.starts_with('0'), order);
  w.driver.tell("controller", 3, protocol::Close{});
  BOOST_TEST(w.core->load() == 0);
}

BOOST_AUTO_TEST_CASE(a_playout_runs_dry_when_what_was_sent_has_played) {
  const Time start{std::chrono::hours(1)};
  Playout spoken, fresh;
  spoken.asked(start);
  BOOST_TEST((spoken.dry_at() == start));
  spoken.sent(22050, 22050, start + milliseconds(100));  // played from then on
  spoken.sent(22050, 22050, start + milliseconds(300));  // behind it
  BOOST_TEST((spoken.dry_at() == start + milliseconds(2100)));
  fresh.asked(start + milliseconds(400));
  BOOST_TEST((fresh.dry_at() < spoken.dry_at()));
  fresh.asked(start + milliseconds(2300));
  BOOST_TEST((spoken.dry_at() < fresh.dry_at()));  // silent for longer
  spoken.asked(start + milliseconds(5000));        // its next words: the pause before them was nobody's fault
  BOOST_TEST((fresh.dry_at() < spoken.dry_at()));
}

BOOST_AUTO_TEST_CASE(the_first_chunk_of_an_utterance_comes_before_later_ones_of_others) {
  TwoReplicas w;
  const auto speakers = [&] {
    std::vector<std::uint32_t> out;
    for (const auto& h : w.driver.take(MessageType::speech)) out.push_back(h.stream());
    return out;
  };
  w.speak(3, "Clara");
  w.give(w.request(), 40, false);
  w.driver.work(1);
  BOOST_TEST((speakers() == std::vector<std::uint32_t>{3}));
  w.speak(4, "Clara");
  w.driver.work(1);
  const auto asked = w.driver.take(MessageType::synthesise);
  BOOST_REQUIRE(asked.size() == 1u);
  w.give(asked[0], 40, false);
  w.driver.work(1);
  BOOST_TEST((speakers() == std::vector<std::uint32_t>{4}));
  // Both have as much to be heard: in turns.
  w.driver.work(1);
  BOOST_TEST((speakers() == std::vector<std::uint32_t>{3}));
  w.driver.work(1);
  BOOST_TEST((speakers() == std::vector<std::uint32_t>{4}));
}

BOOST_AUTO_TEST_CASE(the_end_of_a_piece_is_a_step_of_its_own) {
  constexpr std::size_t kGroup = 2646, kFirst = 1,
                        kLargest = 33;  // samples of 120 ms; groups: one short of a chunk is left at most
  for (const int groups : {4, 25, 83, 86}) {
    TwoReplicas w;
    w.speak(3, "Clara");
    w.give(w.request(), groups);
    Sound sound;
    for (int step = 0; sound.ends == 0; ++step) {
      BOOST_REQUIRE(step < 20);
      const auto before = sound.pcm.size() / 2;
      w.driver.work(1);
      sound.hear(w.driver.take());
      const auto made = sound.pcm.size() / 2 - before;
      BOOST_TEST(made <= (step == 0 ? kFirst : kLargest) * kGroup + 256, groups << " groups, step " << step);
    }
    BOOST_TEST(sound.pcm.size() / 2 > (static_cast<std::size_t>(groups) - 1) * kGroup);
  }
}

BOOST_AUTO_TEST_CASE(a_piece_that_fails_ahead_does_not_cut_off_the_one_before) {
  for (const bool by_link : {false, true}) {
    Ahead w;
    const auto fail = [&](const CoreDriver::Heard& request) {
      if (by_link)
        w.driver.refuse(request, {Errc::internal, "no"});
      else
        w.fail(request, "internal");
    };
    fail(w.second);
    auto heard = w.driver.take();
    BOOST_REQUIRE(heard.size() == 1u);
    BOOST_TEST((heard[0].is<protocol::Close>() && heard[0].stream() == w.second.stream()));
    w.driver.work();
    heard = w.driver.take();
    Sound first;
    first.hear(heard);
    BOOST_TEST(first.ends == 1);
    BOOST_TEST(first.end() == undisturbed().end());
    // As the first one it is asked for again, and then its error counts.
    BOOST_REQUIRE(heard.back().is<protocol::Synthesise>());
    fail(heard.back());
    check_ended(w, 3, heard.back(), "internal");
  }
}

BOOST_AUTO_TEST_CASE(a_piece_asked_for_ahead_moves_with_its_replica_and_ends_with_its_utterance) {
  {
    Ahead w;
    w.driver.replica(w.second.peer, "llm-tts", PeerState::down);
    w.driver.work();
    auto heard = w.driver.take();
    const auto again =
        std::find_if(heard.begin(), heard.end(), [](const auto& h) { return h.template is<protocol::Synthesise>(); });
    BOOST_REQUIRE((again != heard.end()));
    BOOST_TEST(again->peer == TwoReplicas::other(w.second.peer));
    w.give(*again, 12);
    w.driver.work();
    const auto more = w.driver.take();
    heard.insert(heard.end(), more.begin(), more.end());
    Sound second;
    second.hear(heard, 1);
    BOOST_TEST((second.pcm == undisturbed().pcm));
  }
  Ahead w;
  w.driver.tell("controller", 3, protocol::Close{});
  const auto heard = w.driver.take();
  BOOST_TEST(heard.size() == 2u);
  for (const auto& h : heard) BOOST_TEST(h.is<protocol::Close>());
  w.give(w.second, 12);
  w.driver.work();
  BOOST_TEST(w.driver.take().empty());
}

BOOST_AUTO_TEST_CASE(what_was_heard_of_a_piece_is_skipped) {
  const auto& whole = undisturbed();
  for (const std::int64_t skip : {std::int64_t{1}, std::int64_t{9000}, whole.end(), whole.end() + 5}) {
    BOOST_TEST_CONTEXT("skip " << skip) {
      TwoReplicas w;
      w.driver.tell("controller", 3, protocol::Speak{.text = "hello", .speaker = "Clara", .skip_samples = skip});
      w.give(w.request(), 12);
      w.driver.work();
      Sound sound;
      sound.hear(w.driver.take());
      BOOST_TEST(sound.ends == 1);
      BOOST_TEST(sound.first == std::min(skip, whole.end()));
      BOOST_TEST(sound.end() == whole.end());
      BOOST_TEST(
          (sound.pcm == std::vector(whole.pcm.end() - static_cast<std::ptrdiff_t>(sound.pcm.size()), whole.pcm.end())));
    }
  }
}

BOOST_AUTO_TEST_CASE(a_style_is_a_tag_in_front_and_a_text_that_has_one_keeps_it) {
  Folder folder;
  folder.add("Clara");
  Serving w(folder.core({"Clara"}));
  std::uint32_t stream = 0;
  const auto asked = [&](const std::string& text, const std::string& style) {
    w.driver.tell("controller", ++stream, protocol::Speak{.text = text, .speaker = "Clara", .style = style});
    const auto request = w.request();
    return request.read<protocol::Synthesise>().text;
  };
  BOOST_TEST(asked("hello", "高兴1") == "(高兴1)hello");
  BOOST_TEST(asked("(生气1)hello", "高兴1") == "(生气1)hello");
  BOOST_TEST(asked("hello", "") == "hello");
  w.driver.tell("controller", 9, protocol::Speak{.text = "hello", .speaker = "Clara", .style = "a)b"});
  BOOST_TEST(w.driver.take().back().code() == "invalid_argument");
}

BOOST_AUTO_TEST_CASE(tempo_and_volume_change_the_sound_and_a_place_in_it_stays_a_place) {
  Folder folder;
  folder.add("Clara");
  Serving w(folder.core({"Clara"}));
  std::uint32_t stream = 0;
  const auto sound = [&](std::int32_t speed, std::int32_t volume, std::int64_t skip, int parts) {
    w.driver.tell(
        "controller", ++stream,
        protocol::Speak{
            .text = "hello", .speaker = "Clara", .skip_samples = skip, .speed_milli = speed, .volume_milli = volume});
    const auto request = w.request();
    const auto all = codes(6);
    for (int part = 0, each = 6 / parts; part < parts; ++part)
      w.driver.tell(request.peer, request.stream(),
                    protocol::Tokens{part * each, (part + 1) * each, part == parts - 1,
                                     bytes_of({all.begin() + 5 * part * each, all.begin() + 5 * (part + 1) * each})});
    w.driver.work();
    protocol::Bytes out;
    bool last = false;
    std::int64_t at = -1;
    for (const auto& h : w.driver.take(MessageType::speech)) {
      const auto speech = h.read<protocol::Speech>();
      if (at < 0) at = speech.first_sample;
      BOOST_TEST(speech.first_sample == at);
      at += static_cast<std::int64_t>(speech.payload.size() / 2);
      out.insert(out.end(), speech.payload.begin(), speech.payload.end());
      last = speech.last;
    }
    BOOST_TEST(last);
    return out;
  };
  const auto plain = sound(1000, 1000, 0, 1), fast = sound(2000, 1000, 0, 1), loud = sound(1000, 3000, 0, 1);
  BOOST_TEST(std::abs(static_cast<double>(fast.size()) - static_cast<double>(plain.size()) / 2) < 4);
  BOOST_TEST(loud.size() == plain.size());
  const auto level = [](const protocol::Bytes& pcm) {
    double sum = 0;
    for (const auto v : from_bytes<std::int16_t>(pcm)) sum += std::abs(static_cast<double>(v));
    return sum;
  };
  BOOST_TEST(level(loud) > 1.5 * level(plain));
  const auto rest = sound(2000, 1000, 700, 3);  // the codes come in other parts, and what was heard is skipped
  BOOST_REQUIRE(rest.size() == fast.size() - 1400);
  BOOST_TEST(std::equal(rest.begin(), rest.end(), fast.begin() + 1400));
}

BOOST_AUTO_TEST_CASE(a_full_or_leaving_replica_is_left_for_another) {
  for (const char* code : {"overloaded", "unavailable", "not_ready"}) {
    for (const bool by_link : {false, true}) {
      BOOST_TEST_CONTEXT(code << (by_link ? " by the link" : "")) {
        TwoReplicas w;
        const auto refuse = [&](const CoreDriver::Heard& request) {
          if (by_link)
            w.driver.refuse(request, {errc_of(code), "no"});
          else
            w.fail(request, code);
        };
        const auto first = w.begin(3);
        refuse(first);
        w.driver.work();
        const auto heard = w.driver.take();
        BOOST_REQUIRE(heard.size() == 2u);
        BOOST_TEST(
            (heard[0].is<protocol::Close>() && heard[0].peer == first.peer && heard[0].stream() == first.stream()));
        const auto& second = heard[1];
        BOOST_TEST(second.is<protocol::Synthesise>());
        BOOST_TEST(second.peer == TwoReplicas::other(first.peer));
        BOOST_TEST(second.stream() != first.stream());
        BOOST_TEST(second.read<protocol::Synthesise>().seed == first.read<protocol::Synthesise>().seed);
        w.give(first, 12);  // too late
        w.driver.work();
        BOOST_TEST(w.driver.take().empty());
        refuse(second);
        check_ended(w, 3, second, code);
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(the_next_piece_is_asked_of_a_replica_that_was_full_before) {
  TwoReplicas w;
  const auto first = w.begin(3);
  w.fail(first, "overloaded");
  w.driver.work();
  const auto second = w.driver.take().back();
  w.give(second, 3);
  w.driver.work();
  w.driver.take();
  w.speak(3, "Clara", 1);
  BOOST_TEST(w.request().peer == first.peer);
}

BOOST_AUTO_TEST_CASE(what_is_wrong_with_a_text_is_wrong_everywhere) {
  for (const char* code : {"invalid_argument", "internal", "deadline_exceeded", "token_out_of_range"}) {
    TwoReplicas w;
    const auto request = w.begin(3);
    w.fail(request, code);
    check_ended(w, 3, request, code);
    w.driver.work();
    BOOST_TEST(w.driver.take().empty());
  }
}

BOOST_AUTO_TEST_CASE(a_suspect_or_lost_replica_is_replaced_without_a_gap) {
  const auto& whole = undisturbed();
  for (const auto state : {PeerState::suspect, PeerState::down}) {
    for (const int groups : {0, 2, 6, 12}) {
      BOOST_TEST_CONTEXT(to_string(state) << " after " << groups << " groups") {
        TwoReplicas w;
        const auto first = w.begin(3);
        Sound sound;
        w.give(first, groups, false);
        w.driver.work();
        sound.hear(w.driver.take());
        w.driver.replica(first.peer, "llm-tts", state);
        w.driver.work();
        auto heard = w.driver.take();
        BOOST_REQUIRE(!heard.empty());
        const auto second = heard.back();
        BOOST_REQUIRE(second.is<protocol::Synthesise>());
        BOOST_TEST(second.peer == TwoReplicas::other(first.peer));
        // A lost replica is told nothing, a suspect one that it need not go on.
        BOOST_TEST(heard.size() == (state == PeerState::suspect ? 2u : 1u));
        if (state == PeerState::suspect) BOOST_TEST((heard[0].is<protocol::Close>() && heard[0].peer == first.peer));
        w.give(first, 12);  // it wakes up
        w.give(second, 12);
        w.driver.work();
        sound.hear(w.driver.take());
        BOOST_TEST(sound.ends == 1);
        BOOST_TEST((sound.pcm == whole.pcm));
        BOOST_TEST(w.counts("parlando_tts_restarts_total 1"));
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(codes_that_have_all_come_need_no_replica) {
  TwoReplicas w;
  const auto request = w.begin(3);
  w.give(request, 12);
  w.driver.replica(request.peer, "llm-tts", PeerState::suspect);
  w.driver.replica(request.peer, "llm-tts", PeerState::down);
  w.driver.work();
  Sound sound;
  sound.hear(w.driver.take());
  BOOST_TEST(sound.ends == 1);
  BOOST_TEST((sound.pcm == undisturbed().pcm));
}

BOOST_AUTO_TEST_CASE(a_suspect_replica_keeps_its_work_until_another_can_take_it) {
  Folder folder;
  folder.add("Clara");
  {  // it wakes up
    Serving w(folder.core({"Clara"}));
    const auto request = w.begin(3);
    w.driver.replica("llm", "llm-tts", PeerState::suspect);
    w.driver.work();
    BOOST_TEST(w.driver.take().empty());
    w.driver.replica("llm", "llm-tts");
    w.give(request, 6);
    w.driver.work();
    Sound sound;
    sound.hear(w.driver.take());
    BOOST_TEST(sound.ends == 1);
  }
  {  // another one comes
    Serving w(folder.core({"Clara"}));
    w.begin(3);
    w.driver.replica("llm", "llm-tts", PeerState::suspect);
    w.driver.peer({.instance = "full", .role = "llm-tts", .slots = 0}, PeerState::up);
    w.driver.work();
    BOOST_TEST(w.driver.take().empty());
    w.driver.peer({.instance = "full", .role = "llm-tts", .slots = 1}, PeerState::changed);
    w.driver.work();
    const auto heard = w.driver.take();
    BOOST_REQUIRE(heard.size() == 2u);
    BOOST_TEST((heard[0].is<protocol::Close>() && heard[0].peer == "llm"));
    BOOST_TEST((heard[1].is<protocol::Synthesise>() && heard[1].peer == "full"));
  }
}

BOOST_AUTO_TEST_CASE(without_any_replica_an_utterance_waits_for_one_until_its_budget_is_spent) {
  Folder folder;
  folder.add("Clara");
  Serving w(folder.core({"Clara"}));
  const auto until = w.driver.now + milliseconds(1000);
  for (const std::uint32_t stream : {3, 4}) {
    w.speak(stream, "Clara", 0, stream == 3 ? until : Time::max());
    const auto request = w.request();
    BOOST_TEST((request.message.deadline == (stream == 3 ? until : Time::max())));
  }
  w.driver.replica("llm", "llm-tts", PeerState::down);
  w.driver.work();
  w.driver.tick(milliseconds(999));
  w.driver.work();
  BOOST_TEST(w.driver.take().empty());
  w.driver.tick(milliseconds(1));
  const auto heard = w.driver.take();
  BOOST_REQUIRE(heard.size() == 1u);
  BOOST_TEST(heard[0].stream() == 3u);
  BOOST_TEST(heard[0].code() == "deadline_exceeded");
  w.driver.replica("new", "llm-tts");
  BOOST_TEST(w.request().peer == "new");
}

BOOST_AUTO_TEST_CASE(without_any_replica_for_three_seconds_an_utterance_ends_and_names_the_role) {
  for (const auto state : {PeerState::down, PeerState::suspect}) {
    Folder folder;
    folder.add("Clara");
    Serving w(folder.core({"Clara"}));
    w.begin(3);
    w.driver.replica("llm", "llm-tts", state);
    BOOST_TEST(w.core->why_not_ready() == "no llm-tts is connected");
    w.driver.work();
    w.driver.tick(milliseconds(2900));
    w.speak(4, "Clara");  // the wait is the role's, not the utterance's
    w.driver.work();
    w.driver.take();
    w.driver.tick(milliseconds(100));
    std::set<std::uint32_t> failed;
    for (const auto& said : w.driver.take())
      if (said.code() == "unavailable") failed.insert(said.stream());
    BOOST_TEST(failed == (std::set<std::uint32_t>{3, 4}), boost::test_tools::per_element());
    w.driver.replica("llm", "llm-tts");
    BOOST_TEST(w.core->why_not_ready().empty());
  }
}

/// The only one that has not refused dies: whoever refused before may have room now.
BOOST_AUTO_TEST_CASE(a_replica_that_refused_is_asked_again_when_the_other_is_lost) {
  TwoReplicas w;
  const auto first = w.begin(3);
  w.fail(first, "overloaded");
  w.driver.work();
  const auto second = w.driver.take().back();
  w.driver.replica(second.peer, "llm-tts", PeerState::down);
  const auto third = w.request();
  BOOST_TEST(third.peer == first.peer);
  w.fail(third, "overloaded");
  check_ended(w, 3, third, "overloaded");
}

BOOST_AUTO_TEST_CASE(a_spent_budget_ends_the_request_too) {
  TwoReplicas w;
  w.speak(3, "Clara", 0, w.driver.now + milliseconds(100));
  const auto request = w.request();
  w.driver.tick(milliseconds(100));
  check_ended(w, 3, request, "deadline_exceeded");
}

/// Between two sentences nobody waits for anything.
BOOST_AUTO_TEST_CASE(an_utterance_whose_pieces_are_all_spoken_owes_nothing) {
  TwoReplicas w;
  w.speak(3, "Clara", 0, w.driver.now + milliseconds(100));
  w.give(w.request(), 3);
  w.driver.work();
  w.driver.take();
  w.driver.tick(milliseconds(5000));
  BOOST_TEST(w.driver.take().empty());
  w.speak(3, "Clara", 1);
  BOOST_TEST(w.request().is<protocol::Synthesise>());
}

BOOST_AUTO_TEST_CASE(speech_that_its_caller_does_not_take_ends_the_utterance) {
  TwoReplicas w;
  const auto request = w.begin(3);
  w.give(request, 6, false);
  w.driver.work();
  auto heard = w.driver.take(MessageType::speech);
  BOOST_REQUIRE(!heard.empty());
  w.driver.refuse(heard[0], {Errc::overloaded, "too far behind"});
  heard = w.driver.take();
  BOOST_TEST(std::count_if(heard.begin(), heard.end(), [&](const auto& h) {
               return h.template is<protocol::Close>() && h.peer == request.peer && h.stream() == request.stream();
             }) == 1);
  BOOST_TEST(w.core->load() == 0);
}

BOOST_AUTO_TEST_CASE(behind_an_error_a_stream_is_silent_until_its_close) {
  TwoReplicas w;
  const std::string long_text(5000, 'a');
  w.driver.tell("controller", 3, protocol::Speak{.text = long_text, .speaker = "Clara"});
  auto heard = w.driver.take();
  BOOST_REQUIRE(heard.size() == 1u);
  BOOST_TEST(heard[0].code() == "invalid_argument");
  w.speak(4, "Nobody");
  w.driver.work();
  heard = w.driver.take();
  BOOST_REQUIRE(heard.size() == 1u);
  BOOST_TEST(heard[0].code() == "not_found");
  const auto request = w.begin(5);
  w.fail(request, "internal");
  w.driver.take();
  // What the caller had sent before it heard of it.
  for (const std::uint32_t stream : {3, 4, 5}) w.speak(stream, "Clara", 1);
  w.driver.work();
  BOOST_TEST(w.driver.take().empty());
  BOOST_TEST(w.core->load() == 0);
  for (const std::uint32_t stream : {3, 4, 5}) {
    w.driver.tell("controller", stream, protocol::Close{});
    BOOST_TEST(w.begin(stream).is<protocol::Synthesise>());
  }
}

BOOST_AUTO_TEST_CASE(a_text_that_is_refused_takes_the_utterance_with_it) {
  TwoReplicas w;
  const auto request = w.begin(3);
  w.driver.tell("controller", 3, protocol::Speak{.piece = 1, .text = std::string(5000, 'a'), .speaker = "Clara"});
  check_ended(w, 3, request, "invalid_argument");
}

BOOST_AUTO_TEST_CASE(utterances_and_their_pieces_have_limits) {
  TwoReplicas w;
  const auto most = w.core->slots();
  BOOST_TEST(most == 64);
  for (std::uint32_t stream = 1; stream <= static_cast<std::uint32_t>(most); ++stream) w.speak(stream, "Clara");
  BOOST_TEST(w.core->slots() == 0);
  BOOST_TEST(w.driver.take().empty());
  w.speak(100, "Clara");
  auto heard = w.driver.take();
  BOOST_REQUIRE(heard.size() == 1u);
  BOOST_TEST((heard[0].stream() == 100u && heard[0].code() == "overloaded"));
  for (std::uint32_t piece = 1; piece < 64; ++piece) w.speak(1, "Clara", piece);
  BOOST_TEST(w.driver.take().empty());
  w.speak(1, "Clara", 64);
  heard = w.driver.take();
  BOOST_REQUIRE(!heard.empty());
  BOOST_TEST((heard[0].stream() == 1u && heard[0].code() == "overloaded"));
}

BOOST_AUTO_TEST_CASE(only_the_tokenizer_that_was_asked_gives_a_voice_its_codes) {
  Folder folder;
  folder.add("Clara");
  World w(folder.core({"Clara"}));
  w.driver.replica("llm", "llm-tts");
  w.driver.replica("one", "tokenizer");
  const auto requests = w.asked();
  BOOST_REQUIRE(requests.size() == 1u);
  auto forged = requests[0];
  forged.peer = "somebody";
  w.answer(forged);
  w.refuse(forged);
  BOOST_TEST(w.driver.take().empty());
  BOOST_TEST(w.core->why_not_ready() != "");
  w.answer(requests[0]);
  BOOST_TEST(w.core->why_not_ready() == "");
}

BOOST_AUTO_TEST_CASE(a_suspect_tokenizer_is_left_when_another_can_be_asked) {
  Folder folder;
  folder.add("Clara");
  World w(folder.core({"Clara"}));
  w.driver.replica("llm", "llm-tts");
  w.driver.replica("one", "tokenizer");
  auto first = w.asked();
  BOOST_REQUIRE(first.size() == 1u);
  w.driver.replica("one", "tokenizer", PeerState::suspect);
  BOOST_TEST(w.driver.take().empty());
  w.driver.replica("two", "tokenizer");
  auto heard = w.driver.take();
  BOOST_REQUIRE(heard.size() == 2u);
  BOOST_TEST((heard[0].is<protocol::Close>() && heard[0].peer == "one" && heard[0].stream() == first[0].stream()));
  BOOST_TEST((heard[1].is<protocol::Tokenize>() && heard[1].peer == "two"));
  w.answer(first[0]);
  BOOST_TEST(w.core->why_not_ready() != "");
  w.driver.refuse(heard[1], {Errc::unavailable, "no such peer"});
  w.driver.replica("two", "tokenizer", PeerState::down);
  w.driver.replica("one", "tokenizer");
  w.driver.tick(milliseconds(500));
  heard = w.asked();
  BOOST_REQUIRE(heard.size() == 1u);
  BOOST_TEST(heard[0].peer == "one");
  w.answer(heard[0]);
  BOOST_TEST(w.core->why_not_ready() == "");
}

/// Whatever happened to them, utterances and requests leave nothing behind, and say nothing after their end.
BOOST_AUTO_TEST_CASE(after_any_sequence_everything_is_free_again) {
  std::map<std::string, int> outcomes;
  TwoReplicas w;
  std::uint32_t next = 1;
  for (std::uint32_t seed = 1; seed <= 60; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      std::mt19937 random(seed);
      const auto below = [&](std::size_t n) { return random() % n; };
      using Stream = std::pair<std::string, std::uint32_t>;
      std::set<Stream> open, ended;                  // of callers
      std::map<Stream, CoreDriver::Heard> requests;  // to llm-tts, not closed and not lost
      std::map<std::string, PeerState> llms{{"a", PeerState::up}, {"b", PeerState::up}};
      std::vector<CoreDriver::Heard> said;
      const auto look = [&] {
        for (auto& h : w.driver.take()) {
          const Stream stream(h.peer, h.stream());
          if (h.is<protocol::Synthesise>()) {
            BOOST_TEST((llms.at(h.peer) == PeerState::up));
            BOOST_TEST(requests.emplace(stream, h).second);
          } else if (h.is<protocol::Close>()) {
            BOOST_TEST(requests.erase(stream) == 1u, "a close of no request");
          } else {
            BOOST_TEST(open.contains(stream), "stream " << h.stream() << " is not open");
            BOOST_TEST(!ended.contains(stream), "stream " << h.stream() << " speaks behind its end");
            if (h.is<protocol::ErrorMessage>()) ended.insert(stream);
            ++outcomes[h.is<protocol::Speech>() ? "speech" : h.code()];
          }
          said.push_back(std::move(h));
        }
      };
      const auto lose = [&](const std::string& llm, PeerState state) {
        llms[llm] = state;
        if (state == PeerState::down) std::erase_if(requests, [&](const auto& r) { return r.first.first == llm; });
        w.driver.replica(llm, "llm-tts", state);
      };
      for (int i = 0; i < 30; ++i) {
        const auto what = below(17);
        const std::string llm = below(2) == 0 ? "a" : "b";
        if (what <= 2 || open.empty()) {
          const Stream stream(below(2) == 0 ? "one" : "two", next++);
          open.insert(stream);
          const auto deadline = below(5) == 0 ? w.driver.now + milliseconds(below(60)) : Time::max();
          w.driver.tell(stream.first, stream.second,
                        protocol::Speak{.text = below(9) == 0 ? std::string(5000, 'a') : "hello",
                                        .speaker = below(9) == 0 ? "Nobody" : ""},
                        CoreDriver::kSession, deadline);
        } else if (what == 3) {
          const std::string peer = below(2) == 0 ? "one" : "two";
          w.driver.caller(peer, PeerState::down);
          std::erase_if(open, [&](const Stream& s) { return s.first == peer; });
        } else if (what == 4 && !said.empty()) {
          const auto& h = said[below(said.size())];
          const Stream stream(h.peer, h.stream());
          if (requests.contains(stream) && h.is<protocol::Synthesise>()) {
            w.driver.refuse(h, {Errc::unavailable, "full"});
          } else if (open.contains(stream)) {
            w.driver.refuse(h, {Errc::overloaded, "full"});
            ended.erase(stream);  // its caller has not heard that: one error tells it so
          }
        } else if (what == 5) {
          const OutOfMemory now;
          w.driver.work(1);
        } else if (what == 6) {
          lose(llm, below(2) == 0 ? PeerState::suspect : PeerState::down);
        } else if (what == 7) {
          lose(llm, PeerState::up);
        } else if (what <= 13 && !requests.empty()) {
          const auto request = std::next(requests.begin(), static_cast<std::ptrdiff_t>(below(requests.size())))->second;
          if (what <= 11)
            w.give(request, static_cast<int>(below(4)), below(2) == 0);
          else
            w.fail(request, what == 12 ? "overloaded" : "internal");
        } else {
          const auto [peer, stream] = *std::next(open.begin(), static_cast<std::ptrdiff_t>(below(open.size())));
          if (what == 14) {
            w.driver.tell(peer, stream, protocol::Speak{.piece = 1, .text = "and more", .skip_samples = 100});
          } else {
            w.driver.tell(peer, stream, protocol::Close{});
            open.erase({peer, stream});
          }
        }
        look();
        w.driver.tick(milliseconds(below(20)));
        look();
        w.driver.work(static_cast<int>(below(3)));
        look();
      }
      for (const auto& [peer, stream] : open)
        if (peer == "one") w.driver.tell(peer, stream, protocol::Close{});
      w.driver.caller("two", PeerState::down);
      open.clear();
      look();
      BOOST_TEST(w.core->load() == 0);
      BOOST_TEST(w.core->slots() == 64);
      BOOST_TEST(requests.empty(), requests.size() << " requests are not closed");
      w.driver.work();
      BOOST_TEST(w.driver.take().empty());
      for (const char* name : {"a", "b"}) w.driver.replica(name, "llm-tts");
    }
  }
  for (const char* outcome :
       {"speech", "overloaded", "unavailable", "deadline_exceeded", "internal", "not_found", "invalid_argument"})
    BOOST_TEST(outcomes[outcome] > 0, outcome);
}

// ------------------------------------------------------------------------------------------------ voices of users

/// A folder as gateways write it.
struct OwnVoices : Folder {
  fs::path own = root.path() / "voices";
  static std::string id(char digit) { return "voice_" + std::string(32, digit); }
  OwnVoices() { add("Clara"); }
  void make(char digit) const {
    fs::create_directories(own / id(digit));
    fs::copy_file(kNano / "speakers/Clara_prompt.wav", own / id(digit) / "recording.wav");
    std::ofstream(own / id(digit) / "voice.json") << R"({"transcript": "hello from grandma"})";
  }
  std::unique_ptr<service::Core> core(int cached = 64) const {
    std::ofstream(speakers / "speakers_info.json") << R"({"Clara": "what is said"})";
    TtsConfig config;
    config.model = root.path().string();
    config.voices = own.string();
    config.voices_cached_max = cached;
    auto made = TtsCore::make(config);
    BOOST_REQUIRE_MESSAGE(made.has_value(), (made ? std::string() : made.error().message));
    return *std::move(made);
  }
};

BOOST_AUTO_TEST_CASE(a_users_voice_gets_its_codes_when_it_is_first_spoken_with) {
  OwnVoices folder;
  Serving w(folder.core());
  folder.make('a');  // it appears while the service runs
  w.speak(1, OwnVoices::id('a'));
  w.driver.work();
  const auto asked = w.asked();
  BOOST_REQUIRE(asked.size() == 1u);
  BOOST_TEST(w.core->why_not_ready() == "");  // others do not wait for it
  w.answer(asked[0]);
  w.driver.take();
  const auto request = w.request();
  const auto synthesise = request.read<protocol::Synthesise>();
  BOOST_TEST(synthesise.prompt_text == "hello from grandma");
  BOOST_TEST(!synthesise.operator_voice);
  BOOST_TEST(synthesise.payload.size() == codes(12).size() * 4);
  w.driver.tell("controller", 1, protocol::Close{});
  w.driver.take();
  // The next time everything is there.
  w.speak(2, OwnVoices::id('a'));
  BOOST_TEST(w.request().read<protocol::Synthesise>().prompt_text == "hello from grandma");
  w.driver.tell("controller", 2, protocol::Close{});
  w.driver.take();
  // One that was deleted is none any more.
  fs::remove_all(folder.own / OwnVoices::id('a'));
  w.speak(3, OwnVoices::id('a'));
  w.driver.work();
  const auto heard = w.driver.take();
  BOOST_REQUIRE(heard.size() == 1u);
  BOOST_TEST(heard[0].read<protocol::ErrorMessage>().code == "not_found");
}

BOOST_AUTO_TEST_CASE(of_many_users_voices_the_last_ones_are_kept) {
  OwnVoices folder;
  for (const char c : {'a', 'b', 'c'}) folder.make(c);
  Serving w(folder.core(2));
  std::uint32_t stream = 0;
  const auto speak = [&](char c) {
    w.speak(++stream, OwnVoices::id(c));
    w.driver.work();
    const auto asked = w.asked();
    for (const auto& request : asked) w.answer(request);
    w.driver.work();
    w.driver.tell("controller", stream, protocol::Close{});
    w.driver.take();
    return asked.size();
  };
  BOOST_TEST(speak('a') == 1u);
  BOOST_TEST(speak('b') == 1u);
  BOOST_TEST(speak('a') == 0u);
  BOOST_TEST(speak('c') == 1u);
  BOOST_TEST(speak('a') == 0u);
  BOOST_TEST(speak('b') == 1u);
}

BOOST_AUTO_TEST_CASE(who_waits_for_more_voices_than_are_kept_gets_them_all) {
  OwnVoices folder;
  for (const char c : {'a', 'b'}) folder.make(c);
  Serving w(folder.core(1));
  w.speak(1, OwnVoices::id('a'));
  w.speak(2, OwnVoices::id('b'));
  std::size_t asked = 0;
  std::set<std::uint32_t> spoken;
  for (int i = 0; i < 20; ++i) {
    w.driver.work();
    for (const auto& heard : w.driver.take()) {
      if (heard.is<protocol::Synthesise>()) spoken.insert(heard.stream());
      if (!heard.is<protocol::Tokenize>()) continue;
      ++asked;
      w.answer(heard);
    }
  }
  BOOST_TEST(asked == 2u);
  BOOST_TEST(spoken.size() == 2u);
}

}  // namespace parlando::tts
