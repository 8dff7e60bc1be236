/// What realtime clients say.
#include "services/gateway/realtime.hpp"

#include <simdjson.h>

#include <algorithm>

#include "common/base/base64.hpp"
#include "common/base/nesting.hpp"
#include "services/gateway/realtime_fields.hpp"

namespace parlando::gateway {

namespace {

using nlohmann::json;

constexpr int kEventDepthMax = 32;
constexpr std::size_t kMessageBytesMax = 1u << 20;      // of an event without sound
constexpr std::size_t kSoundBytesMax = 32u << 10;       // of a message to the conversation
constexpr std::int64_t kCommitLeast = kInputRate / 10;  // samples: what is shorter holds no word
constexpr std::size_t kMetadataMax = 16, kMetadataKeyMax = 64, kMetadataValueMax = 512;
constexpr std::size_t kInputItemsMax = 512;
constexpr std::string_view kAppend = "input_audio_buffer.append";

RealtimeResult<json> read_metadata(const json& value) {
  if (value.is_null()) return json();
  const auto wrong = [] {
    return refuse("invalid_value", "response.metadata",
                  "Invalid 'response.metadata' of response.create: expected at most {} pairs of texts, keys of up to "
                  "{} and values of up to {} bytes.",
                  kMetadataMax, kMetadataKeyMax, kMetadataValueMax);
  };
  if (!value.is_object() || value.size() > kMetadataMax) return wrong();
  for (const auto& [key, text] : value.items())
    if (key.size() > kMetadataKeyMax || !text.is_string() ||
        text.get_ref<const std::string&>().size() > kMetadataValueMax)
      return wrong();
  return value;
}

/// The fields of an append, read without building anything: this is the path of every 20 ms. Nothing when it is another
/// event, or one that the careful reader should look at.
struct AppendFields {
  std::string_view audio, event_id;
};
std::optional<AppendFields> append_fields(simdjson::dom::parser& parser, std::string_view text) {
  simdjson::dom::object object;
  if (parser.parse(text.data(), text.size()).get_object().get(object) != simdjson::SUCCESS) return {};
  AppendFields out;
  std::string_view type;
  if (object["type"].get_string().get(type) != simdjson::SUCCESS || type != kAppend) return {};
  if (object["audio"].get_string().get(out.audio) != simdjson::SUCCESS) return {};
  if (object["event_id"].get_string().get(out.event_id) != simdjson::SUCCESS) out.event_id = {};
  return out;
}

}  // namespace

Realtime::Realtime(RealtimeOptions options)
    : events_(options.id_prefix),
      session_(std::move(options.session)),
      admit_side_(std::move(options.admit_side)),
      settings_(events_.next_id("sess"), options.model, options.transcription, options.expires_at),
      conversation_(events_.next_id("conv")),
      sound_in_(settings_.input()) {}

void Realtime::start() {
  if (!session_.empty()) {
    // It was read when its secret was made.
    static_cast<void>(settings_.update(json::parse(session_, nullptr, false)));
    sound_in_ = SoundIn(settings_.input());
  }
  events_.send("session.created", {{"session", settings_.effective()}});
  to_talks_.push_back({0, ToTalk::Kind::begin});
  told_ = settings_.dialogue();
  auto open = told_;
  open["type"] = "open";
  tell(0, open);
}

void Realtime::tell(int talk, const json& message) {
  if (!message.is_null()) to_talks_.push_back({talk, ToTalk::Kind::text, dump(message)});
}

void Realtime::tell_sound(std::string pcm) {
  position_ += static_cast<std::int64_t>(pcm.size() / kSampleBytes);
  if (pcm.size() <= kSoundBytesMax) {
    if (!pcm.empty()) to_talks_.push_back({0, ToTalk::Kind::sound, std::move(pcm)});
    return;
  }
  for (std::size_t at = 0; at < pcm.size(); at += kSoundBytesMax)
    to_talks_.push_back({0, ToTalk::Kind::sound, pcm.substr(at, kSoundBytesMax)});
}

// ------------------------------------------------------------------------------------------------ events

void Realtime::client_message(std::string_view message, bool binary) {
  if (ending_) return;
  if (binary)
    return events_.send(RealtimeError{"invalid_value", "Events are JSON in text messages; this one is binary."}, {});
  if (message.find(kAppend) != std::string_view::npos) {
    // Its memory is kept for the next frame, but not that of a whole recording.
    thread_local simdjson::dom::parser kept;
    simdjson::dom::parser once;
    if (const auto sound = append_fields(message.size() <= kMessageBytesMax ? kept : once, message)) {
      if (const auto done = append(sound->audio); !done) events_.send(done.error(), std::string(sound->event_id));
      return;
    }
  }
  if (message.size() > kMessageBytesMax)
    return events_.send(RealtimeError{"invalid_value", fmt::format("The event has {} bytes, expected at most {}.",
                                                                   message.size(), kMessageBytesMax)},
                        {});
  const auto event = nested_deeper_than(message, kEventDepthMax) ? json() : json::parse(message, nullptr, false);
  if (!event.is_object())
    return events_.send(
        RealtimeError{"invalid_json",
                      fmt::format("The event is not a JSON object, or nested deeper than {}.", kEventDepthMax)},
        {});
  on_client_event(event);
}

void Realtime::on_client_event(const json& event) {
  const auto id = text_of(event, "event_id").substr(0, 512);
  const auto& type = field(event, "type");
  if (!type.is_string())
    return events_.send(RealtimeError{"missing_required_parameter", "Missing required parameter: 'type'.", "type"}, id);
  if (const auto done = dispatch(type.get<std::string>(), event); !done) events_.send(done.error(), id);
}

Realtime::Done Realtime::dispatch(const std::string& type, const json& event) {
  using Handle = Done (Realtime::*)(const json&);
  static const std::map<std::string, Handle, std::less<>> kHandlers{
      {"session.update", &Realtime::update_session},
      {"conversation.item.create", &Realtime::create_item},
      {"conversation.item.truncate", &Realtime::truncate_item},
      {"conversation.item.delete", &Realtime::delete_item},
      {"conversation.item.retrieve", &Realtime::retrieve_item},
      {"response.create", &Realtime::create_response},
      {"response.cancel", &Realtime::cancel_response},
  };
  if (type == kAppend) {
    const auto& audio = field(event, "audio");
    if (!audio.is_string())
      return refuse("missing_required_parameter", "audio", "Missing required parameter: 'audio'.");
    return append(audio.get_ref<const std::string&>());
  }
  if (type == "input_audio_buffer.commit") return commit();
  if (type == "input_audio_buffer.clear") return clear();
  const auto found = kHandlers.find(type);
  if (found == kHandlers.end())
    return refuse("invalid_value", "type",
                  "Invalid value: '{}'. Supported values are: 'session.update', 'input_audio_buffer.append', "
                  "'input_audio_buffer.commit', 'input_audio_buffer.clear', 'conversation.item.create', "
                  "'conversation.item.truncate', 'conversation.item.delete', 'conversation.item.retrieve', "
                  "'response.create' and 'response.cancel'.",
                  type.substr(0, 60));
  const bool of_answers = found->first.starts_with("response.") || found->first.starts_with("conversation.item.create");
  if (settings_.is_transcription() && of_answers)
    return refuse("invalid_value", "type", "{} is not taken in a transcription session.", found->first);
  return (this->*found->second)(event);
}

Realtime::Done Realtime::update_session(const json& event) {
  if (auto done = settings_.update(field(event, "session")); !done) return done;
  if (settings_.input() != sound_in_.format()) {
    tell_sound(sound_in_.finish());
    sound_in_ = SoundIn(settings_.input());
  }
  json changes = json::object();
  const auto wanted = settings_.dialogue();
  for (const auto& [key, value] : wanted.items())
    if (told_[key] != value) changes[key] = value;
  if (!changes.empty()) {
    told_ = wanted;
    changes["type"] = "configure";
    tell(0, changes);
  }
  events_.send("session.updated", {{"session", settings_.effective()}});
  return {};
}

// ------------------------------------------------------------------------------------------------ sound

Realtime::Done Realtime::append(std::string_view base64) {
  const auto bytes = from_base64(base64);
  if (!bytes) return refuse("invalid_value", "audio", "Invalid 'audio': {}.", bytes.error().message);
  return append(*bytes);
}

Realtime::Done Realtime::append(std::span<const std::byte> sound) {
  auto pcm = sound_in_.push(sound);
  if (!pcm) return refuse("invalid_value", "audio", "Invalid 'audio': {}.", pcm.error().message);
  tell_sound(*std::move(pcm));
  return {};
}

std::optional<Realtime::Append> Realtime::read_append(std::string_view message) {
  simdjson::dom::parser parser;
  const auto fields = append_fields(parser, message);
  if (!fields) return {};
  Append out{std::string(fields->event_id), {}};
  if (auto bytes = from_base64(fields->audio))
    out.sound = *std::move(bytes);
  else
    out.sound = refuse("invalid_value", "audio", "Invalid 'audio': {}.", bytes.error().message);
  return out;
}

void Realtime::take_append(const Append& given, std::size_t from, std::size_t count) {
  if (ending_) return;
  const auto done =
      given.sound ? append(std::span(*given.sound).subspan(from, count)) : Done(tl::unexpected(given.sound.error()));
  if (!done) events_.send(done.error(), given.event_id);
}

/// The utterance ends with the last sample that came.
void Realtime::end_sound() {
  tell_sound(sound_in_.finish());
  tell(0, {{"type", "flush"}});
  buffered_ = committed_ = position_;
}

/// It is under way no more: its transcript is waited for.
void Realtime::flush(Utterance utterance) {
  end_sound();
  utterance.end = position_;
  hearing_.reset();
  if (utterances_.size() < kUtterancesMax) utterances_.push_back(std::move(utterance));
}

Realtime::Done Realtime::commit() {
  const auto samples = position_ + sound_in_.held_samples() - buffered_;
  if (samples < kCommitLeast)
    return refuse("input_audio_buffer_commit_empty", "",
                  "Error committing input audio buffer: buffer too small. Expected at least 100ms of audio, but buffer "
                  "only has {:.2f}ms of audio.",
                  static_cast<double>(samples) * 1000 / kInputRate);
  if (utterances_.size() >= kUtterancesMax)
    return refuse("rate_limit_exceeded", "", "{} utterances wait for their transcript already.", utterances_.size());
  auto utterance = hearing_.value_or(Utterance{events_.next_id("item"), buffered_});
  utterance.end = position_;
  add_utterance(utterance);
  flush(std::move(utterance));
  return {};
}

Realtime::Done Realtime::clear() {
  const bool holds_sound = settings_.has_detection() ? hearing_.has_value() : position_ > buffered_;
  if (holds_sound && utterances_.size() < kUtterancesMax) {
    auto utterance = hearing_.value_or(Utterance{{}, buffered_});
    utterance.discarded = true;
    flush(std::move(utterance));
  }
  buffered_ = committed_ = position_;
  events_.send("input_audio_buffer.cleared");
  return {};
}

// ------------------------------------------------------------------------------------------------ items

Realtime::Done Realtime::create_item(const json& event) {
  auto read = read_realtime_item(field(event, "item"), "item");
  if (!read) return tl::unexpected(read.error());
  auto item = *std::move(read);
  const auto after = text_of(event, "previous_item_id");
  if (!item.id.empty() && items_.find(item.id) != nullptr)
    return refuse("item_create_duplicate_item_id", "item.id",
                  "Error adding item: the conversation already has an item with the ID '{}'.", item.id);
  if (!after.empty() && after != "root" && items_.find(after) == nullptr)
    return refuse("item_create_invalid_previous_item_id", "previous_item_id",
                  "Error adding item: the previous item with ID '{}' does not exist.", after.substr(0, 64));
  if (item.id.empty()) item.id = events_.next_id("item");
  if (item.kind == RealtimeItem::Kind::call && item.call_id.empty()) item.call_id = events_.next_id("call");
  item.status = "completed";
  const auto& kept = items_.add(std::move(item), after);
  const json told{{"previous_item_id", previous_item(items_.before(kept.id))}, {"item", kept.json()}};
  events_.send("conversation.item.added", told);
  events_.send("conversation.item.done", told);
  take_tool_output(kept);
  return {};
}

/// What the model is to know of a new item. An output that a turn waits for is kept until the client asks for the
/// turn to go on: the model would answer before it otherwise.
void Realtime::take_tool_output(const RealtimeItem& item) {
  const auto call =
      item.kind != RealtimeItem::Kind::output
          ? calls_.end()
          : std::find_if(calls_.begin(), calls_.end(), [&](const auto& c) { return c.id == item.call_id; });
  if (call == calls_.end()) {
    if (auto* kept = items_.find(item.id)) kept->told_as = item.id;
    return tell(0, dialogue_item(item));
  }
  call->output = item.output;
  const bool goes_on = waiting_turn_ == 0 && active_ && active_->turn() == calls_turn_ && call->output &&
                       std::none_of(calls_.begin(), calls_.end(), [](const auto& c) { return !c.asked; });
  if (!goes_on) return;
  tell_output(*call);
  calls_.erase(call);
}

void Realtime::tell_output(const PendingCall& call) {
  tell(0, {{"type", "tool_output"}, {"call", call.name}, {"output", call.output.value_or("")}});
}

Realtime::Done Realtime::truncate_item(const json& event) {
  const auto id = text_of(event, "item_id");
  auto* item = items_.find(id);
  if (item == nullptr)
    return refuse("item_truncate_invalid_item_id", "item_id",
                  "Error truncating item: item with item_id '{}' not found.", id.substr(0, 64));
  if (item->role != "assistant")
    return refuse("invalid_value", "item_id", "Only assistant messages can be truncated; '{}' is none.",
                  id.substr(0, 64));
  const auto& end = field(event, "audio_end_ms");
  if (!end.is_number())
    return refuse("missing_required_parameter", "audio_end_ms", "Missing required parameter: 'audio_end_ms'.");
  constexpr double kMost = 1e9;
  const auto ms = static_cast<std::int64_t>(std::clamp(end.get<double>(), 0.0, kMost));
  const auto heard = std::min(item->samples, ms * kSpeechRate / 1000);
  if (item->turn != 0 && item->samples > 0)
    tell(0, {{"type", "truncate"}, {"turn", item->turn}, {"samples", item->first_sample + heard}});
  // The transcript of what was not heard is gone; how much of it belongs to the rest the conversation knows.
  if (heard < item->samples && !item->content.empty()) item->content[0].text.clear();
  events_.send(
      "conversation.item.truncated",
      {{"item_id", id},
       {"content_index", field(event, "content_index").is_number_unsigned() ? field(event, "content_index") : json(0)},
       {"audio_end_ms", ms}});
  return {};
}

Realtime::Done Realtime::delete_item(const json& event) {
  const auto id = text_of(event, "item_id");
  const auto* item = items_.find(id);
  if (item == nullptr)
    return refuse("item_delete_invalid_item_id", "item_id", "Error deleting item: item with item_id '{}' not found.",
                  id.substr(0, 64));
  if (!item->told_as.empty())
    tell(0, {{"type", "forget"}, {"item", item->told_as}});
  else if (item->turn != 0 && item->kind == RealtimeItem::Kind::message)
    tell(0, {{"type", "forget"}, {"turn", item->turn}, {"part", item->role == "user" ? "user" : "assistant"}});
  items_.erase(id);
  events_.send("conversation.item.deleted", {{"item_id", id}});
  return {};
}

Realtime::Done Realtime::retrieve_item(const json& event) {
  const auto id = text_of(event, "item_id");
  const auto* item = items_.find(id);
  if (item == nullptr)
    return refuse("item_retrieve_invalid_item_id", "item_id",
                  "Error retrieving item: item with item_id '{}' not found.", id.substr(0, 64));
  events_.send("conversation.item.retrieved", {{"item", item->json()}});
  return {};
}

// ------------------------------------------------------------------------------------------------ responses

/// The user has spoken, and the conversation is about to answer.
bool Realtime::answer_is_coming() const {
  const auto waits = [](const Utterance& u) { return !u.discarded; };
  return settings_.answers() && std::any_of(utterances_.begin(), utterances_.end(), waits);
}

RealtimeResponse::Options Realtime::response_options(const std::string& conversation, ResponseSettings settings,
                                                     json metadata) {
  return {events_.next_id("resp"), conversation, std::move(settings), std::move(metadata)};
}

Realtime::Done Realtime::create_response(const json& event) {
  const auto& options = field(event, "response");
  if (!options.is_null() && !options.is_object())
    return refuse("invalid_type", "response", "Invalid type for 'response' of response.create: expected an object.");
  auto settings = settings_.responses();
  const auto named = [](RealtimeError error) {
    error.message += " (response.create)";
    return tl::unexpected<RealtimeError>(std::move(error));
  };
  if (options.is_object())
    if (const auto merged = settings.merge(options, "response"); !merged) return named(merged.error());
  if (const auto known = settings.check_tool_choice("response"); !known) return named(known.error());
  auto metadata = read_metadata(field(options, "metadata"));
  if (!metadata) return tl::unexpected(metadata.error());
  const auto conversation = text_of(options, "conversation");
  if (conversation == "none" || field(options, "input").is_array())
    return respond_aside(options, std::move(settings), *std::move(metadata), conversation != "none");
  if (active_ || answer_is_coming())
    return refuse("conversation_already_has_active_response", "",
                  "Conversation already has an active response in progress: {}. Wait until the response is finished "
                  "before creating a new one (response.create).",
                  active_ ? active_->id() : "the answer to what was said");
  auto own = response_options(conversation_, settings, *std::move(metadata));
  if (waiting_turn_ != 0) {
    go_on_with_turn(std::move(own));
    return {};
  }
  active_ = std::make_unique<RealtimeResponse>(std::move(own), events_, items_);
  json respond{{"type", "respond"}};
  const auto wanted = settings.dialogue(), usual = settings_.responses().dialogue();
  for (const auto& [key, value] : wanted.items())
    if (usual.at(key) != value) respond[key] = value;
  ask(std::move(respond));
  return {};
}

/// A turn that was interrupted or cancelled is not over yet: no other may be asked for.
void Realtime::ask(json respond) {
  if (open_turn_ != 0 || !dropped_.empty())
    asked_ = std::move(respond);
  else
    tell(0, respond);
}

/// The outputs of the tools are there, or will be: the same turn answers with what they say.
void Realtime::go_on_with_turn(RealtimeResponse::Options options) {
  options.turn = waiting_turn_;
  options.first_sample = turn_samples_ - static_cast<std::int64_t>(late_sound_.size() / kSampleBytes);
  waiting_turn_ = 0;
  active_ = std::make_unique<RealtimeResponse>(std::move(options), events_, items_);
  if (!late_sound_.empty()) active_->sound(std::exchange(late_sound_, {}));
  const bool any = std::any_of(calls_.begin(), calls_.end(), [](const auto& c) { return c.output.has_value(); });
  for (auto& call : std::exchange(calls_, {})) {
    // Asked to answer without any output: the model is told so. One that lacks beside others is waited for.
    if (!call.output && !any) call.output = R"({"error": "the tool has not answered"})";
    if (call.output)
      tell_output(call);
    else
      calls_.push_back({call.id, call.name, {}, true});
  }
}

/// A response with a history of its own, or with none but it: a conversation for it alone.
Realtime::Done Realtime::respond_aside(const json& options, ResponseSettings settings, json metadata, bool remembered) {
  if (sides_.size() >= kSideTalksMax)
    return refuse("rate_limit_exceeded", "",
                  "{} responses are being made out of band already; wait for one of them (response.create).",
                  sides_.size());
  std::vector<json> history;
  const auto& input = field(options, "input");
  if (input.is_array()) {
    if (input.size() > kInputItemsMax)
      return refuse("array_above_max_length", "response.input",
                    "Invalid 'response.input' of response.create: {} items, expected at most {}.", input.size(),
                    kInputItemsMax);
    for (std::size_t i = 0; i < input.size(); ++i) {
      const auto param = fmt::format("response.input[{}]", i);
      if (text_of(input[i], "type") == "item_reference") {
        const auto* item = items_.find(text_of(input[i], "id"));
        if (item == nullptr)
          return refuse("invalid_value", param + ".id", "Invalid '{}.id' of response.create: no such item.", param);
        history.push_back(dialogue_item(*item));
        continue;
      }
      auto item = read_realtime_item(input[i], param);
      if (!item) {
        item.error().message += " (response.create)";
        return tl::unexpected(item.error());
      }
      if (item->id.empty()) item->id = events_.next_id("item");
      history.push_back(dialogue_item(*item));
    }
  } else {
    for (const auto& item : items_.all()) history.push_back(dialogue_item(item));
  }
  if (admit_side_)
    if (auto refused = admit_side_()) return tl::unexpected(*std::move(refused));
  const int talk = ++talks_;
  to_talks_.push_back({talk, ToTalk::Kind::begin});
  auto open = settings.dialogue();
  open["type"] = "open";
  open["stored"] = false;
  open["detection"] = {{"type", "none"}};
  tell(talk, open);
  for (const auto& item : history) tell(talk, item);
  tell(talk, {{"type", "respond"}});
  auto own = response_options(remembered ? conversation_ : "", std::move(settings), std::move(metadata));
  sides_[talk] = {std::make_unique<RealtimeResponse>(std::move(own), events_, items_), remembered};
  return {};
}

Realtime::Done Realtime::cancel_response(const json& event) {
  const auto id = text_of(event, "response_id");
  const ResponseEnd cancelled{"cancelled", "client_cancelled"};
  for (auto side = sides_.begin(); side != sides_.end(); ++side) {
    if (side->second.response->id() != id) continue;
    side->second.response->finish(cancelled);
    to_talks_.push_back({side->first, ToTalk::Kind::end});
    sides_.erase(side);
    return {};
  }
  if (!active_ || (!id.empty() && active_->id() != id))
    return refuse("response_cancel_not_active", "", "Cancellation failed: no active response found");
  if (std::exchange(asked_, std::nullopt)) {
    finish_active(cancelled);
    return {};
  }
  const auto turn = active_->turn();
  // The turn is kept, as far as it was told: what was said stays in the conversation.
  if (turn != 0)
    tell(0, {{"type", "truncate"}, {"turn", turn}, {"samples", sound_turn_ == turn ? turn_samples_ : 0}});
  else
    tell(0, {{"type", "cancel"}});
  if (dropped_.size() >= kDroppedMax) dropped_.pop_front();
  dropped_.push_back(turn);
  understood(turn, {});
  finish_active(cancelled);
  return {};
}

}  // namespace parlando::gateway
