#pragma once
/// What the contract test needs of a store besides its interface: an empty one for each test, and a way to change what
/// is stored behind its back.
#include <sqlite3.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <thread>

#include "services/context/postgres_store.hpp"
#include "services/context/sqlite_store.hpp"
#include "tests/services/context/postgres_server.hpp"

namespace parlando::context {

constexpr std::size_t kAll = std::size_t{1} << 40;

inline std::string code_of(const auto& result) { return result ? "ok" : std::string(to_string(result.error().code)); }

/// "epoch" or "code(true epoch)".
inline std::string claimed(Store& store, std::uint64_t expected, const std::string& owner,
                           const std::string& session = "s") {
  const auto done = store.claim(session, {expected}, owner);
  if (done) return fmt::format("{}{}", done->epoch.value, done->repeated ? " again" : "");
  return fmt::format("{}({})", to_string(done.error().code), done.error().epoch.value);
}

inline std::string record_of(std::int64_t turn) {
  return fmt::format(R"({{"turn":{},"user":"what is said in it"}})", turn);
}

/// All records of a session, or the code.
inline std::vector<std::string> records(Store& store, const std::string& session = "s",
                                        std::int64_t turns_max = 1 << 30) {
  const auto past = store.history(session, turns_max, kAll, 0);
  if (!past) return {std::string(to_string(past.error().code))};
  std::vector<std::string> out;
  for (const auto& t : past->latest) out.push_back(fmt::format("{} {}", t.turn, t.record));
  return out;
}

/// Several sessions of several turns.
inline void fill(Store& store, int sessions, int turns) {
  for (int s = 0; s < sessions; ++s) {
    const auto session = fmt::format("session-{}", s);
    BOOST_REQUIRE(store.claim(session, {0}, "c").has_value());
    for (int n = 1; n <= turns; ++n) {
      const auto record = fmt::format(R"({{"n":{},"text":"{}"}})", n,
                                      std::string(static_cast<std::size_t>(100 + 300 * n), static_cast<char>('a' + s)));
      BOOST_REQUIRE(store.commit(session, {1}, n, record).has_value());
    }
  }
}

/// As many threads as parts, each with its own number, and the test goes on when all are done.
template <class F>
void in_parallel(int parts, F&& f) {
  std::vector<std::thread> threads;
  for (int n = 0; n < parts; ++n) threads.emplace_back([&f, n] { f(n); });
  for (auto& t : threads) t.join();
}

/// For tests that open hundreds of files: where nothing is written to a disk.
class FastDirectory {
 public:
  FastDirectory() {
    const std::filesystem::path memory = "/dev/shm";
    const auto parent = ::access(memory.c_str(), W_OK) == 0 ? memory : std::filesystem::temp_directory_path();
    auto name = (parent / "parlando-XXXXXX").string();
    BOOST_REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~FastDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  FastDirectory(const FastDirectory&) = delete;
  FastDirectory& operator=(const FastDirectory&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline void execute(const std::filesystem::path& file, const std::string& sql) {
  sqlite3* db = nullptr;
  BOOST_REQUIRE(sqlite3_open(file.c_str(), &db) == SQLITE_OK);
  const int code = sqlite3_exec(db, sql.c_str(), nullptr, nullptr, nullptr);
  BOOST_REQUIRE_MESSAGE(code == SQLITE_OK, sqlite3_errmsg(db));
  sqlite3_close(db);
}

/// `sessions` and `turns` in a statement are the store's tables.
class SqlitePlace {
 public:
  std::unique_ptr<Store> open() const { return *SqliteStore::open(file()); }
  /// Waits for others instead of failing at once.
  std::unique_ptr<Store> open_patient() const { return *SqliteStore::open(file(), {.busy = milliseconds(10000)}); }
  void change(const std::string& sql) const { execute(file(), sql); }
  std::filesystem::path file() const { return folder_.path() / "deep/s.sqlite"; }

 private:
  TemporaryDirectory folder_;
};

class PostgresPlace {
 public:
  PostgresPlace() : server_(&PostgresServer::running()) {
    static int made = 0;
    schema_ = fmt::format("place_{}", ++made);
    server_->execute(fmt::format("CREATE SCHEMA {}", schema_));
  }
  std::string conninfo(const std::string& role = "parlando") const {
    return fmt::format("{} options='-c search_path={}'", server_->conninfo(role), schema_);
  }
  std::unique_ptr<Store> open() const { return open(PostgresStore::Options{}); }
  std::unique_ptr<Store> open(PostgresStore::Options options) const {
    auto store = *PostgresStore::open(conninfo(), options);
    BOOST_REQUIRE_MESSAGE(store->why_away().empty(), store->why_away());
    return store;
  }
  std::unique_ptr<Store> open_patient() const { return open({.operation = milliseconds(10000)}); }
  void change(const std::string& sql) const {
    Session session(conninfo());
    session.execute(
        fmt::format("CREATE OR REPLACE VIEW {0}.sessions AS SELECT * FROM {0}.parlando_sessions; "
                    "CREATE OR REPLACE VIEW {0}.turns AS SELECT * FROM {0}.parlando_turns; {1}",
                    schema_, sql));
  }
  PostgresServer& server() const { return *server_; }

 private:
  PostgresServer* server_;
  std::string schema_;
};

}  // namespace parlando::context
