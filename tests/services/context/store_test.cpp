#define BOOST_TEST_MODULE context
#include <sqlite3.h>

#include <boost/test/unit_test.hpp>
#include <nlohmann/json.hpp>

#include "services/context/context_core.hpp"
#include "tests/support/temporary_directory.hpp"

namespace parlando::context {

BOOST_AUTO_TEST_CASE(turns_survive_reopening_and_repeating) {
  const TemporaryDirectory folder;
  const auto file = folder.path() / "deep/store.sqlite";
  {
    auto store = *Store::open(file);
    BOOST_TEST(*store->adopt("s") == 1u);
    const auto digest = *store->commit("s", 1, 1, "{\"a\":1}");
    BOOST_TEST(*store->commit("s", 1, 1, "{\"a\":1}") == digest);
    BOOST_TEST((*store->commit("s", 1, 2, "{\"a\":2}") != digest));
  }
  auto store = *Store::open(file);
  const auto turns = *store->history("s", 10);
  BOOST_REQUIRE(turns.size() == 2u);
  BOOST_TEST(turns[1].record == "{\"a\":2}");
  BOOST_TEST(store->history("s", 1)->front().turn == 2);
  BOOST_TEST(store->history("other", 10)->empty());
}

BOOST_AUTO_TEST_CASE(an_owner_of_an_older_epoch_writes_nothing) {
  auto store = *Store::open(":memory:");
  BOOST_TEST(*store->adopt("s") == 1u);
  BOOST_TEST(*store->adopt("s") == 2u);
  const auto refused = store->commit("s", 1, 1, "{}");
  BOOST_REQUIRE(!refused.has_value());
  BOOST_TEST((refused.error().code == Errc::stale_epoch));
  BOOST_TEST((store->commit("s", 2, 1, "{}")).has_value());
  BOOST_TEST((!store->commit("s", 2, 1, "{\"other\":1}").has_value()));
  BOOST_TEST((!store->commit("nobody", 1, 1, "{}").has_value()));
}

BOOST_AUTO_TEST_CASE(a_changed_record_is_noticed) {
  const TemporaryDirectory folder;
  const auto file = (folder.path() / "s.sqlite").string();
  {
    auto store = *Store::open(file);
    BOOST_REQUIRE(store->adopt("s").has_value());
    for (int n = 1; n <= 3; ++n) BOOST_REQUIRE((store->commit("s", 1, n, fmt::format("{{\"n\":{}}}", n))).has_value());
  }
  sqlite3* db = nullptr;
  BOOST_REQUIRE(sqlite3_open(file.c_str(), &db) == SQLITE_OK);
  BOOST_REQUIRE(sqlite3_exec(db, "UPDATE turns SET record = '{\"n\":9}' WHERE turn = 2", nullptr, nullptr, nullptr) == SQLITE_OK);
  sqlite3_close(db);
  auto store = *Store::open(file);
  const auto turns = store->history("s", 10);
  BOOST_REQUIRE(!turns.has_value());
  BOOST_TEST(turns.error().message.find("turn 2") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(a_store_that_cannot_be_opened_is_named) {
  const auto store = Store::open("/proc/none/store.sqlite");
  BOOST_REQUIRE(!store.has_value());
  BOOST_TEST(store.error().message.find("/proc/none/store.sqlite") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(the_service_answers_each_request_on_its_stream) {
  ContextCore core({}, *Store::open(":memory:"));
  auto ask = [&](protocol::MessageType type, std::string body, std::string payload = {}) {
    protocol::Message m;
    m.head.type = type, m.head.session = {3, 4}, m.head.stream = 9, m.body = std::move(body);
    const auto bytes = std::as_bytes(std::span(payload));
    m.payload.assign(bytes.begin(), bytes.end());
    core.on_message("controller-1", std::move(m), {});
    const auto out = core.take();
    BOOST_REQUIRE(out.size() == 1u);
    BOOST_TEST(out[0].message.head.stream == 9u);
    return out[0].message;
  };
  using protocol::MessageType;
  BOOST_TEST(protocol::body_of(ask(MessageType::open, "{}"))["epoch"] == 1);
  BOOST_TEST(protocol::body_of(ask(MessageType::turn, R"({"turn":1,"epoch":1})", R"({"user":"hello"})"))["turn"] == 1);
  const auto history = ask(MessageType::history, "{}");
  BOOST_TEST(std::string(reinterpret_cast<const char*>(history.payload.data()), history.payload.size()).find("hello") != std::string::npos);
  BOOST_TEST(protocol::body_of(ask(MessageType::turn, R"({"turn":2,"epoch":1})", "no json"))["code"] == "bad_json");
  BOOST_TEST(protocol::body_of(ask(MessageType::turn, R"({"turn":2,"epoch":0})", "{}"))["code"] == "stale_epoch");
  BOOST_TEST(protocol::body_of(ask(MessageType::audio, "{}"))["code"] == "unsupported");
}

}  // namespace parlando::context
