#include "services/context/store.hpp"

#include <openssl/sha.h>
#include <sqlite3.h>

#include <algorithm>

namespace parlando::context {

struct Store::Impl {
  sqlite3* db = nullptr;
  std::string file;
  ~Impl() { sqlite3_close(db); }

  Error error() const { return {Errc::io, fmt::format("'{}': {}", file, db != nullptr ? sqlite3_errmsg(db) : "out of memory")}; }
  Result<void> run(const char* sql) {
    if (sqlite3_exec(db, sql, nullptr, nullptr, nullptr) != SQLITE_OK) return tl::make_unexpected(error());
    return {};
  }
};

namespace {

/// A prepared statement that is finalised with the object.
class Statement {
 public:
  Statement(sqlite3* db, const char* sql) { sqlite3_prepare_v2(db, sql, -1, &s_, nullptr); }
  ~Statement() { sqlite3_finalize(s_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;
  Statement& bind(const std::string& v) {
    sqlite3_bind_text(s_, ++at_, v.data(), static_cast<int>(v.size()), SQLITE_TRANSIENT);
    return *this;
  }
  Statement& bind(std::int64_t v) {
    sqlite3_bind_int64(s_, ++at_, v);
    return *this;
  }
  int step() { return s_ == nullptr ? SQLITE_ERROR : sqlite3_step(s_); }
  std::int64_t number(int column) { return sqlite3_column_int64(s_, column); }
  std::string text(int column) {
    return {reinterpret_cast<const char*>(sqlite3_column_text(s_, column)), static_cast<std::size_t>(sqlite3_column_bytes(s_, column))};
  }

 private:
  sqlite3_stmt* s_ = nullptr;
  int at_ = 0;
};

std::string digest_of(const std::string& before, std::int64_t turn, const std::string& record) {
  const auto text = fmt::format("{}\n{}\n{}", before, turn, record);
  unsigned char out[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), out);
  std::string hex;
  for (const auto b : out) hex += fmt::format("{:02x}", b);
  return hex;
}

}  // namespace

Result<std::unique_ptr<Store>> Store::open(const std::filesystem::path& file) {
  std::unique_ptr<Store> out(new Store);
  out->impl_ = std::make_unique<Impl>();
  auto& s = *out->impl_;
  s.file = file.string();
  std::error_code ignored;
  if (s.file != ":memory:" && file.has_parent_path()) std::filesystem::create_directories(file.parent_path(), ignored);
  if (sqlite3_open(s.file.c_str(), &s.db) != SQLITE_OK) return tl::make_unexpected(s.error());
  sqlite3_busy_timeout(s.db, 2000);
  PARLANDO_DO(s.run("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;"));
  PARLANDO_DO(
      s.run("CREATE TABLE IF NOT EXISTS sessions(id TEXT PRIMARY KEY, epoch INTEGER NOT NULL);"
            "CREATE TABLE IF NOT EXISTS turns(session TEXT NOT NULL, turn INTEGER NOT NULL, record TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY(session, "
            "turn)) WITHOUT ROWID;"));
  return out;
}

Store::~Store() = default;

Result<std::uint32_t> Store::adopt(const std::string& session) {
  Statement s(impl_->db, "INSERT INTO sessions(id, epoch) VALUES(?1, 1) ON CONFLICT(id) DO UPDATE SET epoch = epoch + 1 RETURNING epoch");
  if (s.bind(session).step() != SQLITE_ROW) return tl::make_unexpected(impl_->error());
  const auto epoch = static_cast<std::uint32_t>(s.number(0));
  if (s.step() != SQLITE_DONE) return tl::make_unexpected(impl_->error());
  return epoch;
}

Result<std::string> Store::commit(const std::string& session, std::uint32_t epoch, std::int64_t turn, const std::string& record) {
  PARLANDO_DO(impl_->run("BEGIN IMMEDIATE"));
  const auto inside = [&]() -> Result<std::string> {
    Statement owner(impl_->db, "SELECT epoch FROM sessions WHERE id = ?1");
    if (owner.bind(session).step() != SQLITE_ROW) return fail(Errc::not_found, "session '{}' was never adopted", session);
    if (owner.number(0) != epoch)
      return fail(Errc::stale_epoch, "session '{}' is owned under epoch {}, the turn comes from {}", session, owner.number(0), epoch);
    Statement present(impl_->db, "SELECT record, digest FROM turns WHERE session = ?1 AND turn = ?2");
    if (present.bind(session).bind(turn).step() == SQLITE_ROW) {
      if (present.text(0) != record) return fail(Errc::invalid_argument, "turn {} of session '{}' is committed with other content", turn, session);
      return present.text(1);
    }
    Statement last(impl_->db, "SELECT turn, digest FROM turns WHERE session = ?1 ORDER BY turn DESC LIMIT 1");
    std::string before;
    if (last.bind(session).step() == SQLITE_ROW) {
      if (last.number(0) > turn) return fail(Errc::invalid_argument, "turn {} comes after turn {} of session '{}'", turn, last.number(0), session);
      before = last.text(1);
    }
    const auto digest = digest_of(before, turn, record);
    Statement insert(impl_->db, "INSERT INTO turns(session, turn, record, digest) VALUES(?1, ?2, ?3, ?4)");
    if (insert.bind(session).bind(turn).bind(record).bind(digest).step() != SQLITE_DONE) return tl::make_unexpected(impl_->error());
    return digest;
  }();
  if (!inside) {
    (void)impl_->run("ROLLBACK");
    return inside;
  }
  if (auto done = impl_->run("COMMIT"); !done) {
    (void)impl_->run("ROLLBACK");
    return tl::make_unexpected(done.error());
  }
  return inside;
}

Result<std::vector<StoredTurn>> Store::history(const std::string& session, std::int64_t turns_max) {
  Statement s(impl_->db, "SELECT turn, record, digest FROM turns WHERE session = ?1 ORDER BY turn");
  s.bind(session);
  std::vector<StoredTurn> out;
  int code;
  std::string before;
  while ((code = s.step()) == SQLITE_ROW) {
    StoredTurn t{s.number(0), s.text(1), s.text(2)};
    if (t.digest != digest_of(before, t.turn, t.record)) return fail(Errc::bad_format, "turn {} of session '{}' does not fit its digest", t.turn, session);
    before = t.digest;
    out.push_back(std::move(t));
  }
  if (code != SQLITE_DONE) return tl::make_unexpected(impl_->error());
  if (static_cast<std::int64_t>(out.size()) > turns_max) out.erase(out.begin(), out.end() - turns_max);
  return out;
}

}  // namespace parlando::context
