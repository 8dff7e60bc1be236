#define BOOST_TEST_MODULE context
#include "services/context/store.hpp"

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <csignal>
#include <fstream>
#include <iterator>
#include <list>
#include <random>
#include <set>
#include <thread>

#include "tests/support/temporary_directory.hpp"

namespace parlando::context {
namespace {

constexpr std::size_t kAll = std::size_t{1} << 40;

std::string code_of(const auto& result) { return result ? "ok" : std::string(to_string(result.error().code)); }

/// "epoch" or "code(true epoch)".
std::string claimed(Store& store, std::uint64_t expected, const std::string& owner, const std::string& session = "s") {
  const auto done = store.claim(session, {expected}, owner);
  if (done) return fmt::format("{}{}", done->epoch.value, done->repeated ? " again" : "");
  return fmt::format("{}({})", to_string(done.error().code), done.error().epoch.value);
}

std::string record_of(std::int64_t turn) { return fmt::format(R"({{"turn":{},"user":"what is said in it"}})", turn); }

/// All records of a session, or the code.
std::vector<std::string> records(Store& store, const std::string& session = "s", std::int64_t turns_max = 1 << 30) {
  const auto past = store.history(session, turns_max, kAll, 0);
  if (!past) return {std::string(to_string(past.error().code))};
  std::vector<std::string> out;
  for (const auto& t : past->latest) out.push_back(fmt::format("{} {}", t.turn, t.record));
  return out;
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

void execute(const std::filesystem::path& file, const std::string& sql) {
  sqlite3* db = nullptr;
  BOOST_REQUIRE(sqlite3_open(file.c_str(), &db) == SQLITE_OK);
  const int code = sqlite3_exec(db, sql.c_str(), nullptr, nullptr, nullptr);
  BOOST_REQUIRE_MESSAGE(code == SQLITE_OK, sqlite3_errmsg(db));
  sqlite3_close(db);
}

std::string bytes_of(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
void write_bytes(const std::filesystem::path& file, const std::string& bytes) {
  std::filesystem::remove(file.string() + "-wal");
  std::filesystem::remove(file.string() + "-shm");
  std::ofstream(file, std::ios::binary | std::ios::trunc) << bytes;
}

/// Several sessions of several turns; closed, so that all of it lies in the one file.
void fill(const std::filesystem::path& file, int sessions, int turns) {
  auto store = *Store::open(file);
  for (int s = 0; s < sessions; ++s) {
    const auto session = fmt::format("session-{}", s);
    BOOST_REQUIRE(store->claim(session, {0}, "c").has_value());
    for (int n = 1; n <= turns; ++n) {
      const auto record = fmt::format(R"({{"n":{},"text":"{}"}})", n,
                                      std::string(static_cast<std::size_t>(100 + 300 * n), static_cast<char>('a' + s)));
      BOOST_REQUIRE(store->commit(session, {1}, n, record).has_value());
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

BOOST_AUTO_TEST_SUITE(store)

BOOST_AUTO_TEST_CASE(turns_survive_reopening_and_repeating) {
  const TemporaryDirectory folder;
  const auto file = folder.path() / "deep/store.sqlite";
  {
    auto store = *Store::open(file);
    BOOST_TEST(claimed(*store, 0, "a") == "1");
    const auto first = *store->commit("s", {1}, 1, "{\"a\":1}");
    BOOST_TEST(!first.repeated);
    const auto again = *store->commit("s", {1}, 1, "{\"a\":1}");
    BOOST_TEST(again.repeated);
    BOOST_TEST(again.digest == first.digest);
    BOOST_TEST((store->commit("s", {1}, 2, "{\"a\":2}")->digest != first.digest));
    BOOST_TEST((store->commit("s", {1}, 1, "{\"a\":1}")->digest == first.digest));  // also once others follow
  }
  auto store = *Store::open(file);
  BOOST_TEST(claimed(*store, 0, "a") == "1 again");
  BOOST_TEST((records(*store) == std::vector<std::string>{"1 {\"a\":1}", "2 {\"a\":2}"}));
  BOOST_TEST(records(*store, "other").empty());
  BOOST_TEST(store->history("other", 10, kAll, 0)->turns == 0);
}

BOOST_AUTO_TEST_CASE(a_claim_is_a_compare_and_set) {
  auto store = *Store::open(":memory:");
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

BOOST_AUTO_TEST_CASE(an_owner_without_a_name_repeats_nothing) {
  auto store = *Store::open(":memory:");
  BOOST_TEST(claimed(*store, 0, "") == "1");
  BOOST_TEST(claimed(*store, 0, "") == "stale_epoch(1)");
}

BOOST_AUTO_TEST_CASE(only_the_owner_renews_and_commits) {
  auto store = *Store::open(":memory:");
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

BOOST_AUTO_TEST_CASE(turns_follow_one_another) {
  auto store = *Store::open(":memory:");
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

BOOST_AUTO_TEST_CASE(a_history_has_the_latest_turns_that_its_limits_allow) {
  auto store = *Store::open(":memory:");
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
    in_parallel(2, [&](int n) { opened[n] = code_of(Store::open(file)); });
    BOOST_TEST(opened[0] == "ok");
    BOOST_TEST(opened[1] == "ok");
    auto store = *Store::open(file);
    BOOST_TEST((records(*store) == std::vector<std::string>{"1 {\"a\":1}", "3 {\"a\":\"é\"}"}));
    BOOST_TEST(records(*store, "empty").empty());
    BOOST_TEST(claimed(*store, 1, "") == "stale_epoch(2)");  // nobody is known as the owner
    BOOST_TEST(claimed(*store, 2, "a") == "3");
    BOOST_TEST(claimed(*store, 1, "a", "empty") == "2");
    BOOST_TEST((store->commit("s", {3}, 4, "{\"a\":3}")->digest ==
                "17b163cb7c5b85961c73d8bc7a55ba5d1b5ea3c695bfb009c27af810b8facaba"));
    store.reset();
    store = *Store::open(file);
    BOOST_TEST(records(*store).size() == 3u);
    BOOST_TEST(claimed(*store, 2, "a") == "3 again");
  }
}

BOOST_AUTO_TEST_CASE(a_file_of_a_later_build_is_left_alone) {
  const TemporaryDirectory folder;
  const auto file = folder.path() / "s.sqlite";
  fill(file, 1, 1);
  execute(file, "PRAGMA user_version = 3");
  const auto store = Store::open(file);
  BOOST_TEST(code_of(store) == "unsupported");
  BOOST_TEST(store.error().message.find("has schema 3, this build knows up to 2") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(a_store_that_cannot_be_opened_is_named) {
  const auto store = Store::open("/proc/none/store.sqlite");
  BOOST_TEST(code_of(store) == "io");
  BOOST_TEST(store.error().message.find("/proc/none/store.sqlite") != std::string::npos);
  const TemporaryDirectory folder;
  write_bytes(folder.path() / "text", std::string(5000, 'x'));
  BOOST_TEST(code_of(Store::open(folder.path() / "text")) == "bad_format");
}

BOOST_AUTO_TEST_CASE(a_session_whose_rows_were_changed_is_refused_and_others_are_served) {
  const std::pair<const char*, const char*> kChanges[] = {
      {"UPDATE turns SET record = '{\"n\":9}' WHERE session = 'session-1' AND turn = 2", "bad_format"},
      {"UPDATE turns SET digest = 'x' WHERE session = 'session-1' AND turn = 1", "bad_format"},
      {"UPDATE turns SET digest = 'x' WHERE session = 'session-1' AND turn = 4", "bad_format"},
      {"UPDATE turns SET turn = 9 WHERE session = 'session-1' AND turn = 4", "bad_format"},
      {"UPDATE turns SET record = x'' WHERE session = 'session-1' AND turn = 3", "bad_format"},
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
      const FastDirectory folder;
      const auto file = folder.path() / "s.sqlite";
      fill(file, 3, 4);
      execute(file, sql);
      auto store = *Store::open(file);
      BOOST_TEST(code_of(store->history("session-1", 10, kAll, 0)) == code);
      BOOST_TEST(code_of(store->history("session-1", 1, kAll, 0)) == code);  // what lies before is verified, too
      BOOST_TEST(code_of(store->history("session-1", 0, kAll, 0)) == code);
      for (const char* other : {"session-0", "session-2"}) {
        BOOST_TEST(records(*store, other).size() == 4u);
        BOOST_TEST(code_of(store->commit(other, {1}, 5, "{}")) == "ok");
      }
    }
}

BOOST_AUTO_TEST_CASE(nothing_is_written_behind_a_turn_that_is_gone) {
  for (const char* sql : {"DELETE FROM turns WHERE turn = 4", "UPDATE turns SET digest = 'x' WHERE turn = 4",
                          "DELETE FROM sessions", "UPDATE sessions SET turns = 3"}) {
    const FastDirectory folder;
    const auto file = folder.path() / "s.sqlite";
    fill(file, 1, 4);
    execute(file, sql);
    auto store = *Store::open(file);
    for (const int turn : {4, 5}) BOOST_TEST(code_of(store->commit("session-0", {1}, turn, "{}")) == "bad_format");
  }
}

BOOST_AUTO_TEST_CASE(a_flipped_byte_never_changes_what_is_answered) {
  const FastDirectory folder;
  const auto file = folder.path() / "s.sqlite";
  constexpr int kSessions = 6;
  fill(file, kSessions, 5);
  const auto whole = bytes_of(file);
  std::vector<std::vector<std::string>> expected;
  {
    auto store = *Store::open(file);
    for (int s = 0; s < kSessions; ++s) expected.push_back(records(*store, fmt::format("session-{}", s)));
  }
  // In the text of one record: that session alone.
  auto flipped = whole;
  const auto at = whole.find(std::string(700, 'c'));
  BOOST_REQUIRE(at != std::string::npos);
  flipped[at + 300] ^= 1;
  write_bytes(file, flipped);
  {
    auto store = *Store::open(file);
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
    const auto store = Store::open(file);
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

BOOST_AUTO_TEST_CASE(two_processes_on_one_file_grant_each_epoch_once) {
  const TemporaryDirectory folder;
  const auto file = folder.path() / "s.sqlite";
  constexpr int kClaims = 60;
  std::vector<std::uint64_t> granted[2];
  std::vector<std::string> acknowledged[2];
  int other_errors[2] = {};
  in_parallel(2, [&](int n) {
    const auto owner = fmt::format("owner-{}", n);
    auto store = *Store::open(file);
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
  auto store = *Store::open(file);
  const auto stored = records(*store);
  BOOST_TEST(stored.size() == acknowledged[0].size() + acknowledged[1].size());
  for (const auto& side : acknowledged)
    for (const auto& turn : side) BOOST_TEST((std::find(stored.begin(), stored.end(), turn) != stored.end()));
}

BOOST_AUTO_TEST_CASE(one_of_two_adopters_wins) {
  const TemporaryDirectory folder;
  const auto file = folder.path() / "s.sqlite";
  // They wait for one another instead of failing at once.
  const Store::Options patient{.busy = milliseconds(10000)};
  std::unique_ptr<Store> stores[2] = {*Store::open(file, patient), *Store::open(file, patient)};
  for (std::uint64_t round = 0; round < 50; ++round) {
    std::string seen[2];
    in_parallel(2, [&](int n) { seen[n] = claimed(*stores[n], round, fmt::format("{}-{}", n, round)); });
    const auto won = std::to_string(round + 1);
    const auto lost = fmt::format("stale_epoch({})", round + 1);
    BOOST_TEST(((seen[0] == won && seen[1] == lost) || (seen[1] == won && seen[0] == lost)),
               seen[0] << " and " << seen[1]);
  }
}

BOOST_AUTO_TEST_CASE(a_file_that_another_process_holds_is_unavailable_soon_and_comes_back) {
  const TemporaryDirectory folder;
  const auto file = folder.path() / "s.sqlite";
  fill(file, 1, 2);
  auto store = *Store::open(file);
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
    auto store = *Store::open(file, {.pages_max = 40});
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
  auto store = *Store::open(file);
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
  auto store = *Store::open(file);
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
  store = *Store::open(file);
  BOOST_TEST(static_cast<std::int64_t>(records(*store).size()) == kept + 1);
}

BOOST_AUTO_TEST_CASE(a_write_that_fails_is_an_error_and_the_next_one_works) {
  const TemporaryDirectory folder;
  const auto file = folder.path() / "s.sqlite";
  fill(file, 1, 2);
  auto store = *Store::open(file);
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
  auto store = *Store::open(folder.path() / "s.sqlite");
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
  auto store = *Store::open(file);
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
        store = *Store::open(file);
      }
      BOOST_TEST(code_of(store->commit("s", {1}, turn, record)) == "ok");
    }
    acknowledged = turn;
    BOOST_TEST(static_cast<std::int64_t>(records(*store).size()) == acknowledged);
  }
  BOOST_TEST(failed > 20);
}

BOOST_AUTO_TEST_CASE(every_acknowledged_turn_survives_a_kill) {
  const TemporaryDirectory folder;
  const auto file = folder.path() / "s.sqlite";
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
      auto store = *Store::open(file);
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
    auto store = *Store::open(file);
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
