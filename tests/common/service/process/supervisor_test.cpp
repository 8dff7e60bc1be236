#define BOOST_TEST_MODULE supervisor
#include "common/service/process/supervisor.hpp"

#include <signal.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <condition_variable>
#include <deque>
#include <fstream>
#include <functional>
#include <sstream>
#include <thread>

#include "tests/support/temporary_directory.hpp"

namespace parlando::service::process {
namespace {

using Kind = Event::Kind;

/// Signals of the process are for the supervisor's thread, as its header demands.
struct BlockSignals {
  BlockSignals() {
    sigset_t set;
    sigemptyset(&set);
    for (const int s : {SIGTERM, SIGINT, SIGHUP, SIGCHLD}) sigaddset(&set, s);
    pthread_sigmask(SIG_BLOCK, &set, nullptr);
  }
};
BOOST_TEST_GLOBAL_CONFIGURATION(BlockSignals);

/// Nothing but what a test is about may happen to its children, however slow the machine.
constexpr RestartLimits kPatient{.back_off_min = milliseconds(10),
                                 .back_off_max = milliseconds(40),
                                 .life_good = milliseconds(3'600'000),
                                 .stopped_max = milliseconds(0),
                                 .hung_max = milliseconds(0)};

/// A supervisor on its thread.
class World {
 public:
  explicit World(RestartLimits limits = kPatient) {
    supervisor.emplace(SupervisorOptions{.limits = limits,
                                         .tell = [this](const Event& e) { put(e); },
                                         .all_ready = [this](int port) { put({.kind = kAllReady, .port = port}); },
                                         .reload = [this]() -> Result<std::vector<ChildSpec>> {
                                           const std::lock_guard lock(mutex);
                                           if (wanted.empty()) return fail(Errc::bad_json, "nothing is wanted");
                                           return wanted;
                                         }});
  }
  ~World() {
    if (!thread.joinable()) return;
    supervisor->end();
    supervisor->end();
    thread.join();
  }
  ChildSpec spec(const std::string& name, const std::vector<std::string>& words, int group = 0) const {
    ChildSpec out{.name = name, .role = name.substr(0, name.find('-')), .program = PARLANDO_TEST_CHILD, .group = group};
    out.arguments = {name, (folder.path() / "log").string()};
    out.arguments.insert(out.arguments.end(), words.begin(), words.end());
    return out;
  }
  void add(const std::string& name, const std::vector<std::string>& words, int group = 0) {
    BOOST_REQUIRE(supervisor->add(spec(name, words, group)));
  }
  void run() {
    thread = std::thread([this] { code = supervisor->run(); });
  }
  /// Waits for the next event of a kind and child; those before it are forgotten.
  Event wait(Kind kind, const std::string& name = {}) {
    std::unique_lock lock(mutex);
    Event found;
    const bool got = changed.wait_for(lock, std::chrono::seconds(30), [&] {
      while (!events.empty()) {
        found = std::move(events.front());
        events.pop_front();
        if (found.kind == kind && (name.empty() || found.name == name)) return true;
      }
      return false;
    });
    BOOST_REQUIRE_MESSAGE(got, "no event " << static_cast<int>(kind) << " of " << name);
    return found;
  }
  /// The same, in any order: others stay.
  Event seek(Kind kind, const std::string& name = {}) {
    std::unique_lock lock(mutex);
    Event found;
    const bool got = changed.wait_for(lock, std::chrono::seconds(30), [&] {
      const auto at = std::find_if(events.begin(), events.end(),
                                   [&](const Event& e) { return e.kind == kind && (name.empty() || e.name == name); });
      if (at == events.end()) return false;
      found = std::move(*at);
      events.erase(at);
      return true;
    });
    BOOST_REQUIRE_MESSAGE(got, "no event " << static_cast<int>(kind) << " of " << name);
    return found;
  }
  int end() {
    supervisor->end();
    return join();
  }
  int join() {
    thread.join();
    return code;
  }
  std::string log() const {
    std::ifstream file(folder.path() / "log");
    std::string out;
    for (std::string line; std::getline(file, line);) out += line + " ";
    return out;
  }
  ChildStatus status(const std::string& name) const {
    for (auto& s : supervisor->status())
      if (s.name == name) return s;
    return {};
  }
  std::string file(const std::string& name) const { return (folder.path() / name).string(); }

  static constexpr Kind kAllReady = static_cast<Kind>(100);
  /// Called on the supervisor's thread, which does nothing else meanwhile. Set before `run`.
  std::function<void(const Event&)> watch;
  TemporaryDirectory folder;
  std::mutex mutex;
  std::vector<ChildSpec> wanted;
  std::optional<Supervisor> supervisor;

 private:
  void put(const Event& e) {
    if (watch) watch(e);
    const std::lock_guard lock(mutex);
    events.push_back(e);
    changed.notify_all();
  }
  std::condition_variable changed;
  std::deque<Event> events;
  std::thread thread;
  int code = -1;
};

}  // namespace

BOOST_AUTO_TEST_CASE(children_say_that_they_are_ready_and_all_ready_comes_once) {
  World w;
  w.add("tts-1", {"ready:0", "serve"});
  w.add("gateway-1", {"ready:4711", "serve"});
  w.run();
  BOOST_TEST(w.wait(World::kAllReady).port == 4711);
  BOOST_TEST(w.status("gateway-1").ready);
  BOOST_TEST(w.status("gateway-1").port == 4711);
  BOOST_TEST(w.end() == 0);
}

BOOST_AUTO_TEST_CASE(a_wrong_configuration_is_given_up_and_the_others_live_on) {
  World w;
  w.add("tts-1", {"exit:78"});
  w.add("llm-1", {"exit:2"});
  w.add("vad-1", {"ready:0", "serve"});
  w.run();
  BOOST_TEST(w.seek(Kind::gave_up).again_in.count() == -1);
  w.seek(Kind::gave_up);
  w.seek(Kind::ready, "vad-1");
  BOOST_TEST((w.status("tts-1").state == RestartPolicy::State::given_up));
  BOOST_TEST(w.status("tts-1").counters.starts == 1u);
  BOOST_TEST(w.status("vad-1").pid > 0);
  BOOST_TEST(w.end() == 0);
  BOOST_TEST(w.log() == "vad-1 ");
}

BOOST_AUTO_TEST_CASE(when_all_are_given_up_it_ends) {
  World w;
  w.add("tts-1", {"exit:78"});
  w.run();
  const auto e = w.wait(Kind::gave_up);
  BOOST_TEST(e.pid > 0);
  BOOST_TEST(e.to_text() ==
             fmt::format("tts ended (exit 78) and is given up: its configuration would be the same again "
                         "instance=tts-1 pid={}",
                         e.pid));
  BOOST_TEST(w.join() == 78);
}

BOOST_AUTO_TEST_CASE(a_crashing_child_starts_again_with_growing_pauses) {
  World w;
  w.add("tts-1", {"exit:1"});
  w.run();
  for (const int pause : {10, 20, 40, 40}) {
    const auto e = w.wait(Kind::ended);
    BOOST_TEST(e.exit.to_text() == "exit 1");
    BOOST_TEST(e.again_in.count() == pause);
  }
  BOOST_TEST(w.status("tts-1").ends_lately >= 4u);
  BOOST_TEST(w.end() == 0);
}

BOOST_AUTO_TEST_CASE(a_killed_child_starts_again_and_is_ready_again) {
  World w;
  w.add("tts-1", {"ready:0", "serve"});
  w.run();
  const auto first = w.wait(Kind::ready).pid;
  ::kill(first, SIGKILL);
  BOOST_TEST(w.wait(Kind::ended).exit.to_text() == "signal 9");
  BOOST_TEST(w.wait(Kind::ready).pid != first);
  BOOST_TEST(w.end() == 0);
}

BOOST_AUTO_TEST_CASE(a_stop_by_somebody_is_seen_and_so_is_its_end) {
  World w;
  w.add("tts-1", {"ready:0", "serve"});
  w.run();
  const auto pid = w.wait(Kind::ready).pid;
  ::kill(pid, SIGSTOP);
  BOOST_TEST(w.wait(Kind::stopped).pid == pid);
  BOOST_TEST(w.status("tts-1").stopped);
  ::kill(pid, SIGCONT);
  w.wait(Kind::continued);
  BOOST_TEST(!w.status("tts-1").stopped);
  ::kill(pid, SIGSTOP);
  w.wait(Kind::stopped);
  // A stopped child hears that everything ends.
  BOOST_TEST(w.end() == 0);
  BOOST_TEST(w.log() == "tts-1 ");
}

BOOST_AUTO_TEST_CASE(a_child_stopped_for_too_long_is_killed_and_starts_again) {
  auto limits = kPatient;
  limits.stopped_max = milliseconds(50);
  World w(limits);
  w.add("tts-1", {"ready:0", "serve"});
  w.run();
  const auto pid = w.wait(Kind::ready).pid;
  ::kill(pid, SIGSTOP);
  w.wait(Kind::stopped);
  w.wait(Kind::stop_too_long);
  BOOST_TEST(w.wait(Kind::ended).exit.to_text() == "signal 9");
  w.wait(Kind::ready);
  BOOST_TEST(w.end() == 0);
}

BOOST_AUTO_TEST_CASE(a_hung_child_is_aborted_and_starts_again) {
  auto limits = kPatient;
  limits.hung_max = milliseconds(200);
  World w(limits);
  w.add("tts-1", {"ready:0", "first:" + w.file("hung"), "mute", "exit:78"});
  w.run();
  w.wait(Kind::hung);
  BOOST_TEST(w.wait(Kind::ended).exit.to_text() == "signal 6");
  w.wait(Kind::gave_up);  // the second life
  BOOST_TEST(w.join() == 78);
}

BOOST_AUTO_TEST_CASE(groups_end_in_order) {
  World w;
  // Neither by the alphabet nor in the order in which they were added.
  for (const char* service : {"vad", "gateway", "context", "llm", "controller", "tokenizer", "tts"})
    w.add(std::string(service) + "-1", {"ready:0", "serve"}, stop_group(service));
  w.run();
  w.wait(World::kAllReady);
  BOOST_TEST(w.end() == 0);
  BOOST_TEST(w.log() == "gateway-1 controller-1 tts-1 llm-1 tokenizer-1 vad-1 context-1 ");
}

BOOST_AUTO_TEST_CASE(a_group_waits_for_the_grace_of_the_one_before_it) {
  World w;
  auto deaf = w.spec("gateway-1", {"ready:0", "deaf"}, 0);
  deaf.grace = milliseconds(100);
  BOOST_REQUIRE(w.supervisor->add(deaf));
  w.add("tts-1", {"ready:0", "serve"}, 2);
  w.add("llm-1", {"exit:1"}, 1);  // between two lives most of the time
  std::string ended_before = "nobody was killed";
  w.watch = [&](const Event& e) {
    if (e.kind == Kind::killed && e.name == "gateway-1") ended_before = w.log();
  };
  w.run();
  w.wait(Kind::ready);
  w.wait(Kind::ready);
  w.supervisor->end();
  BOOST_TEST(w.join() == 0);
  BOOST_TEST(ended_before == "");
  BOOST_TEST(w.log() == "tts-1 ");
}

BOOST_AUTO_TEST_CASE(asked_twice_it_ends_at_once) {
  World w;
  for (const char* name : {"a-1", "b-1"}) {
    auto deaf = w.spec(name, {"ready:0", "deaf"}, name[0]);
    deaf.grace = std::chrono::hours(1);
    BOOST_REQUIRE(w.supervisor->add(deaf));
  }
  w.run();
  w.wait(World::kAllReady);
  ::kill(::getpid(), SIGTERM);
  BOOST_TEST(!w.supervisor->restart("nobody"));
  w.supervisor->end();
  ::kill(::getpid(), SIGINT);
  BOOST_TEST(w.join() == 0);
}

BOOST_AUTO_TEST_CASE(a_child_is_restarted_stopped_and_added_at_run_time) {
  World w;
  w.add("tts-1", {"ready:0", "serve"});
  w.add("tts-2", {"ready:0", "serve"});
  w.run();
  w.wait(World::kAllReady);
  const auto first = w.status("tts-1").pid;
  BOOST_TEST(w.supervisor->restart("tts-1").has_value());
  BOOST_TEST(w.wait(Kind::ended).again_in.count() == 0);
  w.wait(Kind::ready, "tts-1");
  BOOST_TEST(w.status("tts-1").pid != first);
  BOOST_TEST(w.supervisor->stop("tts-2").has_value());
  BOOST_TEST(w.wait(Kind::ended, "tts-2").again_in.count() == -1);
  BOOST_TEST((w.status("tts-2").state == RestartPolicy::State::done));
  BOOST_TEST((w.supervisor->stop("tts-3").error().code == Errc::not_found));
  w.add("tts-3", {"ready:0", "serve"});
  w.wait(Kind::ready, "tts-3");
  BOOST_TEST((w.supervisor->add(w.spec("tts-3", {})).error().code == Errc::invalid_argument));
  auto nothing = w.spec("tts-4", {});
  nothing.program = "/no/such/program";
  BOOST_TEST((w.supervisor->add(nothing).error().code == Errc::not_found));
  // All of a role, one of which has no process.
  BOOST_TEST(w.supervisor->restart("tts").has_value());
  for (int n = 0; n < 3; ++n) w.wait(Kind::ready);
  BOOST_TEST(w.end() == 0);
}

BOOST_AUTO_TEST_CASE(a_hangup_makes_the_children_match_what_is_wanted) {
  World w;
  w.add("tts-1", {"ready:0", "serve"});
  w.add("tts-2", {"ready:0", "serve"});
  w.add("vad-1", {"ready:0", "serve"});
  w.add("llm-1", {"exit:78"});
  w.run();
  for (int n = 0; n < 3; ++n) w.wait(Kind::ready);
  ::kill(::getpid(), SIGHUP);
  BOOST_TEST(w.wait(Kind::reload_failed).text == "nothing is wanted");
  const auto same = w.status("tts-1").pid;
  const auto changed = w.status("vad-1").pid;
  {
    const std::lock_guard lock(w.mutex);
    w.wanted = {w.spec("tts-1", {"ready:0", "serve"}), w.spec("tts-3", {"ready:0", "serve"}),
                w.spec("vad-1", {"ready:0", "serve"}), w.spec("llm-1", {"ready:0", "serve"})};
    w.wanted[2].version = "2";
  }
  ::kill(::getpid(), SIGHUP);
  w.wait(Kind::reloaded);
  for (int n = 0; n < 3; ++n) w.wait(Kind::ready);  // tts-3, vad-1, llm-1
  BOOST_TEST(w.status("tts-1").pid == same);
  BOOST_TEST(w.status("vad-1").pid > 0);
  BOOST_TEST(w.status("vad-1").pid != changed);
  BOOST_TEST(w.status("llm-1").ready);
  BOOST_TEST(w.end() == 0);
  BOOST_TEST(w.status("tts-2").name.empty());
  BOOST_TEST(w.log().find("tts-2") != std::string::npos);
}

}  // namespace parlando::service::process
