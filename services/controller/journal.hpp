#pragma once
/// Turns that wait for the store, as lines of JSON in a file: {session, epoch, turn, record}. For the embedded engine,
/// whose store lives and dies with it. Lines are appended; the file is emptied when nothing waits any more, and written
/// anew without what has been stored when that is most of it. Writing a turn again that is stored already does no harm,
/// so a line too many costs nothing. A plain class.
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
  /// So many lines that it is worth while to keep only those of so many turns that wait.
  bool is_long(std::size_t waiting) const { return is_kept() && lines_ >= kLinesMin && lines_ / 4 >= waiting; }
  /// Only these wait. The file is replaced as a whole. @error Errc::io: it is what it was
  Result<void> keep(const std::vector<JournalEntry>& waiting);

 private:
  static constexpr std::size_t kLinesMin = 64;
  std::string file_;
  std::size_t lines_ = 0;
  bool empty_ = false;  ///< known to be
};

}  // namespace parlando::controller
