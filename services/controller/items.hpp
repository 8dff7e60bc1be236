#pragma once
/// What stands between turns and is not stored yet: items that wait for the next turn, what was not heard of earlier
/// answers, what the model is to be told no more. Each knows the input it came with, which must not be let go before it
/// is stored. A value, with limits.
#include <deque>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/base/result.hpp"
#include "common/protocol/messages.hpp"

namespace parlando::controller {

struct WaitingItem {
  std::uint64_t input = 0;
  nlohmann::json item;  ///< {id, role, text, calls?}
};

/// Of an answer that is stored only this was heard, or of what was said this is not to be told: for the next record.
struct Correction {
  std::uint64_t input = 0;
  nlohmann::json change;  ///< {turn, heard}, {item} or {turn, part}
  bool is_cut() const { return change.contains("heard"); }
};

class Items {
 public:
  static constexpr std::size_t kItemsMax = 512, kBytesMax = 1u << 20;
  /// @error Errc::invalid_argument (nothing in it, a name that waits already), Errc::overloaded
  Result<void> add(const protocol::Item& item, std::uint64_t input);
  /// Those that came before this input, for the turn that begins with it.
  std::vector<WaitingItem> take_before(std::uint64_t input);
  /// Of a turn that came to nothing: they wait again, where they stood.
  void give_back(std::vector<WaitingItem> items);
  bool forget(const std::string& id);
  /// Puts a correction in the place of an earlier one of the same thing. @return false: the earlier one says more
  bool correct(Correction correction);
  std::vector<Correction> take_corrections() { return std::exchange(corrections_, {}); }

  bool is_empty() const { return items_.empty() && corrections_.empty(); }
  /// An item that came with this input or before waits.
  bool waits_since(std::uint64_t input) const { return !items_.empty() && items_.front().input <= input; }
  /// The earliest input that is needed for what waits; 0: none is.
  std::uint64_t first_input() const;

 private:
  void insert(WaitingItem item);
  std::deque<WaitingItem> items_;  ///< in the order of their inputs
  std::vector<Correction> corrections_;
  std::size_t bytes_ = 0;
};

/// Writes items and corrections into the record that they are stored with.
void write_before(nlohmann::json& record, const std::vector<WaitingItem>& before);
void write_corrections(nlohmann::json& record, const std::vector<Correction>& corrections);

}  // namespace parlando::controller
