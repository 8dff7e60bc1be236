#include "services/cli/local_engine.hpp"

#include <algorithm>
#include <ctime>

#include "common/audio/resampler.hpp"
#include "common/base/codes.hpp"
#include "common/base/mapped_file.hpp"
#include "services/tts/model/effects.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

double ms_since(std::chrono::steady_clock::time_point start) { return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count(); }

constexpr std::int32_t kCallStart = 5, kCallEnd = 6, kEot = 3;
constexpr int kToolRoundsMax = 3;

/// Defaults of the official calls, overridden by the checkpoint's generation_config.json.
Result<llm::Sampling> sampling_of(const fs::path& directory, llm::Sampling defaults) {
  if (!fs::exists(directory / "generation_config.json")) return defaults;
  PARLANDO_TRY(const auto text, read_file(directory / "generation_config.json", 1u << 20));
  const auto config = json::parse(text, nullptr, false);
  if (!config.is_object()) return fail(Errc::bad_json, "'{}/generation_config.json' is not a JSON object", directory.string());
  if (config.value("do_sample", true) == false) return llm::Sampling::greedy();
  if (config.contains("temperature")) defaults.temperature = config["temperature"].get<double>();
  if (config.contains("top_k")) defaults.top_k = config["top_k"].get<std::int64_t>();
  if (config.contains("top_p")) defaults.top_p = config["top_p"].get<double>();
  if (config.contains("repetition_aware")) defaults.repetition_aware = config["repetition_aware"].get<bool>();
  return defaults;
}

Result<std::string> expect_directory(const fs::path& root, const char* name, const char* what) {
  if (fs::is_directory(root / name)) return (root / name).string();
  return fail(Errc::not_found, "'{}' does not exist: the model path '{}' must hold Step-Audio-Tokenizer, Step-Audio-Chat and Step-Audio-TTS-3B ({}); official downloads are converted by `parlando import DIR OUT`",
              (root / name).string(), root.string(), what);
}

}  // namespace

json run_demo_tool(const std::string& name, const json& arguments) {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  static constexpr const char* kDays[] = {"sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"};
  static constexpr const char* kMonths[] = {"january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december"};
  if (name == "get_time") return {{"hour", (local.tm_hour + 11) % 12 + 1}, {"minute", local.tm_min}};
  if (name == "get_date") return {{"day", kDays[local.tm_wday]}, {"month", kMonths[local.tm_mon]}, {"date", local.tm_mday}};
  if (name == "set_timer") return {{"amount", arguments.value("amount", 0)}, {"unit", arguments.value("unit", "minute")}};
  if (name == "get_weather") return {{"city", arguments.value("city", "")}, {"day", arguments.value("day", "today")}, {"sky", "sunny"}, {"degrees", 20}};
  return {{"error", "unknown tool " + name}};
}

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
  if (first < 0) return fail(Errc::no_speech, "no speech was found in {:.2f} s of audio", static_cast<double>(wave.size()) / 16000);
  const std::size_t begin = static_cast<std::size_t>(std::max<std::ptrdiff_t>(0, first - 4800)), end = std::min(wave.size(), static_cast<std::size_t>(last) + 3200);
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
    PARLANDO_TRY(const auto model, llm::Step1::load(checked, dtype));
    e->chat_ = std::make_shared<llm::LmEngine>(model, llm::LmEngine::Limits{});
    PARLANDO_TRY(e->chat_text_, llm::TextTokenizer::load(chat_dir));
    PARLANDO_TRY(e->chat_sampling_, sampling_of(chat_dir, llm::Sampling::chat()));
    e->chat_prompt_ = "适配用户的语言，用简短口语化的文字回答";   // default of the official demo
    if (fs::exists(chat_dir / "prompts.json")) {
      PARLANDO_TRY(const auto text, read_file(chat_dir / "prompts.json", 1u << 20));
      e->chat_prompt_ = json::parse(text).value("chat", e->chat_prompt_);
    }
  }
  if (options.speech) {
    PARLANDO_TRY(const auto checked, expect_directory(root, "Step-Audio-TTS-3B", "text-to-speech model"));
    std::error_code code;
    const bool shared = e->chat_ && fs::equivalent(chat_dir / "model.safetensors", speech_dir / "model.safetensors", code);
    if (shared) {
      e->speech_ = e->chat_;
    } else {
      PARLANDO_TRY(const auto model, llm::Step1::load(checked, dtype));
      e->speech_ = std::make_shared<llm::LmEngine>(model, llm::LmEngine::Limits{});
    }
    PARLANDO_TRY(e->speech_text_, llm::TextTokenizer::load(speech_dir));
    PARLANDO_TRY(e->speech_sampling_, sampling_of(speech_dir, llm::Sampling::tts()));
    e->prompts_ = llm::TtsPrompts::official();
    if (fs::exists(speech_dir / "prompts.json")) {
      PARLANDO_TRY(const auto text, read_file(speech_dir / "prompts.json", 1u << 20));
      const auto p = json::parse(text);
      e->prompts_ = {p.at("sys_prompt_with_spk"), p.at("sys_prompt_wo_spk"), p.at("sys_prompt_for_rap"), p.at("sys_prompt_for_vocal")};
    }
    PARLANDO_TRY(e->common_, tts::SpeechDecoder::load(speech_dir / "CosyVoice-300M-25Hz", at::kFloat));
    if (fs::is_directory(speech_dir / "CosyVoice-300M-25Hz-Music")) {
      PARLANDO_TRY(e->music_, tts::SpeechDecoder::load(speech_dir / "CosyVoice-300M-25Hz-Music", at::kFloat));
    }
    auto tokenizer = e->tokenizer_;
    const auto speakers = fs::is_directory(speech_dir / "speakers") ? speech_dir / "speakers" : root / "speakers";
    PARLANDO_TRY(e->voices_, tts::Voices::load(speakers, e->common_->speaker(), [tokenizer](std::span<const float> wave, int rate) {
      return tokenizer->codes(wave, rate, {.trim = true, .energy_norm = true});
    }));
  }
  return e;
} catch (const json::exception& error) {
  return fail(Errc::bad_json, "a configuration of '{}' is malformed: {}", options.model_path.string(), error.what());
}

std::string LocalEngine::default_speaker() const {
  const auto names = voices();
  if (std::find(names.begin(), names.end(), "Tingting") != names.end()) return "Tingting";
  return names.empty() ? "" : names.front();
}

Result<TurnResult> LocalEngine::talk(const Question& question, const std::string& system, const std::string& speaker, std::vector<llm::Message>& history, bool speak_reply) {
  TurnResult out;
  const auto start = std::chrono::steady_clock::now();
  std::vector<llm::Message> messages;
  messages.push_back({"system", system.empty() ? chat_prompt_ : system});
  messages.insert(messages.end(), history.begin(), history.end());
  const bool spoken = !question.text;
  if (spoken) {
    out.question_seconds = static_cast<double>(question.wave.size()) / question.rate;
    if (out.question_seconds < 0.1) return fail(Errc::no_speech, "the recording has {:.3f} s, at least 0.1 s are needed", out.question_seconds);
    auto wave = audio::resample(question.wave, question.rate, 16000);
    PARLANDO_TRY(const auto segment, find_speech(wave, vad_));
    const double seconds = static_cast<double>(segment.last - segment.first) / 16000;
    if (seconds > 30) return fail(Errc::invalid_argument, "the recording holds {:.0f} s of speech, one turn takes at most 30 s", seconds);
    out.timings.vad = ms_since(start);
    PARLANDO_TRY(const auto codes, tokenizer_->codes(std::span<const float>(wave).subspan(segment.first, segment.last - segment.first), 16000, {}));
    if (codes.empty()) return fail(Errc::no_speech, "{:.2f} s of speech are too short to be understood", seconds);
    messages.push_back({"user", codes});
  } else {
    if (question.text->empty()) return fail(Errc::invalid_argument, "the text is empty");
    messages.push_back({"user", *question.text});
  }
  out.timings.tokenizer = ms_since(start);

  const llm::PromptBuilder builder(chat_text_, true);
  const bool transcript_first = spoken && chat_->model().config().reply_format == "transcript_first";
  const auto name = fmt::format("chat-{}", names_++);
  const auto turn = [&]() -> Result<void> {
    PARLANDO_DO(chat_->open(name));
    std::vector<std::int32_t> ids;
    for (int round = 0;; ++round) {
      const auto prompt = builder.chat_offline(messages);
      // The cache keeps what the prompt shares with the round before; only the rest is computed.
      const auto shared = static_cast<std::int64_t>(std::mismatch(ids.begin(), ids.end(), prompt.begin(), prompt.end()).first - ids.begin());
      PARLANDO_DO(chat_->truncate(name, shared));
      PARLANDO_TRY(const auto length, chat_->append(name, shared, std::span(prompt).subspan(static_cast<std::size_t>(shared))));
      ids = prompt;
      auto sampling = chat_sampling_;
      sampling.seed = options_.seed;
      PARLANDO_DO(chat_->generate(name, length, {sampling, 2048}));
      llm::StreamDecoder decoder(chat_text_);
      std::string text, call;
      bool calling = false, done = false;
      while (!done) {
        const auto events = chat_->step();
        if (events.empty() && chat_->idle()) return fail(Errc::internal, "the language model stopped without an end");
        for (const auto& event : events) {
          if (event.sequence != name) continue;
          if (event.finish == llm::Finish::error) return fail(Errc::internal, "{}", event.error);
          done = event.finish != llm::Finish::none;
          ids.push_back(event.id);
          if (event.id == kEot) continue;
          if (event.id == kCallStart) { calling = true; continue; }
          if (event.id == kCallEnd) { calling = false; continue; }
          (calling ? call : text) += decoder.push(event.id);
          if (out.timings.first_text == 0) out.timings.first_text = ms_since(start);
        }
      }
      text += decoder.finish();
      if (transcript_first && round == 0) {
        const auto cut = text.find('\n');
        out.transcript = text.substr(0, cut);
        text = cut == std::string::npos ? std::string() : text.substr(cut + 1);
        if (cut == std::string::npos && call.empty()) text = "please repeat.";   // a transcript without a reply
        messages.back().content = out.transcript;   // history and the tool round see the text, as the context manager will
      }
      if (!chat_->model().config().tool_calls || call.empty() || round >= kToolRoundsMax) {
        out.reply = text;
        break;
      }
      const auto request = json::parse(call, nullptr, false);
      if (!request.is_object() || !request.contains("name")) { out.reply = text.empty() ? "i did not understand." : text; break; }
      const auto arguments = request.value("arguments", json::object());
      const auto result = run_demo_tool(request["name"].get<std::string>(), arguments);
      out.tool_calls.push_back({{"name", request["name"]}, {"arguments", arguments}, {"result", result}});
      messages.push_back({"assistant", "<|CALL_START|>" + call + "<|CALL_END|>"});
      messages.push_back({"tool", result.dump()});
    }
    return {};
  }();
  chat_->release(name);
  if (!turn) return tl::make_unexpected(turn.error());
  if (!spoken) out.transcript = *question.text;
  out.timings.text = ms_since(start);
  history.push_back({"user", out.transcript});
  history.push_back({"assistant", out.reply});
  if (speak_reply && !out.reply.empty()) {
    PARLANDO_TRY(auto spoken_reply, speak(out.reply, speaker.empty() ? default_speaker() : speaker, {.seed = options_.seed}));
    out.wave = std::move(spoken_reply.wave);
    out.timings.first_code = out.timings.text + spoken_reply.first_code_ms;
    out.timings.first_audio = out.timings.text + spoken_reply.first_audio_ms;
  }
  out.timings.total = ms_since(start);
  return out;
}

Result<Spoken> LocalEngine::speak(const std::string& text, const std::string& speaker, const SpeakOptions& options) {
  const auto mode = llm::tts_mode(text, speaker, false);
  PARLANDO_TRY(const auto voice, voices_->get(mode.speaker_key));
  return synthesise(text, *voice, mode, false, options);
}

Result<Spoken> LocalEngine::speak_as(const std::string& text, const tts::Voice& voice, const SpeakOptions& options) {
  return synthesise(text, voice, llm::tts_mode(text, "", true), true, options);
}

Result<std::shared_ptr<const tts::Voice>> LocalEngine::clone(const std::string& name, const std::string& text, std::span<const float> wave, int rate) {
  return voices_->clone(name, text, wave, rate);
}

Result<Spoken> LocalEngine::synthesise(const std::string& text, const tts::Voice& voice, const llm::TtsMode& mode, bool clone, const SpeakOptions& options) {
  Spoken out;
  const auto start = std::chrono::steady_clock::now();
  if (mode.vocoder == llm::Vocoder::music && !music_) return fail(Errc::not_found, "this model has no CosyVoice-300M-25Hz-Music directory for singing");
  const auto& decoder = mode.vocoder == llm::Vocoder::music ? music_ : common_;
  std::string system = mode.system_prompt == "vocal" ? prompts_.vocal : mode.system_prompt == "rap" ? prompts_.rap : clone ? prompts_.without_speaker : prompts_.with_speaker;
  if (const auto hole = system.find("{}"); hole != std::string::npos) system.replace(hole, 2, voice.name);
  const llm::PromptBuilder builder(speech_text_, true);
  const auto prompt = builder.tts({system, voice.text, text, voice.prompt.codes});
  constexpr std::int64_t kLengthMax = 8192;   // includes the prompt, as in the official call
  const auto limit = std::min(kLengthMax, speech_->model().config().length_max);
  if (static_cast<std::int64_t>(prompt.size()) + 5 >= limit) return fail(Errc::invalid_argument, "the prompt has {} tokens, at most {} are possible", prompt.size(), limit - 5);
  const auto name = fmt::format("speech-{}", names_++);
  const auto run = [&]() -> Result<void> {
    PARLANDO_DO(speech_->open(name));
    PARLANDO_TRY(const auto length, speech_->append(name, 0, prompt));
    auto sampling = options.sampling.value_or(speech_sampling_);
    sampling.seed = options.seed;
    PARLANDO_DO(speech_->generate(name, length, {sampling, limit - static_cast<std::int64_t>(prompt.size()), {kEot}, llm::Priority::speech}));
    GroupCollector groups;
    std::vector<std::int32_t> all;
    tts::SpeechStream stream(decoder, voice.prompt, {.seed = options.seed});
    const auto base = speech_text_->audio_base();
    for (bool done = false; !done;) {
      const auto events = speech_->step();
      if (events.empty() && speech_->idle()) return fail(Errc::internal, "the speech model stopped without an end");
      for (const auto& event : events) {
        if (event.sequence != name) continue;
        if (event.finish == llm::Finish::error) return fail(Errc::internal, "{}", event.error);
        done = event.finish != llm::Finish::none;
        if (event.id == kEot) continue;
        if (out.first_code_ms == 0) out.first_code_ms = ms_since(start);
        const auto group = groups.push(event.id - base);
        if (group.empty()) continue;
        all.insert(all.end(), group.begin(), group.end());
        if (!options.stream) continue;
        const double played = out.first_audio_ms > 0 ? (ms_since(start) - out.first_audio_ms) / 1000 : 0;
        PARLANDO_TRY(const auto part, stream.push(group, static_cast<double>(out.wave.size()) / tts::kMelRate - played));
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
  speech_->release(name);
  if (!run) return tl::make_unexpected(run.error());
  PARLANDO_TRY(out.wave, tts::apply_effects(out.wave, tts::kMelRate, options.speed, options.volume));
  out.total_ms = ms_since(start);
  return out;
}

}  // namespace parlando::cli
