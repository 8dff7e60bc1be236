#include "services/context/sqlite_store.hpp"

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <csignal>
#include <fstream>
#include <iterator>
#include <list>
#include <random>

#include "tests/services/context/places.hpp"

namespace parlando::context {
namespace {

std::string bytes_of(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
void write_bytes(const std::filesystem::path& file, const std::string& bytes) {
  std::filesystem::remove(file.string() + "-wal");
  std::filesystem::remove(file.string() + "-shm");
  std::ofstream(file, std::ios::binary | std::ios::trunc) << bytes;
}

/// Closed, so that all of it lies in the one file.
void fill(const std::filesystem::path& file, int sessions, int turns) {
  auto store = *SqliteStore::open(file);
  fill(*store, sessions, turns);
}

/// A file system of its own, of a limited size; needs root.
class SmallDisk {
 public:
  explicit SmallDisk(std::filesystem::path at) : at_(std::move(at)) {
    std::filesystem::create_directories(at_);
    mounted_ = ::mount("tmpfs", at_.c_str(), "tmpfs", 0, "size=256k") == 0;
  }
  ~SmallDisk() {
    if (mounted_) ::umount2(at_.c_str(), MNT_DETACH);
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  bool mounted() const { return mounted_; }
  void grow() { BOOST_REQUIRE(::mount("tmpfs", at_.c_str(), "tmpfs", MS_REMOUNT, "size=16m") == 0); }

 private:
  std::filesystem::path at_;
  bool mounted_ = false;
};

/// SQLite's view of the disk while it exists: counts synchronisations and lets one write or synchronisation fail.
class Disk {
 public:
  Disk() {
    real = sqlite3_vfs_find(nullptr);
    shim = *real;
    shim.zName = "shim";
    shim.pNext = nullptr;
    shim.xOpen = [](sqlite3_vfs*, const char* name, sqlite3_file* file, int flags, int* out) {
      const int code = real->xOpen(real, name, file, flags, out);
      if (code != SQLITE_OK || file->pMethods == nullptr) return code;
      wrap(file);
      return code;
    };
    BOOST_REQUIRE(sqlite3_vfs_register(&shim, 1) == SQLITE_OK);
    fail_in = 0;
  }
  ~Disk() {
    sqlite3_vfs_unregister(&shim);
    sqlite3_vfs_register(real, 1);
  }
  Disk(const Disk&) = delete;
  Disk& operator=(const Disk&) = delete;
  static inline int synchronised = 0;
  static inline int fail_in = 0;  ///< the how-manyth step from here fails; 0: none

 private:
  /// SQLite has one table of functions for databases and another for write-ahead logs.
  struct Wrapped {
    const sqlite3_io_methods* real;
    sqlite3_io_methods methods;
  };
  static bool step() { return fail_in > 0 && --fail_in == 0; }
  static const sqlite3_io_methods& real_of(sqlite3_file* f) {
    return *std::find_if(wrapped.begin(), wrapped.end(), [f](const Wrapped& w) {
              return &w.methods == f->pMethods;
            })->real;
  }
  static void wrap(sqlite3_file* file) {
    auto found =
        std::find_if(wrapped.begin(), wrapped.end(), [file](const Wrapped& w) { return w.real == file->pMethods; });
    if (found == wrapped.end()) {
      wrapped.push_back({file->pMethods, *file->pMethods});
      found = std::prev(wrapped.end());
      found->methods.xSync = [](sqlite3_file* f, int how) {
        ++synchronised;
        return step() ? SQLITE_IOERR_FSYNC : real_of(f).xSync(f, how);
      };
      found->methods.xWrite = [](sqlite3_file* f, const void* bytes, int count, sqlite3_int64 at) {
        if (!step()) return real_of(f).xWrite(f, bytes, count, at);
        real_of(f).xWrite(f, bytes, count / 2, at);  // torn
        return SQLITE_IOERR_WRITE;
      };
    }
    file->pMethods = &found->methods;
  }
  static inline sqlite3_vfs* real = nullptr;
  static inline sqlite3_vfs shim;
  static inline std::list<Wrapped> wrapped;
};

/// Commits until the store refuses. @return the turns that were acknowledged
std::int64_t commit_until_refused(Store& store, const std::string& padding, StoreError& why) {
  for (std::int64_t turn = 1; turn < 100000; ++turn)
    if (const auto done = store.commit("s", {1}, turn, padding); !done) {
      why = done.error();
      return turn - 1;
    }
  BOOST_FAIL("the store took everything");
  return 0;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(sqlite_store)

BOOST_AUTO_TEST_CASE(todays_files_are_brought_up_to_date) {
  for (const int version : {0, 1}) {
    const TemporaryDirectory folder;
    const auto file = folder.path() / "s.sqlite";
    // As commit 441e660 wrote it. Digests by Python's hashlib.
    execute(file, fmt::format(R"(PRAGMA journal_mode=WAL; PRAGMA user_version={};
      CREATE TABLE sessions(id TEXT PRIMARY KEY, epoch INTEGER NOT NULL);
      CREATE TABLE turns(session TEXT NOT NULL, turn INTEGER NOT NULL, record TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY(session, turn)) WITHOUT ROWID;
      INSERT INTO sessions VALUES('s', 2), ('empty', 1);
      INSERT INTO turns VALUES('s', 1, '{{"a":1}}', 'c88765bc2c9823662b331364954eeb6a8dbf20e98bce57f6d34d1d081435e47f');
      INSERT INTO turns VALUES('s', 3, '{{"a":"é"}}', '1d884c824a02e3575f080b6dd691884471e086c8f979e8be70e16413ecbf4ce6');)",
                              version));
    std::string opened[2];
    in_parallel(2, [&](int n) { opened[n] = code_of(SqliteStore::open(file)); });
    BOOST_TEST(opened[0] == "ok");
    BOOST_TEST(opened[1] == "ok");
    auto store = *SqliteStore::open(file);
    BOOST_TEST((records(*store) == std::vector<std::string>{"1 {\"a\":1}", "3 {\"a\":\"é\"}"}));
    BOOST_TEST(records(*store, "empty").empty());
    BOOST_TEST(claimed(*store, 1, "") == "stale_epoch(2)");  // nobody is known as the owner
    BOOST_TEST(claimed(*store, 2, "a") == "3");
    BOOST_TEST(claimed(*store, 1, "a", "empty") == "2");
    BOOST_TEST((store->commit("s", {3}, 4, "{\"a\":3}")->digest ==
                "17b163cb7c5b85961c73d8bc7a55ba5d1b5ea3c695bfb009c27af810b8facaba"));
    store.reset();
    store = *SqliteStore::open(file);
    BOOST_TEST(records(*store).size() == 3u);
    BOOST_TEST(claimed(*store, 2, "a") == "3 again");
  }
}

BOOST_AUTO_TEST_CASE(a_file_of_a_later_build_is_left_alone) {
  const TemporaryDirectory folder;
  const auto file = folder.path() / "s.sqlite";
  fill(file, 1, 1);
  execute(file, "PRAGMA user_version = 3");
  const auto store = SqliteStore::open(file);
  BOOST_TEST(code_of(store) == "unsupported");
  BOOST_TEST(store.error().message.find("has schema 3, this build knows up to 2") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(a_store_that_cannot_be_opened_is_named) {
  const auto store = SqliteStore::open("/proc/none/store.sqlite");
  BOOST_TEST(code_of(store) == "io");
  BOOST_TEST(store.error().message.find("/proc/none/store.sqlite") != std::string::npos);
  const TemporaryDirectory folder;
  write_bytes(folder.path() / "text", std::string(5000, 'x'));
  BOOST_TEST(code_of(SqliteStore::open(folder.path() / "text")) == "bad_format");
}

BOOST_AUTO_TEST_CASE(a_flipped_byte_never_changes_what_is_answered) {
  const FastDirectory folder;
  const auto file = folder.path() / "s.sqlite";
  constexpr int kSessions = 6;
  fill(file, kSessions, 5);
  const auto whole = bytes_of(file);
  std::vector<std::vector<std::string>> expected;
  {
    auto store = *SqliteStore::open(file);
    for (int s = 0; s < kSessions; ++s) expected.push_back(records(*store, fmt::format("session-{}", s)));
  }
  // In the text of one record: that session alone.
  auto flipped = whole;
  const auto at = whole.find(std::string(700, 'c'));
  BOOST_REQUIRE(at != std::string::npos);
  flipped[at + 300] ^= 1;
  write_bytes(file, flipped);
  {
    auto store = *SqliteStore::open(file);
    for (int s = 0; s < kSessions; ++s) {
      const auto session = fmt::format("session-{}", s);
      if (s == 2)
        BOOST_TEST(code_of(store->history(session, 10, kAll, 0)) == "bad_format");
      else
        BOOST_TEST(records(*store, session) == expected[static_cast<std::size_t>(s)]);
    }
  }
  // In any bit of the file's header and anywhere else: each session is as it was, or refused.
  const unsigned seed = 7;
  std::mt19937 random(seed);
  int opened = 0;
  int refused = 0;
  for (int round = 0; round < 1200; ++round) {
    flipped = whole;
    const auto place = round < 800 ? static_cast<std::size_t>(round / 8) : random() % whole.size();
    const auto bit = round < 800 ? static_cast<unsigned>(round % 8) : random() % 8;
    flipped[place] = static_cast<char>(flipped[place] ^ (1 << bit));
    write_bytes(file, flipped);
    const auto store = SqliteStore::open(file);
    if (!store) continue;
    ++opened;
    for (int s = 0; s < kSessions; ++s) {
      const auto session = fmt::format("session-{}", s);
      const auto past = (*store)->history(session, 10, kAll, 0);
      refused += !past;
      const auto seen = past ? records(**store, session) : expected[static_cast<std::size_t>(s)];
      BOOST_TEST(seen == expected[static_cast<std::size_t>(s)], "byte " << place << " bit " << bit << " of seed "
                                                                        << seed << ": " << session << " has "
                                                                        << seen.size() << " turns");
      (void)(*store)->commit(session, {1}, 6, "{}");
    }
  }
  BOOST_TEST(opened > 200);
  BOOST_TEST(refused > 100);
}

BOOST_AUTO_TEST_CASE(what_is_erased_is_on_the_disk_no_more) {
  const TemporaryDirectory folder;
  const auto file = folder.path() / "s.sqlite";
  auto store = *SqliteStore::open(file);
  BOOST_TEST(claimed(*store, 0, "a") == "1");
  BOOST_TEST(claimed(*store, 0, "a", "other") == "1");
  const auto secret = [](int turn) { return fmt::format("a secret of turn {} {}", turn, std::string(9000, 'z')); };
  for (int turn = 1; turn <= 20; ++turn) {
    BOOST_REQUIRE(store->commit("s", {1}, turn, secret(turn)).has_value());
    BOOST_REQUIRE(store->commit("other", {1}, turn, "this stays").has_value());
  }
  const auto stored = [&](const char* text) {
    return (bytes_of(file) + bytes_of(file.string() + "-wal")).find(text) != std::string::npos;
  };
  BOOST_TEST(stored("a secret of"));
  BOOST_REQUIRE(store->erase("s", {1}).has_value());
  BOOST_TEST(!stored("a secret of"));
  BOOST_TEST(!stored("zzzz"));
  BOOST_TEST(stored("this stays"));
  BOOST_TEST(records(*store, "other").size() == 20u);
}

BOOST_AUTO_TEST_CASE(a_file_that_another_process_holds_is_unavailable_soon_and_comes_back) {
  const TemporaryDirectory folder;
  const auto file = folder.path() / "s.sqlite";
  fill(file, 1, 2);
  auto store = *SqliteStore::open(file);
  sqlite3* other = nullptr;
  BOOST_REQUIRE(sqlite3_open(file.c_str(), &other) == SQLITE_OK);
  BOOST_REQUIRE(sqlite3_exec(other, "BEGIN IMMEDIATE", nullptr, nullptr, nullptr) == SQLITE_OK);
  const auto start = std::chrono::steady_clock::now();
  const auto refused = store->commit("session-0", {1}, 3, "{}");
  const auto took = std::chrono::steady_clock::now() - start;
  BOOST_TEST(code_of(refused) == "unavailable");
  BOOST_TEST(refused.error().retry.count() == 500);
  BOOST_TEST((took < milliseconds(1000)),
             "it waited " << std::chrono::duration_cast<milliseconds>(took).count() << " ms");
  BOOST_TEST(claimed(*store, 1, "b", "session-0") == "unavailable(0)");
  BOOST_TEST(records(*store, "session-0").size() == 2u);  // reading goes on
  BOOST_TEST(code_of(store->renew("session-0", {1})) == "ok");
  BOOST_REQUIRE(sqlite3_exec(other, "ROLLBACK", nullptr, nullptr, nullptr) == SQLITE_OK);
  sqlite3_close(other);
  BOOST_TEST(code_of(store->commit("session-0", {1}, 3, "{}")) == "ok");
}

BOOST_AUTO_TEST_CASE(a_full_store_refuses_turns_keeps_the_others_and_goes_on_with_room) {
  const TemporaryDirectory folder;
  const auto file = folder.path() / "s.sqlite";
  const auto record = fmt::format(R"({{"text":"{}"}})", std::string(6000, 'x'));
  std::int64_t kept = 0;
  {
    auto store = *SqliteStore::open(file, {.pages_max = 40});
    BOOST_TEST(claimed(*store, 0, "a") == "1");
    StoreError why(Errc::ok, "");
    kept = commit_until_refused(*store, record, why);
    BOOST_TEST(kept > 10);
    BOOST_TEST((why.code == Errc::io), why.message);
    BOOST_TEST(why.retry.count() > 0);
    BOOST_TEST(why.message.find("full") != std::string::npos, why.message);
    BOOST_TEST(static_cast<std::int64_t>(records(*store).size()) == kept);
    BOOST_TEST(code_of(store->renew("s", {1})) == "ok");
    BOOST_TEST(code_of(store->commit("s", {1}, kept + 1, record)) == "io");
    BOOST_TEST(store->commit("s", {1}, kept, record)->repeated);
  }
  auto store = *SqliteStore::open(file);
  BOOST_TEST(code_of(store->commit("s", {1}, kept + 1, record)) == "ok");
  BOOST_TEST(static_cast<std::int64_t>(records(*store).size()) == kept + 1);
}

BOOST_AUTO_TEST_CASE(a_full_disk_refuses_turns_keeps_the_others_and_goes_on_with_room) {
  const TemporaryDirectory folder;
  SmallDisk disk(folder.path() / "disk");
  if (!disk.mounted()) {
    BOOST_TEST_MESSAGE("skipped: mounting a small disk needs root");
    return;
  }
  const auto file = folder.path() / "disk/s.sqlite";
  const auto record = fmt::format(R"({{"text":"{}"}})", std::string(6000, 'x'));
  auto store = *SqliteStore::open(file);
  BOOST_TEST(claimed(*store, 0, "a") == "1");
  StoreError why(Errc::ok, "");
  const auto kept = commit_until_refused(*store, record, why);
  BOOST_TEST(kept > 3);
  BOOST_TEST((why.code == Errc::io), why.message);
  BOOST_TEST(why.retry.count() > 0);
  for (int n = 0; n < 3; ++n) BOOST_TEST(code_of(store->commit("s", {1}, kept + 1, record)) == "io");
  BOOST_TEST(static_cast<std::int64_t>(records(*store).size()) == kept);
  disk.grow();
  BOOST_TEST(code_of(store->commit("s", {1}, kept + 1, record)) == "ok");  // the same connection
  store.reset();
  store = *SqliteStore::open(file);
  BOOST_TEST(static_cast<std::int64_t>(records(*store).size()) == kept + 1);
}

BOOST_AUTO_TEST_CASE(a_write_that_fails_is_an_error_and_the_next_one_works) {
  const TemporaryDirectory folder;
  const auto file = folder.path() / "s.sqlite";
  fill(file, 1, 2);
  auto store = *SqliteStore::open(file);
  BOOST_TEST(code_of(store->commit("session-0", {1}, 3, "{}")) == "ok");
  rlimit before;
  BOOST_REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  const auto old = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = 4096;
  BOOST_REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  const auto failed = store->commit("session-0", {1}, 4, "{}");
  BOOST_REQUIRE(::setrlimit(RLIMIT_FSIZE, &before) == 0);
  std::signal(SIGXFSZ, old);
  BOOST_TEST(code_of(failed) == "io");
  BOOST_TEST(failed.error().retry.count() > 0);
  BOOST_TEST(code_of(store->commit("session-0", {1}, 4, "{}")) == "ok");
  BOOST_TEST(records(*store, "session-0").size() == 4u);
}

BOOST_AUTO_TEST_CASE(what_is_acknowledged_was_synchronised) {
  const FastDirectory folder;
  Disk disk;
  auto store = *SqliteStore::open(folder.path() / "s.sqlite");
  for (int n = 1; n <= 20; ++n) {
    const auto before = Disk::synchronised;
    if (n == 1)
      BOOST_TEST(claimed(*store, 0, "a") == "1");
    else
      BOOST_TEST(code_of(store->commit("s", {1}, n - 1, record_of(n - 1))) == "ok");
    BOOST_TEST(Disk::synchronised > before);
  }
}

BOOST_AUTO_TEST_CASE(whichever_step_of_a_commit_fails_no_acknowledged_turn_is_lost) {
  const FastDirectory folder;
  const auto file = folder.path() / "s.sqlite";
  Disk disk;
  std::int64_t acknowledged = 0;
  int failed = 0;
  auto store = *SqliteStore::open(file);
  BOOST_TEST(claimed(*store, 0, "a") == "1");
  for (int round = 0; round < 60; ++round) {
    const auto turn = acknowledged + 1;
    const auto record = fmt::format(R"({{"turn":{},"text":"{}"}})", turn, std::string(9000, 'x'));
    Disk::fail_in = 1 + round % 12;
    const auto done = store->commit("s", {1}, turn, record);
    Disk::fail_in = 0;
    if (!done) {
      ++failed;
      BOOST_TEST(code_of(done) == "io");
      BOOST_TEST(done.error().retry.count() > 0);
      if (round % 2 == 0) {  // a start in between
        store.reset();
        store = *SqliteStore::open(file);
      }
      BOOST_TEST(code_of(store->commit("s", {1}, turn, record)) == "ok");
    }
    acknowledged = turn;
    BOOST_TEST(static_cast<std::int64_t>(records(*store).size()) == acknowledged);
  }
  BOOST_TEST(failed > 20);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::context
