#include "services/gateway/http_chat.hpp"

#include "common/base/base64.hpp"
#include "common/base/nesting.hpp"
#include "services/gateway/http_fields.hpp"
#include "services/gateway/http_voices.hpp"

namespace parlando::gateway {
using nlohmann::json;

namespace {

constexpr int kChatDepthMax = 64;
constexpr std::size_t kMessagesMax = 2000, kChatPartsMax = 100, kToolsMax = 128, kSystemBytesMax = 32768,
                      kTextBytesMax = 60000;
constexpr double kSoundSecondsMax = 30;  // of an utterance
constexpr double kTopPLeast = 0.001;     // of a session's settings

}  // namespace

void SpokenAnswers::add(const std::string& id, std::string text, std::int64_t now) {
  const std::lock_guard lock(mutex_);
  if (text.size() > kTextBytesMax || !entries_.emplace(id, Entry{std::move(text), now + kSeconds}).second) return;
  order_.push_back(id);
  if (order_.size() <= kMost) return;
  entries_.erase(order_.front());
  order_.pop_front();
}

std::optional<std::string> SpokenAnswers::find(const std::string& id, std::int64_t now) const {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(id);
  if (found == entries_.end() || found->second.until < now) return {};
  return found->second.text;
}

// ------------------------------------------------------------------------------------------------ the request

/// Turns a body into steps.
class ChatCompletion::Reading {
 public:
  explicit Reading(ChatCompletion& to) : to_(to) {}
  std::optional<ApiError> problem;

  void read(const json& body) {
    Fields f(body, "", problem);
    const auto model = f.text("model", 200);
    if (!model) f.missing("model");
    to_.model_ = model.value_or("");
    to_.stream_ = f.boolean("stream").value_or(false);
    if (const auto* options = f.object("stream_options"))
      to_.include_usage_ = Fields(*options, "stream_options", problem).boolean("include_usage").value_or(false);
    refuse_what_is_not_there(f);
    read_settings(f);
    read_modalities(f);
    read_tools(f);
    const auto* messages = f.array("messages", kMessagesMax);
    if (messages == nullptr || messages->empty()) f.missing("messages");
    for (std::size_t i = 0; messages != nullptr && i < messages->size() && !problem; ++i)
      read_message((*messages)[i], fmt::format("messages[{}]", i));
    open_["type"] = "open";
    open_["stored"] = false;
    if (!system_.empty()) open_["system"] = system_;
    // The only sound at the very end is a spoken turn, which the model hears; other sound is understood beforehand.
    const auto sounds =
        std::count_if(to_.steps_.begin(), to_.steps_.end(), [](const Step& s) { return s.sound != nullptr; });
    to_.spoken_turn_ = sounds == 1 && to_.steps_.back().sound != nullptr;
    open_["detection"] = {{"type", "none"}, {"answers", to_.spoken_turn_}};
    if (sounds > 0) open_["tokenizer"] = "exact";  // recordings are there as a whole
    to_.open_ = dump(open_);
  }

 private:
  /// What would change the answer and is not done is refused rather than ignored.
  void refuse_what_is_not_there(Fields& f) {
    if (f.integer("n", 1, 128).value_or(1) != 1) f.refuse("n", "is above 1: one answer a request is given");
    if (f.boolean("logprobs").value_or(false) || f.integer("top_logprobs", 0, 20).value_or(0) > 0)
      f.refuse(f.has("logprobs") ? "logprobs" : "top_logprobs", "is asked for: probabilities are not given",
               "unsupported_value");
    for (const auto* name : {"frequency_penalty", "presence_penalty"})
      if (f.number(name, -2, 2).value_or(0) != 0)
        f.refuse(name, "is not 0: penalties are not applied", "unsupported_value");
    if (const auto* bias = f.object("logit_bias"); bias != nullptr && !bias->empty())
      f.refuse("logit_bias", "is not empty: it is not applied", "unsupported_value");
    if (const auto* format = f.object("response_format"))
      if (const auto type = Fields(*format, "response_format", problem).text("type"); type.value_or("text") != "text")
        f.refuse("response_format", "asks for JSON: answers are text", "unsupported_value");
    for (const auto* name : {"functions", "function_call"})
      if (f.has(name)) f.refuse(name, "is not read any more: use tools", "unsupported_value");
  }

  void read_settings(Fields& f) {
    if (const auto t = f.number("temperature", 0, 2)) open_["temperature"] = *t;
    // As published 0 is a number like others: the likeliest token alone.
    if (const auto p = f.number("top_p", 0, 1)) open_["top_p"] = std::max(*p, kTopPLeast);
    if (const auto k = f.integer("top_k", 0, 1'000'000)) open_["top_k"] = *k;  // as other servers have it
    if (const auto seed = f.integer("seed", INT64_MIN, INT64_MAX)) open_["seed"] = static_cast<std::uint64_t>(*seed);
    auto most = f.integer("max_tokens", 1, 1'000'000);
    if (const auto newer = f.integer("max_completion_tokens", 1, 1'000'000)) most = newer;
    if (most) open_["max_tokens"] = *most;
    if (const auto* stop = f.any("stop")) {
      const auto list = stop->is_string() ? json::array({*stop}) : *stop;
      bool good = list.is_array() && list.size() <= 4;
      for (const auto& text : good ? list : json()) good = good && text.is_string() && !text.get<std::string>().empty();
      if (!good) return f.wrong("stop", *stop, "a string or at most 4 of them, none empty");
      if (!list.empty()) open_["stop"] = list;
    }
  }

  void read_modalities(Fields& f) {
    bool aloud = false;
    if (const auto* list = f.array("modalities", 4)) {
      for (const auto& name : *list) {
        if (name != "text" && name != "audio") return f.wrong("modalities", name, "text and audio");
        aloud |= name == "audio";
      }
    }
    open_["speak"] = aloud;
    const auto* audio = f.object("audio");
    if (!aloud) return;
    if (audio == nullptr) return f.missing("audio");
    Fields a(*audio, "audio", problem);
    const auto format = a.one_of("format", {"wav", "aac", "mp3", "flac", "opus", "pcm16"});
    if (!format) return a.missing("format");
    const auto encoding = audio::encoding_of(*format);
    if (!encoding) return a.refuse("format", "is aac, which is not written here", "unsupported_value");
    if (auto sound = SpeechSound::make(*encoding)) {
      to_.encoder_ = std::move(*sound);
    } else {
      return a.refuse("format", "cannot be written: " + sound.error().message, "unsupported_value");
    }
    if (const auto voice = read_voice(a, "voice"); voice && !voice->empty()) open_["speaker"] = *voice;
    to_.audio_ = AudioOut{*encoding, "audio_" + to_.head_.id};
  }

  void read_tools(Fields& f) {
    std::vector<std::string> names;
    if (const auto* tools = f.array("tools", kToolsMax)) {
      auto list = json::array();
      for (std::size_t i = 0; i < tools->size() && !problem; ++i) {
        Fields tool((*tools)[i], fmt::format("tools[{}]", i), problem);
        const auto type = tool.text("type");
        if (type.value_or("function") != "function")
          return tool.refuse("type", "is '" + *type + "': tools are functions", "unsupported_value");
        const auto* function = tool.object("function");
        if (function == nullptr) return tool.missing("function");
        Fields fn(*function, fmt::format("tools[{}].function", i), problem);
        const auto name = fn.text("name", 64);
        if (!name) return fn.missing("name");
        json out{{"name", *name}};
        if (const auto about = fn.text("description", 8192)) out["description"] = *about;
        if (const auto* parameters = fn.object("parameters")) out["parameters"] = *parameters;
        names.push_back(*name);
        list.push_back(std::move(out));
      }
      if (!list.empty()) open_["tools"] = std::move(list);
    }
    const auto* choice = f.any("tool_choice");
    if (choice == nullptr) return;
    if (choice->is_string()) {
      const auto word = f.one_of("tool_choice", {"none", "auto", "required"});
      if (word == "required" && names.empty()) return f.refuse("tool_choice", "is required, and there are no tools");
      if (word) open_["tool_choice"] = *word;
      return;
    }
    if (!choice->is_object()) return f.wrong("tool_choice", *choice, "none, auto, required or a function");
    Fields c(*choice, "tool_choice", problem);
    const auto* function = c.object("function");
    if (c.text("type").value_or("") != "function" || function == nullptr)
      return f.wrong("tool_choice", *choice, "none, auto, required or a function");
    const auto name = Fields(*function, "tool_choice.function", problem).text("name", 64);
    if (!name || std::find(names.begin(), names.end(), *name) == names.end())
      return f.refuse("tool_choice", "names a function that is not among the tools");
    open_["tool_choice"] = *name;
  }

  // ---- messages

  void read_message(const json& message, const std::string& path) {
    Fields f(message, path, problem);
    const auto role = f.one_of("role", {"system", "developer", "user", "assistant", "tool"});
    if (!role) return f.missing("role");
    if (*role == "user") return read_user(f, path);
    const auto text = read_texts(f, path);
    if (problem) return;
    if (*role == "tool") {
      const auto call = f.text("tool_call_id", 100);
      if (!call) return f.missing("tool_call_id");
      if (!text) return f.missing("content");
      return add(f, {{"type", "item"}, {"role", "tool"}, {"text", *text}, {"calls", *call}});
    }
    if (*role == "assistant") return read_assistant(f, path, text);
    if (!text) return f.missing("content");
    if (!to_.steps_.empty()) return add(f, {{"type", "item"}, {"role", "system"}, {"text", *text}});
    if (!system_.empty()) system_ += "\n\n";
    system_ += *text;
    if (system_.size() > kSystemBytesMax)
      f.refuse("content",
               fmt::format("makes instructions of {} bytes, expected at most {}", system_.size(), kSystemBytesMax));
  }

  void read_assistant(Fields& f, const std::string& path, std::optional<std::string> text) {
    json item{{"type", "item"}, {"role", "assistant"}};
    if (const auto* calls = f.array("tool_calls", kToolsMax)) {
      auto list = json::array();
      for (std::size_t i = 0; i < calls->size() && !problem; ++i) {
        Fields call((*calls)[i], fmt::format("{}.tool_calls[{}]", path, i), problem);
        const auto id = call.text("id", 100);
        if (!id) return call.missing("id");
        const auto* function = call.object("function");
        if (function == nullptr) return call.missing("function");
        Fields fn(*function, fmt::format("{}.tool_calls[{}].function", path, i), problem);
        const auto name = fn.text("name", 64);
        if (!name) return fn.missing("name");
        auto arguments = fn.text("arguments");
        if (!arguments) return fn.missing("arguments");
        list.push_back({{"id", *id}, {"name", *name}, {"arguments", *arguments}});
      }
      if (!list.empty()) item["calls"] = std::move(list);
    }
    if (const auto* audio = f.object("audio"); audio != nullptr && !text) {
      Fields a(*audio, path + ".audio", problem);
      const auto id = a.text("id", 100);
      if (!id) return a.missing("id");
      const auto said = to_.spoken_.find(*id, to_.head_.created);
      if (!said) return a.refuse("id", "is not known (any more): send its transcript as content", "not_found");
      text = *said;
    }
    if (!text && !item.contains("calls")) return f.missing("content");
    item["text"] = text.value_or("");
    add(f, std::move(item));
  }

  /// The text of a message that has nothing but text.
  std::optional<std::string> read_texts(Fields& f, const std::string& path) {
    const auto* content = f.any("content");
    if (content == nullptr) return {};
    if (content->is_string()) return f.text("content", kTextBytesMax);
    const auto* parts = f.array("content", kChatPartsMax);
    std::string out;
    for (std::size_t i = 0; parts != nullptr && i < parts->size() && !problem; ++i) {
      Fields part((*parts)[i], fmt::format("{}.content[{}]", path, i), problem);
      const auto type = part.one_of("type", {"text", "refusal"});
      const auto text = type ? part.text(*type, kTextBytesMax) : std::nullopt;
      if (!text) return part.missing(type ? *type : "type"), std::nullopt;
      if (!out.empty()) out += "\n";
      out += *text;
    }
    if (out.size() > kTextBytesMax)
      f.refuse("content", fmt::format("has {} bytes, expected at most {}", out.size(), kTextBytesMax));
    return out;
  }

  void read_user(Fields& f, const std::string& path) {
    const auto* content = f.any("content");
    if (content == nullptr) return f.missing("content");
    if (content->is_string()) {
      if (const auto text = f.text("content", kTextBytesMax)) add_user(f, *text);
      return;
    }
    const auto* parts = f.array("content", kChatPartsMax);
    std::string text;
    for (std::size_t i = 0; parts != nullptr && i < parts->size() && !problem; ++i) {
      const auto where = fmt::format("{}.content[{}]", path, i);
      Fields part((*parts)[i], where, problem);
      const auto type = part.text("type", 100);
      if (!type) return part.missing("type");
      if (*type == "text") {
        const auto more = part.text("text", kTextBytesMax);
        if (!more) return part.missing("text");
        text += (text.empty() ? "" : "\n") + *more;
      } else if (*type == "input_audio") {
        add_user(f, std::exchange(text, {}));
        read_sound(part, where);
      } else {
        return part.refuse("type", "is '" + *type + "', expected text or input_audio", "unsupported_value");
      }
    }
    if (parts != nullptr && parts->empty()) return f.refuse("content", "is empty");
    add_user(f, text);
  }

  void read_sound(Fields& part, const std::string& path) {
    const auto* audio = part.object("input_audio");
    if (audio == nullptr) return part.missing("input_audio");
    Fields a(*audio, path + ".input_audio", problem);
    const auto* data = a.any("data");
    if (data == nullptr) return a.missing("data");
    if (!data->is_string()) return a.wrong("data", *data, "base64");
    a.text("format", 20);  // what it is, the file itself says
    const auto bytes = from_base64(data->get_ref<const std::string&>());
    if (!bytes) return a.refuse("data", "is not base64: " + bytes.error().message);
    auto sound =
        SoundSource::open({reinterpret_cast<const char*>(bytes->data()), bytes->size()}, "data", kSoundSecondsMax);
    if (!sound) return a.refuse("data", "cannot be heard: " + sound.error().message);
    to_.steps_.push_back({{}, std::move(*sound), path});
  }

  void add_user(Fields& f, const std::string& text) {
    if (!text.empty()) add(f, {{"type", "item"}, {"role", "user"}, {"text", text}});
  }
  void add(Fields& f, const json& item) {
    if (item["text"].get_ref<const std::string&>().size() > kTextBytesMax)
      return f.refuse("content", fmt::format("has more than {} bytes", kTextBytesMax));
    to_.steps_.push_back({dump(item), nullptr, {}});
  }

  ChatCompletion& to_;
  json open_ = json::object();
  std::string system_;
};

ApiResult<std::unique_ptr<ChatCompletion>> ChatCompletion::make(std::string_view body, RequestHead head,
                                                                SpokenAnswers& spoken) {
  const auto parsed = nested_deeper_than(body, kChatDepthMax) ? json() : json::parse(body, nullptr, false);
  if (!parsed.is_object()) return tl::unexpected(ApiError{400, "the body is not a JSON object", {}, "bad_json"});
  std::unique_ptr<ChatCompletion> out(new ChatCompletion(std::move(head), spoken));
  Reading reading(*out);
  reading.read(parsed);
  if (reading.problem) return tl::unexpected(std::move(*reading.problem));
  return out;
}

// ------------------------------------------------------------------------------------------------ the conversation

void ChatCompletion::start() {
  say(json::parse(open_));
  go_on();
}

/// Says what may be said; an utterance must be understood before what follows it is. What a user writes last is a typed
/// turn.
void ChatCompletion::go_on() {
  while (!steps_.empty()) {
    auto step = std::move(steps_.front());
    steps_.pop_front();
    if (!step.sound) {
      const auto message = json::parse(step.message);
      if (steps_.empty() && message["role"] == "user") return say({{"type", "text"}, {"text", message["text"]}});
      say(message);
      continue;
    }
    sound_param_ = step.param;
    say_sound(std::move(step.sound));
    return say({{"type", "flush"}});
  }
  say({{"type", "respond"}});
}

void ChatCompletion::on_event(const std::string& type, const json& event) {
  if (type == "noted") {
    if (std::exchange(sound_param_, {}).empty()) return;
    return go_on();
  }
  if (type == "error") {
    auto error =
        api_error(event.value("code", ""), event.value("message", ""), event.value("retry_ms", std::int64_t{0}));
    if (error.code == to_string(Errc::no_speech)) error.param = sound_param_;
    if (error.code == to_string(Errc::not_found) && audio_) error.param = "audio.voice";
    return fail(error);
  }
  if (type == "text") {
    const auto kind = event.value("kind", "");
    if (kind == "text") return on_text(event.value("text", ""));
    if (kind == "tool_call") return on_tool_call(json::parse(event.value("text", ""), nullptr, false));
    return;
  }
  if (type == "waiting") return end("tool_calls", event);
  if (type == "turn") return end(event.value("finish", "stop"), event);
}

json ChatCompletion::base(const char* object) const {
  return {{"id", "chatcmpl-" + head_.id}, {"object", object}, {"created", head_.created}, {"model", model_}};
}

void ChatCompletion::begin_if_needed() {
  if (has_begun()) return;
  begin_events();
  json delta{{"role", "assistant"}};
  if (audio_)
    delta["audio"] = {{"id", audio_->id}};
  else
    delta["content"] = "";
  delta["refusal"] = nullptr;
  send_chunk(std::move(delta));
}

void ChatCompletion::send_chunk(json delta, const char* finish_reason) {
  auto chunk = base("chat.completion.chunk");
  json choice{{"index", 0}, {"delta", std::move(delta)}, {"logprobs", nullptr}, {"finish_reason", nullptr}};
  if (finish_reason != nullptr) choice["finish_reason"] = finish_reason;
  chunk["choices"] = json::array({std::move(choice)});
  if (include_usage_) chunk["usage"] = nullptr;
  send_event(chunk);
}

void ChatCompletion::on_text(std::string_view text) {
  text_ += text;
  if (!stream_ || text.empty()) return;
  begin_if_needed();
  if (audio_)
    send_chunk({{"audio", {{"transcript", text}}}});
  else
    send_chunk({{"content", text}});
}

/// One with a result was executed by the engine itself: its client hears of the answer alone.
void ChatCompletion::on_tool_call(const json& call) {
  if (!call.is_object() || call.contains("result")) return;
  const auto arguments = call.value("arguments", json());
  // Ids of sessions begin anew with every request; those of one client's messages must not.
  json told{{"id", fmt::format("call_{}_{}", head_.id.substr(0, 16), call_count_)},
            {"type", "function"},
            {"function",
             {{"name", call.value("name", "")},
              {"arguments", arguments.is_string() ? arguments.get<std::string>() : dump(arguments)}}}};
  if (stream_) {
    begin_if_needed();
    auto delta = told;
    delta["index"] = call_count_;
    send_chunk({{"tool_calls", json::array({std::move(delta)})}});
  }
  auto calls = calls_.empty() ? json::array() : json::parse(calls_);
  calls.push_back(std::move(told));
  calls_ = dump(calls);
  ++call_count_;
}

void ChatCompletion::on_sound(std::string_view pcm) {
  if (!encoder_) return;
  auto bytes = encoder_->push(pcm);
  if (!stream_) {
    sound_ += bytes;
  } else if (!bytes.empty()) {
    begin_if_needed();
    send_chunk({{"audio", {{"data", to_base64(std::as_bytes(std::span(bytes)))}}}});
  }
}

void ChatCompletion::end(std::string_view finish_reason, const json& turn) {
  const std::string reason(finish_reason == "length" || finish_reason == "tool_calls" ? finish_reason : "stop");
  const auto usage = chat_usage(turn);
  std::int64_t expires_at = 0;
  std::string rest;
  if (audio_) {
    rest = encoder_->finish();
    expires_at = head_.created + SpokenAnswers::kSeconds;
    if (!text_.empty()) spoken_.add(audio_->id, text_, head_.created);
  }
  if (stream_) {
    begin_if_needed();
    if (audio_) {
      if (!rest.empty()) send_chunk({{"audio", {{"data", to_base64(std::as_bytes(std::span(rest)))}}}});
      send_chunk({{"audio", {{"expires_at", expires_at}}}});
    }
    send_chunk(json::object(), reason.c_str());
    if (include_usage_) {
      auto last = base("chat.completion.chunk");
      last["choices"] = json::array();
      last["usage"] = usage;
      send_event(last);
    }
    return finish_events(true);
  }
  json message{{"role", "assistant"}, {"content", nullptr}, {"refusal", nullptr}};
  if (audio_ && (call_count_ == 0 || !text_.empty())) {
    sound_ += rest;
    if (audio_->encoding == audio::Encoding::wav) audio::set_wav_sizes(sound_);
    message["audio"] = {{"id", audio_->id},
                        {"data", to_base64(std::as_bytes(std::span(sound_)))},
                        {"transcript", text_},
                        {"expires_at", expires_at}};
  } else if (!text_.empty() || call_count_ == 0) {
    message["content"] = text_;
  }
  if (call_count_ > 0) message["tool_calls"] = json::parse(calls_);
  auto out = base("chat.completion");
  out["choices"] =
      json::array({{{"index", 0}, {"message", std::move(message)}, {"logprobs", nullptr}, {"finish_reason", reason}}});
  out["usage"] = usage;
  answer({200, "application/json", dump(out)});
}

}  // namespace parlando::gateway
