#include "common/service/definition.hpp"

#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <ctime>
#include <filesystem>
#include <iostream>
#include <optional>

#include "common/service/process/ready_pipe.hpp"
#include "common/service/recording.hpp"
#include "common/telemetry/log.hpp"

namespace parlando::service {

Result<Instance> read_instance(const nlohmann::json& object, const std::string& path,
                               const std::vector<Definition>& known) {
  std::vector<config::Problem> problems;
  Instance out;
  if (!object.is_object())
    return fail(Errc::invalid_argument, "{} is {}, expected an object", path, object.type_name());
  for (const auto& [key, value] : object.items())
    if (key != "service" && key != "role" && key != "wire" && key != "core" && key != "record")
      problems.push_back({path + "." + key, "is not a known key"});
  std::string names;
  const Definition* definition = nullptr;
  if (object.contains("service") && object["service"].is_string()) out.service = object["service"].get<std::string>();
  for (const auto& d : known) {
    names += (names.empty() ? "" : ", ") + d.name;
    if (d.name == out.service) definition = &d;
  }
  if (definition == nullptr) problems.push_back({path + ".service", "is '" + out.service + "', expected " + names});
  out.role = object.contains("role") && object["role"].is_string() ? object["role"].get<std::string>() : out.service;
  if (out.role.empty() || out.role.size() > 40)
    problems.push_back({path + ".role", "has " + std::to_string(out.role.size()) + " characters, expected 1 to 40"});
  if (object.contains("wire")) out.wire = config::read<WireConfig>(object["wire"], path + ".wire", problems);
  if (object.contains("core")) out.core = object["core"];
  if (object.contains("record")) {
    if (object["record"].is_string())
      out.record = object["record"].get<std::string>();
    else
      problems.push_back({path + ".record", "is no text, expected a folder"});
  }
  if (definition != nullptr) {
    definition->check(out.core, path + ".core", problems);
    for (const auto& [role, endpoints] : out.wire.connect)
      if (std::find(definition->calls.begin(), definition->calls.end(), role) == definition->calls.end())
        problems.push_back({path + ".wire.connect." + role, "is a role that " + out.service + " does not call"});
  }
  if (!problems.empty()) return fail(Errc::invalid_argument, "{}", config::to_text(problems));
  return out;
}

Result<std::unique_ptr<Core>> make_core(const Definition& definition, const Instance& instance) {
  PARLANDO_TRY(auto core, definition.make(instance.core));
  if (instance.record.empty()) return core;
  std::error_code code;
  std::filesystem::create_directories(instance.record, code);
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y%m%dT%H%M%SZ", &utc);
  static std::atomic<int> count{0};  // several of a role may live in one process
  const auto file = std::filesystem::path(instance.record) /
                    fmt::format("{}-{}-{}-{}.plrec", instance.role, text, static_cast<long>(::getpid()), ++count);
  return record(std::move(core), {{"service", instance.service}, {"role", instance.role}, {"core", instance.core}},
                {file});
}

void block_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM), sigaddset(&set, SIGINT);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

namespace {

constexpr milliseconds kDrainPause{50};  // between two looks at whether it is ready, or done

sigset_t end_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM), sigaddset(&set, SIGINT);
  return set;
}

/// @return whether SIGTERM or SIGINT came within that time
bool asked_to_end(milliseconds time) {
  const auto set = end_signals();
  const timespec wait{0, std::chrono::nanoseconds(time).count()};
  return sigtimedwait(&set, nullptr, &wait) > 0;
}

/// Tells a supervisor when requests can be served, and that the worker still takes work, to the end of its drain: who
/// sends SIGTERM need not be the supervisor. A step may take as long as its limit; who is silent for longer is aborted
/// from outside. Without a supervisor it tells nobody.
class SignsOfLife {
 public:
  SignsOfLife(Host& host, milliseconds step_limit) : host_(host), limit_(step_limit + 2 * process::kAlivePeriod) {}
  bool is_heard() const { return pipe_.connected(); }
  /// How long the next call may stay away.
  milliseconds pause() const { return worker_ ? process::kAlivePeriod : kDrainPause; }
  /// Until SIGTERM.
  void tell() {
    if (!worker_ && host_.ready()) {
      pipe_.ready(host_.listening_port());
      worker_.emplace(limit_, clock_.now(), [this](auto answer) {
        return host_.post([answer = std::move(answer)](Core&, Time) { answer(); });
      });
    }
    tell_alive();
  }
  /// The same in a drain; who has never been ready is not watched.
  void tell_alive() {
    const Time now = clock_.now();
    if (!worker_ || now < due_) return;
    due_ = now + process::kAlivePeriod;
    if (worker_->alive(now)) pipe_.alive();
  }

 private:
  Host& host_;
  milliseconds limit_;
  SteadyClock clock_;
  process::ReadyPipe pipe_ = process::ReadyPipe::of_environment();
  std::optional<process::AnswerWatch> worker_;  // once it is ready
  Time due_{};
};

}  // namespace

int run(int argc, char** argv, const Definition& definition) {
  CLI::App app("parlando-" + definition.name + ": " + definition.help);
  std::string file;
  bool check = false;
  int drain_seconds = 20;
  app.add_option("--config", file, "JSON file with role, wire and core; see configs/README.md")->required();
  app.add_flag("--check-config", check, "report every problem of the configuration and exit");
  app.add_option("--drain-seconds", drain_seconds, "how long running work may take after SIGTERM")
      ->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  const auto complain = [](const Error& error, int code) {
    std::cerr << "parlando: " << error.message << "\n";
    return code;
  };
  auto object = config::load_file(file);
  if (!object) return complain(object.error(), 78);
  if (!object->contains("service")) (*object)["service"] = definition.name;
  const auto instance = read_instance(*object, file, {definition});
  if (!instance) return complain(instance.error(), 78);
  // Keys are configuration, too: what cannot be read is found before anything starts.
  if (const auto sockets = socket_options(instance->wire, SteadyClock().now()); !sockets)
    return complain(sockets.error(), 78);
  if (check) {
    std::cout << file << ": good\n";
    return 0;
  }
  block_signals();
  auto core = make_core(definition, *instance);
  if (!core)
    return complain(core.error(), core.error().code == Errc::checkpoint_mismatch ||
                                          core.error().code == Errc::not_found || core.error().code == Errc::bad_format
                                      ? 78
                                      : 1);
  Runtime runtime;
  auto host = Host::start(runtime, instance->role, instance->wire, *std::move(core));
  if (!host) return complain(host.error(), 1);
  std::cout << instance->role << " listens at " << (*host)->endpoint() << ", metrics at port "
            << (*host)->metrics_port() << std::endl;
  SignsOfLife life(**host, milliseconds(instance->wire.step_limit_ms));
  if (life.is_heard()) {
    do life.tell();
    while (!asked_to_end(life.pause()));
  } else {
    const auto set = end_signals();
    int got = 0;
    sigwait(&set, &got);
  }
  // New sessions are refused from here on; what runs may finish.
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(drain_seconds);
  while (!(*host)->drain() && std::chrono::steady_clock::now() < until) {
    life.tell_alive();
    if (asked_to_end(kDrainPause)) break;  // asked twice: now
  }
  telemetry::log(telemetry::Level::info, "{} ends instance={}", instance->role, (*host)->instance());
  return 0;
}

}  // namespace parlando::service
