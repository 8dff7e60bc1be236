#include "services/cli/up.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <iostream>

#include "common/base/mapped_file.hpp"
#include "common/base/random_id.hpp"
#include "common/service/process/supervisor.hpp"
#include "kernels/team/pool.hpp"
#include "services/cli/engine.hpp"
#include "services/cli/plan.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
namespace process = service::process;
using nlohmann::json;

namespace {

/// @param port  of the first gateway, when the options leave it open
std::string ready_line(const UpOptions& o, int port) {
  if (port == 0) return "ready";
  if (const auto asked = std::atoi(o.listen.substr(o.listen.rfind(':') + 1).c_str()); asked != 0) port = asked;
  return fmt::format("ready: {}://{}:{}/{}", o.page ? "http" : "ws", o.listen.substr(0, o.listen.rfind(':')), port,
                     o.page ? "" : "v1/dialogue");
}

/// What can be done with it, for somebody who has just started it: `serve` prints it behind the ready line.
std::string examples(const UpOptions& o, int port, const std::string& clients) {
  const auto host = o.listen.substr(0, o.listen.rfind(':'));
  const auto api = fmt::format("http://{}:{}/v1", host, port);
  return fmt::format(
      "  OpenAI clients: base_url {}, any key; realtime: ws://{}:{}/v1/realtime\n"
      "    curl {}/audio/speech -H 'Content-Type: application/json' -o hello.mp3 "
      "-d '{{\"model\": \"parlando-tts\", \"voice\": \"Clara\", \"input\": \"Hello.\"}}'\n"
      "    python: openai.OpenAI(base_url=\"{}\", api_key=\"none\").chat.completions.create("
      "model=\"parlando-chat\", messages=[{{\"role\": \"user\", \"content\": \"hello\"}}])\n"
      "  ZeroMQ clients (sdk/python, sdk/cpp): {}\n"
      "    python: parlando.Client(\"{}\").open().say(\"hello\")    C++: parlando::sdk::Client client({{.endpoints = "
      "{{\"{}\"}}}});",
      api, host, port, api, api, clients, clients, clients);
}

/// A file says itself where its first gateway listens, and whether there is a page.
UpOptions with_front_of(UpOptions options, const Plan& plan) {
  if (options.config.empty()) return options;
  for (const auto& instance : plan.list) {
    const auto core = instance.find("core");
    if (instance.value("role", "") != "gateway" || core == instance.end()) continue;
    options.listen = core->value("listen", options.listen);
    options.page = !core->value("page", std::string()).empty();
    break;
  }
  return options;
}

/// Where another gateway listens.
std::string also_line(const UpOptions& o, int port) {
  return fmt::format("also: ws://{}:{}/v1/dialogue", o.listen.substr(0, o.listen.rfind(':')), port);
}

/// Names of instances, kept over a file that is read again: who binds the same endpoint in the same role is the same
/// instance, whatever else changed.
class Names {
 public:
  /// To be called before the instances of one reading.
  void begin() { seen_.clear(); }
  std::string of(const service::Instance& instance) {
    const auto place = instance.role + " " + instance.wire.bind;
    const auto key = fmt::format("{} {}", place, seen_[place]++);
    auto& name = names_[key];
    if (name.empty()) name = fmt::format("{}-{}", instance.role, ++count_[instance.role]);
    return name;
  }

 private:
  std::map<std::string, int> seen_;
  std::map<std::string, std::string> names_;
  std::map<std::string, int> count_;
};

/// A child per instance; its part of the configuration is written to a file of its own in `folder`.
Result<std::vector<process::ChildSpec>> children_of(const Plan& plan, const std::string& bin, const fs::path& folder,
                                                    Names& names) {
  std::vector<process::ChildSpec> out;
  names.begin();
  for (std::size_t n = 0; n < plan.instances.size(); ++n) {
    const auto& instance = plan.instances[n];
    const auto name = names.of(instance);
    const auto file = folder / (name + ".json");
    const auto text = plan.list[n].dump(1);
    PARLANDO_DO(write_file(file, text));
    out.push_back({.name = name,
                   .role = instance.role,
                   .program = (fs::path(bin) / ("parlando-" + instance.service)).string(),
                   .arguments = {"--config", file.string()},
                   .version = text,
                   .group = process::stop_group(instance.service)});
  }
  return out;
}

/// The files that name the replicas of each role. A replica stays in its file until its process has ended for good, so
/// that those who call it see it drain instead of losing it.
class ReplicaFiles {
 public:
  explicit ReplicaFiles(fs::path folder) : folder_(std::move(folder)) {}
  /// Adds the instances of a plan to those known. @error Errc::io
  Result<void> add(const Plan& plan, Names& names) {
    names.begin();
    for (const auto& instance : plan.instances) endpoints_[instance.role][names.of(instance)] = instance.wire.bind;
    return write();
  }
  Result<void> remove(const std::string& role, const std::string& name) {
    endpoints_[role].erase(name);
    return write();
  }

 private:
  Result<void> write() {
    for (const auto& [role, of_role] : endpoints_) {
      std::string text;
      for (const auto& [name, endpoint] : of_role) text += endpoint + "\n";
      PARLANDO_DO(write_file(folder_ / role, text));
    }
    return {};
  }
  fs::path folder_;
  std::map<std::string, std::map<std::string, std::string>> endpoints_;
};

constexpr const char* kScaleFile = "scale.json";
constexpr const char* kPidFile = "pid";
constexpr const char* kLockFile = "lock";
constexpr const char* kFixed = " fixed";  // behind the pid: the instances come from a file, `scale` cannot change them

/// A file that goes with the object.
struct RemoveFile {
  fs::path path;
  ~RemoveFile() {
    std::error_code ignored;
    fs::remove(path, ignored);
  }
};

/// The options with what `scale` has asked for.
Result<UpOptions> scaled(UpOptions options, const fs::path& folder) {
  if (!fs::exists(folder / kScaleFile)) return options;
  PARLANDO_TRY(const auto wanted, config::load_file((folder / kScaleFile).string()));
  for (const auto& [role, count] : wanted.items())
    if (count.is_number_integer()) options.replicas[role] = count.get<int>();
  return options;
}

/// The engine as child processes, until SIGTERM or SIGINT; SIGHUP asks again what is wanted.
Result<int> supervise(const UpOptions& options, const Plan& plan, const fs::path& folder, const Places& places) {
  Names names;
  ReplicaFiles replicas(places.replicas_folder);
  PARLANDO_DO(replicas.add(plan, names));
  PARLANDO_DO(write_file(folder / kPidFile, std::to_string(::getpid()) + (options.config.empty() ? "" : kFixed)));
  const RemoveFile pid_file{folder / kPidFile};
  int front_port = 0;
  std::map<std::string, int> other_ports;  // of further gateways, by name
  process::SupervisorOptions supervised{.limits = plan.supervisor.limits()};
  supervised.tell = [&](const process::Event& e) {
    using Kind = process::Event::Kind;
    if (e.kind == Kind::started)
      std::cout << "child " << e.role << " pid " << e.pid << std::endl;
    else if (e.kind != Kind::ready)
      std::cerr << "parlando: " << e.to_text() << std::endl;
    if (e.kind == Kind::ready && e.name == "gateway-1") front_port = e.port;
    if (e.kind == Kind::ready && e.role == "gateway" && e.name != "gateway-1") other_ports[e.name] = e.port;
    if (e.kind == Kind::ended && e.again_in.count() < 0)
      if (const auto done = replicas.remove(e.role, e.name); !done)
        std::cerr << "parlando: " << done.error().message << std::endl;
  };
  supervised.all_ready = [&](int highest) {
    std::cout << ready_line(options, front_port != 0 ? front_port : highest) << std::endl;
    for (const auto& [name, port] : other_ports) std::cout << also_line(options, port) << std::endl;
    if (options.page && options.config.empty())
      std::cout << examples(options, front_port != 0 ? front_port : highest, clients_endpoint(options, places, 1))
                << std::endl;
  };
  supervised.reload = [&]() -> Result<std::vector<process::ChildSpec>> {
    PARLANDO_TRY(const auto wanted, scaled(options, folder));
    PARLANDO_TRY(const auto again, read_plan(wanted, places));
    PARLANDO_DO(replicas.add(again, names));
    return children_of(again, options.bin, folder, names);
  };
  process::Supervisor supervisor(std::move(supervised));
  PARLANDO_TRY(auto children, children_of(plan, options.bin, folder, names));
  for (auto& child : children) PARLANDO_DO(supervisor.add(std::move(child)));
  return supervisor.run();
}

/// Held for as long as an engine runs in a folder; the system lets it go when the process ends, however it ends.
class FolderLock {
 public:
  /// @return nothing when somebody else holds it. @error Errc::io
  static Result<std::optional<FolderLock>> take(const fs::path& folder) {
    const auto path = (folder / kLockFile).string();
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return fail(Errc::io, "'{}' cannot be opened: {}", path, std::strerror(errno));
    FolderLock out(fd);
    if (::flock(fd, LOCK_EX | LOCK_NB) != 0) return std::nullopt;
    return std::optional(std::move(out));
  }
  FolderLock(FolderLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FolderLock& operator=(FolderLock&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~FolderLock() {
    if (fd_ >= 0) ::close(fd_);
  }

 private:
  explicit FolderLock(int fd) : fd_(fd) {}
  int fd_;
};

/// A folder for endpoints and the children's files that only this user may enter; one that we made ourselves goes with
/// us.
class RunFolder {
 public:
  static Result<RunFolder> make(const std::string& wanted) {
    RunFolder out;
    if (wanted.empty()) {
      std::string made = "/tmp/parlando-XXXXXX";
      if (::mkdtemp(made.data()) == nullptr) return fail(Errc::io, "no folder can be made in /tmp");
      out.path_ = made;
      out.ours_ = true;
    } else {
      std::error_code code;
      fs::create_directories(wanted, code);
      fs::permissions(wanted, fs::perms::owner_all, code);
      if (code) return fail(Errc::io, "'{}' cannot be used as a run folder: {}", wanted, code.message());
      out.path_ = fs::absolute(wanted);
    }
    PARLANDO_TRY(out.lock_, FolderLock::take(out.path_));
    if (!out.lock_)
      return fail(Errc::unavailable, "an engine runs in '{}' already: end it, or name another --run-folder",
                  out.path_.string());
    std::error_code code;
    fs::create_directories(out.path_ / "replicas", code);
    fs::remove(out.path_ / kScaleFile, code);
    return out;
  }
  RunFolder(RunFolder&& other) noexcept
      : path_(std::move(other.path_)), ours_(std::exchange(other.ours_, false)), lock_(std::move(other.lock_)) {}
  ~RunFolder() {
    std::error_code ignored;
    if (ours_) fs::remove_all(path_, ignored);
  }
  const fs::path& path() const { return path_; }

 private:
  RunFolder() = default;
  fs::path path_;
  bool ours_ = false;
  std::optional<FolderLock> lock_;
};

/// The engine in this process, until SIGTERM or SIGINT.
Result<int> run_here(const UpOptions& options, const Plan& plan) {
  service::block_signals();
  kernels::Pool::of_process().set_cores(plan.cores);
  PARLANDO_TRY(const auto engine, Engine::start(plan.instances, options.threads));
  // Ready when every service says so; the first reason that stands is told once.
  std::string told;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  bool ready = false;
  while (true) {
    std::string why;
    const bool all = engine->ready(&why);
    if (all && !ready) {
      ready = true;
      const auto* front = engine->front();
      const int port = front != nullptr ? front->listening_port() : 0;
      std::cout << ready_line(options, port) << std::endl;
      if (options.page && port != 0) std::cout << examples(options, port, front->endpoint()) << std::endl;
    } else if (!all && why != told) {
      told = why;
      std::cout << "waiting: " << why << std::endl;
    }
    const timespec wait{0, ready ? 500'000'000 : 100'000'000};
    if (sigtimedwait(&set, nullptr, &wait) > 0) break;
  }
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!engine->drain() && std::chrono::steady_clock::now() < until) {
    const timespec wait{0, 50'000'000};
    if (sigtimedwait(&set, nullptr, &wait) > 0) break;
  }
  return 0;
}

}  // namespace

Result<void> scale(const std::string& run_folder, const std::map<std::string, int>& replicas) {
  const fs::path folder = run_folder;
  PARLANDO_TRY(const auto pid, read_file(folder / kPidFile, 64));
  // Whose the number is now, nobody can say once the engine that wrote it has gone.
  PARLANDO_TRY(const auto free, FolderLock::take(folder));
  if (free || std::atol(pid.c_str()) < 2) return fail(Errc::not_found, "no engine runs in '{}'", run_folder);
  if (pid.ends_with(kFixed))
    return fail(Errc::unsupported, "the engine in '{}' runs a file of instances: change the file and send SIGHUP",
                run_folder);
  auto wanted = json::object();
  if (fs::exists(folder / kScaleFile)) {
    PARLANDO_TRY(wanted, config::load_file((folder / kScaleFile).string()));
  }
  for (const auto& [role, count] : replicas) wanted[role] = count;
  PARLANDO_DO(write_file(folder / kScaleFile, wanted.dump()));
  if (::kill(static_cast<pid_t>(std::atol(pid.c_str())), SIGHUP) != 0)
    return fail(Errc::not_found, "no engine runs in '{}'", run_folder);
  return {};
}

namespace {

/// Tokens of sessions are good for as long as what they open: what signs them lies beside the store.
Result<void> take_secret(UpOptions& options) {
  if (!options.secrets_file.empty() || !options.config.empty() || options.check || !stores_in_a_file(options))
    return {};
  const auto path = options.store + ".secret";
  std::error_code ignored;
  if (const auto folder = fs::path(path).parent_path(); !folder.empty()) fs::create_directories(folder, ignored);
  // Written as a whole under another name: an engine that starts beside this one reads all of it.
  if (!fs::exists(path)) {
    const auto hidden = fmt::format("{}.{}", path, ::getpid());
    const int fd = ::open(hidden.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) return fail(Errc::io, "'{}' cannot be written: {}", hidden, std::strerror(errno));
    const auto secret = random_hex(32);
    const bool good = ::write(fd, secret.data(), secret.size()) == static_cast<ssize_t>(secret.size());
    ::fsync(fd);
    ::close(fd);
    // Who comes second finds the first one's.
    if (good && ::link(hidden.c_str(), path.c_str()) != 0 && errno != EEXIST)
      return fail(Errc::io, "'{}' cannot be written: {}", path, std::strerror(errno));
    fs::remove(hidden, ignored);
    if (!good) return fail(Errc::io, "'{}' cannot be written", hidden);
  }
  options.secrets_file = fs::absolute(path).string();
  return {};
}

}  // namespace

Result<int> up(const UpOptions& given) {
  auto options = given;
  PARLANDO_DO(take_secret(options));
  if (!options.processes || options.check) {
    PARLANDO_TRY(const auto plan, read_plan(options, {options.processes ? "ipc://./" : "inproc://", {}}));
    if (!options.check) return run_here(with_front_of(options, plan), plan);
    std::cout << plan.instances.size() << " instances: good\n";
    return 0;
  }
  PARLANDO_TRY(const auto folder, RunFolder::make(options.run_folder));
  const Places places{"ipc://" + folder.path().string() + "/", (folder.path() / "replicas").string()};
  PARLANDO_TRY(const auto plan, read_plan(options, places));
  service::block_signals();
  return supervise(with_front_of(options, plan), plan, folder.path(), places);
}

}  // namespace parlando::cli
