#include "services/context/postgres_store.hpp"

#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>

#include "common/base/pcm.hpp"
#include "services/context/context_core.hpp"
#include "tests/services/context/places.hpp"

namespace parlando::context {
namespace {

using namespace std::chrono_literals;

/// Time that `f` takes.
template <class F>
milliseconds took(F&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration_cast<milliseconds>(std::chrono::steady_clock::now() - start);
}

/// Looks every 20 ms whether the store has found its server again by itself.
bool comes_back(Store& store, int seconds_max = 30) {
  for (int n = 0; n < 50 * seconds_max; ++n) {
    store.tick();
    if (store.why_away().empty()) return true;
    ::poll(nullptr, 0, 20);
  }
  return false;
}

/// Waits until the server counts so many of something.
bool eventually(const PostgresServer& server, const std::string& sql, const std::string& expected) {
  for (int n = 0; n < 500; ++n) {
    if (server.execute(sql) == expected) return true;
    ::poll(nullptr, 0, 20);
  }
  return false;
}

/// A port that takes connections and never says a word.
class SilentPort {
 public:
  SilentPort() : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof at;
    BOOST_REQUIRE(::bind(socket_, reinterpret_cast<sockaddr*>(&at), size) == 0);
    BOOST_REQUIRE(::listen(socket_, 8) == 0);
    BOOST_REQUIRE(::getsockname(socket_, reinterpret_cast<sockaddr*>(&at), &size) == 0);
    port_ = ntohs(at.sin_port);
  }
  ~SilentPort() { ::close(socket_); }
  SilentPort(const SilentPort&) = delete;
  SilentPort& operator=(const SilentPort&) = delete;
  int port() const { return port_; }

 private:
  int socket_;
  int port_ = 0;
};

constexpr const char* kBackends =
    "SELECT coalesce(string_agg(pid::text, ' '), '') FROM pg_stat_activity WHERE application_name = 'parlando-context'";

/// All errors of a store that is away: told at once, with a time to try again.
void check_away(Store& store) {
  const auto time = took([&] {
    for (const auto& error :
         {store.claim("s", {0}, "a").error(), store.renew("s", {1}).error(), store.commit("s", {1}, 1, "{}").error(),
          store.history("s", 1, kAll, 0).error(), store.erase("s", {1}).error()}) {
      BOOST_TEST((error.code == Errc::unavailable), error.message);
      BOOST_TEST(error.retry.count() >= 100);
      BOOST_TEST(error.retry.count() <= 5000);
    }
  });
  BOOST_TEST(time.count() < 1000);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(postgres_store)

BOOST_AUTO_TEST_CASE(a_server_that_goes_and_returns_is_found_again_and_nothing_is_lost) {
  const PostgresPlace place;
  auto store = place.open();
  BOOST_TEST(claimed(*store, 0, "a") == "1");
  std::int64_t turn = 0;
  for (const int signal : {SIGINT, SIGQUIT}) {  // an orderly end, and a crash
    ++turn;
    BOOST_TEST(code_of(store->commit("s", {1}, turn, record_of(turn))) == "ok");
    place.server().stop(signal);
    BOOST_TEST(code_of(store->commit("s", {1}, turn + 1, "{}")) == "unavailable");
    check_away(*store);
    BOOST_TEST(store->why_away().find("parlando-") != std::string::npos, store->why_away());
    BOOST_REQUIRE(place.server().start().has_value());
    BOOST_REQUIRE(comes_back(*store));
    BOOST_TEST(code_of(store->renew("s", {1})) == "ok");
    BOOST_TEST(static_cast<std::int64_t>(records(*store).size()) == turn);
  }
  BOOST_TEST(store->reconnects() == 2);
  BOOST_TEST(code_of(store->commit("s", {1}, 3, "{}")) == "ok");
}

BOOST_AUTO_TEST_CASE(a_connection_that_was_closed_meanwhile_costs_no_request) {
  const PostgresPlace place;
  auto store = place.open();
  BOOST_TEST(claimed(*store, 0, "a") == "1");
  for (int round = 1; round <= 3; ++round) {
    place.server().execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = "
        "'parlando-context'");
    BOOST_TEST(code_of(store->commit("s", {1}, round, "{}")) == "ok");
    BOOST_TEST(store->reconnects() == round);
  }
}

BOOST_AUTO_TEST_CASE(a_connection_that_breaks_in_the_middle_is_unavailable_and_the_repetition_is_safe) {
  const PostgresPlace place;
  auto store = place.open({.operation = 20s});
  BOOST_TEST(claimed(*store, 0, "a") == "1");
  Session other(place.conninfo());
  other.execute("BEGIN; LOCK TABLE parlando_sessions IN SHARE MODE");  // the commit reads, and waits to write
  Stored<Store::Committed> seen;
  std::thread committing([&] { seen = store->commit("s", {1}, 1, "{}"); });
  const bool waits = eventually(place.server(),
                                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'parlando-context' AND "
                                "wait_event_type = 'Lock'",
                                "1");
  place.server().execute(
      "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = "
      "'parlando-context'");
  committing.join();
  BOOST_TEST(waits);
  BOOST_TEST(code_of(seen) == "unavailable");
  BOOST_TEST(seen.error().retry.count() > 0);
  other.execute("ROLLBACK");
  BOOST_REQUIRE(comes_back(*store));
  BOOST_TEST(code_of(store->commit("s", {1}, 1, "{}")) == "ok");
  BOOST_TEST(records(*store).size() == 1u);
}

BOOST_AUTO_TEST_CASE(a_lock_that_others_hold_is_waited_for_a_bounded_time) {
  const PostgresPlace place;
  auto store = place.open({.operation = 400ms});
  BOOST_TEST(claimed(*store, 0, "a") == "1");
  Session other(place.conninfo());
  other.execute("BEGIN; LOCK TABLE parlando_sessions IN SHARE MODE");
  std::string code;
  const auto time = took([&] { code = code_of(store->commit("s", {1}, 1, "{}")); });
  BOOST_TEST(code == "unavailable");
  BOOST_TEST(time.count() < 2000);
  BOOST_TEST(code_of(store->renew("s", {1})) == "ok");  // reading goes on, on the same connection
  BOOST_TEST(store->reconnects() == 0);
  other.execute("ROLLBACK");
  BOOST_TEST(code_of(store->commit("s", {1}, 1, "{}")) == "ok");
}

BOOST_AUTO_TEST_CASE(a_server_that_stands_still_blocks_nobody) {
  const PostgresPlace place;
  auto store = place.open({.operation = 300ms});
  BOOST_TEST(claimed(*store, 0, "a") == "1");
  const auto pid = static_cast<pid_t>(std::stol(place.server().execute(kBackends)));
  BOOST_REQUIRE(::kill(pid, SIGSTOP) == 0);
  std::string code;
  const auto time = took([&] { code = code_of(store->commit("s", {1}, 1, "{}")); });
  BOOST_TEST(code == "unavailable");
  BOOST_TEST(time.count() < 2000);
  BOOST_REQUIRE(comes_back(*store));  // on another connection, while that one stands
  BOOST_TEST(code_of(store->commit("s", {1}, 1, "{}")) == "ok");
  ::kill(pid, SIGCONT);
  // What it was asked for has been done by now, by somebody else.
  BOOST_TEST(eventually(place.server(),
                        "SELECT count(*) FROM pg_stat_activity WHERE application_name = "
                        "'parlando-context'",
                        "1"));
  BOOST_TEST(code_of(store->commit("s", {1}, 2, "{}")) == "ok");
  BOOST_TEST(records(*store).size() == 2u);
}

BOOST_AUTO_TEST_CASE(a_server_that_never_answers_is_away_from_the_start) {
  const SilentPort port;
  std::unique_ptr<Store> store;
  const auto conninfo = fmt::format("host=127.0.0.1 port={} user=u password=s3cret-word sslmode=disable", port.port());
  const auto time = took([&] { store = *PostgresStore::open(conninfo, {.start = 200ms}); });
  BOOST_TEST(time.count() < 2000);
  check_away(*store);
  BOOST_TEST(store->why_away().find("s3cret") == std::string::npos);
}

BOOST_AUTO_TEST_CASE(a_server_that_refuses_is_asked_again) {
  const PostgresPlace place;
  auto& server = place.server();
  server.execute(
      "CREATE ROLE few SUPERUSER LOGIN; ALTER ROLE few CONNECTION LIMIT 1; ALTER ROLE few NOSUPERUSER; "
      "GRANT ALL ON SCHEMA public TO few");
  place.open();  // makes the tables
  server.execute("GRANT pg_read_all_data, pg_write_all_data TO few");
  auto only = std::make_unique<Session>(place.conninfo("few"));
  auto store = *PostgresStore::open(place.conninfo("few"), {.pause_first = 20ms, .pause_max = 100ms});
  check_away(*store);
  BOOST_TEST(store->why_away().find("too many connections") != std::string::npos, store->why_away());
  only.reset();
  BOOST_REQUIRE(comes_back(*store));
  BOOST_TEST(claimed(*store, 0, "a") == "1");
  BOOST_TEST(store->reconnects() == 0);  // the first one is none that was made anew
}

BOOST_AUTO_TEST_CASE(a_server_without_places_refuses_and_serves_who_is_in) {
  const PostgresPlace place;
  auto in = place.open();
  BOOST_TEST(claimed(*in, 0, "a") == "1");
  place.server().execute("CREATE ROLE plain LOGIN");
  std::vector<std::unique_ptr<Session>> all;
  while (auto another = Session::try_open(place.server().conninfo("plain"))) all.push_back(std::move(another));
  BOOST_REQUIRE(all.size() > 3u);
  auto out = *PostgresStore::open(place.conninfo("plain"), {.pause_first = 20ms, .pause_max = 100ms});
  check_away(*out);
  BOOST_TEST(out->why_away().find("slots") != std::string::npos, out->why_away());
  BOOST_TEST(code_of(in->commit("s", {1}, 1, "{}")) == "ok");
}

BOOST_AUTO_TEST_CASE(a_password_is_used_and_never_told) {
  const PostgresPlace place;
  const auto with = [&](const std::string& password) {
    return *PostgresStore::open(place.conninfo("guarded") + " password=" + password);
  };
  auto good = with("gu4rd-secret");
  BOOST_TEST(claimed(*good, 0, "a") == "1");
  auto bad = with("wr0ng-secret");
  const auto error = bad->renew("s", {1}).error();
  BOOST_TEST((error.code == Errc::unavailable), error.message);
  BOOST_TEST(error.message.find("guarded") != std::string::npos, error.message);
  BOOST_TEST(error.message.find("secret") == std::string::npos, error.message);
  // Not even where the server says something that is like it.
  auto like = *PostgresStore::open(place.server().conninfo("nobody-knows") + " password=nobody");
  BOOST_TEST(like->why_away().find("nobody") == std::string::npos, like->why_away());
}

BOOST_AUTO_TEST_CASE(tables_are_made_once_and_those_of_a_later_build_are_left_alone) {
  const PostgresPlace place;
  std::string opened[4];
  in_parallel(4, [&](int n) {
    const auto store = PostgresStore::open(place.conninfo());
    opened[n] = store ? (*store)->why_away() : store.error().message;
  });
  for (const auto& why : opened) BOOST_TEST(why == "");
  auto store = place.open();
  fill(*store, 1, 2);
  place.change("UPDATE parlando_schema SET version = 2");
  const auto later = PostgresStore::open(place.conninfo());
  BOOST_TEST(code_of(later) == "unsupported");
  BOOST_TEST(later.error().message == "the database has schema 2, this build knows up to 1");
  // One that finds them when it connects again stops working, and goes on when they are back.
  place.server().execute(
      "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = "
      "'parlando-context'");
  const auto refused = store->commit("session-0", {1}, 3, "{}");
  BOOST_TEST(code_of(refused) == "unavailable");
  BOOST_TEST(refused.error().message.find("has schema 2") != std::string::npos, refused.error().message);
  place.change("UPDATE parlando_schema SET version = 1");
  BOOST_REQUIRE(comes_back(*store));
  BOOST_TEST(code_of(store->commit("session-0", {1}, 3, "{}")) == "ok");
}

BOOST_AUTO_TEST_CASE(a_turn_is_synchronised_whatever_the_databases_settings) {
  const PostgresPlace place;
  auto& server = place.server();
  server.execute(
      "CREATE ROLE loose LOGIN SUPERUSER; ALTER ROLE loose SET synchronous_commit = 'off'; ALTER ROLE loose "
      "SET default_transaction_isolation = 'serializable'");
  auto store = *PostgresStore::open(place.conninfo("loose"));
  BOOST_TEST(claimed(*store, 0, "a") == "1");
  for (int turn = 1; turn <= 5; ++turn) BOOST_TEST(code_of(store->commit("s", {1}, turn, record_of(turn))) == "ok");
  server.stop(SIGQUIT);  // what was not synchronised is lost
  BOOST_REQUIRE(server.start().has_value());
  BOOST_REQUIRE(comes_back(*store));
  BOOST_TEST(records(*store).size() == 5u);
}

BOOST_AUTO_TEST_CASE(a_database_that_cannot_be_written_is_left_for_another) {
  const PostgresPlace place;
  auto store = place.open({.pause_first = 20ms, .pause_max = 100ms});
  BOOST_TEST(claimed(*store, 0, "a") == "1");
  // As when its server has become a replica: the session is told so, and who connects is refused.
  place.server().execute("ALTER DATABASE postgres SET default_transaction_read_only = on");
  place.server().execute(
      "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = "
      "'parlando-context'");
  BOOST_TEST(code_of(store->commit("s", {1}, 1, "{}")) == "unavailable");
  Session writer(place.conninfo());
  writer.execute("SET default_transaction_read_only = off");
  writer.execute("ALTER DATABASE postgres RESET default_transaction_read_only");
  BOOST_REQUIRE(comes_back(*store));
  BOOST_TEST(code_of(store->commit("s", {1}, 1, "{}")) == "ok");
}

BOOST_AUTO_TEST_CASE(tables_that_are_gone_are_an_operators_error) {
  const PostgresPlace place;
  auto store = place.open();
  BOOST_TEST(claimed(*store, 0, "a") == "1");
  Session other(place.conninfo());
  other.execute("ALTER TABLE parlando_turns RENAME TO elsewhere");
  const auto refused = store->commit("s", {1}, 1, "{}");
  BOOST_TEST(code_of(refused) == "io");
  BOOST_TEST(refused.error().retry.count() == 1000);
  other.execute("ALTER TABLE elsewhere RENAME TO parlando_turns");
  BOOST_TEST(code_of(store->commit("s", {1}, 1, "{}")) == "ok");
}

BOOST_AUTO_TEST_CASE(the_core_answers_while_its_server_is_away_and_counts_its_return) {
  const PostgresPlace place;
  telemetry::Metrics metrics;
  ContextCore core({}, place.open());
  core.add_metrics(metrics);
  const auto ask = [&](auto body) {
    protocol::Envelope head;
    head.session = {3, 4};
    head.stream = {9};
    core.on_message("controller-1", protocol::pack(std::move(body), head), Time(1h));
    auto out = core.take();
    BOOST_REQUIRE(out.size() == 1u);
    return std::move(out[0].message);
  };
  BOOST_TEST((ask(protocol::Claim{{0}, "a", 1000}).head.type == protocol::MessageType::granted));
  BOOST_TEST(core.why_not_ready() == "");
  place.server().stop(SIGQUIT);
  auto answer = ask(protocol::Commit{1, {1}, to_bytes(std::span<const char>(std::string_view("{}")))});
  BOOST_REQUIRE((answer.head.type == protocol::MessageType::error));
  const auto error = *protocol::read<protocol::ErrorMessage>(answer);
  BOOST_TEST(error.code == "unavailable");
  BOOST_TEST(error.retry_ms >= 100);
  BOOST_TEST(core.why_not_ready() != "");
  BOOST_REQUIRE(place.server().start().has_value());
  for (int n = 0; n < 1500 && !core.why_not_ready().empty(); ++n) {
    core.on_tick(Time(1h));
    ::poll(nullptr, 0, 20);
  }
  core.on_tick(Time(1h));
  BOOST_TEST(core.why_not_ready() == "");
  auto again = ask(protocol::Commit{1, {1}, to_bytes(std::span<const char>(std::string_view("{}")))});
  BOOST_TEST((again.head.type == protocol::MessageType::committed));
  const auto text = metrics.text();
  for (const char* line :
       {"parlando_context_store_reconnects_total 1", "parlando_context_turns_total 1", "store_errors_total 1"})
    BOOST_TEST(text.find(line) != std::string::npos, line << " in\n" << text);
}

BOOST_AUTO_TEST_CASE(a_place_is_a_file_or_postgresql_and_nonsense_is_named) {
  const auto problem = [](const std::string& store) {
    const auto problems = ContextConfig{.store = store}.problems("core");
    return problems.empty() ? std::string() : problems[0].path + " " + problems[0].text;
  };
  for (const char* good :
       {"out/context.sqlite", ":memory:", "/var/lib/a b.sqlite", "./host=x", "postgresql://", "postgres://u@h:5432/db",
        "postgresql://u:p%40ss@h1:5432,h2:5433/db?sslmode=verify-full&target_session_attrs=read-write",
        "host=/run/postgresql dbname=parlando", "service=parlando", "host=a,b port=5432,5433 connect_timeout=3",
        "dbname = 'a b' password = 'x\\'y'"})
    BOOST_TEST(problem(good) == "", good);
  const std::pair<std::string, const char*> kBad[] = {
      {"", "core.store is empty"},
      {"mysql://u:hunter2@h/db", "core.store is an address of 'mysql', expected a file name or postgresql://"},
      {"out/", "core.store is 'out/', a folder"},
      {"/tmp", "core.store is '/tmp', a folder"},
      {"hots=h password=hunter2", "core.store begins with the word 'hots', which is no setting of PostgreSQL"},
      {"host=h pasword=hunter2",
       "core.store is no address or list of settings of PostgreSQL (invalid connection option"},
      {"host=h usr=x", "(invalid connection option \"usr\")"},
      {"postgresql://h/db?sslmod=require", "(invalid URI query parameter: \"sslmod\")"},
      {"host=h password='hunter2", "(unterminated quoted string in connection info string"},
      {"password=hunter2 hunter2", "(missing"},
      {"postgresql://u:hun%ter2@h/db", "(invalid percent-encoded token"},
      {"postgresql://u:hunter2@h/db?sslmod=require", "(invalid URI query parameter"},
      {"postgresql://u:hunter2@[::1/db", "is no address"},
      {"postgresql://u:hunter2@h:0/db", "has a port that is no number from 1 to 65535"},
      {"host=a,b port=5432,x password=hunter2", "has a port that"},
      {"host=h sslmode=always password=hunter2", "has a sslmode that is none of disable, allow"},
      {"host=h connect_timeout=0", "has a connect_timeout that is no number of seconds from 1 to 10"},
      {"host=h target_session_attrs=standby", "has a target_session_attrs that is none of read-write, primary, any"},
      {std::string("a\0b", 3), "has a byte 0"},
      {std::string("host=a\0b", 8), "has a byte 0"},
  };
  for (const auto& [bad, expected] : kBad) {
    const auto seen = problem(bad);
    BOOST_TEST(seen.find(expected) != std::string::npos, bad << ": " << seen);
    BOOST_TEST(seen.find("hunter") == std::string::npos, seen);
    BOOST_TEST(seen.find("ter2") == std::string::npos, seen);
    if (bad.find('=') == std::string::npos) continue;
    const auto core = ContextCore::make({.store = bad});
    BOOST_REQUIRE(!core.has_value());
    BOOST_TEST(core.error().message.find("hunter") == std::string::npos, core.error().message);
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::context
