#define BOOST_TEST_MODULE realtime
#include <boost/test/unit_test.hpp>
#include <random>

#include "common/base/pcm.hpp"
#include "tests/services/gateway/realtime_rig.hpp"

namespace parlando::gateway {
namespace {

using Rig = RealtimeRig;

const std::string kMessageEnd =
    "response.output_audio.done response.output_audio_transcript.done response.content_part.done "
    "conversation.item.done response.output_item.done";
const std::string kMessageBegin = "response.output_item.added conversation.item.added response.content_part.added";

json user_text(const std::string& text, const std::string& id = {}) {
  json item{{"type", "message"}, {"role", "user"}, {"content", {{{"type", "input_text"}, {"text", text}}}}};
  if (!id.empty()) item["id"] = id;
  return {{"type", "conversation.item.create"}, {"item", std::move(item)}};
}
const json kCreate{{"type", "response.create"}};
const json kCancel{{"type", "response.cancel"}};
const json kCommit{{"type", "input_audio_buffer.commit"}};
const json kClear{{"type", "input_audio_buffer.clear"}};

BOOST_AUTO_TEST_SUITE(sessions)

BOOST_AUTO_TEST_CASE(a_session_is_told_in_full_and_opened_at_once) {
  Rig rig({.model = "gpt-realtime"});
  BOOST_TEST(rig.types() == "session.created");
  const auto& session = rig.last("session.created")["session"];
  BOOST_TEST(session["type"] == "realtime");
  BOOST_TEST(session["model"] == "gpt-realtime");
  BOOST_TEST(session["output_modalities"] == json({"audio"}));
  BOOST_TEST(session["audio"]["input"]["format"] == json({{"type", "audio/pcm"}, {"rate", 24000}}));
  BOOST_TEST(session["audio"]["input"]["turn_detection"]["interrupt_response"] == true);
  BOOST_TEST(!session["audio"]["input"].contains("transcription"));
  BOOST_TEST(rig.told_types() == "(begin) open");
  BOOST_TEST(rig.last_told("open")["detection"]["type"] == "silence");
  BOOST_TEST(rig.last_told("open")["tools"] == json::array());
  BOOST_TEST(!rig.last_told("open").contains("lead_ms"));
}

BOOST_AUTO_TEST_CASE(an_update_is_merged_deeply_and_answered_in_full) {
  Rig rig;
  rig.skip();
  rig.update({{"instructions", "Be brief."},
              {"audio",
               {{"input",
                 {{"noise_reduction", nullptr},
                  {"transcription", {{"model", "gpt-4o-transcribe"}, {"prompt", "x"}, {"keywords", {"a"}}}},
                  {"turn_detection", {{"type", "server_vad"}, {"silence_duration_ms", 300}}}}},
                {"output", {{"voice", "marin"}}}}},
              {"tracing", "auto"},
              {"truncation", "auto"},
              {"max_output_tokens", 40}});
  rig.update({{"audio", {{"input", {{"turn_detection", {{"threshold", 0.7}}}}}}}, {"instructions", "Be long."}});
  BOOST_TEST(rig.types() == "session.updated session.updated");
  const auto session = rig.last("session.updated")["session"];
  BOOST_TEST(session["instructions"] == "Be long.");
  const auto& input = session["audio"]["input"];
  BOOST_TEST(input["turn_detection"]["silence_duration_ms"] == 300);
  BOOST_TEST(input["turn_detection"]["threshold"] == 0.7);
  // A key that no other client knows would end its reader.
  BOOST_TEST(input["transcription"] == json({{"model", "gpt-4o-transcribe"}, {"prompt", "x"}}));
  BOOST_TEST(session["audio"]["output"]["voice"] == "marin");
  BOOST_TEST(session["max_output_tokens"] == 40);
  BOOST_TEST(rig.told_types() == "configure configure");
  const auto& configured = rig.last_told("configure");
  BOOST_TEST(configured["system"] == "Be long.");
  BOOST_TEST(configured["detection"]["threshold"] == 0.7);
  BOOST_TEST(!configured.contains("max_tokens"));  // as it was
}

BOOST_AUTO_TEST_CASE(null_turns_detection_off_and_a_new_type_begins_with_its_defaults) {
  Rig rig;
  rig.without_detection();
  BOOST_TEST(rig.last("session.updated")["session"]["audio"]["input"]["turn_detection"].is_null());
  BOOST_TEST(rig.last_told("configure")["detection"]["type"] == "none");
  BOOST_TEST(rig.last_told("configure")["detection"]["answers"] == false);
  rig.update({{"audio", {{"input", {{"turn_detection", {{"type", "semantic_vad"}, {"eagerness", "high"}}}}}}}});
  const auto& detection = rig.last("session.updated")["session"]["audio"]["input"]["turn_detection"];
  BOOST_TEST(
      detection ==
      json({{"type", "semantic_vad"}, {"eagerness", "high"}, {"create_response", true}, {"interrupt_response", true}}));
  BOOST_TEST(rig.last_told("configure")["detection"]["type"] == "semantic");
  BOOST_TEST(rig.last_told("configure")["detection"]["eagerness"] == "high");
  BOOST_TEST(rig.last_told("configure")["detection"]["answers"] == true);
}

BOOST_AUTO_TEST_CASE(a_wrong_update_changes_nothing_and_names_the_field) {
  const std::pair<json, std::string> cases[] = {
      {{{"audio", {{"output", {{"voice", 7}}}}}}, "session.audio.output.voice"},
      {{{"audio", {{"output", {{"speed", 9}}}}}}, "session.audio.output.speed"},
      {{{"audio", {{"input", {{"format", {{"type", "audio/aac"}}}}}}}}, "session.audio.input.format.type"},
      {{{"audio", {{"input", {{"format", {{"type", "audio/pcm"}, {"rate", 48000}}}}}}}},
       "session.audio.input.format.rate"},
      {{{"audio", {{"input", {{"turn_detection", {{"type", "magic"}}}}}}}}, "session.audio.input.turn_detection.type"},
      {{{"audio", "loud"}}, "session.audio"},
      {{{"output_modalities", {"smell"}}}, "session.output_modalities"},
      {{{"tools", {{{"type", "mcp"}}}}}, "session.tools[0].type"},
      {{{"tools", {{{"type", "function"}, {"name", "no good"}}}}}, "session.tools[0].name"},
      {{{"tool_choice", "maybe"}}, "session.tool_choice"},
      {{{"max_output_tokens", 0}}, "session.max_output_tokens"},
      {{{"instructions", std::string(40000, 'x')}}, "session.instructions"},
      {{{"type", "transcription"}}, "session.type"},
      {{{"type", nullptr}}, "session.type"},
  };
  for (const auto& [session, param] : cases) {
    Rig rig;
    rig.skip();
    auto whole = session;
    whole["instructions"] = whole.value("instructions", "changed");
    if (!whole.contains("type")) whole["type"] = "realtime";
    rig.say({{"type", "session.update"}, {"event_id", "mine"}, {"session", whole}});
    BOOST_TEST_CONTEXT(param) {
      BOOST_TEST(rig.types() == "error");
      BOOST_TEST(rig.last("error")["error"]["param"] == param);
      BOOST_TEST(rig.last("error")["error"]["event_id"] == "mine");
      BOOST_TEST(rig.told_types().empty());
      rig.update(json::object());
      BOOST_TEST(rig.last("session.updated")["session"]["instructions"] == "");
    }
  }
}

BOOST_AUTO_TEST_CASE(tools_and_their_choice_become_those_of_the_conversation) {
  Rig rig;
  const json tool{{"type", "function"}, {"name", "get_time"}, {"parameters", {{"type", "object"}}}, {"strict", true}};
  rig.update({{"tools", {tool}}, {"tool_choice", {{"type", "function"}, {"name", "get_time"}}}});
  BOOST_TEST(rig.last("session.updated")["session"]["tools"] ==
             json({{{"type", "function"}, {"name", "get_time"}, {"parameters", {{"type", "object"}}}}}));
  BOOST_TEST(rig.last_told("configure")["tools"] ==
             json({{{"name", "get_time"}, {"parameters", {{"type", "object"}}}}}));
  BOOST_TEST(rig.last_told("configure")["tool_choice"] == "get_time");
  rig.update({{"tools", nullptr}, {"tool_choice", "auto"}});
  BOOST_TEST(rig.last_told("configure")["tools"] == json::array());
}

BOOST_AUTO_TEST_CASE(voices_of_other_servers_mean_the_configured_one) {
  Rig rig;
  BOOST_TEST(rig.last_told("open")["speaker"] == "");
  rig.update({{"audio", {{"output", {{"voice", {{"id", "Clara"}}}}}}}});
  BOOST_TEST(rig.last("session.updated")["session"]["audio"]["output"]["voice"] == "Clara");
  BOOST_TEST(rig.last_told("configure")["speaker"] == "Clara");
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_AUTO_TEST_SUITE(flows)

BOOST_AUTO_TEST_CASE(a_spoken_turn) {
  Rig rig;
  rig.update({{"audio", {{"input", {{"transcription", {{"model", "whisper-1"}}}}}}}});
  rig.skip();
  rig.append_ms(1500);
  BOOST_TEST(rig.heard.size() >= 1400 * 32u);
  rig.tell({{"type", "speech_started"}, {"sample", 1600}});
  rig.tell({{"type", "speech_ended"}, {"sample", 17600}});
  BOOST_TEST(rig.types() ==
             "input_audio_buffer.speech_started input_audio_buffer.speech_stopped input_audio_buffer.committed "
             "conversation.item.added conversation.item.done");
  const auto item = rig.last("input_audio_buffer.speech_started")["item_id"];
  BOOST_TEST(rig.last("input_audio_buffer.speech_started")["audio_start_ms"] == 100);
  BOOST_TEST(rig.last("input_audio_buffer.speech_stopped")["audio_end_ms"] == 1100);
  BOOST_TEST(rig.last("input_audio_buffer.committed")["item_id"] == item);
  BOOST_TEST(rig.last("conversation.item.added")["item"]["id"] == item);
  rig.text(1, "what is ", "transcript").text(1, "the time", "transcript");
  BOOST_TEST(rig.types() ==
             "conversation.item.input_audio_transcription.delta response.created "
             "conversation.item.input_audio_transcription.delta");
  rig.text(1, "It is ").sound(1, 4410).text(1, "noon.").sound(1, 4410).turn(1);
  BOOST_TEST(rig.types() == "conversation.item.input_audio_transcription.completed " + kMessageBegin +
                                " response.output_audio_transcript.delta response.output_audio.delta "
                                "response.output_audio_transcript.delta response.output_audio.delta " +
                                kMessageEnd + " response.done");
  const auto& completed = rig.last("conversation.item.input_audio_transcription.completed");
  BOOST_TEST(completed["transcript"] == "what is the time");
  BOOST_TEST(completed["usage"] == json({{"type", "duration"}, {"seconds", 1.0}}));
  const auto& response = rig.last("response.done")["response"];
  BOOST_TEST(response["status"] == "completed");
  BOOST_TEST(!response.contains("status_details"));
  BOOST_TEST(response["output"][0]["content"][0] == json({{"type", "output_audio"}, {"transcript", "It is noon."}}));
  BOOST_TEST(response["usage"]["input_tokens"] == 50);
  BOOST_TEST(rig.last("response.output_item.added")["item"]["status"] == "in_progress");
  // 8820 samples at 22.05 kHz last 400 ms.
  BOOST_TEST(rig.sound_bytes(response["id"]) == 9600 * 2u);
  // Its user's item stands in front of the answer's.
  rig.say(user_text("next", "item_next"));
  BOOST_TEST(rig.last("conversation.item.added")["previous_item_id"] == response["output"][0]["id"]);
}

BOOST_AUTO_TEST_CASE(push_to_talk) {
  Rig rig;
  rig.without_detection();
  rig.skip();
  rig.append_ms(1000).tell({{"type", "speech_started"}, {"sample", 100}});
  BOOST_TEST(rig.types().empty());  // nobody listens for speech
  rig.say(kCommit).say(kCreate);
  BOOST_TEST(rig.types() ==
             "input_audio_buffer.committed conversation.item.added conversation.item.done response.created");
  BOOST_TEST(rig.told_types() == "flush respond");
  // The transcript's turn is none: the utterance is noted, and the answer's turn comes with the same number.
  rig.text(1, "hello", "transcript");
  rig.tell({{"type", "noted"}, {"id", "u7"}, {"text", "hello"}, {"first_sample", 0}, {"end_sample", 16000}});
  rig.text(1, "Hi.").sound(1, 2205).turn(1);
  BOOST_TEST(rig.types() == kMessageBegin + " response.output_audio_transcript.delta response.output_audio.delta " +
                                kMessageEnd + " response.done");
  const auto user = rig.last("input_audio_buffer.committed")["item_id"].get<std::string>();
  rig.say({{"type", "conversation.item.retrieve"}, {"item_id", user}});
  BOOST_TEST(rig.last("conversation.item.retrieved")["item"]["content"] ==
             json({{{"type", "input_audio"}, {"transcript", "hello"}}}));
  rig.say({{"type", "conversation.item.delete"}, {"item_id", user}});
  BOOST_TEST(rig.last_told("forget")["item"] == "u7");
}

BOOST_AUTO_TEST_CASE(a_commit_of_nothing_is_refused_with_its_code) {
  Rig rig;
  rig.without_detection();
  rig.say(kCommit);
  BOOST_TEST(rig.last("error")["error"]["code"] == "input_audio_buffer_commit_empty");
  rig.append_ms(50).say(kCommit);
  BOOST_TEST(rig.count("error") == 2u);
  rig.append_ms(100).say(kCommit);
  BOOST_TEST(rig.count("error") == 2u);
  rig.say(kCommit);
  BOOST_TEST(rig.count("error") == 3u);
}

BOOST_AUTO_TEST_CASE(what_is_cleared_is_forgotten_unheard) {
  Rig rig;
  rig.without_detection();
  rig.append_ms(700);
  rig.skip();
  rig.say(kClear);
  BOOST_TEST(rig.types() == "input_audio_buffer.cleared");
  BOOST_TEST(rig.told_types() == "flush");
  rig.text(1, "secret", "transcript");
  rig.tell({{"type", "noted"}, {"id", "u1"}, {"text", "secret"}, {"first_sample", 0}, {"end_sample", 1000}});
  BOOST_TEST(rig.types().empty());
  BOOST_TEST(rig.told_types() == "forget");
  rig.say(kClear).say(kCommit);
  BOOST_TEST(rig.types() == "input_audio_buffer.cleared error");
  BOOST_TEST(rig.told_types().empty());
}

BOOST_AUTO_TEST_CASE(a_client_may_commit_before_the_detector_does) {
  Rig rig;
  rig.append_ms(800).tell({{"type", "speech_started"}, {"sample", 1600}});
  const auto item = rig.last("input_audio_buffer.speech_started")["item_id"];
  rig.skip();
  rig.say(kCommit);
  BOOST_TEST(rig.types() == "input_audio_buffer.committed conversation.item.added conversation.item.done");
  BOOST_TEST(rig.last("input_audio_buffer.committed")["item_id"] == item);
  rig.tell({{"type", "speech_ended"}, {"sample", 12000}}).text(1, "hello", "transcript").text(1, "Hi.").turn(1);
  BOOST_TEST(rig.types() == "response.created " + kMessageBegin + " response.output_audio_transcript.delta " +
                                kMessageEnd + " response.done");
}

BOOST_AUTO_TEST_CASE(silence_that_is_committed_has_an_empty_transcript) {
  Rig rig({.transcription = true});
  rig.append_ms(500).say(kCommit);
  rig.skip();
  rig.tell({{"type", "error"}, {"code", "no_speech"}, {"message", "no speech"}});
  BOOST_TEST(rig.types() == "conversation.item.input_audio_transcription.completed");
  BOOST_TEST(rig.last("conversation.item.input_audio_transcription.completed")["transcript"] == "");
}

BOOST_AUTO_TEST_CASE(a_typed_turn_keeps_the_clients_id) {
  Rig rig;
  rig.skip();
  rig.say(user_text("what is the time", "0123456789abcdef0123456789abcdef")).say(kCreate);
  BOOST_TEST(rig.types() == "conversation.item.added conversation.item.done response.created");
  BOOST_TEST(rig.last("conversation.item.added")["item"]["id"] == "0123456789abcdef0123456789abcdef");
  BOOST_TEST(rig.last("conversation.item.added")["previous_item_id"].is_null());
  BOOST_TEST(rig.told_types() == "item respond");
  BOOST_TEST(rig.last_told("item")["text"] == "what is the time");
  rig.text(1, "Noon.").sound(1, 100).turn(1);
  BOOST_TEST(rig.last("conversation.item.added")["previous_item_id"] == "0123456789abcdef0123456789abcdef");
  BOOST_TEST(rig.last("response.done")["response"]["status"] == "completed");
}

BOOST_AUTO_TEST_CASE(a_response_echoes_its_metadata_and_has_settings_of_its_own) {
  Rig rig;
  rig.skip();
  rig.say({{"type", "response.create"},
           {"response",
            {{"instructions", "Say hello."},
             {"metadata", {{"client_event_id", "response_create_1"}}},
             {"output_modalities", {"text"}},
             {"max_output_tokens", "inf"},
             {"tool_choice", nullptr}}}});
  BOOST_TEST(rig.last("response.created")["response"]["metadata"] == json({{"client_event_id", "response_create_1"}}));
  const auto& respond = rig.last_told("respond");
  BOOST_TEST(respond["system"] == "Say hello.");
  BOOST_TEST(respond["speak"] == false);
  BOOST_TEST(!respond.contains("tools"));
  rig.types();
  rig.text(1, "Hello ").text(1, "you.").turn(1);
  BOOST_TEST(rig.types() == kMessageBegin +
                                " response.output_text.delta response.output_text.done "
                                "response.content_part.done conversation.item.done "
                                "response.output_item.done response.done");
  BOOST_TEST(rig.last("response.done")["response"]["metadata"]["client_event_id"] == "response_create_1");
  BOOST_TEST(rig.last("response.content_part.done")["part"] == json({{"type", "text"}, {"text", "Hello you."}}));
  rig.say({{"type", "response.create"}, {"response", {{"instructions", nullptr}}}});
  BOOST_TEST(rig.last_told("respond").size() == 2u);  // type and talk
}

BOOST_AUTO_TEST_CASE(a_tool_call_and_its_answer_are_two_responses_of_one_turn) {
  Rig rig;
  rig.update({{"tools", {{{"type", "function"}, {"name", "get_time"}}}}});
  rig.spoken(1, "what time is it");
  rig.skip();
  rig.call(1, "call_a", "get_time", {{"zone", "utc"}}).tell({{"type", "waiting"}, {"turn", 1}, {"calls", 1}});
  BOOST_TEST(rig.types() ==
             "response.output_item.added conversation.item.added response.function_call_arguments.delta "
             "response.function_call_arguments.done conversation.item.done response.output_item.done response.done");
  const auto& added = rig.last("response.output_item.added")["item"];
  BOOST_TEST(added["status"] == "in_progress");
  const auto call_id = added["call_id"].get<std::string>();
  BOOST_TEST(call_id != "call_a");  // numbers of turns come again, and those of their calls with them
  BOOST_TEST(added["arguments"] == "");
  const auto& done = rig.last("response.output_item.done")["item"];
  BOOST_TEST(done["status"] == "completed");
  BOOST_TEST(done["arguments"] == R"({"zone":"utc"})");
  BOOST_TEST(rig.last("response.function_call_arguments.done")["name"] == "get_time");
  BOOST_TEST(rig.last("response.done")["response"]["output"][0]["type"] == "function_call");
  rig.say({{"type", "conversation.item.create"},
           {"item", {{"type", "function_call_output"}, {"call_id", call_id}, {"output", "12:00"}}}});
  BOOST_TEST(rig.types() == "conversation.item.added conversation.item.done");
  BOOST_TEST(rig.told_types().empty());  // it would answer before the client asks
  rig.say(kCreate);
  BOOST_TEST(rig.types() == "response.created");
  BOOST_TEST(rig.told_types() == "tool_output");
  BOOST_TEST(rig.last_told("tool_output")["output"] == "12:00");
  BOOST_TEST(rig.last_told("tool_output")["call"] == "call_a");
  rig.text(1, "Noon.").sound(1, 2205).turn(1);
  BOOST_TEST(rig.types() == kMessageBegin + " response.output_audio_transcript.delta response.output_audio.delta " +
                                kMessageEnd + " response.done");
  BOOST_TEST(rig.count("response.done") == 2u);
}

BOOST_AUTO_TEST_CASE(an_output_may_precede_the_end_of_the_response) {
  Rig rig;
  rig.spoken(1, "what time is it").call(1, "call_a", "get_time", json::object());
  rig.say({{"type", "conversation.item.create"},
           {"item", {{"type", "function_call_output"}, {"call_id", rig.call_id()}, {"output", "12:00"}}}});
  rig.say({{"type", "response.create"}, {"event_id", "e1"}});
  BOOST_TEST(rig.last("error")["error"]["code"] == "conversation_already_has_active_response");
  BOOST_TEST(rig.last("error")["error"]["event_id"] == "e1");
  rig.skip();
  rig.tell({{"type", "waiting"}, {"turn", 1}, {"calls", 1}}).say(kCreate);
  BOOST_TEST(rig.types() == "response.done response.created");
  BOOST_TEST(rig.told_types() == "tool_output");
}

BOOST_AUTO_TEST_CASE(parallel_calls_wait_for_each_other) {
  Rig rig;
  rig.spoken(1, "both").call(1, "a", "get_time", json::object()).call(1, "b", "get_date", json::object());
  rig.tell({{"type", "waiting"}, {"turn", 1}, {"calls", 2}});
  BOOST_TEST(rig.last("response.done")["response"]["output"].size() == 2u);
  const auto ids = rig.last("response.done")["response"]["output"];
  BOOST_TEST(ids[0]["call_id"] != ids[1]["call_id"]);
  const auto output = [&](int i) {
    rig.say({{"type", "conversation.item.create"},
             {"item", {{"type", "function_call_output"}, {"call_id", ids[i]["call_id"]}, {"output", "x"}}}});
  };
  output(0);
  rig.skip();
  rig.say(kCreate);
  BOOST_TEST(rig.types() == "response.created");
  BOOST_TEST(rig.told_types() == "tool_output");
  output(1);  // the response that was asked for goes on now
  BOOST_TEST(rig.told_types() == "tool_output");
  rig.text(1, "Done.").turn(1);
  BOOST_TEST(rig.last("response.done")["response"]["status"] == "completed");
}

BOOST_AUTO_TEST_CASE(a_response_without_any_output_tells_the_model_so) {
  Rig rig;
  rig.spoken(1, "x").call(1, "a", "get_time", json::object()).tell({{"type", "waiting"}, {"turn", 1}, {"calls", 1}});
  rig.say(kCreate);
  BOOST_TEST(rig.last_told("tool_output")["output"].get<std::string>().find("not answered") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(outputs_of_a_turn_that_is_over_are_told_all_the_same) {
  Rig rig;
  rig.spoken(1, "x").call(1, "a", "get_time", json::object()).tell({{"type", "waiting"}, {"turn", 1}, {"calls", 1}});
  rig.say({{"type", "conversation.item.create"},
           {"item", {{"type", "function_call_output"}, {"call_id", rig.call_id()}, {"output", "12"}}}});
  rig.skip();
  rig.turn(1);
  BOOST_TEST(rig.told_types() == "tool_output");
  rig.say({{"type", "conversation.item.create"},
           {"item", {{"type", "function_call_output"}, {"call_id", "late"}, {"output", "13"}}}});
  BOOST_TEST(rig.told_types() == "item");
  BOOST_TEST(rig.last_told("item")["calls"] == "late");
  rig.say(kCreate);
  BOOST_TEST(rig.told_types() == "respond");
}

BOOST_AUTO_TEST_CASE(sound_behind_a_call_is_heard_with_the_next_response) {
  Rig rig;
  rig.spoken(1, "x").text(1, "Let me see.").sound(1, 1000).call(1, "a", "get_time", json::object());
  rig.tell({{"type", "waiting"}, {"turn", 1}, {"calls", 1}}).sound(1, 3000);
  rig.skip();
  rig.say(kCreate);
  BOOST_TEST(rig.types().starts_with("response.created " + kMessageBegin + " response.output_audio.delta"));
  rig.text(1, "Noon.").sound(1, 2000);
  const auto id = rig.last("response.output_item.added")["item"]["id"];
  // The message begins where the first response's sound ended.
  rig.say({{"type", "conversation.item.truncate"}, {"item_id", id}, {"content_index", 0}, {"audio_end_ms", 50}});
  BOOST_TEST(rig.last_told("truncate")["samples"] == 1000 + 50 * 22050 / 1000);
}

BOOST_AUTO_TEST_CASE(a_voice_interrupts_the_answer) {
  Rig rig;
  rig.spoken(1, "tell me a story").text(1, "Once upon a time").sound(1, 22050);
  const auto message = rig.last("response.output_item.added")["item"]["id"].get<std::string>();
  rig.skip();
  rig.tell({{"type", "hold"}, {"turn", 1}});
  rig.tell({{"type", "interrupted"}, {"turn", 1}, {"samples", 22050}, {"heard", "Once upon"}});
  BOOST_TEST(rig.types() == kMessageEnd + " response.done");
  BOOST_TEST(rig.last("response.done")["response"]["status"] == "cancelled");
  BOOST_TEST(rig.last("response.done")["response"]["status_details"] ==
             json({{"type", "cancelled"}, {"reason", "turn_detected"}}));
  BOOST_TEST(rig.last("response.output_item.done")["item"]["status"] == "incomplete");
  rig.turn(1).tell({{"type", "speech_started"}, {"sample", 40000}});
  BOOST_TEST(rig.types() == "input_audio_buffer.speech_started");
  rig.say({{"type", "conversation.item.truncate"}, {"item_id", message}, {"content_index", 0}, {"audio_end_ms", 333}});
  BOOST_TEST(rig.types() == "conversation.item.truncated");
  BOOST_TEST(rig.last("conversation.item.truncated")["audio_end_ms"] == 333);
  BOOST_TEST(rig.last_told("truncate")["turn"] == 1);
  BOOST_TEST(rig.last_told("truncate")["samples"] == 333 * 22050 / 1000);
  rig.say({{"type", "conversation.item.retrieve"}, {"item_id", message}});
  BOOST_TEST(rig.types() == "conversation.item.retrieved");
}

BOOST_AUTO_TEST_CASE(a_truncation_beyond_the_end_is_clamped) {
  Rig rig;
  rig.spoken(1, "x").text(1, "Hi.").sound(1, 1000).turn(1);
  const auto id = rig.last("response.output_item.added")["item"]["id"];
  rig.say({{"type", "conversation.item.truncate"}, {"item_id", id}, {"content_index", 0}, {"audio_end_ms", 99999}});
  BOOST_TEST(rig.last_told("truncate")["samples"] == 1000);
  rig.say({{"type", "conversation.item.truncate"}, {"item_id", id}, {"content_index", 0}, {"audio_end_ms", 0}});
  BOOST_TEST(rig.last_told("truncate")["samples"] == 0);
  BOOST_TEST(rig.count("error") == 0u);
}

BOOST_AUTO_TEST_CASE(a_client_cancels_and_what_was_said_stays) {
  Rig rig;
  rig.spoken(1, "tell me a story").text(1, "Once upon").sound(1, 500);
  rig.skip();
  rig.say(kCancel);
  BOOST_TEST(rig.types() == kMessageEnd + " response.done");
  BOOST_TEST(rig.last("response.done")["response"]["status_details"]["reason"] == "client_cancelled");
  // The turn is stored as far as it was told.
  BOOST_TEST(rig.told_types() == "truncate");
  BOOST_TEST(rig.last_told("truncate")["samples"] == 500);
  // What was on its way is nobody's, and nothing else is asked for before its end.
  rig.say(kCreate);
  BOOST_TEST(rig.types() == "response.created");
  rig.text(1, " a time").sound(1, 500);
  rig.tell({{"type", "interrupted"}, {"turn", 1}, {"samples", 500}, {"heard", "Once"}});
  BOOST_TEST(rig.told_types().empty());
  rig.turn(1);
  BOOST_TEST(rig.types().empty());
  BOOST_TEST(rig.told_types() == "respond");
  rig.text(2, "Yes?").turn(2);
  BOOST_TEST(rig.last("response.done")["response"]["status"] == "completed");
}

BOOST_AUTO_TEST_CASE(a_cancel_before_the_turn_is_known_drops_the_right_one) {
  Rig rig;
  rig.say(user_text("hello", "h1")).say(kCreate).say(kCancel);
  BOOST_TEST(!rig.last_told("cancel").contains("turn"));
  rig.say(user_text("again", "h2")).say(kCreate);
  rig.skip();
  rig.text(1, "Hello!").sound(1, 100).tell({{"type", "cancelled"}, {"turn", 1}});
  BOOST_TEST(rig.types().empty());
  rig.text(1, "Again!").turn(1);
  BOOST_TEST(rig.last("response.done")["response"]["output"][0]["content"][0]["transcript"] == "Again!");
  BOOST_TEST(rig.count("response.done") == 2u);
}

BOOST_AUTO_TEST_CASE(a_response_that_waits_for_its_turn_may_be_cancelled) {
  Rig rig;
  rig.spoken(1, "x").text(1, "Hi.").say(kCancel).say(kCreate);
  rig.skip();
  rig.say(kCancel).turn(1);
  BOOST_TEST(rig.types() == "response.done");
  BOOST_TEST(rig.told_types().empty());
}

BOOST_AUTO_TEST_CASE(an_interrupted_turn_ends_before_the_next_is_asked_for) {
  Rig rig;
  rig.spoken(1, "x").text(1, "Hi.");
  rig.tell({{"type", "interrupted"}, {"turn", 1}, {"samples", 0}, {"heard", ""}});
  rig.skip();
  rig.say(kCreate);
  BOOST_TEST(rig.told_types().empty());
  rig.turn(1);
  BOOST_TEST(rig.told_types() == "respond");
}

BOOST_AUTO_TEST_CASE(a_cancel_of_nothing_has_its_code_and_its_words) {
  Rig rig;
  rig.say(kCancel);
  const auto& error = rig.last("error")["error"];
  BOOST_TEST(error["code"] == "response_cancel_not_active");
  BOOST_TEST(error["message"].get<std::string>().starts_with("Cancellation failed"));
}

BOOST_AUTO_TEST_CASE(a_voice_before_the_answer_was_understood_drops_it) {
  Rig rig;
  rig.append_ms(2000).tell({{"type", "speech_started"}, {"sample", 100}});
  rig.tell({{"type", "speech_ended"}, {"sample", 9000}});
  rig.text(1, "hal", "transcript");
  rig.skip();
  rig.tell({{"type", "cancelled"}, {"turn", 1}});
  BOOST_TEST(rig.types() == "response.done");
  BOOST_TEST(rig.last("response.done")["response"]["status"] == "cancelled");
}

BOOST_AUTO_TEST_CASE(an_utterance_that_is_dropped_unheard_does_not_stand_in_the_way) {
  Rig rig;
  rig.update({{"audio", {{"input", {{"transcription", {{"model", "whisper-1"}}}}}}}});
  rig.append_ms(2000).tell({{"type", "speech_started"}, {"sample", 100}});
  rig.tell({{"type", "speech_ended"}, {"sample", 9000}});
  rig.skip();
  rig.tell({{"type", "cancelled"}, {"turn", 1}});
  BOOST_TEST(rig.types() == "conversation.item.input_audio_transcription.completed");
  rig.spoken(1, "the second one", 10000);
  const auto user = rig.last("input_audio_buffer.committed")["item_id"].get<std::string>();
  BOOST_TEST(rig.last("conversation.item.input_audio_transcription.delta")["item_id"] == user);
  rig.text(1, "Yes.").turn(1).say(kCreate);
  BOOST_TEST(rig.count("error") == 0u);
}

BOOST_AUTO_TEST_CASE(a_turn_that_fails_is_a_response_that_has_failed) {
  Rig rig;
  rig.spoken(1, "x").text(1, "Hi");
  rig.skip();
  rig.tell({{"type", "error"}, {"turn", 1}, {"code", "unavailable"}, {"message", "no tts"}});
  BOOST_TEST(rig.types() == kMessageEnd + " response.done");
  BOOST_TEST(rig.last("response.done")["response"]["status_details"]["error"] ==
             json({{"type", "server_error"}, {"code", "unavailable"}}));
  rig.say(kCreate);
  rig.tell({{"type", "error"}, {"code", "overloaded"}, {"message", "full"}});
  BOOST_TEST(rig.last("response.done")["response"]["status"] == "failed");
  BOOST_TEST(rig.count("error") == 0u);
}

BOOST_AUTO_TEST_CASE(an_answer_to_nothing_fails) {
  Rig rig;
  rig.say(kCreate);
  rig.skip();
  rig.tell({{"type", "error"}, {"turn", 1}, {"code", "no_speech"}, {"message", "nothing was said"}});
  BOOST_TEST(rig.types() == "response.done");
  BOOST_TEST(rig.last("response.done")["response"]["status"] == "failed");
}

BOOST_AUTO_TEST_CASE(an_utterance_that_is_not_understood_fails_its_transcript_alone) {
  Rig rig({.transcription = true});
  rig.append_ms(1000).say(kCommit);
  rig.skip();
  rig.tell({{"type", "error"}, {"turn", 1}, {"code", "unavailable"}, {"message", "no tokenizer"}});
  BOOST_TEST(rig.types() == "conversation.item.input_audio_transcription.failed");
  BOOST_TEST(rig.last("conversation.item.input_audio_transcription.failed")["error"]["message"] == "no tokenizer");
}

BOOST_AUTO_TEST_CASE(a_conversation_that_ends_closes_the_socket_behind_its_error) {
  Rig rig;
  rig.spoken(1, "x").skip();
  rig.tell({{"type", "error"}, {"code", "unavailable"}, {"message", "nobody"}, {"session_ended", true}});
  BOOST_TEST(rig.types() == "response.done error");
  BOOST_REQUIRE(rig.translator.ending());
  BOOST_TEST(rig.translator.ending()->code == 1013);
  rig.say(kCreate);
  BOOST_TEST(rig.types().empty());
}

BOOST_AUTO_TEST_CASE(a_transcription_session_transcribes_and_nothing_else) {
  Rig rig({.transcription = true});
  BOOST_TEST(rig.last("session.created")["session"]["type"] == "transcription");
  BOOST_TEST(rig.last_told("open")["detection"]["answers"] == false);
  rig.update({{"type", "transcription"},
              {"audio", {{"input", {{"transcription", {{"model", "gpt-4o-transcribe"}, {"language", "en"}}}}}}}});
  BOOST_TEST(rig.last("session.updated")["session"]["audio"]["input"]["transcription"]["language"] == "en");
  rig.skip();
  rig.spoken(1, "hello");
  rig.tell({{"type", "noted"}, {"id", "u1"}, {"text", "hello"}, {"first_sample", 0}, {"end_sample", 17600}});
  BOOST_TEST(rig.types() ==
             "input_audio_buffer.speech_started input_audio_buffer.speech_stopped input_audio_buffer.committed "
             "conversation.item.added conversation.item.done conversation.item.input_audio_transcription.delta "
             "conversation.item.input_audio_transcription.completed");
  rig.say(kCreate);
  BOOST_TEST(rig.types() == "error");
}

BOOST_AUTO_TEST_CASE(a_response_out_of_band_touches_nothing) {
  Rig rig;
  rig.say(user_text("I am Anna", "a1"));
  rig.skip();
  rig.say({{"type", "response.create"},
           {"response",
            {{"conversation", "none"},
             {"output_modalities", {"text"}},
             {"metadata", {{"topic", "names"}}},
             {"input",
              {{{"type", "item_reference"}, {"id", "a1"}},
               {{"type", "message"},
                {"role", "user"},
                {"content", {{{"type", "input_text"}, {"text", "Who am I?"}}}}}}}}}});
  BOOST_TEST(rig.told_types() == "(begin) open item item respond");
  BOOST_TEST(rig.last_told("open")["stored"] == false);
  BOOST_TEST(rig.last_told("respond")["talk"] == 1);
  // The conversation answers meanwhile.
  rig.say(kCreate).text(1, "Hello Anna.").sound(1, 10);
  rig.text(1, "Anna", "text", 1).turn(1, 1);
  const auto& response = rig.last("response.done")["response"];
  BOOST_TEST(response["metadata"]["topic"] == "names");
  BOOST_TEST(!response.contains("conversation_id"));
  BOOST_TEST(rig.told_types() == "respond (end)");
  BOOST_TEST(rig.count("conversation.item.added") == 2u);  // a1 and the conversation's own answer
  rig.turn(1);
  BOOST_TEST(rig.count("response.done") == 2u);
}

BOOST_AUTO_TEST_CASE(too_many_responses_out_of_band_are_refused) {
  Rig rig;
  const json aside{{"type", "response.create"}, {"response", {{"conversation", "none"}}}};
  for (std::size_t i = 0; i < Realtime::kSideTalksMax; ++i) rig.say(aside);
  BOOST_TEST(rig.count("error") == 0u);
  rig.say(aside);
  BOOST_TEST(rig.last("error")["error"]["code"] == "rate_limit_exceeded");
  const auto id = rig.last("response.created")["response"]["id"];
  rig.say({{"type", "response.cancel"}, {"response_id", id}});
  BOOST_TEST(rig.last("response.done")["response"]["id"] == id);
  rig.translator.talk_closed(1, 1013, "slow");
  rig.collect();
  BOOST_TEST(rig.last("response.done")["response"]["status"] == "failed");
  rig.say(aside);
  BOOST_TEST(rig.count("error") == 1u);
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_AUTO_TEST_SUITE(items)

BOOST_AUTO_TEST_CASE(histories_are_replayed_with_their_ids) {
  Rig rig;
  rig.skip();
  const auto message = [](const char* id, const char* role, const char* type, const char* text) {
    return json{
        {"type", "conversation.item.create"},
        {"item", {{"id", id}, {"type", "message"}, {"role", role}, {"content", {{{"type", type}, {"text", text}}}}}}};
  };
  rig.say(message("s", "system", "input_text", "Be kind."));
  auto user = message("u", "user", "input_text", "Hi");
  user["previous_item_id"] = "s";
  rig.say(user);
  rig.say(message("a", "assistant", "output_text", "Hello"));
  rig.say(message("b", "assistant", "input_text", "Again"));
  rig.say({{"type", "conversation.item.create"},
           {"item",
            {{"id", "c"}, {"type", "function_call"}, {"call_id", "k"}, {"name", "f"}, {"arguments", "{\"x\":1}"}}}});
  rig.say({{"type", "conversation.item.create"},
           {"item", {{"id", "o"}, {"type", "function_call_output"}, {"call_id", "k"}, {"output", "7"}}}});
  auto first = message("r", "user", "input_text", "Root");
  first["previous_item_id"] = "root";
  rig.say(first);
  BOOST_TEST(rig.count("error") == 0u);
  BOOST_TEST(rig.count("conversation.item.done") == 7u);
  BOOST_TEST(rig.last("conversation.item.added")["previous_item_id"].is_null());
  BOOST_TEST(rig.told_types() == "item item item item item item item");
  BOOST_TEST(rig.told[rig.told.size() - 3]["calls"] == json({{{"id", "k"}, {"name", "f"}, {"arguments", {{"x", 1}}}}}));
  rig.say({{"type", "conversation.item.delete"}, {"item_id", "u"}});
  BOOST_TEST(rig.last_told("forget")["item"] == "u");
  rig.say(user);
  BOOST_TEST(rig.count("error") == 0u);
  rig.say(user);
  BOOST_TEST(rig.last("error")["error"]["code"] == "item_create_duplicate_item_id");
}

BOOST_AUTO_TEST_CASE(ids_that_nobody_knows_have_their_codes) {
  Rig rig;
  const std::pair<const char*, const char*> cases[] = {{"conversation.item.retrieve", "item_retrieve_invalid_item_id"},
                                                       {"conversation.item.delete", "item_delete_invalid_item_id"},
                                                       {"conversation.item.truncate", "item_truncate_invalid_item_id"}};
  for (const auto& [type, code] : cases) {
    rig.say({{"type", type}, {"event_id", "rci_1"}, {"item_id", "nobody"}, {"content_index", 0}, {"audio_end_ms", 1}});
    BOOST_TEST(rig.last("error")["error"]["code"] == code);
    BOOST_TEST(rig.last("error")["error"]["event_id"] == "rci_1");
  }
}

BOOST_AUTO_TEST_CASE(the_oldest_items_go_when_there_are_too_many) {
  RealtimeItems items;
  for (std::size_t i = 0; i < RealtimeItems::kItemsMax + 10; ++i) {
    RealtimeItem item;
    item.id = fmt::format("i{}", i);
    items.add(item);
  }
  BOOST_TEST(items.all().size() == RealtimeItems::kItemsMax);
  BOOST_TEST(items.find("i9") == nullptr);
  BOOST_TEST(items.find("i10") != nullptr);
  RealtimeItem large;
  large.content = {{"input_text", std::string(1u << 20, 'x')}};
  for (int i = 0; i < 20; ++i) {
    large.id = fmt::format("l{}", i);
    items.add(large);
  }
  BOOST_TEST(items.all().size() <= 8u);
  BOOST_TEST(items.find("l19") != nullptr);
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_AUTO_TEST_SUITE(sound)

std::vector<std::byte> tone(double hz, int rate, std::size_t samples) {
  std::vector<std::int16_t> wave(samples);
  for (std::size_t i = 0; i < samples; ++i)
    wave[i] = static_cast<std::int16_t>(std::lround(8000 * std::sin(2 * M_PI * hz * static_cast<double>(i) / rate)));
  const auto bytes = std::as_bytes(std::span(wave));
  return {bytes.begin(), bytes.end()};
}

BOOST_AUTO_TEST_CASE(any_cut_of_the_sound_is_heard_alike) {
  for (const auto seed : {1u, 2u, 3u}) {
    std::mt19937 random(seed);
    const auto wave = tone(700, 24000, 30000);
    Rig whole, parts;
    whole.without_detection().append(wave).say(kCommit);
    parts.without_detection();
    for (std::size_t at = 0; at < wave.size();) {
      const auto n = std::min<std::size_t>(random() % 2000, wave.size() - at);  // odd ones, too
      parts.append(std::span(wave).subspan(at, n));
      at += n;
    }
    parts.say(kCommit);
    BOOST_TEST_CONTEXT("seed " << seed) { BOOST_TEST((whole.heard == parts.heard)); }
    BOOST_TEST(whole.heard.size() == 20000 * 2u);
  }
}

BOOST_AUTO_TEST_CASE(telephones_are_heard_and_answered_in_their_codes) {
  for (const std::string type : {"audio/pcmu", "audio/pcma"}) {
    Rig rig;
    rig.update({{"audio", {{"input", {{"format", {{"type", type}}}}}, {"output", {{"format", {{"type", type}}}}}}}});
    BOOST_TEST(rig.last("session.updated")["session"]["audio"]["output"]["format"] == json({{"type", type}}));
    rig.append(std::vector<std::byte>(8000, std::byte{0xD5}));
    BOOST_TEST(rig.heard.size() > 15900 * 2u);
    rig.spoken(1, "x").text(1, "Hi.").sound(1, 22050).turn(1);
    BOOST_TEST(rig.sound_bytes(rig.last("response.done")["response"]["id"]) == 8000u);
  }
}

BOOST_AUTO_TEST_CASE(a_large_append_is_passed_on_in_small_messages) {
  Rig rig;
  rig.append(std::vector<std::byte>(15u << 20));
  BOOST_TEST(rig.count("error") == 0u);
  BOOST_TEST(rig.heard.size() / 2 > (15u << 20) / 2 * 2 / 3 - 1000);
}

BOOST_AUTO_TEST_CASE(bad_base64_is_refused_and_nothing_is_heard) {
  Rig rig;
  rig.say({{"type", "input_audio_buffer.append"}, {"event_id", "e9"}, {"audio", "a!"}});
  BOOST_TEST(rig.last("error")["error"]["param"] == "audio");
  BOOST_TEST(rig.last("error")["error"]["event_id"] == "e9");
  rig.say({{"type", "input_audio_buffer.append"}});
  BOOST_TEST(rig.last("error")["error"]["code"] == "missing_required_parameter");
  rig.say({{"type", "input_audio_buffer.append"}, {"audio", 7}});
  BOOST_TEST(rig.count("error") == 3u);
  BOOST_TEST(rig.heard.empty());
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_AUTO_TEST_SUITE(hostile)

BOOST_AUTO_TEST_CASE(bad_events_are_answered_and_end_nothing) {
  Rig rig;
  for (const std::string bad :
       {"", "{", "[]", "null", "7", "\"x\"", "{\"type\":7}", "{\"type\":\"dance\"}", "\xff\xfe",
        "{\"type\":\"response.create\",\"response\":7}", "{\"type\":\"session.update\"}",
        "{\"type\":\"conversation.item.create\"}",
        "{\"type\":\"conversation.item.create\",\"item\":{\"type\":\"message\",\"role\":\"user\"}}"}) {
    const auto before = rig.count("error");
    rig.say_text(bad);
    BOOST_TEST_CONTEXT(bad) { BOOST_TEST(rig.count("error") == before + 1); }
  }
  rig.say_text(std::string(5000, '[') + std::string(5000, ']'));
  rig.say_text("{\"type\":\"response.create\",\"x\":\"" + std::string(2u << 20, 'x') + "\"}");
  rig.translator.client_message("abc", true);
  rig.collect();
  BOOST_TEST(rig.count("error") == 16u);
  BOOST_TEST(!rig.translator.ending());
  rig.say(user_text("hello")).say(kCreate).text(1, "Hi.").turn(1);
  BOOST_TEST(rig.last("response.done")["response"]["status"] == "completed");
}

/// Events of both sides in any order: every response that was created is done exactly once, sound stays within its
/// item, and nothing is told of a response behind its end.
BOOST_AUTO_TEST_CASE(any_order_of_events_keeps_the_rules) {
  for (unsigned seed = 1; seed <= 300; ++seed) {
    std::mt19937 random(seed);
    const auto dice = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
    Rig rig({.transcription = seed % 10 == 0});
    rig.is_recorded = seed <= 30;
    std::int64_t sample = 0;
    const auto some_item = [&]() -> std::string {
      for (int i = 0; i < 20 && !rig.events.empty(); ++i) {
        const auto& e = rig.events[static_cast<std::size_t>(dice(static_cast<int>(rig.events.size())))];
        if (e["type"] == "conversation.item.added") return e["item"]["id"].get<std::string>();
      }
      return "none";
    };
    for (int step = 0; step < 120; ++step) {
      const int turn = 1 + dice(3);
      switch (dice(26)) {
        case 0:
          rig.append_ms(dice(400));
          break;
        case 1:
          rig.say(kCommit);
          break;
        case 2:
          rig.say(kClear);
          break;
        case 3:
          rig.say(kCreate);
          break;
        case 4:
          rig.say(kCancel);
          break;
        case 5:
          rig.say(user_text("hello"));
          break;
        case 6:
          rig.say({{"type", "conversation.item.truncate"},
                   {"item_id", some_item()},
                   {"content_index", 0},
                   {"audio_end_ms", dice(3000)}});
          break;
        case 7:
          rig.say({{"type", "conversation.item.delete"}, {"item_id", some_item()}});
          break;
        case 8:
          rig.say({{"type", "conversation.item.retrieve"}, {"item_id", some_item()}});
          break;
        case 9:
          rig.without_detection();
          break;
        case 10:
          rig.update(
              {{"audio",
                {{"input", {{"turn_detection", {{"type", "server_vad"}}}, {"transcription", {{"model", "x"}}}}}}}});
          break;
        case 11:
          rig.say({{"type", "conversation.item.create"},
                   {"item",
                    {{"type", "function_call_output"}, {"call_id", fmt::format("c{}", dice(4))}, {"output", "1"}}}});
          break;
        case 12:
          rig.say({{"type", "response.create"}, {"response", {{"conversation", "none"}}}});
          break;
        case 13:
          rig.tell({{"type", "speech_started"}, {"sample", sample += dice(5000)}});
          break;
        case 14:
          rig.tell({{"type", "speech_ended"}, {"sample", sample += dice(5000)}});
          break;
        case 15:
          rig.text(turn, "what", "transcript");
          break;
        case 16:
          rig.text(turn, "answer ");
          break;
        case 17:
          rig.sound(turn, static_cast<std::size_t>(dice(3000)));
          break;
        case 18:
          rig.call(turn, fmt::format("c{}", dice(4)), "f", json::object());
          break;
        case 19:
          rig.tell({{"type", "waiting"}, {"turn", turn}, {"calls", 1}});
          break;
        case 20:
          rig.tell({{"type", "interrupted"}, {"turn", turn}, {"samples", dice(3000)}, {"heard", "ans"}});
          break;
        case 21:
          rig.turn(turn);
          break;
        case 22:
          rig.tell({{"type", "cancelled"}, {"turn", dice(4)}});
          break;
        case 23:
          rig.tell(
              {{"type", "error"}, {"turn", dice(4)}, {"code", dice(2) ? "no_speech" : "overloaded"}, {"message", "m"}});
          break;
        case 24:
          rig.tell({{"type", "noted"}, {"id", "u"}, {"text", "t"}, {"first_sample", 0}, {"end_sample", 1}});
          break;
        case 25:
          dice(2) ? rig.turn(1, 1 + dice(5)) : rig.text(1, "aside", "text", 1 + dice(5));
          break;
      }
    }
    rig.translator.talk_closed(0, 1001, "going away");
    for (int talk = 1; talk < 60; ++talk) rig.translator.talk_closed(talk, 1001, "going away");
    rig.collect();
    std::map<std::string, int> state;  // 1: created, 2: done
    std::map<std::string, int> item;   // 1: added, 2: done
    BOOST_TEST_CONTEXT("seed " << seed) {
      for (const auto& e : rig.events) {
        const auto type = e["type"].get<std::string>();
        if (type == "response.created") BOOST_TEST(++state[e["response"]["id"]] == 1);
        if (e.contains("response_id")) BOOST_TEST(state[e["response_id"]] == 1);
        if (type == "response.output_item.added") BOOST_TEST(++item[e["item"]["id"]] == 1);
        if (e.contains("response_id") && e.contains("item_id")) BOOST_TEST(item[e["item_id"]] == 1);
        if (type == "response.output_item.done") BOOST_TEST(++item[e["item"]["id"]] == 2);
        if (type == "response.done") BOOST_TEST(++state[e["response"]["id"]] == 2);
      }
      for (const auto& [id, s] : state) BOOST_TEST(s == 2);
      for (const auto& [id, s] : item) BOOST_TEST(s == 2);
    }
  }
}

BOOST_AUTO_TEST_CASE(a_commit_of_exactly_a_tenth_of_a_second_is_one) {
  for (const auto* format : {"audio/pcm", "audio/pcmu"}) {
    RealtimeRig r;
    r.update({{"audio", {{"input", {{"format", {{"type", format}}}, {"turn_detection", nullptr}}}}}}).skip();
    const bool pcm = std::string_view(format) == "audio/pcm";
    r.append(std::vector<std::byte>(pcm ? 4800 : 800, pcm ? std::byte{0} : std::byte{0xff}));
    r.say({{"type", "input_audio_buffer.commit"}});
    BOOST_TEST(r.types() == "input_audio_buffer.committed conversation.item.added conversation.item.done");
    r.append(std::vector<std::byte>(pcm ? 4798 : 799, pcm ? std::byte{0} : std::byte{0xff}));
    r.say({{"type", "input_audio_buffer.commit"}});
    BOOST_TEST(r.last("error")["error"]["code"] == "input_audio_buffer_commit_empty");
  }
}

BOOST_AUTO_TEST_CASE(a_tool_that_has_to_be_called_must_be_there) {
  RealtimeRig r;
  const json choice{{"type", "function"}, {"name", "nobody"}};
  r.skip();
  r.say({{"type", "response.create"}, {"response", {{"tool_choice", choice}}}});
  BOOST_TEST(r.types() == "error");
  BOOST_TEST(r.last("error")["error"]["param"] == "response.tool_choice");
  r.update({{"tool_choice", choice}});
  BOOST_TEST(r.last("error")["error"]["param"] == "session.tool_choice");
  r.update({{"tools", json::array({{{"type", "function"}, {"name", "nobody"}}})}, {"tool_choice", choice}});
  BOOST_TEST(r.types() == "error session.updated");
}

BOOST_AUTO_TEST_CASE(a_cancelled_response_that_was_refused_below_is_told_once) {
  RealtimeRig r;
  r.say({{"type", "response.create"}}).say({{"type", "response.cancel"}});
  r.skip();
  r.tell({{"type", "error"}, {"code", "invalid_argument"}, {"message", "no such tool"}});
  BOOST_TEST(r.types() == "");
  r.say({{"type", "response.create"}});
  BOOST_TEST(r.told_types() == "respond");  // nothing is waited for
}

BOOST_AUTO_TEST_CASE(a_response_out_of_band_is_asked_for_first) {
  RealtimeOptions options;
  int asked = 0;
  options.admit_side = [&]() -> std::optional<RealtimeError> {
    if (++asked == 1) return {};
    return RealtimeError{"rate_limit_exceeded", "enough"};
  };
  RealtimeRig r(std::move(options));
  r.skip();
  const json aside{{"type", "response.create"}, {"response", {{"conversation", "none"}}}};
  r.say(aside);
  BOOST_TEST(r.types() == "response.created");
  r.say(aside);
  BOOST_TEST(r.types() == "error");
  BOOST_TEST(r.last("error")["error"]["code"] == "rate_limit_exceeded");
}

BOOST_AUTO_TEST_CASE(a_session_may_begin_with_what_a_secret_brings) {
  RealtimeOptions options;
  options.session =
      R"({"type":"realtime","instructions":"be kind","audio":{"input":{"format":{"type":"audio/pcma"}}}})";
  RealtimeRig r(std::move(options));
  BOOST_TEST(r.last("session.created")["session"]["instructions"] == "be kind");
  BOOST_TEST(r.last_told("open")["system"] == "be kind");
  r.append(std::vector<std::byte>(800));
  BOOST_TEST(r.heard.size() > 3000u);  // 100 ms of 8 kHz
}

BOOST_AUTO_TEST_CASE(opus_travels_both_ways_a_packet_at_a_time) {
  RealtimeRig r;
  r.is_recorded = false;  // an extension
  const json opus{{"format", {{"type", "audio/opus"}}}};
  r.update({{"audio", {{"input", opus}, {"output", opus}}}});
  BOOST_TEST(r.last("session.updated")["session"]["audio"]["input"]["format"]["type"] == "audio/opus");
  auto writer = *audio::OpusWriter::make(24000, 32000);
  std::vector<std::int16_t> tone(24000);
  for (std::size_t i = 0; i < tone.size(); ++i) tone[i] = static_cast<std::int16_t>(8000 * std::sin(0.1 * double(i)));
  for (const auto& packet : writer.push(tone)) r.append(packet);
  BOOST_TEST(r.heard.size() == 32000u);  // a second at 16 kHz
  const auto heard = from_bytes<std::int16_t>(std::as_bytes(std::span(r.heard)));
  const auto loudest = *std::max_element(heard.begin(), heard.end());
  BOOST_TEST(loudest > 6000);
  BOOST_TEST(loudest < 10000);
  r.append(std::vector<std::byte>(5000));
  BOOST_TEST(r.last("error")["error"]["param"] == "audio");
  // The answer: packets of 20 ms, which an Opus decoder reads.
  r.text(1, "hi").sound(1, 22050).turn(1);
  auto reader = *audio::OpusReader::make(24000);
  std::size_t samples = 0;
  for (const auto& e : r.events)
    if (e["type"] == "response.output_audio.delta") {
      const auto part = reader.push(*from_base64(e["delta"].get<std::string>()));
      BOOST_REQUIRE(part);
      BOOST_TEST(part->size() == 480u);
      samples += part->size();
    }
  BOOST_TEST(samples == 24000u);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace parlando::gateway
