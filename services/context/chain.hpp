#pragma once
/// The rules of every store, without a database: who may claim, commit and erase, and how the digests of a session
/// follow one another. A store reads what a rule asks for at one moment, and writes what it decides only if nothing has
/// changed since.
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "services/context/store.hpp"

namespace parlando::context {

/// What a session has besides its turns.
struct Entry {
  std::int64_t epoch = 0;  ///< 0: never claimed
  std::string owner;
  std::int64_t turns = 0;  ///< number of the last one
  std::string digest;      ///< of the last turn; "erased N" once all up to turn N were removed
};
/// The digest of an entry, stored beside it. @error Errc::internal
Stored<std::string> seal_of(std::string_view session, const Entry& entry);
/// The digest of a turn behind the one before (empty: the first). @error Errc::internal
Stored<std::string> digest_of(std::string_view before, std::int64_t turn, std::string_view record);

/// An entry as it was read.
struct SealedEntry : Entry {
  std::string seal;
};
/// What a store holds of a session at one moment, as far as a rule needs it.
struct Seen {
  std::optional<SealedEntry> entry;
  bool has_turns = false;                  ///< asked for when there is no entry
  std::optional<std::string> last_digest;  ///< stored with the entry's last turn
  std::optional<StoredTurn> turn;          ///< the one that is asked about
  std::string turn_digest;                 ///< stored with it
};

/// What a rule decides: the answer, and what to write before it is told.
template <class T>
struct Decision {
  T answer;
  std::optional<SealedEntry> entry = {};  ///< in place of the one that was seen
  std::string turn_digest = {};           ///< of the turn to be added; empty: none is
};

/// The entry, or an empty one. @error Errc::bad_format: not what was written, or turns without an entry
Stored<Entry> checked(const std::string& session, const Seen& seen);

Stored<Decision<Store::Claimed>> decide_claim(const std::string& session, const Seen& seen, Epoch expected,
                                              const std::string& owner);
Stored<void> decide_renew(const std::string& session, const Seen& seen, Epoch epoch);
Stored<Decision<Store::Committed>> decide_commit(const std::string& session, const Seen& seen, Epoch epoch,
                                                 std::int64_t turn, const std::string& record);
Stored<Decision<Store::Erased>> decide_erase(const std::string& session, const Seen& seen, Epoch epoch);

/// A history, verified from its end to its start: each turn must have the digest that what follows it names, and is
/// known to be whole once the one before it has told its own.
class HistoryReader {
 public:
  struct Limits {
    std::int64_t turns_max = 0;
    std::size_t bytes_max = 0, overhead = 0;
    std::size_t verified_max = 0;  ///< bytes of turns before those that are told
  };
  HistoryReader(std::string session, const Entry& entry, Limits limits);
  /// The next older turn with the digest stored beside it. @error Errc::bad_format
  Stored<void> push(StoredTurn turn, std::string digest);
  /// No older ones are needed.
  bool is_enough() const { return verified_ >= limits_.verified_max; }
  /// @param to_the_first  all turns were pushed
  Stored<Store::Past> finish(bool to_the_first);

 private:
  Stored<void> settle(std::string_view before);
  tl::unexpected<Error> broken(std::int64_t turn) const;

  std::string session_;
  Limits limits_;
  std::int64_t turns_;
  std::string expected_;
  std::optional<StoredTurn> held_;
  bool full_ = false;
  std::size_t bytes_ = 0, verified_ = 0;
  std::vector<StoredTurn> latest_;  ///< newest first
};

}  // namespace parlando::context
