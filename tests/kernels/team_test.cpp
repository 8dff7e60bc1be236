#include "kernels/team/team.hpp"

#include <boost/test/unit_test.hpp>
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

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::kernels
