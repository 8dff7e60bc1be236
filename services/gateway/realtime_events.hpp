#pragma once
/// The outbox of a realtime session: events as JSON text, and the ids of everything in it.
#include <chrono>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "services/gateway/json_text.hpp"
#include "services/gateway/realtime_error.hpp"

namespace parlando::gateway {

/// An event as its client gets it.
struct RealtimeEvent {
  std::string text;
  std::chrono::microseconds sound{0};  ///< so long; 0: it is no sound
  std::uint64_t number = 0;            ///< the last digits of its id
};

class RealtimeEvents {
 public:
  /// @param prefix  letters and digits that make this session's ids different from those of others
  explicit RealtimeEvents(std::string prefix) : prefix_(std::move(prefix)) {}

  /// "item_…", "resp_…": never the same again.
  std::string next_id(std::string_view kind);
  /// `type` and `event_id` are added.
  void send(std::string_view type, nlohmann::json body = nlohmann::json::object());
  /// An `error`. @param client_event  id of the event that it answers; empty: none
  void send(const RealtimeError& error, const std::string& client_event);

  /// Where a delta belongs.
  struct Place {
    std::string response, item;
    std::size_t output_index = 0;
  };
  nlohmann::json at(const Place& place) const;  ///< {response_id, item_id, output_index}
  nlohmann::json in(const Place& place) const;  ///< … and content_index
  /// Sound in the client's format; written without a JSON library, because this is what most bytes are.
  void send_sound(const Place& place, std::span<const std::byte> sound, std::chrono::microseconds length);

  std::vector<RealtimeEvent> take() { return std::exchange(out_, {}); }

 private:
  std::string prefix_;
  std::uint64_t ids_ = 0, events_ = 0;
  std::vector<RealtimeEvent> out_;
};

}  // namespace parlando::gateway
