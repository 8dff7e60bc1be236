#include "services/gateway/realtime_response.hpp"

namespace parlando::gateway {
using nlohmann::json;

RealtimeResponse::RealtimeResponse(Options options, RealtimeEvents& events, RealtimeItems& items)
    : options_(std::move(options)), events_(events), items_(items), sound_(options_.settings.format) {
  place_.response = options_.id;
  events_.send("response.created", {{"response", describe("in_progress")}});
  events_.send("rate_limits.updated", {{"rate_limits", json::array()}});
}

json RealtimeResponse::describe(const std::string& status) const {
  const auto& settings = options_.settings;
  json out{{"id", options_.id},
           {"object", "realtime.response"},
           {"status", status},
           {"output", output_},
           {"output_modalities", settings.modalities()},
           {"max_output_tokens", settings.max_output_tokens},
           {"audio", {{"output", {{"format", settings.format_json()}, {"voice", settings.voice}}}}}};
  if (is_in_conversation()) out["conversation_id"] = options_.conversation;
  if (!options_.metadata.is_null()) out["metadata"] = options_.metadata;
  return out;
}

/// `response.output_item.added`, and in the conversation likewise.
void RealtimeResponse::add_item(const RealtimeItem& item, std::size_t output_index) {
  output_.push_back(item.json());
  events_.send("response.output_item.added",
               {{"response_id", options_.id}, {"output_index", output_index}, {"item", item.json()}});
  if (!is_in_conversation()) return;
  const auto before = items_.last();
  items_.add(item);
  events_.send("conversation.item.added", {{"previous_item_id", previous_item(before)}, {"item", item.json()}});
}

void RealtimeResponse::item_done(const RealtimeItem& item, std::size_t output_index) {
  output_[output_index] = item.json();
  // A client may have deleted it meanwhile.
  if (is_in_conversation() && items_.find(item.id) != nullptr)
    events_.send("conversation.item.done",
                 {{"previous_item_id", previous_item(items_.before(item.id))}, {"item", item.json()}});
  events_.send("response.output_item.done",
               {{"response_id", options_.id}, {"output_index", output_index}, {"item", item.json()}});
}

void RealtimeResponse::begin_message() {
  if (!place_.item.empty()) return;
  place_.item = events_.next_id("item");
  place_.output_index = output_.size();
  RealtimeItem item;
  item.id = place_.item;
  item.status = "in_progress";
  item.role = "assistant";
  item.turn = options_.turn;
  item.first_sample = options_.first_sample;
  add_item(item, place_.output_index);
  const bool audio = options_.settings.audio;
  auto event = events_.in(place_);
  event["part"] = audio ? json{{"type", "audio"}, {"transcript", ""}} : json{{"type", "text"}, {"text", ""}};
  events_.send("response.content_part.added", std::move(event));
  // What is said of it from here on is kept with it: clients may ask for it, and cut it, while it is made.
  if (auto* kept = items_.find(place_.item)) kept->content = {{audio ? "output_audio" : "output_text", ""}};
}

void RealtimeResponse::text(std::string_view delta) {
  if (delta.empty()) return;
  begin_message();
  text_ += delta;
  if (auto* item = items_.find(place_.item); item != nullptr && !item->content.empty()) item->content[0].text = text_;
  auto event = events_.in(place_);
  event["delta"] = std::string(delta);
  events_.send(options_.settings.audio ? "response.output_audio_transcript.delta" : "response.output_text.delta",
               std::move(event));
}

void RealtimeResponse::sound(std::string_view pcm) {
  if (!options_.settings.audio) return;
  begin_message();
  samples_ += static_cast<std::int64_t>(pcm.size() / kSampleBytes);
  if (auto* item = items_.find(place_.item)) item->samples = samples_;
  send_sound(sound_.push(pcm));
}

void RealtimeResponse::send_sound(const std::vector<SoundOut::Piece>& sound) {
  for (const auto& piece : sound) events_.send_sound(place_, piece.bytes, piece.length);
}

void RealtimeResponse::call(const std::string& call_id, const std::string& name, const std::string& arguments) {
  const RealtimeEvents::Place place{options_.id, events_.next_id("item"), output_.size()};
  RealtimeItem item;
  item.id = place.item;
  item.kind = RealtimeItem::Kind::call;
  item.status = "in_progress";
  item.call_id = call_id;
  item.name = name;
  item.turn = options_.turn;
  add_item(item, place.output_index);
  auto delta = events_.at(place);
  delta["call_id"] = call_id;
  auto done = delta;
  delta["delta"] = arguments;
  done["name"] = name;
  done["arguments"] = arguments;
  events_.send("response.function_call_arguments.delta", std::move(delta));
  events_.send("response.function_call_arguments.done", std::move(done));
  item.arguments = arguments;
  item.status = "completed";
  if (auto* kept = items_.find(item.id)) *kept = item;
  item_done(item, place.output_index);
}

void RealtimeResponse::end_message(const std::string& status) {
  if (place_.item.empty()) return;
  const bool audio = options_.settings.audio;
  if (audio) {
    if (status != "cancelled") send_sound(sound_.finish());
    events_.send("response.output_audio.done", events_.in(place_));
  }
  auto said = events_.in(place_);
  said[audio ? "transcript" : "text"] = text_;
  events_.send(audio ? "response.output_audio_transcript.done" : "response.output_text.done", std::move(said));
  auto part = events_.in(place_);
  part["part"] = audio ? json{{"type", "audio"}, {"transcript", text_}} : json{{"type", "text"}, {"text", text_}};
  events_.send("response.content_part.done", std::move(part));
  RealtimeItem item;
  item.id = place_.item;
  item.role = "assistant";
  item.status = status == "completed" ? "completed" : "incomplete";
  item.content = {{audio ? "output_audio" : "output_text", text_}};
  if (auto* kept = items_.find(item.id)) kept->status = item.status;
  item_done(item, place_.output_index);
}

void RealtimeResponse::finish(const ResponseEnd& end) {
  end_message(end.status);
  auto response = describe(end.status);
  json details{{"type", end.status}};
  if (!end.reason.empty()) details["reason"] = end.reason;
  if (!end.error_code.empty()) details["error"] = {{"type", end.error_type}, {"code", end.error_code}};
  // Of a response that is whole there is nothing to say.
  if (end.status != "completed") response["status_details"] = std::move(details);
  if (!end.usage.is_null()) response["usage"] = end.usage;
  events_.send("response.done", {{"response", std::move(response)}});
}

}  // namespace parlando::gateway
