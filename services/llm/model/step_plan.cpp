#include "services/llm/model/step_plan.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

namespace parlando::llm {

namespace {
static_assert(std::endian::native == std::endian::little, "plans are written as they lie in memory");
constexpr std::size_t kHeadBytes = 2 * 4 + 8 + 6 * 4, kPieceBytes = 16, kCopyBytes = 8, kDrawBytes = 64;
constexpr std::size_t kAware = 10;  // ids that a repetition-aware sampling looks at
enum Flag : std::uint32_t { kTopK = 1, kTopP = 2, kPenalty = 4, kRepetition = 8, kAllFlags = 15 };

std::int64_t blocks_of(std::int64_t tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }

struct Writer {
  std::vector<std::byte> out;
  template <class T>
  void put(T value) {
    const auto at = out.size();
    out.resize(at + sizeof value);
    std::memcpy(out.data() + at, &value, sizeof value);
  }
};
/// Its caller has compared the size with what will be read.
struct Reader {
  const std::byte* at;
  template <class T>
  void get(T& value) {
    std::memcpy(&value, at, sizeof value);
    at += sizeof value;
  }
};

Result<Sampling> sampling_of(Reader& in) {
  Sampling out;
  std::int64_t top_k;
  double top_p, penalty;
  std::uint32_t flags, zeros;
  in.get(out.seed), in.get(out.temperature), in.get(top_k), in.get(top_p), in.get(penalty), in.get(flags),
      in.get(zeros);
  const auto is_zero = [](double x) { return std::bit_cast<std::uint64_t>(x) == 0; };
  if ((flags & ~std::uint32_t{kAllFlags}) != 0 || zeros != 0)
    return fail(Errc::bad_format, "a plan's draw has flags {} and {}, expected 0…15 and 0", flags, zeros);
  if ((!(flags & kTopK) && top_k != 0) || (!(flags & kTopP) && !is_zero(top_p)) ||
      (!(flags & kPenalty) && !is_zero(penalty)))
    return fail(Errc::bad_format, "a plan's draw has values that its flags {} do not name", flags);
  out.top_k = flags & kTopK ? std::optional(top_k) : std::nullopt;
  out.top_p = flags & kTopP ? std::optional(top_p) : std::nullopt;
  out.repetition_penalty = flags & kPenalty ? std::optional(penalty) : std::nullopt;
  out.repetition_aware = (flags & kRepetition) != 0;
  if (const auto problem = out.problem()) return fail(Errc::bad_format, "a plan's draw: {}", problem->message);
  return out;
}

/// What holds of every plan, whatever the model.
Result<void> consistent(const StepPlan& p) {
  std::int64_t rows = 0, entries = 0, history = 0;
  for (const auto& piece : p.pieces) {
    constexpr std::int64_t kPositionsMax = std::int64_t{1} << 31;
    if (piece.count < 1 || piece.first < 0 || piece.first >= kPositionsMax)
      return fail(Errc::bad_format, "a plan's piece has {} tokens at {}, expected at least 1 at 0…2³¹", piece.count,
                  piece.first);
    if (piece.blocks != blocks_of(piece.first + piece.count))
      return fail(Errc::bad_format, "a plan's piece of {} tokens at {} has {} blocks, expected {}", piece.count,
                  piece.first, piece.blocks, blocks_of(piece.first + piece.count));
    rows += piece.count, entries += piece.blocks;
  }
  if (rows != static_cast<std::int64_t>(p.ids.size()) || entries != static_cast<std::int64_t>(p.tables.size()))
    return fail(Errc::bad_format, "a plan's pieces have {} tokens and {} blocks, the plan has {} and {}", rows, entries,
                p.ids.size(), p.tables.size());
  for (const auto& draw : p.draws) {
    if (draw.row < 0 || draw.row >= rows)
      return fail(Errc::bad_format, "a plan draws behind row {}, it has {}", draw.row, rows);
    if (draw.history < 0) return fail(Errc::bad_format, "a plan's draw has a history of {} ids", draw.history);
    history += draw.history;
  }
  if (history != static_cast<std::int64_t>(p.histories.size()))
    return fail(Errc::bad_format, "a plan's draws have histories of {} ids, the plan has {}", history,
                p.histories.size());
  return {};
}
}  // namespace

void StepPlan::add(std::span<const std::int32_t> tokens, std::int64_t first, std::span<const std::int32_t> blocks) {
  const auto count = static_cast<std::int32_t>(tokens.size());
  const auto needed = static_cast<std::size_t>(blocks_of(first + count));
  ids.insert(ids.end(), tokens.begin(), tokens.end());
  tables.insert(tables.end(), blocks.begin(), blocks.begin() + static_cast<std::ptrdiff_t>(needed));
  pieces.push_back({first, count, static_cast<std::int32_t>(needed)});
}

void StepPlan::draw(std::span<const std::int32_t> history, const Sampling& sampling, std::uint64_t position) {
  const auto seen = sampling.repetition_penalty ? history.size()
                    : sampling.repetition_aware ? std::min(history.size(), kAware)
                                                : 0;
  const auto last = history.last(seen);
  draws.push_back({static_cast<std::int32_t>(ids.size()) - 1, static_cast<std::int32_t>(seen), position, sampling});
  histories.insert(histories.end(), last.begin(), last.end());
}

std::vector<std::byte> StepPlan::encode() const {
  Writer w;
  w.put(kMagic), w.put(kVersion), w.put(step);
  for (const auto count : {ids.size(), pieces.size(), tables.size(), copies.size(), draws.size(), histories.size()})
    w.put(static_cast<std::uint32_t>(count));
  for (const auto id : ids) w.put(id);
  for (const auto& piece : pieces) w.put(piece.first), w.put(piece.count), w.put(piece.blocks);
  for (const auto block : tables) w.put(block);
  for (const auto& copy : copies) w.put(copy.from), w.put(copy.to);
  for (const auto& d : draws) {
    const auto& s = d.sampling;
    w.put(d.row), w.put(d.history), w.put(d.position), w.put(s.seed), w.put(s.temperature);
    w.put(std::int64_t{s.top_k.value_or(0)}), w.put(s.top_p.value_or(0.0)), w.put(s.repetition_penalty.value_or(0.0));
    w.put((s.top_k ? kTopK : 0u) | (s.top_p ? kTopP : 0u) | (s.repetition_penalty ? kPenalty : 0u) |
          (s.repetition_aware ? kRepetition : 0u));
    w.put(std::uint32_t{0});
  }
  for (const auto id : histories) w.put(id);
  return std::move(w.out);
}

Result<StepPlan> StepPlan::decode(std::span<const std::byte> bytes) {
  if (bytes.size() < kHeadBytes || bytes.size() > kBytesMax)
    return fail(Errc::bad_format, "a plan has {} bytes, expected {}…{}", bytes.size(), kHeadBytes, kBytesMax);
  Reader in{bytes.data()};
  StepPlan out;
  std::uint32_t magic, version;
  std::array<std::uint32_t, 6> counts;
  in.get(magic), in.get(version), in.get(out.step);
  if (magic != kMagic || version != kVersion)
    return fail(Errc::bad_format, "a plan begins with {:#x} and version {}, expected {:#x} and {}", magic, version,
                kMagic, kVersion);
  std::uint64_t size = kHeadBytes;
  constexpr std::size_t kSizes[] = {4, kPieceBytes, 4, kCopyBytes, kDrawBytes, 4};
  for (std::size_t i = 0; i < counts.size(); ++i) {
    in.get(counts[i]);
    size += std::uint64_t{counts[i]} * kSizes[i];
  }
  if (size != bytes.size())
    return fail(Errc::bad_format, "a plan has {} bytes, its counts make {}", bytes.size(), size);
  out.ids.resize(counts[0]), out.pieces.resize(counts[1]), out.tables.resize(counts[2]), out.copies.resize(counts[3]);
  out.histories.resize(counts[5]);
  for (auto& id : out.ids) in.get(id);
  for (auto& piece : out.pieces) in.get(piece.first), in.get(piece.count), in.get(piece.blocks);
  for (auto& block : out.tables) in.get(block);
  for (auto& copy : out.copies) in.get(copy.from), in.get(copy.to);
  for (std::uint32_t n = 0; n < counts[4]; ++n) {
    Draw d;
    in.get(d.row), in.get(d.history), in.get(d.position);
    PARLANDO_TRY(d.sampling, sampling_of(in));
    out.draws.push_back(std::move(d));
  }
  for (auto& id : out.histories) in.get(id);
  PARLANDO_DO(consistent(out));
  return out;
}

Result<void> StepPlan::check(const Step1Config& config, std::int64_t blocks) const {
  PARLANDO_DO(consistent(*this));
  for (const auto id : ids)
    if (id < 0 || id >= config.vocabulary)
      return fail(Errc::token_out_of_range, "token id {} is outside the vocabulary of {}", id, config.vocabulary);
  for (const auto& piece : pieces)
    if (piece.first + piece.count > config.length_max)
      return fail(Errc::invalid_argument, "the sequence would have {} tokens, the model takes {}",
                  piece.first + piece.count, config.length_max);
  const auto outside = [&](std::int32_t block) { return block < 0 || block >= blocks; };
  for (const auto block : tables)
    if (outside(block)) return fail(Errc::invalid_argument, "a plan names block {} of {}", block, blocks);
  for (const auto& copy : copies)
    if (outside(copy.from) || outside(copy.to))
      return fail(Errc::invalid_argument, "a plan copies block {} to {} of {}", copy.from, copy.to, blocks);
  // Nobody writes where another one writes.
  std::vector<std::int32_t> written;
  std::size_t at = 0;
  for (const auto& piece : pieces) {
    for (auto b = piece.first / kBlockTokens; b < piece.blocks; ++b)
      written.push_back(tables[at + static_cast<std::size_t>(b)]);
    at += static_cast<std::size_t>(piece.blocks);
  }
  std::sort(written.begin(), written.end());
  if (const auto twice = std::adjacent_find(written.begin(), written.end()); twice != written.end())
    return fail(Errc::invalid_argument, "a plan writes block {} for two sequences", *twice);
  return {};
}

}  // namespace parlando::llm
