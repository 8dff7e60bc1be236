/// The `parlando` command.
#include <ATen/Parallel.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdio>
#include <fstream>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>

#include "common/audio/audio_file.hpp"
#include "common/audio/resampler.hpp"
#include "common/base/codes.hpp"
#include "common/base/mapped_file.hpp"
#include "common/checkpoint/import.hpp"
#include "services/cli/bench.hpp"
#include "services/cli/bench_mesh.hpp"
#include "services/cli/bench_turn.hpp"
#include "services/cli/doctor.hpp"
#include "services/cli/local_engine.hpp"
#include "services/cli/pauses.hpp"
#include "services/cli/replay.hpp"
#include "services/cli/up.hpp"
#include "services/tokenizer/model/live.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

// Exit codes, as `parlando --help` lists them.
constexpr int kOk = 0, kFailed = 1, kUsage = 2, kNotFound = 3, kBadInput = 4, kNoSpeech = 5, kConfiguration = 78;

int exit_code(Errc code) {
  switch (code) {
    case Errc::not_found:
      return kNotFound;
    case Errc::bad_format:
    case Errc::bad_json:
    case Errc::invalid_argument:
    case Errc::unsupported:
    case Errc::checkpoint_mismatch:
      return kBadInput;
    case Errc::no_speech:
      return kNoSpeech;
    default:
      return kFailed;
  }
}

int report(const Error& error, bool as_json) {
  if (as_json)
    std::cout << json{{"error", {{"code", to_string(error.code)}, {"message", error.message}}}}.dump() << "\n";
  std::cerr << "parlando: " << error.message << "\n";
  return exit_code(error.code);
}

/// models/nano beside the executable's build tree, or in the current directory.
fs::path find_models(const char* what) {
  std::error_code code;
  const auto exe = fs::read_symlink("/proc/self/exe", code);
  for (auto folder = exe.parent_path(); !folder.empty() && folder != folder.root_path(); folder = folder.parent_path())
    if (fs::exists(folder / "models" / what)) return folder / "models" / what;
  return fs::path("models") / what;
}

struct Common {
  std::string model_path = find_models("nano").string();
  int threads = 0;
  bool bf16 = false, as_json = false;
  std::uint64_t seed = 1;

  void add(CLI::App& app) {
    app.add_option("--model-path", model_path, "folder with Step-Audio-Tokenizer, Step-Audio-Chat, Step-Audio-TTS-3B")
        ->capture_default_str();
    app.add_option("--threads", threads, "CPU threads (0 = all)")->check(CLI::Range(0, 1024));
    app.add_flag("--bf16", bf16, "language models in bfloat16");
    app.add_flag("--json", as_json, "one JSON object on stdout");
    app.add_option("--seed", seed, "seed of sampling and noise");
  }
  Result<std::unique_ptr<LocalEngine>> engine(bool chat, bool speech) const {
    if (threads > 0) at::set_num_threads(threads);
    return LocalEngine::load(
        {model_path, find_models("silero-vad") / "silero_vad.safetensors", bf16, chat, speech, seed});
  }
};

/// Runs a benchmark; with JSON, its table goes to stderr and the figures alone to stdout.
Result<json> measure(bool as_json, const std::function<Result<json>()>& bench) {
  if (!as_json) return bench();
  const int saved = dup(1);
  dup2(2, 1);
  auto done = bench();
  std::fflush(stdout);
  dup2(saved, 1);
  ::close(saved);
  if (done) std::cout << done->dump() << "\n";
  return done;
}

void bar(const std::string& what, double done) {
  if (!isatty(2)) return;
  std::fprintf(stderr, "\r%-60.60s %3.0f %%%s", what.c_str(), 100 * done, done >= 1 ? "\n" : "");
}

/// The lines of a batch that are not empty.
Result<std::vector<std::string>> read_lines(const std::string& file) {
  std::ifstream in(file);
  if (!in) return fail(Errc::not_found, "cannot open '{}'", file);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);)
    if (!line.empty()) lines.push_back(std::move(line));
  return lines;
}

json timings_json(const Timings& t) {
  return {{"vad_ms", t.vad},   {"tokenizer_ms", t.tokenizer},   {"first_text_ms", t.first_text},
          {"text_ms", t.text}, {"first_code_ms", t.first_code}, {"total_ms", t.total}};
}

int talk(const Common& common, const std::string& input, const std::string& text, const std::string& output,
         const std::string& system, const std::string& speaker) {
  if (input.empty() == text.empty())
    return report({Errc::invalid_argument, "give either a recording or --text"}, common.as_json);
  LocalEngine::Question question;
  if (!text.empty()) {
    question.text = text;
  } else {
    auto recording = audio::read_audio(input);
    if (!recording) return report(recording.error(), common.as_json);
    question.wave = std::move(recording->wave), question.rate = recording->rate;
  }
  auto engine = common.engine(true, true);
  if (!engine) return report(engine.error(), common.as_json);
  std::vector<llm::Message> history;
  auto turn = (*engine)->talk(question, system, speaker, history);
  if (!turn) return report(turn.error(), common.as_json);
  const double seconds = static_cast<double>(turn->wave.size()) / tts::kMelRate;
  if (!output.empty()) {
    std::error_code code;
    if (const auto parent = fs::path(output).parent_path(); !parent.empty()) fs::create_directories(parent, code);
    if (auto done = audio::write_wav(output, turn->wave, tts::kMelRate); !done)
      return report(done.error(), common.as_json);
  }
  if (common.as_json) {
    json out{{"transcript", turn->transcript},
             {"reply", turn->reply},
             {"tool_calls", turn->tool_calls},
             {"audio_seconds", seconds},
             {"first_audio_ms", turn->timings.first_audio},
             {"stages", timings_json(turn->timings)}};
    if (!output.empty()) out["output"] = output;
    std::cout << out.dump() << "\n";
    return kOk;
  }
  fmt::print("you:      {}\n", turn->transcript);
  for (const auto& call : turn->tool_calls)
    fmt::print("tool:     {} {} -> {}\n", call["name"].get<std::string>(), call["arguments"].dump(),
               call["result"].dump());
  fmt::print("parlando: {}\n\n", turn->reply);
  const auto& t = turn->timings;
  fmt::print("stage                          ready after\n");
  if (text.empty())
    fmt::print("  speech found (vad)           {:8.1f} ms\n  tokens (tokenizer)           {:8.1f} ms\n", t.vad,
               t.tokenizer);
  fmt::print(
      "  first text token (llm)       {:8.1f} ms\n  text complete (llm)          {:8.1f} ms\n  first code (tts llm)    "
      "     {:8.1f} ms\n  first audio (flow, "
      "vocoder)  {:8.1f} ms\n  all audio                    {:8.1f} ms   for {:.2f} s of speech\n",
      t.first_text, t.text, t.first_code, t.first_audio, t.total, seconds);
  if (!output.empty()) fmt::print("\nanswer written to {}\n", output);
  return kOk;
}

/// One JSON object a line: {wav | text, history?: [{role, content}], system?, speaker?, output?}; answers one JSON
/// object a line, in order.
int talk_batch(const Common& common, const std::string& file, const std::string& folder, bool no_speech) {
  const auto lines = read_lines(file);
  if (!lines) return report(lines.error(), common.as_json);
  auto engine = common.engine(true, !no_speech);
  if (!engine) return report(engine.error(), common.as_json);
  int failed = 0;
  for (std::size_t n = 0; n < lines->size(); ++n) {
    bar(fmt::format("{} of {}", n + 1, lines->size()), static_cast<double>(n + 1) / static_cast<double>(lines->size()));
    const auto answer = [&]() -> Result<json> {
      const auto request = json::parse((*lines)[n], nullptr, false);
      if (!request.is_object()) return fail(Errc::bad_json, "line {} is not a JSON object", n + 1);
      LocalEngine::Question question;
      if (request.contains("wav") && request["wav"].is_string()) {
        PARLANDO_TRY(auto recording, audio::read_audio(request["wav"].get<std::string>()));
        question.wave = std::move(recording.wave), question.rate = recording.rate;
      } else if (request.contains("text") && request["text"].is_string()) {
        question.text = request["text"].get<std::string>();
      } else {
        return fail(Errc::invalid_argument, "line {} has neither 'wav' nor 'text'", n + 1);
      }
      std::vector<llm::Message> history;
      if (request.contains("history")) {
        PARLANDO_TRY(history, llm::PromptBuilder::messages_of(request["history"]));
      }
      auto text = [&](const char* key) {
        return request.contains(key) && request[key].is_string() ? request[key].get<std::string>() : std::string();
      };
      PARLANDO_TRY(const auto turn, (*engine)->talk(question, text("system"), text("speaker"), history, !no_speech));
      json out{{"line", n + 1},
               {"transcript", turn.transcript},
               {"reply", turn.reply},
               {"tool_calls", turn.tool_calls},
               {"first_audio_ms", turn.timings.first_audio},
               {"audio_seconds", static_cast<double>(turn.wave.size()) / tts::kMelRate},
               {"stages", timings_json(turn.timings)}};
      if (!no_speech) {
        const auto output =
            fs::path(folder) / (text("output").empty() ? fmt::format("{:05}.wav", n + 1) : text("output"));
        std::error_code code;
        fs::create_directories(output.parent_path(), code);
        PARLANDO_DO(audio::write_wav(output, turn.wave, tts::kMelRate));
        out["output"] = output.string();
      }
      return out;
    }();
    if (!answer) ++failed;
    std::cout << (answer ? *answer
                         : json{{"line", n + 1},
                                {"error",
                                 {{"code", to_string(answer.error().code)}, {"message", answer.error().message}}}})
                     .dump()
              << "\n"
              << std::flush;
  }
  return failed == 0 ? kOk : kFailed;
}

struct SpeechJob {
  std::string text, speaker, prompt_text, wav_path, output;
  double speed = 1, volume = 1;
};

Result<json> speak_job(LocalEngine& engine, const SpeechJob& job, std::uint64_t seed, bool stream, bool clone) {
  if (job.text.empty()) return fail(Errc::invalid_argument, "the text is empty");
  Result<Spoken> spoken = fail(Errc::internal, "not run");
  const LocalEngine::SpeakOptions options{job.speed, job.volume, {}, seed, stream};
  if (clone) {
    PARLANDO_TRY(const auto recording, audio::read_audio(job.wav_path));
    PARLANDO_TRY(const auto voice, engine.clone(job.speaker, job.prompt_text, recording.wave, recording.rate));
    spoken = engine.speak_as(job.text, *voice, options);
  } else {
    spoken = engine.speak(job.text, job.speaker.empty() ? engine.default_speaker() : job.speaker, options);
  }
  if (!spoken) return tl::make_unexpected(spoken.error());
  std::error_code code;
  if (const auto parent = fs::path(job.output).parent_path(); !parent.empty()) fs::create_directories(parent, code);
  PARLANDO_DO(audio::write_wav(job.output, spoken->wave, tts::kMelRate));
  return json{{"output", job.output},
              {"audio_seconds", static_cast<double>(spoken->wave.size()) / tts::kMelRate},
              {"codes", spoken->codes},
              {"first_code_ms", spoken->first_code_ms},
              {"first_audio_ms", spoken->first_audio_ms},
              {"total_ms", spoken->total_ms}};
}

/// One JSON object a line: {text, speaker?, output?, speed?, volume?, prompt_text?, wav_path?}. Lines whose output
/// exists are skipped.
int batch(const Common& common, const std::string& file, const std::string& folder, bool stream, bool clone) {
  const auto lines = read_lines(file);
  if (!lines) return report(lines.error(), common.as_json);
  auto engine = common.engine(false, true);
  if (!engine) return report(engine.error(), common.as_json);
  int made = 0, skipped = 0, failed = 0;
  for (std::size_t n = 0; n < lines->size(); ++n) {
    const auto request = json::parse((*lines)[n], nullptr, false);
    SpeechJob job;
    if (request.is_object()) {
      auto text = [&](const char* key, std::string fallback = {}) {
        return request.contains(key) && request[key].is_string() ? request[key].get<std::string>() : fallback;
      };
      job = {text("text"),
             text("speaker"),
             text("prompt_text"),
             text("wav_path"),
             text("output", fmt::format("{:05}.wav", n + 1)),
             1,
             1};
      if (request.contains("speed") && request["speed"].is_number()) job.speed = request["speed"].get<double>();
      if (request.contains("volume") && request["volume"].is_number()) job.volume = request["volume"].get<double>();
      job.output = (fs::path(folder) / job.output).string();
    }
    bar(fmt::format("{} of {}", n + 1, lines->size()), static_cast<double>(n + 1) / static_cast<double>(lines->size()));
    if (request.is_object() && fs::exists(job.output)) {
      ++skipped;
      continue;
    }
    auto done = request.is_object() ? speak_job(**engine, job, common.seed, stream, clone)
                                    : Result<json>(fail(Errc::bad_json, "line {} is not a JSON object", n + 1));
    if (done) {
      ++made;
      (*done)["line"] = n + 1;
      if (common.as_json) std::cout << done->dump() << "\n";
    } else {
      ++failed;
      std::cerr << "parlando: line " << n + 1 << ": " << done.error().message << "\n";
      if (common.as_json)
        std::cout << json{{"line", n + 1},
                          {"error", {{"code", to_string(done.error().code)}, {"message", done.error().message}}}}
                         .dump()
                  << "\n";
    }
  }
  if (!common.as_json) fmt::print("{} made, {} skipped, {} failed\n", made, skipped, failed);
  return failed == 0 ? kOk : kFailed;
}

int speak(const Common& common, const SpeechJob& job, bool stream, bool clone) {
  auto engine = common.engine(false, true);
  if (!engine) return report(engine.error(), common.as_json);
  const auto done = speak_job(**engine, job, common.seed, stream, clone);
  if (!done) return report(done.error(), common.as_json);
  if (common.as_json)
    std::cout << done->dump() << "\n";
  else
    fmt::print("{:.2f} s of speech written to {} ({:.0f} ms, first audio after {:.0f} ms)\n",
               (*done)["audio_seconds"].get<double>(), job.output, (*done)["total_ms"].get<double>(),
               (*done)["first_audio_ms"].get<double>());
  return kOk;
}

int tokenize(const Common& common, const std::string& input, bool trim, bool no_norm, bool live, bool speech_only) {
  auto recording = audio::read_audio(input);
  if (!recording) return report(recording.error(), common.as_json);
  if (speech_only) {  // as `talk` cuts it
    const auto weights = vad::SileroWeights::load(find_models("silero-vad") / "silero_vad.safetensors");
    if (!weights) return report(weights.error(), common.as_json);
    const auto wave = audio::resample(recording->wave, recording->rate, 16000);
    const auto segment = find_speech(wave, *weights);
    if (!segment) return report(segment.error(), common.as_json);
    recording->wave.assign(wave.begin() + static_cast<std::ptrdiff_t>(segment->first),
                           wave.begin() + static_cast<std::ptrdiff_t>(segment->last));
    recording->rate = 16000;
  }
  const auto directory = fs::path(common.model_path) / "Step-Audio-Tokenizer";
  auto tokenizer = tokenizer::SpeechTokenizer::load(fs::exists(directory) ? directory : fs::path(common.model_path));
  if (!tokenizer) return report(tokenizer.error(), common.as_json);
  if (live) {
    const auto wave = (*tokenizer)->preprocess(recording->wave, recording->rate, {trim, false});
    if (!wave) return report(wave.error(), common.as_json);
    tokenizer::LiveTokenizer stream(*tokenizer, {});
    std::int64_t frozen = 0;
    for (std::size_t at = 0; at < wave->size(); at += 320) {
      const auto update =
          stream.push(std::span<const float>(*wave).subspan(at, std::min<std::size_t>(320, wave->size() - at)));
      if (!update) return report(update.error(), common.as_json);
      if (*update) frozen = (*update)->final_groups;
    }
    const auto whole = stream.exact(wave->size()), streamed = stream.stable(wave->size());
    if (!whole || !streamed) return report(whole ? streamed.error() : whole.error(), common.as_json);
    const auto *exact = &whole->codes, *stable = &streamed->codes;
    std::size_t differ = 0;
    for (std::size_t i = 0; i < exact->size(); ++i) differ += i >= stable->size() || (*exact)[i] != (*stable)[i];
    const json out{{"seconds", recording->seconds()},
                   {"codes", exact->size()},
                   {"frozen_while_speaking", frozen * kCodesPerGroup},
                   {"differ_from_exact", differ}};
    if (common.as_json)
      std::cout << out.dump() << "\n";
    else
      fmt::print("{} codes, {} frozen while speaking, {} ({:.1f} %) differ from the exact ones\n", exact->size(),
                 frozen * kCodesPerGroup, differ,
                 exact->empty() ? 0.0 : 100.0 * static_cast<double>(differ) / static_cast<double>(exact->size()));
    return kOk;
  }
  const auto codes = (*tokenizer)->codes(recording->wave, recording->rate, {trim, !no_norm});
  if (!codes) return report(codes.error(), common.as_json);
  if (common.as_json)
    std::cout << json{{"seconds", recording->seconds()}, {"codes", *codes}}.dump() << "\n";
  else
    std::cout << to_token_string(*codes) << "\n";
  return kOk;
}

}  // namespace

int run(int argc, char** argv) {
  CLI::App app{"parlando: spoken dialogue with the Step-Audio models"};
  app.require_subcommand(1);
  app.footer(
      "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 bad input, 5 no speech; up and serve: 78 "
      "configuration, 70 stood still.");
  Common common;
  std::string input, text, output, system, speaker, batch_file, out_dir = "out", prompt_text, wav_path, import_to;
  double speed = 1, volume = 1;
  bool live = false, speech_only = false, no_speech = false, offline = false, trim = false, no_norm = false;
  BenchOptions bench;

  auto* c_talk = app.add_subcommand("talk", "answer a recorded question, or --text, with speech");
  common.add(*c_talk);
  c_talk->add_option("recording", input, "WAV, FLAC, OGG or MP3 of any rate");
  c_talk->add_option("--text", text, "ask in writing instead");
  c_talk->add_option("-o,--output", output, "write the answer to this WAV");
  c_talk->add_option("--system", system, "system prompt");
  c_talk->add_option("--speaker", speaker, "voice of the answer");
  c_talk->add_option("--batch", batch_file,
                     "JSON lines: {wav | text, history?, system?, output?} each; one JSON object a line comes back");
  c_talk->add_option("--out-dir", out_dir, "folder for the answers of --batch")->capture_default_str();
  c_talk->add_flag("--no-speech", no_speech, "with --batch: answer in text only");

  auto* c_tts =
      app.add_subcommand("tts", "speak a text; leading tags such as (快速1), (RAP), (哼唱) choose style and mode");
  common.add(*c_tts);
  c_tts->add_option("text", text, "what to say");
  c_tts->add_option("-o,--output", output, "WAV to write")->default_str("out/speech.wav");
  c_tts->add_option("--speaker", speaker, "built-in voice");
  auto* c_clone = app.add_subcommand("clone", "speak a text in the voice of a recording");
  common.add(*c_clone);
  c_clone->add_option("text", text, "what to say");
  c_clone->add_option("--speaker", speaker, "name of the new voice");
  c_clone->add_option("--prompt-text", prompt_text, "what is said in the recording");
  c_clone->add_option("--wav-path", wav_path, "the recording");
  c_clone->add_option("-o,--output", output, "WAV to write")->default_str("out/speech.wav");
  for (auto* c : {c_tts, c_clone}) {
    c->add_option("--speed", speed, "tempo ratio, 0.5…2");
    c->add_option("--volume", volume, "volume ratio, 0.1…10");
    c->add_option("--batch", batch_file, "JSON lines: one request each; finished outputs are skipped");
    c->add_option("--out-dir", out_dir, "folder for --batch")->capture_default_str();
    c->add_flag("--offline", offline, "decode the whole utterance at once instead of streaming");
  }
  auto* c_tokenize = app.add_subcommand("tokenize", "print the dual-codebook tokens of a recording");
  common.add(*c_tokenize);
  c_tokenize->add_option("recording", input)->required();
  c_tokenize->add_flag("--trim", trim, "cut silence at both ends, as for voice prompts");
  c_tokenize->add_flag("--live", live,
                       "tokenise as if spoken now (mode `stable`) and count the ids that differ from the exact ones");
  c_tokenize->add_flag("--no-norm", no_norm, "keep the level as it is");
  PausesOptions pauses;
  auto* c_pauses = app.add_subcommand("pauses", "print where a recording pauses and how complete it sounds there");
  common.add(*c_pauses);
  c_pauses->add_option("recordings", pauses.recordings, "WAV, FLAC, OGG or MP3 of any rate");
  c_pauses->add_option("--list", pauses.list, "a file that names one recording a line");
  c_pauses->add_flag("--live", pauses.live, "tokenised while it is spoken (mode `stable`) instead of at the pause");
  c_pauses->add_option("--states", pauses.states, "file for what the network sees, to train it");
  auto* c_import = app.add_subcommand("import", "convert an official model directory to safetensors");
  c_import->add_option("source", input)->required();
  c_import->add_option("target", import_to)->required();
  auto* c_bench = app.add_subcommand("bench", "measure tokenizer, lm, flow, vocoder, tts, speaker, mesh or turn");
  c_bench->add_option("name", bench.name, "tokenizer | lm | flow | vocoder | tts | speaker | mesh | turn")->required();
  c_bench->add_option("--random-weights", bench.random_weights,
                      "configuration of a random checkpoint, e.g. configs/official/step1-3b.json");
  c_bench->add_option("--threads", bench.threads)->capture_default_str();
  c_bench->add_option("--runs", bench.runs)->capture_default_str();
  c_bench->add_option("--seconds", bench.seconds, "audio per run; mesh: time of a run, default 10")
      ->capture_default_str();
  MeshBenchOptions mesh;
  c_bench->add_option("--sessions", mesh.sessions, "mesh: sessions that listen")
      ->capture_default_str()
      ->check(CLI::Range(1, 240));
  c_bench->add_option("--turns", mesh.turns, "mesh: turns of the long conversation; turn: spoken turns")
      ->capture_default_str()
      ->check(CLI::Range(10, 10'000'000));
  c_bench->add_option("--only", mesh.only, "mesh: round_trip, idle, frames, answering, flood, turns")
      ->check(CLI::IsMember(std::vector<std::string>(std::begin(kMeshParts), std::end(kMeshParts))));
  std::string detector = "silence";
  c_bench->add_option("--detector", detector, "turn: what finds the end of speech: silence, semantic or both")
      ->capture_default_str()
      ->check(CLI::IsMember({"silence", "semantic", "both"}));
  bool fp32 = false;
  c_bench->add_flag("--fp32", fp32, "language model in float32 instead of bfloat16");
  c_bench->add_option("--model-path", common.model_path);
  c_bench->add_flag("--json", common.as_json);
  auto* c_doctor = app.add_subcommand("doctor", "report processor features, GPUs, libraries and models");
  c_doctor->add_option("--model-path", common.model_path);
  c_doctor->add_flag("--json", common.as_json);

  c_tokenize->add_flag("--speech-only", speech_only, "only the speech that talk would hear in the recording");
  std::string eval_model, eval_work = "work/nano";
  auto* c_eval = app.add_subcommand(
      "eval", "judge the bundled model through this runtime; needs the training data of `make nano`");
  c_eval->add_option("model", eval_model, "nano")->required();
  c_eval->add_option("--work", eval_work, "folder of the training data")->capture_default_str();
  c_eval->footer("Passed on: --only listen|talk|speak|style, --count N, --limit N, --humans DIR");
  c_eval->allow_extras();
  UpOptions engine;
  std::vector<std::string> replicas;
  auto service_options = [&](CLI::App& c) {
    c.add_option("--model-path", common.model_path,
                 "folder with Step-Audio-Tokenizer, Step-Audio-Chat, Step-Audio-TTS-3B")
        ->capture_default_str();
    c.add_option("--config", engine.config,
                 "JSON file with the list of instances instead of everything for --model-path");
    c.add_flag("--check-config", engine.check, "report every problem of the configuration and exit");
    c.add_flag("--processes", engine.processes,
               "one supervised child process per service over ipc, instead of threads over inproc");
    c.add_option("--replicas", replicas, "ROLE=N, for any role");
    c.add_option("--run-folder", engine.run_folder,
                 "with --processes: where the children meet; `parlando scale` finds the engine by it");
    c.add_option("--tools", engine.tools,
                 "who runs the model's tool calls: none, or demo for the tools that the bundled model knows")
        ->check(CLI::IsMember({"none", "demo"}));
    c.add_option("--step-limit-ms", engine.step_limit_ms,
                 "work of a model that takes longer counts as hung; default 2000, 30000 for other models");
    c.add_option("--listen", engine.listen, "address of the gateway")->capture_default_str();
    c.add_option("--keys-file", engine.keys_file, "who may use /v1: lines of SHA-256 and name; empty: everybody")
        ->check(CLI::ExistingFile);
    c.add_option("--store", engine.store,
                 "where committed turns are kept: a file, :memory: for nowhere, or postgresql://…")
        ->capture_default_str();
    c.add_option("--metrics-port", engine.metrics_port,
                 "of /metrics, /healthz and /readyz: one per role from here on, then one per second replica, …")
        ->check(CLI::Range(0, 65000));
    c.add_option("--threads", engine.threads, "threads of each model")->capture_default_str();
    c.add_flag("--bf16", engine.bf16, "language models in bfloat16");
    c.add_option("--record", engine.record,
                 "folder: everything that reaches the controllers, the users' speech too, for `parlando replay`");
  };
  auto* c_up = app.add_subcommand("up", "run the engine: all services in one process, or supervised with --processes");
  auto* c_serve = app.add_subcommand("serve", "run the engine and its page");
  service_options(*c_up);
  service_options(*c_serve);
  ReplayOptions replayed;
  auto* c_replay = app.add_subcommand("replay", "make the decisions of a recording again and compare them");
  c_replay->add_option("recording", replayed.file, "written by `--record`")->required();
  c_replay->add_option("--session", replayed.session, "print its messages; all: of every session");
  c_replay->add_flag("--json", replayed.as_json, "one JSON object on stdout");
  auto* c_scale = app.add_subcommand("scale", "set the number of replicas in a running engine");
  c_scale->add_option("--run-folder", engine.run_folder, "of `up --processes --run-folder`")->required();
  c_scale->add_option("replicas", replicas, "ROLE=N …")->required();

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    const int code = app.exit(e);
    return code == 0 ? kOk : kUsage;
  }
  if (*c_talk && !batch_file.empty()) return talk_batch(common, batch_file, out_dir, no_speech);
  if (*c_talk) return talk(common, input, text, output, system, speaker);
  if (*c_tts || *c_clone) {
    const bool clone = c_clone->parsed();
    if (output.empty()) output = "out/speech.wav";
    if (!batch_file.empty()) return batch(common, batch_file, out_dir, !offline, clone);
    if (clone && wav_path.empty())
      return report({Errc::invalid_argument, "clone needs --wav-path with a recording of the voice"}, common.as_json);
    return speak(common, {text, speaker, prompt_text, wav_path, output, speed, volume}, !offline, clone);
  }
  if (*c_replay) {
    const auto done = replay(replayed);
    return done ? *done : report(done.error(), replayed.as_json);
  }
  if (*c_tokenize) return tokenize(common, input, trim, no_norm, live, speech_only);
  if (*c_pauses) {
    pauses.model_path = common.model_path;
    pauses.vad_weights = find_models("silero-vad") / "silero_vad.safetensors";
    if (common.threads > 0) at::set_num_threads(common.threads);
    const auto done = print_pauses(pauses, common.as_json);
    return done ? kOk : report(done.error(), common.as_json);
  }
  if (*c_import) {
    const auto done = checkpoint::import_directory(input, import_to, bar);
    if (!done) return report(done.error(), false);
    fmt::print("imported into {}\n", import_to);
    return kOk;
  }
  if (*c_bench) {
    bench.model_path = common.model_path;
    bench.bf16 = !fp32;
    if (bench.name == "mesh") {
      mesh.model_path = common.model_path;
      mesh.source = find_models("silero-vad").parent_path().parent_path();
      mesh.runs = bench.runs;
      if (c_bench->count("--seconds") > 0) mesh.seconds = bench.seconds;
      const auto done = measure(common.as_json, [&] { return bench_mesh(mesh); });
      if (!done) return report(done.error(), common.as_json);
      return (*done)["missed"].empty() ? kOk : kFailed;
    }
    if (bench.name == "turn") {
      TurnBenchOptions turn;
      turn.model_path = common.model_path;
      turn.source = find_models("silero-vad").parent_path().parent_path();
      if (c_bench->count("--turns") > 0) turn.turns = mesh.turns;
      if (detector != "silence") turn.detector = detector == "both" ? Detector::both : Detector::semantic;
      const auto done = measure(common.as_json, [&] { return bench_turn(turn); });
      if (!done) return report(done.error(), common.as_json);
      return (*done)["missed"].empty() ? kOk : kFailed;
    }
    const auto done = measure(common.as_json, [&] { return run_bench(bench); });
    return done ? kOk : report(done.error(), common.as_json);
  }
  if (*c_eval) {
    if (eval_model != "nano")
      return report(
          {Errc::invalid_argument, fmt::format("there is no evaluation of '{}'; there is one of nano", eval_model)},
          false);
    const auto root = find_models("nano").parent_path().parent_path();
    const auto python = root / ".deps/venv/bin/python";
    if (!fs::is_directory(root / eval_work / "speech") && !fs::is_directory(fs::path(eval_work) / "speech"))
      return report({Errc::not_found,
                     fmt::format("'{}' holds no speech; `make nano` makes the data, trains and evaluates", eval_work)},
                    false);
    if (::access(python.c_str(), X_OK) != 0)
      return report({Errc::not_found, fmt::format("'{}' is missing: run tools/setup.sh --nano", python.string())},
                    false);
    const auto self = fs::canonical("/proc/self/exe").string();
    std::vector<std::string> words{python.string(), "-W",         "ignore", "-m", "tools.nano.judge.evaluate",
                                   eval_work,       "--parlando", self};
    for (const auto& word : c_eval->remaining()) words.push_back(word);
    std::vector<char*> arguments;
    for (auto& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    fs::current_path(root);
    ::execv(arguments[0], arguments.data());
    return report({Errc::io, "python could not be started"}, false);
  }
  if (*c_up || *c_serve || *c_scale) {
    for (const auto& r : replicas) {
      const auto cut = r.find('=');
      int n = -1;
      const auto* const end = r.data() + r.size();
      const bool number = cut != std::string::npos && std::from_chars(r.data() + cut + 1, end, n).ptr == end;
      const auto role = r.substr(0, cut);
      constexpr const char* kRoles[] = {"vad", "tokenizer", "llm-chat",   "llm-tts",
                                        "tts", "context",   "controller", "gateway"};
      if (!number || n < 1 || n > 64 || std::find(std::begin(kRoles), std::end(kRoles), role) == std::end(kRoles)) {
        report({Errc::invalid_argument, fmt::format("{}, expected ROLE=N with 1 to 64 of a role of the engine", r)},
               false);
        return kUsage;
      }
      engine.replicas[role] = n;
    }
    if (*c_scale) {
      const auto done = scale(engine.run_folder, engine.replicas);
      return done ? kOk : report(done.error(), false);
    }
    // Official sizes on a processor: one unit of work takes seconds.
    const bool bundled = fs::weakly_canonical(common.model_path) == fs::weakly_canonical(find_models("nano"));
    if (c_up->count("--step-limit-ms") + c_serve->count("--step-limit-ms") == 0)
      engine.step_limit_ms = bundled ? 2000 : 30000;
    if (bundled && c_up->count("--tools") + c_serve->count("--tools") == 0) engine.tools = "demo";
    engine.model_path = common.model_path;
    engine.vad_weights = (find_models("silero-vad") / "silero_vad.safetensors").string();
    engine.source = find_models("silero-vad").parent_path().parent_path().string();
    engine.page = c_serve->parsed();
    engine.bin = fs::canonical("/proc/self/exe").parent_path().string();
    const auto done = up(engine);
    if (done) return *done;
    report(done.error(), false);
    return done.error().code == Errc::invalid_argument ? kConfiguration : exit_code(done.error().code);
  }
  return doctor(common.model_path, common.as_json);
}

}  // namespace parlando::cli

int main(int argc, char** argv) { return parlando::cli::run(argc, argv); }
