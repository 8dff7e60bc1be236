#define BOOST_TEST_MODULE context
/// What every store has to do, whatever keeps it.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <random>
#include <set>

#include "tests/services/context/places.hpp"

namespace parlando::context {
namespace {

using Places = std::tuple<SqlitePlace, PostgresPlace>;

}  // namespace

BOOST_AUTO_TEST_SUITE(store_contract)

BOOST_AUTO_TEST_CASE_TEMPLATE(turns_survive_reopening_and_repeating, Place, Places) {
  const Place place;
  {
    auto store = place.open();
    BOOST_TEST(claimed(*store, 0, "a") == "1");
    const auto first = *store->commit("s", {1}, 1, "{\"a\":1}");
    BOOST_TEST(!first.repeated);
    const auto again = *store->commit("s", {1}, 1, "{\"a\":1}");
    BOOST_TEST(again.repeated);
    BOOST_TEST(again.digest == first.digest);
    BOOST_TEST((store->commit("s", {1}, 2, "{\"a\":2}")->digest != first.digest));
    BOOST_TEST((store->commit("s", {1}, 1, "{\"a\":1}")->digest == first.digest));  // also once others follow
  }
  auto store = place.open();
  BOOST_TEST(claimed(*store, 0, "a") == "1 again");
  BOOST_TEST((records(*store) == std::vector<std::string>{"1 {\"a\":1}", "2 {\"a\":2}"}));
  BOOST_TEST(records(*store, "other").empty());
  BOOST_TEST(store->history("other", 10, kAll, 0)->turns == 0);
}

BOOST_AUTO_TEST_CASE_TEMPLATE(a_claim_is_a_compare_and_set, Place, Places) {
  const Place place;
  auto store = place.open();
  BOOST_TEST(claimed(*store, 1, "a") == "stale_epoch(0)");  // a session that was never claimed is at 0
  BOOST_TEST(claimed(*store, 0, "a") == "1");
  BOOST_TEST(claimed(*store, 0, "b") == "stale_epoch(1)");  // the second of two adopters
  BOOST_TEST(claimed(*store, 0, "a") == "1 again");         // the grant was not heard
  BOOST_TEST(claimed(*store, 2, "a") == "stale_epoch(1)");
  BOOST_TEST(claimed(*store, 1, "b") == "2");
  BOOST_TEST(claimed(*store, 0, "a") == "stale_epoch(2)");
  BOOST_TEST(claimed(*store, 1, "a") == "stale_epoch(2)");
  BOOST_TEST(claimed(*store, 1, "b") == "2 again");
  BOOST_TEST(claimed(*store, 2, "b") == "3");  // an owner may raise its own
  BOOST_TEST(claimed(*store, 1, "b") == "stale_epoch(3)");
  BOOST_TEST(claimed(*store, 0, "a", "other") == "1");
  BOOST_TEST(store->claim("s", {3}, "c")->former == "b");
  for (const auto huge : {std::uint64_t{1} << 63, ~std::uint64_t{0}, ~std::uint64_t{0} - 1})
    BOOST_TEST(claimed(*store, huge, "c") == "stale_epoch(4)");
}

BOOST_AUTO_TEST_CASE_TEMPLATE(an_owner_without_a_name_repeats_nothing, Place, Places) {
  const Place place;
  auto store = place.open();
  BOOST_TEST(claimed(*store, 0, "") == "1");
  BOOST_TEST(claimed(*store, 0, "") == "stale_epoch(1)");
}

BOOST_AUTO_TEST_CASE_TEMPLATE(only_the_owner_renews_and_commits, Place, Places) {
  const Place place;
  auto store = place.open();
  BOOST_TEST(code_of(store->renew("s", {0})) == "stale_epoch");
  BOOST_TEST(code_of(store->commit("s", {0}, 1, "{}")) == "stale_epoch");
  BOOST_TEST(claimed(*store, 0, "a") == "1");
  BOOST_TEST(code_of(store->renew("s", {1})) == "ok");
  BOOST_TEST(code_of(store->commit("s", {1}, 1, "{}")) == "ok");
  BOOST_TEST(claimed(*store, 1, "b") == "2");
  for (const std::uint64_t wrong : {0, 1, 3}) {
    const auto renewed = store->renew("s", {wrong});
    BOOST_TEST(code_of(renewed) == "stale_epoch");
    BOOST_TEST(renewed.error().epoch.value == 2u);
    BOOST_TEST(renewed.error().message == fmt::format("session 's' is at epoch 2, not {}", wrong));
    const auto committed = store->commit("s", {wrong}, 2, "{}");
    BOOST_TEST(code_of(committed) == "stale_epoch");
    BOOST_TEST(committed.error().epoch.value == 2u);
    BOOST_TEST(code_of(store->commit("s", {wrong}, 1, "{}")) == "stale_epoch");  // not even a repetition
  }
  BOOST_TEST(store->commit("s", {2}, 1, "{}")->repeated);  // the adopter repeats what its predecessor committed
  BOOST_TEST(code_of(store->renew("s", {2})) == "ok");
}

BOOST_AUTO_TEST_CASE_TEMPLATE(turns_follow_one_another, Place, Places) {
  const Place place;
  auto store = place.open();
  BOOST_TEST(claimed(*store, 0, "a") == "1");
  BOOST_TEST(code_of(store->commit("s", {1}, 2, "{}")) == "invalid_argument");
  BOOST_TEST(code_of(store->commit("s", {1}, 0, "{}")) == "invalid_argument");
  BOOST_TEST(code_of(store->commit("s", {1}, 1, "{}")) == "ok");
  BOOST_TEST(code_of(store->commit("s", {1}, 2, "{}")) == "ok");
  const auto gap = store->commit("s", {1}, 4, "{}");
  BOOST_TEST(code_of(gap) == "invalid_argument");
  BOOST_TEST(gap.error().message == "turn 4 of session 's' does not follow turn 2");
  const auto other = store->commit("s", {1}, 1, "{\"other\":1}");
  BOOST_TEST(code_of(other) == "invalid_argument");
  BOOST_TEST(other.error().message == "turn 1 of session 's' is committed with another record");
  BOOST_TEST(records(*store).size() == 2u);
}

BOOST_AUTO_TEST_CASE_TEMPLATE(a_history_has_the_latest_turns_that_its_limits_allow, Place, Places) {
  const Place place;
  auto store = place.open();
  BOOST_TEST(claimed(*store, 0, "a") == "1");
  for (int n = 1; n <= 10; ++n) BOOST_REQUIRE(store->commit("s", {1}, n, record_of(n)).has_value());
  const auto size = record_of(9).size();  // of each but the tenth, which has one byte more
  const auto seen = [&](std::int64_t turns_max, std::size_t bytes_max, std::size_t overhead = 0) {
    const auto past = *store->history("s", turns_max, bytes_max, overhead);
    BOOST_TEST(past.turns == 10);
    return past.latest.empty() ? std::string("none")
                               : fmt::format("{}-{}", past.latest.front().turn, past.latest.back().turn);
  };
  BOOST_TEST(seen(20, kAll) == "1-10");
  BOOST_TEST(seen(10, kAll) == "1-10");
  BOOST_TEST(seen(3, kAll) == "8-10");
  BOOST_TEST(seen(1, kAll) == "10-10");
  BOOST_TEST(seen(0, kAll) == "none");
  BOOST_TEST(seen(20, 3 * size + 1) == "8-10");
  BOOST_TEST(seen(20, 3 * size) == "9-10");
  BOOST_TEST(seen(20, 3 * (size + 5) + 1, 5) == "8-10");
  BOOST_TEST(seen(20, 3 * size + 1, 5) == "9-10");
  BOOST_TEST(code_of(store->history("s", 20, 5, 0)) == "bad_format");  // not a history that looks empty
}

BOOST_AUTO_TEST_CASE_TEMPLATE(a_session_whose_rows_were_changed_is_refused_and_others_are_served, Place, Places) {
  const std::pair<const char*, const char*> kChanges[] = {
      {"UPDATE turns SET record = '{\"n\":9}' WHERE session = 'session-1' AND turn = 2", "bad_format"},
      {"UPDATE turns SET digest = 'x' WHERE session = 'session-1' AND turn = 1", "bad_format"},
      {"UPDATE turns SET digest = 'x' WHERE session = 'session-1' AND turn = 4", "bad_format"},
      {"UPDATE turns SET turn = 9 WHERE session = 'session-1' AND turn = 4", "bad_format"},
      {"UPDATE turns SET record = '' WHERE session = 'session-1' AND turn = 3", "bad_format"},
      {"DELETE FROM turns WHERE session = 'session-1' AND turn = 1", "bad_format"},
      {"DELETE FROM turns WHERE session = 'session-1' AND turn = 2", "bad_format"},
      {"DELETE FROM turns WHERE session = 'session-1' AND turn = 4", "bad_format"},
      {"DELETE FROM turns WHERE session = 'session-1'", "bad_format"},
      {"DELETE FROM sessions WHERE id = 'session-1'", "bad_format"},
      {"UPDATE sessions SET turns = 3 WHERE id = 'session-1'", "bad_format"},
      {"UPDATE sessions SET epoch = 7 WHERE id = 'session-1'", "bad_format"},
      {"UPDATE sessions SET owner = 'x' WHERE id = 'session-1'", "bad_format"},
      {"UPDATE sessions SET seal = '' WHERE id = 'session-1'", "bad_format"},
      {"UPDATE sessions SET seal = (SELECT seal FROM sessions WHERE id = 'session-0'), digest = (SELECT digest FROM "
       "sessions WHERE id = "
       "'session-0') WHERE id = 'session-1'",
       "bad_format"},
  };
  for (const auto& [sql, code] : kChanges) BOOST_TEST_CONTEXT(sql) {
      const Place place;
      auto store = place.open();
      fill(*store, 3, 4);
      store.reset();
      place.change(sql);
      store = place.open();
      BOOST_TEST(code_of(store->history("session-1", 10, kAll, 0)) == code);
      BOOST_TEST(code_of(store->history("session-1", 1, kAll, 0)) == code);  // what lies before is verified, too
      BOOST_TEST(code_of(store->history("session-1", 0, kAll, 0)) == code);
      for (const char* other : {"session-0", "session-2"}) {
        BOOST_TEST(records(*store, other).size() == 4u);
        BOOST_TEST(code_of(store->commit(other, {1}, 5, "{}")) == "ok");
      }
    }
}

BOOST_AUTO_TEST_CASE_TEMPLATE(nothing_is_written_behind_a_turn_that_is_gone, Place, Places) {
  for (const char* sql : {"DELETE FROM turns WHERE turn = 4", "UPDATE turns SET digest = 'x' WHERE turn = 4",
                          "DELETE FROM sessions", "UPDATE sessions SET turns = 3"}) {
    const Place place;
    auto store = place.open();
    fill(*store, 1, 4);
    place.change(sql);
    for (const int turn : {4, 5}) BOOST_TEST(code_of(store->commit("session-0", {1}, turn, "{}")) == "bad_format");
  }
}

BOOST_AUTO_TEST_CASE_TEMPLATE(two_who_share_a_store_are_granted_each_epoch_once, Place, Places) {
  const Place place;
  constexpr int kClaims = 60;
  std::vector<std::uint64_t> granted[2];
  std::vector<std::string> acknowledged[2];
  int other_errors[2] = {};
  const std::unique_ptr<Store> stores[2] = {place.open(), place.open()};
  in_parallel(2, [&](int n) {
    const auto owner = fmt::format("owner-{}", n);
    auto& store = stores[n];
    std::uint64_t known = 0;
    for (int tries = 0; granted[n].size() < kClaims && tries < 10000; ++tries) {
      const auto done = store->claim("s", {known}, owner);
      if (!done) {
        if (done.error().code == Errc::stale_epoch)
          known = done.error().epoch.value;
        else if (done.error().code != Errc::unavailable)
          ++other_errors[n];
        continue;
      }
      known = done->epoch.value;
      granted[n].push_back(known);
      const auto past = store->history("s", 0, kAll, 0);
      const auto turn = past ? past->turns + 1 : 1;
      const auto record = fmt::format(R"({{"by":"{}","epoch":{}}})", owner, known);
      if (store->commit("s", {known}, turn, record)) acknowledged[n].push_back(fmt::format("{} {}", turn, record));
    }
  });
  BOOST_TEST(other_errors[0] + other_errors[1] == 0);
  std::set<std::uint64_t> all(granted[0].begin(), granted[0].end());
  all.insert(granted[1].begin(), granted[1].end());
  BOOST_TEST(all.size() == 2u * kClaims);  // no epoch twice
  BOOST_TEST(*all.rbegin() == 2u * kClaims);
  auto store = place.open();
  const auto stored = records(*store);
  BOOST_TEST(stored.size() == acknowledged[0].size() + acknowledged[1].size());
  for (const auto& side : acknowledged)
    for (const auto& turn : side) BOOST_TEST((std::find(stored.begin(), stored.end(), turn) != stored.end()));
}

BOOST_AUTO_TEST_CASE_TEMPLATE(one_of_two_adopters_wins, Place, Places) {
  const Place place;
  const std::unique_ptr<Store> stores[2] = {place.open_patient(), place.open_patient()};
  for (std::uint64_t round = 0; round < 50; ++round) {
    std::string seen[2];
    in_parallel(2, [&](int n) { seen[n] = claimed(*stores[n], round, fmt::format("{}-{}", n, round)); });
    const auto won = std::to_string(round + 1);
    const auto lost = fmt::format("stale_epoch({})", round + 1);
    BOOST_TEST(((seen[0] == won && seen[1] == lost) || (seen[1] == won && seen[0] == lost)),
               seen[0] << " and " << seen[1]);
  }
}

BOOST_AUTO_TEST_CASE_TEMPLATE(a_turn_that_two_commit_is_committed_once, Place, Places) {
  const Place place;
  const std::unique_ptr<Store> stores[2] = {place.open_patient(), place.open_patient()};
  BOOST_TEST(claimed(*stores[0], 0, "a") == "1");
  for (std::int64_t turn = 1; turn <= 40; ++turn) {
    const bool alike = turn % 2 == 0;
    Stored<Store::Committed> seen[2];
    in_parallel(2, [&](int n) { seen[n] = stores[n]->commit("s", {1}, turn, record_of(alike ? turn : turn + n)); });
    if (alike) {
      BOOST_REQUIRE(seen[0].has_value());
      BOOST_REQUIRE(seen[1].has_value());
      BOOST_TEST(seen[0]->repeated != seen[1]->repeated);
      BOOST_TEST(seen[0]->digest == seen[1]->digest);
    } else {
      BOOST_TEST(seen[0].has_value() != seen[1].has_value());
      BOOST_TEST(code_of(seen[seen[0].has_value() ? 1 : 0]) == "invalid_argument");
    }
  }
  BOOST_TEST(records(*stores[0]).size() == 40u);
}

BOOST_AUTO_TEST_CASE_TEMPLATE(any_bytes_are_kept_as_they_are, Place, Places) {
  const Place place;
  auto store = place.open();
  const std::string owner("o\0w\xff", 4);
  const std::string odd("\0\x80\xff\\x41''\"%\n", 12);
  BOOST_TEST(claimed(*store, 0, owner) == "1");
  BOOST_TEST(code_of(store->commit("s", {1}, 1, odd)) == "ok");
  BOOST_TEST(code_of(store->commit("s", {1}, 2, "")) == "ok");
  const std::string large(4 << 20, '\x9c');
  BOOST_TEST(code_of(store->commit("s", {1}, 3, large)) == "ok");
  BOOST_TEST(store->commit("s", {1}, 1, odd)->repeated);
  store.reset();
  store = place.open();
  const auto past = *store->history("s", 10, kAll, 0);
  BOOST_REQUIRE(past.latest.size() == 3u);
  BOOST_TEST(past.latest[0].record == odd);
  BOOST_TEST(past.latest[1].record.empty());
  BOOST_TEST((past.latest[2].record == large));
  BOOST_TEST(claimed(*store, 0, owner) == "1 again");
  BOOST_TEST(store->claim("s", {1}, "b")->former == owner);
}

BOOST_AUTO_TEST_CASE_TEMPLATE(digests_are_the_same_in_every_store, Place, Places) {
  const Place place;
  auto store = place.open();
  BOOST_TEST(claimed(*store, 0, "a") == "1");
  // printf '\n1\n{"a":1}' | sha256sum, and with that digest in front of '\n2\n{"a":2}'
  BOOST_TEST(store->commit("s", {1}, 1, "{\"a\":1}")->digest ==
             "c88765bc2c9823662b331364954eeb6a8dbf20e98bce57f6d34d1d081435e47f");
  BOOST_TEST(store->commit("s", {1}, 2, "{\"a\":2}")->digest ==
             "26325c9cb2df4043925631d768519963da4d54d854cac6a758316523b774df72");
}

BOOST_AUTO_TEST_CASE_TEMPLATE(a_long_session_tells_its_latest_turns, Place, Places) {
  const Place place;
  auto store = place.open();
  BOOST_TEST(claimed(*store, 0, "a") == "1");
  // More than any store verifies behind what is told.
  const auto record = [](int turn) { return fmt::format("{:01000000}", turn); };
  constexpr int kTurns = 24;
  for (int turn = 1; turn <= kTurns; ++turn) BOOST_REQUIRE(store->commit("s", {1}, turn, record(turn)).has_value());
  for (const int turns_max : {0, 1, 3, 5, 24, 1000}) {
    const auto past = store->history("s", turns_max, std::size_t{4} << 20, 40);
    BOOST_REQUIRE(past.has_value());
    BOOST_TEST(past->turns == kTurns);
    BOOST_REQUIRE(past->latest.size() == static_cast<std::size_t>(std::min(turns_max, 4)));
    for (std::size_t n = 0; n < past->latest.size(); ++n) {
      const auto turn = kTurns - static_cast<int>(past->latest.size()) + 1 + static_cast<int>(n);
      BOOST_TEST(past->latest[n].turn == turn);
      BOOST_TEST((past->latest[n].record == record(turn)));
    }
  }
  place.change("UPDATE turns SET digest = 'x' WHERE turn = 2");  // farther back than is verified
  BOOST_TEST(code_of(store->history("s", 4, kAll, 0)) == "ok");
  BOOST_TEST(code_of(store->history("s", 1000, kAll, 0)) == "bad_format");
  place.change("UPDATE turns SET digest = 'x' WHERE turn = 20");  // behind the four that are told
  BOOST_TEST(code_of(store->history("s", 4, kAll, 0)) == "bad_format");
}

BOOST_AUTO_TEST_CASE_TEMPLATE(an_erased_session_has_no_turns_and_stays_dead, Place, Places) {
  const Place place;
  auto store = place.open();
  fill(*store, 2, 3);
  BOOST_TEST(claimed(*store, 1, "d", "session-0") == "2");
  const auto wrong = store->erase("session-0", {1});
  BOOST_TEST(code_of(wrong) == "stale_epoch");  // a former owner erases nothing
  BOOST_TEST(wrong.error().epoch.value == 2u);
  BOOST_TEST(records(*store, "session-0").size() == 3u);
  const auto erased = store->erase("session-0", {2});
  BOOST_REQUIRE(erased.has_value());
  BOOST_TEST(erased->turns == 3);
  BOOST_TEST(!erased->repeated);
  for (int round = 0; round < 2; ++round) {
    const auto again = store->erase("session-0", {2});  // the answer was not heard
    BOOST_REQUIRE(again.has_value());
    BOOST_TEST(again->turns == 3);
    BOOST_TEST(again->repeated);
    BOOST_TEST(records(*store, "session-0").empty());
    BOOST_TEST(store->history("session-0", 10, kAll, 0)->turns == 0);
    // Whatever was under way when it was erased, and whoever repeats it.
    for (const std::uint64_t epoch : {0, 1, 2, 3, 4}) {
      BOOST_TEST(code_of(store->renew("session-0", {epoch})) == "stale_epoch");
      for (const std::int64_t turn : {1, 3, 4}) {
        const auto late = store->commit("session-0", {epoch}, turn, record_of(turn));
        BOOST_TEST(code_of(late) == "stale_epoch");
        BOOST_TEST(late.error().epoch.value == 3u);
      }
      for (const char* owner : {"c", "d", "", "e"})
        BOOST_TEST(claimed(*store, epoch, owner, "session-0") == (epoch == 3 ? "not_found(0)" : "stale_epoch(3)"));
      if (epoch != 2) BOOST_TEST(code_of(store->erase("session-0", {epoch})) == "stale_epoch");
    }
    BOOST_TEST(store->renew("session-0", {2}).error().message ==
               "session 'session-0' was erased under epoch 2, this is 2");
    store.reset();
    store = place.open();
  }
  BOOST_TEST(records(*store, "session-1").size() == 3u);  // others are as they were
  BOOST_TEST(code_of(store->commit("session-1", {1}, 4, "{}")) == "ok");
}

BOOST_AUTO_TEST_CASE_TEMPLATE(erasing_needs_an_owner_and_no_readable_turns, Place, Places) {
  const Place place;
  auto store = place.open();
  const auto never = store->erase("nobody", {0});
  BOOST_TEST(code_of(never) == "stale_epoch");
  BOOST_TEST(never.error().epoch.value == 0u);
  BOOST_TEST(claimed(*store, 0, "a", "nobody") == "1");  // no tombstone was left
  BOOST_TEST(claimed(*store, 0, "a", "empty") == "1");
  BOOST_TEST(store->erase("empty", {1})->turns == 0);
  BOOST_TEST(claimed(*store, 0, "a", "empty") == "stale_epoch(2)");
  fill(*store, 2, 3);
  place.change("UPDATE turns SET record = '{}' WHERE session = 'session-0' AND turn = 2");
  place.change("UPDATE sessions SET owner = 'x' WHERE id = 'session-1'");
  BOOST_TEST(code_of(store->history("session-0", 10, kAll, 0)) == "bad_format");
  BOOST_TEST(store->erase("session-0", {1})->turns == 3);
  BOOST_TEST(records(*store, "session-0").empty());
  BOOST_TEST(code_of(store->erase("session-1", {1})) == "bad_format");  // nobody knows whose it is
  // Turns behind a tombstone are no history.
  place.change("INSERT INTO turns(session, turn, record, digest) VALUES('session-0', 1, '{}', 'x')");
  BOOST_TEST(code_of(store->history("session-0", 10, kAll, 0)) == "bad_format");
}

BOOST_AUTO_TEST_CASE_TEMPLATE(erasing_beats_or_misses_a_commit_and_never_leaves_its_turn, Place, Places) {
  const Place place;
  const std::unique_ptr<Store> stores[2] = {place.open_patient(), place.open_patient()};
  for (int round = 0; round < 40; ++round) {
    const auto session = fmt::format("session-{}", round);
    BOOST_REQUIRE(stores[0]->claim(session, {0}, "a").has_value());
    std::string committed;
    Stored<Store::Erased> erased;
    in_parallel(2, [&](int n) {
      if (n == 0)
        committed = code_of(stores[0]->commit(session, {1}, 1, "{}"));
      else
        erased = stores[1]->erase(session, {1});
    });
    BOOST_REQUIRE(erased.has_value());
    BOOST_TEST(erased->turns == (committed == "ok" ? 1 : 0));
    BOOST_TEST((committed == "ok" || committed == "stale_epoch"), committed);
    BOOST_TEST(records(*stores[0], session).empty());
  }
}

BOOST_AUTO_TEST_CASE_TEMPLATE(every_acknowledged_turn_survives_a_kill, Place, Places) {
  const Place place;
  const unsigned seed = 11;
  std::mt19937 random(seed);
  std::uint64_t epoch = 0;
  std::int64_t acknowledged = 0;
  for (int round = 0; round < 10; ++round) {
    int ends[2];
    BOOST_REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    const auto child = ::fork();
    BOOST_REQUIRE(child >= 0);
    if (child == 0) {
      auto store = place.open();
      if (!store->claim("s", {epoch}, fmt::format("owner-{}", round))) ::_exit(1);
      for (auto turn = store->history("s", 0, kAll, 0)->turns + 1;; ++turn) {
        if (!store->commit("s", {epoch + 1}, turn, record_of(turn))) ::_exit(2);
        if (::write(ends[1], &turn, sizeof turn) != sizeof turn) ::_exit(3);
      }
    }
    ::close(ends[1]);
    const auto enough = 1 + random() % 40;
    std::int64_t turn = 0;
    for (unsigned n = 0; n < enough && ::read(ends[0], &turn, sizeof turn) == sizeof turn; ++n) acknowledged = turn;
    ::usleep(random() % 3000);  // anywhere between two steps
    ::kill(child, SIGKILL);
    while (::read(ends[0], &turn, sizeof turn) == sizeof turn) acknowledged = turn;
    ::close(ends[0]);
    int status = 0;
    BOOST_REQUIRE(::waitpid(child, &status, 0) == child);
    BOOST_REQUIRE_MESSAGE(WIFSIGNALED(status),
                          "the child of round " << round << " ended by itself: " << WEXITSTATUS(status));
    auto store = place.open();
    ++epoch;
    BOOST_TEST(code_of(store->renew("s", {epoch})) == "ok");
    const auto stored = records(*store);
    BOOST_TEST(static_cast<std::int64_t>(stored.size()) >= acknowledged);
    BOOST_TEST(static_cast<std::int64_t>(stored.size()) <= acknowledged + 1);  // one may have been written and not told
    for (std::size_t n = 0; n < stored.size(); ++n) {
      const auto number = static_cast<std::int64_t>(n) + 1;
      BOOST_TEST(stored[n] == fmt::format("{} {}", number, record_of(number)));
    }
  }
  BOOST_TEST(acknowledged > 30);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::context
