/// What a client may wish of a chat: several calls, texts that end a reply, a transcript alone, an answer to what
/// stands there.
#include <boost/test/unit_test.hpp>
#include <fstream>
#include <nlohmann/json.hpp>

#include "common/base/pcm.hpp"
#include "services/llm/llm_core.hpp"
#include "tests/support/core_driver.hpp"
#include "tests/support/temporary_directory.hpp"

namespace parlando::llm {
namespace {
using nlohmann::json;
using protocol::TextKind;
namespace fs = std::filesystem;
using Kind = ChatEvent::Kind;

const fs::path kNano = fs::path(PARLANDO_SOURCE_DIR) / "models/nano/Step-Audio-Chat";

const LlmModel& nano() {
  static const auto model =
      *LlmModel::load(kNano, at::kFloat, {.cache_tokens = 4096, .step_max = std::chrono::hours(1)});
  return model;
}
protocol::Bytes bytes_of(std::string_view text) { return to_bytes(std::span(text)); }
protocol::Bytes bytes_of(const std::vector<std::int32_t>& values) { return to_bytes(std::span(values)); }

/// A chat whose ids are what the test says.
struct Scripted {
  std::unique_ptr<Chat> chat;
  explicit Scripted(Chat::Options options = {}, bool typed = true) {
    options.sampling = nano().chat_sampling;
    static int chats = 0;
    name = fmt::format("scripted-{}", ++chats);
    chat = *Chat::open(nano().engine, nano().text, name, {}, options);
    if (!typed) return;
    BOOST_REQUIRE(chat->say("what time is it").has_value());
    BOOST_REQUIRE(chat->reply().has_value());
  }
  std::string name, told;
  std::vector<ChatEvent> others;
  void id(std::int32_t id, Finish finish = Finish::none) {
    const auto events = chat->on({name, id, finish});
    BOOST_REQUIRE(events.has_value());
    for (const auto& e : *events) {
      if (e.kind == Kind::text) {
        BOOST_TEST(e.at == static_cast<std::int64_t>(told.size()));
        told += e.text;
      } else {
        others.push_back(e);
      }
    }
  }
  void text(const std::string& text) {
    for (const auto i : nano().text->encode(text)) id(i);
  }
  void call(const std::string& text) {
    id(nano().text->specials().call_start);
    this->text(text);
    id(nano().text->specials().call_end);
  }
  void end() { id(nano().engine->model().config().eos, Finish::stop); }
};

}  // namespace

BOOST_AUTO_TEST_CASE(a_round_may_have_several_calls) {
  for (const bool list : {false, true}) {
    Scripted s;
    s.text("one moment.");
    if (list) {
      s.call(R"([{"name":"get_time","arguments":{}},{"name":"get_date"},{"name":"get_time","arguments":{"x":1}}])");
    } else {
      s.call(R"({"name":"get_time","arguments":{}})");
      s.call(R"({"name":"get_date"})");
      s.call(R"({"name":"get_time","arguments":{"x":1}})");
    }
    s.end();
    BOOST_TEST(s.told.find("one moment") != std::string::npos);
    BOOST_REQUIRE(s.others.size() == 3u);
    for (int i = 0; i < 3; ++i) {
      const auto& e = s.others[static_cast<std::size_t>(i)];
      BOOST_TEST((e.kind == Kind::tool_call));
      BOOST_TEST(e.at == i);
      BOOST_TEST(e.left == 2 - i);
    }
    BOOST_TEST(json::parse(s.others[1].text)["name"] == "get_date");
    BOOST_TEST(json::parse(s.others[1].text)["arguments"].empty());
    BOOST_REQUIRE(s.chat->tool_result("1").has_value());
    BOOST_REQUIRE(s.chat->tool_result("2").has_value());
    s.others.clear();
    BOOST_REQUIRE(s.chat->tool_result("3").has_value());
    BOOST_TEST(!s.chat->tool_result("4").has_value());
    s.call(R"({"name":"get_time"})");
    s.end();
    BOOST_REQUIRE(s.others.size() == 1u);
    BOOST_TEST(s.others[0].at == 3);
  }
}

BOOST_AUTO_TEST_CASE(a_call_among_others_that_is_none_makes_none_of_them) {
  Scripted s;
  s.call(R"({"name":"get_time"})");
  s.call("nonsense");
  s.end();
  BOOST_TEST(s.told == "i did not understand.");
  BOOST_REQUIRE(s.others.size() == 1u);
  BOOST_TEST((s.others[0].kind == Kind::done));
  Scripted without(Chat::Options{.calls_tools = false});
  without.call(R"({"name":"get_time"})");
  without.end();
  BOOST_REQUIRE(without.others.size() == 1u);
  BOOST_TEST((without.others[0].kind == Kind::done));
}

/// However it is cut into tokens.
BOOST_AUTO_TEST_CASE(a_text_that_ends_a_reply_is_not_told) {
  for (const std::string stop : {"noon", "is noon, ", "n, y", "it", "zzz"}) {
    Scripted s(Chat::Options{.stop = {"never", stop}});
    const std::string reply = "it is noon, you know.";
    const auto before = s.told;
    for (const auto i : nano().text->encode(reply)) {
      if (!s.others.empty()) break;
      s.id(i);
    }
    s.end();
    Scripted plain;
    plain.text(reply);
    plain.end();
    const auto at = plain.told.find(stop);
    BOOST_TEST(s.told == plain.told.substr(0, at), "stop '" << stop << "': '" << s.told << "'");
    BOOST_REQUIRE(s.others.size() == 1u);
    BOOST_TEST((s.others[0].kind == Kind::done));
    BOOST_TEST((s.chat->usage().finish == Finish::stop));
    s.text("more");  // of a pass that was under way
    BOOST_TEST(s.others.size() == 1u);
  }
  // Nothing is told in the place of a reply that was ended at once.
  Scripted s(Chat::Options{.stop = {"x"}});
  s.text("xyz");
  BOOST_TEST(s.told == "");
}

BOOST_AUTO_TEST_CASE(what_was_heard_can_be_wanted_alone) {
  LlmCore core({}, nano());
  CoreDriver driver(core);
  driver.tell("controller", 1, protocol::OpenChat{});
  driver.tell("controller", 1, protocol::Hear{0, bytes_of(std::vector<std::int32_t>{1, 2, 1024, 1025, 1026})});
  driver.tell("controller", 1, protocol::Generate{.transcribe = true});
  driver.work();
  const auto heard = driver.take();
  BOOST_REQUIRE(heard.size() == 2u);
  BOOST_TEST((heard[0].read<protocol::Text>().kind == TextKind::transcript));
  const auto done = heard[1].read<protocol::Text>();
  BOOST_TEST((done.kind == TextKind::done));
  const auto figures = json::parse(done.text);
  BOOST_TEST(figures["finish"] == "stop");
  BOOST_TEST(figures["output_tokens"].get<int>() > 0);
  BOOST_TEST(figures["cached_tokens"].get<int>() > 0);  // the codes were prefilled
  driver.work();
  BOOST_TEST(driver.take().empty());
  driver.tell("controller", 2, protocol::OpenChat{});
  driver.tell("controller", 2, protocol::Say{"hello"});
  driver.tell("controller", 2, protocol::Generate{.transcribe = true});
  BOOST_TEST(driver.take()[0].code() == "unsupported");
}

BOOST_AUTO_TEST_CASE(what_stands_there_can_be_answered) {
  LlmCore core({}, nano());
  CoreDriver driver(core);
  const auto ask = [&](std::uint32_t stream, const std::string& history, bool as_it_stands) {
    driver.tell("controller", stream, protocol::OpenChat{.payload = bytes_of(history)});
    if (!as_it_stands) driver.tell("controller", stream, protocol::Say{"what is the capital of france"});
    driver.tell("controller", stream, protocol::Generate{.as_it_stands = as_it_stands});
    driver.work();
    std::string out;
    for (const auto& h : driver.take()) {
      BOOST_TEST(h.code() == "", h.why());
      if (h.read<protocol::Text>().kind == TextKind::text) out += h.read<protocol::Text>().text;
    }
    return out;
  };
  const auto said = ask(1, "[]", false);
  BOOST_TEST(!said.empty());
  BOOST_TEST(ask(2, R"([{"role":"user","content":"what is the capital of france"}])", true) == said);
  // Calls and their results as items stand behind what was asked.
  BOOST_TEST(!ask(3,
                  R"([{"role":"user","content":"what time is it"},)"
                  R"({"role":"assistant","content":"","calls":[{"id":"a","name":"get_time","arguments":{}}]},)"
                  R"({"role":"tool","content":"{\"hour\":3,\"minute\":5}","call":"a"}])",
                  true)
                  .empty());
  driver.tell("controller", 4, protocol::OpenChat{});
  driver.tell("controller", 4, protocol::Say{"hello"});
  driver.tell("controller", 4, protocol::Generate{.as_it_stands = true});
  BOOST_TEST(driver.take()[0].code() == "invalid_argument");
}

/// What nobody waits for goes behind what somebody waits for, whoever came first.
BOOST_AUTO_TEST_CASE(what_is_made_in_the_background_comes_last) {
  for (const bool background : {false, true}) {
    LmEngine::Limits limits;
    limits.cache_tokens = 4096;
    limits.prefill_chunk = limits.batch_tokens = 32;  // a prompt takes several steps
    auto model = nano();
    model.engine =
        std::make_shared<LmEngine>(std::shared_ptr<const Step1>(nano().engine, &nano().engine->model()), limits);
    LlmCore core({}, std::move(model));
    CoreDriver driver(core);
    const auto history = R"([{"role":"user","content":")" + std::string(300, 'a') + R"("}])";
    driver.tell("controller", 1, protocol::OpenChat{.payload = bytes_of(history)});
    driver.tell("controller", 1, protocol::Generate{.as_it_stands = true, .background = background});
    driver.tell("controller", 2, protocol::OpenChat{});
    driver.tell("controller", 2, protocol::Say{"hello"});
    driver.tell("controller", 2, protocol::Generate{});
    driver.work();
    const auto heard = driver.take();
    BOOST_REQUIRE(!heard.empty());
    BOOST_TEST(heard.front().stream() == (background ? 2u : 1u));
  }
}

BOOST_AUTO_TEST_CASE(wishes_that_cannot_be_are_refused_by_name) {
  LlmCore core({}, nano());
  CoreDriver driver(core);
  std::uint32_t stream = 0;
  const auto refused = [&](protocol::OpenChat open) {
    driver.tell("controller", ++stream, std::move(open));
    const auto heard = driver.take();
    return heard.empty() ? std::string() : heard[0].code();
  };
  BOOST_TEST(refused({.tokens_max = 0}) == "invalid_argument");
  BOOST_TEST(refused({.stop = {R"(["a","b","c","d","e"])"}}) == "invalid_argument");
  BOOST_TEST(refused({.stop = {R"([""])"}}) == "invalid_argument");
  BOOST_TEST(refused({.tool_choice = "required"}) == "unsupported");
  BOOST_TEST(refused({.temperature_milli = 0, .top_p_milli = 0, .top_k = 0}) == "");
  driver.tell("controller", stream, protocol::Say{"hello"});
  driver.tell("controller", stream, protocol::Generate{});
  driver.work();
  for (const auto& h : driver.take()) BOOST_TEST(h.code() == "", h.why());
}

/// A model that is told of tools has a turn for them; the others do not read it.
BOOST_AUTO_TEST_CASE(tools_are_told_to_models_that_were_trained_so) {
  TemporaryDirectory folder;
  for (const auto& entry : fs::directory_iterator(kNano))
    if (entry.path().filename() != "config.json")
      fs::create_symlink(entry.path(), folder.path() / entry.path().filename());
  auto config = json::parse(std::ifstream(kNano / "config.json"));
  const auto prompt_tokens = [&](const std::string& tool_prompt, bool tools, const std::string& history = "[]") {
    config["tool_prompt"] = tool_prompt;
    std::ofstream(folder.path() / "config.json") << config.dump();
    auto model = LlmModel::load(folder.path(), at::kFloat, {.cache_tokens = 4096, .step_max = std::chrono::hours(1)});
    BOOST_REQUIRE(model.has_value());
    LlmCore core({}, *std::move(model));
    CoreDriver driver(core);
    protocol::OpenChat open{.tokens_max = 4, .payload = bytes_of(history)};
    if (tools) open.tools = {R"([{"name":"look","parameters":{"type":"object"}}])"};
    driver.tell("controller", 1, open);
    driver.tell("controller", 1, protocol::Say{"hello"});
    driver.tell("controller", 1, protocol::Generate{});
    driver.work();
    const auto heard = driver.take();
    BOOST_REQUIRE(!heard.empty());
    return json::parse(heard.back().read<protocol::Text>().text)["prompt_tokens"].get<int>();
  };
  const std::string past =
      R"([{"role":"user","content":"a"},{"role":"assistant","content":"b","calls":[{"name":"look","arguments":{},"result":1}]}])";
  const std::string plain = R"([{"role":"user","content":"a"},{"role":"assistant","content":"b"}])";
  BOOST_TEST(prompt_tokens("", true) == prompt_tokens("", false));
  BOOST_TEST(prompt_tokens("tool_json_schemas", true) > prompt_tokens("tool_json_schemas", false));
  BOOST_TEST(prompt_tokens("", true, past) == prompt_tokens("", true, plain));
  BOOST_TEST(prompt_tokens("tool_json_schemas", true, past) > prompt_tokens("tool_json_schemas", true, plain));
  config["tool_prompt"] = "other";
  std::ofstream(folder.path() / "config.json") << config.dump();
  BOOST_TEST(!LlmModel::load(folder.path(), at::kFloat, {}).has_value());
}

}  // namespace parlando::llm
