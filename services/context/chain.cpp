#include "services/context/chain.hpp"

#include <openssl/evp.h>

#include <algorithm>
#include <charconv>
#include <limits>

#include "common/base/hex.hpp"

namespace parlando::context {

namespace {

constexpr std::string_view kErased = "erased ";  // no digest begins so

/// SHA-256 of the parts one behind the other, in hexadecimal digits.
Stored<std::string> sha256(std::initializer_list<std::string_view> parts) {
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
  unsigned char out[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  bool good = context != nullptr && EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1;
  for (const auto part : parts) good = good && EVP_DigestUpdate(context.get(), part.data(), part.size()) == 1;
  good = good && EVP_DigestFinal_ex(context.get(), out, &size) == 1;
  if (!good) return fail(Errc::internal, "SHA-256 failed");
  return to_hex({out, size});
}

bool same(const Entry& entry, Epoch epoch) { return static_cast<std::uint64_t>(entry.epoch) == epoch.value; }

bool is_erased(const Entry& entry) { return entry.digest.starts_with(kErased); }

std::int64_t erased_turns(const Entry& entry) {
  std::int64_t out = 0;
  std::from_chars(entry.digest.data() + kErased.size(), entry.digest.data() + entry.digest.size(), out);
  return out;
}

StoreError stale(const std::string& session, const Entry& entry, Epoch seen) {
  const auto text =
      entry.epoch == 0 ? fmt::format("session '{}' was never claimed, its epoch is 0, not {}", session, seen.value)
      : is_erased(entry)
          ? fmt::format("session '{}' was erased under epoch {}, this is {}", session, entry.epoch - 1, seen.value)
          : fmt::format("session '{}' is at epoch {}, not {}", session, entry.epoch, seen.value);
  StoreError error(Errc::stale_epoch, text);
  error.epoch.value = static_cast<std::uint64_t>(entry.epoch);
  return error;
}

/// The entry that an owner works under.
Stored<Entry> owned(const std::string& session, const Seen& seen, Epoch epoch) {
  PARLANDO_TRY(auto entry, checked(session, seen));
  if (entry.epoch == 0 || !same(entry, epoch) || is_erased(entry))
    return tl::make_unexpected(stale(session, entry, epoch));
  return entry;
}

Stored<SealedEntry> sealed(const std::string& session, Entry entry) {
  PARLANDO_TRY(auto seal, seal_of(session, entry));
  return SealedEntry{std::move(entry), std::move(seal)};
}

}  // namespace

Stored<std::string> seal_of(std::string_view session, const Entry& e) {
  return sha256({session, "\n", std::to_string(e.epoch), "\n", e.owner, "\n", std::to_string(e.turns), "\n", e.digest});
}

Stored<std::string> digest_of(std::string_view before, std::int64_t turn, std::string_view record) {
  return sha256({before, "\n", std::to_string(turn), "\n", record});
}

Stored<Entry> checked(const std::string& session, const Seen& seen) {
  if (!seen.entry) {
    if (seen.has_turns) return fail(Errc::bad_format, "session '{}' has turns and no entry", session);
    return Entry{};
  }
  PARLANDO_TRY(const auto seal, seal_of(session, *seen.entry));
  if (seal != seen.entry->seal)
    return fail(Errc::bad_format, "the entry of session '{}' does not fit its seal", session);
  return Entry(*seen.entry);
}

Stored<Decision<Store::Claimed>> decide_claim(const std::string& session, const Seen& seen, Epoch expected,
                                              const std::string& owner) {
  PARLANDO_TRY(auto entry, checked(session, seen));
  const Epoch next{expected.value + 1};
  if (same(entry, next) && entry.owner == owner && !owner.empty()) return Decision<Store::Claimed>{{next, owner, true}};
  if (!same(entry, expected)) return tl::make_unexpected(stale(session, entry, expected));
  if (is_erased(entry)) return fail(Errc::not_found, "session '{}' was erased", session);
  if (entry.epoch == std::numeric_limits<std::int64_t>::max())
    return fail(Errc::unsupported, "session '{}' has used up its epochs", session);
  ++entry.epoch;
  auto former = std::exchange(entry.owner, owner);
  PARLANDO_TRY(auto written, sealed(session, std::move(entry)));
  return Decision<Store::Claimed>{{next, std::move(former), false}, std::move(written)};
}

Stored<void> decide_renew(const std::string& session, const Seen& seen, Epoch epoch) {
  PARLANDO_DO(owned(session, seen, epoch));
  return {};
}

Stored<Decision<Store::Committed>> decide_commit(const std::string& session, const Seen& seen, Epoch epoch,
                                                 std::int64_t turn, const std::string& record) {
  PARLANDO_TRY(auto entry, owned(session, seen, epoch));
  // The last turn belongs to the entry, or nothing may be written behind it.
  if (entry.turns > 0 && seen.last_digest != entry.digest)
    return fail(Errc::bad_format, "turn {} of session '{}' is not the one that was committed", entry.turns, session);
  if (turn <= entry.turns && seen.turn) {
    if (seen.turn->record != record)
      return fail(Errc::invalid_argument, "turn {} of session '{}' is committed with another record", turn, session);
    return Decision<Store::Committed>{{seen.turn_digest, true}};
  }
  if (turn != entry.turns + 1)
    return fail(Errc::invalid_argument, "turn {} of session '{}' does not follow turn {}", turn, session, entry.turns);
  if (seen.turn)
    return fail(Errc::bad_format, "turn {} of session '{}' is there before it was committed", turn, session);
  PARLANDO_TRY(auto digest, digest_of(entry.digest, turn, record));
  entry.turns = turn;
  entry.digest = digest;
  PARLANDO_TRY(auto written, sealed(session, std::move(entry)));
  return Decision<Store::Committed>{{digest, false}, std::move(written), digest};
}

Stored<Decision<Store::Erased>> decide_erase(const std::string& session, const Seen& seen, Epoch epoch) {
  PARLANDO_TRY(auto entry, checked(session, seen));
  if (is_erased(entry) && same(entry, Epoch{epoch.value + 1}))
    return Decision<Store::Erased>{{erased_turns(entry), true}};
  PARLANDO_TRY(entry, owned(session, seen, epoch));
  if (entry.epoch == std::numeric_limits<std::int64_t>::max())
    return fail(Errc::unsupported, "session '{}' has used up its epochs", session);
  PARLANDO_TRY(auto written, sealed(session, {entry.epoch + 1, {}, 0, fmt::format("{}{}", kErased, entry.turns)}));
  return Decision<Store::Erased>{{entry.turns, false}, std::move(written)};
}

HistoryReader::HistoryReader(std::string session, const Entry& entry, Limits limits)
    : session_(std::move(session)), limits_(limits), turns_(entry.turns), expected_(entry.digest) {}

tl::unexpected<Error> HistoryReader::broken(std::int64_t turn) const {
  return fail(Errc::bad_format, "turn {} of session '{}' does not fit its digest", turn, session_);
}

Stored<void> HistoryReader::settle(std::string_view before) {
  PARLANDO_TRY(const auto digest, digest_of(before, held_->turn, held_->record));
  if (digest != expected_) return broken(held_->turn);
  const auto size = held_->record.size() + limits_.overhead;
  full_ = full_ || static_cast<std::int64_t>(latest_.size()) >= limits_.turns_max || bytes_ + size > limits_.bytes_max;
  if (full_) {
    verified_ += size;
  } else {
    bytes_ += size;
    latest_.push_back(*std::move(held_));
  }
  held_.reset();
  return {};
}

Stored<void> HistoryReader::push(StoredTurn turn, std::string digest) {
  if (held_) {
    PARLANDO_DO(settle(digest));
    expected_ = std::move(digest);
  } else if (turn.turn != turns_ || digest != expected_) {
    return broken(turn.turn);
  }
  held_ = std::move(turn);
  return {};
}

Stored<Store::Past> HistoryReader::finish(bool to_the_first) {
  if (!held_ && turns_ > 0) return broken(turns_);
  if (held_ && to_the_first) PARLANDO_DO(settle(""));
  if (latest_.empty() && turns_ > 0 && limits_.turns_max > 0)
    return fail(Errc::bad_format, "turn {} of session '{}' has more than {} bytes", turns_, session_,
                limits_.bytes_max);
  std::reverse(latest_.begin(), latest_.end());
  return Store::Past{turns_, std::move(latest_)};
}

}  // namespace parlando::context
