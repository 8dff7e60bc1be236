#include "common/service/process/supervisor.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "common/base/assert.hpp"

extern char** environ;

namespace parlando::service::process {

namespace {

constexpr milliseconds kTick = kAlivePeriod;
constexpr milliseconds kLate{2000};         // a tick this late says that the supervisor itself stood still
constexpr milliseconds kUrgentGrace{2000};  // after a second SIGTERM
constexpr milliseconds kLately{600'000};
constexpr std::array kOrder{"gateway", "controller", "tts", "llm", "tokenizer", "vad", "context"};

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> out;
  for (auto& text : texts) out.push_back(text.data());
  out.push_back(nullptr);
  return out;
}

}  // namespace

int stop_group(const std::string& service) {
  const auto found = std::find(kOrder.begin(), kOrder.end(), service);
  return found == kOrder.end() ? -1 : static_cast<int>(found - kOrder.begin());
}

std::string Event::to_text() const {
  const auto child = [&](const std::string& does) {
    return fmt::format("{} {} instance={} pid={}", role, does, name, pid);
  };
  switch (kind) {
    case Kind::started:
      return child("starts");
    case Kind::ready:
      return child("is ready");
    case Kind::ended:
      if (again_in.count() < 0) return child(fmt::format("ended ({})", exit.to_text()));
      return child(fmt::format("ended ({}), starts again in {} ms", exit.to_text(), again_in.count()));
    case Kind::gave_up:
      return child(fmt::format("ended ({}) and is given up: its {} would be the same again", exit.to_text(),
                               exit.number == kExitUsage ? "command line" : "configuration"));
    case Kind::stopped:
      return child("was stopped by a signal");
    case Kind::continued:
      return child("goes on after a stop");
    case Kind::stop_too_long:
      return child("was stopped for too long and is killed");
    case Kind::hung:
      return child("gives no sign of life and is aborted");
    case Kind::killed:
      return child("does not end and is killed");
    case Kind::reloaded:
      return "the instances were read again: " + text;
    case Kind::reload_failed:
      return "the instances stay as they are: " + text;
  }
  return {};
}

struct Supervisor::Child {
  ChildSpec spec;
  RestartPolicy policy;
  pid_t pid = 0;
  int pipe = -1;
  ReadyLines lines;
  bool ready = false;
  bool forget = false;  // once it has ended
  bool asked = false;   // to end with all others
  Child(ChildSpec s, RestartLimits limits, Time now) : spec(std::move(s)), policy(limits, now) {}
  ~Child() { close_pipe(); }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  void close_pipe() {
    if (pipe >= 0) ::close(pipe);
    pipe = -1;
  }
};

Supervisor::Supervisor(SupervisorOptions options) : options_(std::move(options)) {
  wake_ = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  PARLANDO_ASSERT(wake_ >= 0, "an event descriptor is needed to wake the supervisor");
}

Supervisor::~Supervisor() {
  for (const auto& c : children_) {
    if (c->pid == 0) continue;
    ::kill(c->pid, SIGKILL);
    ::waitpid(c->pid, nullptr, 0);
  }
  ::close(wake_);
}

void Supervisor::wake() {
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto ignored = ::write(wake_, &one, sizeof one);
}

void Supervisor::tell(Event::Kind kind, const Child& child, Event event) {
  event.kind = kind;
  event.name = child.spec.name;
  event.role = child.spec.role;
  event.pid = child.pid;
  events_.push_back(std::move(event));
}

Result<void> Supervisor::check(const ChildSpec& spec) const {
  if (spec.name.empty() || spec.role.empty())
    return fail(Errc::invalid_argument, "a child is '{}' of role '{}', expected two names", spec.name, spec.role);
  if (::access(spec.program.c_str(), X_OK) != 0)
    return fail(Errc::not_found, "'{}' is not an executable", spec.program);
  return {};
}

Result<void> Supervisor::add(ChildSpec spec) {
  PARLANDO_DO(check(spec));
  {
    const std::lock_guard lock(mutex_);
    if (ending_) return fail(Errc::unavailable, "'{}' cannot be added: everything ends", spec.name);
    for (const auto& c : children_)
      if (c->spec.name == spec.name) return fail(Errc::invalid_argument, "the name '{}' is taken", spec.name);
    children_.push_back(std::make_unique<Child>(std::move(spec), options_.limits, clock_.now()));
  }
  wake();
  return {};
}

std::vector<Supervisor::Child*> Supervisor::named(const std::string& which) {
  std::vector<Child*> out;
  for (const auto& c : children_)
    if (c->spec.name == which) return {c.get()};
  for (const auto& c : children_)
    if (c->spec.role == which) out.push_back(c.get());
  return out;
}

Result<void> Supervisor::restart(const std::string& which) {
  {
    const std::lock_guard lock(mutex_);
    if (ending_) return fail(Errc::unavailable, "'{}' cannot be started again: everything ends", which);
    const auto children = named(which);
    if (children.empty()) return fail(Errc::not_found, "no child has the name or role '{}'", which);
    for (auto* c : children)
      if (!c->forget) c->policy.restart(clock_.now(), c->spec.grace);
  }
  wake();
  return {};
}

Result<void> Supervisor::stop(const std::string& which) {
  {
    const std::lock_guard lock(mutex_);
    const auto children = named(which);
    if (children.empty()) return fail(Errc::not_found, "no child has the name or role '{}'", which);
    for (auto* c : children) c->policy.stop(clock_.now(), c->spec.grace);
  }
  wake();
  return {};
}

Result<void> Supervisor::match(const std::vector<ChildSpec>& wanted) {
  std::map<std::string, const ChildSpec*> by_name;
  for (const auto& spec : wanted) {
    PARLANDO_DO(check(spec));
    if (!by_name.emplace(spec.name, &spec).second)
      return fail(Errc::invalid_argument, "the name '{}' stands twice", spec.name);
  }
  {
    const std::lock_guard lock(mutex_);
    if (ending_) return fail(Errc::unavailable, "nothing is changed any more: everything ends");
    const auto now = clock_.now();
    for (const auto& c : children_) {
      const auto found = by_name.find(c->spec.name);
      if (found == by_name.end()) {
        if (!c->forget) c->policy.stop(now, c->spec.grace);
        c->forget = true;
        continue;
      }
      // One that was given up gets another try: somebody has reason to read the instances again.
      if (c->forget || c->policy.state() == RestartPolicy::State::given_up || !(c->spec == *found->second))
        c->policy.restart(now, c->spec.grace);
      c->forget = false;
      c->spec = *found->second;
      by_name.erase(found);
    }
    for (const auto& spec : wanted)
      if (by_name.contains(spec.name)) children_.push_back(std::make_unique<Child>(spec, options_.limits, now));
  }
  wake();
  return {};
}

void Supervisor::end() {
  {
    const std::lock_guard lock(mutex_);
    if (ending_) {
      urgent_ = true;
    } else {
      ending_ = true;
    }
  }
  wake();
}

std::vector<ChildStatus> Supervisor::status() const {
  const std::lock_guard lock(mutex_);
  std::vector<ChildStatus> out;
  for (const auto& c : children_)
    out.push_back({c->spec.name, c->spec.role, c->pid, c->policy.state(), c->ready, c->policy.is_stopped(),
                   c->lines.port().value_or(0), c->policy.counters(), c->policy.ends_within(clock_.now(), kLately)});
  return out;
}

void Supervisor::spawn(Child& c, Time now) {
  c.close_pipe();
  c.lines = {};
  c.ready = false;
  // All memory is taken before the fork: another thread may hold the allocator's lock at that moment.
  int ends[2] = {-1, -1};
  if (::pipe2(ends, O_NONBLOCK | O_CLOEXEC) != 0) return c.policy.start_failed(now);
  std::vector<std::string> arguments{c.spec.program};
  arguments.insert(arguments.end(), c.spec.arguments.begin(), c.spec.arguments.end());
  std::vector<std::string> environment;
  const auto variable = std::string(kReadyVariable) + "=";
  for (char** e = environ; *e != nullptr; ++e)
    if (!std::string_view(*e).starts_with(variable)) environment.emplace_back(*e);
  environment.push_back(variable + std::to_string(ends[1]));
  const auto argv = pointers(arguments);
  const auto envp = pointers(environment);
  const auto parent = ::getpid();
  const auto pid = ::fork();
  if (pid == 0) {
    ::setpgid(0, 0);
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (::getppid() != parent) ::_exit(1);
    ::signal(SIGPIPE, SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    ::fcntl(ends[1], F_SETFD, 0);
    ::execve(argv[0], argv.data(), envp.data());
    ::_exit(127);
  }
  ::close(ends[1]);
  if (pid < 0) {
    ::close(ends[0]);
    return c.policy.start_failed(now);
  }
  c.pid = pid;
  c.pipe = ends[0];
  c.policy.started(now);
  tell(Event::Kind::started, c);
}

void Supervisor::read_pipe(Child& c, Time now) {
  char bytes[256];
  while (c.pipe >= 0) {
    const auto count = ::read(c.pipe, bytes, sizeof bytes);
    if (count < 0) break;
    if (count == 0) {
      c.close_pipe();  // nobody holds the other end: waiting on it would spin
      break;
    }
    c.lines.take(bytes, static_cast<std::size_t>(count));
    c.policy.alive(now);
  }
  if (c.ready || !c.lines.port()) return;
  c.ready = true;
  tell(Event::Kind::ready, c, {.port = *c.lines.port()});
}

void Supervisor::reap(Time now) {
  for (const auto& c : children_) {
    int status = 0;
    // Each child is asked for by itself: others of this process are not ours to take.
    while (c->pid != 0 && ::waitpid(c->pid, &status, WNOHANG | WUNTRACED | WCONTINUED) > 0) {
      if (WIFSTOPPED(status)) {
        c->policy.stopped(now);
        tell(Event::Kind::stopped, *c);
      } else if (WIFCONTINUED(status)) {
        if (c->policy.is_stopped()) tell(Event::Kind::continued, *c);
        c->policy.continued(now);
      } else {
        read_pipe(*c, now);
        c->policy.ended(Exit::of_status(status), now);
        Event event{.exit = Exit::of_status(status)};
        auto kind = Event::Kind::ended;
        if (c->policy.state() == RestartPolicy::State::given_up) kind = Event::Kind::gave_up;
        if (c->policy.state() == RestartPolicy::State::waiting)
          event.again_in = std::chrono::duration_cast<milliseconds>(c->policy.start_at() - now);
        tell(kind, *c, std::move(event));
        c->pid = 0;
        c->close_pipe();
        c->ready = false;
      }
    }
  }
}

void Supervisor::act(Child& c, Time now) {
  using Action = RestartPolicy::Action;
  for (auto action = c.policy.act(now); action != Action::none; action = c.policy.act(now)) {
    switch (action) {
      case Action::start:
        spawn(c, now);
        break;
      case Action::terminate:
        ::kill(c.pid, SIGTERM);
        ::kill(c.pid, SIGCONT);
        break;
      case Action::abort:
        tell(Event::Kind::hung, c);
        ::kill(c.pid, SIGABRT);
        break;
      case Action::kill:
        tell(c.policy.is_stopped() ? Event::Kind::stop_too_long : Event::Kind::killed, c);
        ::kill(c.pid, SIGKILL);
        break;
      case Action::none:
        break;
    }
  }
}

void Supervisor::end_in_order(Time now) {
  using State = RestartPolicy::State;
  if (std::exchange(urgent_, false))
    for (const auto& c : children_)
      if (c->policy.state() != State::done) c->policy.stop(now, kUrgentGrace);
  const auto over = [](const Child& c) {
    return c.policy.state() == State::done || c.policy.state() == State::given_up;
  };
  // A group whose members have no process at the moment is over at once, and the next one is asked in the same round.
  while (true) {
    const Child* first = nullptr;
    for (const auto& c : children_)
      if (!over(*c) && (first == nullptr || c->spec.group < first->spec.group)) first = c.get();
    if (first == nullptr) return;
    const int group = first->spec.group;
    // Of the groups behind it, those who crash meanwhile are started again: turns under way need them.
    bool waits = false;
    for (const auto& c : children_) {
      if (c->spec.group != group || over(*c)) continue;
      if (!std::exchange(c->asked, true)) c->policy.stop(now, c->spec.grace);
      waits = waits || !over(*c);
    }
    if (waits) return;
  }
}

bool Supervisor::finished() const {
  using State = RestartPolicy::State;
  const auto all = [&](auto&& is) { return std::all_of(children_.begin(), children_.end(), is); };
  if (ending_) return all([](const auto& c) { return c->pid == 0 && c->policy.state() != State::waiting; });
  return !children_.empty() && all([](const auto& c) { return c->policy.state() == State::given_up; });
}

void Supervisor::read_signals(int descriptor) {
  signalfd_siginfo info;
  while (::read(descriptor, &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
    switch (info.ssi_signo) {
      case SIGTERM:
      case SIGINT:
        urgent_ = ending_;
        ending_ = true;
        break;
      case SIGHUP:
        reload_due_ = true;
        break;
      default:
        break;  // SIGCHLD: children are asked in every round
    }
  }
}

/// Without the lock: the function reads files.
void Supervisor::reload() {
  Event event{.kind = Event::Kind::reload_failed};
  if (!options_.reload) {
    event.text = "they come from no file";
  } else {
    auto wanted = options_.reload();
    const auto done = wanted ? match(*wanted) : tl::make_unexpected(wanted.error());
    if (done) event.kind = Event::Kind::reloaded;
    event.text = done ? fmt::format("{} are wanted", wanted->size()) : done.error().message;
  }
  if (options_.tell) options_.tell(event);
}

int Supervisor::run() {
  sigset_t mine;
  sigset_t before;
  sigemptyset(&mine);
  for (const int s : {SIGTERM, SIGINT, SIGHUP, SIGCHLD}) sigaddset(&mine, s);
  ::pthread_sigmask(SIG_BLOCK, &mine, &before);
  ::signal(SIGCHLD, SIG_DFL);  // ignored, children would vanish without a word
  const int signals = ::signalfd(-1, &mine, SFD_NONBLOCK | SFD_CLOEXEC);
  PARLANDO_ASSERT(signals >= 0, "a signal descriptor is needed to hear of children");
  int code = 0;
  std::vector<pollfd> items;
  for (auto seen = clock_.now();;) {
    std::vector<Event> events;
    bool reload_now = false;
    bool all_ready = false;
    bool over = false;
    int port = 0;
    auto until = Time{};
    {
      const std::lock_guard lock(mutex_);
      read_signals(signals);
      const auto now = clock_.now();
      // What lies in the pipes is read before anybody is called hung.
      for (const auto& c : children_) {
        if (now - seen > kLate) c->policy.forgive(now);
        read_pipe(*c, now);
      }
      seen = now;
      reap(now);
      if (ending_) end_in_order(now);
      for (const auto& c : children_) act(*c, now);
      std::erase_if(children_, [](const auto& c) {
        return c->forget && c->pid == 0 && c->policy.state() == RestartPolicy::State::done;
      });
      const bool ready =
          !children_.empty() && std::all_of(children_.begin(), children_.end(), [](const auto& c) { return c->ready; });
      if (ready && !told_ready_ && !ending_) {
        told_ready_ = all_ready = true;
        for (const auto& c : children_) port = std::max(port, c->lines.port().value_or(0));
      }
      over = finished();
      if (over && !ending_) code = kExitConfiguration;
      reload_now = std::exchange(reload_due_, false) && !ending_;
      until = now + kTick;
      items.assign({{signals, POLLIN, 0}, {wake_, POLLIN, 0}});
      for (const auto& c : children_) {
        if (const auto next = c->policy.next()) until = std::min(until, *next);
        // The pipes of those who are ready are emptied by the tick: their signs of life wake nobody.
        if (c->pipe >= 0 && !c->ready) items.push_back({c->pipe, POLLIN, 0});
      }
      events.swap(events_);
    }
    if (options_.tell)
      for (const auto& event : events) options_.tell(event);
    if (all_ready && options_.all_ready) options_.all_ready(port);
    if (over) break;
    if (reload_now) {
      reload();
      continue;
    }
    const auto wait = std::chrono::ceil<milliseconds>(until - clock_.now()).count();
    ::poll(items.data(), items.size(), static_cast<int>(std::max<std::int64_t>(wait, 0)));
    std::uint64_t count = 0;
    [[maybe_unused]] const auto ignored = ::read(wake_, &count, sizeof count);
  }
  ::close(signals);
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return code;
}

}  // namespace parlando::service::process
