#include "services/cli/bench_mesh.hpp"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "services/cli/bench_setting.hpp"
#include "services/cli/round_trip.hpp"
#include "services/cli/served_engine.hpp"
#include "services/cli/ws_load.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
using nlohmann::json;
using std::chrono::milliseconds;

namespace {

constexpr int kRunsMin = 5;
constexpr double kWarmUpSeconds = 2;
constexpr double kIdleSeconds = 6;
constexpr double kCalmSeconds = 3;  // after it is ready: what starts late has started
constexpr double kFloodSeconds = 5;
constexpr double kAckSecondsMax = 10;
constexpr milliseconds kMeshAskEvery{1000};
constexpr int kAnswering = 10;
constexpr int kFloodNeighbours = 49;
constexpr int kTalkers = 4;  // of the long conversation, at a time
constexpr int kTurnsPerSession = 10;
constexpr std::int64_t kMeshWarmUpTurns = 20;
constexpr double kMeshTurnSecondsMax = 20;
constexpr std::int64_t kLongRun = 2000;  // turns from which a tenth is long enough to tell 5 %
constexpr double kStreamSecondsMax = 3;
constexpr std::size_t kMeshNameWidth = 46;

const std::vector<std::string> kTexts{"what is seven plus nine", "what is the capital of france", "hello",
                                      "what is your name", "what is the weather in paris today"};

/// The figures, as they come: each printed as a line and kept for JSON.
class Report {
 public:
  /// @param runs  one value of each
  void add(const std::string& name, const char* unit, const std::vector<double>& runs,
           std::optional<double> most = {}) {
    const double median = quantile(runs, 0.5);
    const double low = quantile(runs, 0);
    const double high = quantile(runs, 1);
    json figure{{"median", median}, {"low", low}, {"high", high}, {"runs", runs.size()}, {"unit", unit}};
    std::string judged;
    if (most) {
      const bool met = median <= *most;  // a figure that is no number has not met it
      figure["target"] = *most;
      figure["met"] = met;
      judged = fmt::format("≤ {:<8.4g}{}", *most, met ? "" : "MISSED");
      if (!met) missed_.push_back(name);
    }
    fmt::print("{:<{}} {:>9} {:<5} {:<22} {}\n", name, kMeshNameWidth, number(median), unit,
               fmt::format("{}…{}", number(low), number(high)), judged);
    std::fflush(stdout);
    figures_[name] = std::move(figure);
  }
  void note(const std::string& text) { fmt::print("  {}\n", text); }
  json figures_ = json::object();
  std::vector<std::string> missed_;

 private:
  static std::string number(double v) {
    return fmt::format("{:.{}f}", v, std::abs(v) < 1 ? 4 : std::abs(v) < 100 ? 2 : 1);
  }
};

void rest(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

/// One run after the other; a link that just carried sound is not what is measured.
struct MeshBench {
  const MeshBenchOptions& options;
  const fs::path folder;
  Report report;
  std::optional<ServedEngine> many;  ///< one process a service; started when it is first wanted

  int runs() const { return std::max(kRunsMin, options.runs); }
  Result<ServedEngine*> engine() {
    if (!many) {
      PARLANDO_TRY(auto started, ServedEngine::start(folder, options.model_path, true));
      many.emplace(std::move(started));
      rest(kCalmSeconds);
    }
    return &*many;
  }

  // ---------------------------------------------------------------------------------------------- round trips

  Result<void> round_trip() {
    report.note(
        "a 640-byte frame there and back, 500 a second; ours: Host, mailbox, sockets and back; in turns with bare "
        "ZeroMQ");
    for (const std::string kind : {"inproc", "ipc", "tcp"}) PARLANDO_DO(round_trip(kind));
    return {};
  }
  Result<void> round_trip(const std::string& kind) {
    std::map<std::string, std::vector<double>> p50, p99;
    std::vector<double> ratio50, ratio99, core_ratio50;
    const auto keep = [&](const std::string& who, const std::vector<double>& all) {
      p50[who].push_back(quantile(all, 0.5));
      p99[who].push_back(quantile(all, 0.99));
    };
    for (int n = 0; n < runs(); ++n) {
      RoundTripOptions o;
      o.endpoint = kind == "tcp"   ? "tcp://127.0.0.1:*"
                   : kind == "ipc" ? fmt::format("ipc://{}/trip-{}", folder.string(), n)
                                   : fmt::format("inproc://trip-{}", n);
      // Who begins changes with every run, so that what the machine does meanwhile favours nobody.
      const auto measure_ours = [&]() -> Result<void> {
        PARLANDO_TRY(const auto ours, round_trips(o));
        keep("ours", ours.whole);
        keep("from_core", ours.from_core);
        return {};
      };
      if (n % 2 == 0) PARLANDO_DO(measure_ours());
      o.endpoint += kind == "tcp" ? "" : "-bare";
      PARLANDO_TRY(const auto bare, bare_round_trips(o));
      keep("bare", bare);
      if (kind != "tcp") o.endpoint += "-ours";
      if (n % 2 == 1) PARLANDO_DO(measure_ours());
      ratio50.push_back(p50["ours"].back() / p50["bare"].back());
      ratio99.push_back(p99["ours"].back() / p99["bare"].back());
      core_ratio50.push_back(p50["from_core"].back() / p50["bare"].back());
    }
    const auto name = "round_trip_us." + kind;
    for (const std::string who : {"ours", "from_core", "bare"}) {
      report.add(name + "." + who + ".p50", "µs", p50[who]);
      report.add(name + "." + who + ".p99", "µs", p99[who]);
    }
    report.add(name + ".ratio.p50", "", ratio50, 2.0);
    report.add(name + ".ratio.p99", "", ratio99);
    report.add(name + ".from_core_ratio.p50", "", core_ratio50);
    return {};
  }

  // ---------------------------------------------------------------------------------------------- idle

  std::vector<double> idle_shares(const ServedEngine& engine) {
    std::vector<double> shares;
    for (int n = 0; n < runs(); ++n) {
      const auto processes = engine.processes();
      const auto start = std::chrono::steady_clock::now();
      const double before = cpu_seconds(processes);
      rest(kIdleSeconds);
      shares.push_back((cpu_seconds(processes) - before) /
                       std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return shares;
  }
  Result<void> idle() {
    report.note("share of a core that an engine takes which nobody talks to");
    {
      PARLANDO_TRY(const auto one, ServedEngine::start(folder, options.model_path, false));
      rest(kCalmSeconds);
      report.add("idle_core_share.one_process", "", idle_shares(one), 0.01);
    }
    PARLANDO_TRY(const auto* const engine, engine());
    report.add("idle_core_share.processes", "", idle_shares(*engine));
    return {};
  }

  // ---------------------------------------------------------------------------------------------- under load

  /// One run under load after the other.
  struct UnderLoad {
    std::vector<double> cpu_us, p50, p99, late_p99, own_us, server_share;
    std::int64_t unanswered = 0, turns = 0;
  };
  Result<UnderLoad> under_load(const ServedEngine& engine, WsLoad& load, double seconds, int runs) {
    UnderLoad out;
    load.run(kWarmUpSeconds);
    load.take();
    const auto processes = engine.processes();
    for (int n = 0; n < runs; ++n) {
      const double before = cpu_seconds(processes);
      load.run(seconds);
      const double used = cpu_seconds(processes) - before;
      const auto figures = load.take();
      if (load.lost() > 0)
        return fail(Errc::unavailable, "{} sessions were lost: {}", load.lost(), load.first_reason());
      out.cpu_us.push_back(1e6 * used / static_cast<double>(figures.frames));
      out.server_share.push_back(used / figures.seconds);
      out.own_us.push_back(1e6 * figures.cpu_seconds / static_cast<double>(figures.frames));
      out.late_p99.push_back(quantile(figures.late, 0.99));
      out.turns += figures.turns;
      if (figures.round_trips.empty()) continue;
      out.p50.push_back(quantile(figures.round_trips, 0.5) / 2);
      out.p99.push_back(quantile(figures.round_trips, 0.99) / 2);
    }
    out.unanswered = load.settle(kAckSecondsMax);
    return out;
  }
  void tell_load(const std::string& name, const UnderLoad& u) {
    report.add(name + ".client_late_p99", "ms", u.late_p99);
    report.add(name + ".client_cpu_us", "µs", u.own_us);
    report.add(name + ".engine_cores", "", u.server_share);
  }

  Result<void> frames() {
    report.note(
        fmt::format("{} sessions that listen, a frame each every 20 ms; CPU of all processes of the engine per frame",
                    options.sessions));
    PARLANDO_TRY(const auto* const engine, engine());
    WsLoad load(engine->port());
    PARLANDO_DO(load.add(options.sessions, {.sound = true}));
    PARLANDO_TRY(const auto u, under_load(*engine, load, options.seconds, runs()));
    report.add("frame_cpu_us", "µs", u.cpu_us, 60.0);
    report.add("frames.sessions_lost", "", {static_cast<double>(load.lost())}, 0.0);
    tell_load("frames", u);
    return {};
  }

  Result<void> answering() {
    report.note(
        fmt::format("{} sessions that listen and {} that are always being answered aloud; half of the round trip of a "
                    "message behind",
                    options.sessions, kAnswering));
    report.note("the frames, which takes waiting frames along: a frame alone may wait up to 5 ms for company");
    PARLANDO_TRY(const auto* const engine, engine());
    WsLoad load(engine->port());
    PARLANDO_DO(load.add(options.sessions, {.sound = true, .ask_every = kMeshAskEvery}));
    PARLANDO_DO(load.add(kAnswering, {.speak = true, .texts = kTexts}));
    PARLANDO_TRY(const auto u, under_load(*engine, load, options.seconds, runs()));
    report.add("frame_to_controller_ms.p50", "ms", u.p50);
    report.add("frame_to_controller_ms.p99", "ms", u.p99, 10.0);
    report.add("answering.unanswered", "", {static_cast<double>(u.unanswered)}, 0.0);
    report.add("answering.turns", "", {static_cast<double>(u.turns)});
    tell_load("answering", u);
    return {};
  }

  Result<void> flood() {
    report.note(fmt::format("one client sends as fast as its socket takes, {} others in real time", kFloodNeighbours));
    PARLANDO_TRY(auto* const engine, engine());
    PARLANDO_TRY(const double gaps_before, engine->metric("parlando_vad_gaps_total"));
    WsLoad load(engine->port());
    PARLANDO_DO(load.add(kFloodNeighbours, {.sound = true, .ask_every = milliseconds(200)}));
    load.run(kWarmUpSeconds);
    load.take();
    PARLANDO_DO(load.add(1, {.flood = true}));
    load.run(kFloodSeconds);
    const auto figures = load.take();
    const auto unanswered = load.settle(kAckSecondsMax);
    PARLANDO_TRY(const double gaps, engine->metric("parlando_vad_gaps_total"));
    report.add("flood.sessions_lost", "", {static_cast<double>(load.lost())}, 0.0);
    report.add("flood.unanswered", "", {static_cast<double>(unanswered)}, 0.0);
    report.add("flood.gaps_heard", "", {gaps - gaps_before}, 0.0);
    report.add("flood.round_trip_ms.p50", "ms", {quantile(figures.round_trips, 0.5)});
    report.add("flood.round_trip_ms.p99", "ms", {quantile(figures.round_trips, 0.99)});
    report.add("flood.taken_mb_s", "MB/s", {static_cast<double>(figures.flood_bytes) / 1e6 / figures.seconds});
    if (load.lost() > 0) report.note(load.first_reason());
    return {};
  }

  // ---------------------------------------------------------------------------------------------- many turns

  Result<double> streams_at_rest(const ServedEngine& engine, double baseline) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(kStreamSecondsMax);
    while (true) {
      PARLANDO_TRY(const double streams, engine.metric("_streams"));
      if (streams <= baseline || std::chrono::steady_clock::now() >= until) return streams;
      rest(0.2);
    }
  }
  Result<void> turns() {
    report.note(fmt::format("{} typed turns, {} sessions at a time, {} turns each, one process", options.turns,
                            kTalkers, kTurnsPerSession));
    PARLANDO_TRY(const auto engine, ServedEngine::start(folder, options.model_path, false));
    rest(kCalmSeconds);
    PARLANDO_TRY(const double streams_before, engine.metric("_streams"));
    struct Tenth {
      double cpu_ms = 0, megabytes = 0, seconds = 0;
    };
    std::vector<Tenth> tenths;
    {
      WsLoad load(engine.port());
      PARLANDO_DO(load.add(kTalkers, {.texts = kTexts, .turns_per_session = kTurnsPerSession}));
      PARLANDO_DO(load.run_turns(kMeshWarmUpTurns, kMeshTurnSecondsMax * static_cast<double>(kMeshWarmUpTurns)));
      const auto processes = engine.processes();
      const auto tenth = std::max<std::int64_t>(1, options.turns / 10);
      for (int n = 1; n <= 10; ++n) {
        const double before = cpu_seconds(processes);
        const auto start = std::chrono::steady_clock::now();
        load.take();
        PARLANDO_DO(load.run_turns(kMeshWarmUpTurns + n * tenth, kMeshTurnSecondsMax * static_cast<double>(tenth)));
        const auto made = static_cast<double>(load.take().turns);
        tenths.push_back({1e3 * (cpu_seconds(processes) - before) / made,
                          static_cast<double>(resident_bytes(processes)) / 1e6,
                          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()});
      }
    }
    PARLANDO_TRY(const double streams, streams_at_rest(engine, streams_before));
    const auto& first = tenths.front();
    const auto& last = tenths.back();
    // Few turns say little: their CPU time moves with what else the machine does.
    const double most = options.turns >= kLongRun ? 1.05 : 1.20;
    report.add("turns.cpu_ms.first_tenth", "ms", {first.cpu_ms});
    report.add("turns.cpu_ms.last_tenth", "ms", {last.cpu_ms});
    report.add("turns.cpu_last_to_first", "", {last.cpu_ms / first.cpu_ms}, most);
    report.add("turns.resident_mb.first_tenth", "MB", {first.megabytes});
    report.add("turns.resident_mb.last_tenth", "MB", {last.megabytes});
    report.add("turns.resident_last_to_first", "", {last.megabytes / first.megabytes}, 1.05);
    report.add("turns.streams_left", "", {streams - streams_before}, 0.0);
    report.add("turns.per_second", "1/s",
               {static_cast<double>(std::max<std::int64_t>(1, options.turns / 10)) / last.seconds});
    return {};
  }
};

}  // namespace

Result<json> bench_mesh(const MeshBenchOptions& options) {
  const Scratch scratch;
  if (scratch.path().empty()) return fail(Errc::io, "no folder can be made in /tmp");
  MeshBench bench{options, scratch.path(), {}, {}};
  auto out = machine_of(options.source);
  fmt::print("{} · {} cores · {} · {} · load {}\n", out["processor"].get<std::string>(), out["cores"].get<unsigned>(),
             out["instruction_set"].get<std::string>(), out["commit"].get<std::string>(),
             out["load_before"].get<std::string>());
  fmt::print("{:<{}} {:>9} {:<5} {:<22} {}\n", "figure", kMeshNameWidth, "median", "", "low…high", "target");
  const std::pair<const char*, Result<void> (MeshBench::*)()> parts[] = {
      {"round_trip", &MeshBench::round_trip}, {"idle", &MeshBench::idle},   {"frames", &MeshBench::frames},
      {"answering", &MeshBench::answering},   {"flood", &MeshBench::flood}, {"turns", &MeshBench::turns}};
  for (const auto& [name, measure] : parts) {
    if (!options.only.empty() && std::find(options.only.begin(), options.only.end(), name) == options.only.end())
      continue;
    // One part that cannot be measured does not keep the others from it; it counts as missed.
    const auto done = (bench.*measure)();
    if (done) continue;
    fmt::print("{:<{}} could not be measured: {}\n", name, kMeshNameWidth, done.error().message);
    bench.report.missed_.push_back(name);
    bench.report.figures_[name] = {{"error", done.error().message}};
  }
  out["load_after"] = load_average();
  out["figures"] = std::move(bench.report.figures_);
  out["missed"] = bench.report.missed_;
  fmt::print(
      "load {} · {}\n", out["load_after"].get<std::string>(),
      bench.report.missed_.empty() ? "every target is met" : fmt::format("{} missed", bench.report.missed_.size()));
  return out;
}

}  // namespace parlando::cli
