#define BOOST_TEST_MODULE directory
#include "common/transport/directory.hpp"

#include <boost/test/unit_test.hpp>
#include <condition_variable>
#include <deque>
#include <fstream>
#include <mutex>
#include <thread>

#include "tests/support/temporary_directory.hpp"

namespace parlando::transport {
namespace {

using Outcome = Resolver::Outcome;
using Answer = Resolver::Answer;
constexpr milliseconds kSecond{1000};

/// Answers when the test says so.
struct Script {
  std::vector<std::pair<std::string, int>> asked;
  std::deque<Answer> answers;
  bool full = false;
  void answer(Outcome outcome, std::vector<std::string> addresses = {}, const std::string& name = "tts", int port = 9) {
    answers.push_back({name, port, outcome, std::move(addresses)});
  }
};
class FakeResolver final : public Resolver {
 public:
  explicit FakeResolver(Script& script) : script_(script) {}
  bool request(const std::string& name, int port) override {
    if (script_.full) return false;
    script_.asked.emplace_back(name, port);
    return true;
  }
  std::optional<Answer> take() override {
    if (script_.answers.empty()) return {};
    auto out = std::move(script_.answers.front());
    script_.answers.pop_front();
    return out;
  }

 private:
  Script& script_;
};

std::string text(const std::vector<Directory::Endpoint>& list) {
  std::string out;
  for (const auto& [role, endpoint] : list) out += role + "=" + endpoint + " ";
  return out;
}
std::string text(const Directory::Changes& changes) {
  return "+ " + text(changes.added) + "- " + text(changes.removed);
}

struct World {
  ManualClock clock;
  Script script;
  Directory directory;
  explicit World(const Directory::Sources& sources, DirectoryOptions options = {})
      : directory(*Directory::make(sources, std::make_unique<FakeResolver>(script), options)) {}
  std::string poll() { return text(directory.poll(clock.now())); }
  std::string poll_later(milliseconds by = kSecond) {
    clock.advance(by);
    return poll();
  }
};

void write(const std::filesystem::path& path, const std::string& content) { std::ofstream(path) << content; }

const std::string kNothing = "+ - ";

}  // namespace

BOOST_AUTO_TEST_CASE(plain_endpoints_are_told_once_and_duplicates_collapse) {
  World w(
      Directory::Sources{{"vad", {"inproc://a", "ipc:///b", "inproc://a"}}, {"tts", {"tcp://host:1", "inproc://a"}}});
  BOOST_TEST(w.poll() == "+ tts=inproc://a tts=tcp://host:1 vad=inproc://a vad=ipc:///b - ");
  BOOST_TEST(w.poll() == kNothing);
  BOOST_TEST(w.poll_later() == kNothing);
  BOOST_TEST(w.directory.endpoints("vad").size() == 2u);
  BOOST_TEST(w.directory.endpoints("other").empty());
}

BOOST_AUTO_TEST_CASE(a_source_that_cannot_be_meant_is_named) {
  for (const char* source : {"", "vad", "http://x", "tcp://host", "tcp://:1", "tcp://host:0", "tcp://host:65536",
                             "tcp://host:1x", "inproc://", "file:", "dns:name:1", "dns:tcp://name", "dns:tcp://:1"})
    BOOST_TEST(!Directory::check(source), source);
  BOOST_TEST(!Directory::check("dns:tcp://" + std::string(254, 'n') + ":1"));
  for (const char* source : {"inproc://x", "ipc:///x", "tcp://h:65535", "tcp://[::1]:1", "file:/x", "dns:tcp://a.b:1"})
    BOOST_TEST(Directory::check(source).has_value(), source);
  BOOST_TEST(!Directory::make({{"vad", {"inproc://x", "what"}}}));
  BOOST_TEST(!Directory::make({{"vad", {"dns:tcp://a:1"}}}));
}

BOOST_AUTO_TEST_CASE(a_file_is_followed_line_by_line) {
  const TemporaryDirectory folder;
  const auto file = folder.path() / "tts";
  write(file, "# replicas\n tcp://a:1 \r\ntcp://b:1 # second\n\nnonsense\ntcp://a:1\ntcp://c:1");
  World w(Directory::Sources{{"tts", {"file:" + file.string()}}});
  BOOST_TEST(w.poll() == "+ tts=tcp://a:1 tts=tcp://b:1 tts=tcp://c:1 - ");
  BOOST_TEST(w.directory.counters().lines_refused == 1u);
  write(file, "tcp://b:1\ntcp://d:1\n");
  BOOST_TEST(w.poll_later(milliseconds(999)) == kNothing);
  BOOST_TEST(w.poll_later(milliseconds(1)) == "+ tts=tcp://d:1 - tts=tcp://a:1 tts=tcp://c:1 ");
  BOOST_TEST(w.directory.counters().lines_refused == 1u);
  write(file, "");
  BOOST_TEST(w.poll_later() == "+ - tts=tcp://b:1 tts=tcp://d:1 ");
}

BOOST_AUTO_TEST_CASE(a_missing_file_keeps_the_last_known_set) {
  const TemporaryDirectory folder;
  const auto file = folder.path() / "tts";
  World w(Directory::Sources{{"tts", {"file:" + file.string()}}});
  BOOST_TEST(w.poll() == kNothing);
  BOOST_TEST(w.directory.counters().files_unreadable == 1u);
  write(file, "tcp://a:1\n");
  BOOST_TEST(w.poll_later() == "+ tts=tcp://a:1 - ");
  std::filesystem::remove(file);
  BOOST_TEST(w.poll_later() == kNothing);
  BOOST_TEST(w.poll_later(std::chrono::hours(1)) == kNothing);
  BOOST_TEST(w.directory.counters().files_unreadable == 3u);
  std::filesystem::create_directory(file);  // unreadable in another way
  BOOST_TEST(w.poll_later() == kNothing);
  BOOST_TEST(w.directory.counters().files_unreadable == 4u);
  std::filesystem::remove(file);
  write(file, "tcp://b:1\n");
  BOOST_TEST(w.poll_later() == "+ tts=tcp://b:1 - tts=tcp://a:1 ");
}

BOOST_AUTO_TEST_CASE(a_file_of_equal_size_renamed_into_place_is_noticed) {
  const TemporaryDirectory folder;
  const auto file = folder.path() / "tts";
  write(file, "tcp://a:1\n");
  World w(Directory::Sources{{"tts", {"file:" + file.string()}}});
  (void)w.poll();
  const auto time = std::filesystem::last_write_time(file);
  write(folder.path() / "new", "tcp://b:1\n");
  std::filesystem::last_write_time(folder.path() / "new", time);
  std::filesystem::rename(folder.path() / "new", file);
  BOOST_TEST(w.poll_later() == "+ tts=tcp://b:1 - tts=tcp://a:1 ");
}

BOOST_AUTO_TEST_CASE(every_address_of_a_name_becomes_an_endpoint) {
  World w(Directory::Sources{{"tts", {"dns:tcp://tts:9"}}});
  BOOST_TEST(w.poll() == kNothing);
  BOOST_TEST(w.script.asked.size() == 1u);
  w.script.answer(Outcome::found, {"10.0.0.1", "fd00::1", "10.0.0.1"});
  // An answer is taken when it is there, not a second later.
  BOOST_TEST(w.poll() == "+ tts=tcp://10.0.0.1:9 tts=tcp://[fd00::1]:9 - ");
  BOOST_TEST(w.script.asked.size() == 1u);
  BOOST_TEST(w.poll_later() == kNothing);
  BOOST_TEST(w.script.asked.size() == 2u);
  w.script.answer(Outcome::found, {"10.0.0.2", "fd00::1"});
  BOOST_TEST(w.poll() == "+ tts=tcp://10.0.0.2:9 - tts=tcp://10.0.0.1:9 ");
}

BOOST_AUTO_TEST_CASE(a_name_that_shrinks_is_believed_at_once) {
  World w(Directory::Sources{{"tts", {"dns:tcp://tts:9"}}});
  (void)w.poll();
  w.script.answer(Outcome::found, {"10.0.0.1", "10.0.0.2", "10.0.0.3"});
  (void)w.poll();
  (void)w.poll_later();
  w.script.answer(Outcome::found, {"10.0.0.2"});
  BOOST_TEST(w.poll() == "+ - tts=tcp://10.0.0.1:9 tts=tcp://10.0.0.3:9 ");
}

BOOST_AUTO_TEST_CASE(no_address_is_believed_when_it_lasts) {
  World w(Directory::Sources{{"tts", {"dns:tcp://tts:9"}}});
  (void)w.poll();
  w.script.answer(Outcome::found, {"10.0.0.1"});
  (void)w.poll();
  for (int second = 0; second < 30; ++second) {
    (void)w.poll_later();
    w.script.answer(Outcome::nothing);
    BOOST_TEST(w.poll() == kNothing, second);
  }
  BOOST_TEST(w.directory.counters().names_empty == 30u);
  BOOST_TEST(w.poll_later() == "+ - tts=tcp://10.0.0.1:9 ");
  w.script.answer(Outcome::found, {"10.0.0.1"});
  BOOST_TEST(w.poll() == "+ tts=tcp://10.0.0.1:9 - ");
}

BOOST_AUTO_TEST_CASE(no_address_for_a_moment_changes_nothing) {
  World w(Directory::Sources{{"tts", {"dns:tcp://tts:9"}}});
  (void)w.poll();
  w.script.answer(Outcome::found, {"10.0.0.1"});
  (void)w.poll();
  for (int round = 0; round < 3; ++round) {
    for (int second = 0; second < 20; ++second) {
      (void)w.poll_later();
      w.script.answer(Outcome::nothing);
      BOOST_TEST(w.poll() == kNothing);
    }
    (void)w.poll_later();
    w.script.answer(Outcome::found, {"10.0.0.1"});
    BOOST_TEST(w.poll() == kNothing);
  }
}

BOOST_AUTO_TEST_CASE(a_failing_name_server_takes_nothing_away) {
  World w(Directory::Sources{{"tts", {"dns:tcp://tts:9"}}});
  (void)w.poll();
  w.script.answer(Outcome::found, {"10.0.0.1"});
  (void)w.poll();
  for (int second = 0; second < 100; ++second) {
    (void)w.poll_later();
    w.script.answer(Outcome::failed);
    BOOST_TEST(w.poll() == kNothing);
  }
  BOOST_TEST(w.directory.counters().names_failed == 100u);
}

BOOST_AUTO_TEST_CASE(an_outage_between_two_empty_answers_says_nothing_about_the_name) {
  World w(Directory::Sources{{"tts", {"dns:tcp://tts:9"}}});
  (void)w.poll();
  w.script.answer(Outcome::found, {"10.0.0.1"});
  (void)w.poll();
  for (int second = 0; second < 60; ++second) {
    (void)w.poll_later();
    w.script.answer(second % 20 == 19 ? Outcome::failed : Outcome::nothing);
    BOOST_TEST(w.poll() == kNothing);
  }
}

BOOST_AUTO_TEST_CASE(a_resolver_that_never_answers_is_asked_once_and_keeps_the_set) {
  World w(Directory::Sources{{"tts", {"dns:tcp://tts:9", "inproc://a"}}});
  BOOST_TEST(w.poll() == "+ tts=inproc://a - ");
  for (int second = 0; second < 60; ++second) BOOST_TEST(w.poll_later() == kNothing);
  BOOST_TEST(w.script.asked.size() == 1u);
  BOOST_TEST(w.directory.counters().names_late == 60u);
}

BOOST_AUTO_TEST_CASE(a_full_resolver_is_asked_again) {
  World w(Directory::Sources{{"tts", {"dns:tcp://tts:9"}}});
  w.script.full = true;
  (void)w.poll();
  BOOST_TEST(w.directory.counters().questions_refused == 1u);
  w.script.full = false;
  (void)w.poll_later();
  BOOST_TEST(w.script.asked.size() == 1u);
}

BOOST_AUTO_TEST_CASE(one_name_serves_several_roles_and_foreign_answers_none) {
  World w(
      Directory::Sources{{"tts", {"dns:tcp://tts:9"}}, {"voice", {"dns:tcp://tts:9"}}, {"vad", {"dns:tcp://tts:8"}}});
  (void)w.poll();
  w.script.answer(Outcome::found, {"10.0.0.1"});
  w.script.answer(Outcome::found, {"10.0.0.2"}, "other");
  BOOST_TEST(w.poll() == "+ tts=tcp://10.0.0.1:9 voice=tcp://10.0.0.1:9 - ");
  BOOST_TEST(w.directory.counters().answers_unknown == 1u);
}

BOOST_AUTO_TEST_CASE(too_many_endpoints_leave_the_known_ones_in_place) {
  const TemporaryDirectory folder;
  const auto file = folder.path() / "tts";
  write(file, "tcp://m:1\ntcp://n:1\n");
  World w(Directory::Sources{{"tts", {"file:" + file.string()}}}, {.endpoints_max = 2});
  (void)w.poll();
  write(file, "tcp://a:1\ntcp://b:1\ntcp://n:1\n");
  BOOST_TEST(w.poll_later() == "+ tts=tcp://a:1 - tts=tcp://m:1 ");
  BOOST_TEST(w.directory.counters().endpoints_refused == 1u);
  write(file, "tcp://b:1\ntcp://n:1\n");
  BOOST_TEST(w.poll_later() == "+ tts=tcp://b:1 - tts=tcp://a:1 ");
}

namespace {

/// A look-up that the test holds up.
struct Gate {
  std::mutex mutex;
  std::condition_variable changed;
  bool open = false;
  int inside = 0;
  int left = 0;
  static Answer look_up(const std::string& name, int port, void* context) {
    auto& gate = *static_cast<Gate*>(context);
    std::unique_lock lock(gate.mutex);
    ++gate.inside;
    gate.changed.notify_all();
    gate.changed.wait(lock, [&] { return gate.open; });
    ++gate.left;
    gate.changed.notify_all();
    return {name, port, Outcome::found, {"10.0.0.1"}};
  }
  template <class F>
  void wait(F&& done) {
    std::unique_lock lock(mutex);
    BOOST_REQUIRE(changed.wait_for(lock, std::chrono::seconds(20), done));
  }
};

}  // namespace

BOOST_AUTO_TEST_CASE(a_hung_look_up_blocks_neither_questions_nor_the_end) {
  // Never destroyed: the thread that is left behind may still be leaving it when the program ends.
  static Gate& gate = *std::make_unique<Gate>().release();
  {
    ThreadResolver resolver(2, &Gate::look_up, &gate);
    BOOST_TEST(resolver.request("a", 1));
    gate.wait([&] { return gate.inside == 1; });
    BOOST_TEST(resolver.request("b", 1));
    BOOST_TEST(!resolver.request("c", 1));  // two are open: one is looked up, one waits
    BOOST_TEST(!resolver.take());
  }
  const std::unique_lock lock(gate.mutex);
  BOOST_TEST(gate.left == 0);
  gate.open = true;
  gate.changed.notify_all();
}

BOOST_AUTO_TEST_CASE(answers_come_in_order_and_make_room) {
  static Gate gate;
  gate.open = true;
  ThreadResolver resolver(2, &Gate::look_up, &gate);
  BOOST_TEST(resolver.request("a", 1));
  BOOST_TEST(resolver.request("b", 2));
  gate.wait([&] { return gate.left == 2; });
  std::vector<Answer> got;
  for (const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
       got.size() < 2 && std::chrono::steady_clock::now() < until; std::this_thread::yield())
    if (auto answer = resolver.take()) got.push_back(std::move(*answer));
  BOOST_REQUIRE(got.size() == 2u);
  BOOST_TEST(got[0].name == "a");
  BOOST_TEST(got[1].port == 2);
  BOOST_TEST(resolver.request("c", 1));
}

BOOST_AUTO_TEST_CASE(the_system_knows_numbers_and_this_machine) {
  const auto number = ThreadResolver::system_look_up("127.0.0.1", 5, nullptr);
  BOOST_TEST((number.outcome == Outcome::found));
  BOOST_REQUIRE(number.addresses.size() == 1u);
  BOOST_TEST(number.addresses[0] == "127.0.0.1");
  const auto none = ThreadResolver::system_look_up("no-such-name.invalid", 5, nullptr);
  BOOST_TEST((none.outcome != Outcome::found));
}

}  // namespace parlando::transport
