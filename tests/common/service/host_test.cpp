#define BOOST_TEST_MODULE host
#include "common/service/host.hpp"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <condition_variable>
#include <fstream>

#include "common/service/definition.hpp"
#include "common/service/process/ready_pipe.hpp"
#include "common/service/progress_watch.hpp"
#include "tests/support/temporary_directory.hpp"

namespace parlando::service {
namespace {
using namespace protocol;
using transport::PeerState;

/// Answers Audio with Speech; `Say` makes it do what the text says.
class Echo : public Core {
 public:
  explicit Echo(bool heavy) : heavy_(heavy) {}
  bool is_heavy() const override { return heavy_; }
  void on_message(const std::string& peer, Message m, Time) override {
    const auto head = m.head;
    if (head.type == MessageType::audio) {
      auto audio = *read<Audio>(m);
      return answer(peer, head, Speech{0, audio.first_sample, 22050, false, std::move(audio.payload)});
    }
    if (head.type != MessageType::say) return;
    const auto what = read<Say>(m)->text;
    if (what == "later") {  // worked on with the next message
      later_.emplace_back(peer, head);
      return put_by();
    }
    for (const auto& [from, place] : std::exchange(later_, {})) {
      answer(from, place, Text{TextKind::text, 0, "later", {}});
      worked_on(from, place);
    }
    if (what == "throw") throw std::runtime_error("asked to");
    if (what == "fail") raise(Errc::not_found, "nothing there");
    if (what == "hang")
      for (;;) ::pause();
    answer(peer, head, Text{TextKind::text, 0, what, {}});
  }
  std::int64_t load() const override { return busy_ ? 1 : 0; }
  bool drain() override { return !busy_; }
  bool busy_ = false;

 private:
  bool heavy_;
  Places later_;
};

/// A caller that says what a test tells it to, and lets the test wait for answers.
class Caller : public Core {
 public:
  void on_message(const std::string&, Message m, Time) override {
    const std::lock_guard lock(mutex);
    got.push_back(std::move(m));
    changed.notify_all();
  }
  void on_peer(const transport::Peer& peer, PeerState state, Time) override {
    const std::lock_guard lock(mutex);
    states.push_back(state);
    callee = peer.instance;
    draining = peer.draining;
    changed.notify_all();
  }
  void on_refused(const std::string&, const Envelope&, const Error& error, Time) override {
    const std::lock_guard lock(mutex);
    refusals.push_back(error.code);
    changed.notify_all();
  }
  template <class T>
  void say(std::uint32_t stream, T message, Time deadline = Time::max()) {
    Envelope head;
    head.session = {3, 4};
    head.stream = {stream};
    send(callee, head, std::move(message), deadline);
  }
  template <class F>
  bool wait_for(F&& so) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, std::chrono::seconds(10), [&] { return so(); });
  }
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<Message> got;
  std::vector<PeerState> states;
  std::vector<Errc> refusals;
  std::string callee;
  bool draining = false;
};

std::unique_ptr<Host> start(Runtime& runtime, const std::string& role, WireConfig wire, std::unique_ptr<Core> core) {
  auto host = Host::start(runtime, role, wire, std::move(core));
  BOOST_REQUIRE_MESSAGE(host.has_value(), (host ? std::string() : host.error().message));
  return *std::move(host);
}

/// A service and a caller of it in this process.
struct Pair {
  explicit Pair(bool heavy, const std::string& bind = "inproc://echo", int window = 256) {
    WireConfig wire;
    wire.window_messages = window;
    wire.bind = bind;
    wire.metrics = "127.0.0.1:0";
    echo = start(runtime, "echo", wire, std::make_unique<Echo>(heavy));
    WireConfig calls;
    calls.connect["echo"] = {bind};
    auto core = std::make_unique<Caller>();
    caller = core.get();
    calling = start(runtime, "controller", calls, std::move(core));
    BOOST_REQUIRE((caller->wait_for([&] { return !caller->states.empty(); })));
  }
  template <class T>
  void say(std::uint32_t stream, T message, Time deadline = Time::max()) {
    BOOST_REQUIRE(
        (calling->post([=](Core& core, Time) { static_cast<Caller&>(core).say(stream, message, deadline); })));
  }
  std::string code_of(const Message& m) {
    auto copy = m;
    return m.head.type == MessageType::error ? read<ErrorMessage>(copy)->code : std::string(to_string(m.head.type));
  }
  Runtime runtime;
  std::unique_ptr<Host> echo, calling;
  Caller* caller;
};

}  // namespace

BOOST_AUTO_TEST_CASE(messages_go_to_a_core_and_back_in_order_wherever_it_runs) {
  for (const bool heavy : {false, true}) {
    BOOST_TEST_CONTEXT((heavy ? "heavy" : "light")) {
      Pair p(heavy);
      for (int n = 0; n < 500; ++n) p.say(2, Audio{n * 320, Bytes(640)});
      BOOST_REQUIRE((p.caller->wait_for([&] { return p.caller->got.size() == 500; })));
      for (int n = 0; n < 500; ++n)
        BOOST_REQUIRE((read<Speech>(p.caller->got[static_cast<std::size_t>(n)])->first_sample == n * 320));
    }
  }
}

BOOST_AUTO_TEST_CASE(what_a_core_throws_is_answered_at_once_and_ends_nothing) {
  for (const bool heavy : {false, true}) {
    BOOST_TEST_CONTEXT((heavy ? "heavy" : "light")) {
      Pair p(heavy);
      p.say(2, Say{"throw"});
      p.say(3, Say{"fail"});
      p.say(4, Say{"hello"});
      BOOST_REQUIRE((p.caller->wait_for([&] { return p.caller->got.size() == 3; })));
      BOOST_TEST(p.code_of(p.caller->got[0]) == "internal");
      BOOST_TEST(p.code_of(p.caller->got[1]) == "not_found");
      BOOST_TEST(p.code_of(p.caller->got[2]) == "text");
    }
  }
}

BOOST_AUTO_TEST_CASE(a_budget_that_is_spent_is_answered_where_it_is_found) {
  Pair p(true);
  p.say(2, Say{"late"}, SteadyClock().now() - milliseconds(1));
  BOOST_REQUIRE((p.caller->wait_for([&] { return !p.caller->got.empty(); })));
  // One millisecond is the least that travels; the service finds it spent, or answers within it.
  const auto code = p.code_of(p.caller->got[0]);
  BOOST_TEST((code == "deadline_exceeded" || code == "text"));
}

BOOST_AUTO_TEST_CASE(what_cannot_be_taken_comes_back_to_who_said_it) {
  Pair p(false);
  p.say(2, Say{std::string(140'000, 'a')});
  BOOST_REQUIRE((p.caller->wait_for([&] { return !p.caller->refusals.empty(); })));
  BOOST_TEST((p.caller->refusals.front() == Errc::bad_frame));
}

BOOST_AUTO_TEST_CASE(what_a_core_puts_by_keeps_its_place_in_the_window) {
  for (const bool heavy : {false, true}) {
    BOOST_TEST_CONTEXT((heavy ? "heavy" : "light")) {
      Pair p(heavy, "inproc://echo", 4);
      const auto count = [&](const std::string& what) {
        const std::lock_guard lock(p.caller->mutex);
        return std::count_if(p.caller->got.begin(), p.caller->got.end(), [&](const Message& m) {
          auto copy = m;
          return read<Text>(copy)->text == what;
        });
      };
      const auto go = [&] {
        const auto before = count("go");
        p.say(3, Say{"go"});
        for (int n = 0; n < 10 && count("go") == before; ++n) {
          std::unique_lock lock(p.caller->mutex);
          const auto size = p.caller->got.size();
          p.caller->changed.wait_for(lock, std::chrono::seconds(1), [&] { return p.caller->got.size() > size; });
        }
      };
      for (int n = 0; n < 8; ++n) p.say(2, Say{"later"});
      go();
      BOOST_TEST(count("later") == 4);  // the others wait at their sender
      for (int n = 0; n < 1000 && count("later") < 8; ++n) go();
      BOOST_TEST(count("later") == 8);
    }
  }
}

BOOST_AUTO_TEST_CASE(draining_is_told_to_callers_and_ends_when_nothing_is_under_way) {
  Pair p(false);
  BOOST_REQUIRE((p.echo->post([](Core& core, Time) { static_cast<Echo&>(core).busy_ = true; })));
  BOOST_TEST(!p.echo->drain());
  BOOST_REQUIRE((p.caller->wait_for([&] { return p.caller->draining; })));
  BOOST_TEST(!p.echo->drain());
  BOOST_REQUIRE((p.echo->post([](Core& core, Time) { static_cast<Echo&>(core).busy_ = false; })));
  p.say(2, Say{"still there"});
  BOOST_REQUIRE((p.caller->wait_for([&] { return !p.caller->got.empty(); })));
  SteadyClock clock;
  const auto end = clock.now() + std::chrono::seconds(10);
  while (!p.echo->drain() && clock.now() < end) ::poll(nullptr, 0, 5);
  BOOST_TEST(p.echo->drain());
}

BOOST_AUTO_TEST_CASE(a_service_that_goes_is_down_for_its_callers_and_its_successor_is_up) {
  const TemporaryDirectory folder;
  Pair p(false, "ipc://" + (folder.path() / "echo").string());
  const auto first = p.caller->callee;
  p.echo.reset();
  BOOST_REQUIRE((p.caller->wait_for([&] { return p.caller->states.back() == PeerState::suspect; })));
  WireConfig wire;
  wire.bind = "ipc://" + (folder.path() / "echo").string();
  p.echo = start(p.runtime, "echo", wire, std::make_unique<Echo>(false));
  BOOST_REQUIRE(
      (p.caller->wait_for([&] { return p.caller->states.back() == PeerState::up && p.caller->callee != first; })));
  p.say(9, Say{"hello"});
  BOOST_REQUIRE((p.caller->wait_for([&] { return !p.caller->got.empty(); })));
}

BOOST_AUTO_TEST_CASE(metrics_are_set_and_named_after_the_role) {
  Pair p(false);
  p.say(2, Say{"hello"});
  BOOST_REQUIRE((p.caller->wait_for([&] { return !p.caller->got.empty(); })));
  SteadyClock clock;
  const auto end = clock.now() + std::chrono::seconds(10);
  const auto counted = [&] {
    return p.echo->metrics_text().find("parlando_echo_messages_received_total 1") != std::string::npos;
  };
  while (!counted() && clock.now() < end) ::poll(nullptr, 0, 20);
  BOOST_TEST(counted());
  BOOST_TEST(p.echo->metrics_text().find("parlando_echo_ready 1") != std::string::npos);
}

/// Callers are told what whom it calls leaves it, metrics what it has room for itself.
BOOST_AUTO_TEST_CASE(metrics_tell_a_services_own_slots) {
  struct Waiting : Caller {
    std::int64_t slots() const override { return 0; }
    std::int64_t own_slots() const override { return 7; }
  };
  Runtime runtime;
  WireConfig wire;
  wire.bind = "inproc://waiting";
  wire.metrics = "127.0.0.1:0";
  const auto host = start(runtime, "echo", wire, std::make_unique<Waiting>());
  SteadyClock clock;
  const auto end = clock.now() + std::chrono::seconds(10);
  const auto told = [&] { return host->metrics_text().find("parlando_echo_slots 7") != std::string::npos; };
  while (!told() && clock.now() < end) ::poll(nullptr, 0, 20);
  BOOST_TEST(told());
}

BOOST_AUTO_TEST_CASE(work_that_stands_still_ends_the_process) {
  for (const bool heavy : {false, true}) {
    const auto child = ::fork();
    if (child == 0) {
      Pair p(heavy);
      p.say(2, Say{"hang"});
      for (;;) ::pause();
    }
    int status = 0;
    BOOST_REQUIRE(::waitpid(child, &status, 0) == child);
    BOOST_TEST(WIFEXITED(status));
    BOOST_TEST(WEXITSTATUS(status) == kExitStuck);
  }
}

BOOST_AUTO_TEST_CASE(a_drain_gives_signs_of_life) {
  // SIGTERM may come from outside: a supervisor that has not sent it aborts who is silent.
  const TemporaryDirectory folder;
  const auto file = (folder.path() / "config.json").string();
  std::ofstream(file) << R"({"wire": {"bind": "inproc://echo", "metrics": "127.0.0.1:0"}})";
  int ends[2];
  BOOST_REQUIRE(::pipe(ends) == 0);
  const auto child = ::fork();
  if (child == 0) {
    ::setenv(process::kReadyVariable, std::to_string(ends[1]).c_str(), 1);
    const Definition definition{"echo",
                                "never done",
                                {},
                                [](auto&&...) {},
                                [](const auto&) {
                                  auto core = std::make_unique<Echo>(false);
                                  core->busy_ = true;
                                  return Result<std::unique_ptr<Core>>(std::move(core));
                                }};
    const char* words[] = {"echo", "--config", file.c_str(), "--drain-seconds", "3"};
    ::_exit(run(5, const_cast<char**>(words), definition));
  }
  ::close(ends[1]);
  std::string told;
  const auto read_some = [&] {
    char bytes[256];
    const auto count = ::read(ends[0], bytes, sizeof bytes);
    if (count > 0) told.append(bytes, static_cast<std::size_t>(count));
    return count > 0;
  };
  while (told.find("alive\n") == std::string::npos) BOOST_REQUIRE(read_some());
  BOOST_TEST(told.starts_with("ready 0\n"));
  told.clear();
  ::kill(child, SIGTERM);
  while (read_some()) continue;
  ::close(ends[0]);
  int status = 0;
  BOOST_REQUIRE(::waitpid(child, &status, 0) == child);
  BOOST_TEST((WIFEXITED(status) && WEXITSTATUS(status) == 0));
  BOOST_TEST(std::count(told.begin(), told.end(), '\n') >= 3);  // one every half second
  BOOST_TEST(told.find("ready") == std::string::npos);
}

BOOST_AUTO_TEST_CASE(standing_still_is_counted_in_the_watchers_own_ticks) {
  ProgressWatch watch(milliseconds(300), milliseconds(100));
  const ThreadUse asleep{false, milliseconds(0)}, starved{true, milliseconds(0)};
  BOOST_TEST(!watch.stuck(1, true, asleep));
  for (int tick = 0; tick < 3; ++tick) BOOST_TEST(!watch.stuck(1, true, asleep));
  BOOST_TEST(watch.stuck(1, true, asleep));
  BOOST_TEST(!watch.stuck(2, true, asleep));
  for (int tick = 0; tick < 100; ++tick) BOOST_TEST(!watch.stuck(2, false, asleep));  // nothing to do
  // Who would run and gets no processor is not accused; who computes for too long is.
  for (int tick = 0; tick < 100; ++tick) BOOST_TEST(!watch.stuck(2, true, starved));
  BOOST_TEST(!watch.stuck(2, true, {true, milliseconds(290)}));
  BOOST_TEST(watch.stuck(2, true, {true, milliseconds(310)}));
}

BOOST_AUTO_TEST_CASE(what_a_thread_uses_is_read_from_the_system) {
  BOOST_TEST(thread_use(::gettid()).runnable);  // it asks
  BOOST_TEST(thread_use(0).runnable);
  const auto before = thread_use(::gettid()).cpu;
  SteadyClock clock;
  const auto end = clock.now() + std::chrono::seconds(10);
  volatile double work = 1;
  while (thread_use(::gettid()).cpu - before < milliseconds(50) && clock.now() < end)
    for (int i = 0; i < 100'000; ++i) work = work * 1.000001;
  BOOST_TEST((thread_use(::gettid()).cpu - before >= milliseconds(50)));
}

}  // namespace parlando::service
