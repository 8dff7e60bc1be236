#include "common/transport/owners.hpp"

#include <boost/test/unit_test.hpp>

namespace parlando::transport {
namespace {
const Time kFirst{std::chrono::hours(1)};
const SessionId kSession{1, 2};
using V = Owners::Verdict;
}  // namespace

BOOST_AUTO_TEST_SUITE(owners)

BOOST_AUTO_TEST_CASE(a_higher_epoch_fences_the_lower_ones) {
  Owners o;
  auto j = o.judge("a", kSession, {1}, kFirst);
  BOOST_TEST((j.verdict == V::raised));
  BOOST_TEST(j.former.empty());
  BOOST_TEST((o.judge("a", kSession, {1}, kFirst).verdict == V::same));
  j = o.judge("b", kSession, {2}, kFirst);
  BOOST_TEST((j.verdict == V::raised));
  BOOST_TEST(j.former == "a");
  j = o.judge("a", kSession, {1}, kFirst);
  BOOST_TEST((j.verdict == V::stale));
  BOOST_TEST(j.known.value == 2u);
  BOOST_TEST((o.judge("b", kSession, {2}, kFirst).verdict == V::same));
}

BOOST_AUTO_TEST_CASE(what_has_no_epoch_yet_is_not_judged) {
  Owners o;
  o.judge("a", kSession, {5}, kFirst);
  BOOST_TEST((o.judge("b", kSession, {0}, kFirst).verdict == V::same));
  BOOST_TEST((o.judge("b", {9, 9}, {0}, kFirst).verdict == V::same));
  BOOST_TEST(o.sessions() == 1u);
}

BOOST_AUTO_TEST_CASE(the_least_recently_heard_session_goes_first) {
  Owners o(2);
  o.judge("a", {1, 0}, {5}, kFirst);
  o.judge("a", {2, 0}, {5}, kFirst);
  o.judge("a", {1, 0}, {5}, kFirst);
  o.judge("a", {3, 0}, {5}, kFirst);
  BOOST_TEST(o.sessions() == 2u);
  BOOST_TEST((o.judge("b", {1, 0}, {4}, kFirst).verdict == V::stale));
  BOOST_TEST((o.judge("b", {2, 0}, {4}, kFirst).verdict == V::raised));
}

BOOST_AUTO_TEST_CASE(a_session_that_nobody_speaks_of_is_forgotten) {
  Owners o(100, std::chrono::minutes(1));
  o.judge("a", {1, 0}, {5}, kFirst);
  o.judge("a", {2, 0}, {5}, kFirst + std::chrono::seconds(50));
  o.judge("a", {2, 0}, {5}, kFirst + std::chrono::seconds(61));
  BOOST_TEST(o.sessions() == 1u);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::transport
