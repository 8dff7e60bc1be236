#pragma once
/// Turns that wait for the store, as lines of JSON in a file: {session, epoch, turn, record}. For the embedded engine,
/// whose store lives and dies with it. Lines are only appended; the file is emptied when nothing waits any more.
/// Writing a turn again that is stored already does no harm, so a line too many costs nothing. A plain class.
#include <string>
#include <vector>

#include "common/base/ids.hpp"
#include "common/base/result.hpp"

namespace parlando::controller {

struct JournalEntry {
  SessionId session;
  Epoch epoch;
  std::int64_t turn = 0;
  std::string record;  ///< JSON
};

class Journal {
 public:
  /// @param file  empty: nothing is kept
  explicit Journal(std::string file) : file_(std::move(file)) {}
  bool is_kept() const { return !file_.empty(); }
  /// What a former process left. A last line that was cut off is left out. @error Errc::io, Errc::bad_format naming the
  /// line
  Result<std::vector<JournalEntry>> load();
  /// On the disk when it returns. @error Errc::io
  Result<void> append(const JournalEntry& entry);
  /// @error Errc::io
  Result<void> clear();

 private:
  std::string file_;
  bool empty_ = false;  ///< known to be
};

}  // namespace parlando::controller
