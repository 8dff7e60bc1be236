#include "services/context/postgres_store.hpp"

#include <algorithm>
#include <optional>

#include "common/telemetry/log.hpp"
#include "services/context/chain.hpp"
#include "services/context/postgres_connector.hpp"

namespace parlando::context {

namespace {

/// In parlando_schema. 1: the tables below.
constexpr std::int64_t kPostgresSchema = 1;
constexpr int kServerMin = 120000;
/// How far behind the turns that are asked for a history is still verified; they have to be sent.
constexpr std::size_t kPostgresVerifiedBytes = 2 * 1024 * 1024;
/// Others that change the same session at the same moment; each of them has done its work then.
constexpr int kTriesMax = 16;
constexpr milliseconds kRetryRace{100};
/// Of a statement while a connection is made, when nobody waits.
constexpr milliseconds kSetupMax{3000};

// Records and owners are bytes, so that no database's encoding changes or refuses them. The lock keeps two processes
// from making the tables at a time.
constexpr const char* kMakeTables = R"(
  SELECT pg_advisory_xact_lock(8100973274106491503);
  CREATE TABLE IF NOT EXISTS parlando_sessions(id text COLLATE "C" PRIMARY KEY, epoch bigint NOT NULL,
    owner bytea NOT NULL, turns bigint NOT NULL, digest text NOT NULL, seal text NOT NULL);
  CREATE TABLE IF NOT EXISTS parlando_turns(session text COLLATE "C" NOT NULL, turn bigint NOT NULL,
    record bytea NOT NULL, digest text NOT NULL, PRIMARY KEY(session, turn));
  CREATE TABLE IF NOT EXISTS parlando_schema(one boolean PRIMARY KEY DEFAULT true CHECK (one), version bigint NOT NULL);
  INSERT INTO parlando_schema(version) VALUES(1) ON CONFLICT DO NOTHING;)";
static_assert(kPostgresSchema == 1);

constexpr const char* kLook = R"(
  SELECT s.epoch, s.owner, s.turns, s.digest, s.seal, l.digest, a.record, a.digest,
    s.id IS NULL AND EXISTS(SELECT 1 FROM parlando_turns o WHERE o.session = $1)
  FROM (SELECT 1) one LEFT JOIN parlando_sessions s ON s.id = $1
  LEFT JOIN parlando_turns l ON l.session = $1 AND l.turn = s.turns
  LEFT JOIN parlando_turns a ON a.session = $1 AND a.turn = $2)";

// The told turns and kPostgresVerifiedBytes of those before them: one that begins within the limits is the last.
constexpr const char* kHistory = R"(
  SELECT s.epoch, s.owner, s.turns, s.digest, s.seal, t.turn, t.record, t.digest,
    (SELECT min(turn) FROM parlando_turns WHERE session = $1)
  FROM (SELECT 1) one LEFT JOIN parlando_sessions s ON s.id = $1
  LEFT JOIN (
    SELECT turn, record, digest, size, n,
      sum(size) OVER w AS told, coalesce(sum(size) FILTER (WHERE n > $2) OVER w, 0) AS older
    FROM (SELECT turn, record, digest, octet_length(record) + $4::int AS size,
      row_number() OVER (ORDER BY turn DESC) AS n FROM parlando_turns WHERE session = $1) numbered
    WINDOW w AS (ORDER BY turn DESC ROWS UNBOUNDED PRECEDING)
  ) t ON told - size < $3 + $5 AND older - CASE WHEN n > $2 THEN size ELSE 0 END < $5
  ORDER BY t.turn DESC)";

constexpr const char* kInsert = R"(
  INSERT INTO parlando_sessions(id, epoch, owner, turns, digest, seal) VALUES($1, $2, $3, $4, $5, $6)
  ON CONFLICT (id) DO NOTHING)";
constexpr const char* kUpdate = R"(
  UPDATE parlando_sessions SET epoch = $2, owner = $3, turns = $4, digest = $5, seal = $6 WHERE id = $1 AND seal = $7)";
constexpr const char* kAddTurn = R"(
  WITH moved AS (UPDATE parlando_sessions SET epoch = $2, owner = $3, turns = $4, digest = $5, seal = $6
    WHERE id = $1 AND seal = $7 RETURNING id)
  INSERT INTO parlando_turns(session, turn, record, digest) SELECT id, $4, $8, $5 FROM moved)";
constexpr const char* kErase = R"(
  WITH moved AS (UPDATE parlando_sessions SET epoch = $2, owner = $3, turns = $4, digest = $5, seal = $6
    WHERE id = $1 AND seal = $7 RETURNING id),
  gone AS (DELETE FROM parlando_turns USING moved WHERE session = moved.id)
  SELECT count(*) FROM moved)";

/// A limit as a number of SQL: beyond every size that there is, and far from an overflow.
std::int64_t limit(std::size_t n) { return static_cast<std::int64_t>(std::min(n, std::size_t{1} << 40)); }

SealedEntry entry_of(const Rows& rows) {
  return {{rows.number(0, 0), rows.text(0, 1), rows.number(0, 2), rows.text(0, 3)}, rows.text(0, 4)};
}

Values values_of(const std::string& session, const SealedEntry& entry) {
  Values out;
  out.text(session).number(entry.epoch).bytes(entry.owner).number(entry.turns).text(entry.digest).text(entry.seal);
  return out;
}

/// A connection with the settings that the store relies on, to a database that has its tables.
Stored<Connection> connected(const std::string& conninfo, milliseconds operation) {
  PARLANDO_TRY(auto c, Connection::connect(conninfo));
  const auto until = SteadyClock().now() + kSetupMax;
  if (c.server_version() < kServerMin)
    return fail(Errc::unsupported, "PostgreSQL {} is too old, expected 12 or later", c.server_version() / 10000);
  // Shorter than what is waited for here, so that a statement that waits for a lock costs no connection.
  const auto statement_ms = std::to_string(operation.count() * 3 / 4);
  // `local` and stricter settings than `on` are the operator's choice.
  PARLANDO_TRY(const auto settings,
               c.run("SELECT set_config('statement_timeout', $1, false), set_config('lock_timeout', $1, false), "
                     "set_config('default_transaction_isolation', 'read committed', false), "
                     "set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' "
                     "ELSE current_setting('synchronous_commit') END, false), current_setting('fsync'), "
                     "to_regclass('parlando_schema') IS NULL",
                     Values().text(statement_ms), until));
  if (settings.text(0, 4) != "on")
    telemetry::log(telemetry::Level::warning,
                   "the store's server does not synchronise its disk (fsync is off): turns may be lost with its power");
  if (settings.number(0, 5) != 0) PARLANDO_DO(c.run_all(kMakeTables, until));
  PARLANDO_TRY(const auto schema, c.run("SELECT version FROM parlando_schema", {}, until));
  if (schema.size() != 1 || schema.number(0, 0) != kPostgresSchema)
    return fail(Errc::unsupported, "the database has schema {}, this build knows up to {}",
                schema.size() == 1 ? schema.number(0, 0) : 0, kPostgresSchema);
  return c;
}

}  // namespace

struct PostgresStore::Impl {
  Impl(const std::string& conninfo, Options o)
      : options(o),
        connector([conninfo, operation = o.operation] { return connected(conninfo, operation); },
                  {o.pause_first, o.pause_max}) {}

  void lose(StoreError why) {
    connection.reset();
    lost_at = SteadyClock().now();
    telemetry::log(telemetry::Level::warning, "context loses its store: {}", why.message);
    connector.want(std::move(why));
  }
  /// Takes a connection that was made, if one is there in time.
  void join(Time until) {
    connection = connector.take(until);
    if (!connection) return;
    if (had_one) {
      ++reconnects;
      telemetry::log(telemetry::Level::warning, "context has its store again");
    }
    had_one = true;
  }
  /// What happened while nobody asked.
  void look_around(Time until) {
    if (connection && connection->is_lost()) lose({Errc::unavailable, "PostgreSQL has closed the connection"});
    if (!connection) join(until);
  }
  /// What `f` does on a connection in the time that an operation has.
  template <class F>
  auto on_connection(F&& f) -> decltype(f(Time())) {
    const auto now = SteadyClock().now();
    if (connection && connection->is_lost()) lose({Errc::unavailable, "PostgreSQL has closed the connection"});
    if (!connection) join(lost_at + options.fresh);
    if (!connection) {
      auto away = connector.away();
      return tl::make_unexpected(StoreError(Errc::unavailable, std::move(away.message), away.retry));
    }
    auto done = f(now + options.operation);
    if (!done && connection->is_lost()) lose(done.error());
    return done;
  }

  Stored<Seen> look(const std::string& session, std::int64_t turn, Time until) {
    PARLANDO_TRY(const auto rows, connection->run(kLook, Values().text(session).number(turn), until));
    Seen out;
    if (!rows.is_null(0, 0)) out.entry = entry_of(rows);
    out.has_turns = rows.number(0, 8) != 0;
    if (!rows.is_null(0, 5)) out.last_digest = rows.text(0, 5);
    if (!rows.is_null(0, 6)) out.turn = StoredTurn{turn, rows.text(0, 6)};
    out.turn_digest = rows.text(0, 7);
    return out;
  }
  /// Decides on what is stored and writes the decision, unless something has changed in between: then again.
  template <class Decide, class Write>
  auto change(const std::string& session, std::int64_t turn, Decide&& decide, Write&& write)
      -> Stored<decltype(decide(std::declval<Seen>())->answer)> {
    return on_connection([&](Time until) -> Stored<decltype(decide(std::declval<Seen>())->answer)> {
      for (int tries = 0; tries < kTriesMax; ++tries) {
        PARLANDO_TRY(const auto seen, look(session, turn, until));
        PARLANDO_TRY(const auto decision, decide(seen));
        if (!decision.entry) return decision.answer;
        auto values = values_of(session, *decision.entry);
        if (seen.entry) values.text(seen.entry->seal);
        const Stored<bool> written = write(seen, values, until);
        if (written && *written) return decision.answer;
        const auto& state = connection->state();
        const bool raced = written || state == "40001" || state == "40P01" || state == "23505";
        if (!raced) return tl::make_unexpected(written.error());
      }
      return tl::make_unexpected(StoreError(
          Errc::unavailable, fmt::format("session '{}' is changed by others all the time", session), kRetryRace));
    });
  }
  Stored<bool> changes_one(const char* sql, const Values& values, Time until) {
    PARLANDO_TRY(const auto rows, connection->run(sql, values, until));
    return rows.changed() == 1;
  }

  const Options options;
  Connector connector;
  std::optional<Connection> connection;
  Time lost_at{};
  bool had_one = false;
  std::int64_t reconnects = 0;
};

Result<std::unique_ptr<Store>> PostgresStore::open(const std::string& conninfo, Options options) {
  if (const auto problem = conninfo_problem(conninfo); !problem.empty())
    return fail(Errc::invalid_argument, "the store {}", problem);
  std::unique_ptr<PostgresStore> out(new PostgresStore);
  out->impl_ = std::make_unique<Impl>(conninfo, options);
  auto& s = *out->impl_;
  s.connector.want({Errc::unavailable, "PostgreSQL has not answered yet"});
  if (s.connector.wait(SteadyClock().now() + options.start))
    s.join(SteadyClock().now());
  else if (auto why = s.connector.away(); why.code == Errc::unsupported)
    return tl::make_unexpected(Error(std::move(why)));
  return out;
}

PostgresStore::~PostgresStore() = default;

Stored<Store::Claimed> PostgresStore::claim(const std::string& session, Epoch expected, const std::string& owner) {
  return impl_->change(
      session, 0, [&](const Seen& seen) { return decide_claim(session, seen, expected, owner); },
      [&](const Seen& seen, const Values& values, Time until) {
        return impl_->changes_one(seen.entry ? kUpdate : kInsert, values, until);
      });
}

Stored<void> PostgresStore::renew(const std::string& session, Epoch epoch) {
  return impl_->on_connection([&](Time until) -> Stored<void> {
    PARLANDO_TRY(const auto seen, impl_->look(session, 0, until));
    return decide_renew(session, seen, epoch);
  });
}

Stored<Store::Committed> PostgresStore::commit(const std::string& session, Epoch epoch, std::int64_t turn,
                                               const std::string& record) {
  return impl_->change(
      session, turn, [&](const Seen& seen) { return decide_commit(session, seen, epoch, turn, record); },
      [&](const Seen&, Values values, Time until) {
        return impl_->changes_one(kAddTurn, values.bytes(record), until);
      });
}

Stored<Store::Past> PostgresStore::history(const std::string& session, std::int64_t turns_max, std::size_t bytes_max,
                                           std::size_t overhead) {
  return impl_->on_connection([&](Time until) -> Stored<Past> {
    PARLANDO_TRY(const auto rows, impl_->connection->run(kHistory,
                                                         Values()
                                                             .text(session)
                                                             .number(turns_max)
                                                             .number(limit(bytes_max))
                                                             .number(limit(overhead))
                                                             .number(limit(kPostgresVerifiedBytes)),
                                                         until));
    const bool any = !rows.is_null(0, 5);
    Seen seen;
    if (!rows.is_null(0, 0)) seen.entry = entry_of(rows);
    seen.has_turns = any;
    PARLANDO_TRY(const auto entry, checked(session, seen));
    HistoryReader reader(session, entry, {turns_max, bytes_max, overhead, kPostgresVerifiedBytes});
    int row = 0;
    for (; any && row < rows.size() && !reader.is_enough(); ++row)
      PARLANDO_DO(reader.push({rows.number(row, 5), rows.text(row, 6)}, rows.text(row, 7)));
    const bool all = row == rows.size() && (!any || rows.number(row - 1, 5) == rows.number(0, 8));
    return reader.finish(all);
  });
}

Stored<Store::Erased> PostgresStore::erase(const std::string& session, Epoch epoch) {
  return impl_->change(
      session, 0, [&](const Seen& seen) { return decide_erase(session, seen, epoch); },
      [&](const Seen&, const Values& values, Time until) -> Stored<bool> {
        PARLANDO_TRY(const auto rows, impl_->connection->run(kErase, values, until));
        return rows.number(0, 0) == 1;
      });
}

std::string PostgresStore::why_away() const {
  return impl_->connection ? std::string() : impl_->connector.away().message;
}

void PostgresStore::tick() { impl_->look_around(Time()); }

std::int64_t PostgresStore::reconnects() const { return impl_->reconnects; }

}  // namespace parlando::context
