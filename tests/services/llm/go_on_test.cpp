/// GoOn: a chat goes on behind the ids that another replica has generated. For every prefix of a whole reply's ids a
/// new core must tell the same texts at the same places, the same ids and the same end.
#include <ATen/ATen.h>

#include <boost/test/unit_test.hpp>

#include <nlohmann/json.hpp>

#include "common/audio/audio_file.hpp"
#include "common/base/codes.hpp"
#include "common/base/pcm.hpp"
#include "services/llm/llm_core.hpp"
#include "services/tokenizer/model/speech_tokenizer.hpp"
#include "tests/support/core_driver.hpp"

namespace parlando::llm {
namespace {
using protocol::TextKind;
namespace fs = std::filesystem;

const fs::path kNano = fs::path(PARLANDO_SOURCE_DIR) / "models/nano";

const LlmModel& nano() {
  static const auto model =
      *LlmModel::load(kNano / "Step-Audio-Chat", at::kFloat, {.cache_tokens = 4096, .step_max = std::chrono::hours(1)});
  return model;
}

std::vector<std::int32_t> codes_of(const char* question) {
  static const auto tokenizer = *tokenizer::SpeechTokenizer::load(kNano / "Step-Audio-Tokenizer");
  const auto audio = *audio::read_audio(kNano / "questions" / question);
  return *tokenizer->codes(audio.wave, audio.rate, {});
}

template <class T>
protocol::Bytes bytes_of(const std::vector<T>& values) {
  return to_bytes(std::span(values));
}

/// What the user says, and how the model draws.
struct Question {
  std::string name;
  std::vector<std::int32_t> codes;  ///< spoken; else:
  std::string text;                 ///< typed
  Sampling sampling = Sampling::greedy();
  std::uint64_t seed = 1;
  int reply_tokens_max = 1024;
};

/// What was told so far, put together by position.
struct Told {
  std::string transcript, reply, whole;
  std::vector<std::string> calls;
  std::vector<std::int32_t> ids;
  bool done = false;
  std::string error;
  bool operator==(const Told&) const = default;

  void take(const CoreDriver::Heard& heard) {
    if (heard.is<protocol::ErrorMessage>()) {
      error = heard.code() + ": " + heard.why();
      return;
    }
    BOOST_REQUIRE(heard.is<protocol::Text>());
    const auto text = heard.read<protocol::Text>();
    BOOST_TEST(!done, "something follows `done`");
    const auto more = from_bytes<std::int32_t>(text.payload);
    ids.insert(ids.end(), more.begin(), more.end());
    if (text.kind == TextKind::transcript) {
      BOOST_TEST(text.at_bytes == static_cast<std::int64_t>(transcript.size()));
      transcript += text.text;
    } else if (text.kind == TextKind::text) {
      BOOST_TEST(text.at_bytes == static_cast<std::int64_t>(reply.size()));
      reply += text.text;
    } else if (text.kind == TextKind::tool_call) {
      BOOST_TEST(text.at_bytes == static_cast<std::int64_t>(calls.size()));
      // That it was answered once depends on what is known.
      auto call = nlohmann::json::parse(text.text);
      call.erase("past");
      calls.push_back(call.dump());
    } else {
      done = true;
      const auto figures = nlohmann::json::parse(text.text);
      whole = fmt::format("{} {}", figures["finish"].get<std::string>(), figures["output_tokens"].get<int>());
      BOOST_TEST(figures["prompt_tokens"].get<int>() >= figures["cached_tokens"].get<int>());
    }
  }
};

std::ostream& operator<<(std::ostream& out, const Told& t) {
  return out << fmt::format("transcript '{}' reply '{}' done {} '{}' calls {} ids {} {}", t.transcript, t.reply, t.done,
                            t.whole, fmt::join(t.calls, ", "), t.ids.size(), t.error);
}

/// One core with one chat.
class Replica {
 public:
  explicit Replica(const Question& question)
      : model_(with(question)),
        core_({.reply_tokens_max = question.reply_tokens_max}, model_),
        blocks_(model_.engine->blocks_free()) {
    ++alive_;
    tell(protocol::OpenChat{.seed = question.seed});
    if (question.codes.empty()) {
      tell(protocol::Say{question.text});
    } else {
      // In two parts, the second of which replaces some of the first, as while somebody speaks.
      const auto half = question.codes.size() / kCodesPerGroup / 2;
      auto wrong = question.codes;
      wrong.resize((half + 1) * kCodesPerGroup);
      wrong.back() = wrong.back() == 1024 ? 1025 : 1024;
      tell(protocol::Hear{0, bytes_of(wrong)});
      driver_.work(1);
      const auto at = static_cast<std::ptrdiff_t>(half * kCodesPerGroup);
      const std::vector<std::int32_t> rest(question.codes.begin() + at, question.codes.end());
      tell(protocol::Hear{static_cast<std::int64_t>(half), bytes_of(rest)});
    }
  }
  ~Replica() {
    tell(protocol::Close{});
    // They share one engine, whose steps move the others on, too: what all held is free when the first one goes, the
    // last.
    if (--alive_ == 0) BOOST_TEST(model_.engine->blocks_free() == blocks_);
  }

  void go_on(const std::vector<std::int32_t>& ids) { tell(protocol::GoOn{bytes_of(ids)}); }
  void generate() { tell(protocol::Generate{}); }
  /// Units of work until the chat is over, at most `most`.
  void work(int most = 4000) {
    for (; most > 0 && !told.done && told.error.empty(); --most) driver_step();
  }
  /// The same whatever has been told.
  void work_on() {
    driver_.work();
    look();
  }
  template <class T>
  void also(T body) {
    tell(std::move(body));
  }
  void refuses(const char* code) {
    BOOST_TEST(told.error.starts_with(code), "expected " << code << ", got '" << told.error << "'");
  }
  std::int64_t computed() const { return model_.engine->tokens_computed(); }

  Told told;
  std::vector<Told> steps;  ///< `told` after each message

 private:
  static LlmModel with(const Question& question) {
    auto model = nano();
    model.chat_sampling = question.sampling;
    return model;
  }
  template <class T>
  void tell(T body) {
    driver_.tell("controller", stream_, std::move(body));
    look();
  }
  void driver_step() {
    driver_.work(1);
    look();
  }
  /// A tool answers at once.
  void look() {
    for (auto heard = driver_.take(); !heard.empty(); heard = driver_.take())
      for (const auto& h : heard) {
        told.take(h);
        steps.push_back(told);
        if (h.is<protocol::Text>() && h.read<protocol::Text>().kind == TextKind::tool_call)
          driver_.tell("controller", stream_, protocol::ToolResult{{R"({"city":"paris","degrees":21,"sky":"sunny"})"}});
      }
  }
  static std::uint32_t next_stream() {
    static std::uint32_t last = 0;
    return ++last;
  }
  LlmModel model_;
  LlmCore core_;
  CoreDriver driver_{core_};
  std::uint32_t stream_ = next_stream();  // replicas of these tests share one engine
  std::int64_t blocks_;
  static inline int alive_ = 0;
};

void check_every_prefix(const Question& question) {
  BOOST_TEST_CONTEXT(question.name << ", seed " << question.seed) {
    Replica first(question);
    first.generate();
    BOOST_TEST(first.told.ids.empty());
    first.work();
    const auto& whole = first.told;
    BOOST_REQUIRE_MESSAGE(whole.done, whole);
    BOOST_TEST(whole.whole.ends_with(fmt::format(" {}", whole.ids.size())));
    BOOST_TEST(whole.ids.size() > 0u);
    BOOST_TEST_MESSAGE(question.name << " seed " << question.seed << ": " << whole);
    for (std::size_t n = 0; n <= whole.ids.size(); ++n) {
      BOOST_TEST_CONTEXT("behind " << n << " of " << whole.ids.size() << " ids") {
        const std::vector<std::int32_t> known(whole.ids.begin(), whole.ids.begin() + static_cast<std::ptrdiff_t>(n));
        Replica next(question);
        next.go_on(known);
        next.generate();
        // What these ids say is told at once and from the start.
        Told at_once;
        for (const auto& step : first.steps)
          if (step.ids.size() <= n) at_once = step;
        BOOST_TEST(next.told.transcript == at_once.transcript);
        BOOST_TEST(next.told.reply == at_once.reply);
        BOOST_TEST(next.told.calls == at_once.calls, boost::test_tools::per_element());
        BOOST_TEST(next.told.done == at_once.done);
        const auto before = next.computed();
        next.work();
        if (at_once.done) BOOST_TEST(next.computed() == before);
        // Ids that the caller knows are not told again.
        next.told.ids.insert(next.told.ids.begin(), known.begin(), known.end());
        BOOST_TEST(next.told == whole);
      }
    }
  }
}

}  // namespace

BOOST_AUTO_TEST_SUITE(go_on)

BOOST_AUTO_TEST_CASE(a_spoken_question_is_answered_alike_behind_every_prefix) {
  check_every_prefix({.name = "spoken", .codes = codes_of("capital_of_france.wav")});
}

BOOST_AUTO_TEST_CASE(a_typed_question_is_answered_alike_behind_every_prefix) {
  check_every_prefix({.name = "typed", .text = "what is seven plus nine"});
}

BOOST_AUTO_TEST_CASE(a_question_that_needs_a_tool_is_answered_alike_behind_every_prefix) {
  for (const bool spoken : {false, true}) {
    Question question{.name = spoken ? "spoken, with a tool" : "typed, with a tool"};
    if (spoken) question.codes = codes_of("weather_in_paris.wav");
    if (!spoken) question.text = "what is the weather in paris today";
    Replica once(question);
    once.generate();
    once.work();
    BOOST_REQUIRE(once.told.calls.size() == 1u);
    check_every_prefix(question);
  }
}

BOOST_AUTO_TEST_CASE(draws_by_a_seed_are_the_same_behind_every_prefix) {
  auto sampling = Sampling::tts();
  const auto spoken = codes_of("weather_in_paris.wav");
  for (std::uint64_t seed = 1; seed <= 2; ++seed) {
    for (const double temperature : {0.7, 2.0}) {
      sampling.temperature = temperature;
      check_every_prefix({.name = fmt::format("spoken, temperature {}", temperature),
                          .codes = spoken,
                          .sampling = sampling,
                          .seed = seed,
                          .reply_tokens_max = 30});
      check_every_prefix({.name = fmt::format("typed, temperature {}", temperature),
                          .text = "what is the weather in paris today",
                          .sampling = sampling,
                          .seed = seed,
                          .reply_tokens_max = 30});
    }
  }
}

/// Every length at which a reply may be cut off: within the transcript, the call, a text.
BOOST_AUTO_TEST_CASE(a_reply_that_its_limit_cuts_off_ends_alike_behind_every_prefix) {
  const auto spoken = codes_of("weather_in_paris.wav");
  for (int most = 1; most <= 40; most += 13) {
    check_every_prefix({.name = fmt::format("typed, {} tokens", most),
                        .text = "what is the weather in paris today",
                        .reply_tokens_max = most});
    check_every_prefix({.name = fmt::format("spoken, {} tokens", most), .codes = spoken, .reply_tokens_max = most});
  }
}

/// The second replica dies as well: what it has told is the same as what the first one had told.
BOOST_AUTO_TEST_CASE(a_third_replica_goes_on_behind_what_the_second_has_told) {
  const Question question{.name = "twice", .text = "what is the weather in paris today"};
  Replica first(question);
  first.generate();
  first.work();
  for (int steps = 0; steps < 40; steps += 5) {
    Replica second(question);
    second.go_on({first.told.ids.begin(), first.told.ids.begin() + 4});
    second.generate();
    second.work(steps);
    Replica third(question);
    auto& known = second.told.ids;
    known.insert(known.begin(), first.told.ids.begin(), first.told.ids.begin() + 4);
    third.go_on(known);
    third.generate();
    third.work();
    third.told.ids.insert(third.told.ids.begin(), known.begin(), known.end());
    BOOST_TEST(third.told == first.told);
  }
}

BOOST_AUTO_TEST_CASE(ids_that_are_none_are_refused) {
  const Question question{.name = "bad", .text = "hello"};
  for (const std::int32_t bad : {-1, static_cast<std::int32_t>(nano().engine->model().config().vocabulary)}) {
    Replica replica(question);
    replica.go_on({5, bad});
    replica.refuses("token_out_of_range");
    BOOST_TEST(replica.told.error.find(std::to_string(bad)) != std::string::npos, replica.told.error);
  }
}

BOOST_AUTO_TEST_CASE(once_the_reply_has_begun_nothing_more_is_taken_in) {
  const Question question{.name = "late", .text = "hello"};
  for (int what = 0; what < 4; ++what) {
    BOOST_TEST_CONTEXT("message " << what) {
      Replica replica(question);
      replica.generate();
      replica.work(2);
      BOOST_TEST(replica.told.error == "");
      if (what == 0) replica.go_on({5});
      if (what == 1) replica.generate();
      if (what == 2) replica.also(protocol::Say{"and more"});
      if (what == 3) replica.also(protocol::Hear{0, bytes_of(std::vector<std::int32_t>{1, 2, 1024, 1025, 1026})});
      replica.refuses("invalid_argument");
      const auto said = replica.steps.size();
      replica.work_on();
      BOOST_TEST(replica.steps.size() == said, "it speaks behind an error");
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::llm
