#define BOOST_TEST_MODULE tokenizer_core
#include "services/tokenizer/tokenizer_core.hpp"

#include <boost/test/unit_test.hpp>
#include <cstdlib>
#include <map>
#include <new>
#include <random>
#include <set>

#include "common/audio/audio_file.hpp"
#include "common/base/codes.hpp"
#include "common/base/pcm.hpp"
#include "common/service/runner.hpp"
#include "tests/support/core_driver.hpp"
#include "tests/support/out_of_memory.hpp"

namespace {
/// The allocation after so many more fails, once or for a few times; below 0: none does. Small ones do not count: a
/// JSON value allocates where it is destroyed, and may not throw there.
thread_local std::int64_t until_failure = -1, failures = 1;
constexpr std::size_t kCountedBytes = sizeof(parlando::service::Out);
static_assert(kCountedBytes > 160, "a list of an error's fields is smaller");
}  // namespace

[[gnu::noinline]] void* operator new(std::size_t bytes) {
  if (bytes >= kCountedBytes && until_failure >= 0 && until_failure-- < failures) throw std::bad_alloc();
  if (void* out = std::malloc(bytes > 0 ? bytes : 1)) return out;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* at) noexcept { std::free(at); }
[[gnu::noinline]] void operator delete(void* at, std::size_t) noexcept { std::free(at); }

namespace parlando::tokenizer {
namespace {
using protocol::TokenizerMode;
using transport::PeerState;
namespace fs = std::filesystem;

const fs::path kNano = fs::path(PARLANDO_SOURCE_DIR) / "models/nano";

std::shared_ptr<const SpeechTokenizer> model() {
  static const auto loaded = *SpeechTokenizer::load(kNano / "Step-Audio-Tokenizer");
  return loaded;
}

/// A bundled question, 16 kHz, as it travels.
const protocol::Bytes& question() {
  static const auto pcm = [] {
    const auto audio = *audio::read_audio(kNano / "questions/capital_of_france.wav");
    BOOST_REQUIRE(audio.rate == 16000);
    return to_pcm16(audio.wave);
  }();
  return pcm;
}

std::int64_t samples_of(const protocol::Bytes& pcm) { return static_cast<std::int64_t>(pcm.size() / 2); }

/// The part of it between two samples.
protocol::Bytes part(std::int64_t from, std::int64_t to) {
  return {question().begin() + 2 * from, question().begin() + 2 * to};
}

/// What the offline path says of the first samples.
std::vector<std::int32_t> offline(std::int64_t samples) {
  return *model()->codes(from_pcm16(part(0, samples)), 16000, {});
}

/// What a stream says that hears nothing else.
std::vector<std::int32_t> live_alone(std::int64_t samples) {
  LiveTokenizer live(model(), {});
  const auto wave = from_pcm16(part(0, samples));
  BOOST_REQUIRE(live.push(wave).has_value());
  return live.stable(wave.size())->codes;
}
std::vector<std::int32_t> alone(TokenizerMode mode, std::int64_t samples) {
  static std::map<std::pair<TokenizerMode, std::int64_t>, std::vector<std::int32_t>> known;
  const auto [at, isnew] = known.try_emplace({mode, samples});
  if (isnew) at->second = mode == TokenizerMode::exact ? offline(samples) : live_alone(samples);
  return at->second;
}

struct World {
  telemetry::Metrics metrics;
  TokenizerCore core;
  CoreDriver driver{core};
  explicit World(const TokenizerConfig& config = {}) : core(config, model()) { core.add_metrics(metrics); }

  void open(std::uint32_t stream, TokenizerMode mode = TokenizerMode::exact, Time deadline = Time::max()) {
    driver.tell("controller", stream, protocol::OpenTokenizer{mode}, CoreDriver::kSession, deadline);
  }
  void hear(std::uint32_t stream, std::int64_t first, protocol::Bytes pcm, Time deadline = Time::max()) {
    driver.tell("controller", stream, protocol::Audio{first, std::move(pcm)}, CoreDriver::kSession, deadline);
  }
  void flush(std::uint32_t stream, std::int64_t end = -1, Time deadline = Time::max()) {
    driver.tell("controller", stream, protocol::Flush{end}, CoreDriver::kSession, deadline);
  }
  void attempt(std::uint32_t stream, std::uint32_t number, std::int64_t end = -1) {
    driver.tell("controller", stream, protocol::Flush{end, number});
  }
  void close(std::uint32_t stream) { driver.tell("controller", stream, protocol::Close{}); }
  /// The one thing that was said since the last look, an error.
  CoreDriver::Heard only_error() {
    auto heard = driver.take();
    BOOST_REQUIRE(heard.size() == 1u);
    BOOST_REQUIRE(heard[0].is<protocol::ErrorMessage>());
    return heard[0];
  }
  /// Codes of the one message that was said, which is the last.
  std::vector<std::int32_t> only_last() {
    const auto heard = driver.take();
    BOOST_REQUIRE(heard.size() == 1u);
    BOOST_REQUIRE_MESSAGE(heard[0].is<protocol::Tokens>(), heard[0].why());
    const auto tokens = heard[0].read<protocol::Tokens>();
    BOOST_TEST(tokens.last);
    BOOST_TEST(tokens.first_group == 0);
    const auto codes = from_bytes<std::int32_t>(tokens.payload);
    BOOST_TEST(tokens.final_groups == static_cast<std::int64_t>(codes.size()) / kCodesPerGroup);
    return codes;
  }
  std::string metric(const std::string& name) const {
    const auto text = metrics.text();
    const auto at = text.find("\n" + name + " ");
    if (at == std::string::npos) return "none";
    const auto from = at + name.size() + 2;
    return text.substr(from, text.find('\n', from) - from);
  }
};

/// What a caller knows of a stream: each message replaces what was there from its first group on.
struct Known {
  bool exact = false;  // its last message replaces everything, what was final before it, too
  std::vector<std::int32_t> codes, frozen;
  int messages = 0, lasts = 0;
  void take(const std::vector<CoreDriver::Heard>& heard) {
    for (const auto& h : heard) {
      BOOST_REQUIRE_MESSAGE(h.is<protocol::Tokens>(), h.why());
      const auto tokens = h.read<protocol::Tokens>();
      const auto first = static_cast<std::size_t>(tokens.first_group * kCodesPerGroup);
      BOOST_REQUIRE(first <= codes.size());
      codes.resize(first);
      const auto more = from_bytes<std::int32_t>(tokens.payload);
      codes.insert(codes.end(), more.begin(), more.end());
      // What was final stays.
      if (exact && tokens.last) frozen.clear();
      BOOST_TEST(std::equal(frozen.begin(),
                            frozen.begin() + static_cast<std::ptrdiff_t>(std::min(frozen.size(), codes.size())),
                            codes.begin()));
      const auto final = static_cast<std::size_t>(tokens.final_groups * kCodesPerGroup);
      BOOST_TEST(final <= codes.size());
      BOOST_TEST(final >= frozen.size());
      frozen.assign(codes.begin(), codes.begin() + static_cast<std::ptrdiff_t>(std::min(final, codes.size())));
      ++messages;
      lasts += tokens.last;
    }
  }
};

}  // namespace

BOOST_AUTO_TEST_CASE(exact_codes_are_those_of_the_whole_however_it_was_cut) {
  const auto all = samples_of(question());
  const auto expected = offline(all);
  BOOST_REQUIRE(expected.size() > 25u);
  for (std::uint32_t seed = 1; seed <= 10; ++seed) {
    const std::int64_t base = seed % 3 == 0 ? 0 : seed % 3 == 1 ? 123457 : std::int64_t{1} << 60;
    BOOST_TEST_CONTEXT("seed " << seed << ", base " << base) {
      std::mt19937 random(seed);
      World w;
      w.open(1);
      Known known{.exact = true};
      const std::int64_t longest = seed % 4 == 0 ? 16000 : 4000;
      for (std::int64_t at = 0; at < all;) {
        const auto n = std::min<std::int64_t>(all - at, static_cast<std::int64_t>(random()) % (longest + 1));
        w.hear(1, base + at, part(at, at + n));
        at += n;
        if (random() % 3 == 0) w.driver.work();
      }
      w.flush(1);
      w.driver.work();
      known.take(w.driver.take());
      BOOST_TEST(known.lasts == 1);
      BOOST_TEST((known.codes == expected));
    }
  }
}

BOOST_AUTO_TEST_CASE(an_exact_utterance_is_encoded_once_at_its_end) {
  World w;
  w.open(1);
  w.hear(1, 0, part(0, 16000));
  w.hear(1, 16000, part(16000, 20000));
  w.flush(1);
  w.driver.work();
  BOOST_TEST((w.only_last() == offline(20000)));
  BOOST_TEST(w.metric("parlando_tokenizer_passes_total") == "1");
  BOOST_TEST(w.metric("parlando_tokenizer_audio_seconds_total") == "1.25");
}

BOOST_AUTO_TEST_CASE(stable_codes_come_while_the_user_speaks_and_keep_what_was_final) {
  const auto all = samples_of(question());
  for (std::uint32_t seed = 1; seed <= 3; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      std::mt19937 random(seed);
      World w;
      w.open(1, TokenizerMode::stable);
      Known known;
      for (std::int64_t at = 0; at < all;) {
        const auto n = std::min<std::int64_t>(all - at, 1 + static_cast<std::int64_t>(random() % 3000));
        w.hear(1, 77 + at, part(at, at + n));
        at += n;
        w.driver.work();
        known.take(w.driver.take());
      }
      BOOST_TEST(known.messages > 1);
      BOOST_TEST(known.lasts == 0);
      BOOST_TEST(known.frozen.size() > 0u);
      w.flush(1);
      w.driver.work();
      known.take(w.driver.take());
      BOOST_TEST(known.lasts == 1);
      BOOST_TEST(known.codes.size() == offline(all).size());
      BOOST_TEST(known.frozen.size() == known.codes.size());
    }
  }
}

BOOST_AUTO_TEST_CASE(a_flush_ends_the_utterance_where_it_says) {
  constexpr std::int64_t kBase = 5000;
  constexpr std::int64_t kHeard = 24000;
  struct Case {
    std::int64_t end, samples;
  };
  for (const auto mode : {TokenizerMode::exact, TokenizerMode::stable}) {
    for (const auto [end, samples] : {Case{-1, kHeard}, Case{kBase + 16000, 16000}, Case{kBase + kHeard, kHeard},
                                      Case{kBase + 999999, kHeard}, Case{kBase, 0}, Case{10, 0}}) {
      BOOST_TEST_CONTEXT("mode " << static_cast<int>(mode) << ", end " << end) {
        World w;
        w.open(1, mode);
        w.hear(1, kBase, part(0, kHeard));
        w.flush(1, end);
        w.driver.work();
        const auto codes = w.only_last();
        BOOST_TEST((codes == alone(mode, samples)));
        w.hear(1, kBase + kHeard, part(0, 1600));  // it was on its way
        w.flush(1);
        w.driver.work();
        BOOST_TEST(w.driver.take().empty());
      }
    }
  }
}

/// Ends near what was heard and far behind it, before the start and behind the end; several waiting at once.
BOOST_AUTO_TEST_CASE(an_attempt_is_answered_like_a_flush_and_leaves_no_trace) {
  const auto all = samples_of(question());
  int answers = 0;
  for (const auto mode : {TokenizerMode::stable, TokenizerMode::exact})
    for (std::uint32_t seed = 1; seed <= (mode == TokenizerMode::stable ? 3 : 2); ++seed) {
      BOOST_TEST_CONTEXT("mode " << static_cast<int>(mode) << ", seed " << seed) {
        std::mt19937 random(seed);
        const auto below = [&](std::int64_t n) { return static_cast<std::int64_t>(random()) % n; };
        constexpr std::int64_t kBase = 4321;
        World asked, unasked;
        std::map<std::uint32_t, std::int64_t> ends;  // of attempts
        std::vector<CoreDriver::Heard> own, expected;
        const auto look = [&] {
          for (auto& h : asked.driver.take()) {
            BOOST_REQUIRE_MESSAGE(h.is<protocol::Tokens>(), h.why());
            const auto tokens = h.read<protocol::Tokens>();
            if (tokens.attempt == 0) {
              own.push_back(std::move(h));
              continue;
            }
            BOOST_REQUIRE(ends.contains(tokens.attempt));
            const auto codes = from_bytes<std::int32_t>(tokens.payload);
            BOOST_TEST((codes == alone(mode, ends[tokens.attempt])), "end " << ends[tokens.attempt]);
            BOOST_TEST((tokens.last && tokens.first_group == 0));
            BOOST_TEST(tokens.final_groups == static_cast<std::int64_t>(codes.size()) / kCodesPerGroup);
            ends.erase(tokens.attempt);
            ++answers;
          }
          for (auto& h : unasked.driver.take()) expected.push_back(std::move(h));
        };
        for (auto* w : {&asked, &unasked}) w->open(1, mode);
        std::uint32_t number = 0;
        const auto longest = seed % 3 == 0 ? 20000 : seed % 3 == 1 ? 4000 : 700;
        for (std::int64_t at = 0; at < all;) {
          const auto n = std::min<std::int64_t>(all - at, below(longest + 1));
          for (auto* w : {&asked, &unasked}) w->hear(1, kBase + at, part(at, at + n));
          at += n;
          for (auto tries = longest < 1000 ? below(16) / 14 : below(4) - 1; tries > 0; --tries) {
            const auto way = below(6);
            const auto end = way == 0 ? at : way == 1 ? at + below(5000) : std::max<std::int64_t>(0, at - below(12000));
            asked.attempt(1, ++number, way == 0 ? -1 : way == 5 && end == 0 ? 7 : kBase + end);
            ends[number] = std::min(end, at);
          }
          const auto units = static_cast<int>(below(4));
          for (auto* w : {&asked, &unasked}) w->driver.work(units);
          look();
        }
        const auto end = kBase + all - below(9000);
        if (below(2) == 0) asked.attempt(1, ++number, end), ends[number] = end - kBase;
        for (auto* w : {&asked, &unasked}) w->flush(1, end), w->driver.work();
        look();
        BOOST_TEST(ends.empty());
        BOOST_REQUIRE(own.size() == expected.size());
        for (std::size_t i = 0; i < own.size(); ++i)
          BOOST_TEST((own[i].message.body == expected[i].message.body &&
                      own[i].message.payload == expected[i].message.payload),
                     "message " << i);
        BOOST_TEST((from_bytes<std::int32_t>(own.back().read<protocol::Tokens>().payload) == alone(mode, end - kBase)));
      }
    }
  BOOST_TEST(answers > 30);
}

BOOST_AUTO_TEST_CASE(an_end_that_was_asked_for_is_known) {
  for (const auto mode : {TokenizerMode::stable, TokenizerMode::exact}) {
    World w;
    w.open(1, mode);
    w.hear(1, 0, part(0, 20000));
    w.attempt(1, 7, 18000);
    w.driver.work();
    const auto passes = w.metric("parlando_tokenizer_passes_total");
    BOOST_TEST(passes == (mode == TokenizerMode::exact ? "1" : "2"));  // with a block
    const auto attempt = w.driver.take().back().read<protocol::Tokens>();
    BOOST_TEST(attempt.attempt == 7u);
    w.hear(1, 20000, part(20000, 22000));
    w.flush(1, 18000);
    w.driver.work();
    BOOST_TEST((w.only_last() == from_bytes<std::int32_t>(attempt.payload)));
    BOOST_TEST(w.metric("parlando_tokenizer_passes_total") == passes);
  }
}

BOOST_AUTO_TEST_CASE(a_stream_that_asks_without_end_is_refused_and_others_go_on) {
  World w;
  w.open(1, TokenizerMode::stable);
  w.open(2, TokenizerMode::stable);
  w.hear(1, 0, part(0, 4000));
  w.hear(2, 0, part(0, 20000));
  for (std::uint32_t n = 1; n <= TokenizerCore::kAttemptsMax; ++n) w.attempt(1, n);
  BOOST_TEST(w.driver.take().empty());
  w.attempt(1, 9999);
  BOOST_TEST(w.only_error().read<protocol::ErrorMessage>().code == "overloaded");
  w.flush(2);
  w.driver.work();
  BOOST_TEST((w.only_last() == alone(TokenizerMode::stable, 20000)));
  // Its own end is no attempt.
  w.open(3, TokenizerMode::stable);
  w.hear(3, 0, part(0, 4000));
  for (std::uint32_t n = 1; n <= TokenizerCore::kAttemptsMax; ++n) w.attempt(3, n);
  w.flush(3);
  w.driver.work();
  const auto heard = w.driver.take();
  BOOST_REQUIRE(heard.size() == TokenizerCore::kAttemptsMax + 1);
  for (const auto& h : heard) BOOST_TEST(h.is<protocol::Tokens>(), h.why());
  BOOST_TEST(heard.back().read<protocol::Tokens>().attempt == 0u);
}

BOOST_AUTO_TEST_CASE(a_pass_has_no_more_rows_than_a_step_has_time_for) {
  BOOST_TEST(TokenizerConfig{.batch_rows_max = 512}.problems("tokenizer").empty());
  const auto problems = TokenizerConfig{.batch_rows_max = 513}.problems("tokenizer");
  BOOST_REQUIRE(problems.size() == 1u);
  BOOST_TEST(problems[0].path == "tokenizer.batch_rows_max");
}

BOOST_AUTO_TEST_CASE(only_an_attempt_is_told_how_complete_the_utterance_sounds) {
  for (const auto mode : {TokenizerMode::stable, TokenizerMode::exact}) {
    World w;
    w.open(1, mode);
    const auto all = samples_of(question());
    std::map<std::uint32_t, int> told;
    const auto look = [&] {
      for (auto& h : w.driver.take()) {
        const auto tokens = h.read<protocol::Tokens>();
        if (tokens.attempt == 0)
          BOOST_TEST(tokens.complete_permille == -1);
        else
          told[tokens.attempt] = tokens.complete_permille;
      }
    };
    w.attempt(1, 9);  // of nothing
    w.hear(1, 0, part(0, all));
    w.attempt(1, 1, all);
    w.attempt(1, 2, all / 2);
    w.attempt(1, 3, all);
    w.driver.work();
    look();
    w.flush(1);
    w.driver.work();
    look();
    BOOST_TEST(told.size() == 4u);
    BOOST_TEST(told[9] == 0);
    BOOST_TEST(told[1] == told[3]);
    BOOST_TEST((told[1] > 300 && told[1] <= 1000), told[1]);  // "what is the capital of france"
    BOOST_TEST((told[2] >= 0 && told[2] < 100), told[2]);     // "what is the"
    LiveTokenizer alone(model(), {});
    const auto wave = from_pcm16(question());
    BOOST_REQUIRE(alone.push(wave).has_value());
    const auto same = mode == TokenizerMode::exact ? alone.exact(wave.size()) : alone.stable(wave.size());
    BOOST_TEST(told[1] == std::lround(1000 * same->completeness));
  }
}

BOOST_AUTO_TEST_CASE(frozen_groups_behind_the_end_are_forgotten) {
  World w;
  w.open(1, TokenizerMode::stable);
  const auto all = samples_of(question());
  for (std::int64_t at = 0; at < all; at += 1600) {
    w.hear(1, at, part(at, std::min(all, at + 1600)));
    w.driver.work();
  }
  w.driver.take();
  w.flush(1, 9600);  // 0.6 s are five groups
  w.driver.work();
  BOOST_TEST(w.only_last().size() <= 5u * kCodesPerGroup);
}

BOOST_AUTO_TEST_CASE(an_utterance_of_nothing_has_no_codes) {
  for (const auto mode : {TokenizerMode::exact, TokenizerMode::stable}) {
    World w;
    w.open(1, mode);
    w.flush(1);
    w.driver.work();
    BOOST_TEST(w.only_last().empty());
  }
}

BOOST_AUTO_TEST_CASE(a_gap_is_told_once_and_then_the_stream_is_silent_until_its_close) {
  for (const std::int64_t wrong : {std::int64_t{2599}, std::int64_t{2601}, std::int64_t{0}}) {
    BOOST_TEST_CONTEXT("sample " << wrong) {
      World w;
      w.open(1);
      w.hear(1, 1000, part(0, 1600));
      w.driver.work();
      w.hear(1, wrong, part(1600, 3200));
      const auto error = w.only_error();
      BOOST_TEST(error.code() == "position_mismatch");
      BOOST_TEST(error.why().find(std::to_string(wrong)) != std::string::npos, error.why());
      BOOST_TEST(error.why().find("2600") != std::string::npos, error.why());
      w.hear(1, 2600, part(1600, 3200));
      w.flush(1);
      w.driver.work();
      BOOST_TEST(w.driver.take().empty());
      w.close(1);
      BOOST_TEST(w.core.load() == 0);
      w.hear(1, 2600, part(1600, 3200));
      BOOST_TEST(w.only_error().code() == "not_found");
    }
  }
}

BOOST_AUTO_TEST_CASE(a_position_that_cannot_be_added_to_is_refused) {
  World w;
  w.open(1);
  w.hear(1, std::numeric_limits<std::int64_t>::max(), part(0, 1600));
  BOOST_TEST(w.only_error().code() == "invalid_argument");
}

BOOST_AUTO_TEST_CASE(half_a_sample_is_refused) {
  World w;
  w.open(1);
  w.hear(1, 0, protocol::Bytes(3));
  BOOST_TEST(w.only_error().code() == "bad_frame");
  w.driver.tell("controller", 2, protocol::Tokenize{16000, protocol::Bytes(7)});
  BOOST_TEST(w.only_error().code() == "bad_frame");
}

BOOST_AUTO_TEST_CASE(a_recording_is_answered_by_its_codes) {
  const auto wave = from_pcm16(question());
  const auto expected = *model()->codes(wave, 16000, {.trim = true, .energy_norm = true});
  World w;
  w.driver.tell("tts", 1, protocol::Tokenize{16000, to_bytes(std::span(wave))});
  BOOST_TEST(w.core.load() == 1);
  BOOST_TEST(w.driver.take().empty());
  w.driver.work();
  BOOST_TEST((w.only_last() == expected));
  w.driver.tell("tts", 1, protocol::Close{});
  BOOST_TEST(w.core.load() == 0);
  // Sound for a recording's stream is a mistake.
  w.driver.tell("tts", 2, protocol::Tokenize{16000, to_bytes(std::span(wave))});
  w.driver.tell("tts", 2, protocol::Audio{0, part(0, 1600)});
  BOOST_TEST(w.only_error().code() == "unsupported");
  w.driver.work();
  BOOST_TEST(w.driver.take().empty());
  // Numbers that are none make no codes and do no harm.
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const std::vector<float> broken(16000, bad);
    w.driver.tell("tts", 3, protocol::Tokenize{16000, to_bytes(std::span<const float>(broken))});
    w.driver.work();
    BOOST_TEST(w.only_error().code() == "invalid_argument");
    w.driver.tell("tts", 3, protocol::Close{});
  }
}

BOOST_AUTO_TEST_CASE(an_utterance_has_a_longest_length) {
  World w({.utterance_seconds_max = 1});
  w.open(1);
  w.hear(1, 0, part(0, 16000));
  BOOST_TEST(w.driver.take().empty());
  w.hear(1, 16000, part(0, 1));
  BOOST_TEST(w.only_error().code() == "invalid_argument");
  w.flush(1);
  w.driver.work();
  BOOST_TEST(w.driver.take().empty());
}

BOOST_AUTO_TEST_CASE(a_stream_too_many_is_told_once_and_the_others_go_on) {
  World w({.sessions_max = 2});
  BOOST_TEST(w.core.slots() == 2);
  w.open(1);
  w.open(2);
  BOOST_TEST(w.core.slots() == 0);
  w.open(3);
  BOOST_TEST(w.only_error().code() == "overloaded");
  w.hear(3, 0, part(0, 1600));  // was on its way
  w.flush(3);
  w.driver.work();
  BOOST_TEST(w.driver.take().empty());
  w.close(3);
  w.hear(1, 0, part(0, 8000));
  w.flush(1);
  w.driver.work();
  BOOST_TEST((w.only_last() == offline(8000)));
  w.close(1);
  w.open(4);
  BOOST_TEST(w.driver.take().empty());
  w.open(4);
  BOOST_TEST(w.only_error().code() == "invalid_argument");
}

BOOST_AUTO_TEST_CASE(a_spent_budget_is_told_instead_of_codes) {
  World w;
  const auto until = w.driver.now + milliseconds(100);
  w.open(1, TokenizerMode::exact, until);
  w.hear(1, 0, part(0, 16000), until);
  w.flush(1, -1, until);
  w.driver.now = until;
  w.driver.work();
  BOOST_TEST(w.only_error().code() == "deadline_exceeded");
  w.driver.work();
  BOOST_TEST(w.driver.take().empty());
  BOOST_TEST(w.metric("parlando_tokenizer_passes_total") == "0");
  // In time it is none.
  w.open(2, TokenizerMode::exact, until + milliseconds(1));
  w.hear(2, 0, part(0, 16000), until + milliseconds(1));
  w.flush(2, -1, until + milliseconds(1));
  w.driver.work();
  w.only_last();
}

BOOST_AUTO_TEST_CASE(close_and_a_lost_peer_end_what_is_queued) {
  World w;
  w.open(1);
  w.open(2);
  w.driver.tell("other", 1, protocol::OpenTokenizer{TokenizerMode::exact});
  for (const std::uint32_t stream : {1, 2}) {
    w.hear(stream, 0, part(0, 16000));
    w.flush(stream);
  }
  w.driver.tell("other", 1, protocol::Audio{0, part(0, 8000)});
  w.driver.tell("other", 1, protocol::Flush{});
  w.close(1);
  BOOST_TEST(w.core.load() == 2);
  w.driver.caller("controller", PeerState::suspect);
  BOOST_TEST(w.core.load() == 2);
  w.driver.caller("controller", PeerState::down);
  BOOST_TEST(w.core.load() == 1);
  w.driver.work();
  const auto heard = w.driver.take();
  BOOST_REQUIRE(heard.size() == 1u);
  BOOST_TEST(heard[0].peer == "other");
  BOOST_TEST(heard[0].read<protocol::Tokens>().last);
  BOOST_TEST(w.metric("parlando_tokenizer_passes_total") == "1");
}

BOOST_AUTO_TEST_CASE(an_answer_that_the_link_does_not_take_ends_the_stream) {
  World w;
  w.open(1, TokenizerMode::stable);
  w.hear(1, 0, part(0, 16000));
  w.driver.work();
  const auto heard = w.driver.take();
  BOOST_REQUIRE(heard.size() == 1u);
  w.driver.refuse(heard[0], {Errc::overloaded, "too far behind"});
  BOOST_TEST(w.core.load() == 0);
  w.hear(1, 16000, part(16000, 20000));
  w.flush(1);
  w.driver.work();
  for (const auto& h : w.driver.take()) BOOST_TEST(h.code() == "overloaded");
}

BOOST_AUTO_TEST_CASE(streams_get_their_passes_in_turn) {
  World w;
  for (const std::uint32_t stream : {1, 2, 3}) {
    w.open(stream);
    w.hear(stream, 0, part(0, 4000));
    w.flush(stream);
  }
  std::vector<std::uint32_t> order;
  for (int i = 0; i < 3; ++i) {
    w.driver.work(1);
    for (const auto& h : w.driver.take()) order.push_back(h.stream());
  }
  const std::vector<std::uint32_t> expected{1, 2, 3};
  BOOST_TEST(order == expected, boost::test_tools::per_element());
}

/// Whatever happened to them, streams leave nothing behind, say one error at most and nothing after their end.
BOOST_AUTO_TEST_CASE(after_any_sequence_everything_is_free_again) {
  std::map<std::string, int> outcomes;
  for (std::uint32_t seed = 1; seed <= 60; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      std::mt19937 random(seed);
      const auto below = [&](std::size_t n) { return random() % n; };
      World w({.sessions_max = 4, .utterance_seconds_max = 1});
      using Stream = std::pair<std::string, std::uint32_t>;
      std::map<Stream, std::int64_t> open;  // and where their sound goes on
      std::set<Stream> ended;
      std::vector<CoreDriver::Heard> said;
      std::uint32_t next = 1;
      const auto look = [&] {
        for (auto& h : w.driver.take()) {
          const Stream stream(h.peer, h.stream());
          BOOST_TEST(open.contains(stream), "stream " << h.stream() << " is not open");
          BOOST_TEST(!ended.contains(stream), "stream " << h.stream() << " speaks behind its end: " << h.code());
          const auto tokens = h.read<protocol::Tokens>();
          const bool last = tokens.last && tokens.attempt == 0;
          if (h.is<protocol::ErrorMessage>() || last) ended.insert(stream);
          ++outcomes[last ? "last" : tokens.attempt > 0 ? "attempt" : h.code()];
          said.push_back(std::move(h));
        }
      };
      for (int i = 0; i < 40; ++i) {
        const auto what = below(16);
        const auto deadline = below(6) == 0 ? w.driver.now + milliseconds(below(30)) : Time::max();
        if (what <= 1 || open.empty()) {
          const Stream stream(below(2) == 0 ? "one" : "two", next++);
          open[stream] = 0;
          w.driver.tell(stream.first, stream.second,
                        protocol::OpenTokenizer{below(2) == 0 ? TokenizerMode::exact : TokenizerMode::stable},
                        CoreDriver::kSession, deadline);
        } else if (what == 2) {
          const Stream stream(below(2) == 0 ? "one" : "two", next++);
          open[stream] = 0;
          const auto wave = from_pcm16(part(4000, 7000));
          w.driver.tell(stream.first, stream.second, protocol::Tokenize{16000, to_bytes(std::span(wave))},
                        CoreDriver::kSession, deadline);
        } else if (what == 3) {
          const std::string peer = below(2) == 0 ? "one" : "two";
          w.driver.caller(peer, PeerState::down);
          std::erase_if(open, [&](const auto& s) { return s.first.first == peer; });
        } else if (what == 4 && !said.empty()) {
          const auto& h = said[below(said.size())];
          const Stream stream(h.peer, h.stream());
          if (open.contains(stream)) {
            w.driver.refuse(h, {Errc::overloaded, "full"});
            ended.erase(stream);  // its caller has not heard that: one error tells it so
          }
        } else if (what == 5) {
          const OutOfMemory now;
          w.driver.work(1);
        } else {
          auto at = std::next(open.begin(), static_cast<std::ptrdiff_t>(below(open.size())));
          const auto [peer, stream] = at->first;
          if (what <= 11) {
            const auto n = static_cast<std::int64_t>(below(5000));
            w.driver.tell(peer, stream, protocol::Audio{at->second + (below(12) == 0 ? 1 : 0), part(0, n)},
                          CoreDriver::kSession, deadline);
            at->second += n;
          } else if (what <= 13) {
            const protocol::Flush flush{static_cast<std::int64_t>(below(3) * 3000) - 1,
                                        static_cast<std::uint32_t>(below(3))};
            w.driver.tell(peer, stream, flush, CoreDriver::kSession, deadline);
          } else {
            w.driver.tell(peer, stream, protocol::Close{});
            open.erase(at);
          }
        }
        look();
        w.driver.now += milliseconds(below(20));
        w.driver.work(static_cast<int>(below(3)));
        look();
      }
      for (const auto& [stream, position] : open)
        if (stream.first == "one") w.driver.tell(stream.first, stream.second, protocol::Close{});
      w.driver.caller("two", PeerState::down);
      BOOST_TEST(w.driver.take().empty());
      BOOST_TEST(w.core.load() == 0);
      BOOST_TEST(w.core.slots() == 4);
      w.driver.work();
      BOOST_TEST(w.driver.take().empty());
    }
  }
  for (const char* outcome : {"last", "attempt", "overloaded", "deadline_exceeded", "internal", "position_mismatch",
                              "unsupported", "invalid_argument"})
    BOOST_TEST(outcomes[outcome] > 0, outcome);
}

/// Whichever allocation fails while a message is taken, its stream is told one error and is over, or nothing happened.
BOOST_AUTO_TEST_CASE(a_message_that_throws_ends_its_stream_with_one_error) {
  const auto message = [](auto body, std::uint32_t stream) {
    protocol::Envelope head;
    head.session = CoreDriver::kSession;
    head.stream = {stream};
    return protocol::pack(std::move(body), head);
  };
  model();
  // Sound that fits, sound behind a gap (an error of its own), and a second opening; one failure, and one more when
  // that is told.
  for (int what = 0; what < 6; ++what) {
    int failed = 0;
    failures = what < 3 ? 1 : 2;
    for (std::int64_t at = 0;; ++at) {
      World w;
      w.open(1, TokenizerMode::stable);
      w.hear(1, 0, part(0, 4000));
      BOOST_REQUIRE(w.driver.take().empty());
      auto m = what % 3 == 0   ? message(protocol::Audio{4000, part(4000, 20000)}, 1)
               : what % 3 == 1 ? message(protocol::Audio{4321, part(4000, 8000)}, 1)
                               : message(protocol::OpenTokenizer{}, 1);
      const std::string own = "controller";
      service::Runner host(w.core);
      until_failure = at + failures - 1;
      const bool handled = host.deliver(own, std::move(m), w.driver.now);
      const bool met = until_failure < failures - 1;
      until_failure = -1;
      BOOST_TEST(handled);
      if (!met) break;
      ++failed;
      BOOST_TEST_CONTEXT("message " << what << ", allocation " << at) {
        auto heard = host.take();
        BOOST_REQUIRE(heard.size() == 1u);
        BOOST_TEST(heard[0].peer == own);
        BOOST_TEST((heard[0].message.head.type == protocol::MessageType::error));
        w.hear(1, 4000, part(4000, 8000));
        w.hear(1, 20000, part(4000, 8000));
        w.flush(1);
        w.driver.work();
        BOOST_TEST(w.driver.take().empty());
        w.close(1);
        BOOST_TEST(w.core.load() == 0);
        w.open(1);
        BOOST_TEST(w.core.load() == 1);
      }
    }
    BOOST_TEST(failed > 0, "message " << what);
  }
}

/// A failure that cannot be told at once is told at the next one, not never.
BOOST_AUTO_TEST_CASE(an_error_that_cannot_be_told_ends_no_stream_in_silence) {
  int failed = 0;
  for (std::int64_t at = 0;; ++at) {
    World w;
    w.open(1, TokenizerMode::stable, w.driver.now + milliseconds(10));
    w.driver.tell("controller", 1, protocol::Audio{0, part(0, 20000)}, CoreDriver::kSession,
                  w.driver.now + milliseconds(10));
    w.driver.now += milliseconds(20);  // its budget is spent
    service::Runner host(w.core);
    failures = 2;
    until_failure = at + failures - 1;
    host.work(w.driver.now);
    const bool met = until_failure < failures - 1;
    until_failure = -1;
    if (!met) break;
    ++failed;
    BOOST_TEST_CONTEXT("allocation " << at) {
      BOOST_TEST(host.take().empty());
      w.driver.work();
      BOOST_TEST(w.only_error().code() == "deadline_exceeded");
      w.hear(1, 20000, part(0, 100));
      w.driver.work();
      BOOST_TEST(w.driver.take().empty());
    }
  }
  BOOST_TEST(failed > 0);
}

/// Of two streams in a step each is told its end or one error, whatever fails on the way and in telling it.
BOOST_AUTO_TEST_CASE(what_fails_at_one_stream_leaves_no_other_unanswered) {
  for (const bool spent : {true, false}) {
    int failed = 0, ends = 0;
    for (int times = 1; times <= 3; ++times)
      for (std::int64_t at = 0;; ++at) {
        World w;
        const auto soon = spent ? w.driver.now + milliseconds(10) : Time::max();
        w.open(1, TokenizerMode::stable);
        w.hear(1, 0, part(0, 6000));
        w.flush(1);
        w.driver.now += milliseconds(1);
        w.open(2, TokenizerMode::stable, soon);
        w.hear(2, 0, part(0, 6000), soon);
        w.flush(2, -1, soon);
        w.driver.now += milliseconds(20);  // the budget of the second, perhaps
        service::Runner host(w.core);
        failures = times;
        {
          const OutOfMemory now;  // if the streams come to be read at all
          until_failure = at + failures - 1;
          host.work(w.driver.now);
        }
        const bool met = until_failure < failures - 1;
        until_failure = -1;
        if (!met) break;
        ++failed;
        BOOST_TEST_CONTEXT("allocation " << at << " and " << times - 1 << " more") {
          std::map<std::uint32_t, int> told;
          for (const auto& out : host.take()) ++told[out.message.head.stream.value];
          w.driver.work();
          for (const auto& h : w.driver.take()) {
            ++told[h.stream()];
            BOOST_TEST((h.is<protocol::ErrorMessage>() || h.read<protocol::Tokens>().last));
            ends += h.is<protocol::Tokens>();
          }
          BOOST_TEST(told[1] == 1);
          BOOST_TEST(told[2] == 1);
          for (const std::uint32_t stream : {1, 2}) w.hear(stream, 6000, part(0, 100)), w.close(stream);
          w.driver.work();
          BOOST_TEST(w.driver.take().empty());
          BOOST_TEST(w.core.load() == 0);
        }
      }
    BOOST_TEST(failed > 0);
    BOOST_TEST_MESSAGE(failed << " failures, " << ends << " ends");
  }
}

/// A stream that could not be opened is told one error, however much fails and however many ended before it.
BOOST_AUTO_TEST_CASE(a_stream_that_never_opened_is_told_once) {
  int failed = 0;
  for (std::uint32_t before = 0; before <= 10; ++before)
    for (std::int64_t at = 0;; ++at) {
      World w;
      for (std::uint32_t stream = 1; stream <= before; ++stream) {
        w.driver.tell("controller", stream, protocol::Tokenize{16000, protocol::Bytes(3)});
        BOOST_TEST(w.only_error().code() == "bad_frame");
      }
      protocol::Envelope head;
      head.session = CoreDriver::kSession;
      head.stream = {100};
      auto m = protocol::pack(protocol::OpenTokenizer{}, head);
      service::Runner host(w.core);
      failures = 2;
      until_failure = at + failures - 1;
      const bool handled = host.deliver("controller", std::move(m), w.driver.now);
      const bool met = until_failure < failures - 1;
      until_failure = -1;
      BOOST_TEST(handled);
      if (!met) break;
      ++failed;
      BOOST_TEST_CONTEXT("allocation " << at << " behind " << before << " that ended") {
        BOOST_TEST(host.take().size() == 1u);
        w.hear(100, 0, part(0, 100));
        w.flush(100);
        w.driver.work();
        BOOST_TEST(w.driver.take().empty());
        BOOST_TEST(w.core.load() == 0);
        w.close(100);
      }
    }
  BOOST_TEST(failed > 0);
}

}  // namespace parlando::tokenizer
