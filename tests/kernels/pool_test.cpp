#include "kernels/team/pool.hpp"

#include <sys/resource.h>

#include <boost/test/unit_test.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <latch>
#include <random>

#include "kernels/team/team.hpp"

namespace parlando::kernels {
namespace {
using std::chrono::milliseconds;

/// Workers of all pools. Who was joined just before may still be in the folder: counted when nobody leaves any more.
std::int64_t compute_threads() {
  namespace fs = std::filesystem;
  std::int64_t last = -1;
  for (int same = 0; same < 10;) {
    std::int64_t count = 0;
    for (const auto& thread : fs::directory_iterator("/proc/self/task")) {
      std::ifstream file(thread.path() / "comm");
      std::string name;
      count += std::getline(file, name) && name == "compute";
    }
    same = count == last ? same + 1 : 0, last = count;
    std::this_thread::sleep_for(milliseconds(2));
  }
  return last;
}

double processor_seconds() {
  timespec t{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

/// Each index of [0, count) is worked on once, whatever the parts.
void expect_each_once(Team& team, std::int64_t count, std::int64_t least) {
  std::vector<std::atomic<int>> done(static_cast<std::size_t>(count));
  team.run(count, least, [&](std::int64_t first, std::int64_t last) {
    for (auto i = first; i < last; ++i) done[static_cast<std::size_t>(i)].fetch_add(1, std::memory_order_relaxed);
  });
  const auto wrong = std::ranges::count_if(done, [](const auto& n) { return n != 1; });
  if (wrong != 0) BOOST_ERROR(wrong << " of " << count << " indices were not worked on once");
}
}  // namespace

BOOST_AUTO_TEST_SUITE(pool_test)

BOOST_AUTO_TEST_CASE(every_index_is_worked_on_once_whoever_calls) {
  // Many callers at once, each with calls within calls, some of which throw; fewer cores than callers.
  for (const std::uint32_t seed : {1u, 2u, 3u}) BOOST_TEST_CONTEXT("seed " << seed) {
      Pool pool(3);
      constexpr int kCallers = 8;
      std::latch begun(kCallers);
      std::atomic<int> wrong{0}, thrown{0}, caught{0};
      std::vector<std::thread> callers;
      for (int c = 0; c < kCallers; ++c)
        callers.emplace_back([&, c] {
          std::mt19937 random(seed * 100 + static_cast<std::uint32_t>(c));
          Team team(pool, 1 + c % 4);
          begun.arrive_and_wait();
          for (int round = 0; round < 300; ++round) {
            const auto count = static_cast<std::int64_t>(random() % 40),
                       least = static_cast<std::int64_t>(random() % 4);
            const bool throws = count > 0 && random() % 8 == 0, nests = random() % 4 == 0;
            const auto bad = count == 0 ? 0 : static_cast<std::int64_t>(random() % static_cast<std::uint32_t>(count));
            std::vector<std::atomic<int>> done(static_cast<std::size_t>(count));
            if (throws) ++thrown;
            try {
              team.run(count, least, [&](std::int64_t first, std::int64_t last) {
                for (auto i = first; i < last; ++i) {
                  if (throws && i == bad) throw std::runtime_error("bad");
                  done[static_cast<std::size_t>(i)].fetch_add(1, std::memory_order_relaxed);
                  if (!nests) continue;
                  Team inner(pool, 3);
                  std::atomic<std::int64_t> sum{0};
                  inner.run(5, 1, [&](std::int64_t a, std::int64_t b) {
                    for (; a < b; ++a) sum.fetch_add(a + 1, std::memory_order_relaxed);
                  });
                  if (sum != 15) ++wrong;
                }
              });
              if (throws) ++wrong;
              for (const auto& n : done)
                if (n != 1) ++wrong;
            } catch (const std::runtime_error&) {
              ++caught;
              for (const auto& n : done)
                if (n > 1) ++wrong;
            }
          }
        });
      for (auto& caller : callers) caller.join();
      BOOST_TEST(wrong == 0);
      BOOST_TEST(thrown > 0);
      BOOST_TEST(caught == thrown);
      BOOST_TEST(pool.workers() == 2);
      // What was thrown has left nobody behind.
      const auto asked = pool.asked();
      Team team(pool, 3);
      expect_each_once(team, 100, 1);
      BOOST_TEST(pool.asked() == asked + 2);
    }
}

BOOST_AUTO_TEST_CASE(a_process_has_one_set_of_workers) {
  // Four who may take two threads each, as four services do: one worker where two cores are to be used.
  Pool pool(2);
  const auto before = compute_threads();
  std::latch asked(4), seen(1);
  std::vector<std::thread> services;
  for (int n = 0; n < 4; ++n)
    services.emplace_back([&] {
      Team team(pool, 2);
      expect_each_once(team, 1000, 1);
      asked.count_down();
      seen.wait();
    });
  asked.wait();
  BOOST_TEST(compute_threads() == before + 1);
  BOOST_TEST(pool.workers() == 1);
  seen.count_down();
  for (auto& service : services) service.join();
}

BOOST_AUTO_TEST_CASE(no_more_threads_compute_than_there_are_cores) {
  Pool pool(3);
  Team team(pool, 8), other(pool, 8);
  BOOST_TEST(team.size() == 3);
  const auto threads_of = [](Team& of) {
    std::atomic<int> parts{0};
    of.run(100, 1, [&](std::int64_t, std::int64_t) { ++parts; });
    return parts.load();
  };
  threads_of(team);
  BOOST_TEST(pool.asked() == 2);
  const Pool::Busy self(pool), again(pool);
  threads_of(team);
  BOOST_TEST(pool.asked() == 4);
  // While two others compute, there is no core for a helper; while one does, for one.
  std::latch one(1), two(1), first(1), second(1);
  std::thread a([&] {
    const Pool::Busy busy(pool);
    first.count_down(), one.wait();
  });
  first.wait();
  threads_of(team);
  BOOST_TEST(pool.asked() == 5);
  std::thread b([&] {
    const Pool::Busy busy(pool);
    second.count_down(), two.wait();
  });
  second.wait();
  BOOST_TEST(threads_of(other) == 3);  // by the caller
  BOOST_TEST(pool.asked() == 5);
  one.count_down(), two.count_down();
  a.join(), b.join();
  pool.set_cores(2);
  BOOST_TEST(team.size() == 2);
  threads_of(team);
  BOOST_TEST(pool.asked() == 6);
}

BOOST_AUTO_TEST_CASE(who_does_not_come_is_not_waited_for) {
  // The only worker is held up by somebody else's work: a call ends without it.
  Pool pool(2);
  std::latch held(1), go(1);
  std::thread busy([&] {
    Team team(pool, 2);
    team.run(2, 1, [&](std::int64_t first, std::int64_t) {
      if (first == 0) held.count_down();
      go.wait();
    });
  });
  held.wait();
  Team team(pool, 2);
  for (int round = 0; round < 100; ++round) expect_each_once(team, 64, 1);
  go.count_down();
  busy.join();
}

BOOST_AUTO_TEST_CASE(idle_workers_use_no_processor) {
  Pool pool(4);
  Team team(pool, 4);
  for (int round = 0; round < 200; ++round) expect_each_once(team, 100, 1);
  std::this_thread::sleep_for(milliseconds(20));  // the last ones lie down
  const auto before = processor_seconds();
  std::this_thread::sleep_for(milliseconds(250));
  // A team that spins uses as many quarters of a second as there are workers.
  BOOST_TEST(processor_seconds() - before < 0.025);
}

BOOST_AUTO_TEST_CASE(the_process_has_a_pool_of_the_cores_it_may_use) {
  auto& pool = Pool::of_process();
  BOOST_TEST(usable_cores() >= 1);
  BOOST_TEST(pool.cores() == usable_cores());
  pool.set_cores(1);
  Team::use(4);
  BOOST_TEST(Team::of_this_thread().size() == 1);
  BOOST_TEST(pool.workers() == 0);
  pool.set_cores(3);
  BOOST_TEST(Team::of_this_thread().size() == 3);
  BOOST_TEST(pool.workers() == 2);
  // Who keeps his team sees what was said since.
  auto& kept = Team::of_this_thread();
  for (const int threads : {2, 1, 3}) {
    Team::use(threads);
    BOOST_TEST(&kept == &Team::of_this_thread());
    BOOST_TEST(kept.size() == threads);
  }
  Team::use(1);
  pool.set_cores(0);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::kernels
