#pragma once
/// The store in one file, for one machine: SQLite, write-ahead log, full synchronisation; what is erased is overwritten
/// with zeros. Any number of processes may work on the file. An operation waits at most `Options::busy` for another
/// one.
#include <filesystem>

#include "services/context/store.hpp"

namespace parlando::context {

class SqliteStore final : public Store {
 public:
  struct Options {
    milliseconds busy{
        200};  ///< how long another process is waited for: far below the time in which progress is expected
    std::int64_t pages_max = 0;  ///< of 4 KiB in the file; 0: as the disk allows
  };
  /// Opens or creates, and brings older schemas up to date. @param file  ":memory:" keeps nothing
  /// @error Errc::io naming the file and SQLite's reason, Errc::bad_format, Errc::unsupported for the schema of a later
  /// build
  static Result<std::unique_ptr<Store>> open(const std::filesystem::path& file, Options options);
  static Result<std::unique_ptr<Store>> open(const std::filesystem::path& file) { return open(file, Options{}); }
  ~SqliteStore() override;

  Stored<Claimed> claim(const std::string& session, Epoch expected, const std::string& owner) override;
  Stored<void> renew(const std::string& session, Epoch epoch) override;
  Stored<Committed> commit(const std::string& session, Epoch epoch, std::int64_t turn,
                           const std::string& record) override;
  Stored<Past> history(const std::string& session, std::int64_t turns_max, std::size_t bytes_max,
                       std::size_t overhead) override;
  Stored<Erased> erase(const std::string& session, Epoch epoch) override;

 private:
  SqliteStore() = default;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace parlando::context
