/// The `parlando` command: options of its subcommands, and which function each one is.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdio>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>

#include "common/checkpoint/import.hpp"
#include "common/nn/threads.hpp"
#include "kernels/team/pool.hpp"
#include "kernels/vector/isa.hpp"
#include "services/cli/bench.hpp"
#include "services/cli/bench_lm.hpp"
#include "services/cli/bench_mesh.hpp"
#include "services/cli/bench_turn.hpp"
#include "services/cli/capacity.hpp"
#include "services/cli/chat.hpp"
#include "services/cli/command.hpp"
#include "services/cli/doctor.hpp"
#include "services/cli/ends.hpp"
#include "services/cli/eval.hpp"
#include "services/cli/language.hpp"
#include "services/cli/load.hpp"
#include "services/cli/pauses.hpp"
#include "services/cli/replay.hpp"
#include "services/cli/speak.hpp"
#include "services/cli/talk.hpp"
#include "services/cli/tokenize.hpp"
#include "services/cli/top.hpp"
#include "services/cli/up.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr const char* kModelHelp = "folder with Step-Audio-Tokenizer, Step-Audio-Chat, Step-Audio-TTS-3B";

/// A subcommand: its options, filled when it is parsed, and what it does.
class Command {
 public:
  Command(CLI::App& app, std::string name, std::string help) : sub(*app.add_subcommand(std::move(name), help)) {}
  CLI::App& sub;
  std::function<int()> run;
};
using Commands = std::vector<Command>;

Command& add(Commands& commands, CLI::App& app, std::string name, std::string help) {
  return commands.emplace_back(app, std::move(name), std::move(help));
}

/// Options of most commands. @return filled when the command is parsed
std::shared_ptr<Common> add_common(CLI::App& sub) {
  auto common = std::make_shared<Common>();
  common->model_path = find_models("nano").string();
  sub.add_option("--model-path", common->model_path, kModelHelp)->capture_default_str();
  sub.add_option("--threads", common->threads,
                 "CPU threads (0: all that the process may use, half of them for each model of an engine)")
      ->check(CLI::Range(0, 1024));
  sub.add_flag("--bf16", common->bf16, "language models in bfloat16");
  sub.add_flag("--json", common->as_json, "one JSON object on stdout");
  sub.add_option("--seed", common->seed, "seed of sampling and noise");
  return common;
}

void add_address(CLI::App& sub, EngineAddress& to) {
  sub.add_option("--connect", to.endpoint,
                 "ZeroMQ endpoint of an engine that runs, as `parlando serve` prints it; else one is started here");
  auto* mine = sub.add_option("--public-key", to.public_key, "with --connect tcp://…: file of our CURVE key");
  auto* secret = sub.add_option("--secret-key", to.secret_key, "file of our secret CURVE key");
  auto* theirs = sub.add_option("--server-key", to.server_key, "file of the gateways' public CURVE key");
  mine->needs(secret, theirs), secret->needs(mine), theirs->needs(mine);
  sub.add_option("--client-name", to.name, "the name that the engine has bound the key to")->capture_default_str();
}

// ------------------------------------------------------------------------------------------------ clients

void add_talk(Commands& commands, CLI::App& app) {
  auto& c = add(commands, app, "talk", "answer a recorded question, or --text, with speech");
  auto& sub = c.sub;
  const auto common = add_common(sub);
  const auto o = std::make_shared<TalkOptions>();
  add_address(sub, o->address);
  sub.add_option("recording", o->recording, "WAV, FLAC, OGG or MP3 of any rate");
  sub.add_option("--text", o->text, "ask in writing instead");
  sub.add_option("-o,--output", o->output, "write the answer to this WAV");
  sub.add_option("--system", o->system, "system prompt");
  sub.add_option("--speaker", o->speaker, "voice of the answer");
  sub.add_flag("--trace", o->trace, "draw the parts of the turn's time");
  auto* live = sub.add_flag("--live", o->live, "say the recording in real time, as a person would");
  sub.add_option("--detector", o->detector, "with --live: what finds the end of speech")
      ->capture_default_str()
      ->check(CLI::IsMember({"silence", "semantic"}))
      ->needs(live);
  auto* batch =
      sub.add_option("--batch", o->batch_file,
                     "JSON lines: {wav | text, history?, system?, output?} each; one JSON object a line comes "
                     "back");
  sub.add_option("--out-dir", o->out_dir, "folder for the answers of --batch")->capture_default_str();
  sub.add_flag("--no-speech", o->no_speech, "with --batch: answer in text only")->needs(batch);
  c.run = [=] { return o->batch_file.empty() ? talk(*common, *o) : talk_batch(*common, *o); };
}

void add_speak(Commands& commands, CLI::App& app, bool clone) {
  auto& c = clone ? add(commands, app, "clone", "speak a text in the voice of a recording")
                  : add(commands, app, "tts",
                        "speak a text; leading tags such as (快速1), (RAP), (哼唱) choose style and mode");
  auto& sub = c.sub;
  const auto common = add_common(sub);
  const auto o = std::make_shared<SpeakOptions>();
  o->clone = clone;
  add_address(sub, o->address);
  sub.add_option("text", o->job.text, "what to say");
  sub.add_option("-o,--output", o->job.output, "WAV to write")->default_str("out/speech.wav");
  if (clone) {
    sub.add_option("--speaker", o->job.speaker, "name of the new voice");
    sub.add_option("--prompt-text", o->job.prompt_text, "what is said in the recording");
    sub.add_option("--wav-path", o->job.wav_path, "the recording");
  } else {
    sub.add_option("--speaker", o->job.speaker, "built-in voice");
  }
  sub.add_option("--speed", o->job.speed, "tempo ratio, 0.25…4")->check(CLI::Range(0.25, 4.0));
  sub.add_option("--volume", o->job.volume, "volume ratio, 0.1…10")->check(CLI::Range(0.1, 10.0));
  sub.add_option("--batch", o->batch_file, "JSON lines: one request each; finished outputs are skipped");
  sub.add_option("--out-dir", o->out_dir, "folder for --batch")->capture_default_str();
  sub.add_flag("--offline", o->whole, "decode a sentence at once instead of streaming");
  c.run = [=] {
    if (o->job.output.empty()) o->job.output = "out/speech.wav";
    return o->batch_file.empty() ? speak(*common, *o) : speak_batch(*common, *o);
  };
}

void add_chat(Commands& commands, CLI::App& app) {
  auto& c = add(commands, app, "chat", "a conversation in this terminal, typed or with --listen spoken");
  auto& sub = c.sub;
  const auto common = add_common(sub);
  const auto o = std::make_shared<ChatOptions>();
  add_address(sub, o->address);
  sub.add_option("--system", o->system, "system prompt");
  sub.add_option("--speaker", o->speaker, "voice of the answers");
  sub.add_flag("--speak", o->speaks, "answers are heard, too (aplay)");
  auto* listen = sub.add_flag("--listen", o->listens, "hands-free with microphone and loudspeaker (arecord, aplay)");
  sub.add_flag("--mute", o->mutes, "with --listen: hear nothing while an answer plays, for want of headphones")
      ->needs(listen);
  sub.add_option("--detector", o->detector, "with --listen: what finds the end of speech")
      ->capture_default_str()
      ->check(CLI::IsMember({"silence", "semantic"}))
      ->needs(listen);
  sub.add_option("--microphone", o->microphone, "ALSA device, as `arecord -L` lists them");
  sub.add_option("--loudspeaker", o->loudspeaker, "ALSA device, as `aplay -L` lists them");
  sub.add_flag("--trace", o->trace, "draw the parts of each turn's time");
  c.run = [=] { return chat(*common, *o); };
}

// ------------------------------------------------------------------------------------------------ tools

void add_tokenize(Commands& commands, CLI::App& app) {
  auto& c = add(commands, app, "tokenize", "print the dual-codebook tokens of a recording");
  const auto common = add_common(c.sub);
  const auto o = std::make_shared<TokenizeOptions>();
  c.sub.add_option("recording", o->recording)->required();
  c.sub.add_flag("--trim", o->trim, "cut silence at both ends, as for voice prompts");
  c.sub.add_flag("--live", o->live,
                 "tokenise as if spoken now (mode `stable`) and count the ids that differ from the exact ones");
  c.sub.add_flag("--no-norm", o->no_norm, "keep the level as it is");
  c.sub.add_flag("--speech-only", o->speech_only, "only the speech that talk would hear in the recording");
  c.run = [=] {
    nn::use_threads(common->threads > 0 ? common->threads : kernels::usable_cores());
    return tokenize(*common, *o);
  };
}

void add_pauses(Commands& commands, CLI::App& app) {
  auto& c = add(commands, app, "pauses", "print where a recording pauses and how complete it sounds there");
  const auto common = add_common(c.sub);
  const auto o = std::make_shared<PausesOptions>();
  c.sub.add_option("recordings", o->recordings, "WAV, FLAC, OGG or MP3 of any rate");
  c.sub.add_option("--list", o->list, "a file that names one recording a line");
  c.sub.add_flag("--live", o->live, "tokenised while it is spoken (mode `stable`) instead of at the pause");
  c.sub.add_option("--pause-ms", o->pause_ms, "silence that is a pause")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  c.sub.add_option("--tail-ms", o->tails_ms, "sound behind the pause that counts; several, rising: each is judged")
      ->capture_default_str()
      ->delimiter(',')
      ->check(CLI::Range(0, 2000));
  const auto dialogues = std::make_shared<std::pair<std::string, int>>("", 6);
  c.sub.add_option("--dialogues", dialogues->first,
                   "a folder of labelled dialogues: where the engine ends them, and how far behind the true end");
  c.sub.add_option("--rounds", dialogues->second, "of the dialogues, all but the first with other pauses")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  c.sub.add_option("--states", o->states, "file for what the network sees, to train it");
  c.run = [=] {
    o->model_path = common->model_path;
    o->vad_weights = find_models("silero-vad") / "silero_vad.safetensors";
    nn::use_threads(common->threads > 0 ? common->threads : kernels::usable_cores());
    const auto done = dialogues->first.empty() ? print_pauses(*o, common->as_json)
                                               : print_ends(dialogues->first, dialogues->second, *o, common->as_json);
    return done ? kOk : report(done.error(), common->as_json);
  };
}

void add_plan(Commands& commands, CLI::App& app) {
  struct Options {
    std::string config, shape = "chat-130b", format = "bf16";
    RankMachine machine;
    CapacityLoad load;
    bool as_json = false;
  };
  auto& c = add(commands, app, "plan", "what a language model needs on a group of devices, by arithmetic");
  auto& sub = c.sub;
  const auto o = std::make_shared<Options>();
  auto* config = sub.add_option("--config", o->config, "config.json of a checkpoint");
  sub.add_option("--shape", o->shape, "instead: chat-130b (partly inferred sizes, docs/lm.md), tts-3b")
      ->capture_default_str()
      ->excludes(config);
  sub.add_option("--gpus,--ranks", o->load.ranks, "ranks of a group")->capture_default_str();
  sub.add_option("--streams", o->load.streams, "that decode at once")->capture_default_str();
  sub.add_option("--context", o->load.context, "tokens of each")->capture_default_str();
  sub.add_option("--prefill", o->load.prefill, "tokens of a prompt")->capture_default_str();
  sub.add_option("--format", o->format, "of the weights: f32, bf16, int8, int4")->capture_default_str();
  sub.add_option("--memory-gb", o->machine.memory_gb, "of a device")->capture_default_str();
  sub.add_option("--bandwidth-gb-s", o->machine.bandwidth_gb_s, "measured read bandwidth")->capture_default_str();
  sub.add_option("--tflops", o->machine.tflops, "of products with many rows, as reached")->capture_default_str();
  sub.add_option("--link-gb-s", o->machine.link_gb_s, "between ranks")->capture_default_str();
  sub.add_option("--all-reduce-us", o->machine.all_reduce_us, "of the smallest sum")->capture_default_str();
  sub.add_flag("--json", o->as_json, "one JSON object on stdout");
  c.run = [o] {
    auto model = o->config.empty() ? published_shape(o->shape) : llm::Step1Config::load(o->config);
    if (!model) return report(model.error(), o->as_json);
    const auto format = weight_format(o->format);
    if (!format) return report(format.error(), o->as_json);
    o->load.weights = *format;
    const auto capacity = plan_capacity(*model, o->machine, o->load);
    if (!capacity) return report(capacity.error(), o->as_json);
    fmt::print("{}", o->as_json ? to_json(*capacity).dump() + "\n" : to_text(*capacity, o->machine, o->load));
    return kOk;
  };
}

void add_small(Commands& commands, CLI::App& app) {
  struct Options {
    std::string source, target, model_path = find_models("nano").string();
    bool as_json = false;
    std::string eval_model, eval_work = "work/nano";
    ReplayOptions replay;
  };
  const auto o = std::make_shared<Options>();
  auto& import = add(commands, app, "import", "convert an official model directory to safetensors");
  import.sub.add_option("source", o->source)->required();
  import.sub.add_option("target", o->target)->required();
  import.run = [=] { const auto done = checkpoint::import_directory(o->source, o->target, bar);
  if (!done) return report(done.error(), false);
  fmt::print("imported into {}\n", o->target);
  return kOk;
};
auto& doc = add(commands, app, "doctor", "report processor features, GPUs, libraries and models");
doc.sub.add_option("--model-path", o->model_path);
doc.sub.add_flag("--json", o->as_json);
doc.run = [=] { return doctor(o->model_path, o->as_json); };
auto& judge =
    add(commands, app, "eval", "judge the bundled model through this runtime; needs the training data of `make nano`");
judge.sub.add_option("model", o->eval_model, "nano")->required();
judge.sub.add_option("--work", o->eval_work, "folder of the training data")->capture_default_str();
judge.sub.footer("Passed on: --only listen|talk|speak|style, --count N, --limit N, --humans DIR");
judge.sub.allow_extras();
judge.run = [o, sub = &judge.sub] { return eval(o->eval_model, o->eval_work, sub->remaining()); };
auto& again = add(commands, app, "replay", "make the decisions of a recording again and compare them");
again.sub.add_option("recording", o->replay.file, "written by `--record`")->required();
again.sub.add_option("--session", o->replay.session, "print its messages; all: of every session");
again.sub.add_flag("--json", o->replay.as_json, "one JSON object on stdout");
again.run = [=] {
  const auto done = replay(o->replay);
  return done ? *done : report(done.error(), o->replay.as_json);
};
}  // namespace

// ------------------------------------------------------------------------------------------------ measurements

/// Runs a benchmark; with JSON, its table goes to stderr and the figures alone to stdout.
int measure(bool as_json, const std::function<Result<json>()>& bench) {
  const int saved = as_json ? ::dup(1) : -1;
  if (as_json) ::dup2(2, 1);
  const auto done = bench();
  std::fflush(stdout);
  if (as_json) {
    ::dup2(saved, 1);
    ::close(saved);
  }
  if (!done) return report(done.error(), as_json);
  if (as_json) std::cout << done->dump() << "\n";
  return done->contains("missed") && !(*done)["missed"].empty() ? kFailed : kOk;
}

void add_bench(Commands& commands, CLI::App& app) {
  auto& c = add(commands, app, "bench", "measure tokenizer, lm, flow, vocoder, tts, speaker, mesh or turn");
  auto& sub = c.sub;
  struct Options {
    BenchOptions bench;
    MeshBenchOptions mesh;
    TurnBenchOptions turn;
    std::string model_path = find_models("nano").string(), detector = "both";
    std::vector<std::string> only;
    std::int64_t turns = 200;
    std::string instruction_set;
    bool as_json = false;
  };
  const auto o = std::make_shared<Options>();
  sub.add_option("name", o->bench.name, "tokenizer | lm | flow | vocoder | tts | speaker | mesh | turn")->required();
  sub.add_option("--random-weights", o->bench.random_weights,
                 "configuration of a random checkpoint, e.g. configs/official/step1-3b.json");
  sub.add_option("--threads", o->bench.threads)->capture_default_str();
  sub.add_option("--runs", o->bench.runs)->capture_default_str();
  sub.add_option("--seconds", o->bench.seconds,
                 "audio per run; mesh: time of a run, default 10; turn: of each number of live sessions, default 25")
      ->capture_default_str();
  sub.add_option("--prompt-seconds", o->bench.prompt_seconds, "flow, tts: of a voice prompt in front of the speech");
  sub.add_flag("--bf16", o->bench.bf16, "flow, tts: the estimator of the flow in bf16");
  sub.add_option("--sessions", o->mesh.sessions,
                 "mesh: sessions that listen; tokenizer: streams that are read side by side; turn: live sessions, "
                 "default 20, 50, 100, 150, 200, 240")
      ->capture_default_str()
      ->check(CLI::Range(1, 240));
  sub.add_option(
         "--turns", o->turns,
         "mesh: turns of the long conversation, default 200; turn: of the dialogues for each detector, default 80")
      ->check(CLI::Range(4, 10'000'000));
  std::vector<std::string> parts(std::begin(kMeshParts), std::end(kMeshParts));
  parts.insert(parts.end(), std::begin(kTurnParts), std::end(kTurnParts));
  parts.insert(parts.end(), std::begin(kLmParts), std::end(kLmParts));
  sub.add_option(
         "--only", o->only,
         "mesh: round_trip, idle, frames, answering, flood, turns; turn: silence, semantic, overhead, "
         "interruptions, synthesis, at_once, live; lm: decode, rows, attention, prefill, torch, speakers, fork, ranks, "
         "load, sampling, nano, threads")
      ->check(CLI::IsMember(parts));
  sub.add_option("-o,--output", o->turn.output,
                 "turn: file of the figures, kept up to date while it runs, default out/bench_turn.json; lm: file of "
                 "the figures");
  sub.add_option("--baseline", o->bench.baseline, "lm: figures of an earlier run, to print the change against it");
  sub.add_option("--detector", o->detector, "turn: what finds the end of speech: silence, semantic or both")
      ->capture_default_str()
      ->check(CLI::IsMember({"silence", "semantic", "both"}));
  sub.add_option("--instruction-set", o->instruction_set,
                 "lm: plain, avx2, avx512, avx512_vnni, avx512_bf16 or amx instead of the best one");
  sub.add_option("--model-path", o->model_path);
  sub.add_flag("--json", o->as_json);
  c.run = [o, sub = &sub] {
    const auto source = find_models("silero-vad").parent_path().parent_path();
    if (o->bench.name == "mesh") {
      o->mesh.model_path = o->model_path, o->mesh.source = source, o->mesh.runs = o->bench.runs;
      o->mesh.turns = o->turns, o->mesh.only = o->only;
      if (sub->count("--seconds") > 0) o->mesh.seconds = o->bench.seconds;
      return measure(o->as_json, [&] { return bench_mesh(o->mesh); });
    }
    if (o->bench.name == "turn") {
      o->turn.model_path = o->model_path, o->turn.source = source;
      if (sub->count("--turns") > 0) o->turn.turns = o->turns;
      if (sub->count("--output") == 0) o->turn.output = "out/bench_turn.json";
      if (sub->count("--seconds") > 0) o->turn.live_seconds = o->bench.seconds;
      if (sub->count("--sessions") > 0) o->turn.live_sessions = {static_cast<int>(o->mesh.sessions)};
      o->turn.vad_weights = (find_models("silero-vad") / "silero_vad.safetensors").string();
      o->turn.only = o->only;
      if (o->detector != "both") o->turn.detector = o->detector == "silence" ? Detector::silence : Detector::semantic;
      return measure(o->as_json, [&] { return bench_turn(o->turn); });
    }
    if (sub->count("--sessions") > 0) o->bench.sessions = static_cast<int>(o->mesh.sessions);
    o->bench.model_path = o->model_path;
    o->bench.source = source;
    o->bench.output = o->turn.output;
    o->bench.only = o->only;
    if (!o->instruction_set.empty()) {
      const auto wanted = kernels::isa_named(o->instruction_set.c_str());
      if (!wanted || !kernels::force_isa(*wanted))
        return report(
            {Errc::invalid_argument, fmt::format("this processor has no instruction set '{}', the best it has is {}",
                                                 o->instruction_set, kernels::name(kernels::isa()))},
            o->as_json);
    }
    return measure(o->as_json, [&] { return run_bench(o->bench); });
  };
}

void add_load(Commands& commands, CLI::App& app) {
  auto& c =
      add(commands, app, "load", "people who speak with a server of the realtime API: latency, underruns, errors");
  auto& sub = c.sub;
  const auto o = std::make_shared<LoadOptions>();
  const auto as_json = std::make_shared<bool>(false);
  sub.add_option("url", o->url, "ws://, wss://, http:// or https://; without a path /v1/realtime")->required();
  sub.add_option("--key", o->key, "API key; else the environment's PARLANDO_KEY")->envname("PARLANDO_KEY");
  sub.add_option("--model", o->model, "name of the model, as the server wants it");
  sub.add_option("--sessions", o->sessions, "people at a time")->capture_default_str()->check(CLI::Range(1, 2000));
  sub.add_option("--duration", o->seconds, "seconds")->capture_default_str()->check(CLI::Range(1.0, 86400.0));
  sub.add_option("--say", o->say, "recordings, or folders of WAVs; default: the bundled questions");
  sub.add_option("--detector", o->detector, "what finds the end of speech")
      ->capture_default_str()
      ->check(CLI::IsMember({"server_vad", "semantic_vad"}));
  sub.add_option("--voice", o->voice, "of the answers");
  sub.add_option("--instructions", o->instructions, "system prompt");
  sub.add_option("--html", o->html, "page with pictures of the run")->default_str("out/load.html");
  sub.add_flag("--json", *as_json, "one JSON object on stdout");
  c.run = [o, as_json, sub = &sub] {
    if (o->say.empty()) o->say = {find_models("nano") / "questions"};
    if (sub->count("--html") == 0) o->html = "out/load.html";
    const auto done = run_load(*o);
    if (!done) return report(done.error(), *as_json);
    if (*as_json)
      std::cout << done->dump() << "\n";
    else
      fmt::print("{}pictures in {}\n", load_table(*done), o->html.string());
    return (*done)["errors"].empty() ? kOk : kFailed;
  };
}

// ------------------------------------------------------------------------------------------------ language models

void add_generate(Commands& commands, CLI::App& app) {
  auto& c = add(commands, app, "generate", "ids that a language model puts behind others");
  const auto o = std::make_shared<GenerateOptions>();
  const auto as_json = std::make_shared<bool>(false);
  c.sub.add_option("--model", o->model, "a checkpoint, e.g. models/nano/Step-Audio-Chat")->required();
  c.sub.add_option("--ids", o->ids, "1,4,…")->required();
  c.sub.add_option("--max-tokens", o->tokens_max)->capture_default_str();
  c.sub.add_option("--format", o->format, "of the weights: f32, bf16, int8 or int4; as the file's type says");
  c.sub.add_flag("--greedy", o->greedy, "the likeliest id each time");
  c.sub.add_option("--seed", o->seed)->capture_default_str();
  c.sub.add_option("--threads", o->threads, "of each rank")->capture_default_str()->check(CLI::Range(1, 1024));
  c.sub.add_option("--ranks", o->ranks, "that share the model")->capture_default_str()->check(CLI::Range(1, 64));
  c.sub.add_flag("--json", *as_json, "one JSON object on stdout");
  c.run = [o, as_json] {
    const auto done = generate(*o);
    if (!done) return report(done.error(), *as_json);
    std::cout << (*as_json ? *done : (*done)["ids"]).dump() << "\n";
    return kOk;
  };
}

void add_quantize(Commands& commands, CLI::App& app) {
  auto& c = add(commands, app, "quantize", "write a checkpoint with packed weights, and say what that cost");
  const auto o = std::make_shared<QuantizeOptions>();
  const auto as_json = std::make_shared<bool>(false);
  c.sub.add_option("source", o->source)->required();
  c.sub.add_option("target", o->target, "a new directory")->required();
  c.sub.add_option("--format", o->format, "bf16, int8 or int4")->capture_default_str();
  c.sub.add_option("--check-tokens", o->check_tokens, "of text that is compared; 0 for none")->capture_default_str();
  o->dialogues = find_models("nano") / "dialogues";
  c.sub
      .add_option(
          "--dialogues", o->dialogues,
          "labelled recordings that source and target write down, where the source is a model that does; \"\" for none")
      ->capture_default_str();
  c.sub.add_option("--task-max", o->task_max, "recordings at most")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 20));
  c.sub.add_option("--threads", o->threads)->capture_default_str()->check(CLI::Range(1, 1024));
  c.sub.add_flag("--json", *as_json, "one JSON object on stdout");
  c.run = [o, as_json] {
    const auto done = quantize(*o);
    if (!done) return report(done.error(), *as_json);
    std::cout << (*as_json ? done->dump() : done->dump(2)) << "\n";
    return kOk;
  };
}

// ------------------------------------------------------------------------------------------------ the engine

/// ROLE=N … @error Errc::invalid_argument naming the one that is none
Result<std::map<std::string, int>> read_replicas(const std::vector<std::string>& words) {
  constexpr const char* kRoles[] = {"vad", "tokenizer", "llm-chat",   "llm-tts",
                                    "tts", "context",   "controller", "gateway"};
  std::map<std::string, int> out;
  for (const auto& word : words) {
    const auto cut = word.find('=');
    int n = -1;
    const auto* const end = word.data() + word.size();
    const bool number = cut != std::string::npos && std::from_chars(word.data() + cut + 1, end, n).ptr == end;
    const auto role = word.substr(0, cut);
    if (!number || n < 1 || n > 64 || std::find(std::begin(kRoles), std::end(kRoles), role) == std::end(kRoles))
      return fail(Errc::invalid_argument, "{}, expected ROLE=N with 1 to 64 of a role of the engine", word);
    out[role] = n;
  }
  return out;
}

void add_up(Commands& commands, CLI::App& app, bool page) {
  auto& c =
      page ? add(commands, app, "serve", "run the engine and its page")
           : add(commands, app, "up", "run the engine: all services in one process, or supervised with --processes");
  auto& sub = c.sub;
  const auto o = std::make_shared<UpOptions>();
  const auto replicas = std::make_shared<std::vector<std::string>>();
  o->model_path = find_models("nano").string();
  o->page = page;
  sub.add_option("--model-path", o->model_path, kModelHelp)->capture_default_str();
  sub.add_option("--config", o->config, "JSON file with the list of instances instead of everything for --model-path");
  sub.add_flag("--check-config", o->check, "report every problem of the configuration and exit");
  sub.add_flag("--processes", o->processes,
               "one supervised child process per service over ipc, instead of threads over inproc");
  sub.add_option("--replicas", *replicas, "ROLE=N, for any role");
  sub.add_option("--run-folder", o->run_folder,
                 "with --processes: where the children meet; `parlando scale` finds the engine by it");
  auto* tools = sub.add_option("--tools", o->tools,
                               "who runs the model's tool calls: none, or demo for the tools that the bundled model "
                               "knows")
                    ->check(CLI::IsMember({"none", "demo"}));
  auto* step = sub.add_option("--step-limit-ms", o->step_limit_ms,
                              "work of a model that takes longer counts as hung; default 2000, 30000 for other models");
  auto* listen = sub.add_option("--listen", o->listen, "address of the gateway")->capture_default_str();
  auto* api = sub.add_option("--api-listen", o->api_listen,
                             page ? "a second address of it; default 127.0.0.1:8000 without --listen, as far as it is "
                                    "free; '': none"
                                  : "a second address of it; default none");
  sub.add_option("--keys-file", o->keys_file, "who may use /v1: lines of SHA-256 and name; empty: everybody")
      ->check(CLI::ExistingFile);
  sub.add_option("--secrets-file", o->secrets_file,
                 "what signs client secrets and tokens of sessions; default: beside a store that is a file, made when "
                 "it is missing")
      ->check(CLI::ExistingFile);
  sub.add_option("--store", o->store, "where committed turns are kept: a file, :memory: for nowhere, or postgresql://…")
      ->capture_default_str();
  sub.add_option("--metrics-port", o->metrics_port,
                 "of /metrics, /healthz and /readyz: one per role from here on, then one per second replica, …")
      ->check(CLI::Range(0, 65000));
  sub.add_option("--threads", o->threads, "threads of each model")->capture_default_str();
  sub.add_flag("--bf16", o->bf16, "language models in bfloat16");
  sub.add_option("--record", o->record,
                 "folder: everything that reaches the controllers, the users' speech too, for `parlando replay`");
  c.run = [=] {
    const auto wanted = read_replicas(*replicas);
    if (!wanted) return report(wanted.error(), false), kUsage;
    o->replicas = *wanted;
    // Official sizes on a processor: one unit of work takes seconds.
    const bool bundled = is_bundled(o->model_path);
    if (step->count() == 0) o->step_limit_ms = bundled ? 2000 : 30000;
    if (tools->count() == 0 && bundled) o->tools = "demo";
    // Where clients of these APIs look for a server on this machine. Another program may be there already.
    if (page && api->count() == 0 && listen->count() == 0) {
      o->api_listen = "127.0.0.1:8000";
      o->api_listen_required = false;
    }
    o->vad_weights = (find_models("silero-vad") / "silero_vad.safetensors").string();
    o->source = find_models("silero-vad").parent_path().parent_path().string();
    o->bin = fs::canonical("/proc/self/exe").parent_path().string();
    const auto done = up(*o);
    if (done) return *done;
    report(done.error(), false);
    return done.error().code == Errc::invalid_argument ? kConfiguration : exit_code(done.error().code);
  };
}

void add_scale(Commands& commands, CLI::App& app) {
  auto& c = add(commands, app, "scale", "set the number of replicas in a running engine");
  const auto folder = std::make_shared<std::string>();
  const auto replicas = std::make_shared<std::vector<std::string>>();
  c.sub.add_option("--run-folder", *folder, "of `up --processes --run-folder`")->required();
  c.sub.add_option("replicas", *replicas, "ROLE=N …")->required();
  c.run = [=] {
    const auto wanted = read_replicas(*replicas);
    if (!wanted) return report(wanted.error(), false), kUsage;
    const auto done = scale(*folder, *wanted);
    return done ? kOk : report(done.error(), false);
  };
}

void add_top(Commands& commands, CLI::App& app) {
  auto& c = add(commands, app, "top", "the services of a running engine: load, queues, latency, faults");
  const auto o = std::make_shared<TopOptions>();
  c.sub.add_option("--run-folder", o->run_folder, "of `up --processes --run-folder --metrics-port`");
  c.sub.add_option("endpoints", o->endpoints, "HOST:PORT of metrics; dns:NAME:PORT: every address of a name");
  c.sub.add_option("--seconds", o->seconds, "between two looks")->check(CLI::Range(0.2, 3600.0))->capture_default_str();
  c.sub.add_flag("--once", o->once, "one picture");
  c.sub.add_flag("--json", o->as_json, "one JSON object a look");
  c.run = [=] {
    const auto done = top(*o);
    return done ? kOk : report(done.error(), o->as_json);
  };
}

}  // namespace parlando::cli

int run(int argc, char** argv) {
  CLI::App app{"parlando: spoken dialogue with the Step-Audio models"};
  app.require_subcommand(1);
  app.footer(
      "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 bad input, 5 no speech; up and serve: 78 "
      "configuration, 70 stood still.");
  Commands commands;
  commands.reserve(32);
  add_talk(commands, app);
  add_speak(commands, app, false);
  add_speak(commands, app, true);
  add_chat(commands, app);
  add_up(commands, app, true);
  add_up(commands, app, false);
  add_scale(commands, app);
  add_top(commands, app);
  add_bench(commands, app);
  add_load(commands, app);
  add_generate(commands, app);
  add_quantize(commands, app);
  add_tokenize(commands, app);
  add_pauses(commands, app);
  add_plan(commands, app);
  add_small(commands, app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? kOk : kUsage;
  }
  for (const auto& command : commands)
    if (command.sub.parsed()) return command.run();
  return kUsage;
}

}  // namespace parlando::cli

int main(int argc, char** argv) { return parlando::cli::run(argc, argv); }
