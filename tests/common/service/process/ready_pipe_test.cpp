#include "common/service/process/ready_pipe.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <cstdlib>
#include <string_view>
#include <vector>

namespace parlando::service::process {

BOOST_AUTO_TEST_SUITE(ready_pipe)

BOOST_AUTO_TEST_CASE(a_ready_line_is_found_wherever_it_is_cut) {
  const std::string_view text = "alive\nready 4711\nalive\n";
  for (std::size_t cut = 0; cut <= text.size(); ++cut) {
    ReadyLines lines;
    lines.take(text.data(), cut);
    BOOST_TEST(lines.port().has_value() == (cut >= 17), cut);
    lines.take(text.data() + cut, text.size() - cut);
    BOOST_TEST(lines.port().value_or(-1) == 4711, cut);
  }
}

BOOST_AUTO_TEST_CASE(a_ready_line_without_a_port_and_endless_lines_do_no_harm) {
  ReadyLines lines;
  const std::string endless(100'000, 'r');
  lines.take(endless.data(), endless.size());
  lines.take("\nready\n", 7);
  BOOST_TEST(lines.port().value_or(-1) == 0);
}

BOOST_AUTO_TEST_CASE(a_child_says_ready_and_alive_and_never_blocks) {
  int ends[2];
  BOOST_REQUIRE(::pipe2(ends, O_NONBLOCK | O_CLOEXEC) == 0);
  ::setenv(kReadyVariable, std::to_string(ends[1]).c_str(), 1);
  auto pipe = ReadyPipe::of_environment();
  ::unsetenv(kReadyVariable);
  BOOST_TEST(pipe.connected());
  pipe.ready(7);
  pipe.alive();
  char bytes[64];
  const auto count = ::read(ends[0], bytes, sizeof bytes);
  BOOST_TEST(std::string_view(bytes, static_cast<std::size_t>(count)) == "ready 7\nalive\n");
  for (int n = 0; n < 20'000; ++n) pipe.alive();  // more than a pipe holds
  ::close(ends[0]);
  ::close(ends[1]);
  auto none = ReadyPipe::of_environment();
  BOOST_TEST(!none.connected());
  none.ready(1);
}

BOOST_AUTO_TEST_CASE(a_worker_that_answers_is_alive_and_one_that_does_not_is_not) {
  ManualClock clock;
  std::vector<std::function<void()>> asked;
  bool full = false;
  AnswerWatch watch(milliseconds(1000), clock.now(), [&](std::function<void()> answer) {
    if (!full) asked.push_back(std::move(answer));
    return !full;
  });
  for (int n = 0; n < 10; ++n) {
    BOOST_TEST(watch.alive(clock.now()));
    BOOST_REQUIRE(asked.size() == 1u);  // one question at a time
    asked.back()();
    asked.clear();
    clock.advance(milliseconds(500));
  }
  BOOST_TEST(watch.alive(clock.now()));
  clock.advance(milliseconds(1000));
  BOOST_TEST(watch.alive(clock.now()));
  clock.advance(milliseconds(1));
  BOOST_TEST(!watch.alive(clock.now()));
  BOOST_TEST(asked.size() == 1u);
  asked.back()();
  BOOST_TEST(watch.alive(clock.now()));
  // A queue that stays full is no answer.
  asked.back()();
  full = true;
  BOOST_TEST(watch.alive(clock.now()));
  clock.advance(milliseconds(1001));
  BOOST_TEST(!watch.alive(clock.now()));
  full = false;
  BOOST_TEST(!watch.alive(clock.now()));
  asked.back()();
  BOOST_TEST(watch.alive(clock.now()));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::service::process
