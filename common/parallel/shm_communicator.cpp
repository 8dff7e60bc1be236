#include "common/parallel/shm_communicator.hpp"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <climits>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <vector>

#include "common/parallel/beat_watch.hpp"

namespace parlando::parallel {

namespace {

using std::chrono::microseconds;
using std::chrono::nanoseconds;

constexpr microseconds kSpin{50}, kSpinMin{2};
/// A sleeper looks around so often even when nobody wakes it: a rank that breaks the group may die before it wakes all.
constexpr milliseconds kSleepMax{50};

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// Between processes: not FUTEX_PRIVATE.
void futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t seen, nanoseconds limit) {
  const timespec time{.tv_sec = static_cast<time_t>(limit.count() / 1000000000),
                      .tv_nsec = static_cast<long>(limit.count() % 1000000000)};
  ::syscall(SYS_futex, &word, FUTEX_WAIT, seen, &time, nullptr, 0);
}
void futex_wake_all(std::atomic<std::uint32_t>& word) {
  ::syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

int cores() {
  cpu_set_t set;
  return ::sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

float widen(float value) { return value; }
float widen(Bf16 value) { return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16); }
void narrow(float value, float& to) { to = value; }
void narrow(float value, Bf16& to) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  to.bits = static_cast<std::uint16_t>(is_nan ? (bits >> 16) | 0x40 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/// Loops of constant length are what the compiler makes vectors of.
constexpr std::size_t kBlock = 16;

template <class Value>
void add(float* sums, const Value* values, std::size_t count) {
  std::size_t i = 0;
  for (; i + kBlock <= count; i += kBlock)
    for (std::size_t k = 0; k < kBlock; ++k) sums[i + k] += widen(values[i + k]);
  for (; i < count; ++i) sums[i] += widen(values[i]);
}

}  // namespace

Result<std::unique_ptr<ShmCommunicator>> ShmCommunicator::join(std::shared_ptr<SharedRegion> region, int rank,
                                                               Options options) {
  if (rank < 0 || rank >= region->ranks())
    return fail(Errc::invalid_argument, "rank {}, expected 0 to {}", rank, region->ranks() - 1);
  if (options.beat <= milliseconds(0) || options.looks < 2)
    return fail(Errc::invalid_argument, "a look every {} ms, silent after {}, expected more than 0 and at least 2",
                options.beat.count(), options.looks);
  if (region->words(rank).joined.exchange(1) != 0)
    return fail(Errc::invalid_argument, "rank {} has joined before: a group is built anew, never rejoined", rank);
  return std::unique_ptr<ShmCommunicator>(new ShmCommunicator(std::move(region), rank, options));
}

ShmCommunicator::ShmCommunicator(std::shared_ptr<SharedRegion> region, int rank, Options options)
    : region_(std::move(region)), rank_(rank), size_(region_->ranks()), options_(options) {
  if (options_.spin < microseconds(0)) options_.spin = size_ <= cores() ? kSpin : microseconds(0);
  spin_ = options_.spin;
  call_ = region_->words(rank_).posted.load();
  region_->words(rank_).beat.store(1);
  watch_ = std::jthread([this](const std::stop_token& stop) { watch(stop); });
}

ShmCommunicator::~ShmCommunicator() {
  watch_.request_stop();
  watch_.join();
  abort(fmt::format("rank {} has left", rank_));
}

void ShmCommunicator::watch(const std::stop_token& stop) {
  std::mutex mutex;
  std::condition_variable_any stopped;
  BeatWatch others(size_, rank_, options_.looks);
  std::vector<std::uint64_t> beats(static_cast<std::size_t>(size_));
  for (std::unique_lock lock(mutex); !stop.stop_requested();) {
    region_->words(rank_).beat.fetch_add(1);
    for (int r = 0; r < size_; ++r) beats[static_cast<std::size_t>(r)] = region_->words(r).beat.load();
    if (const auto silent = others.look(beats))
      abort(
          fmt::format("rank {} has given no sign of life for {} ms", *silent, options_.looks * options_.beat.count()));
    stopped.wait_for(lock, stop, options_.beat, [] { return false; });
  }
}

void ShmCommunicator::abort(const std::string& reason) {
  auto& header = region_->header();
  std::uint32_t whole = 0;
  if (!header.broken.compare_exchange_strong(whole, 1)) return;
  const auto length = std::min(reason.size(), sizeof header.reason - 1);
  std::memcpy(header.reason, reason.data(), length);
  header.reason[length] = 0;
  header.broken.store(2);
  for (int r = 0; r < size_; ++r) futex_wake_all(region_->words(r).posted);
}

std::string ShmCommunicator::broken() const {
  const auto state = region_->header().broken.load();
  if (state == 0) return {};
  return state == 2 && region_->header().reason[0] != 0 ? region_->header().reason : "aborted";
}

Error ShmCommunicator::reason() const { return {Errc::unavailable, fmt::format("the group is broken: {}", broken())}; }

std::chrono::microseconds ShmCommunicator::spin_for() {
  constexpr int kTryAgain = 64;
  return ++waits_ % kTryAgain == 0 ? options_.spin : spin_;
}

Result<void> ShmCommunicator::wait_for(int other, std::uint32_t call, Time deadline) {
  auto& words = region_->words(other);
  // Numbers wrap round; the difference does not.
  const auto reached = [&] { return static_cast<std::int32_t>(words.posted.load() - call) >= 0; };
  if (reached()) return {};
  Time now = SteadyClock().now();
  const Time awake_until = std::min(now + spin_for(), deadline);
  for (; now < awake_until; now = SteadyClock().now())
    for (int i = 0; i < 32; ++i) {
      if (reached()) return spin_ = std::min(2 * spin_, options_.spin), Result<void>();
      relax();
    }
  // Others run where the one waited for should: waiting awake keeps it from that.
  spin_ = std::max(spin_ / 2, std::min(kSpinMin, options_.spin));
  for (; !reached(); now = SteadyClock().now()) {
    if (region_->header().broken.load() != 0) return tl::make_unexpected(reason());
    if (now >= deadline) {
      const auto text = fmt::format("rank {} waited for call {} of rank {} until its deadline", rank_, call, other);
      abort(text);
      return fail(Errc::deadline_exceeded, "{}", text);
    }
    words.sleepers.fetch_add(1);
    const auto seen = words.posted.load();
    if (static_cast<std::int32_t>(seen - call) < 0 && region_->header().broken.load() == 0)
      futex_wait(words.posted, seen, std::min<nanoseconds>(deadline - now, kSleepMax));
    words.sleepers.fetch_sub(1);
  }
  return {};
}

Result<void> ShmCommunicator::match(int other, std::uint32_t call) {
  const auto own = region_->words(rank_).calls[call % 2], theirs = region_->words(other).calls[call % 2];
  if (own == theirs) return {};
  const auto told = [](const RankWords::Call& c) {
    constexpr const char* kNames[] = {"?", "all_reduce (float)", "all_reduce (bfloat16)", "all_gather", "broadcast"};
    return fmt::format("{} of {} bytes, root {},", kNames[std::min<std::uint32_t>(c.kind, 4)], c.bytes, c.root);
  };
  const auto text =
      fmt::format("call {} is {} at rank {}, but {} at rank {}", call, told(own), rank_, told(theirs), other);
  abort(text);
  return fail(Errc::invalid_argument, "{}", text);
}

Result<void> ShmCommunicator::begin(std::span<const std::byte> piece, Kind kind, int root, std::size_t whole,
                                    Time deadline) {
  if (region_->header().broken.load() != 0) return tl::make_unexpected(reason());
  for (int r = 0; r < size_; ++r) {
    PARLANDO_DO(wait_for(r, call_, deadline));
    PARLANDO_DO(match(r, call_));  // nobody overwrites it before this rank has posted the next one
  }
  ++call_;
  if (!piece.empty()) std::memcpy(region_->slot(rank_, call_), piece.data(), piece.size());
  auto& words = region_->words(rank_);
  words.calls[call_ % 2] = {
      .kind = static_cast<std::uint32_t>(kind), .root = static_cast<std::uint32_t>(root), .bytes = whole};
  words.posted.store(call_);
  if (words.sleepers.load() != 0) futex_wake_all(words.posted);
  return {};
}

Result<const std::byte*> ShmCommunicator::read(int other, Time deadline) {
  PARLANDO_DO(wait_for(other, call_, deadline));
  PARLANDO_DO(match(other, call_));
  return region_->slot(other, call_);
}

template <class Value>
Result<void> ShmCommunicator::reduce(std::span<Value> values, Kind kind, Time deadline) {
  const auto step = region_->slot_bytes() / sizeof(Value);
  // Sums of one tile stay in the first-level cache while the ranks are added one after the other.
  constexpr std::size_t kTile = 1024;
  alignas(64) float sums[kTile];
  std::array<const Value*, SharedRegion::kRanksMax> parts;
  for (std::size_t at = 0; at < values.size(); at += step) {
    const auto piece = values.subspan(at, std::min(step, values.size() - at));
    PARLANDO_DO(begin(std::as_bytes(piece), kind, 0, values.size_bytes(), deadline));
    for (int r = 0; r < size_; ++r) {
      PARLANDO_TRY(const auto* slot, read(r, deadline));
      parts[static_cast<std::size_t>(r)] = reinterpret_cast<const Value*>(slot);
    }
    for (std::size_t from = 0; from < piece.size(); from += kTile) {
      const auto count = std::min(kTile, piece.size() - from);
      std::fill_n(sums, count, 0.0f);
      for (int r = 0; r < size_; ++r) add(sums, parts[static_cast<std::size_t>(r)] + from, count);
      for (std::size_t i = 0; i < count; ++i) narrow(sums[i], piece[from + i]);
    }
  }
  return {};
}

Result<void> ShmCommunicator::all_reduce(std::span<float> values, Time deadline) {
  return reduce(values, Kind::all_reduce_f32, deadline);
}

Result<void> ShmCommunicator::all_reduce(std::span<Bf16> values, Time deadline) {
  return reduce(values, Kind::all_reduce_bf16, deadline);
}

Result<void> ShmCommunicator::all_gather(std::span<const std::byte> own, std::span<std::byte> all, Time deadline) {
  if (all.size() != own.size() * static_cast<std::size_t>(size_))
    return fail(Errc::invalid_argument, "all_gather: room for {} bytes, expected {} x {}", all.size(), size_,
                own.size());
  for (std::size_t at = 0; at < own.size(); at += region_->slot_bytes()) {
    const auto piece = own.subspan(at, std::min(region_->slot_bytes(), own.size() - at));
    PARLANDO_DO(begin(piece, Kind::all_gather, 0, own.size(), deadline));
    for (int r = 0; r < size_; ++r) {
      PARLANDO_TRY(const auto* slot, read(r, deadline));
      std::memcpy(all.data() + static_cast<std::size_t>(r) * own.size() + at, slot, piece.size());
    }
  }
  return {};
}

Result<void> ShmCommunicator::broadcast(std::span<std::byte> bytes, int root, Time deadline) {
  if (root < 0 || root >= size_)
    return fail(Errc::invalid_argument, "broadcast: root {}, expected 0 to {}", root, size_ - 1);
  for (std::size_t at = 0; at < bytes.size(); at += region_->slot_bytes()) {
    const auto piece = bytes.subspan(at, std::min(region_->slot_bytes(), bytes.size() - at));
    const bool own = root == rank_;
    PARLANDO_DO(begin(own ? piece : std::span<std::byte>(), Kind::broadcast, root, bytes.size(), deadline));
    if (own) continue;
    PARLANDO_TRY(const auto* slot, read(root, deadline));
    std::memcpy(piece.data(), slot, piece.size());
  }
  return {};
}

}  // namespace parlando::parallel
