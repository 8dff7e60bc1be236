#define BOOST_TEST_MODULE gateway_http
#include <boost/test/unit_test.hpp>
#include <fstream>
#include <nlohmann/json.hpp>

#include "common/base/base64.hpp"
#include "common/base/result.hpp"
#include "services/gateway/client_message.hpp"
#include "services/gateway/http_form.hpp"
#include "services/gateway/http_keys.hpp"
#include "services/gateway/http_speech.hpp"
#include "services/gateway/http_transcription.hpp"
#include "services/gateway/http_voices.hpp"
#include "services/gateway/voice_store.hpp"
#include "tests/support/temporary_directory.hpp"

using namespace parlando;
using namespace parlando::gateway;
using nlohmann::json;
using Kind = HttpRequest::Answered::Kind;

namespace {

const RequestHead kHead{"0123456789abcdef0123456789abcdef", 1'700'000'000};

std::string wav(double seconds, int rate = 16000) {
  return audio::encode_wav(std::vector<float>(static_cast<std::size_t>(seconds * rate), 0.1f), rate);
}

/// A request, the session that answers it, and its client.
struct Talk {
  template <class T>
  explicit Talk(ApiResult<std::unique_ptr<T>> made) {
    BOOST_REQUIRE_MESSAGE(made, (made ? "" : made.error().message));
    request = std::move(*made);
    request->start();
    look();
  }
  void look() {
    for (auto said_now = request->take_said(); !said_now.empty(); said_now = request->take_said())
      for (auto& m : said_now) {
        if (m.sound) {
          sound_bytes += m.data.size();
          BOOST_TEST(m.data.size() <= 32u << 10);
          if (said.empty() || said.back() != json("sound")) said.push_back("sound");
          continue;
        }
        // What is said must be words that sessions know.
        const auto read = read_client_message(m.data);
        BOOST_TEST(read.has_value(), (read ? "" : read.error().message));
        said.push_back(json::parse(m.data));
      }
    for (auto& a : request->take_answered()) {
      kinds.push_back(a.kind);
      if (a.kind == Kind::whole || a.kind == Kind::begin) head = a.response;
      body += a.kind == Kind::whole ? a.response.body : a.part;
    }
  }
  Talk& event(const json& e) {
    request->event(e.dump());
    look();
    return *this;
  }
  Talk& text(const std::string& kind, const std::string& text) {
    return event({{"type", "text"}, {"turn", 1}, {"kind", kind}, {"text", text}});
  }
  Talk& speech(std::size_t samples) {
    request->sound(std::string(2 * samples, '\1'));
    look();
    return *this;
  }
  Talk& turn(json more = json::object()) {
    more["type"] = "turn";
    more["turn"] = 1;
    return event(more);
  }
  /// The data of all events so far.
  std::vector<std::string> events() const {
    std::vector<std::string> out;
    std::string_view rest = body;
    while (!rest.empty()) {
      const auto end = rest.find("\n\n");
      BOOST_REQUIRE(end != std::string_view::npos);
      BOOST_REQUIRE(rest.starts_with("data: "));
      out.emplace_back(rest.substr(6, end - 6));
      rest.remove_prefix(end + 2);
    }
    return out;
  }
  std::vector<std::string> types() const {
    std::vector<std::string> out;
    for (const auto& m : said) out.push_back(m.is_string() ? m.get<std::string>() : m["type"].get<std::string>());
    return out;
  }

  std::unique_ptr<HttpRequest> request;
  std::vector<json> said;
  std::size_t sound_bytes = 0;
  std::vector<Kind> kinds;
  http::Response head;
  std::string body;
};

SpokenAnswers spoken;
Talk chat(json body) {
  if (!body.contains("model")) body["model"] = "m";
  return Talk(ChatCompletion::make(body.dump(), kHead, spoken));
}
ApiError chat_error(json body) {
  if (!body.contains("model")) body["model"] = "m";
  const auto made = ChatCompletion::make(body.dump(), kHead, spoken);
  BOOST_REQUIRE(!made);
  return made.error();
}
json user(const std::string& text) { return {{"role", "user"}, {"content", text}}; }
json audio_part(const std::string& file) {
  return {{"type", "input_audio"},
          {"input_audio", {{"data", to_base64(std::as_bytes(std::span(file)))}, {"format", "wav"}}}};
}
const json kTool{{"type", "function"},
                 {"function", {{"name", "weather"}, {"parameters", {{"type", "object"}}}, {"strict", true}}}};

}  // namespace

BOOST_AUTO_TEST_SUITE(chat_completions)

BOOST_AUTO_TEST_CASE(messages_become_items_and_the_answer_is_asked_for) {
  auto talk = chat(json::parse(R"({"temperature":0.5,"top_p":0.9,"seed":-1,"stop":"END","max_tokens":7,"future":1,
    "max_completion_tokens":9,"messages":[
    {"role":"system","content":"be short"},{"role":"developer","content":[{"type":"text","text":"be kind"}]},
    {"role":"user","content":"hello"},{"role":"assistant","content":"hi","refusal":null},
    {"role":"system","content":"now be long"},
    {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}],"name":"x"}]})"));
  BOOST_TEST(talk.said[0]["system"] == "be short\n\nbe kind");
  BOOST_TEST(talk.said[0]["stored"] == false);
  BOOST_TEST(talk.said[0]["speak"] == false);
  BOOST_TEST(talk.said[0]["temperature"] == 0.5);
  BOOST_TEST(talk.said[0]["max_tokens"] == 9);
  BOOST_TEST(talk.said[0]["stop"] == json({"END"}));
  BOOST_TEST(talk.said[0]["seed"] == std::numeric_limits<std::uint64_t>::max());
  BOOST_TEST((talk.types() == std::vector<std::string>{"open", "item", "item", "item", "text"}));
  BOOST_TEST(talk.said[2] == json({{"type", "item"}, {"role", "assistant"}, {"text", "hi"}}));
  BOOST_TEST(talk.said[3]["role"] == "system");
  BOOST_TEST(talk.said[4]["text"] == "a\nb");
  BOOST_TEST(talk.kinds.empty());
  talk.event({{"type", "opened"}}).text("text", "Hel").text("text", "lo.");
  BOOST_TEST(talk.kinds.empty());
  talk.turn({{"finish", "length"}, {"usage", {{"prompt_tokens", 5}, {"output_tokens", 2}, {"cached_tokens", 1}}}});
  BOOST_TEST(talk.request->is_over());
  BOOST_TEST(talk.head.status == 200);
  const auto answer = json::parse(talk.body);
  BOOST_TEST(answer["object"] == "chat.completion");
  BOOST_TEST(answer["id"] == "chatcmpl-" + kHead.id);
  BOOST_TEST(answer["choices"][0]["message"]["content"] == "Hello.");
  BOOST_TEST(answer["choices"][0]["finish_reason"] == "length");
  BOOST_TEST(answer["usage"]["total_tokens"] == 7);
  BOOST_TEST(answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 1);
}

BOOST_AUTO_TEST_CASE(a_stream_begins_with_the_role_and_ends_with_usage) {
  auto talk = chat({{"messages", {user("hi")}}, {"stream", true}, {"stream_options", {{"include_usage", true}}}});
  talk.text("text", "A").text("text", "B").turn();
  BOOST_TEST(talk.head.type == "text/event-stream; charset=utf-8");
  const auto events = talk.events();
  BOOST_REQUIRE(events.size() == 6u);
  BOOST_TEST(events.back() == "[DONE]");
  const auto chunk = [&](std::size_t i) { return json::parse(events[i]); };
  BOOST_TEST(chunk(0)["choices"][0]["delta"]["role"] == "assistant");
  BOOST_TEST(chunk(1)["choices"][0]["delta"] == json({{"content", "A"}}));
  BOOST_TEST(chunk(1)["usage"].is_null());
  BOOST_TEST(chunk(3)["choices"][0]["finish_reason"] == "stop");
  BOOST_TEST(chunk(4)["choices"].empty());
  BOOST_TEST(chunk(4)["usage"]["total_tokens"] == 0);
  BOOST_TEST((talk.kinds.back() == Kind::finish));
}

BOOST_AUTO_TEST_CASE(calls_of_the_clients_tools_end_the_answer) {
  for (const bool stream : {false, true}) {
    auto talk = chat({{"messages", {user("hi")}}, {"tools", {kTool}}, {"tool_choice", "required"}, {"stream", stream}});
    BOOST_TEST(talk.said[0]["tools"] == json({{{"name", "weather"}, {"parameters", {{"type", "object"}}}}}));
    BOOST_TEST(talk.said[0]["tool_choice"] == "required");
    talk.text("tool_call", R"({"id":"own","name":"get_time","arguments":{},"result":{}})");  // the engine's: not told
    talk.text("tool_call", R"({"id":"c1","name":"weather","arguments":{"city":"Paris"}})");
    talk.text("tool_call", R"({"id":"c2","name":"weather","arguments":{}})");
    BOOST_TEST(!talk.request->is_over());
    talk.event({{"type", "waiting"}, {"turn", 1}, {"calls", 2}});
    BOOST_TEST(talk.request->is_over());
    if (stream) {
      const auto second = json::parse(talk.events()[2])["choices"][0]["delta"]["tool_calls"][0];
      BOOST_TEST(second["index"] == 1);
      BOOST_TEST(json::parse(talk.events()[3])["choices"][0]["finish_reason"] == "tool_calls");
      continue;
    }
    const auto choice = json::parse(talk.body)["choices"][0];
    BOOST_TEST(choice["finish_reason"] == "tool_calls");
    BOOST_TEST(choice["message"]["content"].is_null());
    BOOST_TEST(choice["message"]["tool_calls"].size() == 2u);
    BOOST_TEST(choice["message"]["tool_calls"][0]["id"] == "call_0123456789abcdef_0");
    BOOST_TEST(json::parse(choice["message"]["tool_calls"][0]["function"]["arguments"].get<std::string>()) ==
               json({{"city", "Paris"}}));
  }
  // And what they have answered comes back as items.
  auto talk =
      chat({{"messages",
             {user("hi"),
              {{"role", "assistant"},
               {"content", nullptr},
               {"tool_calls",
                {{{"id", "c1"}, {"type", "function"}, {"function", {{"name", "weather"}, {"arguments", "{}"}}}}}}},
              {{"role", "tool"}, {"tool_call_id", "c1"}, {"content", "rain"}}}},
            {"tools", {kTool}},
            {"tool_choice", {{"type", "function"}, {"function", {{"name", "weather"}}}}}});
  BOOST_TEST(talk.said[0]["tool_choice"] == "weather");
  BOOST_TEST(talk.said[2]["calls"][0]["name"] == "weather");
  BOOST_TEST(talk.said[3]["calls"] == "c1");
  BOOST_TEST(talk.said[3]["text"] == "rain");
}

BOOST_AUTO_TEST_CASE(sound_of_the_user_is_understood_before_what_follows) {
  auto talk =
      chat({{"messages",
             {{{"role", "user"}, {"content", {{{"type", "text"}, {"text", "listen"}}, audio_part(wav(2.5, 48000))}}},
              user("well?")}}});
  BOOST_TEST((talk.types() == std::vector<std::string>{"open", "item", "sound", "flush"}));
  BOOST_TEST(talk.said[0]["detection"] == json({{"type", "none"}, {"answers", false}}));
  BOOST_TEST(talk.said[0]["tokenizer"] == "exact");  // it is there as a whole
  BOOST_TEST(talk.sound_bytes == 2u * 40000);
  talk.event({{"type", "noted"}, {"id", "u1"}, {"text", "hello"}, {"first_sample", 0}, {"end_sample", 40000}});
  BOOST_TEST((talk.types() == std::vector<std::string>{"open", "item", "sound", "flush", "text"}));
  talk.text("text", "yes").turn();
  BOOST_TEST(json::parse(talk.body)["choices"][0]["message"]["content"] == "yes");
  // At the very end it is a spoken turn.
  auto last = chat({{"messages", {user("listen"), {{"role", "user"}, {"content", {audio_part(wav(1))}}}}}});
  BOOST_TEST(last.said[0]["detection"] == json({{"type", "none"}, {"answers", true}}));
  BOOST_TEST(last.said[0]["tokenizer"] == "exact");
  BOOST_TEST(!chat({{"messages", {user("hi")}}}).said[0].contains("tokenizer"));
  BOOST_TEST((last.types() == std::vector<std::string>{"open", "item", "sound", "flush"}));
  last.text("transcript", "hello").text("text", "yes").turn();
  BOOST_TEST(json::parse(last.body)["choices"][0]["message"]["content"] == "yes");
  // A pause stops the sound, and nothing else is lost.
  auto made = ChatCompletion::make(
      json{{"model", "m"}, {"messages", {{{"role", "user"}, {"content", {audio_part(wav(3))}}}}}}.dump(), kHead,
      spoken);
  BOOST_REQUIRE(made);
  (*made)->start();
  BOOST_TEST((*made)->take_said().size() == 2u);  // `open` and a second of sound
  (*made)->pause();
  BOOST_TEST((*made)->take_said().empty());
  (*made)->resume();
  BOOST_TEST((*made)->take_said().size() == 1u);
  // Silence is told with its place.
  auto silent = chat({{"messages", {{{"role", "user"}, {"content", {audio_part(wav(1))}}}}}});
  silent.event({{"type", "error"}, {"code", "no_speech"}, {"message", "no speech"}});
  BOOST_TEST(silent.head.status == 400);
  BOOST_TEST(json::parse(silent.body)["error"]["param"] == "messages[0].content[0]");
}

BOOST_AUTO_TEST_CASE(answers_are_given_aloud) {
  const json audio{{"voice", "alloy"}, {"format", "wav"}};
  auto talk = chat({{"messages", {user("hi")}}, {"modalities", {"text", "audio"}}, {"audio", audio}});
  BOOST_TEST(talk.said[0]["speak"] == true);
  BOOST_TEST(!talk.said[0].contains("speaker"));
  talk.text("text", "Hello.").speech(22050).turn();
  const auto message = json::parse(talk.body)["choices"][0]["message"];
  BOOST_TEST(message["content"].is_null());
  BOOST_TEST(message["audio"]["transcript"] == "Hello.");
  BOOST_TEST(message["audio"]["expires_at"] == kHead.created + 3600);
  const auto bytes = from_base64(message["audio"]["data"].get<std::string>());
  BOOST_REQUIRE(bytes);
  const auto heard = audio::read_audio(*bytes, "answer");
  BOOST_REQUIRE(heard);
  BOOST_TEST(heard->rate == 24000);
  BOOST_TEST(heard->wave.size() == 24000u);
  // Its id stands for what was said in a later request; others do not.
  auto later =
      chat({{"messages", {{{"role", "assistant"}, {"audio", {{"id", message["audio"]["id"]}}}}, user("again")}}});
  BOOST_TEST(later.said[1]["text"] == "Hello.");
  BOOST_TEST(chat_error({{"messages", {{{"role", "assistant"}, {"audio", {{"id", "other"}}}}, user("x")}}}).param ==
             "messages[0].audio.id");
  // Streamed: parts of whole samples.
  auto stream = chat({{"messages", {user("hi")}},
                      {"modalities", {"text", "audio"}},
                      {"audio", {{"voice", {{"id", "Ken"}}}, {"format", "pcm16"}}},
                      {"stream", true}});
  BOOST_TEST(stream.said[0]["speaker"] == "Ken");
  stream.text("text", "Hel").speech(500).text("text", "lo").speech(21550).turn();
  std::size_t samples = 0;
  std::string transcript;
  bool expires = false;
  for (const auto& e : stream.events()) {
    if (e == "[DONE]") continue;
    const auto delta = json::parse(e)["choices"][0]["delta"];
    if (!delta.contains("audio")) continue;
    transcript += delta["audio"].value("transcript", "");
    expires |= delta["audio"].contains("expires_at");
    if (!delta["audio"].contains("data")) continue;
    const auto part = from_base64(delta["audio"]["data"].get<std::string>());
    BOOST_REQUIRE(part);
    BOOST_TEST(part->size() % 2 == 0u);
    samples += part->size() / 2;
  }
  BOOST_TEST(samples == 24000u);
  BOOST_TEST(transcript == "Hello");
  BOOST_TEST(expires);
}

BOOST_AUTO_TEST_CASE(what_is_wrong_is_named) {
  const json ok = json::array({user("hi")});
  const std::vector<std::pair<json, std::string>> cases{
      {{{"messages", json::array()}}, "messages"},
      {{{"messages", "hi"}}, "messages"},
      {json::object(), "messages"},
      {{{"messages", ok}, {"model", 7}}, "model"},
      {{{"messages", {{{"role", "king"}, {"content", "x"}}}}}, "messages[0].role"},
      {{{"messages", {{{"role", "user"}}}}}, "messages[0].content"},
      {{{"messages", {{{"role", "user"}, {"content", 7}}}}}, "messages[0].content"},
      {{{"messages", {{{"role", "user"}, {"content", {{{"type", "image_url"}}}}}}}}, "messages[0].content[0].type"},
      {{{"messages", {{{"role", "tool"}, {"content", "x"}}}}}, "messages[0].tool_call_id"},
      {{{"messages", {{{"role", "user"}, {"content", {{{"type", "input_audio"}, {"input_audio", {{"data", "!"}}}}}}}}}},
       "messages[0].content[0].input_audio.data"},
      {{{"messages", ok}, {"n", 2}}, "n"},
      {{{"messages", ok}, {"logprobs", true}}, "logprobs"},
      {{{"messages", ok}, {"temperature", 3}}, "temperature"},
      {{{"messages", ok}, {"temperature", "hot"}}, "temperature"},
      {{{"messages", ok}, {"top_p", 1.5}}, "top_p"},
      {{{"messages", ok}, {"max_tokens", 0}}, "max_tokens"},
      {{{"messages", ok}, {"stop", {"a", "b", "c", "d", "e"}}}, "stop"},
      {{{"messages", ok}, {"stream", "yes"}}, "stream"},
      {{{"messages", ok}, {"modalities", {"video"}}}, "modalities"},
      {{{"messages", ok}, {"modalities", {"audio"}}}, "audio"},
      {{{"messages", ok}, {"modalities", {"audio"}}, {"audio", {{"voice", "x"}, {"format", "aac"}}}}, "audio.format"},
      {{{"messages", ok}, {"modalities", {"audio"}}, {"audio", {{"format", "wav"}}}}, "audio.voice"},
      {{{"messages", ok}, {"tools", {{{"type", "custom"}}}}}, "tools[0].type"},
      {{{"messages", ok}, {"tool_choice", "required"}}, "tool_choice"},
      {{{"messages", ok}, {"response_format", {{"type", "json_object"}}}}, "response_format"},
      {{{"messages", ok}, {"presence_penalty", 1}}, "presence_penalty"},
      {{{"messages", {user(std::string(60001, 'x'))}}}, "messages[0].content"}};
  for (const auto& [body, param] : cases) {
    const auto error = chat_error(body);
    BOOST_TEST(error.param == param, body.dump() << " names " << error.param << ": " << error.message);
    BOOST_TEST(error.status == 400);
  }
  for (const std::string text : {"", "[]", "{", "7", "null"})
    BOOST_TEST(ChatCompletion::make(text, kHead, spoken).error().code == "bad_json");
  BOOST_TEST(ChatCompletion::make(std::string(100'000, '['), kHead, spoken).error().code == "bad_json");
  chat({{"messages", ok},
        {"n", 1},
        {"logprobs", false},
        {"presence_penalty", 0},
        {"response_format", {{"type", "text"}}}});
}

BOOST_AUTO_TEST_CASE(errors_find_their_way_before_and_within_the_answer) {
  auto busy = chat({{"messages", {user("hi")}}, {"stream", true}});
  busy.event(
      {{"type", "error"}, {"code", "overloaded"}, {"message", "full"}, {"retry_ms", 1500}, {"session_ended", true}});
  BOOST_TEST(busy.head.status == 503);
  BOOST_TEST((busy.head.headers[0] == std::pair<std::string, std::string>("Retry-After", "2")));
  const auto error = json::parse(busy.body)["error"];
  BOOST_TEST(error["message"] == "full");
  BOOST_TEST(error["type"] == "server_error");
  BOOST_TEST(error["code"] == "overloaded");
  BOOST_TEST(error["param"].is_null());
  auto begun = chat({{"messages", {user("hi")}}, {"stream", true}});
  begun.text("text", "A").event({{"type", "error"}, {"code", "internal"}, {"message", "broke"}});
  BOOST_TEST(json::parse(begun.events().back())["error"]["message"] == "broke");
  BOOST_TEST((begun.kinds.back() == Kind::finish));
  auto closed = chat({{"messages", {user("hi")}}});
  closed.request->closed(1001, "the gateway is going away");
  closed.look();
  BOOST_TEST(closed.head.status == 503);
  closed.text("text", "nobody hears this");
  BOOST_TEST(closed.kinds.size() == 1u);
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(speech)

namespace {
Talk speak(json body) {
  body["model"] = "m";
  return Talk(SpeechRequest::make(body.dump(), kHead));
}
}  // namespace

BOOST_AUTO_TEST_CASE(sound_leaves_as_it_comes) {
  auto talk = speak({{"input", "Hello there."}, {"voice", "nova"}, {"response_format", "pcm"}, {"speed", 1.5}});
  BOOST_TEST(talk.said[0] == json({{"type", "open"}, {"stored", false}, {"speak", true}, {"speed", 1.5}}));
  BOOST_TEST(talk.said[1] == json({{"type", "utter"}, {"text", "Hello there."}}));
  talk.speech(2205);
  BOOST_TEST(talk.head.type == "audio/pcm");
  const auto first = talk.body.size();
  BOOST_TEST(first > 0u);
  talk.speech(22050 - 2205).turn();
  BOOST_TEST(talk.body.size() == 48000u);
  BOOST_TEST((talk.kinds.back() == Kind::finish));
}

BOOST_AUTO_TEST_CASE(every_format_is_a_file_of_its_kind) {
  const std::map<std::string, std::string> types{
      {"mp3", "audio/mpeg"}, {"opus", "audio/ogg"}, {"flac", "audio/flac"}, {"wav", "audio/wav"}};
  for (const auto& [format, type] : types) {
    auto talk = speak({{"input", "Hello."}, {"voice", "Clara"}, {"response_format", format}});
    for (int i = 0; i < 20; ++i) talk.speech(2205);
    talk.turn();
    BOOST_TEST(talk.head.type == type);
    const auto heard = audio::read_audio(std::as_bytes(std::span(talk.body)), format);
    BOOST_REQUIRE_MESSAGE(heard, format);
    BOOST_TEST(std::abs(heard->seconds() - 2) < 0.2);
  }
}

BOOST_AUTO_TEST_CASE(events_carry_it_as_well) {
  auto talk = speak({{"input", "Hé"}, {"voice", "Clara"}, {"response_format", "pcm"}, {"stream_format", "sse"}});
  talk.speech(22050 * 12 / 10).turn();
  const auto events = talk.events();
  BOOST_TEST(json::parse(events[0])["type"] == "speech.audio.delta");
  const auto done = json::parse(events.back());
  BOOST_TEST(done["type"] == "speech.audio.done");
  BOOST_TEST(done["usage"] == json({{"input_tokens", 2}, {"output_tokens", 50}, {"total_tokens", 52}}));
}

BOOST_AUTO_TEST_CASE(styles_come_from_fields_and_instructions) {
  const auto style = [](json more) {
    more["input"] = "x";
    more["voice"] = "Clara";
    return speak(more).said[0].value("style", "");
  };
  BOOST_TEST(style({{"instructions", "Speak in a very happy, warm voice."}}) == "高兴2");
  BOOST_TEST(style({{"instructions", "Crusade against unhappyness."}}) == "");
  BOOST_TEST(style({{"emotion", "sad"}}) == "悲伤1");
  BOOST_TEST(style({{"language", "cantonese"}, {"instructions", "fast"}}) == "粤语");
  BOOST_TEST(style({{"style", "RAP"}}) == "RAP");
  BOOST_TEST(style({{"instructions", "Rap it, humming and singing."}}) == "");
  BOOST_TEST(style({{"instructions", "Sing it slowly."}}) == "慢速1");
}

BOOST_AUTO_TEST_CASE(what_is_wrong_is_named) {
  const std::vector<std::pair<json, std::string>> cases{
      {{{"voice", "Clara"}}, "input"},
      {{{"input", " \n"}, {"voice", "Clara"}}, "input"},
      {{{"input", std::string(60001, 'x')}, {"voice", "Clara"}}, "input"},
      {{{"input", "x"}}, "voice"},
      {{{"input", "x"}, {"voice", 7}}, "voice"},
      {{{"input", "x"}, {"voice", "Clara"}, {"response_format", "aac"}}, "response_format"},
      {{{"input", "x"}, {"voice", "Clara"}, {"response_format", "midi"}}, "response_format"},
      {{{"input", "x"}, {"voice", "Clara"}, {"speed", 5}}, "speed"},
      {{{"input", "x"}, {"voice", "Clara"}, {"stream_format", "ws"}}, "stream_format"},
      {{{"input", "x"}, {"voice", "Clara"}, {"emotion", "hungry"}}, "emotion"},
      {{{"input", "x"}, {"voice", "Clara"}, {"emotion", "sad"}, {"language", "english"}}, "language"}};
  for (auto [body, param] : cases) {
    body["model"] = "m";
    const auto made = SpeechRequest::make(body.dump(), kHead);
    BOOST_REQUIRE(!made);
    BOOST_TEST(made.error().param == param);
  }
}

BOOST_AUTO_TEST_CASE(a_failure_breaks_the_sound_off) {
  auto early = speak({{"input", "x"}, {"voice", "nobody"}});
  early.event({{"type", "error"}, {"code", "not_found"}, {"message", "no voice 'nobody'"}});
  BOOST_TEST(early.head.status == 404);
  BOOST_TEST(json::parse(early.body)["error"]["param"] == "voice");
  auto late = speak({{"input", "x"}, {"voice", "Clara"}, {"response_format", "pcm"}});
  late.speech(2205).event({{"type", "error"}, {"code", "internal"}, {"message", "broke"}});
  BOOST_TEST((late.kinds.back() == Kind::abort));
  auto silent = speak({{"input", "x"}, {"voice", "Clara"}, {"response_format", "pcm"}});
  silent.turn();
  BOOST_TEST(silent.head.status == 500);
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(transcriptions)

/// The kernel between rates without a common measure would fill the memory.
BOOST_AUTO_TEST_CASE(a_rate_that_nobody_records_at_is_refused_at_once) {
  for (const int rate : {8009, 44101, 383999}) {
    const auto source = SoundSource::open(wav(0.1, rate), "odd.wav", 30, milliseconds(0));
    BOOST_REQUIRE(!source.has_value());
    BOOST_TEST(source.error().message ==
               fmt::format("'odd.wav' has {} samples a second, expected a usual rate as 8000, "
                           "44100 or 48000",
                           rate));
  }
  for (const int rate : {8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000})
    BOOST_TEST(SoundSource::open(wav(0.1, rate), "usual.wav", 30, milliseconds(0)).has_value());
}

BOOST_AUTO_TEST_CASE(a_voice_is_no_way_to_fill_the_memory_either) {
  const TemporaryDirectory folder;
  const VoiceStore store(folder.path().string(), 5);
  for (const int rate : {8009, 44101, 383999}) {
    const auto kept = store.add({"a", "b", "c", wav(1, rate)}, "me", 1);
    BOOST_REQUIRE(!kept.has_value());
    BOOST_TEST((kept.error().code == Errc::unsupported), kept.error().message);
  }
}

BOOST_AUTO_TEST_CASE(a_description_that_somebody_has_spoilt_is_no_voice) {
  const TemporaryDirectory folder;
  const VoiceStore store(folder.path().string(), 5);
  const auto kept = store.add({"a", "b", "c", wav(1.5, 44100)}, "me", 1);
  BOOST_REQUIRE_MESSAGE(kept.has_value(), (kept ? "" : kept.error().message));
  BOOST_TEST(store.list("me")->size() == 1u);
  BOOST_TEST(store.find(kept->id, "me").has_value());
  for (const char* text : {R"({"name": 1, "owner": "me"})", R"({"name": "a", "owner": ["me"]})",
                           R"({"name": "a", "owner": "me", "created_at": "today"})", "[]", ""}) {
    std::ofstream(folder.path() / kept->id / "voice.json") << text;
    BOOST_TEST(store.list("me")->empty(), text);
    BOOST_TEST((store.find(kept->id, "me").error().code == Errc::not_found), text);
  }
}

namespace {
constexpr auto kFormType = "multipart/form-data; boundary=xyz";
std::string form(const std::vector<std::pair<std::string, std::string>>& fields, const std::string& file = wav(3)) {
  std::string out;
  for (const auto& [name, value] : fields)
    out += "--xyz\r\nContent-Disposition: form-data; name=\"" + name + "\"\r\n\r\n" + value + "\r\n";
  out +=
      "--xyz\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav\r\n\r\n";
  return out + file + "\r\n--xyz--\r\n";
}
Talk hear(const std::vector<std::pair<std::string, std::string>>& fields) {
  auto all = fields;
  all.emplace_back("model", "m");
  return Talk(TranscriptionRequest::make(kFormType, form(all), kHead));
}
ApiError hear_error(const std::vector<std::pair<std::string, std::string>>& fields, const std::string& file = wav(1)) {
  const auto made = TranscriptionRequest::make(kFormType, form(fields, file), kHead);
  BOOST_REQUIRE(!made);
  return made.error();
}
/// Two utterances, as silence splits them; the last answer is that of `flush`.
Talk& two(Talk& talk) {
  talk.event({{"type", "speech_started"}, {"sample", 1600}}).event({{"type", "speech_ended"}, {"sample", 16000}});
  talk.event({{"type", "noted"}, {"id", "1"}, {"text", "one."}, {"first_sample", 1600}, {"end_sample", 16000}});
  talk.event({{"type", "speech_started"}, {"sample", 32000}}).event({{"type", "speech_ended"}, {"sample", 64000}});
  talk.event({{"type", "noted"}, {"id", "2"}, {"text", "two."}, {"first_sample", 32000}, {"end_sample", 64000}});
  BOOST_TEST(!talk.request->is_over());
  return talk.event({{"type", "error"}, {"code", "no_speech"}, {"message", "nothing"}});
}
}  // namespace

BOOST_AUTO_TEST_CASE(utterances_are_collected_until_flush_finds_no_more) {
  auto talk = hear({});
  BOOST_TEST((talk.types() == std::vector<std::string>{"open", "sound", "flush"}));
  BOOST_TEST(talk.said[0]["tokenizer"] == "exact");
  BOOST_TEST(talk.said[0]["detection"]["answers"] == false);
  BOOST_TEST(talk.sound_bytes == 2u * (48000 + 32000));  // with the silence behind
  talk.event({{"type", "speech_started"}, {"sample", 1600}}).event({{"type", "speech_ended"}, {"sample", 16000}});
  talk.event({{"type", "error"}, {"code", "no_speech"}, {"message", "nothing"}});
  BOOST_TEST(!talk.request->is_over());  // it was a cough
  BOOST_TEST((talk.types() == std::vector<std::string>{"open", "sound", "flush", "flush"}));
  talk.event({{"type", "error"}, {"code", "no_speech"}, {"message", "nothing"}});
  BOOST_TEST(json::parse(talk.body)["text"] == "");
}

BOOST_AUTO_TEST_CASE(every_format_tells_the_same) {
  auto talk = hear({});
  two(talk);
  BOOST_TEST(json::parse(talk.body) ==
             json({{"text", "one. two."}, {"usage", {{"type", "duration"}, {"seconds", 3}}}}));
  auto text = hear({{"response_format", "text"}});
  BOOST_TEST(two(text).body == "one. two.\n");
  auto srt = hear({{"response_format", "srt"}});
  BOOST_TEST(two(srt).body == "1\n00:00:00,100 --> 00:00:01,000\none.\n\n2\n00:00:02,000 --> 00:00:03,000\ntwo.\n\n");
  auto vtt = hear({{"response_format", "vtt"}});
  BOOST_TEST(two(vtt).body ==
             "WEBVTT\n\n00:00:00.100 --> 00:00:01.000\none.\n\n00:00:02.000 --> 00:00:03.000\ntwo.\n\n");
  auto verbose =
      hear({{"response_format", "verbose_json"}, {"language", "en"}, {"timestamp_granularities[]", "segment"}});
  const auto told = json::parse(two(verbose).body);
  BOOST_TEST(told["duration"] == 3.0);
  BOOST_TEST(told["language"] == "en");
  BOOST_TEST(told["segments"][1]["start"] == 2.0);
  BOOST_TEST(told["segments"][1]["end"] == 3.0);  // not within the silence that was added
  auto stream = hear({{"stream", "true"}});
  const auto events = two(stream).events();
  BOOST_REQUIRE(events.size() == 3u);
  BOOST_TEST(json::parse(events[1]) == json({{"type", "transcript.text.delta"}, {"delta", " two."}}));
  BOOST_TEST(json::parse(events[2]) == json({{"type", "transcript.text.done"}, {"text", "one. two."}}));
}

BOOST_AUTO_TEST_CASE(silence_has_an_empty_transcript) {
  auto talk = hear({});
  talk.event({{"type", "error"}, {"code", "no_speech"}, {"message", "nothing"}});
  BOOST_TEST(json::parse(talk.body)["text"] == "");
}

BOOST_AUTO_TEST_CASE(what_is_wrong_is_named) {
  BOOST_TEST(hear_error({}).param == "model");
  BOOST_TEST(hear_error({{"model", "m"}, {"response_format", "xml"}}).param == "response_format");
  BOOST_TEST(hear_error({{"model", "m"}, {"stream", "maybe"}}).param == "stream");
  BOOST_TEST(hear_error({{"model", "m"}, {"temperature", "warm"}}).param == "temperature");
  BOOST_TEST(hear_error({{"model", "m"}, {"timestamp_granularities[]", "word"}}).param == "timestamp_granularities[]");
  BOOST_TEST(hear_error({{"model", "m"}, {"stream", "true"}, {"response_format", "srt"}}).param == "response_format");
  BOOST_TEST(hear_error({{"model", "m"}}, "this is no sound").param == "file");
  BOOST_TEST(hear_error({{"model", "m"}, {"file", "x"}}).param == "file");
  const auto none = TranscriptionRequest::make(
      kFormType, "--xyz\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n--xyz--", kHead);
  BOOST_TEST(none.error().param == "file");
  BOOST_TEST(TranscriptionRequest::make("application/json", "{}", kHead).error().status == 415);
}

BOOST_AUTO_TEST_CASE(a_form_is_read_strictly) {
  const auto good = form({{"a", ""}, {"b", "x\r\ny--xyz"}}, "bytes\r\n--xy");
  const auto read = read_form(kFormType, good);
  BOOST_REQUIRE(read);
  BOOST_REQUIRE(read->size() == 3u);
  BOOST_TEST((*read)[1].data == "x\r\ny--xyz");
  BOOST_TEST((*read)[2].data == "bytes\r\n--xy");
  BOOST_TEST((*read)[2].filename == "a.wav");
  BOOST_TEST(read_form("Multipart/Form-Data; charset=x; Boundary=\"xyz\"", good).has_value());
  // Cut anywhere it is refused, and never read beyond its end.
  for (std::size_t n = 0; n + 4 < good.size(); ++n) {
    const std::string cut(good.data(), n);
    BOOST_REQUIRE(!read_form(kFormType, cut));
  }
  for (const std::string type :
       {"multipart/form-data", "multipart/form-data; boundary=", "text/plain", "multipart/form-data; boundary=other"})
    BOOST_TEST(!read_form(type, good));
  std::string many;
  for (int i = 0; i < 65; ++i) many += "--xyz\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n";
  BOOST_TEST(!read_form(kFormType, many + "--xyz--"));
  BOOST_TEST(!read_form(kFormType, "--xyz\r\nX: y\r\n\r\n\r\n--xyz--"));
  BOOST_TEST(header_parameter(R"(form-data; name="a\"b;c"; filename=d)", "name") == "a\"b;c");
  BOOST_TEST(header_parameter(R"(form-data; name="a\"b;c"; filename=d)", "filename") == "d");
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(keys)

// Of "secret" and "other".
const std::string kSecret = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
const std::string kOther = "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";

BOOST_AUTO_TEST_CASE(keys_are_known_by_their_digests) {
  const auto keys = ApiKeys::parse("# who\n" + kSecret + " anna sessions=1\n\n" + kOther + "\tben # no limits\n", "f");
  BOOST_REQUIRE_MESSAGE(keys, (keys ? "" : keys.error().message));
  BOOST_TEST(keys->size() == 2u);
  BOOST_TEST(keys->name(*keys->find("Bearer secret")) == "anna");
  BOOST_TEST(keys->name(*keys->find("bearer   other ")) == "ben");
  for (const std::string no : {"", "Bearer ", "Bearer", "Basic secret", "Bearer Secret", "secret", "Bearer secretx"})
    BOOST_TEST(!keys->find(no), no);
  BOOST_TEST(!keys->find("Bearer " + kSecret));
}

BOOST_AUTO_TEST_CASE(limits_are_kept) {
  auto keys = *ApiKeys::parse(kSecret + " anna sessions=2 requests_per_minute=60\n" + kOther + " ben", "f");
  BOOST_TEST(keys.begin_session(0));
  BOOST_TEST(keys.begin_session(0));
  BOOST_TEST(!keys.begin_session(0));
  keys.end_session(0);
  BOOST_TEST(keys.begin_session(0));
  for (int i = 0; i < 100; ++i) BOOST_TEST(keys.begin_session(1));
  Time now{};
  for (int i = 0; i < 60; ++i) BOOST_TEST(!keys.take_request(0, now));
  const auto wait = keys.take_request(0, now);
  BOOST_REQUIRE(wait);
  BOOST_TEST(wait->count() <= 1001);
  BOOST_TEST(!keys.take_request(0, now + *wait));
  BOOST_TEST(keys.take_request(0, now + *wait).has_value());
  BOOST_TEST(!keys.take_request(1, now));
}

BOOST_AUTO_TEST_CASE(a_wrong_file_is_told_by_its_line) {
  const auto why = [](const std::string& text) { return ApiKeys::parse(text, "f").error().message; };
  BOOST_TEST(why("").find("has no keys") != std::string::npos);
  BOOST_TEST(why("\nabc anna").find("'f' line 2") != std::string::npos);
  BOOST_TEST(why(kSecret).find("names nobody") != std::string::npos);
  BOOST_TEST(why(kSecret + " a sessions=0").find("sessions '0'") != std::string::npos);
  BOOST_TEST(why(kSecret + " a sessions=x").find("sessions 'x'") != std::string::npos);
  BOOST_TEST(why(kSecret + " a colour=3").find("colour=3") != std::string::npos);
  BOOST_TEST(why(kSecret + " a\n" + kSecret + " b").find("repeats the key of 'a'") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(what_makes_no_sense_of_a_session_fails_its_request_alone) {
  const json body{{"messages", json::array({{{"role", "user"}, {"content", "hi"}}})}};
  auto talk = chat(body);
  talk.text("tool_call", R"({"id":"c","name":["f"],"arguments":{}})");
  BOOST_TEST(talk.head.status == 500);
  BOOST_TEST(talk.request->is_over());
  auto other = chat(body);
  other.turn({{"usage", {{"prompt_tokens", "many"}}}});
  BOOST_TEST(other.head.status == 500);
}

BOOST_AUTO_TEST_CASE(no_top_p_is_wrong_without_its_name) {
  const json body{{"messages", json::array({{{"role", "user"}, {"content", "hi"}}})}};
  auto greedy = body, wrong = body;
  greedy["top_p"] = 0;
  wrong["top_p"] = -0.1;
  BOOST_TEST(chat(greedy).said[0]["top_p"].get<double>() == 0.001);
  BOOST_TEST(chat_error(wrong).param == "top_p");
}

BOOST_AUTO_TEST_CASE(a_long_form_field_is_not_told_back) {
  const auto part = [](const std::string& name, const std::string& value) {
    return "--b\r\nContent-Disposition: form-data; name=\"" + name + "\"\r\n\r\n" + value + "\r\n";
  };
  const auto body = part("model", "m") + part(std::string(3000, 'n'), "x") +
                    part("response_format", std::string(4000, 'f')) + part("file", wav(1)) + "--b--\r\n";
  const auto made = TranscriptionRequest::make("multipart/form-data; boundary=b", body, kHead);
  BOOST_REQUIRE(!made);
  BOOST_TEST(made.error().param == "response_format");
  BOOST_TEST(made.error().message.size() < 200u);
}

BOOST_AUTO_TEST_SUITE_END()
