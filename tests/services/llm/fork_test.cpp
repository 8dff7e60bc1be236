/// ForkChat: a chat that goes on from where another one is. Both must say what a chat that was never forked says, and
/// leave nothing behind, whichever ends first.
#include <ATen/ATen.h>

#include <boost/test/unit_test.hpp>
#include <map>
#include <random>

#include "common/base/codes.hpp"
#include "common/base/pcm.hpp"
#include "services/llm/llm_core.hpp"
#include "tests/support/core_driver.hpp"

namespace parlando::llm {
namespace {
using protocol::TextKind;
using transport::PeerState;
namespace fs = std::filesystem;

constexpr std::uint32_t kParent = 1, kFork = 2;

/// Steps take whatever they take: what happens in which one must not depend on the machine.
LlmModel load(LmEngine::Limits limits, const char* name = "Step-Audio-Chat") {
  limits.step_max = std::chrono::hours(1);
  auto model = LlmModel::load(fs::path(PARLANDO_SOURCE_DIR) / "models/nano" / name, at::kFloat, limits);
  BOOST_REQUIRE_MESSAGE(model.has_value(), (model ? std::string() : model.error().message));
  return *std::move(model);
}

template <class T>
protocol::Bytes bytes_of(const std::vector<T>& values) {
  return to_bytes(std::span(values));
}

/// Codes of whole groups.
std::vector<std::int32_t> codes_of(std::size_t groups, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::int32_t> out;
  for (std::size_t g = 0; g < groups; ++g)
    for (int i = 0; i < kCodesPerGroup; ++i)
      out.push_back(static_cast<std::int32_t>(i < 2 ? random() % 500 : 1024 + random() % 500));
  return out;
}

/// What was said on one stream.
struct Told {
  std::string transcript, reply;
  std::vector<std::string> calls;
  std::vector<std::int32_t> ids;
  bool done = false;
  std::string error;
  bool operator==(const Told&) const = default;
};
std::ostream& operator<<(std::ostream& out, const Told& t) {
  return out << fmt::format("transcript '{}' reply '{}' calls {} done {} error '{}' ids {}", t.transcript, t.reply,
                            fmt::join(t.calls, ", "), t.done, t.error, fmt::join(t.ids, " "));
}

/// One core and what its caller has heard, by stream.
struct World {
  LlmModel model;
  LlmCore core;
  CoreDriver driver{core};
  std::map<std::uint32_t, Told> told;
  std::int64_t all;

  explicit World(LlmModel m, const LlmConfig& config = {.reply_tokens_max = 24})
      : model(std::move(m)), core(config, model), all(model.engine->blocks_free()) {}

  template <class T>
  void tell(std::uint32_t stream, T body) {
    driver.tell("controller", stream, std::move(body));
    look();
  }
  void work(int most = 4000) {
    for (; most > 0; --most) {
      driver.work(1);
      look();
      if (model.engine->idle()) return;
    }
  }
  /// A tool answers at once.
  void look() {
    for (auto heard = driver.take(); !heard.empty(); heard = driver.take())
      for (const auto& h : heard) {
        auto& t = told[h.stream()];
        BOOST_TEST((!t.done && t.error.empty()), "stream " << h.stream() << " speaks behind its end");
        if (h.is<protocol::ErrorMessage>()) {
          t.error = h.code();
          continue;
        }
        BOOST_REQUIRE(h.is<protocol::Text>());
        const auto text = h.read<protocol::Text>();
        const auto ids = from_bytes<std::int32_t>(text.payload);
        t.ids.insert(t.ids.end(), ids.begin(), ids.end());
        if (text.kind == TextKind::transcript) t.transcript += text.text;
        if (text.kind == TextKind::text) t.reply += text.text;
        if (text.kind == TextKind::done) t.done = true;
        if (text.kind == TextKind::tool_call) {
          t.calls.push_back(text.text);
          driver.tell("controller", h.stream(), protocol::ToolResult{{R"({"sky":"sunny"})"}});
        }
      }
  }
  std::string error_of(std::uint32_t stream) { return told[stream].error; }
  void check_empty() {
    BOOST_TEST(core.load() == 0);
    BOOST_TEST(model.engine->blocks_free() == all);
    BOOST_TEST(model.engine->idle());
    for (const auto stream : {kParent, kFork})
      BOOST_TEST(
          !model.engine->length(fmt::format("controller/{}/{}", CoreDriver::kSession.text(), stream)).has_value());
  }
};

/// One thing that a caller does to a chat.
struct Step {
  enum class What { hear, say, go_on, work } what = What::work;
  std::int64_t first = 0;
  std::vector<std::int32_t> values;
  std::string text;
  int units = 0;
};
struct Script {
  std::vector<Step> steps;
  std::size_t groups = 0;  ///< heard so far
  void add(std::mt19937& random) {
    const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random()) % n; };
    if (below(2) == 0) return steps.push_back({.units = static_cast<int>(below(4))});
    const auto first = groups - std::min(groups, below(4));
    const auto count = 1 + below(below(8) == 0 ? 40 : 6);  // a long part needs several passes of prefill
    groups = first + count;
    steps.push_back({.what = Step::What::hear,
                     .first = static_cast<std::int64_t>(first),
                     .values = codes_of(count, static_cast<unsigned>(random()))});
  }
};
void play(World& w, std::uint32_t stream, const std::vector<Step>& steps) {
  for (const auto& s : steps) {
    if (s.what == Step::What::hear) w.tell(stream, protocol::Hear{s.first, bytes_of(s.values)});
    if (s.what == Step::What::say) w.tell(stream, protocol::Say{s.text});
    if (s.what == Step::What::go_on) w.tell(stream, protocol::GoOn{bytes_of(s.values)});
    if (s.what == Step::What::work) w.work(s.units);
  }
}

/// What a chat says that does these things alone.
Told alone(const LlmModel& model, std::uint64_t seed, const std::vector<Step>& before, const std::vector<Step>& after) {
  World w(model);
  w.tell(kParent, protocol::OpenChat{.seed = seed});
  play(w, kParent, before);
  play(w, kParent, after);
  w.tell(kParent, protocol::Generate{});
  w.work();
  w.tell(kParent, protocol::Close{});
  w.check_empty();
  return w.told[kParent];
}

}  // namespace

BOOST_AUTO_TEST_SUITE(fork_chat)

BOOST_AUTO_TEST_CASE(a_fork_and_its_origin_say_what_chats_say_that_were_never_forked) {
  auto model = load({.cache_tokens = 8192, .prefill_chunk = 64});
  auto reference = load({.cache_tokens = 8192});
  int uncomputed = 0, told = 0;
  for (unsigned seed = 1; seed <= 10; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      std::mt19937 random(seed);
      model.chat_sampling = reference.chat_sampling = seed % 2 == 0 ? Sampling::greedy() : Sampling::chat();
      Script script;
      for (auto n = random() % 9; n > 0; --n) script.add(random);
      const auto before = script.steps;
      auto of_parent = script, of_fork = script;
      of_parent.steps.clear(), of_fork.steps.clear();
      for (auto n = 1 + random() % 5; n > 0; --n) of_parent.add(random);
      for (auto n = random() % 5; n > 0; --n) of_fork.add(random);
      if (of_parent.groups == 0) of_parent.steps.push_back({.what = Step::What::say, .text = "what time is it"});
      if (of_fork.groups == 0) of_fork.steps.push_back({.what = Step::What::say, .text = "what is seven plus nine"});
      if (seed % 5 == 0) of_fork.steps.push_back({.what = Step::What::go_on, .values = {20, 30, 40}});

      World w(model);
      w.tell(kParent, protocol::OpenChat{.seed = seed});
      play(w, kParent, before);
      uncomputed += !w.model.engine->idle();
      w.tell(kFork, protocol::ForkChat{{kParent}});
      BOOST_TEST(w.core.load() == 2);
      // The fork answers while the other one goes on listening, or the other way round.
      const bool fork_first = random() % 2 == 0;
      if (!fork_first) play(w, kParent, of_parent.steps);
      play(w, kFork, of_fork.steps);
      w.tell(kFork, protocol::Generate{});
      w.work(static_cast<int>(random() % 5));
      if (fork_first) play(w, kParent, of_parent.steps);
      w.tell(kParent, protocol::Generate{});
      w.work();
      BOOST_TEST(w.told[kParent] == alone(reference, seed, before, of_parent.steps));
      BOOST_TEST(w.told[kFork] == alone(reference, seed, before, of_fork.steps));
      BOOST_TEST((w.told[kParent].done && w.told[kFork].done));
      told += static_cast<int>(w.told[kParent].ids.size() + w.told[kFork].ids.size());
      w.tell(random() % 2 == 0 ? kParent : kFork, protocol::Close{});
      BOOST_TEST(w.core.load() == 1);
      for (const auto stream : {kParent, kFork}) w.tell(stream, protocol::Close{});
      w.check_empty();
    }
  }
  BOOST_TEST(uncomputed > 1);
  BOOST_TEST(told > 100);
}

BOOST_AUTO_TEST_CASE(a_fork_outlives_its_origin_and_its_origin_the_fork) {
  const auto model = load({.cache_tokens = 4096});
  const std::vector<Step> before = {{.what = Step::What::hear, .values = codes_of(20, 1)},
                                    {.units = 1},
                                    {.what = Step::What::hear, .first = 18, .values = codes_of(4, 2)}};
  const auto expected = alone(model, 5, before, {});
  BOOST_TEST(expected.done);
  for (const bool parent_first : {true, false}) {
    for (const int units : {0, 1, 4}) {
      World w(model);
      w.tell(kParent, protocol::OpenChat{.seed = 5});
      play(w, kParent, before);
      w.tell(kFork, protocol::ForkChat{{kParent}});
      const auto first = parent_first ? kParent : kFork, second = parent_first ? kFork : kParent;
      w.tell(second, protocol::Generate{});
      w.work(units);
      w.tell(first, protocol::Close{});
      w.work();
      BOOST_TEST(w.told[second] == expected);
      w.tell(second, protocol::Close{});
      w.check_empty();
    }
  }
  // With its caller both are gone.
  World w(model);
  w.tell(kParent, protocol::OpenChat{});
  play(w, kParent, before);
  w.tell(kFork, protocol::ForkChat{{kParent}});
  w.driver.caller("controller", PeerState::down);
  w.check_empty();
}

/// What is computed is shared: a fork costs what follows it alone.
BOOST_AUTO_TEST_CASE(a_fork_computes_nothing_again) {
  World w(load({.cache_tokens = 4096}));
  w.tell(kParent, protocol::OpenChat{});
  w.tell(kParent, protocol::Hear{0, bytes_of(codes_of(60, 1))});
  w.work();
  const auto computed = w.model.engine->tokens_computed();
  const auto free = w.model.engine->blocks_free();
  BOOST_TEST(computed > 300);
  w.tell(kFork, protocol::ForkChat{{kParent}});
  w.work();
  BOOST_TEST(w.model.engine->tokens_computed() == computed);
  BOOST_TEST(w.model.engine->blocks_free() == free);
  w.tell(kFork, protocol::Generate{});
  w.driver.work(1);
  BOOST_TEST(w.model.engine->tokens_computed() < computed + 40);
  BOOST_TEST(w.model.engine->blocks_free() > free - 5);
}

BOOST_AUTO_TEST_CASE(a_fork_of_a_chat_whose_blocks_a_full_cache_took_is_computed_again) {
  const std::vector<Step> before = {{.what = Step::What::hear, .values = codes_of(40, 1)}};
  const auto expected = alone(load({.cache_tokens = 4096}), 1, before, {});
  const auto speech = codes_of(60, 3);
  World w(load({.cache_tokens = 512}));
  w.tell(kParent, protocol::OpenChat{});
  play(w, kParent, before);
  w.work();
  w.tell(9, protocol::OpenChat{});
  w.tell(9, protocol::Hear{0, bytes_of(speech)});
  w.tell(9, protocol::Generate{});
  w.work(4);
  BOOST_REQUIRE(w.model.engine->counts().parked == 1);
  w.tell(kFork, protocol::ForkChat{{kParent}});
  BOOST_TEST(w.error_of(kFork) == "");
  w.tell(9, protocol::Close{});
  w.tell(kFork, protocol::Generate{});
  w.work();
  BOOST_TEST(w.told[kFork] == expected);
  w.tell(kFork, protocol::Close{});
  w.tell(kParent, protocol::Generate{});
  w.work();
  BOOST_TEST(w.told[kParent] == expected);
  w.tell(kParent, protocol::Close{});
  w.check_empty();
}

BOOST_AUTO_TEST_CASE(what_cannot_be_forked_is_said_and_its_origin_goes_on) {
  const auto model = load({.cache_tokens = 4096, .sequences = 2});
  const auto codes = bytes_of(codes_of(3, 1));
  {
    World w(model);
    w.tell(kFork, protocol::ForkChat{{kParent}});
    BOOST_TEST(w.error_of(kFork) == "not_found");
    w.tell(3, protocol::ForkChat{{3}});
    BOOST_TEST(w.error_of(3) == "not_found");
    w.tell(kParent, protocol::OpenChat{});
    w.tell(kParent, protocol::Hear{0, codes});
    // Neither another session's nor another caller's.
    w.driver.tell("controller", 4, protocol::ForkChat{{kParent}}, SessionId{0, 8});
    w.driver.tell("other", 4, protocol::ForkChat{{kParent}});
    const auto heard = w.driver.take();
    BOOST_REQUIRE(heard.size() == 2u);
    for (const auto& h : heard) BOOST_TEST(h.code() == "not_found");
    BOOST_TEST(heard[0].why().find("stream 1 is no open chat") != std::string::npos, heard[0].why());
    // What still comes on such a stream is silence until its close.
    w.tell(kFork, protocol::Generate{});
    w.tell(kFork, protocol::Close{});
    w.tell(kFork, protocol::ForkChat{{kParent}});
    w.told[kFork] = {};
    w.tell(5, protocol::ForkChat{{kParent}});
    BOOST_TEST(w.error_of(5) == "overloaded");
    w.tell(kFork, protocol::Close{});
    w.tell(kParent, protocol::Generate{});
    w.work();
    BOOST_TEST(w.told[kParent].done);
    w.tell(kFork, protocol::ForkChat{{kParent}});
    BOOST_TEST(w.error_of(kFork) == "invalid_argument");
    w.tell(kParent, protocol::Close{});
    w.check_empty();
  }
  {  // a stream is opened once
    World w(model);
    w.tell(kParent, protocol::OpenChat{});
    w.tell(kFork, protocol::ForkChat{{kParent}});
    w.tell(kFork, protocol::ForkChat{{kParent}});
    BOOST_TEST(w.error_of(kFork) == "invalid_argument");
    BOOST_TEST(w.core.load() == 1);
    w.tell(kParent, protocol::Hear{0, codes});
    BOOST_TEST(w.error_of(kParent) == "");
    w.tell(kParent, protocol::Close{});
    w.check_empty();
  }
  {  // a synthesis is no chat
    World w(load({.cache_tokens = 1024}, "Step-Audio-TTS-3B"));
    w.tell(kParent, protocol::Synthesise{.text = "hello", .payload = codes});
    w.tell(kFork, protocol::ForkChat{{kParent}});
    BOOST_TEST(w.error_of(kFork) == "not_found");
    w.tell(kParent, protocol::Close{});
    w.check_empty();
  }
}

/// A fork has a budget of its own.
BOOST_AUTO_TEST_CASE(a_fork_whose_budget_is_spent_ends_alone) {
  World w(load({.cache_tokens = 4096}));
  w.tell(kParent, protocol::OpenChat{});
  w.tell(kParent, protocol::Hear{0, bytes_of(codes_of(3, 1))});
  w.driver.tell("controller", kFork, protocol::ForkChat{{kParent}}, CoreDriver::kSession,
                w.driver.now + milliseconds(100));
  w.driver.now += milliseconds(100);
  w.work(1);
  BOOST_TEST(w.error_of(kFork) == "deadline_exceeded");
  w.tell(kParent, protocol::Generate{});
  w.work();
  BOOST_TEST(w.told[kParent].done);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::llm
