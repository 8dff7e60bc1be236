#include "kernels/team/team.hpp"

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <set>

namespace parlando::kernels {

BOOST_AUTO_TEST_SUITE(team_test)

BOOST_AUTO_TEST_CASE(each_item_is_done_once_by_somebody) {
  for (const int threads : {1, 2, 5}) {
    Team team(threads);
    BOOST_TEST(team.size() == threads);
    for (const std::int64_t count : {0, 1, 2, 3, 7, 100})
      for (int round = 0; round < 20; ++round) {
        std::vector<std::atomic<int>> done(static_cast<std::size_t>(count));
        team.run(count, 1, [&](std::int64_t first, std::int64_t last) {
          for (auto i = first; i < last; ++i) ++done[static_cast<std::size_t>(i)];
        });
        for (const auto& n : done) BOOST_TEST(n == 1);
      }
  }
}

BOOST_AUTO_TEST_CASE(what_is_too_small_to_share_is_done_by_the_caller) {
  Team team(4);
  const auto caller = std::this_thread::get_id();
  std::int64_t parts = 0;
  team.run(19, 10, [&](std::int64_t first, std::int64_t last) {
    BOOST_TEST((std::this_thread::get_id() == caller));
    BOOST_TEST(first == 0);
    BOOST_TEST(last == 19);
    ++parts;
  });
  BOOST_TEST(parts == 1);
  std::atomic<int> shares{0};
  team.run(20, 10, [&](std::int64_t first, std::int64_t last) {
    ++shares;
    if (last - first != 10) ++shares;
  });
  BOOST_TEST(shares == 2);
}

BOOST_AUTO_TEST_CASE(a_helper_is_woken_for_what_is_worth_it) {
  // A rule of numbers alone: one below 120 µs, from there one for each 20 µs, never more than there are.
  for (const auto& [nanoseconds, most, threads] : {std::tuple{0.0, 4, 1},
                                                   {119'999.0, 4, 1},
                                                   {120'000.0, 2, 2},
                                                   {120'000.0, 16, 6},
                                                   {139'999.0, 16, 6},
                                                   {140'000.0, 16, 7},
                                                   {319'999.0, 16, 15},
                                                   {320'000.0, 16, 16},
                                                   {1e12, 4, 4},
                                                   {1e12, 1, 1},
                                                   {1e30, 2, 2},
                                                   {120'000.0, 0, 1}})
    BOOST_TEST(threads_worth({nanoseconds}, most) == threads, nanoseconds << " ns of " << most);
  // The slower of reading and computing.
  BOOST_TEST(Cost::of(2e6, 0, 1).nanoseconds == 1e5);
  BOOST_TEST(Cost::of(0, 1e6, 50).nanoseconds == 2e4);
  BOOST_TEST(Cost::of(2e6, 1e7, 50).nanoseconds == 2e5);
  Pool pool(3);
  Team team(pool, 3);
  const auto parts = [&](std::int64_t count, double nanoseconds) {
    std::atomic<std::int64_t> parts{0}, items{0};
    team.run(count, Cost{nanoseconds}, [&](std::int64_t first, std::int64_t last) { ++parts, items += last - first; });
    BOOST_TEST(items == count);
    return parts.load();
  };
  BOOST_TEST(parts(100, 100'000) == 1);
  BOOST_TEST(pool.asked() == 0);
  BOOST_TEST(parts(100, 130'000) == 3);
  BOOST_TEST(pool.asked() == 2);
  BOOST_TEST(parts(100, 1e9) == 3);
  BOOST_TEST(parts(2, 1e9) == 2);
  BOOST_TEST(parts(0, 1e9) == 0);
}

BOOST_AUTO_TEST_CASE(who_has_no_part_is_not_asked) {
  Pool pool(8);
  Team team(pool, 8);
  BOOST_TEST(pool.workers() == 7);
  for (int round = 0; round < 50; ++round) team.run(2, 1, [](std::int64_t, std::int64_t) {});
  BOOST_TEST(pool.asked() == 50);
  team.run(1, 1, [](std::int64_t, std::int64_t) {});
  BOOST_TEST(pool.asked() == 50);
  team.run(100, 1, [](std::int64_t, std::int64_t) {});
  BOOST_TEST(pool.asked() == 57);
}

BOOST_AUTO_TEST_CASE(parts_have_about_the_same_work) {
  std::vector<std::int64_t> until;
  for (std::int64_t i = 1, sum = 0; i <= 100; ++i) until.push_back(sum += i);
  for (const std::int64_t parts : {1, 2, 3, 7}) {
    const auto borders = cut_by_work(until, parts);
    BOOST_REQUIRE(borders.size() == static_cast<std::size_t>(parts) + 1);
    BOOST_TEST(borders.front() == 0);
    BOOST_TEST(borders.back() == 100);
    for (std::size_t n = 0; n < static_cast<std::size_t>(parts); ++n) {
      const auto before = borders[n] == 0 ? 0 : until[static_cast<std::size_t>(borders[n] - 1)];
      const auto work = static_cast<double>(until[static_cast<std::size_t>(borders[n + 1] - 1)] - before);
      BOOST_TEST(std::abs(work * static_cast<double>(parts) / 5050 - 1) < 0.15, parts << " parts, work " << work);
    }
  }
  // One item that is nearly all.
  const std::vector<std::int64_t> one = {10, 1010, 1011};
  BOOST_TEST(cut_by_work(one, 2) == (std::vector<std::int64_t>{0, 1, 3}), boost::test_tools::per_element());
  BOOST_TEST(cut_by_work({}, 2) == (std::vector<std::int64_t>{0, 0, 0}), boost::test_tools::per_element());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::kernels
