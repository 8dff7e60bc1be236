#pragma once
/// Durable store of sessions and their committed turns. Two keep it: SQLite in a file (`sqlite_store.hpp`) and
/// PostgreSQL (`postgres_store.hpp`); what they answer is the same, and one contract test holds both to it. Any number
/// of processes may work on one store; each operation is done wholly or not at all, and repeating one that was done
/// changes nothing. A digest chain runs through a session's turns, and the session's entry holds its end under a seal
/// of its own: bytes that changed in the store refuse that session with Errc::bad_format, never shorten its history;
/// other sessions are served. One thread at a time. An operation ends after a bounded time, far below the one in which
/// progress is expected of a service.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/base/clock.hpp"
#include "common/base/ids.hpp"
#include "common/base/result.hpp"

namespace parlando::context {

/// Errc::unavailable (another process holds the file, the server is away) and Errc::io (disk full, read-only,
/// unreadable) come with a retry hint; the next try works once the cause is gone. Errc::stale_epoch comes with the true
/// epoch.
struct StoreError : Error {
  StoreError(Error error) : Error(std::move(error)) {}
  StoreError(Errc code, std::string message) : Error{code, std::move(message)} {}
  StoreError(Errc code, std::string message, milliseconds again) : Error{code, std::move(message)}, retry(again) {}
  Epoch epoch;            ///< of stale_epoch: what is stored
  milliseconds retry{0};  ///< when trying again makes sense; 0: no hint
};
template <class T>
using Stored = tl::expected<T, StoreError>;

struct StoredTurn {
  std::int64_t turn = 0;
  std::string record;
};

class Store {
 public:
  struct Claimed {
    Epoch epoch;
    std::string former;     ///< owner before, empty when there was none
    bool repeated = false;  ///< it had been granted already; nothing was written
  };
  struct Committed {
    std::string digest;
    bool repeated = false;
  };
  struct Past {
    std::int64_t turns = 0;          ///< number of the last committed turn
    std::vector<StoredTurn> latest;  ///< oldest first
  };
  struct Erased {
    std::int64_t turns = 0;  ///< number of the last one that was removed; a repetition tells the same
    bool repeated = false;
  };

  virtual ~Store() = default;

  /// Compare-and-set: the session's epoch must be `expected` (0: none yet) and becomes one higher. The same owner
  /// repeating a claim that was granted gets the same epoch again. @error Errc::stale_epoch; Errc::not_found for a
  /// session that was erased
  virtual Stored<Claimed> claim(const std::string& session, Epoch expected, const std::string& owner) = 0;
  /// Whether the session is still owned under this epoch. @error Errc::stale_epoch
  virtual Stored<void> renew(const std::string& session, Epoch epoch) = 0;
  /// Makes the turn behind the last one durable. A turn that is there with the same record is a repetition.
  /// @error Errc::stale_epoch; Errc::invalid_argument for a gap and for a turn that is there with another record
  virtual Stored<Committed> commit(const std::string& session, Epoch epoch, std::int64_t turn,
                                   const std::string& record) = 0;
  /// The latest turns, as many as both limits allow. @param bytes_max  of records, counting `overhead` for each
  /// @error Errc::bad_format when something does not fit its digest: of these turns, or of those before them as far as
  /// they are verified (16 MiB by SQLite, 2 MiB by PostgreSQL, which has to send them)
  virtual Stored<Past> history(const std::string& session, std::int64_t turns_max, std::size_t bytes_max,
                               std::size_t overhead) = 0;
  /// Removes all turns for good. What stays is the session's name with an epoch one higher and no owner: nobody can
  /// claim, renew or commit any more, its history is empty, and its name is never used again. It needs no turn that can
  /// be read. @error Errc::stale_epoch; Errc::bad_format when it cannot be told who owns the session
  virtual Stored<Erased> erase(const std::string& session, Epoch epoch) = 0;

  /// Empty while requests can be served, else what is in the way.
  virtual std::string why_away() const { return {}; }
  /// Looks for what has happened while nobody asked; called about once a second, and does not wait.
  virtual void tick() {}
  /// Connections made anew after one was lost.
  virtual std::int64_t reconnects() const { return 0; }
};

}  // namespace parlando::context
