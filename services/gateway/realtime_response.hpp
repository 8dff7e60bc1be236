#pragma once
/// One response of a realtime session, from `response.created` to `response.done`: turns text, sound and calls into its
/// events, in the order that clients rely on. Exactly one `response.done`, however it ends.
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "services/gateway/realtime_audio.hpp"
#include "services/gateway/realtime_events.hpp"
#include "services/gateway/realtime_items.hpp"
#include "services/gateway/realtime_settings.hpp"

namespace parlando::gateway {

/// How a response has ended.
struct ResponseEnd {
  std::string status = "completed";              ///< completed, cancelled, incomplete or failed
  std::string reason = {};                       ///< turn_detected, client_cancelled, max_output_tokens
  std::string error_type = {}, error_code = {};  ///< of a failed one
  nlohmann::json usage = nullptr;
};

class RealtimeResponse {
 public:
  struct Options {
    std::string id;
    std::string conversation;  ///< empty: out of band, with no items in the conversation
    ResponseSettings settings;
    nlohmann::json metadata;        ///< null: none
    std::uint32_t turn = 0;         ///< of the conversation below; 0: not known yet
    std::int64_t first_sample = 0;  ///< of that turn's sound, where this response begins
  };
  /// Tells `response.created`. @param events, items  outlive it
  RealtimeResponse(Options options, RealtimeEvents& events, RealtimeItems& items);

  void text(std::string_view delta);
  void sound(std::string_view pcm);  ///< s16le at 22.05 kHz
  void call(const std::string& call_id, const std::string& name, const std::string& arguments);
  /// Tells the end of what is open, then `response.done`. Nothing is called behind it.
  void finish(const ResponseEnd& end);

  const std::string& id() const { return options_.id; }
  std::uint32_t turn() const { return options_.turn; }
  bool is_in_conversation() const { return !options_.conversation.empty(); }
  void bind(std::uint32_t turn) { options_.turn = turn; }
  const ResponseSettings& settings() const { return options_.settings; }
  /// Its spoken or written answer so far; nothing of it has an item yet when `message_id` is empty.
  const std::string& message_id() const { return place_.item; }
  const std::string& message_text() const { return text_; }
  std::int64_t samples() const { return samples_; }

 private:
  nlohmann::json describe(const std::string& status) const;
  void begin_message();
  void end_message(const std::string& status);
  void send_sound(const std::vector<SoundOut::Piece>& sound);
  void add_item(const RealtimeItem& item, std::size_t output_index);
  void item_done(const RealtimeItem& item, std::size_t output_index);

  Options options_;
  RealtimeEvents& events_;
  RealtimeItems& items_;
  std::vector<nlohmann::json> output_;
  RealtimeEvents::Place place_;  ///< of the message; no item: there is none yet
  std::string text_;
  std::int64_t samples_ = 0;
  SoundOut sound_;
};

}  // namespace parlando::gateway
