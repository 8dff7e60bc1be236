#define BOOST_TEST_MODULE restart_policy
#include "common/service/process/restart_policy.hpp"

#include <signal.h>
#include <sys/wait.h>

#include <boost/test/unit_test.hpp>
#include <ostream>

namespace parlando::service::process {

using Action = RestartPolicy::Action;
using State = RestartPolicy::State;
std::ostream& operator<<(std::ostream& out, Action a) { return out << "action " << static_cast<int>(a); }
std::ostream& operator<<(std::ostream& out, State s) { return out << "state " << static_cast<int>(s); }

namespace {

constexpr milliseconds kGrace{3000};
constexpr Exit kCrash{true, SIGSEGV};

struct World {
  ManualClock clock;
  RestartPolicy policy;
  explicit World(RestartLimits limits = {}) : policy(limits, clock.now()) {}
  Time now() const { return clock.now(); }
  Action act() { return policy.act(clock.now()); }
  Action act_later(int ms) {
    clock.advance(milliseconds(ms));
    return act();
  }
  void start() {
    BOOST_REQUIRE(act() == Action::start);
    policy.started(now());
    BOOST_REQUIRE(act() == Action::none);
  }
  /// How long until it starts again.
  int crash_after(int ms) {
    clock.advance(milliseconds(ms));
    policy.ended(kCrash, now());
    BOOST_REQUIRE(policy.state() == State::waiting);
    const auto wait = std::chrono::duration_cast<milliseconds>(policy.start_at() - now());
    clock.advance(wait - milliseconds(1));
    BOOST_TEST(act() == Action::none);
    clock.advance(milliseconds(1));
    start();
    return static_cast<int>(wait.count());
  }
};

}  // namespace

BOOST_AUTO_TEST_CASE(a_new_child_starts_at_once) {
  World w;
  BOOST_TEST(w.policy.state() == State::waiting);
  BOOST_TEST(!w.policy.has_process());
  w.start();
  BOOST_TEST(w.policy.has_process());
  BOOST_TEST(!w.policy.next().has_value());
  BOOST_TEST(w.act_later(1'000'000) == Action::none);  // it has never given a sign of life: nothing is expected
}

BOOST_AUTO_TEST_CASE(the_pause_doubles_to_its_limit_and_a_good_life_resets_it) {
  World w;
  w.start();
  for (const int expected : {100, 200, 400, 800, 1600, 3200, 5000, 5000}) BOOST_TEST(w.crash_after(9999) == expected);
  BOOST_TEST(w.crash_after(10'000) == 100);
  BOOST_TEST(w.crash_after(0) == 200);
  BOOST_TEST(w.policy.counters().ends == 10u);
  BOOST_TEST(w.policy.counters().starts == 11u);
}

BOOST_AUTO_TEST_CASE(a_child_that_ends_well_unasked_starts_again_too) {
  World w;
  w.start();
  w.policy.ended({false, 0}, w.now());
  BOOST_TEST(w.policy.state() == State::waiting);
  BOOST_TEST(w.act() == Action::none);
  BOOST_TEST(w.act_later(100) == Action::start);
}

BOOST_AUTO_TEST_CASE(usage_and_configuration_are_given_up) {
  for (const int code : {2, 78}) {
    World w;
    w.start();
    w.policy.ended({false, code}, w.now());
    BOOST_TEST(w.policy.state() == State::given_up);
    BOOST_TEST(w.act_later(1'000'000) == Action::none);
    BOOST_TEST(!w.policy.next().has_value());
    BOOST_TEST(w.policy.counters().given_up == 1u);
    // Somebody has mended it.
    w.policy.restart(w.now(), kGrace);
    w.start();
  }
  for (const Exit exit : {Exit{false, 1}, Exit{false, 127}, Exit{true, 2}}) {
    World w;
    w.start();
    w.policy.ended(exit, w.now());
    BOOST_TEST(w.policy.state() == State::waiting);
  }
}

BOOST_AUTO_TEST_CASE(a_fork_that_fails_is_tried_again_with_pauses) {
  World w;
  BOOST_REQUIRE(w.act() == Action::start);
  w.policy.start_failed(w.now());
  BOOST_TEST(w.act_later(99) == Action::none);
  BOOST_TEST(w.act_later(1) == Action::start);
  w.policy.start_failed(w.now());
  BOOST_TEST(w.act_later(199) == Action::none);
  BOOST_TEST(w.act_later(1) == Action::start);
  BOOST_TEST(w.policy.counters().start_failures == 2u);
}

BOOST_AUTO_TEST_CASE(a_stopped_child_is_killed_when_it_lasts) {
  World w;
  w.start();
  w.policy.alive(w.now());
  w.clock.advance(milliseconds(9000));
  w.policy.stopped(w.now());
  w.policy.stopped(w.now());
  BOOST_TEST(w.policy.is_stopped());
  BOOST_TEST(w.act_later(9999) == Action::none);  // it is stopped, not hung
  BOOST_TEST((w.policy.next() == w.now() + milliseconds(1)));
  BOOST_TEST(w.act_later(1) == Action::kill);
  BOOST_TEST(w.act() == Action::none);
  w.policy.ended({true, SIGKILL}, w.now());
  BOOST_TEST(w.policy.state() == State::waiting);
  BOOST_TEST(!w.policy.is_stopped());
  BOOST_TEST(w.policy.counters().stops_seen == 1u);
  BOOST_TEST(w.policy.counters().stopped_killed == 1u);
  BOOST_TEST(w.policy.counters().hung_aborted == 0u);
}

BOOST_AUTO_TEST_CASE(a_stopped_child_that_goes_on_gets_its_time_back) {
  World w;
  w.start();
  w.policy.alive(w.now());
  w.clock.advance(milliseconds(9000));
  w.policy.stopped(w.now());
  w.clock.advance(milliseconds(9000));
  w.policy.continued(w.now());
  BOOST_TEST(w.act_later(9999) == Action::none);
  BOOST_TEST(w.act_later(1) == Action::abort);
}

BOOST_AUTO_TEST_CASE(zero_turns_the_watches_off) {
  World w({.stopped_max = milliseconds(0), .hung_max = milliseconds(0)});
  w.start();
  w.policy.alive(w.now());
  BOOST_TEST(w.act_later(1'000'000) == Action::none);
  w.policy.stopped(w.now());
  BOOST_TEST(w.act_later(1'000'000) == Action::none);
  BOOST_TEST(!w.policy.next().has_value());
}

BOOST_AUTO_TEST_CASE(a_hung_child_is_aborted_then_killed) {
  World w;
  w.start();
  for (int n = 0; n < 20; ++n) {
    w.policy.alive(w.now());
    BOOST_TEST(w.act_later(9999) == Action::none);
  }
  BOOST_TEST(w.act_later(1) == Action::abort);
  BOOST_TEST(w.act_later(1999) == Action::none);
  BOOST_TEST(w.act_later(1) == Action::kill);
  BOOST_TEST(w.act_later(100'000) == Action::none);
  w.policy.ended({true, SIGKILL}, w.now());
  BOOST_TEST(w.policy.counters().hung_aborted == 1u);
  BOOST_TEST(w.policy.counters().killed == 1u);
  // The next life is not watched before its own first sign.
  w.clock.advance(milliseconds(5000));
  w.start();
  BOOST_TEST(w.act_later(1'000'000) == Action::none);
}

BOOST_AUTO_TEST_CASE(silence_while_nobody_listened_proves_nothing) {
  World w;
  w.start();
  w.policy.alive(w.now());
  w.clock.advance(milliseconds(60'000));
  w.policy.forgive(w.now());
  BOOST_TEST(w.act_later(9999) == Action::none);
  BOOST_TEST(w.act_later(1) == Action::abort);
  World stopped;
  stopped.start();
  stopped.policy.stopped(stopped.now());
  stopped.clock.advance(milliseconds(60'000));
  stopped.policy.forgive(stopped.now());
  BOOST_TEST(stopped.act_later(9999) == Action::none);
}

BOOST_AUTO_TEST_CASE(one_that_is_asked_to_end_gets_its_grace) {
  World w;
  w.start();
  w.policy.alive(w.now());
  w.policy.stop(w.now(), milliseconds(20'000));
  BOOST_TEST(w.act() == Action::terminate);
  BOOST_TEST(w.act_later(19'999) == Action::none);  // and no sign of life is asked for
  BOOST_TEST(w.act_later(1) == Action::kill);
  w.policy.ended({true, SIGKILL}, w.now());
  BOOST_TEST(w.policy.state() == State::done);
  BOOST_TEST(w.act_later(1'000'000) == Action::none);
  BOOST_TEST(w.policy.counters().ends == 0u);
}

BOOST_AUTO_TEST_CASE(asked_twice_is_told_twice_and_the_shorter_grace_holds) {
  World w;
  w.start();
  w.policy.stop(w.now(), milliseconds(20'000));
  BOOST_TEST(w.act() == Action::terminate);
  w.policy.stop(w.now(), milliseconds(2000));
  BOOST_TEST(w.act() == Action::terminate);
  BOOST_TEST(w.act_later(1999) == Action::none);
  w.policy.stop(w.now(), milliseconds(20'000));
  BOOST_TEST(w.act() == Action::terminate);
  BOOST_TEST(w.act_later(1) == Action::kill);
}

BOOST_AUTO_TEST_CASE(without_a_process_the_end_is_at_once) {
  World w;
  w.policy.stop(w.now(), kGrace);
  BOOST_TEST(w.policy.state() == State::done);
  BOOST_TEST(w.act() == Action::none);
  World crashed;
  crashed.start();
  crashed.policy.ended(kCrash, crashed.now());
  crashed.policy.stop(crashed.now(), kGrace);
  BOOST_TEST(crashed.act_later(10'000) == Action::none);
}

BOOST_AUTO_TEST_CASE(a_restart_needs_no_pause_and_forgets_earlier_ones) {
  World w;
  w.start();
  BOOST_TEST(w.crash_after(0) == 100);
  BOOST_TEST(w.crash_after(0) == 200);
  w.policy.restart(w.now(), kGrace);
  BOOST_TEST(w.act() == Action::terminate);
  w.policy.restart(w.now(), kGrace);
  BOOST_TEST(w.act() == Action::none);  // a second SIGTERM would mean "at once"
  w.policy.ended({false, 78}, w.now());
  BOOST_TEST(w.policy.state() == State::waiting);
  w.start();
  BOOST_TEST(w.crash_after(0) == 100);
  // The wish is fulfilled: the next end is an ordinary one.
  BOOST_TEST(w.policy.counters().ends == 3u);
}

BOOST_AUTO_TEST_CASE(a_restart_ends_the_pause_of_one_that_waits) {
  World w;
  w.start();
  w.policy.ended(kCrash, w.now());
  w.policy.restart(w.now(), kGrace);
  BOOST_TEST(w.act() == Action::start);
}

BOOST_AUTO_TEST_CASE(a_restart_that_becomes_an_end_is_an_end) {
  World w;
  w.start();
  w.policy.restart(w.now(), kGrace);
  BOOST_TEST(w.act() == Action::terminate);
  w.policy.stop(w.now(), kGrace);
  BOOST_TEST(w.act() == Action::none);
  w.policy.ended({false, 0}, w.now());
  BOOST_TEST(w.policy.state() == State::done);
}

BOOST_AUTO_TEST_CASE(an_end_that_meets_a_hung_child_ends_it) {
  World w;
  w.start();
  w.policy.alive(w.now());
  BOOST_TEST(w.act_later(10'000) == Action::abort);
  w.policy.stop(w.now(), milliseconds(60'000));
  BOOST_TEST(w.act() == Action::none);
  BOOST_TEST(w.act_later(2000) == Action::kill);
  w.policy.ended({true, SIGKILL}, w.now());
  BOOST_TEST(w.policy.state() == State::done);
}

BOOST_AUTO_TEST_CASE(ends_are_counted_in_a_window_and_remembered_in_part) {
  World w;
  w.start();
  for (int n = 0; n < 3; ++n) (void)w.crash_after(1000);
  BOOST_TEST(w.policy.ends_within(w.now(), milliseconds(600'000)) == 3u);
  BOOST_TEST(w.policy.ends_within(w.now(), milliseconds(1000)) == 1u);
  w.clock.advance(milliseconds(600'000));
  BOOST_TEST(w.policy.ends_within(w.now(), milliseconds(1000)) == 0u);
  for (int n = 0; n < 300; ++n) (void)w.crash_after(10'000);
  BOOST_TEST(w.policy.ends_within(w.now(), std::chrono::hours(10)) == 256u);
}

BOOST_AUTO_TEST_CASE(a_status_of_the_system_is_read) {
  BOOST_TEST(Exit::of_status(78 << 8).to_text() == "exit 78");
  BOOST_TEST(Exit::of_status(SIGKILL).to_text() == "signal 9");
}

}  // namespace parlando::service::process
