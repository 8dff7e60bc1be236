#include "services/cli/up.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ATen/Parallel.h>

#include <filesystem>
#include <fstream>
#include <iostream>

#include "services/context/definition.hpp"
#include "services/controller/definition.hpp"
#include "services/gateway/definition.hpp"
#include "services/llm/definition.hpp"
#include "services/tokenizer/definition.hpp"
#include "services/tts/definition.hpp"
#include "services/vad/definition.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

std::vector<service::Definition> definitions() {
  return {vad::definition(),     tokenizer::definition(),  llm::definition(),    tts::definition(),
          context::definition(), controller::definition(), gateway::definition()};
}

/// Every service of one machine. `prefix` + name is an endpoint.
json topology(const UpOptions& o, const std::string& prefix) {
  auto count = [&](const std::string& role) {
    const auto found = o.replicas.find(role);
    return found == o.replicas.end() ? 1 : found->second;
  };
  auto endpoints = [&](const std::string& role) {
    json out = json::array();
    for (int n = 1; n <= count(role); ++n) out.push_back(fmt::format("{}{}-{}", prefix, role, n));
    return out;
  };
  const fs::path model = o.model_path;
  json all = json::array();
  // On a machine shared with model threads, a beat may be late for reasons that are no fault: three seconds are patience enough. One step of an official
  // model may take seconds on a processor.
  auto add = [&](const std::string& service, const std::string& role, json core, json connect = json::object()) {
    for (const auto& bind : endpoints(role)) {
      const auto metrics = o.metrics_port == 0 ? std::string() : fmt::format("127.0.0.1:{}", o.metrics_port + static_cast<int>(all.size()));
      all.push_back({{"service", service},
                     {"role", role},
                     {"wire",
                      {{"bind", bind},
                       {"connect", connect},
                       {"metrics", metrics},
                       {"heartbeat_ms", 100},
                       {"misses_max", o.processes ? 5 : 30},
                       {"step_limit_ms", 10000}}},
                     {"core", core}});
    }
  };
  add("vad", "vad", {{"weights", o.vad_weights}});
  add("tokenizer", "tokenizer", {{"model", (model / "Step-Audio-Tokenizer").string()}, {"threads", o.threads}});
  add("llm", "llm-chat", {{"model", (model / "Step-Audio-Chat").string()}, {"threads", o.threads}, {"bf16", o.bf16}});
  add("llm", "llm-tts", {{"model", (model / "Step-Audio-TTS-3B").string()}, {"threads", o.threads}, {"bf16", o.bf16}});
  add("tts", "tts", {{"model", (model / "Step-Audio-TTS-3B").string()}, {"threads", o.threads}},
      {{"llm-tts", endpoints("llm-tts")}, {"tokenizer", endpoints("tokenizer")}});
  add("context", "context", {{"store", o.store}});
  // What the model can make use of is the model's own matter: its configuration may say how many turns of history.
  json core{{"tokenizer_mode", "exact"}};
  if (const auto config = config::load_file((model / "Step-Audio-Chat/config.json").string()); config && config->contains("history_turns"))
    core["history_turns"] = (*config)["history_turns"];
  add("controller", "controller", core,
      {{"vad", endpoints("vad")},
       {"tokenizer", endpoints("tokenizer")},
       {"llm-chat", endpoints("llm-chat")},
       {"tts", endpoints("tts")},
       {"context", endpoints("context")}});
  const fs::path source = o.source;
  add("gateway", "gateway",
      {{"listen", o.listen},
       {"page", o.page ? (source / "services/gateway/page").string() : ""},
       {"questions", o.page ? (source / "models/nano/questions").string() : ""}},
      {{"controller", endpoints("controller")}});
  return all;
}

std::string ready_line(const UpOptions& o, int port) {
  if (port == 0) return "ready";
  return fmt::format("ready: {}://{}:{}/{}", o.page ? "http" : "ws", o.listen.substr(0, o.listen.rfind(':')), port, o.page ? "" : "v1/dialogue");
}

/// A child process per instance, started again with back-off when it ends.
class Supervisor {
 public:
  Supervisor(std::string bin, fs::path folder) : bin_(std::move(bin)), folder_(std::move(folder)) {}

  Result<void> add(const service::Instance& instance, const json& object) {
    const auto file = folder_ / fmt::format("{}-{}.json", instance.role, children_.size());
    std::ofstream(file) << object.dump(1);
    const auto program = fs::path(bin_) / ("parlando-" + instance.service);
    if (::access(program.c_str(), X_OK) != 0) return fail(Errc::not_found, "'{}' is not an executable", program.string());
    children_.push_back({instance.role, program.string(), file.string()});
    return {};
  }

  /// @param ready  called once, when every child has said so, with the gateway's port
  void run(const std::function<void(int port)>& ready) {
    bool told = false;
    sigset_t set;
    sigemptyset(&set);
    for (const int s : {SIGTERM, SIGINT, SIGCHLD}) sigaddset(&set, s);
    sigprocmask(SIG_BLOCK, &set, nullptr);
    for (auto& c : children_) spawn(c);
    while (true) {
      const timespec wait{0, 100'000'000};
      const int got = sigtimedwait(&set, nullptr, &wait);
      if (got == SIGTERM || got == SIGINT) break;
      reap(true);
      for (auto& c : children_) listen(c);
      if (!told && std::all_of(children_.begin(), children_.end(), [](const auto& c) { return c.ready; })) {
        told = true;
        int port = 0;
        for (const auto& c : children_) port = std::max(port, c.port);
        ready(port);
      }
      const auto now = clock_.now();
      for (auto& c : children_)
        if (c.pid == 0 && now >= c.start_at) spawn(c);
    }
    for (const auto& c : children_)
      if (c.pid > 0) ::kill(c.pid, SIGTERM);
    const auto until = clock_.now() + std::chrono::seconds(25);
    while (std::any_of(children_.begin(), children_.end(), [](const auto& c) { return c.pid > 0; })) {
      const timespec wait{0, 50'000'000};
      sigtimedwait(&set, nullptr, &wait);
      reap(false);
      if (clock_.now() > until)
        for (const auto& c : children_)
          if (c.pid > 0) ::kill(c.pid, SIGKILL);
    }
  }

 private:
  struct Child {
    std::string role, program, config;
    pid_t pid = 0;
    Time started{}, start_at{};
    milliseconds back_off{100};
    int pipe = -1, port = 0;
    bool ready = false;
  };
  /// A child says "ready PORT" once.
  static void listen(Child& c) {
    char text[64];
    const auto n = c.pipe >= 0 ? ::read(c.pipe, text, sizeof text - 1) : -1;
    if (n <= 0) return;
    text[n] = 0;
    c.ready = std::sscanf(text, "ready %d", &c.port) == 1;
  }
  void spawn(Child& c) {
    const auto parent = ::getpid();
    int ends[2] = {-1, -1};
    if (c.pipe >= 0) ::close(c.pipe);
    if (::pipe2(ends, O_NONBLOCK) != 0) ends[0] = ends[1] = -1;
    const auto descriptor = std::to_string(ends[1]);
    c.pid = ::fork();
    if (c.pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGTERM);
      if (::getppid() != parent) ::_exit(1);
      sigset_t none;
      sigemptyset(&none);
      sigprocmask(SIG_SETMASK, &none, nullptr);
      ::close(ends[0]);
      ::setenv("PARLANDO_READY_FD", descriptor.c_str(), 1);
      ::execl(c.program.c_str(), c.program.c_str(), "--config", c.config.c_str(), nullptr);
      ::_exit(127);
    }
    if (c.pid < 0) c.pid = 0, c.start_at = clock_.now() + std::chrono::seconds(1);
    ::close(ends[1]);
    c.pipe = ends[0], c.ready = false;
    if (c.pipe >= 0) ::fcntl(c.pipe, F_SETFD, FD_CLOEXEC);
    c.started = clock_.now();
    std::cout << "child " << c.role << " pid " << c.pid << std::endl;
  }
  void reap(bool tell) {
    int status = 0;
    for (pid_t pid; (pid = ::waitpid(-1, &status, WNOHANG)) > 0;)
      for (auto& c : children_) {
        if (c.pid != pid) continue;
        const auto now = clock_.now();
        if (now - c.started > std::chrono::seconds(10)) c.back_off = milliseconds(100);
        c.pid = 0, c.start_at = now + c.back_off;
        if (tell)
          std::cerr << fmt::format("parlando: {} ended ({} {}), starts again in {} ms\n", c.role, WIFSIGNALED(status) ? "signal" : "exit",
                                   WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), c.back_off.count());
        c.back_off = std::min(c.back_off * 2, milliseconds(5000));
      }
  }
  std::string bin_;
  fs::path folder_;
  std::vector<Child> children_;
  SteadyClock clock_;
};

}  // namespace

Result<int> up(const UpOptions& options) {
  // ipc endpoints and the children's configurations lie in a folder that only this user may enter.
  std::string folder = "/tmp/parlando-XXXXXX";
  if (options.processes && ::mkdtemp(folder.data()) == nullptr) return fail(Errc::io, "no folder can be made in /tmp");
  struct Remove {
    std::string path;
    bool active;
    ~Remove() {
      std::error_code ignored;
      if (active) fs::remove_all(path, ignored);
    }
  } remove{folder, options.processes};
  json list;
  if (options.config.empty()) {
    list = topology(options, options.processes ? "ipc://" + folder + "/" : "inproc://");
  } else {
    PARLANDO_TRY(auto object, config::load_file(options.config));
    if (!object.contains("instances") || !object["instances"].is_array()) return fail(Errc::invalid_argument, "'{}' has no list 'instances'", options.config);
    list = object["instances"];
  }
  const auto known = definitions();
  std::vector<service::Instance> instances;
  std::string problems;
  for (std::size_t n = 0; n < list.size(); ++n) {
    auto instance = service::read_instance(list[n], fmt::format("instances[{}]", n), known);
    if (instance)
      instances.push_back(*std::move(instance));
    else
      problems += (problems.empty() ? "" : "\n") + instance.error().message;
  }
  if (!problems.empty()) return fail(Errc::invalid_argument, "{}", problems);
  if (options.check) {
    std::cout << instances.size() << " instances: good\n";
    return 0;
  }
  service::block_signals();
  if (options.processes) {
    Supervisor supervisor(options.bin, folder);
    for (std::size_t n = 0; n < instances.size(); ++n) PARLANDO_DO(supervisor.add(instances[n], list[n]));
    supervisor.run([&](int port) { std::cout << ready_line(options, port) << std::endl; });
    return 0;
  }
  at::set_num_threads(options.threads);
  service::Runtime runtime;
  std::vector<std::unique_ptr<service::Host>> hosts;
  service::Host* front = nullptr;
  for (const auto& instance : instances) {
    const auto& definition = *std::find_if(known.begin(), known.end(), [&](const auto& d) { return d.name == instance.service; });
    PARLANDO_TRY(auto core, definition.make(instance.core));
    PARLANDO_TRY(auto host, service::Host::start(runtime, instance.role, instance.wire, std::move(core)));
    if (instance.service == "gateway") front = host.get();
    hosts.push_back(std::move(host));
  }
  // Ready when every service says so; the first reason that stands is told once.
  std::string told;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM), sigaddset(&set, SIGINT);
  bool ready = false;
  while (true) {
    std::string why;
    const bool all = std::all_of(hosts.begin(), hosts.end(), [&](const auto& h) { return h->ready(&why); });
    if (all && !ready) {
      ready = true;
      std::cout << ready_line(options, front != nullptr ? front->listening_port() : 0) << std::endl;
    } else if (!all && why != told) {
      told = why;
      std::cout << "waiting: " << why << std::endl;
    }
    const timespec wait{0, 100'000'000};
    if (sigtimedwait(&set, nullptr, &wait) > 0) break;
  }
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  auto drained = [&] {
    bool all = true;
    for (const auto& h : hosts) all = h->drain() && all;
    return all;
  };
  while (!drained() && std::chrono::steady_clock::now() < until) {
    const timespec wait{0, 50'000'000};
    if (sigtimedwait(&set, nullptr, &wait) > 0) break;
  }
  // Front ends first: nobody is left who could ask.
  while (!hosts.empty()) hosts.pop_back();
  return 0;
}

}  // namespace parlando::cli
