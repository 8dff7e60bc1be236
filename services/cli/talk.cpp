#include "services/cli/talk.hpp"

#include <fmt/format.h>

#include <iostream>

#include "services/cli/ask.hpp"
#include "services/cli/trace_view.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

json settings_of(const Common& common, const std::string& system, const std::string& speaker, bool speak) {
  json out{{"speak", speak}, {"seed", common.seed}, {"tokenizer", "exact"}, {"detection", {{"type", "none"}}}};
  if (!system.empty()) out["system"] = system;
  if (!speaker.empty()) out["speaker"] = speaker;
  return out;
}

/// What both forms tell of an answer.
json figures_of(const Answer& answer) {
  const auto seconds = answer.rate == 0 ? 0.0 : static_cast<double>(answer.wave.size()) / answer.rate;
  json calls = json::array();
  for (const auto& call : answer.record.value("tool_calls", json::array()))
    calls.push_back({{"name", call.value("name", "")},
                     {"arguments", call.value("arguments", json())},
                     {"result", call.value("result", json())}});
  json out{{"transcript", answer.record.value("user", "")},
           {"reply", answer.record.value("assistant", "")},
           {"tool_calls", calls},
           {"audio_seconds", seconds},
           {"stages", stages_of(answer)},
           {"trace", answer.record.value("trace", json())}};
  out["first_audio_ms"] = answer.first_audio < 0 ? json() : json(answer.first_audio);
  return out;
}

void print(const json& told, const TalkOptions& options) {
  fmt::print("you:      {}\n", told["transcript"].get<std::string>());
  for (const auto& call : told["tool_calls"])
    fmt::print("tool:     {} {} -> {}\n", call["name"].get<std::string>(), call["arguments"].dump(),
               call["result"].dump());
  fmt::print("parlando: {}\n\n", told["reply"].get<std::string>());
  if (options.live) {
    fmt::print("{:.2f} s of speech\n", told["audio_seconds"].get<double>());
  } else {
    fmt::print("stage                          ready after\n");
    constexpr std::pair<const char*, const char*> kStages[] = {
        {"vad_ms", "speech found (vad)"},        {"tokenizer_ms", "tokens (tokenizer)"},
        {"first_text_ms", "first text (llm)"},   {"text_ms", "text complete (llm)"},
        {"first_audio_ms", "first audio (tts)"}, {"total_ms", "all audio"}};
    for (const auto& [key, name] : kStages)
      if (told["stages"].contains(key))
        fmt::print("  {:<27}{:10.1f} ms{}\n", name, told["stages"][key].get<double>(),
                   std::string_view(key) == "total_ms"
                       ? fmt::format("   for {:.2f} s of speech", told["audio_seconds"].get<double>())
                       : std::string());
  }
  if (options.trace) fmt::print("\n{}", draw_trace(told["trace"]));
  if (options.trace && options.text.empty() && !options.live)
    fmt::print("  (a recording is said all at once: the silence behind its speech was not waited for; --live waits)\n");
  if (!options.output.empty()) fmt::print("\nanswer written to {}\n", options.output);
}

Result<Question> read_question(const TalkOptions& options) {
  Question out;
  if (!options.text.empty()) {
    out.text = options.text;
    return out;
  }
  PARLANDO_TRY(const auto recording, audio::read_audio(options.recording));
  PARLANDO_TRY(out, question_of(recording));
  out.live = options.live;
  return out;
}

Result<json> answer_one(const Common& common, const TalkOptions& options) {
  PARLANDO_TRY(const auto question, read_question(options));
  EngineNeeds needs{.hears = !question.text, .answers = true, .speaks = true};
  PARLANDO_TRY(auto client, EngineClient::start(options.address, engine_options(common), needs));
  auto settings = settings_of(common, options.system, options.speaker, true);
  if (question.live) {  // as a client that knows nothing of recordings
    settings.erase("tokenizer");
    settings["detection"] = {{"type", options.detector}};
  }
  PARLANDO_TRY(auto conversation, client.open(std::move(settings)));
  PARLANDO_TRY(const auto answer, ask(conversation, question));
  if (!options.output.empty()) PARLANDO_DO(write_answer(options.output, answer.wave, answer.rate));
  return figures_of(answer);
}

struct BatchLine {
  Question question;
  std::vector<std::pair<std::string, std::string>> history;  ///< role, content
  std::string system, speaker, output;
};

Result<BatchLine> read_line(const std::string& line, std::size_t number) {
  const auto request = json::parse(line, nullptr, false);
  if (!request.is_object()) return fail(Errc::bad_json, "line {} is not a JSON object", number);
  const auto text = [&](const char* key) {
    return request.contains(key) && request[key].is_string() ? request[key].get<std::string>() : std::string();
  };
  BatchLine out;
  if (const auto wav = text("wav"); !wav.empty()) {
    PARLANDO_TRY(const auto recording, audio::read_audio(wav));
    PARLANDO_TRY(out.question, question_of(recording));
  } else if (request.contains("text") && request["text"].is_string()) {
    out.question.text = text("text");
  } else {
    return fail(Errc::invalid_argument, "line {} has neither 'wav' nor 'text'", number);
  }
  const auto history = request.value("history", json::array());
  const auto said = [](const json& item) {
    return item.is_object() && item.contains("role") && item["role"].is_string() && item.contains("content") &&
           item["content"].is_string();
  };
  for (const auto& item : history.is_array() ? history : json::array({history})) {
    if (!said(item))
      return fail(Errc::invalid_argument, "line {}: history holds {}, expected {{role, content}}", number, item.dump());
    out.history.emplace_back(item["role"].get<std::string>(), item["content"].get<std::string>());
  }
  out.system = text("system"), out.speaker = text("speaker"), out.output = text("output");
  return out;
}

Result<json> answer_line(EngineClient& client, const Common& common, const TalkOptions& options,
                         const std::string& text, std::size_t number) {
  PARLANDO_TRY(const auto line, read_line(text, number));
  PARLANDO_TRY(auto conversation, client.open(settings_of(common, line.system, line.speaker, !options.no_speech)));
  PARLANDO_DO(guarded([&] {
    for (const auto& [role, content] : line.history) conversation.item(role, content);
  }));
  PARLANDO_TRY(const auto answer, ask(conversation, line.question));
  auto out = figures_of(answer);
  out["line"] = number;
  if (options.no_speech) return out;
  const auto file = fs::path(options.out_dir) / (line.output.empty() ? fmt::format("{:05}.wav", number) : line.output);
  PARLANDO_DO(write_answer(file.string(), answer.wave, answer.rate));
  out["output"] = file.string();
  return out;
}

}  // namespace

int talk(const Common& common, const TalkOptions& options) {
  if (options.recording.empty() == options.text.empty())
    return report({Errc::invalid_argument, "give either a recording or --text"}, common.as_json);
  auto told = answer_one(common, options);
  if (!told) return report(told.error(), common.as_json);
  if (!common.as_json) {
    print(*told, options);
    return kOk;
  }
  if (!options.output.empty()) (*told)["output"] = options.output;
  std::cout << told->dump() << "\n";
  return kOk;
}

int talk_batch(const Common& common, const TalkOptions& options) {
  const auto lines = read_lines(options.batch_file);
  if (!lines) return report(lines.error(), common.as_json);
  auto client = EngineClient::start(options.address, engine_options(common),
                                    {.hears = true, .answers = true, .speaks = !options.no_speech});
  if (!client) return report(client.error(), common.as_json);
  int failed = 0;
  for (std::size_t n = 0; n < lines->size(); ++n) {
    bar(fmt::format("{} of {}", n + 1, lines->size()), static_cast<double>(n + 1) / static_cast<double>(lines->size()));
    const auto answer = answer_line(*client, common, options, (*lines)[n], n + 1);
    if (!answer) ++failed;
    std::cout << (answer ? *answer : json{{"line", n + 1}, {"error", to_json(answer.error())}}).dump() << "\n"
              << std::flush;
  }
  return failed == 0 ? kOk : kFailed;
}

}  // namespace parlando::cli
