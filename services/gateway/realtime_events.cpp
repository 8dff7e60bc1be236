#include "services/gateway/realtime_events.hpp"

#include "common/base/base64.hpp"

namespace parlando::gateway {
using nlohmann::json;

std::string RealtimeEvents::next_id(std::string_view kind) { return fmt::format("{}_{}{:06x}", kind, prefix_, ++ids_); }

void RealtimeEvents::send(std::string_view type, json body) {
  body["type"] = std::string(type);
  body["event_id"] = fmt::format("event_{}{:08x}", prefix_, ++events_);
  out_.push_back({dump(body), {}, events_});
}

void RealtimeEvents::send(const RealtimeError& error, const std::string& client_event) {
  const auto text = [](const std::string& value) { return value.empty() ? json() : json(value); };
  send("error", {{"error",
                  {{"type", error.type},
                   {"code", text(error.code)},
                   {"message", error.message},
                   {"param", text(error.param)},
                   {"event_id", text(client_event)}}}});
}

json RealtimeEvents::at(const Place& place) const {
  return {{"response_id", place.response}, {"item_id", place.item}, {"output_index", place.output_index}};
}

json RealtimeEvents::in(const Place& place) const {
  auto out = at(place);
  out["content_index"] = 0;
  return out;
}

void RealtimeEvents::send_sound(const Place& place, std::span<const std::byte> sound,
                                std::chrono::microseconds length) {
  std::string text;
  text.reserve(300 + sound.size() * 4 / 3);
  fmt::format_to(std::back_inserter(text),
                 R"({{"type":"response.output_audio.delta","event_id":"event_{}{:08x}","response_id":"{}",)"
                 R"("item_id":"{}","output_index":{},"content_index":0,"delta":")",
                 prefix_, ++events_, place.response, place.item, place.output_index);
  append_base64(text, sound);
  text += "\"}";
  out_.push_back({std::move(text), length, events_});
}

}  // namespace parlando::gateway
