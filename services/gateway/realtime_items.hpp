#pragma once
/// The items of a realtime session's conversation, in their order. What the model knows of them stands with the
/// conversation's owner; this is what clients may ask for by id.
#include <list>
#include <nlohmann/json.hpp>
#include <string>
#include <unordered_map>
#include <vector>

#include "services/gateway/realtime_error.hpp"

namespace parlando::gateway {

struct RealtimeItem {
  enum class Kind : std::uint8_t { message, call, output };
  struct Part {
    std::string type;  ///< input_text, input_audio, output_text or output_audio
    std::string text;  ///< or transcript
  };
  std::string id;
  Kind kind = Kind::message;
  std::string status = "completed";
  std::string role;  ///< of a message
  std::vector<Part> content;
  std::string call_id, name, arguments;  ///< of a call
  std::string output;                    ///< what was answered to call_id

  // Where it is in the conversation below.
  std::string told_as;                         ///< an `item` there, under this id
  std::uint32_t turn = 0;                      ///< a part of this turn
  std::int64_t first_sample = 0, samples = 0;  ///< of that turn's sound, as told to the client

  std::string text() const;  ///< of all its content
  nlohmann::json json() const;
  std::size_t bytes() const;
  std::size_t counted = 0;  ///< bytes, when it was kept
};

/// An item as a client writes it; without an id when it names none.
/// @param param  the field that it stands in, for errors
RealtimeResult<RealtimeItem> read_realtime_item(const nlohmann::json& value, const std::string& param);

/// What makes a conversation know of an item: an `item` of `/v1/dialogue`. Null: there is nothing to know.
nlohmann::json dialogue_item(const RealtimeItem& item);

class RealtimeItems {
 public:
  static constexpr std::size_t kItemsMax = 4096, kBytesMax = 8u << 20;

  /// @param after  an id that is known; empty: behind the last one, "root": in front of the first. When too many are
  /// kept the oldest are forgotten here; the model's memory is another matter
  RealtimeItem& add(RealtimeItem item, const std::string& after = {});
  RealtimeItem* find(const std::string& id);
  bool erase(const std::string& id);
  /// Id of the one before; empty: it is the first.
  std::string before(const std::string& id) const;
  std::string last() const { return items_.empty() ? std::string() : items_.back().id; }
  const std::list<RealtimeItem>& all() const { return items_; }

 private:
  std::list<RealtimeItem> items_;
  std::unordered_map<std::string, std::list<RealtimeItem>::iterator> by_id_;
  std::size_t bytes_ = 0;  ///< when they were added
};

/// "previous_item_id" of an event: null for the first one.
nlohmann::json previous_item(const std::string& id);

}  // namespace parlando::gateway
