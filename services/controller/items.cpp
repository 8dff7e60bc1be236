#include "services/controller/items.hpp"

#include <algorithm>

#include "common/base/nesting.hpp"
namespace parlando::controller {
using namespace protocol;
using nlohmann::json;

namespace {
constexpr int kCallsDepthMax = 20;
std::size_t item_bytes(const json& item) { return item.dump(-1, ' ', false, json::error_handler_t::replace).size(); }
}  // namespace

Result<void> Items::add(const Item& item, std::uint64_t input) {
  // Inside a record that has 30 levels, inside of messages that have 32.
  if (nested_deeper_than(item.calls.text, kCallsDepthMax))
    return fail(Errc::invalid_argument, "the calls of an item nest deeper than {}", kCallsDepthMax);
  const auto calls = json::parse(item.calls.text, nullptr, false);
  if (item.text.empty() && calls.is_null() && item.role != ItemRole::tool)
    return fail(Errc::invalid_argument, "the item holds nothing");
  if (item.role == ItemRole::assistant && !calls.is_null() && !calls.is_array())
    return fail(Errc::invalid_argument, "the calls of an assistant's item are no array");
  if (item.role == ItemRole::tool && !calls.is_string())
    return fail(Errc::invalid_argument, "a tool's item does not name its call");
  const auto id = item.id.empty() ? fmt::format("item_{}", input) : item.id;
  if (std::any_of(items_.begin(), items_.end(), [&](const WaitingItem& w) { return w.item["id"] == id; }))
    return fail(Errc::invalid_argument, "item '{}' is there already", id);
  json out{{"id", id}, {"role", names_of<ItemRole>()[static_cast<std::size_t>(item.role)]}, {"text", item.text}};
  if (!calls.is_null()) out["calls"] = calls;
  const auto size = item_bytes(out);
  if (items_.size() >= kItemsMax || bytes_ + size > kBytesMax)
    return fail(Errc::overloaded, "{} items of {} bytes wait for a turn, at most {} and {} may", items_.size(), bytes_,
                kItemsMax, kBytesMax);
  bytes_ += size;
  insert({input, std::move(out)});
  return {};
}

/// In the order of inputs: the output of a tool may become an item when others have come since.
void Items::insert(WaitingItem item) {
  const auto behind = std::upper_bound(items_.begin(), items_.end(), item.input,
                                       [](std::uint64_t input, const WaitingItem& w) { return input < w.input; });
  items_.insert(behind, std::move(item));
}

std::vector<WaitingItem> Items::take_before(std::uint64_t input) {
  std::vector<WaitingItem> out;
  for (; !items_.empty() && items_.front().input < input; items_.pop_front()) {
    bytes_ -= item_bytes(items_.front().item);
    out.push_back(std::move(items_.front()));
  }
  return out;
}

void Items::give_back(std::vector<WaitingItem> items) {
  for (auto& w : items) {
    bytes_ += item_bytes(w.item);
    insert(std::move(w));
  }
}

bool Items::forget(const std::string& id) {
  const auto found =
      std::find_if(items_.begin(), items_.end(), [&](const WaitingItem& w) { return w.item["id"] == id; });
  if (found == items_.end()) return false;
  bytes_ -= item_bytes(found->item);
  items_.erase(found);
  return true;
}

bool Items::correct(Correction correction) {
  const auto same = [&](const Correction& c) {
    return c.is_cut() && correction.is_cut() && c.change["turn"] == correction.change["turn"];
  };
  const auto found = std::find_if(corrections_.begin(), corrections_.end(), same);
  if (found == corrections_.end()) {
    if (corrections_.size() >= kItemsMax) return false;
    corrections_.push_back(std::move(correction));
    return true;
  }
  // Claims only shorten. The earlier input stays needed.
  if (correction.change["heard"].get_ref<const std::string&>().size() >=
      found->change["heard"].get_ref<const std::string&>().size())
    return false;
  found->change = std::move(correction.change);
  return true;
}

std::uint64_t Items::first_input() const {
  auto first = items_.empty() ? 0 : items_.front().input;
  for (const auto& c : corrections_)
    if (c.input != 0 && (first == 0 || c.input < first)) first = c.input;
  return first;
}

void write_before(json& record, const std::vector<WaitingItem>& before) {
  if (before.empty()) return;
  auto& list = record["before"] = json::array();
  for (const auto& w : before) list.push_back(w.item);
}

void write_corrections(json& record, const std::vector<Correction>& corrections) {
  for (const auto& c : corrections) {
    if (!c.is_cut()) {
      if (!record.contains("forgot")) record["forgot"] = json::array();
      record["forgot"].push_back(c.change);
    } else if (!record.contains("cut")) {
      record["cut"] = c.change;
    } else {  // more than one: a list
      if (record["cut"].is_object()) record["cut"] = json::array({record["cut"]});
      record["cut"].push_back(c.change);
    }
  }
}

}  // namespace parlando::controller
