#include "services/cli/bench_turn.hpp"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>

#include "common/base/mapped_file.hpp"
#include "services/cli/bench_setting.hpp"
#include "services/cli/dialogues.hpp"
#include "services/cli/served_engine.hpp"
#include "services/cli/turn_figures.hpp"
#include "services/cli/voice_heard.hpp"
#include "services/cli/ws_load.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr double kTurnSecondsMax = 20;
constexpr std::int64_t kWarmUpTurns = 4;
constexpr int kInterruptEvery = 2;
constexpr int kSpeakers[] = {2, 4, 8, 16};  // at once, as long as it goes well
constexpr int kSpeakersTold = 4;            // in any case
constexpr int kOneSpeaks = 20;              // of so many
constexpr double kCrowdMs = 1000;           // of 95 % of the answers: then it goes well
constexpr std::int64_t kTellEvery = 5;      // turns
constexpr int kSynthesisRuns = 12;
constexpr const char* kTurnSentences[] = {"the weather in paris is sunny and twenty degrees today.",
                                          "seven plus nine is sixteen.", "hello, what can i do for you this morning?"};
constexpr std::chrono::milliseconds kAskEvery{50};
constexpr double kOverheadSeconds = 10;
constexpr double kTakingSecondsMax = 30;
constexpr int kNameWidth = 46;

/// The user wants no more of it. The signals are blocked, so that they wait until they are asked for.
bool is_stopped() {
  sigset_t waiting;
  sigemptyset(&waiting);
  sigpending(&waiting);
  return sigismember(&waiting, SIGINT) == 1 || sigismember(&waiting, SIGTERM) == 1;
}

void say_distribution(const std::string& name, const json& figures, const std::string& target) {
  if (figures.value("n", 0) == 0) return fmt::print("{:<{}} none\n", name, kNameWidth);
  fmt::print("{:<{}} {:>8.1f} {:>8.1f} {:>8.1f} {:>6}  {}\n", name, kNameWidth, figures["p50"].get<double>(),
             figures["p95"].get<double>(), figures["p99"].get<double>(), figures["n"].get<std::int64_t>(), target);
}

/// Targets of the values below a place, as text.
std::string target_of(const std::string& name, const std::string& key) {
  for (const auto& target : turn_targets()) {
    auto path = std::string(target.path).substr(1);
    std::replace(path.begin(), path.end(), '/', '.');
    if (path == name + (key.empty() ? "" : "." + key))
      return fmt::format("{}{} {}", key.empty() ? "" : key + " ", target.least >= 0 ? "≥" : "≤",
                         target.least >= 0 ? target.least : target.most);
  }
  return {};
}

/// Every figure below `of` that is a distribution or a number, a line each.
void say_all(const std::string& name, const json& of) {
  if (of.is_number()) {
    fmt::print("{:<{}} {:>8.3g} {:>24}  {}\n", name, kNameWidth, of.get<double>(), "", target_of(name, {}));
  } else if (of.is_object() && of.contains("n") && (of.contains("p50") || of.size() == 1)) {
    std::string targets;
    for (const auto* key : {"p50", "p95", "p99"})
      if (const auto text = target_of(name, key); !text.empty()) targets += text + "  ";
    say_distribution(name, of, targets);
  } else if (of.is_object()) {
    for (const auto& [key, value] : of.items()) say_all(name.empty() ? key : name + "." + key, value);
  }
  std::fflush(stdout);
}

struct Trials {
  double begun = 0, committed = 0;
};
Result<Trials> trials_of(const ServedEngine& engine) {
  Trials out;
  PARLANDO_TRY(out.begun, engine.metric("parlando_controller_trials_total"));
  PARLANDO_TRY(out.committed, engine.metric("parlando_controller_trials_committed_total"));
  return out;
}

class TurnBench {
 public:
  TurnBench(const ServedEngine& engine, std::vector<Utterance> questions, std::vector<Utterance> dialogues,
            const TurnBenchOptions& options, json setting)
      : engine_(engine),
        questions_(std::move(questions)),
        dialogues_(std::move(dialogues)),
        options_(options),
        setting_(std::move(setting)) {}

  /// @error what kept a part from being measured; Errc::cancelled: the user wants no more
  Result<void> run(const std::string& part) {
    part_ = part;
    PARLANDO_DO(engine_.wait_taking(kTakingSecondsMax));
    const auto done = part == "silence"         ? dialogues(false)
                      : part == "semantic"      ? dialogues(true)
                      : part == "overhead"      ? overhead()
                      : part == "interruptions" ? interruptions()
                      : part == "synthesis"     ? synthesis()
                      : part == "at_once"       ? at_once()
                                                : live();
    show_progress({});
    PARLANDO_DO(save(figures_));
    return done;
  }

  /// All that is known.
  json figures() const {
    auto out = setting_;
    out.update(with_sums(figures_, {}));
    return out;
  }

 private:
  /// The labelled dialogues, by one speaker.
  Result<void> dialogues(bool semantic) {
    const std::string name = semantic ? "semantic" : "silence";
    auto plan = plan_of(dialogues_, semantic);
    PARLANDO_TRY(const auto before, trials_of(engine_));
    const auto tell = [&](const LoadFigures& run, std::optional<double> discarded) {
      json out;
      auto& mine = out[name] = dialogue_figures(run);
      const auto turns = discarded ? static_cast<double>(run.turns + kWarmUpTurns) : 0.0;
      mine.update(speculation_figures(run, discarded.value_or(0), turns));
      // An answer needs the silence that decides to be thought through: that detector tells what it is worth.
      if (!semantic || !figures_.contains("committed"))
        for (const auto* key : {"committed", "speculation"}) out[key] = mine[key];
      if (semantic) out["detector"] = mine["detector"];
      return out;
    };
    PARLANDO_TRY(auto run,
                 measure(1, options_.turns, plan, [&](const LoadFigures& so_far) { return tell(so_far, {}); }));
    PARLANDO_TRY(const auto after, trials_of(engine_));
    const auto told = tell(run.figures, after.begun - before.begun - after.committed + before.committed);
    return take(std::move(run), told);
  }

  /// Apart from the dialogues: the question is a `cancel` of no turn, and any cancel ends an answer that is being
  /// thought through.
  Result<void> overhead() {
    WsLoad load(engine_.port());
    PARLANDO_DO(load.add(1, {.sound = true, .ask_every = kAskEvery}));
    const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(kOverheadSeconds);
    while (std::chrono::steady_clock::now() < until && load.lost() == 0 && !is_stopped()) load.run(0.5);
    if (load.lost() > 0) return fail(Errc::unavailable, "the session was lost: {}", load.first_reason());
    Run run{load.take(), is_stopped()};
    const json told{{"overhead_ms", distribution(run.figures.round_trips)}};
    return take(std::move(run), told);
  }

  /// Every second answer is spoken over.
  Result<void> interruptions() {
    auto plan = plan_of(questions_, options_.detector == Detector::semantic);
    plan.interrupts_every = kInterruptEvery;
    PARLANDO_TRY(auto run, measure(1, std::max<std::int64_t>(4, options_.turns / 2), plan));
    return take(std::move(run), {});
  }

  Result<void> synthesis() {
    ClientPlan plan;
    plan.speak = true;
    plan.utters.assign(std::begin(kTurnSentences), std::end(kTurnSentences));
    PARLANDO_TRY(auto run, measure(1, kSynthesisRuns, plan));
    const json told{{"synthesis_ms", distribution(run.figures.synthesis)}};
    return take(std::move(run), told);
  }

  /// More and more speakers at once, as long as nobody waits too long and no loudspeaker runs dry.
  Result<void> at_once() {
    const bool semantic = options_.detector == Detector::semantic;
    for (const int speakers : kSpeakers) {
      PARLANDO_TRY(auto run, measure(speakers, std::max<std::int64_t>(2 * speakers, options_.turns / 4),
                                     plan_of(questions_, semantic)));
      const auto waits = distribution(whole_turns(run.figures.spoken, &TurnFigure::first_audio));
      const bool well = waits.value("p95", INFINITY) <= kCrowdMs && underruns_of(run.figures) == 0;
      if (speakers != kSpeakersTold) run.counts_underruns = false;  // is looked for where it breaks
      PARLANDO_DO(take(std::move(run), {{"at_once", {{std::to_string(speakers), waits}}}}));
      if (!well && speakers >= kSpeakersTold) break;
    }
    return {};
  }

  /// More and more sessions that listen, one in twenty of which speaks.
  Result<void> live() {
    int most = 0;
    const auto processes = engine_.processes();
    const auto before = resident_bytes(processes);
    for (const int sessions : options_.live_sessions) {
      WsLoad load(engine_.port());
      const int speakers = std::max(1, sessions / kOneSpeaks);
      const bool semantic = options_.detector == Detector::semantic;
      auto opened = load.add(sessions - speakers, {.sound = true});
      if (opened) opened = load.add(speakers, plan_of(questions_, semantic));
      json told{{"sessions", sessions}, {"speak", speakers}};
      if (!opened) told["refused"] = opened.error().message;
      const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(options_.live_seconds);
      while (opened && std::chrono::steady_clock::now() < until && load.lost() == 0) {
        if (is_stopped()) return fail(Errc::cancelled, "stopped");
        show_progress(fmt::format("{} sessions, {} turns", sessions, load.so_far().turns));
        load.run(1);
      }
      const auto memory = static_cast<double>(resident_bytes(processes) - before) / 1e6 / sessions;
      const auto run = load.take();
      const auto waits = distribution(whole_turns(run.spoken, &TurnFigure::first_audio));
      told.update({{"lost", load.lost()},
                   {"underruns", underruns_of(run)},
                   {"end_of_speech_to_first_audio_ms", waits},
                   {"own_lateness_ms", distribution(run.late)},
                   {"memory_mb_a_session", memory}});
      const bool well =
          opened && load.lost() == 0 && underruns_of(run) == 0 && waits.value("p95", INFINITY) <= kCrowdMs;
      figures_["live"][std::to_string(sessions)] = told;
      say_all(fmt::format("live.{}", sessions), told);
      if (!well) break;
      most = sessions;
    }
    figures_["live_sessions"] = most;
    say_all("live_sessions", figures_["live_sessions"]);
    return {};
  }

  // ---------------------------------------------------------------------------------------------- one run

  struct Run {
    LoadFigures figures;
    bool cut = false;  ///< by the user
    bool counts_underruns = true;
  };
  using Tell = std::function<json(const LoadFigures&)>;

  ClientPlan plan_of(const std::vector<Utterance>& said, bool semantic) const {
    ClientPlan plan;
    plan.speak = true;
    plan.utterances = said;
    plan.lead_ms = options_.lead_ms;
    plan.semantic = semantic;
    return plan;
  }

  /// @param tell  what the figures so far say, to be kept should this be cut off
  Result<Run> measure(int speakers, std::int64_t turns, const ClientPlan& plan, const Tell& tell = {}) {
    WsLoad load(engine_.port());
    PARLANDO_DO(load.add(speakers, plan));
    const auto seconds = [&](std::int64_t n) { return kTurnSecondsMax * static_cast<double>(n); };
    const auto warm = kWarmUpTurns * speakers;
    std::int64_t saved = 0;
    const auto goes_on = [&](std::int64_t of) {
      return [&, of] {
        const auto done = load.so_far().turns;
        show_progress(fmt::format("{} of {} turns{}", done, of, of == warm ? " to warm up" : ""));
        if (tell && of == turns && done >= saved + kTellEvery) {
          saved = done;
          auto known = figures_;
          known.merge_patch(with_sums(tell(load.so_far()), load.so_far()));
          if (const auto kept = save(known); !kept) return false;
        }
        return !is_stopped();
      };
    };
    PARLANDO_DO(load.run_turns(warm, seconds(warm), goes_on(warm)));
    load.take();
    const auto done = load.run_turns(warm + turns, seconds(turns), goes_on(turns));
    if (!done && done.error().code != Errc::cancelled) return tl::unexpected(done.error());
    return Run{load.take(), !done.has_value()};
  }

  /// Keeps and prints what a run has shown. @error Errc::cancelled when it was cut
  Result<void> take(Run run, const json& told) {
    show_progress({});
    if (!told.is_null()) figures_.merge_patch(told);
    say_all("", told);
    const auto& r = run.figures;
    silenced_.insert(silenced_.end(), r.silenced.begin(), r.silenced.end());
    held_.insert(held_.end(), r.held.begin(), r.held.end());
    interruptions_ += r.interruptions;
    murmurs_ += r.murmurs;
    murmurs_took_ += r.murmurs_took;
    took_.insert(took_.end(), r.took.begin(), r.took.end());
    if (run.counts_underruns) underruns_ += underruns_of(r);
    spoken_ += static_cast<std::int64_t>(r.spoken.size());
    if (part_ == "interruptions") say_all("", with_sums(json::object(), {}));
    return run.cut ? Result<void>(fail(Errc::cancelled, "stopped")) : Result<void>();
  }

  /// With what all runs have in common.
  json with_sums(json figures, const LoadFigures& under_way) const {
    auto silenced = silenced_, held = held_;
    silenced.insert(silenced.end(), under_way.silenced.begin(), under_way.silenced.end());
    held.insert(held.end(), under_way.held.begin(), under_way.held.end());
    figures["barge_in_ms"] = distribution(std::move(silenced));
    figures["voice_to_hold_ms"] = distribution(std::move(held));
    figures["interruptions"] = interruptions_ + under_way.interruptions;
    const auto murmurs = murmurs_ + under_way.murmurs, took = murmurs_took_ + under_way.murmurs_took;
    figures["murmurs"] = {{"n", murmurs}};
    if (murmurs > 0) figures["murmurs"]["took_share"] = static_cast<double>(took) / static_cast<double>(murmurs);
    auto names = took_;
    names.insert(names.end(), under_way.took.begin(), under_way.took.end());
    if (!names.empty()) figures["murmurs"]["took"] = names;
    if (const auto spoken = spoken_ + static_cast<std::int64_t>(under_way.spoken.size()); spoken > 0) {
      figures["turns"] = spoken;
      figures["underruns"] = underruns_ + underruns_of(under_way);
    }
    return figures;
  }

  /// A file that is whole at any time.
  Result<void> save(const json& known) const {
    if (options_.output.empty()) return {};
    auto out = setting_;
    out.update(with_sums(known, {}));
    out["under_way"] = part_;
    std::error_code code;
    if (options_.output.has_parent_path()) fs::create_directories(options_.output.parent_path(), code);
    const auto fresh = fs::path(options_.output.string() + ".new");
    PARLANDO_DO(write_file(fresh, out.dump(1) + "\n"));
    fs::rename(fresh, options_.output, code);
    if (code) return fail(Errc::io, "'{}' cannot be written: {}", options_.output.string(), code.message());
    return {};
  }

  void show_progress(const std::string& text) const {
    if (!::isatty(2)) return;
    std::fprintf(stderr, "\r\033[K%s", text.empty() ? "" : fmt::format("{}: {}", part_, text).c_str());
  }

  const ServedEngine& engine_;
  std::vector<Utterance> questions_, dialogues_;
  TurnBenchOptions options_;
  json setting_, figures_ = json::object();
  std::string part_;
  std::vector<double> silenced_, held_;
  std::vector<std::string> took_;
  std::int64_t underruns_ = 0, interruptions_ = 0, murmurs_ = 0, murmurs_took_ = 0, spoken_ = 0;
};

bool is_wanted(const TurnBenchOptions& options, const std::string& part) {
  if (part == "silence" && options.detector == Detector::semantic) return false;
  if (part == "semantic" && options.detector == Detector::silence) return false;
  return options.only.empty() || std::find(options.only.begin(), options.only.end(), part) != options.only.end();
}

}  // namespace

Result<json> bench_turn(const TurnBenchOptions& options) {
  const Scratch scratch;
  if (scratch.path().empty()) return fail(Errc::io, "no folder can be made in /tmp");
  PARLANDO_TRY(auto asked, read_recordings(options.model_path / "questions"));
  PARLANDO_TRY(const auto once, read_dialogues(options.model_path / "dialogues"));
  auto labelled = once;
  for (unsigned round = 1; static_cast<std::int64_t>(labelled.size()) < options.turns + kWarmUpTurns; ++round)
    for (auto& said : redrawn(once, round)) labelled.push_back(std::move(said));
  PARLANDO_TRY(const auto weights, vad::SileroWeights::load(options.vad_weights));
  for (auto* list : {&asked, &labelled})
    for (auto& said : *list) said.heard_sample = voice_heard_at(said.pcm, weights);
  auto machine = machine_of(options.source);
  json setting{{"commit", machine["commit"]}};
  machine.erase("commit");
  setting["machine"] = machine;
  fmt::print("{} · {} cores · {} · {} · load {}\n", machine["processor"].get<std::string>(),
             machine["cores"].get<unsigned>(), machine["instruction_set"].get<std::string>(),
             setting["commit"].get<std::string>(), machine["load_before"].get<std::string>());
  fmt::print("{:<{}} {:>8} {:>8} {:>8} {:>6}\n", "milliseconds", kNameWidth, "p50", "p95", "p99", "n");
  std::fflush(stdout);
  PARLANDO_TRY(const auto engine, ServedEngine::start(scratch.path(), options.model_path, false));
  // The engine has not inherited this: it is ended by us, with its figures asked for before.
  sigset_t stop, before;
  sigemptyset(&stop);
  sigaddset(&stop, SIGINT);
  sigaddset(&stop, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &stop, &before);
  TurnBench bench(engine, std::move(asked), std::move(labelled), options, setting);
  json failed = json::object();
  bool cut = false;
  for (const std::string part : kTurnParts) {
    if (cut || !is_wanted(options, part)) continue;
    // One part that cannot be measured does not keep the others from it.
    const auto done = bench.run(part);
    if (done) continue;
    cut = done.error().code == Errc::cancelled || is_stopped();
    if (cut) continue;
    failed[part] = done.error().message;
    fmt::print("{:<{}} could not be measured: {}\n", part, kNameWidth, done.error().message);
  }
  auto out = bench.figures();
  if (cut) out["cut"] = true;
  if (!failed.empty()) out["failed"] = failed;
  auto verdict = judge_turns(out);
  for (const auto& [part, why] : failed.items()) verdict.missed.push_back(part);
  out["missed"] = verdict.missed;
  out["not_measured"] = verdict.not_measured;
  out["machine"]["load_after"] = load_average();
  for (const auto& name : verdict.not_measured) fmt::print("{:<{}} was not measured\n", name, kNameWidth);
  fmt::print("load {} · {}{}\n", out["machine"]["load_after"].get<std::string>(),
             verdict.missed.empty()
                 ? "no target of what was measured is missed"
                 : fmt::format("{} missed: {}", verdict.missed.size(), fmt::join(verdict.missed, ", ")),
             cut ? " · cut off" : "");
  if (!options.output.empty()) PARLANDO_DO(write_file(options.output, out.dump(1) + "\n"));
  // What came while it was blocked is answered by the result.
  const timespec now{0, 0};
  while (::sigtimedwait(&stop, nullptr, &now) > 0) {
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return out;
}

}  // namespace parlando::cli
