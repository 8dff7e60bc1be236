#define BOOST_TEST_MODULE llm_core
#include <ATen/ATen.h>

#include <boost/test/unit_test.hpp>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "common/base/pcm.hpp"
#include "services/llm/llm_core.hpp"
#include "tests/support/core_driver.hpp"
#include "tests/support/out_of_memory.hpp"
#include "tests/support/temporary_directory.hpp"

namespace parlando::llm {
namespace {
using nlohmann::json;
using protocol::TextKind;
using transport::PeerState;
namespace fs = std::filesystem;

const fs::path kNano = fs::path(PARLANDO_SOURCE_DIR) / "models/nano";

LlmModel load(const fs::path& directory, std::int64_t cache_tokens = 4096, std::int64_t prefix_blocks = 0) {
  auto model =
      LlmModel::load(directory, at::kFloat,
                     {.cache_tokens = cache_tokens, .prefix_blocks = prefix_blocks, .step_max = std::chrono::hours(1)});
  BOOST_REQUIRE_MESSAGE(model.has_value(), (model ? std::string() : model.error().message));
  return *std::move(model);
}

/// The bundled chat with another configuration.
struct Variant {
  TemporaryDirectory folder;
  template <class F>
  explicit Variant(F change, const fs::path& of = kNano / "Step-Audio-Chat") {
    for (const auto& entry : fs::directory_iterator(of))
      if (entry.path().filename() != "config.json")
        fs::create_symlink(entry.path(), folder.path() / entry.path().filename());
    auto config = json::parse(std::ifstream(of / "config.json"));
    change(config);
    std::ofstream(folder.path() / "config.json") << config.dump();
  }
};

protocol::Bytes bytes_of(std::string_view text) { return to_bytes(std::span(text)); }
protocol::Bytes bytes_of(const std::vector<std::int32_t>& values) { return to_bytes(std::span(values)); }

/// Codes of whole groups, as tokenizers give them.
std::vector<std::int32_t> codes_of(int groups) {
  std::vector<std::int32_t> out;
  for (int g = 0; g < groups; ++g)
    for (const int c : {g % 7, g % 5, 1024 + g % 11, 1024 + g % 13, 1024 + g % 3}) out.push_back(c);
  return out;
}

struct World {
  LlmModel model;
  telemetry::Metrics metrics;
  LlmCore core;
  CoreDriver driver{core};
  explicit World(LlmModel m, const LlmConfig& config = {}) : model(std::move(m)), core(config, model) {
    core.add_metrics(metrics);
  }

  void speak(std::uint32_t stream, int groups, const std::string& text = "hello", std::uint64_t seed = 1,
             bool operator_voice = true, SessionId session = CoreDriver::kSession) {
    driver.tell("tts", stream,
                protocol::Synthesise{.speaker = "Clara",
                                     .prompt_text = "x",
                                     .text = text,
                                     .seed = seed,
                                     .operator_voice = operator_voice,
                                     .payload = bytes_of(codes_of(groups))},
                session);
  }
  void listen(std::uint32_t stream) {
    driver.tell("controller", stream, protocol::OpenChat{});
    driver.tell("controller", stream, protocol::Hear{0, bytes_of(std::vector<std::int32_t>{1, 2, 1024, 1025, 1026})});
    driver.tell("controller", stream, protocol::Generate{});
  }
  /// The one thing that was said since the last look, an error.
  CoreDriver::Heard only_error() {
    auto heard = driver.take();
    BOOST_REQUIRE(heard.size() == 1u);
    BOOST_REQUIRE(heard[0].is<protocol::ErrorMessage>());
    return heard[0];
  }
  std::int64_t free() const { return model.engine->blocks_free(); }
  bool counts(const std::string& line) const { return metrics.text().find("\n" + line + "\n") != std::string::npos; }
};

/// Every next id is 0: greedy takes the lowest id among equal logits.
void mute(const LlmModel& model) {
  const auto bytes = model.engine->model().packed_head().bytes();
  std::fill(bytes.begin(), bytes.end(), std::byte{0});
}
void break_logits(const LlmModel& model) {
  const auto& head = model.engine->model().packed_head();
  auto rows = model.engine->model().head();
  rows.select(0, 100).fill_(std::numeric_limits<float>::quiet_NaN());
  kernels::pack_rows(head.shape(), rows.data_ptr<float>(), 0, rows.size(0), head.bytes().data());
}

}  // namespace

BOOST_AUTO_TEST_CASE(a_synthesis_without_room_is_told_to_come_back_and_leaves_nothing) {
  World w(load(kNano / "Step-Audio-TTS-3B", 512));
  const auto all = w.free();
  for (std::uint32_t s = 1; s <= 4; ++s) w.speak(s, 24, "the sky is blue and the grass is green.");
  std::map<std::uint32_t, std::size_t> bytes;
  std::map<std::uint32_t, std::string> ended;
  for (int i = 0; i < 3000 && w.core.load() > 0; ++i) {
    w.driver.work(1);
    for (const auto& h : w.driver.take()) {
      bytes[h.stream()] += h.message.payload.size();
      BOOST_TEST(!ended.contains(h.stream()), "stream " << h.stream() << " speaks after its end");
      if (h.is<protocol::ErrorMessage>()) {
        ended[h.stream()] = h.code();
        BOOST_TEST(h.why().find("full") != std::string::npos, h.why());
        BOOST_TEST(h.why().find("try again") != std::string::npos, h.why());
      }
      if (h.read<protocol::Tokens>().last) ended[h.stream()] = "last";
    }
    BOOST_TEST(w.core.load() ==
               4 - static_cast<std::int64_t>(ended.size()));  // the job goes with its end, error or not
  }
  BOOST_TEST(ended.size() == 4u);
  BOOST_TEST(ended[1] == "last");
  BOOST_TEST(ended[4] == "overloaded");
  BOOST_TEST(bytes[1] > bytes[4]);
  BOOST_TEST(w.free() == all);
  BOOST_TEST(!w.counts("parlando_llm_cache_refused_total 0"));
}

BOOST_AUTO_TEST_CASE(a_generation_that_fails_ends_its_job_and_releases_its_sequence) {
  for (const bool chat : {true, false}) {
    BOOST_TEST_CONTEXT((chat ? "chat" : "speech")) {
      World w(load(kNano / (chat ? "Step-Audio-Chat" : "Step-Audio-TTS-3B")));
      break_logits(w.model);
      const auto all = w.free();
      if (chat)
        w.listen(1);
      else
        w.speak(1, 2);
      BOOST_TEST(w.driver.take().empty());
      w.driver.work();
      const auto heard = w.driver.take();
      BOOST_REQUIRE(heard.size() == 1u);
      BOOST_TEST(heard[0].code() == "internal");
      BOOST_TEST(heard[0].why().find("id 100") != std::string::npos, heard[0].why());
      BOOST_TEST(w.core.load() == 0);
      BOOST_TEST(w.free() == all);
      BOOST_TEST(!w.model.engine->length(fmt::format("controller/{}/1", CoreDriver::kSession.text())).has_value());
      BOOST_TEST(w.counts("parlando_llm_bad_logits_total 1"));
      w.driver.tell(chat ? "controller" : "tts", 1, protocol::Close{});  // the caller's own end of the stream
      BOOST_TEST(w.driver.take().empty());
    }
  }
}

BOOST_AUTO_TEST_CASE(close_and_a_lost_peer_release_what_is_under_way) {
  World w(load(kNano / "Step-Audio-TTS-3B"));
  const auto all = w.free();
  w.speak(1, 4);
  w.speak(2, 4);
  w.driver.work(3);
  BOOST_TEST(w.core.load() == 2);
  w.driver.tell("tts", 1, protocol::Close{});
  BOOST_TEST(w.core.load() == 1);
  w.driver.caller("tts", PeerState::suspect);  // it may come back
  BOOST_TEST(w.core.load() == 1);
  w.driver.caller("tts", PeerState::down);
  BOOST_TEST(w.core.load() == 0);
  BOOST_TEST(w.free() == all);
}

BOOST_AUTO_TEST_CASE(a_model_without_words_gives_the_reply_of_its_configuration_or_none) {
  // A model that ends at once: with `eos` 0, which its silent head always gives. That the turn ends shows that `eos` is
  // read, too.
  for (const bool configured : {true, false}) {
    BOOST_TEST_CONTEXT("configured " << configured) {
      Variant variant([&](json& config) {
        config["eos_token_id"] = 0;
        if (!configured) config.erase("fallback_replies");
      });
      World w(load(variant.folder.path()));
      mute(w.model);
      w.listen(1);
      w.driver.work();
      std::string text, whole = "?";
      for (const auto& h : w.driver.take()) {
        BOOST_TEST(h.is<protocol::Text>());
        const auto said = h.read<protocol::Text>();
        if (said.kind == TextKind::text) text += said.text;
        if (said.kind == TextKind::done) whole = json::parse(said.text)["finish"];
      }
      BOOST_TEST(text == (configured ? "please repeat." : ""));
      BOOST_TEST(!whole.empty());
      BOOST_TEST(
          w.counts(configured ? "parlando_llm_fallback_replies_total 1" : "parlando_llm_fallback_replies_total 0"));
    }
  }
}

BOOST_AUTO_TEST_CASE(a_call_that_is_no_call_gives_the_reply_of_the_configuration_or_none) {
  for (const bool configured : {true, false}) {
    BOOST_TEST_CONTEXT("configured " << configured) {
      Variant variant([&](json& config) {
        if (!configured) config.erase("fallback_replies");
      });
      const auto model = load(variant.folder.path());
      auto chat = Chat::open(model.engine, model.text, "c", {}, {.sampling = model.chat_sampling});
      BOOST_REQUIRE(chat.has_value());
      BOOST_REQUIRE((*chat)->say("what time is it").has_value());
      BOOST_REQUIRE((*chat)->reply().has_value());
      std::vector<std::int32_t> ids = {model.text->specials().call_start};
      for (const auto id : model.text->encode("this is no call")) ids.push_back(id);
      ids.push_back(model.text->specials().call_end);
      for (const auto id : ids) BOOST_TEST((*chat)->on({"c", id})->empty());
      const auto events = (*chat)->on({"c", model.engine->model().config().eos, Finish::stop});
      BOOST_REQUIRE(events.has_value());
      BOOST_REQUIRE(events->size() == (configured ? 2u : 1u));
      if (configured) BOOST_TEST(events->front().text == "i did not understand.");
      if (configured) BOOST_TEST(events->front().fallback);
      BOOST_TEST((events->back().kind == ChatEvent::Kind::done));
      BOOST_TEST(events->back().text == (configured ? "i did not understand." : ""));
    }
  }
}

BOOST_AUTO_TEST_CASE(fallback_replies_of_another_form_are_refused) {
  for (const auto& bad : {json("x"), json({{"no_reply", 1}}), json({{"other", "x"}})}) {
    Variant variant([&](json& config) { config["fallback_replies"] = bad; });
    const auto model = LlmModel::load(variant.folder.path(), at::kFloat, {.step_max = std::chrono::hours(1)});
    BOOST_REQUIRE(!model.has_value());
    BOOST_TEST(static_cast<int>(model.error().code) == static_cast<int>(Errc::bad_json), model.error().message);
  }
}

BOOST_AUTO_TEST_CASE(codes_outside_the_vocabulary_are_refused_by_value) {
  World chat(load(kNano / "Step-Audio-Chat")), speech(load(kNano / "Step-Audio-TTS-3B"));
  const std::string history = R"([{"role": "user", "content": {"type": "audio", "codes": [1, -7]}}])";
  chat.driver.tell("controller", 1, protocol::OpenChat{.payload = bytes_of(history)});
  auto error = chat.only_error();
  BOOST_TEST(error.code() == "token_out_of_range");
  BOOST_TEST(error.why().find("-7") != std::string::npos, error.why());
  for (const std::int32_t bad : {-7, 5119}) {  // nano knows 1536
    const std::vector<std::int32_t> codes = {1, bad};
    speech.driver.tell("tts", 1, protocol::Synthesise{.text = "x", .payload = bytes_of(codes)});
    error = speech.only_error();
    speech.driver.tell("tts", 1, protocol::Close{});
    BOOST_TEST(error.code() == "token_out_of_range");
    BOOST_TEST(error.why().find(std::to_string(bad)) != std::string::npos, error.why());
  }
  BOOST_TEST(chat.core.load() + speech.core.load() == 0);
}

BOOST_AUTO_TEST_CASE(each_synthesis_draws_by_its_own_seed) {
  auto model = load(kNano / "Step-Audio-TTS-3B");
  model.speech_sampling = Sampling::tts();
  World w(std::move(model));
  w.speak(1, 4, "hello", 5);
  w.speak(2, 4, "hello", 5);
  w.speak(3, 4, "hello", 6);
  w.driver.work(60);
  std::map<std::uint32_t, std::vector<std::byte>> codes;
  for (const auto& h : w.driver.take())
    codes[h.stream()].insert(codes[h.stream()].end(), h.message.payload.begin(), h.message.payload.end());
  BOOST_TEST(codes[1].size() > 0u);
  BOOST_TEST((codes[1] == codes[2]));
  BOOST_TEST((codes[1] != codes[3]));
}

/// Sentences of one voice compute its prompt once, and say what they would say without.
BOOST_AUTO_TEST_CASE(a_voices_prompt_is_computed_once) {
  const char* const texts[] = {"hello", "the sky is blue.", "it is noon.", "hello"};
  struct Spoken {
    std::vector<std::byte> codes;
    std::int64_t there = 0;
  };
  const auto speak = [&](World& w, int groups, const std::string& text, bool operator_voice = true,
                         SessionId session = CoreDriver::kSession) {
    const auto before = w.model.engine->prefixes().counts().hit_tokens;
    w.speak(1, groups, text, 1, operator_voice, session);
    w.driver.work();
    Spoken out;
    for (const auto& h : w.driver.take()) {
      BOOST_TEST(h.is<protocol::Tokens>());
      out.codes.insert(out.codes.end(), h.message.payload.begin(), h.message.payload.end());
    }
    w.driver.tell("tts", 1, protocol::Close{}, session);
    out.there = w.model.engine->prefixes().counts().hit_tokens - before;
    return out;
  };
  World plain(load(kNano / "Step-Audio-TTS-3B")), keeping(load(kNano / "Step-Audio-TTS-3B", 4096, 128));
  std::int64_t voice = 0, saved = 0;
  for (const char* text : texts) {
    const auto expected = speak(plain, 12, text), got = speak(keeping, 12, text);
    BOOST_TEST(!expected.codes.empty());
    BOOST_TEST((got.codes == expected.codes));
    if (voice > 0) BOOST_TEST(got.there == voice);  // its prompt to the last id, and nothing of the text
    if (saved == 0 && got.there > 0) voice = got.there;
    saved += got.there;
  }
  BOOST_TEST(voice > 12 * 5);
  BOOST_TEST(plain.model.engine->tokens_computed() - keeping.model.engine->tokens_computed() == 3 * voice);
  BOOST_TEST_MESSAGE("a voice's prompt of " << voice << " ids is computed once");
  // Of another voice what is in front of its codes is there, and the codes that it begins with.
  const auto longer = speak(keeping, 13, "hello").there;
  BOOST_TEST(longer >= voice - 5);
  BOOST_TEST(longer < voice + 5);
  // A user's voice serves its own session alone; of the operator's words nothing is computed again.
  const SessionId other{0, 8}, third{0, 9};
  const auto words = speak(keeping, 12, "hello", false, other).there;
  BOOST_TEST(words < voice - 12 * 5);
  BOOST_TEST(speak(keeping, 12, "hello", false, other).there == voice);
  BOOST_TEST(speak(keeping, 12, "hello", false, third).there == words);
  BOOST_TEST(speak(keeping, 12, "hello", false, SessionId{}).there == words);
  BOOST_TEST(keeping.core.load() == 0);
  BOOST_TEST(keeping.core.slots() == 4096 / 512);  // beginnings take no room from anybody
  BOOST_TEST(keeping.free() >= 256 - keeping.model.engine->prefixes().entries());
  keeping.driver.tick(milliseconds(20));
  const auto& prefixes = keeping.model.engine->prefixes();
  BOOST_TEST(prefixes.counts().hit_tokens > 3 * voice);
  BOOST_TEST(keeping.counts("parlando_llm_prefix_hit_tokens_total " + std::to_string(prefixes.counts().hit_tokens)));
  BOOST_TEST(prefixes.entries() > 0);
  BOOST_TEST(keeping.counts("parlando_llm_prefix_blocks " + std::to_string(prefixes.entries())));
  BOOST_TEST(keeping.counts("parlando_llm_cache_blocks 256"));
  BOOST_TEST(keeping.counts("parlando_llm_cache_blocks_free " + std::to_string(keeping.free())));
}

/// A second turn of a session computes what is new in it, a new session its own part.
BOOST_AUTO_TEST_CASE(history_and_system_prompt_are_computed_once) {
  World plain(load(kNano / "Step-Audio-Chat")), keeping(load(kNano / "Step-Audio-Chat", 4096, 128));
  const auto turn = [](World& w, const json& history, const std::string& said, SessionId session,
                       const protocol::OpenChat& open) {
    auto ask = open;
    ask.payload = bytes_of(history.dump());
    w.driver.tell("controller", 1, std::move(ask), session);
    w.driver.tell("controller", 1, protocol::Say{said}, session);
    w.driver.tell("controller", 1, protocol::Generate{}, session);
    w.driver.work();
    auto out = json::object();
    for (const auto& h : w.driver.take()) {
      const auto text = h.read<protocol::Text>();
      if (text.kind == TextKind::text) out["reply"] = out.value("reply", std::string()) + text.text;
      if (text.kind == TextKind::done) out["usage"] = json::parse(text.text);
    }
    w.driver.tell("controller", 1, protocol::Close{}, session);
    BOOST_REQUIRE(out.contains("usage"));
    return out;
  };
  const auto cached = [](const json& out) { return out["usage"]["cached_tokens"].get<std::int64_t>(); };
  const auto prompt = [](const json& out) { return out["usage"]["prompt_tokens"].get<std::int64_t>(); };
  const auto replied = [](const json& out) { return out["usage"]["output_tokens"].get<std::int64_t>(); };
  std::uint64_t number = 0;
  const std::string words = "you are a pirate and answer in a few words only, whatever you are asked about the sea";
  for (const protocol::OpenChat& open :
       {protocol::OpenChat{.seed = 3}, protocol::OpenChat{.system = words, .operator_system = true},
        protocol::OpenChat{.system = words}}) {
    BOOST_TEST_CONTEXT("system '" << open.system << "', the operator's " << open.operator_system) {
      const bool operators = open.system.empty() || open.operator_system;
      const SessionId one{++number, 1}, two{number, 2};  // strangers to those before
      auto history = json::array();
      const auto first = turn(keeping, history, "hello how are you", one, open);
      BOOST_TEST(first["reply"] == turn(plain, history, "hello how are you", one, open)["reply"]);
      history.push_back({{"role", "user"}, {"content", "hello how are you"}});
      history.push_back({{"role", "assistant"}, {"content", first.value("reply", "")}});
      const auto second = turn(keeping, history, "thank you", one, open);
      const auto expected = turn(plain, history, "thank you", one, open);
      BOOST_TEST(second["reply"] == expected["reply"]);
      BOOST_TEST(prompt(second) == prompt(expected));
      BOOST_TEST(cached(expected) == 0);
      // All of the first prompt, and of its reply what is encoded as it was said.
      BOOST_TEST(cached(second) >= prompt(first));
      BOOST_TEST(cached(second) <= prompt(first) + replied(first));
      const auto stranger = turn(keeping, json::array(), "hello how are you", two, open);
      BOOST_TEST(stranger["reply"] == first["reply"]);
      if (operators) {
        BOOST_TEST(cached(stranger) > 0);
        BOOST_TEST(cached(stranger) < prompt(first) - 10);
      } else {
        BOOST_TEST(cached(stranger) == 0);
      }
      BOOST_TEST_MESSAGE("first prompt " << prompt(first) << " ids, reply " << replied(first) << "; second prompt "
                                         << prompt(second) << ", there " << cached(second) << "; a new session "
                                         << prompt(stranger) << ", there " << cached(stranger));
    }
  }
}

/// What autoscalers go by: a cache that is full of a few long conversations has no slots, whatever sequences are left.
BOOST_AUTO_TEST_CASE(a_slot_is_room_for_a_usual_conversation) {
  World w(load(kNano / "Step-Audio-TTS-3B", 2048, 64), {.sequences_max = 64, .conversation_tokens = 256});
  const auto& engine = *w.model.engine;
  BOOST_TEST(w.core.slots() == 2048 / 256);
  auto before = w.core.slots();
  for (std::uint32_t s = 1; s <= 6; ++s) {
    w.speak(s, 40, "the sky is blue and the grass is green.", s, false, SessionId{0, s});
    w.driver.work(4);
    BOOST_TEST(w.core.slots() <= before);
    BOOST_TEST(w.core.slots() == engine.blocks_left() / 16);
    before = w.core.slots();
  }
  BOOST_TEST(before < 64 - w.core.load());
  BOOST_TEST(before <= 8 - 3);
  w.driver.work(4000);
  BOOST_TEST(w.core.load() == 0);
  BOOST_TEST(engine.prefixes().entries() > 0);  // which give way
  BOOST_TEST(w.core.slots() == 2048 / 256);
  // Nobody is turned away for the cache's sake where nobody else is: who comes waits for blocks.
  World small(load(kNano / "Step-Audio-TTS-3B", 512), {.sequences_max = 2, .conversation_tokens = 1024});
  BOOST_TEST(small.core.slots() == 1);
  small.speak(1, 4);
  BOOST_TEST(small.core.slots() == 1);
  small.speak(2, 4);
  BOOST_TEST(small.core.slots() == 0);
}

/// Each key of the configuration that is the engine's is there, and changes nothing else.
BOOST_AUTO_TEST_CASE(the_configuration_reaches_the_engine) {
  const auto made = [](const LlmConfig& config) {
    auto core = LlmCore::make(config);
    BOOST_REQUIRE_MESSAGE(core.has_value(), (core ? std::string() : core.error().message));
    return *std::move(core);
  };
  const auto engine_of = [](const service::Core& core) -> const LmEngine& {
    return dynamic_cast<const LlmCore&>(core).engine();
  };
  const auto numbers = [&](const service::Core& core) {
    const auto& engine = engine_of(core);
    const auto& l = engine.limits();
    return std::map<std::string, std::int64_t>{{"cache_tokens", l.cache_tokens},
                                               {"blocks", engine.blocks_free()},
                                               {"sequences", l.sequences},
                                               {"prefix_blocks", l.prefix_blocks},
                                               {"prefix_idle_ms", l.prefix_idle.count()},
                                               {"prefixes are kept", engine.prefixes().is_on()},
                                               {"step_ms", l.step_max.count()},
                                               {"slots", core.slots()}};
  };
  LlmConfig base;
  base.model = (kNano / "Step-Audio-Chat").string();
  const auto plain = made(base);
  const auto expected = numbers(*plain);
  BOOST_TEST(expected.at("cache_tokens") == 49152);
  BOOST_TEST(expected.at("prefix_blocks") == 1536);
  BOOST_TEST(expected.at("slots") == 96);
  const auto changes = [&](auto change, std::map<std::string, std::int64_t> wanted) {
    auto config = base;
    change(config);
    const auto core = made(config);
    auto all = expected;
    for (const auto& [key, value] : wanted) {
      BOOST_TEST(all.at(key) != value, key);
      all[key] = value;
    }
    for (const auto& [key, value] : numbers(*core)) BOOST_TEST(value == all.at(key), key << " is " << value);
  };
  changes([](LlmConfig& c) { c.cache_tokens = 4096; },
          {{"cache_tokens", 4096}, {"blocks", 256}, {"prefix_blocks", 128}, {"slots", 8}});
  changes([](LlmConfig& c) { c.conversation_tokens = 1024; }, {{"slots", 48}});
  changes([](LlmConfig& c) { c.sequences_max = 7; }, {{"sequences", 7}, {"slots", 7}});
  changes([](LlmConfig& c) { c.prefix_permille = 250; }, {{"prefix_blocks", 768}});
  changes([](LlmConfig& c) { c.prefix_permille = 0; }, {{"prefix_blocks", 0}, {"prefixes are kept", 0}});
  changes([](LlmConfig& c) { c.prefix_idle_ms = 2500; }, {{"prefix_idle_ms", 2500}});
  changes([](LlmConfig& c) { c.step_ms_max = 33; }, {{"step_ms", 33}});
  base.bf16 = true;
  BOOST_TEST(engine_of(*made(base)).model().weight_bytes() < engine_of(*plain).model().weight_bytes());
  // Of a reply, as `reply_tokens_max` says.
  base.reply_tokens_max = 3;
  const auto brief = made(base);
  CoreDriver driver(*brief);
  driver.tell("controller", 1, protocol::OpenChat{});
  driver.tell("controller", 1, protocol::Say{"hello"});
  driver.tell("controller", 1, protocol::Generate{});
  driver.work();
  const auto heard = driver.take(protocol::MessageType::text);
  BOOST_REQUIRE(!heard.empty());
  BOOST_TEST(json::parse(heard.back().read<protocol::Text>().text)["output_tokens"] == 3);
}

/// Requests of one prompt that are over leave nothing: who only listens to its first answer meanwhile finds it.
BOOST_AUTO_TEST_CASE(what_is_kept_of_a_session_goes_when_it_is_over) {
  World w(load(kNano / "Step-Audio-Chat", 4096, 40));
  const auto& prefixes = w.model.engine->prefixes();
  const auto ask = [&](SessionId session, const std::string& said) {
    w.driver.tell("controller", 1, protocol::OpenChat{}, session);
    w.driver.tell("controller", 1, protocol::Say{said}, session);
    w.driver.tell("controller", 1, protocol::Generate{}, session);
    w.driver.work();
    json usage;
    for (const auto& h : w.driver.take())
      if (const auto text = h.read<protocol::Text>(); text.kind == TextKind::done) usage = json::parse(text.text);
    w.driver.tell("controller", 1, protocol::Close{}, session);
    BOOST_REQUIRE(usage.is_object());
    return usage["cached_tokens"].get<std::int64_t>();
  };
  const SessionId lives{1, 1};
  ask(lives, "hello how are you");
  const auto kept = prefixes.entries(lives), before = prefixes.entries();
  BOOST_TEST(kept > 0);
  for (std::uint64_t n = 0; n < 30; ++n) {
    const SessionId once{2, n};
    ask(once, "thank you " + std::to_string(n));
    BOOST_TEST(prefixes.entries(once) > 0);
    w.driver.tell("controller", 2, protocol::Erase{}, once);
    w.driver.tell("controller", 2, protocol::Close{}, once);
    BOOST_TEST(prefixes.entries(once) == 0);
  }
  BOOST_TEST(w.driver.take().empty());
  BOOST_TEST(prefixes.entries(lives) == kept);
  BOOST_TEST(prefixes.entries() == before);  // the system prompt and what lives
  BOOST_TEST(ask(lives, "hello how are you") > 16 * (before - kept));
  // What is under way when it is over is finished, and nothing of it is kept.
  w.driver.tell("controller", 3, protocol::OpenChat{}, lives);
  w.driver.tell("controller", 3, protocol::Say{"thank you"}, lives);
  w.driver.tell("controller", 3, protocol::Generate{}, lives);
  w.driver.tell("controller", 4, protocol::Erase{}, lives);
  w.driver.work();
  BOOST_TEST(!w.driver.take().empty());
  w.driver.tell("controller", 3, protocol::Close{}, lives);
  BOOST_TEST(prefixes.entries(lives) == 0);
  w.driver.tick(milliseconds(20));
  BOOST_TEST(prefixes.counts().forgotten > 30);
  BOOST_TEST(w.counts("parlando_llm_prefix_forgotten_total " + std::to_string(prefixes.counts().forgotten)));
  BOOST_TEST(w.counts("parlando_llm_prefix_evictions_total 0"));
  // On the stream of a chat it is no message.
  w.driver.tell("controller", 5, protocol::OpenChat{}, lives);
  w.driver.tell("controller", 5, protocol::Erase{}, lives);
  BOOST_TEST(w.only_error().code() == "unsupported");
}

/// Nobody waits for a reply whose budget is spent; one that is complete owes nothing any more.
BOOST_AUTO_TEST_CASE(a_spent_budget_ends_what_is_under_way_and_nothing_else) {
  World w(load(kNano / "Step-Audio-Chat"));
  const auto all = w.free();
  const auto late = w.driver.now + milliseconds(500);
  for (const std::uint32_t stream : {1, 2}) {
    w.driver.tell("controller", stream, protocol::OpenChat{});
    w.driver.tell("controller", stream, protocol::Say{"hello"});
    w.driver.tell("controller", stream, protocol::Generate{}, CoreDriver::kSession, late);
    if (stream == 1) w.driver.work();
  }
  w.driver.work(1);
  const auto heard = w.driver.take();
  BOOST_REQUIRE(!heard.empty());
  BOOST_TEST(std::count_if(heard.begin(), heard.end(), [](const auto& h) { return h.code() != ""; }) == 0);
  w.driver.now = late - milliseconds(1);
  w.driver.work(1);
  BOOST_TEST(w.core.load() == 2);
  w.driver.take();
  w.driver.now = late;
  w.driver.work();
  const auto error = w.only_error();
  BOOST_TEST(error.stream() == 2u);
  BOOST_TEST(error.code() == "deadline_exceeded");
  w.driver.tell("controller", 2, protocol::Close{});
  BOOST_TEST(w.core.load() == 1);  // the other one waits for its Close
  w.driver.tell("controller", 1, protocol::Close{});
  BOOST_TEST(w.free() == all);
  BOOST_TEST(w.driver.take().empty());
}

BOOST_AUTO_TEST_CASE(a_chat_whose_tool_does_not_answer_ends_with_its_budget) {
  World w(load(kNano / "Step-Audio-Chat"));
  const auto until = w.driver.now + milliseconds(500);
  const auto call = [&](std::uint32_t stream) {
    w.driver.tell("controller", stream, protocol::OpenChat{});
    w.driver.tell("controller", stream, protocol::Say{"what is the weather in paris today"});
    w.driver.tell("controller", stream, protocol::Generate{}, CoreDriver::kSession, until);
    w.driver.work();
    const auto heard = w.driver.take();
    BOOST_REQUIRE(!heard.empty());
    BOOST_REQUIRE((heard.back().read<protocol::Text>().kind == TextKind::tool_call));
  };
  call(1);
  call(2);
  // The result brings a budget of its own.
  w.driver.tell("controller", 2, protocol::ToolResult{{R"({"sky":"sunny"})"}}, CoreDriver::kSession,
                until + milliseconds(500));
  w.driver.now = until;
  w.driver.work();
  auto heard = w.driver.take();
  BOOST_REQUIRE(heard.size() >= 2u);
  BOOST_TEST(heard.front().stream() == 1u);
  BOOST_TEST(heard.front().code() == "deadline_exceeded");
  BOOST_TEST(heard.back().stream() == 2u);
  BOOST_TEST((heard.back().read<protocol::Text>().kind == TextKind::done));
}

BOOST_AUTO_TEST_CASE(a_synthesis_ends_with_its_budget) {
  World w(load(kNano / "Step-Audio-TTS-3B"));
  const auto all = w.free();
  w.driver.tell("tts", 1, protocol::Synthesise{.text = "hello", .payload = bytes_of(codes_of(4))}, CoreDriver::kSession,
                w.driver.now + milliseconds(100));
  w.driver.work(2);
  w.driver.take();
  w.driver.now += milliseconds(100);
  w.driver.work(1);
  BOOST_TEST(w.only_error().code() == "deadline_exceeded");
  BOOST_TEST(w.core.load() == 0);
  BOOST_TEST(w.free() == all);
}

/// One error a stream: what its caller had sent meanwhile is no fault.
BOOST_AUTO_TEST_CASE(behind_an_error_a_stream_is_silent_until_its_close) {
  for (int what = 0; what < 5; ++what) {
    BOOST_TEST_CONTEXT("error " << what) {
      World w(load(kNano / "Step-Audio-Chat"), what == 0 ? LlmConfig{.sequences_max = 1} : LlmConfig{});
      const auto all = w.free();
      std::int64_t others = 0;
      std::string expected = "overloaded";
      if (what == 0) {  // no room
        for (int s = 10; s < 400; ++s) w.driver.tell("other", static_cast<std::uint32_t>(s), protocol::OpenChat{});
        others = w.core.load();
        w.driver.take();
      }
      w.driver.tell("controller", 1, protocol::OpenChat{.payload = what == 1 ? bytes_of("{}") : protocol::Bytes{}});
      if (what == 1) expected = "bad_json";
      if (what == 2) {
        w.driver.tell("controller", 1, protocol::Hear{7, bytes_of(codes_of(1))});
        expected = "position_mismatch";
      }
      if (what == 3) {
        w.driver.tell("controller", 1, protocol::ToolResult{});
        expected = "invalid_argument";
      }
      if (what == 4) {
        w.driver.tell("controller", 1, protocol::Flush{});
        expected = "unsupported";
      }
      BOOST_TEST(w.only_error().code() == expected);
      w.driver.tell("controller", 1, protocol::Hear{0, bytes_of(codes_of(2))});
      w.driver.tell("controller", 1, protocol::Generate{});
      w.driver.work();
      BOOST_TEST(w.driver.take().empty());
      BOOST_TEST(w.core.load() == others);
      if (what > 0) BOOST_TEST(w.free() == all);
      w.driver.tell("controller", 1, protocol::Close{});
      BOOST_TEST(w.driver.take().empty());
      w.driver.tell("controller", 1, protocol::Generate{});
      BOOST_TEST(w.only_error().code() == "not_found");
    }
  }
}

BOOST_AUTO_TEST_CASE(an_answer_that_the_link_does_not_take_ends_the_stream) {
  for (const bool chat : {true, false}) {
    World w(load(kNano / (chat ? "Step-Audio-Chat" : "Step-Audio-TTS-3B")));
    const auto all = w.free();
    if (chat)
      w.listen(1);
    else
      w.speak(1, 4);
    std::vector<CoreDriver::Heard> heard;
    while (heard.empty()) {
      w.driver.work(1);
      heard = w.driver.take();
    }
    BOOST_REQUIRE(w.core.load() == 1);
    w.driver.refuse(heard.back(), {Errc::overloaded, "too far behind"});
    BOOST_TEST(w.core.load() == 0);
    BOOST_TEST(w.free() == all);
    w.driver.work();
    for (const auto& h : w.driver.take()) BOOST_TEST(h.code() == "overloaded");
  }
}

BOOST_AUTO_TEST_CASE(a_group_far_beyond_what_is_known_is_refused) {
  // 5 · 3689348814741910324 is 4 modulo 2^64: a product that wraps would look like a known place.
  for (const std::int64_t group : {std::int64_t{3}, std::int64_t{3689348814741910324}}) {
    World w(load(kNano / "Step-Audio-Chat"));
    w.driver.tell("controller", 1, protocol::OpenChat{});
    w.driver.tell("controller", 1, protocol::Hear{0, bytes_of(codes_of(2))});
    w.driver.tell("controller", 1, protocol::Hear{group, bytes_of(codes_of(1))});
    BOOST_TEST(w.only_error().code() == "position_mismatch");
  }
}

/// A reply of no words after a transcript, or to what was typed, is none either.
BOOST_AUTO_TEST_CASE(a_reply_without_words_is_told_as_the_configuration_says) {
  const auto model = load(kNano / "Step-Audio-Chat");
  for (const bool spoken : {true, false}) {
    auto chat = Chat::open(model.engine, model.text, "c", {}, {.sampling = model.chat_sampling});
    BOOST_REQUIRE(chat.has_value());
    if (spoken)
      BOOST_REQUIRE((*chat)->hear(0, codes_of(1)).has_value());
    else
      BOOST_REQUIRE((*chat)->say("what time is it").has_value());
    BOOST_REQUIRE((*chat)->reply().has_value());
    std::vector<std::int32_t> ids;
    if (spoken) ids = model.text->encode("what time is it\n");
    for (const auto id : ids) BOOST_REQUIRE((*chat)->on({"c", id}).has_value());
    const auto events = *(*chat)->on({"c", model.engine->model().config().eos, Finish::stop});
    BOOST_REQUIRE(events.size() == 2u);
    BOOST_TEST(events[0].text == "please repeat.");
    BOOST_TEST(events[0].fallback);
    BOOST_TEST(events[1].text == "please repeat.");
  }
}

/// What was said before a tool call belongs to the reply.
BOOST_AUTO_TEST_CASE(done_carries_the_texts_of_all_rounds) {
  const auto model = load(kNano / "Step-Audio-Chat");
  auto opened = Chat::open(model.engine, model.text, "c", {}, {.sampling = model.chat_sampling});
  BOOST_REQUIRE(opened.has_value());
  auto& chat = **opened;
  BOOST_REQUIRE(chat.say("what time is it").has_value());
  BOOST_REQUIRE(chat.reply().has_value());
  const auto eos = model.engine->model().config().eos;
  std::string told;
  const auto push = [&](const std::vector<std::int32_t>& ids) {
    for (const auto id : ids) {
      const auto events = chat.on({"c", id});
      for (const auto& e : *events) {
        BOOST_TEST(e.at == static_cast<std::int64_t>(told.size()));
        told += e.text;
      }
    }
  };
  push(model.text->encode("one moment."));
  std::vector<std::int32_t> call = {model.text->specials().call_start};
  for (const auto id : model.text->encode(R"({"name":"get_time","arguments":{}})")) call.push_back(id);
  call.push_back(model.text->specials().call_end);
  push(call);
  auto events = *chat.on({"c", eos, Finish::stop});
  BOOST_REQUIRE(events.size() == 1u);
  BOOST_TEST((events[0].kind == ChatEvent::Kind::tool_call));
  BOOST_REQUIRE(chat.tool_result(R"({"time":"noon"})").has_value());
  push(model.text->encode("it is noon."));
  events = *chat.on({"c", eos, Finish::stop});
  BOOST_REQUIRE(events.size() == 1u);
  BOOST_TEST(told.find("one moment") != std::string::npos, told);
  BOOST_TEST(told.find("noon") != std::string::npos, told);
  BOOST_TEST(events[0].text == told);
  BOOST_TEST(!chat.tool_result("{}").has_value());  // none waits
}

/// Whatever happened to them, streams leave nothing behind, say one error at most and nothing after their end.
BOOST_AUTO_TEST_CASE(after_any_sequence_everything_is_free_again) {
  const auto model = load(kNano / "Step-Audio-Chat", 1024);
  const auto all = model.engine->blocks_free();
  std::map<std::string, int> outcomes;
  for (std::uint32_t seed = 1; seed <= 20; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      std::mt19937 random(seed);
      const auto below = [&](std::size_t n) { return random() % n; };
      World w(model, {.reply_tokens_max = 12});
      using Stream = std::pair<std::string, std::uint32_t>;
      std::vector<Stream> open;  // not closed by their callers
      std::set<Stream> ended;    // an error, the last codes or `done` was said
      std::vector<CoreDriver::Heard> said;
      std::uint32_t next = 1;
      const auto look = [&] {
        for (auto& h : w.driver.take()) {
          const Stream stream(h.peer, h.stream());
          BOOST_TEST(std::count(open.begin(), open.end(), stream) == 1, "stream " << h.stream() << " is not open");
          const bool done = h.is<protocol::Text>() && h.read<protocol::Text>().kind == TextKind::done;
          BOOST_TEST(!ended.contains(stream), "stream " << h.stream() << " speaks behind its end: " << h.code());
          // A complete chat may still be told something wrong.
          if (h.is<protocol::ErrorMessage>() || h.read<protocol::Tokens>().last) ended.insert(stream);
          ++outcomes[done ? "done" : h.read<protocol::Tokens>().last ? "last" : h.code()];
          said.push_back(std::move(h));
        }
      };
      const auto begin = [&](auto body) {
        open.emplace_back(below(2) == 0 ? "one" : "two", next++);
        const auto deadline = below(6) == 0 ? w.driver.now + milliseconds(below(50)) : Time::max();
        w.driver.tell(open.back().first, open.back().second, std::move(body), CoreDriver::kSession, deadline);
      };
      for (int i = 0; i < 40; ++i) {
        const auto what = below(14);
        if (what == 0 || open.empty()) {
          begin(protocol::OpenChat{.seed = random()});
        } else if (what == 1) {
          begin(protocol::Synthesise{.text = "hi", .payload = bytes_of(codes_of(3))});
        } else if (what == 2) {
          const std::string peer = below(2) == 0 ? "one" : "two";
          w.driver.caller(peer, PeerState::down);
          std::erase_if(open, [&](const Stream& s) { return s.first == peer; });
        } else if (what == 3 && !said.empty()) {
          const auto& h = said[below(said.size())];
          const Stream stream(h.peer, h.stream());
          if (std::count(open.begin(), open.end(), stream) == 1) {
            w.driver.refuse(h, {Errc::overloaded, "full"});
            ended.erase(stream);  // its caller has not heard that: one error tells it so
          }
        } else if (what == 4) {
          const OutOfMemory now;
          w.driver.work(1);
        } else {
          const auto at = below(open.size());
          const auto [peer, stream] = open[at];
          // 300 groups are more than the cache holds: what is closed meanwhile is cancelled within its prefill.
          if (what <= 6)
            w.driver.tell(
                peer, stream,
                protocol::Hear{static_cast<std::int64_t>(below(2)), bytes_of(codes_of(below(6) == 0 ? 300 : 5))});
          if (what == 7) w.driver.tell(peer, stream, protocol::Say{"what is the weather in paris today"});
          if (what == 8) w.driver.tell(peer, stream, protocol::GoOn{bytes_of(std::vector<std::int32_t>{20, 30})});
          if (what == 9 || what == 10) w.driver.tell(peer, stream, protocol::Generate{});
          if (what == 11) w.driver.tell(peer, stream, protocol::ToolResult{{"{}"}});
          if (what >= 12) {
            w.driver.tell(peer, stream, protocol::Close{});
            open.erase(open.begin() + static_cast<std::ptrdiff_t>(at));
          }
        }
        look();
        w.driver.now += milliseconds(below(20));
        // Now and then long enough for a synthesis to come to its end, whatever the weights.
        w.driver.work(static_cast<int>(below(10) == 0 ? 200 : below(6)));
        look();
      }
      for (const auto& [peer, stream] : open)
        if (peer == "one") w.driver.tell(peer, stream, protocol::Close{});
      w.driver.caller("two", PeerState::down);
      BOOST_TEST(w.driver.take().empty());
      BOOST_TEST(w.core.load() == 0);
      BOOST_TEST(model.engine->blocks_free() == all);
      BOOST_TEST(model.engine->idle());
    }
  }
  // The rounds went where they should.
  for (const char* outcome : {"last", "overloaded", "deadline_exceeded", "internal", "invalid_argument"})
    BOOST_TEST(outcomes[outcome] > 0, outcome);
}

}  // namespace parlando::llm
