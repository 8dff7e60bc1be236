#pragma once
/// Durable store of sessions and their committed turns: SQLite, write-ahead log, full synchronisation. Any number of
/// processes may work on one file; each operation is one transaction, and repeating one that was done changes nothing.
/// A digest chain runs through a session's turns, and the session's entry holds its end under a seal of its own: bytes
/// that changed on the disk refuse that session with Errc::bad_format, never shorten its history; other sessions are
/// served. One thread at a time. An operation waits at most `Options::busy` for another process.
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "common/base/clock.hpp"
#include "common/base/ids.hpp"
#include "common/base/result.hpp"

namespace parlando::context {

/// Errc::unavailable (another process holds the file) and Errc::io (disk full, read-only, unreadable) come with a retry
/// hint; the next try works once the cause is gone. Errc::stale_epoch comes with the true epoch.
struct StoreError : Error {
  StoreError(Error error) : Error(std::move(error)) {}
  StoreError(Errc code, std::string message) : Error{code, std::move(message)} {}
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
  struct Options {
    milliseconds busy{
        200};  ///< how long another process is waited for: far below the time in which progress is expected
    std::int64_t pages_max = 0;  ///< of 4 KiB in the file; 0: as the disk allows
  };
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

  /// Opens or creates, and brings older schemas up to date. @param file  ":memory:" keeps nothing
  /// @error Errc::io naming the file and SQLite's reason, Errc::bad_format, Errc::unsupported for the schema of a later
  /// build
  static Result<std::unique_ptr<Store>> open(const std::filesystem::path& file, Options options);
  static Result<std::unique_ptr<Store>> open(const std::filesystem::path& file) { return open(file, Options{}); }
  ~Store();

  /// Compare-and-set: the session's epoch must be `expected` (0: none yet) and becomes one higher. The same owner
  /// repeating a claim that was granted gets the same epoch again. @error Errc::stale_epoch
  Stored<Claimed> claim(const std::string& session, Epoch expected, const std::string& owner);
  /// Whether the session is still owned under this epoch. @error Errc::stale_epoch
  Stored<void> renew(const std::string& session, Epoch epoch);
  /// Makes the turn behind the last one durable. A turn that is there with the same record is a repetition.
  /// @error Errc::stale_epoch; Errc::invalid_argument for a gap and for a turn that is there with another record
  Stored<Committed> commit(const std::string& session, Epoch epoch, std::int64_t turn, const std::string& record);
  /// The latest turns, as many as both limits allow. @param bytes_max  of records, counting `overhead` for each
  /// @error Errc::bad_format when something does not fit its digest: of these turns, or of any in the 16 MiB before
  /// them
  Stored<Past> history(const std::string& session, std::int64_t turns_max, std::size_t bytes_max, std::size_t overhead);

 private:
  Store() = default;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace parlando::context
