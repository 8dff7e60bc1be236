#pragma once
/// One pass of a language model as numbers alone: which ids stand at which positions in which blocks, what is copied
/// before, what is drawn behind it. Whoever has the weights and has run all plans before this one gets the same ids
/// from it: a plan can be recorded, sent and run elsewhere.
///
/// Encoded: little-endian, u32 each unless said. Magic, version, i64 step, six counts (ids, pieces, table entries,
/// copies, draws, history ids), then these, one kind behind the other:
///   id       i32
///   piece    i64 first, i32 count, i32 blocks
///   entry    i32
///   copy     i32 from, i32 to
///   draw     i32 row, i32 history, u64 position, u64 seed, f64 temperature, i64 top_k, f64 top_p, f64 penalty, flags,
///            zeros (4 bytes); flags 1 top_k, 2 top_p, 4 penalty, 8 repetition-aware; what has no flag is 0
///   history  i32
#include <cstddef>

#include "services/llm/model/block_ledger.hpp"
#include "services/llm/model/config.hpp"
#include "services/llm/model/sampler.hpp"

namespace parlando::llm {

struct StepPlan {
  static constexpr std::uint32_t kMagic = 0x31505350, kVersion = 1;  ///< "PSP1"
  static constexpr std::size_t kBytesMax = std::size_t{1} << 28;

  /// Tokens of one sequence, at its end.
  struct Piece {
    std::int64_t first = 0;  ///< position of its first token: what stands before it is computed
    std::int32_t count = 0;
    std::int32_t blocks = 0;  ///< entries of its table: all positions up to its last one
    bool operator==(const Piece&) const = default;
  };
  /// The next id behind a row.
  struct Draw {
    std::int32_t row = 0;      ///< of all ids
    std::int32_t history = 0;  ///< ids of `histories` that the sampling looks at
    std::uint64_t position = 0;
    Sampling sampling;
    bool operator==(const Draw&) const = default;
  };
  std::int64_t step = 0;
  std::vector<std::int32_t> ids;  ///< of all pieces
  std::vector<Piece> pieces;
  std::vector<std::int32_t> tables;  ///< blocks of all pieces
  std::vector<BlockCopy> copies;
  std::vector<Draw> draws;
  std::vector<std::int32_t> histories;
  bool operator==(const StepPlan&) const = default;

  void add(std::span<const std::int32_t> tokens, std::int64_t first, std::span<const std::int32_t> blocks);
  /// A draw behind the last token so far. @param history  prompt + output; what the sampling does not look at is left
  /// out
  void draw(std::span<const std::int32_t> history, const Sampling& sampling, std::uint64_t position);

  std::vector<std::byte> encode() const;
  /// @error Errc::bad_format: another version, a wrong size, or numbers that contradict each other
  static Result<StepPlan> decode(std::span<const std::byte> bytes);
  /// Whether a model of this shape with so many blocks can run it.
  /// @error Errc::token_out_of_range, Errc::invalid_argument
  Result<void> check(const Step1Config& config, std::int64_t blocks) const;
};

}  // namespace parlando::llm
