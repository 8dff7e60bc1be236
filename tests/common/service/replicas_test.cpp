#define BOOST_TEST_MODULE replicas
#include "common/service/replicas.hpp"

#include <boost/test/unit_test.hpp>
#include <map>

namespace parlando::service {
namespace {
using transport::Peer;
using transport::PeerState;

Peer named(std::string instance) {
  Peer p;
  p.instance = std::move(instance);
  p.role = "vad";
  return p;
}
Replicas of(const std::vector<std::string>& names) {
  Replicas out;
  for (const auto& n : names) out.on_peer(named(n), PeerState::up);
  return out;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(replicas)

BOOST_AUTO_TEST_CASE(placement_does_not_move_with_a_build) {
  BOOST_TEST(rendezvous_weight({1, 2}, "vad-1") == 0x7b3b4f7d3271b7edull);
  BOOST_TEST(rendezvous_weight({1, 2}, "vad-2") == 0xc5f87f1fba71b524ull);
  BOOST_TEST(rendezvous_weight({0, 0}, "") == 0xa5e0dba6c385580aull);
}

BOOST_AUTO_TEST_CASE(losing_a_replica_moves_only_its_own_sessions) {
  const auto four = of({"a", "b", "c", "d"});
  auto three = of({"d", "c", "b", "a"});
  three.on_peer(named("c"), PeerState::down);
  BOOST_TEST(three.size() == 3u);
  std::map<std::string, int> counts;
  for (std::uint64_t s = 0; s < 4000; ++s) {
    const auto before = *four.choose({s, s * 7});
    ++counts[before];
    if (before != "c") BOOST_TEST(before == *three.choose({s, s * 7}));
  }
  for (const auto& [name, count] : counts) BOOST_TEST(std::abs(count - 1000) < 150);
  BOOST_TEST(counts.size() == 4u);
}

BOOST_AUTO_TEST_CASE(places_are_those_of_replicas_that_take_new_work) {
  Replicas r;
  BOOST_TEST(r.slots() == 0);
  auto peer = named("a");
  peer.slots = 3;
  r.on_peer(peer, PeerState::up);
  peer = named("b");
  peer.slots = 4;
  r.on_peer(peer, PeerState::up);
  BOOST_TEST(r.slots() == 7);
  r.on_peer(peer, PeerState::suspect);
  BOOST_TEST(r.slots() == 7);
  peer.draining = true;
  r.on_peer(peer, PeerState::changed);
  BOOST_TEST(r.slots() == 3);
  peer.draining = false;
  peer.ready = false;
  r.on_peer(peer, PeerState::changed);
  BOOST_TEST(r.slots() == 3);
  r.on_peer(peer, PeerState::down);
  BOOST_TEST(r.slots() == 3);
}

BOOST_AUTO_TEST_CASE(a_full_one_is_live) {
  Replicas r;
  BOOST_TEST(!r.any_live());
  auto peer = named("a");
  peer.slots = 0;
  r.on_peer(peer, PeerState::up);
  BOOST_TEST(!r.any());
  BOOST_TEST(r.any_live());
  r.on_peer(peer, PeerState::suspect);
  BOOST_TEST(!r.any_live());
  peer.draining = true;
  r.on_peer(peer, PeerState::up);
  BOOST_TEST(!r.any_live());
  peer.draining = false;
  peer.ready = false;
  r.on_peer(peer, PeerState::up);
  BOOST_TEST(!r.any_live());
}

BOOST_AUTO_TEST_CASE(one_that_drains_is_the_last_resort) {
  auto r = of({"a", "b"});
  auto draining = named("a");
  draining.draining = true;
  r.on_peer(draining, PeerState::up);
  for (std::uint64_t s = 0; s < 20; ++s) BOOST_TEST(*r.choose_at_last({s, s}) == "b");
  BOOST_TEST(*r.choose_at_last({1, 1}, {"b"}) == "a");
  BOOST_TEST(!r.choose({1, 1}, {"b"}).has_value());
  r.on_peer(draining, PeerState::suspect);
  BOOST_TEST(!r.choose_at_last({1, 1}, {"b"}).has_value());
}

BOOST_AUTO_TEST_CASE(only_those_that_can_take_a_session_are_chosen) {
  BOOST_TEST(!Replicas().choose({1, 1}).has_value());
  BOOST_TEST(!Replicas().any());
  auto r = of({"a"});
  BOOST_TEST(*r.choose({1, 1}) == "a");
  const auto unfit = [&](Peer p, PeerState state) {
    r.on_peer(p, state);
    BOOST_TEST(!r.choose({1, 1}).has_value());
    BOOST_TEST(!r.any());
    BOOST_TEST(r.is_linked("a"));
    r.on_peer(named("a"), PeerState::up);
    BOOST_TEST(r.any());
  };
  auto p = named("a");
  p.ready = false;
  unfit(p, PeerState::changed);
  p = named("a");
  p.draining = true;
  r.on_peer(p, PeerState::changed);
  BOOST_TEST(r.is_draining("a"));
  BOOST_TEST(r.is_up("a"));
  unfit(p, PeerState::changed);
  p = named("a");
  p.slots = 0;
  unfit(p, PeerState::changed);
  r.on_peer(named("a"), PeerState::suspect);
  BOOST_TEST(!r.is_up("a"));
  unfit(named("a"), PeerState::suspect);
  r.on_peer(named("a"), PeerState::down);
  BOOST_TEST(!r.is_linked("a"));
  BOOST_TEST(r.size() == 0u);
}

BOOST_AUTO_TEST_CASE(one_that_has_refused_is_left_out) {
  const auto r = of({"a", "b"});
  const auto first = *r.choose({3, 4});
  const auto second = *r.choose({3, 4}, {first});
  BOOST_TEST(first != second);
  BOOST_TEST(!r.choose({3, 4}, {first, second}).has_value());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::service
