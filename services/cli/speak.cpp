#include "services/cli/speak.hpp"

#include <fmt/format.h>

#include <iostream>

#include "common/audio/audio_file.hpp"
#include "common/audio/resampler.hpp"
#include "common/base/mapped_file.hpp"
#include "services/cli/ask.hpp"
#include "services/cli/bench_setting.hpp"
#include "services/tts/model/voices.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

/// A recording of half a minute at this rate fits into one message to the tokenizer.
constexpr int kVoiceRateMax = 32'000, kVoiceRate = 24'000;

/// The voices of recordings, as a folder that an engine reads.
class ClonedVoices {
 public:
  /// @return the voice's name  @error what is wrong with the recording
  Result<std::string> add(const SpeechJob& job) {
    if (job.wav_path.empty())
      return fail(Errc::invalid_argument, "clone needs --wav-path with a recording of the voice");
    if (folder_.path().empty()) return fail(Errc::io, "no folder can be made in /tmp");
    PARLANDO_TRY(auto recording, audio::read_audio(job.wav_path));
    PARLANDO_DO(tts::Voices::check(job.speaker, recording.wave, recording.rate));
    if (recording.rate > kVoiceRateMax)
      recording = {kVoiceRate, audio::resample(recording.wave, recording.rate, kVoiceRate)};
    const auto name = fmt::format("voice-{}", ++count_);
    PARLANDO_DO(audio::write_wav(folder_.path() / (name + "_prompt.wav"), recording.wave, recording.rate));
    list_[name] = {{"text", job.prompt_text}, {"cloned", true}};
    PARLANDO_DO(write_file(folder_.path() / "speakers_info.json", list_.dump()));
    return name;
  }
  std::string folder() const { return folder_.path().string(); }

 private:
  Scratch folder_;
  json list_ = json::object();
  int count_ = 0;
};

Result<json> speak_one(EngineClient& client, const Common& common, const SpeechJob& job) {
  json settings{{"speak", true}, {"seed", common.seed}, {"speed", job.speed}, {"volume", job.volume}};
  if (!job.speaker.empty()) settings["speaker"] = job.speaker;
  PARLANDO_TRY(auto conversation, client.open(std::move(settings)));
  Question question;
  question.utter = job.text;
  PARLANDO_TRY(const auto spoken, ask(conversation, question));
  if (spoken.wave.empty()) return fail(Errc::internal, "no sound was made of this text");
  PARLANDO_DO(write_answer(job.output, spoken.wave, spoken.rate));
  return json{{"output", job.output},
              {"audio_seconds", static_cast<double>(spoken.wave.size()) / spoken.rate},
              {"first_audio_ms", spoken.first_audio},
              {"total_ms", spoken.total}};
}

Result<void> check_address(const SpeakOptions& options) {
  if (options.address.endpoint.empty()) return {};
  if (options.clone)
    return fail(Errc::unsupported, "an engine that runs cannot be given the recording of a voice over --connect");
  if (options.whole) return fail(Errc::unsupported, "--offline is how an engine is started: it cannot be asked for");
  return {};
}

Result<SpeechJob> read_job(const std::string& line, std::size_t number, const std::string& folder) {
  const auto request = json::parse(line, nullptr, false);
  if (!request.is_object()) return fail(Errc::bad_json, "line {} is not a JSON object", number);
  const auto text = [&](const char* key, std::string otherwise = {}) {
    return request.contains(key) && request[key].is_string() ? request[key].get<std::string>() : std::move(otherwise);
  };
  const auto ratio = [&](const char* key) {
    return request.contains(key) && request[key].is_number() ? request[key].get<double>() : 1.0;
  };
  SpeechJob out{text("text"), text("speaker"), text("prompt_text"), text("wav_path"),
                {},           ratio("speed"),  ratio("volume")};
  out.output = (fs::path(folder) / text("output", fmt::format("{:05}.wav", number))).string();
  if (out.text.empty()) return fail(Errc::invalid_argument, "the text is empty");
  return out;
}

struct SpeechLine {
  std::size_t number = 0;
  Result<SpeechJob> job = fail(Errc::internal, "not read");
};

}  // namespace

int speak(const Common& common, const SpeakOptions& options) {
  auto job = options.job;
  const auto done = [&]() -> Result<json> {
    PARLANDO_DO(check_address(options));
    ClonedVoices voices;
    if (options.clone) {
      PARLANDO_TRY(job.speaker, voices.add(job));
    }
    if (job.text.empty()) return fail(Errc::invalid_argument, "the text is empty");
    PARLANDO_TRY(auto client, EngineClient::start(options.address, engine_options(common),
                                                  {.speaks = true,
                                                   .speakers = options.clone ? voices.folder() : std::string(),
                                                   .whole = options.whole}));
    return speak_one(client, common, job);
  }();
  if (!done) return report(done.error(), common.as_json);
  if (common.as_json)
    std::cout << done->dump() << "\n";
  else
    fmt::print("{:.2f} s of speech written to {} ({:.0f} ms, first audio after {:.0f} ms)\n",
               (*done)["audio_seconds"].get<double>(), job.output, (*done)["total_ms"].get<double>(),
               (*done)["first_audio_ms"].get<double>());
  return kOk;
}

int speak_batch(const Common& common, const SpeakOptions& options) {
  if (const auto good = check_address(options); !good) return report(good.error(), common.as_json);
  const auto lines = read_lines(options.batch_file);
  if (!lines) return report(lines.error(), common.as_json);
  ClonedVoices voices;  // outlives the engine
  std::vector<SpeechLine> todo;
  int made = 0, skipped = 0, failed = 0;
  for (std::size_t n = 0; n < lines->size(); ++n) {
    auto job = read_job((*lines)[n], n + 1, options.out_dir);
    if (job && fs::exists(job->output)) {
      ++skipped;
      continue;
    }
    if (job && options.clone) {
      auto voice = voices.add(*job);
      if (voice)
        job->speaker = *voice;
      else
        job = tl::unexpected(voice.error());
    }
    todo.push_back({n + 1, std::move(job)});
  }
  // Nothing is loaded for a batch that is done.
  std::optional<EngineClient> client;
  for (auto& line : todo) {
    bar(fmt::format("{} of {}", line.number, lines->size()),
        static_cast<double>(line.number) / static_cast<double>(lines->size()));
    if (line.job && !client) {
      auto started = EngineClient::start(
          options.address, engine_options(common),
          {.speaks = true, .speakers = options.clone ? voices.folder() : std::string(), .whole = options.whole});
      if (!started) return report(started.error(), common.as_json);
      client.emplace(*std::move(started));
    }
    auto done = line.job ? speak_one(*client, common, *line.job) : Result<json>(tl::unexpected(line.job.error()));
    if (done) {
      ++made;
      (*done)["line"] = line.number;
      if (common.as_json) std::cout << done->dump() << "\n";
      continue;
    }
    ++failed;
    std::cerr << "parlando: line " << line.number << ": " << done.error().message << "\n";
    if (common.as_json) std::cout << json{{"line", line.number}, {"error", to_json(done.error())}}.dump() << "\n";
  }
  if (!common.as_json) fmt::print("{} made, {} skipped, {} failed\n", made, skipped, failed);
  return failed == 0 ? kOk : kFailed;
}

}  // namespace parlando::cli
