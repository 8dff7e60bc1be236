#include "services/context/store.hpp"

#include <openssl/evp.h>
#include <sqlite3.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "common/base/hex.hpp"

namespace parlando::context {

namespace {

/// In `PRAGMA user_version`. 1 (and 0 with tables, which is how it was written): sessions(id, epoch), turns.
/// 2: sessions have owner, number and digest of their last turn, and a seal over all of it.
constexpr std::int64_t kSchema = 2;
constexpr milliseconds kRetryBusy{500};
constexpr milliseconds kRetryDisk{1000};
/// A start may wait longer than a request: nobody watches its progress yet, and another process may be migrating.
constexpr int kBusyAtStartMs = 2000;
/// How far behind the turns that are asked for a history is still verified: about 10 ms.
constexpr std::size_t kVerifiedBytes = 16 * 1024 * 1024;

/// SHA-256 of the parts one behind the other, in hexadecimal digits.
Stored<std::string> sha256(std::initializer_list<std::string_view> parts) {
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
  unsigned char out[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  bool good = context != nullptr && EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1;
  for (const auto part : parts) good = good && EVP_DigestUpdate(context.get(), part.data(), part.size()) == 1;
  good = good && EVP_DigestFinal_ex(context.get(), out, &size) == 1;
  if (!good) return fail(Errc::internal, "SHA-256 failed");
  return to_hex({out, size});
}

Stored<std::string> digest_of(std::string_view before, std::int64_t turn, std::string_view record) {
  return sha256({before, "\n", std::to_string(turn), "\n", record});
}

/// A session's entry.
struct Entry {
  std::int64_t epoch = 0;
  std::string owner;
  std::int64_t turns = 0;
  std::string digest;  ///< of the last turn
};

Stored<std::string> seal_of(std::string_view session, const Entry& e) {
  return sha256({session, "\n", std::to_string(e.epoch), "\n", e.owner, "\n", std::to_string(e.turns), "\n", e.digest});
}

StoreError stale(const std::string& session, const Entry& entry, Epoch seen) {
  StoreError error(Errc::stale_epoch,
                   entry.epoch == 0
                       ? fmt::format("session '{}' was never claimed, its epoch is 0, not {}", session, seen.value)
                       : fmt::format("session '{}' is at epoch {}, not {}", session, entry.epoch, seen.value));
  error.epoch.value = static_cast<std::uint64_t>(entry.epoch);
  return error;
}

bool same(const Entry& entry, Epoch epoch) { return static_cast<std::uint64_t>(entry.epoch) == epoch.value; }

}  // namespace

struct Store::Impl {
  sqlite3* db = nullptr;
  std::string file;
  ~Impl() { sqlite3_close(db); }

  /// What SQLite's result code means to a caller. To be called before anything else is asked of the connection.
  StoreError error(int code) const {
    const char* why = db != nullptr ? sqlite3_errmsg(db) : "out of memory";
    StoreError out(Errc::io, fmt::format("'{}': {} (SQLite {})", file, why, code));
    switch (code & 0xff) {
      case SQLITE_BUSY:
      case SQLITE_LOCKED:
        out.code = Errc::unavailable;
        out.retry = kRetryBusy;
        break;
      case SQLITE_CORRUPT:
      case SQLITE_NOTADB:
        out.code = Errc::bad_format;
        break;
      case SQLITE_ERROR:
      case SQLITE_MISUSE:
      case SQLITE_RANGE:
        out.code = Errc::internal;
        break;
      default:  // FULL, IOERR, READONLY, CANTOPEN, PERM, NOMEM, …
        out.retry = kRetryDisk;
    }
    return out;
  }
  Stored<void> run(const char* sql) {
    if (const int code = sqlite3_exec(db, sql, nullptr, nullptr, nullptr); code != SQLITE_OK)
      return tl::make_unexpected(error(code));
    return {};
  }

  Stored<std::optional<Entry>> load(const std::string& session);
  Stored<void> save(const std::string& session, const Entry& entry);
  Stored<std::int64_t> number_of(const char* pragma);
  Stored<void> use_write_ahead_log();
  Stored<void> migrate();
  template <class F>
  auto transact(const char* begin, F&& f) -> decltype(f());
};

namespace {

/// A prepared statement that is finalised with the object. The first thing that fails (preparing, a binding, a step) is
/// what `step` returns.
class Statement {
 public:
  Statement(sqlite3* db, const char* sql) { code_ = sqlite3_prepare_v2(db, sql, -1, &s_, nullptr); }
  ~Statement() { sqlite3_finalize(s_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;
  Statement& bind(std::string_view v) {
    if (code_ == SQLITE_OK) code_ = sqlite3_bind_text64(s_, ++at_, v.data(), v.size(), SQLITE_TRANSIENT, SQLITE_UTF8);
    return *this;
  }
  Statement& bind(std::int64_t v) {
    if (code_ == SQLITE_OK) code_ = sqlite3_bind_int64(s_, ++at_, v);
    return *this;
  }
  int step() { return code_ == SQLITE_OK ? sqlite3_step(s_) : code_; }
  std::int64_t number(int column) { return sqlite3_column_int64(s_, column); }
  std::string text(int column) {
    const auto* bytes = reinterpret_cast<const char*>(sqlite3_column_text(s_, column));
    if (bytes == nullptr) return {};  // NULL, in a file that was tampered with
    return {bytes, static_cast<std::size_t>(sqlite3_column_bytes(s_, column))};
  }

 private:
  sqlite3_stmt* s_ = nullptr;
  int at_ = 0;
  int code_ = SQLITE_OK;
};

/// Undoes what was not committed, whatever way its scope is left.
class Transaction {
 public:
  explicit Transaction(sqlite3* db) : db_(db) {}
  ~Transaction() {
    if (sqlite3_get_autocommit(db_) == 0) sqlite3_exec(db_, "ROLLBACK", nullptr, nullptr, nullptr);
  }
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;

 private:
  sqlite3* db_;
};

}  // namespace

/// What `f` does, all of it or nothing.
template <class F>
auto Store::Impl::transact(const char* begin, F&& f) -> decltype(f()) {
  PARLANDO_DO(run(begin));
  const Transaction transaction(db);
  auto done = f();
  if (!done) return done;
  PARLANDO_DO(run("COMMIT"));
  return done;
}

Stored<std::optional<Entry>> Store::Impl::load(const std::string& session) {
  Statement s(db, "SELECT epoch, owner, turns, digest, seal FROM sessions WHERE id = ?1");
  const int code = s.bind(session).step();
  if (code == SQLITE_DONE) {
    Statement orphans(db, "SELECT turn FROM turns WHERE session = ?1 LIMIT 1");
    const int found = orphans.bind(session).step();
    if (found == SQLITE_DONE) return std::optional<Entry>();
    if (found != SQLITE_ROW) return tl::make_unexpected(error(found));
    return fail(Errc::bad_format, "session '{}' has turns and no entry", session);
  }
  if (code != SQLITE_ROW) return tl::make_unexpected(error(code));
  Entry out{s.number(0), s.text(1), s.number(2), s.text(3)};
  PARLANDO_TRY(const auto seal, seal_of(session, out));
  if (seal != s.text(4)) return fail(Errc::bad_format, "the entry of session '{}' does not fit its seal", session);
  return std::optional<Entry>(std::move(out));
}

Stored<void> Store::Impl::save(const std::string& session, const Entry& entry) {
  PARLANDO_TRY(const auto seal, seal_of(session, entry));
  Statement s(db,
              "INSERT INTO sessions(id, epoch, owner, turns, digest, seal) VALUES(?1, ?2, ?3, ?4, ?5, ?6) ON "
              "CONFLICT(id) DO UPDATE SET "
              "epoch = excluded.epoch, owner = excluded.owner, turns = excluded.turns, digest = excluded.digest, seal "
              "= excluded.seal");
  const int code =
      s.bind(session).bind(entry.epoch).bind(entry.owner).bind(entry.turns).bind(entry.digest).bind(seal).step();
  if (code != SQLITE_DONE) return tl::make_unexpected(error(code));
  return {};
}

Stored<std::int64_t> Store::Impl::number_of(const char* pragma) {
  Statement s(db, pragma);
  const int code = s.step();
  if (code != SQLITE_ROW) return tl::make_unexpected(error(code));
  return s.number(0);
}

/// SQLite does not wait for another process while it changes the mode, so this does.
Stored<void> Store::Impl::use_write_ahead_log() {
  constexpr int kPauseMs = 20;
  for (int waited = 0;; waited += kPauseMs) {
    int code = SQLITE_OK;
    {
      Statement s(db, "PRAGMA journal_mode = WAL");
      code = s.step();
      if (code == SQLITE_ROW) {
        const auto mode = s.text(0);
        if (mode == "wal" || mode == "memory") return {};
        return fail(Errc::unsupported, "'{}': the file system has no write-ahead log, SQLite offers '{}'", file, mode);
      }
    }
    if ((code & 0xff) != SQLITE_BUSY || waited >= kBusyAtStartMs) return tl::make_unexpected(error(code));
    sqlite3_sleep(kPauseMs);
  }
}

Stored<void> Store::Impl::migrate() {
  PARLANDO_TRY(auto version, number_of("PRAGMA user_version"));
  if (version == kSchema) return {};
  return transact("BEGIN IMMEDIATE", [&]() -> Stored<void> {
    PARLANDO_TRY(version, number_of("PRAGMA user_version"));  // another process may have been first
    if (version == kSchema) return {};
    if (version > kSchema || version < 0)
      return fail(Errc::unsupported, "'{}' has schema {}, this build knows up to {}", file, version, kSchema);
    PARLANDO_DO(
        run("CREATE TABLE IF NOT EXISTS sessions(id TEXT PRIMARY KEY, epoch INTEGER NOT NULL);"
            "CREATE TABLE IF NOT EXISTS turns(session TEXT NOT NULL, turn INTEGER NOT NULL, record TEXT NOT NULL, "
            "digest TEXT NOT NULL, "
            "PRIMARY KEY(session, turn)) WITHOUT ROWID;"
            "ALTER TABLE sessions ADD COLUMN owner TEXT NOT NULL DEFAULT '';"
            "ALTER TABLE sessions ADD COLUMN turns INTEGER NOT NULL DEFAULT 0;"
            "ALTER TABLE sessions ADD COLUMN digest TEXT NOT NULL DEFAULT '';"
            "ALTER TABLE sessions ADD COLUMN seal TEXT NOT NULL DEFAULT '';"));
    std::vector<std::pair<std::string, Entry>> entries;
    {
      Statement s(
          db,
          "SELECT id, epoch, IFNULL((SELECT turn FROM turns WHERE session = id ORDER BY turn DESC LIMIT 1), 0), "
          "IFNULL((SELECT digest FROM turns WHERE session = id ORDER BY turn DESC LIMIT 1), '') FROM sessions");
      int code;
      while ((code = s.step()) == SQLITE_ROW)
        entries.emplace_back(s.text(0), Entry{s.number(1), {}, s.number(2), s.text(3)});
      if (code != SQLITE_DONE) return tl::make_unexpected(error(code));
    }
    for (const auto& [session, entry] : entries) PARLANDO_DO(save(session, entry));
    return run(fmt::format("PRAGMA user_version = {}", kSchema).c_str());
  });
}

Result<std::unique_ptr<Store>> Store::open(const std::filesystem::path& file, Options options) {
  std::unique_ptr<Store> out(new Store);
  out->impl_ = std::make_unique<Impl>();
  auto& s = *out->impl_;
  s.file = file.string();
  std::error_code ignored;  // SQLite names the file that it cannot make
  if (s.file != ":memory:" && file.has_parent_path()) std::filesystem::create_directories(file.parent_path(), ignored);
  if (const int code = sqlite3_open(s.file.c_str(), &s.db); code != SQLITE_OK)
    return tl::make_unexpected(s.error(code));
  sqlite3_extended_result_codes(s.db, 1);
  sqlite3_busy_timeout(s.db, kBusyAtStartMs);
  PARLANDO_DO(s.use_write_ahead_log());
  PARLANDO_DO(s.run("PRAGMA synchronous = FULL; PRAGMA cell_size_check = ON; PRAGMA trusted_schema = OFF;"));
  PARLANDO_DO(s.migrate());
  if (options.pages_max > 0) PARLANDO_DO(s.run(fmt::format("PRAGMA max_page_count = {}", options.pages_max).c_str()));
  sqlite3_busy_timeout(s.db, static_cast<int>(options.busy.count()));
  return out;
}

Store::~Store() = default;

Stored<Store::Claimed> Store::claim(const std::string& session, Epoch expected, const std::string& owner) {
  return impl_->transact("BEGIN IMMEDIATE", [&]() -> Stored<Claimed> {
    PARLANDO_TRY(auto loaded, impl_->load(session));
    auto entry = loaded.value_or(Entry{});
    const Epoch next{expected.value + 1};
    if (same(entry, next) && entry.owner == owner && !owner.empty()) return Claimed{next, owner, true};
    if (!same(entry, expected)) return tl::make_unexpected(stale(session, entry, expected));
    if (entry.epoch == std::numeric_limits<std::int64_t>::max())
      return fail(Errc::unsupported, "session '{}' has used up its epochs", session);
    ++entry.epoch;
    const auto former = std::exchange(entry.owner, owner);
    PARLANDO_DO(impl_->save(session, entry));
    return Claimed{next, former, false};
  });
}

Stored<void> Store::renew(const std::string& session, Epoch epoch) {
  return impl_->transact("BEGIN", [&]() -> Stored<void> {
    PARLANDO_TRY(const auto loaded, impl_->load(session));
    const auto entry = loaded.value_or(Entry{});
    if (entry.epoch == 0 || !same(entry, epoch)) return tl::make_unexpected(stale(session, entry, epoch));
    return {};
  });
}

Stored<Store::Committed> Store::commit(const std::string& session, Epoch epoch, std::int64_t turn,
                                       const std::string& record) {
  return impl_->transact("BEGIN IMMEDIATE", [&]() -> Stored<Committed> {
    PARLANDO_TRY(const auto loaded, impl_->load(session));
    auto entry = loaded.value_or(Entry{});
    if (entry.epoch == 0 || !same(entry, epoch)) return tl::make_unexpected(stale(session, entry, epoch));
    // The last turn belongs to the entry, or nothing may be written behind it.
    if (entry.turns > 0) {
      Statement last(impl_->db, "SELECT digest FROM turns WHERE session = ?1 AND turn = ?2");
      const int code = last.bind(session).bind(entry.turns).step();
      if (code != SQLITE_ROW && code != SQLITE_DONE) return tl::make_unexpected(impl_->error(code));
      if (code == SQLITE_DONE || last.text(0) != entry.digest)
        return fail(Errc::bad_format, "turn {} of session '{}' is not the one that was committed", entry.turns,
                    session);
    }
    if (turn <= entry.turns) {
      Statement present(impl_->db, "SELECT record, digest FROM turns WHERE session = ?1 AND turn = ?2");
      const int code = present.bind(session).bind(turn).step();
      if (code == SQLITE_ROW) {
        if (present.text(0) != record)
          return fail(Errc::invalid_argument, "turn {} of session '{}' is committed with another record", turn,
                      session);
        return Committed{present.text(1), true};
      }
      if (code != SQLITE_DONE) return tl::make_unexpected(impl_->error(code));
    }
    if (turn != entry.turns + 1)
      return fail(Errc::invalid_argument, "turn {} of session '{}' does not follow turn {}", turn, session,
                  entry.turns);
    PARLANDO_TRY(const auto digest, digest_of(entry.digest, turn, record));
    Statement insert(impl_->db, "INSERT INTO turns(session, turn, record, digest) VALUES(?1, ?2, ?3, ?4)");
    if (const int code = insert.bind(session).bind(turn).bind(record).bind(digest).step(); code != SQLITE_DONE)
      return tl::make_unexpected(impl_->error(code));
    entry.turns = turn;
    entry.digest = digest;
    PARLANDO_DO(impl_->save(session, entry));
    return Committed{digest, false};
  });
}

Stored<Store::Past> Store::history(const std::string& session, std::int64_t turns_max, std::size_t bytes_max,
                                   std::size_t overhead) {
  // Inside one transaction, so that entry and turns are of the same moment.
  return impl_->transact("BEGIN", [&]() -> Stored<Past> {
    PARLANDO_TRY(const auto loaded, impl_->load(session));
    const auto entry = loaded.value_or(Entry{});
    Past out;
    out.turns = entry.turns;
    // From the end to the start: each turn must have the digest that what follows it names, and is known to be whole
    // once the one before it has told its own.
    std::string expected = entry.digest;
    StoredTurn held;
    bool holding = false;
    bool full = false;
    std::size_t bytes = 0;
    std::size_t verified = 0;
    const auto broken = [&](std::int64_t turn) {
      return fail(Errc::bad_format, "turn {} of session '{}' does not fit its digest", turn, session);
    };
    const auto settle = [&](std::string_view before) -> Stored<void> {
      PARLANDO_TRY(const auto digest, digest_of(before, held.turn, held.record));
      if (digest != expected) return broken(held.turn);
      const auto size = held.record.size() + overhead;
      full = full || static_cast<std::int64_t>(out.latest.size()) >= turns_max || bytes + size > bytes_max;
      if (full)
        verified += size;
      else
        out.latest.push_back(std::move(held));
      bytes += full ? 0 : size;
      return {};
    };
    Statement s(impl_->db, "SELECT turn, record, digest FROM turns WHERE session = ?1 ORDER BY turn DESC");
    s.bind(session);
    int code;
    while ((code = s.step()) == SQLITE_ROW && verified < kVerifiedBytes) {
      auto digest = s.text(2);
      if (holding) {
        PARLANDO_DO(settle(digest));
        expected = digest;
      } else if (s.number(0) != entry.turns || digest != entry.digest) {
        return broken(s.number(0));
      }
      held = {s.number(0), s.text(1)};
      holding = true;
    }
    if (code != SQLITE_DONE && code != SQLITE_ROW) return tl::make_unexpected(impl_->error(code));
    if (!holding && entry.turns > 0) return broken(entry.turns);
    if (holding && code == SQLITE_DONE) PARLANDO_DO(settle(""));
    if (out.latest.empty() && entry.turns > 0 && turns_max > 0)
      return fail(Errc::bad_format, "turn {} of session '{}' has more than {} bytes", entry.turns, session, bytes_max);
    std::reverse(out.latest.begin(), out.latest.end());
    return out;
  });
}

}  // namespace parlando::context
