#pragma once
/// The store of a cluster: PostgreSQL 12 or later through libpq. Any number of processes on any machines may work on
/// one database. An operation is one statement that reads and one that writes only what has not changed since (the
/// epoch's compare-and-set is a WHERE), so that no transaction and no lock outlives a process or a connection that
/// dies. Connections are made on a thread of their own; without one an operation answers Errc::unavailable at once, or
/// just behind a loss after at most `Options::fresh`. An operation ends after `Options::operation`, done or not; then,
/// and when the connection breaks, it may have been done, and is repeated by its caller.
#include "services/context/store.hpp"

namespace parlando::context {

class PostgresStore final : public Store {
 public:
  struct Options {
    milliseconds operation{1000};  ///< that one may take: below the time in which progress is expected
    milliseconds fresh{250};       ///< behind a loss, in which a connection is waited for
    milliseconds start{3000};      ///< that `open` waits for the first attempt to connect
    milliseconds pause_first{100}, pause_max{5000};  ///< between attempts; they double
  };
  /// Makes the tables in an empty database. A server that is away or refuses is no error: the store is opened and
  /// connects once it can. @param conninfo  `postgresql://…` or words, as libpq reads them
  /// @error Errc::invalid_argument for a text that is neither, Errc::unsupported for the tables of a later build or a
  /// server that is too old
  static Result<std::unique_ptr<Store>> open(const std::string& conninfo, Options options);
  static Result<std::unique_ptr<Store>> open(const std::string& conninfo) { return open(conninfo, Options{}); }
  ~PostgresStore() override;

  Stored<Claimed> claim(const std::string& session, Epoch expected, const std::string& owner) override;
  Stored<void> renew(const std::string& session, Epoch epoch) override;
  Stored<Committed> commit(const std::string& session, Epoch epoch, std::int64_t turn,
                           const std::string& record) override;
  Stored<Past> history(const std::string& session, std::int64_t turns_max, std::size_t bytes_max,
                       std::size_t overhead) override;
  Stored<Erased> erase(const std::string& session, Epoch epoch) override;
  std::string why_away() const override;
  void tick() override;
  std::int64_t reconnects() const override;

 private:
  PostgresStore() = default;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace parlando::context
