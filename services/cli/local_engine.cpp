#include "services/cli/local_engine.hpp"

#include <algorithm>

#include "common/audio/resampler.hpp"
#include "common/base/codes.hpp"
#include "services/controller/tools.hpp"
#include "services/tts/model/effects.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

double ms_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

Result<std::string> expect_directory(const fs::path& root, const char* name, const char* what) {
  if (fs::is_directory(root / name)) return (root / name).string();
  return fail(Errc::not_found,
              "'{}' does not exist: the model path '{}' must hold Step-Audio-Tokenizer, Step-Audio-Chat and "
              "Step-Audio-TTS-3B ({}); official downloads are "
              "converted by `parlando import DIR OUT`",
              (root / name).string(), root.string(), what);
}

}  // namespace

Result<Segment> find_speech(std::span<const float> wave, const std::shared_ptr<const vad::SileroWeights>& weights) {
  vad::Silero net(weights);
  std::vector<float> padded(wave.begin(), wave.end());
  padded.resize((padded.size() + vad::kFrameSamples - 1) / vad::kFrameSamples * vad::kFrameSamples, 0.0f);
  std::ptrdiff_t first = -1, last = -1;
  for (std::size_t at = 0; at + vad::kFrameSamples <= padded.size(); at += vad::kFrameSamples) {
    const float p = net(std::span<const float, vad::kFrameSamples>(padded.data() + at, vad::kFrameSamples));
    if (p >= 0.5f && first < 0) first = static_cast<std::ptrdiff_t>(at);
    if (p >= 0.35f && first >= 0) last = static_cast<std::ptrdiff_t>(at + vad::kFrameSamples);
  }
  if (first < 0)
    return fail(Errc::no_speech, "no speech was found in {:.2f} s of audio", static_cast<double>(wave.size()) / 16000);
  const std::size_t begin = static_cast<std::size_t>(std::max<std::ptrdiff_t>(0, first - 4800)),
                    end = std::min(wave.size(), static_cast<std::size_t>(last) + 3200);
  return Segment{begin, end};
}

Result<std::unique_ptr<LocalEngine>> LocalEngine::load(const EngineOptions& options) try {
  std::unique_ptr<LocalEngine> e(new LocalEngine);
  e->options_ = options;
  const auto root = options.model_path;
  if (!fs::is_directory(root)) return fail(Errc::not_found, "the model path '{}' is not a directory", root.string());
  PARLANDO_TRY(const auto tokenizer_dir, expect_directory(root, "Step-Audio-Tokenizer", "speech tokenizer"));
  PARLANDO_TRY(e->tokenizer_, tokenizer::SpeechTokenizer::load(tokenizer_dir));
  PARLANDO_TRY(e->vad_, vad::SileroWeights::load(options.vad_weights));
  const auto dtype = options.bf16 ? at::kBFloat16 : at::kFloat;
  const auto chat_dir = root / "Step-Audio-Chat", speech_dir = root / "Step-Audio-TTS-3B";
  if (options.chat) {
    PARLANDO_TRY(const auto checked, expect_directory(root, "Step-Audio-Chat", "chat model"));
    PARLANDO_TRY(e->chat_, llm::LlmModel::load(checked, dtype, {}));
  }
  if (options.speech) {
    PARLANDO_TRY(const auto checked, expect_directory(root, "Step-Audio-TTS-3B", "text-to-speech model"));
    PARLANDO_TRY(e->speech_, llm::LlmModel::load(checked, dtype, {}));
    PARLANDO_TRY(e->common_, tts::SpeechDecoder::load(speech_dir / "CosyVoice-300M-25Hz", at::kFloat));
    if (fs::is_directory(speech_dir / "CosyVoice-300M-25Hz-Music")) {
      PARLANDO_TRY(e->music_, tts::SpeechDecoder::load(speech_dir / "CosyVoice-300M-25Hz-Music", at::kFloat));
    }
    auto tokenizer = e->tokenizer_;
    const auto speakers = fs::is_directory(speech_dir / "speakers") ? speech_dir / "speakers" : root / "speakers";
    PARLANDO_TRY(e->voices_,
                 tts::Voices::load(speakers, e->common_->speaker(), [tokenizer](std::span<const float> wave, int rate) {
                   return tokenizer->codes(wave, rate, {.trim = true, .energy_norm = true});
                 }));
  }
  return e;
} catch (const json::exception& error) {
  return fail(Errc::bad_json, "a configuration of '{}' is malformed: {}", options.model_path.string(), error.what());
}

Result<TurnResult> LocalEngine::talk(const Question& question, const std::string& system, const std::string& speaker,
                                     std::vector<llm::Message>& history, bool speak_reply) {
  TurnResult out;
  const auto start = std::chrono::steady_clock::now();
  std::vector<llm::Message> messages;
  messages.push_back({"system", system.empty() ? chat_.chat_prompt : system});
  messages.insert(messages.end(), history.begin(), history.end());
  const bool spoken = !question.text;
  std::vector<std::int32_t> codes;
  if (spoken) {
    out.question_seconds = static_cast<double>(question.wave.size()) / question.rate;
    if (out.question_seconds < 0.1)
      return fail(Errc::no_speech, "the recording has {:.3f} s, at least 0.1 s are needed", out.question_seconds);
    auto wave = audio::resample(question.wave, question.rate, 16000);
    PARLANDO_TRY(const auto segment, find_speech(wave, vad_));
    const double seconds = static_cast<double>(segment.last - segment.first) / 16000;
    if (seconds > 30)
      return fail(Errc::invalid_argument, "the recording holds {:.0f} s of speech, one turn takes at most 30 s",
                  seconds);
    out.timings.vad = ms_since(start);
    PARLANDO_TRY(codes,
                 tokenizer_->codes(std::span<const float>(wave).subspan(segment.first, segment.last - segment.first),
                                   16000, {}));
    if (codes.empty()) return fail(Errc::no_speech, "{:.2f} s of speech are too short to be understood", seconds);
  }
  out.timings.tokenizer = ms_since(start);

  auto sampling = chat_.chat_sampling;
  sampling.seed = options_.seed;
  PARLANDO_TRY(const auto chat, llm::Chat::open(chat_.engine, chat_.text, fmt::format("chat-{}", names_++),
                                                std::move(messages), {.sampling = sampling}));
  if (spoken) {
    PARLANDO_DO(chat->hear(0, codes));
  } else {
    PARLANDO_DO(chat->say(*question.text));
  }
  PARLANDO_DO(chat->reply());
  for (bool done = false; !done;) {
    const auto tokens = chat_.engine->step();
    if (tokens.empty() && chat_.engine->idle())
      return fail(Errc::internal, "the language model stopped without an end");
    for (const auto& token : tokens) {
      if (token.sequence != chat->name()) continue;
      if (out.timings.first_text == 0) out.timings.first_text = ms_since(start);
      PARLANDO_TRY(const auto events, chat->on(token));
      for (const auto& event : events) {
        using Kind = llm::ChatEvent::Kind;
        if (event.kind == Kind::transcript) {
          out.transcript = event.text;
        } else if (event.kind == Kind::tool_call) {
          auto call = json::parse(event.text);
          const auto name = call["name"].get<std::string>();
          call["result"] = controller::run_demo_tool(name, call["arguments"], std::time(nullptr));
          PARLANDO_DO(chat->tool_result(call["result"].dump()));
          out.tool_calls.push_back(std::move(call));
        } else if (event.kind == Kind::done) {
          out.reply = event.text;
          done = true;
        }
      }
    }
  }
  if (!spoken) out.transcript = *question.text;
  out.timings.text = ms_since(start);
  history.push_back({"user", out.transcript});
  history.push_back({"assistant", out.reply});
  if (speak_reply && !out.reply.empty()) {
    PARLANDO_TRY(auto spoken_reply,
                 speak(out.reply, speaker.empty() ? default_speaker() : speaker, {.seed = options_.seed}));
    out.wave = std::move(spoken_reply.wave);
    out.timings.first_code = out.timings.text + spoken_reply.first_code_ms;
    out.timings.first_audio = out.timings.text + spoken_reply.first_audio_ms;
  }
  out.timings.total = ms_since(start);
  return out;
}

Result<Spoken> LocalEngine::speak(const std::string& text, const std::string& speaker, const SpeakOptions& options) {
  const auto mode = tts_mode(text, speaker, false);
  PARLANDO_TRY(const auto voice, voices_->get(voices_->entry(mode)));
  return synthesise(text, *voice, mode, options);
}

Result<Spoken> LocalEngine::speak_as(const std::string& text, const tts::Voice& voice, const SpeakOptions& options) {
  return synthesise(text, voice, tts_mode(text, "", true), options);
}

Result<std::shared_ptr<const tts::Voice>> LocalEngine::clone(const std::string& name, const std::string& text,
                                                             std::span<const float> wave, int rate) {
  return voices_->clone(name, text, wave, rate);
}

Result<Spoken> LocalEngine::synthesise(const std::string& text, const tts::Voice& voice, const TtsMode& mode,
                                       const SpeakOptions& options) {
  Spoken out;
  const auto start = std::chrono::steady_clock::now();
  if (mode.vocoder == Vocoder::music && !music_)
    return fail(Errc::not_found, "this model has no CosyVoice-300M-25Hz-Music directory for singing");
  const auto& decoder = mode.vocoder == Vocoder::music ? music_ : common_;
  const auto name = fmt::format("speech-{}", names_++);
  const auto run = [&]() -> Result<void> {
    auto sampling = options.sampling.value_or(speech_.speech_sampling);
    sampling.seed = options.seed;
    PARLANDO_DO(
        speech_.start_speech(name, {mode.system_prompt, voice.name, voice.text, text, voice.prompt.codes, sampling}));
    GroupCollector groups;
    std::vector<std::int32_t> all;
    tts::SpeechStream stream(decoder, voice.prompt, {.seed = options.seed});
    const auto base = speech_.text->audio_base();
    for (bool done = false; !done;) {
      const auto events = speech_.engine->step();
      if (events.empty() && speech_.engine->idle())
        return fail(Errc::internal, "the speech model stopped without an end");
      for (const auto& event : events) {
        if (event.sequence != name) continue;
        if (event.error) return tl::make_unexpected(*event.error);
        done = event.finish != llm::Finish::none;
        if (event.id == speech_.engine->model().config().eos) continue;
        if (out.first_code_ms == 0) out.first_code_ms = ms_since(start);
        const auto group = groups.push(event.id - base);
        if (group.empty()) continue;
        all.insert(all.end(), group.begin(), group.end());
        if (!options.stream) continue;
        PARLANDO_TRY(const auto part, stream.push(group));
        if (!part.empty() && out.wave.empty()) out.first_audio_ms = ms_since(start);
        out.wave.insert(out.wave.end(), part.begin(), part.end());
      }
    }
    out.codes = static_cast<std::int64_t>(all.size());
    if (options.stream) {
      PARLANDO_TRY(const auto rest, stream.finish());
      if (out.wave.empty()) out.first_audio_ms = ms_since(start);
      out.wave.insert(out.wave.end(), rest.begin(), rest.end());
    } else {
      PARLANDO_TRY(out.wave, decoder->synthesise(all, voice.prompt, options.seed));
      out.first_audio_ms = ms_since(start);
    }
    return {};
  }();
  speech_.engine->release(name);
  if (!run) return tl::make_unexpected(run.error());
  PARLANDO_TRY(out.wave, tts::apply_effects(out.wave, tts::kMelRate, options.speed, options.volume));
  out.total_ms = ms_since(start);
  return out;
}

}  // namespace parlando::cli
