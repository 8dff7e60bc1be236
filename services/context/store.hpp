#pragma once
/// Durable store of committed turns (SQLite, write-ahead log, full synchronisation). Writing a turn again is a no-op; a digest chain per
/// session shows tampering and torn writes.
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::context {

struct StoredTurn {
  std::int64_t turn;
  std::string record, digest;
};

class Store {
 public:
  /// Opens or creates. @param file  ":memory:" keeps nothing. @error Errc::io naming the file and SQLite's reason
  static Result<std::unique_ptr<Store>> open(const std::filesystem::path& file);
  ~Store();
  /// Raises the session's epoch by one. @return the new epoch
  Result<std::uint32_t> adopt(const std::string& session);
  /// Makes a turn durable. @return its digest. @error Errc::stale_epoch when another owner has adopted the session since;
  /// Errc::invalid_argument when the turn exists with other content
  Result<std::string> commit(const std::string& session, std::uint32_t epoch, std::int64_t turn, const std::string& record);
  /// Turns in order. @error Errc::bad_format when the digest chain is broken, naming the turn
  Result<std::vector<StoredTurn>> history(const std::string& session, std::int64_t turns_max);

 private:
  Store() = default;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace parlando::context
