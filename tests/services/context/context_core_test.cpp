#include "services/context/context_core.hpp"

#include <sqlite3.h>

#include <boost/test/unit_test.hpp>
#include <nlohmann/json.hpp>

#include "common/base/pcm.hpp"
#include "services/context/sqlite_store.hpp"
#include "tests/support/temporary_directory.hpp"

namespace parlando::context {
namespace {

using namespace std::chrono_literals;
using nlohmann::json;
using protocol::MessageType;

/// What came back, with its envelope.
struct Answer {
  protocol::Envelope head;
  protocol::Message message;
  std::string code = "ok";
  std::string text;
  std::int64_t retry_ms = 0;
  template <class T>
  T as() {
    auto body = protocol::read<T>(message);
    BOOST_REQUIRE_MESSAGE(head.type == T::kType && body.has_value(), code << ": " << text);
    return *body;
  }
};

class Asker {
 public:
  explicit Asker(ContextCore& core, SessionId session = {3, 4}) : core_(core) {
    head_.session = session;
    head_.stream = {9};
    head_.turn = {6};
    head_.trace = 55;
  }
  template <class T>
  Answer ask(T body) {
    return deliver(protocol::pack(std::move(body), head_));
  }
  Answer deliver(protocol::Message message) {
    core_.on_message("controller-1", std::move(message), now);
    auto out = core_.take();
    BOOST_REQUIRE(out.size() == 1u);
    BOOST_TEST(out[0].peer == "controller-1");
    Answer answer{out[0].message.head, std::move(out[0].message)};
    BOOST_TEST((answer.head.key() == head_.key()));
    BOOST_TEST(answer.head.turn.value == 6u);
    BOOST_TEST(answer.head.trace == 55u);
    BOOST_TEST(protocol::check(answer.message).has_value());
    if (answer.head.type == MessageType::error) {
      auto error = *protocol::read<protocol::ErrorMessage>(answer.message);
      answer.code = error.code;
      answer.text = error.message;
      answer.retry_ms = error.retry_ms;
    }
    return answer;
  }
  Answer claim(std::uint64_t expected, std::string owner, std::int64_t lease_ms = 1000) {
    return ask(protocol::Claim{{expected}, std::move(owner), lease_ms});
  }
  Answer commit(std::int64_t turn, std::uint64_t epoch, std::string_view record) {
    return ask(protocol::Commit{turn, {epoch}, to_bytes(std::span<const char>(record))});
  }
  Answer erase(std::uint64_t epoch) {
    auto message = protocol::pack(protocol::Erase{}, head_);
    message.head.epoch = {epoch};
    return deliver(std::move(message));
  }
  /// The payload of a history.
  std::string history(int turns_max = 20) {
    const auto records = ask(protocol::History{turns_max}).as<protocol::Records>();
    return {reinterpret_cast<const char*>(records.payload.data()), records.payload.size()};
  }
  protocol::Message message(MessageType type, std::string body) {
    protocol::Message out;
    out.head = head_;
    out.head.type = type;
    out.body = std::move(body);
    return out;
  }
  Time now{1h};

 private:
  ContextCore& core_;
  protocol::Envelope head_;
};

std::string nested(int levels) {
  std::string out = "{\"a\":";
  for (int n = 1; n < levels; ++n) out += '[';
  for (int n = 1; n < levels; ++n) out += ']';
  return out + "}";
}

}  // namespace

BOOST_AUTO_TEST_SUITE(context_core)

BOOST_AUTO_TEST_CASE(a_claim_is_granted_repeated_and_refused_with_the_true_epoch) {
  ContextCore core({}, *SqliteStore::open(":memory:"));
  Asker s(core);
  auto granted = s.claim(0, "controller-1", 1500);
  BOOST_TEST(granted.head.epoch.value == 1u);
  BOOST_TEST(granted.as<protocol::Granted>().epoch.value == 1u);
  auto again = s.claim(0, "controller-1", 1500);
  BOOST_TEST(again.head.epoch.value == 1u);
  const auto told = again.as<protocol::Granted>();
  BOOST_TEST(told.epoch.value == 1u);
  BOOST_TEST(told.lease_ms == 1500);
  const auto refused = s.claim(0, "controller-2");
  BOOST_TEST(refused.code == "stale_epoch");
  BOOST_TEST(refused.head.epoch.value == 1u);
  BOOST_TEST(refused.text.find("is at epoch 1, not 0") != std::string::npos, refused.text);
  BOOST_TEST(refused.retry_ms == 0);
  // A running lease does not stop who knows the epoch.
  BOOST_TEST(s.claim(1, "controller-2").as<protocol::Granted>().epoch.value == 2u);
  BOOST_TEST(s.claim(0, "").code == "invalid_argument");
  BOOST_TEST(s.claim(2, "").code == "invalid_argument");
}

BOOST_AUTO_TEST_CASE(renewing_tells_whether_the_session_is_still_ones_own) {
  ContextCore core({}, *SqliteStore::open(":memory:"));
  Asker s(core);
  BOOST_TEST(s.ask(protocol::Renew{{0}, 1000}).code == "stale_epoch");
  s.claim(0, "a");
  auto renewed = s.ask(protocol::Renew{{1}, 700});
  BOOST_TEST(renewed.head.epoch.value == 1u);
  const auto granted = renewed.as<protocol::Granted>();
  BOOST_TEST(granted.epoch.value == 1u);
  BOOST_TEST(granted.lease_ms == 700);
  s.claim(1, "b");
  const auto lost = s.ask(protocol::Renew{{1}, 700});
  BOOST_TEST(lost.code == "stale_epoch");
  BOOST_TEST(lost.head.epoch.value == 2u);
  s.now += 1h;  // a lease that ran out takes nothing from its owner while nobody else asks
  BOOST_TEST(s.ask(protocol::Renew{{2}, 700}).as<protocol::Granted>().epoch.value == 2u);
}

BOOST_AUTO_TEST_CASE(leases_run_on_the_steady_clock_and_end) {
  ContextCore core({}, *SqliteStore::open(":memory:"));
  Asker s(core);
  const SessionId id{3, 4};
  s.claim(0, "a", 1000);
  BOOST_TEST(core.leases().left(id, s.now).count() == 1000);
  s.now += 400ms;
  BOOST_TEST(core.leases().left(id, s.now).count() == 600);
  s.ask(protocol::Renew{{1}, 5000});
  BOOST_TEST(core.leases().left(id, s.now).count() == 5000);
  s.ask(protocol::Renew{{7}, 9000});  // refused: changes nothing
  BOOST_TEST(core.leases().left(id, s.now).count() == 5000);
  core.on_tick(s.now + 4999ms);
  BOOST_TEST(core.leases().size() == 1u);
  core.on_tick(s.now + 5000ms);
  BOOST_TEST(core.leases().size() == 0u);
  s.ask(protocol::Renew{{1}, 10});
  s.ask(protocol::Renew{{1}, 0});
  BOOST_TEST(core.leases().size() == 0u);
  BOOST_TEST(core.drain());  // leases keep no process from ending
  Leases few(2);
  for (std::uint64_t n = 0; n < 5; ++n) few.grant({n, n}, 1s, s.now);
  BOOST_TEST(few.size() == 2u);
  few.grant({0, 0}, 3s, s.now);
  BOOST_TEST(few.left({0, 0}, s.now).count() == 3000);
}

BOOST_AUTO_TEST_CASE(turns_are_committed_and_told_byte_for_byte) {
  ContextCore core({}, *SqliteStore::open(":memory:"));
  Asker s(core);
  BOOST_TEST(s.history() == "[]");
  BOOST_TEST(s.commit(1, 0, "{}").code == "stale_epoch");
  s.claim(0, "a");
  const std::string first = R"({"user":"é\u0001","n":123456789012345678901234567890, "x":1e9})";
  const auto committed = s.commit(1, 1, first).as<protocol::Committed>();
  BOOST_TEST(committed.turn == 1);
  BOOST_TEST(committed.digest.size() == 64u);
  BOOST_TEST(s.commit(1, 1, first).as<protocol::Committed>().digest == committed.digest);
  BOOST_TEST(s.commit(1, 1, "{}").code == "invalid_argument");
  BOOST_TEST(s.commit(3, 1, "{}").code == "invalid_argument");
  BOOST_TEST(s.commit(2, 1, R"({"b":2})").code == "ok");
  const auto stale = s.commit(3, 2, "{}");
  BOOST_TEST(stale.code == "stale_epoch");
  BOOST_TEST(stale.head.epoch.value == 1u);
  BOOST_TEST(s.history() == R"([{"turn":1,"record":)" + first + R"(},{"turn":2,"record":{"b":2}}])");
  BOOST_TEST(s.history(1) == R"([{"turn":2,"record":{"b":2}}])");
  BOOST_TEST(s.ask(protocol::History{0}).as<protocol::Records>().turns == 2);
  BOOST_TEST(s.history(0) == "[]");
  Asker other(core, {3, 5});
  BOOST_TEST(other.ask(protocol::History{}).as<protocol::Records>().turns == 0);
}

BOOST_AUTO_TEST_CASE(records_that_are_no_small_objects_are_refused) {
  ContextCore core({}, *SqliteStore::open(":memory:"));
  Asker s(core);
  s.claim(0, "a");
  for (const char* bad : {"", "no json", "[]", "1", "{\"a\":1", "{\"a\":\"\xff\"}", "{}{}"})
    BOOST_TEST(s.commit(1, 1, bad).code == "bad_json");
  BOOST_TEST(s.commit(1, 1, std::string(100000, '[')).code == "bad_json");
  BOOST_TEST(s.commit(1, 1, nested(31)).code == "bad_json");
  BOOST_TEST(s.commit(1, 1, nested(30)).code == "ok");
  BOOST_TEST(s.commit(0, 1, "{}").code == "invalid_argument");
  const auto limit = protocol::payload_bytes_max(MessageType::records);
  BOOST_TEST(s.commit(2, 1, "{\"a\":\"" + std::string(limit - 40, 'x') + "\"}").code == "invalid_argument");
}

BOOST_AUTO_TEST_CASE(a_history_keeps_to_what_one_message_carries) {
  ContextCore core({.turns_max = 5}, *SqliteStore::open(":memory:"));
  Asker s(core);
  s.claim(0, "a");
  for (int n = 1; n <= 7; ++n) s.commit(n, 1, "{}");
  BOOST_TEST(json::parse(s.history(1000)).size() == 5u);  // the configuration's limit
  const auto limit = protocol::payload_bytes_max(MessageType::records);
  // The largest record that is taken is told.
  const std::string largest = "{\"a\":\"" + std::string(limit - 42 - 8, 'x') + "\"}";
  BOOST_TEST(s.commit(8, 1, largest + " ").code == "invalid_argument");
  BOOST_TEST(s.commit(8, 1, largest).code == "ok");
  const auto text = s.history();
  BOOST_TEST(text.size() <= limit);
  BOOST_TEST(json::parse(text).size() == 1u);
  s.commit(9, 1, "{}");
  BOOST_TEST(json::parse(s.history()).size() == 1u);  // 8 does not fit beside it
  BOOST_TEST(s.ask(protocol::History{}).as<protocol::Records>().turns == 9);
}

BOOST_AUTO_TEST_CASE(an_unreadable_history_is_an_error_and_never_empty) {
  const TemporaryDirectory folder;
  const auto file = folder.path() / "s.sqlite";
  const auto text = SessionId{3, 4}.text();
  {
    auto store = *SqliteStore::open(file);  // which takes any bytes
    for (std::uint64_t n : {4, 5, 6}) BOOST_REQUIRE(store->claim(SessionId{3, n}.text(), {0}, "a").has_value());
    BOOST_REQUIRE(store->commit(text, {1}, 1, "{}").has_value());
    BOOST_REQUIRE(store->commit(text, {1}, 2, "no json").has_value());
    BOOST_REQUIRE(store->commit(SessionId{3, 5}.text(), {1}, 1, nested(100000)).has_value());
    BOOST_REQUIRE(store->commit(SessionId{3, 6}.text(), {1}, 1, "{}").has_value());
  }
  telemetry::Metrics metrics;
  ContextCore core({}, *SqliteStore::open(file));
  core.add_metrics(metrics);
  const auto refused = Asker(core).ask(protocol::History{});
  BOOST_TEST(refused.code == "bad_format");
  BOOST_TEST(refused.text.find("turn 2") != std::string::npos);
  BOOST_TEST(Asker(core, {3, 5}).ask(protocol::History{}).code == "bad_format");
  BOOST_TEST(Asker(core, {3, 6}).history() == R"([{"turn":1,"record":{}}])");
  BOOST_TEST(metrics.text().find("parlando_context_store_errors_total 2") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(a_busy_store_answers_with_a_time_to_try_again) {
  const TemporaryDirectory folder;
  const auto file = folder.path() / "s.sqlite";
  ContextCore core({}, *SqliteStore::open(file, {.busy = 20ms}));
  Asker s(core);
  s.claim(0, "a");
  sqlite3* other = nullptr;
  BOOST_REQUIRE(sqlite3_open(file.c_str(), &other) == SQLITE_OK);
  BOOST_REQUIRE(sqlite3_exec(other, "BEGIN IMMEDIATE", nullptr, nullptr, nullptr) == SQLITE_OK);
  const auto refused = s.commit(1, 1, "{}");
  BOOST_TEST(refused.code == "unavailable");
  BOOST_TEST(refused.retry_ms == 500);
  sqlite3_close(other);
  BOOST_TEST(s.commit(1, 1, "{}").code == "ok");
}

BOOST_AUTO_TEST_CASE(a_full_store_answers_with_a_time_to_try_again) {
  const TemporaryDirectory folder;
  ContextCore core({}, *SqliteStore::open(folder.path() / "s.sqlite", {.pages_max = 30}));
  Asker s(core);
  s.claim(0, "a");
  const auto refused = s.commit(1, 1, "{\"a\":\"" + std::string(200000, 'x') + "\"}");
  BOOST_TEST(refused.code == "io");
  BOOST_TEST(refused.retry_ms == 1000);
  BOOST_TEST(s.commit(1, 1, "{}").code == "ok");  // a smaller one fits
}

BOOST_AUTO_TEST_CASE(what_was_erased_is_gone_and_nobody_writes_to_it_again) {
  ContextCore core({}, *SqliteStore::open(":memory:"));
  Asker s(core);
  s.claim(0, "controller-1");
  s.commit(1, 1, R"({"user":"a"})");
  BOOST_TEST(s.erase(9).code == "stale_epoch");
  BOOST_TEST(s.history() != "[]");
  BOOST_TEST(s.erase(1).as<protocol::Erased>().turns == 1);
  BOOST_TEST(s.erase(1).as<protocol::Erased>().turns == 1);  // said again
  BOOST_TEST(s.history() == "[]");
  BOOST_TEST(s.commit(2, 1, R"({"user":"b"})").code == "stale_epoch");
  BOOST_TEST(s.claim(2, "controller-2").code == "not_found");
}

BOOST_AUTO_TEST_CASE(other_messages_are_refused_and_close_is_silent) {
  ContextCore core({}, *SqliteStore::open(":memory:"));
  Asker s(core);
  const auto refused = s.ask(protocol::Audio{});
  BOOST_TEST(refused.code == "unsupported");
  BOOST_TEST(refused.text == "context takes no message of type audio");
  BOOST_TEST(s.deliver(s.message(MessageType::claim, "[]")).code == "bad_json");
  BOOST_TEST(s.deliver(s.message(MessageType::claim, R"({"expected":-1})")).code == "invalid_argument");
  BOOST_TEST(s.deliver(s.message(MessageType::history, R"({"turns_max":1001})")).code == "invalid_argument");
  core.on_message("controller-1", s.message(MessageType::close, ""), {});
  BOOST_TEST(core.take().empty());
}

BOOST_AUTO_TEST_CASE(work_is_counted_once) {
  telemetry::Metrics metrics;
  ContextCore core({}, *SqliteStore::open(":memory:"), std::make_shared<ManualClock>());
  core.add_metrics(metrics);
  Asker s(core);
  s.claim(0, "a", 1000);
  s.claim(0, "a", 1000);
  s.claim(0, "b");
  s.commit(1, 1, "{}");
  s.commit(1, 1, "{}");
  s.commit(2, 9, "{}");
  s.commit(2, 1, "no json");
  core.on_tick(s.now);
  const auto text = metrics.text();
  for (const char* line : {"parlando_context_claims_total 1", "parlando_context_turns_total 1",
                           "parlando_context_stale_total 2", "parlando_context_store_errors_total 0",
                           "parlando_context_commit_seconds_count 1", "parlando_context_leases 1"})
    BOOST_TEST(text.find(line) != std::string::npos, line << " in\n" << text);
}

BOOST_AUTO_TEST_CASE(a_store_that_cannot_be_opened_ends_the_start) {
  BOOST_TEST(!ContextCore::make({.store = "/proc/none/s.sqlite"}).has_value());
  BOOST_TEST(ContextConfig{.store = ""}.problems("context").size() == 1u);
  BOOST_TEST(ContextConfig{.turns_max = 0}.problems("context").size() == 1u);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::context
