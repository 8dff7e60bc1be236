#include "services/context/sqlite_store.hpp"

#include <sqlite3.h>

#include <optional>

#include "services/context/chain.hpp"

namespace parlando::context {

namespace {

/// In `PRAGMA user_version`. 1 (and 0 with tables, which is how it was written): sessions(id, epoch), turns.
/// 2: sessions have owner, number and digest of their last turn, and a seal over all of it.
constexpr std::int64_t kSqliteSchema = 2;
constexpr milliseconds kRetryBusy{500};
constexpr milliseconds kRetryDisk{1000};
/// A start may wait longer than a request: nobody watches its progress yet, and another process may be migrating.
constexpr int kBusyAtStartMs = 2000;
/// How far behind the turns that are asked for a history is still verified: about 10 ms.
constexpr std::size_t kSqliteVerifiedBytes = 16 * 1024 * 1024;

}  // namespace

struct SqliteStore::Impl {
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

  /// @param turn  the one that is asked about; without one, the last one's digest is not looked for either
  Stored<Seen> look(const std::string& session, std::optional<std::int64_t> turn = {});
  Stored<void> save(const std::string& session, const SealedEntry& entry);
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
auto SqliteStore::Impl::transact(const char* begin, F&& f) -> decltype(f()) {
  PARLANDO_DO(run(begin));
  const Transaction transaction(db);
  auto done = f();
  if (!done) return done;
  PARLANDO_DO(run("COMMIT"));
  return done;
}

Stored<Seen> SqliteStore::Impl::look(const std::string& session, std::optional<std::int64_t> turn) {
  Seen out;
  Statement s(db, "SELECT epoch, owner, turns, digest, seal FROM sessions WHERE id = ?1");
  const int code = s.bind(session).step();
  if (code == SQLITE_ROW)
    out.entry = SealedEntry{{s.number(0), s.text(1), s.number(2), s.text(3)}, s.text(4)};
  else if (code != SQLITE_DONE)
    return tl::make_unexpected(error(code));
  if (!out.entry) {
    Statement orphans(db, "SELECT turn FROM turns WHERE session = ?1 LIMIT 1");
    const int found = orphans.bind(session).step();
    if (found != SQLITE_DONE && found != SQLITE_ROW) return tl::make_unexpected(error(found));
    out.has_turns = found == SQLITE_ROW;
    return out;
  }
  if (!turn) return out;
  Statement last(db, "SELECT digest FROM turns WHERE session = ?1 AND turn = ?2");
  const int at_last = last.bind(session).bind(out.entry->turns).step();
  if (at_last != SQLITE_DONE && at_last != SQLITE_ROW) return tl::make_unexpected(error(at_last));
  if (at_last == SQLITE_ROW) out.last_digest = last.text(0);
  Statement asked(db, "SELECT record, digest FROM turns WHERE session = ?1 AND turn = ?2");
  const int at_turn = asked.bind(session).bind(*turn).step();
  if (at_turn != SQLITE_DONE && at_turn != SQLITE_ROW) return tl::make_unexpected(error(at_turn));
  if (at_turn == SQLITE_ROW) {
    out.turn = StoredTurn{*turn, asked.text(0)};
    out.turn_digest = asked.text(1);
  }
  return out;
}

Stored<void> SqliteStore::Impl::save(const std::string& session, const SealedEntry& entry) {
  Statement s(db,
              "INSERT INTO sessions(id, epoch, owner, turns, digest, seal) VALUES(?1, ?2, ?3, ?4, ?5, ?6) ON "
              "CONFLICT(id) DO UPDATE SET "
              "epoch = excluded.epoch, owner = excluded.owner, turns = excluded.turns, digest = excluded.digest, seal "
              "= excluded.seal");
  const int code =
      s.bind(session).bind(entry.epoch).bind(entry.owner).bind(entry.turns).bind(entry.digest).bind(entry.seal).step();
  if (code != SQLITE_DONE) return tl::make_unexpected(error(code));
  return {};
}

Stored<std::int64_t> SqliteStore::Impl::number_of(const char* pragma) {
  Statement s(db, pragma);
  const int code = s.step();
  if (code != SQLITE_ROW) return tl::make_unexpected(error(code));
  return s.number(0);
}

/// SQLite does not wait for another process while it changes the mode, so this does.
Stored<void> SqliteStore::Impl::use_write_ahead_log() {
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

Stored<void> SqliteStore::Impl::migrate() {
  PARLANDO_TRY(auto version, number_of("PRAGMA user_version"));
  if (version == kSqliteSchema) return {};
  return transact("BEGIN IMMEDIATE", [&]() -> Stored<void> {
    PARLANDO_TRY(version, number_of("PRAGMA user_version"));  // another process may have been first
    if (version == kSqliteSchema) return {};
    if (version > kSqliteSchema || version < 0)
      return fail(Errc::unsupported, "'{}' has schema {}, this build knows up to {}", file, version, kSqliteSchema);
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
    for (auto& [session, entry] : entries) {
      PARLANDO_TRY(auto seal, seal_of(session, entry));
      PARLANDO_DO(save(session, {std::move(entry), std::move(seal)}));
    }
    return run(fmt::format("PRAGMA user_version = {}", kSqliteSchema).c_str());
  });
}

Result<std::unique_ptr<Store>> SqliteStore::open(const std::filesystem::path& file, Options options) {
  std::unique_ptr<SqliteStore> out(new SqliteStore);
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
  PARLANDO_DO(s.run("PRAGMA secure_delete = ON"));
  PARLANDO_DO(s.migrate());
  if (options.pages_max > 0) PARLANDO_DO(s.run(fmt::format("PRAGMA max_page_count = {}", options.pages_max).c_str()));
  sqlite3_busy_timeout(s.db, static_cast<int>(options.busy.count()));
  return out;
}

SqliteStore::~SqliteStore() = default;

Stored<Store::Claimed> SqliteStore::claim(const std::string& session, Epoch expected, const std::string& owner) {
  return impl_->transact("BEGIN IMMEDIATE", [&]() -> Stored<Claimed> {
    PARLANDO_TRY(const auto seen, impl_->look(session));
    PARLANDO_TRY(const auto decision, decide_claim(session, seen, expected, owner));
    if (decision.entry) PARLANDO_DO(impl_->save(session, *decision.entry));
    return decision.answer;
  });
}

Stored<void> SqliteStore::renew(const std::string& session, Epoch epoch) {
  return impl_->transact("BEGIN", [&]() -> Stored<void> {
    PARLANDO_TRY(const auto seen, impl_->look(session));
    return decide_renew(session, seen, epoch);
  });
}

Stored<Store::Committed> SqliteStore::commit(const std::string& session, Epoch epoch, std::int64_t turn,
                                             const std::string& record) {
  return impl_->transact("BEGIN IMMEDIATE", [&]() -> Stored<Committed> {
    PARLANDO_TRY(const auto seen, impl_->look(session, turn));
    PARLANDO_TRY(const auto decision, decide_commit(session, seen, epoch, turn, record));
    if (!decision.entry) return decision.answer;
    Statement insert(impl_->db, "INSERT INTO turns(session, turn, record, digest) VALUES(?1, ?2, ?3, ?4)");
    const int code = insert.bind(session).bind(turn).bind(record).bind(decision.turn_digest).step();
    if (code != SQLITE_DONE) return tl::make_unexpected(impl_->error(code));
    PARLANDO_DO(impl_->save(session, *decision.entry));
    return decision.answer;
  });
}

Stored<Store::Past> SqliteStore::history(const std::string& session, std::int64_t turns_max, std::size_t bytes_max,
                                         std::size_t overhead) {
  // Inside one transaction, so that entry and turns are of the same moment.
  return impl_->transact("BEGIN", [&]() -> Stored<Past> {
    PARLANDO_TRY(const auto seen, impl_->look(session));
    PARLANDO_TRY(const auto entry, checked(session, seen));
    HistoryReader reader(session, entry, {turns_max, bytes_max, overhead, kSqliteVerifiedBytes});
    Statement s(impl_->db, "SELECT turn, record, digest FROM turns WHERE session = ?1 ORDER BY turn DESC");
    s.bind(session);
    int code;
    while ((code = s.step()) == SQLITE_ROW && !reader.is_enough())
      PARLANDO_DO(reader.push({s.number(0), s.text(1)}, s.text(2)));
    if (code != SQLITE_DONE && code != SQLITE_ROW) return tl::make_unexpected(impl_->error(code));
    return reader.finish(code == SQLITE_DONE);
  });
}

Stored<Store::Erased> SqliteStore::erase(const std::string& session, Epoch epoch) {
  auto erased = impl_->transact("BEGIN IMMEDIATE", [&]() -> Stored<Erased> {
    PARLANDO_TRY(const auto seen, impl_->look(session));
    PARLANDO_TRY(const auto decision, decide_erase(session, seen, epoch));
    if (!decision.entry) return decision.answer;
    Statement remove(impl_->db, "DELETE FROM turns WHERE session = ?1");
    if (const int code = remove.bind(session).step(); code != SQLITE_DONE)
      return tl::make_unexpected(impl_->error(code));
    PARLANDO_DO(impl_->save(session, *decision.entry));
    return decision.answer;
  });
  // The log still has the turns until it is cut off. While another process reads it stays, and is written over later.
  if (erased) (void)impl_->run("PRAGMA wal_checkpoint(TRUNCATE)");
  return erased;
}

}  // namespace parlando::context
